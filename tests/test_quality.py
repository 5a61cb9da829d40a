"""The card of a run: the same for every batch and after every interruption, of the numbers that its images have, or refused."""

import json
import math
import re
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nearzero as nz
from conftest import pictures, write_folder
from nearzero.cards import plain, read_card
from nearzero.cli import run as command
from nearzero.errors import ArgumentError, DataError
from nearzero.files import to_bytes
from nearzero.halving import halving, rounds_for
from nearzero.metrics.bootstrap import frechet_interval
from nearzero.metrics.extractors import ModuleExtractor
from nearzero.metrics.frechet import Statistics, frechet_distance
from nearzero.metrics.influence import influence_interval
from nearzero.production import Production
from nearzero.quality import compact, measure, measured, read_samples, samples_folder
from nearzero.yardstick import Reference, features_of

N = 20


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("NEARZERO_CACHE", str(folder))
    return folder


class Few(nn.Module):
    """Pixels -> the means of the four quarters of an image, turned by a fixed matrix."""

    def __init__(self, turn=0.0):
        super().__init__()
        self.register_buffer("matrix", torch.eye(4) + turn)

    def forward(self, pixels):
        return nn.functional.adaptive_avg_pool2d(pixels.mean(1, keepdim=True), 2).flatten(1) @ self.matrix


def extractor(turn=0.0):
    return ModuleExtractor(Few(turn).eval(), name="quarters", dimension=4)


def reference(count=60, seed=1, **kind):
    return Reference.of(pictures(count, seed=seed), extractor(**kind))


@pytest.fixture
def production(trained):
    recipe = trained.recipe
    return Production(trained, solver=nz.DDIM(), grid=recipe.grid, steps=4)


def told(card):
    """A card without when and by whom."""
    return replace(card, made={})


# ---- the numbers


def test_the_numbers_are_those_of_the_images(trained, production, tmp_path):
    """Value, KID's, precision and floor as computed by hand from Run.sample and the pictures; what the card says is so."""
    real = pictures(60, seed=1)
    card = measure(production, range(N), reference(), out=tmp_path, interval=influence_interval)
    drawn = to_bytes(trained.sample(range(N), solver=nz.DDIM(), steps=4))
    features, data = (extractor().features(pixels) for pixels in (drawn, real.pixels))
    assert card.value == pytest.approx(frechet_distance(features, data), rel=1e-9)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert card.floor == pytest.approx(frechet_distance(data[order[:N]], data[order[N:]]), rel=1e-9)
    inside = torch.cdist(features, data[order[:N]])
    radii = torch.cdist(data[order[:N]], data[order[:N]]).kthvalue(4, 1).values  # the nearest is the point itself
    assert card.others["precision"]["value"] == pytest.approx((inside <= radii).any(1).double().mean().item())
    assert card.protocol["count"] == N and card.protocol["reference"]["fingerprint"] == real.fingerprint()
    assert card.protocol["extractor"]["weights"] == extractor().weights and card.title == "Frechet distance (quarters)"
    subject = card.subject
    assert (subject["step"], subject["images_seen"], subject["seeds"]) == (6, 24, "0-19")
    assert (subject["network_evaluations"], subject["solver"]) == (4.0, {"class": "DDIM", "eta": 0.0})


def test_seeds_are_what_is_measured(production, tmp_path):
    """Other seeds, another value; those of another order, the same."""
    one, other, turned = (
        measure(production, seeds, reference(), out=tmp_path, interval=influence_interval).value
        for seeds in (range(N), range(N, 2 * N), range(N)[::-1])
    )
    assert one != other and turned == pytest.approx(one, rel=1e-12)


@given(st.sets(st.integers(0, 40), min_size=1))
def test_seeds_as_text_come_back(seeds):
    """`parse_seeds` reads what `compact` writes."""
    from nearzero.cli.common import parse_seeds

    assert parse_seeds(compact(sorted(seeds))) == sorted(seeds)


