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
from nearzero.level import Row, expand
from nearzero.process import Clock
from nearzero.solvers import Evaluate, Solver, begin, plan


class State(NamedTuple):
    """A state of a sampling path: x (N, *shape) at the Python float t."""

    x: Tensor
    t: float


class _Step(NamedTuple):
    """A step: its solver, where it leaves, where it arrives, the stages between."""

    solver: Solver
    row_t: Row
    row_s: Row
    inner: list[Row]


def sample(
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    solver: Solver,
    grid: Grid,
    seeds: Sequence[int],
    steps: int | None = None,
    nfe: int | None = None,
    condition: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    batch: int | None = None,
) -> Tensor:
    """One sample for each seed, (len(seeds), *shape), without gradients.

    Seed i's own CPU generator draws the first noise, times sigma at the grid's first time, then what each step that
    adds noise asks for: image i depends on seeds[i] and on nothing else, whatever the batch. `steps` counts the
    grid's intervals; `nfe`, in its place, counts network evaluations. `condition` holds tensors with one entry for
    each seed, `dtype` is torch's default unless given, `device` the network's, `batch` how many samples run at once
    (all). Raises ArgumentError for bad arguments and NumericalError, with the time, where a sample stops being finite.

    >>> denoiser = Denoiser(Zero(), LinearVP(), Epsilon(), Time())
    >>> sample(denoiser, (1, 8, 8), solver=DDIM(), grid=UniformGrid(), steps=4, seeds=range(3)).shape
    torch.Size([3, 1, 8, 8])
    """
    chunks = _chunks(denoiser, shape, solver, grid, steps, nfe, seeds, condition, dtype, device, batch)
    return torch.cat([_last(path).x for path in chunks])


def trajectory(
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    solver: Solver,
    grid: Grid,
    seeds: Sequence[int],
    steps: int | None = None,
    nfe: int | None = None,
    condition: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    batch: int | None = None,
) -> list[State]:
    """The whole path of `sample`, with its arguments: steps + 1 states, the first noise, the last the samples."""
    chunks = _chunks(denoiser, shape, solver, grid, steps, nfe, seeds, condition, dtype, device, batch)
    columns = zip(*(list(path) for path in chunks), strict=True)
    return [State(torch.cat([state.x for state in column]), column[0].t) for column in columns]


def _last(path: Iterator[State]) -> State:
    return deque(path, maxlen=1).pop()


def _chunks(
    denoiser: Denoiser,
    shape: Sequence[int],
    solver: Solver,
    grid: Grid,
    steps: int | None,
    nfe: int | None,
    seeds: Sequence[int],
    condition: Mapping[str, Tensor] | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    batch: int | None,
) -> Iterator[Iterator[State]]:
    seeds = [_seed(seed) for seed in seeds]
    _check(seeds, condition, batch)
    if (steps is None) == (nfe is None):
        raise ArgumentError("give either steps, the intervals of the grid, or nfe, the number of network evaluations")
    solvers = None if nfe is None else plan(solver, nfe)
    count = steps if solvers is None else len(solvers)
    times = grid(count, denoiser.process)  # pyright: ignore[reportArgumentType]
    path = _rows(denoiser, solvers or [solver] * (len(times) - 1), times)
    parameter = next(denoiser.parameters(), None)
    device = torch.device(device or ("cpu" if parameter is None else parameter.device))
    dtype = dtype or torch.get_default_dtype()
    size = batch or len(seeds)
    for start in range(0, len(seeds), size):
        chosen = slice(start, start + size)
        told = {name: value[chosen].to(device) for name, value in (condition or {}).items()}
        yield _path(denoiser, path, tuple(shape), seeds[chosen], told, dtype, device)


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


