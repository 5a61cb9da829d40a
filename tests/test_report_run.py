"""nearzero report: copies are found, what is missing or damaged is said, and a page stands alone whatever a run holds."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import browser
import nearzero as nz
from conftest import pictures, tiny_recipe, write_folder
from nearzero.cards import Card, write_card
from nearzero.cli import run
from nearzero.data import read_images
from nearzero.errors import ArgumentError, DataError
from nearzero.metrics.extractors import ModuleExtractor
from nearzero.report import neighbours
from nearzero.report.curves import SHOWN, points, read_stats
from nearzero.report.neighbours import Neighbours, nearer_than_real, nearest, nearest_by_features

HOSTILE = "<img src=x onerror=alert(1)>&$x$"
CARD = Card(
    "Frechet distance (x)", 12.3456, 11.5, 13.5, 0.5, 1.25, {"count": 100}, {"step": 2}, {"KID": {"value": 0.5}}, {}
)

# ---- neighbours


@pytest.mark.parametrize("mirrored", [False, True])
@given(seed=st.integers(0, 10**6), place=st.integers(0, 39))
def test_a_planted_copy_is_found(mirrored, seed, place):
    """A copy of a training image has it as its nearest, at exactly 0; a mirrored one too where that is asked, and not otherwise."""
    training = pictures(40, 6, 3, seed).pixels
    copy = training[place : place + 1].flip(-1) if mirrored else training[place : place + 1]
    found = nearest(copy, training, mirrored=mirrored)
    assert found.index[0, 0] == place and found.distance[0, 0] == 0
    assert nearest(training[place : place + 1].flip(-1), training).distance[0, 0] > 0


@given(seed=st.integers(0, 10**6), channels=st.sampled_from([1, 3]))
def test_neighbours_are_those_of_all_pairs(seed, channels):
    """Index and distance of every query are those of a search through all pairs, image by image, in every chunk."""
    training, queries = pictures(30, 5, channels, seed).pixels, pictures(4, 5, channels, seed + 1).pixels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "PIECE", 7)
        found = nearest(queries, training, count=5)
    for query, index, distance in zip(queries, found.index, found.distance, strict=True):
        every = [(query.double() - one.double()).square().mean().sqrt().item() for one in training]
        assert index.tolist() == sorted(range(30), key=every.__getitem__)[:5]
        assert distance.tolist() == pytest.approx(sorted(every)[:5], rel=1e-14)


def test_neighbours_by_features():
    """With pixels as features the order is that of pixels, and the distance the Euclidean one; other shapes are refused."""
    training, queries = pictures(20, 4, 1, 1).pixels, pictures(3, 4, 1, 2).pixels
    extractor = ModuleExtractor(torch.nn.Flatten().eval(), name="pixels")
    by_features, by_pixels = nearest_by_features(queries, training, extractor), nearest(queries, training)
    assert torch.equal(by_features.index, by_pixels.index)
    assert torch.allclose(by_features.distance, by_pixels.distance * 4, rtol=1e-6)
    with pytest.raises(ArgumentError, match="one shape"):
        nearest(pictures(1, 5).pixels, training)


def test_the_control_counts():
    """Of 1,000 real images at distances 1, 2, ... the hundredth part lies below 10.99: samples below it are counted."""

    def column(values):
        return Neighbours(torch.zeros(len(values), 1), torch.tensor(values, dtype=torch.float64)[:, None])

    count, limit = nearer_than_real(column([5.0, 10.0, 11.0, 50.0]), column([float(k) for k in range(1, 1001)]))
    assert count == 2 and limit == pytest.approx(10.99)


def test_held_out_images_are_other_images():
    """A data set without a test split is told so; the names of those with one are theirs."""
    with pytest.raises(DataError, match="--test"):
        neighbours.held_out("my images", 8, 1)


# ---- curves


def test_curves_are_what_stats_say(tmp_path):
    """Each point is a line's images and mean; lines cut short, of other kinds or not finite are left out; long runs are thinned evenly, the last line kept."""
    lines = [json.dumps({"step": k, "images": 4 * k, "Loss/loss": {"mean": 1 / k}}) for k in range(1, 5 * SHOWN + 1)]
    bad = [
        "",
        "null",
        '{"step": 1}',
        '{"step": "1", "images": 1}',
        '{"step": 9, "images": 9, "Loss/loss": 3}',
        '{"step": 9, "ima',
    ]
    bad.append('{"step": 9, "images": 9, "Loss/loss": {"mean": Infinity}}')
    (tmp_path / "stats.jsonl").write_text("\n".join([*lines[:3], *bad]))
    assert points(read_stats(tmp_path / "stats.jsonl"), "Loss/loss") == [(4 * k, 1 / k) for k in (1, 2, 3)]
    (tmp_path / "stats.jsonl").write_text("\n".join(lines))
    found = points(read_stats(tmp_path / "stats.jsonl"), "Loss/loss")
    assert len(found) == SHOWN and found[-1] == (20 * SHOWN, 1 / (5 * SHOWN))
    assert read_stats(tmp_path / "none") == []


