"""The exact denoisers, against quadrature, mpmath, plain loops, torch.distributions and autograd of the log density."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nearzero as nz
from nearzero.errors import ArgumentError

law = settings(deadline=None, derandomize=True, max_examples=40)
PROCESSES = [nz.LinearVP(), nz.DiscreteVP.linear()]
LEVELS = [(1.0, 0.0), (1.0, 1e-3), (0.8, 0.6), (0.3, 2.0), (0.0066, 0.99998), (0.0, 1.0)]
NOISY = LEVELS[1:]
WEIGHTS, MEANS, VARIANCES = np.array([0.3, 0.7]), np.array([-1.0, 2.0]), np.array([0.25, 0.04])
schedules = pytest.mark.parametrize("process", PROCESSES, ids=["LinearVP", "DiscreteVP"])


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


def at(alpha, sigma):
    return nz.Level(f64(alpha), f64(sigma))


def states(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def line():
    """A mixture of two normals on the line."""
    return nz.GaussianMixture(f64(WEIGHTS), f64(MEANS[:, None]), f64(VARIANCES[:, None, None]))


def mixture(*shape, count=3):
    """A mixture with full covariances on tensors of a shape."""
    d = math.prod(shape)
    roots = states(count, d, d, seed=1) / math.sqrt(d)
    weights = torch.arange(1, count + 1, dtype=torch.float64)
    return nz.GaussianMixture(
        weights / weights.sum(),
        2 * states(count, *shape, seed=2),
        roots @ roots.mT + 0.1 * torch.eye(d, dtype=torch.float64),
    )


def cloud(count=7, *shape):
    return nz.PointCloud(states(count, *shape, seed=3))


ORACLES = {
    "mixture": mixture(3),
    "mixture of images": mixture(1, 2, 2),
    "cloud": cloud(7, 3),
    "cloud of images": cloud(7, 2, 3, 2),
}
oracles = pytest.mark.parametrize("data", ORACLES.values(), ids=ORACLES)


def like(data, count):
    """`count` states of the data's shape."""
    shape = data.points.shape[1:] if isinstance(data, nz.PointCloud) else data.means.shape[1:]
    return 1.5 * states(count, *shape, seed=4)


def density(x, mean=0.0, variance=1.0):
    """The normal density, in numpy."""
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


def line_density(x):
    return sum(w * density(x, m, v) for w, m, v in zip(WEIGHTS, MEANS, VARIANCES, strict=True))


def quadrature(x, alpha, sigma):
    """E[x0 | x] and E[eps | x] of `line()` by Bayes' rule, each on its own grid: the trapezoidal rule in numpy."""
    if sigma == 0:
        x0 = x / alpha
    else:
        grid = np.linspace(-9, 9, 60001)
        p = line_density(grid) * density(x, alpha * grid, sigma**2)
        x0 = (grid * p).sum() / p.sum()
    if alpha == 0:
        eps = x / sigma
    else:
        grid = np.linspace(-10, 10, 60001)
        p = density(grid) * line_density((x - sigma * grid) / alpha)
        eps = (grid * p).sum() / p.sum()
    return x0, eps


def loop(points, x, alpha, sigma):
    """E[x0 | x], E[eps | x] and log p(x) of a set of points: plain Python, one flat point after the other."""
    squares = [sum((a - alpha * b) ** 2 for a, b in zip(x, p, strict=True)) for p in points]
    least, d = min(squares), len(x)
    share = [math.exp((least - square) / (2 * sigma**2)) for square in squares]
    total = math.fsum(share)
    x0 = [math.fsum(s * p[j] for s, p in zip(share, points, strict=True)) / total for j in range(d)]
    eps = [(a - alpha * b) / sigma for a, b in zip(x, x0, strict=True)]
    norm = d * (math.log(sigma) + math.log(2 * math.pi) / 2) + math.log(len(points))
    return x0, eps, math.log(total) - least / (2 * sigma**2) - norm


