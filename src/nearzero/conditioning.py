"""Axis 3, the conditioning: the number that tells the network how much noise there is.

`Shared` is E-TSDM: every time inside a cell near t = 0 is told one and the same number, so inside a cell the
network cannot change with t at all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from nearzero.errors import ArgumentError
from nearzero.level import Level
from nearzero.registry import register


class Conditioning(Protocol):
    """A number for each time, shaped like t."""

    def __call__(self, t: Tensor, level: Level) -> Tensor:
        """What the network is told at t."""
        ...

    def stage(self, t: Tensor, level: Level, leaving: Tensor) -> Tensor:
        """What it is told at a stage t of a solver's step that leaves the time `leaving`."""
        ...

    def edges(self, process: Any) -> tuple[float, ...]:
        """The times at which the answer jumps."""
        ...


class Divisible(Conditioning, Protocol):
    """A conditioning that `Shared` can cut into cells. Its own unit is that of `interval`."""

    def position(self, t: Tensor, level: Level) -> Tensor:
        """The quantity that is compared with stored edges, increasing in t."""
        ...

    def boundary(self, value: float) -> float:
        """The position of a value given in the conditioning's own unit."""
        ...

    def told(self, lower: float, upper: float) -> float:
        """The number for the whole cell (lower, upper], both in the conditioning's own unit."""
        ...

    def check_cells(self, interval: float, cells: int) -> None:
        """Raises ArgumentError where an interval cannot be cut this way."""
        ...


class _Smooth(ABC):
    """A conditioning without jumps: every stage of a step is told its own time."""

    @abstractmethod
    def __call__(self, t: Tensor, level: Level) -> Tensor:
        """What the network is told at t."""

    def stage(self, t: Tensor, level: Level, leaving: Tensor) -> Tensor:
        """What it is told at t, wherever the step comes from."""
        return self(t, level)

    def edges(self, process: Any) -> tuple[float, ...]:
        """None."""
        return ()


@register
@dataclass(frozen=True)
class Time(_Smooth):
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

    def told(self, lower: float, upper: float) -> float:
        """A cell is told its lower edge."""
        return self.scale * lower

    def check_cells(self, interval: float, cells: int) -> None:
        """Any interval in t: the denoiser compares it with the end of its process."""


@register
@dataclass(frozen=True)
class Timestep(_Smooth):
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

    def told(self, lower: float, upper: float) -> float:
        """A cell is told its lower edge."""
        return lower

    def check_cells(self, interval: float, cells: int) -> None:
        """Cells are whole numbers of timesteps, and no more of them than there are."""
        if interval != int(interval) or int(interval) % cells:
            near = [n for n in range(1, int(interval) + 1) if int(interval) % n == 0]
            near = sorted(near, key=lambda n: abs(n - cells))[:3]
            raise ArgumentError(
                f"Shared: {interval} timesteps do not divide into {cells} equal cells of whole timesteps; "
                f"take an integer interval and {' or '.join(map(str, sorted(near))) or 1} cells"
            )
        if interval > self.steps:
            raise ArgumentError(
                f"Shared: an interval of {interval} exceeds the {self.steps} timesteps; take at most {self.steps}"
            )


@register
@dataclass(frozen=True)
class Shared:
    """E-TSDM: on [0, interval], cut into equal cells, the network is told one number for each cell.

    With cell width w = interval / cells in the inner conditioning's unit, cell j is (j w, (j + 1) w] as a time and
    every time in it is told what stands for j w; time 0 belongs to the first cell, and above the interval the inner
    conditioning speaks. For Timestep(1000), interval 100 and 5 cells: nodes 0..19 are told 0, nodes 20..39 are told
    20, ..., nodes 80..99 are told 80, node 100 is told 100.

    Inside a cell the Lipschitz constant in t is exactly zero. The change moves to the edges; whether samples gain
    is to be measured. Reference: Yang et al., Lipschitz singularities in diffusion models, ICLR 2024, Eq. 9,
    Algorithms A1 and A2. Raises ArgumentError where the interval cannot be cut into such cells.

    >>> shared = Shared(Timestep(1000), interval=100, cells=5)
    >>> shared(torch.tensor([0.0, 0.001, 0.020, 0.021, 0.1, 0.101]), None)
    tensor([  0.,   0.,   0.,  20.,  80., 100.])
    """

    inner: Divisible
    _: KW_ONLY
    interval: float
    cells: int

    def __post_init__(self) -> None:
        if isinstance(self.cells, bool) or not isinstance(self.cells, int) or self.cells < 1:
            raise ArgumentError(f"Shared needs a positive integer of cells, got {self.cells}")
        if not 0 < self.interval < math.inf:
            raise ArgumentError(f"Shared needs a positive interval, got {self.interval}")
        if not hasattr(self.inner, "check_cells"):
            raise ArgumentError(f"{type(self.inner).__name__} cannot be shared; share Timestep or Time")
        self.inner.check_cells(self.interval, self.cells)

    @cached_property
    def _bounds(self) -> tuple[float, ...]:
        """0, w, 2 w, ..., interval in the inner unit: the decimals as written, divided exactly and rounded once."""
        interval = Fraction(repr(float(self.interval)))
        return tuple(float(interval * j / self.cells) for j in range(self.cells + 1))

    def __call__(self, t: Tensor, level: Level) -> Tensor:
        """One number for each cell on the interval, the inner conditioning's above it."""
        return self.stage(t, level, t)

    def stage(self, t: Tensor, level: Level, leaving: Tensor) -> Tensor:
        """A step keeps the cell of the time that it leaves, for all its stages.

        A stage on the lower edge of a cell belongs to the cell below; told its own time there, a two-stage solver
        falls to order 1. A step that leaves above the interval is told the inner conditioning's limit from above.
        """
        leaving = leaving.expand_as(t) if leaving.ndim == 0 else leaving
        position = self.inner.position(leaving, level).contiguous()
        edges = [self.inner.boundary(bound) for bound in self._bounds[1:]]
        cell = torch.searchsorted(position.new_tensor(edges), position)  # edges[cell - 1] < position <= edges[cell]
        told = [self.inner.told(lower, upper) for lower, upper in zip(self._bounds, self._bounds[1:], strict=False)]
        table = t.new_tensor([*told, 0.0])  # one more entry, for the times above the interval
        return torch.where(cell < self.cells, table[cell], self.inner(t, level))

    def edges(self, process: Any) -> tuple[float, ...]:
        """The times w, 2 w, ..., interval at which what the network is told jumps."""
        return tuple(self.inner.boundary(bound) for bound in self._bounds[1:])
