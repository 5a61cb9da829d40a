"""Axis 2, the parameterization: what the network's output means.

Whatever the output F means, reading it is linear in (x, F):

    (1)  x0 = A x + B F,   eps = C x + D F

and since alpha x0 + sigma eps = x for every F, two laws hold at every time:

    (2)  alpha A + sigma C = 1,   alpha B + sigma D = 0

So an estimate of x0 and one of eps are both finite wherever the four numbers are, sigma = 0 included.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nearzero.errors import ArgumentError
from nearzero.level import Coefficients, Level
from nearzero.registry import register


class Parameterization(Protocol):
    """Four finite numbers for a level, and the scale of the network's input."""

    def coefficients(self, level: Level) -> Coefficients:
        """A, B, C, D of (1), each shaped like level.alpha."""
        ...

    def input_scale(self, level: Level) -> Tensor:
        """What x is multiplied by before the network sees it."""
        ...

    def score_coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        """(-C / sigma, -D / sigma): score = first x + second F."""
        ...


def regression_target(level: Level, k: Coefficients) -> tuple[Tensor, Tensor]:
    """(a, b) such that F* = a x0 + b eps is the output whose reading is nearest to the truth.

        F* = (B (x0 - A x) + D (eps - C x)) / (B^2 + D^2)

    The network has nothing to say where B = D = 0; ArgumentError there.
    """
    (alpha, sigma), norm = level, k.B**2 + k.D**2
    if bool((norm == 0).any()):
        raise ArgumentError("regression has no target where B = D = 0: no output of the network is read there")
    a = (k.B * (1 - k.A * alpha) - k.D * k.C * alpha) / norm
    b = (k.D * (1 - k.C * sigma) - k.B * k.A * sigma) / norm
    return a, b


class _Unscaled:
    """The network sees x itself."""

    def input_scale(self, level: Level) -> Tensor:
        """1."""
        return torch.ones_like(level.alpha)


class _Divided(ABC):
    """The score is -eps / sigma, which has no closed form at sigma = 0."""

    @abstractmethod
    def coefficients(self, level: Level) -> Coefficients:
        """A, B, C, D, each shaped like level.alpha."""

    def score_coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        """(-C / sigma, -D / sigma). Raises ArgumentError at sigma = 0."""
        if bool((level.sigma == 0).any()):
            raise ArgumentError("the score at sigma = 0 is -eps / 0 here; ask at a time above 0, or use nearzero.W")
        k = self.coefficients(level)
        return -k.C / level.sigma, -k.D / level.sigma


@register
@dataclass(frozen=True)
class Epsilon(_Unscaled, _Divided):
    """F is the noise eps: A = 1/alpha, B = -sigma/alpha, C = 0, D = 1 (DDPM, E-TSDM).

    Does not exist at alpha = 0, where x holds no signal: ArgumentError there.
    Reference: Ho et al., Denoising diffusion probabilistic models, NeurIPS 2020, Eq. 11.
    """

    def coefficients(self, level: Level) -> Coefficients:
        """A, B, C, D, each shaped like level.alpha."""
        alpha, sigma = level
        if bool((alpha == 0).any()):
            raise ArgumentError("Epsilon at alpha = 0: the noise says nothing about x0 there; use nearzero.Velocity")
        return Coefficients(1 / alpha, -sigma / alpha, torch.zeros_like(alpha), torch.ones_like(alpha))


@register
@dataclass(frozen=True)
class Velocity(_Unscaled, _Divided):
    """F is v = (alpha eps - sigma x0) for a VP process; with r2 = alpha^2 + sigma^2 for any other:

        A = alpha/r2,  B = -sigma/r2,  C = sigma/r2,  D = alpha/r2

    Finite at both ends. Reference: Salimans and Ho, Progressive distillation, ICLR 2022, Section 4.
    """

    def coefficients(self, level: Level) -> Coefficients:
        """A, B, C, D, each shaped like level.alpha."""
        alpha, sigma = level
        r2 = alpha**2 + sigma**2
        return Coefficients(alpha / r2, -sigma / r2, sigma / r2, alpha / r2)


@register
@dataclass(frozen=True)
class Denoised(_Unscaled, _Divided):
    """F is the data x0 itself: A = 0, B = 1, C = 1/sigma, D = -alpha/sigma.

    Does not exist at sigma = 0, where x holds no noise to read: ArgumentError there.
    """

    def coefficients(self, level: Level) -> Coefficients:
        """A, B, C, D, each shaped like level.alpha."""
        alpha, sigma = level
        if bool((sigma == 0).any()):
            raise ArgumentError("Denoised at sigma = 0: x0 says nothing about the noise there; use nearzero.Velocity")
        return Coefficients(torch.zeros_like(alpha), torch.ones_like(alpha), 1 / sigma, -alpha / sigma)


