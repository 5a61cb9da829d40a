"""The process laws, against formulas written out here in numpy, fractions and mpmath."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nearzero as nz
from nearzero.errors import ArgumentError

law = settings(deadline=None, derandomize=True, max_examples=60)
betas = st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=40)
linear_vp = st.tuples(st.just(0.0) | st.floats(1e-3, 5), st.floats(1e-3, 30)).map(
    lambda pair: nz.LinearVP(pair[0], pair[0] + pair[1])
)
processes = st.one_of(linear_vp, betas.map(nz.DiscreteVP.from_betas))
both = pytest.mark.parametrize("process", [nz.LinearVP(), nz.DiscreteVP.linear()], ids=["LinearVP", "DiscreteVP"])


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


def ddpm_alpha_bar(steps=1000):
    """Cumulative product of 1 - beta in float64, beta from 1e-4 to 0.02."""
    return np.cumprod(1 - np.linspace(1e-4, 0.02, steps))


@law
@given(processes, st.floats(0, 1))
def test_variance_is_preserved(process, t):
    """alpha^2 + sigma^2 = 1 to 1e-12 at every time."""
    alpha, sigma = process(f64(t))
    assert abs(alpha.item() ** 2 + sigma.item() ** 2 - 1) < 1e-12


@law
@given(processes, st.sampled_from([torch.float32, torch.float64]))
def test_time_zero_is_exactly_data(process, dtype):
    """alpha = 1 and sigma = 0, exactly, at t = 0, and the answer has t's dtype and shape."""
    level = process(torch.zeros(2, 1, dtype=dtype))
    assert torch.equal(level.alpha, torch.ones(2, 1, dtype=dtype))
    assert torch.equal(level.sigma, torch.zeros(2, 1, dtype=dtype))


@law
@given(betas)
def test_nodes_are_products_of_one_minus_beta(values):
    """alpha^2 at node k is prod_{i <= k} (1 - beta_i) to relative 1e-12 and sigma^2 its complement, against exact fractions."""
    process, product = nz.DiscreteVP.from_betas(values), Fraction(1)
    alpha, sigma = process((torch.arange(len(values), dtype=torch.float64) + 1) / len(values))
    for k, beta in enumerate(values):
        product *= 1 - Fraction(beta)
        assert alpha[k].item() ** 2 == pytest.approx(float(product), rel=1e-12)
        assert sigma[k].item() ** 2 == pytest.approx(float(1 - product), rel=1e-12)


def test_ddpm_nodes_at_every_timestep():
    """The 1000 nodes of DDPM equal float64 cumulative products to 1e-12, and alpha-bar_T = 4.036e-5."""
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    alpha, sigma = nz.DiscreteVP.linear()(t)
    alpha_bar = ddpm_alpha_bar()
    np.testing.assert_allclose(alpha.numpy(), np.sqrt(alpha_bar), rtol=1e-12)
    np.testing.assert_allclose(sigma.numpy(), np.sqrt(1 - alpha_bar), rtol=1e-12)
    assert alpha[-1].item() ** 2 == pytest.approx(4.036e-5, rel=1e-3)


def test_ddpm_nodes_in_float32_lose_only_the_last_cast():
    """Asked in float32, the nodes are the float64 ones to relative 1e-6: no arithmetic happens in float32."""
    alpha, sigma = nz.DiscreteVP.linear()((torch.arange(1, 1001) / 1000).to(torch.float32))
    assert alpha.dtype == sigma.dtype == torch.float32
    np.testing.assert_allclose(alpha.double().numpy(), np.sqrt(ddpm_alpha_bar()), rtol=1e-6)
    np.testing.assert_allclose(sigma.double().numpy(), np.sqrt(1 - ddpm_alpha_bar()), rtol=1e-6)


@law
@given(processes, st.just(0.0) | st.floats(2**-20, 1, width=32))
def test_arithmetic_is_float64_whatever_the_dtype(process, t):
    """Level, drift and g^2 of a float32 time are those of the same time in float64, cast at the end, bit by bit."""
    narrow = torch.tensor(t, dtype=torch.float32)
    for ask in (lambda t: process(t).alpha, lambda t: process(t).sigma, process.drift, process.diffusion2):
        assert ask(narrow).dtype == torch.float32
        assert torch.equal(ask(narrow), ask(narrow.double()).to(torch.float32))


