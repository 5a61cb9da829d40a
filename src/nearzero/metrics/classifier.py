"""A small classifier trained on the data set itself: features where others would mostly see their own resize.

Grey images of 28 x 28 pixels are far from what ImageNet's networks know. Distances of these features compare with each
other for one data set and one seed only, which the hash of the weights tells.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from nearzero.data.images import Images
from nearzero.errors import ArgumentError, DataError, NumericalError
from nearzero.files import digest
from nearzero.metrics.cache import cache_folder, read_kept, write_tensors
from nearzero.metrics.extractors import ModuleExtractor


@dataclass(frozen=True)
class Training:
    """How the classifier is trained: `steps` of Adam on `batch` images each, the rate falling to 0 as a cosine."""

    steps: int = 400
    batch: int = 64
    rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or not 0 < self.rate < 1:
            raise ArgumentError(f"training needs steps, batch >= 1 and a rate in (0, 1), got {self}")


class Classifier(nn.Module):
    """Pixels in [0, 255], (N, C, H, W) -> 64 features (N, 64), the mean over places of the last of four convolutions.

    The layer behind them, `head`, which makes classes of them, is used in training only.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for inputs, outputs, stride in ((channels, 16, 1), (16, 32, 2), (32, 64, 2), (64, 64, 1)):
            self.layers.extend([nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.ReLU()])
        self.head = nn.Linear(64, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 255] -> (N, 64)."""
        return self.layers(pixels / 127.5 - 1).mean((2, 3))


def classifier(
    images: Images,
    folder: Path | None = None,
    *,
    training: Training | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ModuleExtractor:
    """The extractor trained on labelled images, on the CPU, once for each data set and training.

    It is kept in `folder`, "weights" in the cache unless given. Its hash may differ between machines, whose sums round
    differently: take the file along. Raises DataError for images without labels or of one class, or where the file is
    damaged; NumericalError where training diverges.
    """
    settings = training or Training()
    if images.labels is None:
        raise DataError(f"{images.name} has no labels to train a classifier on; take another extractor")
    classes = int(images.labels.max()) + 1
    if int(images.labels.min()) < 0 or len(images.labels.unique()) < 2:
        raise DataError(f"{images.name} has labels of fewer than two classes; take another extractor")
    about = {**asdict(settings), "data": images.fingerprint(), "kind": "classifier 16-32-64-64"}
    kept_in = cache_folder() / "weights" if folder is None else folder
    path = kept_in / f"classifier-{digest(json.dumps(about, sort_keys=True).encode())}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = Classifier(images.channels, classes)
    if path.exists():
        network.load_state_dict(read_kept(path, about)[0])
    else:
        _train(network, images.pixels, images.labels, settings, progress)
        write_tensors(path, network.state_dict(), about)
    return ModuleExtractor(network.eval(), name=f"classifier of {images.name}", channels=images.channels, dimension=64)


def _train(
    network: Classifier,
    pixels: Tensor,
    labels: Tensor,
    settings: Training,
    progress: Callable[[int, int], None] | None,
) -> None:
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.Adam(network.parameters(), settings.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for step in range(settings.steps):
        chosen = torch.randint(len(pixels), (settings.batch,), generator=generator)
        loss = functional.cross_entropy(network.head(network(pixels[chosen].float())), labels[chosen])
        if not bool(loss.isfinite()):
            raise NumericalError(f"the classifier's loss is {loss.item()} at step {step}; train at a lower rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, settings.steps)
