"""Packs a trained run as a model of the package: src/nearzero/zoo/NAME, a run folder of at most 3 MB.

    python scripts/pack_zoo.py RUN NAME [--card fd.json] [--machine "2 CPU cores"] [--folder DIR]

It takes the newest checkpoint's averaged weights, rounded to float16, and leaves out what names a machine: absolute
paths, the platform, hosts. The same run gives the same bytes. `--card` is what `nearzero evaluate RUN --fd` or
`nearzero evaluate zoo:NAME --fd` wrote about these weights; it is sealed again with zoo:NAME as its run.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nearzero import zoo
from nearzero.cards import Card, read_card, write_card
from nearzero.errors import ArgumentError, DataError, NearzeroError, NumericalError
from nearzero.files import digest_file, new_folder, read_json, safetensors, write_bytes, write_json, write_parts
from nearzero.manifest import write_manifest
from nearzero.production import Production
from nearzero.report.curves import read_stats
from nearzero.run import SCHEMA, Run, load_tensors

MOST = 3_000_000
"""Bytes of a model, all of its files together."""

LIMITS = (
    "A small network, trained for less than an hour on a CPU: it shows what the recipe does, not how good it can be. "
    "It is not the paper's network, and one training run says nothing about which recipe is better."
)

README = """# zoo:{name}

{recipe}, {parameters:,} parameters, {channels} x {size} x {size} images: a run of nearzero that comes with the package.

```bash
nearzero sample zoo:{name} -n 64 --out samples
```

| | |
|---|---|
| trained on | {data[name]}, {data[count]:,} images{licence} |
| images seen | {images_seen:,}: {step:,} steps of {batch} |
| training | {training} |
| weights | their average as float16, {bytes:,} bytes; Apache-2.0, as the package |
| distance to real images | {distance} |

{limits}
"""


def pack(
    source: Path, name: str, *, card: Path | None = None, machine: str | None = None, folder: Path | None = None
) -> Path:
    """Writes the model, whole or not at all, in place of a former one, and returns its folder.

    Raises ArgumentError for a run on images of one's own, a bad name and more than 3 MB, CheckpointError for no run,
    DataError for a card about something else.
    """
    if not re.fullmatch("[a-z0-9_]{1,40}", name):
        raise ArgumentError(f"{name!r} is no name; take small letters, digits and _")
    run = Run.load(source).pinned()
    place = (zoo.FOLDER if folder is None else folder) / name
    with new_folder(place) as aside:
        weights = _weights(run, aside)
        replace(run, path=aside, data=_data(run), provenance=_provenance(run.provenance)).write()
        told = None if card is None else _card(read_card(card), name, run, Run.load(aside))
        about = _about(run, name, weights, machine)
        write_json(aside / "card.json", about)
        write_bytes(aside / "README.md", _readme(about, told).encode())
        if told is not None:
            write_card(aside / "fd.json", told)
        size = sum(file.stat().st_size for file in aside.rglob("*") if file.is_file())
        if size > MOST:
            raise ArgumentError(f"{source} takes {size:,} bytes, a model of the package at most {MOST:,}")
    return place


def _weights(run: Run, folder: Path) -> Path:
    """Writes the checkpoint: float16 averages, state.json, manifest.json."""
    tensors = {name: tensor.half() for name, tensor in load_tensors(run.weights()).items()}
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise NumericalError(f"{name} is not finite in float16; train again with a lower learning rate")
    place = folder / "checkpoints" / f"{run.step:09d}"
    place.mkdir(parents=True)
    write_parts(place / "ema.safetensors", safetensors(tensors))
    write_json(place / "state.json", {"schema_version": SCHEMA, "step": run.step, "images": _seen(run)})
    write_manifest(place, {"step": run.step})
    return place / "ema.safetensors"


def _seen(run: Run) -> int:
    return run.step * run.recipe.training.batch


def _data(run: Run) -> dict[str, Any]:
    """What the run says of its images. Raises ArgumentError where they lie in a folder of this machine."""
    data = (run.data.get("source") or {}).get("data")
    if data is not None and ("/" in str(data).replace("/test", "") or "\\" in str(data)):
        raise ArgumentError(f"{run.path} was trained on {data}; pack what was trained on a public data set by its name")
    return dict(run.data)


def _provenance(found: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, date and command, the command without the folders of this machine."""
    kept = {name: found[name] for name in ("nearzero", "torch", "python", "created") if name in found}
    argv = [Path(part).name if Path(part).is_absolute() else part for part in map(str, found.get("argv", ()))]
    return {**kept, "argv": argv}


