"""E-TSDM for models that take no hook, compiled or closed: a scheduler that hands out shared timesteps."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from nearzero.conditioning import Shared
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.interop.schedule import FLOWS, SCHEDULERS
from nearzero.interop.sharing import Stairs, shared_condition

BY_INDEX = (
    *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler"),
    *("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "UniPCMultistepScheduler"),
    *FLOWS,
)
"""Schedulers that step by their own index, so that the number that the model is told may be another."""


class SchedulerSharing:
    """A scheduler whose timesteps are shared, until `unshare` or the end of a with block; `conditioning` says how."""

    def __init__(self, scheduler: Any, conditioning: Shared) -> None:
        self.scheduler, self.conditioning = scheduler, conditioning

    def __enter__(self) -> SchedulerSharing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "set_timesteps" in vars(self.scheduler):
            unshare_scheduler(self.scheduler)


def unshare_scheduler(scheduler: Any) -> None:
    """The scheduler as it was. Raises ArgumentError where it is not shared."""
    if "set_timesteps" not in vars(scheduler):
        raise ArgumentError(f"this {type(scheduler).__name__} is not shared")
    del scheduler.set_timesteps, scheduler.save_config


def is_scheduler(source: object) -> bool:
    """Whether this is a scheduler of diffusers."""
    return hasattr(source, "set_timesteps") and hasattr(source, "config")


def share_scheduler(scheduler: Any, *, interval: float, cells: int, steps: int = 1000) -> SchedulerSharing:
    """Makes a scheduler hand out one timestep for each cell near t = 0, whatever model is then asked with it.

    `set_timesteps` lays out the steps as ever, at the same noise levels; only the numbers in `scheduler.timesteps`,
    which pipelines tell the model, are those of the cells. It holds for this object: a saved scheduler would not be
    shared, so that saving it is an error until `unshare`. Start a path inside the interval (image to image with little
    noise) only with pipelines that call `set_begin_index`. Raises ArgumentError for schedulers that find their noise
    level by the timestep itself (DDIM, DDPM, PNDM), where it would be wrong,
    CheckpointError for one that is shared already.
    """
    name = type(scheduler).__name__
    if name not in BY_INDEX:
        why = "finds its noise levels by the timesteps themselves" if name in SCHEDULERS else "is not known"
        raise ArgumentError(f"{name} {why}, so its timesteps cannot be shared; share the model, or take {BY_INDEX[0]}")
    if "set_timesteps" in vars(scheduler):
        raise CheckpointError(f"this {name} is shared already; unshare it first")
    if steps != (known := scheduler.config.num_train_timesteps):
        raise ArgumentError(f"this scheduler counts {known} timesteps, not {steps}; say steps={known}")
    if interval >= steps:
        raise ArgumentError(f"an interval of {interval} leaves none of the {steps} timesteps alone; take a shorter one")
    flow = name in FLOWS or scheduler.config.get("prediction_type") == "flow_prediction"
    shared = shared_condition(interval, cells, steps, flow=flow, fourier=False)
    stairs, lay_out = Stairs(shared, fourier=False, end=1.0), scheduler.set_timesteps

    def set_timesteps(*arguments: Any, **options: Any) -> None:
        lay_out(*arguments, **options)
        scheduler.timesteps = stairs.share(scheduler.timesteps)

    def save_config(*_: Any, **__: Any) -> None:
        raise ArgumentError(f"this {name} is shared, which its config cannot say; unshare it before you save it")

    scheduler.set_timesteps, scheduler.save_config = set_timesteps, save_config
    return SchedulerSharing(scheduler, shared)
