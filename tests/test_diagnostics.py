"""The measurements near t = 0 against closed laws, naive loops written out, and the promises they make."""

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nearzero as nz
from nearzero.diagnostics.probe import Timesteps
from nearzero.errors import ArgumentError, NumericalError
from nearzero.randomness import probe_generator

law = settings(deadline=None, derandomize=True, max_examples=25)
F64 = torch.float64
DDPM = nz.DiscreteVP.linear()
NODES = torch.arange(1, 1001, dtype=F64) / 1000
PLAIN = nz.Timestep(1000)
SHARED = nz.Shared(PLAIN, interval=100, cells=5)
EDGES = [19, 39, 59, 79, 99]  # the nodes whose successor lies in another cell
SHAPE = (3, 1, 2, 2)
LABEL = torch.tensor([0.0, 1.0, 2.5], dtype=F64)


class Ripple(torch.nn.Module):
    """Elementwise, so that a batch changes little; depends on x, c and a label; remembers what it was shown and told."""

    def __init__(self):
        super().__init__()
        self.seen, self.told, self.rows = [], [], []

    def forward(self, x, c, label=None):
        self.seen.append(x.clone())
        self.told.append(c.clone())
        self.rows.append(len(x))
        c = c.reshape(-1, *(1,) * (x.ndim - 1)) / 300
        shift = 0 if label is None else label.reshape(-1, *(1,) * (x.ndim - 1))
        return torch.sin(3 * x + 2 * c + shift) + 0.3 * shift * torch.cos(5 * c)


class Spy(Ripple):
    """Sees as much as Ripple and answers something else."""

    def forward(self, x, c):
        return super().forward(x, c) ** 2 - x


class Line(torch.nn.Module):
    """F = c in every number, whatever x."""

    def forward(self, x, c):
        return c.reshape(-1, *(1,) * (x.ndim - 1)).expand_as(x)


class Zero(torch.nn.Module):
    """F = 0."""

    def forward(self, x, c):
        return torch.zeros_like(x)


class Broken(torch.nn.Module):
    """Right everywhere but where it is told 500."""

    def forward(self, x, c):
        return torch.where((c == 500).reshape(-1, *(1,) * (x.ndim - 1)), torch.nan, x)


class Scaled(nz.Velocity):
    """Shows the network x / sqrt(alpha^2 / 4 + sigma^2)."""

    def input_scale(self, level):
        return (level.alpha**2 / 4 + level.sigma**2).rsqrt()


class Halved(nz.Velocity):
    """Shows the network x / 2."""

    def input_scale(self, level):
        return torch.full_like(level.alpha, 0.5)


class Clean(nz.Epsilon):
    """F is x0 itself, at t > 0: the estimate of x0 does not repeat x."""

    def coefficients(self, level):
        one = torch.ones_like(level.alpha)
        return type(super().coefficients(level))(0 * one, one, 1 / level.sigma, -level.alpha / level.sigma)


class Deaf(nz.Epsilon):
    """x0 = x / alpha and eps = 0: nothing that the network says is heard."""

    def coefficients(self, level):
        k = super().coefficients(level)
        return k._replace(B=0 * k.B, D=0 * k.D)


class Longer(nz.LinearVP):
    """A process that ends at t = 2."""

    end = 2.0


class Fixed:
    """Every example is trained at one time."""

    def __init__(self, t):
        self.t = t

    def __call__(self, u, process):
        return torch.full_like(u, self.t)


def images(*shape, dtype=F64):
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(77), dtype=dtype)


def noise(x0, generator=None, count=1):
    """The first `count` draws of a generator, by default the measurements' own."""
    generator = generator or probe_generator(0)
    drawn = [torch.randn(x0.shape, generator=generator, dtype=x0.dtype) for _ in range(count)]
    return drawn[0] if count == 1 else drawn


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def level_at(process, t):
    return [value.item() for value in process(torch.tensor(t, dtype=F64))]


def ripple(conditioning=PLAIN, process=DDPM, parameterization=None):
    return nz.Denoiser(Ripple(), process, parameterization or nz.Velocity(), conditioning)


def mean_and_error(rows):
    """Mean and its standard error of a list of lists, one list for each number."""
    count = len(rows[0])
    mean = [sum(row) / count for row in rows]
    error = [math.sqrt(sum((v - m) ** 2 for v in row) / (count - 1) / count) for row, m in zip(rows, mean, strict=True)]
    return torch.tensor(mean, dtype=F64), torch.tensor(error, dtype=F64)


def naive_lipschitz(denoiser, x0, pairs, timestep, **condition):
    """Eq. 8 with two calls of the denoiser for each pair, image by image: (mean, standard error) per timestep."""
    eps, rows = noise(x0), []
    for t, until in pairs:
        alpha, sigma = level_at(denoiser.process, t)
        x = alpha * x0 + sigma * eps
        change = denoiser.output(x, t, **condition)[0] - denoiser.output(x, until, **condition)[0]
        rows.append([math.sqrt((one**2).sum().item()) / ((until - t) / timestep) for one in change])
    return mean_and_error(rows)


def neighbours(times):
    return list(zip(times, times[1:], strict=False))


def close(found, expected, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=F64), rtol=rtol, atol=atol)


# The laws of data whose best network is known


def test_data_at_one_point_follow_their_law_at_every_timestep():
    """F = x / sigma: value[i] = E|eps| (1 - sigma_i / sigma_{i+1}) to rounding for the noise of seed 0, and within 1 % of sqrt(d) (...), i = 0..998."""
    x0 = torch.zeros(64, 400, dtype=F64)
    K = nz.lipschitz(nz.PointCloud(torch.zeros(1, 400)).denoiser(DDPM), x0)
    assert torch.equal(K.times, NODES[:-1]) and torch.equal(K.until, NODES[1:])
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    sigma = (1 - (1 - beta).cumprod(0)).sqrt()
    fall = 1 - sigma[:-1] / sigma[1:]
    close(K.value, noise(x0).norm(dim=1).mean() * fall, rtol=1e-8, atol=0)
    close(K.value, 20 * fall, rtol=0.01, atol=0)


