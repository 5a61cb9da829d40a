"""Whether to share timesteps near t = 0, and how, as far as a curve of Lipschitz constants can tell."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nearzero.diagnostics.diagnosis import Diagnosis
from nearzero.diagnostics.lipschitz import LipschitzCurve

STEEP = 2.0
"""K near t = 0 counts as steep where it is above this many times its median on the rest of the range."""
HIDDEN = 0.1
"""How far the answer may move inside one cell, as a share of the length sqrt(D) of standard noise."""


@dataclass(frozen=True)
class Recommendation:
    """`interval` timesteps in `cells` cells, or 0 and 0 where nothing is to be shared; `why` in words.

    `ratio` is the largest K near t = 0 over the median elsewhere, `hidden` how far the answer moves at most inside a
    cell (the sum of K over it) in units of sqrt(D).
    """

    interval: int
    cells: int
    ratio: float
    hidden: float
    why: str


def recommend(found: Diagnosis, dim: int) -> Recommendation:
    """Interval and cells by a rule of thumb on the unshared network's curve; `dim` is the D numbers of one x.

        interval   up to the last timestep, within twice the interval that was measured closely, where K exceeds STEEP
                   times the median of K above; whole tens of timesteps (of 1000)
        cells      the fewest whose widths divide the interval and that hide at most HIDDEN sqrt(D) each

    It says where the answer changes fast, and how finely a staircase must follow it. It does not say that samples gain:
    that is for `nearzero finetune` and `nearzero compare` to measure. Reference: Yang et al., ICLR 2024, Section 4,
    which takes 100 timesteps in 5 cells throughout.
    """
    curve, end = found.lipschitz, found.interval
    near, rest = curve.value[curve.times <= 2 * end], curve.value[curve.times > end]
    level = rest.median().item() if len(rest) else 0.0
    ratio = near.max().item() / level if level else float("inf")
    steep = (near > STEEP * level).nonzero().flatten()
    if not len(steep) or not near.max() > 0:
        why = f"K near t = 0 is at most {ratio:.2g} times its median elsewhere: there is nothing to share"
        return Recommendation(0, 0, ratio, 0.0, why)
    unit = max(1, curve.steps.count // 100)
    interval = max(2, -(-(int(steep[-1]) + 1) // unit) * unit)
    cells, hidden = _cells(curve, interval, dim)
    why = (
        f"K near t = 0 is up to {ratio:.3g} times its median elsewhere, and more than {STEEP:g} times up to timestep "
        f"{int(steep[-1])}; in {cells} cells the answer moves by at most {hidden:.2g} sqrt(D) inside one"
    )
    if hidden > HIDDEN:
        why += f", more than {HIDDEN:g}: sharing costs accuracy here"
    return Recommendation(interval, cells, ratio, hidden, why)


def _cells(curve: LipschitzCurve, interval: int, dim: int) -> tuple[int, float]:
    """The fewest cells of at least two timesteps that hide little enough, else the most; and what they hide."""
    moved = torch.cat([curve.value.new_zeros(1), (curve.value * curve.gap)[: interval - 1].cumsum(0)]) / dim**0.5
    most = 0.0
    for cells in (n for n in range(1, interval // 2 + 1) if interval % n == 0):
        parts = moved.reshape(cells, interval // cells)
        most = (parts[:, -1] - parts[:, 0]).max().item()
        last = cells
        if most <= HIDDEN:
            break
    return last, most
