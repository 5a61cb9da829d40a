"""Inversion: the probability-flow ODE from data up to its latent, which sampling takes back."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError
from nearzero.grid import Grid
from nearzero.path import Network, Step, check_finite, plan_steps
from nearzero.solvers import Solver, begin, mix
from nearzero.solvers.ode import bounded
from nearzero.solvers.sde import PredictorCorrector


@torch.no_grad()
def invert(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    solver: Solver,
    grid: Grid,
    steps: int,
    condition: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The latent of data x0 (B, ...) at the grid's first time, shaped like x0, by the solver's own steps upwards.

    Each interval keeps the cell of its later time, as on the way down. From t = 0, where the slope does not exist in a
    solver's clock or the solver has none, the step is alpha_s x0 + sigma_s eps with the estimate at time 0; where there
    is none either (LogSigma), with eps at time s about alpha_s x0. A solver without a clock steps so to alpha = 0 too.
    `condition` holds tensors with one entry for each example. Raises ArgumentError for a solver that adds noise, and
    NumericalError, with the time, where a latent stops being finite.
    Reference: Song et al., Denoising diffusion implicit models, ICLR 2021, Section 4.3.

    >>> denoiser = Denoiser(Zero(), LinearSigmaVP(), Velocity(), Time())      # a path that stands still
    >>> invert(denoiser, torch.ones(1, 2), solver=Heun(), grid=UniformGrid(), steps=3)
    tensor([[1., 1.]])
    """
    times = grid(steps, denoiser.process).flip(0)
    path = plan_steps(denoiser, [solver] * (len(times) - 1), times)
    if isinstance(solver, PredictorCorrector) or any(int(solver.noisy(step.row_t, step.row_s)) for step in path):
        raise ArgumentError(f"{solver} adds noise, which no inversion can know; take DDIM() or Heun()")
    network, chosen, x = Network(denoiser, path, condition or {}, x0), begin(solver, len(path)), x0
    for step in path:
        own = _in_clock(step) if hasattr(solver, "clock") else step.row_t.sigma > 0 and step.row_s.alpha > 0
        x = chosen.step(network, x, step.row_t, step.row_s, None, step.inner) if own else _plainly(network, x, step)
        check_finite(x, step)
    return x


def _in_clock(step: Step) -> bool:
    """Whether the slope exists where the step leaves."""
    return not math.isnan(step.row_t.condition) and bounded(step.row_t)


def _plainly(network: Network, x: Tensor, step: Step) -> Tensor:
    """alpha_s x0 + sigma_s eps with the estimate at t, or, where t is 0 and has none, with eps at s about alpha_s x."""
    row_t, row_s = step.row_t, step.row_s
    if not math.isnan(row_t.condition):
        return mix(x, network(x, row_t), row_t, row_s.alpha, row_s.sigma)
    y = x * row_s.alpha
    return mix(y, network(y, row_s), row_s, 0.0, row_s.sigma).add_(y)
