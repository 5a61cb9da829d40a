"""Agreement with diffusers' Euler, Heun and EDM schedulers in float32, at the same noise levels and from the same noise."""

import diffusers
import pytest
import torch

import nearzero as nz

B, SHAPE = 4, (1, 5, 5)


class Ripple(torch.nn.Module):
    """A network that is neither linear in x nor in what it is told, and records the latter."""

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(self, x, c):
        self.told.append(c[0].item())
        return 0.6 * torch.tanh(x) + 0.3 * torch.sin(c / 90).reshape(-1, 1, 1, 1)


class Levels:
    """A grid of given noise levels over KarrasVE, whose time is the noise level."""

    def __init__(self, sigmas):
        self.sigmas = sigmas

    def __call__(self, steps, process):
        return self.sigmas


def noise():
    return torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in range(B)])


def theirs(scheduler, network, steps, start):
    """The usual loop over a scheduler, and every noise level that it stops at."""
    scheduler.set_timesteps(steps)
    x = noise() * start(scheduler)
    for t in scheduler.timesteps:
        F = network(scheduler.scale_model_input(x, t), t.to(torch.float32).expand(B))
        x = scheduler.step(F, t, x, return_dict=False)[0]
    return x


def ours(network, solver, sigmas):
    """The DDPM network through EDM's process, at these noise levels."""
    process = nz.KarrasVE(end=sigmas[0].item())
    trained = nz.Denoiser(network, nz.DiscreteVP.linear(), nz.Epsilon(), nz.Timestep())
    seen = nz.Rescaled(trained, process)
    steps = len(sigmas) - 1
    return nz.sample(seen, SHAPE, solver=solver, grid=Levels(sigmas), steps=steps, seeds=range(B))


def levels(grid, steps):
    """The exact noise levels of a grid of timesteps, as float64 sigma / alpha."""
    times = grid(steps, nz.DiscreteVP.linear())
    alpha, sigma = nz.DiscreteVP.linear()(times)
    return sigma / alpha


CASES = [
    (diffusers.EulerDiscreteScheduler, nz.Euler(), "linspace", 10),
    (diffusers.EulerDiscreteScheduler, nz.Euler(), "trailing", 20),
    (diffusers.HeunDiscreteScheduler, nz.Heun(), "trailing", 20),
    (diffusers.HeunDiscreteScheduler, nz.Heun(), "linspace", 10),
]


@pytest.mark.parametrize(("scheduler", "solver", "spacing", "steps"), CASES, ids=lambda value: str(value)[:40])
def test_euler_and_heun_of_a_ddpm_network(scheduler, solver, spacing, steps):
    """Rescaled to sigma = t, Euler and Heun are EulerDiscrete and HeunDiscrete: samples to a relative 1e-4, the network told the same."""
    a, b = Ripple(), Ripple()
    made = scheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing=spacing)
    expected = theirs(made, a, steps, lambda scheduler: scheduler.sigmas[0].item())
    found = ours(b, solver, levels(nz.TimestepGrid(spacing), steps))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert b.told == pytest.approx(a.told, abs=1e-3)
    assert len(a.told) == (steps if solver == nz.Euler() else 2 * steps - 1)


def test_euler_of_edms_preconditioning():
    """Euler over KarrasVE on KarrasGrid with Karras and LogSigma is EDMEulerScheduler to a relative 1e-4, told the same numbers.

    EDMEulerScheduler scales its first noise by sqrt(80^2 + 1), where EDM and this library take 80: both start from 80 here.
    """
    a, b = Ripple(), Ripple()
    made = diffusers.EDMEulerScheduler()
    assert made.init_noise_sigma == pytest.approx((80**2 + 1) ** 0.5)
    made.set_timesteps(12)
    expected, sigmas = theirs(made, a, 12, lambda scheduler: 80.0), made.sigmas.double()
    denoiser = nz.Denoiser(b, nz.KarrasVE(), nz.Karras(0.5), nz.LogSigma())
    assert torch.allclose(nz.KarrasGrid()(12, nz.KarrasVE()), sigmas, rtol=1e-5, atol=0)
    found = nz.sample(denoiser, SHAPE, solver=nz.Euler(), grid=nz.KarrasGrid(), steps=12, seeds=range(B))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert b.told == pytest.approx(a.told, abs=1e-4)
