"""Processes that are not variance-preserving: sub-VP, straight lines, exploding variance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nearzero.errors import ArgumentError
from nearzero.level import Level
from nearzero.process.base import NoiseLevel, Plain
from nearzero.process.vp import LinearVP, check_betas
from nearzero.registry import register


@register
@dataclass(frozen=True)
class SubVP(Plain):
    """The sub-VP process: alpha of LinearVP, sigma = 1 - alpha^2, so that alpha^2 + sigma = 1.

        f = -beta / 2,  g^2 = beta sigma (2 - sigma),  beta = beta_min + t (beta_max - beta_min)

    sigma ~ beta_min t near t = 0. Reference: Song et al., Score-based generative modeling through SDEs, ICLR 2021,
    Eq. 12.

    >>> SubVP()(torch.tensor([0.0, 1.0])).sigma
    tensor([0.0000, 1.0000])
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        check_betas(self)

    @property
    def _vp(self) -> LinearVP:
        return LinearVP(self.beta_min, self.beta_max)

    def level(self, t: Tensor) -> Level:
        """alpha and sigma at float64 times."""
        log_alpha = self._vp.log_alpha(t)
        return Level(torch.exp(log_alpha), 0 - torch.expm1(2 * log_alpha))

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha f, -2 alpha^2 f)."""
        alpha, f = self.level(t).alpha, self.f(t)
        return alpha * f, -2 * alpha**2 * f

    def f(self, t: Tensor) -> Tensor:
        """-beta(t) / 2."""
        return self._vp.f(t)

    def g2(self, t: Tensor) -> Tensor:
        """beta sigma (2 - sigma)."""
        sigma = self.level(t).sigma
        return -2 * self.f(t) * sigma * (2 - sigma)

    def time_of_log_ratio(self, q: Tensor) -> Tensor:
        """alpha^2 + exp(q) alpha = 1, so log alpha = -asinh(exp(q) / 2)."""
        return self._vp.time_of_log_alpha(-torch.asinh(torch.exp(q) / 2))


@register
@dataclass(frozen=True)
class StraightPath(Plain):
    """Straight lines from data to noise: alpha = 1 - t, sigma = t (flow matching's path).

        f = -1 / (1 - t),  g^2 = 2 t / (1 - t)

    Reference: Lipman et al., Flow matching, ICLR 2023; Liu et al., Rectified flow, ICLR 2023.

    >>> StraightPath()(torch.tensor([0.25])).alpha
    tensor([0.7500])
    """

    def level(self, t: Tensor) -> Level:
        """alpha and sigma at float64 times."""
        return Level(1 - t, t)

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(-1, 1)."""
        return -torch.ones_like(t), torch.ones_like(t)

    def f(self, t: Tensor) -> Tensor:
        """-1 / (1 - t); -inf at t = 1."""
        return -1 / (1 - t)

    def g2(self, t: Tensor) -> Tensor:
        """2 t / (1 - t); inf at t = 1."""
        return 2 * t / (1 - t)

    def time_of_log_ratio(self, q: Tensor) -> Tensor:
        """t / (1 - t) = exp(q)."""
        return torch.sigmoid(q)


def _check_end(process: SongVE | KarrasVE) -> None:
    if not 0 < process.end < math.inf:
        raise ArgumentError(f"{type(process).__name__} needs a positive end, got {process.end}")


@register
@dataclass(frozen=True)
class SongVE(Plain):
    """The variance-exploding process sigma = sqrt(t), alpha = 1: f = 0, g^2 = 1; time is the variance.

    Its slope is infinite at t = 0. Reference: Song et al., Score-based generative modeling through SDEs, ICLR 2021, in
    the form of EDM's Table 1 (Karras et al., NeurIPS 2022); `end` is sigma_max^2.

    >>> SongVE()(torch.tensor([4.0])).sigma
    tensor([2.])
    """

    end: float = 10000.0

    def __post_init__(self) -> None:
        _check_end(self)

    def level(self, t: Tensor) -> Level:
        """alpha and sigma at float64 times."""
        return Level(torch.ones_like(t), torch.sqrt(t))

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(0, 1 / (2 sqrt t)); inf at t = 0."""
        return torch.zeros_like(t), 0.5 / torch.sqrt(t)

    def f(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def g2(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def time_of_log_ratio(self, q: Tensor) -> Tensor:
        """sigma^2."""
        return torch.exp(2 * q)

    @property
    def clock(self) -> NoiseLevel:
        """sigma: in t the path has an infinite slope at 0, and a step to 0 would leave half of the noise."""
        return NoiseLevel(self)


@register
@dataclass(frozen=True)
class KarrasVE(Plain):
    """EDM's process: sigma = t, alpha = 1, so f = 0 and g^2 = 2 t; time is the noise level.

    Reference: Karras et al., Elucidating the design space of diffusion-based generative models, NeurIPS 2022.

    >>> KarrasVE()(torch.tensor([0.5])).sigma
    tensor([0.5000])
    """

    end: float = 80.0

    def __post_init__(self) -> None:
        _check_end(self)

    def level(self, t: Tensor) -> Level:
        """alpha and sigma at float64 times."""
        return Level(torch.ones_like(t), t)

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(0, 1)."""
        return torch.zeros_like(t), torch.ones_like(t)

    def f(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def g2(self, t: Tensor) -> Tensor:
        """2 t."""
        return 2 * t

    def time_of_log_ratio(self, q: Tensor) -> Tensor:
        """sigma."""
        return torch.exp(q)
