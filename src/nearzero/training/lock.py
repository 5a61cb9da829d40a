"""One writer a run folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from nearzero.errors import ArgumentError, DiskError
from nearzero.files import disk_errors

NAME = "lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Holder(NamedTuple):
    """Who writes a run: host, process id, and when it began (UTC, ISO 8601); pid 0 where the file does not tell."""

    host: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.started}" if self.pid else "another process"


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[bool]:
    """Makes this process the only writer of a run folder, which it makes if need be, while the block lasts.

    Yields True; False where the platform or the file system has no locks (Windows, some network file systems), and then
    two writers are not kept apart: say so. It is flock on FOLDER/lock, which holds host, process id and start time
    while it is held: the kernel takes the lock back when the process dies, however it dies, so nothing is ever stale.
    Other processes may read the folder meanwhile. Raises ArgumentError where another process, or this one, holds it,
    and DiskError where the file cannot be written or is a link.
    """
    path = Path(folder) / NAME
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    handle = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        held = _take(handle, path)
        with disk_errors(path):
            _write(handle, json.dumps(Holder(socket.gethostname(), os.getpid(), _now())._asdict()) if held else "")
        try:
            yield held
        finally:
            if held:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, 0)  # a folder that nobody writes names nobody
    finally:
        os.close(handle)


def holder(folder: str | Path) -> Holder | None:
    """Who writes a run folder now; None if nobody does, or it cannot be told. Changes nothing in the folder."""
    path = Path(folder) / NAME
    if fcntl is None or not path.exists():
        return None
    try:
        handle = _open(path, os.O_RDONLY)
    except DiskError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(handle)
    except OSError:
        return None
    finally:
        os.close(handle)
    return None


def _open(path: Path, flags: int) -> int:
    """The file itself: never what a link points to, nor a file that has another name besides this one."""
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    if path.is_symlink():  # also where O_NOFOLLOW is missing
        raise DiskError(f"cannot write {path}: it is a link; delete it")
    with disk_errors(path):
        handle = os.open(path, flags, 0o666)
    kind = os.fstat(handle)
    if not stat.S_ISREG(kind.st_mode) or kind.st_nlink > 1:
        os.close(handle)
        raise DiskError(f"cannot write {path}: it is no file of its own; delete it")
    return handle


def _take(handle: int, path: Path, tries: int = 4) -> bool:
    """Locks the file; a few tries, as `holder` holds it for a moment. False where there are no locks."""
    for left in reversed(range(tries)):
        try:
            if fcntl is None:
                return False
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError as error:
            if not left:
                raise ArgumentError(
                    f"{path.parent} is being written by {_read(handle)}; wait for it, stop it or choose another --out"
                ) from error
            time.sleep(0.02)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            with disk_errors(path):
                raise
    return False


def _write(handle: int, text: str) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, text.encode(), 0) if text else None


def _read(handle: int) -> Holder:
    """What the file says of its holder, which may be anything: at most 100 printable characters of each name."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        record = json.loads(os.read(handle, 4096))
        host, started = ("".join(c for c in str(record[key]) if c.isprintable())[:100] for key in ("host", "started"))
        return Holder(host, int(record["pid"]), started)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return Holder("", 0, "")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
