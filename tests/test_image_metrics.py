"""KID, precision and recall, spectra, PSNR and SSIM: definitions as loops, closed forms, and torchmetrics' numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nearzero as nz
from nearzero.errors import ArgumentError, DataError, NumericalError
from nearzero.metrics.kid import kid
from nearzero.metrics.precision_recall import precision_recall
from nearzero.metrics.similarity import psnr, ssim
from nearzero.metrics.spectrum import radial_power, spectrum_distance

F64 = torch.float64
seeds = st.integers(0, 10**6)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def noisy(pixels, sigma, seed=0):
    return (pixels + sigma * drawn(*pixels.shape, seed=seed)).round().clamp(0, 255).to(torch.uint8)


def refused(error, match, code, call):
    with pytest.raises(error, match=match) as caught:
        call()
    assert caught.value.exit_code == code and "\n" not in str(caught.value)


# ---- the kernel distance


def discrepancy(x, y):
    """The unbiased estimate with every pair written out."""

    def kernel(a, b):
        return (math.fsum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def within(points):
        pairs = [kernel(a, b) for i, a in enumerate(points) for j, b in enumerate(points) if i != j]
        return math.fsum(pairs) / len(pairs)

    return within(x) + within(y) - 2 * math.fsum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


@given(st.integers(2, 6), st.integers(1, 4), seeds)
def test_kid_is_its_definition(size, dimension, seed):
    """With subsets of all images it is the double loop over different pairs, without a standard error."""
    x, y = drawn(size, dimension, seed=seed), drawn(size, dimension, seed=seed + 1) + 0.5
    found = kid(x, y, size=size, subsets=2)
    assert found.value == pytest.approx(discrepancy(x.tolist(), y.tolist()), abs=1e-12)
    assert math.isnan(found.stderr)


def two_sets():
    """200 and 200 rows of 16 features."""
    return drawn(200, 16), drawn(200, 16, seed=1) * 1.3 + 0.2


def test_kid_is_torchmetrics():
    """torchmetrics 1.9.0's KernelInceptionDistance, on subsets that are the whole set, to 1e-6.

    In an environment with torchmetrics, in tests/:
    python -c "import torch, test_image_metrics as t; from torchmetrics.image.kid import KernelInceptionDistance as K
    m = torch.nn.Flatten(); m.num_features = 16; k = K(m, subsets=1, subset_size=200); x, y = t.two_sets()
    k.update(y, True); k.update(x, False); print(repr(k.compute()[0].double().item()))"
    """
    assert kid(*two_sets(), size=200, subsets=1).value == pytest.approx(TORCHMETRICS_KID, abs=1e-6)


TORCHMETRICS_KID = 0.2573191597255544


def test_kid_is_unbiased():
    """Over 1,000 draws of 12 images of N(0, 1) and of N(1, 1) its mean is the closed form, within 4 standard errors.

    E k(x, y) = E x^3 E y^3 + 3 E x^2 E y^2 + 3 E x E y + 1, so 4 + 32 - 2 * 7. Pairs of one image with itself, counted,
    would add (28 - 4) / 12 + (113 - 32) / 12.
    """
    found = [kid(drawn(12, 1, seed=i), drawn(12, 1, seed=10**6 + i) + 1, size=12, subsets=1).value for i in range(1000)]
    error = 4 * np.std(found) / math.sqrt(1000)
    assert np.mean(found) == pytest.approx(22, abs=error)
    assert error < 24 / 12 + 81 / 12


@pytest.mark.parametrize(("shift", "low", "high"), [(0.7, 0.8, 1.3), (0.0, 1.0, 3.0)])
def test_kids_error_is_the_spread_over_draws(shift, low, high):
    """The standard error is the spread over fresh draws of both sets where they differ, and no smaller where they do not."""
    found = [
        kid(drawn(80, 4, seed=i), drawn(80, 4, seed=10**6 + i) + shift, size=40, subsets=24, seed=i) for i in range(120)
    ]
    errors = math.sqrt(np.mean([one.stderr**2 for one in found]))
    assert low < errors / np.std([one.value for one in found]) < high


def test_kid_is_a_function_of_its_seed():
    """Equal seeds give equal numbers, others others."""
    x, y = two_sets()
    assert kid(x, y, size=50, seed=1) == kid(x, y, size=50, seed=1) != kid(x, y, size=50, seed=2)


def test_kid_refuses():
    """Fewer images than a subset, subsets of one image, features of two dimensions or not finite."""
    x, y = two_sets()
    refused(DataError, "subsets of 1,000 images, there are 200; ask for fewer", 3, lambda: kid(x, y))
    refused(ArgumentError, "size >= 2 and subsets >= 1", 2, lambda: kid(x, y, size=1))
    refused(ArgumentError, r"needs features \(n, d\) and \(m, d\)", 2, lambda: kid(x, y[:, :3]))
    refused(NumericalError, "kid was given features that are not finite", 5, lambda: kid(x, y * math.inf, size=9))


# ---- precision and recall


def manifold_share(points, centres, k):
    """The share of points within the k-th nearest neighbour's distance of some centre, pair by pair."""
    radii = [sorted(math.dist(a, b) for j, b in enumerate(centres) if i != j)[k - 1] for i, a in enumerate(centres)]
    inside = [any(math.dist(p, c) <= r for c, r in zip(centres, radii, strict=True)) for p in points]
    return sum(inside) / len(inside)


