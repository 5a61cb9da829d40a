"""Variance-preserving processes given by a formula in t."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nearzero.errors import ArgumentError
from nearzero.level import Level
from nearzero.process.base import VP, Beta, root_sigmoid
from nearzero.registry import register


def check_betas(process: Any) -> None:
    """Raises ArgumentError unless 0 <= beta_min <= beta_max, finite and not both 0."""
    if not 0 <= process.beta_min <= process.beta_max < math.inf or process.beta_max == 0:
        raise ArgumentError(
            f"{type(process).__name__} needs 0 <= beta_min <= beta_max, got {process.beta_min} and {process.beta_max}"
        )


@register
@dataclass(frozen=True)
class LinearVP(Beta):
    """The VP process whose beta grows linearly in t.

        log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2

    sigma ~ sqrt(beta_min t) near t = 0: its slope is infinite there, unless beta_min is 0 (E-TSDM's Modified-NS).
    Reference: Song et al., Score-based generative modeling through SDEs, ICLR 2021, Eq. 32-33.

    >>> LinearVP()(torch.tensor([0.0, 1.0], dtype=torch.float64)).alpha
    tensor([1.0000, 0.0066], dtype=torch.float64)
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        check_betas(self)

    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha at float64 times."""
        return -t * (t * (self.beta_max - self.beta_min) / 4 + self.beta_min / 2)

    def f(self, t: Tensor) -> Tensor:
        """-beta(t) / 2."""
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
class QuadraticVP(Beta):
    """The VP process whose sqrt(beta) grows linearly in t, from a = sqrt(beta_min) to a + d = sqrt(beta_max).

        log alpha = -((a + d t)^3 - a^3) / (6 d)

    sigma ~ sqrt(beta_min t) near t = 0; with beta_min = 0 sigma ~ t^1.5. Latent diffusion calls it "scaled linear".
    Reference: Yang et al., Lipschitz singularities in diffusion models, ICLR 2024, A6.

    >>> QuadraticVP()(torch.tensor(1.0)).alpha
    tensor(0.0277)
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        check_betas(self)

    @property
    def _line(self) -> tuple[float, float]:
        """a and d of sqrt(beta) = a + d t."""
        return math.sqrt(self.beta_min), math.sqrt(self.beta_max) - math.sqrt(self.beta_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha at float64 times: the integral of (a + d t)^2 without the difference of cubes."""
        a, d = self._line
        return -t * (a * a + d * t * (a + d * t / 3)) / 2

    def f(self, t: Tensor) -> Tensor:
        """-beta(t) / 2."""
        a, d = self._line
        return -((a + d * t) ** 2) / 2

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """Inverse of `log_alpha`: with c = -6 log alpha and y^3 = a^3 + d c, t = c / (y^2 + a y + a^2)."""
        a, d = self._line
        c = -6 * torch.maximum(log_alpha, self.log_alpha(torch.ones_like(log_alpha)))
        y = (a**3 + d * c) ** (1 / 3)
        t = torch.where(c == 0, 0.0, c / (y * y + a * y + a * a))
        return torch.minimum(t, torch.ones_like(t))


@register
@dataclass(frozen=True)
class CosineVP(VP):
    """The VP process alpha = cos((t + s) / (1 + s) pi / 2) / cos(s / (1 + s) pi / 2), s = offset; exactly 0 at t = 1.

    sigma^2 = sin(x) sin(2 a + x) / cos(a)^2 with a = s / (1 + s) pi / 2 and x = t / (1 + s) pi / 2: no cancellation.
    Its slope is infinite at t = 0 unless the offset is 0 (E-TSDM's Modified-NS). No cap on beta: that is
    DiscreteVP.cosine's.
    Reference: Nichol and Dhariwal, Improved DDPM, ICML 2021, Eq. 17; E-TSDM A8.

    >>> CosineVP()(torch.tensor([0.5, 1.0])).alpha
    tensor([0.7027, 0.0000])
    """

    offset: float = 0.008

    def __post_init__(self) -> None:
        if not 0 <= self.offset < math.inf:
            raise ArgumentError(f"CosineVP needs an offset of at least 0, got {self.offset}")

    @property
    def _angles(self) -> tuple[float, float]:
        """a, the angle at t = 0, and the angle's speed."""
        speed = math.pi / 2 / (1 + self.offset)
        return speed * self.offset, speed

    def level(self, t: Tensor) -> Level:
        """alpha and sigma at float64 times."""
        a, speed = self._angles
        alpha = torch.where(t == 0, 1.0, torch.sin(speed * (1 - t)) / math.cos(a))  # exactly 1 at 0
        return Level(alpha, torch.where(t == 1, 1.0, self._sigma(speed * t, a)))

    @staticmethod
    def _sigma(x: Tensor, a: float) -> Tensor:
        return torch.sqrt(torch.sin(x)) * torch.sqrt(torch.sin(2 * a + x)) / math.cos(a)

    def f(self, t: Tensor) -> Tensor:
        """-speed tan(speed (offset + t)); -inf at t = 1."""
        _, speed = self._angles
        return -speed * torch.sin(speed * (self.offset + t)) / torch.sin(speed * (1 - t))

    def time_of_log_ratio(self, q: Tensor) -> Tensor:
        """x = (a + x) - a by the addition theorem, each difference without cancellation."""
        a, speed = self._angles
        alpha, sigma = root_sigmoid(-2 * q), root_sigmoid(2 * q)
        sine, rest = math.sin(a), sigma * math.cos(a)
        upper = torch.hypot(torch.full_like(q, sine), rest)  # sin(a + x)
        first = torch.where(rest == 0, 0.0, rest * (rest / (upper + sine)))  # upper - sine
        difference = first + sine * sigma**2 / (1 + alpha)  # upper - alpha sine
        x = torch.atan2(difference * math.cos(a), alpha * math.cos(a) ** 2 + upper * sine)
        return x / speed


@register
@dataclass(frozen=True)
class ShiftedCosine(VP):
    """The VP process sigma / alpha = shift tan(pi t / 2): plain cosine with its log-SNR lowered by 2 log(shift).

    sigma ~ shift pi t / 2 near t = 0: no singularity for smooth data. For images of side S the shift is S over the side
    at which the plain schedule fits, 64 or 32; 4 for 256 over 64. Exactly 0 signal at t = 1.
    Reference: Hoogeboom et al., Simple diffusion, ICML 2023, Eq. 3-4.

    >>> ShiftedCosine(4.0)(torch.tensor([0.5, 1.0])).alpha
    tensor([0.2425, 0.0000])
    """

    shift: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ArgumentError(f"ShiftedCosine needs a positive shift, got {self.shift}")

    def _sides(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The cosine, shift times the sine, and their hypotenuse."""
        near, far = torch.sin(math.pi / 2 * (1 - t)), self.shift * torch.sin(math.pi / 2 * t)
        return near, far, torch.hypot(near, far)

    def level(self, t: Tensor) -> Level:
        """alpha and sigma at float64 times."""
        near, far, both = self._sides(t)
        return Level(near / both, far / both)

    def f(self, t: Tensor) -> Tensor:
        """d log alpha / dt = -(pi / 2) shift sigma / (alpha (cos^2 + shift^2 sin^2)); -inf at t = 1."""
        near, far, both = self._sides(t)
        return -math.pi / 2 * self.shift * far / (near * both**2)

    def time_of_log_ratio(self, q: Tensor) -> Tensor:
        """tan(pi t / 2) = exp(q) / shift."""
        return torch.atan2(root_sigmoid(2 * q), self.shift * root_sigmoid(-2 * q)) * 2 / math.pi


@register
@dataclass(frozen=True)
class LinearSigmaVP(VP):
    """FullDiffusion's process: sigma = t, alpha = sqrt(1 - t^2), f = -t / (1 - t^2).

    Exactly data at t = 0 and exactly noise at t = 1: no time is truncated.
    Reference: FullDiffusion, Section 3.1.

    >>> LinearSigmaVP()(torch.tensor([0.0, 0.6, 1.0])).alpha
    tensor([1.0000, 0.8000, 0.0000])
    """

    def level(self, t: Tensor) -> Level:
        """alpha and sigma at float64 times."""
        squared = torch.where(t < 0.5, 1 - t * t, (1 - t) * (1 + t))  # of alpha: monotone, and 1 - t is exact above
        return Level(torch.sqrt(squared), t)

    def f(self, t: Tensor) -> Tensor:
        """-t / (1 - t^2); -inf at t = 1."""
        return -t / ((1 - t) * (1 + t))

    def time_of_log_ratio(self, q: Tensor) -> Tensor:
        """t = sigma."""
        return root_sigmoid(2 * q)
