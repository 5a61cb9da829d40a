"""At which times the network is trained, and how much each counts."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

import nearzero as nz
from nearzero import randomness
from nearzero.errors import ArgumentError
from nearzero.level import Coefficients
from nearzero.times import LogTimes

law = settings(deadline=None, derandomize=True, max_examples=60)
LARGEST, SMALLEST = 0xFFFFFFFF, 0
FIRST, LAST = 0.5 / 2**52, 1 - 2.0**-53  # the smallest u that is ever drawn, and the largest number below 1
SIGNAL = {  # processes that end with some signal
    "LinearVP": nz.LinearVP(),
    "LinearVP, beta_min 0": nz.LinearVP(beta_min=0.0),
    "QuadraticVP": nz.QuadraticVP(),
    "QuadraticVP, beta_min 0": nz.QuadraticVP(beta_min=0.0),
    "DiscreteVP.linear": nz.DiscreteVP.linear(),
    "DiscreteVP.cosine": nz.DiscreteVP.cosine(),
    "DiscreteVP.from_betas": nz.DiscreteVP.from_betas([0.02, 0.3, 1e-4, 0.07, 0.5, 0.11, 0.2]),
    "SubVP": nz.SubVP(),
    "SongVE": nz.SongVE(),
    "KarrasVE": nz.KarrasVE(),
}
NO_SIGNAL = {
    "CosineVP": nz.CosineVP(),
    "ShiftedCosine": nz.ShiftedCosine(),
    "LinearSigmaVP": nz.LinearSigmaVP(),
    "StraightPath": nz.StraightPath(),
    "ZeroTerminalSNR LinearVP": nz.ZeroTerminalSNR(nz.LinearVP()),
    "ZeroTerminalSNR DiscreteVP": nz.ZeroTerminalSNR(nz.DiscreteVP.linear()),
}
ALL = SIGNAL | NO_SIGNAL
DISCRETE = [name for name in ALL if "DiscreteVP" in name]
TIMES = {
    "UniformTimes": (nz.UniformTimes(), list(ALL)),
    "DiscreteTimes": (nz.DiscreteTimes(), DISCRETE),
    "LogNormalSigma": (nz.LogNormalSigma(), list(ALL)),
    "LogNormalSigma wide": (nz.LogNormalSigma(0.0, 3.0), list(ALL)),
    "LogTimes": (LogTimes(), list(ALL)),
    "LogTimes 1e-12": (LogTimes(1e-12), list(ALL)),
    "LogTimes 1e12": (LogTimes(1e12), list(ALL)),
    "ImportanceTimes": (nz.ImportanceTimes(), list(SIGNAL)),
    "ImportanceTimes 1e-12": (nz.ImportanceTimes(1e-12), list(SIGNAL)),
    "SoftTruncation": (nz.SoftTruncation(), list(SIGNAL)),
    "SoftTruncation k 0": (nz.SoftTruncation(k=0.0), list(SIGNAL)),
    "SoftTruncation k 2": (nz.SoftTruncation(k=2.0), list(SIGNAL)),
}
WHERE = [(times, ALL[name]) for times, names in TIMES.values() for name in names]
everywhere = pytest.mark.parametrize(
    ("times", "process"), WHERE, ids=[f"{key} {name}" for key, (_, names) in TIMES.items() for name in names]
)
uniforms = st.floats(FIRST, LAST)


def each(names, table=ALL):
    """Parametrizes by some of the processes."""
    return pytest.mark.parametrize("process", [table[name] for name in names], ids=list(names))


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


def drawn(count, seed=0):
    """The first u that training draws with a seed."""
    return randomness.uniform(seed, randomness.Stream.TIME, torch.arange(count))


def ks(sample):
    """Kolmogorov's statistic sqrt(n) sup |F_n - F| of numbers that should be uniform on (0, 1); 1.63 at 1 %."""
    x, n = np.sort(np.asarray(sample)), len(sample)
    place = np.arange(n)
    return math.sqrt(n) * max((x - place / n).max(), ((place + 1) / n - x).max())


def extreme(monkeypatch, word):
    """The uniform number that randomness makes of four equal extreme words."""
    monkeypatch.setattr(
        randomness, "words", lambda seed, stream, index, count: (torch.full((len(index), count), word),) * 4
    )
    return randomness.uniform(0, randomness.Stream.TIME, torch.zeros(1, dtype=torch.int64))


@law
@given(u=st.floats(0, 1, exclude_min=True, exclude_max=True), end=st.floats(0.1, 100))
def test_uniform_times_are_a_share_of_the_end(u, end):
    """t = u end: the inverse distribution function of the uniform distribution on (0, end)."""
    process = type("Process", (), {"end": end})()
    assert nz.UniformTimes()(torch.tensor([u], dtype=torch.float64), process).item() == pytest.approx(
        u * end, rel=1e-15
    )


@pytest.mark.parametrize("steps", [1, 3, 10, 1000])
def test_discrete_times_hit_every_node_equally(steps):
    """On a grid of 12 u to a node, each node (k + 1) / steps is hit exactly 12 times, in order."""
    u = (torch.arange(12 * steps, dtype=torch.float64) + 0.5) / (12 * steps)
    expected = [(k + 1) / steps for k in range(steps) for _ in range(12)]
    assert nz.DiscreteTimes()(u, nz.DiscreteVP.linear(steps=steps)).tolist() == expected


