"""Results that are kept: what `nearzero reproduce` writes, sealed, and whether they still come out.

    NAME.json    the command, the summary, the machine, the SHA-256 of NAME.csv, and a seal over all of it
    NAME.csv     the rows, below a comment with the command

A number holds if it is the same text, or lies within its own 95 % interval; one without an error must agree to 1e-6.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

import nearzero
from nearzero.errors import CheckpointError, DataError, NumericalError
from nearzero.experiments.theory import Found
from nearzero.files import read_json, write_bytes, write_json

SCHEMA = 1
OPTIONS = ("budget", "data", "test", "size", "seed", "device", "out")
"""Of `nearzero reproduce`, in a result's command."""
ERRORS = ("standard error", "error")
"""Columns that hold the error of "value"."""
FREE = (*ERRORS, "evaluations")
"""Columns that another machine may fill otherwise."""
CLOSE = 1e-6  # relative, for numbers without an error on a machine of another kind


@dataclass(frozen=True)
class Result:
    """A result as it lies on the disk: `header` and `rows` are the CSV's texts, `machine` what made them.

    `sealed` is whether its files carry the hashes that older ones lack.
    """

    path: Path
    name: str
    command: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    machine: Mapping[str, Any] | None
    sealed: bool
    summary: Mapping[str, Any]

    def options(self) -> dict[str, str]:
        """The command's options: {"budget": "smoke", ...}. Raises DataError where it is no such command."""
        try:
            words = shlex.split(self.command)
        except ValueError:  # a quotation that does not end
            words = []
        names, values = words[3::2], words[4::2]
        known = {f"--{name}" for name in OPTIONS}
        if words[:3] != ["nearzero", "reproduce", self.name] or len(names) != len(values) or set(names) - known:
            raise DataError(f"{self.path} names no command of nearzero's: {self.command[:100]!r}; make it anew")
        return {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}


def machine(device: str) -> dict[str, Any]:
    """What decides how numbers are rounded: on two CPUs that are told alike a rerun gives the same bits."""
    return {
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": device,
    }


def _cpu() -> str:
    """The processor's name, where the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def write(out: Path, name: str, found: Found, command: str, device: str = "cpu") -> list[str]:
    """Writes NAME.csv and NAME.json, each whole; returns the files' names."""
    text = io.StringIO()
    text.write(f"# {command}\n")
    csv.writer(text, lineterminator="\n").writerows([found.header, *found.rows])
    content = text.getvalue().encode("utf-8", "backslashreplace")
    about = {"schema_version": SCHEMA, "nearzero": nearzero.__version__, "machine": machine(device)}
    record = {
        "command": command,
        "name": name,
        **found.summary,
        **about,
        "csv_sha256": hashlib.sha256(content).hexdigest(),
    }
    record = json.loads(json.dumps(record))  # tuples become lists, so that the seal is of what the file says
    write_bytes(out / f"{name}.csv", content)
    write_json(out / f"{name}.json", {**record, "sha256": seal(record)})
    return [f"{name}.csv", f"{name}.json"]


