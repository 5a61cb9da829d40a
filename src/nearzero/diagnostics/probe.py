"""What the measurements share: timesteps, noise, batches and a network that is asked without being changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from nearzero.errors import ArgumentError, NumericalError
from nearzero.level import check_times
from nearzero.process import Process
from nearzero.randomness import probe_generator


def timestep_count(process: Process) -> int:
    """How many timesteps the range [0, end] is counted in: the nodes of a discrete process, 1000 for any other."""
    return getattr(process, "steps", 1000)


def one_timestep(process: Process) -> float:
    """The length of one timestep in t."""
    return process.end / timestep_count(process)


def nodes(process: Process) -> Tensor:
    """The times of all timesteps, node k at (k + 1) end / steps, float64."""
    steps = timestep_count(process)
    return torch.arange(1, steps + 1, dtype=torch.float64) / steps * process.end


def spread_nodes(process: Process, count: int) -> Tensor:
    """About `count` of the nodes, the first and the last among them, equally spaced in log t."""
    steps = timestep_count(process)
    k = torch.logspace(0, 1, count, base=steps, dtype=torch.float64).round().unique().to(torch.int64)
    return nodes(process)[k - 1]


def check_pairs(times: Tensor | None, process: Process) -> Tensor:
    """Pairs (n, 2) of times t < t' in their own dtype: of neighbours (n + 1,), as given (n, 2), or of all nodes."""
    t = check_times(nodes(process) if times is None else times, process.end).cpu()
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
