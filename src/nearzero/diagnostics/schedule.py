"""What a recipe's schedule does at both ends: singular or regular, how much signal is left, what float32 costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nearzero.conditioning import Shared
from nearzero.diagnostics.ledger import Truncation, below_end, last_evaluation, start, unseen
from nearzero.diagnostics.probe import Timesteps
from nearzero.diagnostics.theory import schedule_exponent
from nearzero.grid import Grid
from nearzero.process import Process


@dataclass(frozen=True)
class Schedule:
    """What `examine` found. In words: `truncations` of training and sampling, and other `notes` on t near 0.

    `ledger` holds the start of sampling, what training never sees and the last evaluation, each with its cost.
    """

    exponent: float
    terminal_snr: float
    first_sigma: float
    float32_error: float
    bfloat16_error: float
    naive_float32_error: float
    truncations: tuple[str, ...]
    notes: tuple[str, ...]
    ledger: tuple[Truncation, ...]

    @property
    def singular(self) -> bool:
        """Whether the best eps-network of smooth data changes infinitely fast at t = 0."""
        return self.exponent < 1 - 1e-3  # an exponent within 1e-3 of 1 is 1

    def verdict(self) -> str:
        """One sentence on t = 0 and one on the end."""
        start = (
            f"sigma / alpha grows like t^{self.exponent:.2f}: singular, the best network of smooth data changes "
            f"like t^{self.exponent - 1:.2f} near t = 0"
            if self.singular
            else f"sigma / alpha grows like t^{self.exponent:.2f}: regular at t = 0 for smooth data"
        )
        end = (
            "no signal is left at the end: eps cannot be predicted there, v can"
            if self.terminal_snr == 0
            else f"SNR {self.terminal_snr:.3g} is left at the end, where samples start from pure noise"
        )
        return f"{start}; {end}"


def examine(process: Process, times: Any, grid: Grid, steps: int, conditioning: Any = None) -> Schedule:
    """What the process does at both ends, and where training times and grid leave time out.

    The errors are relative, of sigma at the first hundredth of the range: rounded to float32 and bfloat16, and of
    the usual formula sqrt(1 - alpha^2) in float32. Raises ArgumentError where the grid refuses the process.

    >>> from nearzero.grid import UniformGrid
    >>> from nearzero.times import UniformTimes
    >>> examine(LinearVP(), UniformTimes(), UniformGrid(), 50).singular
    True
    """
    t = torch.logspace(-6, -2, 41, dtype=torch.float64) * process.end
    alpha, sigma = process(t)
    vp = bool(((alpha**2 + sigma**2 - 1).abs() < 1e-9).all())
    naive = torch.sqrt(1 - alpha.float() ** 2).double() if vp else sigma
    last = process(torch.tensor(process.end, dtype=torch.float64))
    begin, cuts, end = start(process, grid, steps), unseen(process, times), last_evaluation(process, grid, steps)
    late = [begin] if below_end(begin.t, process) else []
    return Schedule(
        exponent=schedule_exponent(process),
        terminal_snr=(last.alpha / last.sigma).square().item(),
        first_sigma=process(Timesteps(process).times()[:1]).sigma.item(),
        float32_error=_error(process(t.float()).sigma.double(), sigma),
        bfloat16_error=_error(sigma.bfloat16().double(), sigma),
        naive_float32_error=_error(naive, sigma),
        truncations=tuple(map(str, (*cuts, *late))),
        notes=tuple(_notes(end, process, conditioning)),
        ledger=(begin, *cuts, end),
    )


def _error(found: Tensor, exact: Tensor) -> float:
    return ((found - exact) / exact).abs().max().item()


def _notes(last: Truncation, process: Process, conditioning: Any) -> list[str]:
    """Where sampling asks the network last, and where conditions are shared."""
    found = [str(last)]
    if isinstance(conditioning, Shared):
        edges = conditioning.edges(process)
        found.append(f"conditions are shared in {conditioning.cells} cells up to t = {edges[-1]:.3g}")
    return found
