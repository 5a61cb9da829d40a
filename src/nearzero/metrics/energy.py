"""The energy distance: how far samples are from data without a feature network, usable from a few dozen samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nearzero.errors import ArgumentError


class Distance(NamedTuple):
    """A distance and its standard error over the draw of the samples."""

    value: float
    stderr: float


def energy_distance(samples: Tensor, data: Tensor) -> Distance:
    """The squared energy distance of samples (n, ...) to data (m, ...), both of one shape, n and m at least 2:

        2 E|X - Y| - E|X - X'| - E|Y - Y'|,   |.| the root mean square difference of two images

    Zero if and only if the distributions are equal. Pairs of one image with itself are left out, so the estimate is
    unbiased and may come out below 0. The standard error is the jackknife's over the samples, the data held fixed.
    Raises ArgumentError for other shapes.

    Reference: Szekely and Rizzo, Energy statistics, J. Statist. Plann. Inference 143, 2013.

    >>> near, far = torch.zeros(10, 4), torch.ones(10, 4)
    >>> energy_distance(near, far).value
    2.0
    """
    if not samples.ndim == data.ndim > 1 or samples.shape[1:] != data.shape[1:] or min(len(samples), len(data)) < 2:
        raise ArgumentError(
            f"energy_distance needs two sets (n, ...) of at least 2 images of one shape, got {tuple(samples.shape)} "
            f"and {tuple(data.shape)}"
        )
    x, y = (value.flatten(1).to("cpu", torch.float64) / math.sqrt(value[0].numel()) for value in (samples, data))
    n, m = len(x), len(y)
    cross, own = _distances(x, y) / m, _distances(x, x)  # of each sample
    within = _distances(y, y).sum().item() / (m * (m - 1))
    value = 2 * cross.mean().item() - own.sum().item() / (n * (n - 1)) - within
    if n < 3:
        return Distance(value, math.nan)
    without = 2 * (cross.sum() - cross) / (n - 1) - (own.sum() - 2 * own) / ((n - 1) * (n - 2)) - within
    return Distance(value, ((n - 1) / n * (without - without.mean()).square().sum()).sqrt().item())


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """sum_j |x_i - y_j| for each i, (n, d) and (m, d) -> (n,), cut so that 2^24 distances are held at once.

    By matrix products, with an error of 1e-8 |x| between points that nearly coincide; |x_i - x_i| is left out.
    """
    sums = []
    for i, part in enumerate(x.split(max(1, 2**24 // len(y)))):
        distances = torch.cdist(part, y)
        if y is x:
            distances.diagonal(i * max(1, 2**24 // len(y))).zero_()
        sums.append(distances.sum(1))
    return torch.cat(sums)
