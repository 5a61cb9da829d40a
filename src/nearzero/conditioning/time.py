"""Conditionings that tell the time, as it is or mapped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nearzero.conditioning.base import Smooth
from nearzero.errors import ArgumentError
from nearzero.level import Level
from nearzero.registry import register


@register
@dataclass(frozen=True)
class Time(Smooth):
    """The network is told scale * t. Unit of `interval` under Shared: t."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ArgumentError(f"Time needs a positive scale, got {self.scale}")

    def __call__(self, t: Tensor, level: Level) -> Tensor:
        """scale * t."""
        return self.scale * t

    def position(self, t: Tensor, level: Level) -> Tensor:
        """Edges are compared with t."""
        return t

    def boundary(self, value: float) -> float:
        """The unit is t."""
        return value

    def time(self, value: float, process: Any) -> float:
        """The unit is t."""
        return value

    def told(self, lower: float, upper: float) -> float:
        """A cell is told its lower edge."""
        return self.scale * lower

    def time_told(self, told: float, process: Any) -> Tensor:
        """told / scale."""
        return torch.tensor([told / self.scale], dtype=torch.float64)

    def check_cells(self, interval: float, cells: int) -> None:
        """Any interval in t: the denoiser compares it with the end of its process."""


@register
@dataclass(frozen=True)
class Timestep(Smooth):
    """The network is told DDPM's timestep k = t * steps - 1: node k of a discrete process lies at t = (k + 1) / steps.

    Values within 1e-3 of an integer are that integer, so that a float32 time of a node tells exactly k; times
    between nodes are told a fraction, and t = 0 is told -1. Unit of `interval` under Shared: timesteps.

    >>> Timestep(1000)(torch.tensor([0.0, 0.001, 0.02, 1.0]), None)
    tensor([ -1.,   0.,  19., 999.])
    """

    steps: int = 1000

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ArgumentError(f"Timestep needs a positive integer of steps, got {self.steps}")

    def __call__(self, t: Tensor, level: Level) -> Tensor:
        """t * steps - 1, snapped to the integer it stands for."""
        k = t.to(torch.float64) * self.steps - 1
        near = k.round()
        return torch.where((k - near).abs() < 1e-3, near, k).to(t.dtype)  # the snap that the docstring states

    def position(self, t: Tensor, level: Level) -> Tensor:
        """Edges are compared with t."""
        return t

    def boundary(self, value: float) -> float:
        """The unit is timesteps: value / steps."""
        return value / self.steps

    def time(self, value: float, process: Any) -> float:
        """The unit is timesteps: value / steps."""
        return value / self.steps

    def told(self, lower: float, upper: float) -> float:
        """A cell is told its lower edge."""
        return lower

    def time_told(self, told: float, process: Any) -> Tensor:
        """(told + 1) / steps."""
        return torch.tensor([(told + 1) / self.steps], dtype=torch.float64)

    def check_cells(self, interval: float, cells: int) -> None:
        """Cells are whole numbers of timesteps, and no more of them than there are."""
        if interval > self.steps:
            raise ArgumentError(
                f"Shared: an interval of {interval} exceeds the {self.steps} timesteps; take at most {self.steps}"
            )
        if interval != int(interval) or int(interval) % cells:
            near = [n for n in range(1, int(interval) + 1) if int(interval) % n == 0]
            near = sorted(near, key=lambda n: abs(n - cells))[:3]
            raise ArgumentError(
                f"Shared: {interval} timesteps do not divide into {cells} equal cells of whole timesteps; "
                f"take an integer interval and {' or '.join(map(str, sorted(near))) or 1} cells"
            )


@register
@dataclass(frozen=True)
class InverseTime(Smooth):
    """The network is told 1/t: E-TSDM's first remapping, infinite at t = 0 (ArgumentError there).

    Remapping alone leaves the Lipschitz constant in t as it is. Reference: Yang et al., ICLR 2024, D.3.3.
    """

    def __call__(self, t: Tensor, level: Level) -> Tensor:
        """1/t."""
        if bool((t == 0).any()):
            raise ArgumentError("InverseTime at t = 0 is infinite; ask at a time above 0, or use nearzero.Time")
        return 1 / t

    def time_of(self, told: Tensor) -> Tensor:
        """1/told."""
        return 1 / told


@register
@dataclass(frozen=True)
class InverseSigmoid(Smooth):
    """The network is told log(t / (1 - t)), so that t is its sigmoid: E-TSDM's second remapping.

    Infinite at t = 0 and t = 1 (ArgumentError there). Reference: Yang et al., ICLR 2024, D.3.3.
    """

    def __call__(self, t: Tensor, level: Level) -> Tensor:
        """log(t / (1 - t))."""
        outside = (t <= 0) | (t >= 1)
        if bool(outside.any()):
            where = t[outside].flatten()[0].item()
            raise ArgumentError(f"InverseSigmoid at t = {where:g} is infinite; it takes times inside (0, 1)")
        return torch.logit(t)

    def time_of(self, told: Tensor) -> Tensor:
        """The sigmoid of what is told."""
        return torch.sigmoid(told)
