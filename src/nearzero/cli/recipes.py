"""nearzero recipes."""

from __future__ import annotations

import textwrap
from dataclasses import fields

import click

from nearzero.cli.common import emit, json_option


@click.command()
@click.argument("a", required=False)
@click.argument("b", required=False)
@json_option
def command(a: str | None, b: str | None, as_json: bool) -> None:
    """Print every recipe on the seven axes (Table 1), show recipe A, or show the axes on which A and B differ.

    \b
    nearzero recipes
    nearzero recipes ddpm etsdm
    """
    from nearzero.recipes import RECIPES, Recipe, differences, named
    from nearzero.recipes.table import COLUMNS, table
    from nearzero.registry import encode

    if a is None:
        about = {name: (make.__doc__ or "").strip().splitlines()[0] for name, make in RECIPES.items()}
        rows = table()
        axes = {name: dict(zip(COLUMNS, row, strict=True)) for name, row in rows.items()}
        emit({"command": "recipes", "recipes": about, "table": axes}, _table(rows, about), as_json)
    elif b is None:
        recipe = named(a)
        lines = "\n".join(f"{f.name:17}{getattr(recipe, f.name)}" for f in fields(Recipe))
        emit({"command": "recipes", "recipe": encode(recipe)}, f"{lines}\n\n{_doc(RECIPES[a].__doc__)}", as_json)
    else:
        found = differences(named(a), named(b))
        width = max(len(a), len(b), 6) + 2
        lines = "\n".join(f"{name}\n  {a:{width}}{old}\n  {b:{width}}{new}" for name, (old, new) in found.items())
        document = {name: {"a": encode(old), "b": encode(new)} for name, (old, new) in found.items()}
        emit(
            {"command": "recipes", "a": a, "b": b, "differences": document},
            lines or f"{a} and {b} do not differ",
            as_json,
        )


def _table(rows: dict[str, tuple[str, ...]], about: dict[str, str]) -> str:
    """Each recipe's first sentence and, below it, its seven axes, broken between them at the terminal's width."""
    import shutil

    from nearzero.recipes.table import COLUMNS

    width = max(40, shutil.get_terminal_size().columns)
    blocks = [_fill([f"Seven axes: {COLUMNS[0]}", *COLUMNS[1:]], " | ", width, 0)]
    for name, row in rows.items():
        first = textwrap.fill(f"{name}  {about[name]}", width, subsequent_indent="  ")
        blocks.append(f"{first}\n{_fill(list(row), ' | ', width, 4)}")
    return "\n\n".join(blocks)


def _fill(parts: list[str], mark: str, width: int, indent: int) -> str:
    """Parts with a mark between them, each on the line before it where it fits there."""
    lines = [" " * indent + parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(mark) + len(part) <= width:
            lines[-1] += mark + part
        else:
            lines.append(" " * indent + mark.lstrip() + part)
    return "\n".join(lines)


def _doc(text: str | None) -> str:
    import inspect

    return inspect.cleandoc(text or "")
