"""What training changes: weights, their averages, the optimizer's moments, and the number of the step."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError
from nearzero.recipe import Recipe
from nearzero.run import fill
from nearzero.training.averages import Averages


class TrainingState:
    """A denoiser in training. Everything else that training needs is a function of the seed and of `step`."""

    def __init__(self, recipe: Recipe, seed: int, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.denoiser: Denoiser = recipe.denoiser().to(device).train()
            self.objective = recipe.objective().to(device)
        self.step = 0
        self.weights: dict[str, Tensor] = dict(self.denoiser.network.named_parameters())
        self.averages = Averages(self.weights, recipe.training.ema)
        self.device = device
        self.trained = {name: weight for name, weight in self.weights.items() if weight.requires_grad}
        if not self.trained:
            raise ArgumentError(
                f"{type(recipe.network).__name__} has nothing to train: no parameter asks for a gradient"
            )
        self.learned = dict(self.objective.named_parameters())
        self.trained |= {f"objective.{name}": weight for name, weight in self.learned.items()}
        self.training = recipe.training
        self.optimizer = torch.optim.Adam(self.trained.values(), lr=self.training.rate(1))

    def update(self, loss: Tensor) -> None:
        """One step of Adam and of the average."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.training.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained.values(), self.training.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.rate(self.step + 1)
        self.optimizer.step()
        self.step += 1
        self.averages.update(self.step)

    def averaged(self) -> Denoiser:
        """A copy of the denoiser with the averaged weights, for sampling."""
        denoiser = copy.deepcopy(self.denoiser).eval()
        fill(denoiser.network, self._network_state(self.averages.kept["ema"]))
        return denoiser

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All that a checkpoint holds, file by file: weights, averages, moments and what the objective learns."""
        moments = {
            f"{name}.{key}": value
            for name, weight in self.trained.items()
            for key, value in self.optimizer.state.get(weight, {}).items()
        }
        averages = {file: self._network_state(kept) for file, kept in self.averages.kept.items()}
        files = {"weights": self._network_state(self.weights), **averages, "optimizer": moments}
        return {**files, "objective": dict(self.learned)} if self.learned else files

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        """Puts back every bit of `tensors()`. Raises KeyError or RuntimeError where names or shapes do not fit."""
        fill(self.denoiser.network, tensors["weights"])
        if self.learned:
            fill(self.objective, tensors["objective"])
        for file, kept in self.averages.kept.items():
            for name, average in kept.items():
                average.copy_(tensors[file][name])
        moments = tensors["optimizer"]
        for name, weight in self.trained.items():
            if f"{name}.step" not in moments:  # it has had no gradient
                continue
            keys = ("step", "exp_avg", "exp_avg_sq")
            like = (torch.zeros(()), torch.empty_like(weight), torch.empty_like(weight))  # keeps channels_last
            self.optimizer.state[weight] = {
                key: buffer.copy_(moments[f"{name}.{key}"]) for key, buffer in zip(keys, like, strict=True)
            }
        self.step = step

    def _network_state(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """These parameters, each once however often the network uses it, and the network's own buffers."""
        network = self.denoiser.network
        aliases = {name for name, _ in network.named_parameters(remove_duplicate=False)}
        buffers = {name: value for name, value in network.state_dict().items() if name not in aliases}
        return {**buffers, **parameters}


def count(parameters: Iterable[Tensor]) -> int:
    """How many numbers the tensors hold."""
    return sum(parameter.numel() for parameter in parameters)