# ---- the command


def called(capsys, *arguments):
    capsys.readouterr()
    return run(["report", *map(str, arguments), "--device", "cpu"]), *capsys.readouterr()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two steps with a hostile name, on a folder of images; read only."""
    root = tmp_path_factory.mktemp("made")
    data = write_folder(root / "data")
    return nz.train(
        replace(tiny_recipe(steps=2), name=HOSTILE), read_images(data), root / "run", source={"data": str(data)}
    )


@pytest.fixture
def copied(made, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(made.path, tmp_path / "copy")


@pytest.fixture(autouse=True)
def no_weights(monkeypatch, tmp_path):
    """An empty cache: whatever this machine has fetched, the tests see none."""
    monkeypatch.setenv("NEARZERO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NEARZERO_DATA", raising=False)


def test_a_whole_run(made, copied, capsys, tmp_path):
    """The page has every section, the card's numbers, held-out images as control, K and where it comes from; its own name is text; a browser asks for nothing."""
    write_card(copied / "fd.json", CARD)
    test = write_folder(tmp_path / "test", seed=9)
    code, out, err = called(capsys, copied, "--test", test, "-n", "4", "--images", "2", "--json")
    assert code == 0, err
    found, text = json.loads(out), (copied / "report.html").read_text(encoding="utf-8")
    assert found["page"] == str(copied / "report.html") and found["damaged"] == []
    titles = (
        "What it is",
        "The numbers",
        "Training",
        "Samples",
        "Nearest training images",
        "Near t = 0",
        "Events and faults",
    )
    for title in (*titles, "Environment and commands"):
        assert f"<h2>{title}</h2>" in text
    assert "12.35" in text and "11.5 to 13.5" in text and "1.25" in text and "Above what real images show" in text
    assert "held-out real images, by pixels" in text.lower() and "nearzero data fetch squeezenet" in text
    assert "<img src=x" not in text and "<script" not in text and len(text) < 5_000_000
    assert "Frechet distance (x) 12.35" in " ".join(found["verdict"])
    if browser.chromium() is not None:
        for width in (1280, 390):
            seen = browser.open_page(copied / "report.html", width)
            assert [url for url in seen.requests if not url.startswith("data:")] == [(copied / "report.html").as_uri()]
            assert seen.messages == [] and seen.broken == 0 and seen.width == width


def test_a_copying_network_is_found_out(copied, capsys, monkeypatch):
    """Where samples are training images the verdict says how many are copies."""
    found = nz.Run.load(copied)
    images = read_images(found.data["source"]["data"])
    monkeypatch.setattr(type(found), "sample", lambda self, seeds, **how: images.pixels[list(seeds)].float())
    code, out, err = called(capsys, copied, "-n", "3", "--images", "0")
    assert code == 0 and "3 of 3 samples are copies of training images" in out, err


