"""The energy distance against its definition, closed forms, and the errors that it promises."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearzero.errors import ArgumentError
from nearzero.metrics.energy import energy_distance

law = settings(deadline=None, derandomize=True, max_examples=40)
F64 = torch.float64


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def rms(a, b):
    """The root mean square difference of two images, number by number."""
    pairs = list(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    return math.sqrt(math.fsum((u - v) ** 2 for u, v in pairs) / len(pairs))


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def naive(samples, data):
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| with every ordered pair of different images written out."""

    def within(images):
        return mean(rms(a, b) for i, a in enumerate(images) for j, b in enumerate(images) if i != j)

    return 2 * mean(rms(x, y) for x in samples for y in data) - within(samples) - within(data)


def left_out(samples, data):
    """The jackknife: the spread of the estimates that leave one sample out, times (n - 1) / sqrt(n)."""
    n = len(samples)
    estimates = [naive(torch.cat([samples[:i], samples[i + 1 :]]), data) for i in range(n)]
    return math.sqrt((n - 1) / n * math.fsum((one - mean(estimates)) ** 2 for one in estimates))


def close(found, value, stderr, tolerance=1e-12):
    assert found.value == pytest.approx(value, rel=tolerance, abs=tolerance)
    assert found.stderr == pytest.approx(stderr, rel=1e-9, abs=tolerance, nan_ok=True)


sets = st.tuples(
    st.integers(3, 7),
    st.integers(2, 7),
    st.sampled_from([(1,), (5,), (2, 3), (1, 2, 2), (3, 2, 4)]),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.3, 4.0]),
)


def two_sets(n, m, shape, seed, shift):
    return drawn(n, *shape, seed=seed), 1.5 * drawn(m, *shape, seed=seed + 1) + shift


# The definition


@law
@given(sets)
def test_it_is_its_definition(case):
    """Value and standard error are those of a double loop over different pairs and of a loop that leaves samples out."""
    x, y = two_sets(*case)
    close(energy_distance(x, y), naive(x, y), left_out(x, y))


@pytest.mark.parametrize("centre", [0.0, 0.5, 100.0])
def test_it_is_its_definition_for_many_images(centre):
    """With more than 25 images, where torch.cdist multiplies matrices by default, the estimate is the double loop's to 1e-9 of a pixel's spread."""
    x, y = drawn(28, 6) + centre, drawn(31, 6, seed=1) * 1.2 + centre
    found = energy_distance(x, y)
    assert found.value == pytest.approx(naive(x, y), rel=0, abs=1e-9)


def test_equal_images_are_at_distance_zero():
    """40 copies of one image against 30 copies of it, or of another one a rms difference r away: 0 and 2 r, and an error of 0, to sqrt(2^-52) |x|."""
    image, other = drawn(1, 3, 4, 4), drawn(1, 3, 4, 4, seed=1)
    for data, expected in ((image, 0), (other, 2 * rms(image, other))):
        found = energy_distance(image.repeat(40, 1, 1, 1), data.repeat(30, 1, 1, 1))
        assert found == pytest.approx((expected, 0), abs=2.0**-26 * rms(image, 0 * image) * 10)


def test_the_samples_error_is_theirs_alone():
    """Value is symmetric in its arguments; the standard error is that of the first one's draw: 0 for equal samples, whatever the data."""
    x, y = drawn(6, 3), drawn(9, 3, seed=1) + 1
    one, other = energy_distance(x, y), energy_distance(y, x)
    assert one.value == pytest.approx(other.value, rel=1e-12)
    assert one.stderr > 0 and one.stderr != pytest.approx(other.stderr, rel=0.01)
    assert energy_distance(x[:1].repeat(6, 1), y).stderr == pytest.approx(0, abs=1e-12)


# Closed forms


def uniform(count, size, shift, generator):
    return torch.rand(count, size, 1, generator=generator, dtype=F64) + shift


def gauss(count, size, dimension, scale, shift, generator):
    return scale * torch.randn(count, size, dimension, generator=generator, dtype=F64) + shift


def folded(mu, sigma):
    """E|Z| for Z ~ N(mu, sigma^2)."""
    return sigma * math.sqrt(2 / math.pi) * math.exp(-(mu**2) / (2 * sigma**2)) + mu * math.erf(
        mu / (sigma * math.sqrt(2))
    )


def length(dimension, sigma):
    """E|Z| / sqrt(d) for Z ~ N(0, sigma^2 I) in d dimensions."""
    gammas = math.gamma((dimension + 1) / 2) / math.gamma(dimension / 2)
    return sigma * math.sqrt(2 / dimension) * gammas


def signs(count, size, share, generator):
    """Numbers that are 1 with probability `share` and 0 otherwise."""
    return (torch.rand(count, size, 1, generator=generator, dtype=F64) < share).double()


