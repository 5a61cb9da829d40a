"""Two laws of every parameterization, what each output means, and that none of them changes the exact answer."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import nearzero as nz
from nearzero.errors import ArgumentError
from nearzero.parameterization import regression_target

law = settings(deadline=None, derandomize=True, max_examples=40)
PARAMETERIZATIONS = {
    "Epsilon": nz.Epsilon(),
    "Velocity": nz.Velocity(),
    "Denoised": nz.Denoised(),
    "Flow": nz.Flow(),
    "Karras": nz.Karras(),
    "Karras 2": nz.Karras(2.0),
    "Nu": nz.Nu(),
    "W": nz.W(),
}
ZERO = nz.ZeroTerminalSNR
VP = {
    "LinearVP": nz.LinearVP(),
    "LinearVP, beta_min 0": nz.LinearVP(beta_min=0.0),
    "QuadraticVP": nz.QuadraticVP(),
    "CosineVP": nz.CosineVP(),
    "ShiftedCosine": nz.ShiftedCosine(),
    "LinearSigmaVP": nz.LinearSigmaVP(),
    "DiscreteVP.linear": nz.DiscreteVP.linear(),
    "DiscreteVP.quadratic": nz.DiscreteVP.quadratic(),
    "DiscreteVP.cosine": nz.DiscreteVP.cosine(),
    "DiscreteVP.from_betas": nz.DiscreteVP.from_betas([0.02, 0.3, 1e-4, 0.5]),
    "ZeroTerminalSNR LinearVP": ZERO(nz.LinearVP()),
    "ZeroTerminalSNR DiscreteVP": ZERO(nz.DiscreteVP.linear()),
}
PLAIN = {
    "SubVP": nz.SubVP(),
    "StraightPath": nz.StraightPath(),
    "SongVE": nz.SongVE(),
    "KarrasVE": nz.KarrasVE(),
}
PROCESSES = VP | PLAIN


def each(names, argument):
    """Parametrizes by the values of a dict."""
    return pytest.mark.parametrize(argument, names.values(), ids=names.keys())


def only(*names):
    return {name: PARAMETERIZATIONS[name] for name in names}


every = each(PARAMETERIZATIONS, "parameterization")
processes = each(PROCESSES, "process")
vp_only = only("Nu", "W")
VP_ONLY = tuple(vp_only.values())
PAIRS = {
    f"{name}-{where}": (parameterization, process)
    for name, parameterization in PARAMETERIZATIONS.items()
    for where, process in (VP if name in vp_only else PROCESSES).items()
}
every_pair = pytest.mark.parametrize(("parameterization", "process"), PAIRS.values(), ids=PAIRS.keys())
angles = st.floats(0, 1.57).map(lambda u: (math.cos(u), math.sin(u)))
inner_angles = st.floats(0.01, 1.56).map(lambda u: (math.cos(u), math.sin(u)))
wide = st.tuples(st.floats(0.01, 5), st.one_of(st.just(0.0), st.floats(1e-3, 100)))
levels = st.one_of(angles, wide)
numbers = st.floats(-10, 10)


def exists(parameterization, pair):
    """Where a parameterization has four numbers; 1 / sigma is no float64 below 1e-300."""
    alpha, sigma = pair
    if parameterization in VP_ONLY:
        return abs(alpha**2 + sigma**2 - 1) < 1e-9
    return (alpha > 0 or parameterization != nz.Epsilon()) and (sigma > 1e-300 or parameterization != nz.Denoised())


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


def level(alpha, sigma):
    return nz.Level(f64(alpha), f64(sigma))


def read(parameterization, pair):
    """A, B, C, D as floats."""
    return tuple(value.item() for value in parameterization.coefficients(level(*pair)))


def assert_laws(at, k):
    """alpha A + sigma C = 1 and alpha B + sigma D = 0, relative to the size of the terms."""
    alpha, sigma = at
    torch.testing.assert_close(alpha * k.A + sigma * k.C, torch.ones_like(alpha), rtol=0, atol=1e-12)
    scale = (sigma * k.D).abs() + 1e-290  # below it the products underflow
    assert bool(((alpha * k.B + sigma * k.D).abs() <= 1e-14 * scale).all())


# --- the two laws ------------------------------------------------------------------------------------------------


@every
@law
@given(pair=levels)
def test_the_two_laws_on_any_level(parameterization, pair):
    """Whatever the network says, alpha x0 + sigma eps = x: two laws, on VP angles and on levels that are not VP."""
    assume(exists(parameterization, pair))
    assert_laws(level(*pair), parameterization.coefficients(level(*pair)))


@every_pair
def test_the_two_laws_from_zero_to_the_end(parameterization, process):
    """The laws hold on [0, end] wherever the output has a meaning, ends included, and all four numbers are finite."""
    at = process(
        process.end * torch.cat([torch.linspace(0, 1, 2001).double(), 10.0 ** torch.arange(-20.0, 0).double()])
    )
    here = torch.tensor([exists(parameterization, pair) for pair in zip(*(v.tolist() for v in at), strict=True)])
    left_out = {nz.Denoised(): at.sigma == 0, nz.Epsilon(): at.alpha == 0}.get(parameterization, at.sigma < 0)
    assert torch.equal(here, ~left_out)
    at = nz.Level(*(value[here] for value in at))
    k = parameterization.coefficients(at)
    assert_laws(at, k)
    assert all(bool(value.isfinite().all()) and value.shape == at.alpha.shape for value in k)


# --- the tables --------------------------------------------------------------------------------------------------


def table(parameterization, a, s):
    """A, B, C, D as the papers print them."""
    match parameterization:
        case nz.Epsilon():
            return 1 / a, -s / a, 0, 1
        case nz.Velocity():
            return a / (a**2 + s**2), -s / (a**2 + s**2), s / (a**2 + s**2), a / (a**2 + s**2)
        case nz.Denoised():
            return 0, 1, 1 / s, -a / s
        case nz.Flow():
            return 1 / (a + s), -s / (a + s), 1 / (a + s), a / (a + s)
        case nz.Karras(data_std=d):
            z = s**2 + a**2 * d**2
            return a * d**2 / z, s * d / math.sqrt(z), s / z, -a * d / math.sqrt(z)
        case nz.Nu():
            return a * (1 + s**2), a * s**2, s**3, -s * a**2
        case nz.W():
            return a, s**2, s, -s * a
    raise TypeError(parameterization)


@every
@law
@given(pair=levels)
def test_the_four_numbers_are_the_printed_ones(parameterization, pair):
    """A, B, C and D are the table's, in floats, to 1e-14 of each."""
    assume(exists(parameterization, pair))
    assert read(parameterization, pair) == pytest.approx(table(parameterization, *pair), rel=1e-14, abs=1e-300)


