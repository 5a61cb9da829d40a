"""The training loop.

Step n trains on the global samples n * batch ... (n + 1) * batch - 1. Which image a sample is, its time, its noise
and its flip are functions of (seed, sample index) alone, so a run that stops and goes on is the run that did not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nearzero.codec import fitted
from nearzero.data.images import Images
from nearzero.errors import ArgumentError, Stopped
from nearzero.files import grid_png, to_bytes, write_bytes
from nearzero.randomness import Stream, normal, order, step_seed, uniform, uniforms
from nearzero.recipe import Recipe
from nearzero.registry import encode
from nearzero.run import Run, try_recipe
from nearzero.sampling import sample
from nearzero.training.checkpoint import load, save
from nearzero.training.signals import stop_on_signals
from nearzero.training.start import check_fit, check_folder, open_run
from nearzero.training.state import TrainingState
from nearzero.training.stats import Stats


class Progress(NamedTuple):
    """Where training is: steps done, and the losses (batch,) of the last one, on the device."""

    step: int
    loss: Tensor


def batch(recipe: Recipe, images: Images, seed: int, step: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Data x0, uniform numbers u and noise eps of step `step`: (B, C, H, W) float32, (B,) float64, (B, C, H, W)."""
    size = recipe.training.batch
    index = torch.arange(step * size, (step + 1) * size)
    pixels = images.pixels[order(seed, index, len(images))].to(device)
    if recipe.training.flip:  # before the codec, which may subtract a mean image that is not symmetric
        mirrored = (uniform(seed, Stream.FLIP, index) < 0.5).to(device)
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    home = index.to(device) if device.type == "cuda" else index  # draws need float64, which MPS lacks
    if recipe.dither:
        pixels = pixels + (uniforms(seed, Stream.DITHER, home, tuple(pixels.shape[1:])) - 0.5).to(device)
    x0 = recipe.codec.encode(pixels)
    eps = normal(seed, Stream.NOISE, home, tuple(x0.shape[1:])).to(device)
    return x0, uniform(seed, Stream.TIME, index), eps


def steps(state: TrainingState, recipe: Recipe, images: Images, seed: int) -> Iterator[Progress]:
    """Trains from state.step to recipe.training.steps, one step for each item."""
    device = state.device
    while state.step < recipe.training.steps:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(step_seed(seed, state.step))  # for what the network draws, such as dropout
            loss = state.objective(state.denoiser, *batch(recipe, images, seed, state.step, device))
            state.update(loss.mean())
        yield Progress(state.step, loss.detach())


def train(
    recipe: Recipe,
    images: Images,
    out: str | Path,
    *,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    device: torch.device | str = "cpu",
    checkpoint_every: int = 500,
    progress: Callable[[Progress], None] | None = None,
    source: dict[str, Any] | None = None,
) -> Run:
    """Trains `recipe` on `images` into the run folder `out` and returns the run.

    The recipe's network must fit the images: `recipes.small(recipes.etsdm(), images.size, images.channels)`. A folder
    that exists needs `resume` (go on from its newest checkpoint, with the same recipe but for the number of steps) or
    `overwrite` (replace the run in it). Checkpoints and previews come every `checkpoint_every` steps and at the end.
    SIGINT and SIGTERM finish the step, save and raise Stopped. `source` is recorded with the data.
    Raises ArgumentError, DataError, CheckpointError, NumericalError or DiskError, each of one line.
    """
    out, device = Path(out), torch.device(device)
    check_fit(recipe, images)
    recipe = replace(recipe, codec=fitted(recipe.codec, images.pixels, mirrored=recipe.training.flip))
    if not 0 <= seed < 2**32:
        raise ArgumentError(f"a seed is an integer from 0 to 2^32 - 1, got {seed}")
    if checkpoint_every < 1:
        raise ArgumentError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
    check_folder(out, resume=resume, overwrite=overwrite)
    encode(recipe)  # what cannot be saved, and then what does not work, fails before the folder is touched
    try_recipe(recipe)
    state = TrainingState(recipe, seed, device)
    run = open_run(out, recipe, images, seed, resume=resume, source=source)
    checkpoint = run.checkpoint()
    if checkpoint is not None:
        load(state, checkpoint)
    with Stats(run.path / "stats.jsonl", state.step, recipe.training) as stats, stop_on_signals() as stopping:
        for now in steps(state, recipe, images, seed):
            stats.add(now.step, now.loss)
            if progress is not None:
                progress(now)
            last, stop = now.step == recipe.training.steps, stopping()
            if last or stop or now.step % checkpoint_every == 0:
                stats.flush(now.step)
                save(state, run)
                _preview(run, state)
            if stop and not last:
                raise Stopped(
                    f"stopped at step {now.step} of {recipe.training.steps} with a valid checkpoint in {out}; "
                    "go on with --resume"
                )
    return run


def _preview(run: Run, state: TrainingState, count: int = 16) -> None:
    recipe = run.recipe
    shape = (recipe.network.channels, recipe.network.size, recipe.network.size)
    x = sample(
        recipe.sampled(state.averaged()),
        shape,
        solver=recipe.solver,
        grid=recipe.grid,
        steps=min(recipe.steps, 50),
        seeds=range(count),
        dtype=torch.float32,
    )
    write_bytes(run.path / "previews" / f"{state.step:09d}.png", grid_png(to_bytes(recipe.codec.decode(x))))