ROOT = math.sqrt
POPULATIONS = {
    "uniform": (lambda c, n, g: uniform(c, n, 0, g), lambda c, n, g: uniform(c, n, 0, g), 0.0),
    "shifted uniform": (
        lambda c, n, g: uniform(c, n, 0.6, g),
        lambda c, n, g: uniform(c, n, 0, g),
        2 * (0.6**2 - 0.6**3 / 3),  # E|X - Y| = 1/3 + d^2 - d^3 / 3
    ),
    "two point masses": (
        lambda c, n, g: signs(c, n, 0.2, g),
        lambda c, n, g: signs(c, n, 0.7, g),
        2 * 0.5**2,  # 2 (p (1 - q) + q (1 - p)) - 2 p (1 - p) - 2 q (1 - q) = 2 (p - q)^2
    ),
    "Gaussians on a line": (
        lambda c, n, g: gauss(c, n, 1, 2.0, 1.5, g),
        lambda c, n, g: gauss(c, n, 1, 1.0, 0.0, g),
        2 * folded(1.5, ROOT(5)) - folded(0, ROOT(8)) - folded(0, ROOT(2)),
    ),
    "Gaussians in a plane": (
        lambda c, n, g: gauss(c, n, 2, 2.0, 0.0, g),
        lambda c, n, g: gauss(c, n, 2, 1.0, 0.0, g),
        2 * length(2, ROOT(5)) - length(2, ROOT(8)) - length(2, ROOT(2)),
    ),
    "equal Gaussians of 12 numbers": (
        lambda c, n, g: gauss(c, n, 12, 1.0, 0.0, g),
        lambda c, n, g: gauss(c, n, 12, 1.0, 0.0, g),
        0.0,
    ),
}


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_estimate_is_unbiased_for_the_closed_form(name):
    """The mean over 1,500 draws of 6 samples and 5 images is the population's value within 4 standard errors, 0 for equal distributions; counting self-pairs would miss it by 10."""
    sample, data, value = POPULATIONS[name]
    generator = torch.Generator().manual_seed(7)
    draws, n, m = 1500, 6, 5
    x, y = sample(draws, n, generator), data(draws, m, generator)
    found = torch.tensor([energy_distance(*pair).value for pair in zip(x, y, strict=True)], dtype=F64)
    error = found.std().item() / math.sqrt(draws)
    assert found.mean().item() == pytest.approx(value, rel=0, abs=4 * error)
    within = torch.pdist(torch.cat([x.flatten(0, 1)[:400], y.flatten(0, 1)[:400]])).mean().item() / ROOT(x.shape[-1])
    assert within * (1 / n + 1 / m) > 10 * error  # the power of this test: the bias that it must not have
    assert bool((found < 0).any())  # as the docstring says: no bound below


@pytest.mark.parametrize("name", ["shifted uniform", "Gaussians on a line", "Gaussians in a plane"])
def test_many_samples_come_to_the_closed_form(name):
    """2,000 samples and 2,000 images give the population's value within four standard errors of both draws, which are below 6 % of it."""
    sample, data, value = POPULATIONS[name]
    generator = torch.Generator().manual_seed(11)
    x, y = sample(1, 2000, generator)[0], data(1, 2000, generator)[0]
    found = energy_distance(x, y)
    error = math.hypot(found.stderr, energy_distance(y, x).stderr)
    assert found.value == pytest.approx(value, rel=0, abs=4 * error)
    assert error < 0.06 * value


def spreads(name, n, draws):
    """The root mean square of the standard errors over the spread of the values, n samples against the same 40 images."""
    sample, data, _ = POPULATIONS[name]
    generator = torch.Generator().manual_seed(3)
    x, y = sample(draws, n, generator), data(1, 40, generator)[0]
    value, error = torch.tensor([energy_distance(one, y) for one in x], dtype=F64).T
    return (error.square().mean().sqrt() / value.std()).item()


@pytest.mark.parametrize("name", [name for name, (_, _, value) in POPULATIONS.items() if value])
def test_the_standard_error_is_the_spread_over_draws(name):
    """Over 1,000 draws of 100 samples the jackknife's root mean square error is the spread of the values within 15 %, where the distributions differ."""
    assert spreads(name, 100, 1000) == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_standard_error_of_a_few_samples_is_no_boast(name):
    """Of 8 samples the error is not below the spread (Efron and Stein 1981), and above it by at most sqrt(2 (n - 1) / (n - 2)), which it nears where the distributions are equal."""
    assert 0.95 < spreads(name, 8, 1500) < math.sqrt(2 * 7 / 6)


# Invariances


def alike(one, other, factor=1.0):
    close(one, factor * other.value, factor * other.stderr, 1e-10)


