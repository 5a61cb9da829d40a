"""Averages of the weights: fixed decay, half-life, power function, several at once, and those made after training."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from conftest import pictures, tiny_recipe, tree
from nearzero import recipes
from nearzero.ema import EMA, HalfLife, Power, early, initial_share
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.manifest import write_manifest
from nearzero.posthoc import Fit, combination, fit, inner, reconstruct
from nearzero.recipe import Training
from nearzero.registry import decode, encode
from nearzero.run import Run
from nearzero.training.averages import Averages

widths = st.floats(0.005, 12**-0.5)
averages = st.one_of(
    st.builds(EMA, st.floats(0, 0.99999), st.floats(1, 1000)),
    st.builds(HalfLife, st.floats(1, 1e8), st.one_of(st.none(), st.floats(0.001, 10))),
    st.builds(Power, widths),
)


def training(*kept, batch=1):
    """Training that keeps these averages, the first as the main one."""
    return Training(steps=1, batch=batch, learning_rate=1e-3, flip=False, ema=kept[0], averages=kept[1:])


def direct(average, n, batch):
    """The weights c_0, ..., c_n of theta_0, ..., theta_n in the average after n steps, multiplied out from beta."""
    betas = [average.beta(k, batch) for k in range(1, n + 1)]
    return [
        *[math.prod(betas)],
        *[(1 - betas[k - 1]) * math.prod(betas[k:]) for k in range(1, n + 1)],
    ]


def density(tau, step, gamma):
    """The power function of EDM2's Eq. 2, on float64 tau."""
    return torch.where(tau < step, (gamma + 1) * (tau / step) ** gamma / step, 0.0)


def middles(end, number=400_000):
    """Middles of equal parts of [0, end] and their width: a quadrature of second order."""
    return (torch.arange(number, dtype=torch.float64) + 0.5) * (end / number), end / number


# ---- the laws of beta


@given(averages, st.integers(1, 10**7), st.integers(1, 4096))
def test_beta_is_a_share(average, step, batch):
    """Every average keeps a share in [0, 1) of itself at every step."""
    assert 0 <= average.beta(step, batch) < 1


@given(averages, st.integers(0, 60), st.integers(1, 512))
def test_the_weights_of_an_average_sum_to_one(average, n, batch):
    """The weights of theta_0, ..., theta_n are not negative and sum to 1, and that of theta_0 is initial_share's closed form."""
    shares = direct(average, n, batch)
    assert min(shares) >= 0 and math.fsum(shares) == pytest.approx(1, rel=1e-12)
    assert initial_share(average, n, batch) == pytest.approx(shares[0], rel=1e-9, abs=1e-300)


@given(widths)
def test_gamma_solves_the_cubic(std):
    """std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) to float64's rounding, at gamma >= 0, and gamma^3 + 7 gamma^2 + (16 - std^-2) gamma + 12 - std^-2 = 0."""
    gamma = Power(std).gamma
    assert gamma >= -1e-12
    assert math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(std, rel=1e-12)
    terms = [gamma**3, 7 * gamma**2, (16 - std**-2) * gamma, 12 - std**-2]
    assert abs(math.fsum(terms)) < 1e-12 * max(map(abs, terms))


def test_gamma_is_that_of_the_paper():
    """EDM2's two averages, std 0.05 and 0.10, are gamma = 16.97 and 6.94; 12^-1/2 is the plain mean of the run."""
    assert round(Power(0.05).gamma, 2) == 16.97 and round(Power(0.10).gamma, 2) == 6.94
    mean = Power(12**-0.5)
    assert mean.gamma == pytest.approx(0, abs=1e-12)
    assert direct(mean, 8, 1) == pytest.approx([0.0, *[1 / 8] * 8], abs=1e-12)


