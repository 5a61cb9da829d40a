"""Axis 7, the grid: at which times a solver stops on its way from noise to data.

A grid turns a number of steps and a process into steps + 1 decreasing float64 times, the last exactly 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from nearzero.errors import ArgumentError, did_you_mean
from nearzero.level import logsnr_of_angle, timesteps
from nearzero.registry import register


class Grid(Protocol):
    """Where to stop."""

    def __call__(self, steps: int, process: Any) -> Tensor:
        """steps + 1 decreasing float64 times, the last exactly 0."""
        ...


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ArgumentError(f"a grid needs at least 1 step, got {steps}")


def _countdown(steps: int) -> Tensor:
    return torch.arange(steps, -1, -1, dtype=torch.float64)


@register
@dataclass(frozen=True)
class UniformGrid:
    """Equal steps in t.

    >>> UniformGrid()(4, LinearVP())
    tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """

    def __call__(self, steps: int, process: Any) -> Tensor:
        """t_i = end (1 - i / steps)."""
        _check_steps(steps)
        return process.end * _countdown(steps) / steps


@register
@dataclass(frozen=True)
class SqrtGrid:
    """Equal steps in sqrt(t): finer near 0, where sigma ~ sqrt(t) makes equal steps in sigma out of them."""

    def __call__(self, steps: int, process: Any) -> Tensor:
        """t_i = end (1 - i / steps)^2."""
        _check_steps(steps)
        return process.end * (_countdown(steps) / steps) ** 2


Spacing = Literal["trailing", "leading", "linspace", "quadratic"]


@register
@dataclass(frozen=True)
class TimestepGrid:
    """Nodes of a discrete process, spaced as diffusers and Lin et al. name it, then 0.

    Of N nodes and n steps, "trailing" takes every (N / n)-th counted from the last node, "leading" every
    floor(N / n)-th counted from node 0 (so its first time lies below the end), "linspace" n from the last to node 0.
    "quadratic" is DDIM's: nodes floor(q^2) for n equal steps in q from 0 to sqrt(0.8 N), so its first time lies below
    the end too; where two would be one node (n > 1 + sqrt(0.8 N)) the later ones move up.

    A step here arrives at the next node. diffusers' schedulers arrive floor(N / n) nodes further down wherever the next
    one is: with "leading" that is the same, with "linspace", and with "trailing" where n does not divide N, the state
    there has another noise level than the network is told next, which no grid expresses.
    Raises ArgumentError for a process without nodes or with fewer than `steps`.
    Reference: Lin et al., Common diffusion noise schedules and sample steps are flawed, WACV 2024, Table 2; Song et
    al., Denoising diffusion implicit models, ICLR 2021, Appendix D.2.

    >>> TimestepGrid("leading")(2, DiscreteVP.linear(steps=4))
    tensor([0.7500, 0.2500, 0.0000], dtype=torch.float64)
    """

    spacing: Spacing = "trailing"

    def __post_init__(self) -> None:
        options = ("trailing", "leading", "linspace", "quadratic")
        if self.spacing not in options:
            raise ArgumentError(f"unknown spacing {self.spacing!r}; {did_you_mean(str(self.spacing), options)}")

    def __call__(self, steps: int, process: Any) -> Tensor:
        """(k + 1) / N for the chosen nodes k, then 0."""
        _check_steps(steps)
        total = timesteps(process)
        if steps > total:
            raise ArgumentError(f"{steps} steps on {total} timesteps; take at most {total}, or UniformGrid")
        if self.spacing == "trailing":
            node = np.arange(total, 0, -total / steps)[:steps].round() - 1
        elif self.spacing == "leading":
            node = np.arange(steps)[::-1] * (total // steps)
        elif self.spacing == "quadratic":
            node = _quadratic(steps, total)[::-1]
        else:
            node = np.linspace(0, total - 1, steps)[::-1].round() if steps > 1 else np.array([total - 1])
        return torch.from_numpy(np.append((node + 1) / total, 0.0))


def _quadratic(steps: int, total: int) -> np.ndarray[Any, np.dtype[Any]]:
    """DDIM's nodes, increasing; a single one is the last."""
    last = np.sqrt(0.8 * total)
    node = (np.linspace(0, last, steps) ** 2 if steps > 1 else np.array([last**2])).astype(int)
    order = np.arange(steps)
    return np.maximum.accumulate(node - order) + order  # each at least one above the one before


