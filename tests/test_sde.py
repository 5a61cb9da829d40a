"""Stochastic solvers: weak orders by exact moments, the published algorithms written out, calls, seeds, laws."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

import nearzero as nz
from nearzero.errors import ArgumentError, NumericalError
from nearzero.registry import decode, encode
from nearzero.solvers import begin, plan
from nearzero.solvers.churn import Churn
from nearzero.solvers.full import FullDiffusionSolver
from nearzero.solvers.ode import Heun
from nearzero.solvers.sde import Ancestral, EulerMaruyama, PredictorCorrector, ReverseDiffusion

MEAN, VARIANCE = 0.5, 0.25
MS = (10, 20, 40, 80, 160, 320, 640)
FULL, VP, VE = nz.LinearSigmaVP(), nz.LinearVP(), nz.KarrasVE()
SECOND = [FullDiffusionSolver(2, noise) for noise in ("paper", "bridge", "fitted")]
CORRECTED = PredictorCorrector(corrections=2)
SOLVERS = [
    *(EulerMaruyama(), EulerMaruyama(denoise=False), ReverseDiffusion(), CORRECTED),
    *(PredictorCorrector(SECOND[1]), PredictorCorrector(Heun()), Churn(8.0), Churn(8.0, 0.1, 2.0, 1.007)),
    *(FullDiffusionSolver(), *SECOND),
]


def named(value):
    """A name for a test: a function's own, which says no address, or what a value says of itself."""
    return getattr(value, "__name__", None) or repr(value)


every = pytest.mark.parametrize("solver", SOLVERS, ids=named)


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


def uniform(steps):
    """Equal steps from 1, the last time exactly 0."""
    return [1 - i / steps for i in range(steps)] + [0.0]


def squares(steps):
    """Equal steps in sqrt(t)."""
    return [u * u for u in uniform(steps)]


def karras(steps):
    return nz.KarrasGrid()(steps, VE).tolist()


def angle(steps):
    return nz.AngleGrid()(steps, FULL).tolist()


def steps_of(solver, times, process, parameterization):
    """The begun solver and (row_t, row_s, inner) of each step: what sampling makes, without a network."""
    denoiser = nz.Denoiser(torch.nn.Identity(), process, parameterization, nz.Time())
    solver = begin(solver, len(times) - 1)
    stops = [(t, *solver.stages(t, s, process), s) for t, s in itertools.pairwise(times)]
    flat = [time for stop in stops for time in stop]
    rows = iter(denoiser.rows(f64(flat), None, torch.arange(len(flat)) < len(flat) - (times[-1] == 0)))
    found = []
    for stop in stops:
        row_t, *inner, row_s = (next(rows) for _ in stop)
        found.append((row_t, row_s, inner))
    return solver, found


class Normal:
    """The exact network for N(mean, variance) data in any parameterization; 0 where it is not heard."""

    def __init__(self, mean=MEAN, variance=VARIANCE):
        self.mean, self.variance = mean, variance

    def __call__(self, x, row):
        if row.B == row.D == 0:
            return torch.zeros_like(x)
        pull = (x - row.alpha * self.mean) / (row.alpha**2 * self.variance + row.sigma**2)
        x0, eps = self.mean + row.alpha * self.variance * pull, row.sigma * pull
        return (row.B * (x0 - row.A * x) + row.D * (eps - row.C * x)) / (row.B**2 + row.D**2)


def moments(solver, times, process, parameterization, network=None):
    """Mean and variance of the samples: each step is affine in x and in its noise, and probes tell the coefficients."""
    solver, steps = steps_of(solver, times, process, parameterization)
    mean, variance = 0.0, steps[0][0].sigma ** 2
    for row_t, row_s, inner in steps:
        n = int(solver.noisy(row_t, row_s))
        x, noise = torch.zeros(n + 2, dtype=torch.float64), torch.zeros(n, n + 2, dtype=torch.float64)
        x[1] = 1
        noise[torch.arange(n), torch.arange(n) + 2] = 1
        given = None if n == 0 else noise[0] if n == 1 else noise
        offset, *gains = solver.step(network or Normal(), x, row_t, row_s, given, inner).tolist()
        gain, *coefficients = (value - offset for value in gains)
        mean = gain * mean + offset
        variance = gain**2 * variance + sum(c * c for c in coefficients)
    return mean, variance


def errors(solver, grid, process, parameterization, of=1, truth=VARIANCE):
    return [abs(moments(solver, grid(steps), process, parameterization)[of] - truth) for steps in MS]


def last_order(values):
    return math.log2(values[-2] / values[-1])