@law
@given(sigma=st.floats(1e-4, 1e4), d=st.floats(1e-2, 1e2))
def test_karras_is_edm_where_alpha_is_one(sigma, d):
    """With alpha = 1, A, B and the input scale are EDM's c_skip, c_out and c_in, and EDM's lambda is Simple's 1."""
    c_skip, c_out = d**2 / (sigma**2 + d**2), sigma * d / math.sqrt(sigma**2 + d**2)
    c_in, weight = 1 / math.sqrt(sigma**2 + d**2), (sigma**2 + d**2) / (sigma * d) ** 2
    at, karras = level(1.0, sigma), nz.Karras(d)
    k = karras.coefficients(at)
    assert (k.A.item(), k.B.item()) == pytest.approx((c_skip, c_out), rel=1e-14)
    assert karras.input_scale(at).item() == pytest.approx(c_in, rel=1e-14)
    assert weight * k.B.item() ** 2 == pytest.approx(nz.Simple()(at, k).item(), rel=1e-14)


@law
@given(pair=levels, d=st.floats(1e-2, 1e2))
def test_karras_sees_and_answers_variance_one(pair, d):
    """For data of standard deviation d the network's input and its target both have variance 1, at every level."""
    at, karras = level(*pair), nz.Karras(d)
    a, b = (value.item() for value in regression_target(at, karras.coefficients(at)))
    scale = karras.input_scale(at).item()
    assert (scale * pair[0] * d) ** 2 + (scale * pair[1]) ** 2 == pytest.approx(1, rel=1e-13)
    assert (a * d) ** 2 + b**2 == pytest.approx(1, rel=1e-11)


