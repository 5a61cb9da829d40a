"""The Inception-v3 network of the FID: the TensorFlow graph of 2015-12-05, whose last pool gives 2,048 features.

It differs from other Inception networks: averages leave out the padding, the last block pools by the maximum, batch
norm has no scale, and the resize is TensorFlow's of that time, `resize` below. Each of these changes the number.

References: Szegedy et al., Rethinking the Inception architecture, CVPR 2016; Heusel et al., NeurIPS 2017.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from nearzero.data.fetch import part_of
from nearzero.errors import CheckpointError
from nearzero.metrics.cache import fill, kept
from nearzero.metrics.extractors import ModuleExtractor

SIZE = 299
Kernel = int | tuple[int, int]
PREFIX = "net.layers."


class Conv(nn.Module):
    """Convolution, batch norm without a scale (the graph's epsilon is 0.001) and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel = 1, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        self.stride, self.padding = stride, (height // 2, width // 2) if padded else (0, 0)
        self.register_buffer("weight", torch.zeros(outputs, inputs, height, width))
        for name in ("beta", "mean", "var"):
            self.register_buffer(name, torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H', W')."""
        x = functional.conv2d(x, self.get_buffer("weight"), stride=self.stride, padding=self.padding)
        mean, var, beta = (self.get_buffer(name) for name in ("mean", "var", "beta"))
        return functional.batch_norm(x, mean, var, None, beta, eps=1e-3).relu()


class Beside(nn.ModuleDict):
    """Branches side by side: their channels one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, sum of the branches' channels, H', W')."""
        return torch.cat([branch(x) for branch in self.values()], 1)


def row(**layers: nn.Module) -> nn.Sequential:
    """Layers one after the other, each with its name."""
    found = nn.Sequential()
    for name, layer in layers.items():
        found.add_module(name, layer)
    return found


def tower(inputs: int, *layers: tuple[int, Kernel], last_stride: int = 1) -> nn.Sequential:
    """Convolutions (outputs, kernel) in a row, the last one with a stride and then without padding."""
    convs: dict[str, nn.Module] = {}
    for i, (outputs, kernel) in enumerate(layers):
        ends = i == len(layers) - 1 and last_stride > 1
        convs[f"conv_{i}" if i else "conv"] = Conv(inputs, outputs, kernel, last_stride if ends else 1, not ends)
        inputs = outputs
    return row(**convs)


def pooled(inputs: int, outputs: int, pool: nn.Module | None = None) -> nn.Sequential:
    """A 3 x 3 average that leaves out the padding, or another pool, and a 1 x 1 convolution."""
    return row(pool=pool or nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv=Conv(inputs, outputs))


def block_35(inputs: int, pool: int) -> Beside:
    """At 35 x 35 places."""
    five, three = tower(inputs, (48, 1), (64, 5)), tower(inputs, (64, 1), (96, 3), (96, 3))
    return Beside({"conv": Conv(inputs, 64), "tower": five, "tower_1": three, "tower_2": pooled(inputs, pool)})


def block_17(width: int) -> Beside:
    """At 17 x 17 places: 7 x 7 in two halves, once and twice."""
    flat, tall = (1, 7), (7, 1)
    once = tower(768, (width, 1), (width, flat), (192, tall))
    twice = tower(768, (width, 1), (width, tall), (width, flat), (width, tall), (192, flat))
    return Beside({"conv": Conv(768, 192), "tower": once, "tower_1": twice, "tower_2": pooled(768, 192)})


def block_8(inputs: int, pool: nn.Module | None = None) -> Beside:
    """At 8 x 8 places: 3 x 3 in two halves beside each other."""

    def halves() -> Beside:
        return Beside({"conv": Conv(384, 384, (1, 3)), "conv_1": Conv(384, 384, (3, 1))})

    once = row(conv=Conv(inputs, 384), mixed=halves())
    twice = row(conv=Conv(inputs, 448), conv_1=Conv(448, 384, 3), mixed=halves())
    last = pooled(inputs, 192, pool)
    return Beside({"conv": Conv(inputs, 320), "tower": once, "tower_1": twice, "tower_2": last})


def layers() -> nn.Sequential:
    """The network from (N, 3, 299, 299) to (N, 2048, 8, 8)."""
    half = tower(288, (64, 1), (96, 3), (96, 3), last_stride=2)
    third, seven = tower(768, (192, 1), (320, 3), last_stride=2), ((192, (1, 7)), (192, (7, 1)))
    fourth = tower(768, (192, 1), *seven, (192, 3), last_stride=2)
    return row(
        conv=Conv(3, 32, 3, 2, padded=False),
        conv_1=Conv(32, 32, 3, padded=False),
        conv_2=Conv(32, 64, 3),
        pool0=nn.MaxPool2d(3, 2),
        conv_3=Conv(64, 80),
        conv_4=Conv(80, 192, 3, padded=False),
        pool1=nn.MaxPool2d(3, 2),
        mixed=block_35(192, 32),
        mixed_1=block_35(256, 64),
        mixed_2=block_35(288, 64),
        mixed_3=Beside({"conv": Conv(288, 384, 3, 2, padded=False), "tower": half, "pool": nn.MaxPool2d(3, 2)}),
        mixed_4=block_17(128),
        mixed_5=block_17(160),
        mixed_6=block_17(160),
        mixed_7=block_17(192),
        mixed_8=Beside({"tower": third, "tower_1": fourth, "pool": nn.MaxPool2d(3, 2)}),
        mixed_9=block_8(1280),
        mixed_10=block_8(2048, nn.MaxPool2d(3, 1, 1)),
    )


class Inception(nn.Module):
    """RGB pixels in [0, 255], (N, 3, H, W) -> the features of the FID, (N, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = layers()

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 255] -> (N, 2048)."""
        return self.layers((resize(pixels) - 128) / 128).mean((2, 3))


def resize(pixels: Tensor, size: int = SIZE) -> Tensor:
    """Images (N, C, H, W) as (N, C, size, size) by TensorFlow 1's bilinear rule, which the FID's graph has.

    Place i of the result lies at i H / size of the image, counted from its first pixel's centre, and beyond the last
    pixel its value goes on. There is no antialiasing: images above 299 pixels alias. At H = size nothing changes.
    """
    for axis in (2, 3):
        length = pixels.shape[axis]
        place = torch.arange(size, dtype=torch.float64) * length / size
        low = place.floor().long()
        share = (place - low).to(pixels).reshape((-1, 1) if axis == 2 else (-1,))
        above, below = (
            pixels.index_select(axis, at.to(pixels.device)) for at in (low, (low + 1).clamp(max=length - 1))
        )
        pixels = above + share * (below - above)
    return pixels


def load(path: Path) -> ModuleExtractor:
    """The extractor with the weights of a safetensors file. Raises CheckpointError where they do not fit."""
    network = Inception()
    fill(network, path)
    return extractor(network)


def fetched() -> ModuleExtractor:
    """The extractor with the weights of `nearzero data fetch inception`. Raises DataError where they are missing."""
    return load(kept("inception", part_of("inception"), from_torchscript))


def extractor(network: Inception) -> ModuleExtractor:
    """The extractor of a network that has its weights; the Frechet distance of its features is the FID."""
    return ModuleExtractor(
        network.eval(),
        name="Inception-v3 2015-12-05",
        preprocessing=f"{SIZE} x {SIZE} by TensorFlow 1's bilinear interpolation",
        channels=3,
        dimension=2048,
        known_as="FID",
    )


def from_torchscript(path: Path) -> dict[str, Tensor]:
    """The weights, under our names, of the TorchScript archive of this network, which is read and not run.

    Raises CheckpointError where it holds something else.
    """
    from nearzero import pickled

    found = pickled.state_dicts(path).get("module", {})
    ours = {f"layers.{_renamed(name)}": tensor for name, tensor in found.items() if name.startswith(PREFIX)}
    wanted = Inception().state_dict()
    wrong = [name for name, tensor in wanted.items() if name not in ours or ours[name].shape != tensor.shape]
    if wrong or len(ours) != len(wanted):
        raise CheckpointError(f"{path} is no Inception-v3 of 2015-12-05: {len(wrong)} tensors miss; fetch it again")
    return ours


def _renamed(name: str) -> str:
    """tower_1_mixed_conv -> tower_1.mixed.conv, where the archive has one flat block."""
    name = name.removeprefix(PREFIX)
    return re.sub(r"(tower(?:_\d)?)_(mixed_)?conv", lambda m: f"{m[1]}.{'mixed.' if m[2] else ''}conv", name)
