"""Tensors that are kept between runs: one file each, with facts about them and a hash that is checked on reading."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nearzero.errors import CheckpointError, DataError
from nearzero.files import digest_file, write_bytes

KEY = "nearzero"


def cache_folder() -> Path:
    """Where computed things are kept: $NEARZERO_CACHE, else ~/.cache/nearzero."""
    named = os.environ.get("NEARZERO_CACHE")
    return Path(named) if named else Path("~/.cache/nearzero").expanduser()


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors in the order of their names: names, types, shapes and bytes, 64 hexadecimal digits."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes a safetensors file with `facts` (JSON) and the hash of all in its header, atomically."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    told = {**facts, "sha256": _seal(whole, facts)}
    write_bytes(path, save(whole, {KEY: json.dumps(told, sort_keys=True)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a file of `write_tensors`. Raises DataError where it is damaged, and says what to do."""
    try:
        tensors, header = _open(path)
        facts = json.loads(header[KEY])
        told = facts.pop("sha256")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: it is no file that nearzero kept; delete it") from error
    if told != _seal(tensors, facts):
        raise DataError(f"{path} is damaged: its content has another hash than it says; delete it")
    return tensors, facts


def read_kept(path: Path, about: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As `read_tensors`, for a file whose name is a hash of `about`. Raises DataError where its facts are others."""
    tensors, facts = read_tensors(path)
    if {name: facts.get(name) for name in about} != dict(about):
        raise DataError(f"{path} is damaged: it is about something else than its name says; delete it")
    return tensors, facts


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of any safetensors file; those of `write_tensors` are checked. Raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not there, or no file; name a safetensors file of weights")
    try:
        tensors, header = _open(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is no safetensors file ({error}); convert the weights again") from error
    return read_tensors(path)[0] if KEY in header else tensors


def kept(kind: str, source: Path, convert: Callable[[Path], Mapping[str, Tensor]]) -> Path:
    """The safetensors file that holds `convert(source)`: made once for each content of the source, in the cache.

    Raises CheckpointError where there is no source, and what `convert` raises.
    """
    if not source.is_file():
        raise CheckpointError(f"{source} is not there, or no file; name the file of weights")
    path = cache_folder() / "weights" / f"{kind}-{digest_file(source)}.safetensors"
    if not path.exists():
        write_tensors(path, convert(source), {"kind": kind, "source": source.name})
    return path


def fill(module: torch.nn.Module, path: Path) -> None:
    """Gives a module the tensors of a file. Raises CheckpointError where names or shapes do not fit."""
    try:
        module.load_state_dict(read_weights(path))
    except RuntimeError as error:
        first = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise CheckpointError(
            f"{path} does not fit {type(module).__name__}: {first:.300}; name another file"
        ) from error


def _seal(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """A hash of numbers and facts."""
    return hashlib.sha256((tensor_hash(tensors) + json.dumps(facts, sort_keys=True)).encode()).hexdigest()


def _open(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