# |error of the variance| at M = 10 ... 640 on N(.5, .25), computed apart from this software, and the orders allowed
TABLE = {
    "FullDiffusion 1": (
        FullDiffusionSolver(), uniform, FULL, nz.W(),
        "8.0e-2 4.8e-2 2.7e-2 1.5e-2 7.8e-3 4.0e-3 2.1e-3", 0.9, 1.0,
    ),
    "FullDiffusion 2, as printed": (
        SECOND[0], uniform, FULL, nz.Nu(),
        "1.8e-2 3.8e-3 8.3e-4 1.5e-3 1.2e-3 7.3e-4 4.1e-4", 0.8, 1.0,
    ),
    "bridge": (
        SECOND[1], uniform, FULL, nz.W(),
        "3.2e-2 1.3e-2 4.8e-3 1.6e-3 5.2e-4 1.6e-4 4.7e-5", 1.7, 2.0,
    ),
    "fitted on t = u^2": (
        SECOND[2], squares, FULL, nz.W(),
        "* 2.7e-3 * * 5.1e-5 * *", 1.9, 2.05,
    ),
    "Ancestral lower": (
        Ancestral("lower"), uniform, VP, nz.Epsilon(),
        "1.4e-1 9.7e-2 6.2e-2 3.7e-2 2.1e-2 1.1e-2 5.9e-3", 0.9, 1.0,
    ),
    "Ancestral upper": (
        Ancestral("upper"), uniform, VP, nz.Epsilon(),
        "6.9e-3 1.7e-2 1.4e-2 8.1e-3 4.4e-3 2.3e-3 1.2e-3", 0.95, 1.0,
    ),
    "churn 0": (Churn(0.0), karras, VE, nz.Karras(), "1.2e-1 2.2e-2 4.9e-3 1.1e-3 2.7e-4 5.6e-5 3.5e-6", 1.9, 4.0),
    "churn 10": (Churn(10.0), karras, VE, nz.Karras(), "2.2e-1 5.5e-2 1.3e-2 3.2e-3 7.9e-4 1.9e-4 4.5e-5", 1.9, 2.2),
    "churn 40": (Churn(40.0), karras, VE, nz.Karras(), "2.2e-1 5.5e-2 1.9e-2 7.9e-3 2.4e-3 6.2e-4 1.5e-4", 1.9, 2.1),
}  # fmt: skip


def rounded(value, listed):
    """Whether a value rounds to the two digits of "1.4e-2"."""
    exponent = int(listed.partition("e")[2])
    return abs(value / 10**exponent - float(listed.partition("e")[0])) < 0.0501


@pytest.mark.parametrize("name", TABLE)
def test_the_variance_of_normal_data(name):
    """The error of the variance is the tabulated one at each M, and its order lies where it must."""
    solver, grid, process, parameterization, listed, least, most = TABLE[name]
    found = errors(solver, grid, process, parameterization)
    for error, expected in zip(found, listed.split(), strict=True):
        if expected != "*":
            assert rounded(error, expected)
    assert least <= last_order(found) <= most


def test_euler_maruyama_on_the_published_truncated_path():
    """From 1 to 1e-3, against the marginal there, Euler-Maruyama has the tabulated errors and order 1."""
    level = VP(f64(1e-3))
    truth = (level.alpha**2 * VARIANCE + level.sigma**2).item()
    found = errors(
        EulerMaruyama(),
        lambda steps: [1 - 0.999 * i / steps for i in range(steps)] + [1e-3],
        VP,
        nz.Epsilon(),
        truth=truth,
    )
    listed = "7.7e-2 2.5e-2 1.1e-2 4.9e-3 2.3e-3 1.1e-3 5.6e-4".split()
    assert all(rounded(error, expected) for error, expected in zip(found, listed, strict=True))
    assert last_order(found) >= 0.95


@pytest.mark.parametrize(
    ("solver", "grid", "process", "parameterization", "least"),
    [
        (EulerMaruyama(), uniform, VP, nz.Epsilon(), 0.95),
        (EulerMaruyama(), uniform, nz.SubVP(), nz.Velocity(), 0.95),
        (EulerMaruyama(), karras, VE, nz.Karras(), 0.95),
        (ReverseDiffusion(), uniform, VP, nz.Epsilon(), 0.95),
        (ReverseDiffusion(), uniform, nz.SubVP(), nz.Velocity(), 0.95),
        (ReverseDiffusion(), karras, VE, nz.Karras(), 0.95),
        (ReverseDiffusion(), uniform, FULL, nz.W(), 0.9),
        (FullDiffusionSolver(), uniform, nz.StraightPath(), nz.Flow(), 0.9),
        (SECOND[1], squares, nz.StraightPath(), nz.Flow(), 1.7),
        (SECOND[2], squares, nz.StraightPath(), nz.Flow(), 1.7),
        (Churn(10.0), angle, FULL, nz.Velocity(), 1.9),
    ],
    ids=named,
)
def test_weak_order_for_other_processes(solver, grid, process, parameterization, least):
    """The error of the variance falls with the solver's order, to t = 0, whatever the process."""
    found = errors(solver, grid, process, parameterization)
    assert last_order(found) >= least
    assert found[-1] < found[-2] < found[-3]