@register
@dataclass(frozen=True)
class KarrasGrid:
    """EDM's noise levels sigma / alpha, equally spaced in their rho-th root: `steps` of them, then 0.

        sigma_i = (sigma_max^(1/rho) + i / (steps - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    Raises ArgumentError where the process does not reach sigma_max (to a relative 1e-9).
    Reference: Karras et al., NeurIPS 2022, Eq. 5.

    >>> KarrasGrid()(3, KarrasVE())
    tensor([8.0000e+01, 2.5152e+00, 2.0000e-03, 0.0000e+00], dtype=torch.float64)
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not (0 < self.sigma_min < self.sigma_max < math.inf and 0 < self.rho < math.inf):
            raise ArgumentError(
                "KarrasGrid needs 0 < sigma_min < sigma_max and rho > 0, "
                f"got {self.sigma_min}, {self.sigma_max}, {self.rho}"
            )

    def __call__(self, steps: int, process: Any) -> Tensor:
        """The times of these levels, then 0."""
        _check_steps(steps)
        _check_reach(self.sigma_max, process)
        part = torch.arange(steps, dtype=torch.float64) / max(1, steps - 1)
        ratio = math.exp(math.log(self.sigma_min / self.sigma_max) / self.rho)
        sigma = self.sigma_max * (1 + part * (ratio - 1)) ** self.rho
        times = process.time_of_logsnr(-2 * sigma.log())
        if not bool((times.diff() < 0).all()):
            raise ArgumentError(f"KarrasGrid of {steps} steps with rho {self.rho:g} does not decrease; take rho near 7")
        return torch.cat([times, times.new_zeros(1)])


@register
@dataclass(frozen=True)
class LogSNRGrid:
    """Equal steps in the log-SNR from the end to the time `last`: `steps` times, then 0.

    Raises ArgumentError where the process ends without signal. Reference: Lu et al., DPM-Solver, NeurIPS 2022.
    """

    last: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.last < math.inf:
            raise ArgumentError(f"LogSNRGrid needs a positive last time, got {self.last}")

    def __call__(self, steps: int, process: Any) -> Tensor:
        """The times of these log-SNRs, then 0."""
        _check_steps(steps)
        if not self.last < process.end:
            raise ArgumentError(f"LogSNRGrid's last time {self.last:g} must lie below the end {process.end:g}")
        ends = process(torch.tensor([process.end, self.last], dtype=torch.float64)).logsnr
        if not bool(ends.isfinite().all()):
            raise ArgumentError(f"{type(process).__name__} ends without signal: its log-SNR has no end; use AngleGrid")
        part = torch.arange(steps, dtype=torch.float64) / max(1, steps - 1)
        times = process.time_of_logsnr(ends[0] + part * (ends[1] - ends[0]))
        times[0] = process.end  # exactly, whatever the round trip leaves
        return torch.cat([times, times.new_zeros(1)])


@register
@dataclass(frozen=True)
class AngleGrid:
    """Equal steps in the angle atan2(sigma, alpha), from the end to 0: smooth at both ends of any VP process."""

    def __call__(self, steps: int, process: Any) -> Tensor:
        """The times of these angles."""
        _check_steps(steps)
        alpha, sigma = process(torch.tensor(process.end, dtype=torch.float64))
        angle = torch.atan2(sigma, alpha) * _countdown(steps) / steps
        times = process.time_of_logsnr(logsnr_of_angle(angle))
        times[0], times[-1] = process.end, 0.0  # exactly, whatever the round trip leaves
        return times


@register
@dataclass(frozen=True)
class QuantileGrid:
    """As dense as a distribution of training times: its quantiles at the middles of equal parts, then 0.

    The first time lies below the end. Reference: the remapped sampling of Yang et al., ICLR 2024, Table A5.

    >>> from nearzero.times import UniformTimes
    >>> QuantileGrid(UniformTimes())(2, LinearVP())
    tensor([0.7500, 0.2500, 0.0000], dtype=torch.float64)
    """

    times: Any

    def __call__(self, steps: int, process: Any) -> Tensor:
        """times((i + 1/2) / steps), decreasing, then 0."""
        _check_steps(steps)
        u = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        stops = self.times(u, process).sort(descending=True).values
        if not bool((stops.diff() < 0).all()):
            raise ArgumentError(f"QuantileGrid: {self.times} has fewer than {steps} different times; take fewer steps")
        return torch.cat([stops, stops.new_zeros(1)])


@register
@dataclass(frozen=True)
class Aligned:
    """Another grid with `edges` on it: each takes the place of an interior node, in order, and nodes move least in all.

    A step over an edge of a shared condition would be told the wrong cell; the edges are `shared.edges(process)`. An
    edge that is a node already stays, one at or above the grid's first time is never crossed. The number of steps does
    not change. Raises ArgumentError for edges that are no positive times, or beyond the end, and for too few steps.

    >>> Aligned(UniformGrid(), (0.02, 0.1))(4, LinearVP())
    tensor([1.0000, 0.7500, 0.1000, 0.0200, 0.0000], dtype=torch.float64)
    """

    inner: Grid
    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", tuple(self.edges))
        bad = [edge for edge in self.edges if not 0 < edge < math.inf]
        if bad:
            raise ArgumentError(f"an edge is a time above 0, got {bad[0]}; take shared.edges(process)")

    def __call__(self, steps: int, process: Any) -> Tensor:
        """The inner grid's times, some of them moved onto the edges."""
        beyond = [edge for edge in self.edges if edge > process.end]
        if beyond:
            raise ArgumentError(
                f"the edge {beyond[0]:g} lies beyond the end {process.end:g}; edges are times: shared.edges(process)"
            )
        times = self.inner(steps, process).clone()
        edges = sorted({edge for edge in self.edges if edge < times[0].item()}, reverse=True)
        if len(edges) > steps - 1:
            raise ArgumentError(f"{len(edges)} edges inside a grid need at least {len(edges) + 1} steps, got {steps}")
        times[_nearest(edges, times[1:-1].tolist())] = times.new_tensor(edges)
        return times