@law
@given(sets, st.randoms(use_true_random=False), st.sampled_from([-3.0, 0.25, 40.0]))
def test_order_place_and_origin_do_not_matter(case, random, offset):
    """Another order of samples or data, one order of pixels for both, and one image added to both leave value and error as they are."""
    x, y = two_sets(*case)
    found = energy_distance(x, y)

    def order(count):
        return random.sample(range(count), count)

    alike(energy_distance(x[order(len(x))], y[order(len(y))]), found)
    pixels = order(x[0].numel())
    alike(energy_distance(x.flatten(1)[:, pixels], y.flatten(1)[:, pixels]), found)
    image = offset * drawn(1, *x.shape[1:], seed=5)
    alike(energy_distance(x + image, y + image), found)


@law
@given(sets, st.sampled_from([-255.0, -1.0, 1 / 3, 127.5]))
def test_it_scales_with_the_pixels(case, factor):
    """Pixels times s: value and error times |s|, so that it is measured in units of a pixel."""
    x, y = two_sets(*case)
    alike(energy_distance(factor * x, factor * y), energy_distance(x, y), abs(factor))


def test_a_common_offset_does_not_matter_for_many_images():
    """40 images that lie far from 0 for their spread, a thousand to one, give what they give around 0 to 1e-9."""
    x, y = drawn(40, 8), drawn(40, 8, seed=1)
    assert energy_distance(x + 1024, y + 1024).value == pytest.approx(energy_distance(x, y).value, rel=0, abs=1e-9)


def test_repeated_pixels_do_not_matter():
    """Images enlarged three times are as far apart as the small ones: |.| is a mean over pixels, not a sum."""
    x, y = drawn(5, 1, 2, 2), drawn(4, 1, 2, 2, seed=1) + 1
    large = [value.repeat_interleave(3, 2).repeat_interleave(3, 3) for value in (x, y)]
    alike(energy_distance(*large), energy_distance(x, y))


# Kinds and shapes


def test_images_are_rows_of_numbers():
    """Images (N, C, H, W) give exactly what (N, C H W) gives, whatever their layout in memory."""
    x, y = drawn(5, 3, 4, 2), drawn(6, 3, 4, 2, seed=1)
    found = energy_distance(x, y)
    assert energy_distance(x.flatten(1), y.flatten(1)) == found
    assert energy_distance(x.contiguous(memory_format=torch.channels_last), y) == found


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool])
def test_every_kind_is_computed_in_float64(kind):
    """Images of any kind give exactly what the same numbers in float64 give; 8-bit differences do not wrap around; the images stay."""
    x, y = 200 + 300 * drawn(5, 2, 3), 120 + 90 * drawn(4, 2, 3, seed=1)
    x, y = (value.clamp(0, 255).to(kind) for value in (x, y))
    before = x.clone(), y.clone()
    assert energy_distance(x, y) == energy_distance(x.double(), y.double())
    assert energy_distance(x, y.double()) == energy_distance(x.double(), y.double())
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    black, white = torch.zeros(3, 4, dtype=torch.uint8), torch.full((3, 4), 255, dtype=torch.uint8)
    assert energy_distance(black, white).value == energy_distance(white, black).value == 510.0


def test_samples_with_gradients_are_numbers_too():
    """Samples that ask for gradients give plain floats."""
    x, y = drawn(3, 2), drawn(3, 2, seed=1)
    found = energy_distance(x.clone().requires_grad_(), y)
    assert found == energy_distance(x, y) and type(found.value) is type(found.stderr) is float


def test_two_samples_have_no_error():
    """Two samples against two images have a value, and nan for a standard error that nothing is left to tell; two images against three samples have one."""
    x, y = drawn(3, 2), drawn(2, 2, seed=1)
    close(energy_distance(x[:2], y), naive(x[:2], y), math.nan)
    close(energy_distance(x, y), naive(x, y), left_out(x, y))


@pytest.mark.parametrize(
    ("samples", "data"),
    [
        ((3, 2), (3, 3)),
        ((3, 1, 2, 2), (3, 4)),
        ((3, 2, 1), (3, 1, 2)),
        ((1, 2), (5, 2)),
        ((5, 2), (1, 2)),
        ((0, 2), (5, 2)),
        ((5, 2), (0, 2)),
        ((), ()),
    ],
    ids=str,
)
def test_other_shapes_are_refused(samples, data):
    """Images of two shapes, flattened on one side only, fewer than two, or no images at all: refused by shape in one line."""
    with pytest.raises(ArgumentError) as caught:
        energy_distance(torch.zeros(samples), torch.zeros(data))
    assert str(samples) in str(caught.value) and str(data) in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_are_no_images():
    """Samples (n,) or () are refused by shape: whether they are one image or many is not guessed."""
    for shape in ((4,), ()):
        with pytest.raises(ArgumentError, match=re.escape(str(shape))):
            energy_distance(torch.zeros(shape), torch.zeros(shape))
