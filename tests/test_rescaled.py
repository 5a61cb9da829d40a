"""A network seen through another process: against the exact denoisers of that process."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch

import nearzero as nz
from conftest import pictures, tiny_recipe
from nearzero.errors import ArgumentError
from nearzero.registry import decode, encode


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


def mixture():
    """Three normals in the plane, of mean (0.5, 0.44)."""
    covariances = [[[0.16, 0.05], [0.05, 0.09]], [[0.2, -0.06], [-0.06, 0.1]], [[0.08, 0.0], [0.0, 0.15]]]
    means = [[-1.0, 0.3], [0.7, -0.8], [1.2, 1.8]]
    return nz.GaussianMixture(f64([0.3, 0.4, 0.3]), f64(means), f64(covariances))


DATA = mixture()
DDPM = nz.DiscreteVP.linear()


def states(level, count=8):
    """Draws of x_t at a level."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return level.alpha * DATA.sample(count, generator) + level.sigma * noise


def close(found, expected):
    """Equal to 1e-9 of the larger of 1 and the expected length."""
    apart = (found - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1)
    assert apart.max() < 1e-9, apart.max()


PAIRS = {
    "VP to VE": (nz.LinearVP(), nz.KarrasVE(80.0)),
    "VP to VP": (nz.LinearVP(), nz.QuadraticVP()),
    "VP to sub-VP": (nz.LinearVP(), nz.SubVP()),
    "VP to itself": (nz.LinearVP(), nz.LinearVP()),
    "VE to VE": (nz.KarrasVE(80.0), nz.SongVE(6400.0)),
    "VE to VP": (nz.KarrasVE(200.0), nz.LinearVP()),
    "straight to FullDiffusion": (nz.StraightPath(), nz.LinearSigmaVP()),
    "FullDiffusion to straight": (nz.LinearSigmaVP(), nz.StraightPath()),
    "FullDiffusion to VE": (nz.LinearSigmaVP(), nz.KarrasVE(80.0)),
    "cosine to FullDiffusion": (nz.CosineVP(), nz.LinearSigmaVP()),
    "nodes to VE": (DDPM, nz.KarrasVE(80.0)),
}
FORMS = [nz.Epsilon(), nz.Velocity(), nz.Denoised(), nz.Flow(), nz.Karras(0.7), nz.Nu(), nz.W()]


def exists(form, process):
    """Whether the parameterization has an answer for the process, apart from t = 0."""
    vp = not isinstance(process, nz.KarrasVE | nz.SongVE | nz.StraightPath | nz.SubVP)
    ends = process(f64(process.end)).alpha.item() > 0
    return (vp or not isinstance(form, nz.Nu | nz.W)) and (ends or not isinstance(form, nz.Epsilon))


CASES = [(a, b, form) for a, b in PAIRS.values() for form in FORMS if exists(form, a)]
CASE_IDS = [f"{name}, {type(form).__name__}" for name, (a, _) in PAIRS.items() for form in FORMS if exists(form, a)]
cases = pytest.mark.parametrize(("old", "new", "form"), CASES, ids=CASE_IDS)


@cases
def test_a_rescaled_exact_denoiser_is_the_exact_one(old, new, form):
    """x0, eps and score of the exact denoiser under A, rescaled to B, are those of the exact denoiser under B, to 1e-9, at B's end and in between."""
    rescaled = nz.Rescaled(DATA.denoiser(old, form), new)
    for part in (1e-4, 0.01, 0.3, 0.9, 1.0)[isinstance(form, nz.Denoised) :]:  # whose score divides by sigma^2
        t = part * new.end
        level = new(f64(t))
        x = states(level)
        x0, eps = DATA.posterior(x, level)
        if level.alpha > 0 or not isinstance(form, nz.Nu):  # Nu loses x0 at alpha = 0
            close(rescaled(x, t).x0, x0)
        close(rescaled(x, t).eps, eps)
        close(rescaled.score(x, t), DATA.score(x, level))


@cases
def test_at_time_zero(old, new, form):
    """At t = 0 the estimate is that of the exact denoiser under B, x itself without noise, or refused where the form does not exist; Nu and W have the data's score there."""
    rescaled = nz.Rescaled(DATA.denoiser(old, form), new)
    x = DATA.sample(6, torch.Generator().manual_seed(1))
    if isinstance(form, nz.Denoised):
        with pytest.raises(ArgumentError, match="Denoised at sigma = 0"):
            rescaled(x, 0.0)
        return
    x0, eps = rescaled(x, 0.0)
    close(x0, x)
    close(eps, torch.zeros_like(x))
    if isinstance(form, nz.Nu | nz.W):
        close(rescaled.score(x, 0.0), DATA.score(x))


