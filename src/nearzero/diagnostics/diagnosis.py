"""All measurements of a denoiser near t = 0, with the same noise for every denoiser that is measured."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nearzero.denoiser import Denoiser
from nearzero.diagnostics.lipschitz import LipschitzCurve, lipschitz
from nearzero.diagnostics.noise_levels import NoiseLevels, loss_by_noise
from nearzero.diagnostics.perturbation import Perturbation, perturbation
from nearzero.diagnostics.probe import Timesteps
from nearzero.errors import ArgumentError
from nearzero.randomness import probe_generator

PAPER = 0.1  # E-TSDM's interval, 100 of 1000 timesteps, as a share of the range


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What `diagnose` found. `interval` is t~ in t, `images` how many it used, `told` the condition at each timestep.

    `unit` says in words what a timestep is where the process has none, and is empty where it has.
    """

    interval: float
    images: int
    told: Tensor
    unit: str
    lipschitz: LipschitzCurve
    perturbation: Perturbation
    losses: NoiseLevels

    @property
    def near(self) -> LipschitzCurve:
        """The Lipschitz curve on [0, t~], the pair that leaves it included: sharing moves the change to the edges."""
        return self.lipschitz.between(0.0, self.interval)

    def timestep(self, t: float) -> int:
        """The number of the timestep at time t, counted from 0."""
        return round(self.lipschitz.steps.number(self.lipschitz.times.new_tensor(t)).item()) - 1

    def summary(self) -> dict[str, float]:
        """The numbers of a table, by name."""
        near, above = self.near, self.lipschitz.times > self.interval
        worst = int(near.value.argmax())
        return {
            "max": near.max,
            "max_stderr": near.stderr[worst].item(),
            "max_at_timestep": self.timestep(near.times[worst].item()),
            "total_variation": near.total_variation,
            "max_above": self.lipschitz.value[above].max().item() if bool(above.any()) else math.nan,
            "perturbation": self.perturbation.value[-1].item(),
            "perturbation_stderr": self.perturbation.stderr[-1].item(),
            "perturbation_scale": self.perturbation.scales[-1].item(),
            "loss_first": self.losses.value[0].item(),
            "loss": self.losses.value.mean().item(),
        }

    def describe(self) -> dict[str, Any]:
        """Everything as JSON; what is unknown, such as an error bar of one image, is null."""
        fields = {
            "lipschitz": ("times", "until", "value", "stderr"),
            "perturbation": ("scales", "value", "stderr"),
            "losses": ("times", "noise", "value", "std", "silent"),
        }
        curves = {
            name: {column: [_known(v) for v in getattr(getattr(self, name), column).tolist()] for column in columns}
            for name, columns in fields.items()
        }
        summary = {name: _known(value) for name, value in self.summary().items()}
        told = self.told.tolist()
        alone = {"interval": self.interval, "images": self.images, "unit": self.unit, "summary": summary, "told": told}
        return {**alone, **curves}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def shared_interval(denoiser: Denoiser) -> float | None:
    """Where sharing ends, in t; None for a conditioning without cells."""
    return max(denoiser.conditioning.edges(denoiser.process), default=None)


def diagnose(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    interval: float | None = None,
    every: int = 10,
    seed: int = 0,
    condition: Mapping[str, Tensor] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Lipschitz curve, perturbation at t~ and loss for each noise level, over images x0 (B, *shape).

    `interval` is t~ in t: by default where the conditioning's cells end, and a tenth of the timesteps without cells. K
    is measured at every timestep up to twice that of t~, at every `every`-th above, and over every edge of a cell. All
    noise follows from `seed`: two denoisers that are diagnosed with one seed and the same images see the same x_t.
    `condition` is `lipschitz`'s, and `progress(done, pairs)` is called as pairs of timesteps are done.

    >>> found = diagnose(PointCloud(torch.zeros(1, 64)).denoiser(DiscreteVP.linear()), torch.zeros(8, 64))
    >>> found.summary()["max_at_timestep"]
    0
    """
    process, steps = denoiser.process, Timesteps(denoiser.process)
    t, count = steps.times(), steps.count
    if interval is None:
        interval = shared_interval(denoiser) or t[max(0, round(PAPER * count) - 1)].item()
    if not t[0] <= interval <= process.end:
        raise ArgumentError(
            f"the interval must hold a timestep and end in [{t[0].item():g}, {process.end:g}], got {interval:g}"
        )
    if every < 1:
        raise ArgumentError(f"every must be at least 1, got {every}")
    near = int(round(2 * steps.number(t.new_tensor(interval)).item(), 6))  # the whole timesteps in it
    edges = t.new_tensor(denoiser.conditioning.edges(process))
    jumps = set((torch.searchsorted(t, edges, right=True) - 1).tolist())  # the pairs that straddle an edge
    measured = [k for k in range(count - 1) if k <= near or (k - near) % every == 0 or k in jumps]
    chosen = torch.tensor(measured, dtype=torch.int64)
    pairs = torch.stack([t[chosen], t[chosen + 1]], dim=1)
    noise = functools.partial(probe_generator, seed)
    curve = lipschitz(denoiser, x0, times=pairs, generator=noise(), condition=condition, progress=progress)
    return Diagnosis(
        interval=interval,
        images=len(x0),
        told=denoiser.conditioning(t, process(t)),
        unit=steps.stated(),
        lipschitz=curve,
        perturbation=perturbation(denoiser, x0, t=interval, generator=noise(), condition=condition),
        losses=loss_by_noise(denoiser, x0, generator=noise(), condition=condition),
    )
