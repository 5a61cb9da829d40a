"""What a set of images is, without training on it: count, sizes, classes, mean, spread, bad files, duplicates.

Each image is looked at by itself, so images of different sizes and files that are no images are counted, not refused,
and no more than a few images are in memory at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nearzero.data.archive import archive_members
from nearzero.data.folder import Member, Reading, folder_members, labels_of, look
from nearzero.data.images import Images, as_tensor, resize

TILE = 128  # pixels that an image of the sample has at most
_AHEAD = 32  # files decoded ahead of the one that is counted
_PIECE = 2**22  # pixels counted at once


@dataclass
class Survey:
    """What was found. Where some images are colour, the grey ones count in each of the three channels."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """How many images have each (width, height)."""
    channels: Counter[int] = field(default_factory=Counter)
    """How many images are grey (1) and colour (3)."""
    values: np.ndarray = field(default_factory=lambda: np.zeros((3, 256), np.int64))
    """How many pixels of each channel have each value."""
    classes: list[tuple[str, int]] | None = None
    """Names of the classes and how many images each has; None without labels."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Files that are no readable images, and why."""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """Images whose pixels are those of an earlier one, and that one."""
    sample: list[np.ndarray] = field(default_factory=list)
    """A few images, drawn by a seed, in their order; larger ones are brought to TILE pixels."""

    @property
    def count(self) -> int:
        """Images that can be read."""
        return self.channels.total()

    def moments(self) -> list[tuple[float, float]]:
        """Mean and standard deviation of each channel, in 0 to 255: exact sums, rounded once. Empty without images."""
        return [_moments(values) for values in self._used()]

    def data_std(self) -> float | None:
        """The standard deviation of all pixels of all channels together, in [-1, 1]: EDM's sigma_data."""
        return _moments(self._used().sum(0))[1] / 127.5 if self.count else None

    def picture(self) -> Tensor:
        """The sample as uint8 (N, C, H, W); images of different sizes become squares of the largest side."""
        arrays = self.sample
        if len({array.shape[:2] for array in arrays}) > 1:
            side = max(max(array.shape[:2]) for array in arrays)
            arrays = [np.asarray(resize(Image.fromarray(array), side)) for array in arrays]
        if any(array.ndim == 3 for array in arrays):
            arrays = [np.dstack([array] * 3) if array.ndim == 2 else array for array in arrays]
        return as_tensor(arrays)

    def _used(self) -> np.ndarray:
        return self.values[: 3 if self.channels[3] else min(1, self.count)]


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of a population in which 0 to 255 stand so many times."""
    counts = [int(count) for count in values]
    n = sum(counts)
    first = sum(v * count for v, count in enumerate(counts))
    second = sum(v * v * count for v, count in enumerate(counts))
    return float(Fraction(first, n)), math.sqrt(Fraction(n * second - first**2, n**2))


def survey_images(
    images: Images, sample: int = 0, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Survey:
    """The survey of images that are in memory, with `sample` of them drawn by `seed`; they are called image 0, ...

    >>> from nearzero.data import embedded
    >>> survey_images(embedded()).sizes
    Counter({(28, 28): 2000})
    """
    tally = _Tally(len(images), sample, seed)
    for index, pixels in enumerate(images.pixels):
        array = pixels[0].numpy() if images.channels == 1 else pixels.permute(1, 2, 0).numpy()
        tally.add(index, f"image {index}", array)
        if progress is not None:
            progress(index + 1, len(images))
    return tally.done(images.labels, images.classes)


def survey_files(
    path: Path,
    size: int | None = None,
    channels: int | None = None,
    sample: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """The same of a folder or a .zip of image files. Raises DataError and ArgumentError as `read_images` does."""
    how, good = Reading(size, channels), []
    with contextlib.ExitStack() as stack:
        if path.suffix.lower() == ".zip" and not path.is_dir():
            place, members = "archive", stack.enter_context(archive_members(path))
        else:
            place, members = "folder", folder_members(path)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the reader has a lower limit, as an error
        tally = _Tally(len(members), sample, seed)
        for index, found in enumerate(_looked(members, place, how)):
            if isinstance(found, str):
                tally.survey.bad.append((members[index].name, found))
            else:
                tally.add(index, members[index].name, found)
                good.append(index)
            if progress is not None:
                progress(index + 1, len(members))
    if not good:
        return tally.done(None, ())
    return tally.done(*labels_of([member.parts for member in members], good))


def _looked(members: Sequence[Member], place: str, how: Reading) -> Iterator[np.ndarray | str]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(members), _AHEAD):
            yield from pool.map(lambda member: look(member, place, how), members[start : start + _AHEAD])


class _Tally:
    """Adds images to a survey one by one, in their order."""

    def __init__(self, total: int, sample: int, seed: int) -> None:
        self.survey = Survey()
        self.first: dict[bytes, str] = {}
        self.ranks = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
        self.sample = sample
        self.drawn: list[tuple[int, int, np.ndarray]] = []  # those of the lowest ranks, the highest of them first

    def add(self, index: int, name: str, image: np.ndarray) -> None:
        """Counts an image, uint8 (H, W) or (H, W, 3)."""
        found = self.survey
        found.sizes[image.shape[1], image.shape[0]] += 1
        found.channels[1 if image.ndim == 2 else 3] += 1
        planes = [image] if image.ndim == 2 else [image[..., channel] for channel in range(3)]
        found.values += np.stack([_counted(plane) for plane in planes])
        content = hashlib.blake2b(f"{image.shape}".encode(), digest_size=16)
        content.update(np.ascontiguousarray(image).data)
        first = self.first.setdefault(content.digest(), name)
        if first != name:
            found.duplicates.append((name, first))
        if self.sample:
            self._draw(index, image)

    def _draw(self, index: int, image: np.ndarray) -> None:
        if len(self.drawn) == self.sample and -self.ranks[index] < self.drawn[0][0]:
            return
        tile = np.asarray(resize(Image.fromarray(image), TILE)) if max(image.shape[:2]) > TILE else image
        heapq.heappush(self.drawn, (-self.ranks[index], index, tile))
        if len(self.drawn) > self.sample:
            heapq.heappop(self.drawn)

    def done(self, labels: Tensor | None, classes: Sequence[str]) -> Survey:
        """The survey, with its classes and the sample."""
        if labels is not None:
            counts = torch.bincount(labels, minlength=len(classes)).tolist()
            self.survey.classes = list(zip(classes, counts, strict=True))
        self.survey.sample = [tile for _, _, tile in sorted(self.drawn, key=lambda one: one[1])]
        return self.survey


def _counted(plane: np.ndarray) -> np.ndarray:
    """How often each value 0 to 255 stands in an array."""
    flat = plane.reshape(-1)
    parts = (np.bincount(flat[i : i + _PIECE], minlength=256) for i in range(0, len(flat), _PIECE))
    return sum(parts, np.zeros(256, np.int64))
