"""nearzero train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearzero.cli.common import device_option, duration, emit, json_option, load_images, pick_device, progress, say
from nearzero.errors import ArgumentError

if TYPE_CHECKING:
    from nearzero.data.images import Images
    from nearzero.recipes import Recipe
    from nearzero.run import Run
    from nearzero.training.preflight import Cost

DATA_HELP = (
    "Folder of PNG, JPEG or WebP images; subfolders are classes.  [default: 2,000 embedded Fashion-MNIST images]"
)
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
    **asked: Any,
) -> None:
    """Train RECIPE (ddpm, etsdm) on a folder of images.

    \b
    nearzero train etsdm --data my_images --size 32 --out runs/mine
    nearzero train --resume --out runs/mine --steps 20000

    Ctrl-C saves first (exit code 75); --resume goes on as if nothing had happened.
    """
    from nearzero.run import Run
    from nearzero.training.loop import train
    from nearzero.training.preflight import measure
    from nearzero.training.start import check_folder

    _check_recipe(recipe, resume)
    check_folder(out, resume=resume, overwrite=overwrite)
    device = pick_device(device)
    former = Run.load(out) if resume else None
    source = _source(asked, former, device)
    _check_apart(source["data"], out)
    images = load_images(source["data"], source["size"], source["channels"])
    fitted = _fit(recipe, former, images, source["preset"], steps, batch)
    seed = seed if seed is not None else former.seed if former else 0
    done = former.step if former else 0
    cost = measure(fitted, out, device, done)
    document = _document(fitted, images, cost, seed, out, device)
    _announce(document, source["preset"])
    if dry_run:
        emit({**document, "dry_run": True}, f"dry run: nothing written to {out}", as_json)
        return
    size, left = fitted.training.batch, fitted.training.steps - done
    with progress(f"training {fitted.name}", left * size, "images") as advance:
        run = train(
            fitted,
            images,
            out,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            device=device,
            source=source,
            progress=lambda now: advance(size, f"step {now.step:,}"),
        )
    then = f"look at {out / 'previews'}, then: nearzero sample {out} -n 64 --out samples"
    text = f"{out}: {run.step:,} steps of {fitted.name}; {then}"
    emit({**document, "step": run.step}, text, as_json)


def _check_recipe(recipe: str | None, resume: bool) -> None:
    """Raises ArgumentError for an unknown recipe, or none, before images are read."""
    from nearzero.recipes import named

    if recipe is not None:
        named(recipe)
    elif not resume:
        raise ArgumentError("train needs a recipe, as in: nearzero train etsdm --out RUN; nearzero recipes lists them")


def _check_apart(data: str | None, out: Path) -> None:
    """Raises ArgumentError where the run would lie among its own images, or they in it."""
    if data is not None:
        a, b = Path(data).resolve(), out.resolve()
        if a == b or a in b.parents or b in a.parents:
            raise ArgumentError(f"--out {out} and --data {data} lie in each other; choose another --out")


def _source(asked: dict[str, Any], former: Run | None, device: str) -> dict[str, Any]:
    """Where the images come from and what was done to them, as the run records it."""
    given = {name: value for name, value in asked.items() if value is not None}
    if "data" in given:
        given["data"] = str(given["data"].absolute())
    default = {"data": None, "size": None, "channels": None, "preset": "small" if device == "cpu" else "paper"}
    return {**default, **(former.data.get("source") or {} if former else {}), **given}


def _fit(
    recipe: str | None, former: Run | None, images: Images, preset: str, steps: int | None, batch: int | None
) -> Recipe:
    """The named recipe for these images, or the run's own; on resume, steps and batch are the run's unless given."""
    from nearzero.codec import fitted as fitted_codec
    from nearzero.recipes import PRESETS, named

    if former is not None and recipe is None:
        fitted = former.recipe
    else:
        fitted = PRESETS[preset](named(recipe or ""), images.size, images.channels)
        fitted = replace(fitted, codec=fitted_codec(fitted.codec, images.pixels, mirrored=fitted.training.flip))
    usual = fitted.training if former is None else former.recipe.training
    training = replace(
        fitted.training,
        steps=usual.steps if steps is None else steps,
        batch=usual.batch if batch is None else batch,
    )
    return replace(fitted, training=training)


def _document(recipe: Recipe, images: Images, cost: Cost, seed: int, out: Path, device: str) -> dict[str, Any]:
    from nearzero.registry import encode

    return {
        "command": "train",
        "run": str(out),
        "recipe": encode(recipe),
        "data": images.describe(),
        "seed": seed,
        "device": device,
        "cost": cost._asdict(),
    }


def _announce(document: dict[str, Any], preset: str) -> None:
    """What is about to happen and what it will cost."""
    recipe, data, cost = document["recipe"], document["data"], document["cost"]
    training = recipe["training"]
    colour = "grey" if data["channels"] == 1 else "colour"
    classes = f", {len(data['classes'])} classes" if data["classes"] else ""
    say(f"recipe    {recipe['name']}, {preset} preset, {cost['parameters']:,} parameters")
    say(f"data      {data['name']}: {data['count']:,} images, {data['size']} x {data['size']} {colour}{classes}")
    where = f"on {document['device']}, seed {document['seed']}"
    say(f"training  {training['steps']:,} steps of {training['batch']} images {where}")
    say(f"time      about {duration(cost['seconds'])}, at {cost['images_per_second']:,.0f} images/s just measured")
    say(f"disk      {cost['disk'] / 1e6:,.0f} MB of {cost['free'] / 1e9:,.0f} GB free, in {document['run']}")
