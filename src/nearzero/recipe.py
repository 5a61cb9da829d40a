"""A recipe: a choice on each axis with its network and training, and how it is fitted to images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor, nn

import nearzero.networks.pretrained  # what a saved recipe may name joins the registry: this, and the next six
import nearzero.shifted
import nearzero.solvers.adaptive
import nearzero.solvers.churn
import nearzero.solvers.exponential
import nearzero.solvers.full
import nearzero.solvers.ode  # noqa: F401
from nearzero.codec import Centred, Codec, fitted
from nearzero.conditioning import Conditioning, Shared
from nearzero.denoiser import Denoiser
from nearzero.ema import EMA, Average
from nearzero.errors import ArgumentError
from nearzero.grid import Grid
from nearzero.networks import NetworkSpec
from nearzero.networks.unet import UNet
from nearzero.objective import LearnedUncertainty, LipschitzPenalty, Regression, VariationalBound
from nearzero.parameterization import Nu, Parameterization, W
from nearzero.process import Process
from nearzero.registry import register
from nearzero.rescaled import Through
from nearzero.solvers import Solver
from nearzero.solvers.sde import Ancestral
from nearzero.times import Times
from nearzero.weighting import Weighting


@register
@dataclass(frozen=True)
class Training:
    """How the weights are found: Adam, `batch` images a step, mirrored at random if `flip`.

    The rate rises linearly over the first `warmup` images and is constant then; gradients of a norm above `clip` are
    scaled down to it, if there is one. `ema` is the average of the weights that samples are made with; `averages` are
    further ones, kept beside it.
    """

    steps: int
    batch: int
    learning_rate: float
    flip: bool
    ema: Average = field(default_factory=EMA)
    warmup: int = 0
    clip: float | None = None
    averages: tuple[Average, ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{name} must be at least 1, got {value}")
        if not 0 < self.learning_rate < math.inf:
            raise ArgumentError(f"learning_rate must be positive, got {self.learning_rate}")
        if isinstance(self.warmup, bool) or not isinstance(self.warmup, int) or self.warmup < 0:
            raise ArgumentError(f"warmup counts images: an integer of at least 0, got {self.warmup}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ArgumentError(f"clip must be a positive norm, or None for no limit, got {self.clip}")
        if not isinstance(self.averages, tuple):
            raise ArgumentError(f"averages must be a tuple, such as (Power(0.05), Power(0.1)), got {self.averages!r}")
        for average in (self.ema, *self.averages):
            if not callable(getattr(average, "beta", None)):
                raise ArgumentError(
                    f"an average is EMA, HalfLife, Power or has their beta(step, batch), got {average!r}"
                )

    def kept(self) -> dict[str, Average]:
        """Every average by the file of a checkpoint that holds it: ema, ema-1, ema-2, ..."""
        return {"ema": self.ema, **{f"ema-{i}": average for i, average in enumerate(self.averages, 1)}}

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 1."""
        return self.learning_rate * min(1.0, step * self.batch / self.warmup if self.warmup else 1.0)


@register
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A choice on each axis, with the codec, the network, its training and the number of sampling steps.

    `penalty` is the weight of LipschitzPenalty (DDPM-r) and `uncertainty` the number of LearnedUncertainty's terms, 0
    for none. With `through`, samples see another process than training did. `dither` adds to each pixel value a
    number uniform in (-1/2, 1/2): 8-bit images have a density only so (uniform dequantization).
    """

    name: str
    process: Process
    parameterization: Parameterization
    conditioning: Conditioning
    times: Times
    weighting: Weighting
    solver: Solver
    grid: Grid
    steps: int
    codec: Codec
    network: NetworkSpec
    training: Training
    penalty: float = 0.0
    uncertainty: int = 0
    dither: bool = False
    through: Through | None = None

    def denoiser(self, network: nn.Module | None = None) -> Denoiser:
        """The recipe's denoiser around `network`, or around one with fresh weights."""
        return Denoiser(network or self.network.build(), self.process, self.parameterization, self.conditioning)

    def sampled(self, denoiser: Denoiser) -> Denoiser:
        """A denoiser of this recipe as samples see it."""
        return denoiser if self.through is None else self.through(denoiser)

    def objective(self) -> nn.Module:
        """What training minimises: a regression of the network's output, or for Nu and W the variational bound."""
        bounded = isinstance(self.parameterization, Nu | W)
        base = VariationalBound(self.times) if bounded else Regression(self.times, self.weighting)
        penalised = LipschitzPenalty(base, self.penalty) if self.penalty else base
        return LearnedUncertainty(penalised, self.uncertainty) if self.uncertainty else penalised


def paper(recipe: Recipe, size: int, channels: int) -> Recipe:
    """The paper's network and training, for images of another size."""
    return replace(recipe, network=replace(recipe.network, size=size, channels=channels))  # pyright: ignore[reportArgumentType]


def centred(recipe: Recipe, pixels: Tensor) -> Recipe:
    """The recipe with the mean image of uint8 pixels (N, C, H, W) subtracted, as FullDiffusion's Nu assumes.

    Where training mirrors images at random it is the mean of both kinds.
    """
    return replace(recipe, codec=fitted(Centred(), pixels, mirrored=recipe.training.flip))


def sharing(recipe: Recipe, interval: float, cells: int) -> Recipe:
    """The recipe with its time shared: one for each of `cells` cells of [0, interval], in its conditioning's own unit.

    What it shared before is forgotten. Raises ArgumentError for cells that `Shared` refuses.

    >>> sharing(recipes.ddpm(), 50, 10).name
    'ddpm_50_10'
    """
    known = recipe.conditioning
    shared = Shared(known.inner if isinstance(known, Shared) else known, interval=interval, cells=cells)  # pyright: ignore[reportArgumentType]
    return replace(recipe, name=f"{recipe.name}_{interval:g}_{cells}", conditioning=shared)


def small(recipe: Recipe, size: int, channels: int) -> Recipe:
    """The same axes with a small network, learning rate 1e-3 and at most 50 steps, for a machine without a GPU.

    Widths 32, 64, 64, ... with one block each, halving the image until it is at most 8 pixels wide, attention there:
    701,345 parameters at 16 x 16, 1,112,801 at 28 x 28. After a minute or two of training, noise in each step mends
    what a deterministic solver amplifies: ancestral recipes take the posterior's variance, apt for few steps too.
    """
    halvings = max(1, math.ceil(math.log2(size / 8))) if size > 8 else 1
    network = UNet(
        size=size,
        channels=channels,
        base=32,
        multipliers=(1, *(2,) * halvings),
        blocks=1,
        attention=(size // 2**halvings,) if size % 2**halvings == 0 else (),
        head_channels=32,
        time_channels=128,
        resample="conv",
        scale_shift=False,
    )
    training = Training(steps=10_000, batch=32, learning_rate=1e-3, flip=False)
    solver = Ancestral("lower") if isinstance(recipe.solver, Ancestral) else recipe.solver
    return replace(recipe, network=network, training=training, solver=solver, steps=min(recipe.steps, 50))


PRESETS: dict[str, Callable[[Recipe, int, int], Recipe]] = {"small": small, "paper": paper}
"""How a recipe is fitted to images of a size and a number of channels."""


def differences(a: Recipe, b: Recipe) -> dict[str, tuple[Any, Any]]:
    """The fields on which two recipes differ, their names left aside."""
    pairs = {f.name: (getattr(a, f.name), getattr(b, f.name)) for f in fields(Recipe) if f.name != "name"}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
