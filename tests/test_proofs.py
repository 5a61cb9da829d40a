"""Proofs of many minutes: `make proofs`."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

import nearzero as nz
from conftest import tiny_recipe, tree
from nearzero import recipes
from nearzero.training.lock import holder
from nearzero.training.state import TrainingState
from nearzero.training.stats import read_losses


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_thousand_steps_of_every_recipe(name, tmp_path):
    """1,000 training steps of each recipe on 16 x 16 images: no loss, weight or sample that is not finite, and a lower loss."""
    small = recipes.small(recipes.named(name), 16, 1)
    network = replace(tiny_recipe().network, size=16)
    training = replace(small.training, steps=1000, batch=8)
    run = nz.train(replace(small, network=network, training=training), nz.embedded(16), tmp_path / "run")
    losses = [mean for _, mean in read_losses(run.path / "stats.jsonl")]
    assert len(losses) == 20 and all(map(math.isfinite, losses))  # a loss or weight that is not finite raises
    assert sum(losses[-5:]) < sum(losses[:5])
    assert run.sample(range(4)).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "full_w"])
def test_five_thousand_steps_at_the_ends_of_time(name):
    """5,000 steps in which two of eight times are the smallest and the largest that exist: all losses, weights and moments stay finite."""
    recipe = recipes.small(recipes.named(name), 16, 1)
    recipe = replace(recipe, network=replace(tiny_recipe().network, size=16))
    images = nz.embedded(16).pixels
    if name == "full":
        recipe = recipes.centred(recipe, images)
    state = TrainingState(recipe, 0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    start, end = 2.0**-53, 1 - 2.0**-53
    times = []
    for _ in range(5000):
        chosen = torch.randint(len(images), (8,), generator=generator)
        dithered = images[chosen] + torch.rand(8, 1, 16, 16, generator=generator) - 0.5
        u = torch.rand(8, generator=generator, dtype=torch.float64)
        u[0], u[7] = start, end
        seen = state.objective.evaluate(
            state.denoiser, recipe.codec.encode(dithered), u, torch.randn(8, 1, 16, 16, generator=generator)
        )
        assert seen.loss.isfinite().all()
        times.append((seen.t.min().item(), seen.t.max().item()))
        state.update(seen.loss.mean())
    low, high = (f(end for end in ends) for f, ends in zip((min, max), zip(*times, strict=True), strict=True))
    assert low < 1e-16 and high > 1 - 16 * 2.0**-53  # LogTimes stretches u by 6.9 at 1
    for tensors in state.tensors().values():
        assert all(tensor.isfinite().all() for tensor in tensors.values())


MINUTES = float(os.environ.get("NEARZERO_PROOF_MINUTES", "15"))
"""How long the run trains that is killed twenty times, and the other one."""


class Trial:
    """`nearzero train` into a folder, as often as it takes."""

    def __init__(self, out, *arguments):
        self.out, self.arguments = out, list(arguments)

    def start(self):
        """A process that begins the run or goes on with it."""
        how = ["--resume"] if (self.out / "run.json").exists() else []
        command = [sys.executable, "-m", "nearzero", "train", *self.arguments, *how, "--out", str(self.out)]
        with (self.out.parent / f"{self.out.name}.log").open("a") as said:
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=said)

    def step(self):
        """That of the newest whole checkpoint."""
        return nz.Run.load(self.out).step if (self.out / "run.json").exists() else 0

    def files(self):
        """Every bit that does not depend on the clock: the newest checkpoint, the previews, the lines of stats.jsonl."""
        checkpoint = nz.Run.load(self.out).checkpoint()
        rows = [json.loads(line) for line in (self.out / "stats.jsonl").read_text().splitlines()]
        clock = ("timestamp", "Progress/images_per_sec", "Timing/")
        rows = [{key: value for key, value in row.items() if not key.startswith(clock)} for row in rows]
        return {"step": checkpoint.name, "stats": rows, **tree(checkpoint), **tree(self.out / "previews")}


@pytest.mark.slow
def test_a_run_killed_twenty_times_is_one_that_was_not(tmp_path, capsys):
    """`nearzero train`, for 15 minutes, killed 20 times at random moments by SIGKILL or SIGTERM and resumed each time, ends in
    the checkpoint, the previews and the statistics of one that was not killed, bit for bit."""
    asked = ["etsdm", "--size", "16", "--preset", "small", "--batch", "16", "--device", "cpu"]
    dry = [sys.executable, "-m", "nearzero", "train", *asked, "--out", str(tmp_path / "no"), "--dry-run", "--json"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    cost = json.loads(subprocess.run(dry, env=env, capture_output=True, check=True).stdout)["cost"]
    steps = max(100, round(60 * MINUTES * cost["images_per_second"] / 16))
    asked += ["--steps", str(steps), "--checkpoint-every", str(max(20, steps // 25))]
    whole, parts, rng = Trial(tmp_path / "whole", *asked), Trial(tmp_path / "parts", *asked), random.Random(2026)
    beside, story = whole.start(), []
    try:
        for kill in range(1, 21):
            running, number = parts.start(), rng.choice([signal.SIGKILL, signal.SIGTERM])
            if rng.random() < 0.8:  # the others hit the start
                while running.poll() is None and getattr(holder(parts.out), "pid", 0) != running.pid:
                    time.sleep(0.01)
            time.sleep(rng.uniform(0, 1.2 * 60 * MINUTES / 20))
            assert running.poll() is None, f"the run ended before kill {kill}"
            running.send_signal(number)
            code = running.wait(timeout=600)
            assert code == -number or (number, code) == (signal.SIGTERM, 75)
            story.append(f"{kill:2}: {number.name}, exit {code}, checkpoint at step {parts.step():,} of {steps:,}")
        assert parts.start().wait() == 0 and beside.wait() == 0
    finally:
        beside.kill()
        beside.wait()
    assert parts.step() == steps and parts.files() == whole.files()
    with capsys.disabled():
        print("", *story, f"{steps:,} steps, {len(parts.files()) - 2} files and {len(parts.files()['stats'])} lines equal", sep="\n")  # fmt: skip
