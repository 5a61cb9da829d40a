"""stats.jsonl: what training reports, in EDM's format: {"Loss/loss": {"num": n, "mean": m, "std": s}, ...}.

    Loss/loss                    the losses of all samples since the line before
    Loss/batch_mean              their means, one for each step: std is the noise of the objective of a step
    Loss/log_sigma -4 to -2      the losses of samples with -4 <= log(sigma / alpha) < -2, where there are any
    Gradient/norm, Training/rate one number for each step
    Progress/*, Timing/*         kimg, images_per_sec; total_sec, sec_per_kimg, eta_sec

std is the deviation of these numbers themselves (divided by num).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from json import dumps
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from nearzero.errors import CheckpointError, NumericalError
from nearzero.files import disk_errors, write_bytes
from nearzero.recipe import Training
from nearzero.training.events import Appender, Events, record

EDGES = (-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)  # of log(sigma / alpha); t = 0 lies at -inf, below the first
BINS = tuple(
    f"Loss/log_sigma {name}"
    for name in (
        f"below {EDGES[0]:g}",
        *(f"{low:g} to {high:g}" for low, high in pairwise(EDGES)),
        f"from {EDGES[-1]:g}",
    )
)


class Sink(Protocol):
    """Where lines of stats.jsonl go besides."""

    def write(self, step: int, line: Mapping[str, Any]) -> None:
        """Takes the line of a step, and does not change it."""
        ...

    def close(self) -> None:
        """There are no more."""
        ...


class Stats:
    """Collects what steps report, on the device, and writes a line every `every` steps; the device is asked only then.

    Lines beyond the step that a run resumes from are dropped, so no step is logged twice. What has been collected since
    the last line is in `pending()`, and after `restore(pending)` the next line is the one of a run that never stopped.
    A full disk is a warning and an event: training goes on, and lines that could not be written come with later ones.
    Each line goes to `sinks` too, which are closed at the end; use nearzero.training.sinks.Guarded for what may fail.
    Opening raises DiskError where the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        step: int,
        training: Training,
        every: int = 50,
        *,
        events: Events | None = None,
        sinks: Sequence[Sink] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.training, self.every, self.sinks, self.clock = path, training, every, sinks, clock
        self.events, self.step = events, step
        self.file = Appender(path, failed=self._failed, recovered=self._recovered)
        self.collected = _Collected()
        self.newest: float | None = None  # the mean loss of the newest line
        self.start = self.last = clock()
        self.new = 0  # samples of this process since the last line: what the time since then was spent on
        with disk_errors(path):
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        lines = text.splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) < len(lines) or not (text == "" or text.endswith("\n")):
            write_bytes(path, "".join(f"{line}\n" for line in kept).encode())

    def __enter__(self) -> Stats:
        with disk_errors(self.path):
            self.path.open("ab").close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):  # an interrupt does not wait for sinks
            for sink in self.sinks:
                sink.close()

    def add(
        self,
        step: int,
        losses: Tensor,
        *,
        logsnr: Tensor | None = None,
        gradient_norm: Tensor | float | None = None,
        rate: Tensor | float | None = None,
    ) -> None:
        """Takes the losses (B,) of a step, their log-SNR (B,), the norm of the gradient and the learning rate.

        Tensors are kept as they are, on their device, until the next line; do not write into them. Raises
        NumericalError, at the next line, where a loss or norm is not finite.
        """
        self.collected.add(losses, logsnr, gradient_norm, rate)
        self.new += losses.numel()
        self._write_if_due(step)

    def skip(self, step: int) -> None:
        """A step that was left out, as its loss was not finite; the line that is due at it is written all the same."""
        self._write_if_due(step)

    def _write_if_due(self, step: int) -> None:
        if step % self.every == 0 or step == self.training.steps:
            self.flush(step)

    def flush(self, step: int) -> None:
        """Writes what has been collected; `add` and `skip` do so every `every` steps and at the last of the run."""
        if not self.collected.losses:
            return
        self.step = step
        now, images = self.clock(), step * self.training.batch
        line = {"step": step, "images": images, **self.collected.entries(step), "Progress/kimg": _one(images / 1000)}
        line |= self._timing(step, now) | {"timestamp": time.time()}
        self.newest = line["Loss/loss"]["mean"]
        self.file.append(dumps(line))
        for sink in self.sinks:
            sink.write(step, line)
        self.collected, self.last, self.new = _Collected(), now, 0

    def pending(self) -> dict[str, Tensor]:
        """What has been collected since the last line, float64 on the CPU, for a checkpoint; {} right after a line."""
        return self.collected.tensors()

    def restore(self, pending: Mapping[str, Tensor]) -> None:
        """Takes back what `pending` gave. Raises CheckpointError for what it did not give."""
        self.collected = _Collected.of(pending)

    def _timing(self, step: int, now: float) -> dict[str, Any]:
        seconds = now - self.last
        timing = {"Timing/total_sec": _one(now - self.start)}
        if self.new:
            timing["Timing/sec_per_kimg"] = _one(seconds / self.new * 1000)
            timing["Timing/eta_sec"] = _one(seconds / self.new * (self.training.steps - step) * self.training.batch)
            if seconds > 0:
                timing["Progress/images_per_sec"] = _one(self.new / seconds)
        return timing

    def _failed(self, error: OSError) -> None:
        if self.events is not None:
            self.events.add("log_failed", self.step, file=self.path.name, error=error.strerror or str(error))

    def _recovered(self, lost: int) -> None:
        if self.events is not None:
            self.events.add("log_recovered", self.step, file=self.path.name, lines_lost=lost)


