"""events.jsonl: what a run did on its own, one JSON line for each, in the order in which it happened.

    {"time": "2026-01-31T12:00:00.000+00:00", "kind": "skip", "step": 1200, ...facts}

A resumed run adds to it: the file tells what happened, also what a resume took back.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nearzero.errors import ArgumentError


def warn(message: str) -> None:
    """A warning of one line on stderr, where there is one that takes it."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # closed, or a pipe that nobody reads
            print(f"nearzero: warning: {' '.join(message.split())}", file=sys.stderr, flush=True)


class Appender:
    """Adds whole lines to a file and never raises: what the disk refuses is kept and tried again with the next line.

    The last `keep` unwritten lines are kept in memory. The first refusal is a warning on stderr; each outage calls
    `failed(error)` when it begins and `recovered(lost)` when it ends. What a crash or a full disk left of a line is
    cut off before the next. Threads and signal handlers may add lines; each is written once, whole.
    """

    def __init__(
        self,
        path: Path,
        *,
        failed: Callable[[OSError], None] = lambda error: None,
        recovered: Callable[[int], None] = lambda lost: None,
        keep: int = 1000,
    ) -> None:
        self.path, self.failed, self.recovered = path, failed, recovered
        self.waiting: deque[bytes] = deque(maxlen=keep)
        self.lost = 0
        self.down = self.warned = self._busy = False
        self._lock = threading.RLock()

    def append(self, line: str) -> None:
        """Writes the line, after those that wait."""
        with self._lock:
            self.lost += len(self.waiting) == self.waiting.maxlen
            self.waiting.append(f"{line}\n".encode())
            if self._busy:  # a signal handler inside a write: that write takes this line too
                return
            self._busy = True
            try:
                self._write()
            except OSError as error:
                self._refused(error)
            else:
                self._accepted()
            finally:
                self._busy = False

    def _write(self) -> None:
        with self.path.open("a+b", buffering=0) as file:
            _cut_half_line(file)
            while self.waiting:
                rest = memoryview(self.waiting[0])
                while rest:
                    rest = rest[file.write(rest) :]
                self.waiting.popleft()

    def _refused(self, error: OSError) -> None:
        if not self.warned:
            reason = error.strerror or error
            warn(f"cannot write {self.path}: {reason}; training goes on, and writing is tried again at later lines")
        begins, self.down, self.warned = not self.down, True, True
        if begins:
            self.failed(error)

    def _accepted(self) -> None:
        if self.down:
            lost, self.down, self.lost = self.lost, False, 0
            self.recovered(lost)


class Events:
    """The log of a run's automatic actions, at `path`."""

    def __init__(self, path: Path) -> None:
        self.file = Appender(path)

    def add(self, kind: str, step: int, **facts: Any) -> None:
        """Appends one line and hands it to the system at once; a full disk is a warning, never an exception.

        Facts are what JSON has; tensors become lists, numbers that are not finite "nan", "inf" or "-inf", the rest its
        str(). Raises ArgumentError for a fact that is called time.
        """
        if "time" in facts:
            raise ArgumentError(f"an event's time is when it is logged; call the fact {kind}_time or times")
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.file.append(json.dumps({"time": now, "kind": kind, "step": step, **_plain(facts)}, allow_nan=False))


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a file, in order; none where there is no file. Lines that a crash cut short are left out."""
    if not path.is_file():
        return []
    found = map(record, path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [event for event in found if event is not None and "kind" in event]


def summary(events: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How often each kind of event came, in the order of their first."""
    return dict(Counter(str(event["kind"]) for event in events))


def record(line: str) -> dict[str, Any] | None:
    """The object of a line of JSON; None where a crash cut it short, or it is something else."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _cut_half_line(file: Any) -> None:
    """Cuts off what follows the last newline."""
    size = file.seek(0, 2)
    if size:
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def _plain(value: Any) -> Any:
    """The value in JSON's types."""
    if hasattr(value, "tolist"):  # a tensor, array or number of theirs
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set | range):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)
