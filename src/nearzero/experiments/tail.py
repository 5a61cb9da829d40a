"""What two networks, of which one shares its condition near t = 0, make of the same noisy images and the same seeds.

Each measurement is a function of a pair of denoisers, images or seeds to lines, and every line of both networks comes
with one of their difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from nearzero.codec import Codec
from nearzero.denoiser import Denoiser
from nearzero.diagnostics.noise_levels import loss_by_noise
from nearzero.diagnostics.perturbation import perturbation
from nearzero.diagnostics.probe import Timesteps, draw
from nearzero.experiments.paired import GROUPS, Line, Yard, compared, decibels, high, left_out, lines, powers
from nearzero.grid import Aligned, TimestepGrid
from nearzero.metrics.similarity import psnr
from nearzero.path import Network, check_finite, plan_steps
from nearzero.process import Process
from nearzero.randomness import probe_generator
from nearzero.run import Run
from nearzero.solvers.exponential import DDIM

BATCH = 128
SCALES = (0.1, 0.3)
"""Of the noise that `perturbations` adds; the paper's Fig. 2 has 0.05 to 0.3."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Denoisers of one process by name, the first the baseline, the codec of their images, and the interval's end.

    `edge` is the last time that one of them shares with others.
    """

    denoisers: Mapping[str, Denoiser]
    codec: Codec
    edge: float

    @classmethod
    def of(cls, runs: Mapping[str, Run], device: torch.device | str = "cpu") -> Pair:
        """The averaged weights of two runs."""
        denoisers = {name: run.denoiser(device=device) for name, run in runs.items()}
        edge = max(edge for one in denoisers.values() for edge in one.conditioning.edges(one.process))
        return cls(denoisers, next(iter(runs.values())).recipe.codec, edge)

    @property
    def process(self) -> Process:
        """The process that all have."""
        return next(iter(self.denoisers.values())).process

    @property
    def nodes(self) -> Timesteps:
        """What times are counted in."""
        return Timesteps(self.process)

    @property
    def last(self) -> int:
        """The number of the edge's timestep, counted from 1."""
        return round(self.nodes.number(torch.tensor(self.edge)).item())

    def pixels(self, x: Tensor) -> Tensor:
        """Pixel values, not rounded and not cut off, float32 (N, C, H, W) on the CPU."""
        return self.codec.decode(x).cpu()

    def noise(self, seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Where `sample` starts for these seeds, at the end of time: (N, *shape)."""
        first = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(first) * self.process(torch.tensor([self.process.end], dtype=torch.float64)).sigma.item()


@torch.no_grad()
def walk(denoiser: Denoiser, x: Tensor, times: Tensor) -> Tensor:
    """DDIM from x (N, *shape) at the first of decreasing times, float64 (n,), to the last; as `sample`, from anywhere.

    Raises NumericalError where a state stops being finite.
    """
    path, device = plan_steps(denoiser, [DDIM()] * (len(times) - 1), times), x.device
    parameter = next(denoiser.parameters(), None)
    ends = []
    for part in x.to(device if parameter is None else parameter.device).split(BATCH):
        network = Network(denoiser, path, {}, part)
        for step in path:
            part = step.solver.step(network, part, step.row_t, step.row_s, None)
            check_finite(part, step)
        ends.append(part)
    return torch.cat(ends)


def down(pair: Pair, steps: int) -> Tensor:
    """The edge and `steps` - 1 nodes below it, as equally spaced as nodes are, then 0: float64 (steps + 1,)."""
    return torch.linspace(pair.last, 0, steps + 1, dtype=torch.float64).round() / pair.nodes.count * pair.process.end


def tail(pair: Pair, images: Tensor, steps: Sequence[int], seed: int) -> list[Line]:
    """Real images, uint8 (N, C, H, W), with the noise of the edge, brought down by DDIM in so many steps.

    PSNR in decibels; "residual" is the high-frequency power beyond the image's own, in squared grey levels, negative
    where the network leaves less; power ratios compare with the same images; all of pixels that are not rounded.
    """
    x0 = pair.codec.encode(images)
    level = pair.process(torch.tensor([pair.edge], dtype=torch.float64))
    x = level.alpha.item() * x0 + level.sigma.item() * draw(x0, probe_generator(seed))
    real, found = left_out(powers(images)), []
    for n in steps:
        made = {name: pair.pixels(walk(one, x, down(pair, n))) for name, one in pair.denoisers.items()}
        power = {name: left_out(powers(one)) for name, one in made.items()}
        each = {
            name: {
                "PSNR": left_out(psnr(made[name], images.float(), peak=255.0)),
                "residual": high(one) - high(real),
                "power ratio": high(one) / high(real),
                "spectrum distance": decibels(one, real),
            }
            for name, one in power.items()
        }
        found += compared("tail", n, each, len(images))
        for r in range(real.shape[1]):
            ratio = {name: one[:, r] / real[:, r] for name, one in power.items()}
            found += lines("tail", f"spectrum, {n} steps", r + 1, ratio, len(images))
    return found


class Swapped(NamedTuple):
    """What `swap` found: lines, and samples as pixel values (N, C, H, W) by the networks that made them."""

    lines: list[Line]
    samples: Mapping[str, Tensor]


def swap(pair: Pair, seeds: Sequence[int], steps: int, yard: Yard) -> Swapped:
    """Samples of each network, and of one down to the edge and the other from there, by DDIM on trailing timesteps.

    The step that leaves the edge is the lower network's, as the edge belongs to the shared interval.
    """
    times = Aligned(TimestepGrid("trailing"), (pair.edge,))(steps, pair.process)
    cut = int((times > pair.edge).sum())
    start = pair.noise(seeds, yard.real.shape[1:])
    at_edge = {name: walk(one, start, times[: cut + 1]) for name, one in pair.denoisers.items()}
    made = {
        below if above == below else f"{above} then {below}": pair.pixels(walk(one, at_edge[above], times[cut:]))
        for above in pair.denoisers
        for below, one in pair.denoisers.items()
    }
    found = {name: yard.measures(one) for name, one in made.items()}
    return Swapped(compared("swap", steps, found, len(seeds)), made)


def ends(pair: Pair, denoiser: Denoiser, start: Tensor, n: int) -> dict[str, Tensor]:
    """Samples of DDIM with n network evaluations, by where the path ends, pixel values (N, C, H, W).

    "1/n": trailing timesteps, whose last is 1/n of all, and from there to 0; "node 1": n timesteps down to the first,
    and from there to 0, which is the estimate of x0 there; "noise left": the same without the step to 0, so with n - 1
    evaluations; "once more": the estimate of x0 at node 1 of the finished sample, as if it had that noise. With few
    evaluations node 1 is the only one of a shared interval that is visited, and there sharing changes nothing.
    """
    trailing, low = (TimestepGrid(kind)(n, pair.process) for kind in ("trailing", "linspace"))
    left = walk(denoiser, start, low[:-1])
    done = walk(denoiser, left, low[-2:])
    found = {
        "1/n": walk(denoiser, start, trailing),
        "node 1": done,
        "noise left": left,
        "once more": walk(denoiser, done, low[-2:]),
    }
    return {name: pair.pixels(x) for name, x in found.items()}


def evaluations(pair: Pair, seeds: Sequence[int], counts: Sequence[int], yard: Yard) -> list[Line]:
    """Table 3's question: distances and power over the number of network evaluations, for each end of the path.

    "change" lines tell, network by network on the same seeds, what each number of evaluations adds to the one before.
    """
    start, found = pair.noise(seeds, yard.real.shape[1:]), []
    leaves = {
        (n, name, end): yard.measures(samples)
        for n in counts
        for name, one in pair.denoisers.items()
        for end, samples in ends(pair, one, start, n).items()
    }
    for end in dict.fromkeys(end for _, _, end in leaves):
        for n in counts:
            both = {name: leaves[n, name, end] for name in pair.denoisers}
            found += compared("evaluations", n, both, len(seeds), f", {end}")
        for name in pair.denoisers:
            for fewer, more in pairwise(counts):
                both = {"fewer": leaves[fewer, name, end], name: leaves[more, name, end]}
                change = compared("evaluations", more, both, len(seeds), f", {end}, change")
                found += [line._replace(network=name) for line in change if line.network == f"{name} - fewer"]
    return found


def perturbations(pair: Pair, x0: Tensor, numbers: Sequence[int], seed: int) -> list[Line]:
    """E-TSDM's Fig. 2: how far added noise moves the estimate of x0, at timesteps of these numbers, over images x0."""
    found, times = [], pair.nodes.times()
    for number in numbers:
        moved = {}
        for name, one in pair.denoisers.items():
            generator = probe_generator(seed)
            how = {"t": times[number - 1].item(), "scales": SCALES, "generator": generator}
            moved[name] = left_out(torch.stack([perturbation(one, part, **how).value for part in x0.chunk(GROUPS)]))
        for i, scale in enumerate(SCALES):
            each = {name: leaves[:, i] for name, leaves in moved.items()}
            found += lines("perturbation", f"change of x0 by {scale:g}", number, each, len(x0))
    return found


def losses(pair: Pair, x0: Tensor, count: int, seed: int) -> list[Line]:
    """The loss at about `count` timesteps on the same images x0 with the same noise, and its mean on both sides."""
    times = pair.nodes.spread(count)
    each = {}
    for name, one in pair.denoisers.items():
        generator = probe_generator(seed)
        parts = [loss_by_noise(one, part, times=times, generator=generator).value for part in x0.chunk(GROUPS)]
        each[name] = torch.stack(parts)
    found = []
    for i, number in enumerate(pair.nodes.number(times).tolist()):
        found += lines("loss", "loss", number, {name: left_out(one[:, i]) for name, one in each.items()}, len(x0))
    inside = times <= pair.edge
    for side, here in (("up to", inside), ("above", ~inside)):
        mean = {name: left_out(one[:, here].mean(1)) for name, one in each.items()}
        found += lines("loss", f"mean loss {side} the edge", pair.last, mean, len(x0))
    return found