def test_ddpm_nodes_agree_with_diffusers():
    """alpha^2 at every node equals diffusers' alphas_cumprod to its float32 accuracy."""
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02).alphas_cumprod.double()
    ours = nz.DiscreteVP.linear()(torch.arange(1, 1001, dtype=torch.float64) / 1000).alpha ** 2
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-7)


def test_continuous_end_is_not_the_discrete_one():
    """alpha^2 at t = 1 is exp(-10.05) for LinearVP, 7 % above DDPM's product: the two are not interchangeable."""
    alpha_bar = nz.LinearVP()(f64(1.0)).alpha.item() ** 2
    assert alpha_bar == pytest.approx(math.exp(-10.05), rel=1e-12)
    assert alpha_bar / ddpm_alpha_bar()[-1] == pytest.approx(1.07, abs=0.005)


def high_precision_sigma(process, t):
    """sigma at the exact value of the float t, in 50 digits."""
    with mpmath.workdps(50):
        t = mpmath.mpf(t)
        if isinstance(process, nz.LinearVP):
            log_alpha = -(t**2) * (mpmath.mpf(process.beta_max) - process.beta_min) / 4 - t * process.beta_min / 2
        else:
            log_alpha = mpmath.log(1 - mpmath.mpf(1e-4)) / 2 * t * 1000  # inside the first piece
        return float(mpmath.sqrt(1 - mpmath.exp(2 * log_alpha)))


@both
@pytest.mark.parametrize("t", [1e-12, 1e-8, 1e-5, 1e-4, 7e-4])
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_sigma_near_zero_keeps_its_digits(process, t, dtype, rel):
    """sigma near t = 0 is right to relative 1e-6 in float32 and 1e-12 in float64."""
    t = torch.tensor(t, dtype=dtype)
    assert process(t).sigma.item() == pytest.approx(high_precision_sigma(process, t.item()), rel=rel)


def test_the_usual_formula_is_wrong_near_zero():
    """Control: sqrt(1 - alpha^2) in float32 at t = 1e-5 is 2.4 % wrong."""
    t = torch.tensor(1e-5, dtype=torch.float32)
    naive = torch.sqrt(1 - torch.exp(-0.25 * t**2 * 19.9 - 0.5 * t * 0.1) ** 2).item()
    assert abs(naive / high_precision_sigma(nz.LinearVP(), t.item()) - 1) == pytest.approx(0.024, abs=0.001)


def test_slope_of_sigma_at_zero():
    """sigma / sqrt(t) tends to .316228 as t -> 0 (E-TSDM A17), for DDPM's nodes to sqrt(-1000 log(1 - 1e-4))."""
    t = f64(10.0 ** np.arange(-16, -8))
    continuous, discrete = (
        (process(t).sigma / t.sqrt()).numpy() for process in (nz.LinearVP(), nz.DiscreteVP.linear())
    )
    np.testing.assert_allclose(continuous, 0.316228, atol=1e-6)
    np.testing.assert_allclose(discrete, 0.316228, atol=1e-5)
    np.testing.assert_allclose(discrete, math.sqrt(-1000 * math.log1p(-1e-4)), rtol=1e-7)


@law
@given(linear_vp, st.floats(0, 1))
def test_linear_vp_drift_and_diffusion(process, t):
    """f = -beta/2 and g^2 = beta with beta = beta_min + t (beta_max - beta_min), both ends included."""
    beta = process.beta_min + t * (process.beta_max - process.beta_min)
    assert process.drift(f64(t)).item() == pytest.approx(-beta / 2, rel=1e-12)
    assert process.diffusion2(f64(t)).item() == pytest.approx(beta, rel=1e-12)


