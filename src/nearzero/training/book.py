"""What the main process writes while a run trains: statistics, events, checkpoints and previews."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from nearzero.ema import early
from nearzero.errors import DiskError, NumericalError
from nearzero.files import grid_png, to_bytes, write_bytes
from nearzero.run import Run, load_tensors
from nearzero.sampling import sample
from nearzero.training.checkpoint import Keep, Writer, clean
from nearzero.training.draws import samples
from nearzero.training.engine import Engine
from nearzero.training.events import Events, warn
from nearzero.training.guards import Guard, record
from nearzero.training.sinks import open_sinks
from nearzero.training.state import TrainingState
from nearzero.training.stats import Stats
from nearzero.training.step import Progress


class Book:
    """The files of a run that grow, from the checkpoint that it goes on from."""

    def __init__(
        self, run: Run, state: TrainingState, checkpoint: Path | None, keep: Keep | None, log: Sequence[str] = ()
    ) -> None:
        self.run = run
        self.events = Events(run.path / "events.jsonl")
        removed = clean(run.path)
        if removed:
            self.events.add("cleaned", state.step, removed=removed)
        sinks = open_sinks(log, run.path, state.step, self.events)
        self.stats = Stats(run.path / "stats.jsonl", state.step, state.training, events=self.events, sinks=sinks)
        self.writer = Writer(run.path, keep, self.events)
        self._told = False
        pending = checkpoint and checkpoint / "stats.safetensors"
        if pending and pending.exists():
            self.stats.restore(load_tensors(pending))

    def __enter__(self) -> Book:
        self._open = contextlib.ExitStack()
        self._open.enter_context(self.stats)
        self._open.enter_context(self.writer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def tell(self, notices: Sequence[Mapping[str, Any]], step: int) -> None:
        """Events of the start: each a mapping with its kind and facts."""
        for notice in notices:
            self.events.add(step=step, **notice)

    def add(self, now: Progress, state: TrainingState, guard: Guard) -> None:
        """The statistics of a step, or, where it was left out, an event."""
        self.writer.poll()
        if now.action == "go":
            logsnr, rate = state.denoiser.process(now.t).logsnr, state.training.rate(now.step)
            self.stats.add(now.step, now.loss, logsnr=logsnr, gradient_norm=now.norm, rate=rate)
            return
        self.stats.skip(now.step)
        index = samples(state.recipe, now.step - 1)
        record(self.events, now.action, guard, now.step, index, now.loss, now.norm, now.t)
        if now.action != "overflow":
            what = {"skip": "left out"}.get(now.action, f"left out; {now.action}")
            warn(f"step {now.step} is not finite and {what} ({guard.skipped} so far); see {self.run.path}/events.jsonl")

    def save(self, state: TrainingState, tensors: Any, guard: Guard, *, wait: bool) -> None:
        """A checkpoint of this step; training goes on while its files are written, unless `wait`."""
        pending = self.stats.pending()
        files = {**tensors, "stats": pending} if pending else tensors
        engine: Engine = state.engine
        meta = {"step": state.step, "images": state.step * state.training.batch, "guard": guard.state()}
        meta |= {"processes": engine.processes, "accumulation": engine.accumulation}
        meta["moments"] = len(tensors["optimizer"])
        if self.writer.keep.best:
            meta["metric"] = self._metric(pending)
        self.writer.save(files, meta, needed=(guard.good,))
        if wait:
            self.writer.finish()

    def _metric(self, pending: Mapping[str, Tensor]) -> float | None:
        """The mean loss of the newest line, or of what is collected for the next."""
        return float(pending["loss"].mean()) if pending else self.stats.newest

    def picture(self, step: int) -> Path:
        """Where the preview of a step lies."""
        return self.run.path / "previews" / f"{step:09d}.png"

    def preview(self, state: TrainingState, count: int = 16) -> None:
        """16 samples of the averaged weights at fixed seeds."""
        recipe = self.run.recipe
        note = early(recipe.training.ema, state.step, recipe.training.batch)
        if note and not self._told:
            self._told = True
            self.events.add("early_average", state.step, note=note)
            warn(note)
        shape = (recipe.network.channels, recipe.network.size, recipe.network.size)
        how: dict[str, Any] = {"solver": recipe.solver, "grid": recipe.grid, "steps": min(recipe.steps, 50)}
        try:
            x = sample(recipe.sampled(state.averaged()), shape, **how, seeds=range(count), dtype=torch.float32)
            write_bytes(self.picture(state.step), grid_png(to_bytes(recipe.codec.decode(x))))
        except (NumericalError, DiskError) as error:  # training itself is well
            self.events.add("preview_failed", state.step, error=str(error))
            warn(f"no preview of step {state.step}: {error}")
