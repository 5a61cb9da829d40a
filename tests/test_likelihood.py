"""Likelihoods: the oracle's density without truncation, densities that integrate to 1, probes, the bound, refusals."""

import itertools
import math

import numpy as np
import pytest
import torch

import nearzero as nz
from nearzero.errors import ArgumentError, NumericalError
from nearzero.times import LogTimes


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


PLANE = nz.GaussianMixture(
    f64([0.5, 0.3, 0.2]),
    f64([[1.0, 0.5], [-0.3, -0.8], [0.2, 1.0]]),
    f64([[[0.09, 0.03], [0.03, 0.16]], [[0.2, -0.05], [-0.05, 0.1]], [[0.07, 0.0], [0.0, 0.12]]]),
)
CENTRED = nz.GaussianMixture(PLANE.weights, PLANE.means - PLANE.weights @ PLANE.means, PLANE.covariances)
LINE = nz.GaussianMixture(f64([0.4, 0.6]), f64([[-0.6], [1.4]]), f64([[[0.3]], [[0.5]]]))
FULL, TIGHT, CLOSE = nz.LinearSigmaVP(), nz.RK45(1e-9, 1e-9), nz.RK45(1e-8, 1e-8)


def sharp(sd):
    """The plane's mixture with small round components."""
    return nz.GaussianMixture(PLANE.weights, PLANE.means, sd**2 * torch.eye(2).double().expand(3, 2, 2))


def draws(data, count, seed=0):
    return data.sample(count, torch.Generator().manual_seed(seed))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Mlp(torch.nn.Module):
    """A smooth random network of (x, c) on examples of `dim` numbers."""

    def __init__(self, dim=1, seed=0, scale=1.5):
        super().__init__()
        torch.manual_seed(seed)
        layers = torch.nn.Linear(dim + 1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16), torch.nn.Tanh()
        self.body = torch.nn.Sequential(*layers, torch.nn.Linear(16, dim)).double()
        self.scale = scale

    def forward(self, x, c):
        return self.scale * self.body(torch.cat([x, c[:, None]], 1))


class Plain(torch.nn.Module):
    """A network that is a plain function of (x, c)."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, c, **condition):
        return self.function(x, c.reshape(-1, *(1,) * (x.ndim - 1)), **condition)


def denoiser(network, process=FULL, parameterization=None, conditioning=None):
    return nz.Denoiser(network, process, parameterization or nz.W(), conditioning or nz.Time())


def mismatch(data, process, latent):
    """log q_end - log N(0, sigma_end^2) at the end of a path."""
    end = process(f64(process.end))
    prior = torch.distributions.Normal(0.0, end.sigma).log_prob(latent).flatten(1).sum(1)
    return data.log_prob(latent, end) - prior


def mass(model, low, high, count=601, **options):
    """The integral of exp(log p) over a line by the trapezoid rule, and the density at its ends."""
    x = torch.linspace(low, high, count, dtype=torch.float64)[:, None]
    p = nz.ode_likelihood(model, x, **options).nats.exp()
    return torch.trapezoid(p, x[:, 0]).item(), max(p[0].item(), p[-1].item())


# --- the exact network ------------------------------------------------------------------------------------------------

TO_NOISE = [
    (FULL, nz.W()),
    (FULL, nz.Velocity()),
    (FULL, nz.Karras()),
    (nz.CosineVP(), nz.Velocity()),
    (nz.ShiftedCosine(), nz.Velocity()),
    (nz.ZeroTerminalSNR(nz.LinearVP()), nz.Velocity()),
    (nz.ZeroTerminalSNR(nz.DiscreteVP.linear()), nz.W()),
    (nz.StraightPath(), nz.Flow()),
]
TO_SIGNAL = [
    (nz.LinearVP(), nz.Epsilon()),
    (nz.QuadraticVP(), nz.Velocity()),
    (nz.DiscreteVP.linear(), nz.W()),
    (nz.SubVP(), nz.Flow()),
    (nz.KarrasVE(), nz.Karras()),
    (nz.SongVE(6400.0), nz.Velocity()),
]


@pytest.mark.parametrize(("process", "parameterization"), TO_NOISE, ids=repr)
def test_a_path_to_pure_noise_has_the_exact_density(process, parameterization):
    """From exactly 0 to exactly no signal the density is the data's, at each point, within 1e-6 nats: nothing is cut."""
    x = draws(PLANE, 8)
    found = nz.ode_likelihood(PLANE.denoiser(process, parameterization), x, solver=TIGHT)
    assert (found.nats - PLANE.log_prob(x)).abs().max().item() < 1e-6
    assert found.nats.dtype == torch.float64
    assert found.stderr.tolist() == [0.0] * 8


