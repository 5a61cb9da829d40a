"""Running averages of the weights, which samples are made with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nearzero.recipe import EMA


class Averages:
    """The averages of a run: one set of tensors, named like the weights, for each file of a checkpoint."""

    def __init__(self, weights: Mapping[str, Tensor], ema: EMA) -> None:
        self.weights = dict(weights)
        self.ema = ema
        self.kept = {"ema": {name: weight.detach().clone() for name, weight in weights.items()}}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the averages towards the weights after step `step`, counted from 1."""
        torch._foreach_lerp_(list(self.kept["ema"].values()), list(self.weights.values()), 1 - self.ema.beta(step))
