"""FullDiffusion's solvers of the reverse SDE: exact but for the estimate of x0, finite from alpha = 0 to sigma = 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from nearzero.errors import ArgumentError, did_you_mean
from nearzero.level import Row
from nearzero.registry import register
from nearzero.solvers import Evaluate, Solver, mix
from nearzero.solvers.exponential import ddim, decay, posterior_variance

NOISES = ("paper", "bridge", "fitted")


@register
@dataclass(frozen=True)
class FullDiffusionSolver:
    """FullDiffusion-Solver-1 and -2, for any process and from its very end to 0.

    The paper's time is the noise level v = sigma / |(alpha, sigma)|, which is t for LinearSigmaVP. Order 1 draws from
    q(x_s | x_t, x0) at the estimated x0: it is Ancestral("lower"), one evaluation a step. Order 2 draws x_r so too, at
    v_r = v_t + c (v_s - v_t), and asks again there: two evaluations a step.

        x_s = alpha_s x0_t + rho sigma_s eps_t + w alpha_s (1 - rho^2) (x0_r - x0_t) + N_s
        rho = (alpha_t / alpha_s) (sigma_s / sigma_t),    Var N_s = sigma_s^2 (1 - rho^2)

    | noise    | N_s                                        | c   | w                     | weak order |
    |----------|--------------------------------------------|-----|-----------------------|------------|
    | "paper"  | the stage's own draw, scaled (Algorithm 2) | 2/3 | 1 / (2 c)             | 1          |
    | "bridge" | what N_r leaves at s, and a fresh draw     | 2/3 | 1 / (2 c)             | 2          |
    | "fitted" | as "bridge"                                | 1/2 | v_t / (c (v_t + v_s)) | 2          |

    The stage and the end lie on one path, so their noises are correlated but not equal: with the printed, equal ones
    the error of the variance falls with order 1. At few steps that error cancels part of the other, and "bridge" is
    worse; "fitted" with steps equal in sqrt(v) (SqrtGrid) was better at each M from 10 to 640 on normal data. The last
    step, to 0, lands on x0_t + w (x0_r - x0_t). From alpha = 0 a Nu network is not heard, and not asked: M steps cost
    M - 1 evaluations, or 2 M - 1. Raises ArgumentError for another order or an unknown noise.
    Reference: FullDiffusion: diffusion models without time truncation, Eq. 22-28, Algorithms 1 and 2.
    """

    order: int = 1
    noise: Literal["paper", "bridge", "fitted"] = "paper"

    def __post_init__(self) -> None:
        if type(self.order) is not int or self.order not in (1, 2):
            raise ArgumentError(f"FullDiffusionSolver has orders 1 and 2, got {self.order!r}")
        if self.noise not in NOISES:
            raise ArgumentError(f"unknown noise {self.noise!r}; {did_you_mean(str(self.noise), NOISES)}")

    @property
    def _c(self) -> float:
        return 1 / 2 if self.noise == "fitted" else 2 / 3

    def stages(self, t: float, s: float, process: Any) -> tuple[float, ...]:
        """For order 2 the time r."""
        return () if self.order == 1 else (_between(t, s, self._c, process),)

    def noisy(self, row_t: Row, row_s: Row) -> int:
        """At order 1, at every step but the last. At order 2 the stage's, and a fresh one where s > 0."""
        if self.order == 1:
            return row_s.sigma > 0
        return 1 + (self.noise != "paper" and row_s.sigma > 0)

    def plan(self, nfe: int) -> list[Solver]:
        """Steps of two evaluations, and a last step of order 1 for an odd one."""
        if self.order == 1:
            return [self] * nfe
        second: list[Solver] = [self] * (nfe // 2)
        return second + [replace(self, order=1)] * (nfe % 2)

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike."""
        F = evaluate(x, row_t)
        if self.order == 1:
            return ddim(x, F, row_t, row_s, 1.0, noise)
        return self._second(evaluate, x, F, row_t, row_s, noise, inner[0])

    def _second(
        self, evaluate: Evaluate, x: Tensor, F: Tensor, row_t: Row, row_s: Row, noise: Any, row_r: Row
    ) -> Tensor:
        """The step of order 2 through the stage r."""
        first, fresh = noise if self.noisy(row_t, row_s) == 2 else (noise, None)
        rho = decay(row_t, row_s)
        x_r = mix(x, F, row_t, row_r.alpha, decay(row_t, row_r) * row_r.sigma)
        x_r.add_(first, alpha=_deviation(row_t, row_r))
        w = self._weight(row_t, row_s) * row_s.alpha * (1 - rho) * (1 + rho)
        x_s = mix(x, F, row_t, row_s.alpha - w, rho * row_s.sigma)
        x_s.add_(mix(x_r, evaluate(x_r, row_r), row_r, w, 0.0))
        if fresh is None:  # one draw for the stage and the end; at s = 0 its factor is 0
            return x_s.add_(first, alpha=_deviation(row_t, row_s))
        left = decay(row_r, row_s) * row_s.sigma / row_r.sigma
        return x_s.add_(first, alpha=left * _deviation(row_t, row_r)).add_(fresh, alpha=_deviation(row_r, row_s))

    def _weight(self, row_t: Row, row_s: Row) -> float:
        """w, the weight of the change of the estimate."""
        if self.noise != "fitted":
            return 1 / (2 * self._c)
        v_t, v_s = (row.sigma / math.hypot(row.alpha, row.sigma) for row in (row_t, row_s))
        return v_t / (self._c * (v_t + v_s))


def _deviation(row_t: Row, row_s: Row) -> float:
    """The standard deviation of q(x_s | x_t, x0)."""
    return math.sqrt(posterior_variance(row_t, row_s))


def _between(t: float, s: float, c: float, process: Any) -> float:
    """The time at which v = sigma / |(alpha, sigma)| is v_t + c (v_s - v_t)."""
    alpha, sigma = process(torch.tensor([t, s], dtype=torch.float64))
    v = sigma / torch.hypot(alpha, sigma)
    rest = alpha**2 / (alpha**2 + sigma**2) / (1 + v)  # 1 - v, also where v rounds to 1
    share = v.new_tensor([1 - c, c])
    v, rest = share @ v, share @ rest
    return process.time_of_logsnr(torch.log(rest * (1 + v)) - 2 * torch.log(v)).item()
