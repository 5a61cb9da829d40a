"""One step from t to s: exact variances, DPM-Solver-1, diffusers' schedulers, order."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nearzero as nz
from nearzero.errors import ArgumentError
from nearzero.level import Row

law = settings(deadline=None, derandomize=True, max_examples=60)
DDPM = nz.DiscreteVP.linear()
SOLVERS = [nz.DDIM(), nz.DDIM(0.5), nz.DDIM(1.0), nz.Ancestral("upper"), nz.Ancestral("lower")]
every = pytest.mark.parametrize("solver", SOLVERS, ids=str)
NO_SIGNAL = Row(
    1.0, 0.0, 1.0, 0.0, -1.0, 1.0, 0.0, 1.0, 999.0, math.pi / 2, -1.0, 0.0, -10.0, 20.0
)  # Velocity at alpha = 0


def rows(times, process=DDPM, parameterization=None):
    """Rows of a process; the network plays no part."""
    denoiser = nz.Denoiser(torch.nn.Identity(), process, parameterization or nz.Epsilon(), nz.Time())
    return denoiser.rows(torch.as_tensor(times, dtype=torch.float64))


def ones(n=1):
    return torch.ones(n, dtype=torch.float64)


def linear_step(solver, evaluate, row_t, row_s):
    """(gain, noise coefficient) of a step that is linear in x and in the noise."""
    if not solver.noisy(row_t, row_s):
        return solver.step(evaluate, ones(), row_t, row_s, None).item(), 0.0
    gain = solver.step(evaluate, ones(), row_t, row_s, 0 * ones()).item()
    return gain, solver.step(evaluate, 0 * ones(), row_t, row_s, ones()).item()


def standard_normal(x, row):
    """The exact noise prediction for N(0, 1) data: eps = sigma x."""
    return row.sigma * x


def final_variance(solver, path):
    """Variance of the samples of N(0, 1) data, by the exact recursion v <- gain^2 v + coefficient^2."""
    variance = path[0].sigma ** 2
    for row_t, row_s in zip(path, path[1:], strict=False):
        gain, coefficient = linear_step(solver, standard_normal, row_t, row_s)
        variance = gain**2 * variance + coefficient**2
    return variance


@pytest.mark.parametrize(
    ("solver", "variance"), [(nz.Ancestral("upper"), 0.9999), (nz.Ancestral("lower"), 0.9911), (nz.DDIM(1.0), 0.9911)]
)
def test_ancestral_variance_on_standard_normal_data(solver, variance):
    """1000 steps with the exact network turn noise into N(0, 1) data of variance .9999 (upper) or .9911 (lower)."""
    assert final_variance(solver, rows(nz.UniformGrid()(1000, DDPM))) == pytest.approx(variance, abs=1e-4)


def test_the_printed_beta_gives_variance_six():
    """Control: E-TSDM's Algorithm A2 as printed, beta = 1 - alpha_t / alpha_{t-1} without the square, gives 6.04."""
    alpha = np.sqrt(np.concatenate([[1], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))]))

    def variance_with(power):
        variance = 1.0
        for k in range(1000, 0, -1):
            ratio = alpha[k] / alpha[k - 1]
            beta = 1 - ratio**power
            variance = ((1 - beta) / ratio) ** 2 * variance + (beta if k > 1 else 0)  # eps / sigma = x
        return variance

    assert variance_with(1) == pytest.approx(6.04, abs=0.01)
    assert variance_with(2) == pytest.approx(
        final_variance(nz.Ancestral("upper"), rows(nz.UniformGrid()(1000, DDPM))), rel=1e-4
    )


pairs = st.tuples(st.floats(1e-4, 1), st.floats(0, 0.999)).map(lambda pair: (pair[0], pair[0] * pair[1]))


@law
@given(pairs, st.floats(-5, 5), st.floats(-5, 5), st.floats(-5, 5))
def test_ancestral_mean_and_variance_are_the_posteriors(pair, x, eps, noise):
    """mean = (alpha_s / alpha_t)(x - beta / sigma_t eps), beta = 1 - (alpha_t / alpha_s)^2; variance beta or beta sigma_s^2 / sigma_t^2."""
    row_t, row_s = rows(pair, nz.LinearVP())
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (row_t.alpha, row_t.sigma), (row_s.alpha, row_s.sigma)
    beta = -math.expm1(2 * math.log(alpha_t / alpha_s))
    mean = alpha_s / alpha_t * (x - beta / sigma_t * eps)
    for variance, factor in (("upper", 1.0), ("lower", (sigma_s / sigma_t) ** 2)):
        given_noise = noise * ones() if sigma_s > 0 else None
        step = nz.Ancestral(variance).step(lambda x, row: 0 * x + eps, x * ones(), row_t, row_s, given_noise).item()
        expected = mean + (math.sqrt(beta * factor) * noise if sigma_s > 0 else 0)
        assert step == pytest.approx(expected, rel=1e-9, abs=1e-9 / alpha_t)


