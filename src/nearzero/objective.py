"""Objectives: what training minimises, one loss for each example."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nearzero.denoiser import Denoiser
from nearzero.level import expand
from nearzero.parameterization import regression_target
from nearzero.times import Times
from nearzero.weighting import Weighting


class Regression(nn.Module):
    """Weighted mean-square error of the network's output F against the nearest truth F*, shape (B,).

        loss = weight(level) mean |F(x_t) - F*|^2,   x_t = alpha x0 + sigma eps,   t = times(u)

    With Epsilon, DiscreteTimes and Simple it is DDPM's simple loss (Ho et al., Eq. 14) and, with Shared, E-TSDM's
    (Algorithm A1). Randomness is an argument: u in (0, 1) float64 (B,), eps shaped like x0.
    """

    def __init__(self, times: Times, weighting: Weighting) -> None:
        super().__init__()
        self.times = times
        self.weighting = weighting

    def forward(self, denoiser: Denoiser, x0: Tensor, u: Tensor, eps: Tensor, **condition: Tensor) -> Tensor:
        """One loss for each example of x0 (B, ...)."""
        t = self.times(u.to(torch.float64), denoiser.process)
        alpha, sigma = denoiser.process(t)
        x = expand(alpha, x0) * x0 + expand(sigma, x0) * eps
        F, level, k = denoiser.output(x, t, **condition)
        a, b = regression_target(level, k)
        error = F - (expand(a, x0) * x0 + expand(b, x0) * eps)
        return expand(self.weighting(level, k), x0).flatten() * error.square().reshape(len(x0), -1).mean(1)
