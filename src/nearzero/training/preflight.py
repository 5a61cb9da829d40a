"""What a run will cost, measured before it starts."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import NamedTuple

import torch

from nearzero.errors import DiskError
from nearzero.files import existing
from nearzero.recipe import Recipe
from nearzero.training.state import TrainingState, count


class Cost(NamedTuple):
    """Parameters, images per second of training, seconds for the steps to come, bytes on disk and bytes free there."""

    parameters: int
    images_per_second: float
    seconds: float
    disk: int
    free: int


def measure(recipe: Recipe, out: Path, device: torch.device | str = "cpu", done: int = 0) -> Cost:
    """Trains a throw-away network on noise for a moment; `done` steps of the run need not be trained again.

    Raises DiskError where `out` has too little space.
    """
    state = TrainingState(recipe, 0, torch.device(device))
    parameters = count(state.weights.values())
    disk = 2 * 16 * parameters + 2**20  # weights, average, two moments in float32; twice while one replaces the other
    free = shutil.disk_usage(existing(out)).free
    if free < disk:
        raise DiskError(
            f"{out} has {free / 1e6:,.0f} MB free and this run needs {disk / 1e6:,.0f} MB; "
            "free some space or choose another --out"
        )
    speed = _speed(state, recipe)
    return Cost(parameters, speed, (recipe.training.steps - done) * recipe.training.batch / speed, disk, free)


def _speed(state: TrainingState, recipe: Recipe) -> float:
    """Images per second: batches of 2, 16, 128, ... up to the recipe's, each warmed up, until one takes half a second.

    Even ones, as Antithetic takes pairs.
    """
    batch = recipe.training.batch
    size = min(2, batch)
    while True:
        _step(state, recipe, size)
        seconds = min(_step(state, recipe, size) for _ in range(2))
        if seconds > 0.5 or size == batch:
            return size / seconds
        size = min(batch, 8 * size)


def _step(state: TrainingState, recipe: Recipe, size: int) -> float:
    network = recipe.network
    device = next(iter(state.weights.values())).device
    x0 = torch.zeros(size, network.channels, network.size, network.size, device=device)
    u = torch.full((size,), 0.5, dtype=torch.float64)
    start = time.perf_counter()
    loss = state.objective(state.denoiser, x0, u, torch.ones_like(x0)).mean()
    state.update(loss)
    loss.item()
    return time.perf_counter() - start
