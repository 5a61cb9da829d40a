"""nearzero reproduce: what it writes, and that its numbers are the papers': independent formulas, laws of the ODE, the best denoiser."""

import base64
import csv
import html
import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import browser
import nearzero as nz
from conftest import tree
from nearzero.cli import reproduce, run
from nearzero.diagnostics.theory import target_exponent
from nearzero.experiments import theory

FILES = {
    "exponents": {"exponents.png"},
    "etsdm-snr": {"fig-a8.png", "fig-a9.png"},
    "edm-ode": {"vp.png", "ve.png", "edm.png"},
    "edm-denoiser": {"denoiser.png"},
}
every = pytest.mark.parametrize("name", FILES)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of what has been reproduced, each made once."""
    root, folders = tmp_path_factory.mktemp("made"), {}

    def make(name):
        if name not in folders:
            folders[name] = root / f"my ${name} <1>"
            assert run(["reproduce", name, "--out", str(folders[name])]) == 0
        return folders[name]

    return make


def table(folder, name):
    """The rows of the CSV file as dicts, and its first line."""
    first, *lines = (folder / f"{name}.csv").read_text().splitlines()
    return list(csv.DictReader(lines)), first


def called(capsys, *arguments):
    """Exit code, stdout and stderr of the command."""
    capsys.readouterr()
    return run(["reproduce", *arguments]), *capsys.readouterr()


# ---- the command


def test_without_a_name_it_lists(capsys):
    """`nearzero reproduce` prints each name with one line, and with --json one document that holds them."""
    code, out, err = called(capsys)
    assert code == 0 and err == ""
    assert [line.split("  ")[0].strip() for line in out.splitlines()] == list(reproduce.EXPERIMENTS)
    assert set(FILES) <= set(reproduce.EXPERIMENTS)
    code, out, _ = called(capsys, "--json")
    found = json.loads(out)
    assert code == 0 and found["command"] == "reproduce" and out.count("\n") == 1
    assert found["experiments"] == {name: one.line for name, one in reproduce.EXPERIMENTS.items()}


@pytest.mark.parametrize("name", reproduce.EXPERIMENTS)
def test_each_experiment_has_its_two_functions(name):
    """Every line of the table names a function in experiments/ and one in report/."""
    one = reproduce.EXPERIMENTS[name]
    assert callable(one.of("experiments")) and callable(one.of("report")) and one.line.endswith(".")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("exponent",), "unknown experiment 'exponent'; did you mean 'exponents'"),
        (("--out", "somewhere"), "name what to reproduce"),
        (("exponents", "--jason"), "--jason"),
        (("exponents", "twice"), "twice"),
    ],
)
def test_a_bad_call(capsys, arguments, message):
    """An unknown name, a folder for nothing, an unknown option and a second name end in 2 with one line on stderr."""
    code, out, err = called(capsys, *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err


def test_a_folder_of_ones_own_stays(tmp_path, capsys, monkeypatch):
    """A folder with other files, one with a page that is not nearzero's and a file are refused before anything is computed; an empty folder is not."""
    monkeypatch.setattr(theory, "etsdm_snr", lambda: pytest.fail("computed"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("<h1>mine</h1>")
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    for place, code in (("notes", 2), ("site", 2), ("file/under", 7)):
        assert called(capsys, "etsdm-snr", "--out", str(tmp_path / place))[:2] == (code, "")
    assert tree(tmp_path) == before
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    assert called(capsys, "etsdm-snr", "--out", str(tmp_path / "empty"))[0] == 0


def test_it_replaces_what_it_wrote(tmp_path, capsys, monkeypatch):
    """A second time it writes the same files, byte for byte; without --out the folder is named after the experiment; --json is one document that names the files."""
    monkeypatch.chdir(tmp_path)
    code, out, err = called(capsys, "etsdm-snr", "--json")
    found = json.loads(out, parse_constant=pytest.fail)
    assert code == 0 and err == "" and out.count("\n") == 1
    written = tree(tmp_path / "nearzero-etsdm-snr")
    assert set(found["files"]) == set(written) and found["page"] == "nearzero-etsdm-snr/index.html"
    assert found["summary"]["linear"] == json.loads(written["etsdm-snr.json"])["linear"]
    assert called(capsys, "etsdm-snr")[0] == 0
    assert tree(tmp_path / "nearzero-etsdm-snr") == written


@every
def test_it_writes_what_it_says(name, made):
    """A page, its pictures, the rows and the summary; the page shows each picture byte for byte, and all but the pictures hold the command."""
    folder = made(name)
    written = tree(folder)
    assert set(written) == {"index.html", f"{name}.csv", f"{name}.json", *FILES[name]}
    page = html.unescape(written["index.html"].decode())
    for picture in FILES[name]:
        assert written[picture].startswith(b"\x89PNG") and base64.b64encode(written[picture]).decode() in page
    command = f"nearzero reproduce {name} --out '{folder}'"
    rows, first = table(folder, name)
    document = json.loads(written[f"{name}.json"], parse_constant=pytest.fail)
    assert command in page and first == f"# {command}" and document["command"] == command
    assert len(rows) > 20 and "nan" not in str(rows)


@pytest.fixture(scope="module")
def program():
    """The browser. Under CI there is one; elsewhere the tests that need it are skipped without."""
    if browser.chromium() is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is missing; .ci/run installs it")
        pytest.skip("needs Chromium")


@pytest.mark.parametrize("name", [*FILES, "doctor"])
def test_a_browser_shows_the_pages(name, made, program, tmp_path):
    """On a phone of 390 pixels: no message, no request but the file itself, no missing picture, no sideways scrolling."""
    if name == "doctor":
        assert run(["doctor", "schedule", "ddpm_cosine", "--out", str(tmp_path)]) == 0
    page = (tmp_path if name == "doctor" else made(name)) / "index.html"
    seen = browser.open_page(page, 390)
    assert [url for url in seen.requests if not url.startswith("data:")] == [page.absolute().as_uri()]
    assert seen.messages == [] and seen.broken == 0 and seen.width == 390 and len(seen.png) > 20_000


# ---- exponents


def test_the_table_is_what_target_exponent_says(made):
    """Each row of exponents.csv is target_exponent of its schedule, target and data; EDM has no nu and no w."""
    rows, _ = table(made("exponents"), "exponents")
    assert len(rows) == len(theory.SCHEDULES) * len(theory.TARGETS) * len(theory.CASES)
    data = {"smooth": theory.smooth(), "points": theory.eight()}
    for row in rows[::7]:
        if row["exponent"]:
            kind, at_end = theory.CASES[row["case"]]
            process, target = theory.SCHEDULES[row["schedule"]], theory.TARGETS[row["target"]]
            expected = target_exponent(process, target, data[kind], at_end=at_end)
            assert float(row["exponent"]) == pytest.approx(expected, abs=1e-6)
    said = {tuple(row[name] for name in ("schedule", "target", "case")): row["exponent"] for row in rows}
    smooth, points = list(theory.CASES)[:2]
    for key, p in {
        ("linear", "eps", smooth): 0.5,
        ("cosine, s = 0", "nu", points): 2.0,
        ("EDM", "eps", points): 1.0,
    }.items():
        assert float(said[key]) == pytest.approx(p, abs=0.02)
    missing = {(row["schedule"], row["target"]) for row in rows if not row["exponent"]}
    assert missing == {("EDM", "nu"), ("EDM", "w")}


def test_the_page_of_exponents_tells_them_apart(made):
    """In the page's tables a bounded target is 0 with its rate in brackets, a singular one its exponent, a missing one a dash."""
    text = (made("exponents") / "index.html").read_text()
    linear = text[text.index('<th scope="row">linear</th>') :]
    cells = linear[: linear.index("</tr>")].split("<td>")[1:]
    assert [cell.startswith("0.50<") for cell in cells] == [True] * 3 + [False] * 3
    assert all(cell.startswith("0 (") for cell in cells[3:]) and "<td>-</td>" in text


# ---- E-TSDM, Fig. A8 and A9


def closed_form(name, modified, t):
    """alpha^2 of the three schedules, by the papers' formulas."""
    if name == "linear":
        low, high = (0.0, 20.0) if modified else (0.1, 20.0)
        return np.exp(-(low * t + (high - low) * t**2 / 2))
    if name == "quadratic":
        a = 0.0 if modified else math.sqrt(0.1)
        d = math.sqrt(20.1 + math.sqrt(2)) if modified else math.sqrt(20.0) - a
        return np.exp(-((a + d * t) ** 3 - a**3) / (3 * d))
    s = 0.0 if modified else 0.008
    return (np.cos((t + s) / (1 + s) * math.pi / 2) / math.cos(s / (1 + s) * math.pi / 2)) ** 2


@pytest.mark.parametrize("name", theory.MODIFIED)
def test_fig_a8(name, made):
    """SNR and ratio are those of the papers' formulas; Modified-NS raises the SNR most at t = 0, tenfold and more, and less and less from there."""
    rows = [row for row in table(made("etsdm-snr"), "etsdm-snr")[0] if (row["figure"], row["name"]) == ("A8", name)]
    t, before, after, ratio = (np.array([float(row[c]) for row in rows]) for c in list(rows[0])[2:])
    for found, modified in ((before, False), (after, True)):
        alpha2 = closed_form(name, modified, t)
        np.testing.assert_allclose(found, alpha2 / (1 - alpha2), rtol=1e-7)
    np.testing.assert_allclose(ratio, after / before, rtol=1e-12)
    assert len(t) == 999 and ratio[0] == ratio.max() > 10 and bool((np.diff(ratio[:300]) < 0).all())
    assert ratio[-1] == pytest.approx(1, abs=0.06) and ratio.min() > 1


def test_only_the_quadratic_schedule_changes_everywhere(made):
    """At t = 0.1 the quadratic one has four times the SNR, the others less than 1.2 times; at the end all have what they had (D.3.2)."""
    found = json.loads((made("etsdm-snr") / "etsdm-snr.json").read_text())
    assert found["quadratic"]["at 0.1"] > 4 and found["linear"]["at 0.1"] < 1.2 > found["cosine"]["at 0.1"]
    assert all(found[name]["at 0.999"] < 1.06 for name in theory.MODIFIED)


def test_fig_a9(made):
    """Times uniform in 1/t have a higher SNR than times uniform in t at every share, from DDPM's first timestep on; 19 of 20 lie above SNR 100."""
    rows = table(made("etsdm-snr"), "etsdm-snr")[0]
    snr = {
        name: np.array([float(row["snr"]) for row in rows if row["name"] == f"uniform in {name}"])
        for name in ("t", "1/t", "log(t / (1 - t))")
    }
    assert bool((snr["1/t"] > snr["t"]).all())
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert snr["1/t"][0] == pytest.approx(kept[0] / (1 - kept[0]), rel=2e-3)
    assert (snr["1/t"] > 100).mean() > 0.95 and (snr["t"] > 100).mean() < 0.03
    middle = 1 / (1 + math.exp(math.log(999) / 999))  # the logit's two middle times are 1/2 within a step
    expected = nz.DiscreteVP.linear()(torch.tensor(middle, dtype=torch.float64)).logsnr.exp().item()
    assert snr["log(t / (1 - t))"][499] == pytest.approx(expected, rel=0.02)
    assert all(bool((np.diff(one) < 0).all()) for one in snr.values())


# ---- EDM, Fig. 3


@pytest.fixture(scope="module")
def paths(made):
    """The paths: for each process sigma / alpha and t (n,) and x (n, N)."""
    rows, _ = table(made("edm-ode"), "edm-ode")
    found = {}
    for name in theory.PATHS:
        mine = [row for row in rows if row["process"] == name]
        count = len({row["seed"] for row in mine})
        column = lambda key, mine=mine, count=count: np.array([float(row[key]) for row in mine]).reshape(count, -1).T  # noqa: E731
        found[name] = SimpleNamespace(t=column("t")[:, 0], ratio=column("sigma / alpha")[:, 0], x=column("x"))
    return found


def test_the_ode_keeps_quantiles(paths):
    """On the line the probability-flow ODE moves no mass past a path: P(x_t < path) is what it was at the start, to 2e-4."""
    for name, one in paths.items():
        level = theory.PATHS[name](torch.tensor(one.t[:-1]))
        alpha, sigma = level.alpha.numpy()[:, None], level.sigma.numpy()[:, None]
        z = [torch.tensor((one.x[:-1] - alpha * point) / sigma) for point in (-1, 1)]
        below = sum(torch.special.ndtr(value) for value in z) / 2
        assert (below - below[0]).abs().max() < 2e-4, name


def test_the_three_processes_have_the_same_paths(paths):
    """x / alpha over sigma / alpha is one curve in VP, VE and EDM, which differ in time and scale alone: to 1e-3."""
    reference = paths["EDM"]
    for name, one in paths.items():
        alpha = theory.PATHS[name](torch.tensor(one.t)).alpha.numpy()[:, None]
        np.testing.assert_allclose(one.ratio, reference.ratio, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(one.x / alpha, reference.x, rtol=1e-3, atol=1e-3)


def test_paths_end_at_the_points(paths, made):
    """Paths that start above 0 end at 1 and the others at -1, six of twelve each, within the last sigma."""
    for name, one in paths.items():
        assert np.abs(one.x[-1] - np.sign(one.x[0])).max() < 0.002
        assert (one.x[0] > 0).sum() == 6
        found = json.loads((made("edm-ode") / "edm-ode.json").read_text())[name]
        assert found["paths to 1"] == 6


def test_edms_time_makes_straight_paths(made):
    """Below sigma = 0.2 a path is straight in EDM's time to 1e-9, and in VE's bends as sqrt(t) does, by a quarter of its rise; VP's bends too."""
    found = json.loads((made("edm-ode") / "edm-ode.json").read_text())
    assert found["EDM"]["bend"] < 1e-9
    assert found["VE"]["bend"] == pytest.approx(0.25, abs=1e-3)
    assert found["VP"]["bend"] > 0.2


def test_seeds_are_spread_by_their_first_draw():
    """Twelve different seeds whose first normal draws stand at the middles of twelve equally likely parts, to 0.01 of probability."""
    seeds = theory.spread_seeds(12)
    draws = [torch.randn(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    shares = torch.special.ndtr(torch.cat(draws))
    assert len(set(seeds)) == 12
    torch.testing.assert_close(shares, (torch.arange(12, dtype=torch.float64) + 0.5) / 12, rtol=0, atol=0.01)


# ---- EDM, Fig. 1b


def test_the_best_denoiser_is_bayes_rule():
    """At every level the answer is the images' mean weighed by the likelihood of the noisy image, summed in numpy, to 1e-8."""
    found = theory.edm_denoiser(size=8)
    x = nz.Pixels().encode(nz.embedded(8).pixels).double().numpy().reshape(2000, -1)
    for sigma, noisy, best in zip(
        theory.LEVELS[1:], found.tensors["noisy"][1:], found.tensors["best"][1:], strict=True
    ):
        for one, answer in zip(noisy.numpy().reshape(3, -1), best.numpy().reshape(3, -1), strict=True):
            log = -((one - x) ** 2).sum(1) / 2 / sigma**2
            share = np.exp(log - log.max())
            np.testing.assert_allclose(answer, share @ x / share.sum(), rtol=0, atol=1e-8)


def test_it_memorises_and_then_forgets(made):
    """Up to sigma = 0.5 the answer is the clean image itself, to 1e-9; at 50 it is six times nearer to the mean of the set than to the image."""
    rows, _ = table(made("edm-denoiser"), "edm-denoiser")
    assert {float(row["sigma"]) for row in rows} == set(theory.LEVELS)
    for row in rows:
        sigma, clean, mean, nearest = (float(row[key]) for key in list(row)[1:])
        assert nearest <= clean
        if sigma <= 0.5:
            assert clean < 1e-9 and mean > 0.3
        if sigma == 50:
            assert 6 * mean < clean
