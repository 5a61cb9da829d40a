"""The laws of every process, against its paper's formula in mpmath, written out here."""

import functools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

import nearzero as nz
from nearzero.errors import ArgumentError
from nearzero.level import timesteps
from nearzero.process import discrete

law = settings(deadline=None, derandomize=True, max_examples=80)
LISTED = [0.02, 0.3, 1e-4, 0.07, 0.5, 0.11, 0.2]
ZERO = nz.ZeroTerminalSNR
ANGLE = {  # the variance-preserving ones
    "LinearVP": nz.LinearVP(),
    "LinearVP, beta_min 0": nz.LinearVP(beta_min=0.0),
    "QuadraticVP": nz.QuadraticVP(),
    "QuadraticVP, beta_min 0": nz.QuadraticVP(beta_min=0.0),
    "CosineVP": nz.CosineVP(),
    "CosineVP, offset 0": nz.CosineVP(offset=0.0),
    "ShiftedCosine": nz.ShiftedCosine(),
    "ShiftedCosine 0.5": nz.ShiftedCosine(0.5),
    "LinearSigmaVP": nz.LinearSigmaVP(),
    "DiscreteVP.linear": nz.DiscreteVP.linear(),
    "DiscreteVP.quadratic": nz.DiscreteVP.quadratic(),
    "DiscreteVP.cosine": nz.DiscreteVP.cosine(),
    "DiscreteVP.from_betas": nz.DiscreteVP.from_betas(LISTED),
    "ZeroTerminalSNR LinearVP": ZERO(nz.LinearVP()),
    "ZeroTerminalSNR QuadraticVP": ZERO(nz.QuadraticVP()),
    "ZeroTerminalSNR CosineVP": ZERO(nz.CosineVP()),
    "ZeroTerminalSNR DiscreteVP.linear": ZERO(nz.DiscreteVP.linear()),
    "ZeroTerminalSNR DiscreteVP.cosine": ZERO(nz.DiscreteVP.cosine()),
}
PLAIN = {
    "SubVP": nz.SubVP(),
    "SubVP, beta_min 0": nz.SubVP(beta_min=0.0),
    "StraightPath": nz.StraightPath(),
    "SongVE": nz.SongVE(),
    "KarrasVE": nz.KarrasVE(),
}
ALL = ANGLE | PLAIN
NO_SIGNAL = {"CosineVP", "CosineVP, offset 0", "ShiftedCosine", "ShiftedCosine 0.5", "LinearSigmaVP", "StraightPath"}
NO_SIGNAL |= {name for name in ALL if name.startswith("ZeroTerminalSNR")}  # at the end


def every(names, argument="process"):
    """Parametrizes by the processes of a dict."""
    return pytest.mark.parametrize(argument, names.values(), ids=names.keys())


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


# ---- the oracle: alpha and sigma in mpmath's working precision; t is an mpf


@functools.cache
def exact_betas(schedule):
    """The betas of a schedule by its paper's formula, in 80 digits."""
    with mpmath.workdps(80):
        if isinstance(schedule, discrete.ListedBetas):
            return [mpf(beta) for beta in schedule.betas]
        n = schedule.steps
        if isinstance(schedule, discrete.CosineBetas):
            s = mpf(schedule.offset)
            bar = [mp.cos((mpf(k) / n + s) / (1 + s) * mp.pi / 2) ** 2 for k in range(n + 1)]
            return [min(mpf(schedule.cap), 1 - bar[k + 1] / bar[k]) for k in range(n)]
        power = {discrete.LinearBetas: 1, discrete.QuadraticBetas: 2}[type(schedule)]
        first, last = mp.root(mpf(schedule.start), power), mp.root(mpf(schedule.end), power)
        return [(first + (last - first) * k / max(n - 1, 1)) ** power for k in range(n)]


@functools.cache
def exact_nodes(schedule):
    """alpha at t = 0, 1/steps, ..., 1: square roots of the products of 1 - beta, and their logarithms."""
    with mpmath.workdps(80):
        alphas = [mpf(1)]
        for beta in exact_betas(schedule):
            alphas.append(alphas[-1] * mp.sqrt(1 - beta))
        return alphas, [mp.log(alpha) for alpha in alphas]


