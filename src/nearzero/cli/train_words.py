"""What `nearzero train` says: before it starts, and when it is done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearzero.cli.common import duration, say

if TYPE_CHECKING:
    from nearzero.data.images import Images
    from nearzero.recipes import Recipe
    from nearzero.run import Run
    from nearzero.training.engine import Engine
    from nearzero.training.preflight import Cost


def document(recipe: Recipe, images: Images, cost: Cost | None, seed: int, out: Path, engine: Engine) -> dict[str, Any]:
    """What is about to be done, as JSON."""
    from nearzero.registry import encode

    return {
        "command": "train",
        "run": str(out),
        "recipe": encode(recipe),
        "data": images.describe(),
        "seed": seed,
        "device": engine.device.type,
        "processes": engine.processes,
        "accumulation": engine.accumulation,
        "precision": engine.precision,
        "cost": cost and cost._asdict(),
    }


def announce(document: dict[str, Any], preset: str) -> None:
    """What is about to happen and what it will cost."""
    recipe, data, cost = document["recipe"], document["data"], document["cost"]
    training = recipe["training"]
    colour = "grey" if data["channels"] == 1 else "colour"
    classes = f", {len(data['classes'])} classes" if data["classes"] else ""
    say(f"recipe    {recipe['name']}, {preset} preset, {cost['parameters']:,} parameters")
    say(f"data      {data['name']}: {data['count']:,} images, {data['size']} x {data['size']} {colour}{classes}")
    where = f"{_split(document)}, seed {document['seed']}"
    say(f"training  {training['steps']:,} steps of {training['batch']} images{where}")
    say(f"time      about {duration(cost['seconds'])}, at {cost['images_per_second']:,.0f} images/s just measured")
    say(f"disk      {cost['disk'] / 1e6:,.0f} MB of {cost['free'] / 1e9:,.0f} GB free, in {document['run']}")


def _split(document: dict[str, Any]) -> str:
    """How the total batch is cut, and where it is computed."""
    batch, processes, parts = (document["recipe"]["training"]["batch"], document["processes"], document["accumulation"])
    each = batch // (processes * parts)
    cut = f" ({processes} processes x {parts} parts of {each})" if processes * parts > 1 else ""
    cast = "" if document["precision"] == "no" else f" in {document['precision']}"
    return f"{cut} on {document['device']}{cast}"


def done(run: Run) -> tuple[dict[str, Any], str]:
    """What was trained, and what happened by itself meanwhile, other than checkpoints."""
    from nearzero.training.events import read_events, summary

    events = summary(read_events(run.path / "events.jsonl"))
    told = ", ".join(f"{count} x {kind}" for kind, count in events.items() if kind != "checkpoint")
    what = f"{run.path}: {run.step:,} steps of {run.recipe.name}"
    then = f"look at {run.path / 'previews'}, then: nearzero sample {run.path} -n 64 --out samples"
    text = f"{what}; {then}" + (f"\nevents: {told}; see {run.path / 'events.jsonl'}" if told else "")
    return {"step": run.step, "events": events}, text