@given(st.integers(4, 12), st.integers(4, 12), st.integers(1, 3), seeds)
def test_precision_and_recall_are_their_definition(n, m, k, seed):
    """Both are the shares counted pair by pair, and one is the other with the sets exchanged."""
    x, y = drawn(n, 2, seed=seed), 1.5 * drawn(m, 2, seed=seed + 1) + 0.7
    found = precision_recall(x, y, neighbours=k)
    assert found == (manifold_share(x.tolist(), y.tolist(), k), manifold_share(y.tolist(), x.tolist(), k))
    assert precision_recall(y, x, neighbours=k) == tuple(reversed(found))


def test_precision_and_recall_in_known_cases(monkeypatch):
    """Far sets: 0 and 0; equal sets: 1 and 1; samples of one of two clusters: precision 1, recall a half; rows in blocks."""
    near, far = drawn(60, 3), drawn(60, 3, seed=1) + 100
    whole = torch.cat([near, far])
    monkeypatch.setattr("nearzero.metrics.precision_recall.ROWS", 7)
    assert precision_recall(near, far) == (0, 0)
    assert precision_recall(whole, whole + 0) == (1, 1)
    assert precision_recall(near, whole) == (1, 0.5)


def test_precision_and_recall_refuse():
    """Too few images for the neighbours, no neighbour, features of two dimensions or not finite."""
    nan = drawn(9, 2) * math.nan
    refused(NumericalError, "features that are not finite", 5, lambda: precision_recall(nan, drawn(9, 2)))
    refused(
        DataError, "needs more than 3 images on each side, got 3", 3, lambda: precision_recall(drawn(3, 2), drawn(9, 2))
    )
    refused(ArgumentError, "at least 1 neighbour", 2, lambda: precision_recall(drawn(9, 2), drawn(9, 2), neighbours=0))
    refused(ArgumentError, "needs features", 2, lambda: precision_recall(drawn(9, 2), drawn(9, 3)))


# ---- spectra


def test_white_noise_has_a_flat_spectrum():
    """Power is the variance at every frequency, within 5 standard errors."""
    power = radial_power(2 * drawn(400, 1, 16, 16))
    assert len(power) == 8
    assert torch.allclose(power, torch.full((8,), 4.0, dtype=F64), rtol=5 / math.sqrt(400 * 4))


