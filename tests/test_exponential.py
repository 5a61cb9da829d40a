"""DPM-Solver and DPM-Solver++: orders against transport of quantiles, published formulas and budgets, diffusers."""

import dataclasses
import itertools
import math

import mpmath
import numpy as np
import pytest
import torch

import nearzero as nz
from nearzero.errors import ArgumentError
from nearzero.level import Row
from nearzero.oracle.base import Exact, ExactShared
from nearzero.solvers import begin
from nearzero.solvers.exponential import DDIM, DPMSolver, DPMSolverPP, _excess

SOLVERS = [DPMSolver(1), DPMSolver(2), DPMSolver(3), DPMSolverPP(), DPMSolverPP(noise=True), DPMSolverPP(1)]
every = pytest.mark.parametrize("solver", SOLVERS, ids=str)
SEEDS = range(12)
WEIGHTS, MEANS, SPREADS = (0.2, 0.5, 0.3), (-1.2, 0.6, 1.9), (0.35, 0.45, 0.25)


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


class Times:
    """The grid of these times."""

    def __init__(self, *times):
        self.times = f64(times)

    def __call__(self, steps, process):
        assert steps == len(self.times) - 1
        return self.times


class SqrtTo:
    """Equal steps in sqrt(t) from the end to 1e-3, `steps` times, then 0."""

    def __call__(self, steps, process):
        roots = torch.linspace(math.sqrt(process.end), math.sqrt(1e-3), steps, dtype=torch.float64)
        times = roots**2
        times[0] = process.end
        return torch.cat([times, times.new_zeros(1)])


def run(
    denoiser, solver, grid, steps=None, *, call=nz.trajectory, seeds=SEEDS, dtype=torch.float64, shape=(1,), **more
):
    return call(denoiser, shape, solver=solver, grid=grid, steps=steps, seeds=seeds, dtype=dtype, **more)


def rms(x):
    return x.square().mean().sqrt().item()


def orders(errors):
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


class Spy(torch.nn.Module):
    """Notes what a network is told."""

    def __init__(self, network=None):
        super().__init__()
        self.network, self.told = network, []

    def forward(self, x, c):
        self.told.append(c[0].item())
        return 0.3 * x if self.network is None else self.network(x, c)


# ---- order


def line():
    """A mixture of three normals on the line, of mean 0.63."""
    return nz.GaussianMixture(f64(WEIGHTS), f64(MEANS)[:, None], f64(SPREADS).square()[:, None, None])


def cdf(x, level):
    """P(x_t <= x) at a level."""
    mean, spread = level.alpha * f64(MEANS), torch.hypot(level.alpha * f64(SPREADS), level.sigma)
    return (f64(WEIGHTS) * torch.special.ndtr((x[:, None] - mean) / spread)).sum(1)


def transported(x, process, t, s):
    """Where the ODE on the line takes x from t to s: it keeps the distribution function, here inverted by bisection."""
    p, level = cdf(x[:, 0], process(f64(t))), process(f64(s))
    low, high = torch.full_like(p, -600.0), torch.full_like(p, 600.0)
    for _ in range(80):
        middle = (low + high) / 2
        below = cdf(middle, level) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return ((low + high) / 2)[:, None]


def errors_on_the_line(process, parameterization, solver, grid, counts):
    """The rms errors at the last positive node, for each number of steps before it."""
    denoiser, errors = line().denoiser(process, parameterization), []
    for count in counts:
        first, *_, last, _ = run(denoiser, solver, grid, count + 1)
        errors.append(rms(last.x - transported(first.x, process, first.t, last.t)))
    return errors


PATHS = {
    "log-SNR": (nz.LinearVP(), nz.Epsilon(), nz.LogSNRGrid()),
    "sqrt": (nz.LinearVP(), nz.Velocity(), SqrtTo()),
    "KarrasVE": (nz.KarrasVE(), nz.Karras(), nz.LogSNRGrid(2e-3)),
    "SubVP": (nz.SubVP(), nz.Flow(), nz.LogSNRGrid()),
}
ORDERS = [(DPMSolver(1), 0.97, 1.05), (DPMSolver(2), 1.95, 2.1), (DPMSolver(3), 2.9, 3.1), (DPMSolverPP(), 1.95, 2.2)]


