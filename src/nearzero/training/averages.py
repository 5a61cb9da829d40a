"""Running averages of the weights, which samples are made with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nearzero.recipe import Training


class Averages:
    """The averages of a run. `kept` is all of their state: a set of tensors, named like the weights, for each file."""

    def __init__(self, weights: Mapping[str, Tensor], training: Training) -> None:
        self.weights = dict(weights)
        self.averages, self.batch = training.kept(), training.batch
        self.kept = {file: {name: w.detach().clone() for name, w in weights.items()} for file in self.averages}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves each average towards the weights after step `step`, counted from 1: a + (1 - beta) (w - a)."""
        weights = list(self.weights.values())
        for file, average in self.averages.items():
            torch._foreach_lerp_(list(self.kept[file].values()), weights, 1 - average.beta(step, self.batch))
