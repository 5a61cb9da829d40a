"""Axis 4, the times: at which noise levels the network is trained.

A distribution of times is a function of u, uniform in the open interval (0, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from nearzero.level import timesteps
from nearzero.registry import register


class Times(Protocol):
    """An inverse distribution function."""

    def __call__(self, u: Tensor, process: Any) -> Tensor:
        """The training times of uniform numbers u, float64, same shape."""
        ...


@register
@dataclass(frozen=True)
class UniformTimes:
    """Every time in (0, end) is equally likely."""

    def __call__(self, u: Tensor, process: Any) -> Tensor:
        """u * end."""
        return u * process.end


@register
@dataclass(frozen=True)
class DiscreteTimes:
    """Every node of a discrete process is equally likely: t = (k + 1) / steps with k = floor(u steps).

    Raises ArgumentError for a process without nodes. Reference: Ho et al., NeurIPS 2020, Algorithm 1.
    """

    def __call__(self, u: Tensor, process: Any) -> Tensor:
        """The node that u falls on."""
        steps = timesteps(process)
        return ((u * steps).floor() + 1) / steps