@pytest.mark.parametrize(("process", "parameterization", "grid"), PATHS.values(), ids=PATHS)
@pytest.mark.parametrize(("solver", "least", "most"), ORDERS, ids=str)
def test_the_order_of_a_solver(process, parameterization, grid, solver, least, most):
    """To the last positive time DPM-Solver-k has order k and DPM-Solver++ 2M order 2, against the transported quantiles."""
    errors = errors_on_the_line(process, parameterization, solver, grid, (40, 80, 160))
    assert all(least <= order <= most for order in orders(errors)), orders(errors)
    assert errors[-1] < {1: 2e-2, 2: 6e-4, 3: 2e-6}[solver.order]


@pytest.mark.parametrize("process", [nz.CosineVP(), nz.ZeroTerminalSNR(nz.LinearVP())], ids=str)
@pytest.mark.parametrize("solver", [DPMSolver(2), DPMSolver(3), DPMSolverPP()], ids=str)
def test_the_first_step_without_signal(process, solver):
    """From alpha = 0 the first step is DDIM's, and the second of DPM-Solver++ too; DPM-Solver-3 then has order 2, of DDIM's one step."""
    denoiser, grid = line().denoiser(process, nz.Velocity()), nz.AngleGrid()
    ours, ddim = (run(denoiser, chosen, grid, 8) for chosen in (solver, DDIM()))
    count = 2 if isinstance(solver, DPMSolverPP) else 1
    for here, there in zip(ours[: count + 1], ddim, strict=False):
        torch.testing.assert_close(here.x, there.x, rtol=0, atol=1e-14)
    assert rms(ours[count + 1].x - ddim[count + 1].x) > 1e-4
    if solver == DPMSolver(3):
        errors = errors_on_the_line(process, nz.Velocity(), solver, grid, (20, 40, 80))
        assert all(1.85 < order < 2.15 for order in orders(errors)), orders(errors)


def moments(solver, steps, mean=0.5, variance=0.25):
    """Errors in mean and variance on normal data at the last positive node, exactly: x holds what multiplies 1, the first noise and each later one."""
    process = nz.LinearVP()
    path = nz.Denoiser(Spy(), process, nz.Epsilon(), nz.Time()).rows(nz.LogSNRGrid()(steps + 1, process))[:-1]
    one, first, *later = torch.eye(steps + 2, dtype=torch.float64)

    def network(x, row):
        return row.sigma * (x - row.alpha * mean * one) / (row.alpha**2 * variance + row.sigma**2)

    solver = begin(solver, steps)
    x = path[0].alpha * mean * one + math.sqrt(path[0].alpha ** 2 * variance + path[0].sigma ** 2) * first
    for (row_t, row_s), noise in zip(itertools.pairwise(path), later, strict=True):
        x = solver.step(network, x, row_t, row_s, noise if solver.noisy(row_t, row_s) else None)
    exact = path[-1].alpha ** 2 * variance + path[-1].sigma ** 2
    return x[0].item() - path[-1].alpha * mean, x[1:].square().sum().item() - exact


@pytest.mark.parametrize(
    ("solver", "least", "most"), [(DPMSolverPP(noise=True), 1.9, 2.1), (DPMSolverPP(1, noise=True), 0.85, 1.1)], ids=str
)
def test_the_weak_order_of_the_sde_form(solver, least, most):
    """On N(.5, .25) data the mean is exact and the variance's error falls with order 2 (1 for order 1), by the exact recursion."""
    means, variances = zip(*(moments(solver, steps) for steps in (40, 80, 160, 320)), strict=True)
    assert max(map(abs, means)) < 1e-12
    assert all(least <= order <= most for order in orders(variances)), orders(variances)


# ---- formulas


@pytest.mark.parametrize("process", [nz.LinearVP(), nz.KarrasVE(), nz.SubVP(), nz.StraightPath()], ids=str)
def test_order_one_is_ddim(process):
    """DPMSolver(1) and DPMSolverPP(1) are DDIM(0), DPMSolverPP(1, noise) is DDIM(1), and DPMSolverPP without `begin` is of order 1: relative 1e-12."""
    denoiser = line().denoiser(process, nz.Flow())

    class Forgetful:
        def __init__(self, solver):
            self.stages, self.noisy, self.step = solver.stages, solver.noisy, solver.step

    for eta, solvers in (
        (0.0, (DPMSolver(1), DPMSolverPP(1), Forgetful(DPMSolverPP()))),
        (1.0, (DPMSolverPP(1, noise=True), Forgetful(DPMSolverPP(noise=True)))),
    ):
        expected = run(denoiser, DDIM(eta), nz.UniformGrid(), 9)
        for solver in solvers:
            for here, there in zip(run(denoiser, solver, nz.UniformGrid(), 9), expected, strict=True):
                torch.testing.assert_close(here.x, there.x, rtol=1e-12, atol=1e-12)


