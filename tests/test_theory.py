"""The exponent of a schedule, the best shared network, Theorem 4.1 and the doctor: against quadrature, plain loops and autograd."""

import json
import math

import numpy as np
import pytest
import torch

import nearzero as nz
from conftest import tree
from nearzero.cli import run
from nearzero.diagnostics import ledger
from nearzero.diagnostics.schedule import examine
from nearzero.diagnostics.theory import target_exponent, target_rates
from nearzero.errors import ArgumentError
from nearzero.oracle.base import Exact, ExactShared
from nearzero.recipes import RECIPES, named

DDPM = nz.DiscreteVP.linear()
WEIGHTS, MEANS, SPREADS = (0.2, 0.5, 0.3), (-1.2, 0.6, 1.9), (0.35, 0.45, 0.25)
POINTS = (-1.1, 0.2, 0.3, 1.7)


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


def line():
    """Three normals on the line, of mean 0.63."""
    return nz.GaussianMixture(f64(WEIGHTS), f64(MEANS)[:, None], f64(SPREADS).square()[:, None, None])


def plane():
    """Three skewed normals in the plane with spreads of 0.25 to 0.45 along x and y, of mean (0.39, 0.43)."""
    covariances = [[[0.0625, 0.02], [0.02, 0.1225]], [[0.1225, -0.03], [-0.03, 0.2025]], [[0.2025, 0.05], [0.05, 0.09]]]
    means = [[0.2, 0.4], [1.5, -0.3], [-0.8, 1.6]]
    return nz.GaussianMixture(f64([0.5, 0.3, 0.2]), f64(means), f64(covariances))


def cloud():
    return nz.PointCloud(f64(POINTS)[:, None])


# ---- the exponent of a schedule

SINGULAR = [nz.LinearVP(), nz.QuadraticVP(), nz.CosineVP(), nz.SongVE(), DDPM, nz.DiscreteVP.cosine()]
REGULAR = [nz.LinearSigmaVP(), nz.ShiftedCosine(), nz.KarrasVE(), nz.SubVP(), nz.StraightPath()]
EXPONENTS = [
    *((process, 0.5) for process in SINGULAR),
    *((process, 1.0) for process in (*REGULAR, nz.LinearVP(0.0, 20.0), nz.CosineVP(0.0))),
    (nz.QuadraticVP(0.0, 20.0), 1.5),
    (nz.SubVP(0.0, 20.0), 2.0),
]


@pytest.mark.parametrize(("process", "exponent"), EXPONENTS, ids=str)
def test_the_exponent_of_a_schedule(process, exponent):
    """sigma / alpha ~ t^p with p = 1/2 where beta(0) > 0, 1 where sigma is linear, 3/2 and 2 where less noise is left, to 1e-3."""
    assert nz.schedule_exponent(process) == pytest.approx(exponent, abs=1e-3)


@pytest.mark.parametrize("process", [nz.LinearVP(), nz.LinearSigmaVP(), nz.QuadraticVP(0.0, 20.0)], ids=str)
def test_the_exponent_is_that_of_the_best_network(process):
    """For smooth data eps* changes like t^(p - 1): the slope of log |eps*| in log t is p."""
    denoiser, x, t = line().denoiser(process), f64([[0.3]]), (1e-6, 1e-4)
    low, high = (denoiser(x, time).eps.norm().item() for time in t)
    assert math.log(high / low) / math.log(100) == pytest.approx(nz.schedule_exponent(process), abs=0.01)


# ---- scores