@law
@given(processes, st.floats(1e-6, 1))
def test_drift_and_diffusion_are_derivatives_of_the_level(process, t):
    """f = d log alpha / dt and g^2 = 2 sigma^2 d log(sigma / alpha) / dt, by autograd."""
    t = f64(t).requires_grad_()
    alpha, sigma = process(t)
    (f,) = torch.autograd.grad(alpha.log(), t, retain_graph=True)
    (slope,) = torch.autograd.grad(sigma.log() - alpha.log(), t)
    assert process.drift(t).item() == pytest.approx(f.item(), rel=1e-9)
    assert process.diffusion2(t).item() == pytest.approx((2 * sigma**2 * slope).item(), rel=1e-9)


@pytest.mark.parametrize("steps", [7, 49, 250, 999, 1000])
def test_drift_at_a_node_is_that_of_the_piece_above(steps):
    """Time (k + 1) / N, exact or rounded, has the slope of the piece that starts there, the last node that of the last piece."""
    beta = np.linspace(1e-4, 0.02, steps)
    above = 0.5 * np.log1p(-np.append(beta[1:], beta[-1])) * steps
    drift = nz.DiscreteVP.linear(steps=steps).drift(torch.arange(1, steps + 1, dtype=torch.float64) / steps)
    np.testing.assert_allclose(drift.numpy(), above, rtol=1e-10)


@law
@given(betas, st.integers(0, 39), st.floats(0, 1))
def test_log_alpha_is_linear_between_nodes(values, k, part):
    """Between neighbouring nodes log alpha interpolates linearly in t, from 0 at t = 0."""
    k, steps = k % len(values), len(values)
    nodes = np.concatenate([[0], np.cumsum(np.log1p(-np.array(values))) / 2])
    log_alpha = nz.DiscreteVP.from_betas(values)(f64((k + part) / steps)).alpha.log().item()
    assert log_alpha == pytest.approx(nodes[k] + part * (nodes[k + 1] - nodes[k]), abs=1e-12, rel=1e-12)


@law
@given(processes, st.floats(1e-12, 1))
def test_time_of_logsnr_is_the_inverse(process, t):
    """logsnr(time_of_logsnr(l)) = l for every l that the process takes, to 1e-9."""
    logsnr = process(f64(t)).logsnr
    back = process.time_of_logsnr(logsnr)
    assert back.item() == pytest.approx(t, rel=1e-5)
    assert process(back.minimum(f64(1.0))).logsnr.item() == pytest.approx(logsnr.item(), abs=1e-9)


@both
def test_time_of_logsnr_round_trip_on_ddpm(process):
    """On DDPM's own schedules the round trip holds to relative 1e-9 from t = 1e-9 to 1."""
    t = f64(np.concatenate([10.0 ** np.arange(-9.0, -2.0), np.arange(1, 101) / 100]))
    torch.testing.assert_close(process.time_of_logsnr(process(t).logsnr), t, rtol=1e-9, atol=0)


@law
@given(processes, st.sampled_from([torch.float32, torch.float64]))
@example(nz.LinearVP(), torch.float64)
def test_time_of_infinite_logsnr_is_an_end(process, dtype):
    """+inf is told t = 0 and -inf, like all below the end's logsnr, t = end: exactly, and legal for the process itself."""
    logsnr = torch.tensor([math.inf, -math.inf, -1e6], dtype=dtype)
    assert process.time_of_logsnr(logsnr).tolist() == [0.0, process.end, process.end]


@pytest.mark.parametrize("process", [nz.LinearVP(), nz.LinearVP(0.7, 13.4), nz.DiscreteVP.linear()], ids=repr)
def test_the_end_comes_back_as_a_legal_time(process):
    """From the end's own logsnr and angle the inverses give a time that the process takes."""
    end = f64(process.end)
    process(process.time_of_logsnr(process(end).logsnr))
    process(process.clock.t(process.clock.u(end)))
    assert process.clock.t(f64(math.pi / 2)).item() == process.end


