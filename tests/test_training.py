"""Training: a function of the seed, whatever interrupts it."""

import contextlib
import json
import os
import re
import signal
import threading
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import nearzero as nz
from conftest import pictures, tiny_recipe, tree, write_folder
from nearzero import recipes
from nearzero.cli import run as command
from nearzero.errors import ArgumentError, CheckpointError, DataError, DiskError, NumericalError, Stopped
from nearzero.files import to_bytes
from nearzero.manifest import Keep
from nearzero.run import is_run
from nearzero.training import loop
from nearzero.training.draws import batch
from nearzero.training.events import read_events
from nearzero.training.guards import Guard
from nearzero.training.loop import train
from nearzero.training.preflight import measure
from nearzero.training.signals import stop_on_signals
from nearzero.training.state import TrainingState
from nearzero.training.step import steps

CPU = torch.device("cpu")


def newest(run):
    """Every bit of a run's newest checkpoint, by file name."""
    return {"checkpoint": run.checkpoint().name, **tree(run.checkpoint())}


def at_step(number, act):
    """A progress callback that acts once, after a step."""
    return lambda now: act() if now.step == number else None


def interrupt():
    signal.raise_signal(signal.SIGINT)


# ---- the same run, whatever interrupts it


def test_a_run_is_a_function_of_its_seed(tmp_path, trained):
    """Equal seeds give equal weights, averages and moments bit for bit, whatever torch's global generator holds; another seed does not."""
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = train(tiny_recipe(), pictures(), tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), state)
    other = train(tiny_recipe(), pictures(), tmp_path / "other", seed=1)
    assert newest(again) == newest(trained)
    assert [name for name, content in newest(other).items() if content == newest(trained)[name]] == [
        "checkpoint",
        "state.json",
    ]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_stopping_and_going_on_is_not_stopping(tmp_path, trained, k):
    """k steps, then the rest on resume, end in the bits of all steps at once."""
    train(tiny_recipe(steps=k), pictures(), tmp_path / "run")
    assert newest(train(tiny_recipe(), pictures(), tmp_path / "run", resume=True)) == newest(trained)


@pytest.mark.parametrize("name", ["ddpm", "etsdm", "edm", "full_w", "edm_uncertainty", "soft_truncation"])
def test_every_family_goes_on_bit_for_bit(tmp_path, name):
    """2 steps and 3 on resume are 5, in every file of the checkpoint, for each kind of times, of objective and of average."""
    fitted = recipes.small(recipes.named(name), 8, 1)
    five = replace(fitted.training, steps=5, batch=4, flip=True)
    recipe = replace(fitted, network=tiny_recipe().network, training=five, steps=3)
    whole = train(recipe, pictures(), tmp_path / "whole", seed=2)
    train(replace(recipe, training=replace(five, steps=2)), pictures(), tmp_path / "parts", seed=2)
    assert newest(train(recipe, pictures(), tmp_path / "parts", seed=2, resume=True)) == newest(whole)


def test_a_preview_that_a_kill_left_out_is_made_up(tmp_path, trained):
    """Where the picture of the checkpoint to go on from is missing, resume draws it first, to the same bytes; others it leaves."""
    train(tiny_recipe(steps=4), pictures(), tmp_path / "run", checkpoint_every=2)
    for name in ("000000002.png", "000000004.png"):
        (tmp_path / "run/previews" / name).unlink()
    run = train(tiny_recipe(), pictures(), tmp_path / "run", checkpoint_every=2, resume=True)
    whole = train(tiny_recipe(), pictures(), tmp_path / "whole", checkpoint_every=2)
    kept = {name: content for name, content in tree(whole.path / "previews").items() if name != "000000002.png"}
    assert tree(run.path / "previews") == kept and newest(run) == newest(trained)


def test_previews_have_their_own_pace(tmp_path, trained):
    """With checkpoints every 3 steps and previews every 2 of 6 there are previews of 2, 4 and 6, and the same bits at the end; at the end there always is one."""
    run = train(tiny_recipe(), pictures(), tmp_path / "run", checkpoint_every=3, preview_every=2)
    assert sorted(tree(run.path / "previews")) == ["000000002.png", "000000004.png", "000000006.png"]
    assert newest(run) == newest(trained)
    run = train(tiny_recipe(), pictures(), tmp_path / "other", preview_every=4)
    assert sorted(tree(run.path / "previews")) == ["000000004.png", "000000006.png"]
    with pytest.raises(ArgumentError, match="preview_every must be at least 1, got 0"):
        train(tiny_recipe(), pictures(), tmp_path / "none", preview_every=0)


