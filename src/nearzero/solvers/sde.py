"""Solvers of the reverse stochastic differential equation, dx = (f x - g^2 score) dt + g dw, score = -eps / sigma."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from nearzero.errors import ArgumentError, did_you_mean
from nearzero.level import Row, expand
from nearzero.registry import register
from nearzero.solvers import Evaluate, NoisyAboveZero, OneCall, Solver, begin, mix, plan
from nearzero.solvers.exponential import decay, posterior_variance


def forward_variance(row_t: Row, row_s: Row) -> float:
    """beta, the variance of q(x_t | x_s), s < t: sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, without cancellation."""
    ratio = decay(row_t, row_s)
    return row_t.sigma**2 * (1 - ratio) * (1 + ratio)


@register
@dataclass(frozen=True)
class Ancestral(OneCall, NoisyAboveZero):
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

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike."""
        mean = mix(x, evaluate(x, row_t), row_t, row_s.alpha, decay(row_t, row_s) * row_s.sigma)
        if noise is None:
            return mean
        variance = forward_variance if self.variance == "upper" else posterior_variance
        return mean.add_(noise, alpha=math.sqrt(variance(row_t, row_s)))


@register
@dataclass(frozen=True)
class EulerMaruyama(NoisyAboveZero):
    """The Euler-Maruyama method in t, of weak order 1; one evaluation a step.

        x_s = x + (s - t) (f x - g^2 score) + g sqrt(t - s) noise

    The last step, to 0, adds no noise: with `denoise` it lands on the estimate of x0, without it on the mean above.
    Raises ArgumentError, before the network is asked, where it would leave a time at which f or g is infinite.
    Reference: Song et al., Score-based generative modeling through SDEs, ICLR 2021, Appendix D and its code, which
    stops at t = 1e-3 (VP) or 1e-5 (VE) and there returns the mean; a grid here ends at 0.
    """

    denoise: bool = True

    def stages(self, t: float, s: float, process: Any) -> tuple[float, ...]:
        """None. Raises ArgumentError where f or g^2 is infinite at t."""
        time = torch.tensor(t, dtype=torch.float64)
        if not bool(process.drift(time).isfinite() & process.diffusion2(time).isfinite()):
            raise ArgumentError(
                f"EulerMaruyama cannot leave t = {t:g}, where the drift of {type(process).__name__} is infinite; "
                "take FullDiffusionSolver"
            )
        return ()

    def plan(self, nfe: int) -> list[Solver]:
        """One evaluation a step."""
        return [self] * nfe

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike."""
        F, h = evaluate(x, row_t), row_s.t - row_t.t
        if row_s.sigma == 0 and self.denoise:
            return mix(x, F, row_t, 1.0, 0.0)
        gain = 1 + h * row_t.f  # of x = alpha x0 + sigma eps
        x_s = mix(x, F, row_t, gain * row_t.alpha, gain * row_t.sigma + h * row_t.g2 / row_t.sigma)
        return x_s if noise is None else x_s.add_(noise, alpha=math.sqrt(-h * row_t.g2))


@register
@dataclass(frozen=True)
class ReverseDiffusion(OneCall, NoisyAboveZero):
    """score_sde's predictor: the forward step's own discretisation, reversed; one evaluation a step.

        x_s = (2 - alpha_t / alpha_s) x + beta score + sqrt(beta) noise,    beta = Var q(x_t | x_s)

    For alpha = 1 it is x + (sigma_t^2 - sigma_s^2) score + noise. The last step, to 0, adds no noise and lands on the
    estimate of x0, which for alpha = 1 is the mean above. From alpha_t = 0, where beta is sigma_t^2 however short the
    step, it is finite but adds noise to noise: FullDiffusionSolver does not.
    Reference: Song et al., Score-based generative modeling through SDEs, ICLR 2021, Algorithms 2 and 3.
    """

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike."""
        F = evaluate(x, row_t)
        if row_s.sigma == 0:
            return mix(x, F, row_t, 1.0, 0.0)
        gain, beta = 2 - row_t.alpha / row_s.alpha, forward_variance(row_t, row_s)
        x_s = mix(x, F, row_t, gain * row_t.alpha, gain * row_t.sigma - beta / row_t.sigma)
        return x_s if noise is None else x_s.add_(noise, alpha=math.sqrt(beta))


