"""Conditionings that tell how much noise there is, whatever the time is called."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nearzero.conditioning.base import Smooth
from nearzero.errors import ArgumentError
from nearzero.level import Level
from nearzero.registry import register


class _Noise(Smooth):
    """Tells a function of sigma / alpha. Unit of `interval` under Shared: sigma / alpha, not divided by the process.

    The first cell, which begins where the number told would be infinite, is told its upper edge, and so the same as the
    second.
    """

    def position(self, t: Tensor, level: Level) -> Tensor:
        """Edges are compared with sigma / alpha."""
        return level.sigma / level.alpha

    def boundary(self, value: float) -> float:
        """The unit is sigma / alpha."""
        return value

    def time(self, value: float, process: Any) -> float:
        """The time at which sigma / alpha has this value; inf where the process never has."""
        last = process(torch.tensor(process.end, dtype=torch.float64))
        if value > (last.sigma / last.alpha).item():
            return math.inf
        return process.time_of_logsnr(torch.tensor(-2 * math.log(value), dtype=torch.float64)).item()

    def check_cells(self, interval: float, cells: int) -> None:
        """Any interval in sigma / alpha: the denoiser compares it with the end of its process."""


@register
@dataclass(frozen=True)
class LogSigma(_Noise):
    """The network is told scale * log(sigma / alpha): EDM's c_noise, with scale 1/4.

    In it the best network stays Lipschitz both for smooth data and for finitely many points.
    Infinite at sigma = 0 (ArgumentError there). Reference: Karras et al., NeurIPS 2022, Table 1.
    """

    scale: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ArgumentError(f"LogSigma needs a positive scale, got {self.scale}")

    def __call__(self, t: Tensor, level: Level) -> Tensor:
        """scale * log(sigma / alpha)."""
        return (-self.scale / 2 * _finite(level, self)).to(t.dtype)

    def told(self, lower: float, upper: float) -> float:
        """A cell is told its lower edge, the first its upper."""
        return self.scale * math.log(lower or upper)

    def time_told(self, told: float, process: Any) -> Tensor:
        """The time at which scale * log(sigma / alpha) is `told`."""
        return process.time_of_logsnr(torch.tensor([-2 * told / self.scale], dtype=torch.float64))


@register
@dataclass(frozen=True)
class LogSNR(_Noise):
    """The network is told the log-SNR, 2 log(alpha / sigma). Infinite at both ends where they are (ArgumentError).

    Reference: Kingma et al., Variational diffusion models, NeurIPS 2021.
    """

    def __call__(self, t: Tensor, level: Level) -> Tensor:
        """2 log(alpha / sigma)."""
        return _finite(level, self).to(t.dtype)

    def told(self, lower: float, upper: float) -> float:
        """A cell is told its lower edge, the first its upper."""
        return -2 * math.log(lower or upper)

    def time_told(self, told: float, process: Any) -> Tensor:
        """The time at which the log-SNR is `told`."""
        return process.time_of_logsnr(torch.tensor([told], dtype=torch.float64))


def _finite(level: Level, conditioning: LogSigma | LogSNR) -> Tensor:
    """The log-SNR. Raises ArgumentError where it is infinite."""
    logsnr, name = level.logsnr, type(conditioning).__name__
    if bool((level.sigma == 0).any()):
        raise ArgumentError(f"{name} at sigma = 0 is infinite; end the grid's last evaluation above 0, or share it")
    if bool((level.alpha == 0).any()):
        raise ArgumentError(f"{name} at alpha = 0 is infinite; use a process that keeps some signal, or nearzero.Time")
    return logsnr
