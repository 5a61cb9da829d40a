"""Healing a checkpoint: a pipeline trained further, told one number for each cell near t = 0."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nearzero.conditioning import Shared
from nearzero.data.images import Images
from nearzero.errors import CheckpointError
from nearzero.files import new_folder
from nearzero.grid import TimestepGrid
from nearzero.interop.imported import Imported, imported
from nearzero.interop.pipeline_run import TRAINING, kept, recipe
from nearzero.interop.sharing import has_equal_rows, shared_by, shared_condition
from nearzero.networks.foreign import time_embedding
from nearzero.networks.pretrained import Pretrained, add_lora
from nearzero.recipe import Recipe, Training
from nearzero.run import Run, fill
from nearzero.training.averages import Averages
from nearzero.training.checkpoint import save
from nearzero.training.engine import Engine
from nearzero.training.loop import train
from nearzero.training.start import check_fit, check_folder
from nearzero.training.state import TrainingState
from nearzero.training.step import Progress


def plan(found: Imported, name: str, share: tuple[float, int] | None, training: Training, rank: int = 0) -> Recipe:
    """The recipe of a fine-tuning: the pipeline's axes, with `share` (interval, cells) in its own timesteps.

    Raises CheckpointError where the pipeline is shared already, or its model is not one of pixels; ArgumentError for
    cells that are none.
    """
    conditioning = found.conditioning
    if shared_by(found.model) is not None:
        raise CheckpointError(f"{name} is shared already, by a hook; unshare it, and say share=(interval, cells)")
    if time_embedding(found.model) == "learned" and has_equal_rows(found.model):
        raise CheckpointError(
            f"{name} is shared already, by a table of timesteps whose header is lost; train the folder that nearzero "
            "exported, or the model that it was made of"
        )
    if share is not None:
        if isinstance(conditioning, Shared):
            had = f"{conditioning.interval:g}/{conditioning.cells}"
            raise CheckpointError(
                f"{name} is shared already, {had}; leave --share out, or take the model it was made of"
            )
        asked = found.asked
        conditioning = shared_condition(*share, asked.steps, flow=asked.flow, fourier=found.schedule.fourier)
    made = recipe(found, name, conditioning)
    if share is not None and made.grid == TimestepGrid("leading"):  # 50 of them visit the cells' lower edges alone
        made = replace(made, grid=TimestepGrid("trailing"))
    return replace(made, training=training, network=Pretrained.of(found.asked, rank))


def start(source: Imported, found: Recipe, images: Images, out: Path, *, seed: int, record: Mapping[str, Any]) -> None:
    """A run folder, whole or not there, whose checkpoint of step 0 holds the pipeline's weights."""
    rank = getattr(found.network, "rank", 0)
    if rank:
        source = copy.deepcopy(source)  # which may be the caller's own pipeline
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            add_lora(source.model, rank)
    state = TrainingState(found, seed, Engine("cpu", alone=True).device)
    fill(state.denoiser.network, source.network.state_dict())
    state.averages = Averages(state.weights, found.training)
    with new_folder(out) as aside:
        told = {**images.describe(), "source": dict(record), "scheduler": kept(source)}
        run = Run.create(aside, found, told, seed)
        save(state, run)


def finetune(
    source: Any,
    images: Images,
    out: str | Path,
    *,
    share: tuple[float, int] | None = None,
    training: Training | None = None,
    rank: int = 0,
    seed: int = 0,
    overwrite: bool = False,
    engine: Engine | None = None,
    record: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **how: Any,
) -> Run:
    """Trains a diffusers pipeline of pixels further, with shared timesteps, into the run folder `out`.

    `source` is what `from_diffusers` takes. `share` is (interval, cells) in the model's timesteps; None trains it as
    it is told now, for comparison. `training` says how long and how fast: by default 1,000 steps of 16 images at a
    rate of 1e-5. With `rank` only a LoRA of that rank is trained. `how` goes to `train`, with which an interrupted run
    also goes on (resume=True). `to_diffusers(run, path)` writes the result as a pipeline.

        run = nz.finetune("my-ddpm", nz.read_folder("my_images", size=32), "runs/healed", share=(100, 5))
    """
    out, engine = Path(out), Engine("cpu") if engine is None else engine
    engine.first(lambda: check_folder(out, resume=False, overwrite=overwrite))
    with engine.together():
        before = imported(source)
        name = Path(source).resolve().name if isinstance(source, (str, Path)) else type(before.model).__name__
        found = plan(before, name, share, training or TRAINING, rank)
        check_fit(found, images)
    told = {"pipeline": str(source) if isinstance(source, (str, Path)) else type(source).__name__, **(record or {})}
    engine.first(lambda: start(before, found, images, out, seed=seed, record=told))
    return train(found, images, out, seed=seed, resume=True, engine=engine, progress=progress, source=told, **how)
