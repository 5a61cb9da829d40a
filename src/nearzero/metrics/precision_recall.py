"""Improved precision and recall: how many samples look real, and how much of the data the samples reach."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nearzero.errors import ArgumentError, DataError
from nearzero.metrics.extractors import comparable

ROWS = 2048


class PrecisionRecall(NamedTuple):
    """The share of samples inside the data's manifold, and of data inside the samples'."""

    precision: float
    recall: float


def precision_recall(samples: Tensor, data: Tensor, *, neighbours: int = 3) -> PrecisionRecall:
    """Precision and recall of features (n, d) against features (m, d).

    A set's manifold is the union of balls around its points, each with the distance to its k-th nearest other point as
    radius, k = `neighbours`. Precision is the share of samples in the data's manifold, recall that of data in the
    samples'. Both depend on n and m: take n = m and say it. Points that nearly coincide are apart to 1e-8 of their
    distance from the data's mean. Raises DataError for fewer than k + 1 images, ArgumentError for other shapes,
    NumericalError for features that are not finite.

    Reference: Kynkaanniemi et al., Improved precision and recall metric for assessing generative models, NeurIPS 2019.

    >>> data = torch.arange(10.0)[:, None]
    >>> precision_recall(torch.cat([data[:5], data[:5] + 100]), data)
    PrecisionRecall(precision=0.5, recall=0.8)
    """
    x, y = comparable(samples, data, "precision_recall")
    if neighbours < 1:
        raise ArgumentError(f"precision_recall needs at least 1 neighbour, got {neighbours}")
    fewest = min(len(x), len(y))
    if fewest <= neighbours:
        raise DataError(f"precision_recall needs more than {neighbours} images on each side, got {fewest}")
    centre = y.mean(0)
    x, y = x - centre, y - centre
    return PrecisionRecall(_share(x, y, _radii(y, neighbours)), _share(y, x, _radii(x, neighbours)))


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """The distance of each point (n, d) to its k-th nearest other one, (n,)."""
    found = []
    for start, part in enumerate(points.split(ROWS)):
        distances = torch.cdist(part, points)
        distances.diagonal(start * ROWS).fill_(torch.inf)
        found.append(distances.kthvalue(neighbours, 1).values)
    return torch.cat(found)


def _share(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """The share of points that lie in one of the balls."""
    inside = [(torch.cdist(part, centres) <= radii).any(1) for part in points.split(ROWS)]
    return torch.cat(inside).double().mean().item()
