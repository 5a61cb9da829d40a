"""Files that are whole or not there, and pictures."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearzero.errors import ArgumentError, CheckpointError, DiskError

FULL = (errno.ENOSPC, errno.EDQUOT)
PIECE = 2**24
MAX_JSON_BYTES = 2**26
_MASK = threading.Lock()
DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into a DiskError of one line."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskError):
            raise
        advice = "free some space" if error.errno in FULL else "choose a folder that you can write to"
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
    """A folder that appears under its name only when the block ends without an error, replacing an older one.

    Until then it is called .tmp-NAME-*, and the older one, for the moment in which neither has the name, .old-NAME-*:
    `clean` tidies up after a process that was killed. Files and folders reach the disk before the name does.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".tmp-{path.name}-", dir=path.parent))
    try:
        yield aside
        with disk_errors(path):
            aside.chmod(0o777 & ~_umask())
            for file in (*aside.rglob("*"), aside):
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
    former = aside.with_name(aside.name.replace(".tmp-", ".old-", 1))
    os.rename(path, former)
    try:
        os.replace(aside, path)
    except BaseException:
        os.rename(former, path)
        raise
    shutil.rmtree(former)


def remove_folder(path: Path) -> None:
    """Deletes a folder: whole under its name, or gone."""
    aside = path.with_name(f".tmp-{path.name}-gone")
    shutil.rmtree(aside, ignore_errors=True)
    with disk_errors(path):
        os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def clean(folder: Path) -> list[str]:
    """Tidies up after killed processes: deletes .tmp-*, and gives a folder that was not yet replaced its name back.

    No other process may write there meanwhile. Returns the names of what it found.
    """
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    found = [name for name in names if re.fullmatch(r"\.(tmp|old)-.+-.+", name) and (folder / name).is_dir()]
    for name in found:
        path = folder / name[len(".old-") : name.rindex("-")]
        if name.startswith(".old-") and not path.exists():
            with disk_errors(path):
                os.rename(folder / name, path)
        else:
            shutil.rmtree(folder / name, ignore_errors=True)
    return found


def write_parts(path: Path, parts: Iterable[Any], check: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Writes a new file in pieces, calling `check` before each; returns its bytes and its BLAKE2b (see `digest`).

    The hash is that of what was meant to be written: a disk that keeps something else is found out. It is not atomic.
    """
    size, state = 0, hashlib.blake2b(digest_size=16)
    with disk_errors(path), os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
        for part in parts:
            view = memoryview(part)
            for start in range(0, len(view), PIECE):
                check()
                piece = view[start : start + PIECE]
                file.write(piece)
                state.update(piece)
                size += len(piece)
        file.flush()
    return size, state.hexdigest()


def safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[Any]:
    """The bytes of a safetensors file, part by part: contiguous tensors on the CPU are not copied.

    Length of the header (8 bytes, little-endian), header (JSON, padded to 8 bytes), numbers; wide types first, so that
    each tensor lies at a multiple of its own width.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ArgumentError(f"{name} holds {tensor.dtype}; a checkpoint takes {', '.join(map(str, DTYPES))}")
    kinds = list(DTYPES)
    order = sorted(tensors, key=lambda name: (kinds.index(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name in order:
        tensor = tensors[name]
        end = start + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        yield tensors[name].detach().cpu().reshape(-1).view(torch.uint8).numpy()


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
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode) and found.st_size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"cannot read {path}: it has {found.st_size:,} bytes, more than {MAX_JSON_BYTES:,}; "
                "restore the file or train again"
            )
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise CheckpointError(f"cannot read {path}: it is a pipe or a device; restore the file or train again")
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_once)
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        told = str(error) if isinstance(error, ArgumentError) else "it is no valid JSON"
        reason = error.strerror if isinstance(error, OSError) else told
        raise CheckpointError(f"cannot read {path}: {reason}; restore the file or train again") from error


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ: of two values for one key, one would be ignored in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ArgumentError(f"it names {twice!r:.100} twice")
    return found


def digest(*parts: bytes) -> str:
    """BLAKE2b of the parts, 32 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def digest_file(path: Path) -> str:
    """BLAKE2b of a file's content, read in pieces, 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


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
    with _MASK:  # reading it sets it, and checkpoints are written in a thread
        mask = os.umask(0)
        os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