def test_data_at_one_point_follow_their_law_within_many_standard_errors():
    """With 64 images of 4,096 numbers 1 % is more than six standard errors: K = sqrt(d) (1 - sigma_i / sigma_{i+1}) from the first to the last timestep."""
    first = torch.tensor([0, 1, 2, 9, 19, 20, 99, 100, 500, 998])
    x0 = torch.zeros(64, 4096, dtype=F64)
    pairs = torch.stack([NODES[first], NODES[first + 1]], 1)
    K = nz.lipschitz(nz.PointCloud(torch.zeros(1, 4096)).denoiser(DDPM), x0, times=pairs)
    sigma = DDPM(NODES).sigma
    expected = 64 * (1 - sigma[first] / sigma[first + 1])
    assert bool((6 * K.stderr < 0.01 * expected).all())
    close(K.value, expected, rtol=0.01, atol=0)


POINTS = torch.tensor([[x, y] for x in (-1.0, 1.0) for y in (-3.0, -1.0, 1.0, 3.0)], dtype=F64)
SMOOTH = nz.GaussianMixture(
    torch.tensor([0.3, 0.7], dtype=F64),
    torch.tensor([[-1.0, 0.5], [1.5, 0.0]], dtype=F64),
    torch.tensor([[[0.5, 0.2], [0.2, 0.4]], [[0.3, 0.0], [0.0, 0.8]]], dtype=F64),
)


@pytest.mark.parametrize(("data", "exponent"), [(SMOOTH, 0.5), (nz.PointCloud(POINTS), 1.0)], ids=["smooth", "points"])
def test_the_exponent_is_the_datas(data, exponent):
    """As t -> 0 K grows like t^-1/2 for a smooth density and like t^-1 for finitely many points; exponent is minus the least-squares slope."""
    times = torch.logspace(-7, -5, 21, dtype=F64)
    K = nz.lipschitz(data.denoiser(nz.LinearVP()), data.sample(64, seeded(1)), times=times)
    middle = np.log(np.sqrt((times[:-1] * times[1:]).numpy()))
    slope, _ = np.polyfit(middle, np.log(K.per_unit_time.numpy()), 1)
    assert K.exponent == pytest.approx(-slope, abs=1e-9)
    assert K.exponent == pytest.approx(exponent, abs=0.02)


@law
@given(p=st.floats(-2, 2), factor=st.floats(1e-3, 1e3), first=st.floats(1e-8, 1e-2), ratio=st.floats(1.1, 3))
def test_the_exponent_of_a_power_law(p, factor, first, ratio):
    """K = factor m^-p at the geometric means m of the pairs has exponent p, for every p and factor."""
    times = first * ratio ** torch.arange(6, dtype=F64)
    value = factor * (times[:-1] * times[1:]).sqrt() ** -p
    curve = nz.LipschitzCurve(times[:-1], value, value, times[1:], Timesteps(nz.LinearVP()))
    assert curve.exponent == pytest.approx(p, abs=1e-9)


# Timesteps


@pytest.mark.parametrize(
    "process", [nz.LinearVP(), nz.DiscreteVP.linear(250), nz.KarrasVE(), nz.SongVE(), nz.StraightPath()], ids=str
)
def test_timesteps_are_numbered_from_one(process):
    """number(times()[k]) = k + 1 to a relative 1e-9, 0 at t = 0, increasing in between; the last time is the end."""
    steps = Timesteps(process)
    t = steps.times()
    close(steps.number(t), torch.arange(1.0, steps.count + 1))
    between = torch.cat([t.new_zeros(1), t[:1] / 2, (t[1:] + t[:-1]) / 2])
    assert steps.number(between)[0] == 0 and bool((steps.number(between).diff() > 0).all())
    assert t[-1] == process.end and len(steps.spread(25)) <= 25


@pytest.mark.parametrize("process", [nz.KarrasVE(), nz.SongVE(6400.0), nz.KarrasVE(end=8.0)], ids=str)
def test_timesteps_of_exploding_noise_are_equal_in_log_sigma(process):
    """1000 levels from 1/40,000 of the last sigma, 0.002 of 80 as in EDM, each larger by the same factor."""
    sigma = process(Timesteps(process).times()).sigma
    close(sigma[-1] / sigma[0], 40_000.0)
    close(sigma[1:] / sigma[:-1], torch.full((999,), 40_000 ** (1 / 999), dtype=F64))


def test_a_diagnosis_of_edm_sees_low_noise():
    """Over KarrasVE the first probe lies at sigma 0.002; K per step of log sigma, of data at points, does not grow towards either end."""
    data = nz.PointCloud(torch.linspace(-1, 1, 8, dtype=F64)[:, None].expand(8, 16).contiguous())
    denoiser = data.denoiser(nz.KarrasVE(), nz.Karras())
    found = nz.diagnose(denoiser, data.sample(16, torch.Generator().manual_seed(0)), every=25)
    assert found.lipschitz.times[0].item() == pytest.approx(0.002)
    assert found.summary()["max_at_timestep"] < 200 and found.lipschitz.max < 2 * found.lipschitz.value[0]
    assert found.lipschitz.value[-1] < found.lipschitz.value[0]
    assert "1000 noise levels" in found.unit


# The definition