@given(widths, st.integers(1, 300))
def test_power_weights_in_closed_form(std, n):
    """Step k's weight is (k^(gamma + 1) - (k - 1)^(gamma + 1)) / n^(gamma + 1), and none is left to the untrained weights."""
    a = Power(std).gamma + 1
    closed = [0.0, *[(k / n) ** a - ((k - 1) / n) ** a for k in range(1, n + 1)]]
    assert direct(Power(std), n, 1) == pytest.approx(closed, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("std", [0.02, 0.05, 0.1, 0.25])
def test_std_is_the_width_of_the_average(std):
    """The standard deviation of the step that the average weighs, over n, is std: at n = 4,000 to 1 part in 1,000."""
    n = 4000
    a = Power(std).gamma + 1
    k = torch.arange(1, n + 1, dtype=torch.float64)
    share = (k / n) ** a - ((k - 1) / n) ** a
    mean = (share * k).sum()
    assert float((share * (k - mean) ** 2).sum().sqrt()) / n == pytest.approx(std, rel=1e-3)


@given(st.integers(1, 10**6), st.sampled_from([1, 32, 512]))
def test_half_is_forgotten_in_a_half_life(images, batch):
    """Without a ramp the weight of what was there falls by 2 in `images` images, whatever the batch."""
    steps = images / batch
    assert HalfLife(images, ramp=None).beta(7, batch) ** steps == pytest.approx(0.5, rel=1e-9)
    assert initial_share(HalfLife(images, ramp=None), 2 * images, batch) == pytest.approx(0.25**batch, rel=1e-9)


@given(st.integers(1, 10**6), st.floats(0.01, 1.0), st.integers(1, 512), st.integers(2, 10**6))
def test_the_half_life_ramps_up_with_the_images_seen(images, ramp, batch, step):
    """As in EDM's training loop: with `seen` images before step n, beta = 0.5^(batch / min(images, ramp seen)), and step 1 keeps nothing."""
    seen = (step - 1) * batch
    expected = 2.0 ** (-batch / (ramp * seen if ramp * seen < images else images))
    assert HalfLife(images, ramp).beta(step, batch) == pytest.approx(expected, rel=1e-12)
    assert HalfLife(images, ramp).beta(1, batch) == 0


def test_recipes_keep_their_papers_averages():
    """EDM from config B on: half-life 500,000 images, ramp 0.05; DDPM: 0.9999; VE of config A: 0.999; `small`: 0.9999 with a ramp; none keeps more than one."""
    for name in ("edm", "edm_e", "edm_b_vp", "edm_d_ve", "edm_shared", "edm_uncertainty"):
        assert recipes.named(name).training.ema == HalfLife(500_000, 0.05)
    assert recipes.edm().training.ema.beta(390_000, 512) ** (500_000 / 512) == pytest.approx(0.5, rel=1e-12)
    assert recipes.ddpm().training.ema == recipes.small(recipes.edm(), 16, 1).training.ema == EMA(0.9999, 10.0)
    assert recipes.edm_a_ve().training.ema == EMA(0.999)
    assert all(make().training.averages == () for make in recipes.RECIPES.values())


# ---- the averages of a run

KINDS = [EMA(), EMA(0.9, 1.0), HalfLife(100), HalfLife(40, None), Power(0.05), Power(0.25)]


def walk(kept, n, size=1000, batch=1, seed=0, dtype=torch.float32):
    """A random walk of weights from a random start: the Averages that follow it, and theta_0, ..., theta_n (n + 1, size)."""
    generator = torch.Generator().manual_seed(seed)
    weights = {"a": torch.randn(size, generator=generator, dtype=dtype), "b": torch.zeros(2, 2, dtype=dtype)}
    followed, path = Averages(weights, training(*kept, batch=batch)), [weights["a"].clone()]
    for step in range(1, n + 1):
        weights["a"].add_(torch.randn(size, generator=generator, dtype=dtype))
        followed.update(step)
        path.append(weights["a"].clone())
    return followed, torch.stack(path)


@pytest.mark.parametrize("batch", [1, 7])
def test_every_average_is_the_direct_sum(batch):
    """Six averages that follow one trajectory are the sums of its weights with the shares that beta multiplies out to, in float64 to rounding."""
    followed, path = walk(KINDS, 50, batch=batch, dtype=torch.float64)
    assert list(followed.kept) == ["ema", "ema-1", "ema-2", "ema-3", "ema-4", "ema-5"]
    for average, kept in zip(KINDS, followed.kept.values(), strict=True):
        expected = torch.tensor(direct(average, 50, batch), dtype=torch.float64) @ path
        torch.testing.assert_close(kept["a"], expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(kept["b"], torch.zeros(2, 2, dtype=torch.float64))


def test_one_call_moves_an_average(monkeypatch):
    """A step costs one foreach call for each average, however many tensors the network has."""
    calls, lerp = [], torch._foreach_lerp_
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda *given: calls.append(len(given[0])) or lerp(*given))
    followed = Averages({str(i): torch.zeros(3) for i in range(40)}, training(*KINDS))
    followed.update(1)
    assert calls == [40] * len(KINDS)


def test_an_average_without_memory_is_the_weights():
    """The first step of an average that keeps nothing leaves the weights, bit for bit."""
    followed, path = walk([Power(0.05), HalfLife(100)], 1)
    for kept in followed.kept.values():
        assert torch.equal(kept["a"], path[1])


MANY = {"ema": HalfLife(12), "averages": (Power(0.05), Power(0.1), EMA(0.5))}


@pytest.mark.parametrize("k", [1, 4])
def test_several_averages_resume_bit_for_bit(tmp_path, k):
    """k steps, then the rest on resume, end in the bits of all steps at once, for four averages of three kinds."""
    from nearzero.training.loop import train

    whole = train(tiny_recipe(**MANY), pictures(), tmp_path / "whole")
    train(tiny_recipe(**MANY, steps=k), pictures(), tmp_path / "parts")
    parts = train(tiny_recipe(**MANY), pictures(), tmp_path / "parts", resume=True)
    assert Run.load(parts.path).recipe.training.averages == MANY["averages"]
    for file in ("weights", "ema", "ema-1", "ema-2", "ema-3", "optimizer"):
        a, b = ((run.checkpoint() / f"{file}.safetensors").read_bytes() for run in (whole, parts))
        assert a == b, file


def test_averages_only_watch(tmp_path, trained):
    """Keeping further averages changes neither the weights nor the main average, and those of equal settings are equal."""
    from nearzero.training.loop import train

    run = train(tiny_recipe(averages=(EMA(), Power(0.05))), pictures(), tmp_path / "run")
    for file, same in (("weights", "weights"), ("ema", "ema"), ("ema-1", "ema")):
        files = (
            load_file(run.checkpoint() / f"{file}.safetensors"),
            load_file(trained.checkpoint() / f"{same}.safetensors"),
        )
        assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items()), file


