"""The command: what it promises on the terminal, in files and in its exit code."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import nearzero as nz
from conftest import tree, write_folder
from nearzero.cli import COMMANDS, run
from nearzero.cli.common import duration, parse_seeds, progress
from nearzero.errors import ArgumentError
from nearzero.files import contact_sheet, to_bytes
from nearzero.objective import Evaluation
from nearzero.recipes import Recipe, table

SOURCE = Path(nz.__file__).parents[1]
ALONE = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def read(path):
    """A grey PNG as a tensor (1, H, W)."""
    return torch.from_numpy(np.asarray(Image.open(path)).copy())[None]


def newest(out):
    """Every bit of a run's newest checkpoint."""
    checkpoint = nz.Run.load(out).checkpoint()
    return {"step": checkpoint.name, **tree(checkpoint)}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Six grey PNG files of 8 x 8 pixels."""
    return write_folder(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="session")
def mine(tmp_path_factory, folder):
    """A run of two steps, made by the command. Read only."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    assert (
        run(
            [
                "train",
                "etsdm",
                "--data",
                str(folder),
                "--out",
                str(out),
                "--steps",
                "2",
                "--batch",
                "2",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    return out


# ---- help


def test_help_is_quick():
    """`python -m nearzero --help` takes less than half a second, the best of five."""
    seconds = []
    while len(seconds) < 5 and min(seconds, default=1) >= 0.5:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "nearzero", "--help"], env=ALONE, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5, seconds


def test_help_and_version_import_nothing_heavy():
    """The help of every command, and --version, import neither torch nor numpy, diffusers or Pillow."""
    code = f"""
import sys
from nearzero.cli import run
for arguments in [["--help"], ["-h"], ["--version"], *([name, "--help"] for name in {list(COMMANDS)})]:
    assert run(arguments) == 0, arguments
print(sorted({{"torch", "numpy", "diffusers", "PIL", "safetensors", "rich"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], env=ALONE, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]" and done.stderr == ""


@pytest.mark.parametrize(
    "arguments", [[], *([name] for name in COMMANDS)], ids=lambda arguments: " ".join(arguments) or "nearzero"
)
def test_help_says_how(capsys, arguments):
    """Help goes to stdout, fits 80 columns, and shows every command, or an example that begins with the command."""
    assert run([*arguments, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and max(map(len, out.splitlines())) <= 80
    assert all(name in out for name in (COMMANDS if not arguments else ["--json"]))
    assert re.search(rf"^ +nearzero {arguments[0] if arguments else 'train'}\b", out, re.MULTILINE)


def test_without_a_command_there_is_help(capsys):
    """`nearzero` alone shows its help as people read it, in lines, and no error."""
    run([])
    out, err = capsys.readouterr()
    assert "Commands:\n" in out + err and "error" not in err


def test_version(capsys):
    """--version prints the name and the package's version."""
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"nearzero {nz.__version__}\n"


# ---- train, then sample


def test_train_then_sample(mine, folder, tmp_path, capsys):
    """A folder of images becomes a run, and the run becomes one PNG for each seed and a grid, pixel for pixel Run.sample's."""
    made = nz.Run.load(mine)
    images = nz.read_folder(folder)
    assert made.step == 2 and made.recipe.training.batch == 2
    assert {name: made.data[name] for name in images.describe()} == images.describe()
    out = tmp_path / "samples"
    capsys.readouterr()
    assert run(["sample", str(mine), "--seeds", "3,0-1", "--steps", "4", "--out", str(out)]) == 0
    said, _ = capsys.readouterr()
    assert str(out / "grid.png") in said and said.count("\n") == 1
    assert sorted(tree(out)) == ["000000.png", "000001.png", "000003.png", "grid.png", "samples.json"]
    expected = to_bytes(made.sample([0, 1, 3], steps=4))
    for seed, image in zip((0, 1, 3), expected, strict=True):
        assert torch.equal(read(out / f"{seed:06d}.png"), image)
    grid, sheet = read(out / "grid.png"), contact_sheet(expected)
    scale = grid.shape[-1] // sheet.shape[-1]
    assert torch.equal(grid[:, ::scale, ::scale], sheet)


def test_equal_seeds_give_equal_files(trained, tmp_path):
    """Sampling again, other seeds, or other batches: a seed's file is the same bytes."""
    calls = {"a": ["-n", "4"], "b": ["--seeds", "0-3"], "c": ["--seeds", "2,3"], "d": ["-n", "4", "--batch", "1"]}
    for name, arguments in calls.items():
        assert run(["sample", str(trained.path), *arguments, "--out", str(tmp_path / name)]) == 0
    trees = [tree(tmp_path / name) for name in calls]
    a, b, c, d = ({name: content for name, content in one.items() if name.endswith(".png")} for one in trees)
    assert a == b == d
    assert {name: a[name] for name in ("000002.png", "000003.png")} == {
        name: c[name] for name in c if name != "grid.png"
    }
    assert len({a[f"00000{seed}.png"] for seed in range(4)}) == 4


@pytest.mark.filterwarnings("ignore:on this grid of 7 steps sharing changes nothing")
def test_options_of_sample_reach_the_sampler(trained, tmp_path, monkeypatch):
    """--solver, --grid, --steps and --raw-weights sample with these objects and weights, and give the library's images."""
    used = []
    monkeypatch.setattr(
        "nearzero.production.job.sample",
        lambda *args, **settings: used.append((args, settings)) or nz.sample(*args, **settings),
    )
    calls = {
        "ddim sqrt": (["--solver", "ddim", "--grid", "sqrt"], {"solver": nz.DDIM(), "grid": nz.SqrtGrid()}, True),
        "ancestral leading": (
            ["--solver", "ancestral", "--grid", "leading"],
            {"solver": nz.Ancestral(), "grid": nz.TimestepGrid("leading")},
            True,
        ),
        "lower uniform": (
            ["--solver", "ancestral-lower", "--grid", "uniform"],
            {"solver": nz.Ancestral("lower"), "grid": nz.UniformGrid()},
            True,
        ),
        "linspace": (["--grid", "linspace"], {"grid": nz.TimestepGrid("linspace")}, True),
        "raw": (["--raw-weights"], {}, False),
    }
    for name, (arguments, settings, ema) in calls.items():
        out, denoiser = tmp_path / name, trained.denoiser(ema=ema)
        assert run(["sample", str(trained.path), "-n", "1", "--steps", "7", *arguments, "--out", str(out)]) == 0
        (asked, *_), how = used[-1]
        expected = {"solver": trained.recipe.solver, "grid": trained.recipe.grid, "steps": 7, **settings}
        assert {name: how[name] for name in expected} == expected
        assert all(torch.equal(a, b) for a, b in zip(asked.parameters(), denoiser.parameters(), strict=True))
        assert torch.equal(
            read(out / "000000.png"), to_bytes(trained.sample([0], steps=7, denoiser=denoiser, **settings))[0]
        )


def test_sample_replaces_only_when_told(trained, tmp_path, capsys):
    """An image that is there is kept without --overwrite and replaced with it; other files in the folder stay."""
    out = tmp_path / "out"
    (out).mkdir()
    (out / "000001.png").write_bytes(b"mine")
    (out / "notes").write_bytes(b"mine")
    before = tree(out)
    assert run(["sample", str(trained.path), "-n", "2", "--out", str(out)]) == 2
    assert tree(out) == before
    assert run(["sample", str(trained.path), "-n", "2", "--out", str(out), "--overwrite"]) == 0
    assert torch.equal(read(out / "000001.png"), to_bytes(trained.sample([0, 1]))[1])
    assert tree(out)["notes"] == b"mine"


def test_a_dry_run_writes_nothing(folder, tmp_path, monkeypatch, capsys):
    """--dry-run says parameters, images, time and disk, and leaves neither file nor folder, on the way to --out neither."""
    monkeypatch.chdir(tmp_path)
    assert (
        run(
            ["train", "etsdm", "--data", str(folder), "--out", "a/b/run", "--steps", "700", "--batch", "2", "--dry-run"]
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert tree(tmp_path) == {}
    assert out.count("\n") == 1 and "nothing written" in out
    parameters = sum(p.numel() for p in nz.recipes.small(nz.recipes.etsdm(), 8, 1).network.build().parameters())
    for part in (f"{parameters:,} parameters", "6 images", "8 x 8 grey", "700 steps of 2", "images/s", "MB", "GB free"):
        assert part in err
    assert re.search(r"^time +about (\d+ s|\d+ min)", err, re.MULTILINE)


# ---- one JSON document


def test_json_of_every_command(folder, trained, tmp_path, monkeypatch, capsys):
    """With --json stdout is one JSON document with schema_version, nearzero and command, and nothing else."""
    monkeypatch.chdir(tmp_path)
    train = ["train", "ddpm", "--data", str(folder), "--steps", "1", "--batch", "2"]
    calls = {
        "dry run": [*train, "--out", "dry", "--dry-run"],
        "train": [*train, "--out", "new"],
        "sample": ["sample", str(trained.path), "--seeds", "4,2", "--out", "samples"],
        "recipes": ["recipes"],
        "recipe": ["recipes", "etsdm"],
        "differences": ["recipes", "ddpm", "etsdm"],
    }
    documents = {}
    for name, arguments in calls.items():
        assert run([*arguments, "--json"]) == 0
        documents[name] = json.loads(capsys.readouterr().out)
        assert documents[name]["schema_version"] == 1 and documents[name]["nearzero"] == nz.__version__
        assert documents[name]["command"] == arguments[0]
    assert documents["dry run"]["dry_run"] is True and documents["dry run"]["data"]["count"] == 6
    assert documents["train"]["step"] == 1 and documents["train"]["run"] == "new"
    assert documents["sample"]["seeds"] == [4, 2] and documents["sample"]["step"] == 6
    assert set(documents["recipes"]["recipes"]) == set(nz.recipes.RECIPES)
    assert nz.registry.decode(documents["recipe"]["recipe"]) == nz.recipes.etsdm()
    assert set(documents["differences"]["differences"]) == {"conditioning"}


def test_recipes_for_people(capsys, monkeypatch):
    """recipes prints Table 1, at any width, shows one recipe with its claims, and the axes on which two differ."""
    for width in ("60", "200"):
        monkeypatch.setenv("COLUMNS", width)
        assert run(["recipes"]) == 0
        head, *blocks = capsys.readouterr().out.split("\n\n")
        assert " ".join(head.split()) == f"Seven axes: {' | '.join(table.COLUMNS)}"
        assert [block.split()[0] for block in blocks] == list(nz.recipes.RECIPES)
        for block, row in zip(blocks, table.table().values(), strict=True):
            assert " ".join(block.split()).endswith(" ".join(" | ".join(row).split()))
    assert run(["recipes", "etsdm"]) == 0
    assert "interval=100, cells=5" in (out := capsys.readouterr().out) and "6.62" in out
    assert run(["recipes", "ddpm", "etsdm"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "conditioning"
    assert run(["recipes", "ddpm", "ddpm"]) == 0
    assert capsys.readouterr().out == "ddpm and ddpm do not differ\n"


# ---- resume


def test_resume_needs_nothing_else(mine, folder, tmp_path):
    """`train --resume --out RUN` takes recipe, data and batch as recorded; --steps alone asks for more, and the end is that of one run."""
    out = shutil.copytree(mine, tmp_path / "run")
    assert run(["train", "--resume", "--out", str(out)]) == 0
    assert newest(out) == newest(mine)
    assert run(["train", "--resume", "--out", str(out), "--steps", "4"]) == 0
    whole = tmp_path / "whole"
    assert (
        run(
            [
                "train",
                "etsdm",
                "--data",
                str(folder),
                "--out",
                str(whole),
                "--steps",
                "4",
                "--batch",
                "2",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert newest(out) == newest(whole)


def test_resume_keeps_size_channels_seed_and_preset(tmp_path):
    """What was asked at first, --size, --channels, --seed and --preset, need not be asked again."""
    data = write_folder(tmp_path / "pictures", count=3, size=20, mode="RGB")
    first = [
        "train",
        "ddpm",
        "--data",
        str(data),
        "--size",
        "16",
        "--channels",
        "1",
        "--seed",
        "7",
        "--preset",
        "small",
        "--batch",
        "1",
    ]
    assert run([*first, "--out", str(tmp_path / "parts"), "--steps", "1"]) == 0
    assert run(["train", "--resume", "--out", str(tmp_path / "parts"), "--steps", "2"]) == 0
    assert run([*first, "--out", str(tmp_path / "whole"), "--steps", "2"]) == 0
    assert newest(tmp_path / "parts") == newest(tmp_path / "whole")


@pytest.mark.parametrize(
    "changed", [["--seed", "1"], ["--batch", "3"], ["--size", "16"], ["--channels", "3"], ["ddpm"]], ids=" ".join
)
def test_resume_with_something_else_is_refused(mine, tmp_path, capsys, changed):
    """Another seed, batch, size, number of channels or recipe than recorded is refused, and the run stays as it was."""
    out = shutil.copytree(mine, tmp_path / "run")
    before = tree(out)
    capsys.readouterr()
    assert run(["train", *changed, "--resume", "--out", str(out), "--steps", "3"]) in (2, 3)
    assert tree(out) == before
    assert "nearzero: error: " in capsys.readouterr().err


def test_ctrl_c_then_resume_is_one_run(folder, tmp_path):
    """SIGINT to a real process: exit code 75 and a line that says how to go on; --resume ends in the bits of a run without it."""
    arguments = ["train", "etsdm", "--data", str(folder), "--steps", "150", "--batch", "1", "--device", "cpu"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "nearzero", *arguments, "--out", str(stopped)],
        env=ALONE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stats, deadline = stopped / "stats.jsonl", time.monotonic() + 200
    while not (stats.exists() and stats.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (75, ""), err
    assert re.fullmatch(
        r"nearzero: stopped at step \d+ of 150 with a valid checkpoint in .*; go on with: nearzero train --resume --out .*",
        err.splitlines()[-1],
    )
    assert 50 <= nz.Run.load(stopped).step < 150
    assert run(["train", "--resume", "--out", str(stopped)]) == 0
    assert run([*arguments, "--out", str(whole)]) == 0
    assert newest(stopped) == newest(whole)


def test_a_run_among_its_images_is_refused(run_folder, capsys):
    """--out below --data, or the other way round, would train on previews or delete the images."""
    images = write_folder(run_folder / "images")
    for data, out in ((images, images / "run"), (images, run_folder)):
        assert run(["train", "etsdm", "--data", str(data), "--out", str(out), "--overwrite"]) == 2
        assert "lie in each other" in capsys.readouterr().err


# ---- bad input


@pytest.fixture(scope="session")
def world(tmp_path_factory, trained):
    """A folder with everything that a bad command may name."""
    root = tmp_path_factory.mktemp("world")
    write_folder(root / "pictures")
    (root / "empty").mkdir()
    (root / "notes").mkdir()
    (root / "notes/notes.txt").write_text("no image")
    write_folder(root / "cut", size=64)
    (root / "cut/003.png").write_bytes((root / "cut/003.png").read_bytes()[:2000])
    write_folder(write_folder(root / "mixed") / "more", size=9, count=1)
    write_folder(write_folder(root / "kinds") / "colour", mode="RGB", count=1)
    write_folder(root / "lines")
    (root / "lines/two\nlines.png").write_bytes(b"no image")
    (root / "file").write_text("mine")
    (root / "folder").mkdir()
    (root / "folder/thesis.tex").write_text("irreplaceable")
    shutil.copytree(trained.path, root / "run")
    shutil.copytree(trained.path, root / "broken")
    (root / "broken/run.json").write_text("{")
    (root / "drawn").mkdir()
    (root / "drawn/000003.png").write_bytes(b"mine")
    return root


TRAIN = "train etsdm --data pictures --out new"
SAMPLE = "sample run --out new"
BAD = {
    "train etsdm --data none --out new": (3, "none does not exist"),
    "train etsdm --data file --out new": (3, "file is a file"),
    "train etsdm --data empty --out new": (3, "empty holds no images"),
    "train etsdm --data notes --out new": (3, "notes.txt is no PNG"),
    "train etsdm --data cut --out new": (3, "003.png is damaged"),
    "train etsdm --data mixed --out new": (3, "000.png is 9 x 9 pixels while most images are 8 x 8; use --size"),
    "train etsdm --data kinds --out new": (3, "000.png is colour while most images are grey; use --channels"),
    "train etsdm --data lines --out new": (3, "lines.png is no PNG"),
    f"{TRAIN} --size 30": (2, "30 must be divisible by 4.*28 or 32"),
    f"{TRAIN} --preset paper --size 30": (2, "30 must be divisible by 32.*use --size 32"),
    f"{TRAIN} --preset paper": (2, "image size 8 must be divisible by 32"),
    f"{TRAIN} --size 0": (2, "--size.*0"),
    f"{TRAIN} --channels 2": (2, "--channels.*2"),
    "train etsdm --channels 3 --out new": (2, "--channels 3.*--data"),
    "train etsmd --data pictures --out new": (2, "unknown recipe 'etsmd'; did you mean 'etsdm'"),
    "train --data pictures --out new": (2, "train needs a recipe.*nearzero train etsdm"),
    "train etsdm --data pictures": (2, "--out"),
    "tarin etsdm": (2, "unknown command 'tarin'; did you mean 'train'"),
    f"{TRAIN} --bacth 3": (2, "--bacth.*--batch"),
    f"{TRAIN} --steps 0": (2, "steps.*0"),
    f"{TRAIN} --steps -5": (2, "steps.*-5"),
    f"{TRAIN} --batch 0": (2, "batch.*0"),
    f"{TRAIN} --steps x": (2, "steps.*'x'"),
    f"{TRAIN} --seed -1": (2, "seed.*-1"),
    f"{TRAIN} --preset big": (2, "preset.*'big'"),
    f"{TRAIN} --device cuda": (2, "--device cuda"),
    f"{TRAIN} --device tpu": (2, "--device.*'tpu'"),
    "train etsdm --data pictures --out run": (2, "run holds a run; go on with: nearzero train --resume .* --overwrite"),
    "train etsdm --data pictures --out folder": (2, "folder exists and is no run folder"),
    "train etsdm --data pictures --out folder --overwrite": (2, "folder exists and is no run folder"),
    "train etsdm --data pictures --out file": (2, "file exists and is no run folder"),
    "train etsdm --data pictures --out file/x": (7, "file/x"),
    "train --resume --out new": (4, "new holds no run to resume"),
    "train --resume --out folder": (4, "folder holds no run to resume"),
    "train --resume --out broken": (4, "broken/run.json.*no valid JSON"),
    "train etsdm --resume --overwrite --out run": (2, "--resume and --overwrite exclude each other"),
    f"{SAMPLE} --seeds a": (2, "--seeds 'a'"),
    f"{SAMPLE} --seeds 5-1": (2, "--seeds '5-1'.*write 1-5"),
    f"{SAMPLE} --seeds 1,1": (2, "--seeds '1,1' repeats"),
    f"{SAMPLE} --seeds ''": (2, "--seeds ''"),
    f"{SAMPLE} --seeds -1": (2, "--seeds '-1'"),
    f"{SAMPLE} --seeds 0-99999999999": (2, "--seeds '0-99999999999': "),
    f"{SAMPLE} --seeds 1,,2": (2, "--seeds '1,,2': ''"),
    f"{SAMPLE} --seeds 1.5": (2, "--seeds '1.5'"),
    f"{SAMPLE} --seeds 99999999999999999999": (2, "--seeds '99999999999999999999'"),
    f"{SAMPLE} -n 0": (2, "-n.*0"),
    f"{SAMPLE} -n x": (2, "-n.*'x'"),
    f"{SAMPLE} -n 3 --seeds 0-3": (2, "-n 3 and --seeds 0-3 disagree"),
    f"{SAMPLE} --solver hein": (2, "--solver.*'hein'.*ddim"),
    f"{SAMPLE} --grid carras": (2, "--grid.*'carras'.*trailing"),
    f"{SAMPLE} --steps 2000": (2, "2000 steps on 1000 timesteps"),
    f"{SAMPLE} --steps 0": (2, "step.*0"),
    f"{SAMPLE} --batch 0": (2, "--batch.*0"),
    f"{SAMPLE} --batch few": (2, "--batch 'few': .*or auto"),
    f"{SAMPLE} --nfe 0": (2, "nfe.*0"),
    f"{SAMPLE} --steps 3 --nfe 5": (2, "--steps 3 and --nfe 5 exclude each other"),
    f"{SAMPLE} --solver rk45 --nfe 5": (2, "RK45 has no plan for 5 network evaluations; give steps"),
    f"{SAMPLE} --solver rk4 --nfe 3": (2, "RungeKutta4 asks the network 4 times a step"),
    f"{SAMPLE} --nfe 2000": (2, "2000 steps on 1000 timesteps"),
    f"{SAMPLE} --eta 0.5": (2, "--eta 0.5 belongs to --solver ddim"),
    f"{SAMPLE} --solver ddim --eta 2": (2, r"eta in \[0, 1\], got 2"),
    f"{SAMPLE} --solver heun --churn 3": (2, "--churn 3 belongs to --solver churn"),
    f"{SAMPLE} --solver churn --churn -1": (2, "churn.*-1"),
    f"{SAMPLE} --rho 3": (2, "--rho belongs to --grid karras"),
    f"{SAMPLE} --grid karras --rho 0": (2, "rho > 0"),
    f"{SAMPLE} --grid karras --sigma-min 3 --sigma-max 2": (2, "0 < sigma_min < sigma_max"),
    f"{SAMPLE} --grid karras --sigma-max 200": (2, "sigma_max 200 lies beyond DiscreteVP's end, 157"),
    f"{SAMPLE} --through sigma --sigma-max 200": (2, "KarrasVE ends at sigma/alpha 200, beyond the 157"),
    f"{SAMPLE} --through sigma --sigma-max -1": (2, "-1"),
    f"{SAMPLE} --through sigma --grid trailing": (2, "KarrasVE has no timesteps"),
    f"{SAMPLE} --through time": (2, "--through.*'time'"),
    f"{SAMPLE} --label 3": (2, "--label 3: run knows no classes"),
    f"{SAMPLE} --guidance 2": (2, "--guidance 2 needs --guide RUN2"),
    f"{SAMPLE} --guide run": (2, "--guide run needs --guidance S"),
    f"{SAMPLE} --guidance-interval 1-2": (2, "--guidance-interval 1-2 needs --guidance S"),
    f"{SAMPLE} --guide none --guidance 2": (4, "none does not exist"),
    f"{SAMPLE} --guide run --guidance nan": (2, "guidance needs a finite scale"),
    f"{SAMPLE} --guide run --guidance 2 --guidance-interval 3-2": (2, "--guidance-interval '3-2': .*LOW-HIGH"),
    f"{SAMPLE} --guide run --guidance 2 --guidance-interval x": (2, "--guidance-interval 'x'"),
    f"{SAMPLE} --device cuda": (2, "--device cuda"),
    "sample run": (2, "--out"),
    "sample none --out new": (4, "none does not exist"),
    "sample folder --out new": (4, "folder is no run folder"),
    "sample file --out new": (4, "file is no run folder"),
    "sample broken --out new": (4, "broken/run.json"),
    "sample run --out file": (2, "--out file is a file"),
    "sample run --out file/x": (7, "file/x"),
    "sample run --out drawn": (2, "drawn/000003.png exists; use --overwrite"),
    "recipes etsmd": (2, "unknown recipe 'etsmd'; did you mean 'etsdm'"),
    "recipes ddpm etsmd": (2, "unknown recipe 'etsmd'"),
    "demo --out folder": (2, "folder holds .*, which is no part of a demo"),
    "demo --out run": (2, "run holds .*, which is no part of a demo"),
    "demo --out file": (2, "file exists and is no run folder"),
    "demo --out file/x": (7, "file/x"),
    "demo --seconds 0": (2, "--seconds.*0"),
    "demo --samples 2": (2, "--samples.*2"),
    "demo --samples 1001": (2, "--samples and --probes go up to 1000"),
    "demo --probes 1": (2, "--probes.*1"),
}  # fmt: skip


@pytest.mark.parametrize("line", BAD)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the table asks for a GPU that is not there")
def test_bad_input(world, tmp_path, monkeypatch, capsys, line):
    """Each mistake ends in its exit code and one line on stderr that names the value; stdout stays empty and no file or folder changes."""
    code, named = BAD[line]
    root = shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(root)
    before = tree(root)
    capsys.readouterr()
    assert run(shlex.split(line)) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("nearzero: error: "), err
    assert re.search(named, err), err
    assert tree(root) == before


def test_exit_codes_of_what_cannot_be_typed(world, tmp_path, monkeypatch, capsys):
    """Numbers that are not finite end in 5, too little memory in 6, a disk that is too full in 7, each with a line that says what to do."""
    shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")

    def failing(error):
        def objective(*arguments):
            raise error

        return Objective(objective)

    class Objective(torch.nn.Module):
        def __init__(self, loss):
            super().__init__()
            self.loss = loss

        def forward(self, *arguments):
            return self.loss(*arguments)

        def times(self, u, process):
            return u

        def at(self, denoiser, x0, t, eps):
            return Evaluation(self.loss(denoiser, x0, t, eps), x0, t, x0)

    def last_line():
        return capsys.readouterr().err.splitlines()[-1]

    nan = lambda denoiser, x0, u, eps: denoiser.output(x0, u)[0].flatten(1).mean(1) * torch.nan  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "objective", lambda self: Objective(nan))
        assert run([*TRAIN.split(), "--steps", "60", "--batch", "2"]) == 5
        assert "lower the learning rate" in last_line()
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Recipe, "objective", lambda self, error=error: failing(error))
            assert run([*TRAIN.split(), "--steps", "2", "--batch", "2", "--overwrite"]) == 6
            assert "out of memory with 2 images at once" in (line := last_line()) and "--accumulate 2" in line
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
        assert run([*TRAIN.split(), "--steps", "2", "--batch", "2", "--overwrite"]) == 7
        assert "free some space" in last_line()


def test_a_bug_is_not_dressed_up(monkeypatch, capsys):
    """An error that is nobody's mistake keeps its traceback."""
    monkeypatch.setattr(nz.recipes, "named", lambda name: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run(["recipes", "etsdm"])


def work(monkeypatch, seconds):
    """Progress over `seconds` steps of a second each, 100 images a step."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with progress("training", 100 * seconds, "images") as advance:
        for step in range(1, seconds + 1):
            clock[0] += 1
            advance(100, f"step {step}")


def test_progress_on_a_pipe_is_lines(monkeypatch, capsys):
    """Where stderr is no terminal, there is a line every ten seconds and one at the end; what takes a second says nothing."""
    work(monkeypatch, 25)
    assert capsys.readouterr() == (
        "",
        "training:  40 %  100 images/s  15 s left  step 10\n"
        "training:  80 %  100 images/s  5 s left  step 20\n"
        "training: 100 %  100 images/s  0 s left  step 25\n",
    )
    work(monkeypatch, 1)
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    """On a terminal a bar ends at 100 % with the unit and the last note, on stderr."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("training", 500, "images") as advance:
        for step in range(1, 6):
            advance(100, f"step {step}")
    out, err = capsys.readouterr()
    assert out == "" and "\x1b" in err
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err).replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("training") and "100 %" in last and "images/s" in last and last.endswith("step 5")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (172799, "47 h 59 min"),
        (172800, "2.0 days"),
        (1e7, "115.7 days"),
    ],
)
def test_durations_are_for_people(seconds, text):
    """Seconds become the two largest units that matter."""
    assert duration(seconds) == text


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 20)), min_size=1, max_size=5))
def test_seeds_are_what_they_say(ranges):
    """The text a-b,c lists a ... b, then c; a repetition anywhere is refused."""
    text = ",".join(f"{first}-{first + more}" if more else str(first) for first, more in ranges)
    expected = [seed for first, more in ranges for seed in range(first, first + more + 1)]
    if len(set(expected)) == len(expected):
        assert parse_seeds(text) == expected
    else:
        with pytest.raises(ArgumentError, match="repeats a seed"):
            parse_seeds(text)


@pytest.mark.parametrize("text", ["0-1000000", "0-600000,700000-1300000", "5,0-4,7-1000001"])
def test_more_than_a_million_seeds_are_refused(text):
    """However a list of more than a million seeds is written, it is refused; a million is not."""
    with pytest.raises(ArgumentError, match="more than a million seeds; sample them in parts"):
        parse_seeds(text)
    assert len(parse_seeds("0-999999")) == 1_000_000


def test_seeds_have_32_bits():
    """4294967295 is a seed, the next number is not: torch's generators would take it for another's."""
    assert parse_seeds("4294967295") == [2**32 - 1]
    with pytest.raises(ArgumentError, match="4294967296 is too large; seeds go up to 2\\^32 - 1"):
        parse_seeds("4294967296")