@pytest.mark.parametrize("solver", [FullDiffusionSolver(), *SECOND], ids=named)
def test_nu_loses_the_mean_at_the_end_and_w_does_not(solver):
    """With W the mean is exact; with Nu, whose first step is 0 times the network, it is off by the tabulated order 1."""
    assert moments(solver, uniform(160), FULL, nz.W())[0] == pytest.approx(MEAN, abs=1e-14)
    lost = [moments(solver, uniform(steps), FULL, nz.Nu())[0] - MEAN for steps in (160, 320)]
    if solver.noise == "fitted":
        assert abs(lost[0]) < 1e-5
    else:
        assert abs(lost[0]) == pytest.approx(1.6e-3 if solver.order == 1 else 4.0e-4, rel=0.03)
        assert math.log2(lost[0] / lost[1]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("variance", "fitted", "printed"), [(0.25, "2.7e-3", "3.8e-3"), (0.01, "3.5e-4", "2.4e-3")])
def test_the_fitted_weight_is_better_at_twenty_steps(variance, fitted, printed):
    """At M = 20 "fitted" on t = u^2 has the tabulated error of the variance, below the printed algorithm's."""
    for solver, grid, expected in ((SECOND[2], squares, fitted), (SECOND[0], uniform, printed)):
        found = moments(solver, grid(20), FULL, nz.W(), Normal(variance=variance))[1]
        assert rounded(abs(found - variance), expected)


class Waves(torch.nn.Module):
    """A fixed network that mixes the numbers of x, each example for itself, and counts its calls."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner, self.outer = torch.randn(2, 16, 16, generator=generator, dtype=torch.float64) * 0.3
        self.calls = 0

    def forward(self, x, c):
        self.calls += 1
        hidden = torch.tanh(x.flatten(1) @ self.inner + torch.sin(3 * c)[:, None])
        return (hidden @ self.outer).reshape(x.shape)


def made(process, parameterization):
    return nz.Denoiser(Waves(), process, parameterization, nz.Time())


def sampled(denoiser, solver, grid, seeds=(3, 4), steps=6, **options):
    return nz.sample(
        denoiser, (1, 4, 4), solver=solver, grid=grid, seeds=seeds, steps=steps, dtype=torch.float64, **options
    )


class Listed:
    """A grid of given times."""

    def __init__(self, times):
        self.times = times

    def __call__(self, steps, process):
        return f64(self.times)


def draws(seed):
    """The endless draws of an image's own generator."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(1, 1, 4, 4, generator=generator, dtype=torch.float64)


PROCESSES = [
    (VP, nz.Epsilon(), nz.UniformGrid()),
    (nz.DiscreteVP.linear(), nz.Epsilon(), nz.TimestepGrid()),
    (nz.SubVP(), nz.Velocity(), nz.UniformGrid()),
    (nz.StraightPath(), nz.Flow(), nz.UniformGrid()),
    (nz.CosineVP(), nz.Velocity(), nz.AngleGrid()),
    (FULL, nz.Nu(), nz.UniformGrid()),
    (FULL, nz.W(), nz.SqrtGrid()),
    (VE, nz.Karras(), nz.KarrasGrid()),
    (nz.SongVE(), nz.Denoised(), nz.KarrasGrid()),
]


@pytest.mark.parametrize(("process", "parameterization", "grid"), PROCESSES, ids=lambda v: type(v).__name__)
def test_full_diffusion_solver_one_is_the_ancestral_sampler(process, parameterization, grid):
    """FullDiffusion-Solver-1 takes Ancestral("lower")'s steps to 1e-12, for every process."""
    denoiser = made(process, parameterization)
    one, other = (sampled(denoiser, solver, grid) for solver in (FullDiffusionSolver(), Ancestral("lower")))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def nu_algorithm(network, seed, steps, order):
    """FullDiffusion's Algorithms 1 and 2 as printed, on the grid t = 1 - i / M."""
    noise, times = draws(seed), uniform(steps)
    x = next(noise)
    for s, t in itertools.pairwise(times):
        r = s - 2 * (s - t) / 3
        xi = next(noise) if order == 2 or t > 0 else torch.zeros_like(x)
        nu = network(x, f64([s])) if s < 1 else torch.zeros_like(x)

        def reached(u, s=s, x=x, nu=nu, xi=xi):
            decayed = math.sqrt((1 - s**2) / (1 - u**2)) * ((1 + s**2 - u**2) * x + (s**2 - u**2) * nu)
            return decayed + u / s * math.sqrt((s**2 - u**2) / (1 - u**2)) * xi

        x_t = reached(t)
        if order == 2:
            x_r = reached(r)
            nu_r = network(x_r, f64([r]))
            clean_s = math.sqrt(1 - s**2) * ((1 + s**2) * x + s**2 * nu)
            clean_r = math.sqrt(1 - r**2) * ((1 + r**2) * x_r + r**2 * nu_r)
            x_t = x_t + 3 * (s**2 - t**2) / (4 * s**2 * math.sqrt(1 - t**2)) * (clean_r - clean_s)
        x = x_t
    return x


