"""Euler, Heun and their grids: against transport of quantiles, which needs no solver, and EDM's formulas."""

import itertools
import math

import numpy as np
import pytest
import torch

import nearzero as nz
from nearzero.errors import ArgumentError
from nearzero.oracle.base import Exact, ExactShared

WEIGHTS, MEANS, SPREADS = (0.2, 0.5, 0.3), (-1.2, 0.6, 1.9), (0.35, 0.45, 0.25)
SEEDS = range(12)


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


def line():
    """A mixture of three normals on the line, of mean 0.63."""
    return nz.GaussianMixture(f64(WEIGHTS), f64(MEANS)[:, None], f64(SPREADS).square()[:, None, None])


def cdf(x, level):
    """P(x_t <= x) at a level."""
    mean, spread = level.alpha * f64(MEANS), torch.hypot(level.alpha * f64(SPREADS), level.sigma)
    return (f64(WEIGHTS) * torch.special.ndtr((x[:, None] - mean) / spread)).sum(1)


def quantile(p, level):
    """The x with P(x_t <= x) = p, by bisection."""
    low, high = torch.full_like(p, -600.0), torch.full_like(p, 600.0)
    for _ in range(80):
        middle = (low + high) / 2
        below = cdf(middle, level) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def transported(x, process, t, s):
    """Where the probability-flow ODE on the line takes x from t to s: it keeps the distribution function."""
    return quantile(cdf(x[:, 0], process(f64(t))), process(f64(s)))[:, None]


def path(process, parameterization, solver, grid, steps):
    """The states of a path of the exact denoiser."""
    denoiser = line().denoiser(process, parameterization)
    return nz.trajectory(denoiser, (1,), solver=solver, grid=grid, steps=steps, seeds=SEEDS, dtype=torch.float64)


def error(states, process, at=-1):
    """The rms distance of one state from where the ODE itself goes."""
    exact = transported(states[0].x, process, states[0].t, states[at].t)
    return (states[at].x - exact).square().mean().sqrt().item()


def orders(errors):
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


PATHS = {
    "LinearVP": (nz.LinearVP(), nz.Epsilon(), nz.SqrtGrid()),
    "LinearSigmaVP": (nz.LinearSigmaVP(), nz.W(), nz.AngleGrid()),
}
paths = pytest.mark.parametrize(("process", "parameterization", "grid"), PATHS.values(), ids=PATHS)


# ---- order


@paths
@pytest.mark.parametrize(("solver", "least", "most"), [(nz.Euler(), 0.9, 1.2), (nz.Heun(), 1.9, 2.4)], ids=str)
def test_the_order_of_a_solver(process, parameterization, grid, solver, least, most):
    """To t = 0 the error against the transported quantiles falls with order 1 for Euler and 2 for Heun."""
    errors = [error(path(process, parameterization, solver, grid, n), process) for n in (80, 160, 320)]
    assert all(least <= order <= most for order in orders(errors)), orders(errors)
    assert errors[-1] < {nz.Euler(): 0.05, nz.Heun(): 2e-3}[solver]


def test_the_order_of_edm():
    """EDM's Heun on sigma = 80 .. 0.002 with rho = 7 has order 2 at the last positive node."""
    process = nz.KarrasVE()
    errors = [error(path(process, nz.Epsilon(), nz.Heun(), nz.KarrasGrid(), n), process, -2) for n in (64, 128, 256)]
    assert all(1.95 <= order <= 2.2 for order in orders(errors)), orders(errors)
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("sigma_min", [0.01, 0.02])
def test_the_floor_of_edms_last_step(sigma_min):
    """Euler from sigma_min to 0 leaves an error of sigma_min^2 / 2 rms(score), whatever the number of steps."""
    process, grid = nz.KarrasVE(), nz.KarrasGrid(sigma_min=sigma_min)
    states = path(process, nz.Epsilon(), nz.Heun(), grid, 1000)
    x = states[0].x
    x0 = transported(x, process, 80.0, 0.0)
    score = line().score(x0).square().mean().sqrt().item()
    step = line().denoiser(process)(transported(x, process, 80.0, sigma_min), sigma_min).x0
    assert (step - x0).square().mean().sqrt().item() == pytest.approx(sigma_min**2 / 2 * score, rel=0.05)
    assert error(states, process) == pytest.approx(sigma_min**2 / 2 * score, rel=0.05)


