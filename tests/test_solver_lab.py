"""The solver lab: its reference against transported quantiles, orders, laws of its measures, and what it writes."""

import base64
import csv
import functools
import html
import itertools
import json
import math
import os

import pytest
import torch

import browser
import nearzero as nz
from nearzero.cli import run
from nearzero.experiments import solvers as lab
from nearzero.experiments.theory import smooth

WEIGHTS, MEANS, SPREADS = (0.2, 0.5, 0.3), (-1.2, 0.6, 1.9), (0.35, 0.45, 0.25)


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


def rms(x):
    return x.square().mean().sqrt().item()


def draws(seed=3):
    return torch.Generator().manual_seed(seed)


# ---- the reference


def transported(x, process, t, s):
    """Where the ODE on the line takes x from t to s: it keeps the distribution function, here inverted by bisection."""

    def cdf(x, level):
        mean, spread = level.alpha * f64(MEANS), torch.hypot(level.alpha * f64(SPREADS), level.sigma)
        return (f64(WEIGHTS) * torch.special.ndtr((x[:, None] - mean) / spread)).sum(1)

    p, level = cdf(x[:, 0], process(f64(t))), process(f64(s))
    low, high = torch.full_like(p, -600.0), torch.full_like(p, 600.0)
    for _ in range(80):
        middle = (low + high) / 2
        below = cdf(middle, level) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return ((low + high) / 2)[:, None]


@pytest.mark.parametrize("name", lab.PROCESSES)
def test_the_reference_is_the_ode(name):
    """On the line the reference ends, at 0 and at a node between, where the quantiles of the first noise go, to 1e-8."""
    line = nz.GaussianMixture(f64(WEIGHTS), f64(MEANS)[:, None], f64(SPREADS).square()[:, None, None])
    process = lab.PROCESSES[name]
    path, _ = lab.Lab("line", line, range(6), ()).adaptive(process, lab.TIGHT, process.end, 0.3)
    first, *_ = path.values()
    assert list(path) == [process.end, 0.3, 0.0]
    for t in (0.3, 0.0):
        torch.testing.assert_close(path[t], transported(first, process, process.end, t), rtol=0, atol=1e-8)


def test_points_end_in_points():
    """On points the reference ends in one of them, to 1e-4."""
    points = nz.PointCloud(lab.clothes(8)[::250])
    path, _ = lab.Lab("images", points, range(6), ()).adaptive(nz.KarrasVE(), 1e-8, 80.0)
    distance = torch.cdist(path[0.0].flatten(1), points.points.flatten(1))
    assert distance.min(1).values.max() < 1e-4


# ---- deterministic solvers


@pytest.fixture(scope="module")
def rows():
    """Rows of the mixture in the plane in LinearVP."""
    plane = lab.Lab("plane", smooth(), range(6), (40, 80, 160))
    return list(plane.rows(["LinearVP"], ["sqrt t", "log-SNR"]))


def series(rows, solver, grid):
    return [row for row in rows if (row["solver"], row["grid"]) == (solver, grid)]


@pytest.mark.parametrize(
    ("solver", "grid", "low", "high"),
    [
        ("Euler", "sqrt t", 0.9, 1.1),
        ("DDIM", "log-SNR", 0.85, 1.1),
        ("DPM-2", "log-SNR", 1.9, 2.2),
        ("DPM++ 2M", "log-SNR", 1.9, 2.2),
        ("Heun", "log-SNR", 1.9, 2.1),
        ("RK4", "log-SNR", 3.7, 4.2),
        ("RK4", "sqrt t", 3.5, 4.2),
    ],
)
def test_fitted_orders(rows, solver, grid, low, high):
    """Orders over 40, 80 and 160 evaluations: 1 for Euler and DDIM, 2 for DPM-Solver-2, 2M and Heun, 4 for Runge-Kutta."""
    assert low < series(rows, solver, grid)[0]["order"] < high


def test_the_order_of_dpm_solver_3(monkeypatch):
    """DPM-Solver-3 has order 3 over budgets of 3 N + 1, which leave no step of a lower order but the last."""
    monkeypatch.setattr(lab, "SOLVERS", {"DPM-3": nz.DPMSolver(3)})
    found = lab.Lab("plane", smooth(), range(12), (61, 121, 241)).rows(["LinearVP"], ["log-SNR"])
    assert 2.8 < next(found)["order"] < 3.2


