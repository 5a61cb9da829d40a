"""The codec: what lies between files and the model's space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

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
