"""Sampling as a job: which seeds are left, in which batches, and what to do when the memory is too small."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError, CheckpointError, OutOfMemoryError
from nearzero.files import png, to_bytes, write_bytes
from nearzero.grid import Grid
from nearzero.guidance import Guided
from nearzero.production.film import SHOWN, film
from nearzero.production.folder import Folder
from nearzero.registry import encode
from nearzero.rescaled import Through
from nearzero.run import Run, provenance
from nearzero.sampling import sample
from nearzero.solvers import Solver

Tell = Callable[[str], None]
AXES = ("process", "parameterization", "conditioning", "codec", "network")
"""The parts of a recipe that an image depends on, whatever the sampler."""
WIDTH = 640
"""About how many pixels wide a small film is drawn."""


class Guide(NamedTuple):
    """Autoguidance: a weaker run, how far to go away from it, and between which noise levels sigma / alpha."""

    run: Run
    scale: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Production:
    """Everything but the seed that an image depends on; `through` None samples the process that was trained."""

    run: Run
    solver: Solver
    grid: Grid
    steps: int | None = None
    nfe: int | None = None
    through: Through | None = None
    guide: Guide | None = None
    ema: bool = True

    def pinned(self) -> Production:
        """The same at the checkpoints of now, whatever training adds while images are drawn."""
        guide = self.guide and self.guide._replace(run=self.guide.run.pinned())
        return replace(self, run=self.run.pinned(), guide=guide)

    def settings(self) -> dict[str, Any]:
        """As JSON: images of equal settings and seeds are equal. Raises CheckpointError before the first checkpoint."""
        guide = self.guide
        interval = None if guide is None or guide.interval is None else list(guide.interval)
        return {
            "checkpoint": _checkpoint(self.run, self.ema),
            "weights": "ema" if self.ema else "raw",
            **{key: encode(getattr(self, key)) for key in ("solver", "grid", "steps", "nfe", "through")},
            "guidance": guide
            and {"scale": guide.scale, "interval": interval, "checkpoint": _checkpoint(guide.run, self.ema)},
        }

    def source(self) -> dict[str, Any]:
        """Where the images come from, which changes none of them."""
        made = provenance()
        return {
            "run": str(self.run.path),
            "step": self.run.step,
            "recipe": self.run.recipe.name,
            "guide": self.guide and str(self.guide.run.path),
            "versions": {name: made[name] for name in ("nearzero", "torch", "python", "platform")},
        }

    def denoiser(self, device: torch.device | str = "cpu") -> tuple[Denoiser, list[nn.Module]]:
        """The denoiser as samples see it, and the networks in it. Raises ArgumentError where the two runs differ."""
        trained = self.run.denoiser(ema=self.ema, device=device)
        networks = [trained.network]
        if self.guide is not None:
            ours, theirs = self.run.recipe, self.guide.run.recipe
            if ours.codec != theirs.codec or _shape(ours) != _shape(theirs):
                raise ArgumentError(
                    f"{self.guide.run.path} was trained on images of another size or codec than {self.run.path}; "
                    "guide by a run on the same images"
                )
            weaker = self.guide.run.denoiser(ema=self.ema, device=device)
            networks.append(weaker.network)
            trained = Guided(trained, weaker, self.guide.scale, self.guide.interval)
        return trained if self.through is None else self.through(trained), networks

    def draw(self, denoiser: Denoiser, seeds: Sequence[int]) -> Tensor:
        """One image for each seed, uint8 (N, C, H, W)."""
        x = sample(denoiser, _shape(self.run.recipe), seeds=seeds, **self.how())
        return to_bytes(self.run.recipe.codec.decode(x))

    def how(self) -> dict[str, Any]:
        """The arguments of `sample` and `trajectory` beside denoiser, shape and seeds."""
        return {
            **{name: getattr(self, name) for name in ("solver", "grid", "steps", "nfe")},
            "dtype": torch.float32,
        }


class Produced(NamedTuple):
    """What a call of `produce` did: images drawn, images that were there, and whether all asked for are there now."""

    drawn: int
    there: int
    whole: bool
    network_evaluations: float | None
    images_per_second: float | None


def produce(
    production: Production,
    seeds: Sequence[int],
    out: Path,
    *,
    batch: int | None = None,
    overwrite: bool = False,
    trajectory: bool = False,
    shard: tuple[int, int] = (0, 1),
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    tell: Tell = lambda line: None,
) -> Produced:
    """Draws the images of `seeds` that `out` does not hold yet, one PNG each, with samples.json and grid.png.

    Process `rank` of `world`, the `shard`, draws every world-th seed; the one that is last merges the records. An image
    depends on its seed and the settings alone: not on the batch, the processes, or a call that was cut short (to the
    rounding of the device, which may turn a pixel by one grey level where batches differ). `batch` is how many are
    drawn at once, at first; by default 64 on the CPU and 256 elsewhere. Where memory runs out it is halved and the same
    seeds are drawn again. Raises ArgumentError for a folder of other images, OutOfMemoryError where one is too many.
    """
    production, mine = production.pinned(), list(seeds)[shard[0] :: shard[1]]
    folder = Folder(Path(out), production.settings(), mine, overwrite=overwrite, shard=shard)
    left = [seed for seed in mine if overwrite or not folder.has(seed)]
    if len(left) < len(mine):
        tell(f"{len(mine) - len(left)} of {len(mine)} images are there")
    first = list(seeds)[:SHOWN] if trajectory and shard[0] == 0 else []
    counts = None, None
    if left or first:
        denoiser, networks = production.denoiser(device)
        size = batch or (64 if torch.device(device).type == "cpu" else 256)
        if left:
            counts = _fill(folder, production, denoiser, networks, left, size, progress, tell)
        if first:
            recipe, how = production.run.recipe, production.how()
            parts = _halving(lambda part: film(denoiser, recipe.codec, _shape(recipe), part, how), first, SHOWN, tell)
            sheet = torch.cat([strip for _, strips in parts for strip in strips], 1)
            write_bytes(folder.path / "trajectory.png", png(sheet, scale=max(1, WIDTH // sheet.shape[-1])))
    whole = folder.finish(seeds, **production.source())
    return Produced(len(left), len(mine) - len(left), whole, *counts)


def _fill(
    folder: Folder,
    production: Production,
    denoiser: Denoiser,
    networks: Sequence[nn.Module],
    seeds: Sequence[int],
    size: int,
    progress: Callable[[int, int], None] | None,
    tell: Tell,
) -> tuple[float, float]:
    """Files the images as they are drawn; network evaluations for each image, and images a second."""
    done, start, asked, source = 0, time.monotonic(), [0], production.source()
    evaluations = rate = 0.0

    def draw(part: Sequence[int]) -> Tensor:
        asked[0] = 0
        return production.draw(denoiser, part)

    try:
        with _counting(networks, asked):
            for part, images in _halving(draw, seeds, size, tell):
                done += len(part)
                evaluations, rate = asked[0] / len(part), done / (time.monotonic() - start)
                files = {seed: png(image) for seed, image in zip(part, images, strict=True)}
                folder.add(files, **source, network_evaluations=evaluations, images_per_second=rate)
                if progress is not None:
                    progress(done, len(seeds))
    finally:
        folder.flush()
    return evaluations, rate


@contextlib.contextmanager
def _counting(networks: Sequence[nn.Module], asked: list[int]) -> Iterator[None]:
    """Adds to asked[0] the examples that each network is given."""

    def count(_: nn.Module, given: tuple[Any, ...]) -> None:
        asked[0] += len(given[0])

    hooks = [network.register_forward_pre_hook(count) for network in networks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _halving(
    draw: Callable[[Sequence[int]], Any], seeds: Sequence[int], size: int, tell: Tell
) -> Iterator[tuple[Sequence[int], Any]]:
    """Parts of the seeds with what is drawn from each, smaller ones once the memory did not suffice."""
    start = 0
    while start < len(seeds):
        part = seeds[start : start + size]
        drawn = _attempt(draw, part)
        if drawn is not None:
            yield part, drawn
            start += len(part)
            continue
        if len(part) == 1:
            raise OutOfMemoryError(
                "out of memory at one image at a time; take --device cpu, or a device with more free memory"
            )
        size = len(part) // 2
        tell(f"out of memory at {len(part)} images at once; drawing them again by {size}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _attempt(draw: Callable[[Sequence[int]], Any], part: Sequence[int]) -> Any:
    """What is drawn, None where the memory is too small."""
    try:
        return draw(part)
    except (MemoryError, RuntimeError) as error:
        said = str(error).lower()
        if isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said:
            return None
        raise


def _shape(recipe: Any) -> tuple[int, int, int]:
    return (recipe.network.channels, recipe.network.size, recipe.network.size)


def _checkpoint(run: Run, ema: bool) -> str:
    """BLAKE2b of the newest weights and of what the recipe makes of them, 32 hexadecimal digits."""
    state, path = hashlib.blake2b(digest_size=16), run.weights(ema)
    try:
        with path.open("rb") as file:
            while part := file.read(2**20):
                state.update(part)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; restore the file or train again") from error
    axes = [encode(getattr(run.recipe, name)) for name in AXES]
    state.update(json.dumps(axes, sort_keys=True).encode())
    return state.hexdigest()
