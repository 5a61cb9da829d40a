"""What every oracle answers, and the networks made of it."""

from __future__ import annotations

import itertools
import math
from typing import Protocol

import torch
from torch import Tensor, nn

from nearzero.conditioning import Shared, Time
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError
from nearzero.level import Estimate, Level, expand
from nearzero.parameterization import Epsilon, Parameterization, Velocity, regression_target
from nearzero.process import Process

DATA = Level(torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))


class Oracle(Protocol):
    """Data that knows its posterior."""

    def posterior(self, x: Tensor, level: Level) -> Estimate:
        """E[x0 | x_t = x] and E[eps | x_t = x], shaped like x (B, ...); level float64 () or (B,)."""
        ...

    def log_prob(self, x: Tensor, level: Level | None = None) -> Tensor:
        """The log density of x_t at a level, (B,)."""
        ...

    def score(self, x: Tensor, level: Level) -> Tensor:
        """grad log p_t at x, shaped like x. Raises ArgumentError where there is none."""
        ...


class Exact(nn.Module):
    """The network, without parameters, whose answer at time c is the best one: F = E[F* | x_t]."""

    def __init__(self, data: Oracle, process: Process, parameterization: Parameterization) -> None:
        super().__init__()
        self.data = data
        self.process = process
        self.parameterization = parameterization

    def forward(self, x_in: Tensor, c: Tensor) -> Tensor:
        """F for a scaled input (B, ...) at times c (B,), as Time() tells them."""
        t = torch.minimum(c.to(torch.float64), c.new_tensor(self.process.end, dtype=torch.float64))  # a float32 end
        level = self.process(t)
        x = x_in.to(torch.float64)
        x = x / expand(self.parameterization.input_scale(level), x)
        k = self.parameterization.coefficients(level)
        silent = (k.B == 0) & (k.D == 0)
        answer = torch.empty_like(x)
        for rows, best in ((silent, self._limit), (~silent, self._target)):
            if bool(rows.any()):
                answer[rows] = best(x[rows], Level(*(value[rows] for value in level)))
        return answer.to(x_in.dtype)

    def _target(self, x: Tensor, level: Level) -> Tensor:
        """E[F* | x]: F* is linear in x0 and eps."""
        x0, eps = self.data.posterior(x, level)
        a, b = regression_target(level, self.parameterization.coefficients(level))
        return expand(a, x) * x0 + expand(b, x) * eps

    def _limit(self, x: Tensor, level: Level) -> Tensor:
        """F where only the score hears it: (score - c_x x) / c_F."""
        c_x, c_F = (expand(value, x) for value in self.parameterization.score_coefficients(level))
        return (self.data.score(x, level) - c_x * x) / c_F


class ExactShared(nn.Module):
    """The best network that is told one number for a whole cell: F = E[F* | x, cell], the mean of the exact answers

        sum_i w_i F*(x, t_i),   w = softmax(log p_{t_i}(x)),   t_i the training times of the cell that c names

    It weighs each time by how likely it makes x (E-TSDM's A15 leaves this out). Training times are the nodes of a
    discrete process, or `per_cell` midpoints of each cell.
    """

    def __init__(self, exact: Exact, shared: Shared, per_cell: int = 64) -> None:
        super().__init__()
        process = exact.process
        self.exact, self.shared = exact, shared
        self.cells = training_times(process, shared, per_cell)
        self.told = [self._told(times[:1]) for times in self.cells]
        above = torch.tensor([math.nextafter(shared.edges(process)[-1], math.inf)], dtype=torch.float64)
        values: list[float] = sorted({*self.told, *([self._told(above)] if above <= process.end else [])})
        self.apart = min((b - a for a, b in itertools.pairwise(values)), default=math.inf)

    def _told(self, t: Tensor) -> float:
        return self.shared(t, self.exact.process(t)).item()

    def forward(self, x_in: Tensor, c: Tensor) -> Tensor:
        """F for a scaled input (B, ...) and conditions c (B,), as the shared conditioning tells them."""
        answer = torch.empty_like(x_in)
        for told in c.unique().tolist():
            rows = c == told
            near = [abs(told - cell) < 1e-3 * self.apart for cell in self.told]  # c may have been rounded
            here = list(itertools.compress(self.cells, near))
            times = torch.cat(here) if here else self.shared.inner.time_told(told, self.exact.process)
            answer[rows] = self._mean(x_in[rows], times)
        return answer

    def _mean(self, x_in: Tensor, times: Tensor) -> Tensor:
        """The exact answers at `times`, weighed by the likelihood of x under each."""
        answers, logs = [], []
        for t in times:
            level = self.exact.process(t)
            scale = self.exact.parameterization.input_scale(level)
            x = x_in.to(torch.float64) / scale
            answers.append(self.exact(x_in, t.expand(len(x_in))))
            logs.append(self.exact.data.log_prob(x, level) - x[0].numel() * scale.log())  # the density of x_in
        share = torch.stack(logs).softmax(0)
        return torch.einsum("nb,nb...->b...", share.to(x_in.dtype), torch.stack(answers))


def training_times(process: Process, shared: Shared, per_cell: int = 64) -> list[Tensor]:
    """The training times of each cell, float64: the nodes of a discrete process, else `per_cell` midpoints.

    Raises ArgumentError where a cell has no node.
    """
    steps, cells = getattr(process, "steps", None), []
    for low, high in itertools.pairwise((0.0, *shared.edges(process))):
        if steps is None:
            cells.append(low + (high - low) * (torch.arange(per_cell, dtype=torch.float64) + 0.5) / per_cell)
        else:
            nodes = torch.arange(1, steps + 1, dtype=torch.float64) / steps
            cells.append(nodes[(nodes > low) & (nodes <= high)])
    if not all(len(times) for times in cells):
        raise ArgumentError(f"{shared} has cells without a node of {type(process).__name__}; take fewer cells")
    return cells


def best_denoiser(
    data: Oracle, process: Process, parameterization: Parameterization | None, shared: Shared | None
) -> Denoiser:
    """A denoiser around the exact network, or around the best one that is told what `shared` tells."""
    if parameterization is None:
        end = process(torch.tensor(process.end, dtype=torch.float64))
        parameterization = Velocity() if end.alpha == 0 else Epsilon()
    exact = Exact(data, process, parameterization)
    if shared is None:
        return Denoiser(exact, process, parameterization, Time())
    return Denoiser(ExactShared(exact, shared), process, parameterization, shared)


def check_shape(x: Tensor, data: Tensor) -> None:
    """Raises ArgumentError unless x (B, *shape) is shaped like data (N, *shape)."""
    if x.shape[1:] != data.shape[1:]:
        raise ArgumentError(f"x must be (B, {', '.join(map(str, data.shape[1:]))}), got {tuple(x.shape)}")


def as_tensor(value: object, name: str) -> Tensor:
    """A finite float tensor of anything that numbers can be read from."""
    if isinstance(value, (list, tuple)) and any(torch.is_tensor(item) for item in value):
        value = torch.stack([torch.as_tensor(item) for item in value])
    tensor = torch.as_tensor(value)
    tensor = tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())
    if not bool(tensor.isfinite().all()):
        raise ArgumentError(f"{name} holds numbers that are not finite")
    return tensor
