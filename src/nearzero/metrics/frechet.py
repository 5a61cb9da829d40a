"""The Frechet distance in three steps that are pure functions: features -> statistics -> a number, all in float64."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from nearzero.errors import ArgumentError, DataError, NumericalError


@dataclass(frozen=True, eq=False)
class Statistics:
    """Count, mean (d,) and unbiased covariance (d, d), divided by count - 1, of features: float64 on the CPU.

    `extractor` tells what made the features, where that is known: distances between two different ones are refused.
    The covariance of one image counts as 0, so that parts of any size can be merged. Raises ArgumentError for other
    shapes and NumericalError for numbers that are not finite.
    """

    count: int
    mean: Tensor
    covariance: Tensor
    extractor: str | None = None

    def __post_init__(self) -> None:
        mean, covariance = self.mean, self.covariance
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
            raise ArgumentError(
                f"statistics need a mean (d,) and a covariance (d, d), got {tuple(mean.shape)} and "
                f"{tuple(covariance.shape)}"
            )
        if self.count < 1:
            raise DataError(f"statistics need at least 1 image, got {self.count}")
        for name, value in (("mean", mean), ("covariance", covariance)):
            if value.dtype != torch.float64 or value.device.type != "cpu":
                raise ArgumentError(f"the {name} must be float64 on the CPU, got {value.dtype} on {value.device}")
            if not bool(value.isfinite().all()):
                raise NumericalError(f"the {name} of {self.count:,} images holds numbers that are not finite")
        if not bool(((covariance - covariance.T).abs() <= 1e-9 * covariance.abs().max()).all()):
            raise ArgumentError("a covariance must be symmetric, and this one is not; give the matrix itself")

    @classmethod
    def of(cls, features: Tensor, extractor: str | None = None) -> Statistics:
        """The statistics of features (N, d), N at least 1.

        >>> Statistics.of(torch.tensor([[0.0], [2.0]])).covariance
        tensor([[2.]], dtype=torch.float64)
        """
        if features.ndim != 2 or not features.numel() or features.is_complex():
            raise ArgumentError(f"features must be numbers (N, d), N and d at least 1, got {tuple(features.shape)}")
        x = features.detach().to("cpu", torch.float64)
        mean = x.mean(0)
        centred = x - mean
        scatter = centred.T @ centred
        return cls(len(x), mean, (scatter + scatter.T) / (2 * max(1, len(x) - 1)), extractor)

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both sets of images together, by the pairwise rule of Chan, Golub and LeVeque (1983).

        With n and m images and delta the difference of means, (n + m - 1) C = (n - 1) A + (m - 1) B + n m / (n + m)
        delta delta^T: no large numbers cancel, so that parts and their order change the result by rounding only.
        """
        _check_alike(self, other)
        n, m = self.count, other.count
        delta = other.mean - self.mean
        scatter = (n - 1) * self.covariance + (m - 1) * other.covariance + n * m / (n + m) * torch.outer(delta, delta)
        mean = self.mean + m / (n + m) * delta
        return Statistics(n + m, mean, scatter / (n + m - 1), self.extractor or other.extractor)


def merged(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all parts together, in their order. Raises DataError where there are none."""
    found = list(parts)
    if not found:
        raise DataError("there are no statistics to merge")
    return reduce(Statistics.merge, found)


def frechet_distance(a: Statistics | Tensor, b: Statistics | Tensor) -> float:
    """The squared Frechet distance of two Gaussians, given as `Statistics` or as features (N, d):

        |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2))

    With the features of the Inception network it is the FID; with others it is another number. The trace of the root
    is the sum of the singular values of L_A^T L_B with A = L_A L_A^T and B = L_B L_B^T. Eigenvalues of a covariance
    within d 2^-52 of 0, in units of its largest one, are rounding and count as 0. The distance is biased upwards, by
    about 1/N: compare numbers of equal N only. For equal sets rounding may leave it a little below 0. Features may lie
    on any device.

    Raises DataError for fewer than 2 images or statistics of two extractors, ArgumentError for two dimensions,
    NumericalError for a covariance with negative eigenvalues or for numbers that are not finite. Warns where a set has
    no more images than features: its covariance is singular.

    Reference: Heusel et al., GANs trained by a two time-scale update rule, NeurIPS 2017; Dowson and Landau, 1982.

    >>> x = torch.eye(2, dtype=torch.float64).repeat(4, 1)
    >>> frechet_distance(x, x + 3)
    18.0
    """
    first, second = (one if isinstance(one, Statistics) else Statistics.of(one) for one in (a, b))
    _check_alike(first, second)
    for one in (first, second):
        if one.count < 2:
            raise DataError("a Frechet distance needs at least 2 images on each side, got 1")
    fewest, size = min(first.count, second.count), len(first.mean)
    if fewest <= size:
        warnings.warn(
            f"rank-deficient: {fewest:,} images for {size:,} features make a singular covariance, and the distance "
            f"mostly measures how few they are; use more than {size:,} images",
            stacklevel=2,
        )
    overlap = torch.linalg.svdvals(factor(first.covariance).T @ factor(second.covariance)).sum()
    spread = first.covariance.trace() + second.covariance.trace()
    return ((first.mean - second.mean).square().sum() + spread - 2 * overlap).item()


def factor(covariance: Tensor) -> Tensor:
    """L (d, r) with L L^T = covariance (d, d) of rank r. Raises NumericalError for a negative eigenvalue."""
    values, vectors = torch.linalg.eigh(covariance)
    rounding = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    if bool(values[0] < -rounding):
        raise NumericalError(
            f"a covariance has the eigenvalue {values[0].item():.3g}, and none may be negative; compute it again"
        )
    kept = values > rounding
    return vectors[:, kept] * values[kept].sqrt()


def _check_alike(a: Statistics, b: Statistics) -> None:
    if a.extractor is not None and b.extractor is not None and a.extractor != b.extractor:
        raise DataError(f"statistics of two extractors, {a.extractor} and {b.extractor}; take both from one of them")
    if len(a.mean) != len(b.mean):
        raise ArgumentError(f"{len(a.mean)} features and {len(b.mean)}; take both from one extractor")