def test_nu_of_centred_data_has_the_exact_density():
    """FullDiffusion's own form, on data of mean 0: within 1e-6 nats pointwise."""
    x = draws(CENTRED, 8)
    found = nz.ode_likelihood(CENTRED.denoiser(FULL, nz.Nu()), x, solver=TIGHT).nats
    assert (found - CENTRED.log_prob(x)).abs().max().item() < 1e-6


@pytest.mark.parametrize(("process", "parameterization"), TO_SIGNAL, ids=repr)
def test_the_only_error_is_the_priors(process, parameterization):
    """Where signal is left at the end the error is log q_end - log N at the path's end, pointwise, and nothing else."""
    x = draws(PLANE, 8)
    found = nz.ode_likelihood(PLANE.denoiser(process, parameterization), x, solver=TIGHT)
    error, prior = found.nats - PLANE.log_prob(x), mismatch(PLANE, process, found.latent)
    assert (error + prior).abs().max().item() < 1e-6
    assert error.abs().max().item() > 1e-3  # so that the mismatch is there to be seen


@pytest.mark.parametrize(("process", "t_min"), [(nz.LinearVP(), 1e-5), (nz.KarrasVE(), 0.002)], ids=repr)
def test_smooth_data_lose_little_by_truncation(process, t_min):
    """On smooth data VP from 1e-5 and EDM from .002 are wrong by less than 1e-3 nats in the mean and 2e-2 at most."""
    x = draws(PLANE, 150, seed=1)
    found = nz.ode_likelihood(PLANE.denoiser(process), x, solver=nz.RK45(1e-6, 1e-6), t_min=t_min).nats
    error = found - PLANE.log_prob(x)
    assert abs(error.mean().item()) < 1e-3
    assert error.abs().max().item() < 2e-2


@pytest.mark.parametrize(
    ("process", "t_min", "sd"),
    [
        (nz.LinearVP(), 1e-3, 0.035),
        (nz.LinearVP(), 1e-3, 0.0105),
        (nz.LinearVP(), 1e-5, 0.0105),
        (nz.KarrasVE(), 0.002, 0.0105),
    ],
    ids=repr,
)
def test_truncation_gives_the_density_of_noisy_data(process, t_min, sd):
    """With t_min the answer is log q_{t_min}(x), pointwise within 1e-6 once the prior is charged."""
    data, x = sharp(sd), draws(sharp(sd), 6, seed=2)
    found = nz.ode_likelihood(data.denoiser(process), x, solver=CLOSE, t_min=t_min)
    noisy = data.log_prob(x, process(f64(t_min)))
    assert (found.nats + mismatch(data, process, found.latent) - noisy).abs().max().item() < 1e-6


def test_truncation_of_sharp_data_costs_its_closed_form():
    """For components N(c, v) far apart an x of c is off by log r - |x - c|^2 / 2v + |x - alpha c|^2 / 2vr nats in 2-D, r = alpha^2 + sigma^2 / v, pointwise; .19 on average for VP's 1e-3 at sd .0105."""
    process, variance = nz.LinearVP(), 0.0105**2
    for t_min in (1e-3, 1e-5):
        alpha, sigma = (value.item() for value in process(f64(t_min)))
        ratio = alpha**2 + sigma**2 / variance
        data, x = sharp(0.0105), draws(sharp(0.0105), 20, seed=3)
        centre = data.means[torch.cdist(x, data.means).argmin(1)]
        near, far = ((x - c).square().sum(1) / (2 * variance) for c in (centre, alpha * centre))
        found = nz.ode_likelihood(data.denoiser(process), x, solver=CLOSE, t_min=t_min)
        errors = data.log_prob(x) - found.nats - mismatch(data, process, found.latent)
        torch.testing.assert_close(errors, math.log(ratio) - near + far / ratio, rtol=0, atol=1e-6)
        if t_min == 1e-3:
            assert math.log(ratio) + 1 / ratio - 1 == pytest.approx(0.192, abs=1e-3)


