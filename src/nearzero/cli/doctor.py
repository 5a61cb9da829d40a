"""nearzero doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nearzero.cli.common import emit, json_option

if TYPE_CHECKING:
    from nearzero.diagnostics.schedule import Schedule


@click.group()
def command() -> None:
    """Examine a recipe before it is trained.

    \b
    nearzero doctor schedule etsdm
    nearzero doctor schedule full_w --json
    """


@command.command()
@click.argument("recipe")
@json_option
def schedule(recipe: str, as_json: bool) -> None:
    """Say whether RECIPE's noise schedule is singular at t = 0, what signal its end keeps, and what it truncates.

    \b
    nearzero doctor schedule ddpm
    nearzero doctor schedule full_w --json
    """
    from dataclasses import asdict

    from nearzero.diagnostics.schedule import examine
    from nearzero.recipes import named

    chosen = named(recipe)
    found = examine(chosen.process, chosen.times, chosen.grid, chosen.steps, chosen.conditioning)
    document: dict[str, Any] = {"command": "doctor schedule", "recipe": recipe, **asdict(found)}
    emit({**document, "singular": found.singular, "verdict": found.verdict()}, _text(recipe, found), as_json)


def _text(recipe: str, found: Schedule) -> str:
    """The same as lines."""
    lines = [
        f"{recipe}: {found.verdict()}",
        f"  sigma at the first timestep      {found.first_sigma:.4g}",
        f"  sigma in float32, in bfloat16    relative error {found.float32_error:.1e}, {found.bfloat16_error:.1e}",
        *(f"  left out                         {line}" for line in found.truncations),
        *(f"  and                              {line}" for line in found.notes),
    ]
    if found.naive_float32_error:
        error = f"relative error {found.naive_float32_error:.1e}, which is why it is not computed so"
        lines.insert(3, f"  sqrt(1 - alpha^2) in float32     {error}")
    return "\n".join(lines)
