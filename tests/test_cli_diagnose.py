"""nearzero diagnose: its numbers are the library's, its page stands alone, and nothing else changes."""

import base64
import contextlib
import errno
import itertools
import json
import os
import re
import shlex
import shutil
import sys
import time
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import nearzero as nz
from conftest import pictures, tiny_recipe, tree, write_folder
from nearzero.cli import run
from nearzero.manifest import write_manifest
from nearzero.randomness import order

CPU = ["--device", "cpu"]
QUICK = [*CPU, "--images", "2", "--every", "200"]
BRIEF = [*QUICK, "--interval", "0.03"]  # 60 pairs of timesteps instead of 200; E-TSDM's first edge lies inside
TWO = "<script>&$x$ \u00e9"
"""A recipe's name that is neither HTML nor mathematics."""


def diagnose(*arguments):
    """The command's exit code."""
    return run(["diagnose", *map(str, arguments)])


def train(out, images, source=None, seed=0, size=8, **changed):
    """A run of two steps."""
    recipe = tiny_recipe(steps=2)
    recipe = replace(recipe, **{"network": replace(recipe.network, size=size), **changed})
    return nz.train(recipe, images, out, seed=seed, source=source)


def measured(one, images, *, count=2, seed=0, ema=True, interval=None, every=200):
    """What a document holds of a run: nz.diagnose of its network on the images that the seed chooses."""
    x0 = one.recipe.codec.encode(images.pixels[order(seed, torch.arange(count), len(images))])
    found = nz.diagnose(one.denoiser(ema=ema), x0, interval=interval, every=every, seed=seed)
    return {"run": str(one.path), "step": one.step, **json.loads(json.dumps(found.describe()))}


def document(capsys, *arguments):
    """The only thing on stdout of a successful call with --json, a line of JSON; and what stderr holds."""
    capsys.readouterr()
    code = diagnose(*arguments, "--json")
    out, err = capsys.readouterr()
    assert code == 0, err
    assert out.count("\n") == 1
    return json.loads(out, parse_constant=pytest.fail), err  # NaN and Infinity are no JSON


