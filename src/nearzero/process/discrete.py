"""Processes of finitely many steps, given by their betas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nearzero.errors import ArgumentError, did_you_mean
from nearzero.level import Level
from nearzero.process.base import VP, Beta, root_sigmoid
from nearzero.process.vp import CosineVP
from nearzero.registry import register

MAX_STEPS = 1_000_000
"""The most nodes that a process may have: papers have 1,000 or 4,000."""


@register
@dataclass(frozen=True)
class LinearBetas:
    """beta_k from `start` to `end` in equal steps, k = 0 .. steps-1 (DDPM)."""

    steps: int = 1000
    start: float = 1e-4
    end: float = 0.02

    def values(self) -> Tensor:
        """float64 (steps,)."""
        return torch.linspace(self.start, self.end, self.steps, dtype=torch.float64)


@register
@dataclass(frozen=True)
class QuadraticBetas:
    """sqrt(beta_k) from sqrt(start) to sqrt(end) in equal steps, k = 0 .. steps-1 (E-TSDM A4, "scaled linear")."""

    steps: int = 1000
    start: float = 1e-4
    end: float = 0.02

    def values(self) -> Tensor:
        """float64 (steps,)."""
        return torch.linspace(self.start**0.5, self.end**0.5, self.steps, dtype=torch.float64) ** 2


@register
@dataclass(frozen=True)
class CosineBetas:
    """beta_k = min(cap, 1 - alpha^2((k+1)/steps) / alpha^2(k/steps)) with CosineVP's alpha (Nichol and Dhariwal).

    The paper caps beta so that the last step keeps some signal.
    """

    steps: int = 1000
    offset: float = 0.008
    cap: float = 0.999

    def values(self) -> Tensor:
        """float64 (steps,)."""
        alpha, sigma = CosineVP(self.offset)(torch.arange(self.steps + 1, dtype=torch.float64) / self.steps)
        log_alpha = torch.where(sigma < alpha, 0.5 * torch.log1p(-sigma * sigma), alpha.log())
        betas = 0 - torch.expm1(2 * log_alpha.diff())
        return torch.minimum(betas, betas.new_tensor(self.cap))


@register
@dataclass(frozen=True)
class ListedBetas:
    """Betas given one by one."""

    betas: tuple[float, ...]

    def values(self) -> Tensor:
        """float64 (steps,)."""
        return torch.tensor(self.betas, dtype=torch.float64)


@register
@dataclass(frozen=True)
class DiscreteVP(Beta):
    """DDPM's process: node k = 0 .. steps-1 lies at t = (k + 1) / steps, with alpha^2 = prod_{i <= k} (1 - beta_i).

    Between nodes log alpha is linear in t, and at t = 0 there is no noise, so every time in [0, 1] is legal.
    Reference: Ho et al., Denoising diffusion probabilistic models, NeurIPS 2020.

    >>> DiscreteVP.linear()(torch.tensor(1 / 1000)).sigma ** 2       # beta_0
    tensor(0.0001)
    """

    betas: LinearBetas | QuadraticBetas | CosineBetas | ListedBetas

    def __post_init__(self) -> None:
        steps = getattr(self.betas, "steps", None)
        if steps is not None:
            _count(steps)
        values = self.betas.values()
        if values.ndim != 1 or len(values) == 0:
            raise ArgumentError("DiscreteVP needs a list of betas, got an empty or nested one")
        wrong = ~((values > 0) & (values < 1))
        if bool(wrong.any()):
            k = int(wrong.nonzero()[0])
            raise ArgumentError(
                f"beta {values[k].item()} at node {k} is outside (0, 1); a step adds some noise and keeps some signal"
            )

    @classmethod
    def linear(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> DiscreteVP:
        """DDPM's schedule: betas in equal steps."""
        return cls(LinearBetas(_count(steps), beta_start, beta_end))

    @classmethod
    def quadratic(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> DiscreteVP:
        """The square roots of the betas in equal steps; Stable Diffusion's has 0.00085 and 0.012."""
        if not (beta_start >= 0 and beta_end >= 0):
            raise ArgumentError(f"betas lie in (0, 1), got beta_start {beta_start} and beta_end {beta_end}")
        return cls(QuadraticBetas(_count(steps), beta_start, beta_end))

    @classmethod
    def cosine(cls, steps: int = 1000, offset: float = 0.008, cap: float = 0.999) -> DiscreteVP:
        """Improved DDPM's schedule, its betas capped."""
        return cls(CosineBetas(_count(steps), offset, cap))

    @classmethod
    def from_scheduler(cls, config: Mapping[str, Any]) -> DiscreteVP | ZeroTerminalSNR:
        """The process of a diffusers scheduler's config, such as the content of scheduler_config.json.

        What the config leaves out is DDPM's: linear betas from 1e-4 to 0.02, 1000 of them.
        Raises ArgumentError for a schedule of betas that it does not know.
        """
        steps, kind = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
        ends = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)  # DDPM's, as the docstring states
        makers = {
            "linear": lambda: cls.linear(steps, *ends),
            "scaled_linear": lambda: cls.quadratic(steps, *ends),
            "squaredcos_cap_v2": lambda: cls.cosine(steps),
        }
        if config.get("trained_betas") is not None:
            process = cls.from_betas(config["trained_betas"])
        elif kind in makers:
            process = makers[kind]()
        else:
            raise ArgumentError(f"unknown beta_schedule {kind!r}; {did_you_mean(str(kind), makers)}")
        return ZeroTerminalSNR(process) if config.get("rescale_betas_zero_snr") else process

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor) -> DiscreteVP:
        """Any betas in (0, 1): a sequence of floats or a tensor, one for each node."""
        return cls(ListedBetas(tuple(torch.as_tensor(betas, dtype=torch.float64).flatten().tolist())))

    @property
    def steps(self) -> int:
        """How many nodes."""
        return len(self._nodes) - 1

    @cached_property
    def _times(self) -> Tensor:
        """0, 1/steps, ..., 1: stored, because a float product k (1/steps) steps may fall below k."""
        return torch.arange(self.steps + 1, dtype=torch.float64) / self.steps

    @cached_property
    def _nodes(self) -> Tensor:
        """log alpha at t = 0, 1/steps, ..., 1."""
        return torch.cat([torch.zeros(1, dtype=torch.float64), 0.5 * torch.log1p(-self.betas.values()).cumsum(0)])

    def _piece(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The node k at or below t, and how far t has come from it towards k + 1, in nodes."""
        k = torch.searchsorted(self._times[1:-1].to(t.device), t.contiguous(), right=True)  # the end closes the last
        return k, t * self.steps - k

    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha at float64 times."""
        k, part = self._piece(t)
        nodes = self._nodes.to(t.device)
        return nodes[k] * (1 - part) + nodes[k + 1] * part

    def f(self, t: Tensor) -> Tensor:
        """d log alpha / dt, constant between nodes."""
        k, _ = self._piece(t)
        return torch.diff(self._nodes.to(t.device))[k] * self.steps

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """Inverse of `log_alpha`."""
        nodes = self._nodes.to(log_alpha.device)
        log_alpha = torch.maximum(log_alpha, nodes[-1])
        k = torch.searchsorted(-nodes[1:-1].contiguous(), -log_alpha, right=True)
        return (k + (log_alpha - nodes[k]) / (nodes[k + 1] - nodes[k])) / self.steps


@register
@dataclass(frozen=True)
class ZeroTerminalSNR(VP):
    """A VP process whose alpha is moved and stretched to end at exactly 0, its first level kept.

        alpha' = (alpha - alpha_end) alpha_1 / (alpha_1 - alpha_end)

    alpha_1 is the first node's for a discrete base (below it nothing changes) and 1 at t = 0 for a continuous one.
    Epsilon has no meaning at its end: use Velocity. Reference: Lin et al., Common diffusion noise schedules and sample
    steps are flawed, WACV 2024, Algorithm 1.

    >>> ZeroTerminalSNR(DiscreteVP.linear())(torch.tensor([0.001, 1.0])).alpha
    tensor([0.9999, 0.0000])
    """

    base: VP

    def __post_init__(self) -> None:
        if not isinstance(self.base, VP):
            raise ArgumentError(f"ZeroTerminalSNR moves a variance-preserving process, got {type(self.base).__name__}")
        if getattr(self.base, "steps", 2) < 2:
            raise ArgumentError("ZeroTerminalSNR over one node: it cannot both keep its level and lose its signal")

    @property
    def steps(self) -> int:
        """How many nodes, where the base has nodes."""
        return self.base.steps  # pyright: ignore[reportAttributeAccessIssue]

    @cached_property
    def _ends(self) -> tuple[float, float, float]:
        """The first node's time, and 1 - alpha there and at the end."""
        first = 1 / self.base.steps if hasattr(self.base, "steps") else 0.0  # pyright: ignore[reportAttributeAccessIssue]
        losses = _loss(self.base.level(torch.tensor([first, 1.0], dtype=torch.float64)))
        return first, *losses.tolist()

    def _above(self, base: Level) -> Tensor:
        """alpha - alpha_end, by the difference that keeps more digits."""
        _, _, high = self._ends
        last = self.base.level(torch.ones((), dtype=torch.float64)).alpha
        return base.alpha - last if high > 0.5 else high - _loss(base)

    def level(self, t: Tensor) -> Level:
        """alpha and sigma at float64 times."""
        first, low, high = self._ends
        base = self.base.level(t)
        loss = _loss(base)
        moved = ((loss - low) + low * (high - loss)) / (high - low)  # 1 - alpha', a sum of positive terms
        stretched = torch.where(moved < 0.5, 1 - moved, self._above(base) * (1 - low) / (high - low))
        inside = t >= first
        alpha = torch.where(inside, stretched, base.alpha)
        return Level(alpha, torch.where(inside, torch.sqrt(moved * (1 + alpha)), base.sigma))

    def f(self, t: Tensor) -> Tensor:
        """alpha f / (alpha - alpha_end) above the first node; -inf at the end."""
        first, _, high = self._ends
        base = self.base.level(t)
        if high == 1:  # the base ends without signal: nothing is moved
            return self.base.f(t)
        return self.base.f(t) * torch.where(t >= first, base.alpha / self._above(base), 1.0)

    def time_of_log_ratio(self, q: Tensor) -> Tensor:
        """The base's time at the level before it was moved."""
        _, low, high = self._ends
        moved = _loss(Level(root_sigmoid(-2 * q), root_sigmoid(2 * q)))
        loss = torch.where(moved > low, (low * (1 - high) + moved * (high - low)) / (1 - low), moved)
        ratio = torch.sqrt(loss * (2 - loss)).log() - torch.log1p(-loss)
        return torch.where(moved >= 1, self.end, self.base.time_of_log_ratio(ratio))


def _loss(level: Level) -> Tensor:
    """1 - alpha of a VP level, without cancellation."""
    return level.sigma**2 / (1 + level.alpha)


def _count(steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ArgumentError(f"steps must be a positive integer, got {steps}")
    if steps > MAX_STEPS:
        raise ArgumentError(f"a process of {steps} steps is too long; take at most {MAX_STEPS:,}, or LinearVP")
    return steps
