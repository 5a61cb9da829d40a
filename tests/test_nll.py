"""Bits per dimension: against the density of an exact network, restart, and what is refused."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch

import nearzero as nz
from conftest import pictures, tiny_recipe, write_folder
from nearzero import recipes
from nearzero.bounds import truncated_elbo
from nearzero.cli import run as command
from nearzero.errors import ArgumentError, DataError, NumericalError
from nearzero.files import to_bytes
from nearzero.nll import ByBound, ByOde, ByTruncatedBound, evaluate, ratio
from nearzero.randomness import Stream, order, uniforms


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


def mixture(size=4):
    """A Gaussian mixture of 2 x 2 grey images as the codec encodes them."""
    generator = torch.Generator().manual_seed(5)
    means = torch.rand(3, size, generator=generator, dtype=torch.float64) - 0.5
    return nz.GaussianMixture(
        f64([0.2, 0.5, 0.3]), means, 0.09 * torch.eye(size, dtype=torch.float64).expand(3, -1, -1)
    )


class Flat(torch.nn.Module):
    """An exact network for images: the mixture's, about flattened numbers."""

    def __init__(self, denoiser):
        super().__init__()
        self.inner = denoiser.network

    def forward(self, x, c):
        return self.inner(x.flatten(1).double(), c.double()).reshape(x.shape).to(x.dtype)


def exact(process, parameterization):
    denoiser = mixture().denoiser(process, parameterization)
    return nz.Denoiser(Flat(denoiser), process, parameterization, nz.Time())


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose network is exact, and 20 images of 2 x 2 grey levels."""
    recipe = replace(recipes.full_w(), network=replace(tiny_recipe().network, size=8), name="full_w")
    made = nz.Run.create(tmp_path / "run", recipe, {"count": 20}, 0)
    monkeypatch.setattr(nz.Run, "denoiser", lambda self, **_: exact(nz.LinearSigmaVP(), nz.W()))
    return made


def images():
    """20 images of the mixture, in grey levels."""
    x = mixture().sample(20, torch.Generator().manual_seed(1)).reshape(20, 1, 2, 2)
    return nz.Images(to_bytes(nz.Pixels().decode(x)))


def expected(count, repeats, seed):
    """-(log p + log det) / (D log 2) of the mixture itself at the dithered pixels, for each image."""
    index, total = torch.arange(count), torch.zeros(count, dtype=torch.float64)
    pixels = images().pixels[order(seed, index, 20)].double()
    for repeat in range(repeats):
        y = pixels + uniforms(seed, Stream.DITHER, index * repeats + repeat, (1, 2, 2)).double() - 0.5
        log_p = mixture().log_prob((y / 127.5 - 1).flatten(1))
        total -= (log_p - 4 * math.log(127.5)) / (4 * math.log(2)) / repeats
    return total


@pytest.mark.parametrize("repeats", [1, 3])
def test_bits_are_those_of_the_density(run, tmp_path, repeats):
    """With the exact network the ODE's bits per dimension are the mixture's own, image by image, to 1e-4 (float32 data)."""
    method = ByOde(rtol=1e-6, atol=1e-6, exact=True)
    found = evaluate(run, images(), method, out=tmp_path / "a.json", count=7, repeats=repeats, seed=2, batch=3)
    assert found["columns"]["bits"] == pytest.approx(expected(7, repeats, 2).tolist(), abs=1e-4)
    mean, stderr = (found["means"]["bits"][name] for name in ("mean", "stderr"))
    assert mean == pytest.approx(expected(7, repeats, 2).mean().item(), abs=1e-4)
    assert stderr == pytest.approx(expected(7, repeats, 2).std().item() / 7**0.5, abs=1e-4)


def test_the_bound_is_the_density_on_average(run, tmp_path):
    """FullDiffusion's bound with the exact network has no gap: 4,000 draws agree within four standard errors."""
    found = evaluate(run, images(), ByBound(4000), out=tmp_path / "b.json", count=20, batch=20)
    away = f64(found["columns"]["bits"]) - expected(20, 1, 0)
    assert away.mean().abs() < 4 * away.std() / 20**0.5


def test_truncation_is_charged_term_by_term(monkeypatch, run, tmp_path):
    """prior + diffusion + reconstruction + the codec's share are the bits; t_min = .1 costs, 1e-4 does not."""
    monkeypatch.setattr(nz.Run, "denoiser", lambda self, **_: exact(nz.LinearVP(), nz.Epsilon()))
    gaps = {}
    for t_min in (0.1, 1e-4):
        found = evaluate(run, images(), ByTruncatedBound(t_min, 2000), out=tmp_path / f"{t_min}.json", batch=20)
        columns = {name: f64(values) for name, values in found["columns"].items()}
        terms = columns["prior"] + columns["diffusion"] + columns["reconstruction"]
        assert torch.allclose(terms + math.log2(127.5), columns["bits"])
        gaps[t_min] = columns["bits"] - expected(20, 1, 0)
    assert gaps[0.1].mean() > 0.2
    assert gaps[1e-4].mean().abs() < 4 * gaps[1e-4].std() / 20**0.5


