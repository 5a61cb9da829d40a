"""E-TSDM: one condition for a whole cell of times near t = 0."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nearzero.conditioning.base import Divisible
from nearzero.errors import ArgumentError
from nearzero.level import Level
from nearzero.registry import register

MAX_CELLS = 100_000
"""A file that asks for more cells asks for none of any paper."""


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
        if isinstance(self.cells, bool) or not isinstance(self.cells, int) or not 1 <= self.cells <= MAX_CELLS:
            raise ArgumentError(f"Shared needs a positive integer of cells, {MAX_CELLS:,} at most, got {self.cells}")
        if not 0 < self.interval < math.inf:
            raise ArgumentError(f"Shared needs a positive interval, got {self.interval}")
        if not hasattr(self.inner, "check_cells"):
            raise ArgumentError(
                f"{type(self.inner).__name__} cannot be shared; share Timestep, Time, LogSigma or LogSNR"
            )
        self.inner.check_cells(self.interval, self.cells)

    @cached_property
    def _bounds(self) -> tuple[float, ...]:
        """0, w, 2 w, ..., interval in the inner unit: the decimals as written, divided exactly and rounded once."""
        interval = Fraction(repr(float(self.interval)))
        return tuple(float(interval * j / self.cells) for j in range(self.cells + 1))

    def __call__(self, t: Tensor, level: Level) -> Tensor:
        """One number for each cell on the interval, the inner conditioning's above it."""
        return self.stage(t, level, t, level)

    def stage(self, t: Tensor, level: Level, leaving: Tensor, leaving_level: Level | None = None) -> Tensor:
        """A step keeps the cell of the time that it leaves, for all its stages.

        A stage on the lower edge of a cell belongs to the cell below; told its own time there, a two-stage solver
        falls to order 1. A step that leaves above the interval is told the inner conditioning's limit from above.
        `leaving_level` is the level at `leaving`, which LogSigma and LogSNR need where it is not `level`.
        """
        position = self.inner.position(leaving, leaving_level or level).expand_as(t).contiguous()
        edges = [self.inner.boundary(bound) for bound in self._bounds[1:]]
        cell = torch.searchsorted(position.new_tensor(edges), position)  # edges[cell - 1] < position <= edges[cell]
        told = [self.inner.told(lower, upper) for lower, upper in zip(self._bounds, self._bounds[1:], strict=False)]
        table = t.new_tensor([*told, 0.0])  # one more entry, for the times above the interval
        above, answer = cell == self.cells, table[cell]
        if bool(above.any()):  # the inner conditioning may not exist inside the interval
            here = level and Level(*(value.expand_as(t)[above] for value in level))
            answer[above] = self.inner(t[above], here)
        return answer

    def edges(self, process: Any) -> tuple[float, ...]:
        """The times w, 2 w, ..., interval at which what the network is told jumps."""
        return tuple(self.inner.time(bound, process) for bound in self._bounds[1:])
