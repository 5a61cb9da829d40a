"""Writes docs/table1.md, the table of all recipes, from nearzero.recipes.

python scripts/recipe_table.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from nearzero.recipes.table import COLUMNS, table

ROOT = Path(__file__).parents[1]
COMMAND = ".venv/bin/python scripts/recipe_table.py"
PAGE = "docs/table1.md"
HEAD = """---
hide: [toc]
---

# Table 1

Every recipe on its seven axes. Arguments are shown where they are not the default; each name is one of `nearzero`.
"Output" is the parameterization, "through" the process that samples see where it is not that of training.
[Recipes](recipes.md) tells what each is for, `nearzero recipes NAME` what a paper leaves open. This page is made of the
recipes, by `scripts/recipe_table.py`; `nearzero recipes` prints the same.
"""


def cell(text: str) -> str:
    """As code; what is long may break after its first parenthesis, so that no name is torn."""
    name, parenthesis, rest = text.partition("(")
    return f"`{text}`" if len(text) <= 22 else f"`{name}{parenthesis}` `{rest}`"


def page() -> str:
    """The whole page, as Markdown."""
    columns = [f"{number} {name}" for number, name in enumerate(COLUMNS, 1)]
    head = ["| | " + " | ".join(columns) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    rows = [f"| {' | '.join([f'`{name}`', *map(cell, cells)])} |" for name, cells in table().items()]
    return "\n".join([HEAD, *head, *rows, ""])


def main(root: Path = ROOT) -> int:
    """Writes the page under `root`."""
    (root / PAGE).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