@law
@given(steps=st.integers(1, 5000), u=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_discrete_times_are_nodes(steps, u):
    """For every u in (0, 1), the largest float below 1 included, t is (k + 1) / steps for a k in 0 .. steps-1."""
    process = type("Process", (), {"steps": steps, "end": 1.0})()
    for number in (u, math.nextafter(1.0, 0.0), math.nextafter(0.0, 1.0)):
        k = min(math.floor(number * steps), steps - 1)
        assert nz.DiscreteTimes()(torch.tensor([number], dtype=torch.float64), process).item() == (k + 1) / steps


@pytest.mark.parametrize("word", [SMALLEST, LARGEST])
def test_extreme_draws_are_legal_times(monkeypatch, word):
    """The smallest and largest u that training can draw give the first and last node, and times inside (0, end)."""
    u = extreme(monkeypatch, word)
    process = nz.DiscreteVP.linear()
    assert nz.DiscreteTimes()(u, process).item() == (1.0 if word else 0.001)
    t = nz.UniformTimes()(u, process)
    assert 0 < t.item() < process.end
    assert process(t).sigma.item() > 0


def test_discrete_times_refuse_a_continuous_process():
    """A process without nodes has no discrete times: refused by name with a way out."""
    with pytest.raises(ArgumentError, match="LinearVP has no timesteps.*UniformTimes"):
        nz.DiscreteTimes()(torch.tensor([0.5], dtype=torch.float64), nz.LinearVP())


@law
@given(st.floats(0, 1.57), st.floats(-1e6, 1e6))
def test_simple_weighs_every_level_alike(angle, number):
    """Simple is 1 at any level and for any coefficients, one number for each example."""
    level = nz.Level(torch.tensor([math.cos(angle)] * 3), torch.tensor([math.sin(angle)] * 3))
    k = Coefficients(*(torch.full((3,), number) for _ in range(4)))
    assert nz.Simple()(level, k).tolist() == [1.0, 1.0, 1.0]


# --- every distribution -------------------------------------------------------------------------------------------


@everywhere
def test_times_are_legal_and_increase_in_u(times, process):
    """For u in the open interval, its ends' neighbours included, t in (0, end] is float64, not NaN, increasing in u."""
    u = torch.cat([f64([FIRST, 2.0**-40]), torch.linspace(0.001, 0.999, 1999, dtype=torch.float64), f64([LAST])])
    t = times(u, process)
    assert t.dtype == torch.float64
    assert t.shape == u.shape
    assert 0 < t.min().item()
    assert t.max().item() <= process.end
    assert bool((t.diff() >= 0).all())
    if not isinstance(times, nz.DiscreteTimes):
        assert bool((t.diff() > 0).all())


@everywhere
@settings(law, max_examples=8)
@given(u=st.lists(uniforms, min_size=2, max_size=5))
def test_a_later_u_is_a_later_time(times, process, u):
    """Any u that are in order, the first kept (it tells SoftTruncation its t_min), have times that are in order."""
    t = times(f64([u[0], *sorted(u)]), process)[1:]
    assert bool(((t > 0) & (t <= process.end)).all())  # false for NaN
    assert bool((t.diff() >= -1e-14 * t[1:]).all())


@everywhere
def test_times_keep_the_shape(times, process):
    """Times are one for each u, in u's shape; the example's place does not matter."""
    u = f64([[0.25, 0.5], [0.75, 0.25], [0.1, 0.9]])
    t = times(u, process)
    assert torch.equal(t, times(u.flatten(), process).reshape(3, 2))
    assert t[0, 0] == t[1, 1]


# --- LogNormalSigma -----------------------------------------------------------------------------------------------


def log_ratio(process, t):
    """log(sigma / alpha)."""
    alpha, sigma = process(f64(t))
    return sigma.log() - alpha.log()


def normal_quantile(u, mean, std, last):
    """The u-quantile of the normal distribution cut off above `last`, in 40 digits."""
    with mpmath.workdps(40):
        below = mpf(1) if last == math.inf else mp.ncdf((mpf(last) - mpf(mean)) / mpf(std))
        p = mpf(u) * below
        if p < mpf("1e-6"):  # erfinv(2 p - 1) would round; Newton's steps on log ncdf, from the asymptotic value
            z = -mp.sqrt(-2 * mp.log(p))
            for _ in range(60):
                z -= (mp.log(mp.ncdf(z)) - mp.log(p)) * mp.ncdf(z) / mp.npdf(z)
        else:
            z = mp.sqrt(2) * mp.erfinv(2 * p - 1)
        return float(mpf(mean) + mpf(std) * z)


@each(ALL)
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.0, 1.0), (3.0, 2.0)])
def test_log_normal_sigma_is_the_normals_quantile(process, mean, std):
    """log(sigma / alpha) at the time of u is the quantile u of the normal cut off at the process's end, by mpmath."""
    end = process(f64(process.end))
    last = math.inf if end.alpha == 0 else log_ratio(process, process.end).item()
    u = [FIRST, 1e-9, 0.01, 0.3, 0.5, 0.8, 0.99, 1 - 1e-6]
    expected = [normal_quantile(value, mean, std, last) for value in u]
    t = nz.LogNormalSigma(mean, std)(f64(u), process)
    z = (f64(expected) - mean) / std
    resolution = process.diffusion2(t) / (2 * process(t).sigma ** 2) * t * 2.0**-51  # d q / d t times 2 ulp of the time
    resolution += f64(u) * 2.0**-51 * std * math.sqrt(math.tau) * torch.exp(z**2 / 2)  # d q / d u times 2 ulp of u
    error = (log_ratio(process, t) - f64(expected)).abs()
    assert bool((error <= 1e-13 + 1e-14 * f64(expected).abs() + resolution).all())