def record(folder, **data):
    """Changes what run.json says of the data."""
    path = folder / "run.json"
    said = json.loads(path.read_text())
    said["data"].update(data)
    path.write_text(json.dumps(said))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six grey PNG files of 8 x 8 pixels."""
    return write_folder(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, folder):
    """Runs on the folder by name: `plain` without sharing, `short` and `long` that share up to 0.01 and 0.06. Read only."""
    out, images = tmp_path_factory.mktemp("runs"), nz.read_folder(folder)
    source = {"data": str(folder), "size": None, "channels": None, "preset": "small"}
    shared = {"short": 10, "long": 60}
    made = {
        name: train(out / name, images, source, conditioning=nz.Shared(nz.Timestep(1000), interval=interval, cells=5))
        for name, interval in shared.items()
    }
    made["plain"] = train(out / "plain", pictures(7, seed=9), seed=1, name=TWO, conditioning=nz.Timestep(1000))
    return made


# ---- numbers


def test_the_document_is_the_librarys_answer(trained, folder, capsys):
    """--json prints nz.diagnose's curves bit for bit: of the images that order(seed, ...) chooses, averaged or raw weights, the seed's noise, interval and every."""
    calls = {
        "average": ([], {}),
        "raw": (["--raw-weights"], {"ema": False}),
        "seed": (["--seed", "3"], {"seed": 3}),
        "images": (["--images", "5"], {"count": 5}),
        "one image": (["--images", "1"], {"count": 1}),
        "every": (["--every", "700"], {"every": 700}),
        "interval": (["--interval", "0.02"], {"interval": 0.02}),
    }
    images, seen = nz.read_folder(folder), []
    for arguments, settings in calls.values():
        found, _ = document(capsys, trained.path, "--data", folder, *BRIEF, *arguments)
        assert found.pop("recommendation") is None and found.pop("advice")[0].startswith("It is shared already: ")
        assert found == {
            "schema_version": 1,
            "nearzero": nz.__version__,
            "command": "diagnose",
            "page": None,
            "seed": settings.get("seed", 0),
            "weights": "ema" if settings.get("ema", True) else "raw",
            "runs": {"etsdm": measured(trained, images, **{"interval": 0.03, **settings})},
        }
        seen.append(json.dumps(found["runs"]))
    assert len(set(seen)) == len(calls)


@pytest.mark.parametrize(("interval", "every"), [(0.02, 300), (0.05, 7), (0.001, 999), (0.3, 100)])
def test_interval_and_every_choose_the_timesteps(trained, folder, capsys, interval, every):
    """Pairs start at every timestep up to twice the interval, at each N-th above, and where a cell ends; the interval is [0, T]."""
    arguments = ["--data", folder, *CPU, "--images", "1", "--interval", interval, "--every", every]
    found, _ = document(capsys, trained.path, *arguments)
    one = found["runs"]["etsdm"]
    assert one["interval"] == interval
    k = [round(1000 * t) - 1 for t in one["lipschitz"]["times"]]
    near = round(2000 * interval)
    assert k[:near] == list(range(near))
    edges = {19, 39, 59, 79, 99}
    above = [b for b in k[near:] if b not in edges or (b - near) % every == 0]
    assert edges <= set(k) and {b - a for a, b in itertools.pairwise(above)} <= {every} and above[0] < near + every
    assert k == sorted(set(k)) and above[-1] <= 998 < above[-1] + every


def test_two_networks_meet_the_same_images_and_noise(runs, folder, capsys):
    """--against measures both on RUN's images with one seed's noise, over the longer of the shared intervals, whichever run comes first."""
    short, long, plain = (runs[name] for name in ("short", "long", "plain"))
    images = nz.read_folder(folder)
    for first, second in ((short, long), (long, short)):
        found, _ = document(capsys, first.path, "--against", second.path, *QUICK, "--seed", "5")
        assert list(found["runs"]) == [str(first.path), str(second.path)]
        assert found["runs"] == {str(one.path): measured(one, images, interval=0.06, seed=5) for one in (first, second)}
    found, _ = document(capsys, short.path, "--against", plain.path, *QUICK)
    assert found["runs"] == {
        "etsdm": measured(short, images, interval=0.01),
        TWO: measured(plain, images, interval=0.01),
    }
    assert list(found["runs"]) == ["etsdm", TWO]
    found, _ = document(capsys, short.path, "--against", plain.path, *QUICK, "--interval", "0.02")
    assert {one["interval"] for one in found["runs"].values()} == {0.02}


def test_raw_weights_are_both_networks(runs, folder, capsys):
    """With --against, --raw-weights are the raw weights of both runs."""
    short, plain, images = runs["short"], runs["plain"], nz.read_folder(folder)
    found, _ = document(capsys, short.path, "--against", plain.path, "--raw-weights", *BRIEF)
    one = {"interval": 0.03, "ema": False}
    assert found["runs"] == {"etsdm": measured(short, images, **one), TWO: measured(plain, images, **one)}


def test_a_run_against_itself(runs, capsys):
    """RUN against itself is no traceback: both columns are equal, or one line refuses it."""
    path = runs["short"].path
    code = diagnose(path, "--against", path, *BRIEF, "--json")
    out, err = capsys.readouterr()
    if code == 0:
        assert len({json.dumps(one) for one in json.loads(out)["runs"].values()}) == 1
    else:
        assert (code, out, err.count("\n")) == (2, "", 1)


def test_the_interval_is_where_sharing_ends_or_a_tenth(runs, folder, capsys):
    """Left to itself a network is measured where its sharing ends, one without sharing on a tenth of the range."""
    found, _ = document(capsys, runs["long"].path, *QUICK)
    assert found["runs"]["etsdm"] == measured(runs["long"], nz.read_folder(folder), interval=0.06)
    found, _ = document(capsys, runs["plain"].path, "--data", folder, *QUICK)
    assert found["runs"][TWO] == measured(runs["plain"], nz.read_folder(folder), interval=0.1)


# ---- for people


def rounds(shown, value):
    """Whether a decimal is a number rounded to the digits shown."""
    unit = Decimal(10) ** Decimal(shown).as_tuple().exponent
    return abs(Decimal(shown) - Decimal(value)) <= unit * Decimal("0.5000001")


def test_the_table_has_a_column_for_each_network(runs, capsys):
    """As text, names head columns of the document's numbers, rounded, and the last lines say on what and how."""
    arguments = [runs["short"].path, "--against", runs["plain"].path, *BRIEF]
    found, _ = document(capsys, *arguments)
    assert diagnose(*arguments) == 0
    out, _ = capsys.readouterr()
    header, *lines, empty, caption = out.splitlines()
    assert header.split("  ")[-1].strip() == TWO and header.split() == ["etsdm", *TWO.split()]
    assert empty == "" and "2 images" in caption
    starts = [header.index("etsdm"), header.index(TWO)]
    table = {line[: starts[0]].strip(): [line[starts[0] : starts[1]].strip(), line[starts[1] :]] for line in lines}
    assert all(line[start - 2 : start] == "  " for line in lines for start in starts)
    summaries = [one["summary"] for one in found["runs"].values()]
    plain = {
        "timestep of the largest K": "max_at_timestep",
        "total variation of the answer on [0, 0.03]": "total_variation",
        "largest K measured above 0.03, per timestep": "max_above",
        "loss at the first timestep": "loss_first",
        "mean loss over noise levels": "loss",
    }
    for label, name in plain.items():
        assert table.pop(label) == [f"{one[name]:.3g}" for one in summaries]
    with_error = {
        "largest K on [0, 0.03], per timestep": "max",
        "change of x0 at t = 0.03 by noise of 0.3 (rms)": "perturbation",
    }
    for label, name in with_error.items():
        for shown, one in zip(table.pop(label), summaries, strict=True):
            value, stderr = shown.split(" \u00b1 ")
            assert rounds(value, one[name]) and rounds(stderr, one[f"{name}_stderr"]) and float(stderr) > 0
    assert table == {}