def test_evaluations_are_counted(rows):
    """Euler asks once a step, Heun N steps 2 N - 1 times, RK4 four times a step, none more than it may."""
    for nfe, euler, heun, rk4 in zip(
        (40, 80, 160), *(series(rows, one, "sqrt t") for one in ("Euler", "Heun", "RK4")), strict=True
    ):
        assert (euler["evaluations"], heun["evaluations"], rk4["evaluations"]) == (nfe, nfe - 1, nfe)


def test_ddim_is_dpm_solver_1(rows):
    """DDIM and DPM-Solver-1 have equal errors, to 1e-9 of them, on every grid and budget."""
    for grid in ("sqrt t", "log-SNR"):
        for one, other in zip(series(rows, "DDIM", grid), series(rows, "DPM-1", grid), strict=True):
            assert one["error"] == pytest.approx(other["error"], rel=1e-9)


def test_rk45_obeys_its_tolerance(rows):
    """A hundredth of the tolerance costs more evaluations and leaves a smaller error; at 1e-8 it is below 1e-6."""
    adaptive = [row for row in rows if row["solver"] == "RK45"]
    for one, other in zip(adaptive, adaptive[2:], strict=False):
        assert other["evaluations"] > one["evaluations"] and other["error"] < one["error"]
    assert adaptive[-1]["error"] < 1e-6


def test_sharing_on_aligned_edges_keeps_orders(monkeypatch):
    """With 5 shared cells on [0, 0.1] and their edges on the grid DPM-2 goes to the shared ODE with order 2, and a grid too short for the edges says so."""
    shared = lab.Lab("plane", smooth(), range(6), (8, 40, 80, 160), lab.SHARED)
    monkeypatch.setattr(lab, "SOLVERS", {"DPM-2": nz.DPMSolver(2)})
    monkeypatch.setattr(lab, "TIGHT", 1e-8)
    found = list(itertools.islice(shared.rows(["LinearVP"], ["sqrt t"]), 4))
    assert 1.8 < found[0]["order"] < 2.2
    assert "edges" in found[0]["why not"] and "error" not in found[0]


def test_fitted_order_reads_a_power_law():
    """Errors c n^-p give p; points, an error of 0 and too few budgets give none."""
    made = [{"evaluations": n, "error": 5.0 * n**-2.5} for n in (9, 19, 39)]
    assert lab.fitted_order(made, "error") == pytest.approx(2.5)
    assert lab.fitted_order(made[1:], "error") is None
    assert lab.fitted_order([*made[1:], {"evaluations": 80, "error": 0.0}], "error") is None
    assert lab.fitted_order([{**one, "elsewhere": 0.5} for one in made], "error") is None


# ---- stochastic solvers


def test_errors_of_a_moved_distribution():
    """Samples moved by d have a mean error of |d|, an unchanged covariance and a sliced W2 of |d| / sqrt(2), within the floor."""
    truth, n = lab.Truth(smooth(), 4000, draws()), 4000
    x = smooth().sample(n, draws(8))
    floor, d = truth.errors(x), f64([3.0, -4.0])
    moved = truth.errors(x + d)
    assert moved["mean error"] == pytest.approx(5, abs=floor["mean error"])
    assert moved["covariance error"] == pytest.approx(floor["covariance error"], rel=1e-9)
    assert moved["sliced W2"] == pytest.approx(5 / math.sqrt(2), abs=floor["sliced W2"])


def test_moments_are_the_mixtures():
    """Mean and covariance are those of a million draws, within five standard errors."""
    truth, x = lab.Truth(smooth(), 100, draws()), smooth().sample(10**6, draws(5))
    error = x.std(0) / 1000
    assert bool(((truth.mean - x.mean(0)).abs() < 5 * error).all())
    assert (truth.covariance - x.T.cov()).abs().max() < 5 * 3 * x.var(0).max() / 1000


@pytest.mark.parametrize("churned", [0.0, 30.0])
def test_churn_keeps_what_an_exact_denoiser_knows(churned):
    """Noise added and removed at 100 steps leaves mean and covariance of 8,000 samples as 8,000 draws have them, within 4 times their error."""
    n, process, solver = 8000, nz.KarrasVE(), nz.Churn(churned)
    truth, data = lab.Truth(smooth(), n, draws()), smooth()
    noise = 80 * torch.randn(n, 2, generator=draws(4), dtype=torch.float64)
    x = lab.walk(data.denoiser(process), [solver] * 100, nz.KarrasGrid()(100, process), noise, draws(6))
    spread = [truth.errors(data.sample(n, draws(10 + i))) for i in range(8)]
    for key, value in truth.errors(x).items():
        assert value < 4 * sum(one[key] for one in spread) / 8, key


