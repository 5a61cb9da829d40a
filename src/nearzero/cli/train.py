"""nearzero train."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearzero.cli import train_words as words
from nearzero.cli.common import (
    check_apart,
    device_option,
    emit,
    is_named,
    json_option,
    load_images,
    parse_share,
    pick_device,
    progress,
)
from nearzero.errors import ArgumentError, NearzeroError, OutOfMemoryError

if TYPE_CHECKING:
    from nearzero.data.images import Images
    from nearzero.recipes import Recipe
    from nearzero.run import Run
    from nearzero.training.engine import Engine
    from nearzero.training.preflight import Cost
    from nearzero.training.step import Progress

DATA_HELP = (
    "Folder or .zip of PNG, JPEG or WebP images, subfolders being classes; .npz or .npy array; or a name such as "
    "cifar10 (nearzero data list).  [default: 2,000 embedded Fashion-MNIST images]"
)
SHARE_HELP = (
    "Tell the network one time for each of N cells of the first T timesteps, as 100/5.  [default: the recipe's]"
)
ACCUMULATE_HELP = "Compute a batch in A parts, one after the other: less memory, the same training.  [default: 1]"
CAST_HELP = "Of the network's own arithmetic.  [default: no]"
KEEP_HELP = "How many checkpoints stay: the newest K.  [default: 1]"
LOG_HELP = "Copy stats.jsonl to tensorboard, wandb or trackio too; may be repeated. None of them can stop a run."
BAD_HELP = "What to do with one bad image, or at most 0.1 %.  [default: error]"
SPACE_HELP = "Start even where the disk seems too small."
CHANGE_HELP = "Resume on other images than the run was trained on."
PRESET_HELP = "small: a network for CPUs; paper: the paper's table.  [default: paper on a GPU, small elsewhere]"


@click.command()
@click.argument("recipe", required=False)
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help=DATA_HELP)
@click.option("--out", type=click.Path(path_type=Path), metavar="RUN", required=True, help="Run folder to write.")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Training steps.  [default: the preset's]")
@click.option("--batch", type=click.IntRange(min=1), metavar="B", help="Images a step.  [default: the preset's]")
@click.option(
    "--size", type=click.IntRange(min=1), metavar="S", help="Bring the shorter side to S pixels and cut out the centre."
)
@click.option("--channels", type=int, metavar="1|3", help="Make all images grey (1) or colour (3).")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    metavar="K",
    help="Seed of weights, order, times and noise.  [default: 0]",
)
@click.option("--preset", type=click.Choice(["small", "paper"]), help=PRESET_HELP)
@click.option("--share", metavar="T/N", help=SHARE_HELP)
@click.option("--accumulate", type=click.IntRange(min=1), default=1, metavar="A", help=ACCUMULATE_HELP)
@click.option("--precision", type=click.Choice(["no", "bf16", "fp16"]), help=CAST_HELP)
@click.option("--checkpointing", is_flag=True, help="Compute features again instead of keeping them: less memory.")
@click.option("--compile", is_flag=True, help="Give the network to torch.compile.")
@click.option("--fsdp", is_flag=True, help="Split weights among processes instead of copying them.")
@click.option("--checkpoint-every", type=click.IntRange(min=1), metavar="N", help="Steps.  [default: 500]")
@click.option("--preview-every", type=click.IntRange(min=1), metavar="N", help="Steps.  [default: with checkpoints]")
@click.option("--keep", type=click.IntRange(min=1), metavar="K", help=KEEP_HELP)
@click.option("--log", multiple=True, metavar="NAME", help=LOG_HELP)
@click.option("--bad-images", type=click.Choice(["error", "skip", "replace"]), help=BAD_HELP)
@click.option("--allow-data-change", "other_data", is_flag=True, help=CHANGE_HELP)
@click.option("--no-space-check", "check_space", is_flag=True, default=True, flag_value=False, help=SPACE_HELP)
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in RUN; what is not given is as it was.")
@click.option("--overwrite", is_flag=True, help="Delete the run in RUN first.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and stop.")
@device_option
@json_option
def command(
    recipe: str | None,
    out: Path,
    steps: int | None,
    batch: int | None,
    seed: int | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    device: str,
    as_json: bool,
    check_space: bool,
    **asked: Any,
) -> None:
    """Train RECIPE (ddpm, etsdm) on a folder of images.

    \b
    nearzero train etsdm --data my_images --size 32 --out runs/mine
    nearzero train etsdm --share 50/10 --out runs/finer
    nearzero train --resume --out runs/mine --steps 20000
    torchrun --nproc_per_node=2 -m nearzero train etsdm --out runs/mine

    Ctrl-C saves first (exit code 75); --resume goes on as if nothing had happened.
    """
    from nearzero.run import Run
    from nearzero.training.loop import train
    from nearzero.training.start import check_folder

    device = pick_device(device)
    engine = _engine(asked, device, out if resume else None)
    how = {name: asked.pop(name) for name in ("log", "other_data")}
    share = None if (told := asked.pop("share")) is None else parse_share(told)
    with engine.together():
        _check_recipe(recipe, resume, how["log"], share)
    engine.first(lambda: check_folder(out, resume=resume, overwrite=overwrite))
    with engine.together():
        former = Run.load(out) if resume else None
        source = _source(asked, former, device)
        check_apart(source["data"], out, "--data")
        notices: list[dict[str, Any]] = []
        images = _images(source, notices)
        fitted = _fit(recipe, former, images, source["preset"], steps, batch, share)
        engine.rows(fitted.training.batch)
    seed = seed if seed is not None else former.seed if former else 0
    done = former.step if former else 0
    cost = engine.first(lambda: _cost(fitted, out, engine, done, source["keep"], check_space))
    document = words.document(fitted, images, cost, seed, out, engine)
    if engine.main:
        words.announce(document, source["preset"])
    said, text = {"dry_run": True}, f"dry run: nothing written to {out}"
    if not dry_run:
        with _bar(engine, fitted, done) as show:
            how |= {"seed": seed, "resume": resume, "overwrite": overwrite, "engine": engine, **_saving(source)}
            run = train(fitted, images, out, **how, source=source, progress=show, notices=notices)
        said, text = words.done(run)
    if engine.main:
        emit({**document, **said}, text, as_json)
    engine.close()


def _saving(source: dict[str, Any]) -> dict[str, Any]:
    """How often to save and to look, and what to keep: as asked, or as the run did before."""
    from nearzero.manifest import Keep

    return {"keep": Keep(source["keep"]), **{name: source[name] for name in ("checkpoint_every", "preview_every")}}


def _engine(asked: dict[str, Any], device: str, former: Path | None) -> Engine:
    """The options that say how training computes; the precision is a former run's unless given."""
    from nearzero.files import read_json
    from nearzero.training.engine import Engine

    if former is not None and asked["precision"] is None:
        with contextlib.suppress(NearzeroError, AttributeError, KeyError, TypeError):  # said when the run is loaded
            asked["precision"] = read_json(former / "run.json")["data"]["source"].get("precision")
    asked["precision"] = asked["precision"] or "no"
    strategy = "fsdp" if asked.pop("fsdp") else "ddp"
    given = {name: asked.pop(name) for name in ("checkpointing", "compile")}
    accumulation = asked.pop("accumulate")
    return Engine(device, asked["precision"], accumulation, strategy=strategy, **given)


