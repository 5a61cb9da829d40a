"""Where in a foreign checkpoint the tensors lie: its state dicts by their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearzero.errors import CheckpointError
from nearzero.pickled.machine import Stub

MAX_DEPTH = 100
MAX_VISITS = 3_000_000
MAX_NAME = 1000
MODULE = ("_parameters", "_buffers", "_modules")
PERSISTENT = "._reconstruct_persistent_obj"


class Finder:
    """A walk through what a pickle holds, which ends: it goes no deeper than `MAX_DEPTH`, nor in circles."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Tensor]] = {}
        self.arrays: dict[int, Tensor] = {}
        self.objects: dict[int, Stub] = {}
        self.barren: set[int] = set()
        self.count = 0
        self.visits = 0
        self.above: list[int] = []

    def find(self, value: Any, place: str = "") -> dict[str, dict[str, Tensor]]:
        """Every mapping and module that holds tensors itself, by its place; see `state_dicts`."""
        value = self._persistent(value)
        if is_module(value):
            self._keep(place, self._module(value, ""))
        elif is_tensor(value):
            self._keep(place, [("tensor", value)])
        else:
            self._keep(place, self._own(value, ""))
            for name, inner, own in self._parts(value):
                if not own and not is_tensor(inner) and self._enter(inner):
                    before = self.count
                    self.find(inner, joined(place, name))
                    self._leave(inner, before)
        return self.found

    def _keep(self, place: str, tensors: Iterable[tuple[str, Any]]) -> None:
        for name, value in tensors:
            if name in self.found.setdefault(place, {}):
                raise CheckpointError(f"two tensors of {place or 'the file'} have the name {name}; it is damaged")
            self.count += 1
            self.found[place][name] = value if isinstance(value, Tensor) else self._array(value)

    def _array(self, value: np.ndarray[Any, Any]) -> Tensor:
        """An array as a tensor, made once; unsigned numbers of 16 bits and more, which few formats know, as int64."""
        if id(value) not in self.arrays:
            wide = value.dtype.kind == "u" and value.dtype.itemsize > 1
            self.arrays[id(value)] = torch.from_numpy(value.astype(np.int64 if wide else value.dtype))
        return self.arrays[id(value)]

    def _enter(self, value: Any) -> bool:
        """Whether to go into a value: a container that is not above itself, nor known to hold no tensors."""
        if not isinstance(value, (dict, list, tuple, Stub)) or id(value) in self.barren or id(value) in self.above:
            return False
        if len(self.above) >= MAX_DEPTH:
            raise CheckpointError(f"what it holds nests more than {MAX_DEPTH} deep; refused")
        self.above.append(id(value))
        return True

    def _leave(self, value: Any, before: int) -> None:
        """Goes out of a value, and remembers it where no tensor was found since `before`."""
        self.above.pop()
        if self.count == before:
            self.barren.add(id(value))

    def _persistent(self, value: Any) -> Any:
        """EDM's objects, which carry their source as text, as what they are: a state. The text is left."""
        if not (isinstance(value, Stub) and value.name.endswith(PERSISTENT) and len(value.args) == 1):
            return value
        (meta,) = value.args
        state = meta.get("state") if isinstance(meta, dict) else None
        return self.objects.setdefault(id(value), Stub(value.name, state=state))

    def _parts(self, value: Any) -> Iterator[tuple[str, Any, bool]]:
        """(name, part, whether it belongs to the value itself, as sequences of tensors and numbered mappings do)."""
        numbered = is_numbered(value)
        for name, inner in children(value):
            self.visits += 1 + (len(inner) if isinstance(inner, (dict, list, tuple)) else 0)  # which are looked through
            if self.visits > MAX_VISITS:
                raise CheckpointError(f"what it holds is found in more than {MAX_VISITS:,} places; refused")
            yield name, inner, (numbered and isinstance(inner, dict)) or is_numbered(inner) or holds_tensors(inner)

    def _own(self, value: Any, name: str) -> Iterator[tuple[str, Any]]:
        """The tensors that belong to a container itself, by name."""
        for key, inner, own in self._parts(value):
            full = joined(name, key)
            if is_tensor(inner):
                yield full, inner
            elif own and self._enter(inner):
                yield from self._own(inner, full)
                self.above.pop()

    def _module(self, value: Stub, name: str) -> Iterator[tuple[str, Any]]:
        """A module's tensors by their dotted names: parameters, buffers, then those of its modules."""
        inside = value.state
        passing = inside.get("_non_persistent_buffers_set") if is_torch(value) else None
        passing = passing if isinstance(passing, (set, frozenset)) else ()
        for part in [inside.get(part) for part in MODULE] if is_torch(value) else [inside]:
            for key, inner, _ in self._parts(part):
                inner, full = self._persistent(inner), joined(name, key)
                if is_tensor(inner) and not (part is inside.get("_buffers") and key in passing):
                    yield full, inner
                elif self._enter(inner):
                    yield from self._module(inner, full) if is_module(inner) else self._own(inner, full)
                    self.above.pop()


def joined(place: str, name: str) -> str:
    """A dotted name. Raises CheckpointError where it has no end."""
    full = f"{place}.{name}" if place else name
    if len(full) > MAX_NAME:
        raise CheckpointError(f"a name in it has more than {MAX_NAME:,} characters; refused")
    return full


def is_torch(value: Stub) -> bool:
    """Whether a stub is a module of torch, by its state."""
    return isinstance(value.state, dict) and all(part in value.state for part in ("_parameters", "_modules"))


def is_module(value: Any) -> bool:
    """Whether a stub is a module of torch, or of TorchScript."""
    script = isinstance(value, Stub) and value.name.startswith("__torch__.") and isinstance(value.state, dict)
    return script or (isinstance(value, Stub) and is_torch(value))


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor, or an array of numpy of numbers."""
    return isinstance(value, (Tensor, np.ndarray))


def children(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a container or stub with their names."""
    if isinstance(value, dict):
        yield from ((str(key), inner) for key, inner in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((str(key), inner) for key, inner in enumerate(value))
    elif isinstance(value, Stub):
        state = value.state if isinstance(value.state, (dict, list, tuple)) else {"state": value.state}
        for prefix, part in (("", state), ("", value.pairs), ("args.", value.args), ("items.", value.items)):
            yield from ((prefix + name, inner) for name, inner in children(part))


def is_numbered(value: Any) -> bool:
    """Whether a mapping counts its values, as optimizers do."""
    return isinstance(value, dict) and len(value) > 0 and all(type(key) is int for key in value)


def holds_tensors(value: Any) -> bool:
    """Whether a sequence holds tensors, or sequences of them."""
    return isinstance(value, (list, tuple)) and any(
        is_tensor(part) or (isinstance(part, (list, tuple)) and any(map(is_tensor, part))) for part in value
    )