@law
@given(pairs, st.floats(-5, 5), st.floats(-5, 5), st.floats(-5, 5))
def test_ddim_with_eta_one_is_the_posterior(pair, x, eps, noise):
    """DDIM(1) and Ancestral("lower") take the same step to 1e-12, mean and noise."""
    row_t, row_s = rows(pair, nz.LinearVP())
    noise = noise * ones() if row_s.sigma > 0 else None
    one, other = (
        solver.step(lambda x, row: 0 * x + eps, x * ones(), row_t, row_s, noise).item()
        for solver in (nz.DDIM(1.0), nz.Ancestral("lower"))
    )
    assert one == pytest.approx(other, rel=1e-12, abs=1e-12 / row_t.alpha)


@law
@given(pairs.filter(lambda pair: pair[1] > 1e-100), st.floats(-5, 5), st.floats(-5, 5))
def test_ddim_is_dpm_solver_one(pair, x, eps):
    """DDIM(0) is x_s = alpha_s / alpha_t x - sigma_s (e^h - 1) eps, h = log(alpha_s / sigma_s) - log(alpha_t / sigma_t), to 1e-12."""
    row_t, row_s = rows(pair, nz.LinearVP())
    h = math.log(row_s.alpha / row_s.sigma) - math.log(row_t.alpha / row_t.sigma)
    expected = row_s.alpha / row_t.alpha * x - row_s.sigma * math.expm1(h) * eps
    step = nz.DDIM().step(lambda x, row: 0 * x + eps, x * ones(), row_t, row_s, None).item()
    assert step == pytest.approx(expected, rel=1e-12, abs=1e-12 / row_t.alpha)


@law
@given(pairs, st.floats(0, 1), st.floats(-5, 5), st.floats(-5, 5))
def test_ddim_keeps_the_marginal(pair, eta, x0, eps):
    """With the true x0 and eps, mean and variance of DDIM's step are those of q(x_s | x0) when eps is N(0, 1), for every eta."""
    row_t, row_s = rows(pair, nz.LinearVP())
    solver = nz.DDIM(eta)
    of_x0 = solver.step(lambda x, row: 0 * x, row_t.alpha * x0 * ones(), row_t, row_s, None).item()
    assert of_x0 == pytest.approx(row_s.alpha * x0, rel=1e-12, abs=1e-12)
    of_eps = solver.step(lambda x, row: 0 * x + eps, row_t.sigma * eps * ones(), row_t, row_s, None).item()
    _, of_noise = linear_step(solver, standard_normal, row_t, row_s)
    assert of_eps**2 + (of_noise * eps) ** 2 == pytest.approx((row_s.sigma * eps) ** 2, rel=1e-9, abs=1e-12)


@every
@pytest.mark.parametrize("parameterization", [nz.Epsilon(), nz.Velocity()])
def test_the_last_step_returns_the_estimate_of_x0(solver, parameterization):
    """A step to s = 0 adds no noise and gives x0 = A x + B F, the denoiser's own estimate."""
    row_t, row_s = rows([0.02, 0.0], parameterization=parameterization)
    assert not solver.noisy(row_t, row_s)
    x, F = torch.tensor([1.5, -0.3], dtype=torch.float64), torch.tensor([0.2, 0.7], dtype=torch.float64)
    x_0 = solver.step(lambda x, row: F.clone(), x.clone(), row_t, row_s, None)
    torch.testing.assert_close(x_0, row_t.A * x + row_t.B * F, rtol=1e-14, atol=0)


