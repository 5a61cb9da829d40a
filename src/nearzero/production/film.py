"""A film strip: how noise becomes an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nearzero.codec import Codec
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError
from nearzero.files import contact_sheet, to_bytes
from nearzero.sampling import State, trajectory

SHOWN = 8
"""How many seeds a film shows."""
FRAMES = 10
MEMORY = 2**30
"""Bytes of paths held at once."""


@torch.no_grad()
def film(
    denoiser: Denoiser, codec: Codec, shape: tuple[int, ...], seeds: Sequence[int], how: Mapping[str, Any]
) -> list[Tensor]:
    """For each seed a strip, uint8 (C, H', W'): x_t at about ten of the solver's stops, the estimate of x0 below.

    x_t is drawn as x_t / |(alpha, sigma)|, so that noise of any level is visible. Where the denoiser does not exist its
    estimate is left white. `how` is the other arguments of `trajectory`.
    """
    stages = (how["steps"] or how["nfe"]) + 1
    size = max(1, MEMORY // (4 * math.prod(shape) * stages))
    strips: list[Tensor] = []
    for start in range(0, len(seeds), size):
        path = trajectory(denoiser, shape, seeds=seeds[start : start + size], **how)
        stops = torch.linspace(0, len(path) - 1, min(FRAMES, len(path)), dtype=torch.float64).round().tolist()
        frames = torch.stack([_pictures(denoiser, codec, path[int(stop)]) for stop in stops])  # (frames, 2, N, C, H, W)
        strips += [_strip(one) for one in frames.permute(2, 1, 0, 3, 4, 5)]
    return strips


def _pictures(denoiser: Denoiser, codec: Codec, state: State) -> Tensor:
    """The states and the estimates, uint8 (2, N, C, H, W)."""
    level = denoiser.process(torch.tensor(state.t, dtype=torch.float64))
    seen = to_bytes(codec.decode(state.x / torch.hypot(*level).item()))
    if state.t == 0:
        return torch.stack([seen, seen])
    try:
        estimate = to_bytes(codec.decode(denoiser(state.x, state.t).x0))
    except ArgumentError:
        estimate = torch.full_like(seen, 255)
    return torch.stack([seen, estimate])


def _strip(frames: Tensor) -> Tensor:
    """uint8 (2, frames, C, H, W) as one picture, with a white line between it and the next."""
    sheet = contact_sheet(frames.flatten(0, 1), frames.shape[1])
    gap = max(2, frames.shape[-1] // 8)
    return torch.cat([sheet, torch.full_like(sheet[:, :gap], 255)], 1)