@pytest.mark.parametrize("process", [FULL, nz.LinearVP()], ids=repr)
def test_a_hidden_start_would_be_seen(process):
    """At sd .002 a start at 1e-5 is wrong by more than 100 times the largest error from exactly 0, below 1e-6 nats."""
    data, x = sharp(0.002), draws(sharp(0.002), 8, seed=4)
    honest, hidden = (
        nz.ode_likelihood(data.denoiser(process, nz.Velocity()), x, solver=CLOSE, t_min=t) for t in (0.0, 1e-5)
    )
    errors = [
        (found.nats + mismatch(data, process, found.latent) - data.log_prob(x)).abs().max().item()
        for found in (honest, hidden)
    ]
    assert errors[0] < 1e-6
    assert errors[1] > 100 * errors[0]


# --- many dimensions --------------------------------------------------------------------------------------------------


class Householder:
    """N(m, Q diag(v) Q) in 784 dimensions, Q = 1 - 2 h h': a full covariance whose products cost 784."""

    def __init__(self):
        m, h = torch.randn(2, 784, generator=seeded(0), dtype=torch.float64)
        self.m, self.h = 0.3 * m, h / h.norm()
        self.v = torch.logspace(-2, 0.5, 784, dtype=torch.float64)

    def turn(self, x):
        return x - 2 * (x @ self.h)[:, None] * self.h

    def velocity(self, x, t):
        alpha, sigma = torch.sqrt((1 - t) * (1 + t)), t
        y = self.turn(x - alpha * self.m) / (alpha**2 * self.v + sigma**2)
        return alpha * sigma * self.turn((1 - self.v) * y) - sigma * self.m

    def log_prob(self, x):
        y = self.turn(x - self.m)
        return -0.5 * (y**2 / self.v + self.v.log() + math.log(math.tau)).sum(1)


def test_a_gaussian_of_784_dimensions_is_exact():
    """A full covariance with variances from .01 to 3.2 has its density within 1e-4 bits per dimension, by 784 exact derivatives."""
    data = Householder()
    x = data.m + data.turn(data.v.sqrt() * torch.randn(1, 784, generator=seeded(1), dtype=torch.float64))
    model = denoiser(Plain(data.velocity), FULL, nz.Velocity())
    found = nz.log_likelihood(model, x, rtol=1e-4, atol=1e-4)
    gap = nz.bits_per_dim(found, 784) - nz.bits_per_dim(data.log_prob(x), 784)
    assert gap.abs().max().item() < 1e-4


def test_probes_suffice_in_784_dimensions():
    """There 16 random directions are within 4 standard errors, which are below .01 bits per dimension."""
    data = Householder()
    x = data.m + data.turn(data.v.sqrt() * torch.randn(8, 784, generator=seeded(2), dtype=torch.float64))
    model = denoiser(Plain(data.velocity), FULL, nz.Velocity())
    found = nz.ode_likelihood(model, x, solver=nz.RK45(1e-6, 1e-6), divergence="hutchinson", probes=16)
    assert bool((nz.bits_per_dim(-found.stderr, 784) < 0.01).all())
    assert bool((found.stderr > 0).all())
    assert ((found.nats - data.log_prob(x)) / found.stderr).abs().max().item() < 4


# --- random directions ------------------------------------------------------------------------------------------------


