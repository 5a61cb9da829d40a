"""Files that hold pickles: those of torch.save, new and old, TorchScript archives, and plain ones."""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearzero.errors import CheckpointError
from nearzero.pickled.machine import Budget, Machine
from nearzero.pickled.rebuild import TABLE, Storage, build, storage_dtype

MAX_FILE_BYTES = 2**36
MAX_PICKLE_BYTES = 2**33
MAX_ENTRIES = 200_000
MAX_RATIO = 4  # unpacked to packed, of all entries that are read: weights hardly pack
FREE_BYTES = 2**26  # what is this small may be packed as tightly as it likes
MAX_NESTED = 4
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
TORCH_PROTOCOL = 1001


@dataclass(frozen=True)
class Content:
    """What a file holds: its `kind` in words, its value, and every name in it that Python would have imported."""

    kind: str
    value: Any
    names: tuple[str, ...]


def contents(path: str | os.PathLike[str]) -> Content:
    """What a file of torch.save, a TorchScript archive or a plain pickle holds; nothing of it is run or imported.

    Raises CheckpointError for a file that is damaged, lies about its sizes, or is none of these.
    """
    path = Path(path)
    with _opened(path) as (file, size):
        budget = Budget(FREE_BYTES + MAX_RATIO * size)
        archive = file.peek(4)[:4] == b"PK\x03\x04"
        kind, value = _Archive(file, budget).read() if archive else _stream(file, size, budget)
    return Content(kind, value, tuple(sorted(budget.names)))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedReader, int]]:
    """A regular file of at most `MAX_FILE_BYTES`; whatever is wrong with it becomes a CheckpointError."""
    remedy = "give a file of torch.save, a TorchScript archive or a pickle"
    if not path.is_file():
        raise CheckpointError(f"{path} is no regular file; {remedy}")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes, more than {MAX_FILE_BYTES:,}; {remedy}")
    try:
        with _Bounded(io.FileIO(path)) as file:
            yield file, size
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle fails in every way
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{path} cannot be read ({reason}); {remedy}") from error


