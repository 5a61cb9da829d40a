"""What the axes exchange: noise levels, estimates and the rows of a sampling table.

The state at time t is x_t = alpha x0 + sigma eps, with x0 the data and eps standard normal noise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nearzero.errors import ArgumentError


class Level(NamedTuple):
    """How much signal and noise x_t = alpha x0 + sigma eps holds; both have the shape and dtype of t."""

    alpha: Tensor
    sigma: Tensor

    @property
    def logsnr(self) -> Tensor:
        """2 log(alpha / sigma): +inf at sigma = 0, -inf at alpha = 0."""
        return 2 * (torch.log(self.alpha) - torch.log(self.sigma))


class Coefficients(NamedTuple):
    """What a network's output F means: x0 = A x + B F and eps = C x + D F."""

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor


class Estimate(NamedTuple):
    """A denoiser's answer, both shaped like x; alpha x0 + sigma eps = x. No division by sigma made it."""

    x0: Tensor
    eps: Tensor


class Row(NamedTuple):
    """One network evaluation of a solver, as Python floats: everything that depends on the time alone.

    `clock` is u(t), `alpha_slope` and `sigma_slope` are the derivatives in u; `f` and `g2` are drift and squared
    diffusion of dx = f x dt + g dw; `condition` is the number that the network is told, `cell` counts the times below
    that of the step's beginning at which the condition jumps.
    """

    t: float
    alpha: float
    sigma: float
    A: float
    B: float
    C: float
    D: float
    input_scale: float
    condition: float
    clock: float
    alpha_slope: float
    sigma_slope: float
    f: float
    g2: float
    cell: int = 0


def logsnr_of_angle(angle: Tensor) -> Tensor:
    """2 log(alpha / sigma) where atan2(sigma, alpha) is this angle in radians: +inf at 0."""
    return 2 * (torch.cos(angle).log() - torch.sin(angle).log())


def expand(value: Tensor, x: Tensor) -> Tensor:
    """A number for each example, shape () or (B,), so that it multiplies x (B, ...): x's dtype and device."""
    value = value.to(device=x.device, dtype=x.dtype)
    return value if value.ndim == 0 else value.reshape(-1, *(1,) * (x.ndim - 1))


def check_times(t: Tensor, end: float) -> Tensor:
    """`t` itself if it is a float tensor of numbers in [0, end]; ArgumentError otherwise."""
    if not torch.is_tensor(t) or not t.is_floating_point():
        kind = t.dtype if torch.is_tensor(t) else type(t).__name__
        raise ArgumentError(f"a time must be a float tensor, got {kind}; node k of N is torch.tensor((k + 1) / N)")
    inside = (t >= 0) & (t <= end)  # false for NaN
    if not bool(inside.all()):
        bad = t[~inside].flatten()[0].item()
        raise ArgumentError(f"time {bad} is outside [0, {end:g}]; 0 is data, {end:g} is where sampling starts")
    return t


def timesteps(process: Any) -> int:
    """How many nodes a discrete process has; ArgumentError for a continuous one."""
    steps = getattr(process, "steps", None)
    if steps is None:
        raise ArgumentError(
            f"{type(process).__name__} has no timesteps; use DiscreteVP, or UniformTimes and UniformGrid"
        )
    return steps
