"""Grids on which diffusers' schedulers step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nearzero.errors import ArgumentError
from nearzero.grid import Grid
from nearzero.process import StraightPath
from nearzero.registry import register


@register
@dataclass(frozen=True)
class ShiftedGrid:
    """Flow matching's shifted times on StraightPath: u from 1 down to `last` in equal steps, each moved, then 0.

        t = shift u / (1 + (shift - 1) u)

    A shift above 1 spends more steps on much noise. `last` is 1 / steps unless given. Raises ArgumentError for another
    process. Reference: Esser et al., Scaling rectified flow transformers, ICML 2024, Eq. 23.

    >>> ShiftedGrid(3.0)(4, StraightPath())
    tensor([1.0000, 0.9000, 0.7500, 0.5000, 0.0000], dtype=torch.float64)
    """

    shift: float = 1.0
    last: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ArgumentError(f"ShiftedGrid needs a positive shift, got {self.shift}; 1 shifts nothing")
        if self.last is not None and not 0 < self.last < 1:
            raise ArgumentError(f"ShiftedGrid needs its last u inside (0, 1), got {self.last}")

    def __call__(self, steps: int, process: Any) -> Tensor:
        """steps + 1 decreasing times."""
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ArgumentError(f"a grid needs at least 1 step, got {steps}")
        if not isinstance(process, StraightPath):
            raise ArgumentError(f"ShiftedGrid shifts the times of StraightPath, got {type(process).__name__}")
        down = torch.linspace(1, self.last or 1 / steps, steps, dtype=torch.float64)
        u = torch.cat([down, down.new_zeros(1)])
        return self.shift * u / (1 + (self.shift - 1) * u)


@register
@dataclass(frozen=True)
class OffsetGrid:
    """The nodes of another grid moved up by `offset` timesteps, then 0: diffusers' steps_offset.

    Raises ArgumentError where that leads beyond the last node.

    >>> OffsetGrid(TimestepGrid("leading"), 1)(2, DiscreteVP.linear(steps=4))
    tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """

    inner: Grid
    offset: int = 1

    def __call__(self, steps: int, process: Any) -> Tensor:
        """The inner times plus offset / N, the last 0."""
        count = getattr(process, "steps", None)
        if count is None:
            raise ArgumentError(f"OffsetGrid counts timesteps, and {type(process).__name__} has none")
        times = self.inner(steps, process)
        nodes = (times[:-1] * count).round() + self.offset
        if not bool(((nodes >= 1) & (nodes <= count)).all()):
            raise ArgumentError(
                f"an offset of {self.offset} leads beyond the {count} timesteps with {steps} steps; take fewer steps"
            )
        return torch.cat([nodes / count, times[-1:]])
