"""nearzero compare: conditions mean what they say and run nothing, only like is ranked with like, pairs are pairs, pages are inert."""

import json
import operator
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import browser
import nearzero as nz
from conftest import tiny_recipe, write_folder
from nearzero.cards import Card, paired, write_card
from nearzero.cli import run
from nearzero.data import read_images
from nearzero.errors import ArgumentError, CheckpointError, DataError, GateError, NumericalError
from nearzero.randomness import order
from nearzero.report import compare, gates, groups
from nearzero.report.measured import Measured, measured, numbers
from nearzero.run import Run

PROTOCOL = {"metric": "Frechet distance (x)", "count": 100, "extractor": {"name": "x"}, "reference": {"name": "y"}}
CPU = ["--device", "cpu", "--images", "2"]
HOSTILE = "<script>alert(1)</script>&$x$\u00e9"


def card(value=2.5, half=0.5, **protocol):
    told = {**PROTOCOL, **protocol}
    return Card(
        "Frechet distance (x)",
        value,
        value - half,
        value + half,
        half / 2,
        1.0,
        told,
        {"step": 2},
        {"KID": {"value": 0.5, "stderr": 0.1}},
        {},
    )


def at(**values):
    """A lookup of runs whose fd is as told; "" means all."""
    known = {name: {"fd": value if isinstance(value, Card) else card(value)} for name, value in values.items()}

    def lookup(text):
        if text and text not in known:
            raise ArgumentError(f"no {text}")
        return {text: known[text]} if text else known

    return lookup


# ---- conditions

number = st.floats(-1e9, 1e9) | st.integers(-5, 5).map(float)
signs = st.sampled_from([">", ">=", "<", "<="])
blank = st.sampled_from(["", " ", "  "])


@given(a=number, b=number, sign=signs, space=blank)
def test_a_number_against_a_number(a, b, sign, space):
    """NAME[RUN] SIGN NUMBER holds exactly where Python says so of the two numbers."""
    one = gates.parse(f"fd[x]{space}{sign}{space}{b!r}")
    assert (one.check(at(x=a)) is not None) is eval(f"{a!r} {sign} {b!r}")


@given(a=number, b=number, by=st.floats(0, 1e6), plus=st.sampled_from("+-"), sign=signs, space=blank)
def test_a_run_against_a_run(a, b, by, plus, sign, space):
    """NAME[RUN] SIGN NAME[RUN] +- NUMBER holds exactly where Python says so; without the last part nothing is added."""
    lookup = at(x=a, y=b)
    one = gates.parse(f"fd[x]{sign}fd[y]{space}{plus}{space}{by!r}")
    assert (one.check(lookup) is not None) is eval(f"{a!r} {sign} ({b!r} {plus} {by!r})")
    assert (gates.parse(f"fd[x]{sign}fd[y]").check(lookup) is not None) is eval(f"{a!r} {sign} {b!r}")


@given(values=st.lists(number, min_size=1, max_size=4), b=number, sign=signs)
def test_without_a_run_it_is_any(values, b, sign):
    """NAME SIGN NUMBER holds where it does for one run at least, and names the first of them."""
    law = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}[sign]
    told = gates.parse(f"fd{sign}{b!r}").check(at(**{f"r{k}": value for k, value in enumerate(values)}))
    first = next((f"fd[r{k}]" for k, value in enumerate(values) if law(value, b)), None)
    assert (told is None) is (first is None) and (first is None or told.startswith(first))


