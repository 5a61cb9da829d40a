"""Guidance: an affine mixture of two denoisers, exactly one of them at scales 0 and 1 and outside its interval."""

import math

import pytest
import torch

import nearzero as nz
from nearzero.errors import ArgumentError
from nearzero.guidance import Guided

DDPM = nz.DiscreteVP.linear()
SHARED = nz.Shared(nz.Timestep(1000), interval=100, cells=5)


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


def gaussian(mean, variance):
    """Normal data in the plane."""
    return nz.GaussianMixture(f64([1.0]), f64([mean]), variance * torch.eye(2, dtype=torch.float64)[None])


STRONG, WEAK = gaussian([1.0, -0.5], 0.3), gaussian([0.2, 0.1], 0.9)
X = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FORMS = [nz.Epsilon(), nz.Velocity(), nz.Denoised(), nz.Flow(), nz.Karras(0.7)]


class Asked(torch.nn.Module):
    """Answers a x + b label, in float64 or whatever comes, and remembers its batches and conditions."""

    def __init__(self, a=0.5, b=0.0):
        super().__init__()
        self.a, self.b, self.calls = a, b, []

    def forward(self, x, c, label=None):
        self.calls.append((len(x), c.tolist(), label))
        heard = 0 if label is None else self.b * label.reshape(-1, *(1,) * (x.ndim - 1)).to(x)
        return self.a * x + heard


def pair(conditioning=None, process=DDPM, a=0.5, b=0.2):
    conditioning = conditioning or nz.Timestep(1000)
    return [nz.Denoiser(Asked(one), process, nz.Epsilon(), conditioning) for one in (a, b)]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("process", [nz.LinearVP(), nz.StraightPath(), nz.KarrasVE(5.0)], ids=str)
@pytest.mark.parametrize("scale", [-0.5, 0.3, 1.0, 2.5])
def test_the_guided_score_is_the_affine_combination(form, process, scale):
    """For two normal densities score, x0 and eps are (1 - scale) weak + scale strong, by the closed form, and alpha x0 + sigma eps = x."""
    guided = Guided(*(data.denoiser(process, form) for data in (STRONG, WEAK)), scale)
    for t in (0.1 * process.end, 0.6 * process.end):
        alpha, sigma = process(f64(t))
        scores = []
        for mean, variance in (([1.0, -0.5], 0.3), ([0.2, 0.1], 0.9)):
            scores.append((alpha * f64(mean) - X) / (alpha**2 * variance + sigma**2))
        expected = (1 - scale) * scores[1] + scale * scores[0]
        x0, eps = guided(X, t)
        size = 1 + expected.abs().max()
        assert (guided.score(X, t) - expected).abs().max() < 1e-11 * size
        assert (eps + sigma * expected).abs().max() < 1e-11 * size
        assert (alpha * x0 + sigma * eps - X).abs().max() < 1e-12 * size


@pytest.mark.parametrize("seen", ["trained", "sigma"])
@pytest.mark.parametrize(("scale", "which"), [(1.0, 0), (0.0, 1)])
def test_scales_one_and_zero_are_one_denoiser(scale, which, seen):
    """Scale 1 samples the first and scale 0 the other bit by bit, through another process too, and the rest is not asked."""
    both = pair(SHARED)
    settings = {"solver": nz.Ancestral(), "seeds": [3, 1], "steps": 7}
    if seen == "trained":
        see, grid = (lambda denoiser: denoiser), nz.TimestepGrid()
    else:
        see, grid = nz.Through(nz.KarrasVE(80.0), nearest=True), nz.KarrasGrid()
    expected = nz.sample(see(both[which]), (1, 3, 3), grid=grid, **settings)
    for one in both:
        one.network.calls.clear()
    found = nz.sample(see(Guided(*both, scale)), (1, 3, 3), grid=grid, **settings)
    assert torch.equal(found, expected)
    assert [len(one.network.calls) for one in both] == ([7, 0] if which == 0 else [0, 7])


