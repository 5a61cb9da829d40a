"""nearzero diagnose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearzero.cli.common import device_option, emit, json_option, pick_device, reporting, run_images, say
from nearzero.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from nearzero.data.images import Images
    from nearzero.diagnostics.diagnosis import Diagnosis
    from nearzero.run import Run

HTML_HELP = "Also write a page that opens in a browser.  [default file: RUN/diagnosis.html]"


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--against", type=click.Path(path_type=Path), metavar="RUN2", help="A second run, on the same images and noise."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of images.  [default: what RUN was trained on]",
)
@click.option(
    "--images", "count", type=click.IntRange(min=1), default=64, show_default=True, metavar="N", help="How many."
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0, min_open=True),
    metavar="T",
    help="Measure near zero on [0, T], a time.  [default: where sharing ends; without sharing a tenth of the range]",
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="Above twice the interval, measure each N-th timestep; 1 for all.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    metavar="K",
    help="Seed of images and noise.",
)
@click.option("--raw-weights", is_flag=True, help="Use the weights themselves, not their average.")
@click.option("--html", is_flag=False, flag_value="", metavar="FILE", help=HTML_HELP)
@device_option
@json_option
def command(
    run: Path,
    against: Path | None,
    data: Path | None,
    count: int,
    interval: float | None,
    every: int,
    seed: int,
    raw_weights: bool,
    html: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure the network of the run folder RUN near t = 0.

    \b
    nearzero diagnose runs/mine
    nearzero diagnose runs/etsdm --against runs/ddpm --html

    The Lipschitz constants K(k, k+1) between neighbouring timesteps with their maximum and total variation near
    t = 0, the loss at each noise level, and how far a perturbed input moves the estimate.
    """
    from nearzero.diagnostics.diagnosis import diagnose
    from nearzero.run import Run

    runs = [Run.load(path) for path in (run, against) if path is not None]
    _check_alike(runs)
    page = None if html is None else _page_path(Path(html) if html else run / "diagnosis.html")
    device = pick_device(device)
    denoisers = {
        name: one.denoiser(ema=not raw_weights, device=device) for name, one in zip(_names(runs), runs, strict=True)
    }
    interval = _shared(list(denoisers.values())) if interval is None else interval
    x0 = _chosen(runs[0], run_images(runs[0], data), count, seed).to(device)
    found: dict[str, Diagnosis] = {}
    for name, denoiser in denoisers.items():
        with reporting(f"diagnosing {name}", "pairs of timesteps") as show:
            found[name] = diagnose(denoiser, x0, interval=interval, every=every, seed=seed, progress=show)
        if found[name].unit:
            say(f"{name}: {found[name].unit}")
    if page is not None:
        _write(page, found, runs)
    document = {
        "command": "diagnose",
        "page": None if page is None else str(page),
        "seed": seed,
        "weights": "raw" if raw_weights else "ema",
        "runs": {
            name: {"run": str(one.path), "step": one.step, **found[name].describe()}
            for name, one in zip(found, runs, strict=True)
        },
    }
    emit(document, _text(found, page), as_json)


def _page_path(path: Path) -> Path:
    """Where the page goes. Raises before anything is measured where it cannot."""
    from nearzero.files import check_writable
    from nearzero.report.page import Page

    check_writable(path)
    if path.is_dir():
        raise ArgumentError(f"--html {path} is a folder; name a file")
    if path.exists() and not Page.is_one(path):
        raise ArgumentError(f"--html {path} exists and is no page of nearzero's; name another file")
    return path


def _check_alike(runs: list[Run]) -> None:
    """Raises ArgumentError where two runs are one, or cannot be compared."""
    if len(runs) == 2 and runs[0].path.resolve() == runs[1].path.resolve():
        raise ArgumentError(f"--against {runs[1].path} is the same run; name another, or leave it out")
    shapes = [(run.recipe.network.size, run.recipe.network.channels) for run in runs]
    if len(set(shapes)) > 1:
        (a, b), (c, d) = shapes
        raise ArgumentError(
            f"{runs[0].path} takes images of {a} x {a} with {b} channels, {runs[1].path} of {c} x {c} with {d}; "
            "diagnose them one by one"
        )
    processes = [run.recipe.process for run in runs]
    if processes[0] != processes[-1]:
        raise ArgumentError(
            f"{runs[0].path} has the process {processes[0]}, {runs[1].path} {processes[1]}, and so other timesteps; "
            "diagnose them one by one"
        )


def _names(runs: list[Run]) -> list[str]:
    """The recipes' names, or the folders where two runs have one recipe."""
    names = [run.recipe.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _shared(denoisers: list[Any]) -> float | None:
    """The end of the shared interval, the longest of the networks'."""
    from nearzero.diagnostics.diagnosis import shared_interval

    return max((end for end in map(shared_interval, denoisers) if end is not None), default=None)


def _chosen(run: Run, images: Images, count: int, seed: int) -> Tensor:
    """`count` different images as the network sees them. Raises DataError where there are fewer."""
    import torch

    from nearzero.randomness import order

    if count > len(images):
        raise DataError(f"--images {count}: {images.name} holds {len(images)}; ask for at most --images {len(images)}")
    return run.recipe.codec.encode(images.pixels[order(seed, torch.arange(count), len(images))])


def _write(path: Path, found: dict[str, Diagnosis], runs: list[Run]) -> None:
    from nearzero.report.diagnosis import section
    from nearzero.report.page import Page

    trained = "; ".join(
        f"{name}: {run.step:,} steps of {run.recipe.training.batch} images ({run.path})"
        for name, run in zip(found, runs, strict=True)
    )
    one = next(iter(found.values()))
    lead = (
        f"What {' and '.join(found)} {'does' if len(found) == 1 else 'do'} near t = 0, "
        f"measured on {one.images} images with the same noise at every time and for every network.",
    )
    Page(f"Near t = 0: {' and '.join(found)}", lead, (section(found),), trained).write(path)


def _text(found: dict[str, Diagnosis], page: Path | None) -> str:
    """The table as text."""
    from nearzero.report.diagnosis import table

    shown = table(found)
    lines = [list(shown.header), *map(list, shown.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(shown.header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, "", shown.caption, *([f"page: {page}"] if page else [])])
