"""The truncation ledger: what each time that is left out costs, in nats, on data whose every marginal is known.

The data are one-dimensional mixtures of Gaussians, so q_t is one too, and each cost is a Kullback-Leibler divergence:

    (1)  KL(q_t || N(0, sigma_t^2))      samples start at t from noise, although x_t still holds signal
    (2)  KL(q_0 || q_t)                  x_t is taken for data, because training never looked below t
    (3)  KL(q_0 || law of E[x0 | x_t])   the last step jumps from t to 0, onto the best estimate of the data

In one dimension m(x) = E[x0 | x_t = x] increases strictly, m' = alpha Var[x0 | x] / sigma^2, and the law of (3) has the
density q_t(x) / m'(x) at m(x). Of D independent coordinates such as these the costs are D times as large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearzero.grid import Grid
from nearzero.level import Level
from nearzero.oracle import GaussianMixture
from nearzero.process import Process


def line(spreads: Sequence[float]) -> GaussianMixture:
    """Three Gaussians on the line, at -0.9, 0.2 and 1.1 with weights 0.3, 0.45 and 0.25, of these spreads."""
    weights, means, stds = torch.tensor(((0.3, 0.45, 0.25), (-0.9, 0.2, 1.1), tuple(spreads)), dtype=torch.float64)
    return GaussianMixture(weights, means[:, None], stds.square()[:, None, None])


SMOOTH = line((0.3, 0.35, 0.4))
SHARP = line((0.0105, 0.0105, 0.0105))


@dataclass(frozen=True)
class Truncation:
    """A time at which training or sampling stops short, in words, and its cost in nats on SMOOTH and on SHARP."""

    what: str
    t: float
    nats_smooth: float
    nats_sharp: float

    def __str__(self) -> str:
        if self.nats_smooth == self.nats_sharp == 0:
            return f"{self.what}: costs nothing"
        return f"{self.what}: costs {self.nats_smooth:.2g} nats on smooth data, {self.nats_sharp:.2g} on sharp"


def start(process: Process, grid: Grid, steps: int) -> Truncation:
    """(1) at the grid's first time."""
    t = grid(steps, process)[0].item()
    what = f"t = {t:.6g} instead of {process.end:g}" if below_end(t, process) else f"t = {t:g}, from noise alone"
    return _entry(f"sampling starts at {what}", t, process, prior_mismatch)


def below_end(t: float, process: Process) -> bool:
    """Whether t lies below the process's end by more than a millionth of it."""
    return t < (1 - 1e-6) * process.end


def unseen(process: Process, times: Any) -> list[Truncation]:
    """(2) at the time below which training never looks, and (1) at the one above which it never looks, if there are.

    A time is one that training never passes where it is approached within a hundredth part in 13 binades of u: times
    stop there instead of becoming rare.
    """
    while hasattr(times, "inner"):  # how a batch is spread over u leaves nothing out
        times = times.inner
    u = torch.tensor([2.0**-53, 2.0**-40, 1 - 2.0**-40, 1 - 2.0**-53], dtype=torch.float64)
    low, soon, late, high = (times(one[None], process).item() for one in u)
    found = []
    if soon < 1.01 * low:
        what = f"training never sees t below {low:.3g} (sigma / alpha {_ratio(process, low):.3g})"
        found.append(_entry(what, low, process, early_stop))
    if late > 0.99 * high and high < 0.999 * process.end:
        what = f"training never sees t above {high:.6g} of {process.end:g}"
        found.append(_entry(what, high, process, prior_mismatch))
    return found


def last_evaluation(process: Process, grid: Grid, steps: int) -> Truncation:
    """(3) at the grid's last positive time."""
    t = grid(steps, process)[-2].item()
    where = f"t = {t:.3g} (sigma / alpha {_ratio(process, t):.3g})"
    return _entry(f"the last evaluation of {steps} steps is at {where}", t, process, last_jump)


def _entry(what: str, t: float, process: Process, cost: Any) -> Truncation:
    level = process(torch.tensor(t, dtype=torch.float64))
    return Truncation(what, t, cost(SMOOTH, level), cost(SHARP, level))


def _ratio(process: Process, t: float) -> float:
    return math.exp(-process(torch.tensor(t, dtype=torch.float64)).logsnr.item() / 2)


