"""Export B: what diffusers finds under the name of nearzero in a model_index.json.

diffusers looks these up in the package `nearzero` itself, once that is imported, and says so where it is not. Opened
by a stock class, the config of a shared model fails: it never loads unshared.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config

from nearzero.conditioning import Shared
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.files import read_json, to_bytes, write_json
from nearzero.interop.sharing import arguments, share_timesteps, shared_by
from nearzero.interop.table import filled
from nearzero.networks.foreign import ARCHITECTURES
from nearzero.process.discrete import MAX_STEPS
from nearzero.recipe import Recipe
from nearzero.registry import decode
from nearzero.sampling import sample

__all__ = ["ModelMixin", "SchedulerMixin"]

GUARD = "shared by nearzero, which must be imported: "
"""What stands before a value of a shared model's config, which no stock class then takes."""


def guarded(name: str) -> str:
    """The entry of a class's config that says GUARD: without it the class cannot be made."""
    return "time_embedding_type" if name.startswith("UNet") else "num_layers"


class _Shared(ModelMixin, ConfigMixin):
    """What the classes below add to diffusers' own: `timestep_sharing`, the arguments of share_timesteps."""

    def __init__(self, timestep_sharing: Mapping[str, Any], **config: Any) -> None:
        key = guarded(type(self).__name__.removeprefix("Shared"))
        value = config.get(key)
        if isinstance(value, str) and value.startswith(GUARD):
            config[key] = json.loads(value.removeprefix(GUARD))
        super().__init__(**config)
        sharing = dict(timestep_sharing)
        if any(not isinstance(value, int | float) or not 0 < value <= MAX_STEPS for value in sharing.values()):
            raise CheckpointError(f"timestep_sharing {sharing!s:.200} is none; export the model anew")
        self.register_to_config(timestep_sharing=sharing)
        share_timesteps(self, **sharing)

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """config.json, in which GUARD stands before one value."""
        super().save_config(save_directory, push_to_hub, **kwargs)
        path = Path(save_directory) / "config.json"
        shared = shared_by(self)
        if shared is None:
            raise CheckpointError(
                f"this {type(self).__name__} is not shared any more; save the model that it was made of, or share it"
            )
        config = {**read_json(path), "timestep_sharing": arguments(shared)}
        key = guarded(type(self).__name__.removeprefix("Shared"))
        write_json(path, {**config, key: GUARD + json.dumps(self.config[key])})  # pyright: ignore[reportIndexIssue]


def shared_class(name: str) -> type:
    """The subclass Shared<name> of a class of diffusers, as model_index.json names it."""
    base = getattr(diffusers, name)
    own = inspect.signature(base.__init__).parameters.values()
    extra = inspect.Parameter("timestep_sharing", inspect.Parameter.KEYWORD_ONLY)

    def init(self: Any, **config: Any) -> None:
        _Shared.__init__(self, **config)

    init.__signature__ = inspect.Signature([*own, extra])  # pyright: ignore[reportFunctionMemberAccess]
    told = {"__module__": "nearzero", "__doc__": f"{name} with shared timesteps.", "__init__": init}
    return type(f"Shared{name}", (_Shared, base), told)


SHARED = {f"Shared{name}": shared_class(name) for name in ARCHITECTURES}
"""Every class of export B that is a model of diffusers with shared timesteps."""
globals().update(SHARED)


def with_sharing(model: Any, shared: Shared) -> Any:
    """The same weights as a model of the class Shared<its class>, shared as the model is by a hook."""
    name = next(kind.__name__ for kind in type(model).__mro__ if kind.__name__ in ARCHITECTURES)
    config = {key: value for key, value in dict(model.config).items() if not key.startswith("_")}
    config.pop("timestep_sharing", None)
    return filled(
        SHARED[f"Shared{name}"](timestep_sharing=arguments(shared), **config), model.state_dict(), model.dtype
    )


class NearzeroModel(ModelMixin, ConfigMixin):
    """The network of a run with its recipe: `denoiser` is what nearzero samples, in continuous time if it likes."""

    @register_to_config
    def __init__(self, recipe: dict[str, Any]) -> None:
        super().__init__()
        made = decode(recipe)
        if not isinstance(made, Recipe):
            raise CheckpointError("the config of this model holds no recipe; export the run anew")
        self.recipe, self.network = made, made.network.build()

    @property
    def denoiser(self) -> Denoiser:
        """The network in its axes."""
        return self.recipe.denoiser(self.network)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | float, return_dict: bool = True) -> Any:
        """The estimate (x0, eps) of sample (B, C, H, W) at nearzero's time t, whatever `return_dict`."""
        return self.denoiser(sample, timestep)


class NearzeroPipeline(DiffusionPipeline):
    """Draws images of an exported run by its own solver and grid; `nz.NearzeroPipeline.from_pretrained(folder)`."""

    model: NearzeroModel

    def __init__(self, model: NearzeroModel) -> None:
        super().__init__()
        self.register_modules(model=model)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seeds: list[int] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """`batch_size` images, or one for each of `seeds`, as the run's own command draws them.

        Without seeds they come from `generator`, one or one for each image, or torch's global one. `output_type` is
        "pil", "np" (N, H, W, C) or "pt" (N, C, H, W), the last two in [0, 1].
        """
        recipe = self.model.recipe
        if output_type not in ("pil", "np", "pt"):
            raise ArgumentError(f'output_type {output_type!r} is not known; take "pil", "np" or "pt"')
        if self.model.dtype != torch.float32:
            raise ArgumentError(f"a time in {self.model.dtype} is rounded; load this pipeline in torch.float32")
        if seeds is None:
            several = generator if isinstance(generator, list) else [generator] * batch_size
            seeds = [int(torch.randint(2**32, (), generator=one, dtype=torch.int64)) for one in several]
        x = sample(
            recipe.sampled(self.model.denoiser),
            (recipe.network.channels, recipe.network.size, recipe.network.size),
            solver=recipe.solver,
            grid=recipe.grid,
            steps=num_inference_steps or recipe.steps,
            seeds=seeds,
            dtype=torch.float32,
        )
        pixels = to_bytes(recipe.codec.decode(x))
        images: Any = pixels.float() / 255
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


for _class in (NearzeroModel, NearzeroPipeline):
    _class.__module__ = "nearzero"  # where diffusers is to look them up
