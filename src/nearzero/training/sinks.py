"""Where the lines of stats.jsonl go besides: TensorBoard, Weights & Biases, trackio. None of them can stop a run.

stats.jsonl is the record; these are copies. Each runs in a thread of its own, and what it raises, drops or takes too
long for is a warning and a line of events.jsonl.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nearzero.errors import ArgumentError, did_you_mean
from nearzero.files import digest, read_json
from nearzero.training.events import Events, warn
from nearzero.training.stats import Sink

MOST = 64  # lines between two tries of a sink that fails


class Guarded:
    """A sink that cannot stop or delay a run: `make(step)` and what it makes are called in a daemon thread only.

    `make(step)` gives the sink; what it holds beyond `step` is void. Lines wait in a queue of `keep`, from which the
    oldest are dropped. After the k-th failure in a row the sink is closed and made again 2^(k - 1) lines later, at most
    64, with the lines that wait. The first failure is a warning on stderr; an outage that begins is an event
    sink_failed, one that ends sink_recovered. `close` waits `patience` seconds for what is left; lines that were not
    taken are a warning and the event sink_incomplete.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[int], Sink],
        events: Events | None = None,
        step: int = 0,
        *,
        keep: int = 256,
        patience: float = 10.0,
    ) -> None:
        self.name, self.make, self.events, self.patience = name, make, events, patience
        self.step = step  # of the last line that was taken
        self.waiting: deque[tuple[int, Mapping[str, Any]]] = deque(maxlen=keep)
        self.lines = self.taken = self.failures = self.retry_at = 0
        self.sink: Sink | None = None
        self.warned = self.closing = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._work, name=f"nearzero {name}", daemon=True)
        try:
            self.thread.start()
        except RuntimeError as error:  # the system has no thread left
            self._failed(error)

    def write(self, step: int, line: Mapping[str, Any]) -> None:
        """Puts the line in the queue, in place of the oldest where it is full, and returns."""
        with self.changed:
            self.lines += 1
            self.waiting.append((step, line))
            self.changed.notify()

    def close(self) -> None:
        """Takes leave: what waits is tried once more, for `patience` seconds."""
        with self.changed:
            if self.closing:
                return
            self.closing = True
            self.changed.notify()
        if self.thread.ident is not None:
            self.thread.join(self.patience)
        hangs, missing = self.thread.is_alive(), self.lines - self.taken
        if hangs or missing:
            self._event("sink_incomplete", missing=missing, lines=self.lines, hangs=hangs)
            warn(f"--log {self.name} did not take {missing} of {self.lines} lines; stats.jsonl has them all")

    def _ready(self) -> bool:
        return self.closing or (bool(self.waiting) and self.lines >= self.retry_at)

    def _work(self) -> None:
        """The thread: one line after the other, and the lock is never held while the sink is called."""
        going = True
        while going:
            with self.changed:
                self.changed.wait_for(self._ready)
                if not self.waiting:
                    break
                step, line = self.waiting.popleft()
            try:
                if self.sink is None:
                    self.sink = self.make(self.step)
                self.sink.write(step, line)
            except BaseException as error:  # a library's SystemExit too
                self._failed(error)
                self._leave()
                with self.changed:
                    if len(self.waiting) < (self.waiting.maxlen or 0):
                        self.waiting.appendleft((step, line))
                    going = not self.closing
            else:
                self._written(step)
        self._leave()

    def _written(self, step: int) -> None:
        self.step, self.taken = step, self.taken + 1
        if self.failures:
            self._event("sink_recovered", failures=self.failures)
            self.failures = 0

    def _failed(self, error: BaseException) -> None:
        self.failures += 1
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        with self.changed:
            self.retry_at = self.lines + min(2 ** (self.failures - 1), MOST)
        if self.failures == 1:
            self._event("sink_failed", error=reason)
        if not self.warned:
            self.warned = True
            warn(f"--log {self.name} failed ({reason}); training goes on, and it is tried again at later lines")

    def _leave(self) -> None:
        """Closes the sink, which may fail at that too."""
        sink, self.sink = self.sink, None
        if sink is not None:
            try:
                sink.close()
            except BaseException as error:
                if not self.failures:
                    self._failed(error)

    def _event(self, kind: str, **facts: Any) -> None:
        if self.events is not None:
            self.events.add(kind, self.step, sink=self.name, **facts)


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of stats.jsonl by name: means, and "NAME/std" where there is more than one value.

    >>> scalars({"step": 50, "Loss/loss": {"num": 2, "mean": 1.5, "std": 0.5}})
    {'Loss/loss': 1.5, 'Loss/loss/std': 0.5}
    """
    entries = {name: entry for name, entry in line.items() if isinstance(entry, Mapping)}
    means = {name: entry["mean"] for name, entry in entries.items()}
    return means | {f"{name}/std": entry["std"] for name, entry in entries.items() if entry["num"] > 1}


class _TensorBoard:
    """Event files in RUN/tensorboard; what they hold beyond `step`, TensorBoard no longer shows."""

    def __init__(self, run: Path, step: int) -> None:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self.writer = writer(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, line: Mapping[str, Any]) -> None:
        for name, value in scalars(line).items():
            self.writer.add_scalar(name, value, global_step=step, walltime=line.get("timestamp"))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Remote:
    """A run of wandb or trackio: `log` and `finish` of an object that their `init` gave."""

    def __init__(self, remote: Any) -> None:
        self.remote = remote

    def write(self, step: int, line: Mapping[str, Any]) -> None:
        self.remote.log(scalars(line), step=step)

    def close(self) -> None:
        self.remote.finish()


def _wandb(run: Path, step: int) -> Sink:
    """A W&B run in RUN/wandb, offline where nobody is logged in and WANDB_MODE says nothing; it never asks."""
    wandb = import_module("wandb")
    settings = wandb.Settings(console="off", silent=True, init_timeout=30.0, finish_timeout=10.0)
    known = "WANDB_MODE" in os.environ or wandb.login(prompt=False, verify=False)
    mode = None if known else "offline"
    remote = wandb.init(
        project="nearzero", name=run.name, id=_identity(run), resume="allow", dir=str(run), mode=mode, settings=settings
    )
    return _Remote(remote)


def _trackio(run: Path, step: int) -> Sink:
    """A trackio run on this machine."""
    trackio = import_module("trackio")
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        vars(sys.modules[name])["print"] = partial(print, file=sys.stderr)  # stdout is for the command's result
    name = f"{run.name}-{_identity(run)[:6]}"
    remote = trackio.init("nearzero", name=name, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False)
    return _Remote(remote)


def _identity(run: Path) -> str:
    """A name that a run keeps when it is resumed, and that a new one in its folder does not have."""
    return digest(repr(read_json(run / "run.json").get("provenance")).encode("utf-8", "backslashreplace"))[:16]


SINKS: dict[str, Callable[[Path, int], Sink]] = {"tensorboard": _TensorBoard, "trackio": _trackio, "wandb": _wandb}


def check_sinks(names: Iterable[str]) -> None:
    """Raises ArgumentError for a name that is none of SINKS, or whose package is not installed."""
    for name in names:
        if name not in SINKS:
            raise ArgumentError(f"--log {name}: there is no such log; {did_you_mean(name, SINKS)}")
        if find_spec(name) is None:
            raise ArgumentError(f"--log {name} needs a package that is missing; pip install 'nearzero[{name}]'")


def open_sinks(names: Iterable[str], run: Path, step: int, events: Events | None = None) -> tuple[Guarded, ...]:
    """A guarded sink for each name, once, for the run folder `run` that goes on from `step`."""
    names = tuple(dict.fromkeys(names))
    check_sinks(names)
    return tuple(Guarded(name, partial(SINKS[name], run), events, step) for name in names)