def test_euler_in_the_angle_is_exact_where_the_velocity_vanishes():
    """For N(0, 1) data the velocity is 0 on a VP path: Euler and Heun leave x where it is, in one step or in seven."""
    normal = nz.GaussianMixture(f64([1.0]), f64([[0.0]]), f64([[[1.0]]]))
    for steps, solver in itertools.product((1, 7), (nz.Euler(), nz.Heun())):
        denoiser = normal.denoiser(nz.LinearSigmaVP(), nz.Velocity())
        ask = {"grid": nz.UniformGrid(), "steps": steps, "seeds": SEEDS, "dtype": torch.float64}
        first, *_, last = nz.trajectory(denoiser, (1,), solver=solver, **ask)
        torch.testing.assert_close(last.x, first.x, rtol=0, atol=1e-14)


# ---- against EDM's own loop


class Counting(torch.nn.Module):
    """Counts the calls of a network and notes what it is told."""

    def __init__(self, network):
        super().__init__()
        self.network, self.told = network, []

    def forward(self, x, c):
        self.told.append(c[0].item())
        return self.network(x, c)


def counted(denoiser):
    """The same denoiser with a counter."""
    return nz.Denoiser(Counting(denoiser.network), denoiser.process, denoiser.parameterization, denoiser.conditioning)


