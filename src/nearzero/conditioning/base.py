"""What every conditioning answers, and what `Shared` asks of the one that it cuts into cells."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from torch import Tensor

from nearzero.level import Level


class Conditioning(Protocol):
    """A number for each time, shaped like t."""

    def __call__(self, t: Tensor, level: Level) -> Tensor:
        """What the network is told at t."""
        ...

    def stage(self, t: Tensor, level: Level, leaving: Tensor, leaving_level: Level | None = None) -> Tensor:
        """What it is told at a stage t of a solver's step that leaves the time `leaving`, at `leaving_level`."""
        ...

    def edges(self, process: Any) -> tuple[float, ...]:
        """The times at which the answer jumps."""
        ...


class Divisible(Conditioning, Protocol):
    """A conditioning that `Shared` can cut into cells. Its own unit is that of `interval`."""

    def position(self, t: Tensor, level: Level) -> Tensor:
        """The quantity that is compared with stored edges, increasing in t."""
        ...

    def boundary(self, value: float) -> float:
        """The position of a value given in the conditioning's own unit."""
        ...

    def time(self, value: float, process: Any) -> float:
        """The time of a value given in the conditioning's own unit; inf beyond the process's end."""
        ...

    def told(self, lower: float, upper: float) -> float:
        """The number for the whole cell (lower, upper], both in the conditioning's own unit."""
        ...

    def time_told(self, told: float, process: Any) -> Tensor:
        """The time, float64 (1,), above the interval at which the network is told this number."""
        ...

    def check_cells(self, interval: float, cells: int) -> None:
        """Raises ArgumentError where an interval cannot be cut this way."""
        ...


class Smooth(ABC):
    """A conditioning without jumps: every stage of a step is told its own time."""

    @abstractmethod
    def __call__(self, t: Tensor, level: Level) -> Tensor:
        """What the network is told at t."""

    def stage(self, t: Tensor, level: Level, leaving: Tensor, leaving_level: Level | None = None) -> Tensor:
        """What it is told at t, wherever the step comes from."""
        return self(t, level)

    def edges(self, process: Any) -> tuple[float, ...]:
        """None."""
        return ()