class Convolutions(torch.nn.Module):
    """A small U-Net with random weights: down, up, and a skip, normalised in groups."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.down = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 8, 3, 2, 1)
        self.norm, self.up = torch.nn.GroupNorm(2, 8), torch.nn.ConvTranspose2d(8, 4, 4, 2, 1)
        self.last, self.time = torch.nn.Conv2d(8, 1, 3, padding=1), torch.nn.Linear(1, 8)
        self.double()

    def forward(self, x, c):
        h = torch.tanh(self.first(x))
        low = torch.nn.functional.silu(self.norm(self.down(h)) + self.time(c[:, None])[..., None, None])
        return self.last(torch.cat([h, self.up(low)], 1))


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
@pytest.mark.parametrize("name", ["mixture", "network"])
def test_probes_are_unbiased_and_know_their_error(name, noise):
    """Over 160 estimates of 24 probes (estimate - exact) / stderr has mean 0 and the variance 23/21 of Student's t."""
    if name == "mixture":
        model, x = PLANE.denoiser(FULL, nz.W()), draws(PLANE, 160, seed=5)
    else:
        x = torch.randn(160, 1, 4, 4, generator=seeded(6), dtype=torch.float64)
        model = denoiser(Convolutions(), FULL, nz.Velocity())
    same = {"solver": nz.Heun(), "steps": 4}  # so that both follow one path
    exact = nz.ode_likelihood(model, x, **same)
    probed = nz.ode_likelihood(model, x, **same, divergence="hutchinson", probes=24, noise=noise, generator=seeded(7))
    z = (probed.nats - exact.nats) / probed.stderr
    assert torch.equal(probed.latent, exact.latent)
    assert abs(z.mean().item()) < 4 / math.sqrt(160)
    assert 0.7 < z.var().item() < 1.6
    assert bool(nz.ode_likelihood(model, x[:2], **same, divergence="hutchinson").stderr.isnan().all())


def test_directions_stay_the_same_along_a_path():
    """For a Gaussian of covariance S one Rademacher probe gives the exact value plus or minus (log S)_12, by its two signs alone, whatever x is."""
    S = f64([[0.5, 0.3], [0.3, 0.4]])
    values, axes = torch.linalg.eigh(S)
    shift = (axes * values.log() @ axes.T)[0, 1].item()
    data = nz.GaussianMixture(f64([1.0]), f64([[0.2, -0.1]]), S[None])
    x = draws(data, 40, seed=8)
    model = data.denoiser(FULL, nz.W())
    found = nz.ode_likelihood(model, x, solver=TIGHT, divergence="hutchinson", generator=seeded(9)).nats
    error = found - data.log_prob(x)
    torch.testing.assert_close(error.abs(), torch.full_like(error, abs(shift)), rtol=0, atol=1e-6)
    assert 8 < (error > 0).sum().item() < 32


