"""Checkpoints: one save is a folder of safetensors with the number of the step, whole or not there.

checkpoints/000001000/{weights,ema,optimizer,...}.safetensors, state.json, and last manifest.json
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

import nearzero
from nearzero import files
from nearzero.errors import CheckpointError, DiskError, NumericalError
from nearzero.files import new_folder, read_json, safetensors, write_parts
from nearzero.manifest import NAME, Keep, thin_out, verify, write_manifest
from nearzero.run import SCHEMA, Run, load_tensors
from nearzero.training.events import warn
from nearzero.training.state import TrainingState

KINDS = {"optimizer": "moments", "objective": "learned weights"}
ASIDE = re.compile(r"\.(run\.json|(stats|events)\.jsonl|\d{9}(\.png)?)\.[a-z0-9_]{8}(\.former)?", re.ASCII)
Tensors = Mapping[str, Mapping[str, Tensor]]


class Events(Protocol):
    """What is told of everything that happens by itself."""

    def add(self, kind: str, step: int, **facts: Any) -> None:
        """Takes an event of a step."""
        ...


class Saved(NamedTuple):
    """What one save did: the folder, its bytes, the seconds it took, the older checkpoints that it deleted."""

    path: Path
    size: int
    seconds: float
    deleted: list[str]


def clean(run: Path) -> list[str]:
    """Deletes what killed processes left half-written in a run folder; returns its names.

    Only the process that holds the run's lock may call this.
    """
    found = files.clean(run / "checkpoints")
    for folder in (run, run / "previews", run / "checkpoints"):
        for path in folder.iterdir() if folder.is_dir() else ():
            if ASIDE.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
                found.append(path.name)
    return sorted(found)


def check_finite(tensors: Tensors, step: int) -> None:
    """Raises NumericalError where a number is not finite; waits for a GPU once."""
    told = [
        (file, name, tensor.detach())
        for file, named in tensors.items()
        if file != "stats"  # whose log-SNR may be infinite
        for name, tensor in named.items()
        if tensor.is_floating_point() and tensor.numel()
    ]
    largest = torch._foreach_norm([tensor for _, _, tensor in told], torch.inf) if told else []
    home = [size.double() for size in largest] if len({size.device for size in largest}) == 1 else []
    if home and bool(torch.stack(home).isfinite().all()):
        return
    for (file, name, _), size in zip(told, largest, strict=True):
        if not bool(size.isfinite()):
            what = "averaged weights" if file.startswith("ema") else KINDS.get(file, file)
            raise NumericalError(
                f"the {what} of {name} are not finite at step {step}; lower the learning rate. "
                "The last good checkpoint is kept"
            )


def write(
    run: Path,
    tensors: Tensors,
    meta: Mapping[str, Any],
    keep: Keep | None = None,
    needed: Collection[int] = (),
    check: Callable[[], None] = lambda: None,
) -> Saved:
    """One save: RUN/checkpoints/STEP, read back and compared, and then the deletion of the older ones that may go.

    `meta`, JSON, becomes state.json; its "step" names the folder. Steps that are `needed` stay whatever `keep` says.
    `check` is called before each piece of a file: what it raises ends the save. Raises NumericalError for what is not
    finite, DiskError where there is too little space.
    """
    start, step = time.monotonic(), meta["step"]
    check_finite(tensors, step)
    path = run / "checkpoints" / f"{step:09d}"
    _check_space(path, sum(tensor.nbytes for named in tensors.values() for tensor in named.values()))
    with new_folder(path) as aside:
        state = json.dumps({"schema_version": SCHEMA, **meta}, indent=2, allow_nan=False) + "\n"
        parts = {f"{file}.safetensors": safetensors(named) for file, named in tensors.items()}
        parts |= {"state.json": iter([state.encode()])}
        written = {name: write_parts(aside / name, content, check) for name, content in parts.items()}
        write_manifest(aside, {"step": step}, written)
    record = verify(path)
    size = sum(file["bytes"] for file in record["files"].values())
    return Saved(path, size, time.monotonic() - start, thin_out(path, keep or Keep(), needed))


def save(state: TrainingState, run: Run) -> Path:
    """One save of a state, now; returns the checkpoint."""
    return write(run.path, state.tensors(), {"step": state.step, "images": state.step * run.recipe.training.batch}).path


def load(state: TrainingState, checkpoint: Path) -> dict[str, Any]:
    """Restores every bit that was saved, and returns state.json. Warns where another nearzero or torch wrote it."""
    tensors, meta = {}, read_json(checkpoint / "state.json")
    for file, named in state.tensors().items():
        path = checkpoint / f"{file}.safetensors"
        tensors[file] = found = load_tensors(path)
        same = {name for name in named if name in found and found[name].shape == named[name].shape}
        if file != "optimizer" and (wrong := (named.keys() | found.keys()) - same):
            raise CheckpointError(
                f"{path} does not fit the recipe's network in {min(wrong)}; restore it or train again"
            )
    try:
        if meta.get("moments") not in (None, len(tensors["optimizer"])):
            raise RuntimeError(f"the optimizer holds {len(tensors['optimizer'])} tensors, not {meta['moments']}")
        state.restore(tensors, meta["step"])
    except (KeyError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{checkpoint} does not fit the recipe's network ({reason}); restore it or train again"
        ) from error
    record = read_json(checkpoint / NAME) if (checkpoint / NAME).exists() else {}
    for name, version in (("nearzero", nearzero.__version__), ("torch", torch.__version__)):
        if record.get(name, version) != version:
            warnings.warn(
                f"{checkpoint} was saved by {name} {record[name]}, this is {version}: the run goes on, but not "
                "necessarily bit for bit",
                stacklevel=2,
            )
    return meta


class Writer:
    """Saves in a thread of its own, one checkpoint at a time, while training goes on.

    What the thread has to say, an event, a warning or an error, comes out of the next call of any method, in the
    caller's thread. A full disk is an event and a warning: training goes on, the next save tries again, and the third
    failure in a row raises DiskError. As a context manager it ends with `finish`, and after KeyboardInterrupt with
    `abort`. It holds a copy of all tensors, in pinned memory for those on a GPU.
    """

    def __init__(self, run: Path, keep: Keep | None = None, events: Events | None = None, patience: int = 3) -> None:
        self.run, self.keep, self.events, self.patience = run, keep or Keep(), events, patience
        self.step: int | None = None
        self.saved: Saved | None = None
        self.failures = 0
        self._copies: dict[str, dict[str, Tensor]] = {}
        self._asked: tuple[Mapping[str, Any], Collection[int]] = {}, ()
        self._thread: threading.Thread | None = None
        self._result: Saved | BaseException | None = None
        self._unwanted = threading.Event()

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, tensors: Tensors, meta: Mapping[str, Any], needed: Collection[int] = ()) -> None:
        """Copies the tensors and begins to save the copies, as `write` does; a step that was saved is not saved again.

        Waits for the save that is under way. Raises NumericalError, at once, for what is not finite.
        """
        self.poll()
        there = None if self.saved is None else int(self.saved.path.name)
        if meta["step"] == (self.step if self.busy else there):
            return
        check_finite(tensors, meta["step"])
        self.wait()
        copied = self._copy(tensors)
        self.step, self._asked = meta["step"], (dict(meta), tuple(needed))
        self._begin(copied)

    def poll(self) -> None:
        """Tells what a save that has ended has to say; does not wait."""
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Waits for the save that is under way."""
        if self._thread is None:
            return
        self._thread.join()
        result, self._thread, self._result = self._result, None, None
        self._tell(result)

    def finish(self) -> None:
        """Waits, and tries once more what a full disk refused. Raises DiskError where it still does."""
        self.wait()
        if self.failures:
            self.patience = 1
            self._begin([])
            self.wait()

    def abort(self) -> None:
        """Breaks off the save that is under way, for good; the older checkpoints stay."""
        self._unwanted.set()
        if self._thread is not None:
            self._thread.join()
        self._thread, self._result = None, None

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        elif isinstance(error, Exception):
            with contextlib.suppress(Exception):  # the error that is on its way says more
                self.wait()
        else:
            self.abort()

    def _begin(self, copied: list[Any]) -> None:
        self._thread = threading.Thread(target=self._work, args=(copied,), name="nearzero-checkpoint")
        self._thread.start()

    def _work(self, copied: list[Any]) -> None:
        try:
            for event in copied:
                event.synchronize()
            meta, needed = self._asked
            self._result = write(self.run, self._copies, meta, self.keep, needed, self._check)
        except BaseException as error:
            self._result = error

    def _check(self) -> None:
        if self._unwanted.is_set():
            raise InterruptedError("the save is not wanted any more")

    def _tell(self, result: Saved | BaseException | None) -> None:
        if isinstance(result, Saved):
            self.failures, self.saved = 0, result
            self._add(
                "checkpoint",
                path=result.path.name,
                bytes=result.size,
                seconds=round(result.seconds, 3),
                deleted=result.deleted,
            )
            return
        if not isinstance(result, DiskError) or getattr(result.__cause__, "errno", None) not in files.FULL:
            if result is not None:
                raise result
            return
        self.failures += 1
        self._add("disk_full", failures=self.failures, error=str(result))
        if self.failures >= self.patience:
            raise result
        warn(f"{result}; training goes on, the next checkpoint tries again")

    def _add(self, kind: str, **facts: Any) -> None:
        if self.events is not None and self.step is not None:
            self.events.add(kind, self.step, **facts)

    def _copy(self, tensors: Tensors) -> list[Any]:
        """Copies everything into the same memory as last time; returns the events after which the copies are there."""
        old, self._copies, devices = self._copies, {}, set()
        for file, named in tensors.items():
            self._copies[file] = {}
            for name, tensor in named.items():
                copy = old.get(file, {}).get(name)
                if copy is None or (copy.shape, copy.dtype) != (tensor.shape, tensor.dtype):
                    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._copies[file][name] = copy.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
                devices |= {tensor.device} if tensor.is_cuda else set()
        return [torch.cuda.current_stream(device).record_event() for device in devices]


def _check_space(path: Path, size: int) -> None:
    """Raises DiskError, as a full disk does, where `size` bytes and a little more are not free."""
    free = shutil.disk_usage(files.existing(path)).free
    if free < size + 2**20:
        raise DiskError(
            f"cannot write {path}: it takes {size / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free; free some space"
        ) from OSError(files.FULL[0], "No space left on device")