@pytest.mark.parametrize("order", [1, 2])
def test_full_diffusion_algorithms_as_printed(order):
    """With Nu, "paper" is the printed algorithm, written out with its square roots, to 1e-11."""
    denoiser = made(FULL, nz.Nu())
    ours = sampled(denoiser, FullDiffusionSolver(order), Listed(uniform(9)), seeds=[8], steps=9)
    torch.testing.assert_close(ours, nu_algorithm(denoiser.network, 8, 9, order), rtol=1e-11, atol=1e-11)


def karras_algorithm(denoise, seed, times, churn, t_min, t_max, s_noise):
    """EDM's Algorithm 2 as printed; noise is drawn where gamma > 0, and none is added at the process's end."""
    noise, steps = draws(seed), len(times) - 1
    x = times[0] * next(noise)
    for t, s in itertools.pairwise(times):
        gamma = min(churn / steps, math.sqrt(2) - 1) if t_min <= t <= t_max else 0.0
        eps = s_noise * next(noise) if gamma > 0 else 0.0
        t_hat = min(t + gamma * t, VE.end)
        x_hat = x + math.sqrt(t_hat**2 - t**2) * eps
        d = (x_hat - denoise(x_hat, t_hat)) / t_hat
        x = x_hat + (s - t_hat) * d
        if s > 0:
            x = x_hat + (s - t_hat) * (d / 2 + (x - denoise(x, s)) / s / 2)
    return x


@pytest.mark.parametrize(
    "settings",
    [(8.0, 0.0, math.inf, 1.0), (40.0, 0.05, 50.0, 1.003), (2.0, 0.01, 1.0, 1.007), (0.0, 0.0, math.inf, 1.0)],
)
def test_churn_is_edms_algorithm(settings):
    """Over KarrasVE, Churn is Algorithm 2 written out, to 1e-10, with and without limits of the noise level."""
    denoiser, times = made(VE, nz.Karras()), karras(12)
    churn, t_min, t_max, s_noise = settings
    solver = Churn(churn, t_min, None if t_max == math.inf else t_max, s_noise)
    ours = sampled(denoiser, solver, nz.KarrasGrid(), seeds=[5], steps=12)
    theirs = karras_algorithm(lambda x, t: denoiser(x, t).x0, 5, times, *settings)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("process", "parameterization", "grid"), PROCESSES, ids=lambda v: type(v).__name__)
def test_churn_zero_is_heun(process, parameterization, grid):
    """Churn(0), and Churn whose limits hold no level of the path, take Heun's steps bit by bit."""
    denoiser = made(process, parameterization)
    expected = sampled(denoiser, Heun(), grid)
    for solver in (Churn(0.0), Churn(50.0, 1e5)):
        assert torch.equal(sampled(denoiser, solver, grid), expected)


@pytest.mark.parametrize("process", [VP, nz.SubVP(), nz.StraightPath(), FULL, VE, nz.SongVE()], ids=named)
@pytest.mark.parametrize(("churn", "gamma"), [(0.5, 0.05), (100.0, math.sqrt(2) - 1)])
def test_churn_raises_the_noise_level(process, churn, gamma):
    """t^ has (1 + gamma) times the noise level, gamma = min(churn / N, sqrt(2) - 1), and x^ the marginal law of t^."""
    t = 0.5 * process.end
    solver, [(row_t, row_s, inner), *_] = steps_of(Churn(churn), [t] + [t / 2] * 9 + [0.0], process, nz.Velocity())
    (hat,) = inner
    assert hat.sigma / hat.alpha == pytest.approx((1 + gamma) * row_t.sigma / row_t.alpha, rel=1e-12)
    seen = []

    def network(x, row):
        seen.append((x.clone(), row))
        return torch.zeros_like(x)

    solver.step(network, f64([0.0, 1.0, 0.0]), row_t, row_s, f64([0.0, 0.0, 1.0]), inner)
    (x_hat, row), *_ = seen
    offset, gain, coefficient = x_hat.tolist()
    assert row is hat
    assert offset == 0
    assert gain * row_t.alpha == pytest.approx(hat.alpha, rel=1e-12)
    assert (gain * row_t.sigma) ** 2 + coefficient**2 == pytest.approx(hat.sigma**2, rel=1e-12)


@pytest.mark.parametrize("process", [VP, nz.SubVP(), nz.StraightPath(), FULL, VE], ids=named)
def test_churn_never_leaves_the_process(process):
    """At the end t^ is the end, nothing is added and the step is Heun's; just below it t^ stays within the process."""
    solver, end = Churn(100.0), process.end
    assert solver.stages(end, end / 2, process) == (end,)
    (stage,) = solver.stages(0.999 * end, end / 2, process)
    assert 0.999 * end < stage <= end
    solver, [(row_t, row_s, inner), _] = steps_of(solver, [end, end / 2, 0.0], process, nz.Velocity())
    x, noise = f64([0.4, -1.3]), f64([1.0, 2.0])
    ours = solver.step(Normal(), x, row_t, row_s, noise, inner)
    assert torch.equal(ours, Heun().step(Normal(), x, row_t, row_s, None))


