"""docs/sharing.md says what the committed results say."""

import csv
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/sharing.md").read_text(encoding="utf-8")


def table(first):
    """The cells of the page's table whose first column is headed so."""
    lines = [line for line in re.search(rf"^\| {first}.*?\n\n", PAGE, re.MULTILINE | re.DOTALL)[0].splitlines() if line]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return head, rows


def test_the_price_is_that_of_the_script():
    """Every cell of the table is the largest residual of results/price/price.csv."""
    lines = list(csv.reader((ROOT / "results/price/price.csv").read_text().splitlines()[1:]))[1:]
    known = {(name, f"{size} x {size}", f"{interval}/{cells}"): most for name, size, interval, cells, _, most in lines}
    head, rows = table("images [|]")
    assert len(rows) == 5
    for name, size, *cells in rows:
        assert cells == [known[name, size, way] for way in head[2:]]


def test_the_mixture_is_that_of_the_experiment():
    """Means, differences and errors are those of results/sharing-mixture, rounded."""
    stages = json.loads((ROOT / "results/sharing-mixture/sharing-mixture.json").read_text())["stages"]
    _, rows = table("images seen [|] ddpm, 0")
    assert [row[0] for row in rows] == [f"{int(seen):,}" for seen in stages]
    for row, stage in zip(rows, stages.values(), strict=True):
        told = (
            (stage["excess ddpm, 0-99"], "{0:.4f}"),
            (stage["excess etsdm, 0-99"], "{0:.4f}"),
            (stage["difference etsdm - ddpm, 0-99"], "{0:+.5f} ± {1:.5f}"),
            (stage["excess ddpm_above, 100-999"], "{0:.5f}"),
            (stage["difference ddpm - ddpm_above, 100-999"], "{0:+.6f} ± {1:.6f}"),
            (stage["difference etsdm - ddpm, 100-999"], "{0:+.6f} ± {1:.6f}"),
        )
        assert row[1:] == [form.format(*numbers) for numbers, form in told]
