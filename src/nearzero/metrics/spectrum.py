"""The radial power spectrum: errors near zero noise are of high frequency, where pictures have least power."""

from __future__ import annotations

import torch
from torch import Tensor

from nearzero.errors import ArgumentError, NumericalError

IMAGES = 512


def radial_power(images: Tensor) -> Tensor:
    """The mean power of images (N, C, H, W) at each frequency of 1, 2, ... min(H, W) // 2 waves in a side, float64:

        P(r) = mean of |F(k)|^2 / (H W) over images, channels and all k with r - 1/2 <= |k| < r + 1/2

    F is the plain discrete Fourier transform, |k| is counted in waves in the shorter side. White noise of variance v
    has P = v at every r. Raises ArgumentError for other shapes.
    """
    if images.ndim != 4 or not images.numel() or min(images.shape[2:]) < 2 or images.is_complex():
        raise ArgumentError(f"a spectrum needs images (N, C, H, W) of at least 2 x 2, got {tuple(images.shape)}")
    height, width = images.shape[2:]
    side = min(height, width)
    rows, columns = (torch.fft.fftfreq(size, 1 / side, dtype=torch.float64) for size in (height, width))
    ring = torch.hypot(rows[:, None], columns[None, :]).add(0.5).floor().long().flatten()
    power = torch.zeros(height, width, dtype=torch.float64)
    for part in images.detach().split(IMAGES):
        power += torch.fft.fft2(part.to("cpu", torch.float64)).abs().square().mean(1).sum(0)
    total = torch.zeros(int(ring.max()) + 1, dtype=torch.float64).index_add_(0, ring, power.flatten())
    return (total / ring.bincount() / (len(images) * height * width))[1 : side // 2 + 1]


def spectrum_distance(samples: Tensor, data: Tensor) -> float:
    """The root mean square difference of two sets' log spectra, in decibels, each frequency r counted once:

        sqrt(mean over r of (10 log10 P_samples(r) - 10 log10 P_data(r))^2)

    0 for equal spectra, and not for equal distributions alone: it sees no phases. 3 dB is twice the power. Raises
    ArgumentError for two shapes, NumericalError where a set has no power at some frequency.

    >>> image = torch.randint(256, (8, 1, 16, 16), generator=torch.Generator().manual_seed(0)).double()
    >>> round(spectrum_distance(10 * image, image), 9)
    20.0
    """
    if samples.shape[1:] != data.shape[1:]:
        raise ArgumentError(f"spectra of {tuple(samples.shape[1:])} and {tuple(data.shape[1:])} have no distance")
    spectra = [radial_power(images) for images in (samples, data)]
    for power in spectra:
        empty = torch.nonzero(~(power > 0) | power.isinf()).flatten()
        if len(empty):
            raise NumericalError(
                f"the power at {int(empty[0]) + 1} waves in a side is {power[empty[0]].item()}, and has no logarithm; "
                "are the images all constant?"
            )
    return (10 * torch.log10(spectra[0] / spectra[1])).square().mean().sqrt().item()