def test_repeated_churn_at_one_level_keeps_the_distribution():
    """Sixty times noise added and removed at sigma = 0.5 forgets where a sample was and keeps its law, within 4 times the error of draws."""
    n, data, process = 4000, smooth(), nz.KarrasVE()
    x = data.sample(n, draws(1)) + 0.5 * torch.randn(n, 2, generator=draws(2), dtype=torch.float64)
    y = lab.walk(
        data.denoiser(process), [nz.Churn(60.0)] * 60, torch.full((61,), 0.5, dtype=torch.float64), x, draws(3)
    )
    assert abs(torch.corrcoef(torch.stack([x[:, 0], y[:, 0]]))[0, 1]) < 0.1
    assert bool(((x.mean(0) - y.mean(0)).abs() < 4 * x.std(0) * math.sqrt(2 / n)).all())
    assert (x.T.cov() - y.T.cov()).abs().max() < 4 * 2 * x.var(0).max() / math.sqrt(n)


def test_walk_is_sample():
    """Without noise `walk` from a seed's own first noise ends where `sample` does, to the last digit."""
    denoiser, grid, seeds = smooth().denoiser(nz.KarrasVE()), nz.KarrasGrid(), range(5)
    expected = nz.sample(denoiser, (2,), solver=nz.Heun(), grid=grid, steps=9, seeds=seeds, dtype=torch.float64)
    first = [torch.randn(2, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in seeds]
    times = grid(9, nz.KarrasVE())
    found = lab.walk(denoiser, [nz.Heun()] * 9, times, times[0] * torch.stack(first), None)
    assert torch.equal(found, expected)


# ---- measures of images


def test_detail_is_the_energy_of_high_frequencies():
    """A chessboard is all detail, a step over half the image is mostly none, and grey levels have their variance and saturation."""
    i = torch.arange(8)
    board = (1 - 2 * ((i[:, None] + i) % 2)).double()[None, None]
    flat = torch.full((1, 1, 8, 8), -0.5, dtype=torch.float64)
    x = torch.cat([board, flat]).repeat(2, 1, 1, 1)
    found = {name: value for name, value, _ in lab.looks(x[[0, 2]], x)}
    assert found["detail"] == pytest.approx(1) and found["variance"] == pytest.approx(1)
    grey = {name: value for name, value, _ in lab.looks(x[[1, 3]], x)}
    assert (grey["detail"], grey["variance"], grey["saturation"], grey["brightness"]) == (0, 0, 0.5, -0.5)
    half = torch.where(i < 4, 1.0, -1.0).double().expand(2, 1, 8, 8)
    assert dict((n, v) for n, v, _ in lab.looks(half, x))["detail"] < 0.15


# ---- the experiments


def test_local_errors_have_order_three(monkeypatch):
    """Twice as many steps have half as long steps: their errors add up to a quarter, as a local order of 3 has it."""
    monkeypatch.setattr(lab, "RHOS", (7,))
    few, many = (lab.edm_steps(steps=n, draws=4, size=4).summary["plane"]["rho 7"]["sum"] for n in (32, 64))
    assert 3.3 < few / many < 4.7


@pytest.fixture(scope="module")
def tiny():
    """The three experiments, tiny."""
    churn = {"churns": (0, 10), "steps": 24, "count": 12, "samples": 400, "training": 3}
    return {
        "solvers": functools.partial(lab.solvers, starts=3, samples=400, nfe=(10,), points=20),
        "edm_steps": functools.partial(lab.edm_steps, steps=12, draws=4, size=4),
        "edm_churn": functools.partial(lab.edm_churn, **churn),
    }


@pytest.fixture(scope="module")
def found():
    """What the three experiments found, once they are made."""
    return {}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny, found):
    """Folders of the three, tiny."""
    root, patch = tmp_path_factory.mktemp("lab"), pytest.MonkeyPatch()
    patch.setattr(lab, "TIGHT", 1e-5)
    patch.setattr(lab, "TOLERANCES", (1e-4, 1e-2, 1e-1))
    for name, call in tiny.items():
        patch.setattr(lab, name, lambda name=name, call=call: found.setdefault(name, call()))
    for name in ("solvers", "edm-steps", "edm-churn"):
        assert run(["reproduce", name, "--out", str(root / name)]) == 0
    patch.undo()
    return root


