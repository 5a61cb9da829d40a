"""Regression and the variational bound: the papers' losses written out, analytic expectations, exact likelihoods."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nearzero as nz
from nearzero.errors import ArgumentError
from nearzero.times import LogTimes

law = settings(deadline=None, derandomize=True, max_examples=60)
DDPM = nz.DiscreteVP.linear()
ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
UNIT = torch.tensor(
    [[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64
)  # moments of two N(0, 1) numbers


class Mixer(torch.nn.Module):
    """A fixed answer that depends on x and c."""

    def forward(self, x, c):
        return torch.tanh(x.flip(-1) + c.reshape(-1, *(1,) * (x.ndim - 1)) / 500)


class Scaled(torch.nn.Module):
    """F = factor(c) x, with one factor for each example."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x, c):
        return self.factor(c)[:, None] * x


class Fixed:
    """Every example is trained at one time."""

    def __init__(self, t):
        self.t = t

    def __call__(self, u, process):
        return torch.full_like(u, self.t)


class Level:
    """Weight alpha^2 + 2 sigma^2."""

    def __call__(self, level, coefficients):
        return level.alpha**2 + 2 * level.sigma**2


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


def draws(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return x0, torch.rand(shape[0], generator=generator, dtype=torch.float64), eps


def regression(parameterization, network=None, times=None, weighting=None, conditioning=None):
    """A function of (x0, u, eps)."""
    denoiser = nz.Denoiser(network or Mixer(), DDPM, parameterization, conditioning or nz.Timestep(1000))
    objective = nz.Regression(times or nz.DiscreteTimes(), weighting or nz.Simple())
    return lambda x0, u, eps, **condition: objective(denoiser, x0, u, eps, **condition)


@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 5, 5)])
@pytest.mark.parametrize("name", ["Epsilon", "Velocity"])
def test_regression_is_the_papers_loss(name, shape):
    """Epsilon: mean (F(x_k, k) - eps)^2 (DDPM Eq. 14); Velocity: mean (F - (alpha eps - sigma x0))^2; one for each example."""
    x0, u, eps = draws(*shape)
    k = np.floor(u.numpy() * 1000).astype(int)
    alpha, sigma = (
        torch.from_numpy(np.sqrt(v[k])).reshape(-1, *(1,) * (len(shape) - 1)) for v in (ALPHA_BAR, 1 - ALPHA_BAR)
    )
    F = Mixer()(alpha * x0 + sigma * eps, torch.from_numpy(k).double())
    target = eps if name == "Epsilon" else alpha * eps - sigma * x0
    expected = (F - target).pow(2).reshape(shape[0], -1).mean(1)
    loss = regression(getattr(nz, name)())(x0, u, eps)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", ["Epsilon", "Velocity"])
def test_the_exact_network_has_the_analytic_loss(name):
    """On N(0, 1) data eps = sigma x costs alpha^2 at every timestep, and v = 0 costs 1: the variances of eps and v given x."""
    alpha_bar = torch.from_numpy(ALPHA_BAR)
    factor = {"Epsilon": lambda c: torch.sqrt(1 - alpha_bar)[c.long()], "Velocity": lambda c: 0 * c}[name]
    x0, eps = (
        UNIT[:, i].repeat(1000, 1) for i in (0, 1)
    )  # the four signs: means, variances and covariance of N(0, 1) pairs
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    loss = regression(getattr(nz, name)(), Scaled(factor))(x0, u, eps)
    expected = alpha_bar if name == "Epsilon" else torch.ones(1000, dtype=torch.float64)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)


def test_the_exact_network_is_the_minimum():
    """On N(0, 1) data any other factor than sigma costs (factor - sigma)^2 more: x has variance 1."""
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    x0, eps = (UNIT[:, i].repeat(1000, 1) for i in (0, 1))
    loss = regression(nz.Epsilon(), Scaled(lambda c: 0 * c + 0.3))(x0, u, eps)
    expected = ALPHA_BAR + (0.3 - np.sqrt(1 - ALPHA_BAR)) ** 2
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-10)


def test_losses_are_per_example():
    """Example i's loss depends on example i only: a batch of losses is the losses of its parts, shape (B,)."""
    x0, u, eps = draws(5, 2, 3)
    objective = regression(nz.Epsilon())
    together = objective(x0, u, eps)
    assert together.shape == (5,)
    for i in range(5):
        part = slice(i, i + 1)
        torch.testing.assert_close(objective(x0[part], u[part], eps[part])[0], together[i], rtol=1e-14, atol=0)