class Waves(torch.nn.Module):
    """A fixed random network that mixes all numbers of x and depends on c."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        inner, outer = torch.randn(2, 16, 16, generator=generator, dtype=torch.float64)
        self.inner, self.outer = torch.nn.Parameter(0.3 * inner), torch.nn.Parameter(0.3 * outer)

    def forward(self, x, c):
        hidden = torch.tanh(x.flatten(1) @ self.inner + torch.sin(c / 100)[:, None])
        return (hidden @ self.outer).reshape(x.shape)


def our_path(solver, spacing, steps, seeds, network):
    denoiser = nz.Denoiser(network, DDPM, nz.Epsilon(), nz.Timestep(1000))
    dtype = next(network.parameters()).dtype
    return nz.trajectory(
        denoiser, (1, 4, 4), solver=solver, grid=nz.TimestepGrid(spacing), steps=steps, seeds=seeds, dtype=dtype
    )


@torch.no_grad()
def their_path(scheduler, steps, x, network, **options):
    """diffusers' states from the first noise x; the loop of its pipelines."""
    scheduler.set_timesteps(steps)
    path = [x]
    for k in scheduler.timesteps[:steps]:
        x = scheduler.step(network(x, torch.full((len(x),), float(k), dtype=x.dtype)), int(k), x, **options).prev_sample
        path.append(x)
    return path


def furthest(ours, theirs):
    """Largest difference of two paths, relative to the largest state."""
    assert len(ours) == len(theirs)
    size = max(x.abs().max().item() for x in theirs)
    return max((state.x - x).abs().max().item() for state, x in zip(ours, theirs, strict=True)) / size


def in_float64(scheduler):
    """diffusers with its alphas_cumprod computed in float64: its float32 ones are off by 1.7e-4 in sigma^2 at node 0."""
    scheduler.alphas_cumprod = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    return scheduler


def ddim_scheduler(spacing):
    from diffusers import DDIMScheduler

    return DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing=spacing)


CASES = [("trailing", 20), ("trailing", 40), ("leading", 50), ("leading", 30), ("trailing", 1000)]


@pytest.mark.parametrize(("spacing", "steps"), CASES)
def test_ddim_paths_are_those_of_diffusers(spacing, steps):
    """Every state of DDIM equals DDIMScheduler's from the same noise: relative 1e-5 in float32, 1e-11 in float64."""
    for network, scheduler, tolerance in (
        (Waves().float(), ddim_scheduler(spacing), 1e-5),
        (Waves(), in_float64(ddim_scheduler(spacing)), 1e-11),
    ):
        ours = our_path(nz.DDIM(), spacing, steps, [1, 2], network)
        assert furthest(ours, their_path(scheduler, steps, ours[0].x, network)) < tolerance


@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 30), ("linspace", 50)])
def test_diffusers_ddim_leaves_its_own_timesteps(spacing, steps):
    """A finding: diffusers steps by 1000 // n, not to its own next timestep; where these differ, ours follows the grid."""
    network = Waves()
    ours = our_path(nz.DDIM(), spacing, steps, [1], network)
    scheduler = in_float64(ddim_scheduler(spacing))
    assert furthest(ours, their_path(scheduler, steps, ours[0].x, network)) > 1e-3
    assert [state.t for state in ours] == [*((scheduler.timesteps[:steps].double() + 1) / 1000).tolist(), 0.0]


@pytest.mark.parametrize(("variance", "name"), [("upper", "fixed_large"), ("lower", "fixed_small")])
@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 1000), ("leading", 50), ("leading", 30)])
def test_ancestral_paths_are_those_of_diffusers(variance, name, spacing, steps):
    """Every state of Ancestral equals DDPMScheduler's with the noise that one generator draws, to relative 1e-11 in float64."""
    from diffusers import DDPMScheduler

    network, generator = Waves(), torch.Generator().manual_seed(5)
    ours = our_path(nz.Ancestral(variance), spacing, steps, [5], network)
    torch.randn(1, 1, 4, 4, generator=generator, dtype=torch.float64)  # the first noise
    scheduler = in_float64(DDPMScheduler(clip_sample=False, variance_type=name, timestep_spacing=spacing))
    assert furthest(ours, their_path(scheduler, steps, ours[0].x, network, generator=generator)) < 1e-11


def test_diffusers_ddpm_ends_with_noise():
    """A finding: where the last timestep is not 0 (trailing 20) DDPMScheduler adds noise to its result; here the last step never does."""
    from diffusers import DDPMScheduler

    network, generator = Waves(), torch.Generator().manual_seed(5)
    ours = our_path(nz.Ancestral("upper"), "trailing", 20, [5], network)
    torch.randn(1, 1, 4, 4, generator=generator, dtype=torch.float64)
    scheduler = in_float64(DDPMScheduler(clip_sample=False, variance_type="fixed_large", timestep_spacing="trailing"))
    theirs = their_path(scheduler, 20, ours[0].x, network, generator=generator)
    assert furthest(ours[:-1], theirs[:-1]) < 1e-11
    last = math.sqrt(1 - np.prod(1 - np.linspace(1e-4, 0.02, 1000)[:50])) * torch.randn(
        1, 1, 4, 4, generator=replay(20), dtype=torch.float64
    )
    torch.testing.assert_close(theirs[-1] - ours[-1].x, last, rtol=1e-9, atol=1e-9)


