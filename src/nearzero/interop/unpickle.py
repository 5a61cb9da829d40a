"""The process in which `convert` reads a pickled file: `python -m nearzero.interop.unpickle FILE FOLDER`.

It writes FOLDER/found.json, and FOLDER/N.safetensors for each state dict. Nothing in it runs what the file says; the
walls around it are for the case that this is wrong: limits of the operating system, and a hook that ends it where
Python would start a process, open a socket, or write outside FOLDER.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearzero.errors import CheckpointError, NearzeroError
from nearzero.files import DTYPES, safetensors, write_json, write_parts
from nearzero.pickled import contents, found_in
from nearzero.pickled.reader import FREE_BYTES, MAX_RATIO

MAX_DICTS = 1000
MAX_NAMES = 1000
CPU_SECONDS = 600
MEMORY = 2**31
"""Address space beyond what is taken before the file is opened, and a few times the file's size."""

REFUSED = (
    *("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.startfile"),
    *("pty.", "ctypes.", "pickle.", "webbrowser.", "urllib.", "ftplib.", "http.", "smtplib."),
)
"""Events of Python's audit that end the process."""


def main() -> int:
    """Reads argv's FILE and writes to its FOLDER; an error is one line on stderr and exit code 4."""
    file, folder = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        torch.set_num_threads(1)
        limit(file.stat().st_size)
        fence(folder)
        convert(file, folder)
    except NearzeroError as error:
        print(" ".join(str(error).split())[:2000], file=sys.stderr)
        return CheckpointError.exit_code
    except MemoryError:
        print(f"{file} takes more memory than its size explains", file=sys.stderr)
        return CheckpointError.exit_code
    except Exception as error:  # a name that is no text, say: a stranger's file fails in every way
        print(f"{file} cannot be converted ({' '.join(str(error).split())[:300]})", file=sys.stderr)
        return CheckpointError.exit_code
    return 0


def limit(size: int) -> None:
    """Limits of the operating system, where it has them: seconds, memory, size of files, no process, no core dump."""
    try:
        import resource
    except ImportError:  # Windows has none
        return
    pages = Path("/proc/self/statm")
    if pages.exists():  # macOS does not say, and does not hold to this limit either
        taken = int(pages.read_text().split()[0]) * resource.getpagesize()
        _lower(resource, "RLIMIT_AS", taken + MEMORY + 2 * MAX_RATIO * size)
    seconds = CPU_SECONDS + size // 10_000_000
    for name, value in (("CPU", seconds), ("FSIZE", FREE_BYTES + MAX_RATIO * size), ("NPROC", 0), ("CORE", 0)):
        _lower(resource, f"RLIMIT_{name}", value)


def _lower(resource: Any, name: str, value: int) -> None:
    if hasattr(resource, name):
        _, hard = resource.getrlimit(getattr(resource, name))
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(getattr(resource, name), (value, value))


def fence(folder: Path) -> None:
    """Ends the process at the first event of `REFUSED`, and where a file is opened for writing outside `folder`."""
    inside = str(folder.resolve()) + os.sep

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(REFUSED):
            _end(event)
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            path = arguments[0]
            if not isinstance(path, int) and not os.path.realpath(os.fsdecode(path)).startswith(inside):
                _end("a file elsewhere")

    sys.addaudithook(hook)


def _end(what: str) -> None:
    sys.stderr.write(f"reading it led to {what}, which is refused\n")
    sys.stderr.flush()
    os._exit(CheckpointError.exit_code)


def convert(file: Path, folder: Path) -> None:
    """Writes what the file holds. Raises CheckpointError for what is damaged, or more than its size can be."""
    content = contents(file)
    found = found_in(file, content.value)
    if len(found) > MAX_DICTS:
        raise CheckpointError(f"{file} holds {len(found):,} state dicts, more than {MAX_DICTS:,}")
    total = sum(tensor.nbytes for tensors in found.values() for tensor in tensors.values())
    if total > FREE_BYTES + MAX_RATIO * file.stat().st_size:
        raise CheckpointError(f"{file} unpacks to {total:,} bytes, more than {MAX_RATIO} times its size")
    written = [_write(folder, number, place, tensors) for number, (place, tensors) in enumerate(found.items())]
    names = [name[:200] for name in content.names[:MAX_NAMES]]
    record = {"kind": content.kind, "names": names, "names_left_out": len(content.names) - len(names)}
    write_json(folder / "found.json", {**record, "state_dicts": written})


def _write(folder: Path, number: int, place: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """One safetensors file, and what is said about it; a dtype that these files do not have is left out."""
    kept = {name: tensor for name, tensor in tensors.items() if tensor.dtype in DTYPES and name != "__metadata__"}
    write_parts(folder / f"{number}.safetensors", safetensors(kept))
    left_out = {name: str(tensor.dtype) for name, tensor in tensors.items() if name not in kept}
    numbers = sum(tensor.numel() for tensor in kept.values())
    return {"place": place, "tensors": len(kept), "numbers": numbers, "left_out": left_out}


if __name__ == "__main__":
    sys.exit(main())
