"""The pair of ddpm and etsdm as an experiment: paths from anywhere, paired errors, stages, and what the page says."""

import contextlib
import math
import shutil
from dataclasses import replace

import pytest
import torch

import nearzero as nz
from conftest import pictures
from nearzero.errors import ArgumentError
from nearzero.experiments import paired, sharing
from nearzero.experiments.setting import Setting
from nearzero.experiments.tail import Pair, down, ends, evaluations, losses, perturbations, swap, tail, walk
from nearzero.metrics.energy import energy_distance
from nearzero.metrics.extractors import ModuleExtractor
from nearzero.metrics.frechet import frechet_distance
from nearzero.metrics.spectrum import radial_power, spectrum_distance
from nearzero.recipes import ddpm, etsdm, small
from nearzero.report import sharing as page
from nearzero.run import Run, load_tensors
from nearzero.yardstick import Reference

TINY = sharing.Budget(8, 8, (1, 2), 4, 8, (2, 5), 8, 10, 4, (1, 200), 3, 4, (2, 3), extractor=False)
DDIM = nz.DDIM()


@contextlib.contextmanager
def quiet(label, unit):
    yield lambda done, of: None


def setting(out, seed=0):
    images = nz.embedded(8)
    return Setting(TINY, nz.Images(images.pixels[:1000]), nz.Images(images.pixels[1000:]), out, quiet, seed)


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return setting(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def found(where):
    return sharing.sharing_pair(where)


@pytest.fixture(scope="module")
def pair():
    """Two networks with random weights in every layer, one of which shares."""
    denoisers = {}
    for i, recipe in enumerate((ddpm(), etsdm())):
        torch.manual_seed(i)
        recipe = small(recipe, 8, 1)
        network = replace(recipe.network, base=8, head_channels=8).build()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        denoisers[recipe.name] = recipe.denoiser(network).eval()
    return Pair(denoisers, recipe.codec, 0.1)


class Zero(torch.nn.Module):
    def forward(self, x, c):
        return torch.zeros_like(x)


def yard(count=40):
    return paired.Yard(nz.embedded(8).pixels[:count])


# ---- paths


def test_a_path_is_samples_own(pair):
    """From the noise of the seeds `walk` gives the bits of `sample`, in one piece and in two that meet at the edge."""
    grid, seeds = nz.TimestepGrid("trailing"), range(3)
    times = grid(20, pair.process)
    cut = times.tolist().index(pair.edge)
    for one in pair.denoisers.values():
        expected = nz.sample(one, (1, 8, 8), solver=DDIM, grid=grid, steps=20, seeds=seeds)
        start = pair.noise(seeds, (1, 8, 8))
        assert torch.equal(walk(one, start, times), expected)
        assert torch.equal(walk(one, walk(one, start, times[: cut + 1]), times[cut:]), expected)


def test_swapped_networks_take_turns_at_the_edge(pair):
    """Each combination is DDIM written out, whose network is the upper one above the edge and the lower one from it down."""
    samples = swap(pair, range(4), 20, yard()).samples
    times = nz.TimestepGrid("trailing")(20, pair.process)
    level = pair.process(times)
    for above, below in (("ddpm", "etsdm"), ("etsdm", "ddpm"), ("etsdm", "etsdm")):
        x = torch.stack([torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)])
        x = x * level.sigma[0].item()
        with torch.no_grad():
            for i, t in enumerate(times[:-1].tolist()):
                x0, eps = pair.denoisers[above if t > 0.1 else below](x, t)
                x = level.alpha[i + 1].item() * x0 + level.sigma[i + 1].item() * eps
        name = below if above == below else f"{above} then {below}"
        torch.testing.assert_close(samples[name], pair.codec.decode(x), rtol=1e-3, atol=1e-2)
    assert not torch.allclose(samples["ddpm"], samples["ddpm then etsdm"])


