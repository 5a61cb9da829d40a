"""What is made of the names that are read: tensors, arrays of numpy, plain containers; all arguments are checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearzero.pickled.machine import Name, Stub, key

MAX_DIMENSIONS = 32
MAX_TENSOR_BYTES = 2**38

DTYPES = {
    str(dtype): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.complex64, torch.complex128),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    )
}
"""Name -> dtype, the closed list of what is read."""

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
"""Class of a storage -> dtype."""


@dataclass(eq=False)
class Storage:
    """Bytes (n,) in memory of ours, and the dtype of the storage that they are said to be."""

    bytes: Tensor
    dtype: torch.dtype


@dataclass(eq=False)
class ArrayType:
    """A numpy dtype: its text, such as f4, its byte order, and whether it has fields."""

    text: str
    order: str = "="
    plain: bool = True

    def numpy(self) -> np.dtype[Any]:
        """The dtype of numbers. Raises TypeError for objects, text and structures."""
        if self.plain and self.order in ("<", ">", "=", "|") and self.text in _NUMBERS:
            return np.dtype(self.order.replace("|", "=") + self.text)
        raise TypeError(f"it holds an array of {self.text!r:.40}; arrays of numbers are read, no others")


_NUMBERS = {"b1", "i1", "u1", *(f"{kind}{size}" for kind in "iu" for size in (2, 4, 8)), "f2", "f4", "f8", "c8", "c16"}


def shown(value: Any) -> str:
    """A name for an error message, or a value's type: the value itself may be of any length."""
    return value.text[:80] if isinstance(value, Name) else f"a {type(value).__name__}"


def storage_dtype(name: Any) -> torch.dtype:
    """The dtype of a storage's class. Raises TypeError for anything else."""
    home, _, last = (name.text if isinstance(name, Name) else "").rpartition(".")
    if home not in ("torch", "torch.cuda", "torch.storage") or last not in STORAGES:
        raise TypeError(f"a storage is of {shown(name)}, which is not read")
    return STORAGES[last]


def naturals(values: Any) -> tuple[int, ...]:
    """Whole numbers of at least 0. Raises TypeError."""
    if not isinstance(values, (tuple, list)) or any(type(value) is not int or value < 0 for value in values):
        raise TypeError("a size, stride or offset is no whole number of at least 0")
    return tuple(values)


def tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> Tensor:
    """The view of a storage at `offset` with `size` and `stride`, in its elements, inside its bytes.

    Raises TypeError or ValueError for a view that reaches beyond its storage.
    """
    if not isinstance(storage, Storage):
        raise TypeError("a tensor lies in no storage")
    dtype = dtype or storage.dtype
    (offset,), size, stride = naturals([offset]), naturals(size), naturals(stride)
    if len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise ValueError(f"a tensor has {len(size)} sizes and {len(stride)} strides")
    there = storage.bytes.numel() // dtype.itemsize
    if math.prod(size) * dtype.itemsize > MAX_TENSOR_BYTES:
        raise ValueError(f"a tensor of size {list(size)} has more than {MAX_TENSOR_BYTES:,} bytes")
    end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if all(size) else offset
    if end > there:
        raise ValueError(f"a tensor of size {list(size)} reaches element {end:,} of a storage of {there:,}")
    if not all(size):
        return torch.empty(size, dtype=dtype)
    base = storage.bytes[: there * dtype.itemsize].view(dtype)
    return base.as_strided(size, stride, base.storage_offset() + offset)  # of the memory, of which this may be a part


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    return tensor(storage, offset, size, stride)


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any) -> Any:
    if not (isinstance(dtype, Name) and dtype.text in DTYPES):
        raise TypeError(f"a tensor is of {shown(dtype)}, which is not read")
    return tensor(storage, offset, size, stride, DTYPES[dtype.text])


