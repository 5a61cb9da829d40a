"""Guidance: samples pushed away from what another, weaker or unconditional, denoiser says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nearzero.conditioning import Shared
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError


class Guided(Denoiser):
    """A denoiser whose network's answer is extrapolated from another's, F = F_other + scale (F - F_other).

    Both denoisers have one process, parameterization and conditioning, so x0, eps and the score are mixed alike, and
    alpha x0 + sigma eps = x holds: the weights sum to 1. Scale 1 is `denoiser` and 0 is `other`, each exactly and
    asked alone. `other` may be a weaker denoiser (autoguidance), an unconditional one, or `denoiser` itself. It is told
    the same condition, or `null` in its place: each value one example's, a number or a tensor, for all of them;
    `null={}` tells it none.

        Guided(denoiser, denoiser, 2.0, null={"label": 10})        # class 10 stands for no class
        Guided(denoiser, weaker, 2.0)                              # autoguidance

    With `interval` = (low, high) noise levels low < sigma / alpha <= high (to a relative 1e-5) are guided, and
    elsewhere `denoiser` alone is asked. The level is that of the number which the network is told, so the times of a
    shared cell are guided together, and `Rescaled` may be put around it. Raises ArgumentError where the denoisers
    differ in an axis, the scale is not finite, or the interval is none or its conditioning tells no noise level.
    Reference: Ho and Salimans, Classifier-free diffusion guidance, 2022; Karras et al., Guiding a diffusion model with
    a bad version of itself, NeurIPS 2024; Kynkaanniemi et al., Applying guidance in a limited interval, NeurIPS 2024.

    >>> one = Denoiser(Zero(), LinearVP(), Epsilon(), Time())
    >>> Guided(one, one, 3.0)(torch.ones(1, 2), 0.5).eps
    tensor([[0., 0.]])
    """

    def __init__(
        self,
        denoiser: Denoiser,
        other: Denoiser,
        scale: float,
        interval: tuple[float, float] | None = None,
        *,
        null: Mapping[str, Any] | None = None,
    ) -> None:
        for name in ("process", "parameterization", "conditioning"):
            ours, theirs = getattr(denoiser, name), getattr(other, name)
            if ours != theirs:
                raise ArgumentError(
                    f"guidance mixes what two networks answer to one question, but the {name} is {ours} for one and "
                    f"{theirs} for the other; take two runs of one recipe"
                )
        if not math.isfinite(scale):
            raise ArgumentError(f"guidance needs a finite scale, got {scale}; 1 is none")
        mixture = _Mixture(denoiser, other, scale, interval, null)
        super().__init__(mixture, denoiser.process, denoiser.parameterization, denoiser.conditioning)


class _Mixture(nn.Module):
    """Both networks as one."""

    def __init__(
        self,
        denoiser: Denoiser,
        other: Denoiser,
        scale: float,
        interval: tuple[float, float] | None,
        null: Mapping[str, Any] | None,
    ) -> None:
        super().__init__()
        self.denoiser, self.other = denoiser, other
        self.scale, self.null = scale, null
        self.inside = None if interval is None else _Inside(denoiser, *interval)

    def forward(self, x_in: Tensor, c: Tensor, **condition: Tensor) -> Tensor:
        """F for a scaled input (B, ...) and conditions c (B,)."""
        guided = [True] if self.inside is None else self.inside(c)
        if self.scale == 1 or not any(guided):
            return self.denoiser.ask(x_in, c, **condition)
        if all(guided):
            other = self._other(x_in, c, condition)
            return other if self.scale == 0 else torch.lerp(other, self.denoiser.ask(x_in, c, **condition), self.scale)
        F = self.denoiser.ask(x_in, c, **condition).clone()
        rows = torch.tensor(guided, device=x_in.device)
        some = {name: value[rows] for name, value in condition.items()}
        F[rows] = torch.lerp(self._other(x_in[rows], c[rows], some), F[rows], self.scale)
        return F

    def _other(self, x_in: Tensor, c: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        if self.null is None:
            return self.other.ask(x_in, c, **condition)
        values = {name: torch.as_tensor(value, device=x_in.device) for name, value in self.null.items()}
        alike = {name: value.expand(len(x_in), *value.shape) for name, value in values.items()}
        return self.other.ask(x_in, c, **alike)


class _Inside:
    """Which told numbers stand for noise levels inside an interval."""

    def __init__(self, denoiser: Denoiser, low: float, high: float) -> None:
        if not 0 <= low < high:
            raise ArgumentError(f"a guidance interval needs noise levels 0 <= low < high, got {low} and {high}")
        conditioning = denoiser.conditioning
        shared = isinstance(conditioning, Shared)  # whose cells are told numbers of the inner one
        self.told: Any = conditioning.inner if shared else conditioning
        if not (hasattr(self.told, "time_told") or hasattr(self.told, "time_of")):
            raise ArgumentError(
                f"{type(conditioning).__name__} does not tell a noise level; guide without an interval, or guide first "
                "and rescale then"
            )
        self.process, self.low, self.high = denoiser.process, low, high

    def __call__(self, c: Tensor) -> list[bool]:
        """For each of the numbers c (B,)."""
        told = c.tolist()
        inside = {one: self._one(one) for one in set(told)}
        return [inside[one] for one in told]

    def _one(self, told: float) -> bool:
        if hasattr(self.told, "time_told"):
            t = self.told.time_told(told, self.process)
        else:
            t = self.told.time_of(torch.tensor([told], dtype=torch.float64))
        alpha, sigma = self.process(torch.minimum(t, torch.full_like(t, self.process.end)))  # told in float32
        ratio, near = sigma / alpha, 1 + 1e-5  # the rounding that the docstring states
        return bool((ratio > self.low * near) & (ratio <= self.high * near))
