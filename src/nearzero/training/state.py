"""What training changes: weights, their averages, the optimizer's moments, and the number of the step."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError
from nearzero.recipe import Recipe
from nearzero.run import fill
from nearzero.training.averages import Averages
from nearzero.training.engine import Engine


class TrainingState:
    """A denoiser in training. Everything else that training needs is a function of the seed and of `step`.

    `engine` says where and how it computes; by default in this process alone.
    """

    def __init__(self, recipe: Recipe, seed: int, device: torch.device, engine: Engine | None = None) -> None:
        self.engine = Engine(device, alone=True) if engine is None else engine
        device = self.engine.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.denoiser: Denoiser = recipe.denoiser().to(device).train()
            self.objective = recipe.objective().to(device)
        self.losses = self.engine.wrap(
            self.denoiser, self.objective, (recipe.network.channels, recipe.network.size, recipe.network.size)
        )
        self.step = 0
        self.weights: dict[str, Tensor] = dict(self.denoiser.network.named_parameters())
        self.averages = Averages(self.weights, recipe.training)
        self.device = device
        self.trained = {name: weight for name, weight in self.weights.items() if weight.requires_grad}
        if not self.trained:
            raise ArgumentError(
                f"{type(recipe.network).__name__} has nothing to train: no parameter asks for a gradient"
            )
        self.learned = dict(self.objective.named_parameters())
        self.trained |= {f"objective.{name}": weight for name, weight in self.learned.items()}
        self.recipe, self.training = recipe, recipe.training
        self.optimizer = torch.optim.Adam(self.trained.values(), lr=self.training.rate(1))

    def update(self, loss: Tensor | None = None) -> Tensor:
        """One step of Adam and of the average, on the gradient of `loss`, or on the one that is there; its norm."""
        if loss is not None:
            self.forget()
            loss.backward()
        norm = self.clip()
        self.apply()
        return norm

    def forget(self) -> None:
        """Drops the gradient of the step before."""
        self.optimizer.zero_grad(set_to_none=True)

    def clip(self) -> Tensor:
        """The norm of the gradient, float32 () on the device; scales it down to the recipe's `clip` if it has one."""
        self.engine.unscale(self.optimizer)
        weights = [weight for weight in self.trained.values() if weight.grad is not None]
        norm = _whole(nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None]))
        if self.training.clip is not None:
            nn.utils.clip_grads_with_norm_(weights, self.training.clip, norm)
        return norm

    def apply(self) -> None:
        """One step of Adam and of the average, on the gradient that is there."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.rate(self.step + 1)
        self.engine.step(self.optimizer)
        self.step += 1
        self.averages.update(self.step)

    def skip(self) -> None:
        """Counts a step without taking it: weights, moments and averages stay; a loss scaler halves its scale."""
        scaler = self.engine.scaler
        scaler.update(scaler.get_scale() / 2 if scaler.is_enabled() else None)
        self.step += 1

    def averaged(self) -> Denoiser:
        """A copy of the denoiser with the averaged weights, for sampling."""
        with torch.random.fork_rng(devices=[]):
            split = self.engine.strategy == "fsdp"
            denoiser = self.recipe.denoiser().to(self.device) if split else copy.deepcopy(self.denoiser)
        denoiser.eval()
        average = self._network_state(self.averages.kept["ema"])
        fill(denoiser.network, {name: _whole(one) for name, one in average.items()})
        return denoiser

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All that a checkpoint holds, file by file: weights, averages, moments and what the objective learns.

        Every process must ask where fsdp has split them.
        """
        moments = {
            f"{name}.{key}": value
            for name, weight in self.trained.items()
            for key, value in self.optimizer.state.get(weight, {}).items()
        }
        moments |= {f"scaler.{name}": torch.tensor(value) for name, value in self.engine.scaler.state_dict().items()}
        averages = {file: self._network_state(kept) for file, kept in self.averages.kept.items()}
        files = {"weights": self._network_state(self.weights), **averages, "optimizer": moments}
        files |= {"objective": dict(self.learned)} if self.learned else {}
        return {file: {name: _whole(one) for name, one in kept.items()} for file, kept in files.items()}

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        """Puts back every bit of `tensors()`. Raises KeyError or RuntimeError where names or shapes do not fit."""
        own = self.denoiser.network.state_dict()
        fill(self.denoiser.network, {name: _share(one, own.get(name)) for name, one in tensors["weights"].items()})
        if self.learned:
            fill(self.objective, tensors["objective"])
        for file, kept in self.averages.kept.items():
            for name, average in kept.items():
                average.copy_(_share(tensors[file][name], average))
        moments = tensors["optimizer"]
        known = {f"{name}.{key}" for name in self.trained for key in ("step", "exp_avg", "exp_avg_sq")}
        if strange := moments.keys() - known - {f"scaler.{name}" for name in self.engine.scaler.state_dict()}:
            raise KeyError(f"the optimizer holds {min(strange)!r:.100}")
        for name, weight in self.trained.items():
            if f"{name}.step" not in moments:  # it has had no gradient
                self.optimizer.state.pop(weight, None)
                continue
            keys = ("step", "exp_avg", "exp_avg_sq")
            like = (torch.zeros(()), torch.empty_like(weight), torch.empty_like(weight))  # keeps channels_last
            self.optimizer.state[weight] = {
                key: buffer.copy_(_share(moments[f"{name}.{key}"], buffer))
                for key, buffer in zip(keys, like, strict=True)
            }
        kept = {name: moments[f"scaler.{name}"].item() for name in self.engine.scaler.state_dict()}
        self.engine.scaler.load_state_dict(kept)
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


def _whole(tensor: Tensor) -> Tensor:
    """A tensor that fsdp has split, put together, for which every process must ask; any other as it is."""
    split: Any = tensor
    return split.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _share(tensor: Tensor, like: Tensor | None) -> Tensor:
    """What this process holds of a tensor, where fsdp has split `like`; else the tensor itself."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    split: Any = like
    return distribute_tensor(tensor.to(split.device), split.device_mesh, split.placements)