def test_an_example_does_not_depend_on_the_others():
    """Alone, in another batch, or in parts that share a generator, an example has the same density: 1e-12."""
    x = draws(PLANE, 5, seed=10)
    model = PLANE.denoiser(FULL, nz.W())
    together = nz.ode_likelihood(model, x)
    for i in range(5):
        alone = nz.ode_likelihood(model, x[i : i + 1])
        torch.testing.assert_close(alone.nats[0], together.nats[i], rtol=0, atol=1e-12)
        torch.testing.assert_close(alone.latent[0], together.latent[i], rtol=0, atol=1e-12)
    options = {"divergence": "hutchinson", "probes": 3}
    whole = nz.log_likelihood(model, x, generator=seeded(1), **options)
    generator = seeded(1)
    parts = torch.cat([nz.log_likelihood(model, part, generator=generator, **options) for part in x.split(2)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    generator = seeded(2)
    bounds = torch.cat([nz.elbo(model, part, draws=3, generator=generator) for part in x.split(2)])
    torch.testing.assert_close(bounds, nz.elbo(model, x, draws=3, generator=seeded(2)), rtol=0, atol=1e-12)


# --- solvers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "order", "cost"), [(nz.Heun(), 1.9, 2), (nz.RungeKutta4(), 3.8, 4)], ids=repr)
def test_fixed_steps_keep_their_order(solver, order, cost):
    """The rms error over points falls with the solver's order from 40 to 80 steps; a step costs 2 or 4 evaluations."""
    x, errors = draws(PLANE, 12, seed=11), []
    for steps in (40, 80):
        found = nz.ode_likelihood(PLANE.denoiser(FULL, nz.W()), x, solver=solver, steps=steps)
        errors.append((found.nats - PLANE.log_prob(x)).square().mean().sqrt().item())
        assert found.evaluations == cost * steps
    assert math.log2(errors[0] / errors[1]) > order


def test_every_interval_lies_inside_the_process():
    """Whatever the start, equal intervals never round past the end, of which a clock knows nothing."""
    for t_min in np.random.default_rng(0).uniform(0, 79, 40):
        found = nz.ode_likelihood(denoiser(Plain(lambda x, c: 0 * x), nz.KarrasVE(), nz.Karras()), torch.zeros(1, 1),
                                  solver=nz.Euler(), steps=7, t_min=float(t_min))  # fmt: skip
        assert found.evaluations == 7


def test_another_process_sees_the_same_density():
    """Through Rescaled a network has the density that it has under its own process: x is only counted in other units."""
    model = denoiser(Mlp(2, seed=4), nz.LinearVP(), nz.Epsilon())
    x = draws(PLANE, 6, seed=12)
    end = nz.LinearVP()(f64(1.0))
    other = nz.Rescaled(model, nz.KarrasVE((end.sigma / end.alpha).item()))
    first, second = (nz.log_likelihood(one, x, rtol=1e-9, atol=1e-9) for one in (model, other))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


# --- any network has a density ----------------------------------------------------------------------------------------

ANY = [
    (FULL, nz.W(), nz.Time()),
    (FULL, nz.Nu(), nz.Time()),
    (nz.CosineVP(), nz.Velocity(), nz.Time()),
    (nz.StraightPath(), nz.Flow(), nz.Time()),
    (nz.LinearVP(), nz.Karras(0.7), nz.Time()),
    (nz.SubVP(0.1, 3.0), nz.Epsilon(), nz.Time()),  # LinearVP's beta would spread it over 1 / alpha_end = 152
    (nz.KarrasVE(5.0), nz.Karras(), nz.Shared(nz.LogSigma(), interval=0.5, cells=2)),
    (FULL, nz.Velocity(), nz.Shared(nz.Time(), interval=0.4, cells=3)),
]


@pytest.mark.parametrize(("process", "parameterization", "conditioning"), ANY, ids=repr)
def test_any_network_has_a_density(process, parameterization, conditioning):
    """The density of a random smooth network integrates to 1 within 1e-5: the change of variables is exact."""
    model = denoiser(Mlp(seed=1), process, parameterization, conditioning)
    total, rest = mass(model, -25, 25, 2501, solver=nz.RK45(1e-7, 1e-7))
    assert rest < 1e-9
    assert total == pytest.approx(1, abs=1e-5)


def test_the_shared_optimum_has_a_density():
    """With the best network that is told one number for a cell the density integrates to 1 within 1e-4."""
    shared, process = nz.Shared(nz.Timestep(20), interval=6, cells=2), nz.DiscreteVP.linear(20, 0.01, 0.6)
    model = LINE.denoiser(process, nz.Velocity(), shared)
    total, rest = mass(model, -9, 9, 301, solver=nz.RungeKutta4(), steps=24, between_timesteps=True)
    assert rest < 1e-9
    assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("solver", [nz.RK45(), nz.Heun(), nz.RungeKutta4()], ids=repr)
def test_an_interval_is_told_one_cell(solver):
    """What the network is told rises from cell to cell, each told its own number however many stages touch its edges."""
    told = []

    def network(x, c):
        told.extend(c.unique().tolist())
        return 0.1 * x

    shared = nz.Shared(nz.Time(), interval=0.6, cells=3)
    nz.ode_likelihood(denoiser(Plain(network), conditioning=shared), torch.ones(2, 1).double(), solver=solver)
    runs = [(value, len(list(group))) for value, group in itertools.groupby(told) if value <= 0.4]
    assert [value for value, _ in runs] == pytest.approx([0.0, 0.2, 0.4], abs=1e-15)
    if solver == nz.RungeKutta4():
        assert [count for _, count in runs] == [3, 4, 4]  # W is not asked at t = 0
    assert min(value for value in told if value > 0.4) >= 0.6


def test_float32_densities_are_the_float64_ones():
    """A float32 network on float32 data has the float64 density to 1e-6 nats, also with tolerances below its rounding; a probe has the same directions."""
    x = draws(PLANE, 6, seed=13)
    for options in ({"rtol": 1e-5}, {"rtol": 1e-8, "atol": 1e-8}, {"divergence": "hutchinson", "probes": 2}):
        double = nz.log_likelihood(denoiser(Mlp(2, seed=5)), x.float().double(), **options)
        single = nz.log_likelihood(denoiser(Mlp(2, seed=5).float()), x.float(), **options)
        assert single.dtype == torch.float64
        torch.testing.assert_close(single, double, rtol=0, atol=1e-6)


def test_networks_that_do_not_depend_on_x():
    """A constant answer, with parameters or without, moves the data rigidly under W's own factor: the density of standard normal data moved to w's mean."""
    x = f64([[0.3], [-2.0]])
    free = torch.nn.Parameter(f64([0.7]))
    for network in (lambda x, c: 0.7 + 0 * x.detach(), lambda x, c: free.expand_as(x), lambda x, c: 0.7 + 0 * x):
        found = nz.log_likelihood(denoiser(Plain(network)), x, rtol=1e-9, atol=1e-9)
        # dx/du = -alpha (-alpha w + ...) = the field of N(w, 1) data, whose w* is its mean
        expected = torch.distributions.Normal(0.7, 1.0).log_prob(x)[:, 0]
        torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-6)


# --- the bound --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [None, LogTimes(0.1)], ids=repr)
@pytest.mark.parametrize("form", [nz.Nu(), nz.W()], ids=repr)
def test_the_bound_of_the_exact_network_is_tight(form, times):
    """The mean of 40 bounds of 25 draws is log p(x) within 4 standard errors at each x."""
    x = draws(CENTRED, 6, seed=14)
    model = CENTRED.denoiser(FULL, form)
    found = nz.elbo(model, x.repeat_interleave(40, 0), draws=25, times=times, generator=seeded(15)).reshape(6, 40)
    z = (found.mean(1) - CENTRED.log_prob(x)) / (found.std(1) / math.sqrt(40))
    assert z.abs().max().item() < 4
    assert found.std().item() < 2


def test_a_wrong_network_has_a_lower_bound():
    """An error d of each of w's D numbers costs D d^2 / 2 nats in the mean over data, and never gains, within 4 standard errors."""
    x = draws(PLANE, 4000, seed=16)
    exact = PLANE.denoiser(FULL, nz.W())
    wrong = denoiser(Plain(lambda x, c: exact.network(x, c.flatten()) + 0.6))
    truth, bound = (nz.elbo(model, x, draws=4, generator=seeded(17)) for model in (exact, wrong))
    loss = truth - bound
    error = loss.std().item() / math.sqrt(len(x))
    assert loss.mean().item() == pytest.approx(0.6**2, abs=4 * error)
    assert error < 0.03
    assert PLANE.log_prob(x).mean().item() - bound.mean().item() > 0.2


def test_strata_of_draws_lower_the_error():
    """With w = 0, whose bound varies with t alone, n draws err by |x|^2 / sqrt(12) n^-1.5 in the rms, never by more than |x|^2 / 2 n."""
    x = torch.full((600, 1), 1.7, dtype=torch.float64)
    exact = -(1.7**2) / 2 - math.log(math.tau) / 2
    for n in (1, 4, 16):
        error = nz.elbo(denoiser(Plain(lambda x, c: 0 * x)), x, draws=n, generator=seeded(18)) - exact
        assert error.square().mean().sqrt().item() == pytest.approx(1.7**2 / math.sqrt(12) * n**-1.5, rel=0.12)
        assert error.abs().max().item() <= 1.7**2 / (2 * n)


def test_bits_per_dim_charges_the_codec():
    """Pixels that are N(127.5, 127.5^2) have their own density's bits by way of the model's space; 256 equally likely values cost 8."""
    pixels = 127.5 * (1 + torch.randn(5, 3, generator=seeded(19), dtype=torch.float64))
    data = nz.GaussianMixture(f64([1.0]), torch.zeros(1, 3).double(), torch.eye(3)[None].double())
    nats = nz.log_likelihood(data.denoiser(FULL), pixels / 127.5 - 1, rtol=1e-9, atol=1e-9)
    found = nz.bits_per_dim(nats + nz.Pixels().log_determinant(3), 3)
    expected = -torch.distributions.Normal(127.5, 127.5).log_prob(pixels).mean(1) / math.log(2)
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-6)
    assert nz.bits_per_dim(f64([-3 * math.log(256)]), 3).item() == pytest.approx(8, rel=1e-15)