@pytest.mark.parametrize(("name", "t"), [("Epsilon", 0.0), ("Epsilon", 1.0), ("Velocity", 0.0), ("Velocity", 1.0)])
def test_both_ends_have_a_loss(name, t):
    """At t = 0 both are mean (F(x0) - eps)^2; at the end the formula holds as anywhere else."""
    x0, u, eps = draws(4, 6)
    loss = regression(getattr(nz, name)(), times=Fixed(t), conditioning=nz.Time())(x0, u, eps)
    alpha, sigma = (1.0, 0.0) if t == 0 else (math.sqrt(ALPHA_BAR[-1]), math.sqrt(1 - ALPHA_BAR[-1]))
    F = Mixer()(alpha * x0 + sigma * eps, torch.full((4,), t, dtype=torch.float64))
    target = eps if name == "Epsilon" else alpha * eps - sigma * x0
    torch.testing.assert_close(loss, (F - target).square().mean(1), rtol=1e-10, atol=0)


def test_weights_scale_each_examples_loss():
    """loss = weight(level) times the unweighted loss, each example by its own level."""
    x0, u, eps = draws(6, 4)
    alpha_bar = torch.from_numpy(ALPHA_BAR[np.floor(u.numpy() * 1000).astype(int)])
    weighted, plain = regression(nz.Epsilon(), weighting=Level())(x0, u, eps), regression(nz.Epsilon())(x0, u, eps)
    torch.testing.assert_close(weighted, (alpha_bar + 2 * (1 - alpha_bar)) * plain, rtol=1e-12, atol=0)


def test_the_condition_reaches_the_network():
    """What is given by name is the network's, untouched."""

    class Labelled(torch.nn.Module):
        def forward(self, x, c, label):
            return label[:, None] * torch.ones_like(x)

    x0, u, eps = draws(4, 3)
    label = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    loss = regression(nz.Epsilon(), Labelled())(x0, u, eps, label=label)
    torch.testing.assert_close(loss, (label[:, None] - eps).square().mean(1), rtol=1e-12, atol=0)


def test_sharing_changes_only_what_the_network_is_told():
    """E-TSDM's loss (Algorithm A1): the level of node 19, the condition of node 0."""
    x0, eps = draws(1, 4)[0], draws(1, 4)[2]
    u = torch.tensor([0.0195], dtype=torch.float64)
    shared = nz.Shared(nz.Timestep(1000), interval=100, cells=5)
    loss = regression(nz.Epsilon(), conditioning=shared)(x0, u, eps)
    x = math.sqrt(ALPHA_BAR[19]) * x0 + math.sqrt(1 - ALPHA_BAR[19]) * eps
    F = Mixer()(x, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(loss, (F - eps).square().mean(1), rtol=1e-11, atol=0)


def test_gradients_reach_the_network():
    """d loss / d bias of a constant network is 2 (bias - mean eps)."""
    network = torch.nn.Module()
    network.bias = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    network.forward = lambda x, c: network.bias.expand_as(x)
    x0, u, eps = draws(1, 50)
    regression(nz.Epsilon(), network)(x0, u, eps).sum().backward()
    assert network.bias.grad.item() == pytest.approx(2 * (0.3 - eps.mean().item()), rel=1e-12)


def test_float32_images_give_float32_losses_of_float64_schedules():
    """In float32 the loss is the float64 one to float32 accuracy, at the smallest noise too."""
    x0, _, eps = draws(3, 40)
    u = torch.tensor([1e-9, 0.5, 1 - 1e-9], dtype=torch.float64)
    single = regression(nz.Velocity())(x0.float(), u, eps.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), regression(nz.Velocity())(x0, u, eps), rtol=1e-5, atol=0)


# --- regression with every parameterization, process, distribution of times and weighting -------------------------

SIGNAL = [nz.LinearVP(), nz.QuadraticVP(), DDPM, nz.SubVP(), nz.SongVE(), nz.KarrasVE()]  # at the end
NO_SIGNAL = [
    *(nz.CosineVP(), nz.ShiftedCosine(), nz.LinearSigmaVP(), nz.StraightPath()),
    *(nz.ZeroTerminalSNR(nz.LinearVP()), nz.ZeroTerminalSNR(DDPM)),
]
OUTPUTS = [nz.Epsilon(), nz.Velocity(), nz.Denoised(), nz.Flow(), nz.Karras(), nz.Karras(2.0)]
TIMES = [
    *(nz.UniformTimes(), nz.DiscreteTimes(), nz.LogNormalSigma(), nz.ImportanceTimes(), nz.SoftTruncation()),
    *(nz.Stratified(nz.UniformTimes()), nz.Antithetic(nz.LogNormalSigma()), nz.Stratified(nz.ImportanceTimes(1e-3))),
]
WEIGHTINGS = [nz.Simple(), nz.MinSNR(), nz.P2(), nz.P2(0.5, 2.0), nz.LikelihoodWeight()]
MEAN, VARIANCE = 0.7, 0.3