@pytest.mark.parametrize("above", [3.0, 5.0, 7.0, 9.0, 20.0])
def test_log_normal_sigma_lives_below_an_end_far_under_its_mean(above):
    """An end many deviations under the mean leaves a tail, whose quantiles are the normal's, not time 0."""
    process = nz.KarrasVE(end=1.0)
    times = nz.LogNormalSigma(mean=0.5 * above, std=0.5)
    u = [1e-9, 0.01, 0.5, 0.99]
    expected = [normal_quantile(value, 0.5 * above, 0.5, 0.0) for value in u]
    np.testing.assert_allclose(times(f64(u), process).log().numpy(), expected, rtol=0, atol=1e-9)


def test_log_normal_sigma_has_edms_numbers():
    """EDM: the median of sigma is e^-1.2, and 68.27 % of the draws lie within e^(-1.2 +- 1.2)."""
    times, process = nz.LogNormalSigma(), nz.KarrasVE()
    assert times(f64([0.5]), process).item() == pytest.approx(math.exp(-1.2), rel=1e-5)  # cut off at 4.65 deviations
    t = times((torch.arange(100000, dtype=torch.float64) + 0.5) / 100000, process)
    inside = ((t > math.exp(-2.4)) & (t < 1)).double().mean().item()
    assert inside == pytest.approx(math.erf(math.sqrt(0.5)), abs=3e-5)


@each(ALL)
def test_log_normal_sigma_has_no_atom_at_the_end(process):
    """Where the normal passes the process's end the distribution is cut off, not heaped up: all times differ."""
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    t = nz.LogNormalSigma(mean=1.0, std=3.0)(u, process)
    assert len(t.unique()) == 1000
    assert t[-1].item() < process.end


@pytest.mark.parametrize(
    ("mean", "std"), [(math.nan, 1.0), (math.inf, 1.0), (0.0, 0.0), (0.0, -1.0), (0.0, math.inf), (0.0, math.nan)]
)
def test_log_normal_sigma_refuses_what_is_no_normal(mean, std):
    """A mean that is not finite and a deviation that is not positive and finite are refused."""
    with pytest.raises(ArgumentError, match="finite mean and a positive std"):
        nz.LogNormalSigma(mean, std)


# --- LogTimes ---------------------------------------------------------------------------------------------------------


@law
@given(u=uniforms, d=st.floats(1e-12, 1e6), end=st.floats(0.1, 100))
def test_log_times_are_their_formula(u, d, end):
    """t = end d ((1 + 1/d)^u - 1) and q = 1 / ((t + d end) log(1 + 1/d)), by mpmath, at the extreme draws too."""
    process, times = type("Process", (), {"end": end})(), LogTimes(d)
    with mpmath.workdps(40):
        t = mpf(end) * mpf(d) * ((1 + 1 / mpf(d)) ** mpf(u) - 1)
        q = 1 / ((t + mpf(d) * mpf(end)) * mp.log(1 + 1 / mpf(d)))
    found = times(f64([u]), process)
    assert found.item() == pytest.approx(float(t), rel=1e-13)
    assert times.density(found, process).item() == pytest.approx(float(q), rel=1e-13)


@each(["KarrasVE", "LinearSigmaVP"])
@pytest.mark.parametrize("times", [nz.UniformTimes(), LogTimes(), LogTimes(0.3)], ids=repr)
def test_densities_integrate_to_their_share(process, times):
    """The integral of the density from 0 to the time of u is u: Gauss and Legendre on pieces that grow twofold."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    for u in (1e-6, 0.1, 0.5, 0.9, 1.0):
        last = times(f64([u]), process).item()
        edges = np.concatenate([[0.0], last * 2.0 ** np.arange(-40, 1)])
        t = edges[:-1, None] + np.diff(edges)[:, None] * (nodes + 1) / 2
        found = (times.density(f64(t), process).numpy() * np.diff(edges)[:, None] * weights / 2).sum()
        assert found == pytest.approx(u, rel=1e-12)


@law
@given(u=uniforms)
def test_log_times_end_in_uniform_and_logarithmic_ones(u):
    """For large d t is u end, within 1/d; for small d log(t / end) is (u - 1) log(1/d), where t is well above d."""
    process = nz.KarrasVE()
    assert LogTimes(1e9)(f64([u]), process).item() == pytest.approx(80 * u, rel=1e-8)
    t = LogTimes(1e-12)(f64([u]), process).item()
    if t > 80e-12 * 1e4:
        assert math.log(t / 80) == pytest.approx((u - 1) * math.log(1e12), abs=2e-4)


@pytest.mark.parametrize("d", [0.0, -1.0, math.nan, math.inf])
def test_log_times_refuse_a_d_that_is_none(d):
    """d is positive and finite."""
    with pytest.raises(ArgumentError, match="LogTimes needs a positive d"):
        LogTimes(d)


# --- ImportanceTimes ----------------------------------------------------------------------------------------------


def integral(process, start, times):
    """The integral of g^2 / sigma^2 from `start` to each of `times`, sorted: Gauss and Legendre in log t, by pieces."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    inner = np.geomspace(start, process.end, 400)
    if hasattr(process, "steps"):
        inner = np.concatenate([inner, (np.arange(process.steps) + 1) / process.steps])  # g jumps there
    edges = np.unique(np.concatenate([[start], inner[(inner > start) & (inner < process.end)], times]))
    lower, width = np.log(edges[:-1, None]), np.diff(np.log(edges))[:, None]
    t = np.minimum(np.exp(lower + width * (nodes + 1) / 2), process.end)
    g2, sigma = process.diffusion2(f64(t)).numpy(), process(f64(t)).sigma.numpy()
    total = np.concatenate([[0.0], np.cumsum((g2 / sigma**2 * t * width * weights / 2).sum(1))])
    return total[np.searchsorted(edges, times)]