class _Collected:
    """What the steps since the last line reported."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.logsnr: list[Tensor] = []  # like losses; NaN where a step told none
        self.norms: list[Tensor | float] = []
        self.rates: list[Tensor | float] = []

    def add(
        self, losses: Tensor, logsnr: Tensor | None, norm: Tensor | float | None, rate: Tensor | float | None
    ) -> None:
        self.losses.append(losses.detach())
        self.logsnr.append(torch.full_like(self.losses[-1], math.nan) if logsnr is None else logsnr.detach())
        for numbers, value in ((self.norms, norm), (self.rates, rate)):
            if value is not None:
                numbers.append(value.detach() if torch.is_tensor(value) else value)

    def entries(self, step: int) -> dict[str, Any]:
        """The entries of a line, with one wait for the device."""
        losses, logsnr, norms, rates = self.host()
        every = torch.cat(losses)
        if not bool(every.isfinite().all()):
            raise NumericalError(
                f"the loss is not finite at step {step}; lower the learning rate. The last good checkpoint is kept"
            )
        entries = {"Loss/loss": _of(every), "Loss/batch_mean": _of(torch.stack([loss.mean() for loss in losses]))}
        entries |= by_noise_level(every, torch.cat(logsnr))
        if norms:
            entries["Gradient/norm"] = _of(torch.cat(norms))
            if not math.isfinite(entries["Gradient/norm"]["mean"]):
                raise NumericalError(
                    f"the gradient is not finite at step {step}; lower the learning rate. "
                    "The last good checkpoint is kept"
                )
        return entries | ({"Training/rate": _of(torch.cat(rates))} if rates else {})

    def host(self) -> list[list[Tensor]]:
        """Losses, log-SNR, norms and rates as float64 on the CPU: one copy for each device, whatever their number."""
        kinds = [[_flat(value) for value in kind] for kind in (self.losses, self.logsnr, self.norms, self.rates)]
        devices: dict[torch.device, list[Tensor]] = {}
        for tensor in (tensor for kind in kinds for tensor in kind):
            devices.setdefault(tensor.device, []).append(tensor)
        found = {
            device: iter(torch.cat(tensors).cpu().double().split([len(tensor) for tensor in tensors]))
            for device, tensors in devices.items()
        }
        return [[next(found[tensor.device]) for tensor in kind] for kind in kinds]

    def tensors(self) -> dict[str, Tensor]:
        """One tensor for each kind, and the number of samples of each step."""
        kinds = zip(("loss", "logsnr", "gradient_norm", "rate"), self.host(), strict=True)
        found = {name: torch.cat(kind) for name, kind in kinds if kind}
        return found | ({"samples": torch.tensor([loss.numel() for loss in self.losses])} if self.losses else {})

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> _Collected:
        collected = cls()
        if tensors:
            try:
                samples = tensors["samples"].tolist()
                collected.losses = list(tensors["loss"].split(samples))
                collected.logsnr = list(tensors["logsnr"].split(samples))
                for name, numbers in (("gradient_norm", collected.norms), ("rate", collected.rates)):
                    numbers.extend(tensors[name].split(1) if name in tensors else ())
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                reason = " ".join(str(error).split())[:200]
                raise CheckpointError(
                    f"the checkpoint's pending log is damaged: {reason}; resume from another"
                ) from error
        return collected


def by_noise_level(losses: Tensor, logsnr: Tensor) -> dict[str, Any]:
    """The losses (n,) of each bin of log(sigma / alpha) = -logsnr / 2 that has any: [low, high), -inf and inf too.

    NaN lies in none. Each other sample lies in one.

    >>> by_noise_level(torch.tensor([1.0, 3.0]), torch.tensor([math.inf, 6.0])).keys()
    dict_keys(['Loss/log_sigma below -8', 'Loss/log_sigma -4 to -2'])
    """
    level = -logsnr.double() / 2
    bins = torch.bucketize(level, torch.tensor(EDGES, dtype=torch.float64), right=True)
    bins = torch.where(level.isnan(), -1, bins)
    return {BINS[i]: _of(losses[bins == i]) for i in range(len(BINS)) if bool((bins == i).any())}


def read_losses(path: Path) -> list[tuple[int, float]]:
    """The training loss of a run's stats.jsonl: (step, mean since the line before), in order."""
    records = map(record, path.read_text(encoding="utf-8").splitlines())
    return [(line["step"], line["Loss/loss"]["mean"]) for line in records if line is not None and "step" in line]


def _flat(value: Tensor | float) -> Tensor:
    return value.flatten() if torch.is_tensor(value) else torch.tensor([value], dtype=torch.float64)


def _of(values: Tensor) -> dict[str, Any]:
    values = values.double()
    return {"num": len(values), "mean": values.mean().item(), "std": values.std(correction=0).item()}


def _one(value: float) -> dict[str, Any]:
    return {"num": 1, "mean": value, "std": 0.0}


def _step_of(line: str) -> float:
    try:
        return float((record(line) or {})["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a crash