def legal(process, parameterization, times):
    """Whether this objective exists: discrete times need nodes, importance a log-SNR at the end, Epsilon signal."""
    inner = getattr(times, "inner", times)
    nodes = not isinstance(inner, nz.DiscreteTimes) or hasattr(getattr(process, "base", process), "betas")
    ends = not isinstance(inner, nz.ImportanceTimes | nz.SoftTruncation) or process in SIGNAL
    last = isinstance(inner, nz.DiscreteTimes) and process in NO_SIGNAL and isinstance(parameterization, nz.Epsilon)
    return nodes and ends and not last


def output(parameterization, alpha, sigma):
    """The papers' words in numbers: F* = a x0 + b eps, and d x0 / d F and d eps / d F at a fixed x."""
    if isinstance(parameterization, nz.Epsilon):
        return 0.0, 1.0, -sigma / alpha, 1.0
    if isinstance(parameterization, nz.Velocity):
        r2 = alpha**2 + sigma**2
        return -sigma, alpha, -sigma / r2, alpha / r2
    if isinstance(parameterization, nz.Denoised):
        return 1.0, 0.0, 1.0, -alpha / sigma
    if isinstance(parameterization, nz.Flow):
        return -1.0, 1.0, -sigma / (alpha + sigma), alpha / (alpha + sigma)
    d = parameterization.data_std
    z = sigma**2 + (alpha * d) ** 2
    return (sigma / (d * z**0.5), -alpha * d / z**0.5, sigma * d / z**0.5, -alpha * d / z**0.5)


def weight(weighting, alpha, sigma, d_x0, d_eps):
    """The papers' weights of an error of F, with SNR d_x0^2 = d_eps^2."""
    if isinstance(weighting, nz.Simple):
        return 1.0
    if isinstance(weighting, nz.MinSNR):
        return min(d_eps**2, weighting.gamma * d_x0**2)
    if isinstance(weighting, nz.P2):
        return d_eps**2 * (sigma**2 / (weighting.k * sigma**2 + alpha**2)) ** weighting.gamma
    return d_eps**2


def bayes(weighting, parameterization, alpha, sigma):
    """The weighted variance of F* given x for N(MEAN, VARIANCE) data: (a sigma - b alpha)^2 VARIANCE / var(x)."""
    a, b, d_x0, d_eps = output(parameterization, alpha, sigma)
    rest = (a * sigma - b * alpha) ** 2 * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    return weight(weighting, alpha, sigma, d_x0, d_eps) * rest


combinations = pytest.mark.parametrize("parameterization", OUTPUTS, ids=repr)
everywhere = pytest.mark.parametrize("process", SIGNAL + NO_SIGNAL, ids=lambda process: repr(process)[:32])


def bayes_loss(process, parameterization, times, weighting, u):
    """The exact network's expected loss, and its expectation on paper, at the times of u.

    Its loss is quadratic in (x0, eps), so that the four signs stand for the two normal numbers.
    """
    data = nz.GaussianMixture(f64([1.0]), f64([[MEAN]]), f64([[[VARIANCE]]]))
    denoiser, objective = data.denoiser(process, parameterization), nz.Regression(times, weighting)
    found = 0
    for first, second in UNIT.tolist():
        x0 = torch.full((len(u), 1), MEAN + math.sqrt(VARIANCE) * first, dtype=torch.float64)
        found = found + objective(denoiser, x0, u, torch.full_like(x0, second)) / 4
    alpha, sigma = (value.tolist() for value in process(times(u, process)))
    expected = [bayes(weighting, parameterization, a, s) for a, s in zip(alpha, sigma, strict=True)]
    return found, f64(expected)


@combinations
@everywhere
@settings(law, max_examples=5)
@given(data=st.data())
def test_the_exact_network_costs_its_bayes_error(parameterization, process, data):
    """For N(m, v) data the exact network's expected loss is the weighted variance of F* given x, everywhere."""
    times = data.draw(st.sampled_from([times for times in TIMES if legal(process, parameterization, times)]))
    weighting = data.draw(st.sampled_from(WEIGHTINGS))
    u = torch.tensor(data.draw(st.lists(st.floats(1e-6, 1 - 1e-6), min_size=4, max_size=4)), dtype=torch.float64)
    found, expected = bayes_loss(process, parameterization, times, weighting, u)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)


