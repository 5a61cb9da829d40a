"""A process and a parameterization as a scheduler's config of diffusers, every choice written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nearzero.errors import ArgumentError
from nearzero.grid import Grid, TimestepGrid
from nearzero.interop.schedule import PREDICTIONS
from nearzero.parameterization import Parameterization
from nearzero.process import DiscreteVP, Process, ZeroTerminalSNR
from nearzero.shifted import OffsetGrid
from nearzero.solvers import Solver
from nearzero.solvers.sde import Ancestral


def is_stock(process: Process, parameterization: Parameterization) -> bool:
    """Whether schedulers of diffusers have this process and parameterization."""
    base = process.base if isinstance(process, ZeroTerminalSNR) else process
    return isinstance(base, DiscreteVP) and parameterization in PREDICTIONS.values()


def scheduler(
    process: Process,
    parameterization: Parameterization,
    solver: Solver,
    grid: Grid,
    *,
    learned: bool = False,
    kept: Mapping[str, Any] | None = None,
) -> Any:
    """A DDPMScheduler, or, for a solver that is not Ancestral, a DDIMScheduler, whose config says all of these.

    A network with a `learned` variance, of twice as many channels, is read by DDPMScheduler alone. `kept` are entries
    of a former scheduler's config that no axis says (`pipeline_run.KEPT`): without them nothing is clipped. Nothing is
    left to defaults, which differ between versions and between schedulers that are made of one config. Raises
    ArgumentError for what diffusers has no words for.
    """
    import diffusers

    if not is_stock(process, parameterization):
        raise ArgumentError(f"no scheduler of diffusers has {process} with {parameterization}")
    spacing, offset = _spacing(grid)
    config = {
        **_betas(process),
        "prediction_type": next(name for name, one in PREDICTIONS.items() if one == parameterization),
        "timestep_spacing": spacing,
        "steps_offset": offset,
        **{"clip_sample": False, "thresholding": False, **(kept or {})},
        "rescale_betas_zero_snr": isinstance(process, ZeroTerminalSNR),
    }
    last = config.pop("set_alpha_to_one", True)
    if learned:
        return diffusers.DDPMScheduler(**config, variance_type="learned_range")
    if isinstance(solver, Ancestral):
        return diffusers.DDPMScheduler(
            **config, variance_type="fixed_large" if solver.variance == "upper" else "fixed_small"
        )
    return diffusers.DDIMScheduler(**config, set_alpha_to_one=last)


def _betas(process: Process) -> dict[str, Any]:
    """The betas by a name of diffusers' where it has one, else one by one; both ends are written out in any case."""
    base: Any = process.base if isinstance(process, ZeroTerminalSNR) else process
    ends = {"beta_start": getattr(base.betas, "start", 1e-4), "beta_end": getattr(base.betas, "end", 0.02)}
    config: dict[str, Any] = {}
    for kind in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        config = {"num_train_timesteps": base.steps, "beta_schedule": kind, **ends, "trained_betas": None}
        if DiscreteVP.from_scheduler(config) == base:
            return config
    return {**config, "beta_schedule": "linear", "trained_betas": base.betas.values().tolist()}


def _spacing(grid: Grid) -> tuple[str, int]:
    """timestep_spacing and steps_offset of a grid; "trailing" where diffusers has no such grid."""
    inner, offset = (grid.inner, grid.offset) if isinstance(grid, OffsetGrid) else (grid, 0)
    if isinstance(inner, TimestepGrid) and inner.spacing in ("trailing", "leading", "linspace"):
        return inner.spacing, offset
    return "trailing", 0
