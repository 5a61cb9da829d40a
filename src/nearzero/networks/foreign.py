"""The architectures of diffusers that nearzero knows: how each is asked, and where it embeds the timestep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from nearzero.errors import ArgumentError, CheckpointError


class Asked(nn.Module, ABC):
    """A model of diffusers behind the door F = network(x (B, ...), c (B,), **condition), its timesteps counted in c.

    The model may have any dtype: x is cast to it and F back to x's. What it is told besides x and c are the tensors of
    `condition`, with one entry for each example and diffusers' own names. `flow` says whether c is sigma * steps of
    flow matching rather than DDPM's 0 .. steps - 1. Raises ArgumentError for a condition that is missing or unknown,
    and for c in half precision, which does not hold a timestep.
    """

    takes: tuple[str, ...] = ()
    """Names of conditions that may be left out."""

    def __init__(self, model: nn.Module, *, flow: bool, steps: int) -> None:
        super().__init__()
        self.model: Any = model
        self.flow, self.steps = flow, steps

    def needs(self) -> tuple[str, ...]:
        """Names of the conditions that this model must be told."""
        return ()

    @abstractmethod
    def ask(self, x: Tensor, c: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The model's own answer, in diffusers' convention of calling it."""

    def forward(self, x: Tensor, c: Tensor, **condition: Tensor) -> Tensor:
        """F, in x's dtype."""
        needed = self.needs()
        for name in needed:
            if name not in condition:
                raise ArgumentError(
                    f"{_name(self.model)} must be told {name}; give it as condition={{{name!r}: tensor}}"
                )
        if wrong := sorted(condition.keys() - {*needed, *self.takes}):
            known = ", ".join((*needed, *self.takes)) or "nothing"
            raise ArgumentError(f"{_name(self.model)} cannot be told {', '.join(wrong)}; it takes {known}")
        if c.dtype in (torch.float16, torch.bfloat16):
            raise ArgumentError(
                f"a timestep in {c.dtype} is rounded, 999 to 1000; keep x in float32, whatever the model is in"
            )
        return self.ask(x.to(self.model.dtype), c, condition).to(x.dtype)

    def checkpoint(self) -> None:
        """Computes features again in the backward pass instead of keeping them: less memory, more time."""
        self.model.enable_gradient_checkpointing()