def signal(process, t):
    """alpha."""
    match process:
        case nz.LinearVP(beta_min=low, beta_max=high) | nz.SubVP(beta_min=low, beta_max=high):
            return mp.exp(-(t**2) * (mpf(high) - mpf(low)) / 4 - t * mpf(low) / 2)
        case nz.QuadraticVP(beta_min=low, beta_max=high):
            a = mp.sqrt(mpf(low))
            d = mp.sqrt(mpf(high)) - a
            return mp.exp(-((a + d * t) ** 3 - a**3) / (6 * d))
        case nz.CosineVP(offset=s):
            return mp.cos((t + mpf(s)) / (1 + mpf(s)) * mp.pi / 2) / mp.cos(mpf(s) / (1 + mpf(s)) * mp.pi / 2)
        case nz.ShiftedCosine(shift=shift):
            return 1 / mp.sqrt(1 + (mpf(shift) * mp.tan(mp.pi * t / 2)) ** 2)
        case nz.LinearSigmaVP():
            return mp.sqrt(1 - t**2)
        case nz.StraightPath():
            return 1 - t
        case nz.SongVE() | nz.KarrasVE():
            return mpf(1)
        case nz.DiscreteVP():
            logs = exact_nodes(process.betas)[1]
            n = len(logs) - 1
            k = min(int(mp.floor(t * n)), n - 1)
            return mp.exp(logs[k] + (t * n - k) * (logs[k + 1] - logs[k]))
        case nz.ZeroTerminalSNR(base=base):
            first = mpf(1) / base.steps if isinstance(base, nz.DiscreteVP) else mpf(0)
            here, one, last = (signal(base, time) for time in (t, first, mpf(1)))
            return here if t < first else (here - last) * one / (one - last)
    raise TypeError(process)


def noise(process, t):
    """sigma."""
    match process:
        case nz.SongVE():
            return mp.sqrt(t)
        case nz.KarrasVE() | nz.StraightPath():
            return t
        case nz.SubVP():
            return 1 - signal(process, t) ** 2
    return mp.sqrt(1 - signal(process, t) ** 2)


def exact_level(process, t):
    """(alpha, sigma) at a float; what an mpf of pi leaves of zero at the end is removed."""
    alpha, sigma = signal(process, mpf(t)), noise(process, mpf(t))
    return (mp.chop(alpha, mpf(10) ** -70) if t == process.end else alpha), sigma


def digits(t):
    """A working precision that keeps 80 digits of 1 - alpha^2 at a float t."""
    return mpmath.workdps(500 if t == 0 else 80 + 3 * max(0, math.ceil(-math.log10(t))))


def derivative(function, process, t):
    """A difference quotient in mpmath, from inside; that of the piece above where a process has pieces."""
    base = getattr(process, "base", process)
    direction = -1 if t == process.end else 1 if t == 0 or isinstance(base, nz.DiscreteVP) else 0
    return mp.diff(lambda time: function(process, time), mpf(t), direction=direction)


def assert_close(got, exact, rel, least=2**-1074, what=""):
    """A float is the mpf to a relative error, down to the least number that its dtype holds."""
    error = abs(mpf(got) - exact)
    assert error <= rel * abs(exact) + mpf(least), f"{what}: {got} instead of {mp.nstr(exact, 20)}"


def times(process):
    """t = 0, 1e-300, 1e-12, 1e-5, 0.001, between, near the end, the end; 0.001 lies just above a node.

    LinearVP(beta_min=0) starts at 1e-150: its beta t^2 / 4 is no float64 number below.
    """
    between = np.random.default_rng(0).uniform(0.01, 0.99, 4)
    least = 1e-150 if isinstance(process, nz.LinearVP) and process.beta_min == 0 else 1e-300
    return [0.0, least, 1e-12, 1e-5, 0.001, *(process.end * f for f in [*between.tolist(), 0.9985, 1 - 1e-12, 1])]


def inside(process):
    """Those of `times` between the ends at which sigma is a number that float64 holds."""
    with mpmath.workdps(1000):
        return [t for t in times(process)[1:-1] if noise(process, mpf(t)) > mpf(2) ** -1022]


def cost(process, t):
    """What alpha - alpha_end costs ZeroTerminalSNR, relative to what is left; 0 for the rest and where alpha_end is 0.

    16 roundings of alpha_end, and what the slope of log alpha makes of the rounding of a time in a discrete base.
    """
    if not isinstance(process, ZERO) or t in (0, process.end):
        return 0
    last, roundings = exact_level(process.base, 1.0)[0], mpf(16)
    if isinstance(process.base, nz.DiscreteVP):
        logs = exact_nodes(process.base.betas)[1]
        roundings += (logs[-2] - logs[-1]) * process.steps
    return roundings * mpf(2) ** -52 * last / (signal(process.base, mpf(t)) - last)


lows = st.just(0.0) | st.floats(1e-3, 5)
pairs = st.tuples(lows, st.floats(1e-2, 30)).map(lambda pair: (pair[0], pair[0] + pair[1]))
steps = st.integers(2, 60)
smooth = st.one_of(
    pairs.map(lambda pair: nz.LinearVP(*pair)),
    pairs.map(lambda pair: nz.QuadraticVP(*pair)),
    (st.just(0.0) | st.floats(1e-4, 2)).map(nz.CosineVP),
    st.floats(1e-2, 100).map(nz.ShiftedCosine),
    st.just(nz.LinearSigmaVP()),
    steps.map(nz.DiscreteVP.linear),
    steps.map(nz.DiscreteVP.quadratic),
    steps.map(nz.DiscreteVP.cosine),
)
processes = st.one_of(
    smooth,
    smooth.map(ZERO),
    pairs.map(lambda pair: nz.SubVP(*pair)),
    st.just(nz.StraightPath()),
    st.floats(1e-3, 1e6).map(nz.SongVE),
    st.floats(1e-3, 1e4).map(nz.KarrasVE),
)
parts = st.floats(0, 1, allow_subnormal=False).filter(lambda part: part == 0 or part > 1e-30)
parts |= st.floats(0, 30).map(lambda e: 10.0**-e)


