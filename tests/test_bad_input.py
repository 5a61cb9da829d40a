"""Bad input ends in one line: values of files and options that nearzero cannot take, and the page that lists them."""

import ast
import json
import pickle
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

import nearzero as nz
from conftest import tree, write_folder
from nearzero import recipes
from nearzero.cli import run
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.networks import unet
from nearzero.process import discrete
from nearzero.recipes import PRESETS, small
from nearzero.registry import decode, encode
from nearzero.training.guards import Action

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reliability.md"


def refused(capsys, line, code, *named):
    """Runs a command that ends in `code`, with one line on stderr that holds each of `named` and nothing on stdout."""
    capsys.readouterr()
    assert run(shlex.split(line) if isinstance(line, str) else [str(part) for part in line]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("nearzero: error: "), err
    for words in named:
        assert re.search(words, err), err


def changed(folder, *path, to):
    """Replaces one value in a run's recipe."""
    record = json.loads((folder / "run.json").read_text())
    inner = record["recipe"]
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = to
    (folder / "run.json").write_text(json.dumps(record))


# ---- recipes in files


WRONG = {
    "B1 a key in the recipe": ((("stepz",), 3), "unknown field 'stepz' of Recipe", "did you mean 'steps'"),
    "B1 a key deep inside": ((("training", "learning_rat"), 1), "'learning_rat' of Training", "'learning_rate'"),
    "B1 a class": ((("solver", "class"), "Ancestrel"), "unknown class 'Ancestrel'", "did you mean 'Ancestral'"),
    "B2 text for a whole number": ((("training", "steps"), "10"), "bad Training", "steps.*got '?10"),
    "B2 a fraction for a whole number": ((("training", "batch"), 2.5), "bad Training", "batch.*got 2.5"),
    "B2 a list for an object": ((("network",), [1]), "does not work", "restore it or train again"),
    "B2 a number for a list": ((("network", "multipliers"), 1), "bad UNet", "multipliers and attention are tuples"),
    "B3 a number as text": ((("training", "learning_rate"), "1e-4"), "bad Training"),
    "B4 true for a whole number": ((("training", "steps"), True), "bad Training", "steps.*got True"),
    "B4 no for false": ((("network", "scale_shift"), "no"), "bad UNet", "scale_shift .*true or false, got 'no'"),
    "B4 no mirroring": ((("training", "flip"), "no"), "bad Training", "flip must be true or false, got 'no'"),
    "B4 one for true": ((("dither",), 1), "bad Recipe", "dither must be true or false, got 1"),
    "B4 true for a number": ((("training", "learning_rate"), True), "learning_rate must be a number, got True"),
    "B2 a number for a name": ((("name",), 3), "bad Recipe", "name must be text, got 3"),
    "B6 no batch": ((("training", "batch"), 0), "batch must be at least 1, got 0"),
    "B6 negative steps": ((("training", "steps"), -5), "steps must be at least 1, got -5"),
    "B6 no sampling steps": ((("steps",), 0), "does not work", "0"),
    "B6 no learning rate": ((("training", "learning_rate"), 0), "learning_rate must be positive, got 0"),
    "B8 a shared interval beyond the end": ((("conditioning", "interval"), 2000), "bad Shared", "2000"),
    "B8 more cells than timesteps": ((("conditioning", "cells"), 101), "bad Shared", "101"),
    "B8 no cells": ((("conditioning", "cells"), 0), "bad Shared", "0"),
    "B13 a size that cannot be halved": ((("network", "multipliers"), [1, 1, 1, 1, 1]), "8 must be divisible by 16"),
    "B14 channels without heads": ((("network", "head_channels"), 5), "16 channels do not divide.*heads of 5"),
    "B15 attention never reached": ((("network", "attention"), [3]), r"reach \(3,\) for attention"),
    "an uncertainty without an end": ((("uncertainty",), 10**9), "does not work", "at most 1024 terms"),
    "a process without an end": ((("process", "betas", "steps"), 10**12), "at most 1,000,000"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_recipe_that_is_wrong_is_one_line(run_folder, capsys, case):
    """Exit code 4 and one line with the value and its rule, from every command that reads the run, which stays as it was."""
    ((path, value), *named) = WRONG[case]
    changed(run_folder, *path, to=value)
    before = tree(run_folder.parent)
    for line in (
        ["inspect", run_folder],
        ["sample", run_folder, "-n", "1", "--out", run_folder.parent / "out"],
        ["train", "--resume", "--out", run_folder],
    ):
        refused(capsys, line, 4, *named)
    assert tree(run_folder.parent) == before


@pytest.mark.parametrize("text", ["1e-4", "0.0001", "1E-04", "1.0e-4"])
def test_a_number_may_be_written_in_any_way(run_folder, text):
    """B3: 1e-4 in a file is the number 0.0001 however it is written."""
    changed(run_folder, "training", "learning_rate", to="HERE")
    path = run_folder / "run.json"
    path.write_text(path.read_text().replace('"HERE"', text))
    assert nz.Run.load(run_folder).recipe.training.learning_rate == 0.0001


@pytest.mark.parametrize("name", ["recipe", "steps", "seed"])
def test_a_key_that_stands_twice_is_refused(run_folder, capsys, name):
    """B5: of two values for one key, in run.json or deep inside, none is chosen: exit code 4 with the key."""
    path = run_folder / "run.json"
    text = path.read_text()
    path.write_text(text.replace(f'"{name}":', f'"{name}": 1, "{name}":', 1))
    for command in (["inspect", run_folder], ["sample", run_folder, "--out", run_folder.parent / "out"]):
        refused(capsys, command, 4, "run.json", f"it names '{name}' twice")
    assert not (run_folder.parent / "out").exists()


# ---- options


FLOATS = {
    "--eta": "--solver ddim",
    "--churn": "--solver churn",
    "--rho": "--grid karras",
    "--sigma-min": "--grid karras",
    "--sigma-max": "--grid karras",
    "--guidance": "--guide run",
}


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "x", "1,5"])
@pytest.mark.parametrize("option", FLOATS)
def test_a_number_that_is_none_is_refused(run_folder, monkeypatch, capsys, option, value):
    """B7: NaN, an infinity, a number above float64's and text end in exit code 2, and no folder is made."""
    monkeypatch.chdir(run_folder.parent)
    before = tree(run_folder.parent)
    told = "nan" if value == "nan" else "inf" if value in ("inf", "-inf", "1e999") else re.escape(value)
    refused(capsys, f"sample run -n 1 --out new {FLOATS[option]} {option}={value}", 2, told)
    assert tree(run_folder.parent) == before


@pytest.mark.parametrize("ends", [(2, 2), (3, 2), (0, 2), (-1, 2)])
def test_noise_levels_go_down(run_folder, capsys, ends):
    """B10: sigma_min must lie in (0, sigma_max): equal ends, ends in the wrong order, 0 and less are refused with both numbers."""
    low, high = ends
    line = ["sample", run_folder, "-n", "1", "--out", run_folder.parent / "new", "--grid", "karras"]
    refused(capsys, [*line, f"--sigma-min={low}", f"--sigma-max={high}"], 2, "0 < sigma_min < sigma_max", f"{low}")
    assert not (run_folder.parent / "new").exists()
    with pytest.raises(ArgumentError, match="0 < sigma_min < sigma_max"):
        nz.KarrasGrid(sigma_min=low, sigma_max=high)


@pytest.mark.parametrize(
    "line", ["train etsdm --out new", "sample run --out new", "evaluate run --nll", "diagnose run"]
)
def test_a_device_that_is_not_there_is_refused(run_folder, monkeypatch, capsys, line):
    """B32: --device cuda and mps on a machine without end in exit code 2 before anything is read or written."""
    monkeypatch.chdir(run_folder.parent)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    before = tree(run_folder.parent)
    for device in ("cuda", "mps"):
        refused(capsys, f"{line} --device {device}", 2, f"--device {device}", "use --device auto")
    assert tree(run_folder.parent) == before


def test_half_precision_needs_a_gpu(tmp_path, monkeypatch, capsys):
    """B33: --precision fp16 on a CPU is refused with bf16 as the way out, which trains; nothing is written before."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "pictures", count=4)
    line = "train etsdm --data pictures --steps 1 --batch 2 --device cpu --no-space-check --out new"
    refused(capsys, f"{line} --precision fp16", 2, "fp16 needs a CUDA device, got cpu; use bf16")
    refused(capsys, f"{line} --precision fp8", 2, "fp8", "bf16")
    assert not (tmp_path / "new").exists()
    assert run([*shlex.split(line), "--precision", "bf16"]) == 0
    assert nz.Run.load(tmp_path / "new").step == 1


@pytest.mark.parametrize("seed", ["-1", "4294967296", "1.5", "x", "0x10", "1e3", ""])
def test_a_seed_has_32_bits(tmp_path, monkeypatch, capsys, seed):
    """B34: train takes one seed from 0 to 2^32 - 1, in decimals, and anything else is exit code 2 with the value."""
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["train", "etsdm", f"--seed={seed}", "--out", "new"], 2, "--seed", re.escape(seed))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("label", ["0", "3", "-1"])
def test_a_label_needs_a_network_that_hears_it(run_folder, capsys, label):
    """B35: no recipe is told classes, so a class to draw, 0 included, is refused before anything is written."""
    out = run_folder.parent / "new"
    refused(capsys, ["sample", run_folder, "--out", out, f"--label={label}"], 2, f"--label {label}", "knows no classes")
    refused(capsys, ["sample", run_folder, "--out", out, "--label", "cat"], 2, "--label.*'cat'")
    assert not out.exists()


def test_no_evaluation_of_fewer_images(run_folder, capsys):
    """F34: where more images are asked for than there are, exit code 3 with both numbers and no file: never a measure of fewer."""
    data = write_folder(run_folder.parent / "pictures", count=3)
    before = tree(run_folder.parent)
    assert run(["evaluate", str(run_folder), "--nll", "--data", str(data), "--images", "4"]) == 3
    out, err = capsys.readouterr()
    assert out == "" and re.match("nearzero: error: 4 images were asked for and .* holds 3", err.splitlines()[-1])
    assert tree(run_folder.parent) == before


# ---- runs that are none


@pytest.mark.parametrize("name", ["model.pt", "model.pkl", "model.ckpt", "model.safetensors"])
def test_a_file_is_no_run(tmp_path, capsys, name):
    """B28, B31: a checkpoint of another program in place of a run folder is refused by every command, and not opened as a pickle."""

    class Evil:
        def __reduce__(self):
            return Path.write_text, (tmp_path / "canary", "sung")

    path = tmp_path / name
    path.write_bytes(pickle.dumps(Evil()))
    before = tree(tmp_path)
    for command in ("inspect", "verify", "status", "diagnose"):
        refused(capsys, [command, path], 4, re.escape(name), "no run folder", "nearzero train")
    refused(capsys, ["sample", path, "--out", tmp_path / "new"], 4, re.escape(name), "no run folder")
    refused(capsys, ["evaluate", path, "--nll"], 4, re.escape(name), "no run folder")
    refused(capsys, ["train", "--resume", "--out", path], 4, re.escape(name), "holds no run to resume")
    assert tree(tmp_path) == before


def test_weights_of_another_architecture_are_named(run_folder, capsys):
    """B28: weights of a wider network, under a manifest that fits them, end in exit code 4 with file, tensor and both shapes."""
    from nearzero.manifest import write_manifest

    newest = next((run_folder / "checkpoints").iterdir())
    changed(run_folder, "network", "base", to=32)
    (newest / "manifest.json").unlink()
    write_manifest(newest, {"step": int(newest.name)})
    line = ["sample", run_folder, "-n", "1", "--out", run_folder.parent / "out"]
    refused(capsys, line, 4, "ema.safetensors does not fit the recipe's network", r"\[16, 1, 3, 3\].*\[32, 1, 3, 3\]")
    assert not (run_folder.parent / "out").exists()


def test_images_that_are_there_stay(run_folder, capsys):
    """B36: sampling over a file that it did not draw is refused, and a run's folder, or its images, is no --out of train."""
    data = write_folder(run_folder.parent / "pictures")
    out = run_folder.parent / "drawn"
    out.mkdir()
    (out / "000000.png").write_bytes(b"mine")
    before = tree(run_folder.parent)
    refused(capsys, ["sample", run_folder, "-n", "1", "--out", out], 2, "000000.png exists; use --overwrite")
    refused(
        capsys,
        ["train", "etsdm", "--out", run_folder],
        2,
        "holds a run; go on with: nearzero train --resume .* --overwrite",
    )
    for inside in (data, data / "run"):
        refused(
            capsys, ["train", "etsdm", "--data", data, "--out", inside, "--overwrite"], 2, "no run folder|each other"
        )
    assert tree(run_folder.parent) == before


def test_samples_do_not_join_the_images(tmp_path, monkeypatch, capsys):
    """B36: the folder that a run learned from, and any below it, is no --out of sample."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "pictures", count=4)
    assert run(shlex.split("train etsdm --data pictures --steps 1 --batch 2 --out mine --device cpu")) == 0
    before = tree(tmp_path)
    for out in ("pictures", "pictures/drawn"):
        refused(capsys, f"sample mine -n 1 --out {out}", 2, f"--out {out} lies in .*pictures", "choose another --out")
    assert tree(tmp_path) == before


# ---- networks and processes


@pytest.mark.parametrize("size", [7, 15, 28, 33])
def test_a_network_that_is_made_fits_the_images(size):
    """B13: an image that `small` cannot halve is refused with the nearest sizes that it can, and what it takes comes back in that size."""
    halvings = max(1, (size - 1).bit_length() - 3)
    if size % 2**halvings:
        near = f"{size // 2**halvings * 2**halvings} or {(size // 2**halvings + 1) * 2**halvings}"
        with pytest.raises(
            ArgumentError, match=f"image size {size} must be divisible by {2**halvings}.*--size {near}$"
        ):
            small(recipes.etsdm(), size, 1)
        return
    network = small(recipes.etsdm(), size, 1).network.build()
    assert network(torch.zeros(1, 1, size, size), torch.zeros(1)).shape == (1, 1, size, size)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_size_is_taken_or_refused_with_one_that_is(preset):
    """B13: of the sizes 1 to 300 each fits, or is refused in a line whose sizes do fit and with none that fits between."""
    fits, near = set(), {}
    for size in range(1, 301):
        try:
            PRESETS[preset](recipes.etsdm(), size, 1)
            fits.add(size)
        except ArgumentError as error:
            near[size] = [int(number) for number in re.findall(r"\d+", str(error).partition("--size ")[2])]
    assert fits
    for size, told in near.items():
        assert told, size
        if preset == "paper":  # of `small`, another size is another network
            below, above = (
                max((s for s in fits if s < size), default=None),
                min((s for s in fits if s > size), default=0),
            )
            assert [s for s in told if s <= 300] == [s for s in (below, above) if s]
        else:
            assert told[-1] > size and all(s in fits for s in told if s <= 300), size


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"head_channels": 48}, "128 channels do not divide into 32 groups and heads of 48"),
        ({"base": 132, "head_channels": 66}, "channels do not divide into 32 groups and heads of 66"),
        ({"base": 33, "head_channels": 33}, "33 channels do not divide into 8 groups"),
        ({"attention": (31,)}, r"reach \(31,\) for attention"),
        ({"attention": (32, 2)}, r"reach \(32, 2\) for attention"),
        ({"attention": ("32",)}, "positive integers"),
        ({"attention": (True,)}, "positive integers"),
        ({"attention": (32.0,)}, "positive integers"),
        ({"scale_shift": 1}, "scale_shift is true or false, got 1"),
    ],
)
def test_channels_and_attention_are_checked_at_once(fields, named):
    """B14, B15: channels that groups or heads do not divide, and attention at a size that is never reached, are refused when the network is described."""
    with pytest.raises(ArgumentError, match=named) as caught:
        nz.UNet(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", unet.LIMITS)
def test_a_network_has_limits(name, monkeypatch):
    """A field at its limit is taken and one more is refused with both numbers, before anything is computed."""
    plain = {"size": 8, "channels": 1, "base": 1, "multipliers": (1,), "attention": (), "head_channels": 1}
    limit = unet.LIMITS[name]
    wide = {"base": limit} if name == "head_channels" else {}
    assert getattr(nz.UNet(**{**plain, **wide, name: limit}), name) == limit
    with pytest.raises(ArgumentError, match=f"{name} {limit + 1} is too large for a U-Net; take at most {limit}"):
        nz.UNet(**{**plain, **wide, name: limit + 1})


def test_a_network_has_a_limit_of_resolutions_and_weights():
    """A thirteenth multiplier is refused; so are widths whose convolutions alone have more than 10^10 weights, and a little less is not."""
    with pytest.raises(ArgumentError, match="13 multipliers; a U-Net takes at most 12"):
        nz.UNet(size=2048, multipliers=(1,) * 13, attention=())
    deep = {"size": 8, "base": 4096, "multipliers": (1,), "attention": ()}
    assert 18 * 4096**2 * (2 * 16 + 1) < unet.MAX_WEIGHTS < 18 * 4096**2 * (2 * 17 + 1)
    nz.UNet(**deep, blocks=16)
    with pytest.raises(ArgumentError, match="10,569,646,080 weights, more than 10,000,000,000"):
        nz.UNet(**deep, blocks=17)


@pytest.mark.parametrize("name", ["etsdm", "edm", "full"])
def test_the_weights_counted_are_fewer_than_there_are(name):
    """The count behind the limit is between a third and all of the parameters of the papers' networks, which are a twentieth of it at most."""
    network = recipes.named(name).network
    assert isinstance(network, unet.UNet)
    with torch.device("meta"):
        real = sum(parameter.numel() for parameter in network.build().parameters())
    assert real / 3 < network._weights() < real < unet.MAX_WEIGHTS / 20


@pytest.mark.parametrize("betas", [discrete.LinearBetas, discrete.QuadraticBetas, discrete.CosineBetas])
@pytest.mark.parametrize("steps", [10**6 + 1, 10**9, 2**70, 0, -1, True, 2.5])
def test_a_process_has_limits(betas, steps, monkeypatch):
    """A number of nodes that is none, or above a million, is refused before any beta is computed, from a file too."""
    monkeypatch.setattr(betas, "values", lambda self: pytest.fail("computed"))
    with pytest.raises(ArgumentError, match=re.escape(str(steps))):
        nz.DiscreteVP(betas(steps))
    if not isinstance(steps, float):
        with pytest.raises(CheckpointError, match="bad (DiscreteVP|.*Betas)"):
            decode({"class": "DiscreteVP", "betas": {"class": betas.__name__, "steps": steps}})


def test_a_process_of_a_million_steps_is_one():
    """The limit itself is taken."""
    assert nz.DiscreteVP.linear(discrete.MAX_STEPS, 1e-9, 1e-7).steps == discrete.MAX_STEPS


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", [recipes.named(name) for name in ("ddpm", "etsdm", "edm", "full_w")])
def test_no_recipe_comes_near_a_limit(recipe, preset):
    """Every network of a paper is at most a quarter of each limit but those of size and heads, and comes back from a file."""
    network = PRESETS[preset](recipe, 64, 3).network
    for name in ("channels", "base", "blocks", "time_channels"):
        assert 4 * getattr(network, name) <= unet.LIMITS[name]
    assert decode(encode(replace(recipe, network=network))).network == network


# ---- the page


def rows():
    """(number, cells) of every line of the page's tables that begins with a fault's number."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("|") and (number := re.match(r"[FB]\d+$", cells[0])):
            yield number[0], cells[1:]


def test_the_page_lists_every_fault_once():
    """F1 to F35 and B1 to B40 stand in the tables, in order, each once, with what happens and a test or a reason."""
    expected = [*(f"F{i}" for i in range(1, 36)), *(f"B{i}" for i in range(1, 41))]
    assert [number for number, _ in rows()] == expected
    for number, cells in rows():
        assert len(cells) == 3 and all(cells), number
        assert "`test_" in cells[2] or cells[2].startswith("does not apply: "), number


def test_every_test_that_the_page_names_exists():
    """`test_x.py::test_y` on the page is a function of that file, parametrized or not."""
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 75
    for file in {file for file, _ in named}:
        body = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8")).body
        there = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        assert {test for one, test in named if one == file} <= there, file


def test_the_page_names_every_kind_of_event():
    """The kinds of events in the page's table are those that training and the command tell, and no others."""
    told = set(get_args(Action)) - {"go"}
    for path in (*(ROOT / "src/nearzero/training").glob("*.py"), ROOT / "src/nearzero/cli/train.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("add", "_add", "_event") and node.args:
                told |= {getattr(node.args[0], "value", None)}
            elif isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                told |= {getattr(value, "value", None) for key, value in pairs if getattr(key, "value", None) == "kind"}
    table = PAGE.read_text(encoding="utf-8").partition("<!-- events -->")[2].partition("<!-- end -->")[0]
    first = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    assert {kind for cell in first for kind in re.findall(r"`([^`]+)`", cell)} == {
        k for k in told if isinstance(k, str)
    }
