"""Draws of training as pure functions of (seed, stream, global sample index).

Nothing here has a state, so the state of a training loop is one integer: how many samples it has seen. The bits
are those of Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011), written with
64-bit integer tensor operations, so they are equal on every device.
"""

from __future__ import annotations

import functools
import math
from enum import IntEnum

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Stream(IntEnum):
    """What a draw is for: equal indices in two streams are independent."""

    TIME = 0
    NOISE = 1
    FLIP = 2
    ORDER = 3
    NETWORK = 4
    PROBE = 5
    DITHER = 6


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32 with 10 rounds: four int64 tensors of 32-bit words in, four out, elementwise."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]  # the low 64 bits, whatever their sign
        x0, x1, x2, x3 = (p1 >> 32 & _WORD) ^ x1 ^ k0, p1 & _WORD, (p0 >> 32 & _WORD) ^ x3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return x0, x1, x2, x3


def words(seed: int, stream: Stream, index: Tensor, count: int) -> tuple[Tensor, ...]:
    """Four int64 tensors (B, count) of 32-bit words for the global sample indices `index`, int64 (B,)."""
    block = torch.arange(count, device=index.device).expand(len(index), count)
    low, high = (index & _WORD)[:, None].expand_as(block), (index >> 32)[:, None].expand_as(block)
    kind = torch.full_like(block, int(stream))
    return philox((block, kind, low, high), (seed & _WORD, seed >> 32 & _WORD))


def uniform(seed: int, stream: Stream, index: Tensor) -> Tensor:
    """One float64 in the open interval (0, 1) for each index, shape (B,).

    The values are (k + 1/2) / 2^52, each exact in float64 (with 2^53 the last one would round to 1).
    """
    w0, w1, _, _ = (word[:, 0] for word in words(seed, stream, index, 1))
    return ((w0 << 20 | w1 >> 12).to(torch.float64) + 0.5) / 2.0**52


def uniforms(seed: int, stream: Stream, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Float32 numbers uniform in (0, 1) for each index, shape (B, *shape): (k + 1/2) / 2^23, each exact."""
    size = math.prod(shape)
    drawn = torch.stack(words(seed, stream, index, -(-size // 4)), dim=-1).flatten(1)[:, :size] >> 9
    return ((drawn.to(torch.float64) + 0.5) / 2.0**23).to(torch.float32).reshape(len(index), *shape)


def normal(seed: int, stream: Stream, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 numbers for each index, shape (B, *shape), by Box and Muller.

    >>> a = normal(7, Stream.NOISE, torch.arange(100), (3,))
    >>> torch.equal(a[40:50], normal(7, Stream.NOISE, torch.arange(40, 50), (3,)))
    True
    """
    size = math.prod(shape)
    w = words(seed, stream, index, -(-size // 4))
    radius = [torch.sqrt(-2 * torch.log((word.to(torch.float64) + 0.5) / 2.0**32)) for word in w[:2]]
    angle = [word.to(torch.float64) * (math.tau / 2.0**32) for word in w[2:]]
    pairs = [r * f(a) for r, a in zip(radius, angle, strict=True) for f in (torch.cos, torch.sin)]
    return torch.stack(pairs, dim=-1).flatten(1)[:, :size].reshape(len(index), *shape).to(torch.float32)


def step_seed(seed: int, step: int) -> int:
    """A seed of 32 bits for torch's own generator during a training step."""
    return int(words(seed, Stream.NETWORK, torch.tensor([step]), 1)[0].item())


def probe_generator(seed: int) -> torch.Generator:
    """A generator for measurements, unlike torch's of the same seed, with which their data may have been drawn."""
    return torch.Generator().manual_seed(int(words(seed, Stream.PROBE, torch.tensor([0]), 1)[0].item()))


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, size: int) -> Tensor:
    """The order of one epoch: a permutation of range(size), int64 (size,), by sorting 63-bit words."""
    w0, w1, _, _ = (word[0] for word in words(seed, Stream.ORDER, torch.tensor([epoch]), size))
    return (w0 << 31 | w1 >> 1).argsort(stable=True)


def order(seed: int, index: Tensor, size: int) -> Tensor:
    """Which of `size` images each global sample index trains on: every image once an epoch, reshuffled each epoch."""
    epochs = torch.div(index, size, rounding_mode="floor")
    chosen = torch.empty_like(index)
    for epoch in epochs.unique().tolist():
        here = epochs == epoch
        chosen[here] = permutation(seed, epoch, size)[index[here] % size]
    return chosen
