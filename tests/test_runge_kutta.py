"""Runge-Kutta solvers, fixed and adaptive, and inversion: against transport of quantiles and independent formulas."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch

import nearzero as nz
from nearzero.errors import ArgumentError, NumericalError
from nearzero.grid import Aligned
from nearzero.inversion import invert
from nearzero.process.base import Itself
from nearzero.registry import decode, encode
from nearzero.solvers.adaptive import DIFFERENCE, PLACES, RK45, SLOPES
from nearzero.solvers.ode import RungeKutta2, RungeKutta4
from test_ode import SEEDS, SHARED, Told, counted, error, f64, line, orders, path, paths, runge_kutta, transported
from test_ode import shared_denoiser as shared

EDM = (nz.KarrasVE(), nz.Epsilon(), nz.KarrasGrid())
FULL = (nz.LinearSigmaVP(), nz.W(), nz.AngleGrid())
TIGHT = RK45(1e-9, 1e-9)


def rms(x):
    return x.square().mean().sqrt().item()


def ask(denoiser, solver, grid, steps, seeds=SEEDS, **more):
    """The samples of a denoiser of numbers."""
    return nz.sample(denoiser, (1,), solver=solver, grid=grid, steps=steps, seeds=seeds, dtype=torch.float64, **more)


# ---- order


@paths
@pytest.mark.parametrize("position", [1 / 3, 1 / 2, 2 / 3, 1.0])
def test_the_family_has_order_2(process, parameterization, grid, position):
    """To t = 0 the error against the transported quantiles falls with order 2 at every position."""
    solver = RungeKutta2(position)
    errors = [error(path(process, parameterization, solver, grid, n), process) for n in (40, 80, 160)]
    assert all(1.9 <= order <= 2.2 for order in orders(errors)), orders(errors)
    assert errors[-1] < 1e-3


@paths
def test_the_classical_method_has_order_4(process, parameterization, grid):
    """In the angle, to exactly 0 and through the last step, the error falls with order 4."""
    errors = [error(path(process, parameterization, RungeKutta4(), grid, n), process) for n in (40, 80, 160)]
    assert all(3.8 <= order <= 4.2 for order in orders(errors)), orders(errors)
    assert errors[-1] < 1e-8


@pytest.mark.parametrize(
    ("solver", "least"), [(nz.Heun(), 1.95), (RungeKutta2(2 / 3), 1.95), (RungeKutta2(), 1.9)], ids=str
)
def test_the_family_over_edm(solver, least):
    """On sigma = 80 .. 0.002, rho = 7, at the last positive node after 32 .. 256 steps the order is 2; the midpoint's rises to it."""
    errors = [error(path(*EDM[:2], solver, EDM[2], n + 1), EDM[0], -2) for n in (32, 64, 128, 256)]
    found = orders(errors)[-1:] if solver == RungeKutta2() else orders(errors)
    assert all(order >= least for order in found), found


def test_the_classical_method_over_edm():
    """On EDM's grid, sigma = 80 .. 0.002 .. 0, the classical method has order 4 to exactly 0."""
    errors = [error(path(*EDM[:2], RungeKutta4(), EDM[2], n), EDM[0]) for n in (40, 80, 160)]
    assert all(3.8 <= order for order in orders(errors)), orders(errors)


def test_the_adaptive_pair_has_order_5():
    """With tolerances that keep every step the pair is its fifth-order method on the grid's own steps."""
    loose = RK45(1e300, 1e300)
    process = nz.LinearVP()
    errors = [error(path(process, nz.Epsilon(), loose, nz.SqrtGrid(), n), process) for n in (40, 80, 160)]
    assert all(4.8 <= order <= 5.2 for order in orders(errors)), orders(errors)


