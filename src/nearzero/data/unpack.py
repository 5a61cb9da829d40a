"""Packages read in place, member by member: .tgz and .tar.gz, the .tar.xz in a .deb, .whl. Nothing is unpacked here.

The reader of tar knows plain files and folders, which is all that the packages of `sources` hold, and refuses
everything else: links, devices, names that lead out, extensions of the format, more bytes than the limits below.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from nearzero.data.archive import FREE_BYTES, MAX_ENTRIES, MAX_ENTRY_BYTES, MAX_RATIO, opened
from nearzero.data.folder import shown
from nearzero.errors import DataError

MAX_TOTAL_BYTES = 4_000_000_000
_BLOCK = 512
_PIECE = 2**20
_FILE, _FOLDER = (b"0", b"\0"), b"5"


def members(path: Path, suffix: str) -> Iterator[tuple[str, Iterator[bytes]]]:
    """(name, content in pieces) of every file of a package, in its order; a content is read before the next is asked.

    `suffix` says what the package is: ".whl", ".deb", or else a tar packed by gzip. Raises DataError for a
    package that is damaged, or holds what no package of ours does: the whole is then refused.
    """
    if suffix == ".whl":
        yield from _zip(path)
    elif suffix == ".deb":
        yield from _deb(path)
    else:
        with gzip.open(path) as file:
            yield from _tar(_Counted(file, path), path)


def _zip(path: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    with opened(path, MAX_ENTRY_BYTES) as (archive, entries):
        for entry in entries:
            with archive.open(entry) as file:
                yield entry.filename, _Content(file, entry.file_size, path)


def _deb(path: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The files of a Debian package: an ar archive whose member data.tar.xz holds them."""
    try:
        import lzma
    except ImportError as error:
        raise DataError(f"{shown(path)} is packed by xz, and this Python was built without lzma") from error
    with path.open("rb") as file:
        packed = _ar(file, "data.tar.xz", path)
    with lzma.open(packed) as file:
        yield from _tar(_Counted(file, path), path)


def _ar(file: IO[bytes], wanted: str, path: Path) -> IO[bytes]:
    """A member of an ar archive: a line of 60 bytes, its content, a byte where that is odd."""
    if file.read(8) != b"!<arch>\n":
        raise DataError(f"{shown(path)} is no Debian package; fetch it again")
    while header := file.read(60):
        match = re.fullmatch(rb"([^ /]{1,16})/? *.{32}(\d{1,10}) *`\n", header, re.DOTALL)
        if match is None or len(header) < 60:
            raise DataError(f"{shown(path)} is damaged (its list of members); fetch it again")
        content = file.read(int(match[2]))
        if match[1] == wanted.encode():
            return io.BytesIO(content)
        file.read(len(content) % 2)
    raise DataError(f"{shown(path)} holds no {wanted}; fetch it again")


class _Counted:
    """A decompressor that stops at a total."""

    def __init__(self, file: io.BufferedIOBase, path: Path) -> None:
        self.file, self.path, self.total = file, path, 0
        self.limit = min(MAX_TOTAL_BYTES, max(FREE_BYTES, MAX_RATIO * path.stat().st_size))

    def read(self, size: int) -> bytes:
        """At most so many bytes. Raises DataError beyond the limit."""
        piece = self.file.read(size)
        self.total += len(piece)
        if self.total > self.limit:
            raise DataError(f"{shown(self.path)} unpacks to more than {self.limit:,} bytes; refused")
        return piece


class _Content:
    """Exactly `size` bytes of a file, in pieces."""

    def __init__(self, file: IO[bytes] | _Counted, size: int, path: Path) -> None:
        self.file, self.left, self.path = file, size, path

    def __iter__(self) -> _Content:
        return self

    def __next__(self) -> bytes:
        if not self.left:
            raise StopIteration
        try:
            piece = self.file.read(min(_PIECE, self.left))
        except (DataError, MemoryError):
            raise
        except Exception as error:  # decompressors fail on damaged bytes in every way
            raise DataError(f"{shown(self.path)} is damaged ({shown(error)}); fetch it again") from error
        if not piece:
            raise DataError(f"{shown(self.path)} ends in the middle of a member; fetch it again")
        self.left -= len(piece)
        return piece


def _tar(file: _Counted, path: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    seen = set()
    while True:
        header = b"".join(_Content(file, _BLOCK, path))
        if not any(header):
            return
        name, size, kind = _header(header, path)
        if kind == _FOLDER and size == 0:
            continue
        if kind not in _FILE:
            raise _refused(path, name, "is neither a file nor a folder")
        if name in seen:
            raise _refused(path, name, "stands twice in it")
        seen.add(name)
        if len(seen) > MAX_ENTRIES:
            raise DataError(f"{shown(path)} holds more than {MAX_ENTRIES:,} files; refused")
        content = _Content(file, size, path)
        yield name, content
        for _ in content:  # what nobody read
            pass
        for _ in _Content(file, -size % _BLOCK, path):
            pass


def _header(header: bytes, path: Path) -> tuple[str, int, bytes]:
    """Name, size and kind of a tar member; the sum of its bytes must be what it says."""
    total = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    if _octal(header[148:156], path) != total:
        raise DataError(f"{shown(path)} is damaged (a member's header); fetch it again")
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    raw = header[:100].split(b"\0")[0]
    name = (prefix + b"/" + raw if prefix else raw).decode("utf-8", "backslashreplace")
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or ":" in name or not name.isprintable():
        raise _refused(path, name, "has a name that leads out of it")
    size = _octal(header[124:136], path)
    if size > MAX_ENTRY_BYTES:
        raise _refused(path, name, f"has {size:,} bytes, more than {MAX_ENTRY_BYTES:,}")
    return name.removeprefix("./"), size, header[156:157]


def _octal(field: bytes, path: Path) -> int:
    digits = field.strip(b"\0 ")
    if not re.fullmatch(rb"[0-7]{1,20}", digits):
        raise DataError(f"{shown(path)} is damaged (a member's header); fetch it again")
    return int(digits, 8)


def _refused(path: Path, name: str, why: str) -> DataError:
    return DataError(f"{shown(path)}/{shown(name)} {why}; refused")
