"""Draws of training: Philox's published answers, and functions of (seed, stream, index) alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearzero import randomness
from nearzero.randomness import Stream, normal, order, philox, uniform, uniforms, words

law = settings(deadline=None, derandomize=True, max_examples=60)
ALL = 0xFFFFFFFF
indices = st.lists(st.integers(0, 2**62), min_size=1, max_size=20)
seeds = st.integers(0, 2**64 - 1)


def i64(values):
    return torch.tensor(values, dtype=torch.int64)


def scalar_philox(counter, key):
    """Philox4x32-10 in Python integers, from the paper's description."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) ^ b ^ k, q & ALL, (p >> 32) ^ d ^ m, p & ALL
        k, m = (k + 0x9E3779B9) & ALL, (m + 0xBB67AE85) & ALL
    return [a, b, c, d]


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, answer):
    """The three known answers that Random123 publishes for philox4x32-10."""
    assert tuple(int(word) for word in philox(tuple(i64([word]) for word in counter), key)) == answer


words32 = st.integers(0, ALL)


@law
@given(st.tuples(words32, words32, words32, words32), st.tuples(words32, words32))
def test_philox_is_elementwise_integer_arithmetic(counter, key):
    """64-bit tensor arithmetic, signs and all, is the arithmetic of the integers, in every element of a tensor."""
    answer = philox(tuple(i64([[word, 1], [word ^ ALL, word]]) for word in counter), key)
    for row, column, expected in (
        (0, 0, counter),
        (0, 1, (1, 1, 1, 1)),
        (1, 0, tuple(w ^ ALL for w in counter)),
        (1, 1, counter),
    ):
        assert [int(word[row, column]) for word in answer] == scalar_philox(expected, key)


@law
@given(seeds, indices)
def test_words_are_a_function_of_seed_stream_and_the_whole_index(seed, index):
    """Word block j of an index is Philox of (j, stream, low half, high half) under the seed's two halves; indices above 2^32 differ."""
    key = (seed & ALL, seed >> 32)
    for stream in (Stream.TIME, Stream.NOISE, Stream.FLIP):
        drawn = words(seed, stream, i64(index), 3)
        for position, value in enumerate(index):
            for j in range(3):
                expected = scalar_philox((j, int(stream), value & ALL, value >> 32), key)
                assert [int(word[position, j]) for word in drawn] == expected


@law
@given(seeds, indices, st.randoms(use_true_random=False))
def test_draws_depend_on_the_index_alone(seed, index, random):
    """Slicing, reordering and repeating indices slices, reorders and repeats draws, bit by bit."""
    chosen = [random.randrange(len(index)) for _ in range(7)]
    for draw in (uniform, lambda *a: normal(*a, (2, 3)), lambda *a: order(a[0] % 2**31, a[2] % 1000, 17)):
        everything = draw(seed, Stream.TIME, i64(index))
        assert torch.equal(draw(seed, Stream.TIME, i64([index[i] for i in chosen])), everything[chosen])


