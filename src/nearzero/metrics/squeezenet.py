"""SqueezeNet 1.1: 512 features of an image, hundreds of images a second on a CPU.

Iandola et al., SqueezeNet: AlexNet-level accuracy with 50x fewer parameters, 2016; weights in Caffe's layout, trained
on ImageNet. A Frechet distance of its features is no FID, and its numbers compare with each other only.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from nearzero.data.fetch import part_of
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.metrics.cache import fill, kept
from nearzero.metrics.extractors import ModuleExtractor

MEANS = (103.939, 116.779, 123.68)
"""Of blue, green and red over ImageNet."""
LAYERS = {
    2: (64, 16, 64),
    3: (128, 16, 64),
    4: (128, 32, 128),
    5: (256, 32, 128),
    6: (256, 48, 192),
    7: (384, 48, 192),
    8: (384, 64, 256),
    9: (512, 64, 256),
}
"""Fire module: channels in, squeezed, and of each expansion."""
PARTS = {"squeeze1x1": "squeeze", "expand1x1": "expand1", "expand3x3": "expand3"}


class Fire(nn.Module):
    """Squeezes channels by 1 x 1, then expands them by 1 x 1 and by 3 x 3, side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 2 x expanded, H, W)."""
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1(x), self.expand3(x)], 1).relu()


class SqueezeNet(nn.Module):
    """RGB pixels in [0, 255], (N, 3, H, W) -> the mean over places of fire9, (N, 512).

    Pixels are brought to `size` x `size` by bilinear interpolation, antialiased where they shrink, and to BGR minus
    the means.
    """

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        if size < 32:
            raise ArgumentError(f"SqueezeNet needs images of at least 32 pixels a side, got size={size}")
        self.size = size
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        for number, channels in LAYERS.items():
            self.add_module(f"fire{number}", Fire(*channels))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 255] -> (N, 512)."""
        x = functional.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        x = x.flip(1) - torch.tensor(MEANS, dtype=x.dtype, device=x.device).reshape(3, 1, 1)
        x = self.conv1(functional.pad(x, (0, 1, 0, 1))).relu()
        for number in LAYERS:
            if number in (2, 4, 6):
                x = functional.max_pool2d(x, 3, 2)
            x = self.get_submodule(f"fire{number}")(x)
        return x.mean((2, 3))


def load(path: Path, size: int = 64) -> ModuleExtractor:
    """The extractor with the weights of a safetensors file. Raises CheckpointError where they do not fit.

    Images are resized to `size` pixels: 64 is seven times faster than 128, which tells classes apart better.
    """
    network = SqueezeNet(size)
    fill(network, path)
    return extractor(network)


def fetched(size: int = 64) -> ModuleExtractor:
    """The extractor with the weights of `nearzero data fetch squeezenet`. Raises DataError where they are missing."""
    return load(kept("squeezenet", part_of("squeezenet"), from_pickle), size)


def extractor(network: SqueezeNet) -> ModuleExtractor:
    """The extractor of a network that has its weights."""
    told = f"{network.size} x {network.size} by bilinear interpolation, antialiased"
    return ModuleExtractor(network.eval(), name="SqueezeNet", preprocessing=told, channels=3, dimension=512)


def from_pickle(path: Path) -> dict[str, Tensor]:
    """The weights, under our names, of a pickle of numpy arrays: layer -> [kernel (h, w, in, out), bias (out,)].

    The pickle is read as data, and nothing that it names is run. Raises CheckpointError where it holds something else.
    """
    from nearzero import pickled

    found = pickled.read(path)
    try:
        layers = {"conv1": found["conv1"]}
        for number in LAYERS:
            layers |= {f"fire{number}.{ours}": found[f"fire{number}/{theirs}"] for theirs, ours in PARTS.items()}
        pairs = {name: [torch.as_tensor(value) for value in (kernel, bias)] for name, (kernel, bias) in layers.items()}
        kernels = {f"{name}.weight": kernel.permute(3, 2, 0, 1).contiguous() for name, (kernel, _) in pairs.items()}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds no weights of SqueezeNet 1.1 ({error}); fetch it again") from error
    return kernels | {f"{name}.bias": bias for name, (_, bias) in pairs.items()}