IRREGULAR = [0.0, 1e-5, 0.001, 0.0015, 0.02, 0.021, 0.1, 0.4, 1.0]
CASES = {
    "Velocity": (PLAIN, DDPM, nz.Velocity()),
    "Epsilon": (nz.Time(400.0), DDPM, nz.Epsilon()),
    "Shared": (SHARED, DDPM, nz.Velocity()),
    "Scaled": (PLAIN, nz.LinearVP(), Scaled()),
    "Shared, Scaled": (SHARED, DDPM, Scaled()),
    "Shared, Halved": (SHARED, nz.LinearVP(), Halved()),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@cases
@law
@given(batch=st.one_of(st.none(), st.integers(1, 60)), labelled=st.booleans())
def test_the_curve_is_the_naive_loop(case, batch, labelled):
    """Value and standard error are those of two denoiser calls for each pair with the same x_t, whatever the batch, and no call exceeds it."""
    denoiser, x0 = ripple(*case), images()
    condition = {"label": LABEL} if labelled else {}
    K = nz.lipschitz(denoiser, x0, times=torch.tensor(IRREGULAR, dtype=F64), condition=condition, batch=batch)
    assert max(denoiser.network.rows) <= max(2, batch or 256)
    value, stderr = naive_lipschitz(denoiser, x0, neighbours(IRREGULAR), 0.001, **condition)
    close(K.value, value)
    close(K.stderr, stderr)
    assert K.times.tolist() == IRREGULAR[:-1] and K.until.tolist() == IRREGULAR[1:]
    assert not K.value.requires_grad and not K.value.is_inference()


@cases
def test_pairs_need_not_be_neighbours(case):
    """Pairs (n, 2) that overlap, repeat and come in any order are measured one by one, in their order."""
    pairs = [(0.3, 0.9), (0.001, 0.5), (0.019, 0.02), (0.02, 0.021), (0.001, 0.5), (0.0, 1.0)]
    denoiser, x0 = ripple(*case), images()
    K = nz.lipschitz(denoiser, x0, times=torch.tensor(pairs, dtype=F64), condition={"label": LABEL})
    value, stderr = naive_lipschitz(denoiser, x0, pairs, 0.001, label=LABEL)
    close(K.value, value)
    close(K.stderr, stderr)
    assert list(zip(K.times.tolist(), K.until.tolist(), strict=True)) == pairs


def test_each_image_meets_its_own_condition():
    """F = label: K of a network that multiplies c by its row's label is the mean label times sqrt(d), also in single rows."""

    class Graded(torch.nn.Module):
        def forward(self, x, c, label):
            return (c * label)[:, None].expand_as(x)

    denoiser = nz.Denoiser(Graded(), DDPM, nz.Velocity(), PLAIN)
    for batch in (None, 1, 3, 4, 7):
        K = nz.lipschitz(denoiser, images(3, 4), times=NODES[:9], condition={"label": LABEL}, batch=batch)
        close(K.value, torch.full((8,), 2 * 3.5 / 3, dtype=F64))
        close(K.stderr, torch.full((8,), 2 * LABEL.std().item() / math.sqrt(3), dtype=F64))


def test_float32_images_are_measured_as_float64_ones():
    """The network sees x and c in the images' dtype; the curve is float64 and that of float64 images to float32's rounding."""
    denoiser, x0 = ripple(), images()
    times, narrow = NODES[::50], x0.to(torch.float32)
    K = nz.lipschitz(denoiser, narrow, times=times)
    assert {part.dtype for part in denoiser.network.seen + denoiser.network.told} == {torch.float32}
    eps, rows = noise(narrow).double(), []
    for t, until in neighbours(times.tolist()):
        alpha, sigma = level_at(DDPM, t)
        x = alpha * narrow.double() + sigma * eps
        change = ripple().output(x, t)[0] - ripple().output(x, until)[0]
        rows.append([one.norm().item() / 50 for one in change])
    close(K.value, mean_and_error(rows)[0], rtol=1e-4, atol=0)


def test_float32_times_keep_their_cells():
    """A node time in float32 is that node: node 99 belongs to the cell told 80, so K(98, 99) = 0 and K(99, 100) is the edge's."""
    narrow, wide = (nz.lipschitz(ripple(SHARED), images(), times=NODES[:120].to(d)) for d in (torch.float32, F64))
    assert narrow.value[98] == wide.value[98] == 0
    close(narrow.value, wide.value, rtol=1e-3)  # (t' - t) of float32 times is known to 1e-4


# Sharing


def test_sharing_makes_cells_silent_and_moves_nothing_else():
    """K is exactly 0 inside cells, for which the network is not asked; above the interval it is bit by bit what it is without sharing."""
    shared, plain, x0 = ripple(SHARED), ripple(PLAIN), images()
    K, free = nz.lipschitz(shared, x0), nz.lipschitz(plain, x0)
    inside = [k for k in range(100) if k not in EDGES]
    assert K.value[inside].tolist() == K.stderr[inside].tolist() == [0.0] * 95
    assert bool((K.value[EDGES] > 0).all()) and bool((free.value > 0).all())
    assert torch.equal(K.value[100:], free.value[100:]) and torch.equal(K.stderr[100:], free.stderr[100:])
    assert sum(plain.network.rows) == 2 * 3 * 999
    assert sum(shared.network.rows) == 2 * 3 * (999 - 95)
    assert set(torch.cat(shared.network.told).tolist()) == {0.0, 20.0, 40.0, 60.0, 80.0, *map(float, range(100, 1000))}


@pytest.mark.parametrize(("node", "lower", "upper"), [(19, 0, 20), (59, 40, 60), (99, 80, 100)])
def test_the_change_of_a_cell_is_at_its_edge(node, lower, upper):
    """K at an edge, the pair (19, 20) say, is E|F(x, told 0) - F(x, told 20)| at x of node 19, with the noise of seed 0."""
    x0 = images()
    alpha, sigma = level_at(DDPM, (node + 1) / 1000)
    x = alpha * x0 + sigma * noise(x0)
    change = Ripple()(x, torch.full((3,), lower, dtype=F64)) - Ripple()(x, torch.full((3,), upper, dtype=F64))
    K = nz.lipschitz(ripple(SHARED), x0)
    close(K.value[node], sum(one.norm().item() for one in change) / 3)


def test_a_fixed_input_scale_leaves_cells_silent_and_a_moving_one_does_not():
    """Told the same, the network still sees input_scale(t) x: inside cells K = 0 exactly for a scale of 1/2 at all t, K > 0 for one that moves."""
    x0 = images()
    silent, moving = (nz.lipschitz(ripple(SHARED, DDPM, p), x0, times=NODES[:20]) for p in (Halved(), Scaled()))
    assert silent.value.tolist() == [0.0] * 19
    assert bool((moving.value > 0).all())
    t = NODES[:20].tolist()
    close(moving.value, naive_lipschitz(ripple(SHARED, DDPM, Scaled()), x0, neighbours(t), 0.001)[0], rtol=1e-8)


def test_sharing_spreads_no_change_away():
    """F = c: from node 0 to node 100 the answer moves by 100 sqrt(d) in all, with and without cells."""
    for conditioning, worst in ((PLAIN, 1), (SHARED, 20)):
        found = nz.diagnose(nz.Denoiser(Line(), DDPM, nz.Velocity(), conditioning), images(3, 4), interval=0.1)
        assert found.near.total_variation == pytest.approx(200, rel=1e-9)
        assert found.near.max == pytest.approx(2 * worst, rel=1e-9)


# The curve


def test_what_a_curve_answers():
    """total_variation = sum K dt in timesteps, max the largest K, per_unit_time = K / timestep; between takes (start, end] of first times."""
    columns = [torch.tensor(v, dtype=F64) for v in ([0.1, 0.2, 0.4], [3.0, 1.0, 2.0], [0.3, 0.1, 0.2], [0.2, 0.4, 0.7])]
    curve = nz.LipschitzCurve(*columns, steps=Timesteps(nz.DiscreteVP.linear(100)))
    assert curve.total_variation == pytest.approx(3 * 10 + 1 * 20 + 2 * 30)
    assert curve.max == 3
    close(curve.per_unit_time, [300.0, 100.0, 200.0])
    part = curve.between(0.1, 0.4)
    assert [part.times.tolist(), part.value.tolist()] == [[0.2, 0.4], [1.0, 2.0]]
    assert [part.stderr.tolist(), part.until.tolist(), part.steps] == [[0.1, 0.2], [0.4, 0.7], curve.steps]
    assert part.max == 2 and part.total_variation == pytest.approx(80)
    with pytest.raises(ArgumentError, match=r"\(0\.4, 0\.9\]"):
        curve.between(0.4, 0.9)


def test_the_default_curve_is_every_timestep_of_the_process():
    """DiscreteVP.linear(): 999 values from times (i + 1) / 1000 to (i + 2) / 1000, counted per node, so per_unit_time = 1000 K."""
    K = nz.lipschitz(ripple(), images())
    assert K.times.tolist() == [(i + 1) / 1000 for i in range(999)]
    assert K.until.tolist() == [(i + 2) / 1000 for i in range(999)]
    close(K.per_unit_time, 1000 * K.value)
    every = naive_lipschitz(ripple(), images(), neighbours(NODES.tolist()), 0.001)[0]
    assert K.total_variation == pytest.approx(every.sum().item(), rel=1e-9)


@pytest.mark.parametrize(
    ("process", "count", "end"),
    [(nz.DiscreteVP.linear(50), 50, 1.0), (nz.LinearVP(), 1000, 1.0), (Longer(), 1000, 2.0)],
    ids=["50 nodes", "continuous", "continuous to 2"],
)
def test_the_unit_is_a_timestep_or_a_thousandth_of_the_range(process, count, end):
    """F = t has slope sqrt(d) per unit of t: K = sqrt(d) end / count per timestep, with count the nodes, or 1000 without nodes."""
    K = nz.lipschitz(nz.Denoiser(Line(), process, nz.Velocity(), nz.Time()), images(2, 9))
    close(K.times, [(i + 1) / count * end for i in range(count - 1)])
    close(K.value, torch.full((count - 1,), 3 * end / count, dtype=F64), rtol=1e-9)
    close(K.per_unit_time, torch.full((count - 1,), 3.0, dtype=F64), rtol=1e-9)
    assert K.total_variation == pytest.approx(3 * end * (count - 1) / count)


@pytest.mark.parametrize("shape", [(1, 4), (1, 1, 2, 2)])
def test_one_image_has_no_standard_error(shape):
    """The mean over one image is that image's value, its standard error unknown: nan."""
    x0 = images(*shape)
    K = nz.lipschitz(ripple(), x0, times=NODES[:5])
    eps = noise(x0)
    for i, (t, until) in enumerate(neighbours(NODES[:5].tolist())):
        alpha, sigma = level_at(DDPM, t)
        x = alpha * x0 + sigma * eps
        close(K.value[i], (ripple().output(x, t)[0] - ripple().output(x, until)[0]).norm())
    assert bool(K.stderr.isnan().all())
    assert bool(nz.perturbation(ripple(), x0, t=0.1).stderr.isnan().all())


# What every measurement promises


MEASURES = {
    "lipschitz": lambda d, x0, **more: nz.lipschitz(d, x0, times=NODES[95:130:3], **more).value,
    "perturbation": lambda d, x0, **more: nz.perturbation(d, x0, t=0.1, **more).value,
    "loss_by_noise": lambda d, x0, **more: nz.loss_by_noise(d, x0, times=NODES[::100], **more).value,
}
measures = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


@measures
def test_the_noise_is_the_generators(measure):
    """One seed, one measurement, bit by bit; without a generator a fixed one, which is not torch's of seed 0; another seed, other numbers; torch's own generator neither read nor moved."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = measure(ripple(), images())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(measure(ripple(), images()), first)
    assert torch.equal(measure(ripple(), images(), generator=probe_generator(0)), first)
    assert bool((measure(ripple(), images(), generator=seeded(0)) != first).all())
    third = measure(ripple(), images(), generator=seeded(3))
    assert torch.equal(measure(ripple(), images(), generator=seeded(3)), third)
    assert bool((third != first).all())


def test_seeds_agree_within_standard_errors():
    """Two seeds are two estimates of one K and of one error: they differ, by less than five standard errors of the difference."""
    x0, denoiser = SMOOTH.sample(400, seeded(5)), SMOOTH.denoiser(nz.LinearVP())
    pairs = torch.tensor([[1e-3, 2e-3], [0.1, 0.101], [0.5, 0.6]], dtype=F64)
    for measure in (
        lambda g: nz.lipschitz(denoiser, x0, times=pairs, generator=g),
        lambda g: nz.perturbation(denoiser, x0, t=0.3, generator=g),
    ):
        one, two = measure(seeded(1)), measure(seeded(2))
        apart = (one.value - two.value).abs()
        assert bool((apart > 0).all())
        assert bool((apart < 5 * (one.stderr**2 + two.stderr**2).sqrt()).all())
        assert bool((one.stderr < 0.1 * one.value).all())


class Dropping(torch.nn.Module):
    """Drops half of its input while training, in parts of different modes; breaks where it is told `breaks`."""

    def __init__(self, p, breaks=None):
        super().__init__()
        self.hot, self.cold = torch.nn.Sequential(torch.nn.Dropout(p)), torch.nn.Dropout(p)
        self.breaks = breaks

    def forward(self, x, c):
        x = self.cold(self.hot(x)) * (1 + c.reshape(-1, *(1,) * (x.ndim - 1)) / 1000)
        return x * math.nan if self.breaks is not None and bool((c >= self.breaks).any()) else x


@measures
@pytest.mark.parametrize("breaks", [None, 99], ids=["measured", "broken"])
def test_dropout_is_off_and_every_mode_comes_back(measure, breaks):
    """A network that drops out is measured as one that does not; afterwards, or after an error, each submodule has its own mode again."""
    denoiser = nz.Denoiser(Dropping(0.5, breaks), DDPM, nz.Velocity(), PLAIN)
    denoiser.network.cold.eval()
    denoiser.network.hot.eval()
    denoiser.network.hot[0].train()
    before = [module.training for module in denoiser.modules()]
    assert True in before and False in before
    if breaks is None:
        expected = measure(nz.Denoiser(Dropping(0.0), DDPM, nz.Velocity(), PLAIN), images())
        assert torch.equal(measure(denoiser, images()), expected)
    else:
        with pytest.raises(NumericalError):
            measure(denoiser, images())
    assert [module.training for module in denoiser.modules()] == before
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@measures
@law
@given(batch=st.integers(1, 20))
def test_a_batch_changes_nothing(measure, batch):
    """The batch changes the rounding at most, and the network never sees more rows at once (a pair of times has two)."""
    whole, cut = ripple(), ripple()
    expected = measure(whole, images(), condition={"label": LABEL})
    close(measure(cut, images(), condition={"label": LABEL}, batch=batch), expected)
    assert max(cut.network.rows) <= max(2, batch)


def test_progress_is_counted():
    """progress(done, all) rises to all: pairs for the curve, the silent ones included, times for the losses."""
    counted = []
    nz.lipschitz(ripple(SHARED), images(), times=NODES[:31], progress=lambda *now: counted.append(now))
    assert counted[-1] == (30, 30)
    assert [done for done, _ in counted] == sorted({done for done, _ in counted}) and {n for _, n in counted} == {30}
    counted.clear()
    nz.loss_by_noise(ripple(), images(), times=NODES[:4], progress=lambda *now: counted.append(now))
    assert counted == [(1, 4), (2, 4), (3, 4), (4, 4)]


# The perturbation


@law
@given(t=st.floats(0, 0.9), scale=st.floats(1e-3, 2))
def test_a_silent_network_passes_the_error_on(t, scale):
    """F = 0: x0^ is x / alpha for Epsilon and alpha x for Velocity, so error(s) = s / alpha rms(n) and s alpha rms(n), n the second draw."""
    x0 = images()
    _, n = noise(x0, seeded(4), 2)
    rms = [math.sqrt((one**2).mean().item()) for one in n]
    (mean,), (error,) = mean_and_error([rms])
    alpha, _ = level_at(DDPM, t)
    for parameterization, gain in ((nz.Epsilon(), 1 / alpha), (nz.Velocity(), alpha)):
        denoiser = nz.Denoiser(Zero(), DDPM, parameterization, PLAIN)
        found = nz.perturbation(denoiser, x0, t=t, scales=[scale, 2 * scale], generator=seeded(4))
        # x + s n is rounded to 1e-16 of x, so the difference is known to 1e-16 / s
        close(found.value, [scale * gain * mean, 2 * scale * gain * mean], rtol=1e-11)
        close(found.stderr, [scale * gain * error, 2 * scale * gain * error], rtol=1e-11)
        assert found.scales.tolist() == [scale, 2 * scale] and found.t == t


def test_an_estimate_that_ignores_x_is_not_moved():
    """error = 0, exactly where x0^ = F(c), and to rounding where the data are one point and x0^ = (x - sigma eps) / alpha."""
    x0 = images(3, 4)
    found = nz.perturbation(nz.Denoiser(Line(), DDPM, Clean(), PLAIN), x0, t=0.1)
    assert found.value.tolist() == found.stderr.tolist() == [0.0] * 4
    point = nz.PointCloud(torch.ones(1, 4, dtype=F64))
    assert nz.perturbation(point.denoiser(DDPM), x0, t=0.1).value.max() < 1e-14


@pytest.mark.parametrize("t", [0.0, 0.01, 0.3, 1.0])
def test_normal_data_shrink_the_error(t):
    """For N(0, v) data x0^ = alpha v x / (alpha^2 v + sigma^2): error(s) is s times that factor times rms(n)."""
    v, x0 = 0.3, images(6, 4)
    data = nz.GaussianMixture(torch.ones(1, dtype=F64), torch.zeros(1, 4, dtype=F64), v * torch.eye(4, dtype=F64)[None])
    alpha, sigma = level_at(DDPM, t)
    gain = alpha * v / (alpha**2 * v + sigma**2)
    rms = noise(x0, count=2)[1].square().mean(1).sqrt().mean().item()
    found = nz.perturbation(data.denoiser(DDPM), x0, t=t)
    assert found.scales.tolist() == [0.05, 0.1, 0.2, 0.3]
    close(found.value, [s * gain * rms for s in (0.05, 0.1, 0.2, 0.3)], rtol=1e-9, atol=1e-13)


@cases
def test_the_perturbation_is_the_naive_loop(case):
    """error(s) and its standard error are those of the denoiser asked at x_t and at x_t + s n, image by image, with one eps and one n."""
    denoiser, x0, t = ripple(*case), images(), 0.0371
    eps, n = noise(x0, count=2)
    alpha, sigma = level_at(denoiser.process, t)
    x, rows = alpha * x0 + sigma * eps, []
    for scale in (0.05, 0.7):
        moved = denoiser(x + scale * n, t, label=LABEL).x0 - denoiser(x, t, label=LABEL).x0
        rows.append([math.sqrt((one**2).mean().item()) for one in moved])
    value, stderr = mean_and_error(rows)
    found = nz.perturbation(denoiser, x0, t=t, scales=(0.05, 0.7), condition={"label": LABEL})
    close(found.value, value)
    close(found.stderr, stderr)


# The loss at each noise level


def test_the_best_network_of_one_point_has_no_loss():
    """x_t tells the noise of data at one point exactly: the loss is 0, while a silent network's is E eps^2 = 1, within its standard error."""
    x0 = torch.full((50, 8), 0.7, dtype=F64)
    found = nz.loss_by_noise(nz.PointCloud(x0[:1]).denoiser(DDPM), x0)
    assert found.value.max() < 1e-20 and found.std.max() < 1e-20
    per_image = noise(x0).square().mean(1)
    close(found.silent, per_image.mean().expand(len(found.times)))
    assert (found.silent[0] - 1).abs() < 3 * math.sqrt(2 / 400)


def test_a_silent_network_has_the_silent_loss():
    """F = 0: value = silent = E mean F*^2, with F* = eps for Epsilon and alpha eps - sigma x0 for Velocity, and std their spread over images."""
    x0 = images()
    eps, t = noise(x0), [0.001, 0.3, 1.0]
    for parameterization in (nz.Epsilon(), nz.Velocity()):
        found = nz.loss_by_noise(
            nz.Denoiser(Zero(), DDPM, parameterization, PLAIN), x0, times=torch.tensor(t, dtype=F64)
        )
        for i, (alpha, sigma) in enumerate(level_at(DDPM, one) for one in t):
            target = eps if parameterization == nz.Epsilon() else alpha * eps - sigma * x0
            each = [(one**2).mean().item() for one in target]
            close(found.silent[i], sum(each) / 3)
            close(found.std[i], np.std(each, ddof=1))
            close(found.noise[i], sigma / alpha)
        assert torch.equal(found.value, found.silent)


@cases
def test_the_loss_is_that_of_training(case):
    """At every time value and std are mean and spread of nz.Regression's losses for the same images, noise and condition."""
    denoiser, x0 = ripple(*case), images()
    times = torch.tensor([0.001, 0.02, 0.0201, 0.1, 0.9], dtype=F64)
    found = nz.loss_by_noise(denoiser, x0, times=times, generator=seeded(9), condition={"label": LABEL}, batch=2)
    for i, t in enumerate(times.tolist()):
        objective = nz.Regression(Fixed(t), nz.Simple())
        losses = objective(denoiser, x0, torch.full((3,), 0.5, dtype=F64), noise(x0, seeded(9)), label=LABEL)
        close(found.value[i], losses.mean())
        close(found.std[i], losses.std())
    assert torch.equal(found.times, times)


@pytest.mark.parametrize(
    ("process", "count"),
    [(DDPM, 1000), (nz.DiscreteVP.linear(10), 10), (nz.DiscreteVP.linear(1), 1), (nz.LinearVP(), 1000)],
    ids=["1000 nodes", "10 nodes", "1 node", "continuous"],
)
def test_the_default_times_are_nodes(process, count):
    """By default 25 powers of `count`, rounded to whole timesteps, each once: nodes, increasing, from the first to the last."""
    found = nz.loss_by_noise(nz.Denoiser(Zero(), process, nz.Velocity(), nz.Time()), images())
    k = sorted({round(count ** (j / 24)) for j in range(25)})
    assert k[0] == 1 and k[-1] == count
    close(found.times, [one / count for one in k], rtol=1e-15, atol=0)


def test_float32_times_of_losses_keep_their_cells():
    """A node time in float32 is compared in float32: every node is told, and answers, what it is in float64."""
    narrow, wide = ripple(SHARED), ripple(SHARED)
    nz.loss_by_noise(narrow, images(), times=NODES[:120].to(torch.float32))
    nz.loss_by_noise(wide, images(), times=NODES[:120])
    told = torch.cat(wide.network.told).tolist()
    assert torch.cat(narrow.network.told).tolist() == told
    assert told == [k // 20 * 20 if k < 100 else k for k in range(120) for _ in range(3)]


def test_a_network_that_is_not_heard_has_no_loss():
    """Where B = D = 0 no output is the right one: refused."""
    with pytest.raises(ArgumentError, match="B = D = 0"):
        nz.loss_by_noise(ripple(PLAIN, DDPM, Deaf()), images(), times=NODES[:2])


# All of it


@pytest.mark.parametrize(
    ("conditioning", "process", "interval"),
    [
        (SHARED, DDPM, 0.1),
        (nz.Shared(PLAIN, interval=40, cells=4), DDPM, 0.04),
        (nz.Shared(nz.Time(), interval=0.03, cells=2), nz.LinearVP(), 0.03),
        (PLAIN, DDPM, 0.1),
        (nz.Time(), nz.LinearVP(), 0.1),
        (nz.Time(), Longer(), 0.2),
    ],
)
def test_the_interval_is_the_conditionings(conditioning, process, interval):
    """By default t~ is where the cells end, or a tenth of the range without cells; a given one is taken."""
    denoiser = ripple(conditioning, process)
    found = nz.diagnose(denoiser, images(), every=300)
    assert found.interval == found.perturbation.t == pytest.approx(interval, rel=1e-15)
    assert nz.diagnose(denoiser, images(), interval=0.013, every=300).interval == 0.013


@law
@given(nodes=st.integers(1, 700), every=st.integers(1, 400))
def test_every_timestep_near_zero_and_some_above(nodes, every):
    """Pairs of neighbours: every timestep up to 2 t~, and from there one in `every`; near takes the first times in (0, t~]."""
    found = nz.diagnose(
        nz.Denoiser(Line(), DDPM, nz.Velocity(), PLAIN), images(2, 1), interval=nodes / 1000, every=every
    )
    first = [k for k in range(999) if k < 2 * nodes] + list(range(2 * nodes, 999, every))
    assert found.lipschitz.times.tolist() == [(k + 1) / 1000 for k in first]
    assert found.lipschitz.until.tolist() == [(k + 2) / 1000 for k in first]
    assert found.near.times.tolist() == [(k + 1) / 1000 for k in range(nodes)]


def test_every_tenth_timestep_by_default():
    """E-TSDM's denoiser: timesteps 0 to 199, then 200, 210, ..., 990, told what sharing tells them; progress counts their pairs."""
    counted = []
    found = nz.diagnose(ripple(SHARED), images(), progress=lambda *now: counted.append(now))
    expected = [*range(200), *range(200, 991, 10)]
    assert [found.timestep(t) for t in found.lipschitz.times.tolist()] == expected
    assert found.told.tolist() == [k // 20 * 20 if k < 100 else k for k in range(1000)]
    assert counted[-1] == (280, 280) and found.images == 3


@pytest.mark.parametrize("process", [DDPM, nz.LinearVP(), Longer(), nz.DiscreteVP.linear(37)], ids=type)
def test_timesteps_are_counted_from_zero(process):
    """timestep(t) of the k-th node, or of the k-th thousandth of the range, is k."""
    found = nz.diagnose(ripple(nz.Time(), process), images(), every=100)
    count = getattr(process, "steps", 1000)
    assert [found.timestep((k + 1) / count * process.end) for k in range(count)] == list(range(count))


def test_a_diagnosis_is_its_three_measurements():
    """With seed s the curve, the perturbation at t~ and the losses are those of the three functions with probe_generator(s) each."""
    denoiser, x0 = ripple(SHARED), images()
    found = nz.diagnose(denoiser, x0, seed=6, every=50)
    pairs = torch.stack([found.lipschitz.times, found.lipschitz.until], 1)
    for mine, other, columns in (
        (found.lipschitz, nz.lipschitz(denoiser, x0, times=pairs, generator=probe_generator(6)), ("value", "stderr")),
        (
            found.perturbation,
            nz.perturbation(denoiser, x0, t=0.1, generator=probe_generator(6)),
            ("scales", "value", "stderr"),
        ),
        (
            found.losses,
            nz.loss_by_noise(denoiser, x0, generator=probe_generator(6)),
            ("times", "value", "std", "silent", "noise"),
        ),
    ):
        assert all(torch.equal(getattr(mine, name), getattr(other, name)) for name in columns)
    assert torch.equal(
        nz.diagnose(denoiser, x0, every=50).lipschitz.value, nz.diagnose(denoiser, x0, every=50, seed=0).lipschitz.value
    )
    assert not torch.equal(nz.diagnose(denoiser, x0, every=50).lipschitz.value, found.lipschitz.value)


def test_two_denoisers_of_one_seed_see_the_same_states():
    """Whatever a denoiser answers or shares, with one seed and the same images each x it sees is one that the other sees, alpha x0 + sigma eps of the seed."""
    x0 = images()
    plain, other, shared = ripple(), nz.Denoiser(Spy(), DDPM, nz.Velocity(), PLAIN), ripple(SHARED)
    for denoiser in (plain, other, shared):
        torch.rand(3)  # somebody else draws numbers in between
        nz.diagnose(denoiser, x0, seed=8, interval=0.1, every=100)
    seen, again = (torch.cat(d.network.seen) for d in (plain, other))
    assert torch.equal(seen, again)
    rows = {tuple(row) for row in seen.flatten(1).tolist()}
    fewer = {tuple(row) for row in torch.cat(shared.network.seen).flatten(1).tolist()}
    assert fewer < rows
    eps, moved = noise(x0, probe_generator(8), 2)
    first = [*range(200), *range(200, 999, 100)]
    levels = DDPM(torch.cat([NODES[first], nz.loss_by_noise(ripple(), x0).times])).alpha.tolist()
    expected = [alpha * x0 + math.sqrt(1 - alpha**2) * eps for alpha in levels]
    alpha, sigma = level_at(DDPM, 0.1)
    expected += [alpha * x0 + sigma * eps + s * moved for s in (0, 0.05, 0.1, 0.2, 0.3)]
    distance = torch.cdist(torch.cat(expected).flatten(1), seen.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    assert distance.min(0).values.max() < 1e-9 and distance.min(1).values.max() < 1e-9


@pytest.mark.parametrize("conditioning", [PLAIN, SHARED], ids=["Timestep", "Shared"])
def test_the_summary_is_read_off_the_measurements(conditioning):
    """Each number of the table recomputed from nz.lipschitz on every timestep, nz.perturbation and nz.loss_by_noise."""
    denoiser, x0 = ripple(conditioning), images()
    found = nz.diagnose(denoiser, x0, interval=0.1).summary()
    K = nz.lipschitz(denoiser, x0)
    value, stderr = K.value.tolist(), K.stderr.tolist()
    worst = max(range(100), key=value.__getitem__)
    moved, losses = nz.perturbation(denoiser, x0, t=0.1, scales=[0.3]), nz.loss_by_noise(denoiser, x0).value.tolist()
    expected = {
        "max": value[worst],
        "max_stderr": stderr[worst],
        "max_at_timestep": worst,
        "total_variation": sum(value[:100]),
        "max_above": max(value[k] for k in [*range(100, 200), *range(200, 991, 10)]),
        "perturbation": moved.value.item(),
        "perturbation_stderr": moved.stderr.item(),
        "perturbation_scale": 0.3,
        "loss_first": losses[0],
        "loss": sum(losses) / len(losses),
    }
    assert found == pytest.approx(expected, rel=1e-9)
    assert worst in EDGES or conditioning == PLAIN


def test_a_description_is_json():
    """describe() survives strict JSON: every column as measured, null for the error bars of one image and for sigma / alpha = inf."""
    process = nz.LinearVP(0.1, 4000.0)  # alpha = exp(-1000) = 0 at its end
    found = nz.diagnose(ripple(nz.Time(), process), images(1, 4), interval=1.0)
    text = json.loads(json.dumps(found.describe(), allow_nan=False))
    assert text["interval"] == 1.0 and text["images"] == 1 and text["unit"] == found.unit
    assert text["lipschitz"]["times"] == found.lipschitz.times.tolist()
    assert text["lipschitz"]["until"] == found.lipschitz.until.tolist()
    assert text["lipschitz"]["value"] == found.lipschitz.value.tolist()
    assert text["lipschitz"]["stderr"] == [None] * 999
    assert text["perturbation"]["scales"] == [0.05, 0.1, 0.2, 0.3]
    assert text["perturbation"]["value"] == found.perturbation.value.tolist()
    assert text["perturbation"]["stderr"] == [None] * 4
    assert text["losses"]["noise"][-1] is None and text["losses"]["noise"][0] == found.losses.noise[0].item()
    assert text["losses"]["std"] == [None] * len(found.losses.times)
    assert text["told"] == found.told.tolist()
    for column in ("times", "value", "silent"):
        assert text["losses"][column] == getattr(found.losses, column).tolist()
    unknown = {name for name, value in text["summary"].items() if value is None}
    assert unknown == {"max_stderr", "perturbation_stderr", "max_above"}
    assert {k: v for k, v in text["summary"].items() if v is not None}.items() <= found.summary().items()


def test_the_unit_is_stated():
    """A process with nodes counts in its timesteps and says nothing; LinearVP has none, and the unit says what is counted instead."""
    assert nz.diagnose(ripple(), images(), every=300).unit == ""
    unit = nz.diagnose(ripple(nz.Time(), nz.LinearVP()), images(), every=300).unit
    assert "LinearVP has no timesteps" in unit and "1/1000 of the range" in unit


# What is refused


BROKEN = nz.Denoiser(Broken(), DDPM, nz.Velocity(), PLAIN)
CALLS = {
    "lipschitz": nz.lipschitz,
    "perturbation": lambda d, x0: nz.perturbation(d, x0, t=0.1),
    "loss_by_noise": nz.loss_by_noise,
    "diagnose": nz.diagnose,
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@calls
def test_nan_weights_are_a_numerical_error(call):
    """A network with a NaN weight raises NumericalError, exit code 5, naming where: the first times that were asked."""
    network = torch.nn.Module()
    network.weight = torch.nn.Parameter(torch.tensor(math.nan, dtype=F64))
    network.forward = lambda x, c: network.weight * x
    with pytest.raises(NumericalError, match=r"not finite at t (=|from) 0\.(001|1)\b.*weights") as raised:
        call(nz.Denoiser(network, DDPM, nz.Velocity(), PLAIN), images())
    assert raised.value.exit_code == 5


def test_the_time_of_a_failure_is_named():
    """A network that fails at node 500 only: the curve names at most four neighbouring pairs around it, the others the time itself."""
    with pytest.raises(NumericalError) as raised:
        nz.lipschitz(BROKEN, images())
    low, high = map(float, re.search(r"t from ([\d.]+) to ([\d.]+)", str(raised.value)).groups())
    assert low <= 0.501 <= high and high - low < 0.0041
    with pytest.raises(NumericalError, match=r"t from 0\.501 to 0\.502"):
        nz.lipschitz(BROKEN, images(), times=torch.tensor([[0.1, 0.2], [0.501, 0.502]], dtype=F64), batch=2)
    with pytest.raises(NumericalError, match=r"t = 0\.501;"):
        nz.perturbation(BROKEN, images(), t=0.501)
    with pytest.raises(NumericalError, match=r"t = 0\.501;"):
        nz.loss_by_noise(BROKEN, images(), times=torch.tensor([0.1, 0.501, 0.9], dtype=F64))


@pytest.mark.parametrize(
    ("times", "named"),
    [
        ([0.1, 0.3, 0.2], "0.3 before 0.2"),
        ([0.1, 0.1], "0.1 before 0.1"),
        ([[0.1, 0.2], [0.9, 0.4]], "0.9 before 0.4"),
        ([0.5, 1.5], "1.5"),
        ([-0.25, 0.5], "-0.25"),
        ([0.5, math.nan], "nan"),
        ([0.5], r"\(1,\)"),
        ([], r"\(0,\)"),
        (0.5, r"\(\)"),
        ([[0.1, 0.2, 0.3]], r"\(1, 3\)"),
        ([[[0.1, 0.2]]], r"\(1, 1, 2\)"),
    ],
)
def test_bad_times_of_a_curve_are_refused(times, named):
    """Times must increase, lie in [0, end] and come as (n + 1,) or (n, 2): anything else is refused by value or shape."""
    network = Ripple()
    with pytest.raises(ArgumentError, match=named):
        nz.lipschitz(nz.Denoiser(network, DDPM, nz.Velocity(), PLAIN), images(), times=torch.tensor(times, dtype=F64))
    assert network.rows == []


@pytest.mark.parametrize(
    ("times", "named"),
    [([0.5, 1.5], "1.5"), ([math.nan], "nan"), ([[0.1], [0.2]], r"\(2, 1\)"), ([], r"\(0,\)"), (0.5, r"\(\)")],
)
def test_bad_times_of_losses_are_refused(times, named):
    """Times must lie in [0, end] and come as (n,), in any order: anything else is refused by value or shape."""
    with pytest.raises(ArgumentError, match=named):
        nz.loss_by_noise(ripple(), images(), times=torch.tensor(times, dtype=F64))


def test_integer_times_are_refused():
    """Timesteps as integers are no times: the kind is named."""
    for measure in (nz.lipschitz, nz.loss_by_noise):
        with pytest.raises(ArgumentError, match="int64"):
            measure(ripple(), images(), times=torch.arange(2))


@calls
@pytest.mark.parametrize(
    ("x0", "named"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), r"int64 \(2, 3\)"),
        (torch.zeros(2, 3, dtype=torch.uint8), r"uint8 \(2, 3\)"),
        (torch.zeros(0, 3), r"\(0, 3\)"),
        (torch.zeros(3), r"\(3,\)"),
        ([[0.5]], "list"),
    ],
    ids=["int64", "uint8", "empty", "one number an image", "list"],
)
def test_bad_images_are_refused(call, x0, named):
    """x0 is a float tensor (B, ...) of at least one image: anything else is refused by kind and shape."""
    with pytest.raises(ArgumentError, match=named):
        call(ripple(), x0)


@pytest.mark.parametrize(
    ("scales", "named"),
    [([0.1, 0.0], "0.0"), ([-0.5], "-0.5"), ([math.nan], "nan"), ([math.inf], "inf"), ([], r"\[\]")],
)
def test_bad_scales_are_refused(scales, named):
    """A perturbation has positive finite scales, at least one: anything else is refused by value."""
    with pytest.raises(ArgumentError, match=named):
        nz.perturbation(ripple(), images(), t=0.1, scales=scales)


@pytest.mark.parametrize(("t", "named"), [(1.5, "1.5"), (-0.5, "-0.5"), (math.nan, "nan")])
def test_a_perturbation_outside_the_process_is_refused(t, named):
    """The time of a perturbation lies in [0, end]; it is refused by value."""
    with pytest.raises(ArgumentError, match=named):
        nz.perturbation(ripple(), images(), t=t)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"interval": 1.5}, "1.5"),
        ({"interval": -0.25}, "-0.25"),
        ({"interval": math.nan}, "nan"),
        ({"every": 0}, "0"),
        ({"every": -3}, "-3"),
    ],
)
def test_bad_options_of_a_diagnosis_are_refused(options, named):
    """The interval ends in (0, end] and every is at least 1: refused by value before the network is asked."""
    denoiser = ripple()
    with pytest.raises(ArgumentError, match=f"got {named}"):
        nz.diagnose(denoiser, images(), **options)
    assert denoiser.network.rows == []


def test_an_interval_of_zero_is_refused():
    """(0, end] does not hold 0: an interval of 0 is refused, not replaced by the default."""
    with pytest.raises(ArgumentError, match="got 0"):
        nz.diagnose(ripple(), images(), interval=0.0)


def test_an_interval_without_a_timestep_is_refused():
    """No timestep lies in (0, 0.0005] of 1000: refused by value before anything is measured."""
    with pytest.raises(ArgumentError, match=r"0\.0005"):
        nz.diagnose(ripple(), images(), interval=0.0005, every=300)


@measures
@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_no_images_is_refused(measure, batch):
    """A batch holds at least one image: refused by value."""
    with pytest.raises(ArgumentError, match=f"{batch}"):
        measure(ripple(), images(), batch=batch)


@calls
def test_images_without_numbers_are_refused(call):
    """An image holds at least one number: refused by shape."""
    with pytest.raises(ArgumentError, match=r"\(2, 0\)"):
        call(ripple(), torch.zeros(2, 0))
