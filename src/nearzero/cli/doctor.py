"""nearzero doctor."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearzero.cli.common import emit, json_option
from nearzero.cli.reproduce import check_folder, write_page

if TYPE_CHECKING:
    from nearzero.diagnostics.schedule import Schedule
    from nearzero.recipe import Recipe


@click.group()
def command() -> None:
    """Examine a recipe before it is trained.

    \b
    nearzero doctor schedule etsdm
    nearzero doctor schedule full_w --json
    """


@command.command()
@click.argument("recipe")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Also write DIR/index.html, a page, and its picture."
)
@json_option
def schedule(recipe: str, out: Path | None, as_json: bool) -> None:
    """Say whether RECIPE's noise schedule is singular at t = 0, what signal its end keeps, and what it truncates.

    \b
    nearzero doctor schedule ddpm
    nearzero doctor schedule full_w --json
    nearzero doctor schedule edm --out edm-schedule

    Each truncation comes with its cost in nats on two mixtures of normals on the line, a smooth and a sharp one.
    """
    from dataclasses import asdict

    from nearzero.diagnostics.schedule import examine
    from nearzero.recipes import named

    chosen = named(recipe)
    if out is not None:
        check_folder(out)
    found = examine(chosen.process, chosen.times, chosen.grid, chosen.steps, chosen.conditioning)
    if out is not None:
        _write(out, chosen, found)
    page = None if out is None else str(out / "index.html")
    document: dict[str, Any] = {"command": "doctor schedule", "recipe": recipe, "page": page, **asdict(found)}
    for entry in document["ledger"]:  # JSON knows no infinity
        entry.update({key: None for key in ("nats_smooth", "nats_sharp") if not math.isfinite(entry[key])})
    text = _text(recipe, found) + ("" if page is None else f"\npage: {page}")
    emit({**document, "singular": found.singular, "verdict": found.verdict()}, text, as_json)


def _text(recipe: str, found: Schedule) -> str:
    """The same as lines."""
    told = [*found.truncations, *found.notes]
    rest = [line for line in map(str, found.ledger) if line not in told]
    lines = [
        f"{recipe}: {found.verdict()}",
        f"  sigma at the first timestep      {found.first_sigma:.4g}",
        f"  sigma in float32, in bfloat16    relative error {found.float32_error:.1e}, {found.bfloat16_error:.1e}",
        *(f"  left out                         {line}" for line in found.truncations),
        *(f"  and                              {line}" for line in (*rest, *found.notes)),
    ]
    if found.naive_float32_error:
        error = f"relative error {found.naive_float32_error:.1e}, which is why it is not computed so"
        lines.insert(3, f"  sqrt(1 - alpha^2) in float32     {error}")
    return "\n".join(lines)


def _write(out: Path, recipe: Recipe, found: Schedule) -> None:
    """The page: the picture, the truncation ledger, the numbers."""
    from nearzero.report.page import Page, Section, Table
    from nearzero.report.theory import schedule as draw

    ledger = Table(
        ("what", "t", "nats, smooth data", "nats, sharp data"),
        [(one.what, f"{one.t:.4g}", f"{one.nats_smooth:.2g}", f"{one.nats_sharp:.2g}") for one in found.ledger],
        "Kullback-Leibler divergences on mixtures of three normals on the line, of spreads 0.3 to 0.4 (smooth) and "
        "0.0105 (sharp), by quadrature. Of D independent coordinates like these the costs are D times as large.",
    )
    rows = {
        "p of sigma / alpha ~ t^p at t = 0": f"{found.exponent:.3f}",
        "SNR left at the end": f"{found.terminal_snr:.3g}",
        "sigma at the first timestep": f"{found.first_sigma:.4g}",
        "relative error of sigma in float32": f"{found.float32_error:.1e}",
        "relative error of sigma in bfloat16": f"{found.bfloat16_error:.1e}",
    }
    picture = draw(recipe, found)
    sections = (
        Section("The schedule", found.notes[1:], (picture,), (Table(("", recipe.name), list(rows.items())),)),
        Section("What stopping short costs", (), (), (ledger,)),
    )
    verdict = found.verdict()
    origin = f"nearzero doctor schedule {recipe.name} --out {shlex.quote(str(out))}"
    page = Page(f"The schedule of {recipe.name}", (f"{verdict[0].upper()}{verdict[1:]}.",), sections, origin)
    write_page(out, page, {"schedule.png": picture})
