"""Sampling: a denoiser, a solver and a grid turn seeds into samples."""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError, NumericalError
from nearzero.grid import Grid
from nearzero.level import Row
from nearzero.solvers import Solver


class State(NamedTuple):
    """A state of a sampling path: x (N, *shape) at the Python float t."""

    x: Tensor
    t: float


class _Step(NamedTuple):
    """A step's rows: where it leaves, where it arrives, the stages between."""

    row_t: Row
    row_s: Row
    inner: list[Row]


def sample(
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    solver: Solver,
    grid: Grid,
    steps: int,
    seeds: Sequence[int],
    condition: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    batch: int | None = None,
) -> Tensor:
    """One sample for each seed, (len(seeds), *shape), without gradients.

    Seed i's own CPU generator draws the first noise, times sigma at the grid's first time, then one tensor for each
    step that adds noise: image i depends on seeds[i] and on nothing else, whatever the batch. `steps` counts the
    grid's intervals, `condition` holds tensors with one entry for each seed, `dtype` is torch's default unless given,
    `device` the network's, `batch` how many samples run at once (all).
    Raises ArgumentError for bad arguments and NumericalError, with the time, where a sample stops being finite.

    >>> denoiser = Denoiser(Zero(), LinearVP(), Epsilon(), Time())
    >>> sample(denoiser, (1, 8, 8), solver=DDIM(), grid=UniformGrid(), steps=4, seeds=range(3)).shape
    torch.Size([3, 1, 8, 8])
    """
    chunks = _chunks(denoiser, shape, solver, grid, steps, seeds, condition, dtype, device, batch)
    return torch.cat([_last(path).x for path in chunks])


def trajectory(
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    solver: Solver,
    grid: Grid,
    steps: int,
    seeds: Sequence[int],
    condition: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    batch: int | None = None,
) -> list[State]:
    """The whole path of `sample`, with its arguments: steps + 1 states, the first noise, the last the samples."""
    chunks = _chunks(denoiser, shape, solver, grid, steps, seeds, condition, dtype, device, batch)
    columns = zip(*(list(path) for path in chunks), strict=True)
    return [State(torch.cat([state.x for state in column]), column[0].t) for column in columns]


def _last(path: Iterator[State]) -> State:
    return deque(path, maxlen=1).pop()


def _chunks(
    denoiser: Denoiser,
    shape: Sequence[int],
    solver: Solver,
    grid: Grid,
    steps: int,
    seeds: Sequence[int],
    condition: Mapping[str, Tensor] | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    batch: int | None,
) -> Iterator[Iterator[State]]:
    seeds = [_seed(seed) for seed in seeds]
    _check(seeds, condition, batch)
    plan = _plan(denoiser, solver, grid(steps, denoiser.process))
    parameter = next(denoiser.parameters(), None)
    device = torch.device(device or ("cpu" if parameter is None else parameter.device))
    dtype = dtype or torch.get_default_dtype()
    size = batch or len(seeds)
    for start in range(0, len(seeds), size):
        chosen = slice(start, start + size)
        told = {name: value[chosen].to(device) for name, value in (condition or {}).items()}
        yield _path(denoiser, solver, plan, tuple(shape), seeds[chosen], told, dtype, device)


def _seed(value: object) -> int:
    """An integer of any kind as a seed. Raises ArgumentError for anything else."""
    try:
        seed = -1 if isinstance(value, bool) else operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        seed = -1
    if not 0 <= seed < 2**32:
        raise ArgumentError(f"a seed is an integer from 0 to 2^32 - 1 (torch's generator reads 32 bits), got {value!r}")
    return seed


def _check(seeds: list[int], condition: Mapping[str, Tensor] | None, batch: int | None) -> None:
    if not seeds:
        raise ArgumentError("sample needs at least one seed, got none")
    if batch is not None and batch < 1:
        raise ArgumentError(f"batch must be at least 1, got {batch}")
    for name, value in (condition or {}).items():
        if len(value) != len(seeds):
            raise ArgumentError(
                f"condition {name!r} has {len(value)} entries for {len(seeds)} seeds; give one for each"
            )


def _plan(denoiser: Denoiser, solver: Solver, times: Tensor) -> list[_Step]:
    """Every row of every step, from one vectorised call: schedule arithmetic happens once."""
    steps = [
        (t, *solver.stages(t, s, denoiser.process), s) for t, s in zip(times.tolist(), times[1:].tolist(), strict=False)
    ]
    flat = torch.tensor([stage for step in steps for stage in step], dtype=torch.float64)
    leaving = torch.tensor([step[0] for step in steps for _ in step], dtype=torch.float64)
    try:
        rows = iter(denoiser.rows(flat, leaving))
    except ArgumentError:  # at the last time, which is data, the network need not be asked
        rows = iter(denoiser.rows(flat, leaving, torch.arange(len(flat)) < len(flat) - 1))
    plan = []
    for step in steps:
        row_t, *inner, row_s = (next(rows) for _ in step)
        plan.append(_Step(row_t, row_s, inner))
    return plan


@torch.no_grad()
def _path(
    denoiser: Denoiser,
    solver: Solver,
    plan: list[_Step],
    shape: tuple[int, ...],
    seeds: list[int],
    condition: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[State]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw() -> Tensor:
        return torch.stack([torch.randn(shape, generator=generator, dtype=dtype) for generator in generators]).to(
            device
        )

    rows = [row for step in plan for row in (step.row_t, step.row_s, *step.inner)]
    told = {c: torch.full((len(seeds),), c, dtype=dtype, device=device) for c in {row.condition for row in rows}}
    names = f"{type(denoiser.parameterization).__name__} or {type(denoiser.conditioning).__name__}"

    def evaluate(x: Tensor, row: Row) -> Tensor:
        if row.B == row.D == 0:
            return torch.zeros_like(x)  # nothing that the network says is heard
        if math.isnan(row.condition):
            raise ArgumentError(f"this solver asks the network at t = {row.t:g}, where {names} does not exist")
        x_in = x if row.input_scale == 1 else x * row.input_scale
        return denoiser.ask(x_in, told[row.condition], **condition)

    x = draw() * plan[0].row_t.sigma
    yield State(x, plan[0].row_t.t)
    finite = []
    for row_t, row_s, inner in plan:
        x = solver.step(evaluate, x, row_t, row_s, draw() if solver.noisy(row_t, row_s) else None, inner)
        finite.append(x.isfinite().all())  # read once, at the end: a device need not wait for it at every step
        yield State(x, row_s.t)
    _check_finite(torch.stack(finite).tolist(), plan)


def _check_finite(finite: list[bool], plan: list[_Step]) -> None:
    if not all(finite):
        row_t, row_s, _ = plan[finite.index(False)]
        raise NumericalError(
            f"samples stop being finite on the step from t = {row_t.t:g} to {row_s.t:g}; "
            "check the network's weights at that time"
        )