@pytest.mark.parametrize("form", [nz.Velocity(), nz.Epsilon()], ids=str)
@pytest.mark.parametrize("sigma", [1e-7, 1e-6, 3e-5, 1e-3])
def test_a_little_noise_over_a_discrete_process(form, sigma):
    """Below the first node too, where a time may lie within 1e-6 of node 0, eps and score are the exact ones and not those of t = 0."""
    rescaled, x = nz.Rescaled(DATA.denoiser(DDPM, form), nz.KarrasVE()), states(nz.Level(f64(1.0), f64(sigma)))
    found, (x0, eps) = rescaled(x, sigma), DATA.posterior(x, nz.Level(f64(1.0), f64(sigma)))
    close(found.x0, x0)
    close(found.eps, eps)
    torch.testing.assert_close(found.eps, eps, rtol=1e-6, atol=0)
    score = DATA.score(x, nz.Level(f64(1.0), f64(sigma)))
    torch.testing.assert_close(rescaled.score(x, sigma), score, rtol=1e-6, atol=0)


class Spy(torch.nn.Module):
    """A network that notes what it sees and is told."""

    def forward(self, x, c):
        self.x, self.c = x.clone(), c.clone()
        return torch.tanh(x) + torch.sin(c)[:, None]


@pytest.mark.parametrize(
    "conditioning",
    [nz.Time(), nz.LogSigma(), nz.LogSNR(), nz.Shared(nz.Time(), interval=0.1, cells=5)],
    ids=lambda one: type(one).__name__,
)
@pytest.mark.parametrize("form", [nz.Epsilon(), nz.Velocity(), nz.Karras(0.5), nz.W()], ids=str)
def test_the_network_sees_what_it_saw(conditioning, form):
    """At equal sigma / alpha the network is shown the same input and told the same number as under A, and its answer is read as the same x0 and eps."""
    old, new = nz.LinearVP(), nz.KarrasVE(100.0)
    trained = nz.Denoiser(Spy(), old, form, conditioning)
    rescaled = nz.Rescaled(trained, new)
    assert rescaled.network is trained.network
    for t in (0.003, 0.05, 0.07, 0.5, 0.9):
        alpha, sigma = old(f64(t))
        x = states(nz.Level(alpha, sigma))
        expected = trained(x, t)
        seen, told = trained.network.x, trained.network.c
        found = rescaled(x / alpha, (sigma / alpha).item())
        torch.testing.assert_close(trained.network.x, seen, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(trained.network.c, told, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.x0, expected.x0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.eps, expected.eps, rtol=1e-9, atol=1e-9)


# ---- samples

SOLVERS = pytest.mark.parametrize("solver", [nz.DDIM(), nz.Euler(), nz.Heun()], ids=str)


def drawn(denoiser, solver, grid):
    return nz.sample(denoiser, (2,), solver=solver, grid=grid, steps=12, seeds=range(5), dtype=torch.float64)


@SOLVERS
@pytest.mark.parametrize(
    ("old", "new", "grid"),
    [
        (nz.LinearVP(), nz.KarrasVE(), nz.KarrasGrid()),
        (nz.LinearSigmaVP(), nz.StraightPath(), nz.UniformGrid()),
        (nz.StraightPath(), nz.LinearSigmaVP(), nz.AngleGrid()),
    ],
    ids=["VE", "straight", "FullDiffusion"],
)
def test_samples_are_those_of_the_new_process(solver, old, new, grid):
    """Samples of the rescaled exact denoiser are those of the exact denoiser of the new process, to 1e-9."""
    found = drawn(nz.Rescaled(DATA.denoiser(old, nz.Velocity()), new), solver, grid)
    close(found, drawn(DATA.denoiser(new, nz.Velocity()), solver, grid))


@pytest.mark.parametrize(
    "conditioning", [nz.Time(), nz.Shared(nz.LogSigma(), interval=0.3, cells=3)], ids=["own", "shared"]
)
def test_ddim_does_not_know_the_process(conditioning):
    """DDIM from the same noise over the same sigma / alpha draws the same samples under A and rescaled to B, with any network."""

    class Wave(torch.nn.Module):
        def forward(self, x, c):
            return torch.sin(3 * x + c[:, None])

    trained = nz.Denoiser(Wave(), nz.LinearVP(), nz.Epsilon(), conditioning)
    own = drawn(trained, nz.DDIM(), nz.KarrasGrid())
    close(drawn(nz.Rescaled(trained, nz.KarrasVE()), nz.DDIM(), nz.KarrasGrid()), own)
    close(drawn(nz.Rescaled(trained, nz.SongVE(6400.0)), nz.DDIM(), nz.KarrasGrid()), own)


# ---- what the network is told


def told(rescaled, t):
    """What the network is told at times of the new process."""
    return rescaled.conditioning(t, rescaled.process(t))


def around(t, end):
    """The float before, each time itself and the float after, in [0, end]."""
    below, above = torch.nextafter(t, torch.zeros_like(t)), torch.nextafter(t, torch.full_like(t, math.inf))
    return below, t, above.clamp(max=end)


DISCRETE = pytest.mark.parametrize(
    "process",
    [DDPM, nz.DiscreteVP.quadratic(), nz.DiscreteVP.linear(50), nz.DiscreteVP.cosine()],
    ids=["linear", "quadratic", "50", "cosine"],
)


@DISCRETE
@pytest.mark.parametrize("nearest", [False, True])
def test_nodes_are_told_exactly(process, nearest):
    """At the sigma / alpha of node k, and a float beside it, the network is told k exactly."""
    steps = process.steps
    trained = nz.Denoiser(Spy(), process, nz.Velocity(), nz.Timestep(steps))
    k = torch.arange(steps, dtype=torch.float64)
    alpha, sigma = process((k + 1) / steps)
    new = nz.KarrasVE((sigma / alpha)[-1].item())
    rescaled = nz.Rescaled(trained, new, nearest=nearest)
    for t in around(sigma / alpha, new.end):
        assert torch.equal(told(rescaled, t), k)


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("inner", [nz.Timestep(1000), nz.Time()], ids=["Timestep", "Time"])
def test_shared_cells_keep_their_edges(nearest, inner):
    """Cells of nodes are closed on the right through any process: nodes 0..19 are told what they were, a float beside them too."""
    shared = nz.Shared(inner, interval=100 if inner == nz.Timestep(1000) else 0.1, cells=5)
    trained = nz.Denoiser(Spy(), DDPM, nz.Epsilon(), shared)
    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    alpha, sigma = DDPM(times)
    for new, t in (
        (nz.KarrasVE(157.0), sigma / alpha),
        (nz.LinearVP(), nz.LinearVP().time_of_logsnr(DDPM(times).logsnr)),
    ):
        inside = t < 0.999 * new.end
        rescaled = nz.Rescaled(trained, new, nearest=nearest)
        for one in around(t[inside], new.end):
            assert torch.equal(told(rescaled, one), shared(times, None)[inside])


@pytest.mark.parametrize(
    ("old", "new"),
    [(nz.LinearVP(), nz.LinearVP()), (nz.LinearVP(), nz.KarrasVE()), (nz.KarrasVE(), nz.SongVE(6400.0))],
    ids=["VP to itself", "VP to VE", "VE to VE"],
)
def test_shared_cells_of_a_continuous_process_keep_their_edges(old, new):
    """Each edge of a cell, as a time of the new process, still belongs to the cell below it."""
    shared = nz.Shared(nz.Time(), interval=0.1, cells=5)
    rescaled = nz.Rescaled(nz.Denoiser(Spy(), old, nz.Epsilon(), shared), new)
    edges = f64(rescaled.conditioning.edges(new))
    expected = shared(f64(shared.edges(old)), None)
    assert torch.equal(told(rescaled, edges), expected)


def test_edges_are_the_times_of_the_same_noise():
    """The jumps of what is told lie at the sigma / alpha where they lay."""
    shared = nz.Shared(nz.Time(), interval=0.1, cells=5)
    rescaled = nz.Rescaled(nz.Denoiser(Spy(), nz.LinearVP(), nz.Epsilon(), shared), nz.KarrasVE())
    edges = f64(rescaled.conditioning.edges(nz.KarrasVE()))
    alpha, sigma = nz.LinearVP()(f64([0.02, 0.04, 0.06, 0.08, 0.1]))
    torch.testing.assert_close(edges, sigma / alpha, rtol=1e-12, atol=0)
    assert (
        nz.Rescaled(nz.Denoiser(Spy(), nz.LinearVP(), nz.Epsilon(), nz.Time()), nz.KarrasVE()).conditioning.edges(
            nz.KarrasVE()
        )
        == ()
    )


def test_a_step_keeps_the_cell_that_it_leaves():
    """The row where a step arrives is told the cell of the time that it leaves, through another process as without."""
    shared = nz.Shared(nz.Timestep(1000), interval=100, cells=5)
    rescaled = nz.Rescaled(nz.Denoiser(Spy(), DDPM, nz.Epsilon(), shared), nz.KarrasVE())
    alpha, sigma = DDPM(f64([0.04, 0.02, 0.15]))
    leaving, edge, above = (sigma / alpha).tolist()
    rows = rescaled.rows(f64([leaving, edge, edge, above]), f64([leaving, leaving, edge, above]))
    assert [row.condition for row in rows] == [20.0, 20.0, 0.0, 149.0]


def test_nearest_tells_nodes_only():
    """With nearest=True every time above 0 is told the node whose time is nearest, by brute force, and never one below node 0."""
    process = nz.DiscreteVP.linear(50)
    new = nz.KarrasVE(process(f64(1.0)).logsnr.mul(-0.5).exp().item())
    trained = nz.Denoiser(Spy(), process, nz.Velocity(), nz.Timestep(50))
    sigma = torch.logspace(-7, math.log10(new.end), 300, dtype=torch.float64).clamp(max=new.end)
    found = told(nz.Rescaled(trained, new, nearest=True), sigma)
    nodes = torch.arange(1, 51, dtype=torch.float64) / 50
    expected = (process.time_of_logsnr(-2 * sigma.log())[:, None] - nodes).abs().argmin(1).double()
    assert torch.equal(found, expected)
    plain = told(nz.Rescaled(trained, new), sigma)
    assert not torch.equal(plain, plain.round()) and (plain - found).abs().max() <= 1


@pytest.mark.parametrize("form", [nz.Epsilon(), nz.Velocity(), nz.Karras(0.5)], ids=str)
@pytest.mark.parametrize("sigma", [0.0, 1e-3, 0.0123, 0.5, 7.7])
def test_rounding_the_condition_keeps_the_law_of_an_estimate(form, sigma):
    """Whatever the network is told, alpha x0 + sigma eps = x: with nearest=True the reading stays that of the true level, as in EDM."""
    trained = nz.Denoiser(Spy(), DDPM, form, nz.Timestep(1000))
    x = states(nz.Level(f64(1.0), f64(sigma)))
    x0, eps = nz.Rescaled(trained, nz.KarrasVE(), nearest=True)(x, sigma)
    torch.testing.assert_close(x0 + sigma * eps, x, rtol=0, atol=1e-12)


# ---- refusals


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (nz.KarrasVE(50.0), nz.KarrasVE(80.0), "KarrasVE ends at sigma/alpha 80, beyond the 50 "),
        (nz.LinearVP(), DDPM, "DiscreteVP ends at sigma/alpha 157.4.*, beyond the 152.1"),
        (nz.LinearVP(), nz.LinearSigmaVP(), "LinearSigmaVP ends at sigma/alpha inf, beyond the 152.1"),
        (nz.KarrasVE(80.0), nz.KarrasVE(80.0 * (1 + 1e-6)), "KarrasVE ends at sigma/alpha 80.*beyond the 80"),
    ],
)
def test_more_noise_than_the_network_has_seen_is_refused(old, new, message):
    """A process that ends noisier than the old one is refused with both values of sigma / alpha and the way out."""
    with pytest.raises(ArgumentError, match=message + ".*take a shorter process"):
        nz.Rescaled(nz.Denoiser(Spy(), old, nz.Velocity(), nz.Time()), new)