def by_the_paper(x, t, s, eps, process, order):
    """DPM-Solver-k as published (Algorithms 1 and 2), with e^h - 1 as printed; lambda = log(alpha / sigma)."""

    def level(time):
        alpha, sigma = (value.item() for value in process(f64(time)))
        return alpha, sigma, math.log(alpha / sigma)

    def time(lam):
        return process.time_of_logsnr(f64(2 * lam)).item()

    (a_t, _, l_t), (a_s, s_s, l_s) = level(t), level(s)
    h, e = l_s - l_t, eps(x, t)
    if order == 2:
        s_1 = time(l_t + h / 2)
        a_1, s1, _ = level(s_1)
        u = a_1 / a_t * x - s1 * (math.exp(h / 2) - 1) * e
        return a_s / a_t * x - s_s * (math.exp(h) - 1) * (e + (eps(u, s_1) - e))
    r1, r2 = 1 / 3, 2 / 3
    s_1, s_2 = time(l_t + r1 * h), time(l_t + r2 * h)
    (a_1, s1, _), (a_2, s2, _) = level(s_1), level(s_2)
    u_1 = a_1 / a_t * x - s1 * (math.exp(r1 * h) - 1) * e
    D_1 = eps(u_1, s_1) - e
    u_2 = a_2 / a_t * x - s2 * (math.exp(r2 * h) - 1) * e
    u_2 = u_2 - s2 * r2 / r1 * ((math.exp(r2 * h) - 1) / (r2 * h) - 1) * D_1
    D_2 = eps(u_2, s_2) - e
    return a_s / a_t * x - s_s * (math.exp(h) - 1) * e - s_s / r2 * ((math.exp(h) - 1) / h - 1) * D_2


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("process", [nz.LinearVP(), nz.KarrasVE(), nz.SubVP()], ids=str)
def test_dpm_solver_is_the_papers(process, order):
    """Whatever the network predicts, a path of DPM-Solver-2 or -3 is the published one in eps, to 1e-9; the last step gives x0."""
    data, grid = line(), nz.LogSNRGrid(1e-2)
    denoiser = data.denoiser(process, nz.Epsilon())

    def eps(x, t):
        return denoiser(x, t).eps

    for parameterization in (nz.Epsilon(), nz.Denoised(), nz.Flow()):
        path = run(data.denoiser(process, parameterization), DPMSolver(order), grid, 6)
        for here, after in itertools.pairwise(path[:-1]):
            expected = by_the_paper(here.x, here.t, after.t, eps, process, order)
            torch.testing.assert_close(after.x, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(path[-1].x, denoiser(path[-2].x, path[-2].t).x0, rtol=1e-9, atol=1e-9)


SPANS = [1e-300, 1e-30, 0.1, 0.36, 0.37, 0.9, 1 - 1e-3, 1 - 1e-6, 1 - 1e-9, 1 - 2**-50]


@pytest.mark.parametrize("s", SPANS)
def test_what_a_stage_weighs(s):
    """From sigma = 1 to any s of KarrasVE the weights of the stages are the published ones to a relative 1e-12, from tiny steps to e^h beyond float64."""
    process, denoiser = nz.KarrasVE(), nz.Denoiser(Spy(), nz.KarrasVE(), nz.Epsilon(), nz.Time())
    mpmath.mp.dps = 60

    def weight(sigma, factor):
        h = -mpmath.log(mpmath.mpf(sigma))
        return float(-factor * mpmath.mpf(sigma) * ((mpmath.exp(h) - 1) / h - 1))

    for order in (2, 3):
        solver = DPMSolver(order)
        row_t, *inner, row_s = denoiser.rows(f64([1.0, *solver.stages(1.0, s, process), s]))
        for stage in range(1, order):
            seen = []

            def eps(x, row, stage=stage, inner=inner, seen=seen):
                seen.append(x.item())
                return torch.full_like(x, float(row == inner[stage - 1]))

            x_s = solver.step(eps, f64([0.0]), row_t, row_s, None, inner).item()
            if order == 2:
                assert x_s == pytest.approx(-(1 - s), rel=1e-12)  # sigma_s (e^h - 1)
            elif stage == 2:
                assert x_s == pytest.approx(weight(s, mpmath.mpf(3) / 2), rel=1e-12)
            else:
                assert x_s == 0 and seen[2] == pytest.approx(weight(inner[1].sigma, 2), rel=1e-12)


@pytest.mark.parametrize("noise", [False, True])
def test_dpm_solver_plus_plus_is_the_papers(noise):
    """Steps of DPM-Solver++ 2M are x_s = c x - alpha_s (e^-h - 1) D (ODE, h doubled in the SDE) with D = x0 + (x0 - x0') / (2 r), as published."""
    process = nz.SubVP()
    denoiser = nz.Denoiser(Spy(), process, nz.Denoised(), nz.Time())
    path = denoiser.rows(f64([0.9, 0.7, 0.4, 0.3]))
    estimates = [f64([value]) for value in (0.3, -0.7, 1.1)]
    solver, x, z = begin(DPMSolverPP(noise=noise), 3), f64([0.8]), f64([0.6])
    lam = [math.log(row.alpha / row.sigma) for row in path]
    expected = x
    for i, (row_t, row_s) in enumerate(itertools.pairwise(path)):
        x0, h = estimates[i], lam[i + 1] - lam[i]
        D = x0 if i == 0 else x0 + (x0 - estimates[i - 1]) * h / (lam[i] - lam[i - 1]) / 2
        double = 2 * h if noise else h
        expected = row_s.sigma / row_t.sigma * math.exp(h - double) * expected
        expected = expected - row_s.alpha * (math.exp(-double) - 1) * D
        if noise:
            expected = expected + row_s.sigma * math.sqrt(1 - math.exp(-2 * h)) * z
        x = solver.step(lambda x, row, x0=x0: x0, x, row_t, row_s, z if noise else None)
        torch.testing.assert_close(x, expected, rtol=1e-12, atol=0)


# ---- every process to exactly 0


PROCESSES = [
    *(nz.LinearVP(), nz.QuadraticVP(), nz.CosineVP(), nz.ShiftedCosine(), nz.LinearSigmaVP(), nz.DiscreteVP.linear()),
    *(nz.ZeroTerminalSNR(nz.LinearVP()), nz.ZeroTerminalSNR(nz.DiscreteVP.linear()), nz.DiscreteVP.cosine()),
    *(nz.SubVP(), nz.StraightPath(), nz.SongVE(), nz.KarrasVE()),
]
PARAMETERIZATIONS = [nz.Epsilon(), nz.Denoised(), nz.Velocity(), nz.Flow(), nz.Karras(), nz.Nu(), nz.W()]
POINT = 0.7


class Point(torch.nn.Module):
    """The network whose estimate of x0 is the point."""

    def __init__(self, process, parameterization):
        super().__init__()
        self.process, self.parameterization = process, parameterization

    def forward(self, x_in, c):
        level = self.process(c[:1])
        A, B, _, _ = self.parameterization.coefficients(level)
        return (POINT - A * x_in / self.parameterization.input_scale(level)) / B


def is_legal(process, parameterization):
    ends = process(f64([0.5 * process.end, process.end]))
    try:
        parameterization.coefficients(ends)
    except ArgumentError:
        return False
    return True


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@every
def test_one_point_is_reached_along_the_exact_path(process, solver):
    """Data that are one point have constant x0 and eps: every state is alpha x0 + sigma eps, in 1 to 5 steps, for every legal parameterization, and the last is the point; to 1e-12 and the rounding that order 3 multiplies by e^(2h/3) e^h."""
    legal = [one for one in PARAMETERIZATIONS if is_legal(process, one)]
    assert len(legal) >= 4
    for parameterization, steps in itertools.product(legal, (1, 2, 5)):
        denoiser = nz.Denoiser(Point(process, parameterization), process, parameterization, nz.Time())
        if parameterization == nz.Nu() and steps == 1 and process(f64(1.0)).alpha == 0:
            continue  # Nu is not heard there: its x0 is 0
        path = run(denoiser, solver, nz.UniformGrid(), steps, seeds=[1, 2])
        torch.testing.assert_close(path[-1].x, torch.full_like(path[-1].x, POINT), rtol=0, atol=1e-11)
        if getattr(solver, "noise", False):
            continue  # eps is not kept
        start = path[1] if parameterization == nz.Nu() else path[0]  # the same holds of its first step
        level = process(f64(start.t))
        eps = (start.x - level.alpha * POINT) / level.sigma if level.sigma > 0 else 0 * start.x
        spans = process(f64([state.t for state in path])).logsnr.diff() / 2
        rounding = 1e-15 * math.exp(5 / 3 * max([0.0, *spans[spans.isfinite()].tolist()]))
        for state in path[1:]:
            alpha, sigma = process(f64(state.t))
            torch.testing.assert_close(state.x, alpha * POINT + sigma * eps, rtol=1e-12, atol=1e-12 + rounding)


class Constant(torch.nn.Module):
    """Predicts the same noise everywhere."""

    def forward(self, x, c):
        return torch.full_like(x, 0.25)


@every
def test_tiny_and_equal_levels(solver):
    """With eps constant x is alpha x0 + sigma eps to 1e-11 down to the smallest sigma of float64; nodes one rounding apart leave every solver finite, and all but the one that extrapolates over them exact."""
    denoiser = nz.Denoiser(Constant(), nz.KarrasVE(), nz.Epsilon(), nz.Time())
    for exact, times in (
        (True, (80.0, 3.0, 1e-9, 1e-200, 1e-300, 5e-324, 0.0)),
        (solver != DPMSolverPP(), (80.0, math.nextafter(80.0, 0), 3.0, math.nextafter(3.0, 0), 1e-9, 0.0)),
    ):
        path = run(denoiser, solver, Times(*times), len(times) - 1)
        assert all(bool(state.x.isfinite().all()) for state in path)
        if exact and not getattr(solver, "noise", False):
            for state in path:
                torch.testing.assert_close(state.x, path[0].x + (state.t - 80) * 0.25, rtol=0, atol=1e-11)


# ---- budgets


@pytest.mark.parametrize("nfe", range(1, 41))
def test_a_plan_costs_its_budget(nfe):
    """`nfe` network evaluations are exactly so many calls, for every solver and order."""
    for solver in (*SOLVERS, DDIM(), DDIM(0.5)):
        denoiser = nz.Denoiser(Spy(), nz.LinearVP(), nz.Epsilon(), nz.Time())
        run(denoiser, solver, nz.UniformGrid(), nfe=nfe, seeds=[1])
        assert len(denoiser.network.told) == nfe


@pytest.mark.parametrize("order", [1, 2, 3])
def test_plans_are_the_published_ones(order):
    """The orders are those of diffusers' singlestep scheduler that ends at sigma = 0; 20 calls at order 3 are six third-order steps and two first-order ones."""
    from diffusers import DPMSolverSinglestepScheduler

    theirs = DPMSolverSinglestepScheduler(solver_order=order, lower_order_final=True, final_sigmas_type="zero")
    for nfe in range(1, 60):
        planned = [step.order for step in DPMSolver(order).plan(nfe)]
        assert [k for step in planned for k in range(1, step + 1)] == theirs.get_order_list(nfe)
    assert [step.order for step in DPMSolver(3).plan(20)] == [3] * 6 + [1, 1]


@pytest.mark.parametrize(("process", "unused"), [(nz.LinearVP(), 0), (nz.CosineVP(), 1)], ids=str)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_steps_cost_their_order(process, unused, order):
    """N steps cost order N - (order - 1) calls, at decreasing times: the last is DDIM's, and the first too where the process ends without signal."""
    for steps in (1, 2, 7):
        denoiser = nz.Denoiser(Spy(), process, nz.Velocity(), nz.Time())
        run(denoiser, DPMSolver(order), nz.UniformGrid(), steps, seeds=[1])
        told = denoiser.network.told
        assert len(told) == order * steps - (order - 1) * (1 + (unused if steps > 1 else 0))
        assert told == sorted(told, reverse=True) and len(set(told)) == len(told)


# ---- shared conditions


SHARED = nz.Shared(nz.Time(), interval=0.1, cells=5)
EDGES = [0.16, *reversed(SHARED.edges(nz.LinearVP())), 1e-3]


class Pieces:
    """Equal steps in sqrt(t) in each of the six pieces between EDGES, then 0: `steps` is a multiple of 6, plus 1."""

    def __call__(self, steps, process):
        pieces = []
        for start, stop in itertools.pairwise(EDGES):
            roots = torch.linspace(math.sqrt(start), math.sqrt(stop), steps // 6 + 1, dtype=torch.float64)[:-1]
            pieces.append(torch.cat([f64([start]), roots[1:] ** 2]))
        return torch.cat([*pieces, f64([EDGES[-1], 0.0])])


@torch.no_grad()
def runge_kutta(x, network, steps=20):
    """The shared ODE to t = 1e-3 by the classical method of order 4 in the angle, one condition a piece: within 4e-10 of itself at 40 steps."""
    process = nz.LinearVP()
    for start, stop in itertools.pairwise(EDGES):
        u, last = (process.clock.u(f64(t)).item() for t in (start, stop))
        h = (last - u) / steps

        def slope(x, u, start=start, stop=stop):
            told = process.clock.t(f64(u)).item() if start > 0.1 else stop if stop > 0.01 else 0.0
            F = network(x, torch.full((len(x),), told, dtype=torch.float64))
            return (F - math.sin(u) * x) / math.cos(u)  # -sigma x0 + alpha eps

        for _ in range(steps):
            a = slope(x, u)
            b = slope(x + h / 2 * a, u + h / 2)
            c = slope(x + h / 2 * b, u + h / 2)
            x = x + h / 6 * (a + 2 * b + 2 * c + slope(x + h * c, u + h))
            u += h
    return x


@pytest.fixture(scope="module")
def staircase():
    """The denoiser of the best network that is told the cells, and where its ODE takes four seeds."""
    exact = Exact(line(), nz.LinearVP(), nz.Epsilon())
    denoiser = nz.Denoiser(ExactShared(exact, SHARED, per_cell=4), nz.LinearVP(), nz.Epsilon(), SHARED)
    first = run(denoiser, DDIM(), Pieces(), 7, seeds=range(4))[0].x
    return denoiser, runge_kutta(first, denoiser.network)


class Unaware:
    """DPM-Solver++ that is not told when the cell changes."""

    stages = noisy = staticmethod(lambda *_: ())

    def begin(self, steps):
        solver = begin(DPMSolverPP(), steps)

        class Path:
            stages, noisy = staticmethod(lambda *_: ()), staticmethod(lambda *_: 0)

            def step(self, evaluate, x, row_t, row_s, noise, inner=()):
                return solver.step(evaluate, x, row_t._replace(cell=0), row_s, noise)

        return Path()


@pytest.mark.parametrize(
    ("solver", "least", "most"),
    [(DPMSolver(2), 1.95, 2.1), (DPMSolver(3), 2.9, 3.1), (DPMSolverPP(), 1.95, 2.4), (Unaware(), 0.9, 1.3)],
    ids=["DPMSolver(2)", "DPMSolver(3)", "DPMSolverPP", "without its reset"],
)
def test_orders_over_shared_cells(staircase, solver, least, most):
    """With the exact shared optimum and the edges on the grid DPM-Solver-k keeps order k and DPM-Solver++ order 2; without the reset of its memory at an edge it falls to 1."""
    denoiser, exact = staircase
    paths = [run(denoiser, solver, Pieces(), 6 * count + 1, seeds=range(4)) for count in (4, 8, 16)]
    found = orders([rms(path[-2].x - exact) for path in paths])
    assert all(least <= order <= most for order in found), found


@pytest.mark.parametrize("solver", [DPMSolver(2), DPMSolver(3)], ids=str)
def test_all_stages_of_a_step_hear_one_cell(solver):
    """On the shared interval every stage of a step is told the cell of the time that the step leaves, though stages lie in the cells below; above it each stage is told its own time."""
    process, shared = nz.DiscreteVP.linear(), nz.Shared(nz.Timestep(1000), interval=100, cells=5)
    denoiser = nz.Denoiser(Spy(), process, nz.Epsilon(), shared)
    grid = Times(0.3, 0.1, 0.077, 0.04, 0.013, 0.0)
    run(denoiser, solver, grid, 5, seeds=[1])
    told = [denoiser.network.told[i : i + solver.order] for i in range(0, 4 * solver.order, solver.order)]
    assert told[1:] == [[80.0] * solver.order, [60.0] * solver.order, [20.0] * solver.order]
    assert told[0][0] == 299 and len(set(told[0])) == solver.order
    assert denoiser.network.told[4 * solver.order :] == [0.0]
    inner = solver.stages(0.1, 0.04, process)
    assert any(shared(f64(t), None) != 80 for t in inner)  # told its own cell, a stage would hear another number


# ---- memory


@pytest.mark.parametrize("noise", [False, True])
def test_memory_is_of_one_path(noise):
    """Batches do not hear of each other, and the frozen solver remembers nothing: images are the same bit by bit in batches of 1, 2 and all, and again."""
    denoiser, solver = line().denoiser(nz.LinearVP()), DPMSolverPP(noise=noise)
    together, *others = (
        run(denoiser, solver, nz.UniformGrid(), 7, call=nz.sample, seeds=range(5), batch=batch)
        for batch in (None, 1, 2, None)
    )
    assert all(torch.equal(other, together) for other in others)
    assert dataclasses.asdict(solver) == {"order": 2, "noise": noise}
    assert begin(solver, 5) is not begin(solver, 5)


@every
def test_a_step_writes_into_nothing(solver):
    """x, F and the noise are left alone; F may be x itself, or one buffer that the network fills again and again."""
    process = nz.LinearVP()
    denoiser = nz.Denoiser(Spy(), process, nz.Velocity(), nz.Time())
    times = (0.9, 0.6, 0.4)
    start, noise = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).unbind()
    buffer = torch.empty_like(start)
    results = []
    for network in (lambda x, row: x, lambda x, row: x.clone(), lambda x, row: buffer.copy_(x)):
        chosen, x = begin(solver, 2), start
        for t, s in itertools.pairwise(times):
            row_t, *inner, row_s = denoiser.rows(f64([t, *solver.stages(t, s, process), s]))
            kept, drawn = x.clone(), noise.clone()
            after = chosen.step(network, x, row_t, row_s, noise if chosen.noisy(row_t, row_s) else None, inner)
            assert torch.equal(x, kept) and torch.equal(noise, drawn) and after.data_ptr() != x.data_ptr()
            x = after
        results.append(x)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


# ---- diffusers


class Waves(torch.nn.Module):
    """A fixed random network that mixes all numbers of x and depends on c."""

    def __init__(self):
        super().__init__()
        inner, outer = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.inner, self.outer = torch.nn.Parameter(0.3 * inner), torch.nn.Parameter(0.3 * outer)

    def forward(self, x, c):
        hidden = torch.tanh(x.flatten(1) @ self.inner + torch.sin(c / 100)[:, None])
        return (hidden @ self.outer).reshape(x.shape)


def furthest(ours, theirs):
    """Largest difference of two paths, relative to the largest state."""
    assert len(ours) == len(theirs)
    size = max(x.abs().max().item() for x in theirs)
    return max((state.x - x).abs().max().item() for state, x in zip(ours, theirs, strict=True)) / size


DDPM = nz.DiscreteVP.linear()


@torch.no_grad()
@pytest.mark.parametrize(("algorithm", "noise"), [("dpmsolver++", False), ("sde-dpmsolver++", True)])
@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 10), ("trailing", 20), ("linspace", 25), ("leading", 50)])
def test_dpm_solver_plus_plus_paths_are_those_of_diffusers(algorithm, noise, spacing, steps):
    """Every state equals DPMSolverMultistepScheduler's at its timesteps with the noise of one generator, to relative 1e-5 in float32."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(algorithm_type=algorithm, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    grid = Times(*((scheduler.timesteps.double() + 1) / 1000).tolist(), 0.0)
    network, generator = Waves().float(), torch.Generator().manual_seed(5)
    denoiser = nz.Denoiser(network, DDPM, nz.Epsilon(), nz.Timestep(1000))
    ours = run(denoiser, DPMSolverPP(noise=noise), grid, steps, seeds=[5], shape=(1, 4, 4), dtype=torch.float32)
    torch.randn(1, 1, 4, 4, generator=generator)  # the first noise
    theirs = [ours[0].x]
    for k in scheduler.timesteps:
        F = network(theirs[-1], torch.full((1,), float(k)))
        theirs.append(scheduler.step(F, k, theirs[-1], generator=generator).prev_sample)
    assert furthest(ours, theirs) < 1e-5


def singlestep_scheduler(solver, times):
    """diffusers' single-step scheduler with the float64 levels of our own stages."""
    from diffusers import DPMSolverSinglestepScheduler

    scheduler = DPMSolverSinglestepScheduler(
        algorithm_type="dpmsolver", solver_order=solver.order, final_sigmas_type="sigma_min"
    )
    asked = [(t, *solver.stages(t, s, DDPM)) for t, s in itertools.pairwise(times)]
    scheduler.set_timesteps(sum(map(len, asked)))
    levels = DDPM(f64([t for step in asked for t in step] + [0.0]))
    scheduler.sigmas = levels.sigma / levels.alpha
    scheduler.order_list = [k for step in asked for k in range(1, len(step) + 1)]
    scheduler.set_begin_index(0)
    return scheduler, [t for step in asked for t in step]


