"""The closed registry: which classes a saved recipe may name, and the two ways through JSON.

A file never names an import. It names a class that was registered by code that already runs, so reading a
recipe can build small frozen dataclasses and nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

from nearzero.errors import ArgumentError, CheckpointError, did_you_mean

T = TypeVar("T", bound=type)

DEPTH = 32  # how deep objects may lie in each other in a file
KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "bool": ("true or false", (bool,)),
    "int": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "str": ("text", (str,)),
}
_CLASSES: dict[str, type] = {}


def register(cls: T) -> T:
    """Decorator: lets a frozen dataclass be saved in recipes, under its class name.

    Raises ArgumentError where the class is no frozen dataclass, or its name is taken by another class.

    >>> from dataclasses import dataclass
    >>> @register
    ... @dataclass(frozen=True)
    ... class HalfTime:
    ...     scale: float = 0.5
    >>> decode(encode(HalfTime(2.0)))
    HalfTime(scale=2.0)
    """
    parameters = getattr(cls, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise ArgumentError(
            f"register({cls.__name__}): only a frozen dataclass can be saved; add @dataclass(frozen=True)"
        )
    known = _CLASSES.get(cls.__name__)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ArgumentError(f"register({cls.__name__}): the name belongs to {known.__module__}; choose another")
    _CLASSES[cls.__name__] = cls
    return cls


def encode(value: Any) -> Any:
    """A registered object as JSON values: a dict with its class name and its fields."""
    if isinstance(value, (bool, str, int, type(None))):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ArgumentError(f"{value} cannot be saved: a recipe holds finite numbers")
        return value
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    if _CLASSES.get(type(value).__name__) is not type(value):
        raise ArgumentError(f"{type(value).__name__} cannot be saved; decorate the class with @nearzero.register")
    fields = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    return {"class": type(value).__name__, **fields}


def decode(value: Any, depth: int = DEPTH) -> Any:
    """The object that `encode` wrote. Raises CheckpointError for unknown names, bad values and deep nesting."""
    if depth < 0:
        raise CheckpointError(f"a saved recipe is nested more than {DEPTH} deep; restore the file or train again")
    if isinstance(value, list):
        return tuple(decode(item, depth - 1) for item in value)
    if not isinstance(value, dict):
        return value
    name = value.get("class")
    if not isinstance(name, str) or name not in _CLASSES:
        told = str(name)[:80]
        raise CheckpointError(f"unknown class {name!r:.100} in a saved recipe; {did_you_mean(told, _CLASSES)}")
    cls = _CLASSES[name]
    known = {field.name for field in dataclasses.fields(cls) if field.init}
    for key in value.keys() - known - {"class"}:
        raise CheckpointError(
            f"unknown field {key!r:.100} of {name} in a saved recipe; {did_you_mean(key[:80], known)}"
        )
    arguments = {key: decode(item, depth - 1) for key, item in value.items() if key != "class"}
    _check_kinds(cls, arguments)
    try:
        return cls(**arguments)
    except (
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
        MemoryError,
    ) as error:  # whatever a value of a wrong type leads to
        raise CheckpointError(f"a saved recipe has a bad {name}: {' '.join(str(error).split())[:200]}") from error


def _check_kinds(cls: type, arguments: dict[str, Any]) -> None:
    """Raises CheckpointError where a field of a plain type holds another: true is no number, and "no" is not false."""
    for field in dataclasses.fields(cls):
        kind, _, other = str(getattr(field.type, "__name__", field.type)).partition(" | ")
        given = arguments.get(field.name)
        if field.name not in arguments or kind not in KINDS or other not in ("", "None") or (other and given is None):
            continue
        told, types = KINDS[kind]
        if type(given) not in types:
            raise CheckpointError(
                f"a saved recipe has a bad {cls.__name__}: {field.name} must be {told}, got {given!r:.100}; "
                "restore the file or train again"
            )
