"""stats.jsonl: what training reports, in EDM's format: {"Loss/loss": {"num": n, "mean": m, "std": s}, ...}."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from nearzero.errors import NumericalError
from nearzero.files import disk_errors, write_bytes
from nearzero.recipe import Training


class Stats:
    """Collects losses on the device and writes a line every `every` steps; the device is asked only then.

    Lines beyond the step that a run resumes from are dropped, so no step is logged twice.
    """

    def __init__(self, path: Path, step: int, training: Training, every: int = 50) -> None:
        self.path, self.training, self.every = path, training, every
        self.losses: list[Tensor] = []
        self.start = self.last = time.monotonic()
        if path.exists():
            kept = [
                line
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
                if _step_of(line) <= step
            ]
            write_bytes(path, "".join(f"{line}\n" for line in kept).encode())

    def __enter__(self) -> Stats:
        with disk_errors(self.path):
            self.file = self.path.open("a", encoding="utf-8", buffering=1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def add(self, step: int, losses: Tensor) -> None:
        """Takes the losses (B,) of a step. Raises NumericalError, at the next line, where one is not finite."""
        self.losses.append(losses)
        if step % self.every == 0:
            self.flush(step)

    def flush(self, step: int) -> None:
        """Writes what has been collected."""
        if not self.losses:
            return
        losses = torch.cat(self.losses).double()
        mean, std = losses.mean().item(), losses.std(correction=0).item()
        if not torch.isfinite(losses).all():
            raise NumericalError(
                f"the loss is not finite at step {step}; lower the learning rate. The last good checkpoint is kept"
            )
        now = time.monotonic()
        line = {
            "step": step,
            "images": step * self.training.batch,
            "Loss/loss": {"num": len(losses), "mean": mean, "std": std},
            "Progress/kimg": _one(step * self.training.batch / 1000),
            "Timing/total_sec": _one(now - self.start),
            "Timing/sec_per_kimg": _one((now - self.last) / len(losses) * 1000),
            "timestamp": time.time(),
        }
        with disk_errors(self.path):
            self.file.write(json.dumps(line) + "\n")
        self.last, self.losses = now, []


def read_losses(path: Path) -> list[tuple[int, float]]:
    """The training loss of a run's stats.jsonl: (step, mean since the line before), in order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if math.isfinite(_step_of(line))]
    return [(record["step"], record["Loss/loss"]["mean"]) for record in records]


def _one(value: float) -> dict[str, Any]:
    return {"num": 1, "mean": value, "std": 0.0}


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut short by a crash