def test_logs_go_to_stderr(runs, capsys, monkeypatch):
    """Progress is on stderr, one label for each network, and stdout is the result alone, with --json or without."""
    clock = itertools.count(0, 11)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    arguments = [runs["short"].path, "--against", runs["plain"].path, *BRIEF]
    _, err = document(capsys, *arguments)
    assert diagnose(*arguments) == 0
    out, again = capsys.readouterr()
    assert "diagnosing" not in out
    for said in (err, again):
        assert {line.split(":")[0] for line in said.splitlines()} == {
            "reading images",
            "diagnosing etsdm",
            f"diagnosing {TWO}",
        }
        assert all("pairs of timesteps/s" in line for line in said.splitlines() if line.startswith("diagnosing"))
        assert re.search(r"^diagnosing etsdm: 100 %", said, re.MULTILINE)


def test_a_process_without_timesteps_states_its_unit(folder, tmp_path, capsys):
    """Without timesteps a unit is a thousandth of the range, and stderr, the document and the table's caption say so."""
    free = {"process": nz.LinearVP(), "conditioning": nz.Time(), "times": nz.UniformTimes(), "grid": nz.UniformGrid()}
    one = train(tmp_path / "run", nz.read_folder(folder), **free)
    unit = "LinearVP has no timesteps: one is taken as 1/1000 of the range of t."
    found, err = document(capsys, one.path, "--data", folder, *QUICK)
    assert err == f"etsdm: {unit}\n"
    assert found["runs"]["etsdm"] == measured(one, nz.read_folder(folder), interval=0.1)
    assert found["runs"]["etsdm"]["unit"] == unit
    assert found["runs"]["etsdm"]["lipschitz"]["times"][:3] == pytest.approx([0.001, 0.002, 0.003], abs=1e-12)
    assert diagnose(one.path, "--data", folder, *BRIEF) == 0
    out, err = capsys.readouterr()
    assert any(line.endswith(unit) for line in out.splitlines()) and unit in err


# ---- files


