"""A scheduler's config read into axes: process, parameterization, conditioning, and the grid on which it steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nearzero.conditioning import Conditioning, LogSigma, Time, Timestep
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.grid import Grid, LogSNRGrid, TimestepGrid
from nearzero.parameterization import Denoised, Epsilon, Flow, Parameterization, Velocity
from nearzero.process import DiscreteVP, KarrasVE, Process, StraightPath, ZeroTerminalSNR
from nearzero.shifted import OffsetGrid, ShiftedGrid

BETAS = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler"),
    *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler"),
    *("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "UniPCMultistepScheduler"),
)
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
SCHEDULERS = (*BETAS, *FLOWS, "ScoreSdeVeScheduler")
PREDICTIONS: dict[str, Parameterization] = {"epsilon": Epsilon(), "sample": Denoised(), "v_prediction": Velocity()}
OTHER_SIGMAS = (
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"),
    "shift_terminal",
)


ONE_MORE = (
    *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"),
    "DEISMultistepScheduler",
)


@dataclass(frozen=True)
class Schedule:
    """What a scheduler says of its model. `config` is the whole of it, defaults included, and `name` its class."""

    name: str
    config: Mapping[str, Any]
    process: Process
    parameterization: Parameterization
    conditioning: Conditioning
    steps: int

    @property
    def flow(self) -> bool:
        """Whether the model is told sigma * steps of flow matching."""
        return isinstance(self.conditioning, Time)

    @property
    def fourier(self) -> bool:
        """Whether it is told a noise level."""
        return isinstance(self.conditioning, LogSigma)

    def grid(self, tokens: int | None, own: bool) -> Grid:
        """The scheduler's own grid. `tokens` is the length of the image where the shift depends on it.

        With `own`, flow matching ends where the scheduler does, and else, as Flux's pipeline, at u = 1 / steps.
        Raises ArgumentError for noise levels that no grid here has.
        """
        config = self.config
        if other := [name for name in OTHER_SIGMAS if config.get(name)]:
            raise ArgumentError(f"{self.name} with {', '.join(other)} steps on no grid of nearzero's; choose one")
        if self.fourier:
            return LogSNRGrid(float(config["sigma_min"]))
        if self.flow:
            return self._shifted(tokens, own)
        spacing, offset = config.get("timestep_spacing", "leading"), config.get("steps_offset", 0)
        if self.name in ONE_MORE and (spacing != "trailing" or self.name == "DPMSolverSinglestepScheduler"):
            raise ArgumentError(
                f"{self.name} spaces one timestep more and leaves out the last: no grid of nearzero's; "
                'choose one, TimestepGrid("trailing") for example'
            )
        grid = TimestepGrid(spacing)
        return OffsetGrid(grid, offset) if spacing == "leading" and offset else grid

    def _shifted(self, tokens: int | None, own: bool) -> ShiftedGrid:
        """A constant shift, of which u's last is one too; or one that grows with the image, s = exp(m tokens + b)."""
        config, first = self.config, 1 / self.steps
        if not config.get("use_dynamic_shifting"):
            s = float(config.get("shift", 1.0))
            return ShiftedGrid(s, s * first / (1 + (s - 1) * first) if own else None)
        if tokens is None:
            raise ArgumentError("the shift of this scheduler depends on the image: give the shape (C, H, W)")
        low, high = config["base_image_seq_len"], config["max_image_seq_len"]
        m = (config["max_shift"] - config["base_shift"]) / (high - low)
        mu = m * (tokens - low) + config["base_shift"]
        s = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
        return ShiftedGrid(s, first if own else None)


def read_schedule(name: str, config: Mapping[str, Any]) -> Schedule:
    """The axes of a scheduler's class name and config. Raises CheckpointError where they cannot be read."""
    if name not in SCHEDULERS:
        raise CheckpointError(f"{name} is no scheduler that nearzero knows; known: {', '.join(SCHEDULERS)}")
    steps = config.get("num_train_timesteps", 1000)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise CheckpointError(f"{name}: num_train_timesteps must be a positive integer, got {steps!r}")
    try:
        process, parameterization, conditioning = _axes(name, config, steps)
    except ArgumentError as error:
        raise CheckpointError(f"{name}: {error}") from error
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{name}: its config is incomplete or wrong, {error}; save the scheduler anew") from error
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    return Schedule(name, public, process, parameterization, conditioning, steps)


def _axes(name: str, config: Mapping[str, Any], steps: int) -> tuple[Process, Parameterization, Conditioning]:
    kind = config.get("prediction_type", "epsilon")
    if name == "ScoreSdeVeScheduler":
        return KarrasVE(float(config["sigma_max"])), Epsilon(), LogSigma(1.0)
    if name not in FLOWS and (kind == "flow_prediction") != bool(config.get("use_flow_sigmas")):
        raise ArgumentError(f"flow_prediction and use_flow_sigmas go together; prediction_type is {kind!r}")
    if name in FLOWS or kind == "flow_prediction":
        if config.get("invert_sigmas"):
            raise ArgumentError("invert_sigmas turns time around, with data at 1; such models are not read")
        return StraightPath(), Flow(), Time(float(steps))
    if kind not in PREDICTIONS:
        raise ArgumentError(f"unknown prediction_type {kind!r}; known: {', '.join(PREDICTIONS)}, flow_prediction")
    if config.get("timestep_type", "discrete") != "discrete":
        raise ArgumentError(f"timestep_type {config['timestep_type']!r} tells a noise level; only timesteps are read")
    process = DiscreteVP.from_scheduler({**config, "trained_betas": _listed(config.get("trained_betas"))})
    if process.steps != steps:
        raise ArgumentError(f"{process.steps} trained_betas for {steps} timesteps; give one for each")
    if isinstance(process, ZeroTerminalSNR) and kind == "epsilon":
        raise ArgumentError(
            "epsilon prediction with zero terminal SNR: the last x is noise alone, and eps says nothing of the image; "
            "set rescale_betas_zero_snr to false, or prediction_type to what the model was trained for, v_prediction"
        )
    return process, PREDICTIONS[kind], Timestep(steps)


def _listed(betas: Any) -> Sequence[float] | None:
    """Trained betas as plain numbers, whatever holds them."""
    return None if betas is None else [float(beta) for beta in betas]