# --- what is refused --------------------------------------------------------------------------------------------------

X = torch.zeros(2, 2, dtype=torch.float64)


def refused(match, model=None, x=X, **options):
    with pytest.raises(ArgumentError, match=match) as error:
        nz.ode_likelihood(model or denoiser(Mlp(2)), x, **options)
    assert "\n" not in str(error.value)


def test_bad_arguments_are_refused():
    """Each by a line that says what is wrong and what to take."""
    refused("noise-adding|process's own clock, got Ancestral.*RK45 or Heun", solver=nz.Ancestral())
    refused("own clock, got DPMSolver", solver=nz.DPMSolver())
    refused("own clock", solver=nz.Heun(nz.Angle(FULL)))
    refused("unknown divergence or noise 'Exact'.*exact", divergence="Exact")
    refused("unknown divergence or noise 'normal'", noise="normal")
    refused("at least 1 step and 1 probe, got 0 and 1", steps=0)
    refused("at least 1 step and 1 probe, got 1 and 0", probes=0)
    for t_min in (-0.1, 1.0, 2.0, math.nan):
        refused(r"t_min must lie in \[0, 1\)", t_min=t_min)
    for rtol, atol in ((0, 1e-5), (1e-5, -1.0), (math.nan, 1e-5), (math.inf, 1e-5)):
        with pytest.raises(ArgumentError, match="positive tolerances"):
            nz.log_likelihood(denoiser(Mlp(2)), X, rtol=rtol, atol=atol)
    with pytest.raises(ArgumentError, match="positive number of dimensions, got 0"):
        nz.bits_per_dim(f64([1.0]), 0)