@register
@dataclass(frozen=True)
class Flow(_Unscaled, _Divided):
    """F is the direction eps - x0: A = C = 1/(alpha+sigma), B = -sigma/(alpha+sigma), D = alpha/(alpha+sigma).

    Finite at both ends; on StraightPath it is dx/dt. Reference: Lipman et al., Flow matching, ICLR 2023.
    """

    def coefficients(self, level: Level) -> Coefficients:
        """A, B, C, D, each shaped like level.alpha."""
        alpha, sigma = level
        total = alpha + sigma
        return Coefficients(1 / total, -sigma / total, 1 / total, alpha / total)


@register
@dataclass(frozen=True)
class Karras(_Divided):
    """EDM's preconditioning, for data of standard deviation d = data_std; with z = sigma^2 + alpha^2 d^2:

        A = alpha d^2/z,  B = sigma d/sqrt z,  C = sigma/z,  D = -alpha d/sqrt z,  input scale 1/sqrt z

    The network's input and target have variance 1 at every time. With alpha = 1 A, B and the scale are c_skip, c_out
    and c_in. Finite at both ends. Reference: Karras et al., Elucidating the design space, NeurIPS 2022, Table 1.
    """

    data_std: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.data_std < math.inf:
            raise ArgumentError(f"Karras needs the data's standard deviation, a positive data_std; got {self.data_std}")

    def _variance(self, level: Level) -> Tensor:
        return level.sigma**2 + (level.alpha * self.data_std) ** 2

    def coefficients(self, level: Level) -> Coefficients:
        """A, B, C, D, each shaped like level.alpha."""
        (alpha, sigma), d, z = level, self.data_std, self._variance(level)
        root = torch.sqrt(z)
        return Coefficients(alpha * d**2 / z, sigma * d / root, sigma / z, -alpha * d / root)

    def input_scale(self, level: Level) -> Tensor:
        """1/sqrt z: the network sees x at variance 1."""
        return 1 / torch.sqrt(self._variance(level))


@register
@dataclass(frozen=True)
class Nu(_Unscaled):
    """FullDiffusion's F: eps = sigma (sigma^2 x - alpha^2 F); the score alpha^2 F - sigma^2 x is finite at both ends.

        A = alpha (1 + sigma^2),  B = alpha sigma^2,  C = sigma^3,  D = -sigma alpha^2      (alpha^2 + sigma^2 = 1)

    F itself is bounded for a smooth density, at alpha = 0 for centred data only; W is bounded for any mean. Nothing
    that the network says is heard at both ends. Train it with VariationalBound. Reference: FullDiffusion, Eq. 15, 17
    and 21.
    """

    def coefficients(self, level: Level) -> Coefficients:
        """A, B, C, D, each shaped like level.alpha. Raises ArgumentError unless alpha^2 + sigma^2 = 1."""
        alpha, sigma = _check_vp(level, self)
        return Coefficients(alpha * (1 + sigma**2), alpha * sigma**2, sigma**3, -sigma * alpha**2)

    def score_coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        """(-sigma^2, alpha^2), at every time."""
        alpha, sigma = _check_vp(level, self)
        return -(sigma**2), alpha**2


@register
@dataclass(frozen=True)
class W(_Unscaled):
    """F = w with the score alpha w - x: for any smooth density bounded at both ends, with x0 = w at alpha = 0.

        A = alpha,  B = sigma^2,  C = sigma,  D = -sigma alpha      (alpha^2 + sigma^2 = 1)

    w = 0 is the network of standard normal data. Train it with VariationalBound. This project's own; the score at
    t = 0 is that of FullDiffusion's Nu, its mean at t = 1 is not forced to 0.
    """

    def coefficients(self, level: Level) -> Coefficients:
        """A, B, C, D, each shaped like level.alpha. Raises ArgumentError unless alpha^2 + sigma^2 = 1."""
        alpha, sigma = _check_vp(level, self)
        return Coefficients(alpha, sigma**2, sigma, -sigma * alpha)

    def score_coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        """(-1, alpha), at every time."""
        alpha, _ = _check_vp(level, self)
        return -torch.ones_like(alpha), alpha


def _check_vp(level: Level, parameterization: Nu | W) -> Level:
    """The level itself. Raises ArgumentError unless alpha^2 + sigma^2 = 1 within 1e-6, float32's rounding."""
    total = level.alpha**2 + level.sigma**2
    wrong = (total - 1).abs() > 1e-6  # the tolerance that the docstring states
    if bool(wrong.any()):
        raise ArgumentError(
            f"{type(parameterization).__name__} needs alpha^2 + sigma^2 = 1, got {total[wrong].flatten()[0].item():g}; "
            "use a variance-preserving process such as LinearSigmaVP"
        )
    return level
