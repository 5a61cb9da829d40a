"""How fast the network changes with t: the Lipschitz constants of E-TSDM's Eq. 8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nearzero.denoiser import Denoiser
from nearzero.diagnostics.probe import (
    Timesteps,
    batch_size,
    check_finite,
    check_images,
    check_pairs,
    draw,
    evaluating,
    part,
    slices,
    spread,
)
from nearzero.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class LipschitzCurve:
    """K of neighbouring times: `value[i]` compares times[i] with until[i]; all float64 (n,).

    `value` and its standard error `stderr` (over images) are per timestep, counted in `steps`.
    """

    times: Tensor
    value: Tensor
    stderr: Tensor
    until: Tensor
    steps: Timesteps

    @property
    def per_unit_time(self) -> Tensor:
        """K for a unit of t instead of a timestep."""
        return self.value * self.gap / (self.until - self.times)

    @property
    def gap(self) -> Tensor:
        """How many timesteps lie between the two times of each pair."""
        return self.steps.number(self.until) - self.steps.number(self.times)

    @property
    def max(self) -> float:
        """The largest K, per timestep."""
        return self.value.max().item()

    @property
    def total_variation(self) -> float:
        """sum_i E |F(x, t_i) - F(x, t_i')| over these pairs: how far the answer moves in all, however it is spread."""
        return (self.value * self.gap).sum().item()

    def between(self, start: float, end: float) -> LipschitzCurve:
        """The pairs whose first time lies in (start, end]. Raises ArgumentError where there are none."""
        here = (self.times > start) & (self.times <= end)
        if not bool(here.any()):
            raise ArgumentError(f"the curve has no pair of times that starts in ({start:g}, {end:g}]")
        return self._part(here)

    def around(self, interval: float) -> LipschitzCurve:
        """The pairs up to twice as many timesteps as lie below the time `interval`."""
        k = self.steps.number(self.times)
        return self._part(k.round(decimals=6) <= 2 * self.steps.number(k.new_tensor(interval)).round(decimals=6))

    def _part(self, here: Tensor) -> LipschitzCurve:
        return LipschitzCurve(self.times[here], self.value[here], self.stderr[here], self.until[here], self.steps)

    @property
    def exponent(self) -> float:
        """p of K ~ t^-p: minus the least-squares slope of log K against log t, over these pairs.

        Raises ArgumentError where there are fewer than two, one starts at 0, or K is 0.
        """
        if len(self.times) < 2 or not bool(((self.times > 0) & (self.value > 0)).all()):
            raise ArgumentError("an exponent needs at least two pairs of times above 0, with K above 0 at each")
        x, y = (self.times * self.until).sqrt().log(), self.value.log()
        x, y = x - x.mean(), y - y.mean()
        return -((x * y).sum() / (x * x).sum()).item()


def lipschitz(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    times: Tensor | None = None,
    generator: torch.Generator | None = None,
    condition: Mapping[str, Tensor] | None = None,
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LipschitzCurve:
    """Eq. 8 on the network's own output F, without gradients, over images x0 (B, *shape):

        K(t, t') = E |F(x_t, t) - F(x_t, t')| / |t - t'|,   x_t = alpha_t x0 + sigma_t eps

    with the Euclidean norm, not squared and not divided by the dimension, and |t - t'| in timesteps of the process
    (of 1/1000 of its range if it has none: `probe.Timesteps`). `times` is (n + 1,) increasing, whose neighbours are
    compared, or (n, 2) pairs; by default all timesteps: value[i] = K(i, i + 1). The noise eps is drawn once for all
    pairs, from `generator` (CPU; a fixed one by default). Where the network is told and shown the same at both times K
    is exactly 0, without an evaluation. `condition` holds tensors with an entry for each image; `batch` images go
    through the network at once (by default up to 256, fewer of large ones); `progress(done, pairs)` is called as pairs
    are done. Raises ArgumentError for bad times, NumericalError where an answer is not finite.

    Reference: Yang et al., Lipschitz singularities in diffusion models, ICLR 2024, Eq. 8.

    >>> process, t = DiscreteVP.linear(), torch.tensor([0.001, 0.002, 0.003])
    >>> K = lipschitz(PointCloud(torch.zeros(1, 400)).denoiser(process), torch.zeros(100, 400), times=t)
    >>> sigma = process(t).sigma
    >>> K.value / (20 * (1 - sigma[:-1] / sigma[1:]))       # the law of data at one point, sqrt(d) = 20
    tensor([1.0004, 1.0004], dtype=torch.float64)
    """
    check_images(x0, condition)
    pairs = check_pairs(times, denoiser.process)
    probe = _Probe(denoiser, x0, draw(x0, generator), pairs)
    moves = (probe.told.diff(dim=1) != 0) | (probe.scale.diff(dim=1) != 0)
    norms = torch.zeros(len(pairs), len(x0), dtype=torch.float64)
    batch = batch_size(x0, batch)
    half, step = max(1, batch // 2), max(1, min(4, batch // (2 * len(x0))))
    with torch.inference_mode(), evaluating(denoiser):
        for start in range(0, len(pairs), step):
            group = [i for i in range(start, min(start + step, len(pairs))) if moves[i]]
            for images in slices(len(x0), half) if group else ():
                norms[group, images] = probe.distances(group, images, part(condition, images))
            if progress is not None:
                progress(min(start + step, len(pairs)), len(pairs))
    steps = Timesteps(denoiser.process)
    t, until = pairs.double().unbind(1)
    gap = steps.number(until) - steps.number(t)
    return LipschitzCurve(t, norms.mean(1) / gap, spread(norms) / len(x0) ** 0.5 / gap, until, steps)


class _Probe:
    """Asks the network about pairs of times, both times of several pairs in one call."""

    def __init__(self, denoiser: Denoiser, x0: Tensor, eps: Tensor, pairs: Tensor) -> None:
        self.denoiser, self.x0, self.eps, self.pairs = denoiser, x0, eps, pairs
        level = denoiser.process(pairs.flatten().double())
        self.told = denoiser.conditioning(pairs.flatten(), level).reshape(-1, 2)  # edges are compared in t's dtype
        self.scale = denoiser.parameterization.input_scale(level).reshape(-1, 2)
        self.alpha, self.sigma = (value.reshape(-1, 2)[:, 0].tolist() for value in level)

    def distances(self, group: list[int], images: slice, condition: Mapping[str, Tensor]) -> Tensor:
        """|F(x_t, t) - F(x_t, t')| for each pair of the group and each image, float64 on the CPU."""
        x0, eps = self.x0[images], self.eps[images]
        x = torch.stack([self.alpha[i] * x0 + self.sigma[i] * eps for i in group])
        told, scale = (value[group].T.reshape(-1).to(x) for value in (self.told, self.scale))  # all t, then all t'
        x_in = torch.cat([x, x]) * scale.reshape(-1, *(1,) * x0.ndim)
        c = told.repeat_interleave(len(x0))
        repeated = {name: value.repeat(len(x_in), *(1,) * (value.ndim - 1)) for name, value in condition.items()}
        answer = check_finite(self.denoiser.ask(x_in.flatten(0, 1), c, **repeated), self.pairs[group])
        return torch.sub(*answer.chunk(2)).flatten(1).to("cpu", torch.float64).norm(dim=1).reshape(len(group), -1)
