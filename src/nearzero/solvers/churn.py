"""EDM's stochastic sampler: a second-order step of the probability-flow ODE after a little fresh noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nearzero.errors import ArgumentError
from nearzero.level import Row
from nearzero.registry import register
from nearzero.solvers import Evaluate, Solver
from nearzero.solvers.ode import Heun
from nearzero.solvers.sde import forward_variance


@register
@dataclass(frozen=True)
class Churn:
    """EDM's Algorithm 2 for any process: raise the noise level from t to t^, then a step of `Heun` from t^ to s.

        gamma = min(churn / N, sqrt(2) - 1) where t_min <= sigma / alpha <= t_max, else 0;   N the steps of the path
        t^: sigma^ / alpha^ = (1 + gamma) sigma_t / alpha_t
        x^ = (alpha^ / alpha_t) x + S_noise sqrt(sigma^^2 - (alpha^ / alpha_t)^2 sigma_t^2) noise

    `churn`, `t_min`, `t_max`, `noise` are EDM's S_churn, S_tmin, S_tmax (None: no limit) and S_noise; the two limits
    are noise levels sigma / alpha, not times. t^ goes no higher than the process's end: a step that leaves the end
    itself draws its noise and adds none of it. Churn(0) is Heun; N steps cost 2 N - 1 evaluations. A Churn that did
    not `begin` a path takes its step for the only one. Raises ArgumentError for negative churn or limits,
    t_min > t_max, or noise <= 0.
    Reference: Karras et al., Elucidating the design space, NeurIPS 2022, Algorithm 2 and Table 5.
    """

    churn: float
    t_min: float = 0.0
    t_max: float | None = None
    noise: float = 1.0
    steps: int = field(default=1, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.churn < math.inf:
            raise ArgumentError(f"Churn needs a finite churn of at least 0, got {self.churn}; 0 is Heun")
        if not 0 <= self.t_min < math.inf or not (self.t_max is None or self.t_min <= self.t_max < math.inf):
            raise ArgumentError(
                f"Churn needs noise levels 0 <= t_min <= t_max, got {self.t_min} and {self.t_max}; None is no limit"
            )
        if not 0 < self.noise < math.inf:
            raise ArgumentError(f"Churn needs a positive noise, got {self.noise}; 1 keeps the variance")

    @classmethod
    def cifar10_vp(cls) -> Churn:
        """CIFAR-10, VP: 30, 0.01, 1, 1.007 (the published appendix, from memory)."""
        return cls(30.0, 0.01, 1.0, 1.007)

    @classmethod
    def cifar10_ve(cls) -> Churn:
        """CIFAR-10, VE: 80, 0.05, 1, 1.007 (the published appendix, from memory)."""
        return cls(80.0, 0.05, 1.0, 1.007)

    @classmethod
    def imagenet64_adm(cls) -> Churn:
        """ImageNet-64, the pre-trained ADM network: 80, 0.05, 50, 1.003."""
        return cls(80.0, 0.05, 50.0, 1.003)

    @classmethod
    def imagenet64(cls) -> Churn:
        """ImageNet-64, EDM's own network, at 256 steps: 40, 0.05, 50, 1.003."""
        return cls(40.0, 0.05, 50.0, 1.003)

    def begin(self, steps: int) -> Churn:
        """The solver of one path of so many steps."""
        begun = replace(self)
        object.__setattr__(begun, "steps", steps)
        return begun

    def plan(self, nfe: int) -> list[Solver]:
        """Two evaluations a step, one in the last."""
        return [self] * ((nfe + 1) // 2)

    def stages(self, t: float, s: float, process: Any) -> tuple[float, ...]:
        """t^, at or above t; none where nothing is churned."""
        level = process(torch.tensor(t, dtype=torch.float64))
        gamma = self._gamma(*(value.item() for value in level))
        if gamma == 0:
            return ()
        return (max(t, process.time_of_logsnr(level.logsnr - 2 * math.log1p(gamma)).item()),)

    def noisy(self, row_t: Row, row_s: Row) -> int:
        """Wherever the noise level lies between the limits, also at the last step."""
        return self._gamma(row_t.alpha, row_t.sigma) > 0

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike."""
        raised = row_t
        if noise is not None and inner and inner[0].t > row_t.t:
            raised, ratio = inner[0], inner[0].alpha / row_t.alpha
            sd = math.sqrt(forward_variance(raised, row_t))
            x = x.mul(ratio).add_(noise, alpha=self.noise * sd)
        return Heun().step(evaluate, x, raised, row_s, None)

    def _gamma(self, alpha: float, sigma: float) -> float:
        """How much the noise level grows."""
        inside = self.t_min * alpha <= sigma and (self.t_max is None or sigma <= self.t_max * alpha)
        return min(self.churn / self.steps, math.sqrt(2) - 1) if inside else 0.0
