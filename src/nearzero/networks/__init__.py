"""Networks: frozen specs with `.build()`. They know nothing of diffusion: F = network(x, c)."""

from __future__ import annotations

from typing import Protocol

from torch import nn


class NetworkSpec(Protocol):
    """What a recipe saves of a network."""

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        ...

    @property
    def size(self) -> int:
        """Width and height of the images in pixels."""
        ...

    def build(self) -> nn.Module:
        """A network with fresh weights: F = network(x (B, channels, size, size), c (B,))."""
        ...
