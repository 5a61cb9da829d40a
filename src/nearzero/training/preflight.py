"""What a run will cost, measured before it starts."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import NamedTuple

import torch

from nearzero.errors import DiskError
from nearzero.files import check_writable, existing
from nearzero.recipe import Recipe
from nearzero.training.memory import memory_advice
from nearzero.training.state import TrainingState, count


class Cost(NamedTuple):
    """Parameters, images per second of training, seconds for the steps to come, bytes on disk and bytes free there."""

    parameters: int
    images_per_second: float
    seconds: float
    disk: int
    free: int


def measure(
    recipe: Recipe,
    out: Path,
    device: torch.device | str = "cpu",
    done: int = 0,
    *,
    kept: int = 1,
    check_space: bool = True,
) -> Cost:
    """Trains a throw-away network on noise for a moment; `done` steps of the run need not be trained again.

    The disk must hold `kept` checkpoints and the one that is being written. Raises DiskError where `out` cannot be
    written, before a network is made, or has too little space, unless `check_space` is off; OutOfMemoryError where the
    batch does not fit.
    """
    check_writable(out)
    state = TrainingState(recipe, 0, torch.device(device))
    disk = (kept + 1) * checkpoint_bytes(state) + 2**20  # 1 MiB for logs and previews
    free = shutil.disk_usage(existing(out)).free
    if check_space and free < disk:
        raise DiskError(
            f"{out} has {free / 1e6:,.1f} MB free and this run needs {disk / 1e6:,.1f} MB for {kept + 1} checkpoints; "
            "free some space, choose another --out, or start all the same with --no-space-check"
        )
    with memory_advice(recipe.training.batch):
        speed = _speed(state, recipe)
    left = (recipe.training.steps - done) * recipe.training.batch
    return Cost(count(state.weights.values()), speed, left / speed, disk, free)


def checkpoint_bytes(state: TrainingState) -> int:
    """The bytes of one checkpoint: weights, every average, what the objective learns, and Adam's two moments.

    Headers and JSON are left out. The moments count before Adam has made them.
    """
    files = {name: tensors for name, tensors in state.tensors().items() if name != "optimizer"}
    moments = sum(2 * weight.nbytes + 4 for weight in state.trained.values())
    return moments + sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())


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
