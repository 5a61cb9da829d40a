"""nearzero sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearzero.cli.common import device_option, emit, json_option, parse_seeds, pick_device, progress
from nearzero.errors import ArgumentError

if TYPE_CHECKING:
    from nearzero.grid import Grid
    from nearzero.run import Run
    from nearzero.solvers import Solver

SOLVERS = ("ddim", "ancestral", "ancestral-lower", "euler", "heun")
GRIDS = ("trailing", "leading", "linspace", "uniform", "sqrt", "karras", "logsnr", "angle")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-n",
    "count",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="How many images: seeds 0 to N-1.  [default: 64]",
)
@click.option("--seeds", metavar="0-63", help="Seeds, one image each, as 0-63 or 1,5,10-12.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", required=True, help="Folder for SEED.png and grid.png."
)
@click.option("--solver", type=click.Choice(SOLVERS), help="How to step.  [default: the recipe's]")
@click.option("--grid", type=click.Choice(GRIDS), help="Where to stop.  [default: the recipe's]")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Intervals of the grid.  [default: the recipe's]",
)
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, metavar="B", help="Images at once.")
@click.option("--raw-weights", is_flag=True, help="Use the weights themselves, not their average.")
@click.option("--overwrite", is_flag=True, help="Replace images that are there already.")
@device_option
@json_option
def command(
    run: Path,
    count: int | None,
    seeds: str | None,
    out: Path,
    solver: str | None,
    grid: str | None,
    steps: int | None,
    batch: int,
    raw_weights: bool,
    overwrite: bool,
    device: str,
    as_json: bool,
) -> None:
    """Draw images from the run folder RUN: one PNG a seed, named by its seed, and a grid of them.

    \b
    nearzero sample runs/mine -n 64 --out samples
    nearzero sample runs/mine --seeds 0-63 --solver ddim --steps 50 --out samples

    An image depends on its seed alone.
    """
    chosen = _seeds(count, seeds)
    _check_out(out, chosen, overwrite)

    import torch

    from nearzero.files import grid_png, png, to_bytes, write_bytes
    from nearzero.registry import encode
    from nearzero.run import Run

    device = pick_device(device)
    loaded = Run.load(run)
    denoiser = loaded.denoiser(ema=not raw_weights, device=device)
    settings = _settings(loaded, solver, grid, steps)
    shown = []
    with progress("sampling", len(chosen), "images") as advance:
        for start in range(0, len(chosen), batch):
            part = chosen[start : start + batch]
            images = to_bytes(loaded.sample(part, denoiser=denoiser, **settings))
            for seed, image in zip(part, images, strict=True):
                write_bytes(out / _name(seed), png(image))
            shown.append(images[: max(0, 256 - start)])
            advance(len(part), "")
    write_bytes(out / "grid.png", grid_png(torch.cat(shown)))
    document = {"command": "sample", "run": str(run), "step": loaded.step, "out": str(out), "seeds": chosen}
    emit(
        {**document, **{name: encode(value) for name, value in settings.items()}},
        f"{out / 'grid.png'}: {len(chosen)} images of {loaded.recipe.name} at step {loaded.step:,}",
        as_json,
    )


def _seeds(count: int | None, seeds: str | None) -> list[int]:
    if seeds is None:
        return list(range(64 if count is None else count))
    chosen = parse_seeds(seeds)
    if count is not None and count != len(chosen):
        raise ArgumentError(f"-n {count} and --seeds {seeds} disagree: these are {len(chosen)} seeds; leave one out")
    return chosen


def _name(seed: int) -> str:
    return f"{seed:06d}.png"


def _check_out(out: Path, seeds: list[int], overwrite: bool) -> None:
    from nearzero.files import check_writable

    check_writable(out)
    if out.exists() and not out.is_dir():
        raise ArgumentError(f"--out {out} is a file; name a folder")
    there = next((seed for seed in seeds if (out / _name(seed)).exists()), None)
    if there is not None and not overwrite:
        raise ArgumentError(
            f"{out / _name(there)} exists; use --overwrite to replace it, other --seeds or another --out"
        )


def _settings(run: Run, solver: str | None, grid: str | None, steps: int | None) -> dict[str, Any]:
    """The solver, grid and steps that were asked for, the recipe's where they were not."""
    from nearzero.grid import AngleGrid, KarrasGrid, LogSNRGrid, SqrtGrid, TimestepGrid, UniformGrid
    from nearzero.solvers.exponential import DDIM
    from nearzero.solvers.ode import Euler, Heun
    from nearzero.solvers.sde import Ancestral

    solvers: dict[str, Solver] = {
        **{"ddim": DDIM(), "ancestral": Ancestral(), "ancestral-lower": Ancestral("lower")},
        **{"euler": Euler(), "heun": Heun()},
    }
    grids: dict[str, Grid] = {
        **{"uniform": UniformGrid(), "sqrt": SqrtGrid(), "karras": KarrasGrid(), "logsnr": LogSNRGrid()},
        **{"angle": AngleGrid()},
    }
    recipe = run.recipe
    chosen_grid = recipe.grid if grid is None else grids.get(grid) or TimestepGrid(grid)  # pyright: ignore[reportArgumentType]
    return {
        "solver": recipe.solver if solver is None else solvers[solver],
        "grid": chosen_grid,
        "steps": recipe.steps if steps is None else steps,
    }