def test_the_prior_term_is_the_kl_of_normals():
    """KL(N(alpha x, sigma^2) | N(0, sigma^2)) = alpha^2 |x|^2 / (2 sigma^2) at the end of LinearVP."""
    x, level = f64([[0.5, -1.0]]), nz.LinearVP()(f64(1.0))
    terms = truncated_elbo(nz.GaussianMixture(f64([1]), f64([[0, 0]]), torch.eye(2).double()[None]).denoiser(nz.LinearVP()), x, t_min=0.1, draws=1)  # fmt: skip
    assert terms.prior.item() == pytest.approx((level.alpha**2 * 1.25 / (2 * level.sigma**2)).item())


def test_a_call_that_was_cut_short_goes_on(run, tmp_path):
    """Stopped after any batch, the second call finishes with the bits of one that was not stopped, and repeats none."""
    method, whole = ByBound(8), tmp_path / "whole.json"
    evaluate(run, images(), method, out=whole, batch=6)
    for stop in (6, 12, 18):
        seen, part = [], tmp_path / f"{stop}.json"

        def watch(done, total, seen=seen, stop=stop):
            seen.append(done)
            if done == stop and len(seen) == stop // 6:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate(run, images(), method, out=part, batch=6, progress=watch)
        evaluate(run, images(), method, out=part, batch=6, progress=watch)
        assert seen == [6, 12, 18, 20]
        assert json.loads(part.read_text())["columns"] == json.loads(whole.read_text())["columns"]


