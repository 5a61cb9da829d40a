"""nearzero diagnose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearzero.cli.common import (
    device_option,
    emit,
    json_option,
    load_images,
    parse_share,
    pick_device,
    reporting,
    run_images,
    say,
)
from nearzero.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from nearzero.data.images import Images
    from nearzero.denoiser import Denoiser
    from nearzero.diagnostics.diagnosis import Diagnosis
    from nearzero.interop.subject import Subject

HTML_HELP = "Also write a page that opens in a browser.  [default file: PATH/diagnosis.html]"
PRICED = 4096
"""How many images set the price of sharing, if there are as many."""
SHARE_HELP = "Measure it shared too: the first T timesteps in N cells.  [default: pipelines as recommended, runs not]"
CONDITION_HELP = "What a pipeline's model must be told besides the time: a safetensors file of tensors by name."
INTERVAL_HELP = (
    "Measure near zero on [0, T], a time.  [default: where sharing ends; without sharing a tenth of the range]"
)


@click.command()
@click.argument("path", metavar="PATH", type=click.Path(path_type=Path))
@click.option(
    "--against", type=click.Path(path_type=Path), metavar="PATH2", help="Another one, on the same images and noise."
)
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="DIR", help="Images.  [default: what the run was trained on]"
)
@click.option(
    "--images", "count", type=click.IntRange(min=1), default=64, show_default=True, metavar="N", help="How many."
)
@click.option("--share", metavar="T/N", help=SHARE_HELP)
@click.option("--condition", type=click.Path(path_type=Path), metavar="FILE", help=CONDITION_HELP)
@click.option("--interval", type=click.FloatRange(min=0, min_open=True), metavar="T", help=INTERVAL_HELP)
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
    path: Path,
    against: Path | None,
    data: Path | None,
    count: int,
    share: str | None,
    condition: Path | None,
    interval: float | None,
    every: int,
    seed: int,
    raw_weights: bool,
    html: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure the network of PATH, a run or a diffusers pipeline, near t = 0.

    \b
    nearzero diagnose runs/mine
    nearzero diagnose runs/etsdm --against runs/ddpm --html
    nearzero diagnose my-ddpm --data my_images --html

    The Lipschitz constants K(k, k+1) between neighbouring timesteps with their maximum and total variation near
    t = 0, the loss at each noise level, and how far a perturbed input moves the estimate; whether and how to share its
    timesteps, and what that must cost on these images. Of a pipeline also the same with its timesteps shared.
    """
    from nearzero.interop.subject import open_subject

    cells = None if share is None else parse_share(share)
    if share is not None and against is not None:
        raise ArgumentError(f"--share {share} and --against {against} exclude each other; diagnose one by one")
    page = None if html is None else _page_path(html, path)
    device = pick_device(device)
    paths = [path] if against is None else [path, against]
    subjects = [open_subject(one, ema=not raw_weights, device=device) for one in paths]
    _check_alike(paths, subjects)
    images = _images(path, subjects[0], data, count)
    measure = _Measure(subjects[0], images, count, seed, condition, device)
    how = {"interval": _shared(subjects) if interval is None else interval, "every": every, "seed": seed}
    found = {
        name: measure(name, one.denoiser, **how) for name, one in zip(_names(paths, subjects), subjects, strict=True)
    }
    found, text, advice = (found, (), {}) if against else _advised(subjects[0], found, cells, measure, how)
    _say_units(found)
    if page is not None:
        _write(page, found, paths, subjects, text)
    document = {
        "command": "diagnose",
        "page": None if page is None else str(page),
        "seed": seed,
        "weights": "raw" if raw_weights else "ema",
        "runs": {
            name: {**_place(paths, subjects, i), **measured.describe()}
            for i, (name, measured) in enumerate(found.items())
        },
        **advice,
    }
    emit(document, _text(found, text, page), as_json)


def _say_units(found: Mapping[str, Diagnosis]) -> None:
    """What K is per, where that is no timestep."""
    for name, measured in found.items():
        if measured.unit:
            say(f"{name}: {measured.unit}")


def _advised(
    one: Subject, found: dict[str, Diagnosis], cells: tuple[float, int] | None, measure: _Measure, how: dict[str, Any]
) -> tuple[dict[str, Diagnosis], tuple[str, ...], dict[str, Any]]:
    """The diagnosis of the network with shared timesteps beside it, and what to say of the two, in words and as JSON.

    A run is measured with other cells only where they are asked for: it can be trained with them.
    """
    from nearzero.interop.advice import advise

    first = next(iter(found.values()))
    again = partial(measure, **{**how, "interval": first.interval})
    trained = one.run is not None and bool(one.run.data)
    advised = advise(one.denoiser, first, measure.many(), cells, None if trained and cells is None else again)
    return {**found, **advised.shared}, advised.text, advised.describe()


