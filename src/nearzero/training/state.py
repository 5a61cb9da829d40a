"""What a checkpoint holds: weights, their average, the optimizer's moments, and the number of the step."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError, CheckpointError, DiskError, NumericalError
from nearzero.files import new_folder, read_json, write_json
from nearzero.recipe import Recipe
from nearzero.run import Run, fill, load_tensors, load_weights


class TrainingState:
    """A denoiser in training. Everything else that training needs is a function of the seed and of `step`."""

    def __init__(self, recipe: Recipe, seed: int, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.denoiser: Denoiser = recipe.denoiser().to(device).train()
            self.objective = recipe.objective().to(device)
        self.step = 0
        self.weights: dict[str, Tensor] = dict(self.denoiser.network.named_parameters())
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}
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
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.values()), list(self.weights.values()), 1 - self.training.ema.beta(self.step)
            )

    def averaged(self) -> Denoiser:
        """A copy of the denoiser with the averaged weights, for sampling."""
        denoiser = copy.deepcopy(self.denoiser).eval()
        fill(denoiser.network, self._network_state(self.average))
        return denoiser

    def save(self, run: Run) -> Path:
        """Writes checkpoints/STEP whole, then deletes the older ones. Raises NumericalError for what is not finite."""
        moments = {
            f"{name}.{key}": value
            for name, weight in self.trained.items()
            for key, value in self.optimizer.state.get(weight, {}).items()
        }
        kinds = {"weights": {**self.weights, **self.learned}, "averaged weights": self.average, "moments": moments}
        for what, tensors in kinds.items():
            for name, tensor in tensors.items():
                if not bool(tensor.isfinite().all()):
                    raise NumericalError(
                        f"the {what} of {name} are not finite at step {self.step}; lower the learning rate. "
                        "The last good checkpoint is kept"
                    )
        path = run.path / "checkpoints" / f"{self.step:09d}"
        with new_folder(path) as aside:
            _save(self._network_state(self.weights), aside / "weights.safetensors")
            _save(self._network_state(self.average), aside / "ema.safetensors")
            _save(moments, aside / "optimizer.safetensors")
            if self.learned:
                _save(self.learned, aside / "objective.safetensors")
            write_json(aside / "state.json", {"step": self.step, "images": self.step * run.recipe.training.batch})
        for older in path.parent.iterdir():
            if older != path:
                shutil.rmtree(older, ignore_errors=True)
        return path

    def load(self, checkpoint: Path) -> None:
        """Restores every bit that `save` wrote."""
        load_weights(self.denoiser.network, checkpoint / "weights.safetensors")
        if self.learned:
            load_weights(self.objective, checkpoint / "objective.safetensors")
        average, moments = (
            load_tensors(checkpoint / "ema.safetensors"),
            load_tensors(checkpoint / "optimizer.safetensors"),
        )
        try:
            for name in self.weights:
                self.average[name].copy_(average[name])
            for name, weight in self.trained.items():
                if f"{name}.step" not in moments:  # it has had no gradient
                    continue
                keys = ("step", "exp_avg", "exp_avg_sq")
                like = (torch.zeros(()), torch.empty_like(weight), torch.empty_like(weight))  # keeps channels_last
                self.optimizer.state[weight] = {
                    key: buffer.copy_(moments[f"{name}.{key}"]) for key, buffer in zip(keys, like, strict=True)
                }
            self.step = read_json(checkpoint / "state.json")["step"]
        except (KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{checkpoint} does not fit the recipe's network ({error}); restore it or train again"
            ) from error

    def _network_state(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """These parameters, each once however often the network uses it, and the network's own buffers."""
        network = self.denoiser.network
        aliases = {name for name, _ in network.named_parameters(remove_duplicate=False)}
        buffers = {name: value for name, value in network.state_dict().items() if name not in aliases}
        return {**buffers, **parameters}


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise DiskError(f"cannot write {path}: {error}; free some space") from error


def count(parameters: Iterable[Tensor]) -> int:
    """How many numbers the tensors hold."""
    return sum(parameter.numel() for parameter in parameters)
