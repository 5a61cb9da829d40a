"""Before and after sharing: what a network does near t = 0, told as it is and told by cells, and what follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nearzero.conditioning import Shared, Time, Timestep
from nearzero.denoiser import Denoiser
from nearzero.diagnostics.diagnosis import Diagnosis
from nearzero.diagnostics.price import price
from nearzero.diagnostics.recommend import Recommendation, recommend
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.interop.imported import Imported
from nearzero.interop.sharing import shared_condition
from nearzero.process import Process

CANNOT = (
    "Sharing at inference alone makes the answer constant inside the cells, exactly and at no cost. It cannot undo "
    "what the network learned: the change moves to the edges of the cells, and inside one the network is told a noise "
    "level that its input does not have, for which it was not trained. Fine-tuning with the cells (nearzero finetune) "
    "lets the network learn them; whether samples gain is then to be measured, and at small scale they did not "
    "(docs/sharing.md)."
)


class Advice(NamedTuple):
    """What the curve recommends, and the diagnosis of the same network with its timesteps shared, by name."""

    recommendation: Recommendation | None
    shared: dict[str, Diagnosis]
    text: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        found = self.recommendation
        return {"recommendation": None if found is None else vars(found), "advice": list(self.text)}


def with_cells(denoiser: Denoiser, interval: float, cells: int) -> Denoiser:
    """The same network, told one number for each of `cells` cells of the first `interval` timesteps.

    Raises CheckpointError for a denoiser that is shared already, ArgumentError for one that is told no timesteps.
    """
    inner = denoiser.conditioning
    if isinstance(inner, Shared):
        raise CheckpointError(f"this denoiser is shared already, {inner.interval:g}/{inner.cells}; leave --share out")
    if isinstance(denoiser, Imported):
        asked, fourier = denoiser.asked, denoiser.schedule.fourier
        shared = shared_condition(interval, cells, asked.steps, flow=asked.flow, fourier=fourier)
    elif isinstance(inner, Timestep):
        shared = Shared(inner, interval=interval, cells=cells)
    elif isinstance(inner, Time):
        shared = Shared(inner, interval=interval / 1000 * denoiser.process.end, cells=cells)
    else:
        raise ArgumentError(f"{type(inner).__name__} tells no timesteps; share it in Python, by Shared")
    return Denoiser(denoiser.network, denoiser.process, denoiser.parameterization, shared)


def advise(
    denoiser: Denoiser,
    found: Diagnosis,
    x0: Tensor,
    share: tuple[float, int] | None,
    measure: Callable[[str, Denoiser], Diagnosis] | None,
) -> Advice:
    """What to share, by the diagnosis of the network as it is, and `measure(name, denoiser)` of it with those cells.

    `x0` (N, *shape) are images, the more the better, which set the price; one alone sets none. `share` is what was
    asked for, (interval, cells); None takes what is recommended, and measures nothing where that is nothing, nor where
    there is no `measure`. A network that is shared already hears what its cells cost.
    """
    inner = denoiser.conditioning
    if isinstance(inner, Shared) and share is None:
        return Advice(None, {}, (_shared_already(inner, x0, denoiser.process),))
    able = isinstance(inner, Timestep | Time) and len(x0) > 1
    advised = recommend(found, x0, denoiser.process) if able else None
    cells = share
    if cells is None and advised is not None and advised.cells:
        cells = (advised.interval, advised.cells)
    text = () if advised is None else (_said(advised),)
    if cells is None or measure is None:
        return Advice(advised, {}, text)
    name = f"shared {cells[0]:g}/{cells[1]}"
    told = with_cells(denoiser, *cells)
    after = measure(name, told)
    end = max(told.conditioning.edges(told.process))
    return Advice(advised, {name: after}, (*text, _change(found, after, end), CANNOT))


def _shared_already(shared: Shared, x0: Tensor, process: Process) -> str:
    """What the cells cost on these images."""
    if len(x0) < 2:
        return f"It is shared already: {shared}."
    cost = price(x0, process, shared)
    return (
        f"It is shared already: {shared}. On these images that costs even the best network a mean excess of "
        f"{cost.mean:.2g}, and up to {cost.levels:.2g} of 255 grey levels in its estimate of x0."
    )


def _said(advised: Recommendation) -> str:
    """The recommendation as a sentence."""
    if not advised.cells:
        return f"Recommended: nothing. {advised.why}."
    return f"Recommended: --share {advised.interval}/{advised.cells}. {advised.why}."


def _change(before: Diagnosis, after: Diagnosis, end: float) -> str:
    """K and the loss up to the time `end` of the shared interval, before and after."""
    near = after.lipschitz.between(0.0, end)
    edges = f"{int((near.value > 0).sum())} of {len(near.value)} pairs of timesteps still move, the edges of the cells"
    old, new = (_loss(one, end) for one in (before, after))
    largest = before.lipschitz.between(0.0, end).max
    return (
        f"With these cells {edges}; the largest K goes from {largest:.3g} to {near.max:.3g}, and the "
        f"mean loss up to t = {end:g} from {old:.4g} to {new:.4g}."
    )


def _loss(one: Diagnosis, end: float) -> float:
    """The mean loss of the noise levels up to the time `end`."""
    here: torch.Tensor = one.losses.value[one.losses.times <= end]
    return here.mean().item()
