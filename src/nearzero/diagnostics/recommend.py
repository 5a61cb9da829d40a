"""Whether to share timesteps near t = 0, and how finely, as far as a network's curve and images can tell."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nearzero.conditioning import Shared, Time
from nearzero.diagnostics.diagnosis import Diagnosis
from nearzero.diagnostics.price import prices
from nearzero.process import Process

STEEP = 2.0
"""K near t = 0 counts as steep where it is above this many times its median on the rest of the range."""
LEVELS = 0.5
"""What sharing may cost at best, in pixel values of [0, 255]: half a grey level, which 8 bits round off."""


@dataclass(frozen=True)
class Recommendation:
    """`interval` timesteps in `cells` cells, or 0 and 0 where nothing is to be shared; `why` in words.

    `ratio` is the largest K near t = 0 over the median elsewhere; `levels` and `excess` are the `price` of these cells.
    """

    interval: int
    cells: int
    ratio: float
    levels: float
    excess: float
    why: str


def recommend(found: Diagnosis, x0: Tensor, process: Process) -> Recommendation:
    """Interval and cells from the unshared network's curve and the price that its images x0 (N, *shape) set.

        interval   up to the last timestep, within twice the interval that was measured closely, where K exceeds STEEP
                   times the median of K above; whole tens of timesteps (of 1000)
        cells      the fewest whose widths divide the interval and whose price is at most LEVELS in each estimate of x0:
                   the best network could tell no time inside them from another by more than 8 bits round off

    It says where the answer changes fast, and how finely a staircase must follow it on these images, so that nothing
    need be lost. That something is gained it does not say: docs/sharing.md found no gain. References: Yang et al., ICLR
    2024, Section 4, which takes 100 timesteps in 5 cells; `nearzero.diagnostics.price`.
    """
    curve, end = found.lipschitz, found.interval
    near, rest = curve.value[curve.times <= 2 * end], curve.value[curve.times > end]
    level = rest.median().item() if len(rest) else 0.0
    ratio = near.max().item() / level if level else float("inf")
    steep = (near > STEEP * level).nonzero().flatten()
    if not len(steep) or not near.max() > 0:
        why = f"K near t = 0 is at most {ratio:.2g} times its median elsewhere: there is nothing to share"
        return Recommendation(0, 0, ratio, 0.0, 0.0, why)
    count = curve.steps.count
    unit = max(1, count // 100)
    interval = max(2, -(-(int(steep[-1]) + 1) // unit) * unit)
    divisions = [n for n in range(1, interval // 2 + 1) if interval % n == 0]
    upto = interval / count * process.end
    priced = prices(x0, process, [Shared(Time(), interval=upto, cells=n) for n in divisions])
    cells, price = next(
        (pair for pair in zip(divisions, priced, strict=True) if pair[1].levels <= LEVELS), (divisions[-1], priced[-1])
    )
    why = (
        f"K near t = 0 is up to {ratio:.3g} times its median elsewhere, and more than {STEEP:g} times up to timestep "
        f"{int(steep[-1])}; in {cells} cells even the best network loses {_at_least(x0)}{price.levels:.2g} of 255 grey "
        "levels"
    )
    if price.levels > LEVELS:
        why += f", more than {LEVELS:g}: sharing costs accuracy here"
    return Recommendation(interval, cells, ratio, price.levels, price.mean, why)


def _at_least(x0: Tensor) -> str:
    """Images fewer than their numbers leave directions without variance, in which noise is too plain."""
    return "at least " if len(x0) <= x0[0].numel() else ""
