"""How far a distance can be trusted: its interval over the draw of the samples, and the distance of real images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nearzero.errors import ArgumentError, DataError
from nearzero.metrics.frechet import Statistics, factor, frechet_distance


class Interval(NamedTuple):
    """A distance, the 95 % interval around it and its standard error, over the draw of the samples."""

    value: float
    low: float
    high: float
    stderr: float


def frechet_interval(
    samples: Tensor, reference: Statistics | Tensor, *, resamples: int = 200, seed: int = 0
) -> Interval:
    """The Frechet distance of samples' features (N, d) to a reference, with the bootstrap's interval.

    Images are drawn from the samples with replacement, as weights, so that features are computed once; the reference
    is held fixed. A resample holds fewer different images, which lifts all its distances by about the bias that N
    images have. The interval is thus that of their deviations from their own mean, 2.5 % to 97.5 %, put around the
    value: it tells how the value varies for this N, and not where it would be for more. Needs N above d, else it warns
    as the distance does. Raises what `frechet_distance` raises, ArgumentError for fewer than 2 resamples.

    Reference: Efron and Tibshirani, An introduction to the bootstrap, 1993, Chapters 6 and 13.
    """
    if resamples < 2:
        raise ArgumentError(f"an interval needs at least 2 resamples, got {resamples}")
    target = reference if isinstance(reference, Statistics) else Statistics.of(reference)
    value = frechet_distance(samples, target)
    generator = torch.Generator().manual_seed(seed)
    x = samples.detach().to("cpu", torch.float64) - target.mean
    root = factor(target.covariance)
    found = torch.tensor([to_origin(x, _drawn(len(x), generator), root) for _ in range(resamples)], dtype=x.dtype)
    away = found - found.mean()
    low, high = torch.quantile(away, torch.tensor([0.025, 0.975], dtype=away.dtype)).tolist()
    return Interval(value, value + low, value + high, away.square().sum().div(resamples - 1).sqrt().item())


def _drawn(count: int, generator: torch.Generator) -> Tensor:
    """How often each image appears in one resample, float64 (count,)."""
    chosen = torch.randint(count, (count,), generator=generator)
    return torch.bincount(chosen, minlength=count).double()


def to_origin(x: Tensor, weights: Tensor, root: Tensor) -> float:
    """The distance of weighted features (N, d) to a Gaussian of mean 0 and covariance L L^T, L (d, r).

    The trace of the root by eigenvalues of L^T A L: four times faster than `frechet_distance`, and true to 1e-6 of the
    largest variance.
    """
    count = weights.sum()
    mean = weights @ x / count
    centred = (x - mean) * weights.sqrt()[:, None]
    inner = centred @ root
    values = torch.linalg.eigvalsh(inner.T @ inner / (count - 1))
    rounding = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    spread = centred.square().sum() / (count - 1) + root.square().sum()
    return (mean.square().sum() + spread - 2 * values[values > rounding].sqrt().sum()).item()


def floor(
    reference: Tensor,
    count: int,
    against: int | None = None,
    *,
    distance: Callable[[Tensor, Tensor], Any] = frechet_distance,
    seed: int = 0,
) -> Any:
    """What real images show of each other: the distance of `count` of the reference to `against` others of it.

    The rows are features (N, d), or images where the distance takes images; `against` is `count` unless given. Samples
    that were real would come to about this number, so a distance says something only where it lies above. Raises
    DataError where the reference has fewer than count + against rows.

    >>> x = torch.arange(8.0)[:, None]
    >>> floor(x, 3, 5, distance=lambda a, b: len(a) * len(b))
    15
    """
    other = count if against is None else against
    if min(count, other) < 1:
        raise ArgumentError(f"a floor needs at least 1 image on each side, got {count} and {other}")
    if count + other > len(reference):
        raise DataError(
            f"a floor of {count:,} images against {other:,} needs {count + other:,} different ones, the reference has "
            f"{len(reference):,}; ask for at most {len(reference) // 2:,} on each side"
        )
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(seed))
    return distance(reference[order[:count]], reference[order[count : count + other]])
