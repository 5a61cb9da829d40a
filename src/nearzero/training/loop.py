"""Training: from images to a run folder, through stops, restarts, full disks and numbers that are not finite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nearzero.codec import fitted
from nearzero.data.images import Images
from nearzero.errors import ArgumentError, NumericalError, Stopped
from nearzero.manifest import checkpoints, problem
from nearzero.randomness import Stream, uniform
from nearzero.recipe import Recipe, differences
from nearzero.registry import encode
from nearzero.run import Run, try_recipe
from nearzero.training.book import Book
from nearzero.training.checkpoint import Keep, load
from nearzero.training.draws import examples, samples
from nearzero.training.engine import Engine
from nearzero.training.guards import Guard, Samples, give_up
from nearzero.training.lock import lock
from nearzero.training.memory import memory_advice
from nearzero.training.signals import stop_on_signals
from nearzero.training.sinks import check_sinks
from nearzero.training.start import check_fit, check_folder, open_run
from nearzero.training.state import TrainingState
from nearzero.training.step import Progress, steps


def train(
    recipe: Recipe,
    images: Images,
    out: str | Path,
    *,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    other_data: bool = False,
    device: torch.device | str = "cpu",
    engine: Engine | None = None,
    checkpoint_every: int = 500,
    preview_every: int | None = None,
    keep: Keep | None = None,
    log: Sequence[str] = (),
    guard: Guard | None = None,
    progress: Callable[[Progress], None] | None = None,
    source: dict[str, Any] | None = None,
    notices: Sequence[Mapping[str, Any]] = (),
) -> Run:
    """Trains `recipe` on `images` into the run folder `out` and returns the run.

    The recipe's network must fit the images: `recipes.small(recipes.etsdm(), images.size, images.channels)`. A folder
    that exists needs `resume` (go on from its newest checkpoint; sampling, number of steps and rate may differ, with
    `other_data` the images too) or `overwrite`. `engine` says where and how to compute; by default on `device`, with
    all processes that torchrun started. Checkpoints come every `checkpoint_every` steps and at the end, previews with
    them or every `preview_every`; `keep` says which stay. `log` names copies of the statistics (tensorboard, wandb,
    trackio). A step that is not finite is left out; `guard` says when weights go back to a checkpoint, and when
    training stops with a report. SIGINT, SIGTERM and SIGUSR1 raise Stopped once saved. `progress` is called in the main
    process; `source` is recorded with the data, `notices` in events.jsonl. Raises NearzeroError.
    """
    out, engine, guard = Path(out), Engine(device) if engine is None else engine, guard or Guard()
    with engine.together():
        recipe = _checked(recipe, images, engine, seed, checkpoint_every, preview_every, log)
    engine.first(lambda: check_folder(out, resume=resume, overwrite=overwrite))
    state = TrainingState(recipe, seed, engine.device, engine)
    with contextlib.ExitStack() as stack:
        kind = {"resume": resume, "source": source, "other_data": other_data}
        run, book = _open(stack, state, images, out, seed, guard, keep, log, notices, overwrite, kind)
        stopping = stack.enter_context(stop_on_signals())
        stack.enter_context(memory_advice(recipe.training.batch, engine.accumulation, engine.processes))
        _make_up(state, book, preview_every or checkpoint_every)
        for now in steps(state, recipe, images, seed, guard):
            if book is not None:
                book.add(now, state, guard)
            if now.action in ("roll back", "stop"):
                _rescue(now, state, run, book, guard, images, seed)
            if progress is not None and engine.main:
                progress(now)
            last, (stop,) = now.step == recipe.training.steps, engine.any(bool(stopping()))
            regular = last or now.step % checkpoint_every == 0
            if regular or stop:
                _save(state, run, book, guard, seed, regular=regular, wait=last or stop)
            if last or now.step % (preview_every or checkpoint_every) == 0:
                _preview(state, book)
            if stop and not last:
                where = f"stopped at step {now.step} of {recipe.training.steps} with a valid checkpoint in {out}"
                raise Stopped(f"{where}; go on with: nearzero train --resume --out {out}")
    return run


def _open(
    stack: contextlib.ExitStack,
    state: TrainingState,
    images: Images,
    out: Path,
    seed: int,
    guard: Guard,
    keep: Keep | None,
    log: Sequence[str],
    notices: Sequence[Mapping[str, Any]],
    overwrite: bool,
    kind: dict[str, Any],
) -> tuple[Run, Book | None]:
    """The run folder, locked, and its books, in the main process; state and guard as its newest checkpoint has them."""
    engine = state.engine
    locked = engine.first(lambda: stack.enter_context(lock(out)))
    engine.first(
        lambda: check_folder(out, resume=kind["resume"], overwrite=overwrite)
    )  # again, now that nobody else writes
    former = engine.first(lambda: Run.load(out) if kind["resume"] else None)
    run = engine.first(lambda: open_run(out, state.recipe, images, seed, **kind))
    with engine.together():
        run = run or Run.load(out)
        checkpoint = run.checkpoint()
        meta = {} if checkpoint is None else load(state, checkpoint)
        guard.restore(meta.get("guard", {"good": meta["step"]} if meta else {}))
    book = engine.first(lambda: stack.enter_context(Book(run, state, checkpoint, keep, log)))
    if book is not None:
        told = [*notices, *_changes(former, run, meta, engine)]
        book.tell(told if locked else [{"kind": "no_lock"}, *told], state.step)
    return run, book


def _checked(
    recipe: Recipe,
    images: Images,
    engine: Engine,
    seed: int,
    checkpoint_every: int,
    preview_every: int | None,
    log: Sequence[str],
) -> Recipe:
    """The recipe with its codec fitted to the images. Raises for arguments outside their laws."""
    check_fit(recipe, images)
    if not 0 <= seed < 2**32:
        raise ArgumentError(f"a seed is an integer from 0 to 2^32 - 1, got {seed}")
    for name, every in (("checkpoint_every", checkpoint_every), ("preview_every", preview_every)):
        if every is not None and every < 1:
            raise ArgumentError(f"{name} must be at least 1, got {every}")
    check_sinks(log)
    engine.rows(recipe.training.batch)
    recipe = replace(recipe, codec=fitted(recipe.codec, images.pixels, mirrored=recipe.training.flip))
    encode(recipe)  # what cannot be saved, and then what does not work, fails before the folder is touched
    try_recipe(recipe)
    return recipe


def _told(changed: Mapping[str, tuple[Any, Any]]) -> dict[str, list[str]]:
    """Old and new values as text, in at most 300 characters each."""
    return {name: [str(value)[:300] for value in pair] for name, pair in changed.items()}


def _changes(former: Run | None, run: Run, meta: Mapping[str, Any], engine: Engine) -> list[dict[str, Any]]:
    """What a resumed run goes on with that it did not have before."""
    told = []
    if former is not None:
        if changed := differences(former.recipe, run.recipe):
            told.append({"kind": "recipe_changed", "fields": sorted(changed), "differences": _told(changed)})
        if former.data.get("fingerprint") != run.data.get("fingerprint"):
            told.append({"kind": "data_changed", "images": run.data.get("count")})
    split = {"processes": engine.processes, "accumulation": engine.accumulation}
    if any(meta.get(name, value) != value for name, value in split.items()):
        told.append({"kind": "split_changed", **split, "note": "the same samples, weights equal up to rounding"})
    return told


def _rescue(
    now: Progress, state: TrainingState, run: Run, book: Book | None, guard: Guard, images: Images, seed: int
) -> None:
    """What follows many steps in a row that are not finite: a roll back, or the end."""
    if now.action == "roll back":
        roll_back(state, run, book, guard, seed)
    else:
        _stop(state, images, seed, book, guard)


def roll_back(state: TrainingState, run: Run, book: Book | None, guard: Guard, seed: int) -> None:
    """Weights, averages and moments of the last good checkpoint; the number of the step goes on."""
    now = state.step
    state.engine.first(lambda: book.writer.wait() if book else None)
    with state.engine.together():
        folder = run.path / "checkpoints"
        whole = [path for path in checkpoints(folder) if int(path.name) <= guard.good and problem(path) is None]
        if guard.good and not whole:
            raise NumericalError(f"no whole checkpoint of {run.path} is left to roll back to; lower the learning rate")
        if whole:
            load(state, whole[0])
        else:
            first, scaler = TrainingState(state.recipe, seed, state.device).tensors(), state.engine.scaler.state_dict()
            first["optimizer"] |= {f"scaler.{name}": torch.tensor(value) for name, value in scaler.items()}
            state.restore(first, 0)
        state.step = now
        if book is not None:
            book.events.add("rolled_back", now, to=int(whole[0].name) if whole else 0)


def _stop(state: TrainingState, images: Images, seed: int, book: Book | None, guard: Guard) -> None:
    """Raises NumericalError, with a report of the step just left out."""
    with state.engine.together():
        if book is None:
            return
        if state.engine.strategy == "fsdp":
            raise NumericalError(
                f"the loss or its gradient is not finite at step {state.step}; lower the learning rate"
            )
        index = samples(state.recipe, state.step - 1)
        x0, eps, u = (*examples(state.recipe, images, seed, index, state.device), uniform(seed, Stream.TIME, index))
        rate = state.training.rate(state.step)
        part = state.engine.rows(len(index))[0]
        raise give_up(
            guard,
            state.step,
            book.run.path,
            state.denoiser,
            state.objective,
            Samples(index, x0, u, eps),
            micro=part.stop - part.start,
            recipe=state.recipe.name,
            learning_rate=rate,
        )


def _save(
    state: TrainingState, run: Run, book: Book | None, guard: Guard, seed: int, *, regular: bool, wait: bool
) -> None:
    """A checkpoint, after a roll back where the weights are not finite: in all processes, for what fsdp has split."""
    failure, good = None, guard.good
    tensors = state.tensors() if book is not None or state.engine.strategy == "fsdp" else {}
    if regular:
        guard.saving(state.step)
    with state.engine.together():
        try:
            if book is not None:
                book.save(state, tensors, guard, wait=wait)
        except NumericalError as error:
            failure = error
    if not state.engine.any(failure is not None)[0]:
        return
    guard.good = good
    if guard.condemn() == "stop":
        with state.engine.together():
            if failure is not None:
                raise failure
    if book is not None:
        book.events.add("weights_not_finite", state.step, error=str(failure), **guard.state())
    roll_back(state, run, book, guard, seed)
    _save(state, run, book, guard, seed, regular=regular, wait=wait)


def _make_up(state: TrainingState, book: Book | None, shown: int) -> None:
    """Draws the preview of the checkpoint to go on from, where a kill came between the two."""
    due = state.step > 0 and (state.step == state.training.steps or state.step % shown == 0)
    if due and state.engine.any(book is not None and not book.picture(state.step).exists())[0]:
        _preview(state, book)


def _preview(state: TrainingState, book: Book | None) -> None:
    """A picture of samples: in all processes, for what fsdp has split."""
    with state.engine.together():
        if book is not None:
            book.preview(state)
        elif state.engine.strategy == "fsdp":
            state.averaged()
