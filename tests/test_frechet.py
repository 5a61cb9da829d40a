"""The Frechet distance against closed forms, statistics in parts, intervals over fresh draws, and files that are whole."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp

from nearzero.data.images import Images
from nearzero.errors import ArgumentError, DataError, NumericalError
from nearzero.metrics.bootstrap import floor, frechet_interval
from nearzero.metrics.extractors import ModuleExtractor, statistics
from nearzero.metrics.frechet import Statistics, frechet_distance, merged
from nearzero.metrics.reference import load_statistics, reference_statistics, save_statistics

F64 = torch.float64
MANY = 10**6  # images behind an exact Gaussian: no rank to warn of


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def rotation(size, seed=0):
    return torch.linalg.qr(drawn(size, size, seed=seed)).Q


def positive(size, seed=0, smallest=0.1):
    """A covariance with eigenvalues between `smallest` and 2."""
    q = rotation(size, seed)
    return symmetric(q @ torch.diag(torch.linspace(smallest, 2, size, dtype=F64)) @ q.T)


def symmetric(matrix):
    return (matrix + matrix.T) / 2


def gaussian(mean, covariance, **more):
    return Statistics(MANY, torch.as_tensor(mean, dtype=F64), torch.as_tensor(covariance, dtype=F64), **more)


seeds = st.integers(0, 10**6)
sizes = st.integers(1, 12)


# ---- closed forms, to 1e-6 and better


def test_on_a_line_it_is_known():
    """N(m, s^2) and N(n, r^2) are (m - n)^2 + (s - r)^2 apart."""
    assert frechet_distance(gaussian([3.0], [[4.0]]), gaussian([-1.0], [[0.25]])) == pytest.approx(16 + 2.25, abs=1e-12)


@given(sizes, seeds)
def test_commuting_covariances(size, seed):
    """With common axes it is |mu - nu|^2 + sum (sqrt a_i - sqrt b_i)^2, zeros among them included."""
    q, a, b = rotation(size, seed), drawn(size, seed=seed + 1).square(), drawn(size, seed=seed + 2).square()
    a[0] = b[-1] = 0
    mu, nu = drawn(size, seed=seed + 3), drawn(size, seed=seed + 4)
    found = frechet_distance(
        gaussian(mu, symmetric(q @ torch.diag(a) @ q.T)), gaussian(nu, symmetric(q @ torch.diag(b) @ q.T))
    )
    expected = (mu - nu).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert found == pytest.approx(expected.item(), abs=1e-6)


def test_in_a_plane_by_hand():
    """tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)) for 2 x 2; here A and B do not commute: tr AB = 10, det AB = 12."""
    found = frechet_distance(gaussian([0, 0], [[2, 1], [1, 2]]), gaussian([1, 1], [[1, 0], [0, 4]]))
    assert found == pytest.approx(2 + 4 + 5 - 2 * math.sqrt(10 + 2 * math.sqrt(12)), abs=1e-12)


@given(st.integers(2, 40), seeds)
def test_it_is_the_cost_of_transport(size, seed):
    """The best map from N(0, A) to N(0, T A T) is T, for a positive T: the cost is tr (1 - T) A (1 - T)."""
    a, t = positive(size, seed), positive(size, seed + 1)
    rest = torch.eye(size, dtype=F64) - t
    found = frechet_distance(gaussian(torch.zeros(size), a), gaussian(torch.zeros(size), symmetric(t @ a @ t)))
    assert found == pytest.approx((rest @ a @ rest).trace().item(), abs=1e-10)


@given(st.integers(2, 12), seeds)
def test_a_singular_covariance(size, seed):
    """For A = u u^T, tr (AB)^(1/2) = sqrt(u^T B u); for two such, |u.v|; for A = 0 the distance is |mu - nu|^2 + tr B."""
    u, v, b, zero = drawn(size, seed=seed), drawn(size, seed=seed + 1), positive(size, seed + 2), torch.zeros(size)
    line, other = (gaussian(zero, torch.outer(one, one)) for one in (u, v))
    traces = (u @ u + b.trace()).item()
    assert frechet_distance(line, gaussian(zero, b)) == pytest.approx(traces - 2 * (u @ b @ u).sqrt().item(), abs=1e-6)
    assert frechet_distance(line, other) == pytest.approx((u @ u + v @ v - 2 * (u @ v).abs()).item(), abs=1e-6)
    point = gaussian(u, torch.zeros(size, size))
    assert frechet_distance(point, gaussian(v, b)) == pytest.approx(
        ((u - v).square().sum() + b.trace()).item(), abs=1e-9
    )


def test_eigenvalues_over_twelve_decades():
    """With variances from 1 to 1e-12, the distance is that of 60 digits to 1e-9: small eigenvalues are not lost."""
    size = 6
    scales = torch.diag(torch.logspace(0, -12, size, dtype=F64))
    p, q = rotation(size, 1), rotation(size, 2)
    a, b = symmetric(p @ scales @ p.T), symmetric(q @ scales @ q.T)
    with mp.workdps(60):
        product = mp.matrix(a.tolist()) * mp.matrix(b.tolist())
        trace = sum(mp.sqrt(value) for value in mp.eig(product, left=False, right=False))
        expected = float(mp.re(sum(a.diagonal().tolist()) + sum(b.diagonal().tolist()) - 2 * trace))
    found = frechet_distance(gaussian(torch.zeros(size), a), gaussian(torch.zeros(size), b))
    assert found == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 10), seeds)
def test_it_is_a_squared_metric(size, seed):
    """0 for equal Gaussians, symmetric, its root obeys the triangle inequality, and rotating both changes nothing."""
    one, two, three = (gaussian(drawn(size, seed=seed + i), positive(size, seed + 3 + i, 0.0)) for i in range(3))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    distance = frechet_distance(one, two)
    assert frechet_distance(two, one) == pytest.approx(distance, rel=1e-9, abs=1e-6)
    sides = [math.sqrt(max(frechet_distance(*pair), 0)) for pair in ((one, two), (two, three), (one, three))]
    assert sides[2] <= sides[0] + sides[1] + 1e-6
    q = rotation(size, seed + 9)
    turned = [gaussian(q @ g.mean, symmetric(q @ g.covariance @ q.T)) for g in (one, two)]
    assert frechet_distance(*turned) == pytest.approx(distance, rel=1e-9, abs=1e-6)


def test_features_and_statistics_are_the_same_question():
    """Features in float32 or float64, on either side, give what their statistics give."""
    x, y = drawn(30, 4), 2 * drawn(40, 4, seed=1) + 1
    expected = frechet_distance(Statistics.of(x), Statistics.of(y))
    assert frechet_distance(x, y) == frechet_distance(x, Statistics.of(y)) == expected
    assert frechet_distance(x.float(), y) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(x, x + 3) == pytest.approx(4 * 9, abs=1e-12)


# ---- statistics in parts


def close(found, expected, tolerance=1e-10):
    assert found.count == expected.count
    scale = expected.covariance.abs().max().clamp(min=1)
    assert (found.mean - expected.mean).abs().max() <= tolerance * expected.mean.abs().max().clamp(min=1)
    assert (found.covariance - expected.covariance).abs().max() <= tolerance * scale


def test_statistics_are_numpys():
    """Mean and covariance, divided by N - 1, are those of numpy."""
    x = drawn(50, 6) @ drawn(6, 6, seed=1)
    found = Statistics.of(x)
    assert np.allclose(found.mean, np.mean(x.numpy(), 0), rtol=0, atol=1e-14)
    assert np.allclose(found.covariance, np.cov(x.numpy().T), rtol=0, atol=1e-13)


@pytest.mark.parametrize("batch", [1, 2, 7, 64, 499, 500])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_batches_do_not_matter(batch, offset):
    """500 images in batches of any size, far from 0 too, are the 500 images at once, to 1e-10; so is their distance."""
    x, y = drawn(500, 8) @ drawn(8, 8, seed=1) + offset, drawn(400, 8, seed=2) + offset
    whole = Statistics.of(x)
    parts = merged(Statistics.of(part) for part in x.split(batch))
    close(parts, whole)
    assert frechet_distance(parts, y) == pytest.approx(frechet_distance(whole, y), rel=1e-10, abs=1e-10)


def test_processes_do_not_matter():
    """Two processes that share the images, in turn or in halves, each in batches of its own, come to the same to 1e-10."""
    x = drawn(501, 8) @ drawn(8, 8, seed=1)
    whole = Statistics.of(x)
    for shares in ((x[::2], x[1::2]), (x[:100], x[100:])):
        first, second = (merged(map(Statistics.of, share.split(k))) for share, k in zip(shares, (16, 37), strict=True))
        close(first.merge(second), whole)
        close(second.merge(first), whole)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), seeds)
def test_parts_of_any_size(counts, seed):
    """Parts of one image and of many, in any number, join to the whole."""
    parts = [3 * drawn(count, 3, seed=seed + i) + i for i, count in enumerate(counts)]
    close(merged(map(Statistics.of, parts)), Statistics.of(torch.cat(parts)))


def test_a_pass_over_images_needs_no_more_than_a_block(monkeypatch):
    """Blocks, batches and the number of images change nothing but rounding; progress ends at all images."""
    monkeypatch.setattr("nearzero.metrics.extractors.BLOCK", 64)
    pixels = torch.randint(0, 256, (150, 1, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    flat = ModuleExtractor(torch.nn.Flatten().eval(), name="pixels")
    seen = []
    whole = Statistics.of(pixels.flatten(1))
    for batch in (1, 10, 64, 1000):
        close(statistics(flat, pixels, batch=batch, progress=lambda *at: seen.append(at)), whole)
        assert seen[-1] == (150, 150) and [done for done, _ in seen] == sorted(done for done, _ in seen)
        seen.clear()
    close(statistics(flat, pixels, count=70), Statistics.of(pixels[:70].flatten(1)))


# ---- intervals and floors


def test_the_interval_is_the_spread_over_fresh_samples():
    """The bootstrap's standard error is the spread of the distance over 200 fresh draws within 25 %, biased as it is."""
    reference = gaussian(torch.zeros(6), positive(6, 1))
    root = torch.linalg.cholesky(positive(6, 2))
    draws = [drawn(120, 6, seed=100 + i) @ root.T + 0.5 for i in range(200)]
    spread = np.std([frechet_distance(x, reference) for x in draws], ddof=1)
    found = [frechet_interval(x, reference, resamples=60, seed=i) for i, x in enumerate(draws[:20])]
    assert np.mean([one.stderr for one in found]) == pytest.approx(spread, rel=0.25)
    assert all(one.low < one.value < one.high for one in found)
    mean = np.mean([frechet_distance(x, reference) for x in draws])
    assert sum(one.low <= mean <= one.high for one in found) >= 16  # 19 of 20 expected


