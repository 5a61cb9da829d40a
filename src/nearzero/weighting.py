"""Axis 5, the weighting: how much the network's error counts at each noise level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nearzero.level import Coefficients, Level
from nearzero.registry import register


class Weighting(Protocol):
    """A factor for the squared error of the network's output F."""

    def __call__(self, level: Level, coefficients: Coefficients) -> Tensor:
        """One weight for each example, shaped like level.alpha."""
        ...


@register
@dataclass(frozen=True)
class Simple:
    """Weight 1 on the error of F: DDPM's simple loss for Epsilon, EDM's lambda c_out^2 = 1 for Karras."""

    def __call__(self, level: Level, coefficients: Coefficients) -> Tensor:
        """Ones."""
        return torch.ones_like(level.alpha)
