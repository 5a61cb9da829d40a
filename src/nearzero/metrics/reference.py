"""The statistics of a reference set of images, kept between runs under a hash of all that they depend on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nearzero.data.images import Images
from nearzero.errors import DataError
from nearzero.files import digest
from nearzero.metrics.cache import cache_folder, read_kept, write_tensors
from nearzero.metrics.extractors import Extractor, statistics
from nearzero.metrics.frechet import Statistics


def save_statistics(path: Path, found: Statistics, facts: Mapping[str, Any] | None = None) -> None:
    """Writes statistics and facts about them as one safetensors file, atomically."""
    told = {"count": found.count, "extractor": found.extractor, **(facts or {})}
    write_tensors(path, {"mean": found.mean, "covariance": found.covariance}, told)


def load_statistics(path: Path, about: Mapping[str, Any] | None = None) -> Statistics:
    """What `save_statistics` wrote. Raises DataError where it is damaged, or holds other facts than `about` says."""
    tensors, facts = read_kept(path, about or {})
    try:
        return Statistics(facts["count"], tensors["mean"], tensors["covariance"], facts["extractor"])
    except KeyError as error:
        raise DataError(f"{path} is damaged: it holds no statistics; delete it") from error


def reference_statistics(
    extractor: Extractor,
    images: Images,
    folder: Path | None = None,
    *,
    count: int | None = None,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """The statistics of the first `count` images, all unless given, computed once and kept in `folder`.

    The folder is "statistics" in the cache unless given. The file's name is a hash of the extractor's name,
    preprocessing and weights, of every pixel, and of the count. It is read only if it is whole and about the same: a
    damaged one raises DataError and is never computed anew in silence. Raises what `statistics` raises.
    """
    about = {
        "name": extractor.name,
        "preprocessing": extractor.preprocessing,
        "weights": extractor.weights,
        "data": images.fingerprint(),
        "count": len(images) if count is None else count,
    }
    kept_in = cache_folder() / "statistics" if folder is None else folder
    path = kept_in / f"{digest(json.dumps(about, sort_keys=True).encode())}.safetensors"
    if not path.exists():
        found = statistics(extractor, images.pixels, count=count, batch=batch, progress=progress)
        save_statistics(path, found, about)
        return found
    return load_statistics(path, about)