# ---- what may be asked for


@given(averages)
def test_averages_survive_json(average):
    """decode(encode(x)) == x for every average and for Training with several; a file without `averages` has none."""
    several = training(average, average, Power())
    written = json.loads(json.dumps(encode(several)))
    assert decode(written) == several and decode(encode(average)) == average
    del written["averages"]
    assert decode(written) == training(average)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        *[(lambda v=v: HalfLife(v), str(v)) for v in (0, -1.0, math.inf, math.nan)],
        *[(lambda v=v: HalfLife(ramp=v), str(v)) for v in (0.0, -0.05, math.inf, math.nan)],
        *[(lambda v=v: Power(v), str(v)) for v in (0.0, -0.1, 0.00009, 0.2887, 1.0, math.nan)],
        *[(lambda v=v: training(EMA(), v), repr(v)) for v in (0.9999, "EMA", None)],
        *[(lambda v=v: training(v), repr(v)) for v in (0.9999, "EMA", None)],
        (lambda: replace(training(EMA()), averages=[Power()]), "tuple.*Power"),
        (lambda: replace(training(EMA()), averages=Power()), "tuple.*Power"),
    ],
)
def test_what_is_no_average_is_refused(make, named):
    """A value outside its law, and what has no beta, raises ArgumentError of one line that shows it, when the object is made."""
    with pytest.raises(ArgumentError, match=named.replace("(", r"\(")) as caught:
        make()
    assert "\n" not in str(caught.value)


# ---- early averages


@pytest.mark.parametrize("average", [EMA(0.9999, 1.0), EMA(0.999, 1.0), HalfLife(20_000, None), EMA(0.9999, 2.0)])
def test_the_note_ends_where_it_says(average):
    """The note on untrained weights comes while their share is above 5 % and names the first step at which it is not."""
    share = math.prod(average.beta(n, 32) for n in range(1, 6))
    note = early(average, 5, 32)
    if share <= 0.05:
        assert note is None
        return
    assert f"at step 5 the average is {100 * share:.3g} % untrained" in note
    end = int(note.split("from step ")[1].split()[0])
    product, n = 1.0, 0
    while product > 0.05:
        n += 1
        product *= average.beta(n, 32)
    assert n == end
    assert early(average, end - 1, 32) is not None and early(average, end, 32) is None