class Links(HTMLParser):
    """What a page names, by attribute, its tags, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset", "action")]
        assert not any(name.startswith("on") for name, _ in attributes)

    def handle_data(self, data):
        self.text += data


_writing = []


@pytest.fixture
def written():
    """The files that Python opens for writing from now on, its own caches left out."""
    found = []
    if not _writing:
        sys.addaudithook(lambda event, args: _writing and _writing[-1](event, args))

    def note(event, args):
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            if not isinstance(args[0], int) and "__pycache__" not in str(args[0]):
                found.append(str(args[0]))
        elif event in ("os.mkdir", "os.rename", "os.remove") and "__pycache__" not in str(args[0]):
            found.append(f"{event} {args[0]}")

    _writing.append(note)
    yield found
    _writing[-1] = lambda event, args: None


def test_without_html_nothing_is_written(run_folder, folder, tmp_path, monkeypatch, written, capsys):
    """Without --html no file is opened for writing and no folder is made; with it the run gains its page alone."""
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)
    before = tree(tmp_path)
    written.clear()
    assert diagnose(run_folder, "--data", folder, *BRIEF) == 0
    assert diagnose(run_folder, "--data", folder, *BRIEF, "--json") == 0
    assert written == []
    assert tree(tmp_path) == before
    assert diagnose(run_folder, "--data", folder, *BRIEF, "--html") == 0
    assert any("diagnosis.html" in name for name in written)
    after = tree(tmp_path)
    assert set(after) - set(before) == {"run/diagnosis.html"}
    assert {name: after[name] for name in before} == before


def test_the_page_is_next_to_the_run_or_where_it_is_told(run_folder, folder, tmp_path, monkeypatch, capsys):
    """--html writes RUN/diagnosis.html or FILE, in folders that it makes; the same call gives the same bytes, another call replaces them."""
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    found, _ = document(capsys, "run", "--data", folder, *BRIEF, "--html")
    assert found["page"] == "run/diagnosis.html"
    first = Path("run/diagnosis.html").read_bytes()
    found, _ = document(capsys, "run", "--data", folder, *BRIEF, "--html=a/b/page.html")
    assert found["page"] == "a/b/page.html"
    assert Path("a/b/page.html").read_bytes() == first
    assert diagnose("run", "--data", folder, *BRIEF, "--seed", "1", "--html", "a/b/page.html") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "page: a/b/page.html"
    second = Path("a/b/page.html").read_bytes()
    assert second != first and Links(second.decode()).links != Links(first.decode()).links
    expected = {**before, "run/diagnosis.html": first, "a": None, "a/b": None, "a/b/page.html": second}
    assert tree(tmp_path) == expected


def test_the_page_stands_alone(runs, tmp_path, capsys):
    """The page shows every network's name and numbers, its pictures are data that ask for nothing, and no name becomes a script."""
    page = tmp_path / "page.html"
    assert diagnose(runs["short"].path, "--against", runs["plain"].path, *BRIEF, "--html", page) == 0
    out, _ = capsys.readouterr()
    text = page.read_text("utf-8")
    seen = Links(text)
    assert "default-src 'none'" in text
    assert not {"script", "iframe", "object", "embed", "form", "base"} & set(seen.tags)
    assert seen.links and all(link.startswith("data:") for link in seen.links)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    pictures = [link for link in seen.links if link.startswith("data:image/svg+xml;base64,")]
    assert len(pictures) == 4
    for one in pictures:
        svg = base64.b64decode(one.partition(",")[2]).decode()
        inside = Links(svg)
        assert "script" not in inside.tags and all(link.startswith("#") for link in inside.links)
        assert not re.search(r"@import|url\((?!#)", svg)
    for line in out.splitlines()[1:-3]:
        for part in re.split(r"  +", line):
            assert part in seen.text
    assert TWO in seen.text and str(runs["short"].path) in seen.text and str(runs["plain"].path) in seen.text


def test_a_curve_that_is_zero_is_drawn(run_folder, folder, capsys):
    """Inside one shared cell K is 0 at every timestep; the command says so, and writes its page all the same."""
    arguments = [run_folder, "--data", folder, *QUICK, "--interval", "0.005"]
    found, _ = document(capsys, *arguments)
    one = found["runs"]["etsdm"]
    assert one["summary"]["max"] == 0 == one["summary"]["total_variation"]
    assert set(one["lipschitz"]["value"][:10]) == {0}
    assert diagnose(*arguments, "--html") == 0
    assert (run_folder / "diagnosis.html").is_file()


