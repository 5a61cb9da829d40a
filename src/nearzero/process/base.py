"""What a process answers, and what every kind of process has in common.

A process maps a float tensor of times t to `Level(alpha, sigma)`, with t's shape and dtype. Time 0 is data
(alpha = 1, sigma = 0) and `end` is where sampling starts. All arithmetic is float64; only the answer is cast.

    (1)  dx = f x dt + g dw,  f = d log alpha / dt,  g^2 = d sigma^2 / dt - 2 f sigma^2
    (2)  alpha^2 + sigma^2 = 1 (VP):  g^2 = -2 f
    (3)  VP, u = atan2(sigma, alpha):  d alpha / du = -sigma,  d sigma / du = alpha
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nearzero.errors import ArgumentError
from nearzero.level import Level, check_times, logsnr_of_angle
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

    @property
    def end(self) -> float:
        """The time at which sampling starts."""
        ...

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


class Base(ABC):
    """Dtypes and ranges of times, once for every process. What is abstract gets and gives float64."""

    end: float = 1.0

    @abstractmethod
    def level(self, t: Tensor) -> Level:
        """alpha and sigma; exactly 1 and 0 at t = 0."""

    @abstractmethod
    def f(self, t: Tensor) -> Tensor:
        """d log alpha / dt; -inf where alpha reaches 0."""

    @abstractmethod
    def g2(self, t: Tensor) -> Tensor:
        """g^2 of (1); inf where f is -inf."""

    @abstractmethod
    def time_of_log_ratio(self, q: Tensor) -> Tensor:
        """The time at which log(sigma / alpha) = q; what lies beyond the end's value may give any time above it."""

    @property
    @abstractmethod
    def clock(self) -> Clock:
        """The variable in which the sampling path is smooth."""

    def __call__(self, t: Tensor) -> Level:
        """The noise level at t. Raises ArgumentError outside [0, end]."""
        alpha, sigma = self.level(check_times(t, self.end).to(torch.float64))
        return Level(alpha.to(t.dtype), sigma.to(t.dtype))

    def drift(self, t: Tensor) -> Tensor:
        """f(t) = d log alpha / dt, per unit of time; -inf where alpha reaches 0."""
        return self.f(check_times(t, self.end).to(torch.float64)).to(t.dtype)

    def diffusion2(self, t: Tensor) -> Tensor:
        """g(t)^2 = 2 sigma^2 d log(sigma / alpha) / dt; inf where alpha reaches 0."""
        return self.g2(check_times(t, self.end).to(torch.float64)).to(t.dtype)

    def time_of_logsnr(self, logsnr: Tensor) -> Tensor:
        """The time at which 2 log(alpha / sigma) = logsnr; +inf gives 0, all below the end's value gives the end."""
        t = self.time_of_log_ratio(-logsnr.to(torch.float64) / 2)
        return torch.minimum(t, t.new_tensor(self.end)).to(logsnr.dtype)


class VP(Base):
    """A variance-preserving process, alpha^2 + sigma^2 = 1."""

    def g2(self, t: Tensor) -> Tensor:
        """-2 f."""
        return -2 * self.f(t)  # (2)

    @property
    def clock(self) -> Angle:
        """The angle atan2(sigma, alpha), in radians."""
        return Angle(self)


class Beta(VP):
    """A variance-preserving process that is given by log alpha(t) = -1/2 integral of beta."""

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha; exactly 0 at t = 0."""

    @abstractmethod
    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """Inverse of `log_alpha`; what lies beyond the end's value gives the end."""

    def level(self, t: Tensor) -> Level:
        """alpha = exp(log alpha), sigma = sqrt(-expm1(2 log alpha)): no cancellation at t = 0."""
        log_alpha = self.log_alpha(t)
        return Level(torch.exp(log_alpha), torch.sqrt(0 - torch.expm1(2 * log_alpha)))

    def time_of_log_ratio(self, q: Tensor) -> Tensor:
        """log alpha = -1/2 log(1 + exp(2 q))."""
        return self.time_of_log_alpha(-0.5 * torch.nn.functional.softplus(2 * q, threshold=700.0))


