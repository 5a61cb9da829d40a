"""Solvers that are exact where the estimate of x0 (or eps) does not change: x_s = alpha_s x0 + sigma_s eps.

They step in lambda = log(alpha / sigma), half the log-SNR of any process; from t to s is h = lambda_s - lambda_t.
Where lambda is infinite, at data (sigma = 0) and without signal (alpha = 0), each takes DDIM's step, which is finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nearzero.errors import ArgumentError
from nearzero.level import Row
from nearzero.registry import register
from nearzero.solvers import Evaluate, OneCall, Solver, all_stages, mix


def half_logsnr(row: Row) -> float:
    """lambda = log(alpha / sigma): inf at data, -inf without signal."""
    if row.sigma == 0:
        return math.inf
    return -math.inf if row.alpha == 0 else math.log(row.alpha) - math.log(row.sigma)


def decay(row_t: Row, row_s: Row) -> float:
    """e^-h = (alpha_t / alpha_s) (sigma_s / sigma_t): 0 from no signal and to data."""
    return row_t.alpha / row_s.alpha * (row_s.sigma / row_t.sigma)


def posterior_variance(row_t: Row, row_s: Row) -> float:
    """Variance of q(x_s | x_t, x0), s < t, for any process: sigma_s^2 (1 - e^-2h), finite at alpha_t = 0."""
    ratio = decay(row_t, row_s)
    return row_s.sigma**2 * (1 - ratio) * (1 + ratio)


def ddim(x: Tensor, F: Tensor, row_t: Row, row_s: Row, eta: float, noise: Tensor | None, more: float = 0.0) -> Tensor:
    """DDIM's step for the estimate that F is at row_t, with `more` added to the weight of x0."""
    c_eps = row_s.sigma * math.hypot(math.sqrt((1 - eta) * (1 + eta)), eta * decay(row_t, row_s))
    x_s = mix(x, F, row_t, row_s.alpha + more, c_eps)
    return x_s if noise is None else x_s.add_(noise, alpha=eta * math.sqrt(posterior_variance(row_t, row_s)))


@register
@dataclass(frozen=True)
class DDIM(OneCall):
    """One evaluation a step, deterministic at eta = 0, DDPM's posterior ("lower" variance) at eta = 1.

        x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) noise,   v = Var q(x_s | x_t, x0)

    First order in log(sigma / alpha), where it equals DPM-Solver-1. Reference: Song et al., Denoising diffusion
    implicit models, ICLR 2021, Eq. 12 and 16. Raises ArgumentError for eta outside [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ArgumentError(f"DDIM needs eta in [0, 1], got {self.eta}; 0 is deterministic, 1 is DDPM's posterior")

    def noisy(self, row_t: Row, row_s: Row) -> int:
        """With eta > 0, but for the last step."""
        return self.eta > 0 and row_s.sigma > 0

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike."""
        return ddim(x, evaluate(x, row_t), row_t, row_s, self.eta, noise)


RATIOS: dict[int, tuple[float, ...]] = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}