@pytest.mark.parametrize(
    ("shape", "waves"), [((12, 12), (3, 0)), ((12, 12), (3, 4)), ((12, 24), (2, 4)), ((9, 9), (0, 4))]
)
def test_a_wave_has_one_frequency(shape, waves):
    """A cosine of amplitude a puts a^2 H W / 2, over the places of its ring, at its own frequency, and nothing elsewhere.

    Frequencies are waves in the shorter side: 4 waves across 24 pixels are 2 in 12.
    """
    height, width = shape
    phase = torch.arange(height)[:, None] * waves[0] / height + torch.arange(width)[None] * waves[1] / width
    power = radial_power(torch.cos(2 * math.pi * phase.double())[None, None] * 3)
    side = min(shape)
    frequency = math.hypot(waves[0] * side / height, waves[1] * side / width)
    ring = int(frequency + 0.5)
    lines = [
        (i if i <= height // 2 else i - height, j if j <= width // 2 else j - width)
        for i in range(height)
        for j in range(width)
    ]
    places = sum(int(math.hypot(i * side / height, j * side / width) + 0.5) == ring for i, j in lines)
    expected = torch.zeros(side // 2, dtype=F64)
    expected[ring - 1] = 9 / 2 * height * width / places
    assert torch.allclose(power, expected, atol=1e-9)


def test_the_spectrum_is_a_mean_over_images():
    """Images in parts and in any type and order give one spectrum; brightness does not enter."""
    images = torch.randint(0, 256, (30, 3, 9, 9), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    power = radial_power(images)
    halves = (radial_power(images[:10].double()) + 2 * radial_power(images[10:].float())) / 3
    assert torch.allclose(power, halves, rtol=1e-12)
    assert torch.allclose(radial_power(images.double() + 100), power, rtol=1e-12)


def test_the_distance_of_spectra():
    """Twice the contrast is 20 log10 2 decibels, from both sides; a set is 0 from itself; a filter is its own response."""
    images = drawn(20, 1, 16, 16)
    assert spectrum_distance(2 * images, images) == pytest.approx(20 * math.log10(2), abs=1e-12)
    assert spectrum_distance(images, 2 * images) == pytest.approx(20 * math.log10(2), abs=1e-12)
    assert spectrum_distance(images, images) == 0
    assert spectrum_distance(images.flip(3), images) < 1e-12  # it sees no phases


@pytest.mark.parametrize("seed", [0, 1])
def test_it_grows_with_noise_and_its_noise_is_at_high_frequency(seed):
    """On Fashion-MNIST, more noise is further away, and the highest frequency is lifted most."""
    clean = nz.embedded().pixels[:400]
    found = [spectrum_distance(noisy(clean, sigma, seed), clean) for sigma in (2, 5, 10, 20)]
    assert all(low < high for low, high in zip([0, *found], found, strict=False)), found
    lifted = radial_power(noisy(clean, 10, seed)) / radial_power(clean)
    assert lifted.argmax() == len(lifted) - 1


def test_spectra_refuse():
    """Constant images have no logarithm, images of two sizes no distance, and a vector no spectrum."""
    flat = torch.full((3, 1, 8, 8), 7.0)
    refused(
        NumericalError, "the power at 1 waves in a side is 0.0, .* constant", 5, lambda: spectrum_distance(flat, flat)
    )
    refused(ArgumentError, "have no distance", 2, lambda: spectrum_distance(drawn(3, 1, 8, 8), drawn(3, 1, 9, 9)))
    refused(ArgumentError, "a spectrum needs images", 2, lambda: radial_power(drawn(3, 8)))
    nan = torch.full((3, 1, 8, 8), math.nan)
    refused(
        NumericalError, "the power at 1 waves in a side is nan", 5, lambda: spectrum_distance(nan, drawn(3, 1, 8, 8))
    )


# ---- pairs of images


def pairs():
    """Twelve images of Fashion-MNIST beside themselves with noise of growing strength, in colour."""
    pixels = nz.embedded().pixels[::170].repeat(1, 3, 1, 1)
    return torch.cat([noisy(image[None], 4 + 6 * i, i) for i, image in enumerate(pixels)]), pixels


def test_psnr_is_its_definition():
    """10 log10(255^2 / mse) of each pair, number by number; infinite for equal images; peak scales with the pixels."""
    x, y = pairs()
    found = psnr(x, y)
    for i in range(len(x)):
        errors = [(a - b) ** 2 for a, b in zip(x[i].flatten().tolist(), y[i].flatten().tolist(), strict=True)]
        assert found[i].item() == pytest.approx(10 * math.log10(255**2 * len(errors) / sum(errors)), abs=1e-10)
    assert torch.equal(psnr(x, x), torch.full((len(x),), math.inf, dtype=F64))
    assert torch.allclose(psnr(x.double() / 127.5 - 1, y.double() / 127.5 - 1, peak=2.0), found, rtol=1e-12)


def test_ssim_is_torchmetrics():
    """torchmetrics 1.9.0's structural_similarity_index_measure of twelve pairs to 1e-7.

    It also averages places where its window reaches over a reflected edge, which the paper's code leaves out, and which
    are cut off here. In an environment with torchmetrics, in tests/:
    python -c "import test_image_metrics as t
    from torchmetrics.functional.image import structural_similarity_index_measure as s
    x, y = t.pairs(); f = s(x.double(), y.double(), data_range=255.0, reduction='none', return_full_image=True)[1]
    print([round(v, 8) for v in f[..., 5:-5, 5:-5].mean((1, 2, 3)).tolist()])"
    """
    assert torch.allclose(ssim(*pairs()), torch.tensor(TORCHMETRICS_SSIM, dtype=F64), rtol=0, atol=1e-7)


TORCHMETRICS_SSIM = [
    0.97765297,
    0.82529309,
    0.89733043,
    0.64069284,
    0.76488731,
    0.65778601,
    0.63314551,
    0.55064725,
    0.28918658,
    0.53800956,
    0.40248154,
    0.54008215,
]


def ssim_by_hand(x, y):
    """One channel, number by number: the mean over windows of Wang et al., Equation 13."""
    weights = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    weights = [w / sum(weights) for w in weights]
    values = []
    for top in range(len(x) - 10):
        for left in range(len(x[0]) - 10):
            window = [
                (weights[i] * weights[j], x[top + i][left + j], y[top + i][left + j])
                for i in range(11)
                for j in range(11)
            ]
            mx, my = math.fsum(w * a for w, a, _ in window), math.fsum(w * b for w, _, b in window)
            vx, vy = (
                math.fsum(w * (a - mx) ** 2 for w, a, _ in window),
                math.fsum(w * (b - my) ** 2 for w, _, b in window),
            )
            cov = math.fsum(w * (a - mx) * (b - my) for w, a, b in window)
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return math.fsum(values) / len(values)


def test_ssim_is_its_definition():
    """Sums over windows written out, for a wide image of grey; colours are averaged; the order of the pair is no matter."""
    x, y = (
        torch.randint(0, 256, (1, 1, 13, 15), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        for i in (0, 1)
    )
    y = ((x.double() + y) / 2).to(torch.uint8)
    expected = ssim_by_hand(x[0, 0].tolist(), y[0, 0].tolist())
    assert ssim(x, y).item() == pytest.approx(expected, abs=1e-12)
    assert ssim(y, x).item() == pytest.approx(expected, abs=1e-12)
    colours = ssim(torch.cat([x, y, x], 1), torch.cat([y, y, y], 1)).item()
    assert colours == pytest.approx((2 * expected + 1) / 3, abs=1e-12)
    assert ssim(x.double() / 255, y.double() / 255, peak=1.0).item() == pytest.approx(expected, abs=1e-12)


def test_many_pairs_are_pairs(monkeypatch):
    """Pairs in parts are the pairs one by one."""
    x, y = pairs()
    monkeypatch.setattr("nearzero.metrics.similarity.PAIRS", 5)
    for function in (psnr, ssim):
        assert torch.equal(function(x, y), torch.cat([function(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]))


def test_pairs_are_refused():
    """Two shapes, no shape of images, floats whose span is not said, a span that is none, images below the window."""
    x = torch.zeros(2, 1, 12, 12, dtype=torch.uint8)
    for function in (psnr, ssim):
        refused(ArgumentError, "pairs of images need one shape", 2, lambda: function(x, x[:1]))  # noqa: B023
        refused(ArgumentError, "pairs of images need one shape", 2, lambda: function(x[0, 0], x[0, 0]))  # noqa: B023
        refused(ArgumentError, "say the span of torch.float32 pixels", 2, lambda: function(x.float(), x.float()))  # noqa: B023
        refused(ArgumentError, "the peak must be positive", 2, lambda: function(x, x, peak=0.0))  # noqa: B023
    refused(ArgumentError, "at least 11 pixels a side, got", 2, lambda: ssim(x[..., :10, :10], x[..., :10, :10]))
