"""Axis 7, the grid: at which times a solver stops on its way from noise to data.

A grid turns a number of steps and a process into steps + 1 decreasing float64 times, the last exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from nearzero.errors import ArgumentError, did_you_mean
from nearzero.level import timesteps
from nearzero.registry import register


class Grid(Protocol):
    """Where to stop."""

    def __call__(self, steps: int, process: Any) -> Tensor:
        """steps + 1 decreasing float64 times, the last exactly 0."""
        ...


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ArgumentError(f"a grid needs at least 1 step, got {steps}")


def _countdown(steps: int) -> Tensor:
    return torch.arange(steps, -1, -1, dtype=torch.float64)


@register
@dataclass(frozen=True)
class UniformGrid:
    """Equal steps in t.

    >>> UniformGrid()(4, LinearVP())
    tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """

    def __call__(self, steps: int, process: Any) -> Tensor:
        """t_i = end (1 - i / steps)."""
        _check_steps(steps)
        return process.end * _countdown(steps) / steps


@register
@dataclass(frozen=True)
class SqrtGrid:
    """Equal steps in sqrt(t): finer near 0, where sigma ~ sqrt(t) makes equal steps in sigma out of them."""

    def __call__(self, steps: int, process: Any) -> Tensor:
        """t_i = end (1 - i / steps)^2."""
        _check_steps(steps)
        return process.end * (_countdown(steps) / steps) ** 2


Spacing = Literal["trailing", "leading", "linspace"]


@register
@dataclass(frozen=True)
class TimestepGrid:
    """Nodes of a discrete process, spaced as diffusers and Lin et al. name it, then 0.

    Of N nodes and n steps, "trailing" takes every (N / n)-th counted from the last node, "leading" every
    floor(N / n)-th counted from node 0 (so its first time lies below the end), "linspace" n from the last to node 0.
    Raises ArgumentError for a process without nodes or with fewer than `steps`.
    Reference: Lin et al., Common diffusion noise schedules and sample steps are flawed, WACV 2024, Table 2.

    >>> TimestepGrid("leading")(2, DiscreteVP.linear(steps=4))
    tensor([0.7500, 0.2500, 0.0000], dtype=torch.float64)
    """

    spacing: Spacing = "trailing"

    def __post_init__(self) -> None:
        options = ("trailing", "leading", "linspace")
        if self.spacing not in options:
            raise ArgumentError(f"unknown spacing {self.spacing!r}; {did_you_mean(str(self.spacing), options)}")

    def __call__(self, steps: int, process: Any) -> Tensor:
        """(k + 1) / N for the chosen nodes k, then 0."""
        _check_steps(steps)
        total = timesteps(process)
        if steps > total:
            raise ArgumentError(f"{steps} steps on {total} timesteps; take at most {total}, or UniformGrid")
        if self.spacing == "trailing":
            node = np.arange(total, 0, -total / steps)[:steps].round() - 1
        elif self.spacing == "leading":
            node = np.arange(steps)[::-1] * (total // steps)
        else:
            node = np.linspace(0, total - 1, steps)[::-1].round() if steps > 1 else np.array([total - 1])
        return torch.from_numpy(np.append((node + 1) / total, 0.0))
