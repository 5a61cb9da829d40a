"""The models of the package: what packing keeps of a run, that every command takes them, and that nothing writes there."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import nearzero as nz
from conftest import tiny_recipe, tree, write_folder
from nearzero import zoo
from nearzero.cards import Card, read_card, write_card
from nearzero.cli import run as command
from nearzero.errors import ArgumentError, DataError
from nearzero.files import to_bytes
from nearzero.interop.subject import open_subject
from nearzero.production import Production
from nearzero.run import load_tensors
from test_docs import script

pack_zoo = script("pack_zoo")
MODELS = zoo.names()
models = pytest.mark.parametrize("name", MODELS)
PACKAGE = Path(nz.__file__).parent
CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny run on the embedded images at 8 x 8."""
    told = {"data": None, "size": 8, "channels": None}
    return nz.train(tiny_recipe(), nz.embedded(8), tmp_path_factory.mktemp("source") / "run", source=told)


@pytest.fixture
def packed(source, tmp_path, monkeypatch):
    """A zoo of two, tiny and twin, in place of the package's; the current directory is an empty folder."""
    folder = tmp_path / "zoo"
    for name in ("tiny", "twin"):
        pack_zoo.pack(source.path, name, folder=folder)
    monkeypatch.setattr(zoo, "FOLDER", folder)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return folder


def call(*arguments):
    """The command's exit code, what it says on stdout, and on stderr."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = command(list(map(str, arguments)))
    return code, out.getvalue(), err.getvalue()


def with_data(source, place, data):
    """A copy of the run that says it was trained on `data`."""
    shutil.copytree(source.path, place)
    record = json.loads((place / "run.json").read_text())
    record["data"]["source"]["data"] = data
    (place / "run.json").write_text(json.dumps(record))
    return place


# ---- what packing keeps


def test_the_weights_are_the_average_to_eleven_bits(source, packed):
    """|w16 - w| <= 2^-11 |w| + 2^-25, float16's rounding to nearest, for every weight; in the network they are float32."""
    kept, own = (load_tensors(run.weights()) for run in (zoo.load("tiny"), source))
    assert kept.keys() == own.keys() and {one.dtype for one in kept.values()} == {torch.float16}
    for name, w in own.items():
        assert bool(((kept[name].double() - w.double()).abs() <= 2**-11 * w.double().abs() + 2**-25).all()), name
    network = zoo.load("tiny").denoiser().network
    assert {one.dtype for one in network.parameters()} == {torch.float32}
    assert all(torch.equal(one, kept[name].float()) for name, one in network.named_parameters())


def test_rounding_moves_samples_by_less_than_its_own_step(source, packed):
    """Samples are the run's own to 2^-11 of their size, as the weights are, and not its very own."""
    drawn, own = zoo.load("tiny").sample(range(8)), source.sample(range(8))
    apart = ((drawn - own).norm() / (own - 127.5).norm()).item()  # grey, the middle, is 0 to the network
    assert 0 < apart < 2**-11


def test_a_model_is_the_run_that_it_was(source, packed):
    """Recipe, data, seed and step stay; zoo:NAME opens it wherever a run is opened."""
    for model in (zoo.load("tiny"), nz.Run.load("zoo:tiny"), open_subject("zoo:tiny").run):
        assert (model.recipe, model.seed, model.step) == (source.recipe, source.seed, source.step)
        assert model.data == source.data and model.averages() == ["ema"]
    about = zoo.card("tiny")
    assert about["images_seen"] == source.step * source.recipe.training.batch == 24
    assert about["parameters"] == sum(one.numel() for one in source.denoiser().network.parameters())
    assert re.search(r"24: 6 steps of 4", (packed / "tiny/README.md").read_text())


def test_packing_is_a_function_of_the_run_and_names_no_machine(source, tmp_path):
    """From another folder, into another folder: the same bytes, in which no path of this machine stands."""
    elsewhere = shutil.copytree(source.path, tmp_path / "elsewhere/run")
    first = pack_zoo.pack(source.path, "tiny", folder=tmp_path / "a")
    again = pack_zoo.pack(elsewhere, "tiny", folder=tmp_path / "b")
    assert pack_zoo.pack(elsewhere, "tiny", folder=tmp_path / "b") == again  # in place of the former
    assert tree(first) == tree(again) and [path.name for path in (tmp_path / "b").iterdir()] == ["tiny"]
    text = b"".join(content for content in tree(first).values() if content is not None)
    for one in (source.path.parent, Path.home(), Path.cwd()):
        assert str(one).encode() + b"/" not in text
    assert b'"platform"' not in text and b'"host"' not in text