class _Bounded(io.BufferedReader):
    """A file that refuses to hand out more than it has, before memory is taken for it."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > os.fstat(self.fileno()).st_size:
            raise ValueError(f"it states a part of {size:,} bytes, more than it has")
        return super().read(size)


def _stream(file: Any, size: int, budget: Budget, depth: int = 0) -> tuple[str, Any]:
    """(kind, value) of a plain pickle, or of an old file of torch.save, up to the end of the file."""
    if depth > MAX_NESTED:
        raise ValueError(f"it nests more than {MAX_NESTED} files in each other")
    if size > MAX_PICKLE_BYTES:
        raise ValueError(f"a pickle of {size:,} bytes; at most {MAX_PICKLE_BYTES:,} are read")
    old = _Old(file, budget, depth)
    value = old.one()
    if type(value) is int and value == TORCH_MAGIC:
        return "a file of torch.save, old format", old.read()
    if old.storages:
        raise ValueError("its tensors lie in storages that it does not hold")
    if file.read(1):
        raise ValueError("bytes follow the end of the pickle")
    return "a pickle", value


@dataclass(frozen=True)
class _Nested:
    """A storage inside a plain pickle, as a whole file of its own."""

    budget: Budget
    depth: int

    def __call__(self, content: Any) -> Storage:
        if not isinstance(content, (bytes, bytearray)):
            raise TypeError("a storage is no bytes")
        found = _stream(io.BytesIO(content), len(content), self.budget, self.depth)[1]
        if not isinstance(found, Storage):
            raise TypeError("a storage's bytes are those of something else")
        return found


class _Old:
    """The format of torch.save before 1.6, which also stands inside plain pickles of tensors."""

    def __init__(self, file: Any, budget: Budget, depth: int) -> None:
        self.file, self.budget, self.depth = file, budget, depth
        self.storages: dict[str, Storage] = {}
        self.views: dict[str, Storage] = {}

    def one(self) -> Any:
        """The next pickle of the file."""
        table = {**TABLE, "torch.storage._load_from_bytes": _Nested(self.budget, self.depth + 1)}
        return Machine(table, build, self._persistent, self.budget).run(self.file)

    def read(self) -> Any:
        """What follows the magic number: versions, the value, the keys of its storages, and their bytes."""
        if self.one() != TORCH_PROTOCOL:
            raise ValueError("its protocol is not 1001")
        self.one()  # of the machine that wrote it: its byte order is stated, but torch writes little-endian
        value, keys = self.one(), self.one()
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise TypeError("its list of storages is none")
        if sorted(keys) != sorted(self.storages):
            raise ValueError("its list of storages is not that of its tensors")
        for key in keys:
            self._fill(self.storages[key])
        if self.file.read(1):
            raise ValueError("bytes follow its last storage")
        return value

    def _persistent(self, name: Any) -> Any:
        """A storage, whose bytes follow later, a view of one, or the class of a module without its source."""
        if not isinstance(name, tuple):
            raise TypeError("a persistent name is no tuple")
        if name[:1] == ("module",) and len(name) > 1:
            return name[1]
        if name[:1] != ("storage",) or len(name) != 6 or not isinstance(name[2], str):
            raise ValueError("a persistent name is that of no storage")
        _, kind, key, _, count, view = name
        root = self._storage(key, storage_dtype(kind), count)
        if view is None:
            return root
        return self._view(root, *view)

    def _storage(self, key: str, dtype: torch.dtype, count: Any) -> Storage:
        size = _count(count) * dtype.itemsize
        if key not in self.storages:
            self.budget.take(size)  # before memory is taken
            self.storages[key] = Storage(torch.zeros(size, dtype=torch.uint8), dtype)
        found = self.storages[key]
        if found.bytes.numel() != size or found.dtype != dtype:
            raise ValueError(f"it states two sizes of the storage {key!r:.40}")
        return found

    def _view(self, root: Storage, key: Any, offset: Any, count: Any) -> Storage:
        first, size = _count(offset) * root.dtype.itemsize, _count(count) * root.dtype.itemsize
        if not isinstance(key, str) or first + size > root.bytes.numel():
            raise ValueError("a view of a storage reaches beyond it")
        return self.views.setdefault(key, Storage(root.bytes[first : first + size], root.dtype))

    def _fill(self, storage: Storage) -> None:
        (count,) = struct.unpack("<q", self.file.read(8))
        if count * storage.dtype.itemsize != storage.bytes.numel():
            raise ValueError("a storage has another size than its tensors say")
        _read_into(self.file, storage.bytes)


class _Archive:
    """The format of torch.save since 1.6, and TorchScript: a .zip of data.pkl and one entry a storage."""

    def __init__(self, file: io.BufferedReader, budget: Budget) -> None:
        self.zip, self.budget = zipfile.ZipFile(file), budget
        entries = [entry for entry in self.zip.infolist() if not entry.is_dir()]
        self.entries = {entry.filename: entry for entry in entries}
        self.storages: dict[str, Tensor] = {}
        if len(self.entries) != len(entries) or len(entries) > MAX_ENTRIES:
            raise ValueError(f"it has {len(entries):,} entries, more than {MAX_ENTRIES:,}, or one of them twice")

    def read(self) -> tuple[str, Any]:
        """(kind, value): of TorchScript a dict of the module and the tuple of its constants."""
        roots = [name[: -len("data.pkl")] for name in self.entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise ValueError("it is a .zip, but holds no data.pkl of torch")
        (root,) = roots
        if f"{root}byteorder" in self.entries and self._bytes(f"{root}byteorder") != b"little":
            raise ValueError("its numbers are big-endian, which is not read")
        value = self._value(f"{root}data.pkl", f"{root}data/")
        if f"{root}constants.pkl" not in self.entries:
            return "a file of torch.save", value
        constants = self._value(f"{root}constants.pkl", f"{root}constants/")
        return "a TorchScript archive", {"module": value, "constants": constants}

    def _value(self, name: str, folder: str) -> Any:
        file, table = (
            io.BytesIO(self._bytes(name)),
            {**TABLE, "torch.storage._load_from_bytes": _Nested(self.budget, 1)},
        )
        value = Machine(table, build, lambda key: self._persistent(key, folder), self.budget).run(file)
        if file.read(1):
            raise ValueError(f"bytes follow the end of {name}")
        return value

    def _persistent(self, name: Any, folder: str) -> Storage:
        if not (isinstance(name, tuple) and len(name) == 5 and name[0] == "storage" and isinstance(name[2], str)):
            raise ValueError("a persistent name is that of no storage")
        _, kind, key, _, count = name
        dtype, entry = storage_dtype(kind), folder + key
        if entry not in self.storages:
            self.storages[entry] = torch.zeros(self._take(entry).file_size, dtype=torch.uint8)
            with self.zip.open(self.entries[entry]) as file:
                _read_into(file, self.storages[entry])
        found = self.storages[entry]
        if _count(count) * dtype.itemsize != found.numel():
            raise ValueError(f"a storage of {count:,} x {dtype.itemsize} bytes has {found.numel():,}")
        return Storage(found, dtype)

    def _bytes(self, name: str) -> bytes:
        entry = self._take(name)
        if entry.file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"{name} has {entry.file_size:,} bytes")
        with self.zip.open(entry) as file:
            content = file.read(entry.file_size + 1)
        if len(content) != entry.file_size:
            raise ValueError(f"{name} has another size than the archive says")
        return content

    def _take(self, name: str) -> zipfile.ZipInfo:
        """An entry that may be read: packed in a known way, and within what all of them may unpack to."""
        if name not in self.entries:
            raise ValueError(f"it has no entry {name}")
        entry = self.entries[name]
        known = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if entry.flag_bits & (0x1 | 0x40 | 0x2000) or not known:
            raise ValueError(f"{name} is encrypted, or packed in an unknown way")
        self.budget.take(entry.file_size)
        return entry


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_FILE_BYTES:
        raise ValueError("a storage's size is no whole number, or too large")
    return value


def _read_into(file: Any, target: Tensor) -> None:
    """Fills a tensor of bytes. Raises ValueError where the file ends before it does."""
    view, done = memoryview(target.numpy()), 0  # pyright: ignore[reportArgumentType]
    while done < len(view):
        count = file.readinto(view[done : done + 2**24])
        if not count:
            raise ValueError("it ends inside a storage")
        done += count