def test_published_settings():
    """The four published settings of EDM's Table 5 by name; a begun solver equals the one that it was made from."""
    named = [Churn.cifar10_vp(), Churn.cifar10_ve(), Churn.imagenet64_adm(), Churn.imagenet64()]
    assert [(c.churn, c.t_min, c.t_max, c.noise) for c in named] == [
        (30.0, 0.01, 1.0, 1.007),
        (80.0, 0.05, 1.0, 1.007),
        (80.0, 0.05, 50.0, 1.003),
        (40.0, 0.05, 50.0, 1.003),
    ]
    assert Churn(3.0).begin(7) == Churn(3.0)
    assert (Churn(3.0).begin(7).steps, replace(Churn(3.0).begin(7), churn=4.0).steps) == (7, 1)


@every
def test_solvers_are_saved(solver):
    """Every solver here survives JSON, a Churn without limit too."""
    assert decode(encode(solver)) == solver


@pytest.mark.parametrize(("s", "t", "expected"), [(0.5, 0.49, 0.812), (0.1, 0.02, 0.387)])
def test_the_noises_of_stage_and_end_are_correlated(s, t, expected):
    """From s to t, "bridge" draws the stage at c = 2/3 and the end with the exact correlation, "paper" with 1."""
    for solver, correlation in ((SECOND[0], 1.0), (SECOND[1], expected)):
        _, [(row_t, row_s, (row_r,)), _] = steps_of(solver, [s, t, 0.0], FULL, nz.Denoised())
        stage = []

        def silent(x, row, stage=stage):
            stage.append(x.clone())
            return torch.zeros_like(x)

        n = solver.noisy(row_t, row_s)
        noise = torch.eye(2, dtype=torch.float64)
        end = solver.step(silent, f64([0.0, 0.0]), row_t, row_s, noise if n == 2 else noise[0], [row_r])
        of_stage = stage[1]
        assert row_r.t == pytest.approx(s + 2 / 3 * (t - s), rel=1e-14)
        assert (of_stage @ end / of_stage.norm() / end.norm()).item() == pytest.approx(correlation, abs=6e-4)
        exact = t * math.sqrt((s**2 - t**2) / (1 - t**2)) / s  # Eq. 24
        assert end.norm().item() == pytest.approx(exact, rel=1e-12)
        assert of_stage.norm().item() == pytest.approx(
            row_r.t * math.sqrt((s**2 - row_r.t**2) / (1 - row_r.t**2)) / s, rel=1e-12
        )


@pytest.mark.parametrize(
    "process", [VP, nz.SubVP(), nz.StraightPath(), nz.CosineVP(), FULL, VE, nz.SongVE()], ids=named
)
@pytest.mark.parametrize(("solver", "c"), [(SECOND[0], 2 / 3), (SECOND[2], 1 / 2)], ids=named)
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.9), (0.5, 0.3), (1e-6, 0.0), (1.0, 0.0)])
def test_the_stage_is_at_the_papers_noise_level(process, solver, c, t, s):
    """At the stage sigma / |(alpha, sigma)| lies the part c of the way from t to s, at both ends too."""
    t, s = t * process.end, s * process.end
    (r,) = solver.stages(t, s, process)
    level = process(f64([t, r, s]))
    v_t, v_r, v_s = (level.sigma / torch.hypot(*level)).tolist()
    assert s < r < t
    assert v_r == pytest.approx(v_t + c * (v_s - v_t), rel=1e-12)


@pytest.mark.parametrize("process", [FULL, nz.CosineVP(), nz.StraightPath(), nz.ShiftedCosine()], ids=named)
def test_euler_maruyama_refuses_an_infinite_drift(process):
    """From alpha = 0, EulerMaruyama names FullDiffusionSolver and asks no network; the solver that it names is finite."""
    denoiser = made(process, nz.Velocity())
    with pytest.raises(ArgumentError, match=r"cannot leave t = 1, .*infinite; take FullDiffusionSolver"):
        sampled(denoiser, EulerMaruyama(), nz.UniformGrid())
    assert denoiser.network.calls == 0
    for solver in (FullDiffusionSolver(), *SECOND):
        assert sampled(denoiser, solver, nz.UniformGrid()).isfinite().all()