def test_the_ends_of_a_path(pair):
    """1/n and node 1 are `sample` on trailing and on linspace timesteps; the noise left is what the last step takes off; once more is x0 at node 1."""
    one, seeds, n = pair.denoisers["etsdm"], range(2), 20
    found = ends(pair, one, pair.noise(seeds, (1, 8, 8)), n)
    for name, spacing in (("1/n", "trailing"), ("node 1", "linspace")):
        made = nz.sample(one, (1, 8, 8), solver=DDIM, grid=nz.TimestepGrid(spacing), nfe=n, seeds=seeds)
        assert torch.equal(found[name], pair.codec.decode(made))
    left, done = (pair.codec.encode(found[name]) for name in ("noise left", "node 1"))
    with torch.no_grad():
        for x, name in ((left, "node 1"), (done, "once more")):
            torch.testing.assert_close(found[name], pair.codec.decode(one(x, 0.001).x0), rtol=1e-4, atol=1e-2)


def test_the_way_down():
    """So many steps from timestep 100 to 0 on whole timesteps: 100 visit all, 3 the nearest to equal ones."""
    made = Pair({"ddpm": ddpm().denoiser(Zero())}, nz.Pixels(), 0.1)
    assert torch.equal(down(made, 100), torch.arange(100, -1, -1, dtype=torch.float64) / 1000)
    assert down(made, 3).tolist() == [0.1, 0.067, 0.033, 0.0]


# ---- what is measured


def test_tails_of_known_networks():
    """A network that knows the image brings it back; one that sees no noise leaves it all, (127.5 sigma/alpha)^2 at every frequency."""
    image = nz.embedded(16).pixels[:1]
    images = image.expand(64, -1, -1, -1)
    process, codec = nz.DiscreteVP.linear(), nz.Pixels()
    knows = nz.PointCloud(codec.encode(image)).denoiser(process)
    blind = nz.Denoiser(Zero(), process, nz.Epsilon(), nz.Timestep(1000))
    rows = tail(Pair({"knows": knows, "blind": blind}, codec, 0.1), images, (5, 10), 0)
    value = {(one.measure, one.network, one.x): one.value for one in rows}
    level = process(torch.tensor(0.1, dtype=torch.float64))
    noise = (127.5 * level.sigma / level.alpha).item() ** 2
    power = radial_power(image)
    expected = paired.decibels(power + noise, power).item()
    for n in (5, 10):
        assert value["PSNR", "knows", n] > 60 and abs(value["residual", "knows", n]) < 1e-4 * noise
        assert value["PSNR", "blind", n] == pytest.approx(10 * math.log10(255**2 / noise), abs=0.1)
        assert value["residual", "blind", n] == pytest.approx(noise, rel=0.03)
        assert value["spectrum distance", "blind", n] == pytest.approx(expected, rel=0.03)
        assert value["spectrum distance", "knows", n] < 1e-3


def test_a_network_differs_from_itself_by_nothing(pair):
    """Of one network twice every difference, and every error of one, is exactly 0: noise and seeds are shared."""
    same = Pair({"a": pair.denoisers["etsdm"], "b": pair.denoisers["etsdm"]}, pair.codec, pair.edge)
    images = nz.embedded(8).pixels[:4]
    x0 = pair.codec.encode(images)
    rows = tail(same, images, (2,), 0) + swap(same, range(4), 10, yard()).lines
    rows += evaluations(same, range(4), (2, 3), yard()) + perturbations(same, x0, (1, 200), 0) + losses(same, x0, 3, 0)
    away = [one for one in rows if " - " in one.network]
    assert len(away) == 8 + 3 * 2 + 16 + 4 + 5 and all(one.value == one.error == 0 for one in away)


