"""The folder that samples lie in.

    000003.png        the image of seed 3
    grid.png          all images of the folder, up to 256, in the order of their seeds
    samples.json      what they depend on, where they come from, and the digest of each
    samples.1.json    the same, of process 1 of several, until all are done
    trajectory.png    the paths of the first eight, where asked for

An image belongs to the folder when its record holds the digest of its file: what a crash left behind, or a hand
changed, is drawn again. Every file appears whole or not at all, images before their record.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearzero.errors import ArgumentError, CheckpointError
from nearzero.files import check_writable, digest, disk_errors, grid_png, read_json, write_bytes, write_json

SCHEMA = 1
SHOWN = 256
ASIDE = re.compile(r"\.(\d{6,}\.png|grid\.png|trajectory\.png|samples(\.\d+)?\.json)\.\w{8}")
"""What `write_bytes` calls a file of ours before it is whole."""


class Folder:
    """A folder of samples of one kind, seen by process `rank` of `world`.

    Raises ArgumentError where it holds images of another kind, or of no known kind, unless `overwrite`, which deletes
    the recorded images of another kind.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        seeds: Iterable[int],
        *,
        overwrite: bool = False,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        check_writable(path)
        if path.exists() and not path.is_dir():
            raise ArgumentError(f"--out {path} is a file; name a folder")
        self.path, self.settings = path, dict(settings)
        self.alone = shard[1] == 1
        self.own = path / ("samples.json" if self.alone else f"samples.{shard[0]}.json")
        self.about: dict[str, Any] = {}
        self._written, self._cost, self._dirty = 0.0, 0.0, False
        documents = self._documents(overwrite)
        foreign = [document for document in documents.values() if document["settings"] != self.settings]
        if foreign and not overwrite:
            raise ArgumentError(self._difference(foreign[0]["settings"]))
        if not documents and not overwrite:
            there = next((seed for seed in seeds if (path / name(seed)).exists()), None)
            if there is not None:
                raise ArgumentError(
                    f"{path / name(there)} exists; use --overwrite to replace it, other --seeds or another --out"
                )
        for file, document in documents.items():
            if document in foreign:
                self._delete(file, document)
        kept = {file: document for file, document in documents.items() if document not in foreign}
        self.recorded = _union(kept.values())
        self.images: dict[int, str] = dict(self.recorded) if self.alone else _union([kept.get(self.own, {})])

    def _difference(self, other: Mapping[str, Any]) -> str:
        names = [key for key in {**self.settings, **other} if self.settings.get(key) != other.get(key)]
        return (
            f"{self.path} holds images of another {', '.join(names)}; choose another --out, "
            "or --overwrite, which deletes them"
        )

    def _documents(self, overwrite: bool) -> dict[Path, dict[str, Any]]:
        """Every record in the folder, the merged one first: what another process merges meanwhile is not counted."""
        names = ("samples.json", *sorted(file.name for file in self.path.glob("samples.*.json")))
        files = [self.path / one for one in names if one == "samples.json" or one.split(".")[1].isdigit()]
        found = {file: _read(file) for file in files}
        for file in files:
            if found[file] is None and file.exists():
                if not overwrite:
                    raise ArgumentError(f"{file} is damaged or not of this nearzero; use --overwrite or another --out")
                with disk_errors(file):
                    file.unlink(missing_ok=True)
        return {file: document for file, document in found.items() if document is not None}

    def _delete(self, file: Path, document: Mapping[str, Any]) -> None:
        with disk_errors(file):
            for seed, known in _union([document]).items():
                if self.digest(seed) == known:
                    (self.path / name(seed)).unlink(missing_ok=True)
            file.unlink(missing_ok=True)

    def digest(self, seed: int) -> str | None:
        """The digest of a seed's file, None where there is none."""
        try:
            return digest((self.path / name(seed)).read_bytes())
        except OSError:
            return None

    def has(self, seed: int) -> bool:
        """Whether a seed's image is there and is the recorded one."""
        return seed in self.recorded and self.digest(seed) == self.recorded[seed]

    def add(self, images: Mapping[int, bytes], **about: Any) -> None:
        """Writes PNG files, then the record, unless records already took a tenth of the time."""
        self.about.update(about)
        if not self.own.exists():
            self._save()  # so that a crash leaves no image of unknown kind
        for seed, content in images.items():
            write_bytes(self.path / name(seed), content)
            self.images[seed] = self.recorded[seed] = digest(content)
            self._dirty = True
        if time.monotonic() - self._written >= 10 * self._cost:
            self._save()

    def flush(self) -> None:
        """Writes the record if an image is missing in it."""
        if self._dirty:
            self._save()

    def _save(self) -> None:
        start = time.monotonic()
        self._write(self.own, self.images, self.about)
        self._written, self._dirty = time.monotonic(), False
        self._cost = self._written - start

    def _write(self, file: Path, images: Mapping[int, str], about: Mapping[str, Any]) -> None:
        listed = {str(seed): images[seed] for seed in sorted(images)}
        write_json(file, {"schema_version": SCHEMA, "settings": self.settings, **about, "images": listed})

    def finish(self, seeds: Iterable[int], **about: Any) -> bool:
        """Merges the records and draws grid.png if the images of `seeds` are all there; tells whether they are."""
        self.flush()
        documents = self._documents(overwrite=False)
        known = _union(documents.values())
        if not all(seed in known and (self.path / name(seed)).exists() for seed in seeds):
            return False
        parts = [file for file in documents if file.name != "samples.json"]
        self.about = {**about, **self._told(documents), **self.about}
        rates = [documents[file].get("images_per_second") or 0 for file in parts]
        if any(rates) and not self.alone:
            self.about["images_per_second"] = sum(rates)
        self._write(self.path / "samples.json", known, self.about)
        for file in parts:
            file.unlink(missing_ok=True)
        good = (seed for seed in sorted(known) if self.digest(seed) == known[seed])
        images = [self._image(seed) for seed in itertools.islice(good, SHOWN)]
        write_bytes(self.path / "grid.png", grid_png(torch.stack(images)))
        if self.alone:
            for file in filter(ASIDE.fullmatch, os.listdir(self.path)):  # what a killed call was writing
                (self.path / file).unlink(missing_ok=True)
        return True

    def _told(self, documents: Mapping[Path, Mapping[str, Any]]) -> dict[str, Any]:
        """What the records say beside settings and images."""
        told: dict[str, Any] = {}
        for document in documents.values():
            told.update(document)
        return {key: value for key, value in told.items() if key not in ("schema_version", "settings", "images")}

    def _image(self, seed: int) -> Tensor:
        """uint8 (C, H, W)."""
        from PIL import Image

        with Image.open(self.path / name(seed)) as image:
            pixels = torch.from_numpy(np.asarray(image).copy())
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def name(seed: int) -> str:
    """The file of a seed."""
    return f"{seed:06d}.png"


def _union(documents: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Digests by seed."""
    return {int(seed): known for document in documents for seed, known in document.get("images", {}).items()}


def _read(file: Path) -> dict[str, Any] | None:
    """A record; None where it is none."""
    try:
        document = read_json(file)
    except CheckpointError:
        return None
    if not isinstance(document, dict) or document.get("schema_version") != SCHEMA:
        return None
    images, settings = document.get("images"), document.get("settings")
    if not isinstance(settings, dict) or not isinstance(images, dict):
        return None
    whole = all(seed.isascii() and seed.isdigit() and isinstance(images[seed], str) for seed in images)
    return document if whole else None
