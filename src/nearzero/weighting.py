"""Axis 5, the weighting: how much the network's error counts at each noise level.

An error dF of the output is an error B dF of x0 and D dF of eps, so a paper's weight on either is that weight times B^2
or D^2 here, and SNR B^2 = D^2 spares the division: every weight below is finite at both ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nearzero.errors import ArgumentError
from nearzero.level import Coefficients, Level
from nearzero.registry import register


class Weighting(Protocol):
    """A factor for the squared error of the network's output F."""

    def __call__(self, level: Level, coefficients: Coefficients) -> Tensor:
        """One weight for each example, shaped like level.alpha."""
        ...


@register
@dataclass(frozen=True)
class Simple:
    """Weight 1 on the error of F: DDPM's simple loss for Epsilon, EDM's lambda c_out^2 = 1 for Karras."""

    def __call__(self, level: Level, coefficients: Coefficients) -> Tensor:
        """Ones."""
        return torch.ones_like(level.alpha)


@register
@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) on the error of x0: min(D^2, gamma B^2), whatever the network predicts.

    Reference: Hang et al., Efficient diffusion training via Min-SNR weighting, ICCV 2023.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ArgumentError(f"MinSNR needs a positive gamma, got {self.gamma}")

    def __call__(self, level: Level, coefficients: Coefficients) -> Tensor:
        """min(D^2, gamma B^2)."""
        return torch.minimum(coefficients.D**2, self.gamma * coefficients.B**2)


@register
@dataclass(frozen=True)
class P2:
    """1 / (k + SNR)^gamma on the error of eps: D^2 (sigma^2 / (k sigma^2 + alpha^2))^gamma.

    Reference: Choi et al., Perception prioritized training of diffusion models, CVPR 2022.
    """

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.k < math.inf and 0 <= self.gamma < math.inf):
            raise ArgumentError(f"P2 needs k > 0 and gamma >= 0, got {self.k} and {self.gamma}")

    def __call__(self, level: Level, coefficients: Coefficients) -> Tensor:
        """D^2 (k + SNR)^-gamma."""
        alpha, sigma = level
        return coefficients.D**2 * (sigma**2 / (self.k * sigma**2 + alpha**2)) ** self.gamma


@register
@dataclass(frozen=True)
class LikelihoodWeight:
    """1 on the error of eps: D^2. With ImportanceTimes, whose density is g^2 / sigma^2, this is the likelihood bound.

        -ELBO = const + 1/2 E |eps - eps^|^2 over uniform log-SNR, times the range of the log-SNR

    and g^2 = 2 sigma^2 d log(sigma / alpha) / dt turns uniform times with weight g^2 into uniform log-SNR without it.
    Reference: Song et al., Maximum likelihood training of score-based diffusion models, NeurIPS 2021.
    """

    def __call__(self, level: Level, coefficients: Coefficients) -> Tensor:
        """D^2."""
        return coefficients.D**2


@register
@dataclass(frozen=True)
class Above:
    """The weight of `inner` where sigma / alpha lies above `ratio`, and 0 elsewhere: there the network is not trained.

    Which images, times and noise training draws stays the same, so that two trainings, one of them without the lower
    noise levels, differ in that alone. Raises ArgumentError unless the ratio is positive and finite.

    >>> Above(Simple(), 0.5)(Level(torch.tensor([0.6, 1.0, 0.0]), torch.tensor([0.8, 0.5, 1.0])), None)
    tensor([1., 0., 1.])
    """

    inner: Weighting
    ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.ratio < math.inf:
            raise ArgumentError(f"Above needs a positive ratio of sigma to alpha, got {self.ratio}")

    def __call__(self, level: Level, coefficients: Coefficients) -> Tensor:
        """inner's weight or 0; no division, so that alpha may be 0."""
        weight = self.inner(level, coefficients)
        return torch.where(level.sigma > self.ratio * level.alpha, weight, torch.zeros_like(weight))
