"""The loss at each noise level: EDM's Fig. 5a."""

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
    draw,
    evaluating,
    part,
    slices,
    spread,
)
from nearzero.errors import ArgumentError
from nearzero.level import check_times, expand
from nearzero.parameterization import regression_target


@dataclass(frozen=True, eq=False)
class NoiseLevels:
    """At each time, float64 (n,): sigma / alpha, the mean loss, its standard deviation over images, and `silent`.

    `silent` is the loss of a network that answers 0, as one with a zero-initialised last layer does before training.
    """

    times: Tensor
    noise: Tensor
    value: Tensor
    std: Tensor
    silent: Tensor


def loss_by_noise(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    times: Tensor | None = None,
    generator: torch.Generator | None = None,
    condition: Mapping[str, Tensor] | None = None,
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NoiseLevels:
    """The unweighted loss of the network's output at each time, without gradients, over images x0 (B, *shape):

        loss(t) = E mean |F(x_t, t) - F*|^2,   x_t = alpha x0 + sigma eps

    `times` is a float tensor (n,); by default about 25 timesteps, equally spaced in log t. The noise is drawn once for
    all of them, from `generator` (CPU; a fixed one by default). `progress(done, times)` is called as times are done.
    Raises ArgumentError where F has no target, NumericalError where an answer is not finite.

    Reference: Karras et al., Elucidating the design space, NeurIPS 2022, Fig. 5a.

    >>> delta = PointCloud(torch.zeros(1, 64)).denoiser(LinearVP())
    >>> loss_by_noise(delta, torch.zeros(10, 64), times=torch.tensor([0.1, 1.0])).value.max() < 1e-12
    tensor(True)
    """
    check_images(x0, condition)
    t = check_times(Timesteps(denoiser.process).spread(25) if times is None else times, denoiser.process.end)
    if t.ndim != 1 or not len(t):
        raise ArgumentError(f"times must be (n,) with n at least 1, got {tuple(t.shape)}")
    eps, batch = draw(x0, generator), batch_size(x0, batch)
    losses = torch.zeros(2, len(t), len(x0), dtype=torch.float64)
    level = denoiser.process(t.double().cpu())
    with torch.inference_mode(), evaluating(denoiser):
        for i in range(len(t)):
            for images in slices(len(x0), batch):
                alpha, sigma = level.alpha[i].item(), level.sigma[i].item()
                x = alpha * x0[images] + sigma * eps[images]
                F, here, k = denoiser.output(x, t[i], **part(condition, images))
                a, b = (expand(value, x) for value in regression_target(here, k))
                target = a * x0[images] + b * eps[images]
                for answer, row in ((check_finite(F, t[i]), losses[0]), (torch.zeros_like(F), losses[1])):
                    row[i, images] = (answer - target).double().flatten(1).square().mean(1).cpu()
            if progress is not None:
                progress(i + 1, len(t))
    mean, silent = losses.mean(2)
    return NoiseLevels(t.double().cpu(), level.sigma / level.alpha, mean, spread(losses[0]), silent)
