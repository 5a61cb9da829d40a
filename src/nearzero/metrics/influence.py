"""The interval of a Frechet distance from one pass over its images: what each of them adds to it, to first order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nearzero.metrics.bootstrap import Interval
from nearzero.metrics.frechet import Statistics, factor, frechet_distance

NORMAL = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


def influence_interval(samples: Tensor, reference: Statistics | Tensor) -> Interval:
    """The Frechet distance of samples' features (N, d) to a reference, with the infinitesimal jackknife's interval.

    Image i, of deviation y_i from the samples' mean mu, moves the distance to N(m, L L^T) by 1 / N of

        2 (mu - m).y_i + |y_i|^2 - y_i^T L (L^T A L)^(-1/2) L^T y_i,   less its mean,   A the samples' covariance

    and the standard error is the spread of these over the square root of N: one decomposition, where the bootstrap
    needs one a resample. For N of many times d both tell the same; for less both are too large, this one by less.
    Raises what `frechet_distance` raises.

    Reference: Efron, Estimating the error rate of a prediction rule, J. Amer. Statist. Assoc. 78, 1983; Jaeckel, The
    infinitesimal jackknife, Bell Laboratories, 1972.
    """
    target = reference if isinstance(reference, Statistics) else Statistics.of(reference)
    value = frechet_distance(samples, target)
    x = samples.detach().to("cpu", torch.float64) - target.mean
    mean = x.mean(0)
    y = x - mean
    inner = y @ factor(target.covariance)
    values, vectors = torch.linalg.eigh(inner.T @ inner / (len(x) - 1))
    kept = values > len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    along = inner @ (vectors[:, kept] * values[kept].pow(-0.25))
    moved = 2 * (y @ mean) + y.square().sum(1) - along.square().sum(1)
    error = moved.std().item() / math.sqrt(len(x))
    return Interval(value, value - NORMAL * error, value + NORMAL * error, error)
