"""What to do when memory ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from nearzero.errors import NearzeroError, OutOfMemoryError

SIGNS = ("can't allocate memory", "not enough memory: you tried to allocate", "backend out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is torch's or Python's way of saying that memory ended: CUDA, the CPU's allocator or MPS."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    )


@contextlib.contextmanager
def memory_advice(batch: int, accumulation: int = 1, processes: int = 1) -> Iterator[None]:
    """Turns an end of memory into OutOfMemoryError that names --batch and the --accumulate to try, at the same batch.

    `batch` is the total of a step; each of `processes` holds batch / (processes accumulation) images at once.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, NearzeroError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(advice(batch, accumulation, processes)) from error


def advice(batch: int, accumulation: int = 1, processes: int = 1) -> str:
    """One line: what did not fit, and the next larger accumulations that divide the batch."""
    once = batch // (processes * accumulation)
    where = f"{once} images at once" + (f" in each of {processes} processes" if processes > 1 else "")
    what = f"out of memory with {where} (--batch {batch} --accumulate {accumulation})"
    share = batch // processes
    more = [n for n in range(accumulation + 1, share + 1) if share % n == 0]
    if not more:
        return f"{what}; take smaller images, a smaller network or another device"
    options = [f"--batch {batch} --accumulate {n} ({share // n} at once)" for n in more[:2]]
    return f"{what}; the same batch in smaller parts: {', or '.join(options)}"