def test_the_influence_is_the_jackknife():
    """The standard error is that of leaving one image out, 400 times, to 2 %; the interval is normal."""
    generator = torch.Generator().manual_seed(0)
    target = Statistics.of(torch.randn(1000, 5, generator=generator))
    x = 1.2 * torch.randn(400, 5, generator=generator).double() + 0.3
    left = torch.tensor([frechet_distance(torch.cat([x[:i], x[i + 1 :]]), target) for i in range(400)])
    jackknife = (399 / 400 * (left - left.mean()).square().sum()).sqrt().item()
    found = influence_interval(x, target)
    assert found.stderr == pytest.approx(jackknife, rel=0.02) and found.value == frechet_distance(x, target)
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.stderr, rel=1e-4)
    assert found.stderr == pytest.approx(frechet_interval(x, target, resamples=400).stderr, rel=0.12)


# ---- the same card, whatever happens


def test_the_card_is_the_same_for_every_batch(production, tmp_path):
    """Batches of 1, 3 and all: equal cards to the last bit."""
    cards = [
        told(measure(production, range(N), reference(), out=tmp_path / str(batch), batch=batch))
        for batch in (1, 3, None)
    ]
    assert cards[0] == cards[1] == cards[2]


def stop(at):
    """Progress that is interrupted at its call `at`, and a list of what it was told."""
    seen = []

    def show(stage, done, of):
        seen.append((stage, done))
        if len(seen) == at:
            raise KeyboardInterrupt

    return show, seen


def test_an_interruption_anywhere_changes_nothing(production, tmp_path):
    """Stopped at each call of progress, the second call gives the card of one that was not stopped and draws the rest."""
    show, calls = stop(0)
    whole = told(measure(production, range(N), reference(), out=tmp_path / "whole", batch=6, progress=show))
    assert [stage for stage, _ in calls] == ["sampling"] * 4 + ["features"]
    for at in (1, 3, 4, 5):
        out = tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            measure(production, range(N), reference(), out=out, batch=6, progress=stop(at)[0])
        show, again = stop(0)
        assert told(measure(production, range(N), reference(), out=out, batch=6, progress=show)) == whole
        left = N - min(6 * at, N)
        assert max((done for stage, done in again if stage == "sampling"), default=0) == left


@pytest.mark.parametrize("at", [1, 2, 9, 23, 25])
def test_a_disk_that_fails_anywhere_changes_nothing(production, tmp_path, faults, at):
    """A disk that fails at a rename of a sample, record or feature file leaves no half: the next call gives the card."""
    real = reference()
    whole = told(measure(production, range(N), real, out=tmp_path / "whole"))
    faults.arm("replace", at, OSError(28, "full"))
    with pytest.raises(OSError, match="free some space"):
        measure(production, range(N), real, out=tmp_path / "part")
    faults.disarm()
    assert told(measure(production, range(N), real, out=tmp_path / "part")) == whole


def test_a_second_call_asks_no_network(production, tmp_path, monkeypatch):
    """Neither the run's nor the extractor's, and the card is equal up to time; the reference's features are read too."""
    first = measure(production, range(N), reference(), out=tmp_path)

    def asked(*_, **__):
        raise AssertionError("a network was asked")

    monkeypatch.setattr(nz.Run, "denoiser", asked)
    monkeypatch.setattr(ModuleExtractor, "features", asked)
    again = measure(production, range(N), reference(), out=tmp_path)
    assert told(again) == told(first) and again.made.keys() == first.made.keys()


def test_an_image_that_a_hand_changed_is_drawn_again(production, tmp_path):
    """A damaged PNG does not enter the card."""
    whole = told(measure(production, range(N), reference(), out=tmp_path))
    path = samples_folder(tmp_path, production) / "000003.png"
    path.write_bytes((path.parent / "000004.png").read_bytes())
    assert told(measure(production, range(N), reference(), out=tmp_path)) == whole


