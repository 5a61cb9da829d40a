"""DDPM-r's penalty: against a naive computation, one example after the other."""

import math

import pytest
import torch

import nearzero as nz
from nearzero.errors import ArgumentError

DDPM = nz.DiscreteVP.linear(steps=50)


class Network(torch.nn.Module):
    """A smooth network of x and c with four weights, which counts its calls and keeps what it is told."""

    def __init__(self, hears=True):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.tensor([0.7, 0.3, -0.4, 0.2], dtype=torch.float64))
        self.hears, self.told = hears, []

    def forward(self, x, c):
        self.told.append(c.clone())
        return self.answer(x, c.reshape(-1, *(1,) * (x.ndim - 1)))

    def answer(self, x, c):
        a, b, d, e = self.weights
        return torch.tanh(a * x + (b * torch.sin(c) + e * x * c / 50 if self.hears else 0)) + d


def batch(count=7, seed=0):
    """x0 and eps (count, 2, 3) and u in (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, count, 2, 3, generator=generator, dtype=torch.float64)
    return x0, torch.rand(count, generator=generator, dtype=torch.float64), eps


def naive(network, process, form, steps, times, x0, eps, weight, tell):
    """The loss of each example with weight 1 on F: |F - F*|^2 / D + weight ((|F - F'| / 1 timestep)^2 / D)."""
    losses = []
    for x0_i, eps_i, t in zip(x0, eps, times, strict=True):
        beside = t + 1 / steps if t + 1 / steps < 1 + 1e-9 else t - 1 / steps

        def read(t):
            return process(torch.tensor(t, dtype=torch.float64))

        alpha, sigma = read(t)
        x = alpha * x0_i + sigma * eps_i
        target = eps_i if isinstance(form, nz.Epsilon) else alpha * eps_i - sigma * x0_i
        F, G = (network.answer(x, torch.tensor(tell(time), dtype=torch.float64)) for time in (t, beside))
        K = (F - G).flatten().norm() / (abs(t - beside) * steps)
        losses.append((F - target).square().mean() + weight * K**2 / x.numel())
    return torch.stack(losses)


CASES = {
    "nodes, eps": (DDPM, nz.Epsilon(), nz.Timestep(50), nz.DiscreteTimes(), 50, lambda t: t * 50 - 1),
    "nodes, v": (DDPM, nz.Velocity(), nz.Time(), nz.DiscreteTimes(), 50, lambda t: t),
    "continuous": (
        nz.LinearVP(),
        nz.Epsilon(),
        nz.Time(1000.0),
        nz.UniformTimes(),
        1000,
        lambda t: 1000 * t,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weight", [0.01, 3.0])
def test_the_penalty_is_the_naive_one(case, weight):
    """Loss and gradient are those of the regression plus weight K(t, t')^2 / D with t' the next timestep, at the last the one before, example by example."""
    process, form, conditioning, times, steps, tell = CASES[case]
    x0, u, eps = batch()
    u[0], u[1] = 1 - 1e-5, 1e-5  # the last timestep and the first
    network = Network()
    denoiser = nz.Denoiser(network, process, form, conditioning)
    loss = nz.LipschitzPenalty(nz.Regression(times, nz.Simple()), weight)(denoiser, x0, u, eps)
    t = [((value * steps // 1) + 1) / steps if steps == 50 else value for value in u.tolist()]
    expected = naive(network, process, form, steps, t, x0, eps, weight, tell)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    (found,) = torch.autograd.grad(loss.sum(), network.weights)
    (gradient,) = torch.autograd.grad(expected.sum(), network.weights)
    torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-10)
    plain = nz.Regression(times, nz.Simple())(denoiser, x0, u, eps)
    assert bool((loss > plain).all())


def test_the_penalty_is_linear_in_its_weight():
    """loss(w) = regression + w penalty: three weights lie on a line, whatever the regression weighs."""
    x0, u, eps = batch()
    denoiser = nz.Denoiser(Network(), DDPM, nz.Epsilon(), nz.Timestep(50))
    for weighting in (nz.Simple(), nz.MinSNR()):
        regression = nz.Regression(nz.DiscreteTimes(), weighting)
        plain, one, four = (
            regression(denoiser, x0, u, eps),
            *(nz.LipschitzPenalty(regression, weight)(denoiser, x0, u, eps) for weight in (1.0, 4.0)),
        )
        torch.testing.assert_close(four - plain, 4 * (one - plain), rtol=1e-10, atol=1e-12)


def test_a_network_that_ignores_the_condition_pays_nothing():
    """Where F does not change with c the loss and its gradient are the regression's, bit for bit; where it does they are not."""
    x0, u, eps = batch()
    for hears in (False, True):
        network = Network(hears)
        denoiser = nz.Denoiser(network, DDPM, nz.Epsilon(), nz.Timestep(50))
        regression = nz.Regression(nz.DiscreteTimes(), nz.Simple())
        losses = [one(denoiser, x0, u, eps) for one in (regression, nz.LipschitzPenalty(regression, 0.5))]
        gradients = [torch.autograd.grad(loss.sum(), network.weights)[0] for loss in losses]
        assert torch.equal(*losses) is not hears
        assert torch.equal(*gradients) is not hears


def test_a_shared_cell_pays_nothing_inside():
    """With E-TSDM's cells the penalty is 0 but at the last node of a cell and above the interval, node by node."""
    shared = nz.Shared(nz.Timestep(50), interval=20, cells=4)
    denoiser = nz.Denoiser(Network(), DDPM, nz.Epsilon(), shared)
    u = (torch.arange(50, dtype=torch.float64) + 0.5) / 50
    generator = torch.Generator().manual_seed(3)
    x0, eps = torch.randn(2, 50, 2, 3, generator=generator, dtype=torch.float64)
    regression = nz.Regression(nz.DiscreteTimes(), nz.Simple())
    penalty = nz.LipschitzPenalty(regression, 1.0)(denoiser, x0, u, eps) - regression(denoiser, x0, u, eps)
    assert [k for k, value in enumerate(penalty.tolist()) if value != 0] == [4, 9, 14, *range(19, 50)]


def test_the_penalty_asks_twice_about_the_same_picture():
    """Two calls of the network: at the nodes and at those beside them, the last one's before it; the regression makes one."""
    x0, _, eps = batch(50)
    u = (torch.arange(50, dtype=torch.float64) + 0.5) / 50
    network = Network()
    denoiser = nz.Denoiser(network, DDPM, nz.Epsilon(), nz.Timestep(50))
    regression = nz.Regression(nz.DiscreteTimes(), nz.Simple())
    regression(denoiser, x0, u, eps)
    assert len(network.told) == 1
    nz.LipschitzPenalty(regression, 0.1)(denoiser, x0, u, eps)
    assert len(network.told) == 3
    assert network.told[1].tolist() == list(range(50))
    assert network.told[2].tolist() == [*range(1, 50), 48]


@pytest.mark.parametrize("steps", [10, 50, 100, 1000, 4000])
def test_the_timestep_beside_a_node_is_a_node(steps):
    """The time beside node k is the float of node k + 1 itself, so that a cell's right-closed edge is seen on its own side."""
    process = nz.DiscreteVP.linear(steps)
    network = Network()
    denoiser = nz.Denoiser(network, process, nz.Epsilon(), nz.Time())
    u = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    x0 = eps = torch.zeros(steps, 1, dtype=torch.float64)
    nz.LipschitzPenalty(nz.Regression(nz.DiscreteTimes(), nz.Simple()), 0.1)(denoiser, x0, u, eps)
    k = torch.tensor([*range(2, steps + 1), steps - 1], dtype=torch.float64)
    assert torch.equal(network.told[1], k / steps)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_a_weight_that_is_not_positive_is_refused(weight):
    """A weight of 0 or less, infinite or NaN is refused by value."""
    with pytest.raises(ArgumentError, match=f"positive weight, got {weight}"):
        nz.LipschitzPenalty(nz.Regression(nz.DiscreteTimes(), nz.Simple()), weight)


@pytest.mark.parametrize("form", [nz.Nu(), nz.W()], ids=["Nu", "W"])
@pytest.mark.parametrize("weight", [0.01, 3.0])
def test_the_penalty_over_the_variational_bound(form, weight):
    """Loss and gradient are FullDiffusion's bound plus weight K(t, t')^2 / D, K over 1/1000 of the range and written out example by example."""
    x0, u, eps = batch()
    u[0], u[1] = 1 - 1e-5, 1e-9
    network = Network()
    denoiser = nz.Denoiser(network, nz.LinearSigmaVP(), form, nz.Time())
    bound = nz.VariationalBound(nz.UniformTimes())
    loss = nz.LipschitzPenalty(bound, weight)(denoiser, x0, u, eps)
    plain = bound(denoiser, x0, u, eps)
    extra = []
    for x0_i, eps_i, t in zip(x0, eps, u.tolist(), strict=True):
        x = math.sqrt(1 - t * t) * x0_i + t * eps_i
        beside = t + 1e-3 if t + 1e-3 <= 1 else t - 1e-3
        F, G = (network.answer(x, torch.tensor(time, dtype=torch.float64)) for time in (t, beside))
        extra.append(weight * (F - G).square().sum() / 6)
    expected = plain + torch.stack(extra)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    (found,) = torch.autograd.grad(loss.sum(), network.weights)
    (gradient,) = torch.autograd.grad(expected.sum(), network.weights)
    torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-10)
    assert bool((loss > plain).all())


@pytest.mark.parametrize("form", [nz.Epsilon(), nz.W()], ids=["Regression", "VariationalBound"])
def test_what_the_objectives_saw(form):
    """evaluate gives x_t = alpha x0 + sigma eps, its time and the network's answer there, with the losses of a plain call, penalised or not."""
    x0, u, eps = batch()
    network, process = Network(), nz.LinearSigmaVP()
    denoiser = nz.Denoiser(network, process, form, nz.Time())
    bounded = isinstance(form, nz.W)
    plain = nz.VariationalBound(nz.UniformTimes()) if bounded else nz.Regression(nz.UniformTimes(), nz.Simple())
    for objective in (plain, nz.LipschitzPenalty(plain, 0.5)):
        loss, x, t, F = objective.evaluate(denoiser, x0, u, eps)
        assert torch.equal(loss, objective(denoiser, x0, u, eps)) and torch.equal(t, u)
        alpha, sigma = ((1 - u * u).sqrt()[:, None, None], u[:, None, None])
        torch.testing.assert_close(x, alpha * x0 + sigma * eps, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(F, network.answer(x, u[:, None, None]), rtol=1e-12, atol=1e-15)
