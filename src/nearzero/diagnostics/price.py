"""What sharing must cost: how far the best network that is told a whole cell stays from the best that is told t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nearzero.conditioning import Shared
from nearzero.diagnostics.probe import check_images
from nearzero.errors import ArgumentError
from nearzero.level import Level
from nearzero.oracle.base import training_times
from nearzero.process import Process
from nearzero.randomness import probe_generator

ROUNDING = 1 / 127.5 / 12**0.5  # standard deviation of what 8 bits round off, in [-1, 1]


@dataclass(frozen=True, eq=False)
class Price:
    """At each training time below t~, float64 (n,): `excess` E|F - F*|^2 / D of the noise, and its error over draws.

    `residual` is the error that this leaves in the estimate of x0, sigma / alpha sqrt(excess): a root mean square.
    """

    times: Tensor
    excess: Tensor
    stderr: Tensor
    residual: Tensor

    @property
    def mean(self) -> float:
        """The excess, averaged over the times below t~."""
        return self.excess.mean().item()

    @property
    def levels(self) -> float:
        """The largest residual in pixel values of [0, 255], for x0 in [-1, 1]."""
        return 127.5 * self.residual.max().item()


def price(
    x0: Tensor,
    process: Process,
    shared: Shared,
    *,
    blur: float = ROUNDING,
    draws: int = 256,
    generator: torch.Generator | None = None,
) -> Price:
    """What the best network that predicts noise loses on [0, t~] by being told a cell instead of t, without training:

        excess(t) = E |F(x_t, cell) - F*(x_t, t)|^2 / D,   F(x, cell) = sum_i w_i F*(x, t_i),  w_i ~ p_{t_i}(x)

    for the one Gaussian that has the mean and the covariance of images x0 (N, *shape), plus noise of the standard
    deviation `blur` (by default what 8 bits round off). t_i are the cell's training times: the nodes of a discrete
    process, else 64 midpoints. A cell of one node costs exactly 0, and on the average over [0, t~] joining cells never
    lowers the expected price. One Gaussian suffices for a price: the network reads the noise level off the directions
    in which the data hardly vary, and those are hardly another class's. Fewer images than D have no variance but blur
    in the directions they do not span, which makes the noise too plain and the price too low.

    Along the Gaussian's axes everything is a product of numbers, so that `draws` of x_t with noise shared by all times
    take seconds; the axes take min(N, D)^3, 13 s on a core for D = 3072. Raises ArgumentError for bad arguments.

    >>> line, shared = torch.tensor([[-1.0], [1.0]]), Shared(Timestep(1000), interval=100, cells=5)
    >>> price(line, DiscreteVP.linear(), shared, draws=1000).mean < price(
    ...     line, DiscreteVP.linear(), Shared(Timestep(1000), interval=100, cells=1), draws=1000
    ... ).mean
    True
    """
    return prices(x0, process, [shared], blur=blur, draws=draws, generator=generator)[0]


def prices(
    x0: Tensor,
    process: Process,
    sharings: Sequence[Shared],
    *,
    blur: float = ROUNDING,
    draws: int = 256,
    generator: torch.Generator | None = None,
) -> list[Price]:
    """The `price` of each of several ways to share, with the same draws; the axes, most of the work, are found once."""
    check_images(x0, None)
    if len(x0) < 2 or draws < 2 or not 0 <= blur < math.inf:
        raise ArgumentError(f"a price needs at least 2 images, 2 draws and blur from 0, got {len(x0)}, {draws}, {blur}")
    mean, variance = _axes(x0.detach().cpu().double().flatten(1))
    variance = variance + blur**2
    z, eps = torch.randn(2, draws, len(mean), dtype=torch.float64, generator=generator or probe_generator(0))
    x = mean + variance.sqrt() * z
    found = []
    for shared in sharings:
        cells = training_times(process, shared)
        level = process(torch.cat(cells))
        excess = torch.cat([_cell(x, eps, mean, variance, process(times)) for times in cells])
        residual = level.sigma / level.alpha * excess.mean(1).sqrt()
        found.append(Price(torch.cat(cells), excess.mean(1), excess.std(1) / draws**0.5, residual))
    return found


def _axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean in the basis of the principal axes of x (N, D), and the variances along them, both (D,)."""
    count, d = x.shape
    mean = x.mean(0)
    if count > d:
        variance, axes = torch.linalg.eigh(x.T.cov().reshape(d, d))
        return axes.T @ mean, variance.clamp(min=0)  # rounding makes a 0 negative
    _, roots, axes = torch.linalg.svd(x - mean, full_matrices=False)
    inside = axes @ mean
    outside = torch.zeros(d - count, dtype=x.dtype)  # axes of no variance, the first along what is left of the mean
    if count < d:
        outside[0] = (mean - axes.T @ inside).norm()
    return torch.cat([inside, outside]), torch.cat([roots.square() / (count - 1), torch.zeros_like(outside)])


def _cell(x0: Tensor, eps: Tensor, mean: Tensor, variance: Tensor, level: Level) -> Tensor:
    """|F - F*|^2 / D at each time of a cell (w) and for each draw x0, eps (n, D) along the axes: (w, n)."""
    alpha, sigma = (value[:, None] for value in level)
    total = alpha**2 * variance + sigma**2
    gain, shift = sigma / total, alpha * sigma / total  # F* = gain x - shift mean
    constant = (total.log() + alpha**2 * mean**2 / total).sum(1)
    found = []
    for i in range(len(alpha)):
        x = alpha[i] * x0 + sigma[i] * eps
        squares = x**2 @ (1 / total).T - 2 * (x @ (alpha * mean / total).T) + constant
        share = (-squares / 2).softmax(1)
        told, best = (x * a - mean * b for a, b in ((share @ gain, share @ shift), (gain[i], shift[i])))
        found.append((told - best).square().mean(1))
    return torch.stack(found)