BAD = [
    "",
    "fd",
    "fd>",
    ">1",
    "1>fd",
    "fd=1",
    "fd==1",
    "fd=>1",
    "fd>>1",
    "fd>1 or 1",
    "fd>1;1",
    "fd>(1)",
    "fd>1*2",
    "fd>0x10",
    "fd>1_000",
    "fd>1e999",
    "fd>-1e999",
    "fd>nan",
    "fd>inf",
    "fd>\u0661",
    "fd>1,2",
    "fd>fd",
    "fd>fd[a]",
    "fd[]>1",
    "fd[a>1",
    "fd[a]]>1",
    "fd[[a]>1",
    "fd[a]>fd[b]*2",
    "fd[a]>fd[b]+",
    "fd[a]>fd[b]+-1",
    "fd[a]>fd[b]+1e999",
    "fd[a]>fd[b]+fd[a]",
    "fd[a]>fd[b]>1",
    "__import__('os').system('touch pwned')>1",
    "open('pwned','w')>1",
    "lambda: 0>1",
    "fd[a]>(lambda: 1)()",
    "exec>eval('1')",
    "{x}>1",
    "%s>1",
    "fd>1\x00",
    "fd>" + "1" * 100_000,
    "fd[" + "a" * 100_000 + "]>1",
]


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_what_is_no_condition_is_refused(text, tmp_path, monkeypatch, capsys):
    """Code, other languages' numbers, infinities, chains and half a condition: exit 2, one line, before any run is opened, and nothing happens."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError):
        gates.parse(text)
    if "\0" not in text:
        assert run(["compare", "a", "b", "--fail-if", text]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "--fail-if" in err
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=30))
def test_any_text_is_a_condition_or_refused(text):
    """Whatever is asked, the answer is a condition that was parsed in whole, or ArgumentError."""
    try:
        one = gates.parse(text)
    except ArgumentError:
        return
    parts = (one.name, one.run, one.sign, one.other, one.other_run)
    assert one.name and one.sign in gates.SIGNS and all(part in text for part in parts)


def test_nothing_is_false_in_silence():
    """Unknown names and runs are errors of arguments, a number that a run lacks of data, one that is not finite of numbers."""
    lookup = at(x=1.0, y=2.0)
    for text in ("df>1", "fd.__class__>1", "fd[z]>1", "fd[x]>fd[z]", "fd[x]>df[y]"):
        with pytest.raises(ArgumentError):
            gates.parse(text).check(lookup)
    for text in ("nll>3", "lipschitz[x]<9", "fd[x]>nll[y]"):
        with pytest.raises(DataError, match=r"nearzero evaluate|--data"):
            gates.parse(text).check(lookup)
    for broken in (float("nan"), float("inf")):
        with pytest.raises(NumericalError):
            gates.parse("fd>1").check(at(x=1.0, y=broken))


def test_other_protocols_are_not_compared():
    """A condition between two runs needs one protocol; against a number each stands for itself."""
    lookup = at(x=card(3.0), y=card(1.0, count=50))
    with pytest.raises(ArgumentError, match="another count"):
        gates.parse("fd[x]>fd[y]").check(lookup)
    assert gates.parse("fd>2").check(lookup).startswith("fd[x] is 3")


# ---- groups


def make(folder, name="etsdm", seed=0, values=None, fingerprint="f", **changed):
    """A run folder without a checkpoint, with cards of these values."""
    recipe = replace(tiny_recipe(), name=name, **changed)
    one = Run.create(folder, recipe, {"name": "pictures", "count": 3, "fingerprint": fingerprint}, seed)
    for stem, value in (values or {}).items():
        write_card(folder / f"{stem}.json", value if isinstance(value, Card) else card(value))
    return one


def groups_of(*runs):
    found = groups.grouped(runs, [measured(one.path).check() for one in runs])
    return groups.with_numbers(found, {one.label: numbers(one.measured) for group in found for one in group.members})


def test_seeds_form_groups_and_pairs(tmp_path):
    """Three and four seeds of two recipes: two groups, whose paired differences over the three common seeds are cards.paired of their values; a condition on a group is one on its mean."""
    a, b = [5.0, 6.0, 9.0], [1.0, 3.0, 4.0, 100.0]
    first = [make(tmp_path / f"a{k}", "a", k, {"fd": value}) for k, value in enumerate(a)]
    second = [
        make(tmp_path / f"b{k}", "b", k, {"fd": value}, conditioning=nz.Timestep(1000)) for k, value in enumerate(b)
    ]
    found = groups_of(*second[::-1], *first)
    assert [group.text() for group in found] == ["4 seeds of b", "3 seeds of a"]
    assert [one.label for one in found[1].members] == ["a seed 0", "a seed 1", "a seed 2"]
    differences = {name: rest for name, *rest in groups.differences_over_seeds(found)}
    assert differences["fd"] == ["a", "b", 3, paired(a, b[:3])]

    def lookup(text):
        return groups.lookup(found, text)

    assert "fd[a] is 6.66667" in gates.parse("fd[a]>6.66").check(lookup)
    assert gates.parse("fd[a]>6.67").check(lookup) is None
    assert gates.parse("fd[a seed 2]>8.9").check(lookup) is not None
    assert gates.parse(f"fd[{tmp_path / 'b3'}]>fd[b]+72.9").check(lookup) is not None
    table = compare.paired_table(found)
    assert [row[:2] for row in table.rows if row[0].startswith("fd:")] == [("fd: a - b", "4")]


@pytest.mark.parametrize("changed", [{"fingerprint": "g"}, {"name": "other"}, {"steps": 4}, {"seed": 0}])
def test_only_the_seed_may_differ(tmp_path, changed):
    """Other images, another name, another field of the recipe, or the same seed: no group."""
    found = groups_of(make(tmp_path / "a", seed=0), make(tmp_path / "b", **{"seed": 1, **changed}))
    assert len(found) == 2 and len({group.label for group in found}) == 2
    assert groups.differences_over_seeds(found) == []


def test_names_are_one_run_or_an_error(tmp_path):
    """A folder's name and a label that mean different runs are refused; a path decides; a run twice is refused, through a link too."""
    a, b = make(tmp_path / "b", "a"), make(tmp_path / "x", "b", conditioning=nz.Timestep(1000))
    found = groups_of(a, b)
    with pytest.raises(ArgumentError, match="name one by path"):
        groups.lookup(found, "b")
    assert list(groups.lookup(found, str(tmp_path / "b"))) == ["a"]
    (tmp_path / "link").symlink_to(tmp_path / "x")
    with pytest.raises(ArgumentError, match="named twice"):
        groups_of(b, Run.load(tmp_path / "link"))