def test_the_seconds_are_those_of_all_parts_of_a_training(source, tmp_path):
    """stats.jsonl counts from 0 after each resume; what was trained beyond the checkpoint does not count."""
    run = shutil.copytree(source.path, tmp_path / "run")
    lines = [(2, 10.0), (4, 20.0), (5, 7.0), (6, 9.0), (8, 99.0)]
    told = [{"step": step, "Timing/total_sec": {"num": 1, "mean": seconds, "std": 0.0}} for step, seconds in lines]
    (run / "stats.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    assert pack_zoo._seconds(nz.Run.load(run)) == 29


def test_what_cannot_be_packed_leaves_nothing_behind(source, tmp_path, monkeypatch, capsys):
    """A bad name, a folder of one's own images, no run, 3 MB too many: one line, its exit code, and no file."""
    own = with_data(source, tmp_path / "own", "/home/me/pictures")
    out = ["--folder", str(tmp_path / "zoo")]
    assert pack_zoo.main([str(source.path), "../tiny", *out]) == 2
    assert pack_zoo.main([str(own), "tiny", *out]) == 2
    assert pack_zoo.main([str(tmp_path / "none"), "tiny", *out]) == 4
    monkeypatch.setattr(pack_zoo, "MOST", 60_000)
    assert pack_zoo.main([str(source.path), "tiny", *out]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 4 and "at most 60,000" in err
    assert not list((tmp_path / "zoo").rglob("*"))


def card_of(run, **subject):
    """A card about a run's averaged weights."""
    production = Production(run, run.recipe.solver, run.recipe.grid, run.recipe.steps)
    about = {"run": str(run.path), "step": run.step, **production.settings(), "network_evaluations": 5.0, **subject}
    made = {"platform": "here", "argv": ["/bin/nearzero", "evaluate", str(run.path)], "device": "cpu"}
    protocol = {"metric": "frechet", "count": 16}
    return Card("Frechet distance (SqueezeNet)", 3.0, 2.5, 3.5, 0.25, 1.0, protocol, about, {}, made)


def test_a_card_about_these_weights_goes_with_them(source, packed, tmp_path):
    """Measured before packing or after, it is sealed as zoo:NAME's and listed; one about other weights is refused."""
    for run in (source, zoo.load("tiny")):
        write_card(tmp_path / "fd.json", card_of(run))
        pack_zoo.pack(source.path, "tiny", card=tmp_path / "fd.json", folder=packed)
        kept = read_card(packed / "tiny/fd.json")
        assert (kept.value, kept.subject["run"]) == (3.0, "zoo:tiny") and str(tmp_path) not in json.dumps(kept.made)
        assert "Frechet distance (SqueezeNet) 3 [2.5, 3.5]" in (packed / "tiny/README.md").read_text()
    listed = json.loads(call("zoo", "--json")[1])["models"]
    assert listed["tiny"]["distance"] == {"text": kept.text(), "evaluations": 5.0}
    assert listed["twin"]["distance"] is None
    before = tree(packed)
    for wrong in (card_of(source, checkpoint="0" * 32), card_of(source, weights="raw")):
        write_card(tmp_path / "fd.json", wrong)
        with pytest.raises(DataError, match="other weights"):
            pack_zoo.pack(source.path, "tiny", card=tmp_path / "fd.json", folder=packed)
    assert tree(packed) == before


# ---- every command takes them, and nothing writes there

COMMANDS = [
    "sample zoo:tiny -n 3 --out samples",
    "diagnose zoo:tiny --against zoo:twin --images 2 --every 900 --html",
    "evaluate zoo:tiny --nll --images 2 --rtol 0.5 --atol 0.5 --between-timesteps",
    "report zoo:tiny -n 2 --images 0",
    "compare zoo:tiny zoo:twin --images 2 --html compare.html -n 2",
    "export zoo:tiny exported",
    "inspect zoo:tiny",
    "verify zoo:tiny",
    "status zoo:tiny",
    "zoo",
]


def test_every_command_takes_a_model_and_writes_elsewhere(packed):
    """Each works, calls the model zoo:NAME, and leaves the package's bytes as they are; pages and numbers lie here."""
    before = tree(packed)
    for line in COMMANDS:
        device = [] if line.split()[0] in ("export", "inspect", "verify", "status", "zoo") else CPU
        code, out, err = call(*line.split(), *device, "--json")
        assert code == 0, (line, err)
        assert re.search('zoo[:-]tiny|"tiny"', out) and tree(packed) == before, line
    here = {path.relative_to(Path.cwd()).as_posix() for path in Path.cwd().rglob("*.[hj]*")}
    assert here >= {"zoo-tiny/diagnosis.html", "zoo-tiny/nll-ode.json", "zoo-tiny/report.html", "compare.html"}
    page = Path("zoo-tiny/report.html").read_text()
    assert "evaluate zoo:tiny --fd" in page and "bits per dimension" in page  # what was measured here counts


def test_nothing_is_trained_in_the_package(packed):
    """train and finetune refuse zoo:NAME and the folder itself, whatever is asked, and say what to do."""
    before = tree(packed)
    for line in (
        "train --resume --out zoo:tiny",
        "train etsdm --out zoo:tiny --overwrite",
        f"train etsdm --out {packed / 'tiny'} --overwrite",
        f"train --resume --out {packed / 'tiny'}",
        "train etsdm --out zoo:new",
    ):
        code, out, err = call(*line.split(), *CPU)
        assert (code, out, err.count("\n")) == (2, "", 1) and "nearzero export zoo:NAME DIR" in err, line
    with pytest.raises(ArgumentError, match="only read"):
        nz.finetune("nowhere", nz.embedded(8), "zoo:tiny")
    assert tree(packed) == before and not list(Path.cwd().iterdir())


def test_a_copy_cannot_be_resumed_and_says_what_can_be_done(packed, source):
    """Without an optimizer there is nothing to go on with (4); --raw-weights has none (2); export and finetune go on."""
    shutil.copytree(packed / "tiny", "copy")
    code, _, err = call("train", "--resume", "--out", "copy", "--steps", 9, *CPU)
    assert code == 4 and "without the optimizer" in err and "nearzero export copy DIR" in err
    code, _, err = call("sample", "zoo:tiny", "--raw-weights", "--out", "raw", *CPU)
    assert code == 2 and "averaged weights alone" in err
    images = write_folder(Path("images"), 4, 8)
    assert call("export", "zoo:tiny", "exported")[0] == 0
    how = ["--data", images, "--steps", 2, "--batch", 2, "--out", "healed", *CPU]
    assert call("finetune", "exported", *how)[0] == 0
    healed = nz.Run.load("healed")
    assert healed.step == 2 and open_subject("healed").denoiser is not None
    how = {"solver": healed.recipe.solver, "grid": healed.recipe.grid, "steps": 5}
    drawn, own = healed.sample([0], **how), zoo.load("tiny").sample([0], **how)
    assert 0 < (drawn - own).norm() / (own - 127.5).norm() < 0.01  # two steps of 1e-5 from the model's weights


def test_an_unknown_model_is_refused_with_the_names(packed):
    """zoo: alone, a slip, a path in disguise: exit code 2, one line, and the names that there are."""
    for name in ("", "tyni", "../zoo/tiny"):
        code, out, err = call("sample", f"zoo:{name}", "--out", "samples", *CPU)
        assert (code, out, err.count("\n")) == (2, "", 1) and "known: tiny, twin" in err
    assert "did you mean 'tiny'" in call("report", "zoo:tinyy")[2]
    assert not list(Path.cwd().iterdir())


def test_a_package_without_models_says_so(tmp_path, monkeypatch):
    """No folder is needed: the list is empty, and a name is refused."""
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    assert call("zoo")[:2] == (0, "this package has no models\n")
    with pytest.raises(ArgumentError, match="this package has none"):
        zoo.path("etsdm")


def test_only_a_model_takes_embedded_images_for_a_set_that_is_not_there(source, packed, tmp_path, monkeypatch):
    """Fashion-MNIST need not be fetched to diagnose a model of the package; a run of one's own asks for it."""
    from nearzero.cli.common import run_images

    monkeypatch.setenv("NEARZERO_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("NEARZERO_CACHE", str(tmp_path / "nothing"))
    monkeypatch.setattr("nearzero.data.named.place", absent)
    own = with_data(source, tmp_path / "own", "fashion-mnist")
    pack_zoo.pack(own, "tiny", folder=packed)
    with contextlib.redirect_stderr(io.StringIO()) as err:
        images = run_images(zoo.load("tiny"), None)
    assert images.fingerprint() == nz.embedded(8).fingerprint() and "not on this machine" in err.getvalue()
    with pytest.raises(DataError, match="fetch fashion-mnist"):
        run_images(nz.Run.load(own), None)


def absent(name):
    raise DataError(f"it is not there; get it with: nearzero data fetch {name}")


def test_results_of_a_run_stay_in_its_folder(source, packed):
    """Only of a model they lie elsewhere, by whatever way its folder is named."""
    assert source.results == source.path and zoo.results("runs/a") == Path("runs/a")
    assert {zoo.results(one) for one in ("zoo:tiny", packed / "tiny")} == {Path("zoo-tiny")}
    assert zoo.load("tiny").results == Path("zoo-tiny") and zoo.shown(packed / "tiny") == "zoo:tiny"
    assert zoo.shown(source.path) == str(source.path)


# ---- the models that are there


@models
def test_a_model_of_the_package_is_whole_and_small(name):
    """Its hashes hold, its folder has at most 3 MB, its card tells its bytes and images, and a card of fd is its own."""
    files = [path for path in zoo.path(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    assert call("verify", f"zoo:{name}")[0] == 0
    model, about = zoo.load(name), zoo.card(name)
    assert about["images_seen"] == model.step * model.recipe.training.batch > 0
    assert about["bytes"] == model.weights().stat().st_size and about["recipe"] == model.recipe.name
    assert about["data"]["name"] == "fashion-mnist" and "MIT" in about["data"]["licence"]
    if (zoo.path(name) / "fd.json").exists():
        assert read_card(zoo.path(name) / "fd.json").subject["run"] == f"zoo:{name}"
    readme = (zoo.path(name) / "README.md").read_text()
    assert f"{about['images_seen']:,}" in readme and about["limits"] in readme and "FASHION_MNIST_LICENSE" in readme


@models
def test_a_model_of_the_package_draws(name):
    """Its samples are finite, in the main within the pixels' range, and differ from each other and from noise."""
    pixels = zoo.load(name).sample(range(4), nfe=19)
    assert pixels.shape == (4, 1, 28, 28) and bool(pixels.isfinite().all())
    outside = (pixels - pixels.clamp(0, 255)).abs()
    assert outside.mean().item() < 25.5, "a tenth of the range"
    shown = to_bytes(pixels).double()
    assert len({one.numpy().tobytes() for one in shown}) == 4
    step = (shown[..., 1:] - shown[..., :-1]).pow(2).mean() / (2 * shown.var())
    assert step < 0.8  # neighbouring pixels resemble each other; it is 1 for independent ones


@pytest.mark.skipif("etsdm" not in MODELS, reason="this package has no model etsdm")
def test_sharing_is_exactly_zero_in_the_model_of_the_package():
    """K(k, k+1) of zoo:etsdm is 0 inside its cells of 20 timesteps, and not at their edges."""
    model = zoo.load("etsdm")
    x0 = model.recipe.codec.encode(nz.embedded().pixels[:2])
    times = torch.tensor([1, 2, 3, 10, 11, 18, 19, 20, 21, 22, 39, 40, 41], dtype=torch.float64) / 1000
    curve = nz.lipschitz(model.denoiser(), x0, times=times)
    assert [i for i, K in enumerate(curve.value.tolist()) if K != 0] == [7, 11]  # 20 -> 21 and 40 -> 41


def test_the_package_is_below_15_megabytes():
    """All files that a wheel holds, before it packs them."""
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 15_000_000