@pytest.mark.parametrize("noise", ["paper", "bridge", "fitted"])
def test_the_first_step_without_signal(noise):
    """From alpha = 0 with Nu a step of either order is the printed one: t xi and a_t (x^_r - 0) / 2c, and nothing of x."""
    s = 0.75
    for order in (1, 2):
        solver = FullDiffusionSolver(order, noise)
        solver, [(row_t, row_s, inner), _] = steps_of(solver, [1.0, s, 0.0], FULL, nz.Nu())
        n, x = solver.noisy(row_t, row_s), f64([1.3, -0.2])
        xi = f64([[0.7, 0.1], [0.2, -0.9]])
        x_s = solver.step(Normal(), x, row_t, row_s, xi if n == 2 else xi[0], inner)
        if order == 1:
            torch.testing.assert_close(x_s, s * xi[0], rtol=1e-14, atol=0)
            continue
        (row_r,) = inner
        r, c = row_r.t, 1 / 2 if noise == "fitted" else 2 / 3
        weight = 1 / (c * (1 + s)) if noise == "fitted" else 1 / (2 * c)
        x_r = r * xi[0]
        clean = MEAN + row_r.alpha * VARIANCE * (x_r - row_r.alpha * MEAN) / (row_r.alpha**2 * VARIANCE + r**2)
        left = s**2 * row_r.alpha / (r**2 * row_s.alpha)
        fresh = s / r * math.sqrt((r**2 - s**2) / (1 - s**2))
        noise_s = s * xi[0] if noise == "paper" else left * x_r + fresh * xi[1]
        torch.testing.assert_close(x_s, weight * row_s.alpha * clean + noise_s, rtol=1e-12, atol=0)


CALLS = [
    (FullDiffusionSolver(), FULL, nz.Nu(), lambda m: m - 1),
    (FullDiffusionSolver(), FULL, nz.W(), lambda m: m),
    (FullDiffusionSolver(), FULL, nz.Velocity(), lambda m: m),
    *((solver, FULL, nz.Nu(), lambda m: 2 * m - 1) for solver in SECOND),
    *((solver, FULL, nz.W(), lambda m: 2 * m) for solver in SECOND),
    (SECOND[0], FULL, nz.Velocity(), lambda m: 2 * m),
    (Churn(5.0), VP, nz.Epsilon(), lambda m: 2 * m - 1),
    (EulerMaruyama(), VP, nz.Epsilon(), lambda m: m),
    (ReverseDiffusion(), VP, nz.Epsilon(), lambda m: m),
    (Ancestral(), VP, nz.Epsilon(), lambda m: m),
    (PredictorCorrector(), VP, nz.Epsilon(), lambda m: 2 * m - 1),
    (CORRECTED, VP, nz.Epsilon(), lambda m: 3 * m - 2),
    (PredictorCorrector(SECOND[0]), VP, nz.Epsilon(), lambda m: 3 * m - 1),
]


@pytest.mark.parametrize(("solver", "process", "parameterization", "calls"), CALLS, ids=named)
def test_calls_are_counted(solver, process, parameterization, calls):
    """M steps cost the published number of network evaluations, and a plan of nfe costs at most nfe, for M and nfe to 12."""
    for steps in range(1, 13):
        denoiser = made(process, parameterization)
        sampled(denoiser, solver, nz.UniformGrid(), seeds=[1], steps=steps)
        assert denoiser.network.calls == calls(steps)
    for nfe in range(1, 13):
        denoiser = made(process, parameterization)
        planned = plan(solver, nfe)
        sampled(denoiser, solver, nz.UniformGrid(), seeds=[1], steps=None, nfe=nfe)
        assert denoiser.network.calls <= nfe
        unheard = 1 if isinstance(parameterization, nz.Nu) else 0
        assert denoiser.network.calls == nfe - unheard or (
            calls(len(planned) + 1) > nfe and all(one == solver for one in planned)
        )


