"""Prints how much the variational bound of 8-bit pixels varies under each distribution of times, at equal cost.

python scripts/bound_variance.py

The model has one pixel: a value k / 127.5 - 1, all k in 0 .. 255 alike or as often as in the embedded images, with
Gaussian dither of a uniform one's deviation, 1 / 127.5 / sqrt 12; its network is exact. With m_j(t) the mean over x0
and eps of the j-th power of the bound's part at t, and q the density of times, a draw varies by

    plain:       int m_2 / q dt - (int m_1 dt)^2,   least for q* ~ sqrt m_2
    stratified:  the mean over 128 strata of u of (mean of m_2 / q^2) - (mean of m_1 / q)^2
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

import nearzero as nz
from nearzero.times import LogTimes

WIDTH = 1 / 127.5
STRATA = 128
RANGE = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
PROCESS = nz.LinearSigmaVP()


def pixels(counts: Tensor) -> nz.GaussianMixture:
    """One dithered pixel whose value k occurs counts[k] times."""
    k = counts.nonzero()
    variance = torch.full((len(k), 1, 1), WIDTH**2 / 12, dtype=torch.float64)
    return nz.GaussianMixture(counts[k[:, 0]] / counts.sum(), k * WIDTH - 1.0, variance)


def moments(data: nz.GaussianMixture, t: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """m_1 and m_2 at times t (n,), float64 (n,), by `draws` points (x0, +-eps) of Sobol's, the same at each time."""
    points = torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(draws, dtype=torch.float64)
    dither, eps = torch.special.ndtri(points[:, 1:]).split(1, dim=1)
    which = torch.searchsorted(data.weights.cumsum(0), points[:, 0].contiguous())
    which = which.minimum(torch.tensor(len(data.weights) - 1))
    x0 = data.means[which] + dither * data.covariances[0, 0, 0].sqrt()
    x0, eps = torch.cat([x0, x0]), torch.cat([eps, -eps])
    bound, denoiser = nz.VariationalBound(nz.UniformTimes()), data.denoiser(PROCESS, nz.W())
    part = torch.stack([bound(denoiser, x0, one.expand(len(x0)), eps) for one in t]) - math.log(math.tau) / 2
    return part.mean(1), part.square().mean(1)


class Curve:
    """m_1 and m_2 between times that are uniform in log(t + d), from their middles."""

    def __init__(self, data: nz.GaussianMixture, count: int = 96, draws: int = 1024) -> None:
        self.u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        self.own = LogTimes(1e-4)
        self.m = moments(data, self.own(self.u, PROCESS), draws)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Linear in log(t + d), constant beyond the first and last."""
        u = torch.log1p(t / self.own.d) / math.log1p(1 / self.own.d)
        place = (u * len(self.u) - 0.5).minimum(torch.tensor(len(self.u) - 1.0)).maximum(torch.tensor(0.0))
        below = place.long().minimum(torch.tensor(len(self.u) - 2))
        first, second = (torch.lerp(m[below], m[below + 1], place - below) for m in self.m)
        return first, second

    def variances(self, times: nz.UniformTimes | LogTimes, fine: int = 2000) -> tuple[float, float]:
        """Of a plain draw and of one of 128 stratified draws."""
        u = (torch.arange(STRATA * fine, dtype=torch.float64) + 0.5) / (STRATA * fine)
        t = times(u, PROCESS)
        q = times.density(t, PROCESS)
        first, second = (
            (m / q**power).reshape(STRATA, fine).mean(1) for power, m in zip((1, 2), self.at(t), strict=True)
        )
        return (second.mean() - first.mean() ** 2).item(), (second - first**2).mean().item()

    def share(self, until: float) -> float:
        """How much of the variance of a plain draw under uniform times lies at t < until."""
        u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
        t = self.own(u, PROCESS)
        (first, second), q = self.at(t), self.own.density(t, PROCESS)
        mean = (first / q).mean()
        part = (second - 2 * mean * first + mean**2) / q
        return (part[t < until].sum() / part.sum()).item()

    def best(self) -> float:
        """The variance of a plain draw under the best density of all, q* ~ sqrt m_2."""
        u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
        t = self.own(u, PROCESS)
        (first, second), q = self.at(t), self.own.density(t, PROCESS)
        return ((second.sqrt() / q).mean() ** 2 - (first / q).mean() ** 2).item()


def report(name: str, data: nz.GaussianMixture) -> list[str]:
    """Lines of one model's table."""
    curve = Curve(data)
    rows = {"UniformTimes()": nz.UniformTimes(), **{f"LogTimes({d:g})": LogTimes(d) for d in RANGE}}
    found = {name: curve.variances(times) for name, times in rows.items()}
    best, (plain, stratified) = curve.best(), (min(found, key=lambda name: found[name][i]) for i in (0, 1))
    lines = [f"{name}: {curve.share(0.01):.1%} of the variance under uniform times lies at t < 0.01", ""]
    lines += [f"{'times':>16} {'plain':>10} {'stratified':>10}"]
    lines += [f"{key:>16} {one:10.2f} {other:10.2f}" for key, (one, other) in found.items()]
    ratio = found["UniformTimes()"][0] / found[plain][0]
    lines += [f"{'q* ~ sqrt m_2':>16} {best:10.2f}", ""]
    lines += [f"best: {plain} plain, {ratio:.0f} times less than uniform and {found[plain][0] / best:.2f} times q*;"]
    lines += [f"      {stratified} stratified, {found[stratified][1]:.2f}", ""]
    return lines


def main() -> int:
    """Both tables, in nats squared for one draw."""
    counts = torch.bincount(nz.embedded().pixels.flatten().long(), minlength=256)
    for name, value in (("all values alike", torch.ones(256)), ("embedded images", counts)):
        print("\n".join(report(name, pixels(value.to(torch.float64)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