# --- posterior means ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_posterior_means_are_bayes_rule(alpha, sigma):
    """E[x0 | x] and E[eps | x] of a mixture on the line are its integrals, without noise and without signal too."""
    x = np.array([alpha * x0 + sigma * e for x0 in (-1.8, -0.2, 0.9, 1.2, 2.3) for e in (-1.5, 0.4)])
    x0, eps = line().posterior(f64(x[:, None]), at(alpha, sigma))
    expected = np.array([quadrature(value, alpha, sigma) for value in x])
    np.testing.assert_allclose(x0[:, 0].numpy(), expected[:, 0], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(eps[:, 0].numpy(), expected[:, 1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
@pytest.mark.parametrize(("alpha", "sigma"), NOISY[1:-1])
def test_the_mixture_is_that_of_torch_distributions(shape, alpha, sigma):
    """log p_t is MixtureSameFamily's, and eps = -sigma grad log p_t (Tweedie), x0 to match."""
    data, d = mixture(*shape), math.prod(shape)
    theirs = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(data.weights),
        torch.distributions.MultivariateNormal(
            alpha * data.means.flatten(1), alpha**2 * data.covariances + sigma**2 * torch.eye(d, dtype=torch.float64)
        ),
    )
    x = like(data, 5).requires_grad_()
    log_p = theirs.log_prob(x.flatten(1))
    (score,) = torch.autograd.grad(log_p.sum(), x)
    torch.testing.assert_close(data.log_prob(x.detach(), at(alpha, sigma)), log_p.detach(), rtol=1e-12, atol=1e-12)
    x0, eps = data.posterior(x.detach(), at(alpha, sigma))
    torch.testing.assert_close(eps, -sigma * score, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(alpha * x0, x.detach() + sigma**2 * score, rtol=1e-11, atol=1e-11)


def test_the_datas_own_density():
    """Without a level log_prob is that of the data: MixtureSameFamily's, and the level (1, 0)."""
    data = mixture(3)
    theirs = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(data.weights),
        torch.distributions.MultivariateNormal(data.means, data.covariances),
    )
    x = like(data, 5)
    torch.testing.assert_close(data.log_prob(x), theirs.log_prob(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(data.log_prob(x), data.log_prob(x, at(1.0, 0.0)))


@law
@given(angle=st.floats(0, math.pi / 2), radius=st.floats(0.1, 10))
def test_a_single_normal(angle, radius):
    """For N(m, S): x0 = m + alpha S C^-1 (x - alpha m), eps = sigma C^-1 (x - alpha m), C = alpha^2 S + sigma^2 I."""
    alpha, sigma = radius * math.cos(angle), radius * math.sin(angle)
    data = mixture(3, count=1)
    x, m, S = like(data, 4).numpy(), data.means[0].numpy(), data.covariances[0].numpy()
    solved = np.linalg.solve(alpha**2 * S + sigma**2 * np.eye(3), (x - alpha * m).T)
    x0, eps = data.posterior(f64(x), at(alpha, sigma))
    np.testing.assert_allclose(x0.numpy(), m + alpha * (S @ solved).T, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(eps.numpy(), sigma * solved.T, rtol=1e-10, atol=1e-11)


@oracles
@law
@given(angle=st.just(0.0) | st.floats(1e-6, math.pi / 2), radius=st.floats(0.1, 10))
def test_the_means_explain_x(data, angle, radius):
    """alpha E[x0 | x] + sigma E[eps | x] = x at every level, variance preserving or not."""
    alpha, sigma = radius * math.cos(angle), radius * math.sin(angle)
    if angle == 0:
        alpha = 1.0  # time 0
    x = like(data, 3)
    x0, eps = data.posterior(x, at(alpha, sigma))
    torch.testing.assert_close(alpha * x0 + sigma * eps, x, rtol=0, atol=1e-11)


@oracles
def test_time_zero_says_nothing_about_the_noise(data):
    """At t = 0, on the data or off them, x0 = x and eps = 0, from the oracle and from its denoiser."""
    x = like(data, 3)
    for x0, eps in (data.posterior(x, at(1.0, 0.0)), data.denoiser(nz.LinearVP())(x, 0.0)):
        torch.testing.assert_close(x0, x, rtol=1e-13, atol=1e-13)
        assert torch.equal(eps, torch.zeros_like(x))
    assert torch.equal(data.denoiser(nz.LinearVP())(x, 0.0).x0, x)


@pytest.mark.parametrize("x", [-1.0 + 3e-6, 0.5, 0.55, 2.0 - 1e-6, 7.0])
def test_a_mixture_at_tiny_sigma_keeps_its_digits(x):
    """At sigma = 1e-6 and 1e-12 posterior means and log density on the line are those of 40 digits, to 1e-13."""
    for s in (1e-6, 1e-12):
        a = math.sqrt(1 - s**2)
        with mpmath.workdps(40):
            alpha, sigma = mpmath.mpf(a), mpmath.mpf(s)
            spread = [alpha**2 * mpmath.mpf(v) + sigma**2 for v in VARIANCES]
            off = [x - alpha * mpmath.mpf(m) for m in MEANS]
            p = [
                mpmath.mpf(w) * mpmath.exp(-(y**2) / (2 * v)) / mpmath.sqrt(2 * mpmath.pi * v)
                for w, y, v in zip(WEIGHTS, off, spread, strict=True)
            ]
            eps = sigma * mpmath.fsum(q * y / v for q, y, v in zip(p, off, spread, strict=True)) / mpmath.fsum(p)
            x0, log_p = (x - sigma * eps) / alpha, mpmath.log(mpmath.fsum(p))
        estimate = line().posterior(f64([[x]]), at(a, s))
        assert estimate.x0.item() == pytest.approx(float(x0), rel=1e-13)
        assert estimate.eps.item() == pytest.approx(float(eps), rel=1e-13)
        assert line().log_prob(f64([[x]]), at(a, s)).item() == pytest.approx(float(log_p), rel=1e-13)


# --- a finite set ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3, 2)])
@law
@given(alpha=st.just(0.0) | st.floats(0.01, 2), sigma=st.floats(0.03, 3))
def test_a_cloud_is_a_loop_over_its_points(shape, alpha, sigma):
    """x0, eps and log p_t of a set of points are those of a plain loop, for vectors and for images."""
    data = cloud(7, *shape)
    x = like(data, 3)
    x0, eps = data.posterior(x, at(alpha, sigma))
    log_p = data.log_prob(x, at(alpha, sigma))
    assert x0.shape == eps.shape == x.shape and log_p.shape == (3,)
    for i in range(3):
        expected = loop(data.points.flatten(1).tolist(), x[i].flatten().tolist(), alpha, sigma)
        assert x0[i].flatten().tolist() == pytest.approx(expected[0], rel=1e-9, abs=1e-9)
        assert eps[i].flatten().tolist() == pytest.approx(expected[1], rel=1e-9, abs=1e-9)
        assert log_p[i].item() == pytest.approx(expected[2], rel=1e-10, abs=1e-10)


@pytest.mark.parametrize(
    ("count", "rows"), [(1_500_000, 3), (2**22 + 1, 1)], ids=["two rows a chunk", "more points than a chunk"]
)
def test_a_batch_may_need_many_chunks(count, rows):
    """Where states x points exceed one chunk every state still gets its own answer at its own level, as numpy's."""
    points = np.sin(np.arange(count))
    data = nz.PointCloud(f64(points[:, None]))
    x, alpha, sigma = np.array([[-0.4, 0.7, 1.3], [0.9, 0.5, 0.99], [0.3, 0.8, 0.05]])[:, :rows]
    x0, eps = data.posterior(f64(x[:, None]), at(alpha, sigma))
    log_p = data.log_prob(f64(x[:, None]), at(alpha, sigma))
    for i in range(rows):
        p = density(x[i], alpha[i] * points, sigma[i] ** 2)
        mean = (p * points).sum() / p.sum()
        assert x0[i].item() == pytest.approx(mean, rel=1e-11)
        assert eps[i].item() == pytest.approx((x[i] - alpha[i] * mean) / sigma[i], rel=1e-10)
        assert log_p[i].item() == pytest.approx(math.log(p.mean()), rel=1e-11)
    found = data.log_prob(f64([[points[5]], [2.0], [points[count - 1]]]))
    assert found.tolist() == pytest.approx([-math.log(count), -math.inf, -math.log(count)], rel=1e-14)


@pytest.mark.parametrize("alpha", [1.0, 0.8])
@pytest.mark.parametrize("sigma", [1e-3, 1e-6])
def test_with_little_noise_the_nearest_point_wins(alpha, sigma):
    """As sigma -> 0, x0 is the point nearest to x / alpha and eps = (x - alpha x0) / sigma, to the last digits."""
    data = cloud(7, 2, 2, 1)
    x = 1.5 * states(6, 2, 2, 1, seed=5)
    nearest = [min(data.points, key=lambda p: ((row - alpha * p) ** 2).sum().item()) for row in x]
    x0, eps = data.posterior(x, at(alpha, sigma))
    torch.testing.assert_close(x0, torch.stack(nearest), rtol=1e-14, atol=0)
    torch.testing.assert_close(eps * sigma, x - alpha * torch.stack(nearest), rtol=1e-13, atol=1e-15)
    assert len({tuple(p.flatten().tolist()) for p in nearest}) > 1


@pytest.mark.parametrize("sigma", [0.5, 1e-3, 1e-6])
def test_close_points_at_tiny_sigma(sigma):
    """Two points 3 sigma apart at the origin: x0 and eps are those of 40 digits, to 1e-13, at sigma = 1e-6 too."""
    points, x = [0.0, 3 * sigma], 1.4 * sigma
    with mpmath.workdps(40):
        p, q = (mpmath.exp(-((mpmath.mpf(x) - m) ** 2) / (2 * mpmath.mpf(sigma) ** 2)) for m in map(mpmath.mpf, points))
        x0 = float(q * points[1] / (p + q))
    estimate = nz.PointCloud(f64([[m] for m in points])).posterior(f64([[x]]), at(1.0, sigma))
    assert estimate.x0.item() == pytest.approx(x0, rel=1e-13)
    assert estimate.eps.item() == pytest.approx((x - x0) / sigma, rel=1e-12)


def test_close_points_away_from_the_origin():
    """Points and x all moved by one binary number have the same eps, up to the rounding of x0 over sigma."""
    points, x = f64([[0.0, 0.0], [3.1, 0.7]]) * 2.0**-20, f64([[1.6, 0.2]]) * 2.0**-20
    points, x, move = ((value * 2**40).round() / 2**40 for value in (points, x, f64(7.3)))
    assert torch.equal(points + move - move, points) and torch.equal(x + move - move, x)
    here, there = (nz.PointCloud(points + by).posterior(x + by, at(1.0, 2.0**-20)).eps for by in (0, move))
    torch.testing.assert_close(there, here, rtol=0, atol=1.01 * math.ulp(7.3) * 2.0**20)


def test_the_log_density_of_a_cloud_at_tiny_sigma():
    """At sigma = 1e-6, near an image of 768 numbers, log p_t is that of a plain loop to 1e-9."""
    data, sigma = cloud(3, 3, 16, 16), 1e-6
    x = data.points[:1] + sigma * states(1, 3, 16, 16)
    expected = loop(data.points.flatten(1).tolist(), x[0].flatten().tolist(), 1.0, sigma)[2]
    assert data.log_prob(x, at(1.0, sigma)).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("t", [1e-309, 1e-312])
def test_a_cloud_at_the_smallest_times(t):
    """At every time above 0 where sigma > 0, however small, x0 of a point is the point and eps is 0."""
    data = cloud(7, 3)
    assert nz.LinearVP()(f64(t)).sigma > 0
    x0, eps = data.denoiser(nz.LinearVP())(data.points, t)
    torch.testing.assert_close(x0, data.points, rtol=1e-14, atol=0)
    torch.testing.assert_close(eps, torch.zeros_like(x0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 2)])
def test_without_signal_the_mean_of_the_points(shape):
    """At alpha = 0 x0 is the mean of the points and eps = x / sigma; the first order in alpha is Cov x / sigma^2."""
    data, sigma, alpha = cloud(7, *shape), 1.7, 1e-6
    x, points = like(data, 4), data.points.flatten(1).numpy()
    x0, eps = data.posterior(x, at(0.0, sigma))
    np.testing.assert_allclose(x0.flatten(1).numpy(), np.tile(points.mean(0), (4, 1)), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(eps, x / sigma, rtol=1e-15, atol=0)
    slope = (data.posterior(x, at(alpha, sigma)).x0 - x0).flatten(1).numpy() / alpha
    first = x.flatten(1).numpy() @ np.cov(points.T, bias=True) / sigma**2
    np.testing.assert_allclose(slope, first, rtol=0, atol=1e-5)


def test_without_a_level_the_share_of_the_points():
    """PointCloud.log_prob(x) is log(how many points are x / N), -inf for the next number up, for images too."""
    points = f64([[0.1, 0.2], [0.3, 0.2], [0.1, 0.2], [0.1, 0.3]])
    x = torch.stack([points[0], points[1], points[3], f64([0.3, 0.3]), torch.nextafter(points[0], f64(1.0))])
    expected = [math.log(2 / 4), math.log(1 / 4), math.log(1 / 4), -math.inf, -math.inf]
    for shape in ((2,), (1, 1, 2), (2, 1, 1)):
        found = nz.PointCloud(points.reshape(4, *shape)).log_prob(x.reshape(5, *shape))
        assert found.tolist() == pytest.approx(expected, rel=1e-15)


def test_one_point_is_a_mixture_without_spread():
    """A point is the limit of N(p, s^2 I): x0 and log p differ by their first order in s^2."""
    p, x, alpha, sigma = states(1, 3), states(5, 3, seed=1), 0.8, 0.6
    cloud_x0, cloud_eps = nz.PointCloud(p).posterior(x, at(alpha, sigma))
    torch.testing.assert_close(cloud_x0, p.expand(5, 3), rtol=1e-14, atol=0)
    for s in (1e-2, 1e-3, 1e-4):
        data = nz.GaussianMixture(f64([1.0]), p, s**2 * torch.eye(3, dtype=torch.float64)[None])
        x0, eps = data.posterior(x, at(alpha, sigma))
        first = alpha * (x - alpha * p) / sigma**2
        torch.testing.assert_close((x0 - cloud_x0) / s**2, first, rtol=2 * s**2, atol=1e-7)
        torch.testing.assert_close(eps, cloud_eps, rtol=2 * s**2, atol=0)
        nearer = data.log_prob(x, at(alpha, sigma)) - nz.PointCloud(p).log_prob(x, at(alpha, sigma))
        slope = (alpha / sigma) ** 2 * ((x - alpha * p).square().sum(1) / sigma**2 - 3) / 2
        torch.testing.assert_close(nearer / s**2, slope, rtol=0, atol=50 * s**2 + 1e-6)


# --- densities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_the_density_on_the_line_has_mass_one(alpha, sigma):
    """exp(log_prob) on the line integrates to 1, and to alpha E[x0] when weighted with x, at every level."""
    edge = 4 * alpha + 9 * max(sigma, 0.1)
    grid = torch.linspace(-edge, edge, 20001, dtype=torch.float64)[:, None]
    p = line().log_prob(grid, at(alpha, sigma)).exp()
    assert torch.trapezoid(p, grid[:, 0]).item() == pytest.approx(1, abs=1e-10)
    assert torch.trapezoid(p * grid[:, 0], grid[:, 0]).item() == pytest.approx(alpha * 1.1, abs=1e-10)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.02), *NOISY[1:]])
def test_the_density_of_noisy_points_has_mass_one(alpha, sigma):
    """exp(log_prob) of noisy points on the line, one of them twice, integrates to 1 and has their mean."""
    data = nz.PointCloud(f64([[-1.0], [0.5], [0.5], [2.0]]))
    grid = torch.linspace(-2 * alpha - 9 * sigma, 2 * alpha + 9 * sigma, 20001, dtype=torch.float64)[:, None]
    p = data.log_prob(grid, at(alpha, sigma)).exp()
    assert torch.trapezoid(p, grid[:, 0]).item() == pytest.approx(1, abs=1e-10)
    assert torch.trapezoid(p * grid[:, 0], grid[:, 0]).item() == pytest.approx(alpha * 0.5, abs=1e-10)


# --- denoisers ---------------------------------------------------------------------------------------------------


@oracles
@schedules
@pytest.mark.parametrize("parameterization", [nz.Epsilon(), nz.Velocity()], ids=["Epsilon", "Velocity"])
def test_the_score_is_the_gradient_of_the_log_density(data, process, parameterization):
    """The denoiser's score is autograd's gradient of log_prob(x, level), to 1e-9 of each gradient's length."""
    for t in (1e-3, 0.05, 0.3, 0.7, 1.0):
        x = like(data, 4).requires_grad_()
        (expected,) = torch.autograd.grad(data.log_prob(x, process(f64(t))).sum(), x)
        score = data.denoiser(process, parameterization).score(x.detach(), t)
        apart, size = (value.flatten(1).norm(dim=1) for value in (score - expected, expected))
        assert bool((apart <= 1e-9 * size).all())


@oracles
@schedules
@law
@given(t=st.sampled_from([0.0, 1.0]) | st.floats(1e-9, 1))
def test_the_denoiser_does_not_depend_on_its_output(data, process, t):
    """Through Epsilon and through Velocity x0 and eps are the posterior means at the level of t, to 1e-9."""
    x = like(data, 3)
    expected = data.posterior(x, process(f64(t)))
    for parameterization in (nz.Epsilon(), nz.Velocity()):
        x0, eps = data.denoiser(process, parameterization)(x, t)
        torch.testing.assert_close(x0, expected.x0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(eps, expected.eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [0.01, 0.2, 0.6, 1.0])
def test_the_answer_is_the_mean_of_the_target(t):
    """The network says E[eps | x] under Epsilon and E[alpha eps - sigma x0 | x] under Velocity, by quadrature."""
    alpha, sigma = (value.item() for value in nz.LinearVP()(f64(t)))
    x = [alpha * x0 + sigma * e for x0, e in ((-1.3, 0.7), (0.6, 0.1), (1.9, -1.0))]
    x0, eps = np.array([quadrature(value, alpha, sigma) for value in x]).T
    for parameterization, expected in ((nz.Epsilon(), eps), (nz.Velocity(), alpha * eps - sigma * x0)):
        F, _, _ = line().denoiser(nz.LinearVP(), parameterization).output(f64(x)[:, None], t)
        np.testing.assert_allclose(F[:, 0].numpy(), expected, rtol=1e-9, atol=1e-9)


class Straight:
    """alpha = 1 - t and sigma = t: not variance preserving, and without signal at its end."""

    end = 1.0

    def __call__(self, t):
        return nz.Level(1 - t, t)


@oracles
def test_a_process_that_ends_without_signal(data):
    """Where alpha(end) = 0 the denoiser predicts v and answers the mean of the data and x / sigma; elsewhere eps."""
    assert data.denoiser(nz.LinearVP()).parameterization == nz.Epsilon()
    denoiser, x = data.denoiser(Straight()), like(data, 3)
    assert denoiser.parameterization == nz.Velocity()
    if isinstance(data, nz.PointCloud):
        mean = data.points.mean(0)
    else:
        mean = sum(w * m for w, m in zip(data.weights, data.means, strict=True))
    x0, eps = denoiser(x, 1.0)
    torch.testing.assert_close(x0, mean.expand_as(x), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(eps, x, rtol=1e-13, atol=1e-13)
    for t in (0.3, 0.9):
        for answer, mean in zip(denoiser(x, t), data.posterior(x, at(1 - t, t)), strict=True):
            torch.testing.assert_close(answer, mean, rtol=1e-12, atol=1e-12)


@oracles
@schedules
def test_each_example_has_its_own_time(data, process):
    """A batch of times is one call for each example, t = 0 and the end included, for denoiser, means and log p."""
    t, x = f64([0.0, 1e-3, 0.3, 1.0]), like(data, 4)
    together, means = data.denoiser(process)(x, t), data.posterior(x, process(t))
    later = process(t[1:])
    log_p = data.log_prob(x[1:], later)
    for i in range(4):
        one = x[i : i + 1]
        alone = (*data.denoiser(process)(one, t[i].item()), *data.posterior(one, process(t[i])))
        for a, b in zip(alone, (*together, *means), strict=True):
            torch.testing.assert_close(a[0], b[i], rtol=1e-12, atol=1e-12)
        if i:
            torch.testing.assert_close(data.log_prob(one, process(t[i]))[0], log_p[i - 1], rtol=1e-12, atol=1e-12)


@oracles
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (1.0, 1e-4), (0.8, 0.6), (0.0, 1.0)])
def test_only_the_last_cast_is_narrow(data, alpha, sigma):
    """Means and log density of a float32 x are those of the same x in float64, cast at the end, bit by bit."""
    x = like(data, 3).float()
    for narrow, wide in zip(
        data.posterior(x, at(alpha, sigma)), data.posterior(x.double(), at(alpha, sigma)), strict=True
    ):
        assert narrow.dtype == torch.float32 and torch.equal(narrow, wide.float())
    if sigma > 0:
        narrow, wide = (data.log_prob(value, at(alpha, sigma)) for value in (x, x.double()))
        assert narrow.dtype == torch.float32 and torch.equal(narrow, wide.float())


@oracles
@pytest.mark.parametrize("parameterization", [nz.Epsilon(), nz.Velocity()], ids=["Epsilon", "Velocity"])
@pytest.mark.parametrize("t", [0.0, 2.0**-9, 0.25, 0.5, 1.0])
def test_a_narrow_denoiser_loses_only_roundings(data, parameterization, t):
    """x0 and eps of a float32 x are float64's to four roundings of each term: A x and B F, C x and D F."""
    x, denoiser = like(data, 3).float(), data.denoiser(nz.LinearVP(), parameterization)
    narrow, wide = denoiser(x, t), denoiser(x.double(), t)
    F, _, k = denoiser.output(x.double(), t)
    A, B, C, D = (value[0].item() for value in k)
    for a, b, (of_x, of_F) in zip(narrow, wide, ((A, B), (C, D)), strict=True):
        assert a.dtype == torch.float32
        terms = abs(of_x) * x.double().abs() + abs(of_F) * F.abs()
        assert bool(((a - b).abs() <= 4 * 2.0**-24 * terms).all())


# --- samples -----------------------------------------------------------------------------------------------------


def test_moments_of_samples():
    """Mean and covariance of a mixture's samples are sum w m and sum w (S + m m^T) - mean mean^T, to 4 standard errors."""
    data, n = mixture(1, 3), 20000
    x = data.sample(n, torch.Generator().manual_seed(0)).flatten(1).numpy()
    w, m, S = data.weights.numpy(), data.means.flatten(1).numpy(), data.covariances.numpy()
    mean = w @ m
    covariance = np.einsum("k,kij->ij", w, S + m[:, :, None] * m[:, None]) - np.outer(mean, mean)
    assert (np.abs(x.mean(0) - mean) < 4 * np.sqrt(np.diag(covariance) / n)).all()
    products = (x - mean)[:, :, None] * (x - mean)[:, None]
    assert (np.abs(products.mean(0) - covariance) < 4 * products.std(0) / math.sqrt(n)).all()


def test_samples_follow_the_distribution_function():
    """The samples' distribution function is sum w Phi((x - m) / s) within Kolmogorov's 99.9 % band, 1.95 / sqrt(n)."""
    n = 20000
    x = np.sort(line().sample(n, torch.Generator().manual_seed(0))[:, 0].numpy())
    phi = [
        0.5 * (1 + torch.erf(f64((x - m) / math.sqrt(2 * v))).numpy()) for m, v in zip(MEANS, VARIANCES, strict=True)
    ]
    F = WEIGHTS @ np.array(phi)
    distance = max(np.abs(F - np.arange(n) / n).max(), np.abs(F - np.arange(1, n + 1) / n).max())
    assert distance < 1.95 / math.sqrt(n)


def test_points_are_drawn_alike():
    """Samples of a cloud are its points, bit by bit, each drawn n / N times to 4 standard errors."""
    data, n = cloud(7, 1, 2, 1), 14000
    x = data.sample(n, torch.Generator().manual_seed(0))
    assert x.shape == (n, 1, 2, 1)
    counts = (x[:, None] == data.points).flatten(2).all(2).sum(0)
    assert counts.sum() == n
    assert (counts - n / 7).abs().max() < 4 * math.sqrt(n * 1 / 7 * 6 / 7)


@oracles
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_generator_decides_the_samples(data, dtype):
    """The same generator seed gives the same samples in the data's dtype, another seed others, torch's own is unused."""
    if isinstance(data, nz.PointCloud):
        data = nz.PointCloud(data.points.to(dtype))
    else:
        data = nz.GaussianMixture(data.weights, data.means.to(dtype), data.covariances)
    before = torch.get_rng_state()
    one, two, other = (data.sample(20, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.dtype == dtype
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("solver", "steps"), [(nz.DDIM(), 300), (nz.Ancestral(), 100)], ids=["DDIM", "Ancestral"])
def test_sampling_gives_the_mixture_back(solver, steps):
    """From noise, the exact denoiser samples the mixture: mean, variance and share of a mode to 4 standard errors."""
    count = 1500
    x = nz.sample(
        line().denoiser(nz.LinearVP()),
        (1,),
        solver=solver,
        grid=nz.SqrtGrid(),
        steps=steps,
        seeds=range(count),
        dtype=torch.float64,
    )[:, 0].numpy()
    mean = WEIGHTS @ MEANS
    variance = WEIGHTS @ (VARIANCES + MEANS**2) - mean**2
    squares = (x - mean) ** 2
    assert abs(x.mean() - mean) < 4 * math.sqrt(variance / count)
    assert abs(squares.mean() - variance) < 4 * squares.std() / math.sqrt(count)
    assert abs((x < 0.5).mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / count)
    upper = x[x > 0.5]
    assert abs(upper.std() - 0.2) < 4 * 0.2 / math.sqrt(2 * len(upper))


def test_sampling_a_cloud_gives_its_points_back():
    """From noise, the exact denoiser of a cloud samples its points, each as often as the others to 4 standard errors."""
    data, count = nz.PointCloud(f64([[-1.0, 0.5], [1.0, 0.5], [0.0, -1.0]])), 600
    x = nz.sample(
        data.denoiser(nz.LinearVP()),
        (2,),
        solver=nz.DDIM(),
        grid=nz.SqrtGrid(),
        steps=100,
        seeds=range(count),
        dtype=torch.float64,
    )
    distances = torch.cdist(x, data.points)
    assert distances.min(1).values.max() < 1e-6
    counts = distances.argmin(1).bincount(minlength=3)
    assert (counts - count / 3).abs().max() < 4 * math.sqrt(count * 1 / 3 * 2 / 3)


# --- bad input ---------------------------------------------------------------------------------------------------

EYE = torch.eye(2)
TWO = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "named"),
    [
        ([0.3, 0.6], TWO, [EYE, EYE], r"sum to 1.*0\.3.*0\.6.*sum 0\.9"),
        ([0.5, 0.5 + 1e-4], TWO, [EYE, EYE], r"sum to 1.*0\.5.*0\.5001"),
        ([-0.5, 1.5], TWO, [EYE, EYE], r"positive.*-0\.5, 1\.5"),
        ([0.0, 1.0], TWO, [EYE, EYE], r"positive.*0\.0, 1\.0"),
        ([1.0], TWO, [EYE, EYE], r"weights \(2,\).*got \(1,\)"),
        ([[0.5, 0.5]], TWO, [EYE, EYE], r"weights \(2,\).*got \(1, 2\)"),
        ([0.5, 0.5], TWO, [EYE], r"covariances \(2, 2, 2\).*\(1, 2, 2\)"),
        ([0.5, 0.5], TWO, torch.ones(2, 2), r"covariances \(2, 2, 2\).*and \(2, 2\)"),
        ([0.5, 0.5], torch.zeros(2, 1, 2, 2), [EYE, EYE], r"covariances \(2, 4, 4\).*\(2, 2, 2\)"),
        ([0.5, 0.5], TWO, [EYE, [[1.0, 0.5], [0.0, 1.0]]], r"symmetric.*asymmetry 0\.5"),
        ([0.5, 0.5], TWO, [EYE, [[1.0, 0.0], [0.0, 0.0]]], r"positive definite.*smallest eigenvalue -?0;.*PointCloud"),
        ([0.5, 0.5], TWO, [EYE, [[1.0, 2.0], [2.0, 1.0]]], r"positive definite.*smallest eigenvalue -1\b"),
        ([math.nan, 0.5], TWO, [EYE, EYE], "weights holds numbers that are not finite"),
        ([0.5, 0.5], [[0.0, math.inf], [0.0, 0.0]], [EYE, EYE], "means holds numbers that are not finite"),
        ([0.5, 0.5], TWO, [EYE, math.nan * EYE], "covariances holds numbers that are not finite"),
        ([0.5, 0.5], [0.0, 1.0], torch.ones(2, 1, 1), r"means must have shape.*got \(2,\)"),
        ([1.0], torch.ones(1, 0), torch.ones(1, 0, 0), r"means must have shape.*got \(1, 0\)"),
        ([1.0], [[0.0, 0.0]], [[[1.0, 3.0], [3.0, 9.0]]], "positive definite"),
    ],
)
def test_no_mixture_of_bad_numbers(weights, means, covariances, named):
    """Weights off the simplex, shapes that do not fit, and covariances that are none are refused with their values."""
    with pytest.raises(ArgumentError, match=named):
        nz.GaussianMixture(weights, means, covariances)


@pytest.mark.parametrize(
    "data", [nz.PointCloud(torch.zeros(3, 4)), nz.GaussianMixture([1.0], torch.zeros(1, 4), [torch.eye(4)])]
)
def test_no_x_of_another_shape(data):
    """x of another shape than the data is refused with both shapes, not broadcast."""
    for ask in (data.log_prob, lambda x: data.log_prob(x, at(0.6, 0.8)), lambda x: data.posterior(x, at(0.6, 0.8))):
        with pytest.raises(ArgumentError, match=r"\(B, 4\), got \(2, 1\)"):
            ask(torch.zeros(2, 1))


@pytest.mark.parametrize(
    ("points", "named"),
    [
        (torch.zeros(5), r"\(N, \*shape\), got \(5,\)"),
        (torch.zeros(()), r"got \(\)"),
        (torch.zeros(0, 3), r"got \(0, 3\)"),
        ([[0.0, math.nan]], "points holds numbers that are not finite"),
        ([[0.0, -math.inf]], "points holds numbers that are not finite"),
    ],
)
def test_no_cloud_of_bad_points(points, named):
    """Points without a shape, no points, and points that are not finite are refused."""
    with pytest.raises(ArgumentError, match=named):
        nz.PointCloud(points)


@pytest.mark.parametrize("sigma", [0.0, [0.5, 0.0]])
def test_points_have_no_density_without_noise(sigma):
    """A set of points has no density at sigma = 0, for one level and for one of many: refused."""
    with pytest.raises(ArgumentError, match="no density at sigma = 0.*leave out the level"):
        cloud(3, 2).log_prob(torch.zeros(2, 2), at(torch.ones_like(f64(sigma)), sigma))
