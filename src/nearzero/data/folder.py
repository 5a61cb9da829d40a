"""A folder of image files as `Images`, and what becomes of files that are no readable image."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from nearzero.data.images import Images, as_tensor, resize
from nearzero.errors import ArgumentError, DataError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000
BAD_IN = 1000  # skip and replace allow one bad image in so many, and one always
NAMED = 3  # how many bad images an error names
TAKES = (
    "--data takes a folder of PNG, JPEG or WebP files, a .zip of them, an .npz or .npy array, or a name of "
    "nearzero data list"
)
_NOT_OURS = {"thumbs.db", "desktop.ini"}  # what file managers leave behind

Bad = Literal["error", "skip", "replace"]
OnBad = Callable[[str, str], None]


@dataclass(frozen=True)
class Reading:
    """How images are read: the options that folders, archives and arrays share. Raises ArgumentError."""

    size: int | None = None
    channels: int | None = None
    bad: Bad = "error"
    on_bad: OnBad | None = None
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and (isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1):
            raise ArgumentError(f"--size must be a positive number of pixels, got {self.size}")
        if self.channels not in (None, 1, 3):
            raise ArgumentError(f"--channels must be 1 (grey) or 3 (colour), got {self.channels}")
        if self.bad not in ("error", "skip", "replace"):
            raise ArgumentError(f"--bad-images must be error, skip or replace, got {self.bad!r}")

    def report(self, name: str, what: str) -> None:
        """Tells `on_bad`, or warns where there is none: nothing is left out in silence."""
        if self.on_bad is None:
            warnings.warn(f"{name} {what}", stacklevel=2)
        else:
            self.on_bad(name, what)


class Member(NamedTuple):
    """A file among images: its name for messages, its folders and name below the root, and its content for Pillow."""

    name: str
    parts: tuple[str, ...]
    content: Callable[[], Path | IO[bytes]]


class _Unreadable(Exception):
    """Why a file is no image, and what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


def shown(name: object) -> str:
    """A name from a file or a disk as one printable line of at most 300 characters.

    >>> shown("two\\nlines" + chr(27) + "[31m.png")
    'two\\\\nlines\\\\x1b[31m.png'
    """
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))
    return line if len(line) <= 300 else f"{line[:140]}...{line[-140:]}"