def test_an_interval_is_a_function_of_its_seed():
    """Equal seeds give equal intervals, others others; the value is the distance itself; features serve as reference."""
    x, y = drawn(60, 3), drawn(80, 3, seed=1) + 1
    found = frechet_interval(x, y, seed=3)
    assert found == frechet_interval(x, Statistics.of(y), seed=3) != frechet_interval(x, y, seed=4)
    assert found.value == frechet_distance(x, y)
    equal = frechet_interval(x[:1].repeat(60, 1), y)
    assert equal.low == pytest.approx(equal.high, abs=1e-9) and equal.stderr == pytest.approx(0, abs=1e-9)


def test_resamples_are_what_the_distance_says(monkeypatch):
    """Each resample's distance is `frechet_distance` of the images drawn, repeated as often as they were drawn."""
    x, y, chosen = drawn(40, 3), drawn(80, 3, seed=1) + 1, []
    original = torch.randint
    monkeypatch.setattr(torch, "randint", lambda *a, **k: chosen.append(original(*a, **k)) or chosen[-1])
    found = frechet_interval(x, y, resamples=8)
    expected = torch.tensor([frechet_distance(x[one], y) for one in chosen], dtype=F64)
    assert len(chosen) == 8 and found.stderr == pytest.approx(expected.std().item(), rel=1e-9)


