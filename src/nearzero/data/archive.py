"""A .zip of image files as `Images`: read in place, nothing is ever written to the disk.

An archive is a stranger's: its list of entries is checked whole before the first image is decoded, against the limits
below and for names that lead out of it. Nothing is trusted that it says of itself: what an entry yields ends at the
size that was checked, and the sizes are checked against the file's own.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nearzero.data.folder import TAKES, Bad, Member, OnBad, Reading, is_hidden, read_members, shown
from nearzero.data.images import Images
from nearzero.errors import DataError

MAX_ENTRIES = 300_000
MAX_DIRECTORY_BYTES = 128 * MAX_ENTRIES  # of the list of entries, names included
MAX_ENTRY_BYTES = 200_000_000
MAX_TOTAL_BYTES = 100_000_000_000
MAX_RATIO = 100  # unpacked to packed, of each entry and of all together
FREE_BYTES = 1_000_000  # what is this small may be packed as tightly as it likes
_ARCHIVES = re.compile(r"\.(zip|npz|jar|tar|tgz|tbz2?|txz|gz|bz2|xz|zst|7z|rar|lz4|lzma|cab|iso)$", re.IGNORECASE)
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_archive(
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    channels: int | None = None,
    bad: Bad = "error",
    on_bad: OnBad | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Images:
    """The images of a .zip, as `read_folder` gives them for the folder that was packed.

    A folder that holds everything and is named like the archive counts as the archive itself. Raises DataError for an
    entry that is absolute, leads out by "..", is a link or a device, is encrypted, stands twice or is an archive, and
    beyond the limits of this module.
    """
    path = Path(path)
    how = Reading(size, channels, bad, on_bad, progress)
    with archive_members(path) as members:
        return read_members(members, "archive", path.stem, how)


@contextlib.contextmanager
def archive_members(path: Path) -> Iterator[list[Member]]:
    """Every file of a .zip that counts as one of its images, in order, while it is open. Raises DataError."""
    with opened(path, MAX_ENTRY_BYTES) as (archive, entries):
        members = []
        for parts, entry in _below(entries, path.stem):
            if any(is_hidden(part) for part in parts):
                continue
            if _ARCHIVES.search(parts[-1]):
                raise _refused(path, entry, "is an archive in an archive", "unpack it")
            members.append(Member(_name(path, entry), parts, lambda entry=entry: io.BytesIO(_read(archive, entry))))
        if not members:
            raise DataError(f"{shown(path)} holds no images; {TAKES}")
        yield sorted(members, key=lambda member: member.parts)


@contextlib.contextmanager
def opened(path: Path, entry_bytes: int) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
    """A .zip and its files, after every check. Raises DataError."""
    if not path.exists():
        raise DataError(f"{shown(path)} does not exist; {TAKES}")
    if not path.is_file():
        raise DataError(f"{shown(path)} is no regular file; {TAKES}")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_Bounded(io.FileIO(path)))
            archive = stack.enter_context(zipfile.ZipFile(file))
        except (DataError, MemoryError):
            raise
        except Exception as error:  # a damaged list of entries fails in every way
            reason = shown(" ".join(str(error).split()))
            raise DataError(f"{shown(path)} is no readable .zip archive ({reason}); make it anew") from error
        file.limit = None
        _check(path, archive.infolist(), entry_bytes)
        yield archive, [entry for entry in archive.infolist() if not entry.is_dir()]


class _Bounded(io.BufferedReader):
    """A file that refuses to hand out a list of entries of any length that it states."""

    limit: int | None = MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if self.limit is not None and size is not None and size > self.limit:
            raise DataError(
                f"{shown(self.raw.name)} lists its entries in {size:,} bytes, more than {self.limit:,}; "  # pyright: ignore[reportAttributeAccessIssue]
                "unpack it and name the folder"
            )
        return super().read(size)


def _check(path: Path, entries: Sequence[zipfile.ZipInfo], entry_bytes: int) -> None:
    if len(entries) > MAX_ENTRIES:
        raise DataError(
            f"{shown(path)} has {len(entries):,} entries, more than {MAX_ENTRIES:,}; unpack it and name the folder"
        )
    seen = set()
    for entry in entries:
        _check_name(path, entry)
        _check_kind(path, entry)
        _check_size(path, entry, entry_bytes)
        parts = _parts(entry)
        if parts in seen:
            raise _refused(path, entry, "stands twice in it", "make it anew")
        seen.add(parts)
    packed, total, there = sum(e.compress_size for e in entries), sum(e.file_size for e in entries), path.stat().st_size
    if packed > there:
        raise DataError(f"{shown(path)} has entries of {packed:,} bytes in a file of {there:,}; make it anew")
    if total > MAX_TOTAL_BYTES:
        raise DataError(f"{shown(path)} unpacks to {total:,} bytes, more than {MAX_TOTAL_BYTES:,}; split it")
    if total > FREE_BYTES and total > MAX_RATIO * there:
        raise DataError(f"{shown(path)} unpacks to {total // there:,} times its size, more than {MAX_RATIO}; refused")


def _check_name(path: Path, entry: zipfile.ZipInfo) -> None:
    name = entry.orig_filename
    remedy = "make the archive anew from inside its folder"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise _refused(path, entry, "has an absolute path", remedy)
    if "\\" in name or "\0" in name:
        raise _refused(path, entry, "has a backslash or a zero byte in its name", remedy)
    if ".." in name.split("/"):
        raise _refused(path, entry, "leads out of it by ..", remedy)
    if not _parts(entry) and not entry.is_dir():
        raise _refused(path, entry, "has no name", remedy)


def _check_kind(path: Path, entry: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise _refused(path, entry, "is a link", "put the file itself into the archive")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused(path, entry, "is a device or a pipe", "take it out of the archive")
    if entry.flag_bits & _ENCRYPTED:
        raise _refused(path, entry, "is encrypted", "make the archive anew without a password")
    if entry.compress_type not in _METHODS:
        raise _refused(path, entry, f"is packed by method {entry.compress_type}", "use deflate or no compression")


def _check_size(path: Path, entry: zipfile.ZipInfo, most: int) -> None:
    if entry.file_size > most:
        raise _refused(path, entry, f"unpacks to {entry.file_size:,} bytes, more than {most:,}", "make it smaller")
    if entry.file_size > FREE_BYTES and entry.file_size > MAX_RATIO * entry.compress_size:
        ratio = entry.file_size // max(1, entry.compress_size)
        raise _refused(path, entry, f"unpacks to {ratio:,} times its size, more than {MAX_RATIO}", "store it unpacked")


def _parts(entry: zipfile.ZipInfo) -> tuple[str, ...]:
    return tuple(part for part in entry.filename.split("/") if part not in ("", "."))


def _below(entries: Sequence[zipfile.ZipInfo], stem: str) -> list[tuple[tuple[str, ...], zipfile.ZipInfo]]:
    """Every file and where it lies, without the folder around everything that is named like the archive."""
    found = [(_parts(entry), entry) for entry in entries]
    inside = [parts for parts, _ in found if not any(is_hidden(part) for part in parts)]
    if inside and all(len(parts) > 1 and parts[0] == stem for parts in inside):
        return [(parts[1:] or parts, entry) for parts, entry in found]
    return found


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """An entry's bytes: never more than the size that was checked, and exactly that many."""
    with archive.open(entry) as file:
        content = file.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise DataError(f"{len(content):,} bytes instead of {entry.file_size:,}")
    return content


def _name(path: Path, entry: zipfile.ZipInfo) -> str:
    return shown(f"{path}/{entry.filename}")


def _refused(path: Path, entry: zipfile.ZipInfo, why: str, remedy: str) -> DataError:
    return DataError(f"{_name(path, entry)} {why}; {remedy}")
