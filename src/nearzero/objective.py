"""Objectives: what training minimises, one loss for each example."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError
from nearzero.level import Level, expand
from nearzero.parameterization import Nu, W, regression_target
from nearzero.times import Antithetic, Stratified, Times
from nearzero.weighting import Weighting

MAX_TERMS = 1024
"""The most terms of LearnedUncertainty: a file that asks for more asks for memory."""


class Evaluation(NamedTuple):
    """What an objective saw: losses (B,), x_t, t float64 (B,) and the network's answer F."""

    loss: Tensor
    x: Tensor
    t: Tensor
    F: Tensor


class Regression(nn.Module):
    """Weighted mean-square error of the network's output F against the nearest truth F*, shape (B,).

        loss = weight(level) mean |F(x_t) - F*|^2,   x_t = alpha x0 + sigma eps,   t = times(u)

    With Epsilon, DiscreteTimes and Simple it is DDPM's simple loss (Ho et al., Eq. 14) and, with Shared, E-TSDM's
    (Algorithm A1). Randomness is an argument: u in (0, 1) float64 (B,), eps shaped like x0. Nu and W have no finite
    target near t = 0: ArgumentError; train them with VariationalBound.
    """

    def __init__(self, times: Times, weighting: Weighting) -> None:
        super().__init__()
        self.times = times
        self.weighting = weighting

    def forward(self, denoiser: Denoiser, x0: Tensor, u: Tensor, eps: Tensor, **condition: Tensor) -> Tensor:
        """One loss for each example of x0 (B, ...)."""
        return self.evaluate(denoiser, x0, u, eps, **condition).loss

    def evaluate(self, denoiser: Denoiser, x0: Tensor, u: Tensor, eps: Tensor, **condition: Tensor) -> Evaluation:
        """The loss with x_t, t and the network's answer, for terms that look at them again."""
        return self.at(denoiser, x0, self.times(u.to(torch.float64), denoiser.process), eps, **condition)

    def at(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, **condition: Tensor) -> Evaluation:
        """The same at given times t float64 (B,), as for a part of a batch whose u were mapped as a whole."""
        if isinstance(denoiser.parameterization, Nu | W):
            name = type(denoiser.parameterization).__name__
            raise ArgumentError(f"{name} has no finite regression target near t = 0; use nearzero.VariationalBound")
        alpha, sigma = denoiser.process(t)
        x = expand(alpha, x0) * x0 + expand(sigma, x0) * eps
        F, level, k = denoiser.output(x, t, **condition)
        a, b = regression_target(level, k)
        error = F - (expand(a, x0) * x0 + expand(b, x0) * eps)
        loss = expand(self.weighting(level, k), x0).flatten() * error.square().reshape(len(x0), -1).mean(1)
        return Evaluation(loss, x, t, F)


class LipschitzPenalty(nn.Module):
    """DDPM-r: adds `weight` times K(t, t')^2 / D to an objective, with a second forward at the same x_t.

        K(t, t') = |F(x_t, t) - F(x_t, t')| / |t - t'|,   t' the next timestep (the one before, at the last)

    in timesteps of the process, or of 1/1000 of its range if it has none; within 1e-6 of a node t is that node. The
    paper gives neither the form nor the weight of its penalty: the square is assumed. Reference: Yang et al., ICLR
    2024, D.3.1.
    """

    def __init__(self, objective: Regression | VariationalBound, weight: float) -> None:
        super().__init__()
        if not 0 < weight < math.inf:
            raise ArgumentError(f"LipschitzPenalty needs a positive weight, got {weight}")
        self.objective = objective
        self.weight = weight

    def forward(self, denoiser: Denoiser, x0: Tensor, u: Tensor, eps: Tensor, **condition: Tensor) -> Tensor:
        """One loss for each example of x0 (B, ...)."""
        return self.evaluate(denoiser, x0, u, eps, **condition).loss

    def evaluate(self, denoiser: Denoiser, x0: Tensor, u: Tensor, eps: Tensor, **condition: Tensor) -> Evaluation:
        """The penalised losses with what the objective saw."""
        return self.at(denoiser, x0, self.times(u.to(torch.float64), denoiser.process), eps, **condition)

    @property
    def times(self) -> Times:
        """The objective's."""
        return self.objective.times

    def at(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, **condition: Tensor) -> Evaluation:
        """The same at given times t (B,)."""
        now = self.objective.at(denoiser, x0, t, eps, **condition)
        steps, end = getattr(denoiser.process, "steps", 1000), denoiser.process.end
        node = now.t * steps / end
        node = torch.where((node - node.round()).abs() < 1e-6, node.round(), node)  # the snap that the docstring states
        beside = torch.where(node + 1 > steps, node - 1, node + 1) / steps * end
        answer, _, _ = denoiser.output(now.x, beside, **condition)
        return now._replace(loss=now.loss + self.weight * (now.F - answer).square().reshape(len(x0), -1).mean(1))