@torch.no_grad()
def singlestep_path(solver, times, x, network, published=True):
    """diffusers' states at the grid's times. The second stage of the published order 3 is what diffusers calls "heun", the whole step "midpoint"; the step to 0 exists in "dpmsolver++" only."""
    scheduler, asked = singlestep_scheduler(solver, times)
    path = [x]
    for i, (t, k) in enumerate(zip(asked, scheduler.order_list, strict=True)):
        kind = "heun" if published and solver.order == 3 and k == 2 else "midpoint"
        algorithm = "dpmsolver++" if i == len(asked) - 1 else "dpmsolver"
        scheduler.register_to_config(solver_type=kind, algorithm_type=algorithm)
        F = network(x, torch.full((len(x),), 1000 * t - 1, dtype=x.dtype))
        x = scheduler.step(F, i, x).prev_sample
        if i == len(asked) - 1 or scheduler.order_list[i + 1] == 1:
            path.append(x)
    return path


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("solver", "steps"), [(DPMSolver(1), 20), (DPMSolver(2), 10), (DPMSolver(3), 8)], ids=str)
def test_dpm_solver_paths_are_those_of_diffusers(solver, steps):
    """Every state equals DPMSolverSinglestepScheduler's ("dpmsolver") with the levels of our stages: relative 1e-5 in float32, 1e-13 in float64."""
    times = nz.TimestepGrid()(steps, DDPM).tolist()
    for network, tolerance in ((Waves().float(), 1e-5), (Waves(), 1e-13)):
        dtype = next(network.parameters()).dtype
        denoiser = nz.Denoiser(Fractional(network), DDPM, nz.Epsilon(), nz.Time(1000.0))
        ours = run(denoiser, solver, Times(*times), steps, seeds=[1, 2], shape=(1, 4, 4), dtype=dtype)
        assert furthest(ours, singlestep_path(solver, times, ours[0].x, network)) < tolerance


