"""nearzero demo."""

from __future__ import annotations

from pathlib import Path

import click

from nearzero.cli.common import device_option, duration, emit, json_option, pick_device, reporting, say


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("nearzero-demo"),
    show_default=True,
    metavar="DIR",
    help="Folder of both runs and the page; an older demo there is replaced.",
)
@click.option(
    "--seconds",
    type=click.IntRange(min=1),
    default=150,
    show_default=True,
    metavar="S",
    help="How long to train, both together.",
)
@click.option(
    "--samples", type=click.IntRange(min=3), default=64, show_default=True, metavar="N", help="Images in a grid."
)
@click.option(
    "--probes", type=click.IntRange(min=2), default=32, show_default=True, metavar="N", help="Images for the diagnosis."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, metavar="K", help="Seed of the training."
)
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
@device_option
@json_option
def command(
    out: Path, seconds: int, samples: int, probes: int, seed: int, show: bool, device: str, as_json: bool
) -> None:
    """Train DDPM and E-TSDM side by side on 2,000 embedded images, and see what sharing does near t = 0.

    \b
    nearzero demo --open
    nearzero demo --seconds 600

    Writes DIR/index.html, one page with samples, also of the models that come with the package (nearzero zoo),
    Lipschitz curves and numbers; DIR/demo.json, the numbers;
    DIR/ddpm and DIR/etsdm, two runs to go on with.
    """
    import time

    from nearzero.data import embedded
    from nearzero.experiments import demo
    from nearzero.files import write_json
    from nearzero.report.demo import page, summary

    start = time.monotonic()
    demo.check_place(out)
    device = pick_device(device)
    images = embedded(16)
    if max(samples, probes) > len(images) // 2:
        raise click.UsageError(f"--samples and --probes go up to {len(images) // 2}, half of the embedded images")
    recipes = demo.recipes(images, seconds, out, device)
    training = recipes["ddpm"].training
    say(
        f"DDPM and E-TSDM on {len(images):,} images of clothing, 16 x 16: {training.steps:,} steps of "
        f"{training.batch} images each, about {duration(seconds)}; then samples, diagnosis and the page"
    )
    found = demo.run(recipes, images, out, seed=seed, samples=samples, probes=probes, device=device, bar=reporting)
    index, taken = out / "index.html", time.monotonic() - start
    page(found, out, taken).write(index)
    taken = time.monotonic() - start
    document = {"command": "demo", "page": str(index), "seed": seed, **summary(found, taken), "peak_memory_mb": _peak()}
    write_json(out / "demo.json", document)
    memory = "" if document["peak_memory_mb"] is None else f", {document['peak_memory_mb']:,} MB of memory at most"
    emit(document, f"{index}: open it in a browser; {duration(taken)} in all{memory}", as_json)
    if show:
        import webbrowser

        webbrowser.open(index.absolute().as_uri())


def _peak() -> int | None:
    """The most memory that this process has held, in MB; None where the system does not tell."""
    import sys

    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))
