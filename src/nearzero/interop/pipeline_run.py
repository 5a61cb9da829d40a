"""A pipeline of diffusers as a run: what the commands need of it, read from its folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nearzero import zoo
from nearzero.codec import Pixels
from nearzero.conditioning import Conditioning
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.grid import Grid, TimestepGrid, UniformGrid
from nearzero.interop.folder import holds_run, load_run, weights_of
from nearzero.interop.imported import Imported, imported
from nearzero.networks.pretrained import Pretrained
from nearzero.recipe import Recipe, Training
from nearzero.run import Run, is_run
from nearzero.solvers import Solver
from nearzero.solvers.exponential import DDIM, DPMSolverPP
from nearzero.solvers.ode import Euler, Heun
from nearzero.solvers.sde import Ancestral
from nearzero.times import DiscreteTimes, UniformTimes
from nearzero.weighting import Simple

STEPS = 50
"""Sampling steps of a pipeline, whose scheduler's config does not say how many."""

TRAINING = Training(steps=1000, batch=16, learning_rate=1e-5, flip=False)
"""How a pipeline is trained further, unless it is said otherwise."""

SOLVERS: dict[str, Solver] = {
    **dict.fromkeys(("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "ScoreSdeVeScheduler"), Euler()),
    **dict.fromkeys(("HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"), Heun()),
    **dict.fromkeys(("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"), DPMSolverPP()),
}
"""nearzero's solver for a class of scheduler; DDPM's is Ancestral, any other's DDIM."""


@dataclass(frozen=True, kw_only=True)
class PipelineRun(Run):
    """A pipeline's folder where a run is expected: it has weights and a recipe, but no checkpoints and no history."""

    network: nn.Module = field(compare=False)

    def checkpoint(self) -> Path:
        """The folder itself."""
        return self.path

    def at(self, step: int) -> Run:
        """Raises CheckpointError: there is one set of weights."""
        raise CheckpointError(f"{self.path} is a pipeline and keeps no checkpoint of step {step}; leave --step out")

    @property
    def step(self) -> int:
        """0: nobody says how long it was trained."""
        return 0

    def averages(self) -> list[str]:
        """None: there is one set of weights."""
        return []

    def weights(self, ema: bool | str = True) -> Path:
        """The file of the weights, or the index of its parts. Raises ArgumentError for an average by name."""
        if isinstance(ema, str):
            raise ArgumentError(f"{self.path} is a pipeline and holds no average {ema!r}")
        return weights_of(self.path)

    def denoiser(self, *, ema: bool | str = True, device: torch.device | str = "cpu") -> Denoiser:
        """The pipeline's model in the recipe's axes."""
        self.weights(ema)
        return self.recipe.denoiser(self.network).to(device).eval()


def is_pipeline(path: Path) -> bool:
    """Whether a folder is a pipeline of diffusers, and no run."""
    return (Path(path) / "model_index.json").is_file() and not is_run(path)


def open_run(path: str | Path) -> Run:
    """The run in a folder or called zoo:NAME, or a pipeline of pixels as one. Raises CheckpointError for neither."""
    path = zoo.resolve(path)
    if not is_pipeline(path):
        return Run.load(path)
    if holds_run(path):
        model = load_run(path)
        return PipelineRun(path, model.recipe, {}, 0, {}, network=model.network)
    found = imported(path)
    return PipelineRun(
        path, recipe(found, path.resolve().name), {"scheduler": kept(found)}, 0, {}, network=found.network
    )


KEPT = {
    **dict.fromkeys(("clip_sample", "thresholding", "set_alpha_to_one"), bool),
    **dict.fromkeys(("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value"), float),
}
"""Of a scheduler's config, what no axis says and an export gives back: how its own sampling cuts estimates of x0."""


def kept(found: Imported) -> dict[str, Any]:
    """These entries of a pipeline's scheduler."""
    config = found.schedule.config
    return {name: config[name] for name, kind in KEPT.items() if type(config.get(name)) is kind}


def spec(found: Imported) -> Pretrained:
    """The model as a recipe's network. Raises CheckpointError where its config is none that nearzero takes."""
    try:
        return Pretrained.of(found.asked)
    except ArgumentError as error:
        raise CheckpointError(str(error)) from error


def recipe(imported: Imported, name: str, conditioning: Conditioning | None = None) -> Recipe:
    """The recipe that a model of diffusers amounts to, to be trained on and sampled as its scheduler says.

    Raises CheckpointError for a model of anything else than pixels in [-1, 1].
    """
    schedule, network = imported.schedule, imported.asked
    if needed := network.needs():
        raise CheckpointError(
            f"{name}: this {type(network.model).__name__} must also be told {', '.join(needed)}, which no command can; "
            "use nearzero.from_diffusers in Python, with condition={...}"
        )
    if schedule.fourier:
        raise CheckpointError(f"{name}: models of {schedule.name} see pixels in [0, 1]; use nearzero.from_diffusers")
    saved, times = spec(imported), UniformTimes() if schedule.flow else DiscreteTimes()
    return Recipe(
        name=name,
        process=imported.process,
        parameterization=imported.parameterization,
        conditioning=imported.conditioning if conditioning is None else conditioning,
        times=times,
        weighting=Simple(),
        solver=solver(schedule.name, dict(schedule.config)),
        grid=_grid(imported),
        steps=min(STEPS, schedule.steps),
        codec=Pixels(),
        network=saved,
        training=TRAINING,
    )


def solver(name: str, config: dict[str, Any]) -> Solver:
    """The solver that a scheduler stands for."""
    if name in ("DDPMScheduler", "DDPMParallelScheduler"):
        return Ancestral("upper" if "large" in str(config.get("variance_type")) else "lower")
    return SOLVERS.get(name, DDIM())


def _grid(imported: Imported) -> Grid:
    """The scheduler's own grid, or, where no grid here is that, trailing timesteps."""
    config = imported.model.config
    try:
        return imported.grid((config.in_channels, config.sample_size, config.sample_size))
    except ArgumentError:
        return UniformGrid() if imported.schedule.flow else TimestepGrid("trailing")
