"""What the measurements share: timesteps, noise, batches and a network that is asked without being changed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearzero.errors import ArgumentError, NumericalError
from nearzero.level import Level, check_times
from nearzero.process import Process
from nearzero.randomness import probe_generator

FIRST = 2.5e-5  # the first noise level of a process that explodes, as a share of its last: 0.002 of 80, as in EDM


@dataclass(frozen=True)
class Timesteps:
    """What a measurement counts in: the nodes of a discrete process, 1000 timesteps of any other.

    Those are equally long in t or, where the noise explodes (alpha = 1 at the end), in log sigma, from 1/40,000 of the
    last sigma on.
    """

    process: Process

    @property
    def count(self) -> int:
        """How many there are."""
        return getattr(self.process, "steps", 1000)

    @property
    def logarithmic(self) -> bool:
        """Whether they are equally long in log sigma."""
        return bool(self._level(self.process.end).alpha == 1)

    def _level(self, t: float) -> Level:
        return self.process(torch.tensor(t, dtype=torch.float64))

    def times(self) -> Tensor:
        """The times of all timesteps, increasing, the last the end: float64 (count,)."""
        k = torch.arange(1, self.count + 1, dtype=torch.float64)
        if not self.logarithmic:
            return k / self.count * self.process.end
        sigma = self._level(self.process.end).sigma * FIRST ** ((self.count - k) / (self.count - 1))
        t = self.process.time_of_logsnr(-2 * sigma.log())
        t[-1] = self.process.end  # exactly, whatever the round trip leaves
        return t

    def number(self, t: Tensor) -> Tensor:
        """The number of the timestep at each time, counted from 1; between two a fraction, 0 at t = 0."""
        t = t.to(torch.float64)
        if not self.logarithmic:
            return t * self.count / self.process.end
        ratio = self.process(t).sigma / (self._level(self.process.end).sigma * FIRST)
        inside = 1 - (self.count - 1) * ratio.log() / math.log(FIRST)
        return torch.where(ratio < 1, ratio, inside)

    def spread(self, count: int) -> Tensor:
        """About `count` of the times, the first and the last among them, equally spaced in log t or log sigma."""
        place = torch.linspace(0, 1, count, dtype=torch.float64)
        k = 1 + place * (self.count - 1) if self.logarithmic else self.count**place
        return self.times()[k.round().unique().to(torch.int64) - 1]

    def stated(self) -> str:
        """What a timestep is, in words, where the process has none of its own; else nothing."""
        if hasattr(self.process, "steps"):
            return ""
        name = type(self.process).__name__
        if self.logarithmic:
            first, last = (self._level(self.process.end).sigma.item() * share for share in (FIRST, 1))
            return f"{name} has no timesteps: {self.count} noise levels are taken, from {first:g} to {last:g}."
        return f"{name} has no timesteps: one is taken as 1/{self.count} of the range of t."


def check_pairs(times: Tensor | None, process: Process) -> Tensor:
    """Pairs (n, 2) of times t < t' in their own dtype: of neighbours (n + 1,), as given (n, 2), or of all timesteps."""
    t = check_times(Timesteps(process).times() if times is None else times, process.end).cpu()
    pairs = torch.stack([t[:-1], t[1:]], dim=1) if t.ndim == 1 else t
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
        raise ArgumentError(f"times must be (n + 1,) with n at least 1, or pairs (n, 2); got {tuple(t.shape)}")
    wrong = (pairs[:, 0] >= pairs[:, 1]).nonzero().flatten()
    if len(wrong):
        first, second = pairs[wrong[0]].tolist()
        raise ArgumentError(f"times must increase, got {first:g} before {second:g}")
    return pairs


def check_images(x0: Tensor, condition: Mapping[str, Tensor] | None) -> None:
    """Raises ArgumentError unless x0 is a finite float tensor (B, ...) and `condition` has an entry for each image."""
    if not (torch.is_tensor(x0) and x0.is_floating_point() and x0.ndim > 1 and x0.numel()):
        kind = f"{x0.dtype} {tuple(x0.shape)}" if torch.is_tensor(x0) else type(x0).__name__
        raise ArgumentError(
            f"x0 must be a float tensor (B, ...) of at least one image as the codec encodes it, got {kind}"
        )
    if not bool(x0.isfinite().all()):
        raise ArgumentError("x0 holds numbers that are not finite")
    for name, value in (condition or {}).items():
        if len(value) != len(x0):
            raise ArgumentError(f"condition {name!r} has {len(value)} entries for {len(x0)} images; give one for each")


def draw(x0: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise like x0 from a CPU generator, by default probe_generator(0)."""
    generator = generator or probe_generator(0)
    return torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(x0.device)


def batch_size(x0: Tensor, batch: int | None) -> int:
    """How many images go through the network at once: 256, fewer of more than 4,096 numbers each, unless given."""
    if batch is not None and batch < 1:
        raise ArgumentError(f"batch must be at least 1, got {batch}")
    return batch or max(2, min(256, 2**20 // x0[0].numel()))


def spread(values: Tensor) -> Tensor:
    """The standard deviation over images, (n, images) -> (n,); NaN, unknown, for one image."""
    return values.std(1) if values.shape[1] > 1 else values.new_full((len(values),), torch.nan)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Dropout and its like are off inside; every submodule then returns to its own mode."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def slices(count: int, size: int) -> list[slice]:
    """0 ... count - 1 in consecutive slices of at most `size`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def part(condition: Mapping[str, Tensor] | None, images: slice) -> dict[str, Tensor]:
    """The entries of these images."""
    return {name: value[images] for name, value in (condition or {}).items()}


def check_finite(answer: Tensor, times: Tensor) -> Tensor:
    """The answer itself. Raises NumericalError, naming the times, where it is not finite."""
    if not bool(answer.isfinite().all()):
        low, high = times.min().item(), times.max().item()
        where = f"t = {low:g}" if low == high else f"t from {low:g} to {high:g}"
        raise NumericalError(f"the network's answer is not finite at {where}; check its weights")
    return answer
