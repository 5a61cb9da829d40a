"""The price of sharing against numerical integrals, and `sharing-mixture`: its data, its pairs, its page, and that it goes on."""

import contextlib
import math

import numpy as np
import pytest
import torch

import nearzero as nz
from nearzero import recipes
from nearzero.diagnostics.price import _axes, price, prices
from nearzero.errors import ArgumentError
from nearzero.experiments import mixture, mixture_findings
from nearzero.experiments.setting import Setting
from nearzero.level import Level
from nearzero.oracle.base import training_times
from nearzero.randomness import probe_generator
from nearzero.recipe import differences
from nearzero.report import mixture as pages

DDPM = nz.DiscreteVP.linear()
TINY = mixture.Budget(8, 8, (1, 2), 4, 40, 3, 2, 2, (100,))


def shared(interval=100, cells=5):
    """E-TSDM's conditioning."""
    return nz.Shared(nz.Timestep(1000), interval=interval, cells=cells)


def normal(mean, variance, count=4000):
    """Points (count, D) whose mean and covariance are exactly these, the latter diagonal."""
    x = torch.randn(count, len(mean), dtype=torch.float64, generator=probe_generator(3))
    x = x - x.mean(0)
    root = torch.linalg.cholesky(x.T.cov().reshape(len(mean), -1))
    x = torch.linalg.solve_triangular(root, x.T, upper=False).T
    return torch.tensor(mean) + x * torch.tensor(variance).sqrt()


def integrated(mean, variance, levels):
    """E |F - F*|^2 / D at each level of one cell, by the trapezoid rule on a grid of x, in numpy."""
    axes = [np.linspace(-7, 7, 801 if len(mean) == 1 else 401) for _ in mean]
    x = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    area = math.prod(one[1] - one[0] for one in axes)
    densities, answers = [], []
    for alpha, sigma in levels:
        total = alpha**2 * np.array(variance) + sigma**2
        away = x - alpha * np.array(mean)
        densities.append(np.exp(-(away**2 / total).sum(-1) / 2) / np.sqrt(np.prod(2 * math.pi * total)))
        answers.append(sigma * away / total)
    told = sum(p[..., None] * F for p, F in zip(densities, answers, strict=True)) / sum(densities)[..., None]
    return [(p * ((told - F) ** 2).mean(-1)).sum() * area for p, F in zip(densities, answers, strict=True)]


# ---- the price


@pytest.mark.parametrize(
    ("process", "sharing", "mean", "variance"),
    [
        (DDPM, shared(20, 2), [0.7], [0.09]),
        (DDPM, shared(20, 1), [0.5, -1.0], [0.3, 0.09]),
        (nz.LinearVP(), nz.Shared(nz.Time(1000.0), interval=0.2, cells=2), [-0.8], [0.16]),
    ],
    ids=["one dimension", "two dimensions", "continuous time"],
)
def test_the_price_is_its_integral(process, sharing, mean, variance):
    """At every training time the price is the integral over x within four of its errors, in one and two dimensions."""
    found = price(normal(mean, variance), process, sharing, blur=0.1, draws=4_000)
    expected = []
    for times in training_times(process, sharing):
        level = process(times)
        expected += integrated(mean, [v + 0.01 for v in variance], list(zip(*(v.tolist() for v in level), strict=True)))
    away = (found.excess - torch.tensor(expected)).abs() / found.stderr
    assert len(found.times) == (20 if process is DDPM else 128) and away.max() < 4
    level = process(found.times)
    torch.testing.assert_close(found.residual, level.sigma / level.alpha * found.excess.sqrt())


def test_a_cell_of_one_node_costs_nothing():
    """Told its own node, the network loses exactly 0 there, and nothing remains in x0."""
    x0 = torch.rand(50, 1, 4, 4, generator=probe_generator(0))
    found = price(x0, DDPM, shared(20, 20))
    assert torch.equal(found.excess, torch.zeros(20, dtype=torch.float64)) and found.levels == found.mean == 0


