"""nearzero finetune."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearzero.cli.common import (
    check_apart,
    device_option,
    emit,
    is_named,
    json_option,
    load_images,
    parse_share,
    pick_device,
    progress,
    say,
)

if TYPE_CHECKING:
    from nearzero.data.images import Images
    from nearzero.recipe import Training
    from nearzero.run import Run
    from nearzero.training.engine import Engine

SHARE_HELP = "Tell the network one number for each of N cells of the first T timesteps.  [default: as it is told now]"
LORA_HELP = "Train only a LoRA of this rank on the attention; needs the extra lora (peft).  [default: all weights]"


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", required=True, help="Images to train on.")
@click.option("--out", type=click.Path(path_type=Path), metavar="RUN", required=True, help="Run folder to write.")
@click.option("--share", metavar="T/N", help=SHARE_HELP)
@click.option("--steps", type=click.IntRange(min=1), default=1000, show_default=True, metavar="N", help="How long.")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, metavar="B", help="Images a step.")
@click.option("--learning-rate", type=float, default=1e-5, show_default=True, metavar="R", help="Of Adam.")
@click.option("--flip", is_flag=True, help="Mirror images at random.")
@click.option("--lora", type=click.IntRange(min=1), metavar="R", help=LORA_HELP)
@click.option("--accumulate", type=click.IntRange(min=1), default=1, metavar="A", help="Compute a batch in A parts.")
@click.option(
    "--precision", type=click.Choice(["no", "bf16", "fp16"]), default="no", help="Of the network's arithmetic."
)
@click.option("--checkpointing", is_flag=True, help="Compute features again instead of keeping them: less memory.")
@click.option(
    "--checkpoint-every", type=click.IntRange(min=1), default=500, show_default=True, metavar="N", help="Steps."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, metavar="K", help="Of order, times and noise.")
@click.option("--overwrite", is_flag=True, help="Delete the run in RUN first.")
@device_option
@json_option
def command(
    path: Path,
    data: Path,
    out: Path,
    share: str | None,
    steps: int,
    batch: int,
    learning_rate: float,
    flip: bool,
    lora: int | None,
    seed: int,
    overwrite: bool,
    device: str,
    as_json: bool,
    **how: Any,
) -> None:
    """Train the diffusers pipeline in PATH further, with its timesteps shared near t = 0.

    \b
    nearzero diagnose my-ddpm --data my_images
    nearzero finetune my-ddpm --data my_images --share 100/5 --out runs/healed
    nearzero diagnose runs/healed --against my-ddpm

    RUN is a run like any other; RUN/diffusers holds the result as a pipeline. Ctrl-C saves first (exit code 75):
    nearzero train --resume --out RUN goes on, nearzero export RUN DIR writes the pipeline then.
    """
    from nearzero.interop.pipeline_run import TRAINING
    from nearzero.training.engine import Engine

    cells = None if share is None else parse_share(share)
    check_apart(data, out, "--data")
    training = replace(TRAINING, steps=steps, batch=batch, learning_rate=learning_rate, flip=flip)
    engine = Engine(pick_device(device), how["precision"], how["accumulate"], checkpointing=how["checkpointing"])
    engine.rows(batch)
    with engine.together():
        images, record = _images(path, data, how)
    if engine.main:
        told = f"shared {share}" if share else "told as it is"
        say(f"{path}: {steps:,} steps of {batch} images of {images.name}, {told}")
    run = _run(path, images, out, engine, training, overwrite, record, share=cells, rank=lora or 0, seed=seed)
    if engine.main:
        emit(
            {**_exported(run), "share": share, "lora": lora},
            f"see also: nearzero diagnose {out} --against {path}",
            as_json,
        )
    engine.close()


def _images(path: Path, data: Path, how: dict[str, Any]) -> tuple[Images, dict[str, Any]]:
    """The images as the pipeline takes them, and what the run records of how it was made, for train --resume."""
    from nearzero.interop.subject import open_subject

    subject = open_subject(path)
    name = str(data) if is_named(data) else str(data.absolute())
    record = {"data": name, "size": subject.size, "channels": subject.channels}
    record |= {name: how[name] for name in ("precision", "checkpointing", "checkpoint_every")}
    return load_images(data, subject.size, subject.channels), record


def _run(
    path: Path,
    images: Images,
    out: Path,
    engine: Engine,
    training: Training,
    overwrite: bool,
    record: dict[str, Any],
    **how: Any,
) -> Run:
    """The fine-tuning, with progress."""
    from nearzero.interop.finetune import finetune

    how |= {"training": training, "overwrite": overwrite, "engine": engine, "record": record}
    how["checkpoint_every"] = record["checkpoint_every"]
    total, size = training.steps * training.batch, training.batch
    silence = contextlib.nullcontext(lambda count, note: None)
    with progress(f"fine-tuning {path.name}", total, "images") if engine.main else silence as advance:
        return finetune(path, images, out, progress=lambda now: advance(size, f"step {now.step:,}"), **how)


def _exported(run: Run) -> dict[str, Any]:
    """The result as a pipeline beside the run, and where it is."""
    from nearzero.interop.export import to_diffusers

    made = to_diffusers(run, run.path / "diffusers", overwrite=True)
    say(f"{made.path}: a {made.pipeline} after {run.step:,} steps")
    return {
        "command": "finetune",
        "run": str(run.path),
        "step": run.step,
        "pipeline": str(made.path),
        "kind": made.kind,
    }
