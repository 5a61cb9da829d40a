"""nearzero inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearzero.cli.common import emit, json_option

if TYPE_CHECKING:
    from nearzero.run import Run


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@json_option
def command(run: Path, as_json: bool) -> None:
    """Say what RUN is: its recipe, data and step, its checkpoints and their averages, and where it comes from.

    \b
    nearzero inspect runs/mine
    nearzero inspect runs/mine --json
    """
    import torch

    from nearzero.recipes.table import COLUMNS, row
    from nearzero.registry import encode
    from nearzero.run import Run

    loaded = Run.load(run)
    found = checkpoints(loaded)
    recipe, whole = loaded.recipe, [one for one in found if one["valid"]]
    with torch.random.fork_rng(devices=[]):
        parameters = sum(weight.numel() for weight in recipe.network.build().parameters())
    document = {
        "command": "inspect",
        "run": str(run),
        "recipe": encode(recipe),
        "axes": dict(zip(COLUMNS, row(recipe), strict=True)),
        "parameters": parameters,
        "data": dict(loaded.data),
        "seed": loaded.seed,
        "step": whole[0]["step"] if whole else 0,
        "steps": recipe.training.steps,
        "checkpoints": found,
        "provenance": dict(loaded.provenance),
    }
    emit(document, _text(loaded, document), as_json)


def checkpoints(run: Run) -> list[dict[str, Any]]:
    """Every checkpoint of a run, newest first: step, path, bytes, averages, versions, and what is wrong with it."""
    from nearzero.files import read_json
    from nearzero.manifest import NAME, problem
    from nearzero.manifest import checkpoints as folders

    found = []
    for path in folders(run.path / "checkpoints"):
        wrong, there = problem(path), path / NAME
        if not path.exists():  # training has deleted it meanwhile
            continue
        record = read_json(there) if wrong is None and there.exists() else {}
        about = {
            "step": int(path.name),
            "path": str(path),
            "bytes": sum(file.stat().st_size for file in path.iterdir() if file.is_file()),
            "valid": wrong is None,
            "hashed": there.exists(),
            "problem": wrong,
            "averages": sorted(file.stem for file in path.glob("ema*.safetensors")),
            "versions": {name: record[name] for name in ("nearzero", "torch") if name in record},
        }
        found.append(about)
    return found


def describe(one: dict[str, Any]) -> str:
    """A checkpoint in a line."""
    size = f"{one['bytes'] / 1e6:,.1f} MB"
    if not one["valid"]:
        return f"step {one['step']:,}, {size}, damaged: {one['problem']}"
    told = "whole" if one["hashed"] else "without a manifest, so nothing can be compared"
    return f"step {one['step']:,}, {size}, {told}"


def _text(run: Run, document: dict[str, Any]) -> str:
    """The same as lines."""
    place, data, origin = document["run"], document["data"], document["provenance"]
    source = (data.get("source") or {}).get("data") or data.get("name") or "unknown images"
    lines = {
        "run": f"{place}: {run.recipe.name}, step {document['step']:,} of {document['steps']:,}, seed {run.seed}",
        **document["axes"],
        "network": f"{document['parameters']:,} parameters; {run.recipe.network}",
        "data": f"{data.get('count', 0):,} images of {source}, fingerprint {data.get('fingerprint', 'unknown')}",
        "from": f"nearzero {origin.get('nearzero')}, torch {origin.get('torch')}, {origin.get('created')}",
    }
    text = [f"{name:14}{value}" for name, value in lines.items()]
    for one in document["checkpoints"]:
        text.append(f"{'checkpoint':14}{describe(one)}; averages: {', '.join(one['averages']) or 'none'}")
    return "\n".join(text if document["checkpoints"] else [*text, f"{'checkpoint':14}none yet"])
