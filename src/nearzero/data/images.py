"""A set of images, decoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nearzero.errors import ArgumentError, DataError
from nearzero.files import digest

FASHION_MNIST = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True, eq=False)
class Images:
    """uint8 pixels (N, C, H, W) with C = 1 (grey) or 3 (RGB), and labels int64 (N,) into `classes` if there are any."""

    pixels: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = field(default=())
    name: str = "images"

    def __post_init__(self) -> None:
        if (
            self.pixels.dtype != torch.uint8
            or self.pixels.ndim != 4
            or self.pixels.shape[1] not in (1, 3)
            or not len(self.pixels)
        ):
            raise DataError(
                f"images must be uint8 (N, 1 or 3, H, W), got {self.pixels.dtype} {tuple(self.pixels.shape)}"
            )
        if self.pixels.shape[2] != self.pixels.shape[3]:
            height, width = self.pixels.shape[2:]
            raise DataError(f"images are {width} x {height} pixels, not square; use --size to crop them")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return self.pixels.shape[1]

    @property
    def size(self) -> int:
        """Width and height in pixels."""
        return self.pixels.shape[2]

    def fitted(self, size: int | None = None, channels: int | None = None) -> Images:
        """The same images brought to `size` pixels, or to `channels` (1 or 3), where these are given."""
        if channels not in (None, 1, 3):
            raise ArgumentError(f"--channels must be 1 (grey) or 3 (colour), got {channels}")
        if size in (None, self.size) and channels in (None, self.channels):
            return self
        arrays = []
        for pixels in self.pixels:
            array = pixels[0].numpy() if self.channels == 1 else pixels.permute(1, 2, 0).numpy()
            image = _as_image(array, channels)
            arrays.append(np.asarray(image if size is None else resize(image, size)))
        return replace(self, pixels=as_tensor(arrays))

    def fingerprint(self) -> str:
        """A hash of every pixel and label: equal for equal training data."""
        labels = b"" if self.labels is None else self.labels.numpy().tobytes()
        return digest(str(tuple(self.pixels.shape)).encode(), self.pixels.numpy().tobytes(), labels)

    def describe(self) -> dict[str, Any]:
        """What a run records of its data."""
        return {
            "name": self.name,
            "count": len(self),
            "channels": self.channels,
            "size": self.size,
            "classes": list(self.classes),
            "fingerprint": self.fingerprint(),
        }


def embedded(size: int | None = None) -> Images:
    """2,000 Fashion-MNIST images, 28 x 28 grey, 200 of each of 10 classes, or resized to `size`.

    Xiao et al., Fashion-MNIST, 2017; MIT licence, copyright 2017 Zalando SE (see the notice beside the file).

    >>> embedded().pixels.shape
    torch.Size([2000, 1, 28, 28])
    """
    with resources.files("nearzero.data").joinpath("fashion_mnist.png").open("rb") as file, Image.open(file) as picture:
        sheet = np.asarray(picture)
    tiles = sheet.reshape(40, 28, 50, 28).swapaxes(1, 2).reshape(2000, 28, 28)  # 40 lines of 50, 4 lines a class
    labels = torch.arange(10).repeat_interleave(200)
    return Images(torch.from_numpy(tiles.copy())[:, None], labels, FASHION_MNIST, "fashion-mnist-2000").fitted(size)


def _as_image(array: np.ndarray, channels: int | None) -> Image.Image:
    image = Image.fromarray(array)
    return image if channels is None else image.convert("L" if channels == 1 else "RGB")


def resize(image: Image.Image, size: int) -> Image.Image:
    """The square in the centre, brought to `size` pixels with antialiasing (Lanczos)."""
    if size < 1:
        raise ArgumentError(f"--size must be a positive number of pixels, got {size}")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def as_tensor(arrays: Sequence[np.ndarray]) -> Tensor:
    """uint8 arrays (H, W) or (H, W, 3) as one tensor (N, C, H, W)."""
    stack = np.stack(arrays)
    return torch.from_numpy(stack[:, None] if stack.ndim == 3 else np.ascontiguousarray(stack.transpose(0, 3, 1, 2)))
