"""Tensors out of pickled files, without running them: see `read` and `state_dicts`."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from nearzero.errors import CheckpointError
from nearzero.pickled.machine import Name, Stub
from nearzero.pickled.places import Finder
from nearzero.pickled.reader import Content, contents

__all__ = ["Content", "Name", "Stub", "contents", "found_in", "read", "state_dicts"]


def read(path: str | os.PathLike[str]) -> Any:
    """What a file of torch.save, a TorchScript archive or a plain pickle holds, without running any of it.

    Plain containers (an OrderedDict is a dict), numbers, text, bytes, tensors on the CPU and arrays of numpy; whatever
    else the file would have made by a class or function is a `Stub` with its name, and is not imported. A class or
    function itself is a `Name`. Of a TorchScript archive: {"module": Stub, "constants": tuple}.

    A view keeps its strides and shares its storage, as it did when it was saved. Raises CheckpointError for a file that
    is damaged, is none of these, or states a size, an offset or a stride that reaches beyond it.
    """
    return contents(path).value


def found_in(path: str | os.PathLike[str], value: Any) -> dict[str, dict[str, Tensor]]:
    """The state dicts in what was read from `path`, which errors name. Raises CheckpointError."""
    try:
        return Finder().find(value)
    except (CheckpointError, ValueError) as error:  # a number of 5,000 digits is no name
        raise CheckpointError(f"{path}: {error}") from error


def state_dicts(path: str | os.PathLike[str]) -> dict[str, dict[str, Tensor]]:
    """Every state dict in such a file, by its place: {"": ...} for a bare one, {"model": ..., "ema": ...} for several.

    A state dict is a mapping with tensors among its values, or a module, whose parameters and buffers have dotted
    names. Lists and numbered mappings inside it count as parts of it: "shadow_params.0". Raises CheckpointError.
    """
    return found_in(path, contents(path).value)