@each(SIGNAL)
@pytest.mark.parametrize("t_min", [1e-5, 1e-3, 0.3])
def test_importance_times_have_density_g2_over_sigma2(process, t_min):
    """The integral of g^2 / sigma^2 from t_min to the time of u is u times the whole integral."""
    u = np.linspace(0.02, 0.98, 25)
    t = nz.ImportanceTimes(t_min)(f64(u), process).numpy()
    found = integral(process, t_min, np.append(t, process.end))
    np.testing.assert_allclose(found[:-1] / found[-1], u, rtol=0, atol=1e-9)


@each(SIGNAL)
def test_importance_times_lie_between_t_min_and_the_end(process):
    """The first u gives t_min and the last the end, to rounding."""
    for t_min in (1e-9, 1e-5, 0.01):
        t = nz.ImportanceTimes(t_min)(f64([FIRST, LAST]), process)
        assert t[0].item() == pytest.approx(t_min, rel=1e-13)
        assert t[1].item() == pytest.approx(process.end, rel=1e-13)


@law
@given(u=uniforms, t_min=st.floats(1e-6, 0.9), low=st.floats(0.01, 1), high=st.floats(2, 30))
def test_importance_times_of_linear_vp_are_the_papers(u, t_min, low, high):
    """t = (-b0 + sqrt(b0^2 + 2 (b1 - b0) ln(1 + exp(Z u + F(t_min))))) / (b1 - b0), F = ln(e^B - 1): Soft truncation."""
    with mpmath.workdps(40):
        b0, b1 = mpf(low), mpf(high)

        def F(t):
            return mp.log(mp.expm1(b0 * t + (b1 - b0) * t**2 / 2))

        Z = F(mpf(1)) - F(mpf(t_min))
        root = mp.sqrt(b0**2 + 2 * (b1 - b0) * mp.log1p(mp.exp(Z * mpf(u) + F(mpf(t_min)))))
        expected = float((root - b0) / (b1 - b0))
    found = nz.ImportanceTimes(t_min)(f64([u]), nz.LinearVP(low, high)).item()
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("times", [nz.ImportanceTimes(), nz.SoftTruncation()], ids=repr)
@each(NO_SIGNAL)
def test_importance_times_need_signal_at_the_end(times, process):
    """Where the log-SNR has no end its uniform distribution does not exist: refused, UniformTimes named."""
    with pytest.raises(ArgumentError, match=f"{type(process).__name__} ends without signal.*UniformTimes"):
        times(f64([0.5]), process)


@pytest.mark.parametrize("t_min", [1.0, 1.5, 80.0])
@pytest.mark.parametrize("make", [nz.ImportanceTimes, nz.SoftTruncation])
@pytest.mark.parametrize("u", [FIRST, 0.3, LAST])
def test_t_min_lies_below_the_end(make, t_min, u):
    """t_min at or above the process's end leaves no time: refused whatever u is, and legal for a longer process."""
    with pytest.raises(ArgumentError, match="t_min.*must lie below the process's end 1"):
        make(t_min)(f64([u]), nz.LinearVP())
    assert t_min < make(t_min)(f64([0.3]), nz.KarrasVE(end=100.0)).item() < 100


@pytest.mark.parametrize("t_min", [0.0, -1e-5, math.nan, math.inf])
@pytest.mark.parametrize("make", [nz.ImportanceTimes, nz.SoftTruncation])
def test_t_min_is_positive(make, t_min):
    """The density g^2 / sigma^2 has no integral from 0: t_min must be positive and finite."""
    with pytest.raises(ArgumentError, match="t_min must be positive"):
        make(t_min)


# --- SoftTruncation -----------------------------------------------------------------------------------------------


def truncation(start, t, k, end=1.0):
    """The distribution function at t of the density proportional to t^-k on [start, end]."""
    if k == 1:
        return np.log(t / start) / np.log(end / start)
    return (t ** (1 - k) - start ** (1 - k)) / (end ** (1 - k) - start ** (1 - k))


def starts(times, batches, process):
    """The t_min of each batch: its time at a u of almost 0."""
    return np.array([times(torch.cat([u, f64([1e-18])]), process)[-1].item() for u in batches])


@pytest.mark.parametrize("k", [0.0, 1.0, 2.0])
@each(["KarrasVE"])
def test_each_batch_has_its_own_truncation(process, k):
    """Over 2500 batches t_min has the density t^-k on [t_min, end] (Kolmogorov and Smirnov): uniform for k = 0."""
    t_min = 1e-3
    found = starts(nz.SoftTruncation(t_min, k), drawn(2500, seed=11).reshape(-1, 1), process)
    assert t_min * (1 - 1e-13) <= found.min()
    assert found.max() <= process.end
    assert ks(truncation(t_min, found, k, process.end)) < 1.63
    assert ks(truncation(t_min, found, k + 0.5, process.end)) > 3  # so that another k would be noticed