def test_other_settings_are_refused(run, tmp_path):
    """A file of another method, seed or number of images is neither continued nor replaced, unless that is asked for."""
    out = tmp_path / "nll.json"
    evaluate(run, images(), ByBound(4), out=out, count=5)
    before = out.read_bytes()
    for change in ({"method": ByBound(5)}, {"seed": 1}, {"repeats": 2}, {"count": 6}):
        arguments = {"method": ByBound(4), "seed": 0, "repeats": 1, "count": 5, **change}
        with pytest.raises(ArgumentError, match="with another"):
            evaluate(run, images(), arguments.pop("method"), out=out, **arguments)
        assert out.read_bytes() == before
    assert evaluate(run, images(), ByBound(5), out=out, count=6, overwrite=True)["images_done"] == 6
    other = tmp_path / "other.json"
    for text in ("[1]", "{", '{"columns": {}, "settings": [1]}', '{"columns": []}'):
        other.write_text(text)
        for overwrite in (False, True):
            with pytest.raises(ArgumentError, match=r"is no evaluation of nearzero's"):
                evaluate(run, images(), ByBound(4), out=other, overwrite=overwrite)
        assert other.read_text() == text
    document = json.loads(out.read_text())
    other.write_text(json.dumps({**document, "settings": {**document["settings"], "newer": 1}}))
    with pytest.raises(ArgumentError, match="with another newer"):
        evaluate(run, images(), ByBound(5), out=other, count=6)
    with pytest.raises(DataError, match="21 images were asked for and images holds 20"):
        evaluate(run, images(), ByBound(4), out=tmp_path / "c.json", count=21)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny run of full_w, after five steps."""
    small = tiny_recipe(steps=5)
    recipe = replace(recipes.full_w(), network=small.network, training=small.training, steps=5)
    return nz.train(recipe, pictures(), tmp_path_factory.mktemp("nll") / "run")


def test_the_command(trained, capsys, tmp_path):
    """`evaluate --nll` prints bits/dim by the ODE and by the bound, no more than .1 below it, and keeps both in the run."""
    values = {}
    write_folder(tmp_path / "images")
    for method, options in (("ode", ["--rtol", "1e-3", "--atol", "1e-3"]), ("bound", ["--draws", "300"])):
        data = ["--data", str(tmp_path / "images")]
        arguments = ["evaluate", str(trained.path), "--nll", "--images", "4", "--method", method, "--json"]
        assert command([*arguments, *options, *data]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["command"] == "evaluate" and document["images_done"] == 4
        assert (trained.path / f"nll-{method}.json").exists()
        values[method] = document["means"]["bits"]["mean"]
    assert values["ode"] < values["bound"] + 0.1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ([], "name what to measure: --nll"),
        (
            ["--nll", "--method", "bound", "--t-min", "1e-5"],
            "--t-min is no option of --method bound; use --method ode or truncated-bound",
        ),
        (["--nll", "--method", "bound", "--rtol", "1e-3"], "--rtol is no option of --method bound; use --method ode"),
        (["--nll", "--draws", "10"], "--draws is no option of --method ode; use --method bound or truncated-bound"),
        (["--nll", "--method", "truncated-bound"], "ends without signal"),
        (["--nll", "--rtol", "0"], "positive tolerances"),
        (["--nll", "--t-min", "2"], r"t_min must lie in \[0, 1\)"),
    ],
)
def test_bad_options(trained, options, match, capsys, tmp_path):
    """Each bad option is one clear line, exit code 2 and no file."""
    out = tmp_path / "nll.json"
    write_folder(tmp_path / "images")
    extra = ["--data", str(tmp_path / "images"), "--images", "2", "--out", str(out)]
    assert command(["evaluate", str(trained.path), *options, *extra]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(match, error) and not out.exists()


def test_the_page(trained, capsys, tmp_path):
    """--html writes a page with the number, its error and what it depends on, escaped, and replaces no foreign file."""
    folder, page = write_folder(tmp_path / "<b>images"), tmp_path / "nll.html"
    arguments = ["evaluate", str(trained.path), "--nll", "--method", "bound", "--draws", "5", "--images", "6"]
    arguments += ["--data", str(folder), "--html", str(page), "--out", str(tmp_path / "page.json")]
    assert command(arguments) == 0
    number = capsys.readouterr().out.split(" bits/dim")[0]
    text = page.read_text()
    assert number in text and "FullDiffusion&#39;s bound" in text and "<b>images" not in text
    page.write_text("mine")
    assert command(arguments) == 2 and page.read_text() == "mine"
    assert "is no page of nearzero's" in capsys.readouterr().err


def test_what_is_not_finite_is_an_error_of_numbers(monkeypatch, run, tmp_path):
    """A network that answers NaN ends in NumericalError by either bound, and leaves no file."""

    class Broken(torch.nn.Module):
        def forward(self, x, c):
            return x * math.nan

    for process, form, method in (
        (nz.LinearSigmaVP(), nz.W(), ByBound(3)),
        (nz.LinearVP(), nz.Epsilon(), ByTruncatedBound(1e-3, 3)),
    ):
        denoiser = nz.Denoiser(Broken(), process, form, nz.Time())
        monkeypatch.setattr(nz.Run, "denoiser", lambda self, denoiser=denoiser, **_: denoiser)
        with pytest.raises(NumericalError, match="not finite"):
            evaluate(run, images(), method, out=tmp_path / "nan.json", count=2)
        assert not (tmp_path / "nan.json").exists()
    with pytest.raises(ArgumentError, match="finite float tensor"):
        truncated_elbo(denoiser, torch.full((1, 2), math.nan), t_min=0.1, draws=1)


def test_one_file_cannot_be_both(trained, capsys, tmp_path):
    """--html and --out of one name, and a folder for either, are refused before anything is measured."""
    both, arguments = str(tmp_path / "x"), ["evaluate", str(trained.path), "--nll"]
    for options, match in (
        (["--out", both, "--html", both], "the file of the JSON too"),
        (["--out", str(tmp_path)], "is a folder"),
    ):
        assert command([*arguments, *options]) == 2 and match in capsys.readouterr().err


def test_bits_of_pixels_that_are_not_black(run, tmp_path):
    """Whole bits over the pixels that are not 0: equal to the plain mean without black, twice it where half is black."""
    whole = nz.Images(images().pixels.clamp(min=1))
    half = nz.Images(
        whole.pixels.where(torch.tensor([[True, False], [False, True]]), torch.tensor(0, dtype=torch.uint8))
    )
    for pixels, share in ((whole, 1.0), (half, 0.5)):
        means = evaluate(run, pixels, ByBound(8), out=tmp_path / f"{share}.json", batch=20)["means"]
        assert means["foreground"]["mean"] == share
        assert means["bits_foreground"]["mean"] == pytest.approx(means["bits"]["mean"] / share)
        assert means["bits_foreground"]["stderr"] == pytest.approx(means["bits"]["stderr"] / share)


def test_the_error_of_a_ratio():
    """The first-order standard error of sum(a) / sum(b) agrees with the spread over 2,000 repetitions within 5 %."""
    generator = torch.Generator().manual_seed(0)
    b = torch.rand(2000, 400, generator=generator, dtype=torch.float64) + 0.5
    a = 3 * b + torch.randn(2000, 400, generator=generator, dtype=torch.float64)
    found = [ratio(x.tolist(), y.tolist()) for x, y in zip(a, b, strict=True)]
    spread = f64([one["mean"] for one in found]).std().item()
    assert f64([one["stderr"] for one in found]).mean().item() == pytest.approx(spread, rel=0.05)
