"""A path of a solver over a grid: its steps as rows, and the network as its steps ask it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError, NumericalError
from nearzero.level import Row, expand
from nearzero.process import Clock
from nearzero.solvers import Evaluate, Solver, all_stages, begin


class Step(NamedTuple):
    """A step: its solver, where it leaves, where it arrives, the stages between."""

    solver: Solver
    row_t: Row
    row_s: Row
    inner: list[Row]


def plan_steps(denoiser: Denoiser, solvers: Sequence[Solver], times: Tensor) -> list[Step]:
    """The steps of these solvers between neighbouring times, which fall or rise, from one vectorised call.

    All stages of a step are told the cell of its later time, the one that it leaves on the way down. Where time 0 has
    no coefficients its row has none either: a path to data need not ask there.
    """
    inner: list[tuple[float, ...]] = [()] * len(solvers)
    for ident, solver in begin_all(solvers).items():
        mine = [i for i, other in enumerate(solvers) if id(other) == ident]
        found = all_stages(solver, times[:-1][mine], times[1:][mine], denoiser.process)
        for i, stage in zip(mine, found, strict=True):
            inner[i] = stage
    stages = [(t, *stage, s) for stage, (t, s) in zip(inner, itertools.pairwise(times.tolist()), strict=True)]
    flat = torch.tensor([t for stage in stages for t in stage], dtype=torch.float64)
    later = torch.tensor([max(stage[0], stage[-1]) for stage in stages for _ in stage], dtype=torch.float64)
    clock = getattr(solvers[0], "clock", None)
    try:
        rows = iter(denoiser.rows(flat, later, None, clock))
    except ArgumentError:
        rows = iter(denoiser.rows(flat, later, flat > 0, clock))
    steps = []
    for solver, stage in zip(solvers, stages, strict=True):
        row_t, *between, row_s = (next(rows) for _ in stage)
        steps.append(Step(solver, row_t, row_s, between))
    return steps


def begin_all(solvers: Sequence[Solver]) -> dict[int, Solver]:
    """The solvers of one path by the id of the object that each comes from."""
    return {ident: begin(one, len(solvers)) for ident, one in {id(solver): solver for solver in solvers}.items()}


class Network(Evaluate):
    """The denoiser as the steps of one path ask it, about `count` examples at a time."""

    def __init__(
        self, denoiser: Denoiser, steps: Sequence[Step], condition: Mapping[str, Tensor], like: Tensor
    ) -> None:
        self.denoiser = denoiser
        self.clock: Clock = getattr(steps[0].solver, "clock", None) or denoiser.process.clock
        self.condition = condition
        told = {row.condition for step in steps for row in (step.row_t, step.row_s, *step.inner)}
        self.told = {c: like.new_full((len(like),), c) for c in told}  # made before the loop

    def __call__(self, x: Tensor, row: Row) -> Tensor:
        """F at a row."""
        if row.B == row.D == 0:
            return torch.zeros_like(x)  # nothing that the network says is heard
        if math.isnan(row.condition):
            axes = self.denoiser.parameterization, self.denoiser.conditioning
            names = " or ".join(type(axis).__name__ for axis in axes)
            raise ArgumentError(f"this solver asks the network at t = {row.t:g}, where {names} does not exist")
        x_in = x if row.input_scale == 1 else x * row.input_scale
        return self.denoiser.ask(x_in, self.told[row.condition], **self.condition)

    def slope(self, x: Tensor, u: Tensor, leaving: Row) -> Tensor:
        """dx/du = alpha' x0 + sigma' eps, each example at its own clock reading."""
        t = self.clock.t(u)
        F, _, (A, B, C, D) = self.denoiser.stage(x, t, leaving.t, **self.condition)
        alpha, sigma = self.clock.slopes(t)
        return expand(alpha * A + sigma * C, x) * x + expand(alpha * B + sigma * D, x) * F


def check_finite(x: Tensor, step: Step) -> None:
    """Raises NumericalError, naming the step, where the state after it is not finite."""
    if not bool(x.isfinite().all()):
        raise NumericalError(
            f"samples stop being finite on the step from t = {step.row_t.t:g} to {step.row_s.t:g}; "
            "check the network's weights at that time"
        )