@pytest.mark.parametrize(
    ("solver", "process", "parameterization", "grid"),
    [
        (solver, process, parameterization, grid)
        for solver in (EulerMaruyama(), ReverseDiffusion(), CORRECTED, FullDiffusionSolver(), PredictorCorrector(Churn(9.0, 1.0)))
        for process, parameterization, grid in PROCESSES[:3] + PROCESSES[7:]
        if process.end > 1 or not isinstance(solver, PredictorCorrector) or solver is CORRECTED
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_the_last_step_lands_on_the_estimate(solver, process, parameterization, grid):
    """The path ends at t exactly 0 with the denoiser's own x0 at the last positive time, to 1e-12."""
    denoiser = made(process, parameterization)
    *_, before, last = nz.trajectory(
        denoiser, (1, 4, 4), solver=solver, grid=grid, seeds=[1, 2], steps=5, dtype=torch.float64
    )
    assert last.t == 0
    torch.testing.assert_close(last.x, denoiser(before.x, before.t).x0, rtol=1e-12, atol=1e-12)


def test_the_last_step_without_denoising_is_the_mean():
    """EulerMaruyama(denoise=False) ends with x + h (f x - g^2 score), h = -t, and no noise."""
    denoiser = made(VP, nz.Epsilon())
    *_, before, last = nz.trajectory(
        denoiser,
        (1, 4, 4),
        solver=EulerMaruyama(False),
        grid=nz.UniformGrid(),
        seeds=[1],
        steps=5,
        dtype=torch.float64,
    )
    t = f64(before.t)
    expected = before.x - t * (VP.drift(t) * before.x - VP.diffusion2(t) * denoiser.score(before.x, before.t))
    torch.testing.assert_close(last.x, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("process", [VP, nz.SubVP(), VE], ids=named)
@pytest.mark.parametrize(("solver", "name"), [(EulerMaruyama(), "em"), (ReverseDiffusion(), "rd")], ids=str)
def test_one_step_as_published(solver, name, process):
    """A step is the formula of the docstring with the denoiser's own score, to 1e-12."""
    denoiser = made(process, nz.Velocity())
    t, s = 0.5 * process.end, 0.3 * process.end
    _, [(row_t, row_s, _), _] = steps_of(solver, [t, s, 0.0], process, nz.Velocity())
    x, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = solver.step(lambda x, row: denoiser.output(x, row.t)[0], x, row_t, row_s, noise)
    score, (alpha, sigma) = denoiser.score(x, t), (value.tolist() for value in process(f64([t, s])))
    if name == "em":
        f, g2 = process.drift(f64(t)), process.diffusion2(f64(t))
        expected = x + (s - t) * (f * x - g2 * score) + torch.sqrt(g2 * (t - s)) * noise
    else:
        ratio = alpha[0] / alpha[1]
        beta = sigma[0] ** 2 - ratio**2 * sigma[1] ** 2
        expected = (2 - ratio) * x + beta * score + math.sqrt(beta) * noise
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_predictor_corrector_is_diffusers_score_sde_ve():
    """Over KarrasVE one image follows ScoreSdeVeScheduler, predictor then corrector at the lower level, to 1e-9."""
    from diffusers import ScoreSdeVeScheduler

    denoiser, times = made(VE, nz.Karras()), [20.0, 7.0, 2.0, 0.5, 0.1]
    scheduler = ScoreSdeVeScheduler(snr=0.16)
    scheduler.set_timesteps(5)
    scheduler.discrete_sigmas = f64(times[::-1])

    def correct(*args, **kwargs):
        """Its corrector draws in torch's default dtype, whatever x's."""
        torch.set_default_dtype(torch.float64)
        try:
            return scheduler.step_correct(*args, **kwargs)
        finally:
            torch.set_default_dtype(torch.float32)

    path = nz.trajectory(
        denoiser,
        (1, 4, 4),
        solver=PredictorCorrector(corrections=2),
        grid=Listed([*times, 0.0]),
        steps=5,
        seeds=[6],
        dtype=torch.float64,
    )
    x, generator = path[0].x, torch.Generator().manual_seed(6)
    torch.randn(1, 1, 4, 4, generator=generator, dtype=torch.float64)
    for k, state in zip((4, 3, 2, 1), path[1:5], strict=True):
        step = torch.tensor(k / 4)
        x = scheduler.step_pred(denoiser.score(x, times[4 - k]), step, x, generator=generator).prev_sample
        for _ in range(2):
            x = correct(denoiser.score(x, state.t), x, generator=generator).prev_sample
        torch.testing.assert_close(state.x, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("process", "parameterization", "grid"), [(VP, nz.Epsilon(), uniform), (VE, nz.Karras(), karras)], ids=named
)
def test_corrections_bring_the_variance_near_the_truth(process, parameterization, grid):
    """In 4096 dimensions, with 80 steps, two corrections leave a variance within snr^2 + 1 % of the data's, half the predictor's error."""
    times = grid(80)

    found = []
    for corrections in (0, 2):
        solver, steps = steps_of(PredictorCorrector(corrections=corrections), times, process, parameterization)
        generator = torch.Generator().manual_seed(2)
        x = steps[0][0].sigma * torch.randn(8, 4096, generator=generator, dtype=torch.float64)
        for row_t, row_s, inner in steps:
            n = solver.noisy(row_t, row_s)
            noise = torch.randn(n, *x.shape, generator=generator, dtype=torch.float64)
            x = solver.step(Normal(), x, row_t, row_s, None if n == 0 else noise[0] if n == 1 else noise, inner)
        found.append(abs(x.var().item() / VARIANCE - 1))
        assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert found[1] < 0.16**2 + 0.01
    assert found[1] < found[0] / 2


def test_langevin_is_stationary_at_its_own_variance():
    """In many dimensions, where |eps| = sqrt(D E eps^2), corrections at one level of variance V settle at V (1 + snr^2)."""
    snr = 0.3
    solver, [(row_t, row_s, _), _] = steps_of(PredictorCorrector(Heun(), 60, snr), [1.001, 1.0, 0.0], VE, nz.Velocity())
    generator = torch.Generator().manual_seed(4)
    V = VARIANCE + row_s.sigma**2
    x = MEAN + math.sqrt(V) * torch.randn(24, 4096, generator=generator, dtype=torch.float64)
    x = solver.step(Normal(), x, row_t, row_s, torch.randn(60, *x.shape, generator=generator, dtype=torch.float64))
    assert x.var().item() == pytest.approx(V * (1 + snr**2), rel=0.012)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.01)


def test_without_corrections_the_predictor_is_left():
    """PredictorCorrector(p, 0) takes p's steps bit by bit, also one of two draws and one that begins."""
    denoiser = made(VP, nz.Velocity())
    for predictor in (ReverseDiffusion(), Ancestral(), SECOND[1], Churn(6.0), Heun()):
        corrected = sampled(denoiser, PredictorCorrector(predictor, 0), nz.UniformGrid())
        assert torch.equal(corrected, sampled(denoiser, predictor, nz.UniformGrid()))


def test_an_estimate_of_no_noise_has_no_langevin_step():
    """A network that estimates eps = 0 gives a step of infinite length: NumericalError, not a silent number."""

    class Zero(torch.nn.Module):
        def forward(self, x, c):
            return torch.zeros_like(x)

    denoiser = nz.Denoiser(Zero(), VP, nz.Epsilon(), nz.Time())
    with pytest.raises(NumericalError, match="stop being finite"):
        sampled(denoiser, PredictorCorrector(), nz.UniformGrid())


@every
def test_an_image_depends_on_its_seed_only(solver):
    """Image i is the same, to 1e-12, in any batch, order and company, and another seed gives another image."""
    denoiser = made(VP, nz.Velocity())
    together = sampled(denoiser, solver, nz.UniformGrid(), seeds=[1, 2, 3])
    alone = sampled(denoiser, solver, nz.UniformGrid(), seeds=[1, 2, 3], batch=1)
    turned = sampled(denoiser, solver, nz.UniformGrid(), seeds=[9, 3, 1], batch=2)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(turned[1:], together[[2, 0]], rtol=1e-12, atol=1e-12)
    assert (together[0] - together[1]).abs().max() > 1e-2


@every
def test_a_step_never_writes_into_what_it_reads(solver):
    """x, F and the noise are left alone, and F may be x itself: the result is that of a copy."""
    solver, steps = steps_of(solver, [0.5, 0.3, 0.0], VP, nz.Velocity())
    for row_t, row_s, inner in steps:
        n = int(solver.noisy(row_t, row_s))
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(2, 8, generator=generator, dtype=torch.float64)
        drawn = torch.randn(n, 2, 8, generator=generator, dtype=torch.float64)
        noise = None if n == 0 else drawn[0] if n == 1 else drawn
        answer, kept = torch.full_like(x, 0.3), (x.clone(), drawn.clone())
        solver.step(lambda x, row, answer=answer: answer, x, row_t, row_s, noise, inner)
        aliased = solver.step(lambda x, row: x, x, row_t, row_s, noise, inner)
        copied = solver.step(lambda x, row: x.clone(), x, row_t, row_s, noise, inner)
        assert torch.equal(aliased, copied)
        assert torch.equal(x, kept[0])
        assert torch.equal(drawn, kept[1])
        assert bool((answer == 0.3).all())
        assert aliased.data_ptr() != x.data_ptr()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: FullDiffusionSolver(3), "orders 1 and 2, got 3"),
        (lambda: FullDiffusionSolver(True), "orders 1 and 2, got True"),
        (lambda: FullDiffusionSolver(2, "brigde"), "'brigde'; did you mean 'bridge'"),  # pyright: ignore
        (lambda: Churn(-1.0), "at least 0, got -1.0"),
        (lambda: Churn(math.inf), "at least 0, got inf"),
        (lambda: Churn(1.0, -0.1), "0 <= t_min <= t_max, got -0.1 and None"),
        (lambda: Churn(1.0, 2.0, 1.0), "0 <= t_min <= t_max, got 2.0 and 1.0"),
        (lambda: Churn(1.0, 0.0, math.inf), "got 0.0 and inf; None is no limit"),
        (lambda: Churn(1.0, 0.0, None, 0.0), "positive noise, got 0.0"),
        (lambda: FullDiffusionSolver(2.0), "orders 1 and 2, got 2.0"),  # pyright: ignore
        (lambda: PredictorCorrector(3), "a solver as predictor, got 3"),  # pyright: ignore
        (lambda: PredictorCorrector(corrections=-1), "whole number of corrections, got -1"),
        (lambda: PredictorCorrector(corrections=1.5), "whole number of corrections, got 1.5"),  # pyright: ignore
        (lambda: PredictorCorrector(snr=0.0), "positive snr, got 0.0"),
        (lambda: PredictorCorrector(snr=math.nan), "positive snr, got nan"),
    ],
)
def test_bad_arguments(build, words):
    """An argument outside its law is refused by value, with the law."""
    with pytest.raises(ArgumentError) as raised:
        build()
    assert words in str(raised.value)