@each({name: value for name, value in PARAMETERIZATIONS.items() if "Karras" not in name}, "parameterization")
@law
@given(pair=levels)
def test_the_network_sees_x_itself(parameterization, pair):
    """The input scale of all but Karras is exactly 1."""
    scale = parameterization.input_scale(level(*pair))
    assert scale.item() == 1.0 and scale.dtype == torch.float64


# --- what the output means ---------------------------------------------------------------------------------------


def truth(parameterization, pair, x0, eps):
    """What F stands for, from the papers' words; EDM's target is (x0 - c_skip x) / c_out, Nu's and W's from a score."""
    a, s = pair
    match parameterization:
        case nz.Epsilon():
            return eps
        case nz.Velocity():
            return a * eps - s * x0
        case nz.Denoised():
            return x0
        case nz.Flow():
            return eps - x0
        case nz.Karras(data_std=d):
            return (s * x0 / d - a * d * eps) / math.hypot(s, a * d)
        case nz.Nu():
            return s**2 / a * x0 - (1 + s**2) / s * eps  # (-eps / s + s^2 x) / a^2 with 1 - s^4 = a^2 (1 + s^2)
        case nz.W():
            return x0 - a / s * eps  # (-eps / s + x) / a with 1 - s^2 = a^2
    raise TypeError(parameterization)


def assert_reads(parameterization, pair, F, x0, eps):
    """x0 = A x + B F and eps = C x + D F, to the roundings of the terms."""
    x, (A, B, C, D) = pair[0] * x0 + pair[1] * eps, read(parameterization, pair)
    size = abs(pair[0] * x0) + abs(pair[1] * eps)
    assert A * x + B * F == pytest.approx(x0, rel=1e-14, abs=1e-14 * (abs(A) * size + abs(B * F)) + 1e-290)
    assert C * x + D * F == pytest.approx(eps, rel=1e-14, abs=1e-14 * (abs(C) * size + abs(D * F)) + 1e-290)


@every
@law
@given(pair=angles | inner_angles, x0=numbers, eps=numbers)
def test_reading_the_true_output_gives_the_truth(parameterization, pair, x0, eps):
    """What the output stands for (eps, v, x0, eps - x0, EDM's target, nu, w) reads back as x0 and eps."""
    assume(exists(parameterization, pair) and (parameterization not in VP_ONLY or pair[1] > 1e-6))
    if parameterization == nz.Velocity():
        pair = tuple(value / math.hypot(*pair) for value in pair)
    assert_reads(parameterization, pair, truth(parameterization, pair, x0, eps), x0, eps)


@each(only("Epsilon", "Velocity", "Denoised", "Flow", "Karras", "Karras 2"), "parameterization")
@law
@given(pair=wide, x0=numbers, eps=numbers)
def test_a_level_that_is_not_vp_is_read_alike(parameterization, pair, x0, eps):
    """On a level that is not VP the same outputs, Velocity's alpha eps - sigma x0 too, read back as x0 and eps."""
    assume(exists(parameterization, pair))
    assert_reads(parameterization, pair, truth(parameterization, pair, x0, eps), x0, eps)


def test_flow_is_the_direction_of_the_straight_path():
    """On StraightPath F = eps - x0 is dx/dt: x moves by F times the time."""
    t, s, x0, eps = 0.7, 0.2, 1.3, -0.4
    A, B, C, D = read(nz.Flow(), (1 - t, t))
    x, F = (1 - t) * x0 + t * eps, eps - x0
    assert (1 - s) * x0 + s * eps == pytest.approx(x + (s - t) * F, abs=1e-15)
    assert (A * x + B * F, C * x + D * F) == pytest.approx((x0, eps), abs=1e-15)


