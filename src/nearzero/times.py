"""Axis 4, the times: at which noise levels the network is trained.

A distribution of times is a function of u, uniform in the open interval (0, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nearzero.errors import ArgumentError
from nearzero.level import timesteps
from nearzero.registry import register


class Times(Protocol):
    """An inverse distribution function."""

    def __call__(self, u: Tensor, process: Any) -> Tensor:
        """The training times of uniform numbers u, float64, same shape."""
        ...


@register
@dataclass(frozen=True)
class UniformTimes:
    """Every time in (0, end) is equally likely."""

    def __call__(self, u: Tensor, process: Any) -> Tensor:
        """u * end."""
        return u * process.end

    def density(self, t: Tensor, process: Any) -> Tensor:
        """1 / end."""
        return torch.full_like(t, 1 / process.end)


@register
@dataclass(frozen=True)
class LogTimes:
    """The logarithm of t + d end is uniform: the times crowd where t / end is below about d, without truncation.

        t = end d ((1 + 1/d)^u - 1),   density q(t) = 1 / ((t + d end) log(1 + 1/d)),   0 <= t <= end

    VariationalBound divides by q what depends on t, and stays the same bound. For 8-bit pixels most of its variance
    lies at t < .01, where the network resolves the 256 values: d = 1e-3 has a twentieth of it, the least of half
    decades (`python scripts/bound_variance.py`). d -> infinity is UniformTimes. Raises ArgumentError unless d is
    positive and finite.

    >>> from nearzero.process import LinearSigmaVP
    >>> LogTimes()(torch.tensor([0.25, 0.5, 0.75]).double(), LinearSigmaVP())
    tensor([0.0046, 0.0306, 0.1770], dtype=torch.float64)
    """

    d: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.d < math.inf:
            raise ArgumentError(f"LogTimes needs a positive d, below which times crowd, got {self.d}; try 1e-3")

    def __call__(self, u: Tensor, process: Any) -> Tensor:
        """The time below which a part u of them lies."""
        t = process.end * self.d * torch.expm1(u * math.log1p(1 / self.d))
        return torch.minimum(t, torch.full_like(t, process.end))  # rounding stays inside

    def density(self, t: Tensor, process: Any) -> Tensor:
        """q(t), per unit of time."""
        return 1 / ((t + self.d * process.end) * math.log1p(1 / self.d))


@register
@dataclass(frozen=True)
class DiscreteTimes:
    """Every node of a discrete process is equally likely: t = (k + 1) / steps with k = floor(u steps).

    Raises ArgumentError for a process without nodes. Reference: Ho et al., NeurIPS 2020, Algorithm 1.
    """

    def __call__(self, u: Tensor, process: Any) -> Tensor:
        """The node that u falls on."""
        steps = timesteps(process)
        return ((u * steps).floor() + 1) / steps


@register
@dataclass(frozen=True)
class LogNormalSigma:
    """log(sigma / alpha) is normal: EDM's training distribution, cut off where the process ends.

    sigma / alpha = exp(mean + std Phi^-1(u)), with u in (0, Phi_end) instead of (0, 1).
    Reference: Karras et al., Elucidating the design space, NeurIPS 2022, Table 1.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ArgumentError(f"LogNormalSigma needs a finite mean and a positive std, got {self.mean}, {self.std}")

    def __call__(self, u: Tensor, process: Any) -> Tensor:
        """The time at which sigma / alpha has the quantile u."""
        last = -_logsnr(process, process.end) / 2
        below = torch.special.erfc((self.mean - last) / self.std / math.sqrt(2)) / 2  # Phi, exact in its lower tail
        return process.time_of_logsnr(-2 * (self.mean + self.std * torch.special.ndtri(u * below)))


@register
@dataclass(frozen=True)
class ImportanceTimes:
    """Density proportional to g^2 / sigma^2 on [t_min, end]: the log-SNR is uniform there, for every process.

    With weight 1 on eps it stands for the likelihood weight g^2 under uniform times, with less variance. The density
    diverges at 0, hence the paper's t_min. Raises ArgumentError where the process ends without signal.
    Reference: Song et al., Maximum likelihood training, NeurIPS 2021; Kim et al., Soft truncation, ICML 2022.
    """

    t_min: float = 1e-5

    def __post_init__(self) -> None:
        _check_t_min(self.t_min)

    def __call__(self, u: Tensor, process: Any) -> Tensor:
        """The time of a log-SNR between those at t_min and at the end."""
        return _uniform_logsnr(u, torch.full_like(u, self.t_min), process)


@register
@dataclass(frozen=True)
class SoftTruncation:
    """ImportanceTimes whose t_min is drawn anew for each batch, from a density proportional to t^-k on [t_min, end].

        k = 1: t_min^(1-v) end^v;   else t_min / (1 - v (1 - (t_min/end)^(k-1)))^(1/(k-1))

    v is the fractional part of 2^24 times the golden ratio times the batch's first u: uniform, and independent of that
    u's own time but for 1e-7 of it.
    Reference: Kim et al., Soft truncation, ICML 2022.
    """

    t_min: float = 1e-5
    k: float = 1.0

    def __post_init__(self) -> None:
        _check_t_min(self.t_min)
        if not 0 <= self.k < math.inf:
            raise ArgumentError(f"SoftTruncation needs k >= 0, got {self.k}")

    def __call__(self, u: Tensor, process: Any) -> Tensor:
        """Times of one batch."""
        v = math.fmod(u.flatten()[0].item() * 2.0**24 * (math.sqrt(5) - 1) / 2, 1.0)
        log, q = math.log(self.t_min / process.end), self.k - 1
        start = log * (1 - v) if q == 0 else log - math.log1p(v * math.expm1(q * log)) / q
        return _uniform_logsnr(u, torch.full_like(u, math.exp(start) * process.end), process)