def prior_mismatch(data: GaussianMixture, level: Level) -> float:
    """(1) KL(q_t || N(0, sigma^2)) in nats; exactly 0 where alpha = 0, where x_t holds no signal. `data` is 1-D."""
    alpha, sigma = level
    if alpha == 0:
        return 0.0
    centres, stds = _components(data)
    x, weights = _quadrature([(alpha * centres, torch.hypot(alpha * stds, sigma)), (0 * sigma[None], sigma[None])])
    noise = -((x / sigma) ** 2) / 2 - sigma.log() - math.log(math.tau) / 2
    return _divergence(data.log_prob(x[:, None], level), noise, weights)


def early_stop(data: GaussianMixture, level: Level) -> float:
    """(2) KL(q_0 || q_t) in nats; exactly 0 at alpha = 1, sigma = 0. `data` is 1-D."""
    alpha, sigma = level
    centres, stds = _components(data)
    x, weights = _quadrature([(centres, stds), (alpha * centres, torch.hypot(alpha * stds, sigma))])
    return _divergence(data.log_prob(x[:, None]), data.log_prob(x[:, None], level), weights)


def last_jump(data: GaussianMixture, level: Level) -> float:
    """(3) KL(q_0 || law of E[x0 | x_t]) in nats; infinite at alpha = 0, where that law is one point. `data` is 1-D.

    The density of the law is finite and positive at every y: the x with m(x) = y is found by bisection between those at
    which the first and the last of the components' own lines reach y. At sigma = 0 the cost is exactly 0.
    """
    alpha, sigma = level
    if sigma == 0:
        return 0.0
    if alpha == 0:
        return math.inf
    centres, stds = _components(data)
    y, weights = _quadrature([(centres, stds), (centres, alpha * stds**2 / torch.hypot(alpha * stds, sigma))])
    slope = alpha * stds**2 / ((alpha * stds) ** 2 + sigma**2)  # of m, were there one component
    reach = alpha * centres + (y[:, None] - centres) / slope
    low, high = reach.amin(1), reach.amax(1)
    for _ in range(88):  # a double has 53 bits; the bracket may be 2^35 times as wide as x
        middle = (low + high) / 2
        below = _moments(data, middle, level)[0] < y
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    x = (low + high) / 2
    rise = alpha * _moments(data, x, level)[1] / sigma**2  # m'
    return _divergence(data.log_prob(y[:, None]), data.log_prob(x[:, None], level) - rise.log(), weights)


def _components(data: GaussianMixture) -> tuple[Tensor, Tensor]:
    """Means and standard deviations, float64 (K,)."""
    return data.means.double()[:, 0], data.covariances.double()[:, 0, 0].sqrt()


def _moments(data: GaussianMixture, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """E[x0 | x_t = x] and Var[x0 | x_t = x], (n,): each component's r_k (v_k + (m_k(x) - m(x))^2), no difference."""
    (alpha, sigma), (centres, stds) = level, _components(data)
    total = (alpha * stds) ** 2 + sigma**2
    away = x[:, None] - alpha * centres
    share = (data.weights.double().log() - away**2 / total / 2 - total.log() / 2).softmax(1)
    means = centres + alpha * stds**2 / total * away
    mean = (share * means).sum(1)
    return mean, (share * (stds**2 * sigma**2 / total + (means - mean[:, None]) ** 2)).sum(1)


def _quadrature(spots: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Nodes and weights, (n,): 16 Gauss-Legendre points in each panel, one deviation wide near each centre.

    Panels double in width from 10 deviations on, and end 12 deviations beyond the outermost centre.
    """
    centres, stds = (torch.cat(column) for column in zip(*spots, strict=True))
    low, high = (centres - 12 * stds).min(), (centres + 12 * stds).max()
    steps = torch.cat([torch.arange(0, 10), 10 * 2.0 ** torch.arange(0, 40)]).double()
    edges = centres[:, None] + stds[:, None] * torch.cat([-steps.flip(0), steps])
    edges = torch.cat([low[None], edges[(edges > low) & (edges < high)], high[None]]).unique()
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(16))
    half = edges.diff()[:, None] / 2
    return (edges[:-1, None] + half * (1 + nodes)).flatten(), (half * weights).flatten()


def _divergence(log_p: Tensor, log_q: Tensor, weights: Tensor) -> float:
    """KL(p || q) from log densities at nodes.

    Below a millionth the rounding of each log is felt: there p (q / p - 1 - log(q / p)) is summed, which has the same
    integral and no negative term.
    """
    p, log_ratio = weights * log_p.exp(), log_q - log_p
    found = -(p * log_ratio).sum().item()
    return found if found > 1e-6 else (p * (torch.expm1(log_ratio) - log_ratio)).sum().item()