def test_the_same_noise_is_not_refused():
    """Processes that end at the same sigma / alpha, by different roundings or without signal, are all accepted, both ways."""
    ends = [nz.LinearVP(), nz.KarrasVE(nz.LinearVP()(f64(1.0)).logsnr.mul(-0.5).exp().item())]
    silent = [nz.LinearSigmaVP(), nz.StraightPath(), nz.CosineVP(), nz.ShiftedCosine()]
    for old, new in [*itertools.permutations(ends, 2), *itertools.permutations(silent, 2)]:
        assert nz.Rescaled(nz.Denoiser(Spy(), old, nz.Velocity(), nz.Time()), new).process is new


def test_nearest_without_nodes_is_refused():
    """nearest=True over a continuous process is refused by its name."""
    with pytest.raises(ArgumentError, match="nearest: LinearVP has no nodes"):
        nz.Rescaled(nz.Denoiser(Spy(), nz.LinearVP(), nz.Epsilon(), nz.Time()), nz.KarrasVE(), nearest=True)


# ---- as part of a recipe and a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run of two steps whose samples see sigma = t. Read only."""
    recipe = replace(
        tiny_recipe(steps=2), solver=nz.Heun(), grid=nz.KarrasGrid(), through=nz.Through(nz.KarrasVE(80.0))
    )
    return nz.train(recipe, pictures(), tmp_path_factory.mktemp("through") / "run")