def test_a_name_that_begins_with_an_underscore_is_in_every_legend(folder, tmp_path, capsys):
    """matplotlib hides such labels; a network is named in all four figures whatever its name, without a warning."""
    images = nz.read_folder(folder)
    train(tmp_path / "run", images, name="_mine", conditioning=nz.Timestep(1000))
    assert diagnose(tmp_path / "run", "--data", folder, *BRIEF, "--html") == 0
    links = Links((tmp_path / "run/diagnosis.html").read_text("utf-8")).links
    figures = [base64.b64decode(link.partition(",")[2]).decode() for link in links if "svg+xml" in link]
    assert len(figures) == 4 and all("<!-- _mine -->" in figure for figure in figures)


def test_what_is_unknown_is_null(run_folder, folder, capsys):
    """One image has no standard error and an interval of the whole range nothing above it: null, and `unknown` in the table."""
    arguments = [run_folder, "--data", folder, *QUICK, "--images", "1", "--interval", "1"]
    found, _ = document(capsys, *arguments)
    summary = found["runs"]["etsdm"]["summary"]
    assert {name for name, value in summary.items() if value is None} == {
        "max_stderr",
        "perturbation_stderr",
        "max_above",
    }
    assert len(found["runs"]["etsdm"]["lipschitz"]["times"]) == 999
    assert diagnose(*arguments) == 0
    assert re.search(r"^largest K measured above 1, per timestep +unknown$", capsys.readouterr().out, re.MULTILINE)


def test_a_page_of_one_image(run_folder, folder, capsys):
    """One image has no error bars, and the page is written without them."""
    assert diagnose(run_folder, "--data", folder, *BRIEF, "--images", "1", "--html") == 0
    out, _ = capsys.readouterr()
    assert "\u00b1" not in out.split("\n\n")[0] and "nan" not in out
    assert "nan" not in Links((run_folder / "diagnosis.html").read_text("utf-8")).text.lower()