@pytest.mark.parametrize("x", [X.long(), X * math.nan, X + math.inf, X[0], [[0.0]]], ids=["int", "NaN", "inf", "1-D", "list"])  # fmt: skip
def test_what_is_no_data_is_refused(x):
    """Integers, numbers that are not finite, an example without its batch and lists are no encoded data, for the bound neither."""
    refused("finite float tensor", x=x)
    with pytest.raises(ArgumentError, match="finite float tensor"):
        nz.elbo(denoiser(Mlp(2)), x, draws=1)


def test_guided_denoisers_are_refused():
    """Guidance follows no density's field, behind another process neither."""
    model = denoiser(Mlp(2), nz.LinearVP(), nz.Epsilon())
    guided = nz.Guided(model, model, 2.0)
    refused("guided", guided)
    refused("guided", nz.Rescaled(guided, nz.LinearVP()))


@pytest.mark.parametrize("conditioning", [nz.Timestep(), nz.Shared(nz.Timestep(), interval=100, cells=5)], ids=repr)
def test_whole_timesteps_are_refused(conditioning):
    """Between timesteps nothing was trained: refused, through Rescaled too, unless the network is said to interpolate."""
    model = denoiser(Mlp(2, scale=1e-3), nz.DiscreteVP.linear(), nz.Epsilon(), conditioning)
    for one in (model, nz.Rescaled(model, nz.LinearVP(0.1, 19.9))):
        refused("whole timesteps.*between_timesteps=True", one)
    taken = nz.ode_likelihood(model, X, solver=nz.Heun(), steps=4, between_timesteps=True).nats
    assert bool(taken.isfinite().all())