@register
@dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver, single-step, of order 1, 2 or 3: as many evaluations a step, at equal parts of it in the log-SNR.

        order 1:  x_s = alpha_s x0 + sigma_s eps                                         (DDIM)
        order 2:  x_s = DDIM - sigma_s (e^h - 1) (eps_1 - eps)
        order 3:  x_s = DDIM - 3/2 sigma_s ((e^h - 1)/h - 1) (eps_2 - eps)
                  x_2 = DDIM - 2 sigma_2 ((e^h_2 - 1)/h_2 - 1) (eps_1 - eps),            h_2 = 2/3 h

    where "DDIM" goes to s or to the stage's own time and eps_i is the noise estimate at stage i, h/2 on for order 2,
    h/3 and 2 h/3 on for order 3. A step to t = 0, or from alpha = 0, is DDIM's: one evaluation. The orders hold
    between two levels that do not move with the number of steps (LogSNRGrid: the end and the last positive time).
    Reference: Lu et al., DPM-Solver, NeurIPS 2022, Algorithms 1 and 2. Raises ArgumentError for another order.
    """

    order: int = 3

    def __post_init__(self) -> None:
        _check_order(self, self.order, (1, 2, 3))

    def stages(self, t: float, s: float, process: Any) -> tuple[float, ...]:
        """The times at the ratios 1/2, or 1/3 and 2/3, of the step in the log-SNR; none where that is infinite."""
        ends = torch.tensor([[t], [s]], dtype=torch.float64)
        return all_stages(self, ends[0], ends[1], process)[0]

    def inner_times(self, t: Tensor, s: Tensor, process: Any) -> Tensor:
        """The same for many steps."""
        if self.order == 1:
            return t.new_empty(len(t), 0)
        start, stop = process(torch.cat([t, s])).logsnr.chunk(2)
        inside = start[:, None] + t.new_tensor(RATIOS[self.order]) * (stop - start)[:, None]
        finite = inside.isfinite()
        return torch.where(finite, process.time_of_logsnr(torch.where(finite, inside, 0.0)), torch.nan)

    def noisy(self, row_t: Row, row_s: Row) -> int:
        """Never."""
        return False

    def plan(self, nfe: int) -> list[Solver]:
        """Steps of this order, one of a lower order for the calls that are left, and one of order 1 to t = 0.

        Twenty evaluations at order 3 are six third-order steps and two first-order ones. This is the published
        "singlestep" budget, which ends above t = 0, with its final step of order 1. Where the process ends without
        signal the first step is DDIM's and leaves up to order - 1 of the calls unused.
        """
        full, rest = divmod(nfe - 1, self.order)
        left: list[Solver] = [replace(self, order=rest)] if rest else []
        return [*[self] * full, *left, replace(self, order=1)]

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike; without inner rows DDIM's."""
        if not inner:
            return mix(x, evaluate(x, row_t), row_t, row_s.alpha, row_s.sigma)
        eps = mix(x, evaluate(x, row_t), row_t, 0.0, 1.0)
        (of_x, of_eps), *further = (_ddim(row_t, row) for row in (*inner, row_s))
        there = x.mul(of_x).add_(eps, alpha=of_eps)
        for row, (of_x, of_eps), weight in zip(inner, further, _weights(row_t, row_s, inner), strict=True):
            change = mix(there, evaluate(there, row), row, 0.0, 1.0).sub_(eps)
            there = change.mul_(-weight).add_(x, alpha=of_x).add_(eps, alpha=of_eps)  # four states in all
        return there


def _ddim(row_t: Row, row: Row) -> tuple[float, float]:
    """The weights of x and of its noise estimate in DDIM's step from row_t, where alpha is not 0, to a row."""
    return row.alpha / row_t.alpha, row.sigma - row.alpha / row_t.alpha * row_t.sigma


def _weights(row_t: Row, row_s: Row, inner: Sequence[Row]) -> tuple[float, ...]:
    """What the change of eps at each inner stage weighs in the next one, or in x_s."""
    if len(inner) < 2:
        return tuple(_growth(row_t, row_s) for _ in inner)  # 1 / (2 r1) = 1
    return 2 * _excess(row_t, inner[1]), 1.5 * _excess(row_t, row_s)  # r2 / r1 and 1 / r2


def _growth(row_t: Row, row_s: Row) -> float:
    """sigma_s (e^h - 1), where e^h may overflow."""
    return row_s.alpha / row_t.alpha * row_t.sigma - row_s.sigma


def _excess(row_t: Row, row_s: Row) -> float:
    """sigma_s ((e^h - 1) / h - 1); for |h| < 1 by its series h / 2! + h^2 / 3! + ..., which cancels nothing."""
    h = half_logsnr(row_s) - half_logsnr(row_t)
    if abs(h) >= 1:
        return _growth(row_t, row_s) / h - row_s.sigma
    total, term = 0.0, h / 2
    for k in range(3, 21):
        total, term = total + term, term * h / k
    return row_s.sigma * total


