"""A finite set of points: what a network learns that memorises."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nearzero.conditioning import Shared
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError
from nearzero.level import Estimate, Level, expand
from nearzero.oracle.base import as_tensor, best_denoiser, check_shape
from nearzero.parameterization import Parameterization
from nearzero.process import Process


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Data that is one of finitely many points (N, *shape), each as likely: what a network learns that memorises.

        E[x0 | x]  = sum_i r_i p_i,  r = softmax(-|x - alpha p_i|^2 / (2 sigma^2))
        E[eps | x] = (x - alpha E[x0 | x]) / sigma

    At sigma = 0 a sample is its point and says nothing about the noise: E[x0 | x] = x and E[eps | x] = 0.

    >>> x0, eps = PointCloud(torch.zeros(1, 2)).denoiser(LinearVP())(torch.ones(1, 2), 0.5)
    >>> x0
    tensor([[0., 0.]])
    """

    points: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", as_tensor(self.points, "points"))
        if self.points.ndim < 2 or not self.points.numel():
            raise ArgumentError(f"points must have shape (N, *shape), got {tuple(self.points.shape)}")

    @cached_property
    def _flat(self) -> tuple[Tensor, Tensor]:
        """The points (N, d) and half their squared norms (N,)."""
        points = self.points.double().flatten(1)
        return points, points.square().sum(1) / 2

    def _rows(self, x: Tensor, level: Level) -> list[tuple[Tensor, Tensor, Tensor]]:
        """x (b, d), alpha and sigma (b, 1), cut so that b x N numbers take at most 32 MB."""
        check_shape(x, self.points)
        b = max(1, 2**22 // len(self.points))
        values = (value.to(x.device, torch.float64).expand(len(x))[:, None] for value in level)
        columns = (x.double().flatten(1), *values)
        return list(zip(*(column.split(b) for column in columns), strict=True))

    def _squares(self, x: Tensor, alpha: Tensor) -> Tensor:
        """|x - alpha p_i|^2, (b, N): by a matrix product, and directly for the nearest, where products cancel."""
        points, half = self._flat
        squares = x.square().sum(1, keepdim=True) - 2 * alpha * (x @ points.T - alpha * half)
        near = squares.topk(min(8, len(points)), largest=False).indices
        return squares.scatter(1, near, (x[:, None] - alpha[:, None] * points[near]).square().sum(-1))

    def posterior(self, x: Tensor, level: Level) -> Estimate:
        """E[x0 | x_t = x] and E[eps | x_t = x], shaped like x (B, *shape)."""
        answers = []
        for y, alpha, sigma in self._rows(x, level):
            noisy = sigma > 0
            width = torch.where(noisy, sigma, 1.0)
            squares = self._squares(y, alpha)
            share = (-(squares - squares.amin(1, keepdim=True)) / width / width / 2).softmax(1)  # width^2 may underflow
            x0 = torch.where(noisy, share @ self._flat[0], y)
            answers.append((x0, torch.where(noisy, (y - alpha * x0) / width, 0.0)))
        x0, eps = (torch.cat(column).reshape(x.shape).to(x.dtype) for column in zip(*answers, strict=True))
        return Estimate(x0, eps)

    def score(self, x: Tensor, level: Level) -> Tensor:
        """grad log p_t at x, shaped like x. Raises ArgumentError at sigma = 0."""
        if bool((level.sigma == 0).any()):
            raise ArgumentError("a finite set has no score at sigma = 0; ask at a time above 0")
        return -self.posterior(x, level).eps / expand(level.sigma, x)

    def denoiser(
        self, process: Process, parameterization: Parameterization | None = None, shared: Shared | None = None
    ) -> Denoiser:
        """The best denoiser under a process, or the best that is told what `shared` tells.

        It predicts eps unless told otherwise, or v where the process ends without signal.
        """
        return best_denoiser(self, process, parameterization, shared)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n points drawn with replacement, (n, *shape)."""
        return self.points[torch.randint(len(self.points), (n,), generator=generator).to(self.points.device)]

    def log_prob(self, x: Tensor, level: Level | None = None) -> Tensor:
        """In nats, (B,): the log density of x_t at a level; without one the log probability of the point x.

        The data have no density: log_prob(x) is log(how many points equal x / N), -inf off the set.
        Raises ArgumentError for a level with sigma = 0.
        """
        check_shape(x, self.points)
        log_count = math.log(len(self.points))
        if level is None:
            b = max(1, 2**22 // self.points.numel())
            hits = [(y[:, None] == self.points).flatten(2).all(2).sum(1) for y in x.split(b)]
            return torch.cat(hits).to(x.dtype).log() - log_count
        if bool((level.sigma == 0).any()):
            raise ArgumentError("a finite set has no density at sigma = 0; leave out the level for log probabilities")
        found = []
        for y, alpha, sigma in self._rows(x, level):
            squares = self._squares(y, alpha)
            least = squares.amin(1, keepdim=True)
            near = (-(squares - least) / sigma / sigma / 2).logsumexp(1) - (least / sigma / sigma / 2)[:, 0]
            found.append(near - y.shape[1] * (sigma[:, 0].log() + 0.5 * math.log(math.tau)) - log_count)
        return torch.cat(found).to(x.dtype)