def test_networks_that_do_not_exist_at_zero_name_a_start():
    """Denoised, LogSigma and LogSNR are refused at 0 with t_min as the remedy, and have a density from there."""
    for model in (
        denoiser(Mlp(2), nz.KarrasVE(), nz.Karras(), nz.LogSigma()),
        denoiser(Mlp(2), nz.LinearVP(), nz.Velocity(), nz.LogSNR()),
        denoiser(Mlp(2), nz.LinearVP(), nz.Denoised()),
    ):
        refused("at sigma = 0.*start above 0: ode_likelihood.*t_min", model)
        found = nz.ode_likelihood(model, X, solver=nz.Heun(), steps=4, t_min=0.1).nats
        assert bool(found.isfinite().all())
    refused("Epsilon at alpha = 0.*Velocity", denoiser(Mlp(2), FULL, nz.Epsilon()))


@pytest.mark.parametrize("parameterization", [nz.Velocity(), nz.Epsilon()], ids=repr)
def test_an_infinite_bound_is_refused(parameterization):
    """The bound of Velocity or Epsilon is infinite at t = 0: refused, the density named; another process and no draws too."""
    with pytest.raises(ArgumentError, match="infinite.*log_likelihood.*Nu or W"):
        nz.elbo(denoiser(Mlp(2), FULL, parameterization), X, draws=1)
    with pytest.raises(ArgumentError, match="LinearSigmaVP"):
        nz.elbo(denoiser(Mlp(2), nz.CosineVP()), X, draws=1)
    with pytest.raises(ArgumentError, match="at least 1 draw, got 0"):
        nz.elbo(denoiser(Mlp(2)), X, draws=0)


@pytest.mark.parametrize("solver", [nz.RK45(), nz.Heun(), nz.RungeKutta4()], ids=repr)
def test_a_network_of_nan_stops(solver):
    """A network that answers NaN, everywhere or from some time on, ends in NumericalError: nothing loops."""
    for since in (0.0, 0.7):
        network = Plain(lambda x, c, since=since: torch.where(c > since, torch.nan, 0.1) * x)
        with pytest.raises(NumericalError, match="check the network's weights"):
            nz.ode_likelihood(denoiser(network), X, solver=solver, steps=3)


def test_a_network_without_gradients_is_refused():
    """A divergence of 0 for want of a graph would be a wrong density: no_grad or detach inside, and inference_mode around, are refused."""
    body = Mlp(2)
    refused("no gradient in x", denoiser(Plain(lambda x, c: body(x.detach(), c.flatten()))))
    refused("no gradient in x", denoiser(Plain(torch.no_grad()(lambda x, c: body(x, c.flatten())))), steps=2)
    with torch.inference_mode():
        refused("inference_mode")


def test_nothing_is_left_behind():
    """No graph is kept, no parameter has a gradient, the data and their gradients are untouched."""
    body, x = Mlp(2), draws(PLANE, 3).requires_grad_()
    before = x.detach().clone()
    for parameter in body.parameters():
        parameter.grad = torch.ones_like(parameter)
    found = nz.ode_likelihood(denoiser(body), x, divergence="hutchinson", probes=2)
    bound = nz.elbo(denoiser(body), x, draws=2)
    assert not any(value.requires_grad for value in (found.nats, found.stderr, found.latent, bound))
    assert all(bool((parameter.grad == 1).all()) for parameter in body.parameters())
    assert x.grad is None
    assert torch.equal(x, before)


def test_conditions_reach_the_network():
    """Each example's density is that of its own condition, also where only some of them ask the network."""
    labels = f64([0.0, 0.5, -1.0])
    model = denoiser(Plain(lambda x, c, label: label[:, None] + 0 * x))
    x = f64([[0.2], [0.4], [-0.3]])
    found = nz.log_likelihood(model, x, rtol=1e-8, atol=1e-8, condition={"label": labels})
    expected = torch.distributions.Normal(labels, 1.0).log_prob(x[:, 0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_an_empty_batch_has_no_densities():
    """Of no examples there are none: shapes (0,), for every way."""
    model, x = denoiser(Mlp(2)), X[:0]
    assert nz.log_likelihood(model, x, divergence="hutchinson", probes=2).shape == (0,)
    assert nz.elbo(model, x, draws=2).shape == (0,)