@combinations
@everywhere
def test_the_bayes_error_holds_at_both_ends(parameterization, process):
    """At t = 0 and at the end, where a parameterization exists, the loss is finite and the weighted variance."""
    for t in (0.0, process.end):
        for weighting in WEIGHTINGS:
            alpha, sigma = (value.item() for value in process(f64(t)))
            if (sigma == 0 and isinstance(parameterization, nz.Denoised)) or (
                alpha == 0 and isinstance(parameterization, nz.Epsilon)
            ):
                with pytest.raises(ArgumentError):
                    bayes_loss(process, parameterization, Fixed(t), weighting, f64([0.5]))
                continue
            found, expected = bayes_loss(process, parameterization, Fixed(t), weighting, f64([0.5]))
            assert bool(found.isfinite().all())
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)


@combinations
@everywhere
@settings(law, max_examples=5)
@given(data=st.data())
def test_a_single_point_costs_nothing(parameterization, process, data):
    """All noise can be told from a point that is known: the exact network's loss is 0 at every time above 0."""
    times = data.draw(st.sampled_from([times for times in TIMES if legal(process, parameterization, times)]))
    weighting = data.draw(st.sampled_from(WEIGHTINGS))
    u = torch.tensor(data.draw(st.lists(st.floats(1e-3, 1 - 1e-3), min_size=4, max_size=4)), dtype=torch.float64)
    point = f64([[0.3, -1.2]])
    denoiser = nz.PointCloud(point).denoiser(process, parameterization)
    loss = nz.Regression(times, weighting)(denoiser, point.expand(4, 2), u, draws(4, 2)[2])
    assert bool(loss.isfinite().all())
    _, sigma = process(times(u, process))
    assert bool((loss.abs() <= 1e-29 * (1 + 1 / sigma**2)).all())


@pytest.mark.parametrize("name", ["Nu", "W"])
def test_regression_refuses_what_has_no_target(name):
    """Nu and W have no finite target near t = 0: refused whatever the time, and VariationalBound is named."""
    denoiser = nz.Denoiser(Mixer(), nz.LinearSigmaVP(), getattr(nz, name)(), nz.Time())
    x0, u, eps = draws(3, 2)
    with pytest.raises(ArgumentError, match=f"{name} has no finite regression target.*nearzero.VariationalBound"):
        nz.Regression(nz.UniformTimes(), nz.Simple())(denoiser, x0, u, eps)


# --- the variational bound ----------------------------------------------------------------------------------------

FORMS = pytest.mark.parametrize("form", [nz.Nu(), nz.W()], ids=["Nu", "W"])
LINE = nz.GaussianMixture(f64([0.4, 0.6]), f64([[-0.6], [1.4]]), f64([[[0.3]], [[0.5]]]))
PLANE = nz.GaussianMixture(
    f64([0.3, 0.7]),
    f64([[-0.7, 0.5], [1.1, 0.9]]),
    f64([[[0.5, 0.2], [0.2, 0.4]], [[0.6, -0.1], [-0.1, 0.3]]]),
)
BOUND = nz.VariationalBound(nz.UniformTimes())


def log_density(data, x0):
    """log p(x0) of a mixture in plain Python."""
    total = 0.0
    for w, m, S in zip(data.weights.tolist(), data.means.tolist(), data.covariances.tolist(), strict=True):
        difference, S = np.array(x0) - np.array(m), np.array(S)
        quadratic = difference @ np.linalg.solve(S, difference)
        total += w * math.exp(-quadratic / 2) / math.sqrt(np.linalg.det(math.tau * S))
    return math.log(total)


def legendre(count):
    """Times in (0, 1) and weights: t = sin(theta) with theta in (0, pi / 2), in which alpha is smooth."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    theta = (nodes + 1) * math.pi / 4
    return torch.from_numpy(np.sin(theta)), torch.from_numpy(weights * math.pi / 4 * np.cos(theta))


def hermite(count, dim=1):
    """Standard normal nodes (n, dim) and weights (n,)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    weights = weights / weights.sum()
    grid = np.stack(np.meshgrid(*[nodes] * dim, indexing="ij"), -1).reshape(-1, dim)
    product = np.stack(np.meshgrid(*[weights] * dim, indexing="ij"), -1).reshape(-1, dim).prod(1)
    return torch.from_numpy(grid), torch.from_numpy(product)


