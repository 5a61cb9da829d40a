"""Public data sets by name, where `nearzero data fetch` or a system package has put them."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nearzero.data.fetch import place
from nearzero.data.folder import Member, Reading, read_members, shown
from nearzero.data.images import FASHION_MNIST, Images
from nearzero.errors import DataError

SPLITS = {
    "fashion-mnist": "train",
    "fashion-mnist/test": "t10k",
    "mnist": "train",
    "mnist/test": "t10k",
    "cifar10": "train",
    "cifar10/test": "test",
    "emoji": "64",
}
"""Names that may stand in place of a folder, and what their files begin with."""

DIGITS = tuple("0123456789")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCH = 10_000  # images in a picture of CIFAR-10


def named(name: str, folder: Path | None = None) -> Images:
    """The images of a public data set.

    "fashion-mnist" and "mnist" (60,000; "/test": 10,000): 28 x 28 grey in ten classes. "cifar10" (50,000; "/test":
    10,000): 32 x 32 colour in ten classes. "emoji" (3,786): 64 x 64 colour, laid on white, by category.

    Read from `folder`, else from $NEARZERO_DATA or the cache, else from what a system package installs. Raises
    DataError where they are not there, or damaged. References: Xiao et al., Fashion-MNIST, 2017; LeCun et al., MNIST;
    Krizhevsky, Learning multiple layers of features from tiny images, 2009; Noto Emoji.
    """
    if name not in SPLITS:
        raise DataError(f"unknown data set {name!r}; known: {', '.join(SPLITS)}")
    data_set = name.partition("/")[0]
    folder = place(data_set) if folder is None else folder
    if data_set == "cifar10":
        return _cifar10(name, folder)
    if data_set == "emoji":
        return _emoji(folder)
    return _idx(name, folder)


def _idx(name: str, folder: Path) -> Images:
    """Fashion-MNIST, whose files are packed by gzip, and MNIST, whose files are not."""
    packed, classes = (".gz", FASHION_MNIST) if name.startswith("fashion") else ("", DIGITS)
    pixels = read_idx(folder / f"{SPLITS[name]}-images-idx3-ubyte{packed}", (28, 28))
    labels = read_idx(folder / f"{SPLITS[name]}-labels-idx1-ubyte{packed}", ())
    return _images(name, folder, pixels[:, None], labels, classes)


def _cifar10(name: str, folder: Path) -> Images:
    """Pictures that hold an image in each line, 32 x 32 colours from the left, and a list of labels."""
    paths = [folder / f"{SPLITS[name]}-{k}.png" for k in range(1, 2 if name.endswith("test") else 6)]
    with ThreadPoolExecutor(len(paths)) as pool:
        pixels = np.concatenate(list(pool.map(_lines, paths)))
    labels = _json(folder / f"{SPLITS[name]}.json")
    if not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise DataError(f"{folder} has labels of {name} that are no small numbers; fetch it again")
    return _images(name, folder, pixels.transpose(0, 3, 1, 2), np.array(labels, np.uint8), CIFAR10)


def _lines(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.mode != "RGB" or picture.width != 32 * 32 or picture.height > _BATCH:
                raise DataError(f"{path} is no picture of CIFAR-10 ({picture.mode}, {picture.size}); fetch it again")
            return np.asarray(picture).reshape(-1, 32, 32, 3)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # decoders fail on damaged bytes in every way
        raise DataError(f"{path} is damaged ({shown(error)}); fetch it again") from error


def _emoji(folder: Path) -> Images:
    """One picture a file; emoji.json names the category of each, that of an emoji being that of its skin tones too."""
    path = folder / "emoji.json"
    try:
        category = {}
        for entry in _json(path):
            for one in (entry, *entry.get("skin_variations", {}).values()):
                category[one["image"]] = entry["category"]
        files = sorted(file for file in (folder / SPLITS["emoji"]).iterdir())
        members = [Member(shown(file), (category[file.name], file.name), lambda file=file: file) for file in files]
    except (KeyError, TypeError, AttributeError, OSError) as error:
        raise DataError(f"{path} does not name the pictures beside it ({shown(error)}); fetch it again") from error
    return read_members(members, "folder", "emoji", Reading(channels=3))


def _json(path: Path) -> list:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is missing or damaged ({shown(error)}); fetch it again") from error
    if not isinstance(content, list):
        raise DataError(f"{path} holds no list; fetch it again")
    return content


def _images(name: str, folder: Path, pixels: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> Images:
    if len(pixels) != len(labels):
        raise DataError(f"{folder} has {len(pixels)} images and {len(labels)} labels of {name}; fetch it again")
    if len(labels) and labels.max() >= len(classes):
        raise DataError(f"{folder} has labels of {name} other than 0 to {len(classes) - 1}; fetch it again")
    return Images(
        torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(labels.astype(np.int64)), classes, name
    )


def read_idx(path: Path, shape: tuple[int, ...], limit: int = 2**28) -> np.ndarray:
    """An IDX file of bytes, .gz or not, uint8 (n, *shape), of at most `limit` bytes. Raises DataError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there; fetch it again, or name its folder's parent in NEARZERO_DATA") from error
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