@pytest.mark.parametrize("kind", ["write", "replace"])
def test_a_full_disk_keeps_the_old_page(run_folder, folder, faults, capsys, kind):
    """A disk that fills while the page is written ends in 7 and one line; the page of before is whole, and nothing lies beside it."""
    (run_folder / "diagnosis.html").write_bytes(b'<meta name="generator" content="nearzero 0">')
    before = tree(run_folder)
    faults.arm(kind, 1, OSError(errno.ENOSPC, "No space left on device"))
    capsys.readouterr()
    assert diagnose(run_folder, "--data", folder, *BRIEF, "--html") == 7
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "diagnosis.html" in err and "free some space" in err
    assert faults.seen == 1 and tree(run_folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_is_read_only(run_folder, folder, tmp_path, capsys):
    """A page in a folder without permission is refused before anything is measured, exit code 7; without a page the run may be read only."""
    run_folder.chmod(0o555)
    before = tree(run_folder)
    try:
        assert diagnose(run_folder, "--data", folder, *BRIEF, "--html") == 7
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and str(run_folder) in err
        assert diagnose(run_folder, "--data", folder, *BRIEF) == 0
        assert tree(run_folder) == before
    finally:
        run_folder.chmod(0o755)


# ---- which images


def test_the_images_are_those_of_the_training(tmp_path, monkeypatch, capsys):
    """A run of `nearzero train` is diagnosed on its own folder, wherever one stands, with the size and channels of then, without a note; on a changed folder with one; without the folder not at all."""
    data = write_folder(tmp_path / "pictures", count=5, size=12, mode="RGB")
    out = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    asked = ["--data", "pictures", "--size", "8", "--channels", "1", "--steps", "1", "--batch", "1"]
    assert run(["train", "etsdm", *asked, "--out", str(out), *CPU]) == 0
    (tmp_path / "deep/down").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep/down")
    one = nz.Run.load(out)
    found, err = document(capsys, out, *BRIEF)
    assert found["runs"]["etsdm"] == measured(one, nz.read_folder(data, size=8, channels=1), interval=0.03)
    assert err == ""
    write_folder(data, count=6, size=12, mode="RGB", seed=1)
    found, err = document(capsys, out, *BRIEF)
    assert found["runs"]["etsdm"] == measured(one, nz.read_folder(data, size=8, channels=1), interval=0.03)
    assert err == f"note: pictures has changed since {out} was trained on it\n"
    data.rename(tmp_path / "elsewhere")
    assert diagnose(out, *BRIEF) == 3
    said, err = capsys.readouterr()
    assert said == "" and err.count("\n") == 1 and str(data) in err and "--data DIR" in err
    found, err = document(capsys, out, *BRIEF, "--data", tmp_path / "elsewhere")
    assert found["runs"]["etsdm"]["images"] == 2 and err == ""


def test_a_run_of_the_embedded_images(run_folder, capsys):
    """A run that was trained without --data is diagnosed on the embedded images at its size."""
    images = nz.embedded(8)
    record(run_folder, **images.describe(), source={"data": None, "size": 8, "channels": None, "preset": "small"})
    found, err = document(capsys, run_folder, *BRIEF)
    assert found["runs"]["etsdm"] == measured(nz.Run.load(run_folder), images, interval=0.03)
    assert err == ""


def test_data_overrules_the_record(runs, tmp_path, capsys):
    """--data is used instead of what the run was trained on, brought to the network's size and channels, without a note."""
    other = write_folder(tmp_path / "other", count=3, size=11, mode="RGB", seed=4)
    found, err = document(capsys, runs["short"].path, "--data", other, *BRIEF)
    images = nz.read_folder(other, size=8, channels=1)
    assert found["runs"]["etsdm"] == measured(runs["short"], images, interval=0.03)
    assert err == ""


# ---- bad input


@pytest.fixture(scope="module")
def world(tmp_path_factory, trained):
    """A folder with everything that a bad command may name."""
    root = tmp_path_factory.mktemp("world")
    write_folder(root / "pictures")
    (root / "empty").mkdir()
    (root / "file").write_text("mine")
    (root / "folder").mkdir()
    (root / "folder/thesis.html").write_text("<html>irreplaceable</html>")
    for name in ("run", "broken", "fresh", "cut", "nan", "gone"):
        shutil.copytree(trained.path, root / name, ignore=shutil.ignore_patterns("previews"))
    (root / "broken/run.json").write_text("{")
    shutil.rmtree(root / "fresh/checkpoints")
    averaged = {name: next((root / name).glob("checkpoints/*/ema.safetensors")) for name in ("cut", "nan")}
    averaged["cut"].write_bytes(averaged["cut"].read_bytes()[:1000])
    save_file({name: value * torch.nan for name, value in load_file(averaged["nan"]).items()}, averaged["nan"])
    write_manifest(averaged["nan"].parent, {"step": 6})
    record(root / "gone", source={"data": "/nowhere/pictures", "size": None, "channels": None})
    train(root / "big", pictures(3, size=16), size=16)
    train(root / "colour", pictures(3, channels=3), network=replace(tiny_recipe().network, channels=3))
    return root


RUN = "run --data pictures"
BAD = {
    "": (2, "PATH"),
    "none --data pictures": (4, "none does not exist; make a run with"),
    "folder --data pictures": (4, "folder is no run folder.*make a run with"),
    "file --data pictures": (4, "file is no run folder"),
    "broken --data pictures": (4, "broken/run.json: it is no valid JSON; restore"),
    "fresh --data pictures": (4, "fresh has no checkpoint yet; train it with: nearzero train --resume --out fresh"),
    "cut --data pictures": (4, "cut/checkpoints/000000006/ema.safetensors.*; restore"),
    f"{RUN} --against none": (4, "none does not exist"),
    f"{RUN} --against fresh": (4, "fresh has no checkpoint"),
    f"{RUN} --against broken": (4, "broken/run.json"),
    f"{RUN} --against big": (2, "run takes images of 8 x 8 with 1 channels, big of 16 x 16 with 1; diagnose them one by"),
    f"{RUN} --against colour": (2, "run takes .* 8 x 8 with 1 channels, colour of 8 x 8 with 3; diagnose them one by"),
    "run": (3, "run does not say which images it was trained on; name a folder with --data DIR"),
    "gone": (3, "gone was trained on /nowhere/pictures, which is gone; name a folder with --data DIR"),
    f"{RUN} --images 7": (3, "--images 7: pictures holds 6; ask for at most --images 6"),
    "run --data empty": (3, "empty holds no images; --data takes"),
    "run --data none": (3, "none does not exist; --data takes"),
    "run --data file": (3, "file is a file; --data takes"),
    "run --data folder": (3, "thesis.html is no PNG, JPEG or WebP image; move it"),
    f"{RUN} --images 0": (2, "--images.* 0 .*x>=1"),
    f"{RUN} --images x": (2, "--images.*'x'"),
    f"{RUN} --every 0": (2, "--every.* 0 .*x>=1"),
    f"{RUN} --interval 0": (2, "--interval.* 0.* x>0"),
    f"{RUN} --interval -1": (2, "--interval.* -1.* x>0"),
    f"{RUN} --interval 2": (2, r"interval must .* end in \[0.001, 1\], got 2"),
    f"{RUN} --interval inf": (2, r"interval must .* end in \[0.001, 1\], got inf"),
    f"{RUN} --interval 1e-9": (2, r"interval must hold a timestep .* \[0.001, 1\], got 1e-09"),
    f"{RUN} --interval nan": (2, r"interval.*nan"),
    f"{RUN} --interval x": (2, "--interval.*'x'"),
    f"{RUN} --seed -1": (2, "--seed.*-1"),
    f"{RUN} --seed 4294967296": (2, "--seed.*4294967296.*4294967295"),
    f"{RUN} --device tpu": (2, "--device.*'tpu'"),
    f"{RUN} --agianst big": (2, "--agianst.*--against"),
    "nan --data pictures": (5, "not finite at t.*; check its weights"),
    f"{RUN} --against nan": (5, "not finite at t.*; check its weights"),
    f"{RUN} --html folder": (2, "--html folder is a folder; name a file"),
    f"{RUN} --html .": (2, r"--html \. is a folder; name a file"),
    f"{RUN} --html ..": (2, r"--html \.\. is a folder; name a file"),
    f"{RUN} --html file": (2, "--html file exists and is no page of nearzero's; name another file"),
    f"{RUN} --html folder/thesis.html": (2, "--html folder/thesis.html exists and is no page of nearzero's; name an"),
    f"{RUN} --html run/run.json": (2, "--html run/run.json exists and is no page"),
    f"{RUN} --html file/page.html": (7, "cannot write file/page.html: .*file is a file; choose a folder"),
    f"{RUN} --html {'x' * 300}": (7, "cannot write xxx"),
}  # fmt: skip


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:50] or "nothing")
def test_bad_input(world, tmp_path, monkeypatch, capsys, line):
    """Each mistake ends in its exit code and one line on stderr with value and remedy; stdout stays empty, and no page and no other file appears or changes."""
    code, named = BAD[line]
    root = shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(root)
    before = tree(root)
    page = [] if "--html" in line else ["--html", "new/page.html"]
    wanted = [] if "--images" in line else ["--images", "2"]
    capsys.readouterr()
    assert diagnose(*CPU, *wanted, *page, *shlex.split(line)) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("nearzero: error: "), err
    assert re.search(named, err), err
    assert tree(root) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
def test_a_device_that_is_not_there(trained, folder, capsys):
    """--device cuda without one is refused with the way out."""
    assert diagnose(trained.path, "--data", folder, "--device", "cuda") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "--device cuda" in err and "--device auto" in err


def test_the_raw_weights_are_read_from_their_own_file(world, capsys):
    """Averaged weights that are not finite do not matter with --raw-weights."""
    with contextlib.chdir(world):
        assert diagnose("nan", "--data", "pictures", *BRIEF, "--raw-weights") == 0
    assert "largest K" in capsys.readouterr().out


def test_other_timesteps_are_not_compared(trained, folder, tmp_path, capsys):
    """Two processes have two kinds of timesteps: refused by both names, with the remedy."""
    train(tmp_path / "other", nz.read_folder(folder), process=nz.DiscreteVP.quadratic())
    assert diagnose(trained.path, "--against", tmp_path / "other", "--data", folder) == 2
    out, err = capsys.readouterr()
    assert out == "" and "QuadraticBetas" in err and "diagnose them one by one" in err