def expectation(denoiser, x0, times=40, noises=60):
    """The bound at one x0, averaged over t and eps by quadrature."""
    t, weights = legendre(times)
    eps, shares = hermite(noises, len(x0))
    points = f64(x0).expand(len(t) * len(eps), len(x0))
    loss = BOUND(denoiser, points, t.repeat_interleave(len(eps)), eps.repeat(len(t), 1))
    return (weights @ loss.reshape(len(t), len(eps)) @ shares).item()


class Function(torch.nn.Module):
    """A network that is a plain function of (x, t)."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, c):
        return self.function(x, c.reshape(-1, *(1,) * (x.ndim - 1)))


def bounded(function, form):
    """The denoiser whose network in the form of W is `function`; for Nu the same score: nu = w / alpha - x."""
    network = function if form == nz.W() else lambda x, t: function(x, t) / torch.sqrt((1 - t) * (1 + t)) - x
    return nz.Denoiser(Function(network), nz.LinearSigmaVP(), form, nz.Time())


@FORMS
@pytest.mark.parametrize("x0", [[-2.0], [-0.6], [0.3], [1.4], [3.0]], ids=str)
def test_the_bound_of_the_exact_network_is_the_likelihood_on_a_line(form, x0):
    """For data of any mean the exact network's bound is -log p(x0) for each x0: nothing is lost at either end."""
    assert expectation(LINE.denoiser(nz.LinearSigmaVP(), form), x0) == pytest.approx(-log_density(LINE, x0), abs=1e-5)


@FORMS
@pytest.mark.parametrize("x0", [[-0.7, 0.5], [1.4, 0.2], [2.5, -1.0]], ids=str)
def test_the_bound_of_the_exact_network_is_the_likelihood_in_the_plane(form, x0):
    """In two dimensions with correlations and a mean: -log p(x0), whichever form."""
    found = expectation(PLANE.denoiser(nz.LinearSigmaVP(), form), x0, 24, 36)
    assert found == pytest.approx(-log_density(PLANE, x0), abs=1e-5)


@law
@given(
    x0=st.lists(st.floats(-2, 2), min_size=1, max_size=1),
    a=st.floats(-2, 2),
    b=st.floats(-1, 1),
    c=st.floats(-2, 2),
)
def test_both_forms_agree_for_any_network(x0, a, b, c):
    """nu = w / alpha - x has the same score, and the same bound in expectation, whatever w is, at each x0."""

    def w(x, t):
        return a * torch.tanh(b * x + c * t) + b * torch.cos(x) * t

    first, second = (expectation(bounded(w, form), x0, 24, 40) for form in (nz.Nu(), nz.W()))
    assert first == pytest.approx(second, abs=1e-6)


@law
@given(x0=st.lists(st.floats(-3, 3), min_size=1, max_size=3))
def test_no_network_is_standard_normal_data(x0):
    """w = 0 costs |x0|^2 / 2 + D / 2 log 2 pi exactly: -log of the standard normal density, for both forms."""
    expected = sum(value**2 for value in x0) / 2 + len(x0) / 2 * math.log(2 * math.pi)
    for form in (nz.W(), nz.Nu()):
        found = expectation(bounded(lambda x, t: 0 * x, form), x0, 12, 3)
        assert found == pytest.approx(expected, rel=1e-12)
    u, points = f64([0.0625, 0.9375]), f64([x0, x0])
    pair = BOUND(bounded(lambda x, t: 0 * x, nz.W()), points, u, torch.ones_like(points))
    assert pair.mean().item() == pytest.approx(expected, rel=1e-14)


def test_nu_is_the_papers_equation():
    """FullDiffusion's Eq. 16 coordinate by coordinate in Python, for images, and W's by its own formula."""
    x0, u, eps = draws(5, 2, 3, 2)
    for form in (nz.Nu(), nz.W()):
        denoiser = nz.Denoiser(Mixer(), nz.LinearSigmaVP(), form, nz.Time())
        loss = BOUND(denoiser, x0, u, eps)
        assert loss.shape == (5,)
        for i in range(5):
            t = u[i].item()
            alpha, sigma, D = math.sqrt(1 - t * t), t, 12
            x = alpha * x0[i] + sigma * eps[i]
            F = Mixer()(x[None], u[i : i + 1])[0].flatten().tolist()
            total = D / 2 * math.log(2 * math.pi) + (D / 2 * 7 / 6 if form == nz.Nu() else 0)
            for f, a, e in zip(F, x0[i].flatten().tolist(), eps[i].flatten().tolist(), strict=True):
                if form == nz.Nu():
                    total += (
                        alpha * f * (alpha * sigma * f + 2 * (alpha * (1 + sigma**2) * e - sigma**3 * a)) + a * a / 6
                    )
                else:
                    total += sigma * (a - f) ** 2 + 2 * alpha * f * e
            assert loss[i].item() == pytest.approx(total, rel=1e-12)


