"""Recipes: the papers' tables as code. One function a recipe; the difference of two is a paper's contribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn

from nearzero.codec import Codec, Pixels
from nearzero.conditioning import Conditioning, Shared, Timestep
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError, did_you_mean
from nearzero.grid import Grid, TimestepGrid
from nearzero.networks import NetworkSpec
from nearzero.networks.unet import UNet
from nearzero.objective import Regression
from nearzero.parameterization import Epsilon, Parameterization
from nearzero.process import DiscreteVP, Process
from nearzero.registry import register
from nearzero.solvers import Solver
from nearzero.solvers.sde import Ancestral
from nearzero.times import DiscreteTimes, Times
from nearzero.weighting import Simple, Weighting


@register
@dataclass(frozen=True)
class EMA:
    """Exponential moving average of the weights, ema <- beta ema + (1 - beta) weights after each step n = 1, 2, ...

        beta = min(decay, (1 + n) / (ramp + n))

    The ramp forgets the start of training: with a plain 0.9999 a run of 10,000 steps still samples noise.
    """

    decay: float = 0.9999
    ramp: float = 10.0

    def __post_init__(self) -> None:
        if not (0 <= self.decay < 1 and self.ramp >= 1):
            raise ArgumentError(f"EMA needs 0 <= decay < 1 and ramp >= 1, got {self.decay} and {self.ramp}")

    def beta(self, step: int) -> float:
        """The factor after step `step`, counted from 1."""
        return min(self.decay, (1 + step) / (self.ramp + step))


@register
@dataclass(frozen=True)
class Training:
    """How the weights are found: Adam at a constant rate, `batch` images a step, mirrored at random if `flip`."""

    steps: int
    batch: int
    learning_rate: float
    flip: bool
    ema: EMA = field(default_factory=EMA)

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{name} must be at least 1, got {value}")
        if not 0 < self.learning_rate < math.inf:
            raise ArgumentError(f"learning_rate must be positive, got {self.learning_rate}")


@register
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A choice on each axis, with the codec, the network, its training and the number of sampling steps."""

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

    def denoiser(self, network: nn.Module | None = None) -> Denoiser:
        """The recipe's denoiser around `network`, or around one with fresh weights."""
        return Denoiser(network or self.network.build(), self.process, self.parameterization, self.conditioning)

    def objective(self) -> Regression:
        """What training minimises."""
        return Regression(self.times, self.weighting)


def ddpm() -> Recipe:
    """DDPM with the network and training of E-TSDM's Table A1, the baseline of that paper.

    Paper: FID-10k 9.50 on FFHQ 256. It leaves open how long to train, the flip and the first steps of the EMA:
    500,000 steps, mirroring (ADM's) and a ramp are assumed. Measured here: not yet.
    Ho et al., Denoising diffusion probabilistic models, NeurIPS 2020.
    """
    return Recipe(
        name="ddpm",
        process=DiscreteVP.linear(steps=1000, beta_start=1e-4, beta_end=0.02),
        parameterization=Epsilon(),
        conditioning=Timestep(1000),
        times=DiscreteTimes(),
        weighting=Simple(),
        solver=Ancestral(variance="upper"),
        grid=TimestepGrid("trailing"),
        steps=1000,
        codec=Pixels(),
        network=UNet(size=256, channels=3, base=128, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, attention=(32, 16, 8)),
        training=Training(steps=500_000, batch=96, learning_rate=1e-4, flip=True),
    )


def etsdm() -> Recipe:
    """E-TSDM: DDPM that shares one timestep condition in each of 5 cells of the first 100 timesteps.

    Paper: FID-10k 6.62 on FFHQ 256, against 9.50 without sharing. What it leaves open is as in `ddpm`.
    Measured here: not yet. Yang et al., Lipschitz singularities in diffusion models, ICLR 2024.
    """
    return replace(ddpm(), name="etsdm", conditioning=Shared(Timestep(1000), interval=100, cells=5))


RECIPES: dict[str, Callable[[], Recipe]] = {"ddpm": ddpm, "etsdm": etsdm}
"""Every recipe by name."""


def named(name: str) -> Recipe:
    """The recipe of this name. Raises ArgumentError with the nearest one."""
    if name not in RECIPES:
        raise ArgumentError(f"unknown recipe {name!r}; {did_you_mean(name, RECIPES)}")
    return RECIPES[name]()


def paper(recipe: Recipe, size: int, channels: int) -> Recipe:
    """The paper's network and training, for images of another size."""
    return replace(recipe, network=replace(recipe.network, size=size, channels=channels))  # pyright: ignore[reportArgumentType]


def small(recipe: Recipe, size: int, channels: int) -> Recipe:
    """The same axes with a small network, learning rate 1e-3 and 50 ancestral steps, for a machine without a GPU.

    Widths 32, 64, 64, ... with one block each, halving the image until it is at most 8 pixels wide, attention there:
    701,345 parameters at 16 x 16, 1,112,801 at 28 x 28. After a minute or two of training, noise in each step mends
    what a deterministic solver amplifies: hence Ancestral's posterior variance, which stays apt for a few steps.
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
    return replace(recipe, network=network, training=training, solver=Ancestral("lower"), steps=50)


PRESETS: dict[str, Callable[[Recipe, int, int], Recipe]] = {"small": small, "paper": paper}
"""How a recipe is fitted to images of a size and a number of channels."""


def differences(a: Recipe, b: Recipe) -> dict[str, tuple[Any, Any]]:
    """The fields on which two recipes differ, their names left aside."""
    pairs = {f.name: (getattr(a, f.name), getattr(b, f.name)) for f in fields(Recipe) if f.name != "name"}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