@pytest.mark.parametrize("count", [200, 10], ids=["more images than D", "fewer"])
def test_joining_cells_is_never_cheaper(count):
    """A network that knows less is no better: over nested partitions the mean price rises, for the same draws."""
    x0 = torch.rand(count, 1, 4, 4, generator=probe_generator(0))
    found = prices(x0, DDPM, [shared(40, cells) for cells in (40, 20, 10, 5, 1)], draws=500)
    means = [one.mean for one in found]
    assert means == sorted(means) and means[0] == 0 < means[1]


@pytest.mark.parametrize("count", [5, 6, 7, 30], ids="{} images".format)
def test_axes_hold_the_mean_and_the_covariance(count):
    """Of 6 numbers, for more and fewer images: the variances are the covariance's, and any f of it has the same m' f m."""
    x = torch.randn(count, 6, dtype=torch.float64, generator=probe_generator(1)) + 1
    mean, variance = _axes(x)
    covariance = x.T.cov()
    torch.testing.assert_close(variance.sort().values, torch.linalg.eigvalsh(covariance), atol=1e-12, rtol=1e-9)
    for c in (0.01, 1.0):
        inverse = torch.linalg.inv(covariance + c * torch.eye(6, dtype=torch.float64))
        assert (mean**2 / (variance + c)).sum().item() == pytest.approx((x.mean(0) @ inverse @ x.mean(0)).item())


def test_the_price_is_that_of_the_best_shared_network():
    """ExactShared on draws of the same Gaussian loses as much, within four errors, in 9 dimensions."""
    x0 = normal([0.3] * 9, [0.02 + 0.05 * i for i in range(9)])
    found = price(x0, DDPM, shared(20, 1), blur=0.0, draws=4000)
    data = nz.GaussianMixture([1.0], x0.mean(0)[None], x0.T.cov()[None])
    x, eps = data.sample(2000, probe_generator(5)), torch.randn(2000, 9, generator=probe_generator(6)).double()
    best, told = data.denoiser(DDPM), data.denoiser(DDPM, shared=shared(20, 1))
    for node in (0, 9, 19):
        t = torch.tensor((node + 1) / 1000, dtype=torch.float64)
        alpha, sigma = DDPM(t)
        away = best.output(alpha * x + sigma * eps, t)[0] - told.output(alpha * x + sigma * eps, t)[0]
        lost = away.square().mean(1)
        error = math.hypot((lost.std() / 2000**0.5).item(), found.stderr[node].item())
        assert abs(lost.mean().item() - found.excess[node].item()) < 4 * error


def test_bad_prices():
    """One image, one draw, a negative blur and cells without a node are refused."""
    x0 = torch.rand(5, 4, generator=probe_generator(0))
    for bad, how in ((x0[:1], {}), (x0, {"draws": 1}), (x0, {"blur": -0.1}), (x0, {"blur": math.nan})):
        with pytest.raises(ArgumentError, match="a price needs at least 2 images"):
            price(bad, DDPM, shared(), **how)
    with pytest.raises(ArgumentError, match="without a node"):
        price(x0, nz.DiscreteVP.linear(steps=10), nz.Shared(nz.Time(), interval=0.5, cells=20))


# ---- the recipes and the data


def test_the_recipes_differ_in_sharing_or_in_what_is_learned():
    """etsdm differs from ddpm in the condition alone, ddpm_above in the weight alone: 0 up to timestep 99, 1 above."""
    rows = mixture.rows()
    assert rows["etsdm"].conditioning == mixture.SHARING == recipes.etsdm().conditioning
    for name, field in (("etsdm", "conditioning"), ("ddpm_above", "weighting")):
        assert differences(rows["ddpm"], rows[name]).keys() == {field}
    level = DDPM(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    weight = rows["ddpm_above"].weighting(level, nz.Epsilon().coefficients(level))
    assert torch.equal(weight, (torch.arange(1000) >= 100).double())


def test_a_weight_above_a_level():
    """Above is its inner weight above sigma / alpha = ratio, 0 at and below it, without signal too; a bad ratio is refused."""
    level = Level(*torch.tensor([[1.0, 0.8, 0.6, 0.0], [0.0, 0.6, 0.8, 1.0]], dtype=torch.float64))
    k = nz.Velocity().coefficients(level)
    found = nz.Above(nz.MinSNR(), 0.75)(level, k)
    assert torch.equal(found, nz.MinSNR()(level, k) * torch.tensor([0.0, 0.0, 1.0, 1.0]).double())
    for ratio in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ArgumentError, match="positive ratio"):
            nz.Above(nz.Simple(), ratio)


