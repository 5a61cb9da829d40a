"""Public data sets by name, where a system package has put them."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from nearzero.data.images import FASHION_MNIST, Images
from nearzero.errors import DataError

SYSTEM = Path("/usr/share/datasets")
SPLITS = {"fashion-mnist": "train", "fashion-mnist/test": "t10k"}
"""Names that may stand in place of a folder, and what their files begin with."""


def named(name: str, folder: Path | None = None) -> Images:
    """The images of "fashion-mnist" (60,000) or "fashion-mnist/test" (10,000), 28 x 28 grey in ten classes.

    Read from `folder`, else from $NEARZERO_DATA/fashion-mnist or what Debian's package installs. Raises DataError
    where they are not there, or damaged. Reference: Xiao et al., Fashion-MNIST, 2017; MIT licence.
    """
    if name not in SPLITS:
        raise DataError(f"unknown data set {name!r}; known: {', '.join(SPLITS)}")
    home = Path(os.environ["NEARZERO_DATA"]) if "NEARZERO_DATA" in os.environ else SYSTEM
    folder = home / "fashion-mnist" if folder is None else folder
    pixels = read_idx(folder / f"{SPLITS[name]}-images-idx3-ubyte.gz", (28, 28))
    labels = read_idx(folder / f"{SPLITS[name]}-labels-idx1-ubyte.gz", ())
    if len(pixels) != len(labels):
        raise DataError(f"{folder} has {len(pixels)} images and {len(labels)} labels of {name}; fetch it again")
    return Images(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels.astype(np.int64)), FASHION_MNIST, name)


def read_idx(path: Path, shape: tuple[int, ...], limit: int = 2**28) -> np.ndarray:
    """A gzipped IDX file of bytes, uint8 (n, *shape), of at most `limit` bytes. Raises DataError."""
    try:
        with gzip.open(path) as file:
            content = file.read(limit + 1)
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is not there; install it with: apt install dataset-fashion-mnist, or name its folder's parent "
            "in NEARZERO_DATA"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); fetch it again") from error
    header = 4 * (2 + len(shape))
    size = int(np.prod(shape, dtype=np.int64))
    if len(content) < header or content[:4] != bytes((0, 0, 8, 1 + len(shape))):
        raise DataError(f"{path} is no IDX file of bytes in {1 + len(shape)} dimensions; fetch it again")
    count, *found = struct.unpack(f">{1 + len(shape)}I", content[4:header])
    if tuple(found) != shape or len(content) - header != count * size:
        raise DataError(f"{path} does not hold {count} x {shape} bytes, as it says; fetch it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(count, *shape).copy()