def test_features_are_those_of_these_pixels_and_this_extractor(tmp_path):
    """The cache tells apart what differs in one pixel or one weight, keeps float64, and refuses damage (exit 3)."""
    pixels = pictures(12).pixels
    changed = pixels.clone()
    changed[0, 0, 0, 0] ^= 1
    for one, judge in ((pixels, extractor()), (changed, extractor()), (pixels, extractor(0.5))):
        assert torch.equal(features_of(judge, one, tmp_path), judge.features(one))
    assert len(list(tmp_path.iterdir())) == 3
    exact = ModuleExtractor(nn.Sequential(Few(), nn.Linear(4, 3)).double().eval(), name="double")
    for _ in range(2):
        assert torch.equal(features_of(exact, pixels, tmp_path), exact.features(pixels))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DataError, match="is damaged") as caught:
        features_of(extractor(), pixels, tmp_path)
    assert caught.value.exit_code == 3


# ---- what is refused


def test_a_card_that_is_kept_is_read_or_refused(production, tmp_path):
    """Read back without a draw; edited, or about another reference, extractor, solver, count: exit 3, and it stays."""
    file, how = tmp_path / "card.json", {"out": tmp_path, "interval": influence_interval}
    card = measured(file, production, range(N), reference(), **how)
    assert measured(file, production, range(N), reference(), **how) == card == read_card(file)
    before = file.read_bytes()
    for others, what in (
        ((production, range(N), reference(seed=2)), "reference"),
        ((production, range(N), reference(turn=0.5)), "extractor"),
        ((production, range(N - 1), reference()), "count"),
        ((replace(production, solver=nz.Euler()), range(N), reference()), "solver"),
    ):
        with pytest.raises(DataError, match=f"is about another {what}, .*; name another file") as caught:
            measured(file, *others, **how)
        assert caught.value.exit_code == 3 and file.read_bytes() == before
    file.write_text(file.read_text().replace(f'"value": {card.value}', f'"value": {card.value / 2}', 1))
    with pytest.raises(DataError, match="was edited") as caught:
        measured(file, production, range(N), reference(), **how)
    assert caught.value.exit_code == 3


def test_what_cannot_be_measured_is_refused(production, tmp_path):
    """Too few seeds, one twice, a reference of another size or of few images, fewer images than asked."""
    with pytest.raises(ArgumentError, match="at least 8 seeds"):
        measure(production, range(7), reference(), out=tmp_path)
    with pytest.raises(ArgumentError, match="each once"):
        measure(production, [*range(9), 0], reference(), out=tmp_path)
    with pytest.raises(DataError, match="12 x 12 pixels and 1 channels"):
        measure(production, range(N), Reference.of(pictures(60, 12), extractor()), out=tmp_path)
    with pytest.raises(DataError, match="holds 7 images"):
        Reference.of(pictures(7), extractor())
    assert not list(tmp_path.iterdir())
    measure(production, range(N), reference(), out=tmp_path)
    folder = samples_folder(tmp_path, production)
    with pytest.raises(DataError, match="holds 20 of the 23 images that were asked for: 000020.png") as caught:
        read_samples(folder, range(23))
    assert caught.value.exit_code == 3


def test_a_floor_needs_twice_as_many(production, tmp_path):
    """With 2 N real images there is a floor, with 2 N - 1 none, which is told."""
    lines = []
    for count, there in ((2 * N, True), (2 * N - 1, False)):
        card = measure(
            production, range(N), reference(count), out=tmp_path, interval=influence_interval, tell=lines.append
        )
        assert (card.floor is not None) == there == (card.others["recall"]["floor"] is not None)
    assert [line for line in lines if "left out" in line] == [
        "images holds 39 images, and the floor of 20 needs 40: it is left out"
    ]


# ---- halving


