"""Axis 2, the parameterization: what the network's output means.

Whatever the output F means, reading it is linear in (x, F):

    (1)  x0 = A x + B F,   eps = C x + D F

and since alpha x0 + sigma eps = x for every F, two laws hold at every time:

    (2)  alpha A + sigma C = 1,   alpha B + sigma D = 0

So an estimate of x0 and one of eps are both finite wherever the four numbers are, sigma = 0 included.
"""

from __future__ import annotations

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


def _score(level: Level, k: Coefficients) -> tuple[Tensor, Tensor]:
    if bool((level.sigma == 0).any()):
        raise ArgumentError("the score at sigma = 0 is -eps / 0 here; ask at a time above 0")
    return -k.C / level.sigma, -k.D / level.sigma


@register
@dataclass(frozen=True)
class Epsilon:
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

    def input_scale(self, level: Level) -> Tensor:
        """1: the network sees x itself."""
        return torch.ones_like(level.alpha)

    def score_coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        """(0, -1/sigma). Raises ArgumentError at sigma = 0."""
        return _score(level, self.coefficients(level))


@register
@dataclass(frozen=True)
class Velocity:
    """F is v = (alpha eps - sigma x0) for a VP process; with r2 = alpha^2 + sigma^2 for any other:

        A = alpha/r2,  B = -sigma/r2,  C = sigma/r2,  D = alpha/r2

    Finite at both ends. Reference: Salimans and Ho, Progressive distillation, ICLR 2022, Section 4.
    """

    def coefficients(self, level: Level) -> Coefficients:
        """A, B, C, D, each shaped like level.alpha."""
        alpha, sigma = level
        r2 = alpha**2 + sigma**2
        return Coefficients(alpha / r2, -sigma / r2, sigma / r2, alpha / r2)

    def input_scale(self, level: Level) -> Tensor:
        """1: the network sees x itself."""
        return torch.ones_like(level.alpha)

    def score_coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        """(-1/r2, -alpha/(sigma r2)). Raises ArgumentError at sigma = 0."""
        return _score(level, self.coefficients(level))
