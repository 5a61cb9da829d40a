"""nearzero recipes."""

from __future__ import annotations

from dataclasses import fields

import click

from nearzero.cli.common import emit, json_option


@click.command()
@click.argument("a", required=False)
@click.argument("b", required=False)
@json_option
def command(a: str | None, b: str | None, as_json: bool) -> None:
    """List the recipes, show recipe A, or show the axes on which A and B differ.

    \b
    nearzero recipes
    nearzero recipes ddpm etsdm
    """
    from nearzero.recipes import RECIPES, Recipe, differences, named
    from nearzero.registry import encode

    if a is None:
        about = {name: (make.__doc__ or "").strip().splitlines()[0] for name, make in RECIPES.items()}
        width = max(map(len, about))
        emit(
            {"command": "recipes", "recipes": about},
            "\n".join(f"{name:{width}}  {line}" for name, line in about.items()),
            as_json,
        )
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


def _doc(text: str | None) -> str:
    import inspect

    return inspect.cleandoc(text or "")