@pytest.mark.parametrize("k", [0.0, 0.5, 1 - 2.0**-53, 1.0, 1 + 2.0**-52, 1 + 1e-13, 1 - 1e-9, 1.3, 2.0, 40.0])
def test_truncations_formula(k):
    """t_min is the quantile v of the density t^-k, v = frac(2^24 golden u) of the first u: mpmath, near k = 1 too."""
    for first in (2.0**-24 / 3, 0.25 + 2.0**-40, 0.7):
        u = f64([first, 1e-18])
        with mpmath.workdps(50):
            v = math.fmod(first * 2.0**24 * (math.sqrt(5) - 1) / 2, 1.0)
            least, q = mpf(1e-5), mpf(k) - 1
            expected = least ** (1 - v) if q == 0 else least / (1 - v * (1 - least**q)) ** (1 / q)
        found = nz.SoftTruncation(1e-5, k)(u, nz.LinearVP())[1].item()
        assert found == pytest.approx(float(expected), rel=1e-11)


def test_a_float32_batch_is_truncated_too():
    """u drawn in float32, multiples of 2^-24, moves t_min from batch to batch as well: v is uniform there too."""
    u = torch.rand(2000, 1, generator=torch.Generator().manual_seed(0)).double()
    v = np.log(starts(nz.SoftTruncation(1e-3), u, nz.LinearVP())) / math.log(1e-3)
    assert ks(v.clip(0, 1)) < 1.63


def test_times_of_a_batch_are_importance_times_of_its_truncation():
    """Within one batch all times are ImportanceTimes with the batch's t_min, none of them below it."""
    for u in drawn(5 * 64, seed=3).reshape(5, 64):
        t = nz.SoftTruncation(1e-4)(u, nz.LinearVP())
        start = starts(nz.SoftTruncation(1e-4), [u], nz.LinearVP())[0]
        torch.testing.assert_close(t, nz.ImportanceTimes(start)(u, nz.LinearVP()), rtol=1e-12, atol=0)
        assert t.min().item() >= start * (1 - 1e-13)


@pytest.mark.parametrize(
    "wrap", [lambda inner: inner, nz.Stratified, nz.Antithetic], ids=["alone", "Stratified", "Antithetic"]
)
def test_truncation_is_independent_of_the_times(wrap):
    """v is uniform and independent of the first image's u, alone and wrapped: an 8 x 8 table, chi squared with 63."""
    u = drawn(1600 * 4, seed=5).reshape(-1, 4)
    seen = []

    class Spy(nz.SoftTruncation):
        def __call__(self, u, process):
            seen.append(u[0].item())
            return super().__call__(u, process)

    t = np.array([wrap(Spy(1e-3))(batch, nz.LinearVP()).numpy() for batch in u])
    first = np.array(seen)
    logsnr = nz.LinearVP()(f64(t[:, 0])).logsnr.numpy()
    last = nz.LinearVP()(f64(1.0)).logsnr.item()
    top = (logsnr - first * last) / (1 - first)  # the log-SNR at the batch's t_min, which is where u = 0
    v = truncation(1e-3, nz.LinearVP().time_of_logsnr(f64(top)).numpy(), 1)
    assert ks(v) < 1.63
    share = first * 4 if wrap is nz.Stratified else first
    table, _, _ = np.histogram2d(share, v, bins=8, range=[[0, 1], [0, 1]])
    assert table.sum() == 1600
    assert ((table - 25) ** 2 / 25).sum() < 103.4  # 0.1 % of chi squared with 63 degrees


@pytest.mark.parametrize("k", [-0.1, math.nan, math.inf])
def test_truncation_refuses_a_k_that_is_none(k):
    """k is at least 0 and finite."""
    with pytest.raises(ArgumentError, match="SoftTruncation needs k >= 0"):
        nz.SoftTruncation(k=k)


# --- Stratified and Antithetic ------------------------------------------------------------------------------------


class Identity:
    """t = u."""

    def __call__(self, u, process):
        return u


batches = st.integers(1, 40).flatmap(lambda n: st.lists(uniforms, min_size=n, max_size=n))


@law
@given(u=batches)
def test_one_draw_in_each_stratum(u):
    """Image i of n has u in [i / n, (i + 1) / n], at (i + u) / n: one in each stratum, all inside (0, 1)."""
    n, found = len(u), nz.Stratified(Identity())(f64(u), None)
    place = torch.arange(n, dtype=torch.float64)
    assert bool(((found >= place / n) & (found <= (place + 1) / n)).all())
    assert 0 < found.min().item()
    assert found.max().item() < 1
    expected = [float((i + mpf(value)) / n) for i, value in enumerate(u)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2.0**-52)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000])
def test_no_stratum_reaches_one(n):
    """With every u = 1 - 2^-53 the last place has the largest number below 1, and discrete times are nodes."""
    u = torch.full((n,), LAST, dtype=torch.float64)
    assert nz.Stratified(Identity())(u, None)[-1].item() == LAST
    process = nz.DiscreteVP.linear()
    t = nz.Stratified(nz.DiscreteTimes())(u, process)
    assert t[-1].item() == 1.0
    assert bool(process(t).sigma.isfinite().all())


