"""A folder of image files as `Images`."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from nearzero.data.images import Images, as_tensor, resize
from nearzero.errors import ArgumentError, DataError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000
_NOT_OURS = {"thumbs.db", "desktop.ini"}  # what file managers leave behind


def read_folder(
    folder: str | os.PathLike[str],
    *,
    size: int | None = None,
    channels: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Images:
    """Every PNG, JPEG and WebP file below `folder`, in the order of their names, decoded into memory.

    `size` brings the shorter side to that many pixels and cuts out the centre; `channels` (1 or 3) makes all images
    grey or colour. Photographs are turned upright (EXIF), transparency is laid on white, 16-bit grey is brought to 8.
    If no image lies in `folder` itself, its subfolders name the classes. Hidden files are left alone.
    `progress(done, total)` is called while decoding. Raises DataError, naming the file, for anything that is no
    readable image and for images that do not fit together.
    """
    folder = Path(folder)
    if size is not None and (isinstance(size, bool) or size < 1):
        raise ArgumentError(f"--size must be a positive number of pixels, got {size}")
    if channels not in (None, 1, 3):
        raise ArgumentError(f"--channels must be 1 (grey) or 3 (colour), got {channels}")
    paths = _list(folder)
    arrays = _decode_all(paths, size, channels, progress)
    _check_alike(paths, arrays)
    labels, classes = _labels(folder, paths)
    return Images(as_tensor(arrays), labels, classes, folder.resolve().name)


def _list(folder: Path) -> list[Path]:
    if not folder.exists():
        raise DataError(f"{folder} does not exist; --data takes a folder of PNG, JPEG or WebP files")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; --data takes a folder of PNG, JPEG or WebP files")
    paths = []
    for root, names, files in os.walk(folder):  # does not follow links to folders, so it ends
        names[:] = sorted(name for name in names if not name.startswith("."))
        paths += [Path(root, file) for file in files if not file.startswith(".") and file.lower() not in _NOT_OURS]
    if not paths:
        raise DataError(f"{folder} holds no images; --data takes a folder of PNG, JPEG or WebP files")
    return sorted(paths)


def _decode_all(
    paths: Sequence[Path], size: int | None, channels: int | None, progress: Callable[[int, int], None] | None
) -> list[np.ndarray]:
    arrays = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _decode has a lower limit, as an error
        futures = [pool.submit(_decode, path, size, channels) for path in paths]
        try:
            for done, future in enumerate(futures, start=1):
                arrays.append(future.result())
                if progress is not None:
                    progress(done, len(paths))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return arrays


def _decode(path: Path, size: int | None, channels: int | None) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"{path} is no regular file; move it out of the folder")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{path} has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}; make it smaller first"
                )
            plain = _plain(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is no PNG, JPEG or WebP image; move it out of the folder") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} has more than {MAX_PIXELS:,} pixels; make it smaller first") from error
    except DataError:
        raise
    except Exception as error:  # decoders and EXIF readers fail on damaged bytes in every way
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{path} is damaged ({reason}); replace it or move it out of the folder") from error
    if channels is not None:
        plain = plain.convert("L" if channels == 1 else "RGB")
    return np.asarray(plain if size is None else resize(plain, size))


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


def _check_alike(paths: Sequence[Path], arrays: Sequence[np.ndarray]) -> None:
    for what, of, remedy in (
        ("is {}", lambda a: "grey" if a.ndim == 2 else "colour", "use --channels 1 or --channels 3"),
        ("is {} pixels", lambda a: f"{a.shape[1]} x {a.shape[0]}", "use --size to bring all to one size"),
    ):
        kinds = [of(array) for array in arrays]
        usual = Counter(kinds).most_common(1)[0][0]
        for path, kind in zip(paths, kinds, strict=True):
            if kind != usual:
                raise DataError(f"{path} {what.format(kind)} while most images are {usual}; {remedy}")


def _labels(folder: Path, paths: Sequence[Path]) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    parts = [path.relative_to(folder).parts for path in paths]
    if any(len(part) == 1 for part in parts):
        return None, ()
    classes = tuple(sorted({part[0] for part in parts}))
    return torch.tensor([classes.index(part[0]) for part in parts]), classes