@FORMS
@pytest.mark.parametrize("error", [0.1, -0.5, 2.0])
def test_an_error_of_the_network_costs_its_square(form, error):
    """Over the data a constant error d costs d^2 / 2 in W and d^2 / 4 in Nu: the means of t d^2 and t alpha^2 d^2."""
    exact = LINE.denoiser(nz.LinearSigmaVP(), form)
    wrong = nz.Denoiser(Function(lambda x, t: exact.network(x, t.flatten()) + error), exact.process, form, nz.Time())
    t, weights = legendre(24)
    eps, shares = hermite(48)
    z, masses = hermite(80)
    points, mass = [], []
    for w, m, v in zip(LINE.weights, LINE.means, LINE.covariances[:, 0], strict=True):
        points, mass = [*points, m + v.sqrt() * z], [*mass, w.double() * masses]
    points, mass = torch.cat(points), torch.cat(mass)
    grid = torch.cartesian_prod(*(torch.arange(n) for n in (len(points), len(t), len(eps)))).T
    share = mass[grid[0]] * weights[grid[1]] * shares[grid[2]]
    means = [
        (share * BOUND(denoiser, points[grid[0]], t[grid[1]], eps[grid[2]])).sum().item() for denoiser in (exact, wrong)
    ]
    assert means[1] - means[0] == pytest.approx(error**2 / (2 if form == nz.W() else 4), rel=1e-5)


@FORMS
def test_the_bounds_gradient_reaches_the_network(form):
    """d loss / d bias of a constant network: 2 sigma (F - x0) + 2 alpha eps for W, Eq. 16's derivative for Nu."""
    network = torch.nn.Module()
    network.bias = torch.nn.Parameter(f64(0.3))
    network.forward = lambda x, c: network.bias.expand_as(x)
    x0, _, eps = draws(1, 1)
    denoiser = nz.Denoiser(network, nz.LinearSigmaVP(), form, nz.Time())
    BOUND(denoiser, x0, f64([0.6]), eps).sum().backward()
    alpha, sigma, a, e = 0.8, 0.6, x0.item(), eps.item()
    expected = 2 * sigma * (0.3 - a) + 2 * alpha * e
    if form == nz.Nu():
        expected = 2 * alpha**2 * sigma * 0.3 + 2 * alpha * (alpha * (1 + sigma**2) * e - sigma**3 * a)
    assert network.bias.grad.item() == pytest.approx(expected, rel=1e-12)


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bound_is_finite_at_both_ends(form, dtype):
    """At u = 2^-53 and 1 - 2^-53 the bound is its formula's limit: near data 2 F.eps, near noise nothing of Nu."""
    x0, _, eps = (value.to(dtype) for value in draws(2, 6))
    u = f64([2.0**-53, 1 - 2.0**-53])
    denoiser = nz.Denoiser(Function(lambda x, t: torch.tanh(x) + t), nz.LinearSigmaVP(), form, nz.Time())
    loss = BOUND(denoiser, x0, u, eps)
    assert loss.dtype == dtype
    near, far = 2 * torch.tanh(x0[0]) @ eps[0], ((x0[1] - torch.tanh(eps[1]) - 1) ** 2).sum()
    constant = 3 * math.log(2 * math.pi)
    if form == nz.Nu():
        squares, constant = (x0**2).sum(1) / 6, constant + 3.5
        near, far = near + squares[0], squares[1]
    expected = torch.stack([near, far]) + constant
    torch.testing.assert_close(loss, expected, rtol=1e-5 if dtype == torch.float32 else 1e-6, atol=0)


@FORMS
def test_the_bound_is_per_example(form):
    """Example i's bound depends on example i only, for vectors and images, and conditions reach the network."""
    for shape in ((5, 4), (5, 3, 2, 2)):
        x0, u, eps = draws(*shape)

        class Labelled(torch.nn.Module):
            def forward(self, x, c, label):
                return label.reshape(-1, *(1,) * (x.ndim - 1)) * torch.tanh(x)

        denoiser = nz.Denoiser(Labelled(), nz.LinearSigmaVP(), form, nz.Time())
        label = torch.arange(5, dtype=torch.float64)
        together = BOUND(denoiser, x0, u, eps, label=label)
        assert together.shape == (5,)
        for i in range(5):
            part = slice(i, i + 1)
            alone = BOUND(denoiser, x0[part], u[part], eps[part], label=label[part])
            torch.testing.assert_close(alone[0], together[i], rtol=1e-13, atol=0)