class LearnedUncertainty(nn.Module):
    """Balances noise levels by what is left to learn there: loss / exp(u) + u, with u learned beside the network.

        u = sum_k a_k cos(pi k (1 + z) / 2),  k = 0 ... terms - 1,   z = tanh(log(sigma / alpha) / 4)

    At its optimum u is the log of the mean loss at a level, and every level then weighs the same. z is finite at both
    ends. The bound of VariationalBound is signed and has no such u: ArgumentError.
    Reference: Kendall et al., CVPR 2018; Karras et al., Analyzing and improving the training dynamics, CVPR 2024,
    Eq. 21, whose one linear layer on random Fourier features this series replaces.

    >>> LearnedUncertainty(Regression(UniformTimes(), Simple()), terms=8).u(LinearVP()(torch.tensor([0.0, 1.0])))
    tensor([0., 0.], grad_fn=<MvBackward0>)
    """

    def __init__(self, objective: Regression | VariationalBound | LipschitzPenalty, terms: int) -> None:
        super().__init__()
        if isinstance(terms, bool) or not isinstance(terms, int) or terms < 1:
            raise ArgumentError(f"LearnedUncertainty needs at least 1 term, got {terms}")
        if terms > MAX_TERMS:
            raise ArgumentError(f"LearnedUncertainty takes at most {MAX_TERMS} terms, got {terms}")
        inner = objective.objective if isinstance(objective, LipschitzPenalty) else objective
        if isinstance(inner, VariationalBound):
            raise ArgumentError("LearnedUncertainty balances squared errors; VariationalBound is a signed bound")
        self.objective = objective
        self.a = nn.Parameter(torch.zeros(terms, dtype=torch.float32))

    def u(self, level: Level) -> Tensor:
        """The learned log of the mean loss at each level (B,), float32 on the parameters' device."""
        z = torch.tanh(-level.logsnr.to(torch.float64) / 8)
        k = torch.arange(len(self.a), dtype=torch.float64, device=z.device)
        return torch.cos(math.pi / 2 * (1 + z)[:, None] * k).to(self.a) @ self.a

    def forward(self, denoiser: Denoiser, x0: Tensor, u: Tensor, eps: Tensor, **condition: Tensor) -> Tensor:
        """One loss for each example of x0 (B, ...)."""
        return self.at(denoiser, x0, self.times(u.to(torch.float64), denoiser.process), eps, **condition).loss

    @property
    def times(self) -> Times:
        """The objective's."""
        return self.objective.times

    def at(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, **condition: Tensor) -> Evaluation:
        """The balanced losses with what the objective saw, at given times t (B,)."""
        now = self.objective.at(denoiser, x0, t, eps, **condition)
        log_loss = self.u(denoiser.process(now.t)).to(now.loss)
        return now._replace(loss=now.loss * torch.exp(-log_loss) + log_loss)


class VariationalBound(nn.Module):
    """FullDiffusion's negative ELBO in nats, signed, constants included, one for each example, shape (B,).

        Nu:  alpha F.(alpha sigma F + 2 (alpha (1 + sigma^2) eps - sigma^3 x0)) + |x0|^2 / 6 + D/2 (7/6 + log 2 pi)
        W:   sigma |x0 - F|^2 + 2 alpha F.eps + D/2 log 2 pi

    at t = sigma uniform in (0, 1); their means over t and eps are -ELBO, an upper bound on -log p(x0), and both are
    finite at both ends. `times` have a density q: UniformTimes or LogTimes, Stratified or Antithetic over them or not.
    What depends on t is divided by q(t): the mean stays the same, only the variance changes.
    Raises ArgumentError for other times or another parameterization, or a process with sigma other than t.

    Reference: FullDiffusion, Eq. 16 and 18; the form of W is this project's own.

    >>> denoiser = Denoiser(Zero(), LinearSigmaVP(), W(), Time())        # w = 0 is standard normal data
    >>> loss = VariationalBound(UniformTimes())(denoiser, torch.zeros(4, 2), torch.rand(4), torch.randn(4, 2))
    >>> loss[0]                                                          # log 2 pi
    tensor(1.8379)
    """

    def __init__(self, times: Times) -> None:
        super().__init__()
        inner: Any = times
        while isinstance(inner, Stratified | Antithetic):
            inner = inner.inner
        if not hasattr(inner, "density"):
            raise ArgumentError(
                f"VariationalBound needs uniform times, or others with a density such as LogTimes, got {times}: "
                "else it is no bound"
            )
        self.times = times
        self.density = inner.density

    def forward(self, denoiser: Denoiser, x0: Tensor, u: Tensor, eps: Tensor, **condition: Tensor) -> Tensor:
        """One loss for each example of x0 (B, ...); u in (0, 1) float64 (B,), eps shaped like x0."""
        return self.evaluate(denoiser, x0, u, eps, **condition).loss

    def evaluate(self, denoiser: Denoiser, x0: Tensor, u: Tensor, eps: Tensor, **condition: Tensor) -> Evaluation:
        """The loss with x_t, t and the network's answer, for terms that look at them again."""
        return self.at(denoiser, x0, self.times(u.to(torch.float64), denoiser.process), eps, **condition)

    def at(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, **condition: Tensor) -> Evaluation:
        """The same at given times t float64 (B,), drawn with the density of `times`."""
        level = denoiser.process(t)
        if not isinstance(denoiser.parameterization, Nu | W) or bool((level.sigma != t).any()):
            raise ArgumentError(
                "VariationalBound needs Nu or W on LinearSigmaVP, where sigma = t; got "
                f"{type(denoiser.parameterization).__name__} on {type(denoiser.process).__name__}"
            )
        alpha, sigma = (expand(value, x0) for value in level)
        x = alpha * x0 + sigma * eps
        F, _, _ = denoiser.output(x, t, **condition)
        dim = math.prod(x0.shape[1:])
        constant = dim / 2 * math.log(math.tau)
        if isinstance(denoiser.parameterization, W):
            part = _sum(sigma * (x0 - F) ** 2 + 2 * alpha * F * eps)
        else:
            part = _sum(alpha * F * (alpha * sigma * F + 2 * (alpha * (1 + sigma**2) * eps - sigma**3 * x0)))
            constant = _sum(x0**2 / 6) + constant + dim * 7 / 12
        return Evaluation(part / expand(self.density(t, denoiser.process), part) + constant, x, t, F)


def _sum(x: Tensor) -> Tensor:
    """The sum over each example's numbers, (B, ...) -> (B,)."""
    return x.flatten(1).sum(1)
