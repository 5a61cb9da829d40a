"""Images in memory, and which of them a training step sees."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from nearzero.data.archive import read_archive
from nearzero.data.arrays import read_arrays
from nearzero.data.folder import Bad, OnBad, read_folder
from nearzero.data.images import Images, embedded

__all__ = ["Images", "embedded", "read_archive", "read_arrays", "read_folder", "read_images"]

_READERS = {".zip": read_archive, ".npz": read_arrays, ".npy": read_arrays}


def read_images(
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    channels: int | None = None,
    bad: Bad = "error",
    on_bad: OnBad | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Images:
    """Images from whatever `path` is: a folder, a .zip of image files, or a .npz or .npy array.

    The options are `read_folder`'s and mean the same everywhere. Raises DataError and ArgumentError.
    """
    path = Path(path)
    reader = read_folder if path.is_dir() else _READERS.get(path.suffix.lower(), read_folder)
    return reader(path, size=size, channels=channels, bad=bad, on_bad=on_bad, progress=progress)