@register
@dataclass(frozen=True)
class PredictorCorrector:
    """A predictor's step, then `corrections` steps of Langevin dynamics at the time s; none at the last step, to 0.

        x <- x + d score + sqrt(2 d) z,    d = 2 a (snr |z| / |score|)^2,    a = (alpha_t / alpha_s)^2

    The norms are each example's own, where the published code takes their means over the batch: an image depends on
    its seed alone. `a` is the 1 - beta of the step, the published alpha_i of a VP process; it is 1 for alpha = 1, and
    0 in a step from alpha_t = 0, which is not corrected. The rule is one for many dimensions, where |score| hardly
    varies and the variance settles at 1 + snr^2 times its own; on the plane a score near 0 makes steps so long that
    they spoil the samples. An estimate eps = 0 has no d and makes sampling raise NumericalError. The predictor's noise
    is drawn first. Raises ArgumentError for a predictor that is no solver, a negative or fractional number of
    corrections, and a snr that is not positive.
    Reference: Song et al., Score-based generative modeling through SDEs, ICLR 2021, Algorithms 2 to 5; the published
    snr is 0.16 for VE and CIFAR-10 (from memory).
    """

    predictor: Solver = ReverseDiffusion()
    corrections: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        if not hasattr(self.predictor, "step"):
            raise ArgumentError(f"PredictorCorrector needs a solver as predictor, got {self.predictor!r}")
        if isinstance(self.corrections, bool) or not isinstance(self.corrections, int) or self.corrections < 0:
            raise ArgumentError(f"PredictorCorrector needs a whole number of corrections, got {self.corrections}")
        if not 0 < self.snr < math.inf:
            raise ArgumentError(f"PredictorCorrector needs a positive snr, got {self.snr}; 0.16 is published")

    @property
    def clock(self) -> Any:
        """The predictor's own."""
        return getattr(self.predictor, "clock", None)

    def begin(self, steps: int) -> PredictorCorrector:
        """With a predictor that has begun."""
        return replace(self, predictor=begin(self.predictor, steps))

    def plan(self, nfe: int) -> list[Solver]:
        """The longest of the predictor's plans that leaves `corrections` evaluations for each step but the last."""
        plans = (plan(self.predictor, budget) for budget in range(nfe, 0, -1))
        chosen = next(one for k, one in enumerate(plans) if self.corrections * (len(one) - 1) <= k)
        ours = {id(predictor): replace(self, predictor=predictor) for predictor in chosen}
        return [ours[id(predictor)] for predictor in chosen]

    def stages(self, t: float, s: float, process: Any) -> tuple[float, ...]:
        """The predictor's."""
        return self.predictor.stages(t, s, process)

    def noisy(self, row_t: Row, row_s: Row) -> int:
        """What the predictor asks for, and one for each correction."""
        return int(self.predictor.noisy(row_t, row_s)) + (self.corrections if row_s.sigma > 0 else 0)

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike."""
        count, total = int(self.predictor.noisy(row_t, row_s)), self.noisy(row_t, row_s)
        draws = [] if noise is None else [noise] if total == 1 else list(noise)
        first = None if count == 0 else draws[0] if count == 1 else torch.stack(draws[:count])
        x_s = self.predictor.step(evaluate, x, row_t, row_s, first, inner)
        for z in draws[count:]:
            x_s = self._correct(x_s, z, mix(x_s, evaluate(x_s, row_s), row_s, 0.0, 1.0), row_t, row_s)
        return x_s

    def _correct(self, x: Tensor, z: Tensor, eps: Tensor, row_t: Row, row_s: Row) -> Tensor:
        """One Langevin step, at score = -eps / sigma_s."""
        root = row_t.alpha / row_s.alpha * self.snr * row_s.sigma * _norm(z) / _norm(eps)  # sqrt(d / 2)
        x = torch.addcmul(x, expand(root.square(), x), eps, value=-2 / row_s.sigma)
        return x.addcmul_(expand(root, x), z, value=2.0)


def _norm(x: Tensor) -> Tensor:
    """Each example's Euclidean norm, (B,)."""
    return torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1)
