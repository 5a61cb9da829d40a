"""A network of diffusers' own class as a recipe saves it: its class and its config, as text; the weights lie apart."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from nearzero.errors import ArgumentError
from nearzero.networks.foreign import ARCHITECTURES, Asked
from nearzero.registry import register

MAX_CONFIG = 100_000
"""The most characters of a config: diffusers' own have about 2,000."""


@register
@dataclass(frozen=True)
class Pretrained:
    """A model of diffusers, of class `kind`, whose `config` is the JSON object that its config.json holds.

    `steps` is how many timesteps it counts, and `flow` whether they are flow matching's. With `rank` above 0 only a
    LoRA of that rank is trained, on the queries, keys, values and outputs of attention (it needs peft).
    Raises ArgumentError for a class that is not in `networks.foreign.ARCHITECTURES`, and a config that is none.
    Reference: Hu et al., LoRA: low-rank adaptation of large language models, ICLR 2022.
    """

    kind: str
    config: str = field(repr=False)
    steps: int = 1000
    flow: bool = False
    rank: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ARCHITECTURES:
            raise ArgumentError(
                f"{self.kind!r:.100} is no model that nearzero knows; known: {', '.join(ARCHITECTURES)}"
            )
        if type(self.rank) is not int or not 0 <= self.rank <= 1024:
            raise ArgumentError(f"the rank of a LoRA is an integer from 0 (none) to 1024, got {self.rank!r:.100}")
        for name in ("sample_size", "in_channels"):
            value = self._config.get(name)
            if type(value) is not int or not 1 <= value <= 4096:
                raise ArgumentError(
                    f"the config of this {self.kind} says {name} {value!r:.100}; write one number, 1 to 4096"
                )

    @cached_property
    def _config(self) -> dict[str, Any]:
        try:
            found = json.loads(self.config) if len(self.config) <= MAX_CONFIG else None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ArgumentError(
                f"the config of this {self.kind} is no JSON object of at most {MAX_CONFIG:,} characters"
            )
        return found

    @property
    def size(self) -> int:
        """Width and height of the images."""
        return self._config["sample_size"]

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self._config["in_channels"]

    def build(self) -> nn.Module:
        """The model with fresh weights, behind the door F = network(x (B, channels, size, size), c (B,))."""
        import diffusers

        try:
            model = getattr(diffusers, self.kind).from_config(self._config)
        except Exception as error:  # a wrong config fails in as many ways as there are options
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ArgumentError(f"diffusers cannot make this {self.kind}: {reason:.200}") from error
        if self.rank:
            add_lora(model, self.rank)
        return ARCHITECTURES[self.kind].asked(model, flow=self.flow, steps=self.steps)

    @classmethod
    def of(cls, network: Asked, rank: int = 0) -> Pretrained:
        """The spec of a model that is there. Raises ArgumentError where its config is none that this class takes."""
        config = {name: value for name, value in dict(network.model.config).items() if not name.startswith("_")}
        config.pop("timestep_sharing", None)  # of export B, which a recipe says by its conditioning
        return cls(_kind(network.model), json.dumps(config, sort_keys=True), network.steps, network.flow, rank)


def _kind(model: nn.Module) -> str:
    """The name of the class in the table that a model is of, or is derived from."""
    return next(kind.__name__ for kind in type(model).__mro__ if kind.__name__ in ARCHITECTURES)


LORA = ("to_q", "to_k", "to_v", "to_out.0")
"""The linear layers of attention, by diffusers' names."""


def add_lora(model: Any, rank: int) -> None:
    """Puts a LoRA into a model of diffusers and freezes everything else. Raises ArgumentError without peft."""
    try:
        from peft import LoraConfig, inject_adapter_in_model  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ArgumentError("a LoRA needs peft; install it with: pip install 'nearzero[lora]'") from error
    model.requires_grad_(False)
    try:
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA)), model)
    except ValueError as error:  # there is no such layer
        raise ArgumentError(f"this {type(model).__name__} has no attention for a LoRA; train all weights") from error


def merged(model: Any) -> Any:
    """The model itself, with a LoRA added to its weights for good, if it has one."""
    layers = [layer for layer in model.modules() if hasattr(layer, "get_base_layer")]
    if layers:
        from diffusers.utils.peft_utils import recurse_remove_peft_layers

        for layer in layers:
            layer.merge()
        recurse_remove_peft_layers(model)
    return model
