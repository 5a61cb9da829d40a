"""Errors: one class for each exit code of the command.

Every message is one line that names the value, the law that it breaks and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NearzeroError(Exception):
    """Base of every error that nearzero raises on purpose; `exit_code` is what the command returns."""

    exit_code = 1


class ArgumentError(NearzeroError, ValueError):
    """An argument, option or value outside its law."""

    exit_code = 2


class DataError(NearzeroError, ValueError):
    """Images that are missing, unreadable, or of the wrong shape."""

    exit_code = 3


class CheckpointError(NearzeroError, ValueError):
    """A run folder or checkpoint that is missing, damaged, or made by something else."""

    exit_code = 4


class NumericalError(NearzeroError, ArithmeticError):
    """A number that should be finite and is not."""

    exit_code = 5


class OutOfMemoryError(NearzeroError, MemoryError):
    """The device has too little memory for what was asked."""

    exit_code = 6


class DiskError(NearzeroError, OSError):
    """A folder that cannot be written, or a disk that is full."""

    exit_code = 7


class GateError(NearzeroError):
    """A condition that was asked to fail on, and that holds."""

    exit_code = 10


class Stopped(NearzeroError):
    """Training was asked to stop and left a valid checkpoint behind."""

    exit_code = 75


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """The end of an error sentence: the nearest option if there is one, and all of them unless they are many.

    >>> did_you_mean("etsmd", ["ddpm", "etsdm"])
    "did you mean 'etsdm'? (known: ddpm, etsdm)"
    """
    known = sorted(options)
    near = difflib.get_close_matches(name, known, n=1)
    everything = f"known: {', '.join(known)}"
    if not near:
        return everything
    return f"did you mean '{near[0]}'?" + (f" ({everything})" if len(known) <= 8 else "")