@law
@given(processes, st.floats(1e-4, 0.999))
def test_the_clock_reads_the_angle(process, t):
    """u = atan2(sigma, alpha), and u(t(u)) = u: the clock runs back and forth."""
    alpha, sigma = process(f64(t))
    u = process.clock.u(f64(t))
    assert u.item() == pytest.approx(math.atan2(sigma.item(), alpha.item()), rel=1e-14)
    assert process.clock.u(process.clock.t(u)).item() == pytest.approx(u.item(), rel=1e-9)


@both
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_clock_round_trip_on_ddpm(process, dtype, rel):
    """u(t(u)) = u from angle 0 to that of the end, in both precisions."""
    u = process.clock.u(torch.ones((), dtype=torch.float64)).item() * torch.linspace(0, 0.999, 200, dtype=torch.float64)
    u = u.to(dtype)
    torch.testing.assert_close(process.clock.u(process.clock.t(u)), u, rtol=rel, atol=0)


@law
@given(processes, st.floats(1e-4, 1))
def test_clock_slopes_are_derivatives_in_the_clock(process, t):
    """slopes = (d alpha / du, d sigma / du), each as a ratio of time derivatives by autograd."""
    t = f64(t).requires_grad_()
    alpha, sigma = process(t)
    derivative = [torch.autograd.grad(y, t, retain_graph=True)[0] for y in (alpha, sigma, torch.atan2(sigma, alpha))]
    slopes, lost = process.clock.slopes(t.detach()), 1e-15 / alpha.item()  # autograd of expm1 loses alpha^2 below 1e-16
    assert slopes[0].item() == pytest.approx((derivative[0] / derivative[2]).item(), rel=1e-8, abs=1e-12)
    assert slopes[1].item() == pytest.approx((derivative[1] / derivative[2]).item(), rel=1e-8, abs=1e-12 + lost)


@both
def test_clock_slopes_exist_at_zero(process):
    """At t = 0, where d sigma / dt is infinite, the slopes in the clock are (0, 1)."""
    slopes = process.clock.slopes(f64(0.0))
    assert (slopes[0].item(), slopes[1].item()) == (0.0, 1.0)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_bad_betas_are_refused(beta):
    """A beta outside (0, 1) is refused, and the message names the value and its node."""
    with pytest.raises(ArgumentError, match=rf"beta {beta} at node 1"):
        nz.DiscreteVP.from_betas([0.1, beta, 0.2])


def test_no_betas_are_refused():
    """A process needs at least one node."""
    with pytest.raises(ArgumentError, match="empty"):
        nz.DiscreteVP.from_betas([])
    with pytest.raises(ArgumentError, match="steps.*0"):
        nz.DiscreteVP.linear(steps=0)
    with pytest.raises(ArgumentError, match="steps.*2.5"):
        nz.DiscreteVP.linear(steps=2.5)


@pytest.mark.parametrize(
    "pair", [(-0.1, 20.0), (20.0, 0.1), (0.0, 0.0), (math.nan, 20.0), (0.1, math.nan), (0.1, math.inf)]
)
def test_bad_linear_vp_is_refused(pair):
    """LinearVP needs 0 <= beta_min <= beta_max, finite and not both 0."""
    with pytest.raises(ArgumentError, match="0 <= beta_min <= beta_max"):
        nz.LinearVP(*pair)


def test_from_betas_takes_any_sequence():
    """A list, a tuple and a tensor of the same betas make equal processes, equal to DDPM's own where the values are."""
    values = np.linspace(1e-4, 0.02, 10)
    as_list = nz.DiscreteVP.from_betas(values.tolist())
    assert (
        as_list
        == nz.DiscreteVP.from_betas(tuple(values.tolist()))
        == nz.DiscreteVP.from_betas(torch.from_numpy(values))
    )
    t = f64(np.linspace(0, 1, 37))
    torch.testing.assert_close(as_list(t).sigma, nz.DiscreteVP.linear(steps=10)(t).sigma, rtol=1e-12, atol=0)


@both
def test_times_outside_the_process_are_refused(process):
    """Level, drift and diffusion refuse times outside [0, 1]."""
    for ask in (process, process.drift, process.diffusion2, process.clock.u, process.clock.slopes):
        with pytest.raises(ArgumentError, match=r"outside \[0, 1\]"):
            ask(f64(1.001))