class _Measure:
    """Diagnoses of several denoisers on the same images, with progress."""

    def __init__(
        self, subject: Subject, images: Images, count: int, seed: int, condition: Path | None, device: str
    ) -> None:
        from nearzero.interop.subject import condition as told

        chosen = _chosen(images, count, seed)
        self.condition = {name: value.to(device) for name, value in told(subject, chosen, condition).items()}
        self.x0 = subject.encode(chosen.pixels).to(device)
        self.subject, self.images, self.seed = subject, images, seed

    def many(self) -> Tensor:
        """PRICED images, which set the price of sharing; of latents, each a pass of the VAE, the same few."""
        if self.subject.latent:
            return self.x0
        most = PRICED if self.x0[0].numel() <= PRICED else PRICED // 4  # whose axes take a minute
        return self.subject.encode(_chosen(self.images, min(most, len(self.images)), self.seed).pixels)

    def __call__(self, name: str, denoiser: Denoiser, **how: Any) -> Diagnosis:
        from nearzero.diagnostics.diagnosis import diagnose

        with reporting(f"diagnosing {name}", "pairs of timesteps") as show:
            return diagnose(denoiser, self.x0, condition=self.condition, progress=show, **how)


def _place(paths: list[Path], subjects: list[Subject], i: int) -> dict[str, Any]:
    """Where the i-th diagnosis comes from; one that shares another's timesteps comes from the same place."""
    i = min(i, len(paths) - 1)
    run = subjects[i].run
    return {"run": str(paths[i]), "step": 0 if run is None else run.step}


def _page_path(html: str, run: Path) -> Path:
    """Where the page goes, "" for its usual place. Raises before anything is measured where it cannot."""
    from nearzero.cli.compare import check_page
    from nearzero.zoo import results

    path = Path(html) if html else results(run) / "diagnosis.html"
    check_page(path)
    return path


def _check_alike(paths: list[Path], subjects: list[Subject]) -> None:
    """Raises ArgumentError where two are one, or cannot be compared."""
    if len(paths) == 2 and paths[0].resolve() == paths[1].resolve():
        raise ArgumentError(f"--against {paths[1]} is the same run; name another, or leave it out")
    shapes = [(one.size, one.channels) for one in subjects]
    if len(set(shapes)) > 1:
        (a, b), (c, d) = shapes
        raise ArgumentError(
            f"{paths[0]} takes images of {a} x {a} with {b} channels, {paths[1]} of {c} x {c} with {d}; "
            "diagnose them one by one"
        )
    processes = [one.denoiser.process for one in subjects]
    if processes[0] != processes[-1]:
        raise ArgumentError(
            f"{paths[0]} has the process {processes[0]}, {paths[1]} {processes[1]}, and so other timesteps; "
            "diagnose them one by one"
        )


def _names(paths: list[Path], subjects: list[Subject]) -> list[str]:
    """The recipes' names, or the folders where two have one name."""
    names = [
        path.resolve().name if one.run is None else one.run.recipe.name
        for path, one in zip(paths, subjects, strict=True)
    ]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _shared(subjects: list[Subject]) -> float | None:
    """The end of the shared interval, the longest of the networks'."""
    from nearzero.diagnostics.diagnosis import shared_interval

    return max((end for one in subjects if (end := shared_interval(one.denoiser)) is not None), default=None)


def _images(path: Path, subject: Subject, data: Path | None, count: int) -> Images:
    """The images. Raises DataError where they are fewer than `count`, or nobody says which."""
    if subject.run is not None and subject.run.data:
        images = run_images(subject.run, data)
    elif data is None:
        raise DataError(
            f"{path} is a pipeline and does not say which images it was trained on; name some with --data DIR"
        )
    else:
        images = load_images(data, subject.size, subject.channels)
    if count > len(images):
        raise DataError(f"--images {count}: {images.name} holds {len(images)}; ask for at most --images {len(images)}")
    return images


def _chosen(images: Images, count: int, seed: int) -> Images:
    """`count` different ones of them."""
    import torch

    from nearzero.data.images import Images
    from nearzero.randomness import order

    chosen = order(seed, torch.arange(count), len(images))
    labels = None if images.labels is None else images.labels[chosen]
    return Images(images.pixels[chosen], labels, images.classes, images.name)


def _write(
    path: Path, found: Mapping[str, Diagnosis], paths: list[Path], subjects: list[Subject], advice: Sequence[str]
) -> None:
    from nearzero.report.diagnosis import section
    from nearzero.report.page import Page, Section

    trained = "; ".join(
        f"{name}: {run.step:,} steps of {run.recipe.training.batch} images ({run.path})"
        if (run := subject.run) is not None
        else f"{name}: a pipeline of diffusers ({place})"
        for name, subject, place in zip(found, subjects, paths, strict=False)
    )
    one = next(iter(found.values()))
    lead = (
        f"What {' and '.join(found)} {'does' if len(found) == 1 else 'do'} near t = 0, "
        f"measured on {one.images} images with the same noise at every time and for every network.",
    )
    sections = (section(found), *([Section("Whether to share", advice)] if advice else []))
    Page(f"Near t = 0: {' and '.join(found)}", lead, sections, trained).write(path)


def _text(found: Mapping[str, Diagnosis], advice: Sequence[str], page: Path | None) -> str:
    """The table as text."""
    from nearzero.report.diagnosis import table

    shown = table(found)
    lines = [list(shown.header), *map(list, shown.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(shown.header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, "", shown.caption, *advice, *([f"page: {page}"] if page else [])])