def test_a_recipe_remembers_what_samples_see(run):
    """`through` goes through JSON and the run folder; a recipe's denoiser is as trained, what samples see is Rescaled, and without `through` the denoiser itself."""
    recipe = nz.Run.load(run.path).recipe
    assert recipe == run.recipe == decode(json.loads(json.dumps(encode(run.recipe))))
    assert recipe.through == nz.Through(nz.KarrasVE(80.0), nearest=False)
    denoiser = recipe.denoiser()
    seen = recipe.sampled(denoiser)
    assert type(denoiser) is nz.Denoiser and denoiser.process == recipe.process
    assert type(seen) is nz.Rescaled and seen.process == nz.KarrasVE(80.0) and seen.network is denoiser.network
    assert replace(recipe, through=None).sampled(denoiser) is denoiser


def drawn_images(run, denoiser, **asked):
    """Two samples of a denoiser as pixel values."""
    usual = {"solver": run.recipe.solver, "grid": run.recipe.grid, "steps": run.recipe.steps}
    x = nz.sample(denoiser, (1, 8, 8), seeds=[4, 5], dtype=torch.float32, **{**usual, **asked})
    return 127.5 * (x + 1)


def test_a_run_samples_what_its_recipe_sees(run):
    """run.sample draws through the recipe's process; through=... draws through another instead, the recipe's own process included."""
    old = run.denoiser()
    ve = nz.Rescaled(old, nz.KarrasVE(80.0))
    assert torch.equal(run.sample([4, 5]), drawn_images(run, ve))
    nearest = nz.Through(nz.KarrasVE(80.0), nearest=True)
    assert torch.equal(
        run.sample([4, 5], through=nearest), drawn_images(run, nz.Rescaled(old, nz.KarrasVE(80.0), nearest=True))
    )
    cosine = {"grid": nz.KarrasGrid(0.01, 20.0), "solver": nz.DDIM()}
    asked = run.sample([4, 5], through=nz.Through(nz.LinearVP()), **cosine)
    assert torch.equal(asked, drawn_images(run, nz.Rescaled(old, nz.LinearVP()), **cosine))
    same = {"solver": nz.DDIM(), "grid": nz.TimestepGrid(), "steps": 5}
    own = run.sample([4, 5], through=nz.Through(run.recipe.process), **same)
    torch.testing.assert_close(own, drawn_images(run, old, **same), rtol=0, atol=0.05)


@pytest.mark.parametrize(("nfe", "steps"), [(1, 1), (7, 4), (8, 4)])
def test_a_run_samples_with_a_budget(run, nfe, steps):
    """run.sample(nfe=...) takes the steps that Heun makes of nfe evaluations, N of 2 N - 1; with steps too it is refused."""
    assert torch.equal(run.sample([4, 5], nfe=nfe), run.sample([4, 5], steps=steps))
    with pytest.raises(ArgumentError, match="either steps.*or nfe"):
        run.sample([4], nfe=nfe, steps=steps)


def test_what_samples_cannot_see_is_refused_before_training(tmp_path):
    """A recipe whose samples would see more noise than its network is refused at once, and nothing is written."""
    recipe = replace(tiny_recipe(), through=nz.Through(nz.KarrasVE(1000.0)), grid=nz.KarrasGrid())
    with pytest.raises(ArgumentError, match="KarrasVE ends at sigma/alpha 1000, beyond the 157"):
        nz.train(recipe, pictures(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
