"""The codec: what lies between files and the model's space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nearzero.errors import ArgumentError
from nearzero.registry import register


class Codec(Protocol):
    """Invertible on real numbers; saved in the run, undone by sampling, charged by likelihood."""

    def encode(self, images: Tensor) -> Tensor:
        """From pixel values in [0, 255] to the model's space, float32."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """From the model's space to pixel values, not rounded."""
        ...

    def log_determinant(self, dim: int) -> float:
        """log |d encode / d image| for images of `dim` numbers, in nats."""
        ...


@register
@dataclass(frozen=True)
class Pixels:
    """[0, 255] <-> [-1, 1], linearly.

    >>> Pixels().encode(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """

    def encode(self, images: Tensor) -> Tensor:
        """image / 127.5 - 1, float32."""
        return images.to(torch.float32) / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """127.5 (x + 1), neither rounded nor cut off."""
        return 127.5 * (x + 1)

    def log_determinant(self, dim: int) -> float:
        """-dim log 127.5, in nats."""
        return -dim * math.log(127.5)


@register
@dataclass(frozen=True)
class Centred:
    """Pixels minus a mean image: data of mean 0, which FullDiffusion's Nu assumes.

    `mean` holds the mean image in [-1, 1], or one number for each channel, flattened. `Centred()` takes the mean of the
    images that it is trained on (`fitted`); until then it can neither encode nor decode.

    >>> Centred((0.5,)).encode(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)).max()
    tensor(0.5000)
    """

    mean: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in self.mean):
            raise ArgumentError(f"Centred needs a mean image of finite numbers, got {str(self.mean)[:60]}")

    @classmethod
    def of(cls, images: Tensor, *, mirrored: bool = False) -> Centred:
        """Centred at the mean of uint8 images (N, C, H, W), with that of their mirror images if `mirrored`."""
        total = torch.zeros(images.shape[1:], dtype=torch.int64)
        for part in images.split(1024):  # a float64 copy of all of them would take eight times their memory
            total += part.sum(0, dtype=torch.int64).to(total)
        total, count = (total + total.flip(-1), 2 * len(images)) if mirrored else (total, len(images))
        return cls(tuple((total.to(torch.float64) / count / 127.5 - 1).flatten().tolist()))

    def _mean(self, x: Tensor) -> Tensor:
        if not self.mean:
            raise ArgumentError("Centred() knows no mean yet; take Centred.of(images), or train, which fits it")
        shape = x.shape[1:]
        mean = x.new_tensor(self.mean)
        if mean.numel() == math.prod(shape):
            return mean.reshape(shape)
        if shape and mean.numel() == shape[0]:
            return mean.reshape(-1, *(1,) * (len(shape) - 1))
        raise ArgumentError(f"Centred has a mean of {mean.numel()} numbers for images of {tuple(shape)}")

    def encode(self, images: Tensor) -> Tensor:
        """image / 127.5 - 1 - mean, float32."""
        x = Pixels().encode(images)
        return x - self._mean(x)

    def decode(self, x: Tensor) -> Tensor:
        """127.5 (x + mean + 1), neither rounded nor cut off."""
        return Pixels().decode(x + self._mean(x))

    def log_determinant(self, dim: int) -> float:
        """-dim log 127.5, in nats: a shift changes no volume."""
        return Pixels().log_determinant(dim)


def fitted(codec: Codec, images: Tensor, *, mirrored: bool = False) -> Codec:
    """The codec for these uint8 images (N, C, H, W), half of them mirrored if `mirrored`.

    `Centred()` takes the mean of the images as training sees them, any other codec stays as it is.
    """
    return Centred.of(images, mirrored=mirrored) if codec == Centred() else codec
