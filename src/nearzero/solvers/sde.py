"""Solvers of the reverse stochastic differential equation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from nearzero.errors import ArgumentError, did_you_mean
from nearzero.level import Row
from nearzero.registry import register
from nearzero.solvers import Evaluate, mix


@register
@dataclass(frozen=True)
class Ancestral:
    """DDPM's sampler: the mean of q(x_s | x_t, x0) at the estimated x0, plus noise; none at the last step.

        beta = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2               (VP: 1 - (alpha_t / alpha_s)^2)
        mean = alpha_s x0 + (alpha_t / alpha_s) (sigma_s^2 / sigma_t) eps
        variance = beta ("upper"), or beta sigma_s^2 / sigma_t^2 ("lower", the posterior's own)

    The mean is (alpha_s / alpha_t) (x - beta / sigma_t eps), written so that it is finite at alpha_t = 0.
    Reference: Ho et al., NeurIPS 2020, Algorithm 2; E-TSDM Algorithm A2 with beta_t = 1 - (alpha_t / alpha_{t-1})^2,
    squared (the print has no square: variance 6 instead of 1 on standard normal data).
    """

    variance: Literal["upper", "lower"] = "upper"

    def __post_init__(self) -> None:
        if self.variance not in ("upper", "lower"):
            raise ArgumentError(
                f"unknown variance {self.variance!r}; {did_you_mean(str(self.variance), ('upper', 'lower'))}"
            )

    def stages(self, t: float, s: float, process: Any) -> tuple[float, ...]:
        """None."""
        return ()

    def noisy(self, row_t: Row, row_s: Row) -> int:
        """At every step but the last."""
        return row_s.sigma > 0

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike."""
        ratio = row_t.alpha / row_s.alpha
        mean = mix(x, evaluate(x, row_t), row_t, row_s.alpha, ratio * row_s.sigma**2 / row_t.sigma)
        if noise is None:
            return mean
        beta = row_t.sigma**2 - (ratio * row_s.sigma) ** 2
        lower = beta * (row_s.sigma / row_t.sigma) ** 2
        return mean.add_(noise, alpha=math.sqrt(beta if self.variance == "upper" else lower))