def normal(pair, mean, variance, x):
    """Score, E[x0 | x] and E[eps | x] of N(mean, variance) data, from the density of x_t."""
    a, s = pair
    precise = (x - a * mean) / (a**2 * variance + s**2)
    return -precise, mean + a * variance * precise, s * precise


@law
@given(pair=angles | st.just((1.0, 0.0)) | st.just((0.0, 1.0)), mean=numbers, variance=st.floats(0.1, 4), x=numbers)
def test_w_of_a_normal_is_bounded_at_both_ends(pair, mean, variance, x):
    """score = alpha w - x: w* = (m + alpha (v - 1) x) / (alpha^2 v + sigma^2) of N(m, v) reads back at every level."""
    w = (mean + pair[0] * (variance - 1) * x) / (pair[0] ** 2 * variance + pair[1] ** 2)
    score, x0, eps = normal(pair, mean, variance, x)
    A, B, C, D = read(nz.W(), pair)
    assert (A * x + B * w, C * x + D * w) == pytest.approx((x0, eps), rel=1e-12, abs=1e-12)
    c_x, c_F = (value.item() for value in nz.W().score_coefficients(level(*pair)))
    assert c_x * x + c_F * w == pytest.approx(score, rel=1e-12, abs=1e-12)


@law
@given(pair=angles | st.just((1.0, 0.0)), mean=numbers, variance=st.floats(0.1, 4), x=numbers)
def test_nu_of_a_normal_reads_back(pair, mean, variance, x):
    """score = alpha^2 nu - sigma^2 x: nu* = (m / alpha - (1 + sigma^2 - sigma^2 v) x) / (alpha^2 v + sigma^2)."""
    a, s = pair
    nu = (mean / a - (1 + s**2 - s**2 * variance) * x) / (a**2 * variance + s**2)
    score, x0, eps = normal(pair, mean, variance, x)
    A, B, C, D = read(nz.Nu(), pair)
    assert (A * x + B * nu, C * x + D * nu) == pytest.approx((x0, eps), rel=1e-11, abs=1e-11)
    c_x, c_F = (value.item() for value in nz.Nu().score_coefficients(level(*pair)))
    assert c_x * x + c_F * nu == pytest.approx(score, rel=1e-11, abs=1e-11)


def test_the_ends_of_nu_and_w():
    """No network is heard by Nu at both ends, where it reads x0 = x, then 0; by W at t = 0 none, at alpha = 0 x0 = w."""
    assert read(nz.Nu(), (1.0, 0.0)) == read(nz.W(), (1.0, 0.0)) == (1.0, 0.0, 0.0, 0.0)
    assert read(nz.Nu(), (0.0, 1.0)) == (0.0, 0.0, 1.0, 0.0)
    assert read(nz.W(), (0.0, 1.0)) == (0.0, 1.0, 1.0, 0.0)


@law
@given(pair=angles, x=numbers)
def test_w_zero_is_standard_normal_data(pair, x):
    """F = 0 under W reads as the posterior means and the score of N(0, 1) data: alpha x, sigma x and -x."""
    A, _, C, _ = read(nz.W(), pair)
    c_x, _ = nz.W().score_coefficients(level(*pair))
    score, x0, eps = normal(pair, 0.0, 1.0, x)
    assert (A * x, C * x, c_x.item() * x) == pytest.approx((x0, eps, score), rel=1e-14, abs=1e-300)


# --- the target of regression ------------------------------------------------------------------------------------


