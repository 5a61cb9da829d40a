"""Files that are whole or not there, and pictures."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearzero.errors import CheckpointError, DiskError


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into a DiskError of one line."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskError):
            raise
        advice = (
            "free some space"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "choose a folder that you can write to"
        )
        raise DiskError(f"cannot write {path}: {error.strerror or error}; {advice}") from error


def existing(path: Path) -> Path:
    """The path itself, or its nearest parent that exists."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return path


def check_writable(path: Path) -> None:
    """Raises DiskError where `path` cannot be made, without making it."""
    with disk_errors(path):
        parent = existing(path)
    if not (parent.is_dir() or parent == Path(path).absolute()):
        raise DiskError(f"cannot write {path}: {parent} is a file; choose a folder")
    if not os.access(parent, os.W_OK):
        raise DiskError(f"cannot write {path}: no permission in {parent}; choose a folder that you can write to")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends without an error, replacing an older one."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield aside
        with disk_errors(path):
            aside.chmod(0o777 & ~_umask())
            for file in aside.rglob("*"):
                _sync(file)
            _move(aside, path)
            _sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _move(aside: Path, path: Path) -> None:
    """Renames a folder over another, which comes back if that fails."""
    if not path.exists():
        os.replace(aside, path)
        return
    former = aside.with_name(f"{aside.name}.former")
    os.rename(path, former)
    try:
        os.replace(aside, path)
    except BaseException:
        os.rename(former, path)
        raise
    shutil.rmtree(former)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(aside, 0o666 & ~_umask())
            os.replace(aside, path)
        except BaseException:
            os.unlink(aside)
            raise


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))  # a file name that is no UTF-8 becomes a JSON escape


def read_json(path: Path) -> Any:
    """Reads JSON that nearzero wrote. Raises CheckpointError where it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no valid JSON"
        raise CheckpointError(f"cannot read {path}: {reason}; restore the file or train again") from error


def digest(*parts: bytes) -> str:
    """BLAKE2b of the parts, 32 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixel values (float, any range) rounded to uint8; what lies outside [0, 255] is cut off."""
    return pixels.detach().round().clamp(0, 255).to("cpu", torch.uint8)


def png(image: Tensor, scale: int = 1) -> bytes:
    """A uint8 image (1 or 3, H, W) as a PNG file, each pixel drawn `scale` times."""
    import io

    from PIL import Image

    array = image.permute(1, 2, 0).repeat_interleave(scale, 0).repeat_interleave(scale, 1).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, format="PNG")
    return buffer.getvalue()


def contact_sheet(images: Tensor, columns: int | None = None, gap: int = 1) -> Tensor:
    """uint8 images (N, C, H, W) side by side in one uint8 image (C, H', W'), on white, `gap` pixels apart."""
    count, channels, height, width = images.shape
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    lines = math.ceil(count / columns)
    sheet = torch.full((channels, lines * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def grid_png(images: Tensor, columns: int | None = None, width: int = 640) -> bytes:
    """A contact sheet as PNG, small images enlarged by whole factors to about `width` pixels."""
    sheet = contact_sheet(images, columns)
    return png(sheet, scale=max(1, width // sheet.shape[-1]))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
