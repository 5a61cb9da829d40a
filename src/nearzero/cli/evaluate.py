"""nearzero evaluate."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearzero.cli.common import device_option, emit, json_option, pick_device, reporting, run_images, say
from nearzero.errors import ArgumentError

if TYPE_CHECKING:
    from nearzero.nll import Method


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--nll", is_flag=True, help="Bits per dimension, the only measure so far.")
@click.option(
    "--method",
    type=click.Choice(["ode", "bound", "truncated-bound"]),
    help="The density of the ODE, FullDiffusion's bound (Nu, W) or the bound from --t-min on.  [default: ode]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of images.  [default: what RUN was trained on]",
)
@click.option("--images", "count", type=click.IntRange(min=1), metavar="N", help="How many.  [default: all]")
@click.option("--repeats", type=click.IntRange(min=1), default=1, show_default=True, metavar="K", help="Dithers each.")
@click.option("--rtol", type=float, metavar="R", help="Of the ODE, relative.  [default: 1e-5]")
@click.option("--atol", type=float, metavar="A", help="Of the ODE, absolute.  [default: 1e-5]")
@click.option("--probes", type=click.IntRange(min=1), metavar="P", help="Hutchinson's.  [default: 1]")
@click.option(
    "--exact", is_flag=True, default=None, help="The exact divergence: one backward pass for each number of an image."
)
@click.option(
    "--between-timesteps", is_flag=True, default=None, help="Let a network that was told whole timesteps interpolate."
)
@click.option("--draws", type=click.IntRange(min=1), metavar="N", help="Of a bound.  [default: 1000]")
@click.option("--t-min", type=float, metavar="T", help="Start at T instead of 0.  [truncated-bound: 1e-5]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, metavar="K", help="Of draws.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, metavar="B", help="Images at once.")
@click.option("--raw-weights", is_flag=True, help="Use the weights themselves, not their average.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="The JSON.  [default: RUN/nll-METHOD.json]"
)
@click.option("--html", type=click.Path(path_type=Path), metavar="PAGE", help="Also write a page for a browser.")
@click.option("--overwrite", is_flag=True, help="Start again where FILE holds other settings.")
@device_option
@json_option
def command(
    run: Path,
    nll: bool,
    method: str | None,
    data: Path | None,
    count: int | None,
    repeats: int,
    seed: int,
    batch: int,
    raw_weights: bool,
    out: Path | None,
    html: Path | None,
    overwrite: bool,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the likelihood of images under the run folder RUN, in bits per dimension.

    \b
    nearzero evaluate runs/full_w --nll --images 1000
    nearzero evaluate runs/full_w --nll --method bound --draws 1000 --data test

    Every image is dithered within its grey levels. The file is written after each batch, and a call that was cut short
    goes on when it is repeated.
    """
    if not nll:
        raise ArgumentError("name what to measure: --nll")
    from nearzero.interop.pipeline_run import open_run
    from nearzero.nll import evaluate

    loaded, chosen, device = open_run(run), method or "ode", pick_device(device)
    file = out or run / f"nll-{chosen}.json"
    _check_targets(file, html)
    images = run_images(loaded, data)
    if not loaded.recipe.dither:
        say(f"note: {loaded.recipe.name} was trained on whole grey levels, which have no density between them")
    with reporting("evaluating", "images") as show:
        found = evaluate(
            loaded,
            images,
            _method(chosen, options),
            out=file,
            count=count,
            repeats=repeats,
            seed=seed,
            batch=batch,
            ema=not raw_weights,
            device=device,
            overwrite=overwrite,
            progress=show,
        )
    if html is not None:
        from nearzero.report.nll import page

        page(found, shlex.join(["nearzero", *sys.argv[1:]])).write(html)
    document = {name: value for name, value in found.items() if name != "columns"}
    emit({"command": "evaluate", "file": str(file), **document}, _text(found, chosen, file), as_json)


def _check_targets(file: Path, html: Path | None) -> None:
    """Raises before anything is measured where a result cannot be written."""
    from nearzero.files import check_writable
    from nearzero.report.page import Page

    for name, target in (("--out", file), ("--html", html)):
        if target is not None:
            check_writable(target)
            if target.is_dir():
                raise ArgumentError(f"{name} {target} is a folder; name a file")
    if html is not None and html.resolve() == file.resolve():
        raise ArgumentError(f"--html {html} is the file of the JSON too; name another")
    if html is not None and html.exists() and not Page.is_one(html):
        raise ArgumentError(f"--html {html} exists and is no page of nearzero's; name another file")


def _method(name: str, options: dict[str, Any]) -> Method:
    """The method with the options that it has. Raises ArgumentError for one of another method."""
    from dataclasses import fields

    from nearzero.nll import ByBound, ByOde, ByTruncatedBound

    kinds = {"ode": ByOde, "bound": ByBound, "truncated-bound": ByTruncatedBound}
    given = {key: value for key, value in options.items() if value is not None}
    for key in given.keys() - {field.name for field in fields(kinds[name])}:
        option = "--" + key.replace("_", "-")
        others = " or ".join(label for label, kind in kinds.items() if key in kind.__dataclass_fields__)
        raise ArgumentError(f"{option} is no option of --method {name}; use --method {others}, or leave it out")
    return kinds[name](**given)


def _text(found: dict[str, Any], method: str, file: Path) -> str:
    """The number with its error, its terms, and what it depends on."""
    means, settings = found["means"], found["settings"]
    value = means["bits"]
    error = "" if value["stderr"] is None else f" +- {value['stderr']:.4f}"
    kind = "the ODE's density" if method == "ode" else "at most this: a bound"
    lines = [f"{value['mean']:.4f}{error} bits/dim ({kind})"]
    lines += [
        f"  {name:15}{means[name]['mean']:10.4f}" for name in ("prior", "diffusion", "reconstruction") if name in means
    ]
    if "bits_foreground" in means:
        shown = f"{means['bits_foreground']['mean']:.4f}"
        share = f"{means['foreground']['mean']:.0%} of all"
        lines.append(f"  {shown} on each value of pixels that are not 0 ({share}), if those that are cost nothing")
    lines += [
        f"  {found['images_done']:,} images of {settings['data']['name']}, dithered {settings['repeats']}-fold, "
        f"{means['evaluations']['mean']:,.0f} evaluations, step {settings['step']:,} of {settings['recipe']}",
        f"  {file}",
    ]
    return "\n".join(lines)
