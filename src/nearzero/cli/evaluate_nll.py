"""nearzero evaluate --nll: bits per dimension."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearzero.cli.common import emit, pick_device, reporting, run_images, say
from nearzero.errors import ArgumentError

if TYPE_CHECKING:
    from nearzero.nll import Method

METHOD = ("rtol", "atol", "probes", "exact", "between_timesteps", "draws", "t_min")
"""The options of a method."""


def nll(run: Path, asked: dict[str, Any]) -> None:
    """Measures the likelihood and keeps it in --out, or in the run."""
    from nearzero.cli.evaluate import check_targets
    from nearzero.interop.pipeline_run import open_run
    from nearzero.nll import evaluate

    loaded = open_run(run).pinned(asked["step"])
    chosen, device = asked["method"] or "ode", pick_device(asked["device"])
    file, html = asked["out"] or loaded.results / f"nll-{chosen}.json", asked["html"]
    check_targets(file, html)
    images = run_images(loaded, asked["data"])
    if not loaded.recipe.dither:
        say(f"note: {loaded.recipe.name} was trained on whole grey levels, which have no density between them")
    with reporting("evaluating", "images") as show:
        found = evaluate(
            loaded,
            images,
            _method(chosen, {name: asked[name] for name in METHOD}),
            out=file,
            count=asked["images"],
            repeats=asked["repeats"],
            seed=asked["seed"],
            batch=asked["batch"] or 64,
            ema=not asked["raw_weights"],
            device=device,
            overwrite=asked["overwrite"],
            progress=show,
        )
    if html is not None:
        from nearzero.report.nll import page

        page(found, shlex.join(["nearzero", *sys.argv[1:]])).write(html)
    document = {name: value for name, value in found.items() if name != "columns"}
    emit({"command": "evaluate", "file": str(file), **document}, _text(found, chosen, file), asked["as_json"])


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