@every
@law
@given(pair=levels, x0=numbers, eps=numbers)
def test_regression_target_is_the_least_squares_solution(parameterization, pair, x0, eps):
    """a x0 + b eps is the F whose reading is nearest to (x0, eps), as numpy's least squares finds it, and reads them."""
    least = {nz.Denoised(): 1e-150, nz.Nu(): 1e-3, nz.W(): 1e-3}.get(parameterization, 0)  # D^2 is no float64 below
    assume(exists(parameterization, pair) and pair[1] >= least)
    a, b = (value.item() for value in regression_target(level(*pair), parameterization.coefficients(level(*pair))))
    A, B, C, D = read(parameterization, pair)
    x = pair[0] * x0 + pair[1] * eps
    ((nearest,), *_) = np.linalg.lstsq(np.array([[B], [D]]), np.array([x0 - A * x, eps - C * x]), rcond=None)
    size = (abs(a) + abs(b) + 1 / math.hypot(B, D)) * (1 + abs(A) + abs(C)) * (1 + sum(pair))
    assert a * x0 + b * eps == pytest.approx(nearest, rel=1e-11, abs=1e-13 * size)


@law
@given(pair=inner_angles)
def test_regression_targets_are_the_papers(pair):
    """(a, b) of F* = a x0 + b eps: eps, v, x0, eps - x0, EDM's target, and the nu and w of one example."""
    (a, s), at = pair, level(*pair)
    root = math.hypot(s, a * 0.5)
    expected = {
        "Epsilon": (0.0, 1.0),
        "Velocity": (-s, a),
        "Denoised": (1.0, 0.0),
        "Flow": (-1.0, 1.0),
        "Karras": (s / 0.5 / root, -a * 0.5 / root),
        "Nu": (s**2 / a, (s**3 - 1 / s) / a**2),
        "W": (1.0, (s - 1 / s) / a),
    }
    for name, pair_of_target in expected.items():
        parameterization = PARAMETERIZATIONS[name]
        target = regression_target(at, parameterization.coefficients(at))
        assert tuple(v.item() for v in target) == pytest.approx(pair_of_target, rel=1e-9, abs=1e-9), name


def test_no_target_where_the_network_is_not_heard():
    """B = D = 0 leaves the output undetermined: refused, also when only one example is there."""
    at = level([1.0, 0.6], [0.0, 0.8])
    k = nz.Velocity().coefficients(at)
    with pytest.raises(ArgumentError, match="B = D = 0"):
        regression_target(at, k._replace(B=k.B * torch.tensor([0.0, 1.0]), D=k.D * torch.tensor([0.0, 1.0])))
    for parameterization in VP_ONLY:
        with pytest.raises(ArgumentError, match="B = D = 0"):
            regression_target(at, parameterization.coefficients(at))


# --- the score ---------------------------------------------------------------------------------------------------


@every
@law
@given(pair=inner_angles | wide)
def test_score_coefficients_are_those_of_eps_over_sigma(parameterization, pair):
    """(-C / sigma, -D / sigma) wherever sigma > 0, from the printed table."""
    assume(pair[1] > 0 and exists(parameterization, pair))
    _, _, C, D = table(parameterization, *pair)
    found = tuple(value.item() for value in parameterization.score_coefficients(level(*pair)))
    assert found == pytest.approx((-C / pair[1], -D / pair[1]), rel=1e-13, abs=1e-300)


@every
@law
@given(pair=inner_angles, x0=numbers, eps=numbers)
def test_score_is_minus_eps_over_sigma(parameterization, pair, x0, eps):
    """score = -eps / sigma for the noise that the output is read as."""
    F, x = truth(parameterization, pair, x0, eps), pair[0] * x0 + pair[1] * eps
    c_x, c_F = (value.item() for value in parameterization.score_coefficients(level(*pair)))
    assert c_x * x + c_F * F == pytest.approx(-eps / pair[1], rel=1e-12, abs=1e-14 * (abs(c_x * 20) + abs(c_F * F)))


@each(only("Epsilon", "Velocity", "Denoised", "Flow", "Karras"), "parameterization")
def test_the_score_at_no_noise_is_refused(parameterization):
    """At sigma = 0 the score is -eps / 0: refused even if only one example is there, and the way out is named."""
    with pytest.raises(ArgumentError, match=r"sigma = 0.*(above 0|Velocity)"):
        parameterization.score_coefficients(level([0.6, 1.0], [0.8, 0.0]))


