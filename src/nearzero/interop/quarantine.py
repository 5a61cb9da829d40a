"""A pickled file, read in a process of its own: what comes back is safetensors and JSON."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nearzero.errors import CheckpointError
from nearzero.files import read_json

PASSED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""Variables of the environment without which Python or torch may not start."""


StateDict = tuple[str, Path, dict[str, str]]
"""A state dict that came out of a file: its place there, a safetensors file, and the dtypes of what was left out."""


@dataclass(frozen=True)
class Taken:
    """What came out of a file: its kind, the names in it, whether the kernel cut the network off, its state dicts."""

    kind: str
    names: tuple[str, ...]
    names_left_out: int
    offline: bool
    dicts: tuple[StateDict, ...]


@contextmanager
def taken(file: Path, beside: Path, seconds: float = 3600) -> Iterator[Taken]:
    """What a pickled file holds, for as long as the block lasts; `beside` is a folder for what is written meanwhile.

    The process that reads it has an empty environment, an own temporary folder, limits of memory, time and file size,
    may start no other process, and has no network: by the kernel where `unshare` can do that, by Python's audit hook
    elsewhere. Raises CheckpointError where it ends with an error, is killed, or takes longer than `seconds`.
    """
    folder = Path(tempfile.mkdtemp(prefix=".tmp-reading-", dir=beside))
    try:
        offline = _read(file, folder, seconds)
        yield _collected(folder, file, offline)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read(file: Path, folder: Path, seconds: float) -> bool:
    """Runs the process. Returns whether the kernel cut its network off."""
    (folder / "out").mkdir()
    prefix = _without_network()
    arguments = [*prefix, sys.executable, "-P", "-s", "-W", "ignore", "-m", "nearzero.interop.unpickle"]
    try:
        with (folder / "said").open("wb") as said:
            done = subprocess.run(  # noqa: S603
                [*arguments, str(file.absolute()), str((folder / "out").absolute())],
                env=_environment(folder),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                timeout=seconds,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"{file} took more than {seconds:,.0f} s to read; refused") from error
    if done.returncode:
        raise CheckpointError(_last_line(folder / "said", file, done.returncode))
    return bool(prefix)


def _environment(folder: Path) -> dict[str, str]:
    """Where Python finds the same modules as this process, one thread, and an own home and temporary folder."""
    passed = {name: os.environ[name] for name in PASSED if name in os.environ}
    path = os.pathsep.join(entry for entry in sys.path if entry)
    own = str(folder.absolute())
    return {**passed, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HOME": own, "TMPDIR": own, "TEMP": own}


def _without_network() -> list[str]:
    """The command that starts another without a network, where this machine lets it; else nothing."""
    program = shutil.which("unshare", path="/usr/bin:/bin")
    if program is None or not sys.platform.startswith("linux"):
        return []
    prefix = [program, "--net", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--"]
    nothing = [*prefix, sys.executable, "-I", "-S", "-c", ""]
    able = subprocess.run(nothing, env={}, capture_output=True, check=False)  # noqa: S603
    return prefix if able.returncode == 0 else []


def _last_line(said: Path, file: Path, code: int) -> str:
    """Why the process ended, in one line: its own, or the signal that killed it."""
    if code == CheckpointError.exit_code:
        with said.open("rb") as stream:
            lines = stream.read(10_000).decode("utf-8", "replace").strip().split("\n")
        if lines[-1]:
            return lines[-1][:2000]
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{file} cannot be read: the process that read it ended with {how}, by a limit or a fault; refused"


def _collected(folder: Path, file: Path, offline: bool) -> Taken:
    """What the process wrote, trusted no more than the file. Raises CheckpointError."""
    record = read_json(folder / "out" / "found.json")
    try:
        names, left = record["names"], record["names_left_out"]
        dicts = [
            (entry["place"], folder / "out" / f"{number}.safetensors", entry["left_out"])
            for number, entry in enumerate(record["state_dicts"])
        ]
        texts = [record["kind"], *names, *(place for place, _, _ in dicts)]
        texts += [text for _, _, missing in dicts for pair in missing.items() for text in pair]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} cannot be read: the process that read it wrote no record; refused") from error
    if not all(isinstance(text, str) for text in texts) or type(left) is not int:
        raise CheckpointError(f"{file} cannot be read: the record of the process that read it is damaged; refused")
    if any(path.is_symlink() or not path.is_file() for _, path, _ in dicts):
        raise CheckpointError(f"{file} cannot be read: the process that read it wrote no tensors; refused")
    return Taken(record["kind"], tuple(names), left, offline, tuple(dicts))
