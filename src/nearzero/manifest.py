"""Checkpoints as folders: what each holds and whether it still does, which is the newest, and which stay.

    {"schema_version": 1, "nearzero": ..., "torch": ..., "step": 1000,
     "files": {"ema.safetensors": {"bytes": 123, "blake2b": "..."}, ...}, "blake2b": hash of all the rest}

It is the last file to be written. The checkpoints of runs of schema version 1 have none, and are taken at their word.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import nearzero
from nearzero.errors import ArgumentError, CheckpointError, DiskError
from nearzero.files import digest, digest_file, read_json, remove_folder, write_json

NAME = "manifest.json"
SCHEMA = 1
_KNOWN: dict[Path, tuple[object, str | None]] = {}


def write_manifest(
    folder: Path, facts: Mapping[str, Any], files: Mapping[str, tuple[int, str]] | None = None
) -> dict[str, Any]:
    """Writes manifest.json: `facts`, versions, and bytes and hash of each file: those told, or of what is there."""
    if files is None:
        files = {name: (path.stat().st_size, digest_file(path)) for name, path in _there(folder).items()}
    record = {
        "schema_version": SCHEMA,
        "nearzero": nearzero.__version__,
        "torch": torch.__version__,
        **facts,
        "files": {name: {"bytes": size, "blake2b": told} for name, (size, told) in sorted(files.items())},
    }
    record["blake2b"] = _digest(record)
    write_json(folder / NAME, record)
    return record


def verify(folder: Path) -> dict[str, Any]:
    """Reads every file of a checkpoint and compares it with the manifest, which is returned.

    Raises CheckpointError that names the first file which is missing, cut short, changed or not named.
    """
    record, there = _read(folder), _there(folder)
    named = record["files"]
    for name in sorted(named.keys() | there.keys()):
        if name not in there:
            raise CheckpointError(f"{folder / name} is missing")
        if name not in named:
            raise CheckpointError(f"{folder / name} is not in the manifest")
    for check in (_check_size, _check_hash):  # first what costs nothing
        for name, path in there.items():
            try:
                check(path, named[name])
            except OSError as error:
                raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if folder.name.isdecimal() and record.get("step") != int(folder.name):
        raise CheckpointError(f"{folder} holds step {record.get('step')}, which is not its name")
    return record


def problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing is; files are read again only where they have changed since."""
    try:
        stamp = _stamp(folder)
        if folder not in _KNOWN or _KNOWN[folder][0] != stamp:
            _KNOWN[folder] = (stamp, _examine(folder))
        return _KNOWN[folder][1]
    except OSError as error:
        return f"{folder}: {error.strerror}"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by their step, newest first."""
    names = os.listdir(folder) if folder.is_dir() else []
    steps = [name for name in names if re.fullmatch("[0-9]{1,18}", name) and (folder / name).is_dir()]
    return [folder / name for name in sorted(steps, key=int, reverse=True)]


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, or None, and what is wrong with each that is newer."""
    while True:
        wrong, gone = [], False
        for path in checkpoints(folder):
            reason = problem(path)
            if reason is None:
                return path, wrong
            gone = gone or not path.exists()  # a run in training has deleted it: there is a newer one
            wrong.append(reason)
        if not gone:
            return None, wrong


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the `last` newest, those whose step `every` divides, and the `best` one.

    The best is that of the lowest "metric" in state.json. Raises ArgumentError for numbers below 1.
    """

    last: int = 1
    every: int | None = None
    best: bool = False

    def __post_init__(self) -> None:
        for name, number in (("last", self.last), ("every", self.every)):
            if number is not None and number < 1:
                raise ArgumentError(f"{name} must be at least 1, got {number}; a run keeps its newest checkpoint")

    def of(self, metrics: Mapping[int, float | None]) -> set[int]:
        """The steps that stay, of those with these metrics.

        >>> sorted(Keep(last=2, every=100, best=True).of({100: 0.5, 130: 0.2, 150: None, 170: 0.4, 190: 0.3}))
        [100, 130, 170, 190]
        """
        stay = set(sorted(metrics)[-self.last :])
        if self.every is not None:
            stay |= {step for step in metrics if step % self.every == 0}
        known = {step: metric for step, metric in metrics.items() if metric is not None}
        return stay | {min(known, key=lambda step: (known[step], -step))} if self.best and known else stay


def thin_out(path: Path, keep: Keep, needed: Collection[int] = ()) -> list[str]:
    """Deletes the checkpoints that may go now that `path` is there: damaged ones and those of later steps too.

    Those of the steps `needed` stay, or the newest before one that is not there, and so does `path`, and what the
    system will not delete. Returns the names.
    """
    step, metrics, there = int(path.name), {}, checkpoints(path.parent)
    for one in there:
        if int(one.name) <= step and problem(one) is None:
            metric = read_json(one / "state.json").get("metric")
            metrics[int(one.name)] = metric if isinstance(metric, int | float) else None
    stay = keep.of(metrics) | {step}
    stay |= {max(before) for one in needed if (before := [other for other in metrics if other <= one])}
    gone = []
    for one in there:
        if int(one.name) not in stay:
            with contextlib.suppress(DiskError):  # the next save tries again
                remove_folder(one)
                gone.append(one.name)
    return gone


def _check_size(path: Path, told: Mapping[str, Any]) -> None:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is no file")
    if found.st_size != told["bytes"]:
        raise CheckpointError(f"{path} has {found.st_size:,} bytes, the manifest says {told['bytes']:,}")


def _check_hash(path: Path, told: Mapping[str, Any]) -> None:
    if digest_file(path) != told.get("blake2b"):
        raise CheckpointError(f"{path} has changed: its hash is not that of the manifest")


def _examine(folder: Path) -> str | None:
    try:
        if (folder / NAME).exists() or not _is_old(folder):
            verify(folder)
    except CheckpointError as error:
        return str(error)
    return None


def _is_old(folder: Path) -> bool:
    """Whether this is a checkpoint of the time before manifests."""
    if not (folder / "state.json").is_file():
        return False
    record = read_json(folder / "state.json")
    return isinstance(record, dict) and "schema_version" not in record and record.get("step") == int(folder.name)


def _read(folder: Path) -> dict[str, Any]:
    """The manifest, if it is one."""
    path = folder / NAME
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if path.is_symlink():
        raise CheckpointError(f"{path} is no file")
    try:
        record = read_json(path)
        told = record.pop("blake2b", None) if isinstance(record, dict) else None
        found = _digest(record)
    except (CheckpointError, RecursionError) as error:
        raise CheckpointError(f"{path} has changed: it is no valid JSON") from error
    version = record.get("schema_version") if isinstance(record, dict) else None
    if isinstance(version, int) and version > SCHEMA:
        raise CheckpointError(f"{path} has schema version {version}, this nearzero reads up to {SCHEMA}; upgrade it")
    if told != found or version != SCHEMA:
        raise CheckpointError(f"{path} has changed: its hash is not the one that it ends with")
    files = record.get("files")
    if not isinstance(files, dict) or not all(
        isinstance(one, dict) and isinstance(one.get("bytes"), int) for one in files.values()
    ):
        raise CheckpointError(f"{path} names no files")
    return record


def _digest(record: Any) -> str:
    return digest(json.dumps(record, sort_keys=True).encode())


def _there(folder: Path) -> dict[str, Path]:
    """What lies in a folder, but for the manifest and hidden files, which nothing reads."""
    names = sorted(name for name in os.listdir(folder) if name != NAME and not name.startswith("."))
    return {name: folder / name for name in names}


def _stamp(folder: Path) -> object:
    """What changes whenever a file of the folder does."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    return sorted((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in found)
