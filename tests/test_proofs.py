"""Proofs of many minutes: `make proofs`."""

import math
from dataclasses import replace

import pytest
import torch

import nearzero as nz
from conftest import tiny_recipe
from nearzero import recipes
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
    assert low < 1e-16 and high > 1 - 1e-15
    for tensors in state.tensors().values():
        assert all(tensor.isfinite().all() for tensor in tensors.values())
