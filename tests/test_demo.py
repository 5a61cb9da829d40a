"""The demo: two networks that differ in the condition alone, exact curves beside them, and a page that a browser shows."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

import browser
import nearzero as nz
from conftest import tree
from nearzero.cli import run
from nearzero.cli.common import reporting
from nearzero.experiments import demo
from nearzero.files import contact_sheet, png, to_bytes
from nearzero.randomness import probe_generator
from nearzero.recipes import differences
from nearzero.training.state import TrainingState

SHORT = ["--seconds", "1", "--samples", "4", "--probes", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a demo of a second."""
    out = tmp_path_factory.mktemp("demo") / "my $demo <1>"
    assert run(["demo", *SHORT, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def found(made):
    """Its numbers."""
    return json.loads((made / "demo.json").read_text())


@pytest.fixture(scope="module")
def page(made):
    """Its page."""
    return (made / "index.html").read_text(encoding="utf-8")


def both(made):
    return [nz.Run.load(made / name) for name in ("ddpm", "etsdm")]


# ---- what is compared


def test_the_two_differ_in_the_condition_alone(made):
    """One recipe but for the conditioning, one seed, one number of steps, the same images, and the same first weights."""
    a, b = both(made)
    assert set(differences(a.recipe, b.recipe)) == {"conditioning"}
    assert b.recipe.conditioning == nz.Shared(nz.Timestep(1000), interval=100, cells=5)
    assert (a.seed, a.step, a.data["fingerprint"]) == (b.seed, b.step, b.data["fingerprint"])
    first = [TrainingState(one.recipe, one.seed, torch.device("cpu")).weights for one in (a, b)]
    assert all(torch.equal(first[0][name], first[1][name]) for name in first[0])


def test_the_numbers_are_those_of_the_runs(made, found):
    """The diagnosis in demo.json is nz.diagnose's of the two runs, on the same images with the interval 0.1."""
    x0 = nz.Pixels().encode(nz.embedded(16).pixels)
    for one in both(made):
        told = found["diagnosis"][one.recipe.name]
        assert told["interval"] == 0.1 and told["images"] == 2
    chosen = x0[demo.order(0, torch.arange(2), len(x0))]
    again = nz.diagnose(both(made)[1].denoiser(), chosen, every=400)
    near = found["diagnosis"]["etsdm"]["lipschitz"]["value"][:200]
    torch.testing.assert_close(torch.tensor(near), again.lipschitz.value[:200].float(), rtol=1e-4, atol=1e-6)


def test_sharing_is_exactly_zero_in_the_trained_network(found):
    """K of the trained E-TSDM is 0 at 95 of the 100 pairs that start on the interval, and above 0 at its 5 edges."""
    value = found["diagnosis"]["etsdm"]["lipschitz"]["value"][:100]
    assert [k for k, K in enumerate(value) if K != 0] == [19, 39, 59, 79, 99]
    assert 0 not in found["diagnosis"]["ddpm"]["lipschitz"]["value"]


def test_the_exact_curves_have_the_exponents_of_the_theory(found):
    """1/2 for the smooth density (Theorem 3.1) and 1 for the 2,000 points, to .02."""
    smooth, points = found["exponents"].values()
    assert smooth == pytest.approx(0.5, abs=0.02) and points == pytest.approx(1.0, abs=0.02)


def test_the_exact_curve_of_points_is_the_law_of_memorised_images(tmp_path):
    """Near t = 0 the 2,000 points are the law of one: K(k, k+1) = E|eps| (1 - sigma_k / sigma_{k+1}), to 1 %."""
    images, recipe = nz.embedded(16), nz.recipes.small(nz.recipes.ddpm(), 16, 1)
    x0 = recipe.codec.encode(images.pixels[:6])
    known = demo.exact(recipe, images, x0, upto=0.02, seed=3, bar=reporting)
    sigma = recipe.process(torch.arange(1, 21, dtype=torch.float64) / 1000).sigma
    eps = torch.randn(x0.shape, generator=probe_generator(3), dtype=torch.float64).flatten(1)
    law = eps.norm(dim=1).mean() * (1 - sigma[:-1] / sigma[1:])
    torch.testing.assert_close(known.timesteps["2,000 points"].value, law, rtol=0.01, atol=0)


def test_the_smooth_density_has_the_moments_of_the_images():
    """The mean of the mixture is that of the images, and its covariance theirs with the blur added."""
    images = nz.embedded(8)
    x = nz.Pixels().encode(images.pixels)
    mixture = demo.smooth(x, images.labels)
    mean = torch.einsum("k,kchw->chw", mixture.weights, mixture.means)
    torch.testing.assert_close(mean, x.double().mean(0), rtol=0, atol=1e-6)
    centred = (mixture.means - mean).flatten(1)
    within, between = torch.einsum("k,kij->ij", mixture.weights, mixture.covariances), centred.T @ centred / 10
    blurred = x.double().flatten(1).T.cov(correction=0) + demo.BLUR**2 * torch.eye(64)
    torch.testing.assert_close(within + between, blurred, rtol=0, atol=0.01)


def test_the_distances_are_those_of_the_samples(made, found):
    """Each distance is that of the pictures that the page shows, drawn from seeds 0 to 3."""
    a, _ = both(made)
    data = nz.embedded(16).pixels.double() / 255
    samples = to_bytes(a.sample(range(4)))
    value, stderr = nz.energy_distance(samples.double() / 255, data)
    told = found["energy_distance"]["ddpm, Ancestral"]
    assert (told["value"], told["stderr"]) == (pytest.approx(value, abs=1e-9), pytest.approx(stderr, abs=1e-9))
    assert set(found["energy_distance"]) == {
        *(f"{name}, {solver}" for name in ("ddpm", "etsdm") for solver in ("Ancestral", "DDIM")),
        "real images",
    }


# ---- the page


def test_the_page_shows_the_samples(made, page):
    """The grids of the page are, byte for byte, the samples of the two runs with both solvers."""
    import base64

    shown = {base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", page)}
    for one in both(made):
        for solver in (one.recipe.solver, nz.DDIM()):
            assert png(contact_sheet(to_bytes(one.sample(range(4), solver=solver))), scale=3) in shown


def test_the_page_shows_the_models_of_the_package(made, found, page, tmp_path, monkeypatch):
    """A grid for each model of the zoo, drawn by the command below it to the pixel; its images seen stand beside it."""
    import base64
    import html

    import numpy as np
    from PIL import Image

    shown = {base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", page)}
    monkeypatch.chdir(tmp_path)
    assert list(found["zoo"]) == nz.zoo.names()
    assert ("Trained for longer" in page) == bool(nz.zoo.names())
    for name, told in found["zoo"].items():
        assert told["command"] in html.unescape(page) and f"zoo:{name}, {told['images_seen']:,} images seen" in page
        assert run([*shlex.split(told["command"])[1:], "--device", "cpu"]) == 0
        images = []
        for file in sorted(Path(name).glob("0*.png")):
            with Image.open(file) as image:
                images.append(torch.from_numpy(np.array(image)))
        assert len(images) == 4 and png(contact_sheet(torch.stack(images)[:, None]), scale=3) in shown


def test_without_models_the_page_has_no_section_of_them(made, tmp_path, monkeypatch):
    """A package without models still has its demo."""
    from types import SimpleNamespace

    from nearzero.report.demo import _longer

    monkeypatch.setattr("nearzero.zoo.FOLDER", tmp_path)
    samples = demo.sample_zoo(4, "cpu", reporting)
    assert samples == {} and _longer(SimpleNamespace(longer=samples)) == []


def test_the_page_states_its_numbers_and_its_budget(found, page):
    """Every number of the summary and the number of steps stand in the page."""
    steps, seen = found["steps"], found["images_seen"]
    assert f"{steps:,} steps of 32 images" in page and f"{seen:,} images" in page and seen == 32 * steps
    for told in found["diagnosis"].values():
        assert f"{told['summary']['total_variation']:.3g}" in page
    assert "K is exactly 0, at 95 of 100 pairs" in page


def test_the_commands_of_the_page_work(made, page, capsys):
    """The page's command goes on with E-TSDM, and its Python lines run and print two numbers."""
    import html

    copy = Path(shutil.copytree(made, made.parent / "copy" / made.name))
    code = html.unescape(re.findall(r"<pre[^>]*><code>(.*?)</code>", page, re.DOTALL)[-1])
    python = code.split("# in Python\n")[1].replace(str(made), str(copy)).replace("[::40]", "[::1000]")
    exec(python, {})
    largest, total = map(float, capsys.readouterr().out.split())
    assert 0 < largest <= total
    lines = re.findall(r"^nearzero (train --resume .*)$", code, re.MULTILINE)
    steps = nz.Run.load(made / "etsdm").step
    assert [shlex.split(line)[-1] for line in lines] == [str(10 * steps)] * 2
    for name, line in zip(("ddpm", "etsdm"), lines, strict=True):
        assert run([*shlex.split(line.replace(str(made), str(copy)))[:-1], str(steps + 1)]) == 0
        assert nz.Run.load(copy / name).step == steps + 1
    before = tree(copy)
    assert run(["demo", *SHORT, "--out", str(copy)]) == 2  # what was trained on is not a demo's to replace
    assert "has been trained on since the demo" in capsys.readouterr().err and tree(copy) == before


def test_a_page_of_ones_own_is_not_a_demos(tmp_path, capsys):
    """A folder with an index.html that nearzero did not write stays as it was."""
    (tmp_path / "index.html").write_text("<h1>mine</h1>")
    assert run(["demo", *SHORT, "--out", str(tmp_path)]) == 2
    assert "is no page of nearzero's" in capsys.readouterr().err
    assert tree(tmp_path) == {"index.html": b"<h1>mine</h1>"}


@pytest.fixture(scope="module")
def program():
    """The browser. Under CI there is one; elsewhere the tests that need it are skipped without."""
    if browser.chromium() is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is missing; .ci/run installs it")
        pytest.skip("needs Chromium")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_page(made, program, width):
    """At 1280 and 390 pixels: no message, no request but the file itself, no missing picture, no sideways scrolling."""
    seen = browser.open_page(made / "index.html", width)
    assert [url for url in seen.requests if not url.startswith("data:")] == [(made / "index.html").absolute().as_uri()]
    assert seen.messages == []
    assert seen.broken == 0 and seen.width == width
    assert "What happens near t = 0" in seen.text and len(seen.png) > 50_000


def test_the_browser_would_tell(tmp_path, program):
    """A page with a script, a request, a missing picture and a wide line is caught on each count."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><img src='http://127.0.0.1:9/x.png'><img src='data:image/png;base64,AAAA'>"
        "<div style='width: 900px'>wide</div><script>console.error('told'); throw new Error('thrown')</script>"
    )
    seen = browser.open_page(page, 390)
    assert "http://127.0.0.1:9/x.png" in seen.requests
    assert any("told" in message for message in seen.messages) and len(seen.messages) >= 3
    assert seen.broken == 2 and seen.width > 390


# ---- where it is written


def test_a_demo_replaces_a_demo_and_nothing_else(made, tmp_path, monkeypatch, capsys):
    """A second demo replaces the first; a folder with anything else, or with a run of one's own, stays as it was."""
    monkeypatch.setattr(demo.zoo, "names", list)  # the trained models are of another test
    again = Path(shutil.copytree(made, tmp_path / "again"))
    before = (again / "demo.json").read_bytes()
    assert run(["demo", *SHORT, "--seed", "1", "--out", str(again)]) == 0
    assert nz.Run.load(again / "etsdm").seed == 1 and (again / "demo.json").read_bytes() != before
    assert set(tree(again)) >= {"index.html", "demo.json"}
    capsys.readouterr()
    for strange in ("notes.txt", "own"):
        folder = tmp_path / strange
        folder.mkdir()
        if strange == "own":
            record = json.loads((made / "ddpm/run.json").read_text())
            record["data"]["source"].pop("demo")
            shutil.copytree(made / "ddpm", folder / "ddpm")
            (folder / "ddpm/run.json").write_text(json.dumps(record))
        else:
            (folder / strange).write_text("mine")
        before = tree(folder)
        assert run(["demo", *SHORT, "--out", str(folder)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "choose another --out" in err
        assert tree(folder) == before


def test_the_page_is_opened_on_demand(made, tmp_path, monkeypatch, capsys):
    """--open hands the page's address to the browser, once it is written; the last line names it, its time and memory."""
    import webbrowser

    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(demo, "run", lambda *args, **kwargs: None)
    monkeypatch.setattr("nearzero.report.demo.summary", lambda *args: {})
    from nearzero.report.page import Page

    monkeypatch.setattr("nearzero.report.demo.page", lambda *args: Page("t", (), ()))
    assert run(["demo", *SHORT, "--out", str(tmp_path / "new"), "--open"]) == 0
    assert opened == [(tmp_path / "new/index.html").as_uri()]
    out, _ = capsys.readouterr()
    assert re.fullmatch(r".*new/index\.html: open it in a browser; \d+ s in all, [\d,]+ MB of memory at most\n", out)
