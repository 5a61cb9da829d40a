"""nearzero compare."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearzero.cli.common import device_option, emit, json_option, pick_device, reporting, run_images
from nearzero.errors import ArgumentError, DataError, GateError

if TYPE_CHECKING:
    from nearzero.cards import Card
    from nearzero.diagnostics.diagnosis import Diagnosis
    from nearzero.report.compare import Comparison
    from nearzero.report.groups import Group, Member

FAIL_HELP = "Exit with 10 where this holds: 'fd>12.5', 'fd[etsdm]>fd[ddpm]+0.1'; may be repeated."


@click.command()
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Also write a page for a browser.")
@click.option(
    "-n", "count", type=click.IntRange(1, 256), metavar="N", help="Samples of each on the page.  [default: 16]"
)
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="DIR", help="Images for K.  [default: the first run's]"
)
@click.option(
    "--images",
    "probes",
    type=click.IntRange(min=2),
    default=16,
    show_default=True,
    metavar="N",
    help="How many of them.",
)
@click.option("--fail-if", "conditions", multiple=True, metavar="EXPR", help=FAIL_HELP)
@device_option
@json_option
def command(
    runs: tuple[Path, ...],
    html: Path | None,
    count: int | None,
    data: Path | None,
    probes: int,
    conditions: tuple[str, ...],
    device: str,
    as_json: bool,
) -> None:
    """Compare runs: their recipes, distances, likelihoods, K near t = 0, training and samples.

    \b
    nearzero compare runs/etsdm runs/ddpm --html compare.html
    nearzero compare runs/etsdm-* runs/ddpm-* --html compare.html
    nearzero compare runs/new runs/old --fail-if 'fd[new]>fd[old]+0.1'

    Distances and likelihoods are those that `nearzero evaluate` has left in the runs' folders, and are ranked only
    where they were measured in one way. Runs that differ in the training seed alone form a group, and groups are
    compared over equal seeds. Exit code 10: a condition of --fail-if holds.
    """
    from nearzero.interop.pipeline_run import open_run
    from nearzero.report import compare, gates
    from nearzero.report.groups import grouped, lookup, with_numbers
    from nearzero.report.measured import measured

    parsed = [gates.parse(text) for text in conditions]
    if len(runs) < 2:
        alone = ", ".join(map(str, runs))
        raise ArgumentError(f"{alone} alone cannot be compared; name two runs, or see: nearzero report {alone}")
    if count is not None and html is None:
        raise ArgumentError(f"-n {count}: samples are drawn for the page; add --html FILE")
    if html is not None:
        check_page(html)
    device = pick_device(device)
    opened = [open_run(run).pinned() for run in runs]
    groups = grouped(opened, [measured(run.path).check() for run in opened])
    gates.precheck(parsed, partial(lookup, with_numbers(groups, _cards(groups, {}))))
    found = _measure(groups, data, probes, device, None if html is None else count or 16)
    if html is not None:
        compare.page(found, shlex.join(["nearzero", *sys.argv[1:]])).write(html)
    holding = gates.check(parsed, partial(lookup, found.groups))
    document = {"command": "compare", "page": None if html is None else str(html), **compare.describe(found)}
    document["fail_if"] = holding
    emit(document, _text(found, html), as_json)
    failed = [f"{text!r} holds: {how}" for text, how in holding.items() if how]
    if failed:
        raise GateError("--fail-if " + "; ".join(failed))


def check_page(path: Path) -> None:
    """Raises before anything is measured where a page cannot be written, or would replace something else."""
    from nearzero.files import check_writable
    from nearzero.report.page import Page

    check_writable(path)
    if path.is_dir():
        raise ArgumentError(f"--html {path} is a folder; name a file")
    if path.exists() and not Page.is_one(path):
        raise ArgumentError(f"--html {path} exists and is no page of nearzero's; name another file")


def _measure(groups: list[Group], data: Path | None, probes: int, device: str, count: int | None) -> Comparison:
    """Measures what no file holds: K near t = 0, and samples if there is a page."""
    from nearzero.report.compare import Comparison
    from nearzero.report.groups import with_numbers

    members = [one for group in groups for one in group.members]
    found, notes = _diagnoses(members, data, probes, device)
    sheets = {} if count is None else _samples(members, count, device)
    return Comparison(with_numbers(groups, _cards(groups, found)), found, sheets, notes)


def _cards(groups: Sequence[Group], found: Mapping[str, Diagnosis]) -> dict[str, dict[str, Card]]:
    """Every run's numbers, by label."""
    from nearzero.report.measured import numbers

    return {one.label: numbers(one.measured, found.get(one.label)) for group in groups for one in group.members}


def _diagnoses(
    members: list[Member], data: Path | None, probes: int, device: str
) -> tuple[dict[str, Diagnosis], list[str]]:
    """Every run near t = 0 on the same images and noise; none, and why, where they cannot be measured alike."""
    import torch

    from nearzero.diagnostics.diagnosis import diagnose, shared_interval
    from nearzero.randomness import order

    first = next((one.run for one in members if one.run.data), members[0].run)
    shapes = {(one.run.recipe.network.size, one.run.recipe.network.channels) for one in members}
    if len(shapes) > 1:
        return {}, ["not comparable: K near t = 0, as the runs' images have different sizes or channels"]
    if any(one.run.recipe.process != first.recipe.process for one in members):
        return {}, ["not comparable: K near t = 0, as the runs' processes differ and with them the timesteps"]
    try:
        if not first.data and data is None:
            raise DataError(f"{first.path} does not say which images it was trained on; name some with --data DIR")
        images = run_images(first, data)
    except DataError as error:
        if data is not None:
            raise
        return {}, [f"K near t = 0 was not measured: {error}"]
    chosen = images.pixels[order(0, torch.arange(min(probes, len(images))), len(images))]
    denoisers = {one.label: one.run.denoiser(device=device) for one in members}
    interval = max(filter(None, map(shared_interval, denoisers.values())), default=None)
    found = {}
    for one in members:
        x0 = one.run.recipe.codec.encode(chosen).to(device)
        with reporting(f"diagnosing {one.label}", "pairs of timesteps") as show:
            found[one.label] = diagnose(denoisers[one.label], x0, interval=interval, progress=show)
    return found, []


def _samples(members: list[Member], count: int, device: str) -> dict[str, Any]:
    """uint8 samples of seeds 0 to count - 1, by label."""
    from nearzero.files import to_bytes

    found = {}
    with reporting("sampling", "images") as show:
        for done, one in enumerate(members, 1):
            found[one.label] = to_bytes(one.run.sample(range(count), batch=16, device=device))
            show(done * count, len(members) * count)
    return found


def _text(found: Comparison, html: Path | None) -> str:
    """The tables as text, the sentences, the page."""
    from nearzero.report import compare

    parts = [as_text(table.header, table.rows) for table in compare.tables(found)]
    text = [*compare.ranking(found.members)[1], *compare.remarks(found), *([f"page: {html}"] if html else [])]
    return "\n\n".join([*parts, *(["\n".join(text)] if text else [])])


def as_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in columns. The last cell of a line, and one with nothing behind it, may be as long as it likes."""
    lines = [list(header), *map(list, rows)]
    alone = [not any(line[1:]) for line in lines]
    widths = [
        max(len(line[i]) for line, single in zip(lines, alone, strict=True) if not single) for i in range(len(header))
    ]
    shown = [
        line[0] if single else "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line, single in zip(lines, alone, strict=True)
    ]
    return "\n".join(shown)
