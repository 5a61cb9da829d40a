"""Bits per dimension of a trained run, together with everything that the number depends on.

    bits = -(log p(encode(k + u - 1/2)) + log |d encode|) / (D log 2),   u uniform in (0, 1) for each pixel value k

Its mean over u bounds the cost of the 8-bit image from above (uniform dequantization).
Reference: Theis et al., A note on the evaluation of generative models, ICLR 2016, Section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nearzero.bounds import truncated_elbo
from nearzero.data.images import Images
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError, CheckpointError, DataError, NumericalError
from nearzero.files import read_json, write_json
from nearzero.likelihood import bits_per_dim, elbo, ode_likelihood
from nearzero.randomness import Stream, order, step_seed, uniforms
from nearzero.registry import encode, register
from nearzero.run import Run, provenance
from nearzero.solvers.adaptive import RK45
from nearzero.times import LogTimes, Times


class Method(Protocol):
    """How log densities are found."""

    def nats(self, denoiser: Denoiser, x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Named columns (B,): "nats", the log density or a lower bound of it, and whatever else is to be reported."""
        ...


@register
@dataclass(frozen=True)
class ByOde:
    """The density of the probability-flow ODE, with Skilling-Hutchinson divergence unless `exact`."""

    rtol: float = 1e-5
    atol: float = 1e-5
    probes: int = 1
    exact: bool = False
    t_min: float = 0.0
    between_timesteps: bool = False

    def nats(self, denoiser: Denoiser, x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        """The log density and how many evaluations its batch took."""
        found = ode_likelihood(
            denoiser,
            x,
            solver=RK45(self.rtol, self.atol),
            divergence="exact" if self.exact else "hutchinson",
            probes=self.probes,
            generator=generator,
            t_min=self.t_min,
            between_timesteps=self.between_timesteps,
        )
        return {"nats": found.nats, "evaluations": torch.full_like(found.nats, found.evaluations)}


@register
@dataclass(frozen=True)
class ByBound:
    """FullDiffusion's bound over all of time, for Nu and W."""

    draws: int = 1000
    times: Times = field(default_factory=LogTimes)

    def nats(self, denoiser: Denoiser, x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        """The bound."""
        found = elbo(denoiser, x, draws=self.draws, times=self.times, generator=generator)
        return {"nats": found, "evaluations": torch.full_like(found, self.draws)}


@register
@dataclass(frozen=True)
class ByTruncatedBound:
    """The bound from t_min on, whose prior, diffusion and reconstruction are reported apart."""

    t_min: float = 1e-5
    draws: int = 1000

    def nats(self, denoiser: Denoiser, x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        """The bound and its three terms."""
        found = truncated_elbo(denoiser, x, t_min=self.t_min, draws=self.draws, generator=generator)
        return {"nats": found.bound, **found._asdict(), "evaluations": torch.full_like(found.prior, self.draws)}


def evaluate(
    run: Run,
    images: Images,
    method: Method,
    *,
    out: Path,
    count: int | None = None,
    repeats: int = 1,
    seed: int = 0,
    batch: int = 64,
    ema: bool = True,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Bits per dimension of `count` images (all), each dithered `repeats` times, as a document that is kept in `out`.

    "bits_foreground" spreads an image's whole bits over its pixels that are not 0: as the others cost at least nothing,
    it bounds what one of these costs, where much black background flatters the mean over all.
    The file is written after each batch: a call that was cut short goes on, and one with other settings is refused
    unless `overwrite`. Dither follows from `seed` and the image's place, the method's own draws from `seed` and the
    batch's. Raises DataError where there are fewer images, ArgumentError for settings that do not fit.
    """
    run, count = run.pinned(), len(images) if count is None else count
    if not 1 <= count <= len(images):
        raise DataError(
            f"{count} images were asked for and {images.name} holds {len(images)}; ask for at most that many"
        )
    if repeats < 1 or batch < 1:
        raise ArgumentError(f"repeats and batch are at least 1, got {repeats} and {batch}")
    settings = {
        **{
            "run": str(run.path.resolve()),
            "step": run.step,
            "recipe": run.recipe.name,
            "weights": "ema" if ema else "raw",
        },
        **{"method": encode(method), "data": images.describe(), "images": count, "repeats": repeats},
        **{"seed": seed, "batch": batch, "dithered_in_training": run.recipe.dither},
    }
    columns = _former(out, settings, overwrite)
    denoiser, codec = run.denoiser(ema=ema, device=device), run.recipe.codec
    chosen = images.pixels[order(seed, torch.arange(count), len(images))]
    dim = chosen[0].numel()
    document: dict[str, Any] = {}
    for start in range(len(columns.get("bits", [])), count, batch):
        index = torch.arange(start, min(start + batch, count))
        generator = torch.Generator().manual_seed(step_seed(seed, start))
        for name, value in _rows(denoiser, codec, method, chosen[index], index, repeats, seed, generator).items():
            columns.setdefault(name, []).extend(value.tolist())
        document = _document(settings, columns, dim)
        write_json(out, document)
        if progress is not None:
            progress(len(columns["bits"]), count)
    return document or _document(settings, columns, dim)


def _rows(
    denoiser: Denoiser,
    codec: Any,
    method: Method,
    pixels: Tensor,
    index: Tensor,
    repeats: int,
    seed: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Each column's mean over the repeats, (B,), in bits per dimension where it is nats; the share of pixels not 0."""
    dim, total = pixels[0].numel(), {}
    parameter = next(denoiser.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    for repeat in range(repeats):
        dither = uniforms(seed, Stream.DITHER, index * repeats + repeat, tuple(pixels.shape[1:])) - 0.5
        x = codec.encode(pixels + dither).to(device)
        for name, value in method.nats(denoiser, x, generator).items():
            if not bool(value.isfinite().all()):
                raise NumericalError(f"the {name} of an image are not finite; check the network's weights")
            total[name] = total.get(name, 0) + value.cpu() / repeats
    found = {"bits": bits_per_dim(total.pop("nats") + codec.log_determinant(dim), dim)}
    found["foreground"] = (pixels != 0).any(1).flatten(1).double().mean(1)
    evaluations = total.pop("evaluations")
    terms = {name: -bits_per_dim(value, dim) for name, value in total.items()}
    return {**found, **terms, "evaluations": evaluations}


def _former(out: Path, settings: Mapping[str, Any], overwrite: bool) -> dict[str, list[float]]:
    """What an earlier call with these settings left in the file. Raises ArgumentError for a file of something else."""
    if not out.exists():
        return {}
    try:
        former = read_json(out)
    except CheckpointError:
        former = None
    columns, theirs = (former.get(name) if isinstance(former, dict) else None for name in ("columns", "settings"))
    if not isinstance(columns, dict) or not isinstance(theirs, dict):
        raise ArgumentError(f"{out} exists and is no evaluation of nearzero's; name another file")
    if overwrite:
        return {}
    other = [name for name in {**settings, **theirs} if settings.get(name) != theirs.get(name)]
    if other:
        raise ArgumentError(
            f"{out} holds an evaluation with another {other[0]} ({theirs.get(other[0])}, asked is "
            f"{settings.get(other[0])}); name another file, or overwrite it"
        )
    return {name: list(values) for name, values in columns.items()}


def _document(settings: Mapping[str, Any], columns: Mapping[str, list[float]], dim: int) -> dict[str, Any]:
    means = {name: _mean(values) for name, values in columns.items()}
    if means and means["foreground"]["mean"]:
        means["bits_foreground"] = ratio(columns["bits"], columns["foreground"])
    done = len(next(iter(columns.values()), []))
    return {
        **{"settings": dict(settings), "images_done": done, "dimensions": dim, "means": means},
        **{"columns": dict(columns), "provenance": provenance()},
    }


def ratio(above: list[float], below: list[float]) -> dict[str, float | None]:
    """sum(above) / sum(below) with its standard error over pairs, to first order; unknown, None, for one pair."""
    a, b = (torch.tensor(values, dtype=torch.float64) for values in (above, below))
    value = (a.sum() / b.sum()).item()
    error = ((a - value * b).std() / b.mean()).item() / math.sqrt(len(a)) if len(a) > 1 else None
    return {"mean": value, "stderr": error}


def _mean(values: list[float]) -> dict[str, float | None]:
    """Mean and standard error; the latter is unknown, None, for one image."""
    x = torch.tensor(values, dtype=torch.float64)
    error = x.std().item() / math.sqrt(len(x)) if len(x) > 1 else None
    return {"mean": x.mean().item(), "stderr": error}