def chance(count, gap, noise):
    """The probability that halving finds the best of `count` = 2^r, others equal and `gap` worse, by quadrature.

    In a round of k the best, with score s, goes on if at most k / 2 - 1 of k - 1 others score lower.
    """
    normal, found, k, r = NormalDist(), 1.0, count, 0
    while k > 1:
        sd = noise / math.sqrt(2**r)
        grid = [sd * (i / 200 - 5) for i in range(2001)]
        total = 0.0
        for s in grid:
            lower = normal.cdf((s - gap) / sd)
            beaten = sum(math.comb(k - 1, j) * lower**j * (1 - lower) ** (k - 1 - j) for j in range(k // 2))
            total += normal.pdf(s / sd) / 200 * beaten
        found, k, r = found * total, k // 2, r + 1
    return found


@pytest.mark.parametrize(("count", "gap"), [(2, 0.7), (8, 1.0), (16, 2.0)])
def test_halving_finds_the_best_as_often_as_theory_says(count, gap):
    """A noisy objective whose error halves in variance each round: the rate of success over 2,000 trials, 3 errors wide."""
    generator, hits = torch.Generator().manual_seed(0), 0
    for _ in range(2000):
        best = int(torch.randint(count, (1,), generator=generator))

        def score(candidate, r, best=best):
            return gap * (candidate != best) + torch.randn((), generator=generator).item() / math.sqrt(2**r)

        hits += halving(range(count), score)[0] == best
    expected = chance(count, gap, 1.0)
    assert 0.2 < expected < 0.99
    assert abs(hits / 2000 - expected) < 3 * math.sqrt(expected * (1 - expected) / 2000)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40))
def test_without_noise_halving_finds_the_lowest(scores):
    """Each round has the better half, rounded up, of the one before, and the last at most two."""
    found, trace = halving(scores, lambda one, r: one)
    assert found == min(scores) and len(trace) == rounds_for(len(scores)) and len(trace[-1].places) <= 2
    for a, b in zip(trace, trace[1:], strict=False):
        assert len(b.places) == -(-len(a.places) // 2) and max(b.scores) <= sorted(a.scores)[len(b.places) - 1]


def test_halving_needs_candidates_and_numbers():
    """None, no rounds, NaN: refused."""
    for candidates, rounds in (([], None), ([1], 0)):
        with pytest.raises(ArgumentError, match="at least 1 candidate and 1 round"):
            halving(candidates, lambda one, r: one, rounds)
    with pytest.raises(ArgumentError, match="the score of candidate 1 is NaN"):
        halving([1.0, math.nan], lambda one, r: one)


# ---- the command


@pytest.fixture
def judged(monkeypatch):
    """SqueezeNet's place is taken by the tiny extractor."""
    from nearzero.metrics import squeezenet

    monkeypatch.setattr(squeezenet, "fetched", extractor)


def run_command(*arguments):
    return command(["evaluate", *map(str, arguments), "--device", "cpu"])


def test_the_command(judged, run_folder, capsys, tmp_path):
    """--fd keeps the card in the run and reads it back; another protocol takes another name; a page is written, escaped."""
    data = write_folder(tmp_path / "<b>real & more", 60)
    arguments = (run_folder, "--fd", "-n", N, "--reference", data, "--json")
    page = tmp_path / "<i>.html"
    assert run_command(*arguments, "--html", page) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["file"] == str(run_folder / "fd.json") and first["protocol"]["count"] == N
    assert read_card(run_folder / "fd.json").value == first["value"]
    html = page.read_text()
    assert "<b>real" not in html and "&lt;b&gt;real &amp; more" in html and html.count("data:image/png") == 2
    assert plain(first["floor"]) in html
    assert run_command(*arguments) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == first and "read back from" in said.err
    assert run_command(*arguments, "--solver", "ddim", "--steps", "3") == 0
    other = json.loads(capsys.readouterr().out)
    assert re.fullmatch(r"fd-[0-9a-f]{16}\.json", other["file"].rpartition("/")[2])
    assert read_card(run_folder / "fd.json").value == first["value"] != other["value"]
    assert run_command(*arguments[:-1], "--overwrite", "--out", run_folder / "fd.json") == 0
    assert plain(first["value"]) in capsys.readouterr().out


def test_an_edited_card_is_refused(judged, run_folder, capsys, tmp_path):
    """By the command: exit 3, one line, the file as it was."""
    data, file = write_folder(tmp_path / "real", 60), run_folder / "fd.json"
    assert run_command(run_folder, "--fd", "-n", N, "--data", data) == 0
    file.write_text(file.read_text().replace('"step": 6', '"step": 7'))
    before = file.read_bytes()
    capsys.readouterr()
    assert run_command(run_folder, "--fd", "-n", N, "--data", data) == 3
    assert "was edited" in capsys.readouterr().err and file.read_bytes() == before


@pytest.mark.filterwarnings("default")
def test_fewer_images_than_features_are_warned_of(judged, run_folder, capsys, tmp_path, monkeypatch):
    """Once, in a line."""
    from nearzero.metrics import squeezenet

    wide = ModuleExtractor(nn.Flatten().eval(), name="pixels")
    monkeypatch.setattr(squeezenet, "fetched", lambda: wide)
    assert run_command(run_folder, "--fd", "-n", N, "--data", write_folder(tmp_path / "real", 200)) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "rank-deficient" in line]
    assert len(lines) == 1 and "20 images for 64 features" in lines[0]