def test_what_differs_is_told_as_deep_as_it_lies():
    """Of one class the fields that differ, of two the objects; every recipe's value stands in each line."""
    a = tiny_recipe()
    b = replace(tiny_recipe(batch=8), conditioning=nz.Timestep(1000))
    c = replace(tiny_recipe(), conditioning=replace(a.conditioning, cells=4))
    assert groups.contrasts(a, [b]) == {
        "conditioning": ["Shared(Timestep(), interval=100, cells=5)", "Timestep()"],
        "training.batch": ["4", "8"],
    }
    assert groups.contrasts(a, [c]) == {"conditioning.cells": ["5", "4"]}
    assert set(groups.contrasts(a, [c, b])) == {"conditioning", "training.batch"}
    assert groups.contrasts(a, [replace(a, name="x")]) == {}


# ---- what is read, and ranked


def test_places_follow_intervals(tmp_path):
    """A run's place is one more than the runs whose interval lies wholly below; larger-is-better numbers get none; NaN of no interval never sorts."""
    runs = [
        make(tmp_path / name, name, values={"fd": value}, steps=3 + k)
        for k, (name, value) in enumerate((("a", 9.0), ("b", 2.0), ("c", 2.6)))
    ]
    table, text = compare.ranking([one for group in groups_of(*runs) for one in group.members])
    places = {row[0]: row[-1] for row in table.rows}
    assert [places[f"fd: {name}"] for name in "abc"] == ["3", "1", "1"]
    assert {places[f"fd.KID: {name}"] for name in "abc"} == {""}
    assert text == ["fd: b lies below a by more than their intervals. That of c overlaps it."]


def test_a_number_without_an_error_has_no_place(tmp_path):
    """A likelihood of one image, or a number of unknown error, is shown and ranks nobody."""
    runs = [
        make(tmp_path / name, name, values={"fd": card(value, half=0.0)}, steps=3 + k)
        for k, (name, value) in enumerate((("a", 9.0), ("b", 2.0)))
    ]
    table, text = compare.ranking([one for group in groups_of(*runs) for one in group.members])
    assert {row[-1] for row in table.rows} == {""} and text == []
    assert {row[2] for row in table.rows if row[0].startswith("fd:")} == {"unknown"}