@FORMS
def test_float32_bounds_are_the_float64_ones(form):
    """In float32 the bound is the float64 one to float32's accuracy."""
    x0, _, eps = draws(4, 40)
    u = f64([1e-9, 0.3, 0.8, 1 - 1e-9])
    denoiser = nz.Denoiser(Function(lambda x, t: torch.tanh(x) + t), nz.LinearSigmaVP(), form, nz.Time())
    single = BOUND(denoiser, x0.float(), u, eps.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), BOUND(denoiser, x0, u, eps), rtol=1e-5, atol=1e-4)


def test_strata_estimate_the_same_bound():
    """With Stratified the mean over a batch has the bound as its expectation: 40 strata of 5 nodes, w = 0 known."""
    nodes, weights = np.polynomial.legendre.leggauss(5)
    bound = nz.VariationalBound(nz.Stratified(nz.UniformTimes()))
    x0 = torch.full((40, 1), 1.3, dtype=torch.float64)
    denoiser, total = bounded(lambda x, t: 0 * x, nz.W()), 0.0
    for node, share in zip((nodes + 1) / 2, weights / 2, strict=True):
        u = torch.full((40,), float(node), dtype=torch.float64)
        total += share * bound(denoiser, x0, u, torch.ones_like(x0)).mean().item()
    assert total == pytest.approx(1.3**2 / 2 + math.log(2 * math.pi) / 2, rel=1e-13)


@pytest.mark.parametrize(
    ("process", "parameterization"),
    [
        (nz.LinearSigmaVP(), nz.Epsilon()),
        (nz.LinearSigmaVP(), nz.Velocity()),
        (nz.LinearSigmaVP(), nz.Denoised()),
        (nz.LinearVP(), nz.Nu()),
        (nz.LinearVP(), nz.W()),
        (nz.CosineVP(), nz.W()),
        (nz.KarrasVE(), nz.Velocity()),
        (nz.KarrasVE(), nz.Nu()),
        (nz.StraightPath(), nz.W()),
    ],
    ids=repr,
)
def test_the_bound_refuses_other_models(process, parameterization):
    """Its formulas are those of Nu and W where sigma = t and alpha^2 = 1 - t^2: anything else is refused."""
    x0, u, eps = draws(3, 2)
    with pytest.raises(ArgumentError, match="VariationalBound needs Nu or W|needs alpha\\^2 \\+ sigma\\^2 = 1"):
        BOUND(nz.Denoiser(Mixer(), process, parameterization, nz.Time()), x0, u, eps)


def test_the_bound_needs_uniform_times():
    """Times of another density would give a number that is no bound: refused, whatever spreads the batch."""
    for times in (nz.LogNormalSigma(), nz.Stratified(nz.ImportanceTimes()), nz.DiscreteTimes()):
        with pytest.raises(ArgumentError, match="needs uniform times"):
            nz.VariationalBound(times)
    for times in (nz.UniformTimes(), nz.Antithetic(nz.Stratified(nz.UniformTimes()))):
        assert nz.VariationalBound(times).times == times


# --- the bound under other times ----------------------------------------------------------------------------------


class Squares:
    """A user's own times, t = u^2, with the density of their definition."""

    def __call__(self, u, process):
        return u**2 * process.end

    def density(self, t, process):
        return 0.5 / torch.sqrt(t * process.end)


def over_u(times, denoiser, x0, count=100, noises=60):
    """The bound at one x0 under some times, averaged over u and eps: Gauss and Legendre in sqrt(1 - u), in which alpha is smooth."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    v = (torch.from_numpy(nodes) + 1) / 2
    eps, shares = hermite(noises, len(x0))
    points = f64(x0).expand(count * len(eps), len(x0))
    u = (1 - (1 - v) ** 2).repeat_interleave(len(eps))
    loss = nz.VariationalBound(times)(denoiser, points, u, eps.repeat(count, 1)).reshape(count, len(eps))
    return (torch.from_numpy(weights) * (1 - v) @ loss @ shares).item()


@FORMS
@pytest.mark.parametrize("times", [LogTimes(), LogTimes(0.1), Squares()], ids=["1e-3", "0.1", "squares"])
def test_the_bound_is_the_same_under_any_times(form, times):
    """Divided by their density, times leave the exact network's mean over u and eps what it is under uniform ones, within 1e-9; of a wrong network too."""
    models = LINE.denoiser(nz.LinearSigmaVP(), form), bounded(lambda x, t: torch.tanh(x) - t * x**2 / 9, form)
    for denoiser in models:
        for x0 in ([-2.0], [0.3]):
            assert over_u(times, denoiser, x0) == pytest.approx(expectation(denoiser, x0), abs=1e-9)