@pytest.mark.filterwarnings("default")
def test_extractors_by_name(trained, run_folder, capsys, tmp_path):
    """Weights that were not fetched: exit 3 and the command; a classifier needs labels; a file is known by its tensors."""
    from safetensors.torch import save_file

    from nearzero.metrics.squeezenet import SqueezeNet

    data = write_folder(tmp_path / "real", 60)
    arguments = (run_folder, "--fd", "-n", N, "--data", data, "--extractor")
    for name in ("squeezenet", "inception"):
        assert run_command(*arguments, name) == 3
        assert f"nearzero data fetch {name}" in capsys.readouterr().err
    assert run_command(*arguments, "classifier") == 3
    assert "no labels to train a classifier on" in capsys.readouterr().err
    assert run_command(*arguments, "sqeezenet") == 2
    assert "did you mean 'squeezenet'?" in capsys.readouterr().err
    save_file(SqueezeNet().state_dict(), tmp_path / "mine.safetensors")
    assert run_command(*arguments, tmp_path / "mine.safetensors") == 0
    assert "Frechet distance (SqueezeNet)" in capsys.readouterr().out
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert run_command(*arguments, tmp_path / "other.safetensors") == 4
    assert "neither SqueezeNet nor Inception-v3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--fd", "--nll"], "name what to measure: --nll, --fd, --pareto or --search-churn, one of them"),
        (["--fd", "--rtol", "1e-3"], "--rtol is no option of --fd; use --nll, or leave it out"),
        (["--nll", "-n", "9"], "-n is no option of --nll; use --fd or --pareto or --search-churn, or leave it out"),
        (["--fd", "--nfes", "5"], "--nfes is no option of --fd; use --pareto"),
        (["--pareto", "--steps", "5"], "--steps is no option of --pareto; use --fd or --search-churn"),
        (["--search-churn", "--solver", "ddim"], "--solver is no option of --search-churn; use --fd"),
        (["--fd", "--steps", "5", "--nfe", "5"], "exclude each other"),
        (["--fd", "-n", "9", "--seeds", "0-9"], "-n 9 and --seeds 0-9 disagree"),
        (["--pareto", "--solvers", "ddim,dimm"], "'dimm' is unknown or there twice"),
        (["--pareto", "--nfes", "5,x"], "--nfes '5,x': 'x' is no number"),
        (["--search-churn", "--churn-maxs", "50,no"], "'no' is no number"),
    ],
)
def test_bad_options(judged, trained, options, match, capsys, tmp_path):
    """Each is one clear line, exit code 2 and no file."""
    before = sorted(trained.path.rglob("*"))
    assert run_command(trained.path, *options, "--data", write_folder(tmp_path / "images")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(match, error) and sorted(trained.path.rglob("*")) == before