def _nearest(edges: list[float], nodes: list[float]) -> list[int]:
    """For each of the decreasing edges a place in the grid, 1 and up, increasing, with the least sum of distances.

    costs[i] is the least sum for the edges so far, all among the first i nodes. Where it is least the result
    decreases: a node left out between an edge and its place would be nearer to the edge.
    """
    costs, taken = [0.0] * (len(nodes) + 1), []
    for edge in edges:
        moved = [cost + abs(edge - node) for cost, node in zip(costs, nodes, strict=False)]
        costs = [math.inf, *accumulate(moved, min)]
        taken.append([cost == least for cost, least in zip(moved, costs[1:], strict=True)])
    places, end = [], len(nodes)
    for take in reversed(taken):
        end = next(i for i in range(end, 0, -1) if take[i - 1])
        places.append(end)
        end -= 1
    return places[::-1]


def _check_reach(sigma: float, process: Any) -> None:
    last = process(torch.tensor(process.end, dtype=torch.float64))
    limit = last.sigma.item() * (1 + 1e-9)  # the tolerance that the docstring states
    if sigma * last.alpha.item() > limit:
        raise ArgumentError(
            f"sigma_max {sigma:g} lies beyond {type(process).__name__}'s end, {(last.sigma / last.alpha).item():g}"
        )
