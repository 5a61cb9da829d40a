"""Solvers of the probability-flow ODE, dx/du = alpha'(u) x0 + sigma'(u) eps, in a clock u.

The process's own clock is the variable in which the path is smooth: the angle for a variance-preserving process, where
the field is the velocity and bounded at both ends. `clock` takes another in its place, for the same process:
`Heun(clock=Itself(KarrasVE()))`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nearzero.errors import ArgumentError
from nearzero.level import Row
from nearzero.registry import register
from nearzero.solvers import Evaluate, Noiseless, NoStages, OneCall, all_stages, mix


@register
@dataclass(frozen=True)
class Euler(OneCall, Noiseless):
    """One evaluation a step: x_s = x_t + (u_s - u_t) dx/du. First order."""

    clock: Any = None

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike."""
        return slope(evaluate, x, row_t).mul_(span(row_t, row_s)).add_(x)


@register
@dataclass(frozen=True)
class Heun(NoStages, Noiseless):
    """Two evaluations a step, at t and at s, and their mean slope; Euler on the last step, to sigma = 0. Second order.

    Over KarrasVE this is EDM's Algorithm 1: N steps cost 2 N - 1 evaluations.
    Reference: Karras et al., Elucidating the design space, NeurIPS 2022, Algorithm 1.
    """

    clock: Any = None

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike."""
        h = span(row_t, row_s)
        first = slope(evaluate, x, row_t)
        guess = x.add(first, alpha=h)
        if row_s.sigma == 0:
            return guess
        return slope(evaluate, guess, row_s).add_(first).mul_(h / 2).add_(x)

    def plan(self, nfe: int) -> list[Heun]:
        """N steps of 2 N - 1 evaluations: one is left over where nfe is even."""
        return [self] * ((nfe + 1) // 2)


@register
@dataclass(frozen=True)
class RungeKutta2(Noiseless):
    """Two evaluations a step, at t and a part `position` of the way to s: EDM's family of second-order solvers.

        u' = u_t + p h,   x' = x_t + p h dx/du(x_t),   h = u_s - u_t,   p = position
        x_s = x_t + h ((1 - 1 / 2 p) dx/du(x_t) + 1 / 2 p dx/du(x'))

    p = 1/2 is the midpoint rule, 2/3 is Ralston's and 1 is Heun's. The last step, to sigma = 0, is Euler's.
    Reference: Karras et al., NeurIPS 2022, Appendix D. Raises ArgumentError for a position outside (0, 1].
    """

    position: float = 0.5
    clock: Any = None

    def __post_init__(self) -> None:
        if not 0 < self.position <= 1:
            raise ArgumentError(
                f"RungeKutta2 needs a position in (0, 1], got {self.position}; 1/2 is the midpoint, 1 is Heun"
            )

    def stages(self, t: float, s: float, process: Any) -> tuple[float, ...]:
        """The time at u'; none where that is s itself, nor on the last step."""
        return one_step(self, t, s, process)

    def inner_times(self, t: Tensor, s: Tensor, process: Any) -> Tensor:
        """The same for many steps."""
        inside = between(self.position, t, s, self.clock or process.clock)
        return inside.masked_fill((s == 0) | (self.position == 1), torch.nan)[:, None]

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike."""
        h, p = span(row_t, row_s), self.position
        first = slope(evaluate, x, row_t)
        if row_s.sigma == 0:
            return first.mul_(h).add_(x)
        second = slope(evaluate, x.add(first, alpha=p * h), inner[0] if inner else row_s)
        return second.mul_(h / (2 * p)).add_(first, alpha=h - h / (2 * p)).add_(x)

    def plan(self, nfe: int) -> list[RungeKutta2]:
        """N steps of 2 N - 1 evaluations: one is left over where nfe is even."""
        return [self] * ((nfe + 1) // 2)


@register
@dataclass(frozen=True)
class RungeKutta4(Noiseless):
    """The classical Runge-Kutta method: four evaluations a step, at t, twice half-way, and at s. Fourth order.

    It keeps its order on the last step, where it asks the network at time 0 too. Raises ArgumentError where the
    denoiser does not exist there, or the path has no finite slope in the clock.
    Reference: Kutta, Beitrag zur naeherungsweisen Integration totaler Differentialgleichungen, 1901.
    """

    clock: Any = None

    def stages(self, t: float, s: float, process: Any) -> tuple[float, ...]:
        """The time half-way in the clock."""
        return one_step(self, t, s, process)

    def inner_times(self, t: Tensor, s: Tensor, process: Any) -> Tensor:
        """The same for many steps."""
        return between(0.5, t, s, self.clock or process.clock)[:, None]

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike."""
        if not bounded(row_s):
            raise ArgumentError(
                f"RungeKutta4 asks for the slope at t = {row_s.t:g}, where it is infinite in this clock; "
                "take the process's own clock, or Heun"
            )
        h, (middle,) = span(row_t, row_s), inner
        total = slope(evaluate, x, row_t)
        guess = x.add(total, alpha=h / 2)
        for row, part, weight in ((middle, h / 2, 2), (middle, h, 2), (row_s, 0.0, 1)):
            guess = slope(evaluate, guess, row)
            total.add_(guess, alpha=weight)
            guess.mul_(part).add_(x)  # in the slope's place: four states in all
        return total.mul_(h / 6).add_(x)

    def plan(self, nfe: int) -> list[RungeKutta4]:
        """Steps of 4 evaluations; up to 3 are left over. Raises ArgumentError for fewer than 4."""
        if nfe < 4:
            raise ArgumentError(f"RungeKutta4 asks the network 4 times a step, got nfe {nfe}; take Euler or Heun")
        return [self] * (nfe // 4)


def slope(evaluate: Evaluate, x: Tensor, row: Row) -> Tensor:
    """dx/du, shaped like x, at a row."""
    return mix(x, evaluate(x, row), row, row.alpha_slope, row.sigma_slope)


def span(row_t: Row, row_s: Row) -> float:
    """u_s - u_t, negative on the way to data."""
    return row_s.clock - row_t.clock


def one_step(solver: Any, t: float, s: float, process: Any) -> tuple[float, ...]:
    """The stages of one step of a solver that knows those of many."""
    ends = torch.tensor([[t], [s]], dtype=torch.float64)
    return all_stages(solver, ends[0], ends[1], process)[0]


def between(part: float, t: Tensor, s: Tensor, clock: Any) -> Tensor:
    """The times a part of the way from t to s, (n,), as the clock goes."""
    u_t, u_s = clock.u(torch.cat([t, s])).chunk(2)
    return clock.t(u_t + part * (u_s - u_t))


def bounded(row: Row) -> bool:
    """Whether alpha and sigma have finite slopes in the clock there."""
    return math.isfinite(row.alpha_slope) and math.isfinite(row.sigma_slope)