def read_folder(
    folder: str | os.PathLike[str],
    *,
    size: int | None = None,
    channels: int | None = None,
    bad: Bad = "error",
    on_bad: OnBad | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Images:
    """Every PNG, JPEG and WebP file below `folder`, in the order of their names, decoded into memory.

    `size` brings the shorter side to that many pixels and cuts out the centre; `channels` (1 or 3) makes all images
    grey or colour. Photographs are turned upright (EXIF), transparency is laid on white, 16-bit grey is brought to 8.
    If no image lies in `folder` itself, its subfolders name the classes. Hidden files are left alone.
    `progress(done, total)` is called while decoding.

    What is no readable image is an error that names the first few; with bad="skip" it is left out, with "replace" the
    next readable image stands in for it, label included, as long as it is one image or at most 0.1 % of them, and
    `on_bad(path, what)` is told (without it, a warning). Raises DataError, also for images that do not fit together.
    """
    folder = Path(folder)
    how = Reading(size, channels, bad, on_bad, progress)
    return read_members(folder_members(folder), "folder", folder.resolve().name, how)


def folder_members(folder: Path) -> list[Member]:
    """Every file below a folder that counts as one of its images, in order. Raises DataError where there is none."""
    return [Member(shown(path), path.relative_to(folder).parts, lambda path=path: path) for path in _list(folder)]


def is_hidden(part: str) -> bool:
    """Whether a file or folder of this name is left alone."""
    return part.startswith(".") or part.lower() in _NOT_OURS


def _list(folder: Path) -> list[Path]:
    if not folder.exists():
        raise DataError(f"{shown(folder)} does not exist; {TAKES}")
    if not folder.is_dir():
        raise DataError(f"{shown(folder)} is a file; {TAKES}")

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot list {shown(error.filename)}: {error.strerror}; make it readable") from error

    paths = []
    for root, names, files in os.walk(folder, onerror=refuse):  # does not follow links to folders, so it ends
        names[:] = sorted(name for name in names if not name.startswith("."))
        paths += [Path(root, file) for file in files if not is_hidden(file)]
    if not paths:
        raise DataError(f"{shown(folder)} holds no images; {TAKES}")
    return sorted(paths)


def read_members(members: Sequence[Member], place: str, name: str, how: Reading) -> Images:
    """Images called `name` from files that lie in a "folder" or an "archive"."""
    found = _decode_all(members, place, how)
    chosen = _settle(members, found, place, how)
    arrays = [array for i in chosen if isinstance(array := found[i], np.ndarray)]
    _check_alike([members[i].name for i in chosen], arrays)
    labels, classes = labels_of([member.parts for member in members], chosen)
    return Images(as_tensor(arrays), labels, classes, name)


def _decode_all(members: Sequence[Member], place: str, how: Reading) -> list[np.ndarray | _Unreadable]:
    found = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _decode has a lower limit, as an error
        futures = [pool.submit(_try, member, place, how) for member in members]
        try:
            for done, future in enumerate(futures, start=1):
                found.append(future.result())
                if how.progress is not None:
                    how.progress(done, len(members))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def look(member: Member, place: str, how: Reading) -> np.ndarray | str:
    """A file's pixels, uint8 (H, W) or (H, W, 3), or why it is no readable image."""
    found = _try(member, place, how)
    return found if isinstance(found, np.ndarray) else found.reason


def _try(member: Member, place: str, how: Reading) -> np.ndarray | _Unreadable:
    try:
        return _decode(member, place, how)
    except _Unreadable as error:
        return error


def _decode(member: Member, place: str, how: Reading) -> np.ndarray:
    away = f"move it out of the {place}"
    try:
        content = member.content()
        if isinstance(content, Path) and not content.is_file():
            raise _Unreadable("is no regular file", away)
        with Image.open(content, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise _Unreadable(f"has {size} pixels, more than {MAX_PIXELS:,}", "make it smaller first")
            plain = _plain(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise _Unreadable("is no PNG, JPEG or WebP image", away) from error
    except Image.DecompressionBombError as error:
        raise _Unreadable(f"has more than {MAX_PIXELS:,} pixels", "make it smaller first") from error
    except (_Unreadable, MemoryError):
        raise
    except Exception as error:  # decoders and EXIF readers fail on damaged bytes in every way
        reason = shown(" ".join(str(error).split()).rstrip("."))
        raise _Unreadable(f"is damaged ({reason})", f"replace it or {away}") from error
    if how.channels is not None:
        plain = plain.convert("L" if how.channels == 1 else "RGB")
    return np.asarray(plain if how.size is None else resize(plain, how.size))


def _plain(image: Image.Image) -> Image.Image:
    """Any mode as 8-bit grey or RGB."""
    if image.mode.startswith("I"):  # 16-bit grey: 65535 is white
        deep = np.asarray(image).astype(np.float64)
        return Image.fromarray((deep / 257).round().clip(0, 255).astype(np.uint8))
    grey = image.mode in ("1", "L", "LA")
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def _settle(
    members: Sequence[Member], found: Sequence[np.ndarray | _Unreadable], place: str, how: Reading
) -> list[int]:
    """Which image stands at each place; raises DataError where there are more bad ones than `how` allows."""
    bad = {i: each for i, each in enumerate(found) if isinstance(each, _Unreadable)}
    allowed = 0 if how.bad == "error" else max(1, len(found) // BAD_IN)
    if len(bad) > allowed or len(bad) == len(found):
        raise DataError(_complaint([(members[i].name, each) for i, each in bad.items()], len(found), place, how))
    chosen = []
    for i in range(len(found)):
        if i not in bad:
            chosen.append(i)
        elif how.bad == "skip":
            how.report(members[i].name, f"{bad[i].reason}; left out")
        else:
            other = next(j % len(found) for j in range(i + 1, i + len(found)) if j % len(found) not in bad)
            how.report(members[i].name, f"{bad[i].reason}; {members[other].name} stands in for it")
            chosen.append(other)
    return chosen


def _complaint(bad: Sequence[tuple[str, _Unreadable]], total: int, place: str, how: Reading) -> str:
    (name, first), count = bad[0], len(bad)
    if count == 1:
        return f"{name} {first.reason}; {first.remedy}"
    listed = ", ".join(f"{name} {each.reason}" for name, each in bad[:NAMED])
    more = f" and {count - NAMED:,} more" if count > NAMED else ""
    away = f"replace them or move them out of the {place}"
    if how.bad == "error":
        return f"{count:,} of {total:,} files are no readable images: {listed}{more}; {away}"
    most = max(1, total // BAD_IN)
    return (
        f"{count:,} of {total:,} files are no readable images, --bad-images {how.bad} allows {most:,}: "
        f"{listed}{more}; {away}"
    )


def _check_alike(names: Sequence[str], arrays: Sequence[np.ndarray]) -> None:
    for what, of, remedy in (
        ("is {}", lambda a: "grey" if a.ndim == 2 else "colour", "use --channels 1 or --channels 3"),
        ("is {} pixels", lambda a: f"{a.shape[1]} x {a.shape[0]}", "use --size to bring all to one size"),
    ):
        kinds = [of(array) for array in arrays]
        usual = Counter(kinds).most_common(1)[0][0]
        for name, kind in zip(names, kinds, strict=True):
            if kind != usual:
                raise DataError(f"{name} {what.format(kind)} while most images are {usual}; {remedy}")


def labels_of(parts: Sequence[tuple[str, ...]], chosen: Sequence[int]) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    """Classes of all files, so that a bad one moves no label, and the labels of the chosen."""
    if any(len(parts[i]) == 1 for i in chosen):
        return None, ()
    classes = tuple(sorted({part[0] for part in parts if len(part) > 1}))
    number = {name: k for k, name in enumerate(classes)}
    return torch.tensor([number[parts[i][0]] for i in chosen]), classes