class AskedUNet(Asked):
    """UNet2DModel: images, with class labels where the model has classes."""

    def needs(self) -> tuple[str, ...]:
        """The labels of a model that has classes."""
        return () if self.model.class_embedding is None else ("class_labels",)

    def ask(self, x: Tensor, c: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Timesteps as the model's embedding takes them: any number, a row of its table, or the logarithm of sigma.

        A Fourier model, told c = log sigma, answers its score: F = -sigma score is the noise eps.
        """
        kind = time_embedding(self.model)
        if kind == "fourier":
            sigma = c.exp()
            score = self.model(x, sigma, return_dict=False, **condition)[0]
            return -sigma.reshape(-1, *(1,) * (x.ndim - 1)).to(score) * score
        told = _rows(c, self.model.time_proj.num_embeddings) if kind == "learned" else c
        return self.model(x, told, return_dict=False, **condition)[0]


class AskedConditionalUNet(Asked):
    """UNet2DConditionModel: Stable Diffusion 1 and 2, and XL, whose sizes and pooled text go into added_cond_kwargs."""

    takes = ("encoder_attention_mask", "timestep_cond")
    added = ("text_embeds", "time_ids")

    def needs(self) -> tuple[str, ...]:
        """The text, XL's pooled text and sizes, the labels of a model that has classes."""
        added = self.added if self.model.config.addition_embed_type == "text_time" else ()
        labels = () if self.model.class_embedding is None else ("class_labels",)
        return ("encoder_hidden_states", *added, *labels)

    def ask(self, x: Tensor, c: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """model(x, c, ..., added_cond_kwargs={...})."""
        added = {name: value for name, value in condition.items() if name in self.added}
        others = {name: value for name, value in condition.items() if name not in added}
        return self.model(x, c, added_cond_kwargs=added or None, return_dict=False, **others)[0]


class AskedSD3(Asked):
    """SD3Transformer2DModel: Stable Diffusion 3, told sigma * 1000."""

    def needs(self) -> tuple[str, ...]:
        """The text and its pooled form."""
        return ("encoder_hidden_states", "pooled_projections")

    def ask(self, x: Tensor, c: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """model(x, timestep=c, ...)."""
        return self.model(x, timestep=c, return_dict=False, **condition)[0]


class AskedFlux(Asked):
    """FluxTransformer2DModel on latents (B, C, H, W), in patches of 2 x 2; it takes sigma and multiplies it by 1000."""

    def needs(self) -> tuple[str, ...]:
        """The text, its pooled form, and the guidance of a model that was distilled with it."""
        guidance = ("guidance",) if self.model.config.guidance_embeds else ()
        return ("encoder_hidden_states", "pooled_projections", *guidance)

    def ask(self, x: Tensor, c: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """One token for each patch, its place in img_ids; the text has the place 0."""
        if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2:
            raise ArgumentError(
                f"Flux cuts (B, C, H, W) into patches of 2 x 2, got {tuple(x.shape)}; take an even size"
            )
        B, C, H, W = x.shape
        h, w = H // 2, W // 2
        tokens = x.reshape(B, C, h, 2, w, 2).permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, 4 * C)
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(h * w, 3).to(x)
        text = places.new_zeros(condition["encoder_hidden_states"].shape[1], 3)
        F = self.model(tokens, timestep=c / 1000, img_ids=places, txt_ids=text, return_dict=False, **condition)[0]
        return F.reshape(B, h, w, C, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)


class AskedPixArt(Asked):
    """PixArtTransformer2DModel: PixArt alpha and sigma; the larger alpha is told resolution and aspect ratio."""

    takes = ("encoder_attention_mask",)
    added = ("resolution", "aspect_ratio")

    def needs(self) -> tuple[str, ...]:
        """The text, and the size where the model embeds it."""
        return ("encoder_hidden_states", *(self.added if self.model.use_additional_conditions else ()))

    def ask(self, x: Tensor, c: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """model(x, timestep=c, ..., added_cond_kwargs={...})."""
        added = {name: condition.get(name) for name in self.added}
        others = {name: value for name, value in condition.items() if name not in added}
        return self.model(x, timestep=c, added_cond_kwargs=added, return_dict=False, **others)[0]


class AskedDiT(Asked):
    """DiTTransformer2DModel: class labels, of which one more than there are classes stands for none."""

    def needs(self) -> tuple[str, ...]:
        """The labels."""
        return ("class_labels",)

    def ask(self, x: Tensor, c: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """model(x, timestep=c, class_labels=...)."""
        return self.model(x, timestep=c, return_dict=False, **condition)[0]


@dataclass(frozen=True)
class Architecture:
    """How a model is asked; the modules whose first argument is the timestep and nothing else; what a timestep is."""

    asked: type[Asked]
    embeds: str
    flow: bool = False


ARCHITECTURES = {
    "UNet2DModel": Architecture(AskedUNet, "time_proj"),
    "UNet2DConditionModel": Architecture(AskedConditionalUNet, "time_proj"),
    "SD3Transformer2DModel": Architecture(AskedSD3, "time_text_embed.time_proj", flow=True),
    "FluxTransformer2DModel": Architecture(AskedFlux, "time_text_embed", flow=True),  # its time_proj sees guidance too
    "PixArtTransformer2DModel": Architecture(AskedPixArt, "adaln_single.emb.time_proj"),
    "DiTTransformer2DModel": Architecture(AskedDiT, "transformer_blocks.*.norm1.emb.time_proj"),
}
"""The closed table: class of diffusers -> how it is asked and where it embeds the timestep."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that torch.compile was given, or the module itself."""
    return getattr(model, "_orig_mod", model)


def architecture(model: object) -> Architecture:
    """The architecture of a model or of a class derived from it. Raises CheckpointError for any other."""
    kinds = (type(unwrapped(model)) if isinstance(model, nn.Module) else type(model)).__mro__
    names = [kind.__name__ for kind in kinds if kind.__module__.startswith("diffusers.")]
    found = next((ARCHITECTURES[name] for name in names if name in ARCHITECTURES), None)
    if found is None:
        raise CheckpointError(f"{kinds[0].__name__} is no model that nearzero knows; known: {', '.join(ARCHITECTURES)}")
    return found


def time_embedding(model: Any) -> str:
    """How a model embeds its timesteps: "positional", "learned" or "fourier"."""
    return getattr(model.config, "time_embedding_type", "positional")


def embedding_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that embed the timestep, by name. Raises CheckpointError where they cannot be told from others."""
    model = unwrapped(model)
    pattern = architecture(model).embeds
    if getattr(model.config, "class_embed_type", None) == "timestep":  # pyright: ignore[reportAttributeAccessIssue]
        raise CheckpointError(f"{_name(model)} embeds its class labels with time_proj too; such a model is not shared")
    if time_embedding(model) == "fourier" and architecture(model).asked is not AskedUNet:
        raise CheckpointError(f"{_name(model)} with a Fourier time embedding is told no timestep; it is not shared")
    found = {name: module for name, module in model.named_modules() if fnmatchcase(name, pattern)}
    if not found:
        raise CheckpointError(f"{_name(model)} has no module {pattern}; it is not the one that diffusers makes")
    return found


def _rows(c: Tensor, count: int) -> Tensor:
    """Timesteps as rows of a table. Raises CheckpointError for a fraction, or a number that the table has not."""
    rows = c.round()
    wrong = (rows != c) | (rows < 0) | (rows >= count)
    if bool(wrong.any()):
        raise CheckpointError(
            f"timestep {c[wrong][0].item():g} is not in this model's table of timesteps 0 .. {count - 1}; "
            "take times of nodes, as TimestepGrid's, or a model with another time embedding"
        )
    return rows.to(torch.int64)


def _name(model: nn.Module) -> str:
    return type(unwrapped(model)).__name__