@pytest.mark.parametrize("size", [8, 16])
def test_pixels_stay_within_bounds(size):
    """Of the mixture like the embedded images, a Gaussian a class, fewer than 1 in 1,000 pixel values leave [0, 255]."""
    images = nz.embedded(size)
    data = mixture.fit(images)
    assert len(data.weights) == 10
    deviation = data.covariances.diagonal(dim1=1, dim2=2).sqrt()
    means = data.means.flatten(1)
    outside = torch.special.ndtr((-1 - means) / deviation) + torch.special.ndtr((means - 1) / deviation)
    assert (data.weights @ outside.mean(1)).item() < 1e-3


def test_draws_follow_the_mixture():
    """Draws have the mixture's mean and covariance within five errors; one seed gives one set of draws, another another."""
    data = mixture.fit(nz.embedded(4))
    x = mixture.draw(data, 40_000, 7).flatten(1)
    assert torch.equal(x[:50], mixture.draw(data, 40_000, 7).flatten(1)[:50])
    assert not torch.equal(x, mixture.draw(data, 40_000, 8).flatten(1))
    means, weights = data.means.flatten(1), data.weights
    mean = weights @ means
    covariance = torch.einsum("k,kij->ij", weights, data.covariances + means[:, :, None] * means[:, None, :])
    covariance = covariance - mean[:, None] * mean
    error = (covariance.diagonal() / 40_000).sqrt()
    assert ((x.mean(0) - mean) / error).abs().max() < 5
    products = torch.einsum("ni,nj->nij", x - mean, x - mean)
    assert ((products.mean(0) - covariance).abs() / products.std(0)).max() * 200 < 5
    assert mixture.rounded(data).covariances[0, 0, 0] - data.covariances[0, 0, 0] == pytest.approx(1 / 127.5**2 / 12)


def test_loss_of_a_network_told_a_cell_splits_in_two():
    """On the average over a cell |F - F*|^2 is the price plus |F - best shared|^2, whatever F answers: within four errors."""
    data = nz.GaussianMixture([0.4, 0.6], [[0.5, 0.0], [-0.5, 0.3]], [0.05 * torch.eye(2), 0.02 * torch.eye(2)])
    x0, eps = data.sample(1000, probe_generator(0)), torch.randn(1000, 2, generator=probe_generator(1))
    best, told = data.denoiser(DDPM), data.denoiser(DDPM, shared=shared(20, 1))
    rest = torch.zeros(1000)
    for node in range(20):
        t = torch.tensor((node + 1) / 1000, dtype=torch.float64)
        alpha, sigma = (value.item() for value in DDPM(t))
        x = alpha * x0 + sigma * eps
        F, F_best, F_told = 0.3 * x.tanh(), best.output(x, t)[0], told.output(x, t)[0]
        parts = [(a - b).square().mean(1) for a, b in ((F, F_best), (F_told, F_best), (F, F_told))]
        rest += (parts[0] - parts[1] - parts[2]) / 20
    assert abs(rest.mean()) < 4 * rest.std() / 1000**0.5


# ---- the experiment


@contextlib.contextmanager
def quiet(label, unit):
    yield lambda done, of: None


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """Where two steps of each network have been made."""
    images = nz.embedded(8)
    return Setting(TINY, images, images, tmp_path_factory.mktemp("mixture"), quiet)


@pytest.fixture(scope="module")
def found(where):
    return mixture.sharing_mixture(where)