class Fractional(torch.nn.Module):
    """The network told 1000 t - 1, which is the timestep at a node and a fraction between."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, c):
        return self.network(x, c - 1)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_diffusers_third_order_is_not_the_published_one():
    """A finding: diffusers takes the second inner stage of order 3 by the midpoint rule; ours is the paper's, and the difference is visible."""
    times, network = nz.TimestepGrid()(8, DDPM).tolist(), Waves()
    x = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    one, other = (singlestep_path(DPMSolver(3), times, x, network, published) for published in (True, False))
    assert max((a - b).abs().max().item() for a, b in zip(one, other, strict=True)) > 1e-3


# ---- refusals


@pytest.mark.parametrize("order", [0, 4, -1, 2.0, True, "2", None])
def test_bad_orders_are_refused(order):
    """An order that is none of the published ones is refused with the value and the orders."""
    with pytest.raises(ArgumentError, match=f"DPMSolver has the orders 1, 2, 3, got {order!r}"):
        DPMSolver(order)
    with pytest.raises(ArgumentError, match=f"DPMSolverPP has the orders 1, 2, got {order!r}"):
        DPMSolverPP(order)


@pytest.mark.parametrize("noise", [1, 0.0, "yes", None])
def test_bad_noise_is_refused(noise):
    """DPMSolverPP's noise is True or False and nothing else."""
    with pytest.raises(ArgumentError, match=f"True .* or False .*, got {noise!r}"):
        DPMSolverPP(noise=noise)


def test_published_budget_of_fifty():
    """Fifty evaluations at order 3 are sixteen third-order steps and two first-order ones; at order 2 twenty-four pairs and two."""
    assert np.bincount([step.order for step in DPMSolver(3).plan(50)]).tolist() == [0, 2, 0, 16]
    assert np.bincount([step.order for step in DPMSolver(2).plan(50)]).tolist() == [0, 2, 24]


@pytest.mark.parametrize("h", [-15.0, -12.0, -8.0, -1.5, -1.0, -0.99, -1e-3, 1e-3, 0.99, 1.0, 7.0, 15.0])
def test_the_weight_of_a_stage_in_both_directions(h):
    """sigma_s ((e^h - 1)/h - 1) to a relative 1e-12 from |h| = 1e-3 to 15, upwards too, as inversion steps."""
    row_t, row_s = (Row(0.0, 1.0, math.exp(-q), *(0.0,) * 11) for q in (0.0, h))
    exact = math.exp(-h) * float(mpmath.expm1(h) / h - 1)
    assert _excess(row_t, row_s) == pytest.approx(exact, rel=1e-12)