# ---- alpha and sigma


@every(ALL)
def test_levels_are_their_papers(process):
    """alpha and sigma are the paper's formula to relative 1e-12, from t = 0 to the end, but for `cost`."""
    for t in times(process):
        got = process(f64(t))
        with digits(t):
            for mine, exact in zip(got, exact_level(process, t), strict=True):
                assert_close(mine.item(), exact, 1e-12 + cost(process, t), what=f"t = {t}")


@law
@given(processes, parts)
def test_levels_of_any_parameters_are_their_papers(process, part):
    """Whatever the parameters, alpha and sigma are the paper's formula to relative 1e-12, down to 1e-30 of the end."""
    t = process.end * part
    got = process(f64(t))
    with digits(t):
        for mine, exact in zip(got, exact_level(process, t), strict=True):
            assert_close(mine.item(), exact, 1e-12 + cost(process, t))


@every(ALL)
def test_levels_in_float32_are_the_exact_ones_rounded(process):
    """Asked in float32, alpha and sigma are the exact values at that float32 time, rounded once."""
    near = [0.9985, 1 - 2**-12, 1 - 2**-24]
    for t in [1e-38, 1e-12, 1e-5, 0.001, *(process.end * f for f in [0.123, 0.4567, 0.89, *near, 1])]:
        narrow = torch.tensor(t, dtype=torch.float32)
        got = process(narrow)
        with digits(narrow.item()):
            for mine, exact in zip(got, exact_level(process, narrow.item()), strict=True):
                assert mine.dtype == torch.float32
                rounding = 2**-24 * (1 + 1e-6) + cost(process, narrow.item())
                assert_close(mine.item(), exact, rounding, least=2**-150, what=f"t = {t}")