def test_the_score_of_nu_and_w_at_both_ends():
    """alpha^2 nu - sigma^2 x and alpha w - x have no division: exact at sigma = 0 and at alpha = 0."""
    ends = level([1.0, 0.0], [0.0, 1.0])
    assert [value.tolist() for value in nz.Nu().score_coefficients(ends)] == [[0.0, -1.0], [1.0, 0.0]]
    assert [value.tolist() for value in nz.W().score_coefficients(ends)] == [[-1.0, -1.0], [1.0, 0.0]]


# --- where an output has no meaning ------------------------------------------------------------------------------


def test_epsilon_does_not_exist_without_signal():
    """Epsilon at alpha = 0 is refused and Velocity is named; Velocity reads x0 = -F and eps = x there."""
    nothing = level([0.6, 0.0], [0.8, 1.0])
    with pytest.raises(ArgumentError, match=r"alpha = 0.*Velocity"):
        nz.Epsilon().coefficients(nothing)
    k = nz.Velocity().coefficients(nothing)
    assert tuple(value[1].item() for value in k) == (0.0, -1.0, 1.0, 0.0)


def test_denoised_does_not_exist_without_noise():
    """Denoised at sigma = 0 is refused and Velocity is named, also when only one example is there."""
    with pytest.raises(ArgumentError, match=r"Denoised at sigma = 0.*Velocity"):
        nz.Denoised().coefficients(level([0.6, 1.0], [0.8, 0.0]))
    k = nz.Denoised().coefficients(level(0.0, 1.0))
    assert tuple(value.item() for value in k) == (0.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize("data_std", [0.0, -0.5, math.nan, math.inf])
def test_karras_needs_a_standard_deviation(data_std):
    """A data_std outside (0, inf) is refused by value."""
    with pytest.raises(ArgumentError, match=rf"positive data_std; got {data_std}"):
        nz.Karras(data_std)


@each(vp_only, "parameterization")
@pytest.mark.parametrize(
    ("process", "t", "total"),
    [(nz.KarrasVE(), 80.0, "6401"), (nz.SubVP(), 1.0, "0.999957"), (nz.StraightPath(), 0.5, "0.5")],
)
def test_nu_and_w_need_a_variance_preserving_process(parameterization, process, t, total):
    """Where alpha^2 + sigma^2 is not 1, Nu and W are refused with the sum and a process that would do."""
    at = process(f64([0.0, t]))
    name = type(parameterization).__name__
    for ask in (parameterization.coefficients, parameterization.score_coefficients):
        with pytest.raises(ArgumentError, match=rf"{name} needs alpha\^2 \+ sigma\^2 = 1, got {total}.*LinearSigmaVP"):
            ask(at)


@each(vp_only, "parameterization")
@each(VP, "process")
def test_float32_levels_are_variance_preserving(parameterization, process):
    """A VP level that was rounded to float32 is accepted; a sum that is off by 2e-6 is not."""
    at = process(torch.linspace(0, 1, 500))
    assert at.alpha.dtype == torch.float32
    assert all(bool(value.isfinite().all()) for value in parameterization.coefficients(at))
    with pytest.raises(ArgumentError, match="LinearSigmaVP"):
        parameterization.coefficients(level(math.sqrt(0.5 + 2e-6), math.sqrt(0.5)))


# --- exact denoisers: nothing depends on the choice --------------------------------------------------------------

MIXTURE = nz.GaussianMixture(
    f64([0.3, 0.7]), f64([[-1.4, 0.7], [0.6, -0.3]]), f64([[[0.3, 0.1], [0.1, 0.2]], [[0.05, 0.0], [0.0, 0.4]]])
)  # of mean 0
POINTS = nz.PointCloud(f64([[-1.4, 0.7], [0.6, -0.3], [0.8, -0.4]]))  # of mean 0
MOVED = nz.GaussianMixture(MIXTURE.weights, MIXTURE.means + f64([2.0, -1.0]), MIXTURE.covariances)
oracles = each({"mixture": MIXTURE, "points": POINTS, "moved mixture": MOVED}, "data")
FRACTIONS = [0.003, 0.02, 0.1, 0.3, 0.5, 0.8, 0.97]


def possible(process):
    """The parameterizations that a process admits between its ends."""
    names = PARAMETERIZATIONS.items()
    return {name: value for name, value in names if value not in VP_ONLY or process in VP.values()}


def states(data, at):
    """Noisy data at every level, (n, 2)."""
    generator = torch.Generator().manual_seed(0)
    x0 = data.sample(len(at.alpha), generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    return at.alpha[:, None] * x0 + at.sigma[:, None] * eps


def scores(data, x, at):
    """Autograd's gradient of log p_t."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(data.log_prob(x, at).sum(), x)[0]


@processes
@oracles
def test_the_exact_answer_does_not_depend_on_the_output(data, process):
    """Through every parameterization x0, eps and the score are the posterior means and the gradient of log p, to 1e-9."""
    t = process.end * f64(FRACTIONS)
    at = process(t)
    x = states(data, at)
    expected, score = data.posterior(x, at), scores(data, x, at)
    for parameterization in possible(process).values():
        denoiser = data.denoiser(process, parameterization)
        x0, eps = denoiser(x, t)
        torch.testing.assert_close(x0, expected.x0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(eps, expected.eps, rtol=1e-9, atol=1e-9)
        apart = (denoiser.score(x, t) - score).norm(dim=1)
        assert bool((apart <= 1e-9 * (1 / at.sigma + score.norm(dim=1))).all())


@processes
@oracles
def test_the_exact_answer_at_both_ends(data, process):
    """At t = 0 and at the end too, Nu without signal for centred data only: there it reads x0 = 0."""
    for t in (0.0, process.end):
        at = process(f64([t] * 4))
        x = states(data, at)
        expected = data.posterior(x, at)
        pair = at.alpha[0].item(), at.sigma[0].item()
        for name, parameterization in possible(process).items():
            if not exists(parameterization, pair):
                continue
            x0, eps = data.denoiser(process, parameterization)(x, t)
            mean = 0 * x if (name, pair[0]) == ("Nu", 0) else expected.x0
            torch.testing.assert_close(x0, mean, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(eps, expected.eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [0.0, 1.0])
@each(vp_only, "parameterization")
@pytest.mark.parametrize("data", [MIXTURE, MOVED], ids=["centred", "moved"])
def test_the_exact_score_of_nu_and_w_at_both_ends(data, parameterization, t):
    """On every VP process the score is the gradient of log p at t = 0, where it is the data's own, and at the end."""
    for process in VP.values():
        at = process(f64([t] * 4))
        x = states(data, at)
        score = data.denoiser(process, parameterization).score(x, t)
        torch.testing.assert_close(score, scores(data, x, at), rtol=1e-9, atol=1e-9)


@each({name: value for name, value in VP.items() if value(f64(1.0)).alpha == 0}, "process")
@oracles
def test_w_without_signal_is_the_mean(data, process):
    """At alpha = 0 the exact w is the mean of the data, whatever x is."""
    mean = data.points.mean(0) if isinstance(data, nz.PointCloud) else data.weights @ data.means
    x = states(data, process(f64([1.0] * 3)))
    F, _, _ = data.denoiser(process, nz.W()).output(x, 1.0)
    torch.testing.assert_close(F, mean.expand_as(x), rtol=1e-12, atol=1e-12)


@each(vp_only, "parameterization")
@oracles
def test_a_batch_may_hold_data_itself(data, parameterization):
    """Examples at t = 0, where Nu and W are not heard, stand in one batch with examples that are noisy."""
    process, t = nz.LinearSigmaVP(), f64([0.0, 0.4, 1.0, 0.7])
    x = states(data, process(t))
    together = data.denoiser(process, parameterization)(x, t)
    for i in range(4):
        alone = data.denoiser(process, parameterization)(x[i : i + 1], t[i].item())
        for one, all_of_them in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_of_them[i], rtol=1e-12, atol=1e-12)
