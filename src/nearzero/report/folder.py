"""The report of a folder: a reproduction with its numbers and pictures, and the runs that lie in it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nearzero.errors import CheckpointError, DataError
from nearzero.experiments import committed
from nearzero.experiments.committed import Result
from nearzero.files import read_json
from nearzero.report import compare
from nearzero.report.compare import Comparison
from nearzero.report.groups import grouped, with_numbers
from nearzero.report.measured import measured, numbers
from nearzero.report.page import Page, Picture, Section, Table
from nearzero.run import Run, is_run

MOST_ROWS, MOST_PICTURES, MOST_BYTES = 300, 24, 3_000_000
"""What a page shows at most, so that it stays small."""


@dataclass(frozen=True)
class Listed:
    """What a folder holds: results of reproductions, runs and pictures; and what is damaged."""

    path: Path
    results: Sequence[Result]
    comparison: Comparison | None
    pictures: Sequence[Path]
    damaged: Sequence[DataError | CheckpointError]


def read(path: Path) -> Listed:
    """Reads a folder: results in it, pictures in it, runs in it and two folders deep.

    Raises DataError where there is none of these.
    """
    damaged: list[DataError | CheckpointError] = []
    results: list[Result] = []
    for file in sorted(path.glob("*.json")):
        try:
            if committed.is_result(read_json(file)):
                results.append(committed.read(file))
        except (DataError, CheckpointError) as error:
            damaged.append(error)
    runs: list[Run] = []
    for place in sorted({file.parent for depth in ("*", "*/*") for file in path.glob(f"{depth}/run.json")}):
        try:
            runs += [Run.load(place)] if is_run(place) else []
        except CheckpointError as error:
            damaged.append(error)
    pictures = sorted(path.glob("*.png"))
    if not (results or runs or damaged):
        raise DataError(f"{path} is no run and holds neither runs nor results of nearzero reproduce; name another")
    return Listed(path, results, _compared(runs, damaged) if runs else None, pictures if results else [], damaged)


def _compared(runs: Sequence[Run], damaged: list[DataError | CheckpointError]) -> Comparison:
    """The runs with what their folders hold."""
    found = [measured(run.path) for run in runs]
    damaged += [error for one in found for error in one.damaged.values()]
    groups = grouped(runs, found)
    cards = {one.label: numbers(one.measured) for group in groups for one in group.members}
    return Comparison(with_numbers(groups, cards))


def verdict(found: Listed) -> list[str]:
    """What is in it, and what is wrong, in sentences."""
    lines = [f"{result.name}: {len(result.rows):,} rows, {_sealed(result)}." for result in found.results]
    if found.comparison is not None:
        told = ", ".join(group.text() for group in found.comparison.groups)
        lines.append(f"{len(found.comparison.members)} runs: {told}.")
    return lines + [f"Something is wrong: {error}." for error in found.damaged]


def _sealed(result: Result) -> str:
    return "whole, by its seal" if result.sealed else "written before results were sealed"


def page(found: Listed, command: str) -> Page:
    """The whole report."""
    sections = [_result(result, found.pictures if k == 0 else []) for k, result in enumerate(found.results)]
    if found.comparison is not None:
        one = found.comparison
        several = len(one.members) > 1
        sections += compare.page(one, "").sections[:-1] if several else _alone(one)
        paths = " ".join(shlex.quote(str(member.run.path)) for member in one.members)
        if several:
            command += f"\n# the same with samples and K near t = 0\nnearzero compare {paths} --html compare.html"
    sections.append(Section("Commands", commands=command))
    return Page(f"Report: {found.path.resolve().name}", verdict(found), sections, str(found.path))


def _alone(one: Comparison) -> list[Section]:
    run = one.members[0].run.path
    commands = f"nearzero report {shlex.quote(str(run))}"
    return [Section("The run", (), (), (compare.runs_table(one.members),), commands=commands)]


def _result(result: Result, pictures: Sequence[Path]) -> Section:
    """A reproduction: how it was made, its pictures, its rows."""
    made = [(name, str(value)) for name, value in (result.machine or {}).items()]
    rows = [[_short(cell) for cell in row] for row in result.rows[:MOST_ROWS]]
    left = len(result.rows) - len(rows)
    caption = f"The first {len(rows)} rows; {left:,} more are in {result.name}.csv." if left else ""
    tables = [Table(result.header, rows, caption), *([Table(("made on", "value"), made)] if made else [])]
    verify = f"nearzero reproduce --verify {shlex.quote(str(result.path))}"
    commands = f"# made by\n{result.command}\n# compare it with a rerun\n{verify}"
    return Section(result.name, (f"This result is {_sealed(result)}.",), _pictures(pictures), tables, commands=commands)


def _pictures(paths: Sequence[Path]) -> list[Picture]:
    """PNG files as pictures, as many as a small page takes."""
    shown, size = [], 0
    for path in paths[:MOST_PICTURES]:
        content = path.read_bytes()
        size += len(content)
        if content.startswith(b"\x89PNG") and size <= MOST_BYTES:
            shown.append(Picture(content, path.stem, path.name))
    return shown


def _short(cell: str) -> str:
    """A number to six digits; text as it is."""
    try:
        return f"{float(cell):.6g}" if "." in cell or "e" in cell else cell
    except ValueError:
        return cell