def table(folder, name):
    first, *lines = (folder / f"{name}.csv").read_text().splitlines()
    assert first == f"# nearzero reproduce {name} --out {folder}"
    return list(csv.DictReader(lines))


def test_the_csv_holds_everything(made):
    """One row for each data, process, grid, solver and budget, with an error or the reason for none; RK45's tolerances; each stochastic solver, shared in LinearVP too."""
    rows = table(made / "solvers", "solvers")
    fixed = [row for row in rows if row["kind"] == "ODE" and row["nfe"]]
    keys = [tuple(row[k] for k in ("data", "process", "grid", "shared", "solver", "nfe")) for row in fixed]
    assert len(set(keys)) == len(keys) == (2 * 3 * 5 + 2) * 9
    assert all(bool(row["error"]) != bool(row["why not"]) for row in fixed)
    refused = {(row["process"], row["grid"]) for row in fixed if row["why not"] and row["shared"] == "no"}
    assert refused == {("LinearSigmaVP", "log-SNR")}
    assert all(bool(row["elsewhere"]) == (row["data"] == "images") for row in fixed if row["error"])
    assert sum(row["solver"] == "RK45" for row in rows) == 3 * (3 + 3 + 1)
    moments = [row for row in rows if row["kind"] == "SDE" and row["nfe"]]
    assert len(moments) == len(lab.STOCHASTIC) + 4 and all(float(row["sliced W2"]) > 0 for row in moments)
    assert float(json.loads((made / "solvers/solvers.json").read_text())["bias of sharing"]) > 0


def test_which_rho(made):
    """On smooth data rho = 3 balances the errors of 12 steps best; rho = 1 has the largest sum by far, on points too."""
    found = json.loads((made / "edm-steps/edm-steps.json").read_text())
    for name in ("images", "classes", "plane"):
        assert found[name]["rho 1"]["sum"] > 5 * found[name]["rho 7"]["sum"]
        assert found[name].get("least spread") == (None if name == "images" else 3)
    assert len(table(made / "edm-steps", "edm-steps")) == 3 * len(lab.RHOS) * 11


def test_an_exact_denoiser_gives_images_back(made, found):
    """However much churn, samples of the exact denoiser are images of the set, to 0.02 in each pixel; the CSV holds every measure of each denoiser."""
    for churned in (0, 10):
        samples = found["edm_churn"].tensors[f"exact {churned}"]
        nearest = torch.cdist(samples.flatten(1), lab.clothes(8).flatten(1)).min(1).values
        assert nearest.max() / 8 < 0.02
    rows = table(made / "edm-churn", "edm-churn")
    assert len(rows) == 5 + 5 * 3 + 2 * (3 + 5 + 5)
    assert [float(row["value"]) for row in rows] == [row[3] for row in found["edm_churn"].rows]


PICTURES = {
    "solvers": {
        *(f"{data}-{name}.png" for data in ("plane", "images") for name in ("linearvp", "karrasve", "linearsigmavp")),
        *("plane-linearvp-shared.png", "stochastic.png"),
    },
    "edm-steps": {"steps.png"},
    "edm-churn": {"drift.png", "plane.png", "exact.png", "trained.png"},
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_pages(name, made):
    """Each page shows its pictures byte for byte and says how it was made; no number in a table is unknown."""
    folder = made / name
    page = html.unescape((folder / "index.html").read_text())
    assert {path.name for path in folder.glob("*.png")} == PICTURES[name]
    for picture in PICTURES[name]:
        assert base64.b64encode((folder / picture).read_bytes()).decode() in page
    assert f"nearzero reproduce {name} --out {folder}" in page
    assert "unknown" not in page and "nan" not in (folder / f"{name}.csv").read_text()


@pytest.mark.parametrize("name", PICTURES)
def test_a_browser_shows_the_pages(name, made):
    """At 390 and 1280 pixels: no message, no missing picture, no sideways scrolling."""
    if browser.chromium() is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is missing; .ci/run installs it")
        pytest.skip("needs Chromium")
    for width in (390, 1280):
        seen = browser.open_page(made / name / "index.html", width)
        assert seen.messages == [] and seen.broken == 0 and seen.width == width
