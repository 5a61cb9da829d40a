"""An ODE solver that chooses its own steps, for each sample alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nearzero.errors import ArgumentError, NumericalError
from nearzero.level import Row, expand
from nearzero.registry import register
from nearzero.solvers import Evaluate, Noiseless, NoStages
from nearzero.solvers.ode import bounded, slope, span

# Dormand and Prince 1980, Table 2: the stages' places, their slopes, and the difference of the two results.
PLACES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
SLOPES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
DIFFERENCE = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@register
@dataclass(frozen=True)
class RK45(NoStages, Noiseless):
    """Dormand and Prince's pair of orders 5 and 4: as many steps between two nodes of the grid as the tolerances ask.

    Each sample has its own clock reading and its own steps: it never depends on the others, which wait for it. A step
    is kept where the rms over the sample's elements of

        error / (atol + rtol max(|x|, |x_new|))

    is at most 1; the next is 0.9 error^(-1/5) times as long, but no less than 1/5 and no more than 10 times, or not
    longer at all where one was refused just before. The first is the whole interval. All steps of an interval keep the
    cell of its later time, so the edges of a shared condition belong on the grid. The last interval is integrated to
    exactly 0 where the slope exists there; elsewhere (LogSigma, Denoised) it is one step of Euler's, so the grid's last
    positive time should be small.

    Raises ArgumentError unless the tolerances are positive, and NumericalError, with the interval, where the slope
    is not a number or no step is short enough.
    Reference: Dormand and Prince, A family of embedded Runge-Kutta formulae, J. Comput. Appl. Math. 6, 1980.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    clock: Any = None

    def __post_init__(self) -> None:
        if not (0 < self.rtol < math.inf and 0 < self.atol < math.inf):
            raise ArgumentError(f"RK45 needs positive tolerances, got rtol {self.rtol} and atol {self.atol}")

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike."""
        if math.isnan(row_s.condition) or not bounded(row_s):
            return slope(evaluate, x, row_t).mul_(span(row_t, row_s)).add_(x)
        later = max(row_t, row_s, key=lambda row: row.t)
        u = torch.full((len(x),), row_t.clock, dtype=torch.float64)
        end = torch.full_like(u, row_s.clock)
        h, first, longest = end - u, evaluate.slope(x, u, later), torch.full_like(u, 10.0)
        while not torch.equal(u, end):
            there = torch.where((u + h - end) * span(row_t, row_s) >= 0, end, u + h)
            _refuse((there == u) & (u != end), "no step is short enough", u, row_t, row_s)
            x_new, last, error = self._try(evaluate, x, first, u, there, later)
            _refuse(error.isnan(), "the slope is not a number", u, row_t, row_s)
            kept = error <= 1
            x = torch.where(_each(kept, x), x_new, x)
            first = torch.where(_each(kept, x), last, first)
            longer = torch.maximum(0.9 * error ** (-1 / 5), torch.full_like(error, 0.2))
            h = (there - u) * torch.minimum(longer, longest)
            longest = torch.where(kept, 10.0, torch.ones_like(error))
            u = torch.where(kept, there, u)
        return x

    def _try(
        self, evaluate: Evaluate, x: Tensor, first: Tensor, u: Tensor, there: Tensor, later: Row
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x at the readings `there` (B,), the slope in it, and the error in units of the tolerance, float64 (B,)."""
        h = expand(there - u, x)
        slopes, x_new = [first], x
        for place, weights in zip(PLACES, SLOPES, strict=True):
            x_new = x + h * _sum(weights, slopes)
            slopes.append(evaluate.slope(x_new, torch.lerp(u, there, place), later))
        scale = self.atol + self.rtol * torch.maximum(x.abs(), x_new.abs())
        error = (h * _sum(DIFFERENCE, slopes) / scale).reshape(len(x), -1)
        norm = getattr(evaluate, "error_norm", _rms)(error)
        return x_new, slopes[-1], norm.to("cpu").to(torch.float64)


def _rms(error: Tensor) -> Tensor:
    return torch.linalg.vector_norm(error, dim=1) / math.sqrt(error.shape[1])


def _sum(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    total = slopes[0] * weights[0]
    for weight, value in zip(weights[1:], slopes[1:], strict=True):
        total.add_(value, alpha=weight)
    return total


def _each(kept: Tensor, x: Tensor) -> Tensor:
    """A flag for each sample, (B,), so that it selects among x (B, ...)."""
    return kept.to(x.device).reshape(-1, *(1,) * (x.ndim - 1))


def _refuse(bad: Tensor, why: str, u: Tensor, row_t: Row, row_s: Row) -> None:
    """Raises NumericalError where a sample cannot go on from its clock reading u, (B,)."""
    if bool(bad.any()):
        raise NumericalError(
            f"RK45 stops between t = {row_t.t:g} and {row_s.t:g}, after clock reading {u[bad][0].item():g}: {why}; "
            "check the network's weights at that time, or take larger tolerances"
        )