def test_exact_networks_have_no_error(where, tmp_path):
    """Measured like a trained one, the exact network has excess 0 at every timestep; the best shared one the price, and 0 to learn."""
    smooth = mixture.fit(where.images)
    inner, _ = mixture.drawn(where, smooth)
    data = mixture.rounded(smooth)
    true = mixture.truth(inner, data)
    exact = mixture.measure(inner, true, data.denoiser(DDPM), "ddpm", tmp_path / "exact.json")
    assert torch.tensor(exact["excess"]).abs().max() < 1e-12
    best = mixture.measure(inner, true, data.denoiser(DDPM, shared=mixture.SHARING), "etsdm", tmp_path / "best.json")
    assert torch.tensor(best["unlearned"]).abs().max() < 1e-12
    cost, _ = mixture.known(true)
    lost = torch.tensor(best["excess"], dtype=torch.float64)
    torch.testing.assert_close(lost[: mixture.BELOW, : TINY.priced], cost, atol=1e-9, rtol=1e-5)
    assert lost[mixture.BELOW :].max() < 1e-12 < cost.min()


def test_differences_are_paired(where, found):
    """A line's mean and error are those of the differences image by image; the spans' are those of the trapezoid rule."""
    inner, _ = mixture.drawn(where, mixture.fit(where.images))
    docs = {name: mixture.document(inner, None, name, 2)["excess"] for name in ("ddpm", "ddpm_above")}
    away = np.array(docs["ddpm"]) - np.array(docs["ddpm_above"])
    rows = {row[3]: row[4:] for row in found.rows if row[:3] == ("difference", "ddpm - ddpm_above", 8)}
    for i, node in enumerate(mixture.NODES):
        assert rows[node] == pytest.approx((away[i].mean(), away[i].std(ddof=1) / 3**0.5), rel=1e-9, abs=1e-15)
    k, above = np.array(mixture.NODES[mixture.BELOW :]), away[mixture.BELOW :]
    mean = ((above[1:] + above[:-1]) / 2 * np.diff(k)[:, None]).sum(0) / 899
    assert rows["100-999"] == pytest.approx((mean.mean(), mean.std(ddof=1) / 3**0.5), rel=1e-9)


def test_an_experiment_that_was_cut_short_goes_on(where, found):
    """A second call, without a document and a run that trains anew, gives the same numbers; a document that training has passed is missed."""
    measured = where.out / "measured"
    (measured / "etsdm-0-2.json").unlink()
    again = mixture.sharing_mixture(where)
    assert again.rows == found.rows and again.summary == found.summary and again.text == found.text
    kept = (measured / "ddpm-0-1.json").read_bytes()
    (measured / "ddpm-0-1.json").unlink()
    with pytest.raises(ArgumentError, match="is at step 2, past 1"):
        mixture.sharing_mixture(where)
    (measured / "ddpm-0-1.json").write_bytes(kept)


def test_the_page(found):
    """Three pictures and four tables; every network, stage and way to share has its line, none is unknown."""
    drawn = pages.sharing_mixture(found)
    assert set(drawn.pictures) == {"excess.png", "difference.png", "k.png"}
    assert [len(one.rows) for one in drawn.tables] == [2 + 2 * 4, 3 * 2, 2, 4 * 6]
    assert "unknown" not in str(drawn.tables) + str(found.text)


@pytest.mark.parametrize(
    ("pair", "said"),
    [((0.3, 0.1), "worse"), ((-0.3, 0.1), "better"), ((0.19, 0.1), "within"), ((-0.19, 0.1), "within")],
)
def test_a_verdict_needs_two_errors(pair, said):
    """A difference counts beyond two of its standard errors, in either direction."""
    assert said in mixture_findings.verdict(pair, "worse", "better")


def test_other_images_are_refused(where, found):
    """Documents of other images are not mixed in."""
    images = nz.Images(nz.embedded(8).pixels[:1000])
    with pytest.raises(ArgumentError, match="is of other images"):
        mixture.sharing_mixture(Setting(TINY, images, images, where.out, quiet))
