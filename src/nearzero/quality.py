"""How far samples are from real images: a distance that is measured so that it can be repeated, kept as a card."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nearzero.cards import Card, read_card, write_card
from nearzero.errors import ArgumentError, CheckpointError, DataError
from nearzero.files import digest, read_json
from nearzero.metrics.bootstrap import Interval, frechet_interval
from nearzero.metrics.frechet import Statistics
from nearzero.metrics.kid import kid
from nearzero.metrics.precision_recall import precision_recall
from nearzero.metrics.spectrum import spectrum_distance
from nearzero.production import Production, produce
from nearzero.run import provenance
from nearzero.yardstick import FEWEST, NEAREST, Progress, Reference, features_of

KID_SIZE, KID_SUBSETS = 1000, 20
RESAMPLES = 100


def bootstrap(samples: Tensor, reference: Statistics) -> Interval:
    """`frechet_interval` of 100 resamples: the error to 7 %, in a small share of the time that samples take."""
    return frechet_interval(samples, reference, resamples=RESAMPLES)


def measure(
    production: Production,
    seeds: Sequence[int],
    reference: Reference,
    *,
    out: Path,
    batch: int | None = None,
    device: torch.device | str = "cpu",
    interval: Callable[[Tensor, Statistics], Interval] = bootstrap,
    progress: Progress = lambda stage, done, of: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Card:
    """The Frechet distance of one sample for each seed to a reference, with KID, precision, recall and the spectrum's.

    The samples lie in `samples_folder` below `out`, one PNG each, and their features beside them: a call that was cut
    short goes on, and one that is repeated asks no network. The card is equal for every `batch`, as far as images are.
    `interval` finds the distance and how far it can be trusted. The floor, real images in place of samples, is left
    out, and that is told, where the reference holds less than twice as many images. Warns where there are no more
    images than features.

    Raises ArgumentError for fewer than 8 seeds or a seed twice, DataError where the reference has another shape or
    samples are missing, and what `produce` and the extractor raise.
    """
    production, start = production.pinned(), time.monotonic()
    protocol, subject = outline(production, seeds, reference)
    folder = samples_folder(out, production)
    made = produce(
        production,
        seeds,
        folder,
        batch=batch,
        device=device,
        progress=lambda done, of: progress("sampling", done, of),
        tell=tell,
    )
    pixels = read_samples(folder, seeds)
    features = features_of(
        reference.extractor, pixels, out / "features", lambda done, of: progress("features", done, of)
    )
    tell("finding the distances and their errors")
    found, floors = interval(features, reference.statistics), reference.floors(len(seeds))
    if not floors:
        tell(
            f"{reference.images.name} holds {len(reference.images):,} images, and the floor of {len(seeds):,} needs "
            f"{2 * len(seeds):,}: it is left out"
        )
    others = _others(pixels, features, reference, floors)
    cost = read_json(folder / "samples.json").get("network_evaluations")
    subject = {**subject, "network_evaluations": made.network_evaluations or cost}
    took = {"seconds": round(time.monotonic() - start, 3), "device": str(device), "interval": interval.__name__}
    return Card(
        reference.extractor.title,
        *found,
        floors.get("distance"),
        protocol,
        subject,
        others,
        {**provenance(), **took},
    )


def measured(path: Path, production: Production, seeds: Sequence[int], reference: Reference, **how: Any) -> Card:
    """The card in a file, measured and written if there is none; `how` are the arguments of `measure`.

    Raises DataError where the card was edited, or is about anything else than what is asked.
    """
    production = production.pinned()
    if not path.exists():
        card = measure(production, seeds, reference, **how)
        write_card(path, card)
        return card
    card, (protocol, subject) = read_card(path), outline(production, seeds, reference)
    asked, told = {**protocol, **subject, "run": None}, {**card.protocol, **card.subject, "run": None}
    for name, value in asked.items():
        if told.get(name) != value:
            found, wanted = (json.dumps(one)[:200] for one in (told.get(name), value))
            raise DataError(f"{path} is about another {name}, {found}, asked is {wanted}; name another file")
    return card


def outline(
    production: Production, seeds: Sequence[int], reference: Reference
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The protocol and the subject of a card, known before anything is drawn; all as JSON.

    Raises ArgumentError and DataError as `measure` does.
    """
    network, images, run = production.run.recipe.network, reference.images, production.run
    if len(seeds) < FEWEST or len(set(seeds)) < len(seeds):
        raise ArgumentError(f"a distance needs at least {FEWEST} seeds, each once, got {len(seeds)}; ask for more")
    if (images.size, images.channels) != (network.size, network.channels):
        raise DataError(
            f"{images.name} has images of {images.size} x {images.size} pixels and {images.channels} channels, "
            f"{run.path} draws {network.size} x {network.size} and {network.channels}; name another reference"
        )
    protocol = {"count": len(seeds), **reference.about}
    subject = {
        **{
            "run": str(run.path.resolve()),
            "recipe": run.recipe.name,
            "step": run.step,
            "images_seen": _seen(production),
        },
        **production.settings(),
        **{"seeds": compact(seeds), "size": network.size, "channels": network.channels},
    }
    return protocol, subject


