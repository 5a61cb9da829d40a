"""Export A: E-TSDM's staircase inside a stock UNet2DModel, as a frozen table with a row for each timestep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nearzero.conditioning import Conditioning, Shared, Timestep
from nearzero.errors import CheckpointError
from nearzero.networks.foreign import time_embedding
from nearzero.process.discrete import MAX_STEPS

KEY = "timestep_sharing"
"""The entry of a safetensors header that says which cells a table holds: {"interval", "cells", "steps"} as JSON."""
WEIGHT = "time_proj.weight"


def has_table(conditioning: Conditioning) -> bool:
    """Whether a conditioning tells integer timesteps alone, so that a table can hold it."""
    return isinstance(conditioning, Timestep) or (
        isinstance(conditioning, Shared) and isinstance(conditioning.inner, Timestep)
    )


def staircase(conditioning: Conditioning, steps: int) -> Tensor:
    """What the network is told at timestep k = 0 .. steps - 1: float32 (steps,)."""
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return conditioning(t, None).to(torch.float32)  # pyright: ignore[reportArgumentType]  (timesteps need no level)


def rows(model: Any, told: Tensor) -> Tensor:
    """The embedding of the timesteps `told` (n,) by a UNet2DModel, float32 (n, width)."""
    told = told.to(torch.int64) if time_embedding(model) == "learned" else told
    return model.time_proj(told.to(model.device)).detach().to("cpu", torch.float32)


def with_table(model: Any, conditioning: Conditioning, steps: int) -> Any:
    """A stock UNet2DModel with the same weights whose row k holds what `conditioning` tells at timestep k.

    Bit for bit the model that is told so: the sinusoids of a positional embedding are computed once, here, in float32.
    """
    from diffusers import UNet2DModel

    table = rows(model, staircase(conditioning, steps))
    config = {name: value for name, value in dict(model.config).items() if not name.startswith("_")}
    new = UNet2DModel.from_config({**config, "time_embedding_type": "learned", "num_train_timesteps": steps})
    new = filled(new, {**model.state_dict(), WEIGHT: table.to(model.dtype)}, model.dtype)
    new.time_proj.requires_grad_(False)
    return new


def filled(new: Any, weights: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """A model with these weights, in this precision, for inference."""
    if new.dtype != dtype:
        new.to(dtype)
    new.load_state_dict(weights)
    return new.eval()


def header(conditioning: Shared, steps: int, model: Any) -> dict[str, str]:
    """What the safetensors header says of the table that was made of a model."""
    learned = time_embedding(model) == "learned"
    told = {"interval": conditioning.interval, "cells": conditioning.cells, "steps": steps, "learned": learned}
    told["dtype"] = str(model.dtype).removeprefix("torch.")  # in which the table is rounded, wherever it is read
    return {"format": "pt", KEY: json.dumps(told)}


def without_table(model: Any, metadata: Mapping[str, str]) -> tuple[Any, Shared | None]:
    """The model that a table was made of, and its sharing; any other model as it is, and None.

    Raises CheckpointError where the header and the table contradict each other, as after training the table.
    """
    if KEY not in metadata:
        return model, None
    sharing, steps, learned, dtype = _read(metadata[KEY])
    table = getattr(getattr(model, "time_proj", None), "weight", None)
    if time_embedding(model) != "learned" or table is None or len(table) != steps:
        raise CheckpointError(f"the weights say that they hold a table of {steps} shared timesteps, and hold none")
    told = staircase(sharing, steps)
    first = table[told.to(torch.int64)]
    old = model if learned else _positional(model)
    if not torch.equal(first, table) or not (
        learned or torch.equal(rows(old, told).to(dtype).to(table.dtype), table.cpu())
    ):
        raise CheckpointError(
            f"the table of timesteps does not hold the {sharing.cells} cells of [0, {sharing.interval:g}] that the "
            "header of the weights names: it was trained or edited; export the model anew, and train with its table "
            "frozen (unet.time_proj.requires_grad_(False))"
        )
    return old, sharing


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def _read(text: str) -> tuple[Shared, int, bool, torch.dtype]:
    try:
        told = json.loads(text)
        steps, cells, interval = told["steps"], told["cells"], told["interval"]
        if not all(type(value) is int and value <= MAX_STEPS for value in (steps, cells)):
            raise TypeError(text)
        if type(interval) not in (int, float):
            raise TypeError(text)
        shared, dtype = Shared(Timestep(steps), interval=interval, cells=cells), DTYPES[told.get("dtype", "float32")]
        return shared, steps, bool(told.get("learned")), dtype
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the weights' header has a bad {KEY}, {text:.200}; export the model anew") from error


def _positional(model: Any) -> Any:
    """The same weights with sinusoids in place of the table."""
    from diffusers import UNet2DModel

    config = {name: value for name, value in dict(model.config).items() if not name.startswith("_")}
    new = UNet2DModel.from_config({**config, "time_embedding_type": "positional"})
    return filled(new, {name: value for name, value in model.state_dict().items() if name != WEIGHT}, model.dtype)