@register
@dataclass(frozen=True)
class DPMSolverPP(OneCall):
    """DPM-Solver++ 2M: one evaluation a step, second order by what the estimate of x0 was one step before.

        x_s = alpha_s x0 + sigma_s eps + alpha_s (1 - e^-h) / 2  h / h'  (x0 - x0')                          (ODE)
        x_s = alpha_s x0 + sigma_s e^-h eps + alpha_s (1 - e^-2h) / 2  h / h'  (x0 - x0')
              + sigma_s sqrt(1 - e^-2h) noise                                               (SDE, `noise` = True)

    with x0' and h' of the step before. Of first order, DDIM with eta 0 or 1, are the first step and each that goes to
    t = 0, leaves alpha = 0, or finds the condition in another cell than x0' was told. `begin` gives the solver of one
    path, which remembers x0'; this object forgets, and its own `step` is of first order.
    Reference: Lu et al., DPM-Solver++, 2022, Algorithm 2 and Section 5. Raises ArgumentError for an order but 1 and 2.
    """

    order: int = 2
    noise: bool = False

    def __post_init__(self) -> None:
        _check_order(self, self.order, (1, 2))
        if not isinstance(self.noise, bool):
            raise ArgumentError(f"DPMSolverPP's noise is True (SDE) or False (ODE), got {self.noise!r}")

    def begin(self, steps: int) -> Solver:
        """The solver of one path, which remembers the last estimate of x0."""
        return self if self.order == 1 else _Remembering(self)

    def noisy(self, row_t: Row, row_s: Row) -> int:
        """The SDE's, at every step but the last."""
        return self.noise and row_s.sigma > 0

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike; of first order."""
        return ddim(x, evaluate(x, row_t), row_t, row_s, float(self.noise), noise)


class _Remembering:
    """DPMSolverPP on one path."""

    def __init__(self, solver: DPMSolverPP) -> None:
        self.solver, self.stages, self.noisy = solver, solver.stages, solver.noisy
        self.last: tuple[Row, Tensor] | None = None

    def step(
        self, evaluate: Evaluate, x: Tensor, row_t: Row, row_s: Row, noise: Tensor | None, inner: Sequence[Row] = ()
    ) -> Tensor:
        """x_s from x_t, shapes alike; x0 at t is kept for the next step."""
        F, weight = evaluate(x, row_t), self._weight(row_t, row_s)
        x_s = ddim(x, F, row_t, row_s, float(self.solver.noise), noise, weight)
        if self.last and weight:
            x_s.sub_(self.last[1], alpha=weight)
        self.last = row_t, mix(x, F, row_t, 1.0, 0.0)
        return x_s

    def _weight(self, row_t: Row, row_s: Row) -> float:
        """What the change of x0 since the last step weighs: 0 where this step is of first order."""
        if self.last is None or self.last[0].cell != row_t.cell:
            return 0.0
        before, here, after = (half_logsnr(row) for row in (self.last[0], row_t, row_s))
        if math.inf in (after, here - before) or here == before:
            return 0.0  # to data; from the step that left alpha = 0, whose h' is infinite; two times that are one
        ratio = decay(row_t, row_s)
        gain = (1 - ratio) * (1 + ratio if self.solver.noise else 1)
        return row_s.alpha * gain / 2 * (after - here) / (here - before)


def _check_order(solver: object, order: int, orders: tuple[int, ...]) -> None:
    if isinstance(order, bool) or not isinstance(order, int) or order not in orders:
        listed = ", ".join(map(str, orders))
        raise ArgumentError(f"{type(solver).__name__} has the orders {listed}, got {order!r}; take one of these")
