"""Solvers of the probability-flow ODE, dx/du = alpha'(u) x0 + sigma'(u) eps, in the process's own clock u.

The clock is the variable in which the path is smooth: the angle for a variance-preserving process, where the field is
the velocity and bounded at both ends, and t for any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nearzero.level import Row
from nearzero.registry import register
from nearzero.solvers import Evaluate, mix


@register
@dataclass(frozen=True)
class Euler:
    """One evaluation a step: x_s = x_t + (u_s - u_t) dx/du. First order."""

    def stages(self, t: float, s: float, process: Any) -> tuple[float, ...]:
        """None."""
        return ()

    def noisy(self, row_t: Row, row_s: Row) -> int:
        """Never."""
        return False

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike."""
        return mix(x, evaluate(x, row_t), row_t, row_t.alpha_slope, row_t.sigma_slope).mul_(_span(row_t, row_s)).add_(x)


@register
@dataclass(frozen=True)
class Heun:
    """Two evaluations a step, at t and at s, and their mean slope; Euler on the last step, to sigma = 0. Second order.

    Over KarrasVE this is EDM's Algorithm 1: N steps cost 2 N - 1 evaluations.
    Reference: Karras et al., Elucidating the design space, NeurIPS 2022, Algorithm 1.
    """

    def stages(self, t: float, s: float, process: Any) -> tuple[float, ...]:
        """None strictly inside: the second is at s."""
        return ()

    def noisy(self, row_t: Row, row_s: Row) -> int:
        """Never."""
        return False

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike."""
        h = _span(row_t, row_s)
        slope = mix(x, evaluate(x, row_t), row_t, row_t.alpha_slope, row_t.sigma_slope)
        guess = x.add(slope, alpha=h)
        if row_s.sigma == 0:
            return guess
        second = mix(guess, evaluate(guess, row_s), row_s, row_s.alpha_slope, row_s.sigma_slope)
        return slope.add_(second).mul_(h / 2).add_(x)


def _span(row_t: Row, row_s: Row) -> float:
    """u_s - u_t, negative."""
    return row_s.clock - row_t.clock