def test_unequal_protocols_are_said_not_ranked(tmp_path):
    """A row says "not comparable" and why, and no place and no verdict is given."""
    found = groups_of(
        make(tmp_path / "a", "a", values={"fd": card(1.0)}),
        make(tmp_path / "b", "b", values={"fd": card(2.0, count=50)}, steps=3),
    )
    table, text = compare.ranking([one for group in found for one in group.members])
    assert {row[-1] for row in table.rows if row[0] in ("fd: a", "fd: b")} == {"not comparable"} and text == []
    assert any(row[0].startswith("fd: not comparable: ") and "another count" in row[0] for row in table.rows)
    assert "another count" in compare.describe(compare.Comparison(found))["not_comparable"]["fd"]


def test_other_files_are_left_out_and_edited_ones_refused(tmp_path):
    """Documents of other kinds are no numbers; a card with another value, without its seal or cut short raises DataError or CheckpointError."""
    one = make(tmp_path / "a", values={"fd": 2.0})
    (one.path / "notes.json").write_text('{"settings": {}, "value": 3}')
    (one.path / "list.json").write_text("[1, 2]")
    assert measured(one.path).cards.keys() == {"fd"} and measured(one.path).damaged == {}
    whole = (one.path / "fd.json").read_text()
    record = json.loads(whole)
    del record["sha256"]
    for text in (whole.replace('"value": 2.0', '"value": 1.0', 1), json.dumps(record), whole[:-20]):
        (one.path / "fd.json").write_text(text)
        found = measured(one.path)
        assert found.cards == {} and found.damaged.keys() == {"fd"}
        with pytest.raises((DataError, CheckpointError)):
            found.check()
    write_card(one.path / "fd.json", replace(card(), value="2"))
    assert "fd" in measured(one.path).damaged


def test_what_else_differs_is_said(tmp_path):
    """Another sampler and a number from before training went on are remarks; equal ones are none; a card of --pareto is read, and is no number of the run."""
    one, two = make(tmp_path / "a", "a"), make(tmp_path / "b", "b", steps=3)
    for run_, eta, step in ((one, 0.0, 0), (two, 1.0, 7)):
        subject = {"step": step, "solver": {"class": "DDIM", "eta": eta}, "nfe": 10}
        write_card(run_.path / "fd.json", replace(card(), subject=subject))
    write_card(one.path / "quality/cards/0123.json", card())
    found = compare.Comparison(groups_of(one, two))
    assert compare.remarks(found) == [
        "fd of b was measured at step 7; the run is at step 0.",
        "fd: the samples differ in solver too.",
    ]
    more = [replace(member, label=label) for label in "cd" for member in found.members[1:]]
    assert compare.of_another_step(more) == ["fd of all runs was measured at step 7; the runs are at step 0."]
    assert measured(one.path).curve.keys() == {"quality/cards/0123"} and set(found.members[0].numbers) == {
        "fd",
        "fd.KID",
    }


def test_what_is_lacking_does_not_hang_on_a_name():
    """A card of any name is a distance; a likelihood counts once its images are all done."""
    half = {"images_done": 1, "settings": {"images": 2}}
    assert Measured().lacking == {"fd", "nll"}
    assert Measured(cards={"64000-ddim": card()}, likelihoods={"nll": half}).lacking == {"nll"}
    assert Measured(likelihoods={"bound": {**half, "images_done": 2}}).lacking == {"fd"}