def test_the_tableau_meets_the_conditions():
    """Dormand and Prince's numbers: stages are consistent, one result integrates u^4 exactly, the other u^3, and both the tree of order 4 and 3."""
    c, high = np.array([0.0, *PLACES]), np.array([*SLOPES[-1], 0.0])
    low = high - np.array(DIFFERENCE)
    A = np.zeros((7, 7))
    for i, weights in enumerate(SLOPES, 1):
        A[i, : len(weights)] = weights
    np.testing.assert_allclose(A.sum(1), c, rtol=0, atol=1e-14)
    for b, order in ((high, 5), (low, 4)):
        for k in range(order):
            assert b @ c**k == pytest.approx(1 / (k + 1), abs=1e-14)
        for k in range(1, order - 1):
            assert b @ A @ c**k == pytest.approx(1 / (k + 1) / (k + 2), abs=1e-14)
    assert low @ c**4 != pytest.approx(1 / 5, abs=1e-4)  # so that their difference is an error of order 5


# ---- against formulas


def appendix_d(x, N, alpha):
    """EDM's second-order family of Appendix D with sigma = t, as printed, over the exact denoiser."""
    data = line()
    i = np.arange(N)
    steps = (80 ** (1 / 7) + i / (N - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    t = [*steps.tolist(), 0.0]

    def slope(x, t):
        return (x - data.posterior(x, nz.Level(f64(1.0), f64(t))).x0) / t

    for i in range(N):
        h = t[i + 1] - t[i]
        d = slope(x, t[i])
        if t[i + 1] == 0:
            x = x + h * d
        else:
            there = slope(x + alpha * h * d, t[i] + alpha * h)
            x = x + h * ((1 - 1 / (2 * alpha)) * d + 1 / (2 * alpha) * there)
    return x


@pytest.mark.parametrize("position", [0.3, 1 / 2, 2 / 3, 1.0])
def test_the_family_is_edms(position):
    """On KarrasGrid it equals Appendix D's formula to 1e-10, with Euler's last step; at position 1 it is Heun."""
    states = path(*EDM[:2], RungeKutta2(position), EDM[2], 12)
    torch.testing.assert_close(states[-1].x, appendix_d(states[0].x, 12, position), rtol=1e-10, atol=1e-10)
    if position == 1:
        torch.testing.assert_close(states[-1].x, path(*EDM[:2], nz.Heun(), EDM[2], 12)[-1].x, rtol=1e-13, atol=1e-13)


@torch.no_grad()
def test_a_classical_step_is_its_formula():
    """One step of the angle from 0.9 to 0.3 equals k1 + 2 k2 + 2 k3 + k4 over the score, and its stage is half-way in the angle."""
    process = nz.LinearSigmaVP()
    denoiser, x = line().denoiser(process, nz.Velocity()), f64([[-0.7], [1.3]])
    (middle,) = RungeKutta4().stages(0.9, 0.3, process)
    angles = np.arcsin([0.9, middle, 0.3])
    assert angles[1] == pytest.approx((angles[0] + angles[2]) / 2, abs=1e-15)

    def v(x, u):  # dx/du = alpha eps - sigma x0 = -tan(u) (x + score)
        return -math.tan(u) * (x + line().score(x, process(f64(math.sin(u)))))

    h = angles[2] - angles[0]
    a = v(x, angles[0])
    b = v(x + h / 2 * a, angles[1])
    c = v(x + h / 2 * b, angles[1])
    expected = x + h / 6 * (a + 2 * b + 2 * c + v(x + h * c, angles[2]))
    rows = denoiser.rows(f64([0.9, middle, 0.3]))

    def evaluate(x, row):
        return denoiser.network(x, torch.full((len(x),), row.condition, dtype=torch.float64))

    found = RungeKutta4().step(evaluate, x, rows[0], rows[2], None, [rows[1]])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [nz.Euler(), nz.Heun(), RungeKutta2(), RungeKutta2(1.0), RungeKutta4()], ids=str)
def test_a_step_adds_no_noise_and_writes_into_nothing(solver):
    """An ODE step asks for no noise and leaves x and F alone even where they are one tensor."""
    process = nz.LinearVP()
    denoiser = nz.Denoiser(torch.nn.Identity(), process, nz.Epsilon(), nz.Time())
    row_t, *inner, row_s = denoiser.rows(f64([0.5, *solver.stages(0.5, 0.3, process), 0.3]))
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = x.clone()
    aliased = solver.step(lambda x, row: x, x, row_t, row_s, None, inner)
    copied = solver.step(lambda x, row: x.clone(), x, row_t, row_s, None, inner)
    assert solver.noisy(row_t, row_s) == 0
    assert torch.equal(x, kept) and torch.equal(aliased, copied) and aliased.data_ptr() != x.data_ptr()


# ---- calls


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_what_a_step_costs(steps):
    """N steps cost 2 N - 1 calls for the second-order family, at t and the middle, and 4 N for the classical method, at t, twice the middle, and s."""
    nodes = nz.KarrasGrid()(steps, nz.KarrasVE()).tolist()
    pairs = list(itertools.pairwise(nodes))
    expected = {
        RungeKutta2(): [t for a, b in pairs[:-1] for t in (a, (a + b) / 2)] + nodes[-2:-1],
        RungeKutta4(): [t for a, b in pairs for t in (a, (a + b) / 2, (a + b) / 2, b)],
    }
    for solver, times in expected.items():
        denoiser = counted(line().denoiser(nz.KarrasVE()))
        ask(denoiser, solver, nz.KarrasGrid(), steps)
        assert denoiser.network.told == pytest.approx(times, rel=1e-14)
        assert len(times) == (2 * steps - 1 if solver == RungeKutta2() else 4 * steps)


@pytest.mark.parametrize(
    ("solver", "left"), [(nz.Euler(), 0), (nz.Heun(), 1), (RungeKutta2(), 1), (RungeKutta4(), 3)], ids=str
)
def test_a_budget_is_kept(solver, left):
    """sample(nfe=n) calls the network n times, or fewer by less than one more step would cost."""
    for nfe in range(4 if solver == RungeKutta4() else 1, 13):
        denoiser = counted(line().denoiser(nz.KarrasVE()))
        nz.sample(denoiser, (1,), solver=solver, grid=nz.KarrasGrid(), nfe=nfe, seeds=[0], dtype=torch.float64)
        assert nfe - left <= len(denoiser.network.told) <= nfe


def test_budgets_that_cannot_be_planned():
    """The classical method refuses fewer than 4 calls, and the adaptive one, whose steps have no fixed cost, any number."""
    for solver, words in ((RungeKutta4(), "4 times a step, got nfe 3"), (RK45(), "RK45 has no plan for 3")):
        with pytest.raises(ArgumentError, match=words):
            nz.sample(line().denoiser(nz.KarrasVE()), (1,), solver=solver, grid=nz.KarrasGrid(), nfe=3, seeds=[0])


# ---- clocks


def test_the_clock_is_the_process_own_unless_given():
    """Over KarrasVE, whose clock is t, `clock=Itself(KarrasVE())` changes no bit of any solver."""
    process = nz.KarrasVE()
    for kind in (nz.Euler, nz.Heun, RungeKutta2, RungeKutta4, RK45):
        one, other = (
            path(process, nz.Epsilon(), solver, nz.KarrasGrid(), 6) for solver in (kind(), kind(clock=Itself(process)))
        )
        assert torch.equal(one[-1].x, other[-1].x), kind


class Turned:
    """The angle as a clock of the straight path: t = tan u / (1 + tan u), dt/du = (cos u + sin u)^-2."""

    def u(self, t):
        return torch.atan2(t, 1 - t)

    def t(self, u):
        return u.sin() / (u.sin() + u.cos())

    def slopes(self, t):
        speed = t**2 + (1 - t) ** 2
        return -speed, speed


@pytest.mark.parametrize(("kind", "least"), [(nz.Euler, 0.9), (nz.Heun, 1.9), (RungeKutta2, 1.9), (RungeKutta4, 3.8)])
def test_another_clock_keeps_the_order(kind, least):
    """In a clock of the user's own each solver goes to the same end with its own order, by other numbers."""
    process, grid = nz.StraightPath(), nz.AngleGrid()
    errors = [error(path(process, nz.Flow(), kind(clock=Turned()), grid, n), process) for n in (40, 80, 160)]
    assert all(order >= least for order in orders(errors)), orders(errors)
    own = error(path(process, nz.Flow(), kind(), grid, 160), process)
    assert own != pytest.approx(errors[-1], rel=0.01)


def test_a_clock_is_saved_with_its_solver():
    """Solvers with a clock and Aligned grids come back equal from a recipe's JSON."""
    clock = Itself(nz.KarrasVE())
    solvers = [nz.Euler(clock), nz.Heun(clock), RungeKutta2(0.3, clock), RungeKutta4(clock), RK45(1e-3, 1e-4, clock)]
    for value in (*solvers, Aligned(nz.SqrtGrid(), (0.1, 0.2))):
        assert decode(encode(value)) == value


# ---- the last step


@pytest.mark.parametrize("parameterization", [nz.Denoised(), nz.Epsilon()], ids=str)
def test_where_the_network_does_not_exist_at_zero(parameterization):
    """The classical method asks at t = 0 and says so where nothing exists there; the others end with Euler: EDM's floor."""
    process, told = nz.KarrasVE(), nz.LogSigma()

    class Log(torch.nn.Module):
        """The exact network, told log(sigma) / 4."""

        def __init__(self):
            super().__init__()
            self.exact = line().denoiser(process, parameterization).network

        def forward(self, x, c):
            return self.exact(x, (4 * c).exp())

    denoiser = nz.Denoiser(Log(), process, parameterization, told)
    with pytest.raises(ArgumentError, match="asks the network at t = 0, where .*LogSigma does not exist"):
        ask(denoiser, RungeKutta4(), nz.KarrasGrid(), 5)
    grid = nz.KarrasGrid(sigma_min=0.02)
    states = nz.trajectory(denoiser, (1,), solver=TIGHT, grid=grid, steps=2, seeds=SEEDS, dtype=torch.float64)
    floor = 0.02**2 / 2 * rms(line().score(transported(states[0].x, process, 80.0, 0.0)))
    assert error(states, process) == pytest.approx(floor, rel=0.05)


def test_an_infinite_slope_is_refused():
    """SongVE in t has no finite slope at 0: the classical method says so, and in its own clock keeps order 4."""
    process = nz.SongVE(100.0)
    grid = nz.KarrasGrid(sigma_max=10.0)
    with pytest.raises(ArgumentError, match="slope at t = 0, where it is infinite in this clock"):
        ask(line().denoiser(process), RungeKutta4(Itself(process)), grid, 5)
    errors = [error(path(process, nz.Epsilon(), RungeKutta4(), grid, n), process) for n in (40, 80)]
    assert orders(errors)[0] >= 3.8


@pytest.mark.parametrize("position", [0.0, -0.5, 1.5, math.nan])
def test_a_position_outside_is_refused(position):
    """A position is in (0, 1]: anything else is refused by value."""
    with pytest.raises(ArgumentError, match=rf"\(0, 1\], got {position}"):
        RungeKutta2(position)


# ---- adaptive steps


@pytest.mark.parametrize(
    ("process", "parameterization", "grid", "steps"),
    [(*FULL, 1), (nz.LinearVP(), nz.Epsilon(), nz.UniformGrid(), 1), (nz.KarrasVE(), nz.Karras(), nz.KarrasGrid(), 2)],
    ids=["LinearSigmaVP", "LinearVP", "KarrasVE"],
)
def test_the_error_follows_the_tolerance(process, parameterization, grid, steps):
    """To exactly 0 the error against the transported quantiles is within 10 tolerances, at every tolerance, with calls that grow slowly."""
    calls = []
    for tolerance in (1e-6, 1e-7, 1e-8, 1e-9):
        denoiser = counted(line().denoiser(process, parameterization))
        states = nz.trajectory(
            denoiser, (1,), solver=RK45(tolerance, tolerance), grid=grid, steps=steps, seeds=SEEDS, dtype=torch.float64
        )
        assert error(states, process) < 10 * tolerance
        calls.append(len(denoiser.network.told))
    assert (
        calls == sorted(calls) and calls[-1] < 10**0.75 * calls[0]
    )  # order 5: a factor of 10^(3/5), and what is refused


def test_a_sample_never_depends_on_the_others():
    """Image i is the same alone, among twelve, and among twelve in another order, though each has its own steps."""
    denoiser = line().denoiser(*FULL[:2])
    together = ask(denoiser, RK45(), FULL[2], 2, seeds=range(12))
    for other in (
        ask(denoiser, RK45(), FULL[2], 2, seeds=range(12), batch=1),
        ask(denoiser, RK45(), FULL[2], 2, seeds=range(12), batch=5),
        ask(denoiser, RK45(), FULL[2], 2, seeds=range(11, -1, -1)).flip(0),
    ):
        torch.testing.assert_close(other, together, rtol=0, atol=1e-12)


class Readings:
    """What RK45 sees: a field dx/du = -rate x, one rate for each sample, and a note of the clock readings."""

    def __init__(self, rate):
        self.rate, self.seen = rate, []

    def slope(self, x, u, leaving):
        self.seen.append(u.clone())
        return -self.rate[:, None] * x


def test_each_sample_has_its_own_steps():
    """Of two samples the slow one reaches the end in fewer steps and then stands still, both exact to the tolerance; one slope is reused from step to step."""
    rows = nz.Denoiser(torch.nn.Identity(), nz.KarrasVE(), nz.Epsilon(), nz.Time()).rows(f64([1.0, 0.0]))
    field = Readings(f64([0.1, 30.0]))
    x = TIGHT.step(field, torch.ones(2, 3, dtype=torch.float64), *rows, None)
    torch.testing.assert_close(x[0] / math.exp(0.1), torch.ones(3, dtype=torch.float64), rtol=1e-8, atol=0)
    torch.testing.assert_close(x[1] / math.exp(30.0), torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0)
    seen = torch.stack(field.seen)
    assert len(seen) % 6 == 1
    arrived = [(seen[:, i] != 0).nonzero()[-1].item() for i in (0, 1)]  # the last reading before the end
    assert arrived[0] < 20 and arrived[1] > 200


def test_a_step_is_kept_where_the_error_is_at_most_one():
    """A first step that covers the interval is kept or refused by Dormand and Prince's own error estimate, computed here."""
    rows = nz.Denoiser(torch.nn.Identity(), nz.KarrasVE(), nz.Epsilon(), nz.Time()).rows(f64([1.0, 0.0]))
    x, k = f64([1.0, 2.0, -3.0]), []
    for weights in ((), *SLOPES):
        k.append(-2.0 * (x - sum((w * s for w, s in zip(weights, k, strict=True)), torch.zeros(3))))  # h = -1
    new = x - sum(w * s for w, s in zip(SLOPES[-1], k, strict=False))
    difference = sum(w * s for w, s in zip(DIFFERENCE, k, strict=True))
    size = rms(difference / (1 + 0.5 * torch.maximum(x.abs(), new.abs())))  # rtol = atol / 2
    for scale, calls in ((1.001 * size, 7), (0.999 * size, 19)):
        field = Readings(f64([2.0]))
        RK45(0.5 * scale, scale).step(field, x[None], *rows, None)
        assert len(field.seen) == calls


def test_single_precision_ends():
    """In float32 tolerances below its rounding end too, within 1e-5 of float64."""
    denoiser = line().denoiser(*FULL[:2])
    single = nz.sample(
        denoiser, (1,), solver=RK45(1e-9, 1e-9), grid=FULL[2], steps=1, seeds=[3, 4], dtype=torch.float32
    )
    x = torch.stack([torch.randn(1, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)]).double()
    torch.testing.assert_close(single.double(), transported(x, FULL[0], 1.0, 0.0), rtol=0, atol=1e-5)


class Spoilt(torch.nn.Module):
    """The exact network, which answers `value` below t = 0.3 and counts its calls."""

    def __init__(self, network, value):
        super().__init__()
        self.network, self.value, self.calls = network, value, 0

    def forward(self, x, c):
        self.calls += 1
        return torch.where((c < 0.3)[:, None], torch.full_like(x, self.value), self.network(x, c))


@pytest.mark.parametrize(
    ("value", "words"), [(math.nan, "not a number"), (math.inf, "not a number"), (1e300, "no step is short enough")]
)
def test_nothing_loops_on_a_bad_number(value, words):
    """A network that answers NaN, inf or 1e300 below t = 0.3 ends the path with NumericalError and the interval, in under 1000 calls."""
    exact = line().denoiser(nz.LinearVP(), nz.Epsilon())
    network = Spoilt(exact.network, value)
    denoiser = nz.Denoiser(network, exact.process, exact.parameterization, exact.conditioning)
    with pytest.raises(NumericalError, match=f"between t = 0.5 and 0, after clock reading .*{words}"):
        ask(denoiser, RK45(), nz.UniformGrid(), 2)
    assert network.calls < 1000


@pytest.mark.parametrize("tolerances", [(0.0, 1e-5), (1e-5, 0.0), (-1.0, 1e-5), (math.nan, 1e-5), (1e-5, math.inf)])
def test_bad_tolerances_are_refused(tolerances):
    """Both tolerances are positive and finite: anything else is refused with both values."""
    with pytest.raises(ArgumentError, match=f"rtol {tolerances[0]} and atol {tolerances[1]}"):
        RK45(*tolerances)


# ---- shared conditions


class Low:
    """Equal steps in sqrt(t) from 0.16 down, which cross all the cells of SHARED."""

    def __call__(self, steps, process):
        return 0.16 * (torch.arange(steps, -1, -1, dtype=torch.float64) / steps) ** 2


ALIGNED = Aligned(Low(), SHARED.edges(nz.LinearVP()))
OWN = Told(nz.Time(), interval=0.1, cells=3)  # every stage is told its own cell


@functools.cache
def shared_end():
    """Where the shared ODE takes six first noises, by an integrator of its own."""
    denoiser = shared()
    first = nz.trajectory(denoiser, (1,), solver=nz.Euler(), grid=Low(), steps=1, seeds=range(6), dtype=torch.float64)[
        0
    ]
    return runge_kutta(first.x, denoiser.network)


def shared_errors(solver, grid, conditioning, counts):
    """The rms distance from there."""
    return [rms(ask(shared(conditioning), solver, grid, n, seeds=range(6)) - shared_end()) for n in counts]


@pytest.mark.parametrize(("solver", "least"), [(nz.Heun(), 1.9), (RungeKutta2(), 1.9), (RungeKutta4(), 3.8)], ids=str)
def test_the_order_over_shared_cells(solver, least):
    """With the edges on the grid by Aligned a solver goes to the shared ODE's own solution with its order."""
    kept = orders(shared_errors(solver, ALIGNED, SHARED, (24, 48, 96)))
    assert all(order >= least for order in kept), kept


def test_what_keeps_the_order_over_shared_cells():
    """Heun falls to order 1 when each stage is told its own cell, and when the edges are not on the grid; the midpoint rule has no stage on an edge."""
    for grid, conditioning in ((ALIGNED, OWN), (Low(), SHARED)):
        lost = shared_errors(nz.Heun(), grid, conditioning, (24, 96))
        assert math.log2(lost[0] / lost[1]) / 2 < 1.4
    assert rms(ask(shared(OWN), RungeKutta2(), ALIGNED, 24) - ask(shared(), RungeKutta2(), ALIGNED, 24)) < 1e-14


def test_an_adaptive_interval_keeps_one_cell():
    """Between the edges the adaptive solver meets the shared ODE to its tolerance, and each interval is told one number."""

    class Edges:
        def __call__(self, steps, process):
            return f64([0.16, *reversed(SHARED.edges(process)), 0.0])

    denoiser = counted(shared())
    assert rms(ask(denoiser, TIGHT, Edges(), 4, seeds=range(6)) - shared_end()) < 1e-8
    below = [told for told in denoiser.network.told if told < 0.1]
    assert [told for told, _ in itertools.groupby(below)] == pytest.approx([0.2 / 3, 0.1 / 3, 0.0])


# ---- inversion


CASES = {"LinearSigmaVP": FULL, "LinearVP": (nz.LinearVP(), nz.Epsilon(), nz.SqrtGrid())}
SOLVERS = [(nz.Euler(), 0.9), (nz.DDIM(), 0.9), (nz.Heun(), 1.9), (RungeKutta2(), 1.9), (RungeKutta4(), 3.8)]


@pytest.mark.parametrize(("process", "parameterization", "grid"), CASES.values(), ids=CASES)
@pytest.mark.parametrize(("solver", "least"), SOLVERS, ids=str)
def test_inversion_has_the_order_of_its_solver(process, parameterization, grid, solver, least):
    """From t = 0 the latent falls to the transported quantile, and noise -> image -> noise to the noise, with the solver's order."""
    denoiser, x0 = line().denoiser(process, parameterization), line().sample(12, torch.Generator().manual_seed(0))
    exact, up, around = transported(x0, process, 0.0, 1.0), [], []
    for steps in (40, 80):
        use = {"solver": solver, "grid": grid, "steps": steps}
        states = nz.trajectory(denoiser, (1,), seeds=SEEDS, dtype=torch.float64, **use)
        up.append(rms(invert(denoiser, x0, **use) - exact))
        around.append(rms(invert(denoiser, states[-1].x, **use) - states[0].x))
    assert all(order >= least for order in (*orders(up), *orders(around))), (up, around)


def test_adaptive_inversion():
    """With tolerances of 1e-9 the latent is the transported quantile to 1e-8, and comes from data at t = 0."""
    x0 = line().sample(12, torch.Generator().manual_seed(0))
    latent = invert(line().denoiser(*FULL[:2]), x0, solver=TIGHT, grid=FULL[2], steps=1)
    torch.testing.assert_close(latent, transported(x0, FULL[0], 0.0, 1.0), rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", [nz.Heun(), nz.DDIM(), RK45()], ids=str)
def test_an_inverse_step_is_told_its_sampling_steps_cell(solver):
    """On a shared condition the intervals are told, upwards, the numbers that they are told downwards, in reverse."""
    told = []
    for run in (
        lambda denoiser: ask(denoiser, solver, ALIGNED, 8),
        lambda denoiser: invert(denoiser, f64([[0.3]]), solver=solver, grid=ALIGNED, steps=8),
    ):
        denoiser = counted(shared())
        run(denoiser)
        told.append([c for c, _ in itertools.groupby(c for c in denoiser.network.told if c < 0.1)])
    assert told[0] == pytest.approx([0.2 / 3, 0.1 / 3, 0.0]) and told[1] == told[0][::-1]


def test_the_first_step_from_data_without_an_estimate():
    """Where nothing exists at t = 0 the first step is x0 + sigma eps with eps of the first positive time about x0, one call."""
    process, x0 = nz.KarrasVE(), f64([[0.4], [-1.0]])
    denoiser = counted(line().denoiser(process, nz.Denoised()))
    for solver in (nz.Heun(), nz.DDIM()):
        found = invert(denoiser, x0, solver=solver, grid=nz.KarrasGrid(0.5, 1.0), steps=2)
        first = x0 + 0.5 * line().posterior(x0, nz.Level(f64(1.0), f64(0.5))).eps
        d = line().posterior(first, nz.Level(f64(1.0), f64(0.5))).eps
        second = line().posterior(first + 0.5 * d, nz.Level(f64(1.0), f64(1.0))).eps
        expected = first + 0.5 * ((d + second) / 2 if solver == nz.Heun() else d)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert denoiser.network.told == pytest.approx([0.5, 0.5, 1.0, 0.5, 0.5])


@pytest.mark.parametrize("solver", [nz.Ancestral(), nz.DDIM(0.5)], ids=str)
def test_noise_cannot_be_inverted(solver):
    """A solver that adds noise is refused by name with a way out."""
    with pytest.raises(ArgumentError, match=r"adds noise, which no inversion can know; take DDIM\(\)"):
        invert(line().denoiser(nz.LinearVP()), torch.zeros(1, 1), solver=solver, grid=nz.UniformGrid(), steps=3)


def test_an_inversion_that_fails_says_when():
    """A network that answers NaN below t = 0.3 ends the inversion with the step on which it was met."""
    exact = line().denoiser(nz.LinearVP(), nz.Epsilon())
    denoiser = nz.Denoiser(Spoilt(exact.network, math.nan), exact.process, exact.parameterization, exact.conditioning)
    with pytest.raises(NumericalError, match="from t = 0 to 0.25"):
        invert(denoiser, torch.zeros(1, 1), solver=nz.Heun(), grid=nz.UniformGrid(), steps=4)
