"""nearzero verify."""

from __future__ import annotations

from pathlib import Path

import click

from nearzero.cli.common import emit, json_option
from nearzero.errors import CheckpointError


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@json_option
def command(run: Path, as_json: bool) -> None:
    """Read every checkpoint of RUN and compare it with its manifest, byte for byte.

    \b
    nearzero verify runs/mine

    Exit code 4 where the newest is damaged or there is none.
    """
    from nearzero.cli.inspect import checkpoints, describe
    from nearzero.run import Run

    found = checkpoints(Run.load(run))
    whole = [one["step"] for one in found if one["valid"]]
    lines = [f"{run}: {describe(one)}" for one in found]
    document = {"command": "verify", "run": str(run), "newest": max(whole, default=None), "checkpoints": found}
    emit(document, "\n".join(lines) or f"{run}: no checkpoint", as_json)
    if not found:
        raise CheckpointError(f"{run} has no checkpoint yet; train it with: nearzero train --resume --out {run}")
    if not found[0]["valid"]:
        then = f"resuming takes step {max(whole):,}" if whole else "no other is whole; restore the file or train again"
        raise CheckpointError(f"the newest checkpoint is damaged: {found[0]['problem']}; {then}")
