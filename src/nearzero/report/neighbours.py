"""The training images nearest to samples: whether a network has copied what it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nearzero.errors import ArgumentError, DataError, NearzeroError
from nearzero.files import contact_sheet, png
from nearzero.metrics.extractors import Extractor, extract

PIECE = 4096  # training images that are compared at once


class Neighbours(NamedTuple):
    """For each query its nearest training images, nearest first: `index` int64 and `distance` float64, both (n, k)."""

    index: Tensor
    distance: Tensor


def nearest(queries: Tensor, training: Tensor, *, count: int = 3, mirrored: bool = False) -> Neighbours:
    """The nearest of uint8 images (N, C, H, W) to each of (n, C, H, W), by the root mean square of pixels, 0 to 255.

        d(a, b)^2 = mean_i (a_i - b_i)^2

    in integers, so that a copy lies at exactly 0. `mirrored`: each query also left to right, whichever is nearer.
    Raises ArgumentError for images of another shape.

    >>> images = torch.arange(8, dtype=torch.uint8).reshape(8, 1, 1, 1)
    >>> nearest(images[5:6] , images, count=2)
    Neighbours(index=tensor([[5, 4]]), distance=tensor([[0., 1.]], dtype=torch.float64))
    """
    if queries.dtype != torch.uint8 or training.dtype != torch.uint8 or queries.shape[1:] != training.shape[1:]:
        raise ArgumentError(f"both must be uint8 of one shape, got {tuple(queries.shape)} and {tuple(training.shape)}")
    found = [_squares(one, training) for one in ((queries, queries.flip(-1)) if mirrored else (queries,))]
    squares = found[0] if len(found) == 1 else torch.minimum(*found)
    return _first(squares.div(queries[0].numel()).sqrt(), count)


def nearest_by_features(
    queries: Tensor, training: Tensor, extractor: Extractor, *, count: int = 3, batch: int = 64
) -> Neighbours:
    """The same by the Euclidean distance of features. Raises what `extract` raises."""
    x, y = (extract(extractor, pixels, batch=batch) for pixels in (queries, training))
    return _first(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist"), count)


def _squares(queries: Tensor, training: Tensor) -> Tensor:
    """Sums of squared differences, float64 (n, N), exact: every term is an integer below 2^53."""
    a = queries.flatten(1).double()
    parts = []
    for piece in training.split(PIECE):
        b = piece.flatten(1).double()
        parts.append(a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T)
    return torch.cat(parts, 1)


def _first(distance: Tensor, count: int) -> Neighbours:
    """The `count` smallest of each line; of equal ones those that come first."""
    value, index = distance.sort(dim=1, stable=True)
    return Neighbours(index[:, :count].contiguous(), value[:, :count].contiguous())


def sheet(queries: Tensor, training: Tensor, found: Neighbours, scale: int = 3) -> bytes:
    """A PNG: in each line a query, then its neighbours, nearest first."""
    lines = [torch.cat([query[None], training[index]]) for query, index in zip(queries, found.index, strict=True)]
    return png(contact_sheet(torch.cat(lines), found.index.shape[1] + 1), scale)


def nearer_than_real(samples: Neighbours, real: Neighbours, share: float = 0.01) -> tuple[int, float]:
    """How many samples lie nearer to a training image than all but `share` of real ones do, and that distance."""
    limit = torch.quantile(real.distance[:, 0], share).item()
    return int((samples.distance[:, 0] < limit).sum()), limit


def squeezenet() -> tuple[Extractor | None, str]:
    """SqueezeNet where its weights have been fetched; otherwise why not, in words."""
    from nearzero.metrics.squeezenet import fetched

    try:
        return fetched(), ""
    except NearzeroError as error:
        return None, str(error)


def median(values: Sequence[float] | Tensor) -> float:
    """The median of nearest distances."""
    return torch.as_tensor(values, dtype=torch.float64).quantile(0.5).item()


def held_out(name: str, size: int, channels: int) -> Tensor:
    """Real images of the same data set that training did not see, uint8. Raises DataError where there are none here."""
    from nearzero.data.named import SPLITS, named

    test = "fashion-mnist/test" if name == "fashion-mnist-2000" else f"{name}/test"
    if test not in SPLITS:
        raise DataError(f"{name} has no images that were held out; name a folder with --test DIR")
    return named(test).fitted(size, channels).pixels
