"""Where training starts: what a folder may become, and what a run may resume with."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from nearzero import zoo
from nearzero.data.images import Images
from nearzero.errors import ArgumentError, CheckpointError, DataError
from nearzero.files import check_writable, disk_errors
from nearzero.manifest import checkpoints, problem
from nearzero.recipe import Recipe, differences
from nearzero.run import Run, is_ours, is_run
from nearzero.training.checkpoint import ASIDE


def check_fit(recipe: Recipe, images: Images) -> None:
    """Raises DataError where the recipe's network takes other images than these."""
    network = recipe.network
    if (network.size, network.channels) != (images.size, images.channels):
        takes, are = (
            f"{size} x {size} with {channels} channels"
            for size, channels in ((network.size, network.channels), (images.size, images.channels))
        )
        raise DataError(
            f"the network takes images of {takes}, these are {are}; "
            f"fit the recipe with recipes.small(recipe, {images.size}, {images.channels})"
        )


def open_run(
    out: Path,
    recipe: Recipe,
    images: Images,
    seed: int,
    *,
    resume: bool,
    source: dict[str, Any] | None = None,
    other_data: bool = False,
) -> Run:
    """The run folder to train in: the one to resume, or a new one in place of what a former run wrote there."""
    if resume:
        return _reopen(Run.load(out), recipe, images, seed, source, other_data)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for name in ("checkpoints", "previews", "nan_report", "tensorboard", "wandb"):
            if (out / name).exists():
                shutil.rmtree(out / name)
        for name in ("stats.jsonl", "events.jsonl", "run.json"):  # until the last it is a run, which may be overwritten
            (out / name).unlink(missing_ok=True)
    return Run.create(out, recipe, {**images.describe(), "source": source or {}}, seed)


def check_folder(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Raises before anything is written where `out` cannot become, or is not, the run folder that is asked for."""
    if resume and overwrite:
        raise ArgumentError(
            "--resume and --overwrite exclude each other; resume goes on with the run, overwrite deletes it"
        )
    zoo.check_trainable(out)
    if resume and not is_run(out):
        raise CheckpointError(f"{out} holds no run to resume; leave out --resume to start one")
    if resume:
        _check_resumable(out)
        return
    check_writable(out)
    if not out.exists() or (out.is_dir() and all(_is_left(path.name) for path in out.iterdir())):
        return
    if not is_run(out):
        raise ArgumentError(f"{out} exists and is no run folder; choose another --out")
    if not is_ours(out):
        raise ArgumentError(f"{out / 'run.json'} is damaged or not nearzero's; delete it or choose another --out")
    if not overwrite:
        raise ArgumentError(
            f"{out} holds a run; go on with: nearzero train --resume --out {out}, or delete it with --overwrite"
        )


def _check_resumable(out: Path) -> None:
    """Raises CheckpointError where the newest checkpoint is whole and yet holds nothing to go on with."""
    newest = next(iter(checkpoints(out / "checkpoints")), None)
    if newest is not None and not (newest / "weights.safetensors").exists() and problem(newest) is None:
        raise CheckpointError(
            f"{newest} holds averaged weights alone, without the optimizer, and cannot be resumed; train it further as "
            f"a pipeline: nearzero export {out} DIR, then nearzero finetune DIR --data IMAGES --out RUN"
        )


SAFE = {"solver", "grid", "steps", "through"}
"""Fields of a recipe that say how to sample: a resumed run may change them, and of its training LENGTH."""

LENGTH = {"steps", "learning_rate", "warmup", "clip"}


def unsafe(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """What differs between a run's recipe and the one to go on with, and would make another run of it."""
    found = {name: pair for name, pair in differences(old, new).items() if name not in SAFE}
    if "training" in found:
        a, b = found.pop("training")
        pairs = {
            f"training.{f.name}": (getattr(a, f.name), getattr(b, f.name)) for f in fields(a) if f.name not in LENGTH
        }
        found |= {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return found if old.name == new.name else {"recipe": (old.name, new.name), **found}


def _is_left(name: str) -> bool:
    """Whether this is what a process leaves that is killed before there is a run."""
    return name == "lock" or ASIDE.fullmatch(name) is not None


def _reopen(
    run: Run, recipe: Recipe, images: Images, seed: int, source: dict[str, Any] | None, other_data: bool
) -> Run:
    described = images.describe()
    if described["fingerprint"] != run.data.get("fingerprint") and not other_data:
        raise DataError(
            f"cannot resume {run.path}: these are not the {run.data.get('count')} images that it was trained on; "
            "give the same --data and --size, or --allow-data-change"
        )
    changed = unsafe(run.recipe, recipe)
    if changed:
        told = "; ".join(f"{name}: {_brief(old)} became {_brief(new)}" for name, (old, new) in changed.items())
        first = next(iter(changed))
        raise ArgumentError(f"cannot resume {run.path} with another {first} ({told}); use --overwrite or another --out")
    if seed != run.seed:
        raise ArgumentError(f"cannot resume {run.path} with seed {seed}: it was trained with seed {run.seed}")
    if recipe.training.steps < run.step:
        raise ArgumentError(
            f"{run.path} has been trained for {run.step} steps, more than {recipe.training.steps}; ask for more --steps"
        )
    told = {} if source is None else {"source": source}
    run = replace(run, recipe=recipe, data={**run.data, **described, **told})
    run.write()
    return run


def _brief(value: object) -> str:
    """A value in at most 300 characters: a mean image has thousands of numbers."""
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]}..."
