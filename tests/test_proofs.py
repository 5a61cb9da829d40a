"""Proofs of many minutes: `make proofs`."""

import math
from dataclasses import replace

import pytest

import nearzero as nz
from conftest import tiny_recipe
from nearzero import recipes
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