def test_the_note_is_for_those_who_need_it():
    """Every recipe, fitted small or as in its paper, is past it after 30 steps; a plain 0.9999 is not after 29,000; a user's own average gets its share only."""

    class Own:
        def beta(self, step, batch=1):
            return 0.5

    for make in recipes.RECIPES.values():
        for recipe in (make(), recipes.small(make(), 16, 1)):
            assert early(recipe.training.ema, 30, recipe.training.batch) is None
    assert early(EMA(0.9999, 1.0), 29_000).endswith("; below 5 % from step 29956 on")
    assert early(Own(), 4).endswith("makes samples noisy") and early(Own(), 5) is None
    assert "100 %" in early(Own(), 0) and early(Power(), 1) is None


# ---- averages made after training

KEPT = [(step, std) for step in range(200, 2001, 200) for std in (0.05, 0.10)]


@pytest.mark.parametrize(("s", "std"), [(300, 0.05), (1000, 0.1), (1000, 0.28)])
@pytest.mark.parametrize(("t", "width"), [(1000, 0.05), (700, 0.2)])
def test_inner_products_in_closed_form(s, std, t, width):
    """The closed form of int p q is what a sum over 400,000 middles gives, to 1e-6."""
    tau, part = middles(min(s, t))
    a, b = Power(std).gamma, Power(width).gamma
    summed = (density(tau, s, a) * density(tau, t, b)).sum() * part
    closed = inner(*(torch.tensor(v, dtype=torch.float64) for v in (s, a, t, b)))
    torch.testing.assert_close(closed, summed, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("step", "std"), [(2000, 0.07), (2000, 0.2), (1500, 0.06), (1100, 0.03)])
def test_the_residual_is_the_distance_of_the_densities(step, std):
    """||sum x_i p_i - p|| / ||p||, summed over 400,000 middles, is the residual; the coefficients sum to 1."""
    x, residual = combination(KEPT, step, std)
    tau, part = middles(2000)
    wanted = density(tau, step, Power(std).gamma)
    made = sum(c * density(tau, at, Power(width).gamma) for c, (at, width) in zip(x, KEPT, strict=True))
    measured = float(((made - wanted).square().sum() / wanted.square().sum()).sqrt())
    assert residual == pytest.approx(measured, rel=1e-3)
    assert math.fsum(x) == pytest.approx(1, abs=1e-12)
    assert float((made.sum() - wanted.sum()) * part) == pytest.approx(0, abs=1e-6)


@given(st.integers(0, 19), st.integers(0, 19), st.floats(-0.05, 0.05), widths)
def test_no_other_coefficients_come_nearer(i, j, shift, std):
    """Moving weight from one kept average to another never lowers the distance of the densities."""
    x, residual = combination(KEPT, 2000, std)
    s, t = (torch.tensor([float(v) for v in values], dtype=torch.float64) for values in ([k for k, _ in KEPT], [2000]))
    a, b = (torch.tensor([Power(w).gamma for w in ws], dtype=torch.float64) for ws in ([w for _, w in KEPT], [std]))
    y = torch.tensor(x, dtype=torch.float64)
    y[i] += shift
    y[j] -= shift
    square = y @ inner(s[:, None], a[:, None], s, a) @ y - 2 * y @ inner(s, a, t, b)
    norm = inner(t, b, t, b)
    assert float(((square + norm) / norm).squeeze()) >= residual**2 - 1e-9


@pytest.mark.parametrize("at", [1, 10, 19])
def test_a_kept_average_is_given_back(at):
    """For a step and std that were kept the coefficients are 1 there and 0 elsewhere, and the residual is 0."""
    x, residual = combination(KEPT, *KEPT[at])
    assert x == pytest.approx([float(i == at) for i in range(len(KEPT))], abs=1e-10)
    assert residual < 1e-7


