"""Axis 6, the solver: one step from a time t to an earlier time s.

A solver sees the network only through `evaluate(x, row) -> F` and the schedule only through rows of Python floats,
so a step is a few fused tensor operations. F may be x itself: a step never writes into x or F.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from nearzero.level import Row

Evaluate = Callable[[Tensor, Row], Tensor]


class Solver(Protocol):
    """How to step."""

    def stages(self, t: float, s: float, process: Any) -> tuple[float, ...]:
        """The times strictly inside the step at which the network is called too; none for one-stage solvers."""
        ...

    def noisy(self, row_t: Row, row_s: Row) -> bool:
        """Whether this step adds noise: then it is given one standard normal tensor, otherwise None."""
        ...

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x at time s from x at time t; `inner` are the rows of `stages`."""
        ...


def mix(x: Tensor, F: Tensor, row: Row, c_x0: float, c_eps: float) -> Tensor:
    """c_x0 x0 + c_eps eps for the estimate that F is at this row: (c_x0 A + c_eps C) x + (c_x0 B + c_eps D) F."""
    return x.mul(c_x0 * row.A + c_eps * row.C).add_(F, alpha=c_x0 * row.B + c_eps * row.D)