def _images(source: dict[str, Any], notices: list[dict[str, Any]]) -> Images:
    """The run's images; what is done with bad ones is noted."""

    def note(path: str, what: str) -> None:
        notices.append({"kind": "bad_image", "path": path, "done": what})

    return load_images(source["data"], source["size"], source["channels"], source["bad_images"], note)


def _cost(recipe: Recipe, out: Path, engine: Engine, done: int, keep: int, check_space: bool) -> Cost:
    """What the run costs, of which each process computes its share."""
    from nearzero.training.memory import advice
    from nearzero.training.preflight import measure

    batch, parts = recipe.training.batch, engine.processes * engine.accumulation
    size = min(batch, batch // parts + batch // parts % 2)  # even, as Antithetic takes pairs
    part = replace(recipe, training=replace(recipe.training, batch=size))
    try:
        cost = measure(part, out, engine.device, done, kept=keep, check_space=check_space)
    except OutOfMemoryError as error:  # with the batch as it was asked for
        raise OutOfMemoryError(advice(batch, engine.accumulation, engine.processes)) from error
    speed = cost.images_per_second * engine.processes
    seconds = (recipe.training.steps - done) * batch / speed
    return cost._replace(images_per_second=speed, seconds=seconds)


@contextlib.contextmanager
def _bar(engine: Engine, recipe: Recipe, done: int) -> Iterator[Callable[[Progress], None]]:
    """Shows progress, in the main process."""
    silence = contextlib.nullcontext(lambda count, note: None)
    size, left = recipe.training.batch, recipe.training.steps - done
    with progress(f"training {recipe.name}", left * size, "images") if engine.main else silence as advance:
        yield lambda now: advance(size, f"step {now.step:,}")


def _check_recipe(recipe: str | None, resume: bool, log: tuple[str, ...], share: tuple[float, int] | None) -> None:
    """Raises ArgumentError for an unknown recipe, none, cells that it cannot have, or an unknown log.

    All before images are read.
    """
    from nearzero.recipes import named, sharing
    from nearzero.training.sinks import check_sinks

    check_sinks(log)
    if recipe is not None:
        chosen = named(recipe)
        if share is not None:
            sharing(chosen, *share)
    elif share is not None:
        raise ArgumentError(f"--share {share[0]:g}/{share[1]} needs a recipe, such as etsdm; a run keeps its own cells")
    elif not resume:
        raise ArgumentError("train needs a recipe, as in: nearzero train etsdm --out RUN; nearzero recipes lists them")


def _source(asked: dict[str, Any], former: Run | None, device: str) -> dict[str, Any]:
    """Where the images come from and what was done to them, as the run records it."""
    given = {name: value for name, value in asked.items() if value is not None}
    if "data" in given:
        given["data"] = str(given["data"] if is_named(given["data"]) else given["data"].absolute())
    default = {"data": None, "size": None, "channels": None, "bad_images": "error"}
    default |= {"keep": 1, "checkpoint_every": 500, "preview_every": None}
    return {
        **default,
        "preset": "small" if device == "cpu" else "paper",
        **(former.data.get("source") or {} if former else {}),
        **given,
    }


def _fit(
    recipe: str | None,
    former: Run | None,
    images: Images,
    preset: str,
    steps: int | None,
    batch: int | None,
    share: tuple[float, int] | None,
) -> Recipe:
    """The named recipe for these images, or the run's own; on resume, steps and batch are the run's unless given."""
    from nearzero.codec import fitted as fitted_codec
    from nearzero.recipes import PRESETS, named, sharing

    if former is not None and recipe is None:
        fitted = former.recipe
    else:
        chosen = named(recipe or "")
        fitted = PRESETS[preset](chosen if share is None else sharing(chosen, *share), images.size, images.channels)
        fitted = replace(fitted, codec=fitted_codec(fitted.codec, images.pixels, mirrored=fitted.training.flip))
    usual = fitted.training if former is None else former.recipe.training
    training = replace(
        fitted.training,
        steps=usual.steps if steps is None else steps,
        batch=usual.batch if batch is None else batch,
    )
    return replace(fitted, training=training)