def seal(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record without its seal, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def is_result(record: Any) -> bool:
    """Whether a JSON document is one that `write` made, now or before results were sealed."""
    command, name = (record.get(key) if isinstance(record, dict) else None for key in ("command", "name"))
    return isinstance(command, str) and isinstance(name, str) and command.startswith(f"nearzero reproduce {name}")


def read(path: Path) -> Result:
    """Reads a result and the CSV beside it.

    Raises DataError where either was edited or they do not belong together, CheckpointError where one cannot be read.
    """
    record = read_json(path)
    if not is_result(record):
        raise DataError(f"{path} is no result of nearzero reproduce; name results/FOLDER/NAME.json")
    told = record.pop("sha256", None)
    if (told is not None or "csv_sha256" in record) and told != seal(record):
        raise DataError(f"{path} was edited: its content has another hash than it says; make it anew")
    content = _content(path.with_suffix(".csv"))
    if told is not None and record.get("csv_sha256") != hashlib.sha256(content).hexdigest():
        raise DataError(f"{path.with_suffix('.csv')} is not the one that {path.name} was written with; make it anew")
    first, *lines = content.decode("utf-8", "replace").splitlines()
    if first != f"# {record['command']}":
        raise DataError(f"{path.with_suffix('.csv')} was made by another command than {path.name}; make both anew")
    header, *rows = list(csv.reader(lines)) or [[]]
    if any(len(row) != len(header) for row in rows) or not rows:
        raise DataError(f"{path.with_suffix('.csv')} is damaged: its lines have different lengths; make it anew")
    return Result(
        path, record["name"], record["command"], header, rows, record.get("machine"), told is not None, record
    )


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; a result needs its CSV beside it") from error
    if not content.strip():
        raise DataError(f"{path} is empty; make it anew")
    return content


def smoke(result: Result) -> Result | None:
    """The result of the smoke budget that a rerun is compared with: itself, or one in a folder beside its own.

    None where there is none. Raises what `read` raises of it.
    """
    if result.options().get("budget", "smoke") == "smoke":
        return result
    for path in sorted(result.path.absolute().parent.parent.glob(f"*/{result.path.name}")):
        other = read(path)
        if other.name == result.name and other.options().get("budget", "smoke") == "smoke":
            return other
    return None


class Check(NamedTuple):
    """How many numbers were compared and how many of them are the same to the last digit, on a machine of that kind."""

    numbers: int
    same: int
    same_machine: bool


def compare(result: Result, found: Found, here: Mapping[str, Any]) -> Check:
    """Compares a rerun with the result. Raises NumericalError for the first number that does not hold.

    On a machine of the same kind every text must be the same; on another, or where the result does not name its own,
    values lie within their 95 % intervals.
    """
    rows = [[_text(cell) for cell in row] for row in found.rows]
    if [str(cell) for cell in found.header] != list(result.header) or len(rows) != len(result.rows):
        raise NumericalError(
            f"{result.path}: a rerun gives {len(rows)} rows of {len(found.header)} columns, the file has "
            f"{len(result.rows)} of {len(result.header)}; the experiment has changed, make it anew"
        )
    alike, numbers, same = here["device"] == "cpu" and result.machine == dict(here), 0, 0
    for old, new in zip(result.rows, rows, strict=True):
        for place, (was, now) in enumerate(zip(old, new, strict=True)):
            number = _number(was) is not None
            numbers, same = numbers + number, same + (number and was == now)
            if was != now and (alike or not _holds(result.header, old, place, now)):
                raise NumericalError(_differs(result, old, place, now, alike))
    return Check(numbers, same, alike)


def _holds(header: Sequence[str], row: Sequence[str], place: int, now: str) -> bool:
    """Whether a cell's new text is as good as its old: within its interval, or close where it has none."""
    was, value = _number(row[place]), _number(now)
    if was is None or value is None:
        return False
    if header[place] in FREE or math.isclose(was, value, rel_tol=CLOSE, abs_tol=1e-12):
        return True
    errors = [_number(row[k]) for k, name in enumerate(header) if name in ERRORS]
    error = next((one for one in errors if one is not None), 0.0)
    return header[place] == "value" and abs(value - was) <= 1.96 * error


def _differs(result: Result, row: Sequence[str], place: int, now: str, alike: bool) -> str:
    where = ", ".join(cell for cell, name in zip(row, result.header, strict=True) if name not in ("value", *ERRORS))
    law = "which this kind of machine must repeat to the last digit" if alike else "outside its 95 % interval"
    return f"{result.path}: {where}: {result.header[place]} is {now}, the file has {row[place]}, {law}"


def _text(cell: Any) -> str:
    """A cell as csv writes it."""
    return "" if cell is None else str(cell)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