def key(protocol: Mapping[str, Any], subject: Mapping[str, Any]) -> str:
    """A name for a card: 16 hexadecimal digits of what it is about, wherever the run lies."""
    about = {name: value for name, value in subject.items() if name not in ("run", "network_evaluations")}
    return digest(json.dumps([dict(protocol), about], sort_keys=True).encode())[:16]


def samples_folder(out: Path, production: Production) -> Path:
    """Where samples of these settings lie, whatever they are compared with."""
    return out / f"samples-{digest(json.dumps(production.settings(), sort_keys=True).encode())[:16]}"


def read_samples(folder: Path, seeds: Sequence[int]) -> Tensor:
    """The images of seeds, uint8 (N, C, H, W). Raises DataError where some are missing or are not the recorded ones."""
    recorded = read_json(folder / "samples.json")["images"]
    found, missing = [], []
    for seed in seeds:
        path = folder / f"{seed:06d}.png"
        content = path.read_bytes() if path.is_file() else b""
        if recorded.get(str(seed)) != digest(content):
            missing.append(path.name)
            continue
        with Image.open(BytesIO(content)) as image:
            found.append(np.array(image))
    if missing:
        raise DataError(
            f"{folder} holds {len(found):,} of the {len(seeds):,} images that were asked for: {missing[0]} is missing "
            "or damaged; repeat the call"
        )
    pixels = torch.from_numpy(np.stack(found))
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def compact(seeds: Sequence[int]) -> str:
    """Seeds as a short text.

    >>> compact([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][1] + 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def _others(pixels: Tensor, features: Tensor, reference: Reference, floors: Mapping[str, Any]) -> dict[str, Any]:
    """The further numbers of a card, each with its error or floor where it has one."""
    fewest = min(len(features), len(reference.features))
    order = reference.order()
    kernel = kid(features, reference.features, size=min(KID_SIZE, fewest // 2), subsets=KID_SUBSETS)
    count = min(fewest, NEAREST)
    near = precision_recall(features[:count], reference.features[order[:count]])
    spectrum = spectrum_distance(pixels, reference.images.pixels[order[:fewest]])
    return {
        "KID": {"value": kernel.value, "stderr": kernel.stderr},
        "precision": {"value": near.precision, "floor": floors.get("precision"), "count": count},
        "recall": {"value": near.recall, "floor": floors.get("recall"), "count": count},
        "log spectrum, dB": {"value": spectrum, "floor": floors.get("log spectrum, dB")},
    }


def _seen(production: Production) -> int | None:
    """How many images the weights were trained on, None where nobody says."""
    checkpoint = production.run.checkpoint()
    try:
        state = {} if checkpoint is None else read_json(checkpoint / "state.json")
    except CheckpointError:
        return None
    return state.get("images") if isinstance(state, dict) else None