def root_sigmoid(x: Tensor) -> Tensor:
    """sqrt(1 / (1 + exp(-x))), also where the square underflows: sigma of a VP process at x = -log SNR."""
    return torch.exp(torch.nn.functional.logsigmoid(x) / 2)


def reading(clock: Clock, t: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
    """(u, d alpha / du, d sigma / du) at times t with this level, which some clocks need not compute again."""
    known = getattr(clock, "of", None)
    return (clock.u(t), *clock.slopes(t)) if known is None else known(level)


@register
@dataclass(frozen=True)
class Angle:
    """The clock u = atan2(sigma, alpha) of a VP process: dx/du is the velocity, bounded at both ends."""

    process: VP

    def __post_init__(self) -> None:
        if isinstance(self.process, Plain):
            raise ArgumentError(f"Angle is the clock of variance-preserving processes; use Itself({self.process})")

    def u(self, t: Tensor) -> Tensor:
        """The angle at time t, in radians: 0 at the data."""
        return self.of(self.process(check_times(t, self.process.end).to(torch.float64)))[0].to(t.dtype)

    def t(self, u: Tensor) -> Tensor:
        """The time of an angle in radians. Raises ArgumentError outside [0, pi / 2]; beyond the last it is the end."""
        if not bool(((u >= 0) & (u <= math.pi / 2)).all()):
            raise ArgumentError(f"an angle between data (0) and noise (pi / 2) was expected, got {u.tolist()}")
        angle = u.to(torch.float64)
        angle = torch.minimum(angle, torch.full_like(angle, math.pi / 2))  # float32 rounds pi / 2 up
        return self.process.time_of_logsnr(logsnr_of_angle(angle)).to(u.dtype)

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / du, d sigma / du) = (-sigma, alpha)."""
        return self.of(self.process(t))[1:]

    def of(self, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """(u, d alpha / du, d sigma / du) where the level is known."""
        alpha, sigma = level
        return torch.atan2(sigma, alpha), -sigma, alpha  # (3)


@register
@dataclass(frozen=True)
class Itself:
    """The clock u = t, of a process that is not variance-preserving."""

    process: Plain

    def __post_init__(self) -> None:
        if isinstance(self.process, VP):
            raise ArgumentError(f"Itself needs a process with slopes in t; use Angle({self.process})")

    def u(self, t: Tensor) -> Tensor:
        """t. Raises ArgumentError outside [0, end]."""
        return check_times(t, self.process.end)

    def t(self, u: Tensor) -> Tensor:
        """u. Raises ArgumentError outside [0, end]."""
        return check_times(u, self.process.end)

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt)."""
        alpha, sigma = self.process.slopes(check_times(t, self.process.end).to(torch.float64))
        return alpha.to(t.dtype), sigma.to(t.dtype)


@register
@dataclass(frozen=True)
class NoiseLevel:
    """The clock u = sigma, of a variance-exploding process (alpha = 1): EDM's choice."""

    process: Plain

    def __post_init__(self) -> None:
        if self.process(torch.tensor(self.process.end, dtype=torch.float64)).alpha != 1:
            raise ArgumentError(f"NoiseLevel needs alpha = 1, as of KarrasVE or SongVE; got {self.process}")

    def u(self, t: Tensor) -> Tensor:
        """sigma at time t."""
        return self.process(t).sigma

    def t(self, u: Tensor) -> Tensor:
        """The time of a noise level. Raises ArgumentError outside [0, the end's]."""
        last = self.u(u.new_tensor(self.process.end))  # in u's own rounding
        if not bool(((u >= 0) & (u <= last)).all()):
            raise ArgumentError(f"a noise level between data (0) and noise ({last:g}) was expected, got {u.tolist()}")
        return self.process.time_of_logsnr(-2 * u.to(torch.float64).log()).to(u.dtype)

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / d sigma, d sigma / d sigma) = (0, 1)."""
        check_times(t, self.process.end)
        return torch.zeros_like(t), torch.ones_like(t)


class Plain(Base):
    """A process that is not variance-preserving; its clock is t unless it names another."""

    @abstractmethod
    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt)."""

    @property
    def clock(self) -> Itself | NoiseLevel:
        """t."""
        return Itself(self)