def test_a_run_of_nothing_but_a_checkpoint(copied, capsys, tmp_path):
    """Without statistics, events, previews and images the page is written; each missing part is said, with a command."""
    for name in ("stats.jsonl", "events.jsonl"):
        (copied / name).unlink()
    shutil.rmtree(copied / "previews")
    record = json.loads((copied / "run.json").read_text())
    record["data"]["source"]["data"] = str(tmp_path / "gone")
    (copied / "run.json").write_text(json.dumps(record))
    page = tmp_path / "page.html"
    code, out, err = called(capsys, copied, "--html", page, "-n", "2")
    text = page.read_text()
    assert code == 0, err
    for part in (
        "no stats.jsonl",
        "nearzero evaluate",
        "--fd",
        "--nll",
        "which is gone; name a folder with --data DIR",
    ):
        assert part in text
    assert text.count("image/png") == 1  # the samples


def test_a_run_before_its_first_checkpoint(copied, capsys):
    """It has no samples and says how to train on."""
    shutil.rmtree(copied / "checkpoints")
    code, out, err = called(capsys, copied)
    text = (copied / "report.html").read_text()
    assert code == 0 and "nearzero train --resume" in text and "none that is whole" in text, err


def test_a_damaged_run(copied, capsys):
    """A damaged checkpoint is told with its file, and the page is written; without a readable run.json there is no page, exit 4."""
    weights = next((copied / "checkpoints").glob("*/ema.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    code, out, err = called(capsys, copied)
    text = (copied / "report.html").read_text()
    assert code == 0 and "Something is wrong" in out and "ema.safetensors" in text, err
    (copied / "run.json").write_text("{")
    code, out, err = called(capsys, copied, "--html", copied / "other.html")
    assert code == 4 and out == "" and err.count("\n") == 1 and not (copied / "other.html").exists()


def test_an_edited_card(copied, capsys):
    """Its number is nowhere on the page, the page says so, and the exit code is 3 with one line."""
    write_card(copied / "fd.json", CARD)
    (copied / "fd.json").write_text((copied / "fd.json").read_text().replace("12.3456", "2.3456"))
    code, out, err = called(capsys, copied, "-n", "0", "--images", "0")
    text = (copied / "report.html").read_text()
    assert code == 3 and "was edited" in err.splitlines()[-1] and "was edited" in text and "2.3456" not in text


def test_a_bad_call(made, capsys, tmp_path):
    """A page over another file, a folder with nothing of ours, a file and nothing: each with its code, and nothing is written."""
    (tmp_path / "mine.html").write_text("mine")
    (tmp_path / "empty").mkdir()
    cases = {
        (made.path, "--html", tmp_path / "mine.html"): 2,
        (tmp_path / "empty",): 3,
        (tmp_path / "mine.html",): 4,
        (tmp_path / "none",): 4,
    }
    for arguments, code in cases.items():
        found, out, err = called(capsys, *arguments)
        assert (found, out, err.count("\n")) == (code, "", 1), arguments
    assert (tmp_path / "mine.html").read_text() == "mine" and list((tmp_path / "empty").iterdir()) == []


def test_a_folder_of_results_and_runs(made, copied, capsys, tmp_path):
    """A reproduction's rows and pictures and the comparison of the runs in it, from what is on the disk; an edited result ends in 3."""
    folder = tmp_path / "folder"
    assert run(["reproduce", "etsdm-snr", "--out", str(folder)]) == 0
    shutil.copytree(made.path, folder / "runs/a")
    second = shutil.copytree(made.path, folder / "runs/b")
    record = json.loads((second / "run.json").read_text())
    (second / "run.json").write_text(json.dumps({**record, "seed": 7}))
    write_card(folder / "runs/a/fd.json", CARD)
    code, out, err = called(capsys, folder)
    text = (folder / "report.html").read_text()
    assert code == 0 and "whole, by its seal" in out and "2 runs: 2 seeds of" in out, err
    assert (
        text.count("image/png") == 2
        and "12.35" in text
        and "nearzero reproduce --verify" in text
        and "<img src=x" not in text
    )
    path = folder / "etsdm-snr.json"
    path.write_text(path.read_text().replace('"name": "etsdm-snr"', '"name": "etsdm-snr" '))
    assert called(capsys, folder)[0] == 0  # the same content
    path.write_text(path.read_text().replace("0.", "1.", 1))
    code, out, err = called(capsys, folder)
    assert code == 3 and "was edited" in err.splitlines()[-1]