@pytest.mark.parametrize("level", [None, (1.0, 0.0), (1.0, 1e-3), (0.8, 0.6), (0.0, 1.0), (1.0, 80.0)], ids=str)
def test_the_score_of_a_mixture_is_autograds(level):
    """GaussianMixture.score is the gradient of log_prob at every level, sigma = 0 and the data included, to 1e-12."""
    level = level and nz.Level(*map(f64, level))
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(plane().log_prob(x, level).sum(), x)
    torch.testing.assert_close(plane().score(x.detach(), level), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("level", [(1.0, 0.1), (0.8, 0.6), (0.0, 1.0)], ids=str)
def test_the_score_of_points_is_autograds(level):
    """PointCloud.score is the gradient of log_prob, and is refused at sigma = 0, where there is no density."""
    level = nz.Level(*map(f64, level))
    x = torch.linspace(-2, 2, 15, dtype=torch.float64)[:, None].requires_grad_()
    (expected,) = torch.autograd.grad(cloud().log_prob(x, level).sum(), x)
    torch.testing.assert_close(cloud().score(x.detach(), level), expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ArgumentError, match="no score at sigma = 0"):
        cloud().score(x.detach(), nz.Level(f64([1.0] * 15), f64([0.1] * 14 + [0.0])))


# ---- the best shared network


def brute_force(x_in, process, form, times):
    """E[F* | x_in, cell] for POINTS: a sum over every time of the cell and every point, in numpy.

    x_in = scale (alpha p + sigma e), so its density is that of a normal of mean scale alpha p and spread scale sigma,
    and F* = (B (x0 - A x) + D (eps - C x)) / (B^2 + D^2).
    """
    above = below = 0.0
    for t in times:
        level = process(f64(t))
        A, B, C, D = (value.item() for value in form.coefficients(level))
        alpha, sigma, scale = *(value.item() for value in level), form.input_scale(level).item()
        for p in POINTS:
            x = x_in / scale
            eps = (x - alpha * p) / sigma
            target = (B * (p - A * x) + D * (eps - C * x)) / (B**2 + D**2)
            weight = np.exp(-(eps**2) / 2) / (scale * sigma)
            above, below = above + weight * target, below + weight
    return above / below


CELLS = {
    "steps": (DDPM, nz.Shared(nz.Timestep(1000), interval=100, cells=5), [(k + 1) / 1000 for k in range(20, 40)], 20.0),
    "first steps": (
        DDPM,
        nz.Shared(nz.Timestep(1000), interval=100, cells=5),
        [(k + 1) / 1000 for k in range(20)],
        0.0,
    ),
    "time": (
        nz.LinearVP(),
        nz.Shared(nz.Time(), interval=0.1, cells=5),
        [0.02 + 0.02 * (i + 0.5) / 64 for i in range(64)],
        0.02,
    ),
    "noise": (
        nz.KarrasVE(),
        nz.Shared(nz.LogSigma(), interval=0.5, cells=5),
        [0.2 + 0.1 * (i + 0.5) / 64 for i in range(64)],
        math.log(0.2) / 4,
    ),
    "a narrow time": (
        nz.LinearVP(),
        nz.Shared(nz.Time(), interval=1e-6, cells=5),
        [6e-7 + 2e-7 * (i + 0.5) / 64 for i in range(64)],
        6e-7,
    ),
}
FORMS = [nz.Epsilon(), nz.Velocity(), nz.Karras(0.5)]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
@pytest.mark.parametrize("cell", CELLS)
def test_the_best_shared_network_is_bayes_rule(form, cell):
    """The network's answer is the mean of its targets over the cell's times and the data, given what it is shown and told, summed one by one."""
    process, shared, times, told = CELLS[cell]
    network = cloud().denoiser(process, form, shared).network
    level = process(f64(times[len(times) // 2]))
    x = level.alpha * f64(POINTS)[:, None] + level.sigma * torch.linspace(-3, 3, 7, dtype=torch.float64)
    x_in = (form.input_scale(level) * x).flatten().numpy()
    found = network(f64(x_in)[:, None], torch.full((28,), told, dtype=torch.float64))
    np.testing.assert_allclose(found[:, 0].numpy(), brute_force(x_in, process, form, times), rtol=1e-9, atol=1e-9)


def test_cells_that_are_told_one_number_are_one():
    """LogSigma tells the first cell, whose lower edge has no logarithm, what it tells the second: the best network takes the mean over both."""
    shared = nz.Shared(nz.LogSigma(), interval=0.5, cells=5)
    process, told = nz.KarrasVE(), math.log(0.1) / 4
    assert shared(f64([0.05, 0.15]), process(f64([0.05, 0.15]))).tolist() == [told, told]
    network = cloud().denoiser(process, nz.Epsilon(), shared).network
    x = np.linspace(-1.6, 2.0, 25)
    times = [0.1 * (i + 0.5) / 64 for i in range(128)]
    found = network(f64(x)[:, None], torch.full((25,), told, dtype=torch.float64))
    np.testing.assert_allclose(found[:, 0].numpy(), brute_force(x, process, nz.Epsilon(), times), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inside_a_cell_the_best_shared_network_cannot_change(dtype):
    """K is exactly 0 inside each cell, by nz.lipschitz and bit for bit, and is not at the edges and above, where it is the exact network's."""
    shared = nz.Shared(nz.Timestep(1000), interval=100, cells=5)
    denoiser, exact = line().denoiser(DDPM, nz.Epsilon(), shared), line().denoiser(DDPM, nz.Epsilon())
    x0 = line().sample(8, torch.Generator().manual_seed(1)).to(dtype)
    times = torch.arange(1, 121, dtype=torch.float64) / 1000
    K = nz.lipschitz(denoiser, x0, times=times)
    jumps = [i for i, value in enumerate(K.value.tolist()) if value != 0]
    assert jumps == [19, 39, 59, 79, *range(99, 119)]
    answers = [denoiser.output(x0, t)[0] for t in (0.0, 0.0005, 0.001, 0.0123, 0.02)]
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    if dtype == torch.float64:  # float32 rounds 1000 t - 1 and t differently
        assert torch.equal(K.value[100:], nz.lipschitz(exact, x0, times=times).value[100:])


@pytest.mark.parametrize("data", [line(), cloud()], ids=["mixture", "points"])
@pytest.mark.parametrize(
    ("process", "inner", "interval"),
    [
        (DDPM, nz.Timestep(1000), 100),
        (nz.LinearVP(), nz.Time(), 0.1),
        (nz.KarrasVE(), nz.LogSigma(), 0.1),
        (nz.SongVE(), nz.LogSNR(), 0.1),
    ],
    ids=["Timestep", "Time", "LogSigma", "LogSNR"],
)
def test_above_the_interval_the_best_shared_network_is_the_exact_one(data, process, inner, interval):
    """For times above the interval x0 and eps are the exact denoiser's, to 1e-9."""
    shared = nz.Shared(inner, interval=interval, cells=5)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    edge = shared.edges(process)[-1]
    for t in (edge + 1e-3, (edge + process.end) / 2, process.end):
        found, exact = data.denoiser(process, nz.Epsilon(), shared)(x, t), data.denoiser(process, nz.Epsilon())(x, t)
        torch.testing.assert_close(found.eps, exact.eps, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.x0, exact.x0, rtol=1e-9, atol=1e-9)


def test_the_best_shared_network_is_the_best():
    """Of eps* at a cell's edges and middle, A15's plain mean and itself it has the smallest mean-square error to eps* over the noisy data of the cell, by quadrature; moved a little either way it is worse."""
    data, times = line(), torch.arange(1, 21, dtype=torch.float64) / 1000
    x = torch.linspace(-5, 6, 4001, dtype=torch.float64)[:, None]
    levels = [DDPM(t) for t in times]
    exact = torch.stack([data.posterior(x, level).eps for level in levels])
    density = torch.stack([data.log_prob(x, level).exp() for level in levels])[..., None]
    shared = nz.Shared(nz.Timestep(1000), interval=20, cells=1)
    best = data.denoiser(DDPM, nz.Epsilon(), shared).network(x, torch.zeros(len(x), dtype=torch.float64))

    def excess(answer):
        return ((answer - exact).square() * density).mean(0).sum().item() * (11 / 4000)

    least = excess(best)
    others = {
        "A15": exact.mean(0),
        "first": exact[0],
        "middle": exact[9],
        "last": exact[-1],
        "edge": 0 * best,
        "more": 1.01 * best,
        "less": 0.99 * best,
        "wave": best + 0.01 * torch.sin(x),
    }
    assert 0 < least and all(least < excess(answer) for answer in others.values())
    wave = 1e-4 * torch.sin(3 * x).square().mul(density.mean(0)).sum().item() * (11 / 4000)
    assert excess(best + 0.01 * torch.sin(3 * x)) - least == pytest.approx(wave, rel=1e-9)


def test_a_cell_without_a_node_is_refused_by_its_interval():
    """Cells narrower than a timestep hold no training time: refused as a bad argument, not as an error of torch's."""
    with pytest.raises(ArgumentError):
        line().denoiser(DDPM, nz.Epsilon(), nz.Shared(nz.Time(), interval=0.1, cells=200))


# ---- Theorem 4.1


def sides(data, process, x, interval, cells, per_cell):
    """Both sides of Theorem 4.1 by loops over cells and times, with scores from autograd."""
    width = interval / cells

    def score(t):
        rows = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(data.log_prob(rows, process(f64(t))).sum(), rows)
        return gradient

    def likelihood(t):
        return data.log_prob(x, process(f64(t)))

    error = torch.zeros(len(x), dtype=torch.float64)
    times, found = [], []
    for cell in range(cells):
        middles = [(cell + (i + 0.5) / 64) * width for i in range(64)]
        share = torch.stack([likelihood(t) for t in middles]).softmax(0)
        best = sum(
            -process(f64(t)).sigma * score(t) * weight[:, None] for t, weight in zip(middles, share, strict=True)
        )
        for i in range(per_cell):
            t = min((cell + i / (per_cell - 1)) * width, interval)
            times.append(t)
            found.append(score(t))
            error = torch.maximum(error, (best + process(f64(t)).sigma * found[-1]).norm(dim=1))
    K = torch.zeros(len(x), dtype=torch.float64)
    for i, t in enumerate(times):
        for j in range(i):
            if t - times[j] > width / per_cell / 2:
                K = torch.maximum(K, (found[i] - found[j]).norm(dim=1) / (t - times[j]))
    B = torch.stack(found).norm(dim=2).amax(0)
    sigma = [
        process(f64(width * i)).sigma.item() if i < cells else process(f64(interval)).sigma.item()
        for i in range(cells + 1)
    ]
    jump = max(b - a for a, b in zip(sigma, sigma[1:], strict=False))
    return error, sigma[-1] * K * width + B * jump, jump


@pytest.mark.parametrize(
    ("process", "interval", "cells"),
    [(nz.LinearVP(), 0.1, 3), (nz.LinearSigmaVP(), 0.3, 1), (nz.LinearVP(), 1e-5, 20)],
    ids=["three cells", "one cell", "narrow cells"],
)
def test_both_sides_of_the_theorem(process, interval, cells):
    """error and bound are the theorem's two sides, written out over all pairs of times with autograd's scores, to 1e-6."""
    x = plane().sample(6, torch.Generator().manual_seed(2))
    found = nz.theorem_bound(plane(), process, x, interval=interval, cells=cells, per_cell=5)
    error, bound, jump = sides(plane(), process, x, interval, cells, 5)
    torch.testing.assert_close(found.error, error, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.bound, bound, rtol=1e-4, atol=0)  # K is a difference of nearby scores
    assert (found.width, found.sigma_step) == pytest.approx((interval / cells, jump), rel=1e-12)


@pytest.mark.parametrize("cells", [1, 5, 20])
def test_the_theorem_is_never_violated(cells):
    """At 60 points of a skewed mixture sharing [0, 0.1] costs less than Theorem 4.1 allows, and more than a tenth of it somewhere."""
    x = plane().sample(60, torch.Generator().manual_seed(0))
    found = nz.theorem_bound(plane(), nz.LinearVP(), x, interval=0.1, cells=cells, per_cell=17)
    assert found.error.shape == found.bound.shape == (60,)
    assert bool((found.error <= found.bound).all())
    assert bool((found.error > 0).all()) and (found.error / found.bound).max() > 0.1


@pytest.mark.parametrize(
    ("process", "low", "high"),
    [(nz.LinearVP(), 0.49, 0.52), (nz.LinearSigmaVP(), 0.999, 1.001)],
    ids=["DDPM's", "sigma = t"],
)
def test_the_order_of_sharing(process, low, high):
    """The error of the first cell falls like dt^(1/2) for DDPM's schedule and like dt where sigma = t."""
    x = plane().sample(20, torch.Generator().manual_seed(0))
    errors = [
        nz.theorem_bound(plane(), process, x, interval=0.1, cells=cells, first=1).error
        for cells in (400, 1600, 6400, 25600)
    ]
    for wide, narrow in zip(errors, errors[1:], strict=False):
        order = (wide / narrow).log() / math.log(4)
        assert low <= order.mean() <= high
    assert bool(((order >= low) & (order <= high)).all())


@pytest.mark.parametrize(
    "values", [{"cells": 0}, {"interval": 0.0}, {"interval": 1.1}, {"interval": math.nan}, {"per_cell": 1}]
)
def test_a_bad_interval_is_refused(values):
    """No cells, an interval outside (0, end] or a single time in a cell raise ArgumentError."""
    with pytest.raises(ArgumentError, match=r"interval in \(0, 1\], cells >= 1 and per_cell >= 2"):
        nz.theorem_bound(plane(), nz.LinearVP(), torch.zeros(1, 2), **{"interval": 0.1, "cells": 2, **values})


def test_time_is_shared_by_the_number_of_times_in_a_cell():
    """`per_cell` midpoints stand for a cell of a continuous process: 64 of them are within 1e-4 of 512."""
    exact = Exact(line(), nz.LinearVP(), nz.Epsilon())
    shared = nz.Shared(nz.Time(), interval=0.1, cells=5)
    x, told = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], torch.full((9,), 0.04, dtype=torch.float64)
    few, some, many = (ExactShared(exact, shared, per_cell=count)(x, told) for count in (4, 64, 512))
    assert 0 < (some - many).abs().max() < 1e-4 < (few - many).abs().max()


# ---- the doctor

SINGULAR_RECIPES = {
    *("ddpm", "etsdm", "ddpm_continuous", "etsdm_continuous", "ddpm_quadratic", "ddpm_cosine"),
    *("ddpm_zero_terminal_snr", "ddpm_v", "ddpm_regularized", "remap", "ddpmpp", "ddpmpp_elbo", "soft_truncation"),
    *("vp", "ve", "iddpm", "edm_a_vp", "edm_a_ve", "edm_b_vp", "edm_b_ve", "edm_c_vp", "edm_c_ve"),
    *("remap_sampling", "remap_training", "remap_both"),
    *("remap_sigmoid", "remap_sigmoid_sampling", "remap_sigmoid_training", "remap_sigmoid_both"),
}
REGULAR_RECIPES = {
    *("ddpm_cosine_shift", "modified_linear", "modified_quadratic", "modified_cosine", "full", "full_w"),
    *("edm", "edm_shared", "edm_d_vp", "edm_d_ve", "edm_e", "edm_uncertainty", "full_centred", "full_uncentred"),
    *("subvp", "straight"),
}
SILENT = {
    *("ddpm_cosine_shift", "ddpm_zero_terminal_snr", "modified_cosine"),
    *("full", "full_w", "full_centred", "full_uncentred", "straight"),
}


def doctor(capsys, *arguments):
    """Exit code, stdout and stderr of the command."""
    capsys.readouterr()
    return run(["doctor", *arguments]), *capsys.readouterr()


@pytest.mark.parametrize("name", sorted(SINGULAR_RECIPES | REGULAR_RECIPES))
def test_the_doctor_tells_singular_schedules(name, capsys):
    """DDPM's schedules are singular at t = 0, EDM's, FullDiffusion's and the modified ones are not; SNR 0 at the end is said; the text and the JSON agree."""
    code, out, err = doctor(capsys, "schedule", name, "--json")
    assert code == 0 and err == "" and out.count("\n") == 1
    found = json.loads(out, parse_constant=pytest.fail)
    assert (found["command"], found["recipe"], found["schema_version"]) == ("doctor schedule", name, 1)
    assert found["singular"] is (name in SINGULAR_RECIPES)
    assert ("singular" in found["verdict"]) is (name in SINGULAR_RECIPES)
    assert ("regular at t = 0" in found["verdict"]) is (name in REGULAR_RECIPES)
    assert (found["terminal_snr"] == 0) is (name in SILENT) is ("no signal is left" in found["verdict"])
    code, text, err = doctor(capsys, "schedule", name)
    assert code == 0 and err == "" and text.startswith(f"{name}: {found['verdict']}\n")
    assert all(line in text for line in (*found["truncations"], *found["notes"]))


def test_the_doctors_numbers():
    """For ddpm: exponent 1/2, sigma_0 = 0.01, the terminal SNR of 1000 betas, and rounding errors of float32 and bfloat16 below theirs; the naive formula loses digits."""
    recipe = named("ddpm")
    found = examine(recipe.process, recipe.times, recipe.grid, recipe.steps, recipe.conditioning)
    kept = np.prod(1 - np.linspace(1e-4, 0.02, 1000))
    assert found.exponent == pytest.approx(0.5, abs=1e-3)
    assert found.first_sigma == pytest.approx(0.01, rel=1e-12)
    assert found.terminal_snr == pytest.approx(kept / (1 - kept), rel=1e-9)
    assert 0 < found.float32_error <= 2.0**-23 and 2.0**-12 < found.bfloat16_error <= 2.0**-8
    assert found.naive_float32_error > 0.01


def test_the_doctor_knows_what_training_and_sampling_leave_out():
    """Uniform times leave nothing out, t_min and nodes do; a leading grid starts below the end, a trailing one does not; shared cells are told."""
    uniform = examine(nz.LinearVP(), nz.UniformTimes(), nz.UniformGrid(), 50)
    assert uniform.truncations == () and len(uniform.notes) == 1
    assert "t = 0.02" in uniform.notes[0] and "50 steps" in uniform.notes[0]
    cut = examine(nz.LinearVP(), nz.ImportanceTimes(t_min=1e-3), nz.UniformGrid(), 50).truncations
    assert len(cut) == 1 and "training never sees t below 0.001" in cut[0]
    leading = examine(DDPM, nz.DiscreteTimes(), nz.TimestepGrid("leading"), 50).truncations
    assert any(line.startswith("sampling starts at t = 0.981 instead of 1: costs ") for line in leading)
    trailing = examine(DDPM, nz.DiscreteTimes(), nz.TimestepGrid("trailing"), 50).truncations
    assert not any("starts" in line for line in trailing)
    shared = nz.Shared(nz.Timestep(1000), interval=100, cells=5)
    told = examine(DDPM, nz.DiscreteTimes(), nz.TimestepGrid(), 50, shared).notes
    assert "conditions are shared in 5 cells up to t = 0.1" in told


@pytest.mark.parametrize("name", ["edm", "full", "ddpm_continuous"])
def test_the_doctor_invents_no_truncation(name):
    """Log-normal and uniform times reach every time above 0, and grids start at the end: nothing is said about either."""
    recipe = named(name)
    found = examine(recipe.process, recipe.times, recipe.grid, recipe.steps, recipe.conditioning)
    assert found.truncations == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("schedule", "etsmd"), "unknown recipe 'etsmd'; did you mean 'etsdm'"),
        (("schedule",), "RECIPE"),
        (("schedule", "ddpm", "--jason"), "--jason"),
        (("nothing",), "nothing"),
    ],
)
def test_a_bad_call_of_the_doctor(capsys, arguments, message):
    """An unknown recipe, a missing one, an unknown option and an unknown examination end in 2 with one line on stderr."""
    code, out, err = doctor(capsys, *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err


def test_every_recipe_has_a_verdict():
    """The two lists of this file are all recipes there are."""
    assert SINGULAR_RECIPES | REGULAR_RECIPES == set(RECIPES)


@pytest.mark.parametrize("cells", [7, pytest.param(50, marks=pytest.mark.slow)])
def test_every_cell_has_its_own_shared_optimum(cells):
    """Told what Shared tells, as theorem_bound is, each cell has the mean over the cell, never the exact answer at its edge."""
    data = nz.GaussianMixture(
        [0.5, 0.5], f64([[0.0, 1.0], [1.0, -0.5]]), torch.stack([0.1 * torch.eye(2).double()] * 2)
    )
    shared, process = nz.Shared(nz.Time(), interval=0.1, cells=cells), nz.LinearVP()
    best, exact, x = data.denoiser(process, shared=shared), data.denoiser(process), f64([[1.0, 1.0]])
    for cell in range(cells):
        t = (cell + 0.5) * 0.1 / cells
        edge = max(cell * 0.1 / cells, 1e-9)
        assert not torch.equal(best(x, t).eps, exact(x, edge).eps)
        if cell == cells - 1:  # the mean over the cell's times, weighed by how likely each makes x, by midpoints
            times = (cell + (torch.arange(64).double() + 0.5) / 64) * 0.1 / cells
            weights = torch.stack([data.log_prob(x, process(one)) for one in times]).softmax(0)
            mean = (weights[..., None] * torch.stack([exact(x, one).eps for one in times])).sum(0)
            torch.testing.assert_close(best(x, t).eps, mean, rtol=0, atol=1e-12)
        told = best.conditioning(f64([t]), process(f64([t])))
        torch.testing.assert_close(best.network(x, told), best.network(x, told.float().double()), rtol=1e-12, atol=0)


def test_the_exact_score_of_a_mixed_batch():
    """One batch with t = 0 and other times has the score of each time alone, for Nu and W."""
    data = nz.GaussianMixture([1.0], f64([[0.3, 1.0]]), 0.2 * torch.eye(2).double()[None])
    x, t = f64([[0.1, 0.2], [0.5, -1.0], [0.0, 0.4]]), f64([0.0, 0.5, 1.0])
    for parameterization in (nz.Nu(), nz.W()):
        denoiser = data.denoiser(nz.LinearSigmaVP(), parameterization)
        alone = torch.cat([denoiser.score(x[i : i + 1], t[i]) for i in range(2)])
        torch.testing.assert_close(denoiser.score(x[:2], t[:2]), alone, rtol=1e-12, atol=0)


# ---- the exponent of the best network

HALF = {"eps": 0.5, "v": 0.5, "F": 0.5, "x0": 0, "nu": 0, "w": 0}
NONE = dict.fromkeys(HALF, 0)
NO_VP = {"eps": 0, "v": 0, "F": 0, "x0": 0}  # nu and w need a variance-preserving process
ROOT_POINTS = {"eps": 1, "v": 1, "F": 1, "x0": 0, "nu": 1.5, "w": 1.5}  # sigma ~ t^(1/2)
LINEAR_POINTS = {**ROOT_POINTS, "nu": 2, "w": 2}  # sigma ~ t
SILENT_END = {**NONE, "nu": 2}  # without signal nu would have to hold the mean of the data, divided by alpha sigma^2
TABLE = {
    "linear": (nz.LinearVP(), HALF, ROOT_POINTS, NONE),
    "quadratic": (nz.QuadraticVP(), HALF, ROOT_POINTS, NONE),
    "DDPM": (DDPM, HALF, ROOT_POINTS, NONE),
    "cosine": (nz.CosineVP(), HALF, ROOT_POINTS, SILENT_END),
    "zero-terminal-SNR": (nz.ZeroTerminalSNR(nz.LinearVP()), HALF, ROOT_POINTS, SILENT_END),
    "cosine-shift": (nz.ShiftedCosine(), NONE, LINEAR_POINTS, SILENT_END),
    "cosine, s = 0": (nz.CosineVP(0.0), NONE, LINEAR_POINTS, SILENT_END),
    "EDM": (nz.KarrasVE(), NO_VP, {name: LINEAR_POINTS[name] for name in NO_VP}, NO_VP),
    "FullDiffusion": (nz.LinearSigmaVP(), NONE, LINEAR_POINTS, {**dict.fromkeys(HALF, 0.5), "nu": 1.5}),
}
SMOOTH = ("linear", "EDM", "FullDiffusion")  # here what is bounded has a limit other than 0 at both ends
FORM = {"eps": nz.Epsilon(), "v": nz.Velocity(), "F": nz.Karras(0.5), "x0": nz.Denoised(), "nu": nz.Nu(), "w": nz.W()}


def eight():
    """Eight points in the plane."""
    return nz.PointCloud(torch.randn(8, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64))


@pytest.mark.parametrize("schedule", TABLE)
def test_the_exponents_of_the_best_network(schedule):
    """Rate ~ u^-p with p of the table to .02: 1/2 for noise-like targets of smooth data where sigma ~ t^(1/2), 1 for points everywhere; p is at most .02 where it is bounded."""
    process, *columns = TABLE[schedule]
    for (data, at_end), expected in zip(((plane(), False), (eight(), False), (plane(), True)), columns, strict=True):
        for name, p in expected.items():
            found = target_exponent(process, FORM[name], data, at_end=at_end)
            case = (type(data).__name__, at_end, name, found)
            assert found == pytest.approx(p, abs=0.02) if p else found <= 0.02, case
            if name in ("eps", "v", "F") and isinstance(data, nz.GaussianMixture) and not p and schedule in SMOOTH:
                assert abs(found) <= 0.02, case  # bounded, and not lost in rounding


def test_points_have_exponent_one_at_the_end_of_none():
    """Memorised points are as regular as smooth data where noise has drowned them: the trouble is at t = 0 alone."""
    for process in (nz.LinearVP(), nz.CosineVP(), nz.KarrasVE()):
        assert abs(target_exponent(process, nz.Velocity(), eight(), at_end=True)) <= 0.02


def test_rates_are_those_of_the_closed_form():
    """For N(0, s^2) under sigma = t the best eps is c(t) x with c = t / (s^2 + t^2): the rates are |c'(t)| rms(x_t), to the error of 20,000 draws."""
    s = 0.5
    normal = nz.GaussianMixture([1.0], f64([[0.0]]), f64([[[s**2]]]))
    rates = target_rates(nz.KarrasVE(end=1.0), nz.Epsilon(), normal, at_end=True, draws=20_000)
    t = 1 - rates.u
    expected = ((s**2 - t**2) / (s**2 + t**2) ** 2).abs() * (s**2 + t**2).sqrt()
    torch.testing.assert_close(rates.value, expected, rtol=0.02, atol=0)


def test_a_scaled_input_is_held_fixed():
    """Karras's network sees c_in x, which is held: for N(0, s^2) under sigma = t the best F is k(t) c_in x, k = t (s^2 - d^2) / (d (s^2 + t^2)), and its rate |k'| rms(c_in x)."""
    s, d = 0.8, 0.5
    normal = nz.GaussianMixture([1.0], f64([[0.0]]), f64([[[s**2]]]))
    rates = target_rates(nz.KarrasVE(end=1.0), nz.Karras(d), normal, at_end=True, draws=20_000)
    t = 1 - rates.u
    slope = (s**2 - d**2) * (s**2 - t**2) / (d * (s**2 + t**2) ** 2)
    torch.testing.assert_close(rates.value, slope.abs() * ((s**2 + t**2) / (d**2 + t**2)).sqrt(), rtol=0.02, atol=0)


def test_a_preconditioning_that_fits_leaves_nothing_to_learn():
    """For N(0, d^2) the skip connection of Karras is the best estimate: F = 0 under DDPM's schedule too, and has no rate, where v is singular."""
    normal = nz.GaussianMixture([1.0], f64([[0.0]]), f64([[[0.25]]]))
    assert bool((target_rates(nz.LinearVP(), nz.Karras(0.5), normal).value < 1e-6).all())
    assert target_exponent(nz.LinearVP(), nz.Velocity(), normal) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("form", [nz.Nu(), nz.W()], ids=str)
def test_what_does_not_exist_has_no_exponent(form):
    """nu and w need alpha^2 + sigma^2 = 1, also where sigma is still so small that alpha = 1 would pass for it."""
    with pytest.raises(ArgumentError, match="variance-preserving"):
        target_exponent(nz.KarrasVE(), form, plane())


# ---- the truncation ledger

LEVELS = [(1.0, 0.01), (1.0, 0.3), (0.8, 0.6), (0.99, 0.02), (1.0, 80.0), (0.0066, 0.99998), (1.0, 1e-3)]


def normal_divergence(m, v, n, w):
    """KL(N(m, v) || N(n, w))."""
    return 0.5 * (v / w - 1 - math.log(v / w) + (m - n) ** 2 / w)


@pytest.mark.parametrize("s", [0.35, 0.0105])
@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_the_ledger_of_a_normal(level, s):
    """For N(m, s^2) all three costs are divergences between normals, E[x0 | x_t] having mean m and variance alpha^2 s^4 / (alpha^2 s^2 + sigma^2): to 1e-8, and to 1e-9 nats."""
    alpha, sigma = level
    m = 0.3
    data = nz.GaussianMixture([1.0], f64([[m]]), f64([[[s**2]]]))
    at, v = nz.Level(f64(alpha), f64(sigma)), (alpha * s) ** 2 + sigma**2
    expected = {
        ledger.prior_mismatch: normal_divergence(alpha * m, v, 0, sigma**2),
        ledger.early_stop: normal_divergence(m, s**2, alpha * m, v),
        ledger.last_jump: normal_divergence(m, s**2, m, alpha**2 * s**4 / v),
    }
    for cost, value in expected.items():
        assert cost(data, at) == pytest.approx(value, rel=1e-8, abs=1e-9), cost.__name__


def test_tiny_costs_keep_their_digits():
    """Where a divergence is 1e-11 and less, the sum over nodes has it to 1e-4, and is no rounding error of either sign."""
    data = nz.GaussianMixture([1.0], f64([[0.3]]), f64([[[0.1]]]))
    for sigma in (1e-3, 1e-4):
        r = sigma**2 / 0.1  # KL = r^2 / 4 - r^3 / 3 + ... and r^2 / 4 - r^3 / 6
        at = nz.Level(f64(1.0), f64(sigma))
        assert ledger.early_stop(data, at) == pytest.approx(r**2 / 4, rel=1e-4)
        assert ledger.last_jump(data, at) == pytest.approx(r**2 / 4, rel=1e-4)


def noisy_mixture(x, spreads, alpha, sigma):
    """log q_t and its slope for the ledger's mixture, in numpy."""
    v = alpha**2 * np.square(spreads) + sigma**2
    away = x[:, None] - alpha * np.array([-0.9, 0.2, 1.1])
    logs = np.log([0.3, 0.45, 0.25]) - away**2 / 2 / v - np.log(2 * np.pi * v) / 2
    top = logs.max(1, keepdims=True)
    share = np.exp(logs - top)
    return top[:, 0] + np.log(share.sum(1)), -(share * away / v).sum(1) / share.sum(1)


def divergence(x, log_p, log_q):
    """The integral of p log(p / q) by the trapezoidal rule."""
    return np.trapezoid(np.exp(log_p) * (log_p - log_q), x)


@pytest.mark.parametrize("kind", ["smooth", "sharp"])
@pytest.mark.parametrize("level", [(1.0, 0.02), (0.95, 0.31), (0.9999, 0.0141)], ids=str)
def test_the_ledger_of_the_mixtures(level, kind):
    """All three costs of both mixtures by trapezoids on a million points, the law of E[x0 | x] = (x + sigma^2 score) / alpha from its own numerical slope."""
    alpha, sigma = level
    data, spreads = {"smooth": (ledger.SMOOTH, (0.3, 0.35, 0.4)), "sharp": (ledger.SHARP, (0.0105,) * 3)}[kind]
    at = nz.Level(f64(alpha), f64(sigma))
    x = np.linspace(-6, 6, 1_000_001)
    clean, noisy = noisy_mixture(x, spreads, 1, 0)[0], noisy_mixture(x, spreads, alpha, sigma)[0]
    prior = -(x**2) / 2 / sigma**2 - math.log(sigma) - math.log(2 * math.pi) / 2
    assert ledger.prior_mismatch(data, at) == pytest.approx(divergence(x, noisy, prior), rel=1e-8)
    assert ledger.early_stop(data, at) == pytest.approx(divergence(x, clean, noisy), rel=1e-8, abs=1e-12)
    reach = 1.2 + 12 * max((alpha**2 * s**2 + sigma**2) / (alpha * s) for s in spreads)
    x = np.linspace(-reach, reach, 1_000_001)
    seen, score = noisy_mixture(x, spreads, alpha, sigma)
    mean = (x + sigma**2 * score) / alpha
    law = seen - np.log(np.gradient(mean, x))
    expected = divergence(mean, noisy_mixture(mean, spreads, 1, 0)[0], law)
    assert ledger.last_jump(data, at) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_nothing_left_out_costs_exactly_nothing():
    """Without signal at the end the prior is exact, at t = 0 nothing is cut, and a jump from t = 0 changes nothing: 0.0, not rounding; a jump from an end without signal costs infinity."""
    silent, clean = nz.Level(f64(0.0), f64(1.0)), nz.Level(f64(1.0), f64(0.0))
    for data in (ledger.SMOOTH, ledger.SHARP):
        assert ledger.prior_mismatch(data, silent) == 0.0
        assert ledger.early_stop(data, clean) == 0.0 == ledger.last_jump(data, clean)
        assert ledger.last_jump(data, silent) == math.inf


def test_the_ledger_of_fulldiffusion():
    """FullDiffusion's prior mismatch is exactly 0 and its training leaves no time out; what is left is the last jump."""
    recipe = named("full")
    found = examine(recipe.process, recipe.times, recipe.grid, recipe.steps, recipe.conditioning)
    begin, last = found.ledger
    assert (begin.t, begin.nats_smooth, begin.nats_sharp) == (1.0, 0.0, 0.0) and "costs nothing" in str(begin)
    assert last.t == pytest.approx(1 / recipe.steps) and 0 < last.nats_smooth < last.nats_sharp
    assert found.truncations == () and found.notes == (str(last),)


def test_costs_grow_with_what_is_left_out():
    """early_stop and last_jump grow with t, prior_mismatch falls, each strictly and from above 0."""
    process = nz.LinearVP()
    levels = [process(t) for t in torch.logspace(-5, -1, 9, dtype=torch.float64)]
    for data in (ledger.SMOOTH, ledger.SHARP):
        for cost in (ledger.early_stop, ledger.last_jump):
            values = [cost(data, level) for level in levels]
            assert all(0 < a < b for a, b in zip(values, values[1:], strict=False)), (cost.__name__, values)
        late = [ledger.prior_mismatch(data, process(f64(t))) for t in (0.2, 0.5, 0.8, 0.9, 1.0)]
        assert all(a > b > 0 for a, b in zip(late, late[1:], strict=False))


def test_sharp_data_pay_for_a_first_timestep():
    """DDPM's first timestep has sigma = 0.01: data as sharp as that lose a tenth of a nat for each coordinate, smooth data nothing to speak of."""
    recipe = named("ddpm")
    found = examine(recipe.process, recipe.times, recipe.grid, recipe.steps, recipe.conditioning)
    begin, cut, last = found.ledger
    alpha2, sigma2, s2 = 1 - 1e-4, 1e-4, 0.0105**2
    assert cut.nats_sharp == pytest.approx(normal_divergence(0, s2, 0, alpha2 * s2 + sigma2), rel=0.01)
    assert cut.nats_smooth < 1e-6 and begin.nats_smooth == pytest.approx(begin.nats_sharp, rel=0.05)
    assert found.truncations == (str(cut),) and found.notes[0] == str(last)


def test_training_that_stops_below_the_end_is_told_its_cost():
    """Times cut above have an entry of their own, with the mismatch of the prior where they end; a late start has that of its own time."""

    class Middle:
        def __call__(self, u, process):
            return 0.1 + 0.7 * u

    found = examine(nz.LinearVP(), Middle(), nz.UniformGrid(), 10)
    low, high = found.ledger[1:3]
    assert (low.t, high.t) == pytest.approx((0.1, 0.8)) and found.truncations == (str(low), str(high))
    assert high.nats_smooth == ledger.prior_mismatch(ledger.SMOOTH, nz.LinearVP()(f64(high.t)))
    start = ledger.start(DDPM, nz.TimestepGrid("leading"), 50)
    assert start.t == pytest.approx(0.981) and start.nats_smooth == ledger.prior_mismatch(
        ledger.SMOOTH, DDPM(f64(start.t))
    )


@pytest.mark.parametrize("name", ["ddpm", "full_w", "edm", "etsdm", "ve"])
def test_each_truncation_stands_once(name, capsys):
    """The doctor's text holds each entry of the ledger, with its cost, on one line and no other; the JSON has them as objects."""
    _, out, _ = doctor(capsys, "schedule", name, "--json")
    found = json.loads(out, parse_constant=pytest.fail)
    _, text, _ = doctor(capsys, "schedule", name)
    assert 2 <= len(found["ledger"]) <= 4
    for entry in found["ledger"]:
        assert set(entry) == {"what", "t", "nats_smooth", "nats_sharp"}
        assert text.count(entry["what"]) == 1 and f"{entry['what']}: costs" in text


@pytest.fixture(scope="module")
def doctored(tmp_path_factory):
    """The folder that the doctor wrote for etsdm."""
    out = tmp_path_factory.mktemp("doctor") / "my $out"
    assert run(["doctor", "schedule", "etsdm", "--out", str(out)]) == 0
    return out


def test_the_doctor_writes_a_page(doctored, capsys):
    """--out leaves a page and its picture, which the page shows byte for byte; the page holds every entry with its costs, the verdict and the command."""
    import base64
    import html

    written = tree(doctored)
    assert set(written) == {"index.html", "schedule.png"} and written["schedule.png"].startswith(b"\x89PNG")
    page = html.unescape(written["index.html"].decode())
    assert base64.b64encode(written["schedule.png"]).decode() in page
    _, out, _ = doctor(capsys, "schedule", "etsdm", "--json")
    found = json.loads(out)
    assert found["page"] is None and found["verdict"][1:] in page
    for entry in found["ledger"]:
        assert entry["what"] in page and f"{entry['nats_sharp']:.2g}" in page
    assert "conditions are shared in 5 cells" in page and "nearzero doctor schedule etsdm --out" in page


def test_the_doctor_overwrites_its_own_page_alone(doctored, tmp_path, capsys):
    """A second time it writes into its folder, in --json too, with one document; a folder with anything else stays as it was."""
    code, out, err = doctor(capsys, "schedule", "full", "--out", str(tmp_path / "new"), "--json")
    assert code == 0 and err == "" and json.loads(out)["page"] == str(tmp_path / "new/index.html")
    before = (tmp_path / "new/schedule.png").read_bytes()
    code, out, _ = doctor(capsys, "schedule", "edm", "--out", str(tmp_path / "new"))
    assert code == 0 and f"page: {tmp_path / 'new/index.html'}" in out
    assert (tmp_path / "new/schedule.png").read_bytes() != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/index.html").write_text("mine")
    code, out, err = doctor(capsys, "schedule", "full", "--out", str(tmp_path / "mine"))
    assert code == 2 and out == "" and err.count("\n") == 1 and "no page of nearzero's" in err
    assert tree(tmp_path / "mine") == {"index.html": b"mine"}