@pytest.mark.parametrize(("widths", "order"), [((0.05, 0.10), 2), ((0.10,), 1)])
def test_the_residual_falls_with_the_number_of_checkpoints(widths, order):
    """The residual for std 0.07 is of second order in the distance of checkpoints that keep 0.05 and 0.10, and of first order with 0.10 alone."""
    residuals = [
        combination([(k, std) for k in range(every, 2001, every) for std in widths], 2000, 0.07)[1]
        for every in (100, 50, 25)
    ]
    for coarse, fine in zip(residuals, residuals[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.05)


def test_two_of_the_same_std_do_no_harm():
    """Averages kept twice leave the residual and the sum of the coefficients as they are."""
    x, residual = combination(KEPT, 2000, 0.07)
    twice, same = combination(KEPT + KEPT[-4:], 2000, 0.07)
    assert same == pytest.approx(residual, rel=1e-6) and math.fsum(twice) == pytest.approx(1, abs=1e-12)
    assert max(map(abs, twice)) < 2


@pytest.mark.parametrize("seed", [0, 1])
def test_a_random_walk_is_reconstructed(seed):
    """2,000 steps, kept every 200 at 0.05 and 0.10: std 0.07 comes out within 0.06 % of the tracked average, 80 times nearer than either kept one and within the theorem's bound."""
    kept: dict[tuple[int, float], torch.Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    weights = {"w": torch.randn(1000, generator=generator)}
    followed, path = Averages(weights, training(Power(0.05), Power(0.10), Power(0.07))), []
    for step in range(1, 2001):
        weights["w"].add_(torch.randn(1000, generator=generator))
        followed.update(step)
        path.append(weights["w"].double())
        if step % 200 == 0:
            kept |= {(step, std): followed.kept[file]["w"].double() for file, std in (("ema", 0.05), ("ema-1", 0.10))}
    x, residual = combination(list(kept), 2000, 0.07)
    made = sum(c * w for c, w in zip(x, kept.values(), strict=True))
    wanted = followed.kept["ema-2"]["w"].double()
    error = (made - wanted).norm()
    assert error / wanted.norm() < 6e-4
    assert error < min((kept[2000, std] - wanted).norm() for std in (0.05, 0.10)) / 80
    t, gamma = torch.tensor([2000.0, Power(0.07).gamma], dtype=torch.float64)
    theta = torch.stack(path)
    bound = residual * inner(t, gamma, t, gamma).sqrt() * (theta - theta.mean(0)).norm()
    assert error < bound


@pytest.fixture
def kept_run(tmp_path):
    """A run with checkpoints at 10, 20, 30 and 40 of two power-function averages of weights that walk, and the averages themselves with a third for comparison."""
    recipe = tiny_recipe(ema=EMA(), averages=(Power(0.05), Power(0.10)), steps=40)
    run = Run.create(tmp_path, recipe, {}, 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {name: w.detach() for name, w in recipe.denoiser().network.named_parameters()}
        followed = Averages(weights, replace(recipe.training, averages=(Power(0.05), Power(0.10), Power(0.07))))
        for step in range(1, 41):
            for w in weights.values():
                w.add_(0.01 * torch.randn_like(w))
            followed.update(step)
            if step % 10 == 0:
                folder = tmp_path / "checkpoints" / f"{step:09d}"
                folder.mkdir(parents=True)
                for file in ("ema-1", "ema-2"):
                    whole = {name: w.contiguous() for name, w in followed.kept[file].items()}
                    save_file(whole, folder / f"{file}.safetensors")
                write_manifest(folder, {"step": step})
    return run, followed.kept


def test_a_run_gives_back_what_it_kept(kept_run):
    """For a kept std and step, reconstruct's network holds the kept tensors to 1e-6, at the newest checkpoint and at an older one."""
    run, kept = kept_run
    for std, file in ((0.05, "ema-1"), (0.10, "ema-2")):
        for name, w in reconstruct(run, std).network.named_parameters():
            torch.testing.assert_close(w.detach(), kept[file][name], rtol=1e-6, atol=1e-6)
        older = load_file(run.path / "checkpoints" / "000000020" / f"{file}.safetensors")
        for name, w in fit(run, std, step=20).tensors().items():
            torch.testing.assert_close(w, older[name], rtol=1e-6, atol=1e-6)


def test_a_run_gives_what_it_did_not_keep(kept_run):
    """std 0.07 from a run folder is nearer to the tracked average than a tenth of either kept one, in float32, and leaves the generator alone."""
    run, kept = kept_run
    state = torch.get_rng_state()
    denoiser = reconstruct(run, 0.07)
    assert torch.equal(torch.get_rng_state(), state) and not denoiser.training

    def distance(tensors):
        return float(torch.cat([(tensors[name] - w).flatten() for name, w in kept["ema-3"].items()]).norm())

    made = {name: w.detach() for name, w in denoiser.network.named_parameters()}
    assert {w.dtype for w in made.values()} == {torch.float32}
    assert distance(made) < min(distance(kept["ema-1"]), distance(kept["ema-2"])) / 10
    assert run.sample([0, 1], denoiser=denoiser, steps=2).shape == (2, 1, 8, 8)


def test_reconstruction_reads_and_writes_nothing_else(kept_run):
    """Two files a checkpoint, those of the power-function averages; the folder stays as it was."""
    run, _ = kept_run
    before = tree(run.path)
    found = fit(run, 0.07)
    assert [f"{path.parent.name}/{path.name}" for path in found.files] == [
        f"{step:09d}/{file}.safetensors" for step in (10, 20, 30, 40) for file in ("ema-1", "ema-2")
    ]
    found.tensors()
    assert tree(run.path) == before


def test_what_cannot_be_reconstructed_is_refused(kept_run, trained, tmp_path):
    """No power-function average, a step without weights, a width out of range: ArgumentError; no checkpoint, none whole, other tensors: CheckpointError that names the file."""
    run, kept = kept_run
    with pytest.raises(ArgumentError, match="keeps no power-function average.*Power"):
        fit(trained, 0.07)
    for step in (0, 41):
        with pytest.raises(ArgumentError, match=f"step {step} .*end at step 40"):
            fit(run, 0.07, step=step)
    with pytest.raises(ArgumentError, match=r"0\.5"):
        fit(run, 0.5)
    empty = Run.create(tmp_path / "empty", run.recipe, {}, 0)
    with pytest.raises(CheckpointError, match="empty has no whole checkpoint; "):
        fit(empty, 0.07)
    (tmp_path / "empty" / "checkpoints" / "000000050").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no whole checkpoint: .*000000050.* is missing; "):
        fit(empty, 0.07)
    folder = run.path / "checkpoints" / "000000030"
    save_file({name: w.double().contiguous() for name, w in kept["ema-2"].items()}, folder / "ema-2.safetensors")
    write_manifest(folder, {"step": 30})
    with pytest.raises(CheckpointError, match="000000030/ema-2.* does not hold the tensors of"):
        reconstruct(run, 0.07)


def test_a_damaged_checkpoint_is_left_out(kept_run):
    """Half a file at step 30: a warning names it, and the other checkpoints are combined, further from the wanted density than all were."""
    run, _ = kept_run
    whole = fit(run, 0.07)
    path = run.path / "checkpoints" / "000000030" / "ema-2.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="left out a damaged checkpoint: .*000000030/ema-2"):
        found = fit(run, 0.07)
    assert [int(file.parent.name) for file in found.files] == [10, 10, 20, 20, 40, 40]
    assert whole.residual < found.residual
    assert found == replace(
        found, coefficients=tuple(combination([(k, s) for k in (10, 20, 40) for s in (0.05, 0.10)], 40, 0.07)[0])
    )


def test_a_pinned_run_is_reconstructed_at_its_checkpoint(kept_run):
    """A run that is pinned to step 20 asks for the average there."""
    run, _ = kept_run
    pinned = replace(run, pin=run.path / "checkpoints" / "000000020")
    assert fit(pinned, 0.07) == fit(run, 0.07, step=20) and fit(run, 0.07).step == 40


def test_what_is_not_floating_is_the_last_files(tmp_path):
    """Counters among the tensors are copied from the newest file, floating tensors keep their type."""
    for i in (1, 2):
        save_file({"w": torch.full((2,), float(i), dtype=torch.bfloat16), "n": torch.tensor([i])}, tmp_path / str(i))
    made = Fit(2, 0.05, (tmp_path / "1", tmp_path / "2"), (-1.0, 2.0), 0.0).tensors()
    assert torch.equal(made["w"], torch.full((2,), 3.0, dtype=torch.bfloat16)) and made["n"].tolist() == [2]