def _of_type(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    """A tensor with attributes, or of a subclass: the tensor."""
    if isinstance(function, Name) and function.text in _TENSORS and isinstance(arguments, tuple):
        return _TENSORS[function.text](*arguments)
    raise TypeError(f"a tensor is made by {shown(function)}, which is not read")


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _new(cls: Any, *arguments: Any) -> Stub:
    """An object of a class of Python."""
    if not isinstance(cls, Name):
        raise TypeError("an object has no class")
    return Stub(cls.text, arguments)


def _bytes(text: Any = "", encoding: Any = "latin1", *_: Any) -> bytes:
    """Bytes that an old protocol wrote as text."""
    if isinstance(text, str) and encoding in ("latin1", "latin-1"):
        return text.encode("latin-1")
    if isinstance(text, (bytes, bytearray)):
        return bytes(text)
    raise TypeError("bytes are made of something else than text")


def _mapping(items: Any = (), *_: Any) -> dict[Any, Any]:
    found = items.items() if isinstance(items, dict) else items if isinstance(items, (list, tuple)) else ()
    return {key(name): value for name, value in found}


def _sequence(items: Any = (), *_: Any) -> list[Any]:
    if not isinstance(items, (list, tuple, set, frozenset)):
        raise TypeError("a sequence is made of something else than one")
    return items if isinstance(items, list) else list(items)


def _set(items: Any = (), *_: Any) -> set[Any]:
    return set(map(key, _sequence(items)))


# ---- numpy


def _array(_class: Any, _shape: Any, _kind: Any) -> np.ndarray[Any, Any]:
    """An empty array, whose state follows."""
    return np.empty(0)


def _dtype(text: Any, *_: Any) -> ArrayType:
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    if isinstance(text, Name):
        text = text.text
    if not isinstance(text, str):
        raise TypeError("a numpy dtype has no name")
    return ArrayType(text)


def _filled(data: Any, dtype: Any, shape: Any, fortran: bool) -> np.ndarray[Any, Any]:
    """An array of the bytes `data`, which must be as many as its shape takes."""
    data = data.encode("latin-1") if isinstance(data, str) else data
    kind, shape = dtype.numpy() if isinstance(dtype, ArrayType) else None, naturals(shape)
    if kind is None or not isinstance(data, (bytes, bytearray)):
        raise TypeError("an array of numpy has no dtype, or no bytes; arrays of objects are not read")
    if len(shape) > MAX_DIMENSIONS or math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"an array of shape {list(shape)} has {len(data):,} bytes")
    flat = np.frombuffer(data, kind).astype(kind.newbyteorder("="))
    return flat.reshape(shape, order="F" if fortran else "C")


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    return _filled(data, dtype, shape, order == "F")


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return _filled(data, dtype, (), False).item()


def build(value: Any, state: Any) -> None:
    """Gives an array or a dtype of numpy its state; attributes of containers and tensors are left out.

    Raises TypeError where the value takes none.
    """
    if isinstance(value, np.ndarray):
        _, shape, dtype, fortran, data = state
        made = _filled(data, dtype, shape, bool(fortran))
        content = made.tobytes("F" if fortran else "C")
        value.__setstate__((1, made.shape, made.dtype, bool(fortran), content))  # pyright: ignore[reportArgumentType]
    elif isinstance(value, ArrayType):
        _, order, *fields = state[:5]
        order = order.decode("latin-1") if isinstance(order, bytes) else order
        value.order, value.plain = order, all(part is None for part in fields)
    elif not isinstance(value, (dict, list, set, Tensor)):
        raise TypeError(f"a {type(value).__name__} is given a state")


_TENSORS: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
TABLE: dict[str, Any] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.Size": lambda sizes=(): naturals(sizes),
    **{f"torch.jit._pickle.build_{kind}list": _sequence for kind in ("int", "tensor", "double", "bool")},
    "torch.jit._pickle.restore_type_tag": lambda value, *_: value,
    **{f"{home}._reconstruct": _array for home in ("numpy.core.multiarray", "numpy._core.multiarray")},
    **{f"{home}.scalar": _scalar for home in ("numpy.core.multiarray", "numpy._core.multiarray")},
    **{f"{home}._frombuffer": _frombuffer for home in ("numpy.core.numeric", "numpy._core.numeric")},
    "numpy.dtype": _dtype,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *_: {},
    "copyreg._reconstructor": _new,
    "copy_reg._reconstructor": _new,
    "copyreg.__newobj__": _new,
    "_codecs.encode": _bytes,
    **{f"{home}.bytes": _bytes for home in ("builtins", "__builtin__")},
    **{f"{home}.bytearray": _bytes for home in ("builtins", "__builtin__")},
    **{f"{home}.dict": _mapping for home in ("builtins", "__builtin__")},
    **{f"{home}.list": _sequence for home in ("builtins", "__builtin__")},
    **{f"{home}.tuple": lambda items=(): tuple(_sequence(items)) for home in ("builtins", "__builtin__")},
    **{f"{home}.set": _set for home in ("builtins", "__builtin__")},
    **{f"{home}.frozenset": lambda items=(): frozenset(_set(items)) for home in ("builtins", "__builtin__")},
}
"""Name -> what makes it. Everything else becomes a stub."""
