"""The kernel distance: the maximum mean discrepancy of features under a cubic kernel, unbiased for any N."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nearzero.errors import ArgumentError, DataError
from nearzero.metrics.energy import Distance
from nearzero.metrics.extractors import comparable


def kid(samples: Tensor, data: Tensor, *, size: int = 1000, subsets: int = 100, seed: int = 0) -> Distance:
    """The kernel distance of features (n, d) to features (m, d), with its standard error:

        E k(x, x') + E k(y, y') - 2 E k(x, y),   k(x, y) = (x.y / d + 1)^3,   pairs of one image with itself left out

    It is the mean over `subsets` pairs of subsets of `size` images, drawn without replacement: unbiased, 0 for equal
    distributions, and below 0 by chance. The standard error, over the draw of samples and data, is that of the
    jackknife that keeps `size` of N = min(n, m) images: the subsets' standard deviation times sqrt(size / (N - size));
    NaN for a single subset or size = N. For equal distributions it is too large. With the features of the Inception
    network it is the KID; with others it is another number. Raises DataError for fewer than `size` images,
    ArgumentError for other shapes, NumericalError for features that are not finite.

    Reference: Binkowski et al., Demystifying MMD GANs, ICLR 2018; Shao and Wu, Annals of Statistics 17, 1989.
    """
    x, y = comparable(samples, data, "kid")
    if size < 2 or subsets < 1:
        raise ArgumentError(f"kid needs size >= 2 and subsets >= 1, got {size} and {subsets}")
    fewest = min(len(x), len(y))
    if size > fewest:
        raise DataError(f"kid was asked for subsets of {size:,} images, there are {fewest:,}; ask for fewer with size=")
    generator = torch.Generator().manual_seed(seed)
    found = torch.tensor(
        [_discrepancy(*(_part(value, size, generator) for value in (x, y))) for _ in range(subsets)],
        dtype=torch.float64,
    )
    error = found.std().item() * math.sqrt(size / (fewest - size)) if subsets > 1 and size < fewest else math.nan
    return Distance(found.mean().item(), error)


def _part(features: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return features[torch.randperm(len(features), generator=generator)[:size]]


def _discrepancy(x: Tensor, y: Tensor) -> float:
    n, m = len(x), len(y)
    own = [_kernel(one, one) for one in (x, y)]
    within = [(kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1)) for kernel in own]
    return (within[0] + within[1] - 2 * _kernel(x, y).sum() / (n * m)).item()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
