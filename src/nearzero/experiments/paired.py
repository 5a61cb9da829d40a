"""Numbers of networks that answer for the same images and seeds, with the errors of their differences.

A number is kept as `leaves`, float64 (1 + n,): from all images, and from all but one of them, or but one group of them,
in turn. The jackknife gives the standard error of each number, and of the difference of two from the same images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from nearzero.files import to_bytes
from nearzero.metrics.bootstrap import to_origin
from nearzero.metrics.energy import energy_distance
from nearzero.metrics.extractors import extract
from nearzero.metrics.frechet import factor
from nearzero.metrics.spectrum import radial_power
from nearzero.yardstick import Reference

GROUPS = 16
"""Into how many groups images are dealt where each number costs a whole computation."""


class Line(NamedTuple):
    """A number: what it belongs to, what it measures, of which network, where, its standard error, on how many images.

    The network "b - a" stands for the difference of two.
    """

    part: str
    measure: str
    network: str
    x: float
    value: float
    error: float
    images: int


def stderr(leaves: Tensor) -> float:
    """The jackknife's standard error: for the mean of n numbers exactly their deviation over sqrt(n).

    >>> round(stderr(left_out(torch.tensor([1.0, 2.0, 3.0, 4.0]))), 4)
    0.6455
    """
    without = leaves[1:]
    return ((without - without.mean()).square().sum() * (len(without) - 1) / len(without)).sqrt().item()


def left_out(values: Tensor) -> Tensor:
    """The mean of values (n, ...), n at least 2, over all of them and without each one: float64 (1 + n, ...)."""
    values = values.double()
    total, n = values.sum(0, keepdim=True), len(values)
    return torch.cat([total / n, (total - values) / (n - 1)])


def lines(part: str, measure: str, x: float, leaves: Mapping[str, Tensor], images: int) -> list[Line]:
    """A line for each network, and one for the difference of each from the first."""
    first, base = next(iter(leaves.items()))
    away = {f"{name} - {first}": one - base for name, one in leaves.items() if name != first}
    return [
        Line(part, measure, name, x, one[0].item(), stderr(one), images) for name, one in {**leaves, **away}.items()
    ]


def powers(images: Tensor) -> Tensor:
    """The radial power of each image (N, C, H, W), float64 (N, R)."""
    return torch.stack([radial_power(one[None]) for one in images])


def high(power: Tensor) -> Tensor:
    """The mean over the upper half of the frequencies, (..., R) -> (...): white noise of variance v adds v."""
    return power[..., power.shape[-1] // 2 :].mean(-1)


def decibels(power: Tensor, real: Tensor) -> Tensor:
    """The root mean square difference of two log spectra (..., R) -> (...): `spectrum_distance` of their images."""
    return (10 * torch.log10(power / real)).square().mean(-1).sqrt()


def compared(
    part: str, x: float, found: Mapping[str, Mapping[str, Tensor]], images: int, where: str = ""
) -> list[Line]:
    """The lines of measures whose leaves `found` holds by network and measure; `where` is added to their names."""
    measures = next(iter(found.values()))
    named = {one + where: {name: leaves[one] for name, leaves in found.items()} for one in measures}
    return [line for measure, leaves in named.items() for line in lines(part, measure, x, leaves, images)]


@dataclass(frozen=True, eq=False)
class Yard:
    """Real images, uint8 (M, C, H, W), that samples are measured by; with a reference, by its features too."""

    real: Tensor
    reference: Reference | None = None

    def measures(self, pixels: Tensor) -> dict[str, Tensor]:
        """The leaves of each distance and of the high-frequency power of samples over that of the real images.

        `pixels` (N, C, H, W), N at least 4, may have any values; measured are the images that they become. Distances
        leave out one group at a time, the power one image.
        """
        images = to_bytes(pixels)
        group = torch.arange(len(images)) % min(GROUPS, len(images))
        kept = [torch.ones(len(images), dtype=torch.bool), *(group != one for one in group.unique())]
        x, data = images.double() / 255, self.real.double() / 255
        found = {"energy distance": [energy_distance(x[one], data).value for one in kept]}
        if self.reference is not None:
            away = extract(self.reference.extractor, images) - self.reference.statistics.mean
            found["Frechet distance"] = [to_origin(away, one.double(), self._root) for one in kept]
        leaves = {name: torch.tensor(each, dtype=torch.float64) for name, each in found.items()}
        return {**leaves, "power ratio": high(left_out(powers(images))) / self._power}

    @cached_property
    def _power(self) -> Tensor:
        return high(powers(self.real).mean(0))

    @cached_property
    def _root(self) -> Tensor:
        assert self.reference is not None
        return factor(self.reference.statistics.covariance)
