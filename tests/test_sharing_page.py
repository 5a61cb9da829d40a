"""docs/sharing.md says what the committed results say."""

import csv
import json
import re
from pathlib import Path

from nearzero import zoo
from nearzero.cards import read_card
from test_docs import script

ROOT = Path(__file__).parents[1]
pair_tables = script("pair_tables")
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


def test_the_pair_is_that_of_the_experiment():
    """The paired differences of the table are the lines of results/sharing-pair after the last stage, rounded."""
    lines = list(csv.DictReader((ROOT / "results/sharing-pair/sharing-pair.csv").read_text().splitlines()[1:]))
    known = {
        (one["part"], one["measure"], one["network"], float(one["x"])): (one["value"], one["standard error"])
        for one in lines
        if one["images seen"] == "64000"
    }
    _, rows = table("what [|]")
    away = "etsdm - ddpm"
    wanted = (
        ("loss", "mean loss up to the edge", away, 100, 4),
        ("loss", "mean loss above the edge", away, 100, 5),
        ("tail", "PSNR", away, 5, 3),
        ("tail", "PSNR", away, 100, 3),
        ("tail", "residual", away, 5, 1),
        ("swap", "Frechet distance", away, 50, 0),
        ("swap", "Frechet distance", "ddpm then etsdm - ddpm", 50, 0),
        ("swap", "Frechet distance", "etsdm then ddpm - ddpm", 50, 0),
    )
    assert len(rows) == len(wanted)
    for (_, told), (*key, digits) in zip(rows, wanted, strict=True):
        value, error = map(float, known[tuple(key)])
        assert told == f"{value:+.{digits}f} ± {error:.{digits}f}"


def test_the_distances_are_those_of_the_cards():
    """The tables of results/pair16, and the page's, are what scripts/pair_tables.py makes of the sealed cards."""
    text = (ROOT / "results/pair16/README.md").read_text(encoding="utf-8")
    found = pair_tables.cards()
    for lines in (pair_tables.seeds(found), pair_tables.longer(found), pair_tables.cells(found)):
        assert "\n".join(lines) in text
    for lines in (pair_tables.seeds(found), pair_tables.longer(found)):
        assert "\n".join(lines) in PAGE


def test_the_pair_of_the_package_is_that_of_its_cards():
    """What the page says of 28 x 28 are the values of the sealed cards in nearzero/zoo."""
    cards = {name: read_card(zoo.path(name) / "fd.json") for name in ("ddpm", "etsdm")}
    assert {card.subject["solver"]["class"] for card in cards.values()} == {"DDIM"}
    for name, card in cards.items():
        assert re.search(rf"{card.value:,.0f} \(`zoo:{name}`\)", " ".join(PAGE.split()))