@every(ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_time_zero_is_exactly_data(process, dtype):
    """alpha = 1 and sigma = 0 at t = 0, exactly, with t's shape and dtype."""
    alpha, sigma = process(torch.zeros(3, 1, dtype=dtype))
    assert torch.equal(alpha, torch.ones(3, 1, dtype=dtype))
    assert torch.equal(sigma, torch.zeros(3, 1, dtype=dtype))


@every({name: ALL[name] for name in sorted(NO_SIGNAL)})
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_end_without_signal_is_exactly_noise(process, dtype):
    """Where a process ends without signal its end is alpha = 0 and sigma = 1, exactly."""
    alpha, sigma = process(torch.ones(2, dtype=dtype))
    assert alpha.tolist() == [0.0, 0.0]
    assert sigma.tolist() == [1.0, 1.0]


@every(ALL)
def test_signal_falls_and_noise_grows(process):
    """Strictly: sigma grows from 1e-100 to the end, alpha falls wherever steps of 1/2000 can show it; VE keeps alpha = 1."""
    even = f64(np.arange(2001) / 2000) * process.end
    small = f64(10.0 ** np.linspace(-100, -4, 500))
    assert bool((process(even).sigma.diff() > 0).all())
    assert bool((process(small).sigma.diff() > 0).all())
    assert bool((process(small).alpha.diff() <= 0).all())
    if isinstance(process, nz.SongVE | nz.KarrasVE):
        assert torch.equal(process(even).alpha, torch.ones_like(even))
    else:
        assert bool((process(even).alpha.diff() < 0).all())


@law
@given(st.one_of(smooth, smooth.map(ZERO)), parts)
def test_variance_is_preserved(process, t):
    """alpha^2 + sigma^2 = 1 to 1e-14."""
    alpha, sigma = process(f64(t))
    assert abs(alpha.item() ** 2 + sigma.item() ** 2 - 1) < 1e-14


@law
@given(pairs, parts)
def test_sub_vp_and_straight_paths_lie_on_their_curves(pair, t):
    """Sub-VP: alpha^2 + sigma = 1 to 1e-14; straight: alpha + sigma = 1 to one rounding."""
    alpha, sigma = nz.SubVP(*pair)(f64(t))
    assert abs(alpha.item() ** 2 + sigma.item() - 1) < 1e-14
    alpha, sigma = nz.StraightPath()(f64(t))
    assert abs(alpha.item() + sigma.item() - 1) <= 2**-53


@law
@given(st.floats(1e-2, 100), st.floats(1e-6, 1 - 1e-6))
def test_shifted_cosine_is_the_plain_one_shifted(shift, t):
    """logSNR is -2 log tan(pi t / 2), the plain cosine's, less 2 log(shift)."""
    mine, plain = (process(f64(t)).logsnr.item() for process in (nz.ShiftedCosine(shift), nz.CosineVP(0.0)))
    with mpmath.workdps(40):
        exact = -2 * mp.log(mp.tan(mp.pi * mpf(t) / 2))
        assert plain == pytest.approx(float(exact), rel=1e-12, abs=1e-12)
        assert mine == pytest.approx(float(exact - 2 * mp.log(mpf(shift))), rel=1e-12, abs=1e-12)


HALF = ["LinearVP", "QuadraticVP", "CosineVP", *(name for name in ALL if "DiscreteVP" in name), "SongVE"]
HALF += ["ZeroTerminalSNR LinearVP", "ZeroTerminalSNR QuadraticVP", "ZeroTerminalSNR CosineVP"]
ONE = ["LinearSigmaVP", "ShiftedCosine", "ShiftedCosine 0.5", "KarrasVE", "SubVP", "StraightPath"]
ONE += ["LinearVP, beta_min 0", "CosineVP, offset 0"]
EXPONENTS = dict.fromkeys(HALF, 1 / 2) | dict.fromkeys(ONE, 1)
EXPONENTS |= {"QuadraticVP, beta_min 0": 3 / 2, "SubVP, beta_min 0": 2}


@pytest.mark.parametrize("name", ALL)
def test_exponent_of_sigma_at_zero(name):
    """sigma ~ C t^p: 1/2 is the singular class, beta_min = 0 and offset = 0 leave it (E-TSDM's Modified-NS)."""
    one, other = ALL[name](f64([1e-14, 1e-10])).sigma.tolist()
    assert math.log(other / one) / math.log(1e4) == pytest.approx(EXPONENTS[name], abs=1e-6)


@pytest.mark.parametrize(("name", "limit"), [("LinearVP", 0.316228), ("QuadraticVP", 0.316228), ("CosineVP", 0.197120)])
def test_slope_of_sigma_at_zero(name, limit):
    """sigma / sqrt(t) tends to sqrt(-2 alpha'(0)), with the paper's digits (E-TSDM A17)."""
    with mpmath.workdps(60):
        assert float(mp.sqrt(-2 * derivative(signal, ALL[name], 0.0))) == pytest.approx(limit, abs=1e-6)
    t = f64(10.0 ** np.arange(-300, -9, 10))
    np.testing.assert_allclose((ALL[name](t).sigma / t.sqrt()).numpy(), limit, rtol=0, atol=1e-6)


# ---- drift and diffusion


@every(ALL)
def test_drift_is_the_derivative_of_log_alpha(process):
    """f = d log alpha / dt to relative 1e-9, t = 0 included, and the end where it has signal."""
    for t in times(process):
        with digits(t):
            alpha = exact_level(process, t)[0]
            if alpha != 0:
                exact = derivative(signal, process, t) / alpha
                assert_close(process.drift(f64(t)).item(), exact, 1e-9 + cost(process, t), what=f"t = {t}")


@every(ALL)
def test_diffusion_is_what_the_variance_needs(process):
    """g^2 = d sigma^2 / dt - 2 f sigma^2 to relative 1e-9, t = 0 included, and the end where it has signal."""
    for t in times(process):
        with digits(t):
            alpha, sigma = exact_level(process, t)
            if alpha != 0:
                f = derivative(signal, process, t) / alpha
                exact = derivative(lambda process, t: noise(process, t) ** 2, process, t) - 2 * f * sigma**2
                assert_close(process.diffusion2(f64(t)).item(), exact, 1e-9 + cost(process, t), what=f"t = {t}")


@every(ALL)
def test_diffusion_is_the_loss_of_snr(process):
    """g^2 = 2 sigma^2 d log(sigma / alpha) / dt to relative 1e-9."""

    def log_ratio(process, t):
        return mp.log(noise(process, t) / signal(process, t))

    for t in inside(process):
        with digits(t):
            exact = 2 * noise(process, mpf(t)) ** 2 * derivative(log_ratio, process, t)
            assert_close(process.diffusion2(f64(t)).item(), exact, 1e-9 + cost(process, t), what=f"t = {t}")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drift_is_infinite_exactly_where_the_signal_is_lost(name, dtype):
    """f = -inf and g^2 = inf at the end if alpha is 0 there, and everything else is finite."""
    process = ALL[name]
    t = f64(times(process) + [process.end * f for f in np.linspace(0, 1, 200)]).to(dtype)
    f, g2 = process.drift(t), process.diffusion2(t)
    lost = (t == process.end) & (name in NO_SIGNAL)
    assert bool(f[~lost].isfinite().all() and g2[~lost].isfinite().all())
    assert bool((f[lost] == -math.inf).all() and (g2[lost] == math.inf).all())


@law
@given(processes, st.just(0.0) | st.floats(2**-20, 1, width=32))
def test_arithmetic_is_float64_whatever_the_dtype(process, part):
    """Level, drift and g^2 of a float32 time are those of the same time in float64, cast at the end, bit by bit."""
    narrow = torch.tensor(process.end * 0.999 * part, dtype=torch.float32)
    for ask in (lambda t: process(t).alpha, lambda t: process(t).sigma, process.drift, process.diffusion2):
        assert ask(narrow).dtype == torch.float32
        assert torch.equal(ask(narrow), ask(narrow.double()).to(torch.float32))


# ---- the inverse


def exact_logsnr(process, t):
    return 2 * mp.log(signal(process, t) / noise(process, t))


@every(ALL)
def test_time_of_an_exact_logsnr(process):
    """The exact 2 log(alpha / sigma) at t, rounded once, gives t back to relative 1e-12, wherever sigma is a number."""
    for t in inside(process):
        with digits(t):
            logsnr = float(exact_logsnr(process, mpf(t)))
        assert process.time_of_logsnr(f64(logsnr)).item() == pytest.approx(t, rel=1e-12, abs=0)


@every(ALL)
def test_time_of_logsnr_in_float32(process):
    """In float32 the answer is the exact time of that float32 logsnr, rounded once: found by Newton's step in mpmath."""
    for t in [1e-30, 1e-12, 1e-5, 0.0012, *(process.end * f for f in [0.1234, 0.4567, 0.8915, 0.9985])]:
        with digits(t):
            logsnr = torch.tensor(float(exact_logsnr(process, mpf(t))), dtype=torch.float32)
            step = (mpf(logsnr.item()) - exact_logsnr(process, mpf(t))) / derivative(exact_logsnr, process, t)
            got = process.time_of_logsnr(logsnr)
            assert got.dtype == torch.float32
            assert_close(got.item(), t + step, 2**-24 * (1 + 1e-3), what=f"t = {t}")


@law
@given(processes, parts)
def test_time_of_logsnr_undoes_logsnr(process, part):
    """time_of_logsnr(logsnr(t)) = t to relative 1e-12, whatever the parameters, t = 0 and the end included."""
    t = f64(process.end * part)
    back = process.time_of_logsnr(process(t).logsnr)
    assert 0 <= back.item() <= process.end
    assert back.item() == pytest.approx(t.item(), rel=1e-12, abs=0)


@every(ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_time_of_infinite_logsnr_is_an_end(process, dtype):
    """+inf is told t = 0, -inf and what lies beyond the end's value are told the end, exactly."""
    beyond = min(process(f64(process.end)).logsnr.item() - 1, -1e6 if process(f64(process.end)).alpha == 0 else 0)
    logsnr = torch.tensor([math.inf, -math.inf, beyond, -1e30], dtype=dtype)
    assert process.time_of_logsnr(logsnr).tolist() == [0.0, process.end, process.end, process.end]


# ---- the clock


def exact_angle(process, t):
    return mp.atan2(noise(process, t), signal(process, t))


@every(ANGLE)
def test_a_vp_clock_reads_the_angle(process):
    """u = atan2(sigma, alpha) to relative 1e-12."""
    for t in times(process):
        with digits(t):
            exact = exact_angle(process, mpf(t))
            assert_close(process.clock.u(f64(t)).item(), exact, 1e-12, what=f"t = {t}")


@every({name: process for name, process in PLAIN.items() if name != "SongVE"})
def test_other_clocks_read_the_time(process):
    """u = t, bit by bit, and back."""
    t = f64(times(process))
    assert torch.equal(process.clock.u(t), t)
    assert torch.equal(process.clock.t(t), t)


def test_the_clock_of_the_variance_exploding_sde_reads_the_noise():
    """u = sqrt(t), bit by bit, and back to a relative 1e-12, with slopes (0, 1), t = 0 included; below 0 and beyond the end is refused."""
    process, t = nz.SongVE(), f64(times(nz.SongVE()))
    assert torch.equal(process.clock.u(t), t.sqrt())
    assert torch.allclose(process.clock.t(t.sqrt()), t, rtol=1e-12, atol=0)
    assert [slope.tolist() for slope in process.clock.slopes(f64([0.0, 1.0]))] == [[0, 0], [1, 1]]
    with pytest.raises(ArgumentError, match="between data"):
        process.clock.t(f64([-1.0]))
    with pytest.raises(ArgumentError, match="between data"):
        process.clock.t(f64([100.0001]))


@every(ALL)
def test_the_clock_runs_forward(process):
    """u grows strictly, from 0 at t = 0, over even times and over times from 1e-100."""
    even = f64(np.arange(1, 2001) / 2000) * process.end
    for t in (even, f64(10.0 ** np.linspace(-100, -4, 500))):
        u = process.clock.u(torch.cat([t.new_zeros(1), t]))
        assert u[0].item() == 0
        assert bool((u.diff() > 0).all())


@every(ALL)
def test_the_clock_goes_back(process):
    """t(u(t)) = t to relative 1e-12, both ends included."""
    for t in [0.0, *inside(process), process.end]:
        assert process.clock.t(process.clock.u(f64(t))).item() == pytest.approx(t, rel=1e-12, abs=0)


@every(ALL)
def test_the_clock_goes_back_in_float32(process):
    """In float32 t(u) is a legal time for every angle that u gives, the end's too, and u(t(u)) = u to 1e-6."""
    t = torch.tensor([*(10.0 ** np.arange(-30, -1)), *(np.arange(101) / 100 * process.end)], dtype=torch.float32)
    u = process.clock.u(t)
    back = process.clock.t(u)
    assert bool(((back >= 0) & (back <= process.end)).all())
    torch.testing.assert_close(process.clock.u(back), u, rtol=1e-6, atol=0)


@every(ALL)
def test_clock_slopes_are_derivatives_in_the_clock(process):
    """slopes = (d alpha / du, d sigma / du) to relative 1e-9, as quotients of derivatives in t."""
    for t in inside(process):
        with digits(t):
            clock = exact_angle if process in ANGLE.values() else noise if process == nz.SongVE() else None
            speed = derivative(clock, process, t) if clock else 1
            exact = [derivative(y, process, t) / speed for y in (signal, noise)]
            for mine, slope in zip(process.clock.slopes(f64(t)), exact, strict=True):
                assert_close(mine.item(), slope, 1e-9 + cost(process, t), what=f"t = {t}")


@pytest.mark.parametrize("name", ALL)
def test_clock_slopes_at_the_ends(name):
    """At both ends the slopes are the limits: (0, 1) and (-sigma, alpha) in angles, (0, 1) in sigma."""
    process = ALL[name]
    start, end = (torch.stack(process.clock.slopes(f64(t))).tolist() for t in (0.0, process.end))
    if name in ANGLE:
        with digits(1.0):
            alpha, sigma = exact_level(process, process.end)
        assert start == [0, 1]
        assert end == pytest.approx([float(-sigma), float(alpha)], rel=1e-12, abs=0)
        return
    a = math.exp(-5.025)  # of SubVP; f = -10 at t = 1
    b = math.exp(-5.0)
    limits = {
        "SubVP": ([-0.05, 0.1], [-10 * a, 20 * a**2]),
        "SubVP, beta_min 0": ([0, 0], [-10 * b, 20 * b**2]),
        "StraightPath": ([-1, 1], [-1, 1]),
        "SongVE": ([0, 1], [0, 1]),
        "KarrasVE": ([0, 1], [0, 1]),
    }
    assert start == pytest.approx(limits[name][0], rel=1e-12, abs=0)
    assert end == pytest.approx(limits[name][1], rel=1e-12, abs=0)


@law
@given(end=st.floats(1e-3, 1e6), part=parts)
def test_a_float32_noise_level_is_read_back(end, part):
    """Whatever the end, u(t) of a legal float32 time t is a legal reading, the end's too, and t(u) is t to a relative 1e-6."""
    process = nz.SongVE(end)
    t = torch.tensor([end, end * part], dtype=torch.float32)
    t = t[(t <= end) & (t >= 1e-30)]
    back = process.clock.t(process.clock.u(t))
    assert bool((back <= end).all())
    torch.testing.assert_close(back, t, rtol=1e-6, atol=0)


def test_the_square_root_has_no_slope_in_time_at_zero():
    """In its own time SongVE's sigma = sqrt(t) has slopes (0, inf) at 0, (0, 1 / 200) at 10,000: why its clock is sigma."""
    slopes = torch.stack(nz.Itself(nz.SongVE()).slopes(f64([0.0, 1e4]))).T.tolist()
    assert slopes == [[0, math.inf], [0, 1 / 200]]


def test_sigma_is_the_time_of_edms_process():
    """Over KarrasVE the clocks Itself and NoiseLevel are one, bit by bit."""
    process, t = nz.KarrasVE(), f64(times(nz.KarrasVE()))
    a, b = nz.Itself(process), nz.NoiseLevel(process)
    assert torch.equal(a.u(t), b.u(t)) and all(map(torch.equal, a.slopes(t), b.slopes(t)))
    assert torch.allclose(a.t(t), b.t(t), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("clock", "process"),
    [
        *((nz.Angle, process) for process in PLAIN.values()),
        *((nz.Itself, process) for process in ANGLE.values()),
        *((nz.NoiseLevel, process) for process in ALL.values() if process not in (nz.SongVE(), nz.KarrasVE())),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)[:40]),
)
def test_a_clock_of_another_kind_of_process_is_refused(clock, process):
    """Angle needs alpha^2 + sigma^2 = 1, Itself slopes in t, NoiseLevel alpha = 1: elsewhere the slopes would be wrong."""
    with pytest.raises(ArgumentError, match=f"{clock.__name__} (is|needs)"):
        clock(process)


# ---- discrete processes


@pytest.mark.parametrize(
    "process",
    [
        nz.DiscreteVP.quadratic(),
        nz.DiscreteVP.quadratic(1000, 0.00085, 0.012),
        nz.DiscreteVP.quadratic(1),
        nz.DiscreteVP.quadratic(7, 0.01, 0.5),
        nz.DiscreteVP.cosine(),
        nz.DiscreteVP.cosine(1),
        nz.DiscreteVP.cosine(10, 0.1, 0.9),
        nz.DiscreteVP.cosine(4000),
    ],
    ids=repr,
)
def test_nodes_are_products_of_the_papers_betas(process):
    """alpha and sigma at all nodes are those of prod (1 - beta) to relative 1e-12, betas by the paper."""
    alphas = exact_nodes(process.betas)[0][1:]
    assert process.steps == len(alphas)
    level = process((torch.arange(len(alphas), dtype=torch.float64) + 1) / len(alphas))
    with mpmath.workdps(40):
        for k, exact in enumerate(alphas):
            assert_close(level.alpha[k].item(), exact, 1e-12, what=f"node {k}")
            assert_close(level.sigma[k].item(), mp.sqrt(1 - exact**2), 1e-12, what=f"node {k}")


@pytest.mark.parametrize("steps", [1, 50, 1000])
def test_the_cap_is_reached_at_the_last_step_only(steps):
    """Of the cosine's betas only the last, which would be 1, is the cap."""
    betas = nz.DiscreteVP.cosine(steps).betas.values()
    assert [k for k, beta in enumerate(betas.tolist()) if beta == 0.999] == [steps - 1]
    assert [k for k, beta in enumerate(exact_betas(discrete.CosineBetas(steps))) if beta == 0.999] == [steps - 1]


SCHEDULES = [
    {},
    {"beta_schedule": "linear", "num_train_timesteps": 250, "beta_start": 0.001, "beta_end": 0.03},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50},
    {"trained_betas": LISTED, "num_train_timesteps": len(LISTED), "beta_schedule": "sigmoid"},
]


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("config", SCHEDULES, ids=str)
def test_from_scheduler_is_diffusers(config, rescale):
    """alpha^2 at all nodes is diffusers' alphas_cumprod to its float32 rounding, 1e-6."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(**config, rescale_betas_zero_snr=rescale)
    theirs = scheduler.alphas_cumprod.double().numpy()
    for given_ in (scheduler.config, {**config, "rescale_betas_zero_snr": rescale}):
        process = nz.DiscreteVP.from_scheduler(given_)
        assert process.steps == len(theirs)
        assert isinstance(process, ZERO) == rescale
        ours = process((torch.arange(len(theirs), dtype=torch.float64) + 1) / len(theirs)).alpha ** 2
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "laplace", "scaled-linear", "", None])
def test_unknown_schedules_are_refused(name):
    """A beta_schedule without a process is refused by name, with the known ones."""
    with pytest.raises(ArgumentError, match=rf"unknown beta_schedule {name!r}.*squaredcos_cap_v2"):
        nz.DiscreteVP.from_scheduler({"beta_schedule": name})


# ---- zero terminal SNR

BASES = [nz.DiscreteVP.linear(), nz.DiscreteVP.quadratic(), nz.DiscreteVP.cosine(), nz.DiscreteVP.from_betas(LISTED)]


@pytest.mark.parametrize("base", BASES, ids=repr)
def test_zero_terminal_snr_is_algorithm_1(base):
    """At all nodes alpha and sigma are those of Lin et al.'s Algorithm 1 to relative 1e-12; the last is exactly noise."""
    alphas = exact_nodes(base.betas)[0][1:]
    t = (torch.arange(base.steps, dtype=torch.float64) + 1) / base.steps
    level = ZERO(base)(t)
    with mpmath.workdps(40):
        for k, old in enumerate(alphas[:-1]):
            new = (old - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
            assert_close(level.alpha[k].item(), new, 1e-12, what=f"node {k}")
            assert_close(level.sigma[k].item(), mp.sqrt(1 - new**2), 1e-12, what=f"node {k}")
    assert (level.alpha[-1].item(), level.sigma[-1].item()) == (0, 1)


@pytest.mark.parametrize("base", BASES, ids=repr)
def test_zero_terminal_snr_keeps_the_first_node(base):
    """Below the first node it is its base, bit by bit; there alpha is kept to a rounding and nothing jumps."""
    first = 1 / base.steps
    below = f64(np.linspace(0, math.nextafter(first, 0), 50))
    mine, theirs = ZERO(base), base
    for ask in (lambda p, t: p(t).alpha, lambda p, t: p(t).sigma, lambda p, t: p.drift(t)):
        assert torch.equal(ask(mine, below), ask(theirs, below))
    both = f64([math.nextafter(first, 0), first, math.nextafter(first, 1)])
    for got, kept in zip(mine(both), theirs(f64(first)), strict=True):
        np.testing.assert_allclose(got.numpy(), kept.item(), rtol=1e-14)


def test_steps_are_the_discrete_bases():
    """ZeroTerminalSNR has `steps` over a process with nodes and over no other."""
    assert ZERO(nz.DiscreteVP.linear(123)).steps == timesteps(ZERO(nz.DiscreteVP.linear(123))) == 123
    assert not hasattr(ZERO(nz.LinearVP()), "steps")
    with pytest.raises(ArgumentError, match="ZeroTerminalSNR has no timesteps"):
        timesteps(ZERO(nz.LinearVP()))


@pytest.mark.parametrize("base", [nz.DiscreteVP.linear(1), nz.DiscreteVP.from_betas([0.3])], ids=repr)
def test_one_node_cannot_be_kept_and_lose_its_signal(base):
    """Over a single node, which is the first and the last, Algorithm 1 is 0 / 0: refused, never NaN."""
    with pytest.raises(ArgumentError):
        ZERO(base)


# ---- refusals


@pytest.mark.parametrize("make", [nz.LinearVP, nz.QuadraticVP, nz.SubVP])
@pytest.mark.parametrize(
    "pair", [(-0.1, 20.0), (20.0, 0.1), (0.0, 0.0), (math.nan, 20.0), (0.1, math.nan), (0.1, math.inf), (-1.0, -0.5)]
)
def test_bad_betas_are_refused(make, pair):
    """beta_min and beta_max that are negative, swapped, both 0 or not finite are refused by value."""
    with pytest.raises(ArgumentError, match=rf"{make.__name__}.*got {pair[0]} and {pair[1]}"):
        make(*pair)


@pytest.mark.parametrize(
    ("make", "value"),
    [(nz.ShiftedCosine, value) for value in (0.0, -4.0, math.nan, math.inf)]
    + [(nz.CosineVP, value) for value in (-0.008, math.nan, math.inf, -math.inf)]
    + [(make, value) for make in (nz.SongVE, nz.KarrasVE) for value in (0.0, -80.0, math.nan, math.inf)],
)
def test_bad_parameters_are_refused(make, value):
    """A shift or end that is not positive and finite, an offset below 0 or not finite: refused by value."""
    with pytest.raises(ArgumentError, match=rf"{make.__name__}.*got {value}$"):
        make(value)


@pytest.mark.parametrize("make", [nz.DiscreteVP.linear, nz.DiscreteVP.quadratic, nz.DiscreteVP.cosine])
@pytest.mark.parametrize("steps", [0, -1, True, False, 10.0, 2.5, math.nan, "10", None])
def test_bad_steps_are_refused(make, steps):
    """steps that are no positive integer, a bool and a whole float included, are refused by value."""
    with pytest.raises(ArgumentError, match=rf"steps.*{steps}$"):
        make(steps)


@pytest.mark.parametrize("make", [nz.DiscreteVP.linear, nz.DiscreteVP.quadratic])
@pytest.mark.parametrize(
    ("pair", "named"),
    [((-0.1, 0.02), "-0.1"), ((0.0, 0.02), "0.0"), ((math.nan, 0.02), "nan"), ((1e-4, math.nan), "nan")]
    + [((1e-4, 1.5), r"1\.\d+"), ((1e-4, -0.5), r"-0\.\d+"), ((math.inf, 0.02), "inf|nan")],
)
def test_bad_ends_of_betas_are_refused(make, pair, named):
    """Betas that start or end outside (0, 1) are refused, by the value at the first wrong node."""
    with pytest.raises(ArgumentError, match=rf"beta.* ({named})\b"):
        make(4, *pair)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"offset": -1.0}, "-1.0"), ({"offset": math.nan}, "nan"), ({"offset": math.inf}, "inf")]
    + [({"cap": cap}, f"beta {cap}") for cap in (0.0, -0.5, math.nan)]
    + [({"cap": cap}, r"beta 1\.0 at node 999") for cap in (1.0, 2.0)],
)
def test_bad_cosine_betas_are_refused(arguments, named):
    """An offset below 0 and a cap that leaves a beta outside (0, 1) are refused by value."""
    with pytest.raises(ArgumentError, match=named):
        nz.DiscreteVP.cosine(**arguments)


