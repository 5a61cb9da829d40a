"""What a step of training draws: functions of (seed, global sample index) alone.

Step n trains on the global samples n * batch ... (n + 1) * batch - 1. Which image a sample is, its time, its noise
and its flip do not depend on the number of processes, on micro-batches, or on where a run was stopped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearzero.data.images import Images
from nearzero.randomness import Stream, normal, order, uniform, uniforms, words
from nearzero.recipe import Recipe


def batch(recipe: Recipe, images: Images, seed: int, step: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Data x0, uniform numbers u and noise eps of step `step`: (B, C, H, W) float32, (B,) float64, (B, C, H, W)."""
    index = samples(recipe, step)
    x0, eps = examples(recipe, images, seed, index, device)
    return x0, uniform(seed, Stream.TIME, index), eps


def samples(recipe: Recipe, step: int) -> Tensor:
    """The global sample indices of a step, int64 (B,)."""
    size = recipe.training.batch
    return torch.arange(step * size, (step + 1) * size)


def examples(recipe: Recipe, images: Images, seed: int, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Data x0 and noise eps of global samples `index` (b,), both float32 (b, C, H, W) on the device."""
    pixels = images.pixels[order(seed, index, len(images))].to(device)
    if recipe.training.flip:  # before the codec, which may subtract a mean image that is not symmetric
        mirrored = (uniform(seed, Stream.FLIP, index) < 0.5).to(device)
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    home = index.to(device) if device.type == "cuda" else index  # draws need float64, which MPS lacks
    if recipe.dither:
        pixels = pixels + (uniforms(seed, Stream.DITHER, home, tuple(pixels.shape[1:])) - 0.5).to(device)
    x0 = recipe.codec.encode(pixels)
    return x0, normal(seed, Stream.NOISE, home, tuple(x0.shape[1:])).to(device)


def network_seed(seed: int, step: int, row: int) -> int:
    """A seed of 32 bits for torch's own generator during the micro-batch that starts at a row of a step's batch."""
    return int(words(seed, Stream.NETWORK, torch.tensor([step]), row + 1)[0][0, row].item())
