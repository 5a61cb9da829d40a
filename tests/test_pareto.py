"""Distance against cost: equal seeds, one card a point, marks that hold the true best; the search for EDM's noise."""

import json
from dataclasses import replace

import pytest
import torch

import nearzero as nz
from conftest import write_folder
from nearzero.cards import Card, read_card
from nearzero.errors import ArgumentError, DataError
from nearzero.pareto import CONFIDENCE, Point, choose, document, evaluations, pareto, table
from nearzero.production import Production
from nearzero.quality import measure
from nearzero.registry import decode
from nearzero.report.quality import pareto_page
from nearzero.search import candidates, counts, search
from test_quality import N, cache, extractor, judged, reference, run_command, stop, told  # noqa: F401  fixtures too


def point(run, solver, nfe, grid=None):
    grid = grid or run.recipe.grid
    return Point(type(solver).__name__, type(grid).__name__, Production(run, solver=solver, grid=grid, nfe=nfe))


@pytest.fixture
def points(trained):
    return [point(trained, nz.DDIM(), 1), point(trained, nz.DDIM(), 3), point(trained, nz.Heun(), 3)]


# ---- points


def test_every_point_is_the_card_of_its_own(points, tmp_path):
    """Each card is that of `measure` alone, with the seeds of all, and its cost is counted: Heun's steps cost two."""
    cards = pareto(points, range(N), reference(), out=tmp_path)
    assert {card.subject["seeds"] for card in cards} == {"0-19"}
    assert [evaluations(card) for card in cards] == [1, 3, 3] and len({card.value for card in cards}) == 3
    for one, card in zip(points, cards, strict=True):
        alone = measure(one.production, range(N), reference(), out=tmp_path / "alone")
        assert (card.value, card.protocol, card.subject) == (alone.value, alone.protocol, alone.subject)


def test_an_interruption_anywhere_changes_nothing(points, tmp_path):
    """Stopped at each call of progress, the second call ends with the same cards; the plan says how much is left."""
    show, calls = stop(0)
    whole = list(map(told, pareto(points, range(N), reference(), out=tmp_path / "whole", batch=7, progress=show)))
    assert [done for _, done in calls] == [7, 14, 20, 41, 62, 80, 101, 122, 140]
    for at in (2, 3, 7):
        lines, out = [], tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            pareto(points, range(N), reference(), out=out, batch=7, progress=stop(at)[0])
        assert list(map(told, pareto(points, range(N), reference(), out=out, tell=lines.append))) == whole
        there, left = {2: (0, 140), 3: (0, 140), 7: (2, 60)}[at]
        assert (
            lines[0].startswith(f"3 points of 20 images, {there} of them are there") and f" {left} network" in lines[0]
        )


def test_cards_in_the_folder_are_read_or_refused(points, tmp_path, monkeypatch):
    """A second call draws nothing; an edited card or one under another's name: exit 3; another reference: other cards."""
    first = pareto(points[:2], range(N), reference(), out=tmp_path)
    files = sorted((tmp_path / "cards").iterdir())
    monkeypatch.setattr(nz.Run, "denoiser", lambda *_, **__: pytest.fail("a network was asked"))
    assert pareto(points[:2], range(N), reference(), out=tmp_path) == first
    content = [file.read_text() for file in files]
    files[0].write_text(content[1])
    with pytest.raises(DataError, match="is about another nfe") as caught:
        pareto(points[:2], range(N), reference(), out=tmp_path)
    assert caught.value.exit_code == 3
    files[0].write_text(content[0].replace('"count": 20', '"count": 21'))
    with pytest.raises(DataError, match="was edited"):
        pareto(points[:2], range(N), reference(), out=tmp_path)
    files[0].write_text(content[0])
    others = pareto(points[:2], range(N), reference(seed=2), out=tmp_path)
    assert len(list((tmp_path / "cards").iterdir())) == 4 and others[0].value != first[0].value


