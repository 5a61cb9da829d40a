"""Sampling: a denoiser, a solver and a grid turn seeds into samples."""

from __future__ import annotations

import itertools
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nearzero.conditioning import Shared
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError
from nearzero.grid import Grid
from nearzero.path import Network, Step, begin_all, check_finite, plan_steps
from nearzero.solvers import Solver, plan


class State(NamedTuple):
    """A state of a sampling path: x (N, *shape) at the Python float t."""

    x: Tensor
    t: float


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
    return torch.cat(list(map(_finish, chunks)))  # no frame of Python between, for the warning's stacklevel


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
    walks: list[list[State]] = []
    for chunk in _chunks(denoiser, shape, solver, grid, steps, nfe, seeds, condition, dtype, device, batch):
        walks.append([])
        _finish(chunk, walks[-1].append)
    return [State(torch.cat([state.x for state in column]), column[0].t) for column in zip(*walks, strict=True)]


class _Chunk(NamedTuple):
    """What runs at once: one path for several seeds."""

    denoiser: Denoiser
    steps: list[Step]
    shape: tuple[int, ...]
    seeds: list[int]
    condition: Mapping[str, Tensor]
    dtype: torch.dtype
    device: torch.device


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
) -> Iterator[_Chunk]:
    seeds = [_seed(seed) for seed in seeds]
    _check(seeds, condition, batch)
    if steps is None and nfe is not None:
        solvers = plan(solver, nfe)
        times = grid(len(solvers), denoiser.process)
    elif nfe is None and steps is not None:
        times = grid(steps, denoiser.process)
        solvers = [solver] * (len(times) - 1)
    else:
        raise ArgumentError("give either steps, the intervals of the grid, or nfe, the number of network evaluations")
    if sharing_is_idle(denoiser, times):
        warnings.warn(
            f"on this grid of {len(times) - 1} steps sharing changes nothing: every time that it visits in the shared "
            'interval is told its own number; take another number of steps, or TimestepGrid("trailing")',
            stacklevel=3,
        )
    path = plan_steps(denoiser, solvers, times)
    parameter = next(denoiser.parameters(), None)
    device = torch.device(device or ("cpu" if parameter is None else parameter.device))
    dtype = dtype or torch.get_default_dtype()
    size = batch or len(seeds)
    for start in range(0, len(seeds), size):
        chosen = slice(start, start + size)
        told = {name: value[chosen].to(device) for name, value in (condition or {}).items()}
        yield _Chunk(denoiser, path, tuple(shape), seeds[chosen], told, dtype, device)


def sharing_is_idle(denoiser: Denoiser, times: Tensor) -> bool:
    """Whether the times of a grid that lie in a shared interval are told what they would be told without sharing.

    So it is with 50 steps of "leading" timesteps, which are 20 apart, and E-TSDM's cells of 20.
    """
    shared, process = denoiser.conditioning, denoiser.process
    if not isinstance(shared, Shared):
        return False
    inside = times[(times > 0) & (times <= max(shared.edges(process)))]
    level = process(inside)
    return len(inside) > 0 and torch.equal(shared(inside, level), shared.inner(inside, level))


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


def _finish(chunk: _Chunk, visit: Callable[[State], None] | None = None) -> Tensor:
    """The end of a path, finite; `visit` sees its every state.

    What is not finite stays so: one look at the end suffices, and a device need not wait before. Only where it fails is
    the path walked again, to say at which step. Raises NumericalError.
    """
    x, place = _walk(chunk, visit), itertools.count(-1)

    def look(state: State) -> None:
        i = next(place)
        check_finite(state.x, chunk.steps[max(i, 0)])

    if not bool(x.isfinite().all()):
        _walk(chunk, look)
        check_finite(x, chunk.steps[-1])  # a network that answers otherwise the second time
    return x


@torch.no_grad()
def _walk(chunk: _Chunk, visit: Callable[[State], None] | None) -> Tensor:
    """The end of a path; `visit` sees its every state."""
    generators = [torch.Generator().manual_seed(seed) for seed in chunk.seeds]
    x = _draw(chunk, generators).mul_(chunk.steps[0].row_t.sigma)
    network = Network(chunk.denoiser, chunk.steps, chunk.condition, x)
    ready = begin_all([step.solver for step in chunk.steps])
    if visit is not None:
        visit(State(x, chunk.steps[0].row_t.t))
    for step in chunk.steps:
        solver = ready[id(step.solver)]
        count = int(solver.noisy(step.row_t, step.row_s))
        noise = None if count == 0 else _draw(chunk, generators) if count == 1 else _draws(chunk, generators, count)
        x = solver.step(network, x, step.row_t, step.row_s, noise, step.inner)
        if visit is not None:
            visit(State(x, step.row_s.t))
    return x


def _draw(chunk: _Chunk, generators: list[torch.Generator]) -> Tensor:
    """One standard normal tensor, each seed's part from its own generator."""
    noise = torch.empty(len(generators), *chunk.shape, dtype=chunk.dtype)
    for row, generator in zip(noise.view(len(generators), -1), generators, strict=True):
        row.normal_(generator=generator)
    return noise.to(chunk.device)


def _draws(chunk: _Chunk, generators: list[torch.Generator], count: int) -> Tensor:
    return torch.stack([_draw(chunk, generators) for _ in range(count)])