def test_losses_and_perturbations_are_those_of_the_library(pair):
    """Each line is nz.loss_by_noise's or nz.perturbation's, part by part with one generator; errors are those of the parts' mean."""
    x0 = pair.codec.encode(nz.embedded(8).pixels[:8])
    rows = {(one.measure, one.network, one.x): one for one in losses(pair, x0, 3, 5)}
    times = torch.tensor([0.001, 0.032, 1.0], dtype=torch.float64)
    values = {}
    for name, one in pair.denoisers.items():
        draw = nz.randomness.probe_generator(5)
        values[name] = torch.stack([nz.loss_by_noise(one, x[None], times=times, generator=draw).value for x in x0])
    away = values["etsdm"] - values["ddpm"]
    for i, number in enumerate((1, 32, 1000)):
        assert rows["loss", "ddpm", number].value == pytest.approx(values["ddpm"][:, i].mean().item())
        line = rows["loss", "etsdm - ddpm", number]
        assert (line.value, line.error) == pytest.approx((away[:, i].mean().item(), away[:, i].std().item() / 8**0.5))
    low = rows["mean loss up to the edge", "etsdm - ddpm", 100]
    assert low.value == pytest.approx(away[:, :2].mean().item())
    (moved,) = [
        one
        for one in perturbations(pair, x0[:1].expand(2, -1, -1, -1), (200,), 1)
        if one[1:3] == ("change of x0 by 0.3", "ddpm")
    ]
    draw = nz.randomness.probe_generator(1)
    each = [nz.perturbation(pair.denoisers["ddpm"], x0[:1], t=0.2, scales=(0.1, 0.3), generator=draw) for _ in range(2)]
    assert moved.value == pytest.approx(sum(one.value[1].item() for one in each) / 2)


def test_evaluations_change_from_one_number_to_the_next(pair):
    """A change is the difference of two neighbouring numbers of evaluations of one network, for every measure and end."""
    rows = {(one.measure, one.network, one.x): one.value for one in evaluations(pair, range(4), (2, 3), yard())}
    changes = [key for key in rows if key[0].endswith(", change")]
    assert len(changes) == 2 * 2 * 4
    for measure, name, x in changes:
        plain = measure.removesuffix(", change")
        assert rows[measure, name, x] == pytest.approx(rows[plain, name, 3] - rows[plain, name, 2], abs=1e-12)


def test_errors_are_the_jackknifes():
    """Of a mean: the deviation over sqrt(n); of a difference: that of the paired differences, not of both together."""
    x = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x + 0.1 * torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = paired.lines("p", "m", 3, {"a": paired.left_out(x), "b": paired.left_out(y)}, 50)
    assert [one.network for one in rows] == ["a", "b", "b - a"]
    for row, values in zip(rows, (x, y, y - x), strict=True):
        assert (row.value, row.error) == pytest.approx((values.mean().item(), values.std().item() / 50**0.5))


def test_measures_are_the_librarys():
    """Distances from all samples are energy_distance's and frechet_distance's; decibels are spectrum_distance's; the ratio of the data to itself is 1."""
    real, images = pictures(60, seed=1), pictures(40, seed=2)
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 6).requires_grad_(False)).eval()
    extractor = ModuleExtractor(flat, name="flat", preprocessing="none", channels=1, dimension=6)
    features = extractor.features(real.pixels)
    reference = Reference(real, extractor, features, nz.metrics.frechet.Statistics.of(features), {})
    found = paired.Yard(real.pixels, reference).measures(images.pixels.float())
    x, y = images.pixels.double() / 255, real.pixels.double() / 255
    assert found["energy distance"][0] == energy_distance(x, y).value
    assert paired.stderr(found["energy distance"]) == pytest.approx(energy_distance(x, y).stderr, rel=0.5)
    expected = frechet_distance(extractor.features(images.pixels), features)
    assert found["Frechet distance"][0].item() == pytest.approx(expected, rel=1e-6)
    assert {len(found[name]) for name in ("energy distance", "Frechet distance")} == {1 + paired.GROUPS}
    power, truth = (paired.powers(one.pixels).mean(0) for one in (images, real))
    assert paired.decibels(power, truth).item() == pytest.approx(spectrum_distance(images.pixels, real.pixels))
    assert paired.Yard(real.pixels).measures(real.pixels.float())["power ratio"][0].item() == pytest.approx(1)


# ---- stages


def test_a_run_trained_past_a_stage_gives_its_checkpoint(where, found, tmp_path):
    """At a step that is kept: the weights that training to there alone gives. At one that is not: the newest, as before."""
    run, short = where.run(ddpm(), 1), setting(tmp_path).run(ddpm(), 1)
    assert run.step == short.step == 1 and Run.load(run.path).step == where.run(ddpm(), 2).step == 2
    ours, theirs = (load_tensors(one.weights()) for one in (run, short))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    shutil.copytree(where.out, tmp_path / "thin")
    shutil.rmtree(tmp_path / "thin/runs/ddpm-0/checkpoints/000000001")
    assert setting(tmp_path / "thin").run(ddpm(), 1).step == 2


