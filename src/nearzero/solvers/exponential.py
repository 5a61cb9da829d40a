"""Solvers that are exact where the estimate of x0 (or eps) does not change: x_s = alpha_s x0 + sigma_s eps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nearzero.errors import ArgumentError
from nearzero.level import Row
from nearzero.registry import register
from nearzero.solvers import Evaluate, mix


def posterior_variance(row_t: Row, row_s: Row) -> float:
    """Variance of q(x_s | x_t, x0), s < t, for any process, finite at alpha_t = 0:

    (sigma_s^2 / sigma_t^2) (sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2)
    """
    ratio = row_t.alpha / row_s.alpha * row_s.sigma / row_t.sigma
    return row_s.sigma**2 * (1 - ratio**2)


@register
@dataclass(frozen=True)
class DDIM:
    """One evaluation a step, deterministic at eta = 0, DDPM's posterior ("lower" variance) at eta = 1.

        x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) noise,   v = Var q(x_s | x_t, x0)

    First order in log(sigma / alpha), where it equals DPM-Solver-1. Reference: Song et al., Denoising diffusion
    implicit models, ICLR 2021, Eq. 12 and 16. Raises ArgumentError for eta outside [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ArgumentError(f"DDIM needs eta in [0, 1], got {self.eta}; 0 is deterministic, 1 is DDPM's posterior")

    def stages(self, t: float, s: float, process: Any) -> tuple[float, ...]:
        """None."""
        return ()

    def noisy(self, row_t: Row, row_s: Row) -> int:
        """With eta > 0, but for the last step."""
        return self.eta > 0 and row_s.sigma > 0

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike."""
        variance = self.eta**2 * posterior_variance(row_t, row_s)
        x_s = mix(x, evaluate(x, row_t), row_t, row_s.alpha, math.sqrt(row_s.sigma**2 - variance))
        return x_s if noise is None else x_s.add_(noise, alpha=math.sqrt(variance))