def test_a_floor_takes_two_sets_that_share_nothing():
    """The floor compares `count` rows with `against` others, chosen by the seed."""
    rows = torch.arange(20)[:, None]
    first, second = floor(rows, 8, 12, distance=lambda a, b: (a.flatten().tolist(), b.flatten().tolist()))
    assert sorted(first + second) == list(range(20)) and len(first) == 8
    assert floor(rows, 8, 12, distance=lambda a, b: a.flatten().tolist(), seed=0) == first
    assert floor(rows, 8, 12, distance=lambda a, b: a.flatten().tolist(), seed=1) != first


def test_the_floor_is_the_bias_of_few_images():
    """Distances of equal distributions fall as 1/N: four times the images, a quarter of the floor within 20 %."""
    x = drawn(8000, 5)
    small, large = (np.mean([floor(x, n, seed=i) for i in range(40)]) for n in (100, 400))
    assert small == pytest.approx(4 * large, rel=0.2)


# ---- files


class Counted(torch.nn.Module):
    """The pixels themselves, counting how often they are asked for."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones((), dtype=F64))
        self.calls = 0

    def forward(self, pixels):
        self.calls += 1
        return self.scale * pixels.flatten(1)


@pytest.fixture
def counted():
    module = Counted().eval()
    return module, ModuleExtractor(module, name="pixels")


def images(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Images(torch.randint(0, 256, (count, 1, 3, 3), generator=generator, dtype=torch.uint8))


def test_statistics_survive_a_file(tmp_path):
    """Saved and loaded, statistics are the same numbers, with their extractor."""
    whole = Statistics.of(drawn(20, 5), "pixels")
    save_statistics(tmp_path / "a" / "s.safetensors", whole, {"data": "abc"})
    found = load_statistics(tmp_path / "a" / "s.safetensors", {"data": "abc", "count": 20})
    assert torch.equal(found.mean, whole.mean) and torch.equal(found.covariance, whole.covariance)
    assert (found.count, found.extractor) == (20, "pixels")
    with pytest.raises(DataError, match="about something else than its name says; delete it"):
        load_statistics(tmp_path / "a" / "s.safetensors", {"data": "abd"})


def test_a_reference_is_computed_once(tmp_path, counted):
    """A second call reads the file and gives the same bits; other images, counts, weights or preprocessing are computed."""
    module, extractor = counted
    first = reference_statistics(extractor, images(), tmp_path)
    calls = module.calls
    again = reference_statistics(extractor, images(), tmp_path)
    assert module.calls == calls and torch.equal(first.covariance, again.covariance)
    assert frechet_distance(again, images().pixels.flatten(1)) == pytest.approx(0, abs=1e-8)
    reference_statistics(extractor, images(seed=1), tmp_path)
    reference_statistics(extractor, images(), tmp_path, count=30)
    reference_statistics(ModuleExtractor(module, name="pixels", preprocessing="another"), images(), tmp_path)
    module.scale *= 2
    doubled = reference_statistics(extractor, images(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 5 and torch.allclose(doubled.mean, 2 * first.mean)


def test_references_are_kept_in_the_cache(tmp_path, monkeypatch, counted):
    """Without a folder they lie in $NEARZERO_CACHE/statistics, else in the home's .cache/nearzero/statistics."""
    monkeypatch.setenv("NEARZERO_CACHE", str(tmp_path / "cache"))
    reference_statistics(counted[1], images())
    assert len(list((tmp_path / "cache" / "statistics").iterdir())) == 1
    monkeypatch.delenv("NEARZERO_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    reference_statistics(counted[1], images())
    assert len(list((tmp_path / ".cache" / "nearzero" / "statistics").iterdir())) == 1


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "another", "edited"])
def test_a_damaged_reference_is_refused(tmp_path, counted, damage):
    """A flipped bit, a cut, an empty file, another file's content or an edited fact: exit 3, "delete it", no new number."""
    module, extractor = counted
    reference_statistics(extractor, images(), tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "another":
        reference_statistics(extractor, images(seed=1), tmp_path)
        (other,) = set(tmp_path.iterdir()) - {path}
        content = other.read_bytes()
    elif damage == "flipped":
        content[-5] ^= 1
    elif damage == "edited":
        content = bytes(content).replace(b'\\"count\\": 40', b'\\"count\\": 41')
        assert content != path.read_bytes()
    else:
        content = content[: len(content) // 2 if damage == "cut" else 0]
    path.write_bytes(content)
    calls = module.calls
    with pytest.raises(DataError, match="is damaged: .*; delete it") as caught:
        reference_statistics(extractor, images(), tmp_path)
    assert caught.value.exit_code == 3 and module.calls == calls and path.read_bytes() == bytes(content)
    path.unlink()
    reference_statistics(extractor, images(), tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path, counted, faults):
    """Where the file cannot be written whole it is not there, and the next call computes it."""
    _, extractor = counted
    faults.arm("write", 1, OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        reference_statistics(extractor, images(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    faults.disarm()
    assert reference_statistics(extractor, images(), tmp_path).count == 40


# ---- refusals


def refused(error, match, code, call):
    with pytest.raises(error, match=match) as caught:
        call()
    assert caught.value.exit_code == code and "\n" not in str(caught.value)


def test_bad_statistics_are_refused():
    """NaN, two dimensions, two extractors, one image, no matrix, no symmetry, a negative eigenvalue: one line each."""
    eye = torch.eye(3, dtype=F64)
    good, zero = gaussian(torch.zeros(3), eye), torch.zeros(3, dtype=F64)
    nan = eye.clone()
    nan[1, 1] = math.nan
    refused(
        NumericalError,
        "the covariance of 1,000,000 images holds numbers that are not finite",
        5,
        lambda: gaussian(zero, nan),
    )
    refused(
        NumericalError, "the mean of 4 images holds", 5, lambda: frechet_distance(torch.full((4, 1), math.inf), good)
    )
    refused(ArgumentError, "3 features and 2; take both from one", 2, lambda: frechet_distance(good, drawn(9, 2)))
    one, other = gaussian(zero, eye, extractor="SqueezeNet"), gaussian(zero, eye, extractor="Inception")
    refused(DataError, "two extractors, SqueezeNet and Inception", 3, lambda: frechet_distance(one, other))
    refused(DataError, "two extractors", 3, lambda: one.merge(other))
    assert frechet_distance(one, good) == frechet_distance(one, one) == 0
    refused(DataError, "at least 2 images on each side, got 1", 3, lambda: frechet_distance(drawn(1, 3), good))
    refused(DataError, "at least 1 image, got 0", 3, lambda: Statistics(0, zero, eye))
    refused(ArgumentError, r"features must be numbers \(N, d\)", 2, lambda: Statistics.of(torch.zeros(0, 3)))
    refused(ArgumentError, "need a mean", 2, lambda: Statistics(9, zero, eye[:2]))
    refused(ArgumentError, "must be float64", 2, lambda: Statistics(9, zero.float(), eye))
    refused(ArgumentError, "must be symmetric", 2, lambda: gaussian(zero, eye + torch.ones(3, 3).triu(1)))
    refused(
        NumericalError,
        "has the eigenvalue -1, and none may be negative",
        5,
        lambda: frechet_distance(gaussian(zero, -eye), good),
    )
    refused(DataError, "there are no statistics", 3, lambda: merged([]))


def test_fewer_images_than_asked_are_refused():
    """A floor that needs more images than there are, an interval of one resample: exit 3 and 2."""
    x = drawn(20, 2)
    refused(
        DataError,
        "of 11 images against 11 needs 22 different ones, the reference has 20; ask for at most 10",
        3,
        lambda: floor(x, 11),
    )
    refused(ArgumentError, "at least 1 image on each side", 2, lambda: floor(x, 0))
    refused(ArgumentError, "at least 2 resamples, got 1", 2, lambda: frechet_interval(x, x, resamples=1))


def test_too_few_images_warn():
    """N at or below the number of features: rank-deficient, said once; above it: silence."""
    for count in (4, 5):
        with pytest.warns(
            UserWarning, match=rf"rank-deficient: {count} images for 5 features .* use more than 5 images"
        ):
            frechet_distance(drawn(count, 5), drawn(100, 5, seed=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(drawn(6, 5), drawn(100, 5, seed=1))
