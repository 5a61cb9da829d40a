"""Axis 6, the solver: one step from a time t to an earlier time s.

A solver sees the network only through `evaluate(x, row) -> F` and the schedule only through rows of Python floats,
so a step is a few fused tensor operations. F may be x itself: a step never writes into x or F.

Beside the three methods of `Solver`, which every solver has, one may have

* `clock`, a `Clock` in which it steps instead of the process's own;
* `inner_times(t, s, process) -> Tensor`: the stages of many steps at once, which is faster: of steps from t to s, both
  float64 (n,), the times (n, k), NaN where a step has no such stage;
* `begin(steps) -> Solver`: the solver for one path of that many steps, which may know their number and remember;
* `plan(nfe) -> list of Solver`: one for each interval of the grid, which together ask the network `nfe` times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from nearzero.errors import ArgumentError
from nearzero.level import Row


class Evaluate(Protocol):
    """The network, as a solver sees it."""

    def __call__(self, x: Tensor, row: Row) -> Tensor:
        """Its answer F to x (B, ...) at one time for all, shaped like x."""
        ...

    def slope(self, x: Tensor, u: Tensor, leaving: Row) -> Tensor:
        """dx/du, shaped like x, at clock readings u, float64 (B,), in a step that leaves this row."""
        ...


class Solver(Protocol):
    """How to step."""

    def stages(self, t: float, s: float, process: Any) -> tuple[float, ...]:
        """The times other than t and s at which the network is called too; none for one-stage solvers."""
        ...

    def noisy(self, row_t: Row, row_s: Row) -> int:
        """How many standard normal tensors this step is given: none is None, one is like x, n > 1 are (n, *x.shape)."""
        ...

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x at time s from x at time t; `inner` are the rows of `stages`."""
        ...


class NoStages:
    """A solver whose steps ask the network at no time between t and s."""

    def stages(self, t: float, s: float, process: Any) -> tuple[float, ...]:
        """None."""
        return ()


class OneCall(NoStages):
    """A solver whose steps ask the network once, at the time that they leave."""

    def plan(self: Any, nfe: int) -> list[Any]:
        """nfe steps."""
        return [self] * nfe


class Noiseless:
    """A solver that adds no noise."""

    def noisy(self, row_t: Row, row_s: Row) -> int:
        """Never."""
        return 0


class NoisyAboveZero:
    """A solver that adds noise, but none at the last step, to data."""

    def noisy(self, row_t: Row, row_s: Row) -> int:
        """One tensor at every step but the last."""
        return row_s.sigma > 0


def begin(solver: Any, steps: int) -> Solver:
    """The solver for one path of `steps` steps: itself, unless it has to know how many, or to remember."""
    return solver.begin(steps) if hasattr(solver, "begin") else solver


def all_stages(solver: Any, t: Tensor, s: Tensor, process: Any) -> list[tuple[float, ...]]:
    """The stages of each step from t to s, both float64 (n,)."""
    if not hasattr(solver, "inner_times"):
        return [solver.stages(a, b, process) for a, b in zip(t.tolist(), s.tolist(), strict=True)]
    rows = solver.inner_times(t, s, process).tolist()
    return [tuple(time for time in row if not math.isnan(time)) for row in rows]


def plan(solver: Any, nfe: int) -> list[Solver]:
    """One solver for each interval of a grid, which together ask the network at most `nfe` times.

    Raises ArgumentError for less than 1, and for a solver whose steps have no fixed cost.
    """
    if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1:
        raise ArgumentError(f"nfe counts network evaluations: at least 1, got {nfe}")
    if not hasattr(solver, "plan"):
        raise ArgumentError(f"{type(solver).__name__} has no plan for {nfe} network evaluations; give steps")
    return solver.plan(nfe)


def mix(x: Tensor, F: Tensor, row: Row, c_x0: float, c_eps: float) -> Tensor:
    """c_x0 x0 + c_eps eps for the estimate that F is at this row: (c_x0 A + c_eps C) x + (c_x0 B + c_eps D) F."""
    return x.mul(c_x0 * row.A + c_eps * row.C).add_(F, alpha=c_x0 * row.B + c_eps * row.D)