@pytest.mark.parametrize("base", [*PLAIN.values(), None, 3.0], ids=repr)
def test_only_vp_processes_lose_their_last_signal(base):
    """ZeroTerminalSNR over what is not variance-preserving is refused by type."""
    with pytest.raises(ArgumentError, match=type(base).__name__):
        ZERO(base)


@every(ALL)
def test_bad_times_are_refused(process):
    """Level, drift, diffusion and clock refuse times outside [0, end] and NaN by value, integers and plain numbers by type."""
    for ask in (process, process.drift, process.diffusion2, process.clock.u, process.clock.slopes):
        for bad in (-1e-300, math.nextafter(process.end, math.inf), math.inf, -math.inf, math.nan):
            with pytest.raises(ArgumentError, match=rf"time {bad} is outside \[0, {process.end:g}\]"):
                ask(f64([0.5 * process.end, bad]))
        for wrong, kind in ((torch.tensor(1), "int64"), (torch.tensor(True), "bool"), (1, "int"), (0.5, "float")):
            with pytest.raises(ArgumentError, match=kind):
                ask(wrong)


@every(ALL)
def test_bad_readings_of_the_clock_are_refused(process):
    """Before the data's reading, after the last, and NaN: refused."""
    for bad in (-1e-300, max(process.end, 1.6) * 1.001, math.inf, math.nan):
        with pytest.raises(ArgumentError, match=f"{bad}"):
            process.clock.t(f64([0.0, bad]))