def _about(run: Run, name: str, weights: Path, machine: str | None) -> dict[str, Any]:
    """card.json."""
    network, data = run.recipe.network, run.data
    return {
        "schema_version": 1,
        "name": name,
        "recipe": run.recipe.name,
        "size": network.size,
        "channels": network.channels,
        "parameters": sum(tensor.numel() for tensor in load_tensors(weights).values()),
        "data": {
            "name": data.get("name", "unknown"),
            "count": data.get("count", 0),
            "licence": "MIT, copyright 2017 Zalando SE" if "fashion-mnist" in str(data.get("name")) else None,
        },
        "step": run.step,
        "batch": run.recipe.training.batch,
        "images_seen": _seen(run),
        "training_seconds": _seconds(run),
        "machine": machine or ("CPU" if str(run.provenance.get("torch")).endswith("+cpu") else None),
        "weights": "the average, rounded to float16",
        "bytes": weights.stat().st_size,
        "blake2b": digest_file(weights),
        "limits": LIMITS,
    }


def _seconds(run: Run) -> int | None:
    """How long was trained up to the checkpoint: stats.jsonl counts anew after each resume."""
    total = last = 0.0
    for line in read_stats(run.path / "stats.jsonl"):
        if line["step"] <= run.step and isinstance(entry := line.get("Timing/total_sec"), dict):
            total, last = total + (last if entry["mean"] < last else 0.0), entry["mean"]
    return round(total + last) or None


def _card(card: Card, name: str, run: Run, packed: Run) -> Card:
    """The card as one of zoo:NAME. Raises DataError where it is about other weights than the run's, or its float16."""
    known = [_checkpoint(run), _checkpoint(packed)]
    if card.subject.get("weights") != "ema" or card.subject.get("checkpoint") not in known:
        raise DataError(f"the card is about other weights; measure again: nearzero evaluate {run.path} --fd")
    made = {key: value for key, value in card.made.items() if key != "platform"}
    made["argv"] = _provenance(card.made)["argv"]
    return replace(card, subject={**card.subject, "run": f"{zoo.PREFIX}{name}"}, made=made)


def _checkpoint(run: Run) -> str:
    """What a card calls the averaged weights of a run's checkpoint."""
    return Production(run, run.recipe.solver, run.recipe.grid, run.recipe.steps).settings()["checkpoint"]


def _readme(about: Mapping[str, Any], card: Card | None) -> str:
    seconds, licence = about["training_seconds"], about["data"]["licence"]
    took = "unknown" if seconds is None else f"{seconds:,} seconds"
    where = f" on {about['machine']}" if about["machine"] else ""
    note = "; notice in nearzero/data/FASHION_MNIST_LICENSE"
    return README.format(
        **about,
        training=f"{took}{where}",
        licence=f" ({licence}{note})" if licence else "",
        distance="not measured" if card is None else f"{card.text()}; `fd.json` has all that it depends on",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--card", type=Path)
    parser.add_argument("--machine")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args(arguments)
    try:
        place = pack(asked.run, asked.name, card=asked.card, machine=asked.machine, folder=asked.folder)
    except NearzeroError as error:
        print(f"pack_zoo: {error}", file=sys.stderr)
        return error.exit_code
    about = read_json(place / "card.json")
    print(f"{place}: {about['images_seen']:,} images seen, {about['bytes']:,} bytes of weights")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