# ---- the command


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two trained runs, of E-TSDM with a hostile name in a hostile folder and of DDPM, on one folder of images."""
    root = tmp_path_factory.mktemp("pair")
    data = write_folder(root / "data")
    images = read_images(data)
    recipe = replace(tiny_recipe(steps=2), name=HOSTILE)
    plain = replace(tiny_recipe(steps=2), name="ddpm", conditioning=nz.Timestep(1000))
    where = {"data": str(data)}
    first = nz.train(recipe, images, root / "<b>&one", source=where)
    second = nz.train(plain, images, root / "two", source=where)
    write_card(first.path / "fd.json", card(3.0))
    write_card(second.path / "fd.json", card(2.0, half=0.1))
    return first, second, images


def called(capsys, *arguments):
    capsys.readouterr()
    return run(["compare", *map(str, arguments), *CPU]), *capsys.readouterr()


def test_it_fails_where_a_condition_holds(pair, capsys):
    """Exit 10 with one line that says how, after the whole document; 0 where none holds; the document says both."""
    first, second, images = pair
    asked = ["--fail-if", "fd[two]>2.5", "--fail-if", f"fd[{first.path}]>fd[ddpm]+0.9"]
    code, out, err = called(capsys, first.path, second.path, *asked, "--json")
    found = json.loads(out, parse_constant=pytest.fail)
    assert code == GateError.exit_code == 10 and out.count("\n") == 1
    assert err.splitlines()[-1].startswith("nearzero: error: --fail-if") and "is 3, > fd[ddpm] + 0.9 = 2.9" in err
    assert found["fail_if"]["fd[two]>2.5"] is None and found["fail_if"][asked[3]]
    x0 = second.recipe.codec.encode(images.pixels[order(0, torch.arange(2), len(images))])
    expected = nz.diagnose(second.denoiser(), x0, interval=0.1).summary()["max"]
    assert found["runs"]["ddpm"]["numbers"]["lipschitz"]["value"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("condition", "code"),
    [("nll>3", 3), ("df>3", 2), ("fd[three]>3", 2), ("lipschitz[three]>3", 2), ("fd>", 2)],
)
def test_errors_of_conditions_come_first(pair, capsys, monkeypatch, condition, code):
    """What cannot be answered is refused before anything is measured."""
    monkeypatch.setattr("nearzero.diagnostics.diagnosis.diagnose", lambda *_, **__: pytest.fail("measured"))
    found, out, err = called(capsys, pair[0].path, pair[1].path, "--fail-if", condition)
    assert found == code and out == "" and err.splitlines()[-1].startswith("nearzero: error:")


def test_a_bad_call(pair, capsys, tmp_path):
    """One run, one run twice, -n without a page, a page over another file, no run, an edited card: each with its code."""
    first, second, _ = pair
    (tmp_path / "mine.html").write_text("mine")
    edited = shutil.copytree(second.path, tmp_path / "edited")
    (edited / "fd.json").write_text((edited / "fd.json").read_text().replace('"value": 2.0', '"value": 1.0', 1))
    cases = {
        (first.path,): 2,
        (first.path, first.path): 2,
        (first.path, second.path, "-n", "4"): 2,
        (first.path, second.path, "--html", tmp_path / "mine.html"): 2,
        (first.path, tmp_path / "none"): 4,
        (first.path, edited): 3,
    }
    for arguments, code in cases.items():
        found, out, err = called(capsys, *arguments)
        assert (found, out, err.count("\n")) == (code, "", 1), arguments
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_the_page_stands_alone(pair, capsys, tmp_path):
    """It has both runs' samples, what differs, the numbers with places, K and losses; hostile names are text; a browser asks for nothing, on a phone too."""
    first, second, _ = pair
    page = tmp_path / "compare.html"
    code, out, err = called(capsys, first.path, second.path, "--html", page, "-n", "3", "--fail-if", "fd>3.1")
    assert code == 0, err  # the condition does not hold
    text = page.read_text(encoding="utf-8")
    assert (
        "<script" not in text
        and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        and "http://" not in text.replace("http://www.w3.org", "")
    )
    assert "Shared(Timestep(), interval=100, cells=5)" in text and "conditioning" in text
    for title in ("What differs", "The same seeds", "The numbers", "Near t = 0", "Training"):
        assert f"<h2>{title}</h2>" in text
    assert "lies below" in text and len(text) < 5_000_000 and HOSTILE[:8] in out
    if browser.chromium() is not None:
        for width in (1280, 390):
            seen = browser.open_page(page, width)
            assert [url for url in seen.requests if not url.startswith("data:")] == [page.absolute().as_uri()]
            assert seen.messages == [] and seen.broken == 0 and seen.width == width


def test_other_processes_are_not_measured_together(pair, capsys, tmp_path):
    """K counts timesteps of one process: with another it is said to be not comparable, and a condition on it is an error."""
    first, _, images = pair
    other = replace(tiny_recipe(steps=1), name="cosine", process=nz.DiscreteVP.cosine())
    third = nz.train(other, images, tmp_path / "three", source=first.data["source"])
    code, out, _ = called(capsys, first.path, third.path)
    assert code == 0 and "not comparable: K near t = 0" in out and "lipschitz" not in out
    assert called(capsys, first.path, third.path, "--fail-if", "lipschitz>0")[0] == 3