def test_many_stops_with_flips(tmp_path):
    """With mirrored images and a batch that does not divide an epoch, a run of single steps ends in the bits of a whole one."""
    recipe = tiny_recipe(flip=True, batch=3)
    whole = train(recipe, pictures(7), tmp_path / "whole", seed=5)
    for k in range(1, 7):
        parts = train(tiny_recipe(flip=True, batch=3, steps=k), pictures(7), tmp_path / "parts", seed=5, resume=k > 1)
    assert newest(parts) == newest(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("k", [1, 4])
def test_a_signal_saves_and_stops(tmp_path, trained, number, k):
    """A signal in the middle raises Stopped (exit code 75) with a checkpoint at that step, and resume ends in the bits of the whole run."""
    out = tmp_path / "run"
    with pytest.raises(Stopped, match=f"stopped at step {k} of 6 .*--resume") as caught:
        train(tiny_recipe(), pictures(), out, progress=at_step(k, lambda: os.kill(os.getpid(), number)))
    assert caught.value.exit_code == 75
    assert nz.Run.load(out).step == k
    assert newest(train(tiny_recipe(), pictures(), out, resume=True)) == newest(trained)


def test_a_signal_at_the_last_step_comes_too_late(tmp_path, trained):
    """A signal during the last step lets the run end as if there had been none."""
    assert newest(train(tiny_recipe(), pictures(), tmp_path / "run", progress=at_step(6, interrupt))) == newest(trained)


def test_a_signal_at_any_moment_leaves_the_checkpoint_that_is_named(tmp_path, monkeypatch):
    """Whenever the loop first sees the signal, the step in Stopped's message is that of the newest checkpoint."""

    def stop_at(poll):
        @contextlib.contextmanager
        def signals():
            polls = iter(range(1, 1000))
            yield lambda: next(polls) >= poll

        return signals

    for poll in range(1, 100):
        out = tmp_path / str(poll)
        monkeypatch.setattr(loop, "stop_on_signals", stop_at(poll))
        try:
            train(tiny_recipe(steps=3), pictures(), out)
        except Stopped as stopped:
            named = re.match(r"stopped at step (\d+) of 3", str(stopped))
            assert nz.Run.load(out).step == int(named[1]), f"poll {poll}"
        else:
            break
    assert poll > 2


@pytest.mark.parametrize("kind", ["write", "fsync", "replace"])
@pytest.mark.filterwarnings("ignore:cannot write")
def test_a_full_disk_costs_at_most_the_last_checkpoint(tmp_path, faults, kind):
    """Whichever call to the disk fails, DiskError comes out or the save is tried again, the newest checkpoint loads, and resume ends in the bits of a whole run."""
    recipe = tiny_recipe(steps=3, batch=1)
    whole = train(recipe, pictures(), tmp_path / "whole", checkpoint_every=2)
    raised = 0
    for at in range(1, 100):
        out = tmp_path / str(at)
        faults.arm(kind, at, OSError(28, "No space left on device"))
        try:
            train(recipe, pictures(), out, checkpoint_every=2)
        except DiskError as error:
            raised += 1
            assert "free some space" in str(error)
        reached = faults.seen >= at
        faults.disarm()
        started = (out / "run.json").exists()
        assert not started or nz.Run.load(out).step in (0, 2, 3)
        assert newest(train(recipe, pictures(), out, resume=started)) == newest(whole)
        if not reached:
            break
    assert at > 5 and raised > 0


def test_resuming_a_finished_run_changes_nothing(run_folder):
    """Asking again for the steps that are done leaves every bit of the run; asking for fewer is refused and does too."""
    before = tree(run_folder)
    train(tiny_recipe(steps=6), pictures(), run_folder, resume=True)
    assert tree(run_folder) == before
    with pytest.raises(ArgumentError, match="trained for 6 steps, more than 2"):
        train(tiny_recipe(steps=2), pictures(), run_folder, resume=True)
    assert tree(run_folder) == before


def test_overwriting_needs_a_run_of_ours(tmp_path):
    """Another program's run.json, and what lies beside it, is never deleted."""
    (tmp_path / "run.json").write_text('{"mine": 1}')
    (tmp_path / "thesis").write_text("years")
    before = tree(tmp_path)
    with pytest.raises(ArgumentError, match="not nearzero's"):
        train(tiny_recipe(), pictures(), tmp_path, overwrite=True)
    assert tree(tmp_path) == before


def test_overwriting_with_what_cannot_train_keeps_the_old_run(run_folder):
    """What does not fit together fails before anything of the old run is deleted."""
    before = tree(run_folder)
    with pytest.raises(ArgumentError, match="LinearVP has no timesteps"):
        train(replace(tiny_recipe(), process=nz.LinearVP()), pictures(), run_folder, overwrite=True)
    assert tree(run_folder) == before


@nz.register
@dataclass(frozen=True)
class Odd:
    """A network that drops out, uses one weight twice, and has one that is frozen and one that is never used."""

    size: int = 8
    channels: int = 1

    def build(self):
        """Fresh."""
        first, second = nn.Linear(64, 64), nn.Linear(64, 64)
        second.weight = first.weight
        network = OddNetwork(first, nn.Dropout(0.2), second)
        network.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        network.unused = nn.Parameter(torch.ones(1))
        return network


class OddNetwork(nn.Sequential):
    """Its module."""

    def forward(self, x, c):
        """c is left aside."""
        return super().forward(x.flatten(1)).reshape(x.shape) * self.frozen


def test_an_odd_network_resumes_bit_for_bit(tmp_path):
    """Dropout, tied, frozen and unused parameters: 4 + 2 steps are 6, and the tied average is saved once."""
    recipe = replace(tiny_recipe(steps=6), network=Odd())
    whole = train(recipe, pictures(), tmp_path / "whole")
    half = replace(recipe, training=replace(recipe.training, steps=4))
    train(half, pictures(), tmp_path / "parts")
    torch.rand(3)  # the caller's generator plays no part
    parts = train(recipe, pictures(), tmp_path / "parts", resume=True)
    assert newest(parts) == newest(whole)
    network = whole.denoiser().network
    assert network[0].weight is network[2].weight


def test_overwriting_starts_anew(run_folder, trained):
    """With overwrite nothing of the old run stays, and the new one is that of its own seed."""
    (run_folder / "old").write_text("mine")
    train(tiny_recipe(steps=2), pictures(), run_folder, seed=9, overwrite=True)
    assert nz.Run.load(run_folder).step == 2
    again = train(tiny_recipe(), pictures(), run_folder, overwrite=True)
    assert newest(again) == newest(trained)
    assert set(tree(run_folder)) == {*tree(trained.path), "old"}  # a file that is not the run's is left alone


# ---- what a step sees


def numbered(count, size=8):
    """Images of one grey level each: image i is i."""
    return nz.Images(
        torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, size, size).contiguous()
    )


def seen(recipe, images, number, seed=0):
    """Everything that the first `number` steps draw, in one batch."""
    return [
        torch.cat(parts)
        for parts in zip(*(batch(recipe, images, seed, step, CPU) for step in range(number)), strict=True)
    ]


