"""nearzero demo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from nearzero.cli.common import device_option, duration, emit, json_option, pick_device, progress, say


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("nearzero-demo"),
    show_default=True,
    metavar="DIR",
    help="Run folder; an older demo there is replaced.",
)
@click.option(
    "--seconds", type=click.IntRange(min=1), default=120, show_default=True, metavar="S", help="How long to train."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, metavar="K", help="Seed of the training."
)
@device_option
@json_option
def command(out: Path, seconds: int, seed: int, device: str, as_json: bool) -> None:
    """Train E-TSDM on 2,000 embedded images of clothing at 16 x 16 pixels, then sample 64 of its own.

    \b
    nearzero demo
    nearzero demo --seconds 420
    """
    import time

    from nearzero.data import embedded
    from nearzero.files import grid_png, to_bytes, write_bytes
    from nearzero.recipes import etsdm, small
    from nearzero.run import Run, is_run
    from nearzero.training.loop import check_folder, train
    from nearzero.training.preflight import measure

    start = time.monotonic()
    overwrite = is_run(out) and bool((Run.load(out).data.get("source") or {}).get("demo"))
    check_folder(out, resume=False, overwrite=overwrite)
    device = pick_device(device)
    images = embedded(16)
    recipe = small(etsdm(), images.size, images.channels)
    cost = measure(recipe, out, device)
    steps = max(1, round(seconds * cost.images_per_second / recipe.training.batch))
    recipe = replace(recipe, training=replace(recipe.training, steps=steps))
    size = recipe.training.batch
    say(
        f"E-TSDM on {len(images):,} images of clothing, 16 x 16: {cost.parameters:,} parameters, "
        f"{steps:,} steps of {size} images, about {duration(seconds)}"
    )
    with progress("training", steps * size, "images") as advance:
        run = train(
            recipe,
            images,
            out,
            seed=seed,
            overwrite=overwrite,
            device=device,
            source={"data": None, "size": images.size, "channels": None, "preset": "small", "demo": True},
            progress=lambda now: advance(size, f"step {now.step:,}"),
        )
    with progress("sampling", 64, "images") as advance:
        samples = run.sample(range(64), device=device)
        advance(64, "")
    picture = out / "samples.png"
    write_bytes(picture, grid_png(to_bytes(samples)))
    document = {
        "command": "demo",
        "run": str(out),
        "picture": str(picture),
        "steps": steps,
        "seconds": round(time.monotonic() - start, 1),
    }
    emit(
        document,
        f"{picture}: 64 samples after {steps:,} steps, {duration(document['seconds'])} in all; "
        f"go on with: nearzero train --resume --out {out} --steps {2 * steps}",
        as_json,
    )
