"""Feature extractors: uint8 images in, float64 features out, with a name and a hash that say which numbers they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn

from nearzero.errors import ArgumentError, DataError, NumericalError
from nearzero.metrics.cache import tensor_hash
from nearzero.metrics.frechet import Statistics, merged

BLOCK = 2048
"""Images whose features are merged at once, whatever the batch."""


class Extractor(Protocol):
    """What turns images into features."""

    @property
    def name(self) -> str:
        """For people: "SqueezeNet"."""
        ...

    @property
    def title(self) -> str:
        """What the Frechet distance of these features is called: "FID" for one network only."""
        ...

    @property
    def weights(self) -> str:
        """SHA-256 of its numbers."""
        ...

    @property
    def preprocessing(self) -> str:
        """What is done to the pixels first, the resize above all."""
        ...

    @property
    def dimension(self) -> int | None:
        """The number of features, where it is known beforehand."""
        ...

    def features(self, pixels: Tensor) -> Tensor:
        """Features, float64 (N, d) on the CPU, of uint8 pixels (N, 1 or 3, H, W), each image by itself."""
        ...


@dataclass(frozen=True, eq=False)
class ModuleExtractor:
    """Any module in evaluation mode that maps pixels in [0, 255], (N, C, H, W) in its own type, to features (N, d).

    `channels` is what the module takes: for 3, grey images repeat their channel; None passes images as they are. What
    the module does to the pixels first is told in `preprocessing`. Convolutions run without TF32.

    >>> means = ModuleExtractor(nn.Flatten().eval(), name="pixels")
    >>> means.features(torch.ones(2, 1, 2, 2, dtype=torch.uint8)).shape
    torch.Size([2, 4])
    """

    module: nn.Module
    _: KW_ONLY
    name: str
    preprocessing: str = "none"
    channels: int | None = None
    dimension: int | None = None
    known_as: str | None = None

    @property
    def title(self) -> str:
        """`known_as`, else "Frechet distance" with the name."""
        return self.known_as or f"Frechet distance ({self.name})"

    @property
    def weights(self) -> str:
        """SHA-256 of the module's tensors as they are now."""
        return tensor_hash(self.module.state_dict())

    def features(self, pixels: Tensor) -> Tensor:
        """Features of one batch. Raises DataError, ArgumentError for a module in training mode or of another shape."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise DataError(f"features need uint8 images (N, 1 or 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}")
        if any(module.training for module in self.module.modules()):
            raise ArgumentError(f"{self.name} is in training mode, where images depend on their batch; call its eval()")
        if self.channels == 1 and pixels.shape[1] == 3:
            raise DataError(f"{self.name} takes grey images, these are in colour; make them grey with channels=1")
        if self.channels == 3 and pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        tensors = chain(self.module.parameters(), self.module.buffers())
        like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
        # the module's own type and place; cudnn's TF32 would round features to three digits
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            found = self.module(pixels.to(like.device).to(like.dtype))
        if found.ndim != 2 or found.shape != (len(pixels), self.dimension or found.shape[1]):
            told = self.dimension or "d"
            raise ArgumentError(f"{self.name} must give features ({len(pixels)}, {told}), got {tuple(found.shape)}")
        if not bool(found.isfinite().all()):
            raise NumericalError(f"{self.name} gives features that are not finite; are its weights?")
        return found.to("cpu", torch.float64)


def identity(extractor: Extractor) -> str:
    """One line that two extractors share only if they give the same numbers."""
    return f"{extractor.name} ({extractor.preprocessing}; weights {extractor.weights[:16]})"


def comparable(samples: Tensor, data: Tensor, who: str) -> tuple[Tensor, Tensor]:
    """Two sets of features, (n, d) and (m, d), in float64 on the CPU. Raises ArgumentError and NumericalError."""
    if samples.ndim != 2 or data.ndim != 2 or samples.shape[1] != data.shape[1] or not samples.shape[1]:
        raise ArgumentError(
            f"{who} needs features (n, d) and (m, d), got {tuple(samples.shape)} and {tuple(data.shape)}"
        )
    x, y = (value.detach().to("cpu", torch.float64) for value in (samples, data))
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise NumericalError(f"{who} was given features that are not finite; what made them?")
    return x, y


def extract(
    extractor: Extractor,
    pixels: Tensor,
    *,
    count: int | None = None,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Features, float64 (count, d), of the first `count` images, all unless given; `batch` changes rounding only.

    Raises DataError where there are fewer images than `count`.
    """
    if batch < 1 or (count is not None and count < 1):
        raise ArgumentError(f"count and batch must be positive, got {count} and {batch}")
    if count is not None and len(pixels) < count:
        raise DataError(f"asked for {count:,} images, there are {len(pixels):,}; give more, or ask for fewer")
    if not len(pixels):
        raise DataError("there are no images; give at least one")
    chosen, found = pixels[:count], []
    for start in range(0, len(chosen), batch):
        found.append(extractor.features(chosen[start : start + batch]))
        if progress is not None:
            progress(min(start + batch, len(chosen)), len(chosen))
    return torch.cat(found)


def statistics(
    extractor: Extractor,
    pixels: Tensor,
    *,
    count: int | None = None,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """The statistics of the features of the first `count` images, in memory for 2,048 of them at once.

    Parts made by several processes are joined by `Statistics.merge`. Raises what `extract` raises.
    """
    if count is not None and len(pixels) < count:
        raise DataError(f"asked for {count:,} images, there are {len(pixels):,}; give more, or ask for fewer")
    chosen, name, parts = pixels[:count], identity(extractor), []
    for start in range(0, len(chosen), BLOCK):
        report = None if progress is None else _shifted(progress, start, len(chosen))
        parts.append(
            Statistics.of(extract(extractor, chosen[start : start + BLOCK], batch=batch, progress=report), name)
        )
    return merged(parts)


def _shifted(progress: Callable[[int, int], None], start: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: progress(start + done, total)