@pytest.mark.parametrize("flip", [False, True])
def test_what_a_sample_is_depends_on_its_index_alone(flip):
    """Sample i of a run is the same image, time, noise and flip however samples are cut into batches; another seed changes each."""
    whole = seen(tiny_recipe(batch=24, flip=flip), pictures(), 1)
    for size in (1, 2, 3, 8):
        for a, b in zip(whole, seen(tiny_recipe(batch=size, flip=flip), pictures(), 24 // size), strict=True):
            assert torch.equal(a, b)
    for a, b in zip(whole, seen(tiny_recipe(batch=24, flip=flip), pictures(), 1, seed=1), strict=True):
        assert not torch.equal(a, b)


@pytest.mark.parametrize("size", [1, 4, 7, 25])
def test_every_image_comes_once_an_epoch(size):
    """Of 10 images, samples 10 e ... 10 e + 9 are all ten, in another order each epoch, whatever the batch."""
    x0, _, _ = seen(tiny_recipe(batch=size), numbered(10), -(-50 // size))
    order = nz.Pixels().decode(x0[:50, 0, 0, 0]).round().int().reshape(5, 10)
    assert order.sort().values.tolist() == [list(range(10))] * 5
    assert len({tuple(epoch) for epoch in order.tolist()}) == 5


def test_flips_mirror_half_of_the_samples():
    """With flip each sample is its image or its mirror image, left to right, each for about half (5 sigma) of 2,000; without, never."""
    images = pictures(5)
    plain, _, _ = seen(tiny_recipe(batch=100), images, 20)
    flipped, u, eps = seen(tiny_recipe(batch=100, flip=True), images, 20)
    kept = (flipped == plain).flatten(1).all(1)
    mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    assert bool((kept ^ mirrored).all())
    assert abs(mirrored.double().mean() - 0.5) < 5 * 0.5 / 2000**0.5
    originals = {image.numpy().tobytes() for image in nz.Pixels().encode(images.pixels)}
    assert all(image.numpy().tobytes() in originals for image in plain)
    for a, b in zip((u, eps), seen(tiny_recipe(batch=100), images, 20)[1:], strict=True):
        assert torch.equal(a, b)  # the flip takes no other draw's place


def test_noise_is_normal_and_times_are_uniform():
    """Over 2,000 samples, at 5 sigma: noise has mean 0, variance 1 and no correlation between samples, u has mean 1/2 and variance 1/12."""
    _, u, eps = seen(tiny_recipe(batch=500), pictures(), 4)
    eps = eps.double()
    n = eps.numel()
    assert abs(eps.mean()) < 5 / n**0.5 and abs(eps.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / 2000) ** 0.5 and abs(u.var() - 1 / 12) < 5 * (1 / 180 / 2000) ** 0.5
    assert abs((eps[1:] * eps[:-1]).mean()) < 5 / n**0.5


# ---- what a step does


def test_training_is_adam_on_algorithm_a1():
    """An independent loop of E-TSDM's Algorithm A1 with plain torch ends in the same weights and the same average."""
    recipe, images, seed = tiny_recipe(steps=8), pictures(), 3
    state = TrainingState(recipe, seed, CPU)
    losses = [now.loss for now in steps(state, recipe, images, seed)]
    torch.manual_seed(seed)
    network = recipe.network.build().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.training.learning_rate)
    averages = [weight.detach().double().clone() for weight in network.parameters()]
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    for n in range(8):
        x0, u, eps = batch(recipe, images, seed, n, CPU)
        k = (u * 1000).long()
        a = alpha_bar[k][:, None, None, None]
        x = (a.sqrt() * x0 + (1 - a).sqrt() * eps).float()
        told = torch.where(k < 100, k // 20 * 20, k).float()
        loss = (network(x, told) - eps).square().flatten(1).mean(1)
        torch.testing.assert_close(losses[n], loss.detach(), rtol=1e-4, atol=1e-5)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        beta = min(0.9999, (2 + n) / (11 + n))
        averages = [
            beta * old + (1 - beta) * new.detach() for old, new in zip(averages, network.parameters(), strict=True)
        ]
    for (name, weight), average, expected in zip(state.weights.items(), averages, network.parameters(), strict=True):
        # Adam divides by a gradient's own size, so rounding moves weights whose gradient is nearly 0: 8 steps of 1e-3 at most
        torch.testing.assert_close(weight.detach(), expected.detach(), rtol=1e-3, atol=2e-4, msg=name)
        torch.testing.assert_close(state.averages.kept["ema"][name].double(), average, rtol=1e-3, atol=2e-4, msg=name)


def test_the_average_is_that_of_the_weights():
    """Computed in float64 from the weights after each step, ema <- beta ema + (1 - beta) weights is the average to float32's rounding."""
    recipe = tiny_recipe(steps=30, batch=1)
    state = TrainingState(recipe, 0, CPU)
    expected = {name: weight.detach().double().clone() for name, weight in state.weights.items()}
    for now in steps(state, recipe, pictures(), 0):
        beta = (1 + now.step) / (10 + now.step)
        for name, weight in state.weights.items():
            expected[name] = beta * expected[name] + (1 - beta) * weight.detach().double()
    for name, average in state.averages.kept["ema"].items():
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-5, atol=1e-7)
    network = state.averaged().network
    for name, weight in network.named_parameters():
        assert torch.equal(weight, state.averages.kept["ema"][name])


# ---- the rate and the norm of gradients


@given(st.integers(0, 5000), st.integers(1, 64), st.integers(1, 10_000), st.floats(1e-6, 1.0))
def test_the_rate_rises_linearly_and_stays(warmup, size, step, rate):
    """Step n's rate is learning_rate times the share of `warmup` images that n batches hold, at most 1; without warm-up it is the rate from the first step."""
    training = recipes.Training(steps=1, batch=size, learning_rate=rate, flip=False, warmup=warmup)
    expected = rate if step * size >= warmup else rate * step * size / warmup
    assert training.rate(step) == pytest.approx(expected, rel=1e-12)


@pytest.fixture
def adam(monkeypatch):
    """What Adam was given in each step: its rate, the gradients' joint norm and the gradients."""
    given, step = [], torch.optim.Adam.step

    def spy(self, *arguments):
        (group,) = self.param_groups
        gradients = [weight.grad.double().clone() for weight in group["params"]]
        norm = sum(gradient.square().sum() for gradient in gradients).sqrt().item()
        given.append((group["lr"], norm, gradients))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    return given


def test_adam_warms_up(tmp_path, adam):
    """With 20 images of warm-up in batches of 4 Adam's rates are 1/5, 2/5, ... of the rate and then the rate; a resume goes on where it stopped."""
    recipe = tiny_recipe(warmup=20, steps=8)
    train(recipe, pictures(), tmp_path / "run")
    expected = [1e-3 * share for share in (0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1)]
    assert [rate for rate, _, _ in adam] == pytest.approx(expected, rel=1e-12)
    adam.clear()
    for k in (3, 8):
        train(tiny_recipe(warmup=20, steps=k), pictures(), tmp_path / "parts", resume=k == 8)
    assert [rate for rate, _, _ in adam] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("warmup", [0, 400])
def test_the_first_update_has_the_first_rate(warmup):
    """Adam's first step moves no weight by more than rate(1), and those of a gradient far above its 1e-8 by that very number."""
    recipe = tiny_recipe(warmup=warmup)
    state = TrainingState(recipe, 0, CPU)
    before = {name: weight.detach().double().clone() for name, weight in state.weights.items()}
    next(steps(state, recipe, pictures(), 0))
    first = 1e-3 * (4 / 400 if warmup else 1)
    assert recipe.training.rate(1) == pytest.approx(first, rel=1e-12)
    seen = 0
    for name, weight in state.weights.items():
        move = (weight.detach().double() - before[name]).abs()
        assert move.max().item() <= first * (1 + 1e-4) + 1e-7
        large = weight.grad.abs() > 1e-4
        seen += int(large.sum())
        # the weights are float32: near 1 they take steps of 6e-8
        assert bool(((move[large] - first).abs() <= first * 2e-4 + 1.2e-7).all())
    assert seen > 100


def test_clipped_gradients_keep_their_direction(adam):
    """No gradient that Adam is given has a norm above `clip`; a longer one is scaled down to it, a shorter one is as it was."""
    losses = []
    for clip in (None, 0.05, 1e6):
        recipe = tiny_recipe(clip=clip, steps=1)
        losses.append([now.loss for now in steps(TrainingState(recipe, 0, CPU), recipe, pictures(), 0)])
    (_, free, plain), (_, norm, short), (_, same, long) = adam
    assert free > 0.5 and same == free and all(map(torch.equal, plain, long))
    assert norm == pytest.approx(0.05, rel=1e-4) and norm <= 0.05
    for a, b in zip(plain, short, strict=True):
        torch.testing.assert_close(b, a * (norm / free), rtol=1e-5, atol=1e-12)
    adam.clear()
    recipe = tiny_recipe(clip=0.05, steps=6)
    list(steps(TrainingState(recipe, 0, CPU), recipe, pictures(), 0))
    assert len(adam) == 6 and max(norm for _, norm, _ in adam) <= 0.05


@pytest.mark.parametrize("k", [1, 4])
def test_warming_up_and_clipping_resume_bit_for_bit(tmp_path, k):
    """With warm-up, clipping and mirroring a run that stops at step k and goes on is the run that does not, and not the run without them."""
    asked = {"warmup": 20, "clip": 0.05, "flip": True}
    whole = train(tiny_recipe(**asked), pictures(), tmp_path / "whole")
    train(tiny_recipe(**asked, steps=k), pictures(), tmp_path / "parts")
    assert newest(train(tiny_recipe(**asked), pictures(), tmp_path / "parts", resume=True)) == newest(whole)
    plain = newest(train(tiny_recipe(flip=True), pictures(), tmp_path / "plain"))
    assert plain["weights.safetensors"] != newest(whole)["weights.safetensors"]


# ---- the mean of the images


def grey(count=6, seed=2):
    """Pictures that are darker on the left: no mean of them is symmetric."""
    generator = torch.Generator().manual_seed(seed)
    shade = torch.arange(8) * 20
    return nz.Images((torch.randint(0, 100, (count, 1, 8, 8), generator=generator) + shade).to(torch.uint8))


def tiny_full(name="full", **training):
    """FullDiffusion's axes with the tiny network."""
    short = tiny_recipe(**training)
    return replace(recipes.named(name), network=short.network, training=short.training, steps=5)


def written_mean(run):
    """The mean in run.json."""
    return json.loads((run.path / "run.json").read_text())["recipe"]["codec"].get("mean")


def test_full_subtracts_the_mean_of_its_images(tmp_path):
    """nz.train writes the mean image in [-1, 1] into run.json, the data it trains on have mean 0, samples get it back, and resume keeps it bit for bit."""
    images = grey()
    run = train(tiny_full(), images, tmp_path / "run")
    expected = (images.pixels.double().mean(0) / 127.5 - 1).flatten().tolist()
    assert written_mean(run) == pytest.approx(expected, abs=1e-15)
    plain = replace(run.recipe, dither=False)
    x0 = torch.cat([batch(plain, images, 0, n, CPU)[0] for n in range(3)])  # 12 samples: two epochs of six images
    assert x0.double().mean(0).abs().max().item() < 1e-6
    x = nz.sample(
        run.denoiser(),
        (1, 8, 8),
        solver=run.recipe.solver,
        grid=run.recipe.grid,
        steps=5,
        seeds=[3],
        dtype=torch.float32,
    )
    mean = torch.tensor(expected).reshape(1, 8, 8)
    torch.testing.assert_close(run.sample([3]), 127.5 * (x + mean + 1), rtol=1e-5, atol=1e-3)
    before = written_mean(run)
    train(tiny_full(steps=3), images, tmp_path / "parts")
    parts = train(tiny_full(), images, tmp_path / "parts", resume=True)
    assert written_mean(parts) == before and newest(parts) == newest(run)
    again = train(run.recipe, images, tmp_path / "parts", resume=True)  # the recipe as the run holds it
    assert newest(again) == newest(run)


def test_the_command_subtracts_the_same_mean(tmp_path):
    """`nearzero train full` writes the mean that nz.train does, of the folder's images, and trains to the same bits; resume keeps it, and full_uncentred has none."""
    folder = write_folder(tmp_path / "data")
    images = nz.read_folder(folder)
    asked = ["--data", str(folder), "--steps", "2", "--batch", "2", "--device", "cpu", "--preset", "small"]
    assert command(["train", "full", *asked, "--out", str(tmp_path / "a")]) == 0
    run = nz.Run.load(tmp_path / "a")
    small = recipes.small(recipes.full(), 8, 1)
    same = train(replace(small, training=replace(small.training, steps=2, batch=2)), images, tmp_path / "b")
    assert run.recipe == same.recipe and newest(run) == newest(same)
    assert written_mean(run) == list(nz.Centred.of(images.pixels).mean)
    assert command(["train", "--resume", "--out", str(tmp_path / "a"), "--steps", "3", "--device", "cpu"]) == 0
    assert nz.Run.load(tmp_path / "a").step == 3 and written_mean(nz.Run.load(tmp_path / "a")) == written_mean(run)
    assert command(["train", "full_uncentred", *asked, "--out", str(tmp_path / "c")]) == 0
    assert written_mean(nz.Run.load(tmp_path / "c")) is None


def test_full_uncentred_does_not(tmp_path):
    """full_uncentred and full_w train on pixels in [-1, 1] as they are, and record no mean; full_centred is full by another name."""
    images = grey()
    for name in ("full_uncentred", "full_w"):
        run = train(tiny_full(name, steps=1), images, tmp_path / name)
        assert run.recipe.codec == nz.Pixels() and written_mean(run) is None
        x0, _, _ = batch(replace(run.recipe, dither=False), images, 0, 0, CPU)
        known = (images.pixels.float() / 127.5 - 1).flatten(1).tolist()
        assert all(image in known for image in x0.flatten(1).tolist())
    runs = [train(tiny_full(name, steps=1), images, tmp_path / name) for name in ("full", "full_centred")]
    assert newest(runs[0]) == newest(runs[1]) and written_mean(runs[0]) == written_mean(runs[1])


def test_mirrored_images_have_a_symmetric_mean(tmp_path):
    """With mirroring the mean is that of all images and their mirror images, so that a mirrored image minus it plus it is that mirrored image."""
    images = grey()
    run = train(tiny_full(flip=True, steps=1), images, tmp_path / "run")
    mean = torch.tensor(written_mean(run)).reshape(8, 8)
    torch.testing.assert_close(mean, mean.flip(-1), rtol=0, atol=1e-15)
    both = torch.cat([images.pixels, images.pixels.flip(-1)])
    assert written_mean(run) == pytest.approx((both.double().mean(0) / 127.5 - 1).flatten().tolist(), abs=1e-15)
    lopsided = replace(run.recipe, codec=nz.Centred.of(images.pixels))
    known = {tuple(image.flatten().tolist()) for image in both}
    for recipe in (run.recipe, lopsided):
        x0, _, _ = batch(recipe, images, 0, 0, CPU)
        assert {tuple(image.round().int().flatten().tolist()) for image in recipe.codec.decode(x0)} <= known


def test_a_run_on_a_mean_is_not_resumed_with_other_images(tmp_path):
    """Other images have another mean: the refusal names the images, not the numbers of the mean, and another codec is told in few words."""
    train(tiny_full(steps=2), grey(), tmp_path / "run")
    with pytest.raises(DataError, match="these are not the 6 images"):
        train(tiny_full(steps=2), grey(seed=9), tmp_path / "run", resume=True)
    with pytest.raises(ArgumentError, match="another codec .*became Pixels") as caught:
        train(replace(tiny_full(steps=2), codec=nz.Pixels()), grey(), tmp_path / "run", resume=True)
    assert len(str(caught.value)) < 700


def test_antithetic_times_train(tmp_path):
    """A recipe of pairs u, 1 - u trains, comes back from disk and samples; its measurement uses even batches."""
    recipe = replace(tiny_recipe(steps=2), times=nz.Antithetic(nz.DiscreteTimes()))
    run = nz.Run.load(train(recipe, pictures(), tmp_path / "run").path)
    assert run.recipe == recipe and run.sample([0]).shape == (1, 1, 8, 8)
    assert measure(recipe, tmp_path).images_per_second > 0


# ---- signals


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_signal_handlers_come_back(tmp_path):
    """After a run that ends, stops or fails, SIGINT and SIGTERM are handled as before."""
    before = handlers()
    train(tiny_recipe(steps=1), pictures(), tmp_path / "ends")
    assert handlers() == before
    with pytest.raises(Stopped):
        train(tiny_recipe(), pictures(), tmp_path / "stops", progress=at_step(1, interrupt))
    assert handlers() == before
    with pytest.raises(ZeroDivisionError):
        train(tiny_recipe(), pictures(), tmp_path / "fails", progress=lambda now: 1 // 0)
    assert handlers() == before


def test_a_second_interrupt_does_not_wait(tmp_path, trained):
    """A second SIGINT raises KeyboardInterrupt at once, a second SIGTERM waits; the checkpoint before it stays whole."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(
            tiny_recipe(), pictures(), out, checkpoint_every=2, progress=at_step(3, lambda: [interrupt(), interrupt()])
        )
    assert nz.Run.load(out).step == 2
    assert newest(train(tiny_recipe(), pictures(), out, resume=True)) == newest(trained)
    with stop_on_signals() as stopping:
        assert not stopping()
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert stopping()


def test_training_in_a_thread(tmp_path, trained):
    """Outside the main thread, where Python takes no signals, training gives the same bits."""
    runs = []
    thread = threading.Thread(target=lambda: runs.append(train(tiny_recipe(), pictures(), tmp_path / "run")))
    thread.start()
    thread.join()
    assert newest(runs[0]) == newest(trained)


# ---- numbers that are not finite


class Poisoned(nn.Module):
    """An objective whose loss is multiplied by `by` from its n-th call on, `calls` times."""

    def __init__(self, objective, at, calls=1, by=torch.nan):
        super().__init__()
        self.objective, self.left, self.calls, self.by = objective, at, calls, by

    def forward(self, *arguments):
        return self.objective(*arguments)

    @property
    def times(self):
        return self.objective.times

    def at(self, *arguments):
        self.left -= 1
        now = self.objective.at(*arguments)
        return now._replace(loss=now.loss * (self.by if -self.calls < self.left <= 0 else 1.0))


def poison(monkeypatch, *arguments):
    """Poisons every objective that is made from now on."""
    objective = recipes.Recipe.objective
    monkeypatch.setattr(recipes.Recipe, "objective", lambda self: Poisoned(objective(self), *arguments))


def happened(run, *kinds):
    """The events of these kinds."""
    return [event for event in read_events(run.path / "events.jsonl") if event["kind"] in kinds]


@pytest.mark.parametrize("at", [1, 3, 5, 6])
@pytest.mark.parametrize("by", [torch.nan, torch.inf, 1e25])
def test_a_step_that_is_not_finite_is_left_out(tmp_path, monkeypatch, at, by):
    """NaN, infinity or a gradient whose square overflows at one step: Adam takes one step less, and an event names the samples; all stays finite."""
    poison(monkeypatch, at, 1, by)
    run = train(tiny_recipe(), pictures(), tmp_path / "run", checkpoint_every=2)
    (event,) = happened(run, "skip", "roll back", "stop")
    assert (event["kind"], event["step"], event["samples"]) == ("skip", at, [4 * at - 4, 4 * at - 1])
    assert event["what"] == ("gradient" if by == 1e25 else "loss") and event["skipped"] == 1
    moments = load_file(run.checkpoint() / "optimizer.safetensors")
    assert {value.item() for name, value in moments.items() if name.endswith(".step")} == {5.0}
    assert all(tensor.isfinite().all() for file in run.checkpoint().glob("*.safetensors") for tensor in load_file(file).values())  # fmt: skip


@pytest.mark.parametrize("at", [1, 3])
def test_many_such_steps_roll_back_and_then_stop(tmp_path, monkeypatch, at):
    """With patience 2 and one roll back, NaN from a step on rolls back to the last good checkpoint, stops two steps later with a report, and can be resumed."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        poison(patch, at, 100)
        with pytest.raises(NumericalError, match=f"not finite at step {at + 3}, after 1 roll backs; see .*report.txt"):
            train(tiny_recipe(), pictures(), out, checkpoint_every=2, guard=Guard(2, 1))
    run = nz.Run.load(out)
    assert [event["step"] for event in happened(run, "skip", "roll back", "stop")] == list(range(at, at + 4))
    assert [event["to"] for event in happened(run, "rolled_back")] == [at - 1]
    found = json.loads((out / "nan_report/report.json").read_text())
    assert found["losses_not_finite"] == list(range(4 * at + 8, 4 * at + 12)) and found["recipe"] == "etsdm"
    assert train(tiny_recipe(), pictures(), out, resume=True).step == 6


def test_a_roll_back_brings_back_every_bit(tmp_path, monkeypatch, trained):
    """Weights, averages and moments after the roll back at step 4 are those of step 2; stopping in between changes no bit of the end."""
    poison(monkeypatch, 3, 2)
    how = {"checkpoint_every": 2, "keep": Keep(9)}
    run = train(tiny_recipe(), pictures(), tmp_path / "run", guard=Guard(2, 1), **how)
    two, four = (tree(run.path / "checkpoints" / f"{step:09d}") for step in (2, 4))
    for name in ("weights.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert two[name] == four[name]
    out = tmp_path / "stopped"
    for step in (3, 4, 5):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            done = nz.Run.load(out).step if is_run(out) else 0
            poison(patch, 3 - done, 2)  # each objective counts its own calls; this is the third and fourth of all
            train(tiny_recipe(), pictures(), out, resume=step > 3, guard=Guard(2, 1), progress=at_step(step, interrupt), **how)  # fmt: skip
    end = train(tiny_recipe(), pictures(), out, resume=True, guard=Guard(2, 1), **how)
    assert newest(end) == newest(run)


@pytest.mark.parametrize("what", ["weights", "average"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_never_saved(tmp_path, monkeypatch, what, value):
    """One weight or average that is NaN or infinite is found before it is saved: the checkpoint has the bits of the one before, and an event its name."""
    apply = TrainingState.apply

    def spoil(self):
        apply(self)
        if self.step == 6:
            tensors = self.weights if what == "weights" else self.averages.kept["ema"]
            next(iter(tensors.values())).data.view(-1)[0] = value

    monkeypatch.setattr(TrainingState, "apply", spoil)
    run = train(tiny_recipe(), pictures(), tmp_path / "run", checkpoint_every=4, keep=Keep(2))
    four, six = (tree(run.path / "checkpoints" / f"{step:09d}") for step in (4, 6))
    for name in ("weights.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert four[name] == six[name]
    (event,) = happened(run, "weights_not_finite")
    assert "weights of unet.conv_in.weight are not finite at step 6" in event["error"]
    with pytest.raises(NumericalError, match="weights of unet.conv_in.weight are not finite at step 6"):
        train(tiny_recipe(), pictures(), tmp_path / "no", checkpoint_every=4, guard=Guard(10, 0))
    assert nz.Run.load(tmp_path / "no").step == 4


# ---- what a run leaves behind


def lines(run):
    return [json.loads(line) for line in (run.path / "stats.jsonl").read_text().splitlines()]


def test_stats_hold_every_loss_once(tmp_path):
    """Each line has step, images and EDM's {num, mean, std}, of all losses since the last; a stop and a resume lose and repeat none."""
    losses, out = [], tmp_path / "run"
    recipe = tiny_recipe(steps=120, batch=2)

    def watch(now):
        losses.extend(now.loss.tolist())
        if now.step == 70 and len(losses) == 140:
            interrupt()

    with pytest.raises(Stopped):
        train(recipe, pictures(), out, progress=watch)
    with (out / "stats.jsonl").open("a") as file:
        file.write('{"step": 100, "images": 200}\n{"step": 5, "ima')  # what a crash after the checkpoint may leave
    run = train(recipe, pictures(), out, resume=True, progress=watch)
    rows = lines(run)
    assert [row["step"] for row in rows] == [50, 100, 120]
    done = 0
    for row in rows:
        new = torch.tensor(losses[done : 2 * row["step"]], dtype=torch.float64)
        loss = row["Loss/loss"]
        assert loss == {
            "num": len(new),
            "mean": pytest.approx(new.mean().item()),
            "std": pytest.approx(new.std(correction=0).item()),
        }
        assert row["images"] == 2 * row["step"]
        assert row["Progress/kimg"] == {"num": 1, "mean": row["images"] / 1000, "std": 0.0}
        assert {"Timing/total_sec", "Timing/sec_per_kimg", "timestamp"} <= row.keys()
        done = 2 * row["step"]
    assert done == len(losses) == 240


def test_only_the_newest_checkpoint_stays(tmp_path):
    """A run keeps one checkpoint of safetensors and JSON, and a preview for each it made; average and weights differ."""
    run = train(tiny_recipe(), pictures(), tmp_path / "run", checkpoint_every=2)
    files = {
        f"000000006/{name}"
        for name in ("weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
    }
    assert set(tree(run.path / "checkpoints")) == {"000000006"} | files
    state = json.loads((run.checkpoint() / "state.json").read_text())
    assert (state["step"], state["images"]) == (6, 24)
    assert sorted(tree(run.path / "previews")) == ["000000002.png", "000000004.png", "000000006.png"]
    logs = ["events.jsonl", "lock", "previews", "run.json", "stats.jsonl"]
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", *logs]
    weights, average, moments = (
        load_file(run.checkpoint() / f"{name}.safetensors") for name in ("weights", "ema", "optimizer")
    )
    assert weights.keys() == average.keys()
    heard = [name for name in weights if not name.endswith("to_k.bias")]  # a softmax does not hear a bias of its keys
    assert not any(torch.equal(weights[name], average[name]) for name in heard)
    assert moments.keys() == {f"{name}.{key}" for name in weights for key in ("step", "exp_avg", "exp_avg_sq")}
    assert all(moments[f"{name}.step"] == 6 for name in weights)


def test_a_preview_shows_the_average_at_fixed_seeds(tmp_path, trained):
    """The preview is the contact sheet of the averaged weights' samples for seeds 0..15."""
    import numpy as np
    from PIL import Image

    from nearzero.files import contact_sheet

    shown = torch.from_numpy(np.asarray(Image.open(trained.path / "previews/000000006.png")).copy())
    sheet = contact_sheet(to_bytes(trained.sample(range(16))))[0]
    scale = shown.shape[1] // sheet.shape[1]
    assert torch.equal(shown[::scale, ::scale], sheet)


# ---- what training refuses


def a_run(out):
    train(tiny_recipe(steps=1), pictures(), out)


def a_folder(out):
    out.mkdir()
    (out / "thesis.tex").write_text("irreplaceable")


def a_file(out):
    out.write_text("irreplaceable")


def nothing(out):
    pass


def other(recipe, **fields):
    return replace(recipe, **fields)


tiny = tiny_recipe()
REFUSED = {
    "a run that exists": (a_run, {}, ArgumentError, "holds a run; go on with: nearzero train --resume .* --overwrite"),
    "a folder that is no run": (a_folder, {}, ArgumentError, "is no run folder; choose another --out"),
    "a folder that is no run, overwrite": (
        a_folder,
        {"overwrite": True},
        ArgumentError,
        "is no run folder; choose another --out",
    ),
    "a folder that is no run, resume": (a_folder, {"resume": True}, CheckpointError, "holds no run to resume"),
    "a file": (a_file, {}, ArgumentError, "choose another --out"),
    "a file, overwrite": (a_file, {"overwrite": True}, ArgumentError, "choose another --out"),
    "nothing to resume": (nothing, {"resume": True}, CheckpointError, "holds no run to resume; leave out --resume"),
    "resume and overwrite": (a_run, {"resume": True, "overwrite": True}, ArgumentError, "exclude each other"),
    "another recipe": (
        a_run,
        {"resume": True, "recipe": other(tiny, conditioning=nz.Timestep(1000))},
        ArgumentError,
        "another conditioning.*Shared.*Timestep",
    ),
    "another name": (
        a_run,
        {"resume": True, "recipe": other(tiny, name="mine")},
        ArgumentError,
        "another recipe .recipe: etsdm became mine",
    ),
    "another batch": (
        a_run,
        {"resume": True, "recipe": tiny_recipe(batch=5)},
        ArgumentError,
        "another training.batch .training.batch: 4 became 5",
    ),
    "another seed": (a_run, {"resume": True, "seed": 7}, ArgumentError, "seed 7: it was trained with seed 0"),
    "other images": (a_run, {"resume": True, "images": pictures(seed=1)}, DataError, "these are not the 10 images"),
    "more images": (a_run, {"resume": True, "images": pictures(11)}, DataError, "these are not the 10 images"),
    "images of another size": (
        nothing,
        {"images": pictures(size=16)},
        DataError,
        "8 x 8 with 1 channels, these are 16 x 16 with 1",
    ),
    "images in colour": (
        nothing,
        {"images": pictures(channels=3)},
        DataError,
        "8 x 8 with 1 channels, these are 8 x 8 with 3",
    ),
}


@pytest.mark.parametrize(("setup", "asked", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_what_training_refuses_it_leaves_alone(tmp_path, setup, asked, kind, message):
    """Each refusal is one line that names the value and the remedy, and not a byte of what was there changes."""
    setup(tmp_path / "out")
    before = tree(tmp_path)
    with pytest.raises(kind, match=message) as caught:
        train(**{"recipe": tiny, "images": pictures(), "out": tmp_path / "out", **asked})
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["weights", "ema", "optimizer"])
def test_a_damaged_checkpoint_is_not_resumed(run_folder, name):
    """A checkpoint file that is cut short or gone raises CheckpointError with its path, and nothing else changes."""
    path = nz.Run.load(run_folder).checkpoint() / f"{name}.safetensors"
    whole = path.read_bytes()
    for damage in (lambda: path.write_bytes(whole[:-10]), path.unlink):
        damage()
        with pytest.raises(CheckpointError, match=f"{name}.safetensors.*restore"):
            train(tiny_recipe(steps=8), pictures(), run_folder, resume=True)


@pytest.mark.parametrize("way", ["its name", "a dot", "a link"])
def test_an_empty_folder_is_as_good_as_none(tmp_path, monkeypatch, trained, way):
    """A folder that exists and is empty becomes the run, also where it is named by "." or through a link."""
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    out = {"its name": tmp_path / "out", "a dot": ".", "a link": tmp_path / "link"}[way]
    assert newest(train(tiny_recipe(), pictures(), out)) == newest(trained)
    assert nz.Run.load(tmp_path / "out").step == 6


def test_checkpoints_come_every_positive_number_of_steps(tmp_path):
    """checkpoint_every = 0 is refused with its name before anything is written."""
    with pytest.raises(ArgumentError, match="checkpoint_every.*0"):
        train(tiny_recipe(), pictures(), tmp_path / "out", checkpoint_every=0)
    assert tree(tmp_path) == {}


# ---- training learns


def templates():
    """A disc on the left or a square on the right, at five heights: (10, 8, 8) in [-1, 1], and which is which."""
    row, column = torch.meshgrid(torch.arange(8) - 3.5, torch.arange(8) - 3.5, indexing="ij")
    shapes = []
    for disc in (True, False):
        for down in range(-2, 3):
            y, x = row - down, column + (2 if disc else -2)
            shapes.append(y**2 + x**2 <= 3 if disc else torch.maximum(y.abs(), x.abs()) <= 1.5)
    return 2 * torch.stack(shapes).float() - 1, torch.arange(10) // 5


def discs_and_squares(count, seed):
    """Pixels (count, 1, 8, 8) of templates at random, each a little darker and with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    shapes, _ = templates()
    x = shapes[torch.randint(10, (count,), generator=generator)]
    x = x * torch.empty(count, 1, 1).uniform_(0.9, 1, generator=generator) + 0.02 * torch.randn(
        x.shape, generator=generator
    )
    return to_bytes(127.5 * (x + 1))[:, None]


def shares(pixels):
    """Which share of the images is a disc, and which a square: nearer than 0.4 (root mean square, of 2) to a template."""
    shapes, kinds = templates()
    distance, nearest = (to_bytes(pixels) / 127.5 - 1 - shapes).square().mean((2, 3)).sqrt().min(1)
    return [((distance < 0.4) & (kinds[nearest] == kind)).double().mean().item() for kind in (0, 1)]


def learnt(pixels):
    """At least 80 % are one or the other, and each is at least 15 %."""
    return sum(shares(pixels)) >= 0.8 and min(shares(pixels)) >= 0.15


def test_training_learns(tmp_path):
    """After 250 steps of 16 on discs and squares, samples are discs and squares of both kinds; nothing less passes."""
    images = nz.Images(discs_and_squares(512, seed=0))
    recipe = recipes.small(recipes.etsdm(), 8, 1)
    recipe = replace(recipe, training=replace(recipe.training, steps=250, batch=16))
    torch.manual_seed(0)
    untrained = recipe.denoiser()
    with torch.no_grad():
        for parameter in untrained.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    run = train(recipe, images, tmp_path / "run")

    assert learnt(discs_and_squares(64, seed=1))  # genuine images that it has not seen
    one_kind = images.pixels[[i for i in range(512) if shares(images.pixels[i : i + 1])[0]]]
    for wrong in (
        pictures(64, size=8).pixels,  # noise
        torch.zeros(64, 1, 8, 8),  # nothing
        images.pixels.float().mean(0).expand(64, 1, 8, 8),  # the mean of all
        torch.maximum(*discs_and_squares(2 * len(one_kind), 2).chunk(2)),  # two at once
        one_kind,
        images.pixels.transpose(2, 3),
        run.sample(range(64), denoiser=untrained),
    ):
        assert not learnt(wrong)
    samples = run.sample(range(64))
    assert learnt(samples), shares(samples)


# ---- dither


def test_dither_fills_each_grey_level():
    """With `dither` training sees pixel value k anywhere in (k - 1/2, k + 1/2), as a function of (seed, sample index) alone."""
    images, recipe = pictures(), replace(tiny_recipe(), dither=True)
    plain, _, _ = batch(replace(recipe, dither=False), images, 0, 3, torch.device("cpu"))
    x0, _, _ = batch(recipe, images, 0, 3, torch.device("cpu"))
    away = recipe.codec.decode(x0) - recipe.codec.decode(plain)
    assert away.abs().max() < 0.5001 and away.std().item() == pytest.approx(12**-0.5, rel=0.1)
    assert torch.equal(x0, batch(recipe, images, 0, 3, torch.device("cpu"))[0])
