"""nearzero export."""

from __future__ import annotations

from pathlib import Path

import click

from nearzero.cli.common import emit, json_option


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--raw-weights", is_flag=True, help="Export the weights themselves, not their average.")
@click.option("--overwrite", is_flag=True, help="Replace what an export wrote in DIR before.")
@json_option
def command(run: Path, out: Path, raw_weights: bool, overwrite: bool, as_json: bool) -> None:
    """Write the run folder RUN as a diffusers pipeline in DIR.

    \b
    nearzero export runs/mine exported
    nearzero export runs/mine exported --overwrite

    diffusers.DDIMPipeline.from_pretrained("exported") opens it.

    What the network is told near t = 0 goes with it: in a table that stock pipelines read, or, where diffusers has no
    such model or scheduler, in classes that need nearzero and say so without it.
    """
    from nearzero.interop.export import to_diffusers

    made = to_diffusers(run, out, ema=not raw_weights, overwrite=overwrite)
    stock = made.kind == "A"
    told = "stock classes" if stock else "opened by nearzero.NearzeroPipeline.from_pretrained"
    document = {"command": "export", "run": str(run), "out": str(out), "kind": made.kind, "pipeline": made.pipeline}
    emit(document, f"{out}: a {made.pipeline}, {told}; read {out / 'README.md'}", as_json)