def _rows(denoiser: Denoiser, solvers: list[Solver], times: Tensor) -> list[_Step]:
    """Every row of every step, from one vectorised call: schedule arithmetic happens once."""
    stops, process = times.tolist(), denoiser.process
    ready = {id(solver): begin(solver, len(solvers)) for solver in solvers}
    steps = [
        (t, *ready[id(solver)].stages(t, s, process), s)
        for solver, t, s in zip(solvers, stops, stops[1:], strict=False)
    ]
    flat = torch.tensor([stage for step in steps for stage in step], dtype=torch.float64)
    leaving = torch.tensor([step[0] for step in steps for _ in step], dtype=torch.float64)
    clock = getattr(solvers[0], "clock", None)
    try:
        rows = iter(denoiser.rows(flat, leaving, None, clock))
    except ArgumentError:  # at the last time, which is data, the network need not be asked
        rows = iter(denoiser.rows(flat, leaving, torch.arange(len(flat)) < len(flat) - 1, clock))
    path = []
    for solver, step in zip(solvers, steps, strict=True):
        row_t, *inner, row_s = (next(rows) for _ in step)
        path.append(_Step(solver, row_t, row_s, inner))
    return path


class _Network(Evaluate):
    """The denoiser, asked at rows."""

    def __init__(self, denoiser: Denoiser, clock: Clock | None, condition: Mapping[str, Tensor]) -> None:
        self.denoiser = denoiser
        self.clock = clock or denoiser.process.clock
        self.condition = condition
        self.told: dict[float, Tensor] = {}

    def tell(self, path: list[_Step], count: int, dtype: torch.dtype, device: torch.device) -> None:
        """Makes, before the loop, every condition that a path tells to `count` examples."""
        rows = [row for step in path for row in (step.row_t, step.row_s, *step.inner)]
        told = {row.condition for row in rows}
        self.told = {c: torch.full((count,), c, dtype=dtype, device=device) for c in told}

    def __call__(self, x: Tensor, row: Row) -> Tensor:
        if row.B == row.D == 0:
            return torch.zeros_like(x)  # nothing that the network says is heard
        if math.isnan(row.condition):
            axes = self.denoiser.parameterization, self.denoiser.conditioning
            names = " or ".join(type(axis).__name__ for axis in axes)
            raise ArgumentError(f"this solver asks the network at t = {row.t:g}, where {names} does not exist")
        x_in = x if row.input_scale == 1 else x * row.input_scale
        return self.denoiser.ask(x_in, self.told[row.condition], **self.condition)

    def slope(self, x: Tensor, u: Tensor, leaving: Row) -> Tensor:
        t = self.clock.t(u)
        F, _, (A, B, C, D) = self.denoiser.stage(x, t, leaving.t, **self.condition)
        alpha, sigma = self.clock.slopes(t)
        return expand(alpha * A + sigma * C, x) * x + expand(alpha * B + sigma * D, x) * F


@torch.no_grad()
def _path(
    denoiser: Denoiser,
    path: list[_Step],
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

    def noise(count: int) -> Tensor | None:
        return None if count == 0 else draw() if count == 1 else torch.stack([draw() for _ in range(count)])

    network = _Network(denoiser, getattr(path[0].solver, "clock", None), condition)
    network.tell(path, len(seeds), dtype, device)
    ready = {id(step.solver): begin(step.solver, len(path)) for step in path}
    x = draw() * path[0].row_t.sigma
    yield State(x, path[0].row_t.t)
    finite = []
    for chosen, row_t, row_s, inner in path:
        solver = ready[id(chosen)]
        x = solver.step(network, x, row_t, row_s, noise(int(solver.noisy(row_t, row_s))), inner)
        finite.append(x.isfinite().all())  # read once, at the end: a device need not wait for it at every step
        yield State(x, row_s.t)
    _check_finite(torch.stack(finite).tolist(), path)


def _check_finite(finite: list[bool], path: list[_Step]) -> None:
    if not all(finite):
        _, row_t, row_s, _ = path[finite.index(False)]
        raise NumericalError(
            f"samples stop being finite on the step from t = {row_t.t:g} to {row_s.t:g}; "
            "check the network's weights at that time"
        )
