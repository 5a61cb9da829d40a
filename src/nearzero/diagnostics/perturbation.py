"""How far a small error in the input moves the estimate of the data: E-TSDM's Fig. 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nearzero.denoiser import Denoiser
from nearzero.diagnostics.probe import batch_size, check_finite, check_images, draw, evaluating, part, slices, spread
from nearzero.errors import ArgumentError
from nearzero.randomness import probe_generator


@dataclass(frozen=True, eq=False)
class Perturbation:
    """The mean error `value` and its standard error `stderr` at each scale, float64 (n,), at the time t."""

    scales: Tensor
    value: Tensor
    stderr: Tensor
    t: float


def perturbation(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    t: float,
    scales: Sequence[float] = (0.05, 0.1, 0.2, 0.3),
    generator: torch.Generator | None = None,
    condition: Mapping[str, Tensor] | None = None,
    batch: int | None = None,
) -> Perturbation:
    """How far noise of a given scale, added to x_t, moves the estimate of x0, over images x0 (B, *shape):

        error(s) = E rms( x0^(x_t + s n, t) - x0^(x_t, t) ),   x_t = alpha x0 + sigma eps,  n ~ N(0, I)

    with the root mean square over the numbers of an image (its own choice: the paper leaves the norm open). eps and n
    are drawn once for all scales, from `generator` (CPU; a fixed one by default). An estimate that repeats its input
    has error(s) = s / alpha; one that ignores it, 0. Raises ArgumentError for a time or scale that is none.

    Reference: Yang et al., Lipschitz singularities in diffusion models, ICLR 2024, Fig. 2.

    >>> still = Denoiser(Zero(), LinearVP(), Epsilon(), Time())          # x0^ = x / alpha
    >>> perturbation(still, torch.zeros(50, 1000), t=0.0, scales=[0.1]).value
    tensor([0.1001], dtype=torch.float64)
    """
    check_images(x0, condition)
    scales = [float(scale) for scale in scales]
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise ArgumentError(f"perturbation needs positive scales, got {scales}")
    generator = generator or probe_generator(0)
    eps, n = draw(x0, generator), draw(x0, generator)
    errors = torch.zeros(len(scales), len(x0), dtype=torch.float64)
    time = torch.tensor([t], dtype=torch.float64)
    alpha, sigma = (value.item() for value in denoiser.process(time))
    with torch.inference_mode(), evaluating(denoiser):
        for images in slices(len(x0), batch_size(x0, batch)):
            told = part(condition, images)
            x = alpha * x0[images] + sigma * eps[images]
            clean = check_finite(denoiser(x, t, **told).x0, time)
            for i, scale in enumerate(scales):
                moved = check_finite(denoiser(x + scale * n[images], t, **told).x0, time)
                errors[i, images] = (moved - clean).double().flatten(1).square().mean(1).sqrt().cpu()
    stderr = spread(errors) / len(x0) ** 0.5
    return Perturbation(torch.tensor(scales, dtype=torch.float64), errors.mean(1), stderr, t)
