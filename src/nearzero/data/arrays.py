"""uint8 arrays, .npy and .npz, as `Images`.

numpy's own reader is not used: it unpickles. Here a header states a shape and a kind of number, the file must hold
exactly that many bytes, and nothing else is ever made of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image

from nearzero.data.archive import opened
from nearzero.data.folder import MAX_PIXELS, TAKES, Bad, OnBad, Reading, shown
from nearzero.data.images import Images, as_tensor, resize
from nearzero.errors import DataError

MAX_ARRAY_BYTES = 16 * 2**30
MAX_ARRAYS = 16
MAX_CLASSES = 100_000
_CHUNK = 2**24


def read_arrays(
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    channels: int | None = None,
    bad: Bad = "error",
    on_bad: OnBad | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Images:
    """The images of an array uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3.

    A .npy is that array. A .npz holds it as `images`, or under any name if it is the only one; beside it `labels`
    (whole numbers from 0, one for each image) and `classes` (their names; default "0", "1", ...). The options are
    `read_folder`'s; no image of an array is bad by itself. Raises DataError, for arrays of Python objects too.
    """
    path = Path(path)
    how = Reading(size, channels, bad, on_bad, progress)
    arrays = _npz(path) if path.suffix.lower() == ".npz" else {"images": _npy(path)}
    labels, classes = arrays.pop("labels", None), arrays.pop("classes", None)
    name = "images" if "images" in arrays or not arrays else next(iter(arrays))
    if list(arrays) != [name]:
        found = ", ".join(shown(repr(each)) for each in list(arrays)[:5]) or "none"
        raise DataError(f"{shown(path)} must hold images and may hold labels and classes, found {found}; rename them")
    pixels = _pixels(arrays[name], path)
    height, width = pixels.shape[2:]
    if size is None and height != width:
        raise DataError(f"{shown(path)} has images of {width} x {height} pixels, not square; use --size to crop them")
    numbers = None if labels is None else _labels(labels, len(pixels), path)
    return Images(_brought(pixels, how), numbers, _classes(classes, numbers, path), path.stem)


def _npy(path: Path) -> np.ndarray:
    if not path.exists():
        raise DataError(f"{shown(path)} does not exist; {TAKES}")
    if not path.is_file():
        raise DataError(f"{shown(path)} is no regular file; {TAKES}")
    return _array(lambda: path.open("rb"), path.stat().st_size, shown(path))


def _npz(path: Path) -> dict[str, np.ndarray]:
    with opened(path, MAX_ARRAY_BYTES) as (archive, entries):
        if len(entries) > MAX_ARRAYS:
            raise DataError(f"{shown(path)} holds {len(entries):,} arrays, more than {MAX_ARRAYS}; keep images, labels")
        arrays = {}
        for entry in entries:
            name = shown(f"{path}/{entry.filename}")
            if not entry.filename.endswith(".npy"):
                raise DataError(f"{name} is no array; an .npz holds arrays only, for images use a .zip")
            read = _array(lambda entry=entry: archive.open(entry), entry.file_size, name)
            arrays[entry.filename.removesuffix(".npy")] = read
    return arrays


def _array(opening: Callable[[], IO[bytes]], length: int, name: str) -> np.ndarray:
    """One array of numbers or text from its header and exactly the bytes that this promises."""
    try:
        with opening() as file:
            shape, fortran, dtype = _header(file)
            if dtype.hasobject or dtype.kind not in "uifbU":
                raise DataError(f"{name} holds Python objects ({dtype}), which are never read; save uint8 numbers")
            size, left = math.prod(shape) * dtype.itemsize, length - file.tell()
            if size != left:
                raise DataError(f"{name} promises {size:,} bytes in its header and holds {left:,}; save it anew")
            if size > MAX_ARRAY_BYTES:
                raise DataError(f"{name} has {size:,} bytes, more than {MAX_ARRAY_BYTES:,}; split it")
            flat = _bytes(file, size).view(dtype)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # archives and headers fail in every way
        reason = shown(" ".join(str(error).split()).rstrip("."))
        raise DataError(f"{name} is no readable array ({reason}); save it anew with numpy") from error
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype; only format 1.0, whose header is short, as numpy writes it for plain arrays."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("its format is not 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if any(isinstance(n, bool) or n < 0 for n in shape):
        raise ValueError(f"shape {shape}")
    return shape, fortran, dtype


def _bytes(file: IO[bytes], size: int) -> np.ndarray:
    buffer = np.empty(size, np.uint8)
    done = 0
    while done < size:
        part = file.read(min(_CHUNK, size - done))
        if not part:
            raise ValueError(f"it ends after {done:,} bytes")
        buffer[done : done + len(part)] = np.frombuffer(part, np.uint8)
        done += len(part)
    return buffer


def _pixels(array: np.ndarray, path: Path) -> np.ndarray:
    """The array as (N, C, H, W)."""
    forms = "uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3"
    if array.dtype != np.uint8:
        raise DataError(f"{shown(path)} holds images of {array.dtype}; they must be {forms}, with values 0 to 255")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim != 4 or (array.shape[1] in (1, 3)) == (array.shape[3] in (1, 3)):
        raise DataError(f"{shown(path)} holds images of shape {array.shape}; they must be {forms}, and plainly one")
    elif array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.size == 0:
        raise DataError(f"{shown(path)} holds no images; {TAKES}")
    height, width = array.shape[2:]
    if height * width > MAX_PIXELS:
        raise DataError(f"{shown(path)} has images of {width} x {height} pixels, more than {MAX_PIXELS:,}; split them")
    return array


def _labels(array: np.ndarray, count: int, path: Path) -> torch.Tensor:
    if array.shape != (count,) or array.dtype.kind not in "ui":
        raise DataError(
            f"{shown(path)} has labels {array.dtype} {array.shape}; they must be {count:,} whole numbers, one an image"
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= MAX_CLASSES:
        raise DataError(f"{shown(path)} has labels from {low} to {high}; they must lie in 0 to {MAX_CLASSES - 1:,}")
    return torch.from_numpy(array.astype(np.int64))


def _classes(array: np.ndarray | None, labels: torch.Tensor | None, path: Path) -> tuple[str, ...]:
    if labels is None:
        if array is not None:
            raise DataError(f"{shown(path)} has classes and no labels; add labels, or leave the classes out")
        return ()
    count = int(labels.max()) + 1
    if array is None:
        return tuple(map(str, range(count)))
    if array.ndim != 1 or array.dtype.kind != "U" or not count <= len(array) <= MAX_CLASSES:
        raise DataError(
            f"{shown(path)} has classes {array.dtype} {array.shape}; they must be at least {count:,} names, as text"
        )
    try:
        return tuple(map(str, array))
    except ValueError as error:
        raise DataError(f"{shown(path)} has classes that are no text; save their names anew") from error


def _brought(pixels: np.ndarray, how: Reading) -> torch.Tensor:
    """The pixels as a tensor of the size and channels that are asked for."""
    count = len(pixels)
    if how.size is None and how.channels in (None, pixels.shape[1]):
        if how.progress is not None:
            how.progress(count, count)
        return torch.from_numpy(np.ascontiguousarray(pixels))
    arrays = []
    for done, image in enumerate(pixels, start=1):
        plain = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        if how.channels is not None:
            plain = plain.convert("L" if how.channels == 1 else "RGB")
        arrays.append(np.asarray(plain if how.size is None else resize(plain, how.size)))
        if how.progress is not None:
            how.progress(done, count)
    return as_tensor(arrays)