def replay(draws):
    """Seed 5's generator after so many images."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(draws):
        torch.randn(1, 1, 4, 4, generator=generator, dtype=torch.float64)
    return generator


def test_ddim_converges_with_order_one():
    """On N(.5, .25) data, whose path is known, the error of DDIM on SqrtGrid falls with an order that rises to 1."""
    mean, sd, process = 0.5, 0.5, nz.LinearVP()
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)

    def network(x, row):
        return row.sigma * (x - row.alpha * mean) / ((row.alpha * sd) ** 2 + row.sigma**2)

    errors = []
    for steps in (20, 40, 80, 160, 320):
        path, x = rows(nz.SqrtGrid()(steps, process), process), start
        for row_t, row_s in zip(path, path[1:], strict=False):
            x = nz.DDIM().step(network, x, row_t, row_s, None)
        exact = mean + sd * (start - path[0].alpha * mean) / math.hypot(path[0].alpha * sd, path[0].sigma)
        errors.append((x - exact).square().mean().sqrt().item())
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert orders == sorted(orders)
    assert 0.95 < orders[0] and 0.99 < orders[-1] < 1.0
    assert errors[-1] < 5e-3


@every
def test_a_step_never_writes_into_what_it_reads(solver):
    """x, F and the noise are left alone, and F may be x itself: the result is that of a copy."""
    row_t, row_s = rows([0.5, 0.3])
    x, noise = torch.randn(2, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).unbind()
    noise = noise if solver.noisy(row_t, row_s) else None
    kept = [tensor if tensor is None else tensor.clone() for tensor in (x, noise)]
    aliased = solver.step(lambda x, row: x, x, row_t, row_s, noise)
    copied = solver.step(lambda x, row: x.clone(), x, row_t, row_s, noise)
    assert torch.equal(aliased, copied)
    assert torch.equal(x, kept[0])
    assert noise is None or torch.equal(noise, kept[1])
    assert aliased.data_ptr() != x.data_ptr()


@every
def test_the_first_step_without_signal(solver):
    """From alpha_t = 0, where x0 = -F and eps = x, the step is finite: alpha_s x0 + c eps + d noise with the limits of c and d."""
    (row_s,) = rows([0.5], parameterization=nz.Velocity())
    c, d = {
        nz.DDIM(): (row_s.sigma, 0.0),
        nz.DDIM(0.5): (row_s.sigma * math.sqrt(0.75), row_s.sigma * 0.5),
        nz.DDIM(1.0): (0.0, row_s.sigma),
        nz.Ancestral("upper"): (0.0, 1.0),
        nz.Ancestral("lower"): (0.0, row_s.sigma),
    }[solver]
    x, F, noise = (torch.tensor([value], dtype=torch.float64) for value in (1.3, -0.4, 0.7))
    step = solver.step(lambda x, row: F, x, NO_SIGNAL, row_s, noise if solver.noisy(NO_SIGNAL, row_s) else None).item()
    assert step == pytest.approx(row_s.alpha * 0.4 + c * 1.3 + d * 0.7, rel=1e-14)


@every
def test_one_call_of_the_network_a_step(solver):
    """Each step asks once, at the time that it leaves, and declares no stages between."""
    row_t, row_s = rows([0.5, 0.3])
    asked = []
    solver.step(
        lambda x, row: asked.append(row) or x, ones(), row_t, row_s, ones() if solver.noisy(row_t, row_s) else None
    )
    assert asked == [row_t]
    assert solver.stages(0.5, 0.3, DDPM) == ()


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_bad_eta_is_refused(eta):
    """eta outside [0, 1] is refused by value."""
    with pytest.raises(ArgumentError, match=rf"eta in \[0, 1\], got {eta}"):
        nz.DDIM(eta)


def test_an_unknown_variance_is_corrected():
    """A misspelt variance is refused with the nearest name."""
    with pytest.raises(ArgumentError, match="'uper'; did you mean 'upper'"):
        nz.Ancestral("uper")