@law
@given(u=batches, steps=st.integers(1, 3000))
def test_stratified_discrete_times_are_nodes(u, steps):
    """Wrapped in Stratified a discrete time is still k / steps with k in 1 .. steps."""
    process = type("Process", (), {"steps": steps, "end": 1.0})()
    t = nz.Stratified(nz.DiscreteTimes())(f64(u), process)
    k = (t * steps).round()
    assert torch.equal(t, k / steps)
    assert bool(((k >= 1) & (k <= steps)).all())


@pytest.mark.parametrize("name", ["UniformTimes", "LogNormalSigma", "ImportanceTimes"])
@pytest.mark.parametrize("function", [torch.sqrt, torch.cos, lambda t: (t > 0.3).double()], ids=["sqrt", "cos", "step"])
def test_strata_lower_the_variance(name, function):
    """The mean over n strata has the same expectation, and a variance below a plain mean's: 1 / n^2 of it for t = u."""
    times, n, m = TIMES[name][0], 8, 500
    grid = (torch.arange(m, dtype=torch.float64) + 0.5) / m
    inside = torch.stack([function(nz.Stratified(times)(u.expand(n), nz.LinearVP())) for u in grid])  # (m, n)
    plain = function(times((torch.arange(m * n, dtype=torch.float64) + 0.5) / (m * n), nz.LinearVP()))
    assert inside.mean().item() == pytest.approx(plain.mean().item(), rel=1e-12)
    within, whole = inside.var(0, correction=0).mean().item(), plain.var(correction=0).item()
    assert within < 0.3 * whole  # times 1 / n on both sides
    line = torch.stack([nz.Stratified(Identity())(u.expand(n), None) for u in grid])
    assert line.var(0, correction=0).mean().item() == pytest.approx(1 / (12 * n**2), rel=1e-5)


pairs = st.integers(1, 20).flatmap(lambda n: st.lists(uniforms, min_size=2 * n, max_size=2 * n))


@law
@given(u=pairs)
def test_antithetic_pairs_sum_to_one(u):
    """The first half keeps its u, and u of image i and of image i + n / 2 sum to exactly 1, inside (0, 1)."""
    half, found = len(u) // 2, nz.Antithetic(Identity())(f64(u), None)
    assert found[:half].tolist() == u[:half]
    assert bool(((found[:half] + found[half:] - 1).abs() <= 2.0**-53).all())
    assert bool(((found > 0) & (found < 1)).all())


@pytest.mark.parametrize("count", [1, 3, 7])
def test_antithetic_refuses_an_odd_batch(count):
    """A batch without halves is refused by its size, also inside and outside Stratified."""
    u = torch.full((count,), 0.5, dtype=torch.float64)
    for times in (nz.Antithetic(Identity()), nz.Stratified(nz.Antithetic(Identity()))):
        with pytest.raises(ArgumentError, match=f"even batch, got {count}"):
            times(u, None)
    with pytest.raises(ArgumentError, match=f"even batch, got {count}"):
        nz.Antithetic(nz.Stratified(Identity()))(u, None)


def test_odd_errors_cancel_in_a_pair():
    """The mean of a pair's cube of u - 1/2 is 0 whatever u is: what is odd has no variance left."""
    u = drawn(20)
    found = nz.Antithetic(Identity())(u, None)
    assert ((found[:10] - 0.5) ** 3 + (found[10:] - 0.5) ** 3).abs().max().item() < 1e-16


