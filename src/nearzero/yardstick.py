"""Real images to measure samples by: their features, computed once, and what real images show of each other."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearzero.data.images import Images
from nearzero.errors import DataError
from nearzero.files import digest
from nearzero.metrics.bootstrap import floor
from nearzero.metrics.cache import cache_folder, read_kept, tensor_hash, write_tensors
from nearzero.metrics.extractors import BLOCK, Extractor, extract, identity
from nearzero.metrics.frechet import Statistics, frechet_distance, merged
from nearzero.metrics.precision_recall import precision_recall
from nearzero.metrics.spectrum import spectrum_distance

Progress = Callable[[str, int, int], None]
"""Told the stage, what is done and of how much: sampling counts images, as the other stages do."""
FEWEST = 8
NEAREST = 5000
"""How many images on each side precision and recall are told of, whose cost grows as the square."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images, their features float64 (M, d) and statistics, and `about`, what they and the extractor are."""

    images: Images
    extractor: Extractor
    features: Tensor
    statistics: Statistics
    about: Mapping[str, Any]
    _floors: dict[int, Mapping[str, Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, images: Images, extractor: Extractor, progress: Progress = lambda stage, done, of: None) -> Reference:
        """Computes the features, or reads those that a call before kept in the cache.

        Raises DataError for fewer than 8 images, and what the extractor raises.
        """
        if len(images) < FEWEST:
            raise DataError(f"{images.name} holds {len(images)} images; a reference needs at least {FEWEST}")
        features = features_of(
            extractor, images.pixels, cache_folder() / "features", lambda done, of: progress("reference", done, of)
        )
        told = {"name": images.name, "count": len(images), "fingerprint": images.fingerprint()}
        about = {
            "metric": extractor.title,
            "extractor": {key: getattr(extractor, key) for key in ("name", "preprocessing", "weights")},
            "reference": {**told, "size": images.size, "channels": images.channels},
        }
        name = identity(extractor)
        statistics = merged(Statistics.of(block, name) for block in features.split(BLOCK))
        return cls(images, extractor, features, statistics, about)

    def order(self) -> Tensor:
        """The images in an order of chance, the same one in every call: data sets are often sorted by class."""
        return torch.randperm(len(self.images), generator=torch.Generator().manual_seed(0))

    def floors(self, count: int) -> Mapping[str, Any]:
        """The numbers of `count` real images in place of samples, against all others; empty for fewer than 2 `count`.

        Precision, recall and the spectrum are those against as many others.
        """
        if 2 * count > len(self.images):
            return {}
        if count not in self._floors:
            real, other = self.order().split([count, len(self.images) - count])
            near, other = other[: min(count, NEAREST)], other[:count]
            with warnings.catch_warnings():  # said of the samples, of whom there are as many
                warnings.filterwarnings("ignore", message="rank-deficient")
                distance = floor(self.features, count, len(self.images) - count, distance=frechet_distance)
            found = precision_recall(self.features[real[: len(near)]], self.features[near])
            spectrum = spectrum_distance(self.images.pixels[real], self.images.pixels[other])
            self._floors[count] = {"distance": distance, **found._asdict(), "log spectrum, dB": spectrum}
        return self._floors[count]


def features_of(
    extractor: Extractor, pixels: Tensor, folder: Path, progress: Callable[[int, int], None] = lambda done, of: None
) -> Tensor:
    """Features, float64 (N, d), of uint8 images (N, C, H, W), in blocks of 2,048 that are kept in `folder`.

    A block's file is named by a hash of its pixels and of the extractor, so images that were seen cost no network.
    Raises DataError where a file is damaged, and what the extractor raises.
    """
    told = {key: getattr(extractor, key) for key in ("name", "preprocessing", "weights")}
    found, done = [], 0
    for block in pixels.split(BLOCK):
        about = {**told, "pixels": tensor_hash({"pixels": block})}
        path = folder / f"{digest(json.dumps(about, sort_keys=True).encode())}.safetensors"
        if not path.exists():
            new = extract(extractor, block, progress=lambda part, _, start=done: progress(start + part, len(pixels)))
            short = new.float()  # what a network of float32 gives, in half the bytes
            write_tensors(path, {"features": short if torch.equal(short.double(), new) else new}, about)
        else:
            progress(done + len(block), len(pixels))
        found.append(read_kept(path, about)[0]["features"].double())
        done += len(block)
    return torch.cat(found)
