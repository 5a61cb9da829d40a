"""Axis 1, the process: how much noise there is at time t.

A process maps a float tensor of times t to `Level(alpha, sigma)`, with t's shape and dtype. Time 0 is data
(alpha = 1, sigma = 0) and `end` is where sampling starts. All arithmetic is float64; only the answer is cast.

A variance-preserving (VP) process has alpha^2 + sigma^2 = 1 and is given by log alpha(t) alone:

    (1)  alpha = exp(log alpha),  sigma = sqrt(-expm1(2 log alpha))          no cancellation at t = 0
    (2)  f = d log alpha / dt,    g^2 = -2 f                                 dx = f x dt + g dw
    (3)  u = atan2(sigma, alpha), d alpha / du = -sigma, d sigma / du = alpha
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from nearzero.errors import ArgumentError
from nearzero.level import Level, check_times
from nearzero.registry import register


class Clock(Protocol):
    """The variable u in which an ODE solver steps: dx/du = alpha'(u) x0 + sigma'(u) eps."""

    def u(self, t: Tensor) -> Tensor:
        """The clock's reading at time t."""
        ...

    def t(self, u: Tensor) -> Tensor:
        """The time at which the clock reads u."""
        ...

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / du, d sigma / du) at time t."""
        ...


class Process(Protocol):
    """What every process answers; times and levels are float tensors of one shape."""

    end: float

    def __call__(self, t: Tensor) -> Level:
        """The noise level at t."""
        ...

    @property
    def clock(self) -> Clock:
        """The variable in which the sampling path is smooth."""
        ...

    def drift(self, t: Tensor) -> Tensor:
        """f(t) of dx = f x dt + g dw."""
        ...

    def diffusion2(self, t: Tensor) -> Tensor:
        """g(t)^2 of dx = f x dt + g dw."""
        ...

    def time_of_logsnr(self, logsnr: Tensor) -> Tensor:
        """The time at which 2 log(alpha / sigma) has this value: +inf -> 0, -inf -> end."""
        ...


class _VP(ABC):
    """A variance-preserving process from log alpha(t), its slope and its inverse; see (1) to (3)."""

    end = 1.0

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha at float64 times in [0, 1]; exactly 0 at t = 0."""

    @abstractmethod
    def log_alpha_slope(self, t: Tensor) -> Tensor:
        """d log alpha / dt at float64 times in [0, 1]."""

    @abstractmethod
    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """Inverse of `log_alpha` in float64; what lies beyond the end's value gives the end."""

    def __call__(self, t: Tensor) -> Level:
        """The noise level at t. Raises ArgumentError outside [0, 1]."""
        log_alpha = self.log_alpha(check_times(t, self.end).to(torch.float64))
        return Level(torch.exp(log_alpha).to(t.dtype), torch.sqrt(0 - torch.expm1(2 * log_alpha)).to(t.dtype))  # (1)

    @property
    def clock(self) -> Angle:
        """The angle atan2(sigma, alpha), in radians."""
        return Angle(self)

    def drift(self, t: Tensor) -> Tensor:
        """f(t) = d log alpha / dt, per unit of time."""
        return self.log_alpha_slope(check_times(t, self.end).to(torch.float64)).to(t.dtype)  # (2)

    def diffusion2(self, t: Tensor) -> Tensor:
        """g(t)^2 = -2 d log alpha / dt = 2 sigma^2 d log(sigma / alpha) / dt."""
        return -2 * self.drift(t)  # (2)

    def time_of_logsnr(self, logsnr: Tensor) -> Tensor:
        """The time at which 2 log(alpha / sigma) = logsnr; +inf gives 0, all below the end's value gives the end."""
        log_alpha = -0.5 * torch.nn.functional.softplus(-logsnr.to(torch.float64), threshold=700.0)
        return self.time_of_log_alpha(log_alpha).to(logsnr.dtype)


