"""How alike two images are, pixel by pixel: PSNR and SSIM."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nearzero.errors import ArgumentError

WINDOW = 11
SPREAD = 1.5
PAIRS = 128


def psnr(images: Tensor, others: Tensor, *, peak: float | None = None) -> Tensor:
    """The peak signal-to-noise ratio of each pair of images (N, C, H, W) in decibels, float64 (N,):

        10 log10(peak^2 / mean of squared differences)

    Infinite for equal images. `peak` is the span of the pixels: 255 for uint8, and to be said for other kinds.
    Raises ArgumentError for two shapes or a missing peak.

    >>> black = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    >>> psnr(black, black + 255).item()
    0.0
    """
    span = _span(images, others, peak)
    errors = [(x - y).square().flatten(1).mean(1) for x, y in _parts(images, others)]
    return 10 * torch.log10(span**2 / torch.cat(errors))


def ssim(images: Tensor, others: Tensor, *, peak: float | None = None) -> Tensor:
    """The structural similarity of each pair of images (N, C, H, W), float64 (N,), 1 for equal images:

        mean of (2 mu_x mu_y + c1) (2 s_xy + c2) / ((mu_x^2 + mu_y^2 + c1) (s_x^2 + s_y^2 + c2))

    over channels and all places of a Gaussian window of 11 x 11 pixels, standard deviation 1.5, that lies inside the
    image; c1 = (0.01 peak)^2 and c2 = (0.03 peak)^2 are the paper's. Means and variances are the window's.
    `peak` is the span of the pixels: 255 for uint8, and to be said for other kinds. Raises ArgumentError for two
    shapes, a missing peak, or images smaller than the window.

    Reference: Wang et al., Image quality assessment: from error visibility to structural similarity, 2004.

    >>> image = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    >>> ssim(image, image).item()
    1.0
    """
    span = _span(images, others, peak)
    if min(images.shape[2:]) < WINDOW:
        raise ArgumentError(f"SSIM needs images of at least {WINDOW} pixels a side, got {tuple(images.shape[2:])}")
    return torch.cat([_ssim(x, y, span) for x, y in _parts(images, others)])


def _ssim(x: Tensor, y: Tensor, span: float) -> Tensor:
    centre = span / 2  # variances do not depend on it, and lose fewer digits around it
    x, y = x - centre, y - centre
    mean_x, mean_y, square_x, square_y, product = _smoothed(torch.stack([x, y, x * x, y * y, x * y]))
    var_x, var_y, covariance = square_x - mean_x**2, square_y - mean_y**2, product - mean_x * mean_y
    mean_x, mean_y = mean_x + centre, mean_y + centre
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (light * (2 * covariance + c2) / (var_x + var_y + c2)).flatten(1).mean(1)


def _smoothed(values: Tensor) -> Tensor:
    """(..., H, W) under the Gaussian window, at each place where it lies inside: (..., H - 10, W - 10)."""
    height, width = values.shape[-2:]
    return _band(height) @ values @ _band(width).T


def _band(size: int) -> Tensor:
    """The window at each place along one side: (size - 10, size), each row sums to 1."""
    away = torch.arange(size) - torch.arange(size - WINDOW + 1)[:, None] - WINDOW // 2
    weights = torch.exp(-away.double().square() / (2 * SPREAD**2)) * (away.abs() <= WINDOW // 2)
    return weights / weights.sum(1, keepdim=True)


def _parts(images: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some pairs at a time, in float64 on the CPU."""
    for part in zip(images.split(PAIRS), others.split(PAIRS), strict=True):
        x, y = (value.detach().to("cpu", torch.float64) for value in part)
        yield x, y


def _span(images: Tensor, others: Tensor, peak: float | None) -> float:
    if images.ndim != 4 or images.shape != others.shape or not images.numel():
        raise ArgumentError(
            f"pairs of images need one shape (N, C, H, W), got {tuple(images.shape)} and {tuple(others.shape)}"
        )
    if peak is None and {images.dtype, others.dtype} != {torch.uint8}:
        raise ArgumentError(f"say the span of {images.dtype} pixels: peak=1.0 for [0, 1], peak=2.0 for [-1, 1]")
    if peak is not None and not 0 < peak < float("inf"):
        raise ArgumentError(f"the peak must be positive and finite, got {peak}")
    return 255.0 if peak is None else peak
