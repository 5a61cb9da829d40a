"""nearzero status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearzero.cli.common import duration, emit, json_option

if TYPE_CHECKING:
    from nearzero.run import Run


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--events", type=click.IntRange(min=0), default=5, show_default=True, help="How many of the last events.")
@json_option
def command(run: Path, events: int, as_json: bool) -> None:
    """Say how far RUN is, while it trains too: step, loss, speed, time left, who trains it and what happened last.

    \b
    nearzero status runs/mine
    """
    from nearzero.run import Run
    from nearzero.training.events import read_events
    from nearzero.training.lock import holder

    loaded = Run.load(run)
    who = holder(loaded.path)
    document = {
        "command": "status",
        "run": str(run),
        "recipe": loaded.recipe.name,
        **_progress(loaded),
        "training": None if who is None else who._asdict(),
        "events": read_events(loaded.path / "events.jsonl")[-events:] if events else [],
    }
    if who is None:
        document["seconds_left"] = None
    emit(document, _text(document, str(who)), as_json)


def _progress(run: Run) -> dict[str, Any]:
    """Where training is by its last line in stats.jsonl, and by its newest checkpoint, which is not read."""
    from nearzero.manifest import checkpoints

    saved = checkpoints(run.path / "checkpoints")
    line, training = _last_line(run.path / "stats.jsonl"), run.recipe.training
    newest = int(saved[0].name) if saved else 0
    step = max(int(line.get("step", 0)), newest)
    speed = _number(line, "Progress/images_per_sec")
    if speed is None and (pace := _number(line, "Timing/sec_per_kimg")):
        speed = 1000 / pace
    return {
        "step": step,
        "steps": training.steps,
        "checkpoint": newest,
        "loss": _number(line, "Loss/loss"),
        "images_per_second": speed,
        "seconds_left": (training.steps - step) * training.batch / speed if speed else None,
    }


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line of stats.jsonl; {} where there is none."""
    from nearzero.training.events import record

    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    found = (one for one in map(record, reversed(lines)) if one is not None and isinstance(one.get("step"), int))
    return next(found, {})


def _number(line: dict[str, Any], name: str) -> float | None:
    entry = line.get(name)
    value = entry.get("mean") if isinstance(entry, dict) else None
    return value if isinstance(value, int | float) else None


def _text(found: dict[str, Any], who: str) -> str:
    """The same as lines."""
    percent = 100 * found["step"] / found["steps"]
    state = "done" if found["step"] >= found["steps"] else "stopped"
    state = state if found["training"] is None else f"in training by {who}"
    lines = [
        f"{found['run']}: {found['recipe']}, step {found['step']:,} of {found['steps']:,} ({percent:.0f} %), {state}"
    ]
    if found["loss"] is not None:
        lines.append(f"{'loss':12}{found['loss']:.4g}")
    if found["images_per_second"] is not None:
        left = "" if found["seconds_left"] is None else f", {duration(found['seconds_left'])} left"
        lines.append(f"{'speed':12}{found['images_per_second']:,.3g} images/s{left}")
    lines.append(f"{'checkpoint':12}{'step {:,}'.format(found['checkpoint']) if found['checkpoint'] else 'none yet'}")
    for event in found["events"]:
        rest = {name: value for name, value in event.items() if name not in ("time", "kind", "step")}
        facts = ", ".join(f"{name} {value}" for name, value in rest.items())
        lines.append(f"{'event':12}{event.get('time')} step {event.get('step')}: {event.get('kind')} {facts}".rstrip())
    return "\n".join(lines)
