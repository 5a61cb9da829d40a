"""The same network seen through another process: EDM's point that process and network are independent.

At equal sigma / alpha two processes hold the same x_t up to a factor, x = r x' with r = |(alpha, sigma)| over
|(alpha', sigma')|. What a network says of x is read from x' with A' = r A, B' = B, C' = r C, D' = D and input scale r.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nearzero.conditioning import Conditioning
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError
from nearzero.level import Coefficients, Level
from nearzero.parameterization import Parameterization
from nearzero.process import Process
from nearzero.registry import register


class Rescaled(Denoiser):
    """A denoiser whose network was trained under one process, for sampling under another.

    `nearest` tells the network the nearest node that a discrete process trained at (EDM's sigma rounding). Raises
    ArgumentError where the new process has more noise than the network has seen, within a relative 1e-9.

    >>> trained = Denoiser(Zero(), LinearVP(), Epsilon(), Time())
    >>> Rescaled(trained, KarrasVE())(torch.ones(2, 3), 0.5).x0[0]       # eps = 0: x0 is x
    tensor([1., 1., 1.])
    """

    def __init__(self, denoiser: Denoiser, process: Process, *, nearest: bool = False) -> None:
        seen, asked = (_end(one) for one in (denoiser.process, process))
        if asked < seen - 1e-9 * seen.abs():  # the rounding that the docstring states
            raise ArgumentError(
                f"{type(process).__name__} ends at sigma/alpha {torch.exp(-asked / 2).item():g}, beyond the "
                f"{torch.exp(-seen / 2).item():g} that the network was trained for; take a shorter process"
            )
        if nearest and not hasattr(denoiser.process, "steps"):
            raise ArgumentError(f"nearest: {type(denoiser.process).__name__} has no nodes to round to")
        old = _Old(denoiser.process, denoiser.conditioning, nearest)
        super().__init__(
            denoiser.network,
            process,
            _Through(denoiser.parameterization, old),
            _Told(denoiser.conditioning, old),
        )


@register
@dataclass(frozen=True)
class Through:
    """Samples see another process than training did: `Rescaled` as part of a recipe."""

    process: Process
    nearest: bool = False

    def __call__(self, denoiser: Denoiser) -> Rescaled:
        """The denoiser through this process. Raises ArgumentError where it cannot be."""
        return Rescaled(denoiser, self.process, nearest=self.nearest)


def _end(process: Process) -> Tensor:
    return process(torch.tensor(process.end, dtype=torch.float64)).logsnr


@dataclass(frozen=True)
class _Old:
    """The process that the network knows."""

    process: Process
    conditioning: Conditioning
    nearest: bool

    def time(self, level: Level) -> Tensor:
        """Its time at the sigma / alpha of another process's level."""
        return self.process.time_of_logsnr(level.logsnr.to(torch.float64))

    def told_time(self, level: Level) -> Tensor:
        """The time that the network is told: nodes and edges exactly, where a round trip leaves a relative 1e-9."""
        t = self.time(level)
        steps = getattr(self.process, "steps", None)
        if steps is not None:
            node = (t * steps / self.process.end).round() / steps * self.process.end
            first = torch.full_like(node, self.process.end / steps)
            node = torch.maximum(node, first) if self.nearest else node
            t = torch.where((t > 0) & (self.nearest | _near(t, node)), node, t)
        for edge in self.conditioning.edges(self.process):
            exact = torch.full_like(t, edge)
            t = torch.where(_near(t, exact), exact, t)
        return t

    def level(self, level: Level) -> Level:
        """Its level there."""
        return self.process(self.time(level))


def _near(t: Tensor, other: Tensor) -> Tensor:
    return (t - other).abs() < 1e-9 * other  # the relative 1e-9 that the docstring states


@dataclass(frozen=True)
class _Through:
    """A parameterization read from x' instead of x = r x'."""

    inner: Parameterization
    old: _Old

    def _ratio(self, level: Level) -> tuple[Level, Tensor]:
        old = self.old.level(level)
        return old, torch.hypot(*old) / torch.hypot(*level)

    def coefficients(self, level: Level) -> Coefficients:
        """r A, B, r C, D."""
        old, r = self._ratio(level)
        A, B, C, D = self.inner.coefficients(old)
        return Coefficients(r * A, B, r * C, D)

    def input_scale(self, level: Level) -> Tensor:
        """r times the network's own."""
        old, r = self._ratio(level)
        return r * self.inner.input_scale(old)

    def score_coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        """grad' log p'(x') = r grad log p(x)."""
        old, r = self._ratio(level)
        c_x, c_F = self.inner.score_coefficients(old)
        return r * r * c_x, r * c_F


@dataclass(frozen=True)
class _Told:
    """What the network was told at the same sigma / alpha in training."""

    inner: Conditioning
    old: _Old

    def __call__(self, t: Tensor, level: Level) -> Tensor:
        """The inner conditioning at the old time."""
        old = self.old.told_time(level)
        return self.inner(old, self.old.process(old)).to(t.dtype)

    def stage(self, t: Tensor, level: Level, leaving: Tensor, leaving_level: Level | None = None) -> Tensor:
        """A step keeps the cell of the old time that it leaves."""
        old, left = self.old.told_time(level), self.old.told_time(leaving_level or level)
        return self.inner.stage(old, self.old.process(old), left, self.old.process(left)).to(t.dtype)

    def edges(self, process: Process) -> tuple[float, ...]:
        """The inner jumps, as times of the new process."""
        old = torch.tensor(self.inner.edges(self.old.process), dtype=torch.float64)
        return tuple(process.time_of_logsnr(self.old.process(old).logsnr).tolist())