@pytest.mark.parametrize(
    ("conditioning", "process"),
    [
        (nz.Timestep(1000), DDPM),
        (SHARED, DDPM),
        (nz.Time(), nz.LinearVP()),
        (nz.LogSigma(), nz.KarrasVE(80.0)),
        (nz.LogSNR(), nz.LinearVP()),
        (nz.InverseTime(), nz.LinearVP()),
        (nz.InverseSigmoid(), nz.LinearVP()),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_interval_counts_calls(conditioning, process, dtype):
    """Of a solver's stops those with low < sigma / alpha <= high ask both networks, ends on nodes included, and the others one."""
    grid = nz.KarrasGrid(0.05, 20.0)
    levels = [math.exp(-process(t).logsnr.item() / 2) for t in grid(9, process)[:-1]]
    low, high = levels[6], levels[2]
    if conditioning == SHARED:  # a stop in a cell is told, and so counts as, the cell's first node
        low = 0.3
        edges = [0.02 * k for k in range(6)]
        told = []
        for t in grid(9, process)[:-1].tolist():
            cell = next((edge for edge, above in zip(edges, edges[1:], strict=False) if t <= above), None)
            at = f64(t if cell is None else cell + 0.001)
            told.append(math.exp(-process(at).logsnr.item() / 2))
        expected = sum(low < level <= high * 1.000001 for level in told)
    else:
        expected = 4
    both = pair(conditioning, process)
    guided = Guided(*both, 3.0, (low, high))
    how = {"solver": nz.DDIM(), "grid": grid, "steps": 9, "seeds": [0, 1], "dtype": dtype}
    x = nz.sample(guided, (2,), **how)
    assert (len(both[0].network.calls), len(both[1].network.calls)) == (9, expected) and 0 < expected < 9
    assert not torch.equal(x, nz.sample(both[0], (2,), **how))
    assert torch.equal(nz.sample(Guided(*both, 3.0, (21.0, 22.0)), (2,), **how), nz.sample(both[0], (2,), **how))


def test_an_interval_in_a_mixed_batch():
    """In a batch of several times each example is guided, or not, as it is alone, and only those that are ask the other network."""
    both = pair()
    guided = Guided(*both, 2.0, (0.3, 5.0))
    t = f64([0.05, 0.3, 0.9, 0.31, 0.2])
    together = guided.output(X, t)[0]
    assert both[1].network.calls[-1][0] == 3
    for i in range(5):
        alone = guided.output(X[i : i + 1], t[i])[0]
        assert torch.equal(alone[0], together[i])
        level = math.exp(-DDPM(t[i]).logsnr.item() / 2)
        assert torch.allclose(together[i], (0.8 if 0.3 < level <= 5 else 0.5) * X[i], rtol=1e-14)


def test_what_the_other_is_told():
    """The other network gets the same condition, or `null` for every example, or with an empty one none at all."""
    label = f64([1.0, 2.0, 3.0, 4.0, 5.0])
    network = Asked(0.5, 0.1)
    one = nz.Denoiser(network, DDPM, nz.Epsilon(), nz.Timestep(1000))
    for null, seen in ((None, label), ({"label": 7}, torch.full((5,), 7)), ({}, None)):
        network.calls.clear()
        F = Guided(one, one, 3.0, null=null).output(X, 0.5, label=label)[0]
        other = 0.5 * X + (0 if seen is None else 0.1 * seen.double()[:, None])
        assert torch.allclose(F, other + 3 * (0.5 * X + 0.1 * label[:, None] - other), rtol=1e-13)
        calls = [call[2] for call in network.calls]
        assert sorted(map(repr, calls)) == sorted(map(repr, [label, seen]))


def test_guided_networks_travel_together():
    """The parameters of both denoisers are the guided one's, and a learned variance of either is cut off."""

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(0.3))

        def forward(self, x, c):
            return torch.cat([self.w * x, x], 1)

    learned = nz.Denoiser(Twice(), DDPM, nz.Epsilon(), nz.Timestep(1000))
    plain = pair()[1]
    guided = Guided(learned, plain, 2.0)
    assert len(list(guided.parameters())) == 1
    x = torch.ones(2, 1, 2, 2)
    assert torch.allclose(guided.output(x, 0.5)[0], torch.full_like(x, 2 * 0.3 - 0.2))


def test_what_cannot_be_guided_is_refused():
    """Two processes, parameterizations or conditionings, a scale that is no number, an empty interval, or one that the told number does not show."""
    strong, weak = pair()
    others = {
        "process": nz.Denoiser(Asked(), nz.LinearVP(), nz.Epsilon(), nz.Timestep(1000)),
        "parameterization": nz.Denoiser(Asked(), DDPM, nz.Velocity(), nz.Timestep(1000)),
        "conditioning": nz.Denoiser(Asked(), DDPM, nz.Epsilon(), SHARED),
    }
    for name, other in others.items():
        with pytest.raises(ArgumentError, match=f"the {name} is .*; take two runs of one recipe"):
            Guided(strong, other, 2.0)
    for scale in (math.nan, math.inf):
        with pytest.raises(ArgumentError, match="finite scale"):
            Guided(strong, weak, scale)
    for interval in ((1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(ArgumentError, match="low < high"):
            Guided(strong, weak, 2.0, interval)
    through = nz.Through(nz.KarrasVE(80.0))
    assert torch.equal(
        Guided(through(strong), through(weak), 2.0)(X, 3.0).x0, through(Guided(strong, weak, 2.0))(X, 3.0).x0
    )
    with pytest.raises(ArgumentError, match="guide first"):
        Guided(through(strong), through(weak), 2.0, (0.3, 5.0))


def test_an_interval_without_an_upper_end_holds_pure_noise():
    """(1, inf) guides at alpha = 0 as just below it."""
    strong, weak = (data.denoiser(nz.LinearSigmaVP(), nz.W()) for data in (STRONG, WEAK))
    whole, open_ended = Guided(strong, weak, 3.0), Guided(strong, weak, 3.0, (1.0, math.inf))
    for t in (1.0, 0.99):
        assert torch.equal(open_ended(X, t).x0, whole(X, t).x0)
    assert torch.equal(open_ended(X, 0.5).x0, strong(X, 0.5).x0)