@dataclass(frozen=True)
class Angle:
    """The clock u = atan2(sigma, alpha) of a VP process: dx/du is the velocity, bounded at both ends."""

    process: _VP

    def u(self, t: Tensor) -> Tensor:
        """The angle at time t, in radians: 0 at the data."""
        alpha, sigma = self.process(t.to(torch.float64))
        return torch.atan2(sigma, alpha).to(t.dtype)

    def t(self, u: Tensor) -> Tensor:
        """The time of an angle in radians. Raises ArgumentError outside [0, pi / 2]; beyond the last it is the end."""
        if not bool(((u >= 0) & (u <= math.pi / 2)).all()):
            raise ArgumentError(f"an angle between data (0) and noise (pi / 2) was expected, got {u.tolist()}")
        log_alpha = 0.5 * torch.log1p(-(torch.sin(u.to(torch.float64)) ** 2))
        return self.process.time_of_log_alpha(log_alpha).to(u.dtype)

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / du, d sigma / du) = (-sigma, alpha)."""
        alpha, sigma = self.process(t)
        return -sigma, alpha  # (3)


@register
@dataclass(frozen=True)
class LinearVP(_VP):
    """The VP process whose beta grows linearly in t.

        log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2

    sigma ~ sqrt(beta_min t) near t = 0: its slope is infinite there. Reference: Song et al., Score-based generative
    modeling through SDEs, ICLR 2021, Eq. 32-33.

    >>> LinearVP()(torch.tensor([0.0, 1.0], dtype=torch.float64)).alpha
    tensor([1.0000, 0.0066], dtype=torch.float64)
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta_min <= self.beta_max < float("inf") or self.beta_max == 0:
            raise ArgumentError(f"LinearVP needs 0 <= beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")

    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha at float64 times."""
        return -t * (t * (self.beta_max - self.beta_min) / 4 + self.beta_min / 2)

    def log_alpha_slope(self, t: Tensor) -> Tensor:
        """d log alpha / dt at float64 times."""
        return -(t * (self.beta_max - self.beta_min) + self.beta_min) / 2

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """Inverse of `log_alpha`."""
        slope = self.beta_max - self.beta_min
        last = -(slope / 4 + self.beta_min / 2)
        c = -4 * torch.maximum(log_alpha, log_alpha.new_tensor(last))  # slope t^2 + 2 beta_min t = c
        root = self.beta_min + torch.sqrt(self.beta_min**2 + slope * c)
        t = torch.where(c == 0, 0.0, c / root)  # the stable root
        return torch.where(log_alpha > last, torch.minimum(t, torch.ones_like(t)), 1.0)  # rounding stays in [0, 1]


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
class ListedBetas:
    """Betas given one by one."""

    betas: tuple[float, ...]

    def values(self) -> Tensor:
        """float64 (steps,)."""
        return torch.tensor(self.betas, dtype=torch.float64)


@register
@dataclass(frozen=True)
class DiscreteVP(_VP):
    """DDPM's process: node k = 0 .. steps-1 lies at t = (k + 1) / steps, with alpha^2 = prod_{i <= k} (1 - beta_i).

    Between nodes log alpha is linear in t, and at t = 0 there is no noise, so every time in [0, 1] is legal.
    Reference: Ho et al., Denoising diffusion probabilistic models, NeurIPS 2020.

    >>> DiscreteVP.linear()(torch.tensor(1 / 1000)).sigma ** 2       # beta_0
    tensor(0.0001)
    """

    betas: LinearBetas | ListedBetas

    def __post_init__(self) -> None:
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
        if not isinstance(steps, int) or steps < 1:
            raise ArgumentError(f"steps must be a positive integer, got {steps}")
        return cls(LinearBetas(steps, beta_start, beta_end))

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

    def log_alpha_slope(self, t: Tensor) -> Tensor:
        """d log alpha / dt at float64 times."""
        k, _ = self._piece(t)
        return torch.diff(self._nodes.to(t.device))[k] * self.steps

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """Inverse of `log_alpha`."""
        nodes = self._nodes.to(log_alpha.device)
        log_alpha = torch.maximum(log_alpha, nodes[-1])
        k = torch.searchsorted(-nodes[1:-1].contiguous(), -log_alpha, right=True)
        return (k + (log_alpha - nodes[k]) / (nodes[k + 1] - nodes[k])) / self.steps