@law
@given(seeds, st.integers(0, 2**62), st.sampled_from([(1,), (5,), (2, 3), (1, 7, 3)]))
def test_normal_numbers_are_box_and_mullers(seed, index, shape):
    """Each block of four words gives two radii sqrt(-2 log u) and two angles: four numbers, cut to the shape, float32."""
    expected = []
    for j in range(-(-math.prod(shape) // 4)):
        a, b, c, d = scalar_philox((j, 1, index & ALL, index >> 32), (seed & ALL, seed >> 32))
        for r, angle in ((a, c), (b, d)):
            radius, angle = math.sqrt(-2 * math.log((r + 0.5) / 2**32)), 2 * math.pi * angle / 2**32
            expected += [radius * math.cos(angle), radius * math.sin(angle)]
    drawn = normal(seed, Stream.NOISE, i64([index]), shape)
    assert drawn.dtype == torch.float32 and drawn.shape == (1, *shape)
    assert drawn.flatten().tolist() == pytest.approx(expected[: math.prod(shape)], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("word", "value"), [(0, 0.5 / 2**52), (ALL, 1 - 0.5 / 2**52)])
def test_uniform_is_in_the_open_interval(monkeypatch, word, value):
    """The extreme words give (k + 1/2) / 2^52 exactly, never 0 and never 1."""
    monkeypatch.setattr(
        randomness, "words", lambda seed, stream, index, count: (torch.full((len(index), count), word),) * 4
    )
    (drawn,) = uniform(0, Stream.TIME, i64([0])).tolist()
    assert drawn == value
    assert 0 < drawn < 1


@pytest.mark.parametrize("word", [0, ALL])
def test_normal_is_finite_at_the_extreme_words(monkeypatch, word):
    """The longest radius is sqrt(66 log 2) = 6.76 and the shortest sqrt(-2 log(1 - 2^-33)), not 0."""
    monkeypatch.setattr(
        randomness, "words", lambda seed, stream, index, count: (torch.full((len(index), count), word),) * 4
    )
    (drawn,) = normal(0, Stream.NOISE, i64([0]), (4,)).double()
    radius = math.sqrt(-2 * math.log((word + 0.5) / 2**32))
    assert radius > 0
    assert drawn[:2].norm().item() == pytest.approx(radius, rel=1e-6)
    assert drawn[2:].norm().item() == pytest.approx(radius, rel=1e-6)


def test_uniform_numbers_are_uniform():
    """Over 2^18 indices, 64 bins are filled evenly (chi-square within 5 sd) and moments are 1/2 and 1/12."""
    u, n = uniform(1, Stream.TIME, torch.arange(2**18)), 2**18
    counts = torch.histc(u, 64, 0.0, 1.0)
    chi2 = ((counts - n / 64) ** 2 / (n / 64)).sum().item()
    assert abs(chi2 - 63) < 5 * math.sqrt(2 * 63)
    assert u.mean().item() == pytest.approx(1 / 2, abs=5 * math.sqrt(1 / 12 / n))
    assert u.var().item() == pytest.approx(1 / 12, abs=5 * math.sqrt(1 / 180 / n))


def test_normal_numbers_are_standard_normal():
    """Over 2^20 numbers mean 0, variance 1, skewness 0, fourth moment 3, and P(|z| > 3) = .0027, each within 5 sd."""
    z, n = normal(1, Stream.NOISE, torch.arange(2**14), (64,)).double().flatten(), 2**20
    for moment, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (z**moment).mean().item() == pytest.approx(expected, abs=5 * math.sqrt(variance / n))
    tail = math.erfc(3 / math.sqrt(2))
    assert (z.abs() > 3).double().mean().item() == pytest.approx(tail, abs=5 * math.sqrt(tail / n))


def correlation(a, b):
    """Sample correlation in units of its standard deviation under independence."""
    return (torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1] * math.sqrt(a.numel())).item()


def test_neighbours_streams_and_seeds_are_independent():
    """Correlation between neighbouring numbers, indices, streams and seeds, of values and of squares, is within 5 sd of 0."""
    index = torch.arange(2**12)
    z = normal(1, Stream.NOISE, index, (16,))
    others = [
        (z[:, 1:], z[:, :-1]),
        (z[1:], z[:-1]),
        (z, normal(1, Stream.FLIP, index, (16,))),
        (z, normal(2, Stream.NOISE, index, (16,))),
        (z, normal(1 + 2**32, Stream.NOISE, index, (16,))),
        (z, normal(1, Stream.NOISE, index + 2**32, (16,))),
        (uniform(1, Stream.TIME, index), uniform(1, Stream.FLIP, index)),
        (uniform(1, Stream.TIME, index), z[:, 0].double()),
        (uniform(1, Stream.TIME, index[1:]), uniform(1, Stream.TIME, index[:-1])),
    ]
    for a, b in others:
        assert abs(correlation(a, b)) < 5
        assert abs(correlation(a**2, b**2)) < 5


@law
@given(st.integers(0, 2**31), st.integers(1, 50), st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(seed, size, epoch):
    """Each epoch of `size` indices trains on every image once."""
    index = torch.arange(epoch * size, (epoch + 1) * size)
    assert sorted(order(seed, index, size).tolist()) == list(range(size))


def test_epochs_and_seeds_are_shuffled_anew():
    """Twenty epochs of four seeds are eighty different orders of 30 images."""
    index = torch.arange(20 * 30)
    orders = [tuple(epoch) for seed in (0, 1, 2, 3) for epoch in order(seed, index, 30).reshape(20, 30).tolist()]
    assert len(set(orders)) == 80


@pytest.mark.parametrize("high", [2**32, 2**40, 2**62])
def test_all_bits_of_a_seed_shuffle(high):
    """Seeds that agree in their low 32 bits order the images differently, as they draw different noise."""
    index = torch.arange(30)
    assert not torch.equal(normal(1, Stream.NOISE, index, (4,)), normal(1 + high, Stream.NOISE, index, (4,)))
    assert not torch.equal(order(1, index, 30), order(1 + high, index, 30))


def test_order_across_epochs_in_one_call():
    """A batch that spans epochs is what each epoch gives alone, and far epochs (index above 2^32) are permutations too."""
    size = 10
    spanning = order(3, torch.arange(5, 35), size)
    parts = [order(3, torch.arange(a, b), size) for a, b in ((5, 10), (10, 20), (20, 30), (30, 35))]
    assert torch.equal(spanning, torch.cat(parts))
    far = torch.arange(2**33 * size, 2**33 * size + size)
    assert sorted(order(3, far, size).tolist()) == list(range(size))


def test_first_places_are_uniform():
    """Over 6000 epochs of 6 images each image comes first about 1000 times (chi-square within 5 sd)."""
    first = order(9, torch.arange(6000) * 6, 6)
    counts = torch.bincount(first, minlength=6).double()
    assert abs(((counts - 1000) ** 2 / 1000).sum().item() - 5) < 5 * math.sqrt(10)


def test_uniforms_are_uniform_and_their_own():
    """Numbers of the open interval (0, 1) with mean 1/2 and variance 1/12, for each index its own, exact in float32."""
    index = torch.arange(500)
    drawn = uniforms(3, Stream.DITHER, index, (2, 5, 5))
    assert drawn.dtype == torch.float32 and 0 < drawn.min() and drawn.max() < 1
    assert torch.equal(drawn[40:60], uniforms(3, Stream.DITHER, index[40:60], (2, 5, 5)))
    assert drawn.double().mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / 25_000) ** 0.5)
    assert drawn.double().var().item() == pytest.approx(1 / 12, rel=0.03)
    assert bool(((drawn.double() * 2**23 - 0.5) % 1 == 0).all())
    assert not torch.equal(drawn, uniforms(4, Stream.DITHER, index, (2, 5, 5)))