def test_other_runs_are_refused(where, found, tmp_path):
    """A folder of another seed, or of another learning rate, or a run past a stage that it does not keep ends in a message."""
    copied = setting(tmp_path, seed=1)
    for name in ("ddpm", "etsdm"):
        shutil.copytree(where.out / "runs" / f"{name}-0", tmp_path / "runs" / f"{name}-1")
    with pytest.raises(ArgumentError, match="another budget, recipe or seed"):
        copied.run(ddpm(), 1)
    shutil.copytree(where.out / "runs" / "ddpm-0", tmp_path / "other" / "runs" / "ddpm-0")
    run = Run.load(tmp_path / "other" / "runs" / "ddpm-0")
    replace(run, recipe=replace(run.recipe, training=replace(run.recipe.training, learning_rate=0.5))).write()
    with pytest.raises(ArgumentError, match="another budget, recipe or seed"):
        setting(tmp_path / "other").run(ddpm(), 1)
    shutil.copytree(where.out, tmp_path / "late")
    shutil.rmtree(tmp_path / "late/runs/etsdm-0/checkpoints/000000001")
    with pytest.raises(ArgumentError, match="is at step 2, and keeps no checkpoint of 1"):
        sharing.sharing_pair(setting(tmp_path / "late"))


def test_the_experiment_goes_on_and_repeats(where, found):
    """A second call trains nothing, reads each stage from its checkpoint and gives the same rows, text and summary."""
    before = {path.name: path.stat().st_mtime_ns for path in where.out.rglob("*.safetensors")}
    again = sharing.sharing_pair(where)
    assert (again.rows, again.text, again.summary) == (found.rows, found.text, found.summary)
    assert before == {path.name: path.stat().st_mtime_ns for path in where.out.rglob("*.safetensors")}


def test_every_stage_has_every_part(found):
    """Stages have tails, swaps, perturbations and losses, the last one evaluations and the longest tail too; the summary holds its paired differences."""
    parts = {seen: {row[1] for row in found.rows if row[0] == seen} for seen in (4, 8)}
    assert parts[4] == {"tail", "swap", "perturbation", "loss"} and parts[8] == {*parts[4], "evaluations"}
    assert {row[4] for row in found.rows if row[:3] == (4, "tail", "PSNR")} == {2}
    assert {row[4] for row in found.rows if row[:3] == (8, "tail", "PSNR")} == {2, 5}
    (row,) = [row for row in found.rows if row[:5] == (8, "tail", "residual", "etsdm - ddpm", 5)]
    assert found.summary["paired"]["tail: residual at 5, etsdm - ddpm"] == tuple(row[5:7])


def test_sentences_say_what_the_numbers_say():
    """A difference lies above or below 0 where its 95 % interval does, and else is not told from it."""
    line = paired.Line("tail", "PSNR", "etsdm - ddpm", 5, 0.0, 1.0, 10)
    for value, word in ((1.97, "above"), (-1.97, "below"), (1.95, "not told from"), (-1.95, "not told from")):
        assert sharing.said(line._replace(value=value)).endswith(f"({word} 0)")


def test_the_page(found):
    """Five figures and a sheet of eight samples of each kind; tables hold each network and the difference."""
    drawn = page.sharing_pair(found)
    assert set(drawn.pictures) == {
        f"{name}.png" for name in ("tail", "swap", "evaluations", "loss", "stages", "samples")
    }
    assert all(one.content.startswith(b"\x89PNG") for one in drawn.pictures.values())
    assert len(found.tensors["samples"]) == 4 * 8
    kinds = ["ddpm", "ddpm then etsdm", "etsdm then ddpm", "etsdm"]
    assert [row[0] for row in drawn.tables[0].rows] == [*kinds, *(f"{kind} - ddpm" for kind in kinds[1:])]