@register
@dataclass(frozen=True)
class Matched:
    """The noise levels at which another process would be trained: EDM's preconditioning with the VP SDE's levels.

    Raises ArgumentError where this process ends before the other one, by more than a relative 1e-9 of the log-SNR.

    >>> from nearzero.process import KarrasVE, LinearVP
    >>> Matched(UniformTimes(), LinearVP())(torch.tensor([0.5]).double(), KarrasVE(end=160.0))       # sigma at t = 1/2
    tensor([3.4129], dtype=torch.float64)
    """

    inner: Times
    process: Any

    def __call__(self, u: Tensor, process: Any) -> Tensor:
        """The times of equal sigma / alpha."""
        here, asked = _logsnr(process, process.end), _logsnr(self.process, self.process.end)
        if here - 1e-9 * here.abs() > asked:  # the rounding that the docstring states
            raise ArgumentError(
                f"{type(process).__name__} ends before {type(self.process).__name__}, whose noise levels are asked "
                "for; take a longer one"
            )
        return process.time_of_logsnr(self.process(self.inner(u, self.process)).logsnr)


@register
@dataclass(frozen=True)
class UniformTold:
    """What the network is told is uniform, not t: E-TSDM's remapped sampling, between t_min and t_max.

    `conditioning` has `time_of(told)`: InverseTime or InverseSigmoid. Raises ArgumentError for another.
    Reference: Yang et al., Lipschitz singularities in diffusion models, ICLR 2024, D.3.3 and Table A5, which does not
    give its ends: 1/1000 and, where the told number is infinite at 1, 999/1000 are assumed.
    """

    conditioning: Any
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if not hasattr(self.conditioning, "time_of"):
            raise ArgumentError(f"UniformTold needs InverseTime or InverseSigmoid, got {self.conditioning}")
        if not 0 < self.t_min < self.t_max <= 1:
            raise ArgumentError(f"UniformTold needs 0 < t_min < t_max <= 1, got {self.t_min} and {self.t_max}")

    def __call__(self, u: Tensor, process: Any) -> Tensor:
        """The times of uniform told numbers."""
        first, last = self.conditioning(u.new_tensor([self.t_min, self.t_max]), None)
        return self.conditioning.time_of(first + u * (last - first))


@register
@dataclass(frozen=True)
class Stratified:
    """u of image i of n is taken from (i / n, (i + 1) / n): one draw in each stratum of the batch.

    An image's time then depends on its place in the batch. Reference: FullDiffusion, Eq. 18.
    """

    inner: Times

    def __call__(self, u: Tensor, process: Any) -> Tensor:
        """inner((i + u) / n)."""
        place = torch.arange(u.numel(), dtype=u.dtype, device=u.device).reshape(u.shape)
        return self.inner(_below_one((place + u) / u.numel()), process)


@register
@dataclass(frozen=True)
class Antithetic:
    """The second half of a batch has 1 - u of the first: errors that are odd in u cancel."""

    inner: Times

    def __call__(self, u: Tensor, process: Any) -> Tensor:
        """inner(u) and inner(1 - u). Raises ArgumentError for a batch of an odd size."""
        if u.numel() % 2:
            raise ArgumentError(f"Antithetic needs an even batch, got {u.numel()}")
        first = u.flatten()[: u.numel() // 2]
        return self.inner(torch.cat([first, _below_one(1 - first)]).reshape(u.shape), process)


def _below_one(u: Tensor) -> Tensor:
    """u, where rounding has made it 1 the number before: u stays in the open interval."""
    one = torch.ones_like(u)
    return torch.minimum(u, torch.nextafter(one, 0 * one))


def _check_t_min(t_min: float) -> None:
    if not 0 < t_min < math.inf:
        raise ArgumentError(f"t_min must be positive, got {t_min}: the density g^2 / sigma^2 diverges at 0")


def _logsnr(process: Any, t: Any) -> Tensor:
    return process(torch.as_tensor(t, dtype=torch.float64)).logsnr


def _uniform_logsnr(u: Tensor, start: Tensor, process: Any) -> Tensor:
    """The times at which the log-SNR lies at u between those of `start` and of the end."""
    if not bool((start < process.end).all()):
        raise ArgumentError(f"t_min {start.max().item():g} must lie below the process's end {process.end:g}")
    first, last = process(start).logsnr, _logsnr(process, process.end)
    if not bool(last.isfinite()):
        raise ArgumentError(f"{type(process).__name__} ends without signal: its log-SNR has no end; use UniformTimes")
    return process.time_of_logsnr(first + u * (last - first))