def algorithm_1(x, N, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    """EDM's Algorithm 1 with sigma = t, as printed, over the exact denoiser."""
    data = line()
    i = np.arange(N)
    steps = (sigma_max ** (1 / rho) + i / (N - 1) * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    t = [*steps.tolist(), 0.0]

    def slope(x, t):
        return (x - data.posterior(x, nz.Level(f64(1.0), f64(t))).x0) / t

    for now, then in itertools.pairwise(t):
        d = slope(x, now)
        after = x + (then - now) * d
        if then != 0:
            after = x + (then - now) * (d / 2 + slope(after, then) / 2)
        x = after
    return x


@pytest.mark.parametrize("steps", [2, 18])
def test_heun_is_edms_algorithm_1(steps):
    """Heun on KarrasGrid equals Algorithm 1 as printed to 1e-10, with any parameterization."""
    for parameterization in (nz.Epsilon(), nz.Karras(0.5), nz.Flow()):
        states = path(nz.KarrasVE(), parameterization, nz.Heun(), nz.KarrasGrid(), steps)
        torch.testing.assert_close(states[-1].x, algorithm_1(states[0].x, steps), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_heun_asks_twice_but_once_on_the_last_step(steps):
    """N steps of Heun cost 2 N - 1 calls, at the node left and at the node reached; Euler's cost N."""
    nodes = nz.KarrasGrid()(steps, nz.KarrasVE()).tolist()[:-1]
    expected = {nz.Euler(): nodes, nz.Heun(): [t for pair in itertools.pairwise(nodes) for t in pair] + nodes[-1:]}
    for solver, times in expected.items():
        denoiser = counted(line().denoiser(nz.KarrasVE()))
        nz.sample(
            denoiser, (1,), solver=solver, grid=nz.KarrasGrid(), steps=steps, seeds=SEEDS, dtype=torch.float64, batch=12
        )
        assert denoiser.network.told == times
        assert len(times) == (steps if solver == nz.Euler() else 2 * steps - 1)


@pytest.mark.parametrize("solver", [nz.Euler(), nz.Heun()], ids=str)
def test_a_step_adds_no_noise_and_writes_into_nothing(solver):
    """An ODE step asks for no noise and no inner stage, and leaves x and F alone even where they are one tensor."""
    denoiser = nz.Denoiser(torch.nn.Identity(), nz.LinearVP(), nz.Epsilon(), nz.Time())
    row_t, row_s = denoiser.rows(f64([0.5, 0.3]))
    assert not solver.noisy(row_t, row_s) and solver.stages(0.5, 0.3, nz.LinearVP()) == ()
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = x.clone()
    aliased = solver.step(lambda x, row: x, x, row_t, row_s, None)
    copied = solver.step(lambda x, row: x.clone(), x, row_t, row_s, None)
    assert torch.equal(x, kept) and torch.equal(aliased, copied) and aliased.data_ptr() != x.data_ptr()


# ---- shared conditions


SHARED = nz.Shared(nz.Time(), interval=0.1, cells=3)


class Pieces:
    """Equal angles in each of the pieces that the edges of SHARED cut from [0, 0.16]: `steps` is a multiple of 4."""

    def __call__(self, steps, process):
        ends = process.clock.u(f64([0.0, *SHARED.edges(process), 0.16]))
        part = torch.arange(steps // 4, dtype=torch.float64) / (steps // 4)
        angles = torch.cat([low + (high - low) * part for low, high in itertools.pairwise(ends)])
        times = torch.cat([process.clock.t(angles), f64([0.16])])
        times[:: steps // 4] = f64([0.0, *SHARED.edges(process), 0.16])  # the edges themselves
        return times.flip(0)


def shared_denoiser(conditioning=SHARED):
    exact = Exact(line(), nz.LinearVP(), nz.Epsilon())
    return nz.Denoiser(ExactShared(exact, SHARED, per_cell=6), nz.LinearVP(), nz.Epsilon(), conditioning)


@torch.no_grad()
def runge_kutta(x, network, steps=48):
    """The shared ODE from t = 0.16 by the classical method of order 4 in the angle, one condition a piece."""
    process = nz.LinearVP()
    for start, stop in itertools.pairwise([0.16, 0.1, 0.2 / 3, 0.1 / 3, 0.0]):
        ends = [math.atan2(*(value.item() for value in reversed(process(f64(t))))) for t in (start, stop)]
        h = (ends[1] - ends[0]) / steps

        def slope(x, u, stop=stop):
            told = stop if stop < 0.1 else process.clock.t(f64(u)).item()  # a cell is told its lower edge
            F = network(x, torch.full((len(x),), told, dtype=torch.float64))
            return (F - math.sin(u) * x) / math.cos(u)  # -sigma x0 + alpha eps

        u = ends[0]
        for _ in range(steps):
            a = slope(x, u)
            b = slope(x + h / 2 * a, u + h / 2)
            c = slope(x + h / 2 * b, u + h / 2)
            x = x + h / 6 * (a + 2 * b + 2 * c + slope(x + h * c, u + h))
            u += h
    return x


class Told(nz.Shared):
    """Shared without the rule for stages: every stage is told its own cell."""

    def stage(self, t, level, leaving, leaving_level=None):
        return super().stage(t, level, t, level)


def shared_errors(conditioning):
    errors, denoiser = [], shared_denoiser(conditioning)
    ask = {"solver": nz.Heun(), "grid": Pieces(), "seeds": range(6), "dtype": torch.float64}
    exact = None
    for steps in (32, 64, 128):
        states = nz.trajectory(denoiser, (1,), steps=steps, **ask)
        exact = runge_kutta(states[0].x, denoiser.network) if exact is None else exact
        errors.append((states[-1].x - exact).square().mean().sqrt().item())
    return errors


@pytest.mark.slow
def test_heun_keeps_its_order_over_shared_cells():
    """With Shared(Time) on a grid that holds the edges Heun goes to the shared ODE's own solution with order 2; told the cell of each stage instead it falls to order 1."""
    kept = orders(shared_errors(SHARED))
    assert all(1.9 <= order <= 2.3 for order in kept), kept
    lost = orders(shared_errors(Told(nz.Time(), interval=0.1, cells=3)))
    assert lost[-1] < 1.5, lost


# ---- grids


@pytest.mark.parametrize(("sigma_min", "sigma_max", "rho"), [(0.002, 80.0, 7.0), (0.02, 50.0, 3.0), (0.1, 2.0, 1.0)])
@pytest.mark.parametrize("process", [nz.KarrasVE(), nz.SongVE(), nz.LinearVP(), nz.LinearSigmaVP()], ids=str)
def test_karras_grid_is_edms_equation_5(sigma_min, sigma_max, rho, process):
    """N levels sigma / alpha by EDM's Eq. 5 in numpy, then exactly 0: N + 1 decreasing times, for any process."""
    for steps in (2, 5, 18):
        times = nz.KarrasGrid(sigma_min, sigma_max, rho)(steps, process)
        assert times.shape == (steps + 1,) and times[-1].item() == 0 and bool((times.diff() < 0).all())
        alpha, sigma = process(times[:-1])
        expected = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho
        np.testing.assert_allclose((sigma / alpha).numpy(), expected, rtol=1e-11)


def test_karras_grid_of_one_step():
    """One step goes from sigma_max to 0."""
    assert nz.KarrasGrid()(1, nz.KarrasVE()).tolist() == pytest.approx([80.0, 0.0], rel=1e-14, abs=0)


@pytest.mark.parametrize("process", [nz.LinearVP(), nz.KarrasVE(), nz.SubVP(), nz.SongVE(end=100.0)], ids=str)
@pytest.mark.parametrize("last", [1e-3, 1e-5])
def test_log_snr_grid_has_equal_steps(process, last):
    """From the end exactly to `last` the log-SNR grows by equal steps, then comes exactly 0."""
    for steps in (2, 9, 50):
        times = nz.LogSNRGrid(last)(steps, process)
        assert times.shape == (steps + 1,) and (times[0].item(), times[-1].item()) == (process.end, 0.0)
        assert times[-2].item() == pytest.approx(last, rel=1e-9)
        alpha, sigma = process(times[:-1])
        logsnr = (2 * (alpha / sigma).log()).numpy()
        np.testing.assert_allclose(logsnr, np.linspace(logsnr[0], logsnr[-1], steps), rtol=0, atol=1e-9)
        assert bool((times.diff() < 0).all())
    assert nz.LogSNRGrid(last)(1, process).tolist() == [process.end, 0.0]


@pytest.mark.parametrize(
    "process", [nz.LinearSigmaVP(), nz.LinearVP(), nz.CosineVP(), nz.StraightPath(), nz.KarrasVE()], ids=str
)
def test_angle_grid_has_equal_angles(process):
    """The angle atan2(sigma, alpha) falls by equal steps from exactly the end to exactly 0."""
    for steps in (1, 4, 33):
        times = nz.AngleGrid()(steps, process)
        assert times.shape == (steps + 1,) and (times[0].item(), times[-1].item()) == (process.end, 0.0)
        alpha, sigma = (value.numpy() for value in process(times))
        np.testing.assert_allclose(
            np.arctan2(sigma, alpha), np.linspace(np.arctan2(sigma[0], alpha[0]), 0, steps + 1), rtol=0, atol=1e-12
        )
        assert bool((times.diff() < 0).all())


def test_angle_grid_on_full_diffusion_is_the_sine():
    """With sigma = t the times are sin(pi / 2 (1 - i / n))."""
    expected = np.sin(np.pi / 2 * (1 - np.arange(11) / 10))
    np.testing.assert_allclose(nz.AngleGrid()(10, nz.LinearSigmaVP()).numpy(), expected, rtol=0, atol=1e-15)


# ---- refusals


@pytest.mark.parametrize("grid", [nz.KarrasGrid(), nz.LogSNRGrid(), nz.AngleGrid()], ids=str)
@pytest.mark.parametrize("steps", [0, -1, 1.5, True, None])
def test_bad_steps_are_refused(grid, steps):
    """A number of steps that is not a positive integer is refused by value."""
    with pytest.raises(ArgumentError, match=f"at least 1 step, got {steps}"):
        grid(steps, nz.KarrasVE())


@pytest.mark.parametrize(
    "values", [(0.0, 80.0, 7.0), (80.0, 0.002, 7.0), (0.002, math.inf, 7.0), (0.002, 80.0, 0.0), (math.nan, 80.0, 7.0)]
)
def test_bad_levels_are_refused(values):
    """KarrasGrid refuses levels that do not increase, an infinite one and rho of 0, with all three values."""
    with pytest.raises(ArgumentError, match=", ".join(map(str, values))):
        nz.KarrasGrid(*values)


def test_a_level_beyond_the_end_is_refused():
    """KarrasGrid on a process that ends before sigma_max is refused with both levels; a process without end signal is not."""
    with pytest.raises(ArgumentError, match="sigma_max 80 lies beyond KarrasVE's end, 50"):
        nz.KarrasGrid()(5, nz.KarrasVE(end=50.0))
    with pytest.raises(ArgumentError, match="sigma_max 200 lies beyond LinearVP's end, 152"):
        nz.KarrasGrid(sigma_max=200.0)(5, nz.LinearVP())
    assert nz.KarrasGrid(sigma_max=1e6)(5, nz.StraightPath())[0].item() < 1


def test_a_log_snr_without_end_is_refused():
    """LogSNRGrid refuses a process that ends without signal, naming AngleGrid, and a last time that is not inside."""
    with pytest.raises(ArgumentError, match="LinearSigmaVP ends without signal.*AngleGrid"):
        nz.LogSNRGrid()(5, nz.LinearSigmaVP())
    with pytest.raises(ArgumentError, match="last time 1 must lie below the end 1"):
        nz.LogSNRGrid(last=1.0)(5, nz.LinearVP())
    for last in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ArgumentError, match=f"positive last time, got {last}"):
            nz.LogSNRGrid(last)