def test_what_cannot_be_is_refused_before_anything_is_drawn(trained, tmp_path):
    """A solver without a plan, a grid that does not fit, a point without a budget."""
    good, bare = point(trained, nz.DDIM(), 3), point(trained, nz.DDIM(), 3)
    bare = bare._replace(production=replace(bare.production, nfe=None, steps=3))
    for bad, match in (
        (point(trained, nz.RK45(), 10), "RK45 on .* at 10 evaluations: RK45 has no plan"),
        (point(trained, nz.DDIM(), 2000, nz.TimestepGrid()), "2000 steps on 1000 timesteps"),
        (bare, "a point needs nfe, its network evaluations, and not steps"),
    ):
        with pytest.raises(ArgumentError, match=match):
            pareto([good, bad], range(N), reference(), out=tmp_path)
    assert not list(tmp_path.iterdir())


# ---- marks


def card(value, stderr, cost):
    return Card(
        "d", value, value - stderr, value + stderr, stderr, None, {"count": 1}, {"network_evaluations": cost}, {}, {}
    )


@pytest.mark.parametrize("gaps", [(0, 0, 0, 0, 0), (0, 1, 2, 3, 4), (0, 0.5, 0.5, 5, 5)])
def test_the_marked_set_holds_the_true_best(gaps):
    """In at least 95 % of 2,000 trials with independent errors, and it leaves out what is five errors away."""
    generator, held, far = torch.Generator().manual_seed(0), 0, 0
    errors = [1.0, 0.5, 1.0, 0.7, 1.0]
    for _ in range(2000):
        noise = torch.randn(5, generator=generator).tolist()
        values = [gap + error * one for gap, error, one in zip(gaps, errors, noise, strict=True)]
        found = choose([card(value, error, 1) for value, error in zip(values, errors, strict=True)])
        held += 0 in found.within
        far += 4 in found.within
        assert found.best == min(range(5), key=values.__getitem__) and found.best in found.within
    assert held / 2000 >= CONFIDENCE
    assert far / 2000 < (1 if gaps[4] == 0 else 0.9 if gaps[4] == 4 else 0.7)


def test_the_cheapest_within_the_noise_is_recommended():
    """Of equal cost the better; a cheap one outside the noise is not; one card is everything."""
    cards = [card(9.0, 0.1, 1), card(5.1, 0.1, 10), card(5.05, 0.1, 10), card(5.0, 0.1, 40), card(5.2, 0.1, 20)]
    assert choose(cards) == (3, (1, 2, 3, 4), 2)
    assert choose(cards[:1]) == (0, (0,), 0)
    with pytest.raises(ArgumentError, match="no cards"):
        choose([])


def test_document_table_and_page(points, tmp_path):
    """The CSV has the numbers to the last bit; the page has the plot, and escapes names that are HTML."""
    names = [one._replace(solver="<script>x</script>" if i < 2 else "b & c") for i, one in enumerate(points)]
    cards = pareto(points, range(N), reference(), out=tmp_path)
    found = document(names, cards)
    json.dumps(found, allow_nan=False)
    rows = [line.split(",") for line in table(found).splitlines()]
    assert [float(row[3]) for row in rows[1:]] == [one.value for one in cards] and len(rows) == 4
    assert sum(one["recommended"] for one in found["points"]) == 1 == sum(one["best"] for one in found["points"])
    html = pareto_page(found, "nearzero evaluate '<b>'").html()
    assert "<script" not in html and "&lt;script&gt;" in html and "'<b>'" not in html
    assert html.count("data:image/svg+xml") == 1 and f"{found['points'][0]['low']:.4g}" in html


# ---- the search


