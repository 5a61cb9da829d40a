"""nearzero sample."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearzero.cli import choices
from nearzero.cli.common import device_option, emit, json_option, parse_seeds, pick_device, reporting, say
from nearzero.errors import ArgumentError

if TYPE_CHECKING:
    from nearzero.production import Produced, Production
    from nearzero.run import Run

SOLVER_HELP = f"How to step: {', '.join(choices.SOLVERS)}.  [default: the recipe's]"
GRID_HELP = f"Where to stop: {', '.join(choices.GRIDS)}.  [default: the recipe's]"
THROUGH_HELP = "The process that samples see: as trained, or EDM's sigma = t.  [default: the recipe's]"
STEP_HELP = "The checkpoint of that training step, of those that RUN keeps.  [default: the newest]"
FILM_HELP = "Also draw trajectory.png: x_t and the estimate of x0 on the way, of the first 8 seeds."
OVERWRITE_HELP = "Draw again what is there; recorded images of other settings in DIR are deleted."


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-n", "count", type=click.IntRange(1, 1_000_000), metavar="N", help="Seeds 0 to N-1.  [default: 64]")
@click.option("--seeds", metavar="0-63", help="Seeds, one image each, as 0-63 or 1,5,10-12.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", required=True, help="Folder for SEED.png and grid.png."
)
@click.option("--solver", type=click.Choice(list(choices.SOLVERS)), metavar="NAME", help=SOLVER_HELP)
@click.option("--eta", type=float, metavar="E", help="Noise of ddim, 0 to 1.  [default: 0]")
@click.option("--churn", type=float, metavar="S", help="Noise of churn, EDM's S_churn.  [default: 30]")
@click.option("--grid", type=click.Choice(list(choices.GRIDS)), metavar="NAME", help=GRID_HELP)
@click.option("--sigma-min", type=float, metavar="S", help="Last noise level of karras.  [default: 0.002]")
@click.option("--sigma-max", type=float, metavar="S", help="First noise level of karras.  [default: up to 80]")
@click.option("--rho", type=float, metavar="R", help="How karras crowds small levels.  [default: 7]")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Steps of the grid.  [default: the recipe's]")
@click.option("--nfe", type=click.IntRange(min=1), metavar="N", help="In its place: network evaluations.")
@click.option("--through", type=click.Choice(["trained", "sigma"]), help=THROUGH_HELP)
@click.option("--label", type=int, metavar="K", help="Class to draw, of a network that knows classes.")
@click.option("--guidance", type=float, metavar="S", help="How far away from the weaker model; 1 is not at all.")
@click.option("--guide", type=click.Path(path_type=Path), metavar="RUN2", help="The weaker model: another run.")
@click.option("--guidance-interval", metavar="LO-HI", help="Noise levels sigma / alpha to guide.  [default: all]")
@click.option("--batch", default="auto", show_default=True, metavar="auto|B", help="Images at once, at first.")
@click.option("--trajectory", is_flag=True, help=FILM_HELP)
@click.option("--step", "step", type=click.IntRange(min=1), metavar="N", help=STEP_HELP)
@click.option("--raw-weights", is_flag=True, help="Use the weights themselves, not their average.")
@click.option("--overwrite", is_flag=True, help=OVERWRITE_HELP)
@device_option
@json_option
def command(
    run: Path,
    count: int | None,
    seeds: str | None,
    out: Path,
    batch: str,
    trajectory: bool,
    overwrite: bool,
    device: str,
    as_json: bool,
    **asked: Any,
) -> None:
    """Draw images from the run folder RUN: one PNG a seed, named by its seed, and a grid of them.

    \b
    nearzero sample zoo:etsdm --out first
    nearzero sample runs/mine -n 64 --out samples
    nearzero sample runs/mine --solver heun --through sigma --nfe 35 --out edm
    torchrun --nproc-per-node 8 -m nearzero sample runs/mine -n 50000 --out many

    An image depends on its seed and the settings alone. What DIR holds already is not drawn again, so a call that was
    cut short goes on when it is repeated; samples.json records the settings and each image's digest.
    """
    chosen, size, shard = _seeds(count, seeds), choices.batch(batch), choices.shard(os.environ)
    check_options(run, asked)
    device = _device(device, shard)

    from nearzero.interop.pipeline_run import open_run
    from nearzero.production import produce

    _check_out(out)
    loaded = open_run(run).pinned(asked["step"])
    _check_apart(loaded, out)
    production = production_of(loaded, asked)
    with reporting("sampling", "images") as show:
        made = produce(
            production,
            chosen,
            out,
            batch=size,
            overwrite=overwrite,
            trajectory=trajectory,
            shard=shard,
            device=device,
            progress=show,
            tell=say,
        )
    where = {"run": str(run), "step": loaded.step, "out": str(out), "seeds": chosen[shard[0] :: shard[1]]}
    document = {"command": "sample", **where, **production.settings(), **made._asdict(), "device": device}
    emit(document, _summary(out, production, made, shard), as_json)


def _summary(out: Path, production: Production, made: Produced, shard: tuple[int, int]) -> str:
    """What was done, in a line."""
    run = production.run
    what = f"{made.drawn + made.there} images of {run.recipe.name} at step {run.step:,}"
    if made.network_evaluations is not None:
        speed = f"{made.images_per_second:,.3g} images/s"
        what += f"; drew {made.drawn} at {made.network_evaluations:g} network evaluations each, {speed}"
    if made.whole:
        return f"{out / 'grid.png'}: {what}"
    return f"{out}: {what}, by rank {shard[0]} of {shard[1]}; the others' are not all there yet"


def _seeds(count: int | None, seeds: str | None) -> list[int]:
    if seeds is None:
        return list(range(64 if count is None else count))
    chosen = parse_seeds(seeds)
    if count is not None and count != len(chosen):
        raise ArgumentError(f"-n {count} and --seeds {seeds} disagree: these are {len(chosen)} seeds; leave one out")
    return chosen


def check_options(run: Path, asked: dict[str, Any]) -> None:
    """Raises ArgumentError for options that do not go together, before anything is read."""
    if asked["steps"] is not None and asked["nfe"] is not None:
        raise ArgumentError(f"--steps {asked['steps']} and --nfe {asked['nfe']} exclude each other; leave one out")
    if asked["label"] is not None:
        raise ArgumentError(f"--label {asked['label']}: {run} knows no classes, nor does any recipe yet; leave it out")
    if asked["guidance"] is not None and asked["guide"] is None:
        raise ArgumentError(
            f"--guidance {asked['guidance']:g} needs --guide RUN2, a weaker run of the same recipe; {run} knows no "
            "classes to leave out"
        )
    if asked["guidance"] is None:
        for name in ("guide", "guidance_interval"):
            if asked[name] is not None:
                raise ArgumentError(f"--{name.replace('_', '-')} {asked[name]} needs --guidance S, as in --guidance 2")


def _check_out(out: Path) -> None:
    from nearzero.files import check_writable

    check_writable(out)
    if out.exists() and not out.is_dir():
        raise ArgumentError(f"--out {out} is a file; name a folder")


def _check_apart(run: Run, out: Path) -> None:
    """Raises ArgumentError where samples would lie among the images that the run was trained on."""
    data = (run.data.get("source") or {}).get("data")
    if data is not None and Path(data).is_dir():
        a, b = Path(data).resolve(), out.resolve()
        if a == b or a in b.parents:
            raise ArgumentError(
                f"--out {out} lies in {data}, whose images {run.path} learns from; choose another --out"
            )


def _device(name: str, shard: tuple[int, int]) -> str:
    """The device, of several GPUs the one that torchrun means."""
    device = pick_device(name)
    local = os.environ.get("LOCAL_RANK", "")
    return f"cuda:{local}" if device == "cuda" and shard[1] > 1 and local.isdecimal() else device


def production_of(run: Run, asked: dict[str, Any]) -> Production:
    """What was asked for, the recipe's where it was not."""
    from nearzero.interop.pipeline_run import open_run
    from nearzero.production import Guide, Production

    recipe, steps = run.recipe, asked["steps"]
    levels = {name: asked[name] for name in ("sigma_min", "sigma_max", "rho")}
    seen = choices.through(asked["through"], recipe, asked["sigma_max"])
    guide = None
    if asked["guide"] is not None:
        between = asked["guidance_interval"]
        between = None if between is None else choices.interval(between)
        guide = Guide(open_run(asked["guide"]).pinned(), asked["guidance"], between)
    return Production(
        run,
        solver=choices.solver(asked["solver"], recipe, asked["eta"], asked["churn"]),
        grid=choices.grid(asked["grid"], recipe, seen, asked["through"], levels),
        steps=recipe.steps if steps is None and asked["nfe"] is None else steps,
        nfe=asked["nfe"],
        through=seen,
        guide=guide,
        ema=not asked["raw_weights"],
    )
