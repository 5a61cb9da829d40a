"""The theory of the papers as numbers: the exponent of sigma at t = 0 and the two sides of Theorem 4.1."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nearzero.conditioning import Shared, Time
from nearzero.errors import ArgumentError
from nearzero.level import Level, expand
from nearzero.oracle import Exact, ExactShared, GaussianMixture, PointCloud
from nearzero.parameterization import Epsilon, Parameterization
from nearzero.process import Process


def schedule_exponent(process: Process) -> float:
    """p of sigma / alpha ~ t^p as t goes to 0, from t = 1e-8 and 1e-7 of the range.

    For data of a smooth density eps*(x, t) = -sigma score has the slope p t^(p - 1) in t: singular for p < 1, as in
    DDPM's schedules (1/2), bounded for p >= 1, as in EDM's and FullDiffusion's (1). A discrete process has 1/2 whatever
    its betas: below its first node log alpha is linear in t.

    >>> round(schedule_exponent(LinearVP()), 4), round(schedule_exponent(LinearSigmaVP()), 4)
    (0.5, 1.0)
    """
    t = torch.tensor([1e-8, 1e-7], dtype=torch.float64) * process.end  # the two times that the docstring states
    low, high = (-process(t).logsnr / 2).tolist()
    return (high - low) / torch.log(t[1] / t[0]).item()


class Rates(NamedTuple):
    """How fast the best network's answer changes with the time that it is told, float64 (2,), at distances u."""

    u: Tensor
    value: Tensor

    @property
    def exponent(self) -> float:
        """p of value ~ u^-p; 0 where the change at either distance is lost in rounding."""
        if bool((self.value == 0).any()):
            return 0.0
        low, high = self.value.log().tolist()
        return (low - high) / torch.log(self.u[1] / self.u[0]).item()


def target_rates(
    process: Process,
    parameterization: Parameterization,
    data: GaussianMixture | PointCloud,
    *,
    at_end: bool = False,
    draws: int = 256,
) -> Rates:
    """|d/dt' F*(x_in, t')| at t' = t, root mean square over `draws` noisy x_t, at u = 1e-6 and 1e-5 of the range.

    u is t, or end - t with `at_end`; F* is the best network's answer and x_in its input, held fixed while t' changes,
    so that Karras's c_in x is. Both distances see the same draws. The derivative is a central difference of a relative
    step 1e-3 of u; one below 1e-12 |F*| / u, a few times what rounding leaves in it, counts as 0.
    Raises ArgumentError where the parameterization does not exist in the middle of the process's range.
    """
    network, generator = Exact(data, process, parameterization), torch.Generator().manual_seed(0)
    x0 = data.sample(draws, generator).to(torch.float64)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    u = torch.tensor([1e-6, 1e-5], dtype=torch.float64) * process.end  # the distances that the docstring states
    parameterization.coefficients(process(u.new_tensor(process.end / 2)))
    t, h = process.end - u if at_end else u, 1e-3 * u  # the step that the docstring states
    level = process(t)
    alpha, sigma, scale = (expand(value, x0[None]) for value in (*level, parameterization.input_scale(level)))
    x_in = (scale * (alpha * x0 + sigma * eps)).flatten(0, 1).repeat(2, *(1,) * (x0.ndim - 1))
    told = torch.cat([t + h, t - h]).repeat_interleave(draws)
    high, low = network(x_in, told).reshape(2, 2, draws, -1)
    size = (high.square().sum((1, 2)) / draws).sqrt()
    rate = ((high - low).square().sum((1, 2)) / draws).sqrt() / (2 * h)
    return Rates(u, torch.where(rate > 1e-12 * size / u, rate, 0.0))  # the rounding that the docstring states


def target_exponent(
    process: Process,
    parameterization: Parameterization,
    data: GaussianMixture | PointCloud,
    *,
    at_end: bool = False,
) -> float:
    """p of |d/dt' F*(x_t, t')| ~ u^-p as u -> 0: how singular the best network is, 0 where it is bounded.

    As `target_rates` measures it: u = t at the data's end, u = end - t with `at_end`. For a smooth density p = 1/2 for
    eps and v where sigma ~ t^(1/2) (E-TSDM, Theorem 3.1) and 0 where sigma ~ t; for points p = 1 under every schedule.

    >>> data = PointCloud([[-1.0], [1.0]])
    >>> [round(target_exponent(process, Epsilon(), data), 3) for process in (LinearVP(), LinearSigmaVP())]
    [1.0, 1.0]
    """
    return target_rates(process, parameterization, data, at_end=at_end).exponent


class Bound(NamedTuple):
    """Both sides of Theorem 4.1 at each x, float64 (B,): the error of sharing and its bound; Delta t, Delta sigma_max.

    Each error is the largest over the times of the cells, as each supremum is.
    """

    error: Tensor
    bound: Tensor
    width: float
    sigma_step: float


def theorem_bound(
    data: GaussianMixture,
    process: Process,
    x: Tensor,
    *,
    interval: float,
    cells: int,
    per_cell: int = 33,
    first: int | None = None,
) -> Bound:
    """E-TSDM's Theorem 4.1 for exact networks at x (B, d), with t~ = `interval`, a time, and dt = t~ / cells:

        |eps*(x, f_T(t)) - eps*(x, t)| <= sigma(t~) K(x) dt + B(x) max |sigma(t_i) - sigma(t_{i-1})|
        K(x) = sup |score_t - score_tau| / |t - tau|,   B(x) = sup |score_t|,   over [0, t~)

    The shared optimum eps*(x, f_T(t)) is the mean over the cell that weighs each time by how likely it makes x. The
    suprema are taken over `per_cell` times in each cell, its edges included; `first` limits the cells that are looked
    at, from 0 on, where there are many. K is the largest slope between neighbouring times, which bounds every other.

    Reference: Yang et al., Lipschitz singularities in diffusion models, ICLR 2024, Eq. 11-12.
    """
    if cells < 1 or not 0 < interval <= process.end or per_cell < 2:
        raise ArgumentError(f"theorem_bound needs an interval in (0, {process.end:g}], cells >= 1 and per_cell >= 2")
    width, looked = interval / cells, min(cells, first or cells)
    shared = Shared(Time(), interval=looked * width, cells=looked)
    best = ExactShared(Exact(data, process, Epsilon()), shared)
    t = torch.linspace(0, looked * width, looked * (per_cell - 1) + 1, dtype=torch.float64)
    level = process(t)
    rows = x.to(torch.float64)
    scores = torch.stack([data.score(rows, Level(*one)) for one in zip(*level, strict=True)])  # (n, B, d)
    exact = -expand(level.sigma, scores) * scores
    edges = torch.linspace(0, interval, cells + 1, dtype=torch.float64)
    sigma_step = process(edges).sigma.diff().abs().max().item()
    K = (scores.diff(dim=0).flatten(2).norm(dim=2) / t.diff()[:, None]).amax(0)
    B = scores.flatten(2).norm(dim=2).amax(0)
    errors = []
    for cell in range(looked):
        told = torch.full((len(rows),), best.told[cell], dtype=torch.float64)
        inside = slice(cell * (per_cell - 1), (cell + 1) * (per_cell - 1) + 1)
        errors.append((best(rows, told) - exact[inside]).flatten(2).norm(dim=2).amax(0))
    last = process(torch.tensor(interval, dtype=torch.float64)).sigma.item()
    return Bound(torch.stack(errors).amax(0), last * K * width + B * sigma_step, width, sigma_step)