def test_the_search_halves_and_measures_the_choice_anew(trained, tmp_path):
    """Each round has equal seeds, twice as many, the better half; the card is that of fresh seeds, and is restartable."""
    tried = candidates([0, 40], [0.0], [None], [1.0, 1.1])
    assert len(tried) == 3
    production = Production(trained, solver=nz.Heun(), grid=nz.AngleGrid(), steps=3)
    how = {"seeds": range(16), "fresh": range(16, 32), "reference": reference()}
    show, calls = stop(0)
    whole = search(production, tried, out=tmp_path / "whole", progress=show, **how)
    trace = whole.made["search"]
    assert [one["images"] for one in trace["rounds"]] == [8, 16] == counts(3, 16)
    assert [len(one["places"]) for one in trace["rounds"]] == [3, 2]
    for r, one in enumerate(trace["rounds"]):
        for place, score in zip(one["places"], one["scores"], strict=True):
            solved = replace(production, solver=tried[place])
            alone = measure(solved, range(counts(3, 16)[r]), how["reference"], out=tmp_path / "whole")
            assert alone.value == score
        if r:
            before = trace["rounds"][r - 1]
            better = sorted(zip(before["scores"], before["places"], strict=True))[: len(one["places"])]
            assert sorted(place for _, place in better) == list(one["places"])
    last = trace["rounds"][-1]
    assert tried[last["places"][last["scores"].index(min(last["scores"]))]] == decode(dict(whole.subject["solver"]))
    assert whole.subject["seeds"] == "16-31" and calls[-1][1] == 3 * 8 + 2 * 8 + 16
    with pytest.raises(KeyboardInterrupt):
        search(production, tried, out=tmp_path / "part", progress=stop(7)[0], **how)
    again = search(production, tried, out=tmp_path / "part", **how)
    assert told(again) == told(whole) and again.made["search"] == trace


def test_a_search_needs_seeds(trained, tmp_path):
    """Enough for the first round, and fresh ones that are others."""
    with pytest.raises(ArgumentError, match="ask for at least 32, or for fewer candidates"):
        counts(5, 31)
    production = Production(trained, solver=nz.Heun(), grid=nz.AngleGrid(), steps=3)
    with pytest.raises(ArgumentError, match="must be others than those of the search"):
        search(production, candidates([0, 10]), range(64), range(63, 90), reference(), out=tmp_path)


# ---- the commands


def test_the_pareto_command(judged, run_folder, capsys, tmp_path):  # noqa: F811
    """JSON, CSV and page; the second call reads what is there, and asked for more seeds it refuses the file."""
    data = write_folder(tmp_path / "real", 60)
    options = ("--pareto", "--data", data, "--solvers", "ddim,heun", "--grids", "uniform,angle", "--nfes", "3")
    page = tmp_path / "p.html"
    assert run_command(run_folder, *options, "-n", N, "--html", page, "--json") == 0
    said = capsys.readouterr()
    first = json.loads(said.out)
    assert len(first["points"]) == 4 and first["protocol"]["count"] == N
    assert "4 points of 20 images, 0 of them are there; the others ask for 240 network evaluations" in said.err
    assert (run_folder / "pareto.csv").read_text().count("\n") == 5 and "uniform" in page.read_text()
    assert run_command(run_folder, *options, "-n", N) == 0
    said = capsys.readouterr()
    best = next(one for one in first["points"] if one["recommended"])
    assert f"take {best['solver']} on {best['grid']}" in said.out and "4 of them are there" in said.err
    assert run_command(run_folder, *options, "-n", N + 1) == 2
    assert "differs in its protocol from what is asked; name another, or --overwrite it" in capsys.readouterr().err
    (run_folder / "pareto.json").write_text("{}")
    assert run_command(run_folder, *options, "-n", N) == 2
    assert "is no --pareto of nearzero's" in capsys.readouterr().err


def test_the_search_command(judged, run_folder, capsys, tmp_path):  # noqa: F811
    """The choice and its trace in churn.json, and a page that shows the rounds."""
    data, page = write_folder(tmp_path / "real", 60), tmp_path / "s.html"
    options = ("--search-churn", "--data", data, "--churns", "0,20", "--churn-mins", "0", "--churn-maxs", "none")
    assert run_command(run_folder, *options, "--churn-noises", "1,1.1", "--steps", 3, "-n", 32, "--html", page) == 0
    assert "solver            Churn(churn=" in capsys.readouterr().out
    card = read_card(run_folder / "churn.json")
    assert len(card.made["search"]["candidates"]) == 3 and card.subject["seeds"] == "32-63"
    assert "S_churn, S_min, S_max, S_noise" in page.read_text()
    assert run_command(run_folder, *options, "--churn-noises", "1", "--steps", 3, "-n", 32) == 2
    assert "differs in its candidates from what is asked" in capsys.readouterr().err
