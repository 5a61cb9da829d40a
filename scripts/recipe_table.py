"""Writes the table of all recipes into docs/recipes.md.

The table stands between two comments, and is made of nearzero.recipes: a row for each recipe, its seven axes as they
are written in Python, default arguments left out.

    python scripts/recipe_table.py
"""

from __future__ import annotations

import sys
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from nearzero.process import DiscreteVP
from nearzero.recipes import RECIPES, Recipe

ROOT = Path(__file__).parents[1]
COMMAND = ".venv/bin/python scripts/recipe_table.py"
START, END = "<!-- table: scripts/recipe_table.py -->", "<!-- end of the table -->"
COLUMNS = ("1 process", "2 output", "3 condition", "4 times", "5 weighting", "6 solver", "7 grid, steps")


def brief(value: Any) -> str:
    """An object as Python that makes it, without what is default; floats to six digits."""
    if isinstance(value, DiscreteVP):
        name = type(value.betas).__name__.removesuffix("Betas").lower()
        arguments = _arguments(value.betas).replace("start=", "beta_start=").replace("end=", "beta_end=")
        return f"DiscreteVP.{'from_betas' if name == 'listed' else name}{arguments}"
    if is_dataclass(value):
        return f"{type(value).__name__}{_arguments(value)}"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def _arguments(value: Any) -> str:
    """In parentheses: the first field by place, every other by name."""
    found = []
    for place, field in enumerate(fields(value)):
        given = getattr(value, field.name)
        if given != _default(field):
            found.append(brief(given) if place == 0 and _default(field) is MISSING else f"{field.name}={brief(given)}")
    return f"({', '.join(found)})"


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def cell(value: Any) -> str:
    """As code; what is long may break after its first parenthesis, so that no name is torn."""
    text = brief(value)
    name, parenthesis, rest = text.partition("(")
    return f"`{text}`" if len(text) <= 22 else f"`{name}{parenthesis}` `{rest}`"


def weighting(recipe: Recipe) -> str:
    """The weighting, or the objective that takes its place."""
    objective = type(recipe.objective()).__name__
    if objective == "Regression":
        return cell(recipe.weighting)
    if objective == "LipschitzPenalty":
        return f"{cell(recipe.weighting)} and `LipschitzPenalty`, {recipe.penalty:g}"
    return f"`{objective}`"


def row(name: str, recipe: Recipe) -> str:
    """A row of the table."""
    before = (recipe.process, recipe.parameterization, recipe.conditioning, recipe.times)
    cells = [cell(value) for value in before]
    cells += [weighting(recipe), cell(recipe.solver), f"{cell(recipe.grid)} {recipe.steps}"]
    return f"| {' | '.join([f'`{name}`', *cells])} |"


def table() -> str:
    """The table of all recipes, as Markdown."""
    head = [f"| {' | '.join(['', *COLUMNS])} |".replace("|  |", "| |"), "|---" * (len(COLUMNS) + 1) + "|"]
    return "\n".join([*head, *(row(name, make()) for name, make in RECIPES.items())])


def write(text: str) -> str:
    """The page with its table as it should be. Raises ValueError where the page has no place for one."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"docs/recipes.md needs the comments {START} and {END}")
    return f"{before}{START}\n\n{table()}\n\n{END}{after}"


def main(root: Path = ROOT) -> int:
    """Rewrites the table under `root`."""
    page = root / "docs/recipes.md"
    page.write_text(write(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