@pytest.mark.parametrize("wrap", [nz.Stratified, nz.Antithetic, lambda x: nz.Antithetic(nz.Stratified(x))])
def test_spread_times_estimate_the_same_bound(wrap):
    """Stratified or antithetic, LogTimes' mean over a batch has the bound as its expectation: 40 images of 5 nodes, w = 0 known."""
    nodes, weights = np.polynomial.legendre.leggauss(5)
    bound, x0 = nz.VariationalBound(wrap(LogTimes(0.1))), torch.full((40, 1), 1.3, dtype=torch.float64)
    denoiser, total, pieces = bounded(lambda x, t: 0 * x, nz.W()), 0.0, 16
    for place in range(pieces):
        for node, share in zip((nodes + 1) / 2, weights / 2, strict=True):
            u = torch.full((40,), (place + float(node)) / pieces, dtype=torch.float64)
            total += share / pieces * bound(denoiser, x0, u, torch.ones_like(x0)).mean().item()
    assert total == pytest.approx(1.3**2 / 2 + math.log(2 * math.pi) / 2, rel=1e-12)


@pytest.fixture(scope="module")
def script():
    """scripts/bound_variance.py as a module."""
    path = Path(__file__).parents[1] / "scripts" / "bound_variance.py"
    spec = importlib.util.spec_from_file_location("bound_variance", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_variance_of_pixels_lies_at_small_times(script):
    """On 256 dithered values t < .01 holds about 95 % of the variance; LogTimes' default has 20 times less, near the best of all densities."""
    curve = script.Curve(script.pixels(torch.ones(256, dtype=torch.float64)), count=48, draws=512)
    assert 0.92 < curve.share(0.01) < 0.98
    uniform, strata = curve.variances(nz.UniformTimes())
    found = {d: curve.variances(LogTimes(d), fine=200)[0] for d in (1e-4, 1e-3, 1e-2)}
    assert min(found, key=found.get) == LogTimes().d
    assert uniform > 15 * found[1e-3]
    assert curve.best() < found[1e-3] < 1.3 * curve.best()
    assert strata > 0.98 * uniform  # the noise's, not the time's: strata of t cannot lower it


def test_drawn_bounds_vary_as_the_script_says(script):
    """Of 80000 draws on 32 values the mean is the same under both times within 4 standard errors; LogTimes' variance is the script's within 12 %, a fifth of uniform times'."""
    counts = torch.zeros(256, dtype=torch.float64)
    counts[112:144] = 1
    data, generator = script.pixels(counts), torch.Generator().manual_seed(0)
    denoiser, found = data.denoiser(nz.LinearSigmaVP(), nz.W()), []
    for times in (nz.UniformTimes(), LogTimes()):
        x0, u = data.sample(80000, generator), torch.rand(80000, generator=generator, dtype=torch.float64)
        eps = torch.randn(80000, 1, generator=generator, dtype=torch.float64)
        found.append(nz.VariationalBound(times)(denoiser, x0, u, eps))
    uniform, log = found
    assert abs((uniform.mean() - log.mean()).item()) < 4 * math.sqrt((uniform.var() + log.var()).item() / 80000)
    assert log.var().item() == pytest.approx(script.Curve(data, 64, 2048).variances(LogTimes(), 200)[0], rel=0.12)
    assert log.var().item() < 0.2 * uniform.var().item()


def test_times_need_a_density():
    """Times that do not know their density are refused by the bound however they are wrapped; those that do are taken."""
    for times in (nz.Matched(nz.UniformTimes(), nz.LinearSigmaVP()), nz.Stratified(nz.LogNormalSigma())):
        with pytest.raises(ArgumentError, match="needs uniform times, or others with a density such as LogTimes"):
            nz.VariationalBound(times)
    for times in (LogTimes(), nz.Stratified(LogTimes(0.1)), nz.Antithetic(nz.Stratified(Squares()))):
        assert nz.VariationalBound(times).times is times