@law
@given(u=pairs)
def test_strata_of_antithetic_pairs(u):
    """Stratified(Antithetic) has a u in each stratum and pairs that sum to 1: strata i and n - 1 - i."""
    n, found = len(u), nz.Stratified(nz.Antithetic(Identity()))(f64(u), None)
    assert bool(((found[: n // 2] + found[n // 2 :] - 1).abs() <= 2.0**-53).all())
    place = torch.arange(n // 2, dtype=torch.float64)
    stratum = torch.cat([place, n - 1 - place])
    lower, upper = stratum / n - 2.0**-53, (stratum + 1) / n + 2.0**-53
    assert bool(((found >= lower) & (found <= upper)).all())


@law
@given(u=pairs)
def test_antithetic_pairs_of_strata(u):
    """Antithetic(Stratified) has a u in each stratum in order, and pairs mirrored within their strata."""
    n, found = len(u), nz.Antithetic(nz.Stratified(Identity()))(f64(u), None)
    place = torch.arange(n, dtype=torch.float64)
    within = found * n - place
    assert bool(((within > -1e-14 * n) & (within < 1 + 1e-14 * n)).all())
    torch.testing.assert_close(within[: n // 2] + within[n // 2 :], torch.ones(n // 2).double(), rtol=0, atol=1e-14 * n)


@pytest.mark.parametrize("u", [FIRST, LAST, 0.3])
@pytest.mark.parametrize("n", [2, 4, 128])
@pytest.mark.parametrize("nest", [lambda x: nz.Stratified(nz.Antithetic(x)), lambda x: nz.Antithetic(nz.Stratified(x))])
def test_nested_times_stay_inside(nest, n, u):
    """Nested either way, the extreme draws stay in the open interval, and discrete times within the process."""
    batch = torch.full((n,), u, dtype=torch.float64)
    found = nest(Identity())(batch, None)
    assert 0 < found.min().item()
    assert found.max().item() < 1
    t = nest(nz.DiscreteTimes())(batch, nz.DiscreteVP.linear())
    assert t.max().item() <= 1.0


# --- the likelihood's integral ------------------------------------------------------------------------------------


class Noisy(torch.nn.Module):
    """The eps of standard normal data with a deliberate error, in any parameterization."""

    def __init__(self, process, parameterization):
        super().__init__()
        self.process, self.parameterization = process, parameterization

    def eps(self, x, t):
        alpha, sigma = (value[:, None] for value in self.process(t))
        return sigma * x / (alpha**2 + sigma**2) + 0.3 * torch.sin(2 * x + 3 * t[:, None])

    def forward(self, x, t):
        alpha, sigma = (value[:, None] for value in self.process(t))
        eps = self.eps(x, t)
        x0 = (x - sigma * eps) / alpha
        return {"Epsilon": eps, "Velocity": alpha * eps - sigma * x0, "Flow": eps - x0}[
            type(self.parameterization).__name__
        ]


@each(["LinearVP", "QuadraticVP", "SubVP", "KarrasVE", "SongVE"])
@pytest.mark.parametrize("name", ["Epsilon", "Velocity", "Flow"])
@pytest.mark.parametrize("t_min", [1e-4, 0.1])
def test_importance_times_estimate_the_likelihood_integral(process, name, t_min):
    """Its log-SNR range times E of the loss is the integral of g^2 / sigma^2 |eps - eps^|^2 over uniform t, each x0, eps."""
    network = Noisy(process, getattr(nz, name)())
    denoiser = nz.Denoiser(network, process, network.parameterization, nz.Time())
    nodes, weights = np.polynomial.legendre.leggauss(300)
    nodes, weights = f64((nodes + 1) / 2), f64(weights / 2)
    objective = nz.Regression(nz.ImportanceTimes(t_min), nz.LikelihoodWeight())
    t = torch.exp(math.log(t_min) + nodes * math.log(process.end / t_min))
    alpha, sigma = (value[:, None] for value in process(t))
    first, last = (log_ratio(process, value).item() for value in (t_min, process.end))
    for x0, eps in ((0.7, -0.4), (-1.3, 1.1)):
        x0, eps = torch.full((300, 1), x0).double(), torch.full((300, 1), eps).double()
        found = 2 * (last - first) * (weights * objective(denoiser, x0, nodes, eps)).sum().item()
        error = (network.eps(alpha * x0 + sigma * eps, t) - eps)[:, 0] ** 2
        rate = process.diffusion2(t) / sigma[:, 0] ** 2 * t * math.log(process.end / t_min)
        assert found == pytest.approx((weights * rate * error).sum().item(), rel=1e-8)


# ---- the noise levels of another process


def test_matched_times_have_the_other_processs_noise():
    """Matched(UniformTimes(), LinearVP()) draws sigma = sqrt(exp(19.9 / 2 u^2 + .1 u) - 1) on KarrasVE, to a relative 1e-12, at the extreme draws too."""
    u = f64([FIRST, 1e-9, 0.01, 0.3, 0.5, 0.77, 0.999, LAST])
    for end in (153.0, 1e4):
        t = nz.Matched(nz.UniformTimes(), nz.LinearVP())(u, nz.KarrasVE(end))
        expected = np.sqrt(np.expm1(19.9 / 2 * u.numpy() ** 2 + 0.1 * u.numpy()))
        np.testing.assert_allclose(t.numpy(), expected, rtol=1e-12)


@given(data=st.data(), u=st.lists(st.floats(FIRST, 1 - 1e-6), min_size=1, max_size=4))
def test_matched_times_have_the_same_log_snr(data, u):
    """The log-SNR of matched times on any longer process is that of the inner times on their own process; to its own process they are the inner times."""
    inner = data.draw(st.sampled_from([nz.UniformTimes(), nz.LogNormalSigma(), nz.Stratified(nz.UniformTimes())]))
    other, mine = data.draw(st.sampled_from(list(ALL.values()))), data.draw(st.sampled_from(list(NO_SIGNAL.values())))
    t = inner(f64(u), other)
    found = mine(nz.Matched(inner, other)(f64(u), mine)).logsnr
    torch.testing.assert_close(found, other(t).logsnr, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(nz.Matched(inner, other)(f64(u), other), t, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("process", "other"),
    [
        (nz.KarrasVE(152.0), nz.LinearVP()),
        (nz.LinearVP(), nz.CosineVP()),
        (nz.LinearVP(), nz.DiscreteVP.linear()),
        (nz.SubVP(), nz.StraightPath()),
    ],
    ids=repr,
)
def test_a_process_that_ends_too_early_is_refused(process, other):
    """Where the other process goes on to more noise both are named, with the remedy."""
    names = f"{type(process).__name__} ends before {type(other).__name__}.*take a longer one"
    with pytest.raises(ArgumentError, match=names):
        nz.Matched(nz.UniformTimes(), other)(f64([0.5]), process)


@pytest.mark.parametrize("steps", [10, 50, 100, 1000])
def test_the_same_end_by_another_rounding_is_not_refused(steps):
    """KarrasVE that ends at the process's own last sigma / alpha, computed in float64, is long enough, and no time lies beyond it."""
    for other in (nz.DiscreteVP.linear(steps), nz.LinearVP(0.1, 10.0 + steps / 100)):
        process = nz.KarrasVE((-_logsnr_end(other) / 2).exp().item())
        t = nz.Matched(nz.UniformTimes(), other)(f64([0.5, LAST]), process)
        assert bool((t <= process.end).all())


def _logsnr_end(process):
    return process(f64(process.end)).logsnr


# ---- uniform in what the network is told


@pytest.mark.parametrize(
    ("conditioning", "ends", "told"),
    [
        (nz.InverseTime(), (1e-3, 1.0), lambda t: 1 / t),
        (nz.InverseTime(), (0.02, 0.7), lambda t: 1 / t),
        (nz.InverseSigmoid(), (1e-3, 0.999), lambda t: np.log(t / (1 - t))),
        (nz.InverseSigmoid(), (0.2, 0.9), lambda t: np.log(t / (1 - t))),
    ],
)
def test_what_is_told_is_uniform(conditioning, ends, told):
    """The told number has the quantiles of a uniform one: it lies at u between those at t_min and t_max, and the times in between."""
    u = f64([FIRST, 0.1, 0.25, 0.5, 0.75, 0.9, LAST])
    t = nz.UniformTold(conditioning, *ends)(u, nz.LinearVP()).numpy()
    low, high = (told(np.float64(end)) for end in ends)
    np.testing.assert_allclose((told(t) - low) / (high - low), u.numpy(), rtol=1e-9, atol=1e-12)
    assert (t >= ends[0] * (1 - 1e-12)).all() and (t <= ends[1]).all() and (np.diff(t) > 0).all()


@given(t_min=st.floats(1e-9, 0.99), t_max=st.one_of(st.just(1.0), st.floats(0.991, 1.0)), u=uniforms)
def test_told_times_are_legal(t_min, t_max, u):
    """Whatever the ends and the draw, a told time is a time: above 0 and not beyond 1."""
    t = nz.UniformTold(nz.InverseTime(), t_min, t_max)(f64([u, FIRST, LAST]), nz.LinearVP())
    assert bool(((t > 0) & (t <= 1)).all())
    nz.LinearVP()(t)


def test_draws_of_told_numbers_are_uniform():
    """Of training's own draws log(t / (1 - t)) is uniform between -log 999 and log 999, and 1/t between 1 and 1000 (Kolmogorov, 1 %)."""
    u = drawn(4000)
    t = nz.UniformTold(nz.InverseSigmoid(), t_max=0.999)(u, nz.LinearVP())
    assert ks((torch.logit(t) + math.log(999)) / (2 * math.log(999))) < 1.63
    t = nz.UniformTold(nz.InverseTime())(u, nz.LinearVP())
    assert ks((1 / t - 1) / 999) < 1.63


def test_an_infinite_told_number_is_refused():
    """InverseSigmoid is infinite at 1: with t_max = 1 its times are refused, not infinite."""
    with pytest.raises(ArgumentError, match="InverseSigmoid at t = 1 is infinite"):
        nz.UniformTold(nz.InverseSigmoid())(f64([0.5]), nz.LinearVP())


@pytest.mark.parametrize("conditioning", [nz.Time(), nz.Timestep(), nz.LogSigma(), None], ids=repr)
def test_only_remapped_times_can_be_told_uniformly(conditioning):
    """A conditioning without `time_of` is refused, with those that have it."""
    with pytest.raises(ArgumentError, match="needs InverseTime or InverseSigmoid"):
        nz.UniformTold(conditioning)


@pytest.mark.parametrize(
    "ends", [(0.0, 1.0), (-0.1, 1.0), (0.5, 0.5), (0.6, 0.5), (0.1, 1.1), (math.nan, 1.0), (0.1, math.nan)]
)
def test_ends_of_told_times_lie_in_order(ends):
    """0 < t_min < t_max <= 1, NaN included."""
    with pytest.raises(ArgumentError, match="0 < t_min < t_max <= 1"):
        nz.UniformTold(nz.InverseTime(), *ends)


# ---- a grid as dense as training


@pytest.mark.parametrize("steps", [1, 2, 18, 250])
def test_a_quantile_grid_holds_quantiles(steps):
    """Its positive times are the quantiles (i + 1/2) / n, decreasing, and its last is exactly 0: of the uniform, log-normal and told distributions written out."""
    middle = (np.arange(steps)[::-1] + 0.5) / steps
    normal = [float(mp.sqrt(2) * mp.erfinv(2 * mpf(u) - 1)) for u in middle]
    cases = [
        (nz.UniformTimes(), nz.LinearVP(), middle),
        (nz.UniformTimes(), nz.KarrasVE(80.0), 80 * middle),
        (nz.LogNormalSigma(), nz.KarrasVE(1e30), np.exp(-1.2 + 1.2 * np.array(normal))),
        (nz.ImportanceTimes(0.02), nz.KarrasVE(100.0), 0.02 * 5000**middle),
        (nz.UniformTold(nz.InverseTime()), nz.LinearVP(), 1 / (1000 - 999 * middle)),
    ]
    for times, process, expected in cases:
        grid = nz.QuantileGrid(times)(steps, process)
        assert grid.dtype == torch.float64 and grid.shape == (steps + 1,) and grid[-1].item() == 0
        np.testing.assert_allclose(grid[:-1].numpy(), expected, rtol=1e-9)
        assert bool((grid.diff() < 0).all())


def test_a_quantile_grid_needs_different_times():
    """More steps than a discrete distribution has times are refused; as many are its nodes, bit by bit."""
    process = nz.DiscreteVP.linear(20)
    nodes = torch.arange(20, -1, -1, dtype=torch.float64) / 20
    assert torch.equal(nz.QuantileGrid(nz.DiscreteTimes())(20, process), nodes)
    with pytest.raises(ArgumentError, match="fewer than 21 different times"):
        nz.QuantileGrid(nz.DiscreteTimes())(21, process)
