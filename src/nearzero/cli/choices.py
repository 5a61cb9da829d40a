"""The sampler's choices by name: solvers, grids, and the process that samples see."""

from __future__ import annotations

import importlib
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nearzero.errors import ArgumentError

if TYPE_CHECKING:
    from nearzero.grid import Grid
    from nearzero.process import Process
    from nearzero.recipes import Recipe
    from nearzero.rescaled import Through
    from nearzero.solvers import Solver

SOLVERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddim": ("exponential", "DDIM", {}),
    "dpm": ("exponential", "DPMSolver", {"order": 3}),
    "dpm-2": ("exponential", "DPMSolver", {"order": 2}),
    "dpm++": ("exponential", "DPMSolverPP", {}),
    "dpm++-sde": ("exponential", "DPMSolverPP", {"noise": True}),
    "euler": ("ode", "Euler", {}),
    "heun": ("ode", "Heun", {}),
    "midpoint": ("ode", "RungeKutta2", {"position": 1 / 2}),
    "ralston": ("ode", "RungeKutta2", {"position": 2 / 3}),
    "rk4": ("ode", "RungeKutta4", {}),
    "rk45": ("adaptive", "RK45", {}),
    "ancestral": ("sde", "Ancestral", {}),
    "ancestral-lower": ("sde", "Ancestral", {"variance": "lower"}),
    "euler-maruyama": ("sde", "EulerMaruyama", {}),
    "reverse-diffusion": ("sde", "ReverseDiffusion", {}),
    "predictor-corrector": ("sde", "PredictorCorrector", {}),
    "churn": ("churn", "Churn", {"churn": 30.0}),
    "full-1": ("full", "FullDiffusionSolver", {"order": 1}),
    "full-2": ("full", "FullDiffusionSolver", {"order": 2}),
    "full-2-bridge": ("full", "FullDiffusionSolver", {"order": 2, "noise": "bridge"}),
    "full-2-fitted": ("full", "FullDiffusionSolver", {"order": 2, "noise": "fitted"}),
}
"""Name: the file of nearzero.solvers, the class, its arguments."""

GRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "trailing": ("TimestepGrid", {"spacing": "trailing"}),
    "leading": ("TimestepGrid", {"spacing": "leading"}),
    "linspace": ("TimestepGrid", {"spacing": "linspace"}),
    "quadratic": ("TimestepGrid", {"spacing": "quadratic"}),
    "uniform": ("UniformGrid", {}),
    "sqrt": ("SqrtGrid", {}),
    "karras": ("KarrasGrid", {}),
    "logsnr": ("LogSNRGrid", {}),
    "angle": ("AngleGrid", {}),
    "quantile": ("QuantileGrid", {}),
}
"""Name: the class in nearzero.grid, its arguments; karras and quantile take theirs from the run too."""

EDM_END = 80.0
"""EDM's noise level sigma to start from, where the network has seen as much."""


def solver(name: str | None, recipe: Recipe, eta: float | None, churn: float | None) -> Solver:
    """The named solver, the recipe's for None. Raises ArgumentError for an option of another solver."""
    options = {"ddim": ("eta", eta), "churn": ("churn", churn)}
    for owner, (option, value) in options.items():
        if value is not None and name != owner:
            raise ArgumentError(f"--{option} {value:g} belongs to --solver {owner}; give both, or leave --{option} out")
    if name is None:
        return recipe.solver
    module, cls, arguments = SOLVERS[name]
    option, value = options.get(name, ("", None))
    given = {} if value is None else {option: value}
    return getattr(importlib.import_module(f"nearzero.solvers.{module}"), cls)(**{**arguments, **given})


def through(name: str | None, recipe: Recipe, sigma_max: float | None) -> Through | None:
    """The process that samples see: "sigma", EDM's sigma = t, "trained" (None), or the recipe's for None."""
    if name != "sigma":
        return recipe.through if name is None else None
    from nearzero.process import KarrasVE
    from nearzero.rescaled import Through

    end = min(EDM_END, _reach(recipe.process)) if sigma_max is None else sigma_max
    return Through(KarrasVE(end=end), nearest=hasattr(recipe.process, "steps"))


def grid(
    name: str | None, recipe: Recipe, seen: Through | None, asked: str | None, levels: dict[str, float | None]
) -> Grid:
    """The named grid; for None the recipe's, or karras where `asked` is "sigma".

    `levels` are KarrasGrid's fields, None where they were not given; elsewhere they raise ArgumentError, but for a
    sigma_max that `through` has taken as the process's end.
    """
    import nearzero.grid as grids

    given = {key: value for key, value in levels.items() if value is not None}
    name = "karras" if name is None and asked == "sigma" else name
    if name is None or (name == "karras" and isinstance(recipe.grid, grids.KarrasGrid)):
        chosen: Any = recipe.grid
    elif name == "karras":
        process = recipe.process if seen is None else seen.process
        chosen = grids.KarrasGrid(sigma_max=min(EDM_END, _reach(process)))
    else:
        cls, arguments = GRIDS[name]
        chosen = grids.QuantileGrid(recipe.times) if name == "quantile" else getattr(grids, cls)(**arguments)
    if isinstance(chosen, grids.KarrasGrid):
        return replace(chosen, **given)
    left = [key for key in given if not (key == "sigma_max" and asked == "sigma")]
    if left:
        raise ArgumentError(f"--{left[0].replace('_', '-')} belongs to --grid karras; give both, or leave it out")
    return chosen


def _reach(process: Process) -> float:
    """The process's last sigma / alpha, inf where it ends without signal."""
    import torch

    alpha, sigma = process(torch.tensor(process.end, dtype=torch.float64))
    return math.inf if alpha == 0 else (sigma / alpha).item()


NUMBER = r"\s*(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)\s*"


def interval(text: str) -> tuple[float, float]:
    """Noise levels as "0.3-5". Raises ArgumentError for anything else.

    >>> interval("1e-2-5")
    (0.01, 5.0)
    """
    match = re.fullmatch(f"{NUMBER}-{NUMBER}", text)
    if match is None or not float(match[1]) < float(match[2]) < math.inf:
        raise ArgumentError(
            f"--guidance-interval {text!r}: write noise levels sigma / alpha as LOW-HIGH, as in 0.3-5, low first"
        )
    return float(match[1]), float(match[2])


def batch(text: str) -> int | None:
    """A number of images, None for "auto". Raises ArgumentError for anything else."""
    if text == "auto":
        return None
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < 1:
        raise ArgumentError(f"--batch {text!r}: how many images at once, at least 1, or auto")
    return int(text)


def shard(environment: Any) -> tuple[int, int]:
    """Which process of how many this is, as torchrun says. Raises ArgumentError for numbers that cannot be."""
    rank, world = (environment.get(key) for key in ("RANK", "WORLD_SIZE"))
    if rank is None or world is None:
        return 0, 1
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise ArgumentError(f"RANK={rank} and WORLD_SIZE={world} do not name a process; unset both, or use torchrun")
    return int(rank), int(world)
