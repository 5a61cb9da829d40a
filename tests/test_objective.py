"""Regression: DDPM's simple loss written out, and analytic expectations."""

import math

import numpy as np
import pytest
import torch

import nearzero as nz

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
