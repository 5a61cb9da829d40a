"""What a report is made of: what lies in a run's folder, and what its newest checkpoint shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nearzero.data.images import Images
from nearzero.diagnostics.diagnosis import Diagnosis, diagnose
from nearzero.errors import CheckpointError, NearzeroError, NumericalError
from nearzero.files import to_bytes
from nearzero.manifest import checkpoints, problem
from nearzero.metrics.extractors import Extractor
from nearzero.randomness import order
from nearzero.report.curves import read_stats
from nearzero.report.measured import Measured, measured
from nearzero.report.neighbours import Neighbours, nearest, nearest_by_features
from nearzero.run import Run
from nearzero.training.events import read_events

FEATURED = 2000  # training images whose features are compared: more would take minutes
CONTROLS = 256  # held-out images

Bar = Callable[[str, str], AbstractContextManager[Callable[[int, int], None]]]
"""A progress bar of a label and a unit; inside, show(done, of)."""


@dataclass(frozen=True)
class Copies:
    """Neighbours of samples and, as the control, of held-out real images among `training` (uint8), if there are any.

    By features only the `featured` images are compared, the first of `training` in a fixed order.
    """

    training: Tensor
    pixels: Neighbours
    real: Tensor | None = None
    real_pixels: Neighbours | None = None
    featured: Tensor | None = None
    features: Neighbours | None = None
    real_features: Neighbours | None = None


@dataclass(frozen=True)
class Findings:
    """Everything that is known of a run; `missing` says by section what there is not, and how to get it."""

    run: Run
    step: int
    measured: Measured
    stats: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]
    damaged: Sequence[str]
    samples: Tensor | None = None
    copies: Copies | None = None
    diagnosis: Diagnosis | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


def on_disk(run: Run) -> Findings:
    """What the folder holds, without using the network: its newest whole checkpoint counts, damaged ones are told."""
    damaged = [wrong for path in checkpoints(run.path / "checkpoints") if (wrong := problem(path)) is not None]
    try:
        step = run.step
    except CheckpointError:
        step = 0
    found = measured(run.path)
    return Findings(
        run=run,
        step=step,
        measured=found,
        stats=read_stats(run.path / "stats.jsonl"),
        events=read_events(run.path / "events.jsonl"),
        damaged=[*damaged, *map(str, found.damaged.values())],
    )


def draw(run: Run, count: int, device: str, bar: Bar) -> Tensor:
    """Samples of seeds 0 to count - 1 as uint8. Raises NumericalError where they are not finite."""
    parts = []
    denoiser = run.denoiser(device=device)
    with bar("sampling", "images") as show:
        for start in range(0, count, 16):
            pixels = run.sample(range(start, min(start + 16, count)), denoiser=denoiser, device=device)
            if not bool(pixels.isfinite().all()):
                raise NumericalError(f"samples of {run.path} are not finite; check it with: nearzero status {run.path}")
            parts.append(to_bytes(pixels))
            show(min(start + 16, count), count)
    return torch.cat(parts)


def near_zero(run: Run, images: Images, count: int, device: str, bar: Bar) -> Diagnosis:
    """The diagnosis on `count` of the images, which a fixed order chooses."""
    chosen = images.pixels[order(0, torch.arange(min(count, len(images))), len(images))]
    x0 = run.recipe.codec.encode(chosen).to(device)
    with bar("diagnosing", "pairs of timesteps") as show:
        return diagnose(run.denoiser(device=device), x0, progress=show)


def copies(
    run: Run, samples: Tensor, images: Images, held: Tensor | None, extractor: Extractor | None, bar: Bar
) -> Copies:
    """The training images nearest to samples, by pixels and by features, and those nearest to held-out images."""
    mirrored, training = run.recipe.training.flip, images.pixels
    chosen = order(0, torch.arange(min(FEATURED, len(training))), len(training))
    real = None if held is None else held[order(0, torch.arange(min(CONTROLS, len(held))), len(held))]
    with bar("looking for copies", "comparisons") as show:
        found: dict[str, Any] = {"pixels": nearest(samples, training, mirrored=mirrored)}
        show(1, 3)
        if real is not None:
            found |= {"real": real, "real_pixels": nearest(real, training, mirrored=mirrored)}
        show(2, 3)
        if extractor is not None:
            shown = [samples, *([] if real is None else [real])]
            both = nearest_by_features(torch.cat(shown), training[chosen], extractor)
            parts = [Neighbours(*(part[rows] for part in both)) for rows in _slices([len(one) for one in shown])]
            found |= {"featured": training[chosen], "features": parts[0]}
            found |= {} if real is None else {"real_features": parts[1]}
        show(3, 3)
    return Copies(training, **found)


def _slices(lengths: Sequence[int]) -> list[slice]:
    """Places of parts that follow each other."""
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def attempt(missing: dict[str, str], section: str, make: Callable[[], Any]) -> Any:
    """What `make` makes; None, and why in `missing`, where it raises one of our errors."""
    try:
        return make()
    except NearzeroError as error:
        missing[section] = str(error)
        return None
