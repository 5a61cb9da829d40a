"""The papers' theory as experiments: exponents, signal-to-noise ratios, the ODE in one dimension, the best denoiser.

An experiment is a function without arguments that returns what it Found; report/ draws it under the same name, and
cli/reproduce.py lists it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nearzero.codec import Pixels
from nearzero.data import embedded
from nearzero.diagnostics.theory import target_rates
from nearzero.errors import ArgumentError
from nearzero.grid import KarrasGrid
from nearzero.level import Level
from nearzero.oracle import GaussianMixture, PointCloud
from nearzero.parameterization import Denoised, Epsilon, Karras, Nu, Velocity, W
from nearzero.process import (
    CosineVP,
    DiscreteVP,
    KarrasVE,
    LinearSigmaVP,
    LinearVP,
    Process,
    QuadraticVP,
    ShiftedCosine,
    SongVE,
    ZeroTerminalSNR,
)
from nearzero.randomness import probe_generator
from nearzero.recipes import modified_cosine, modified_linear, modified_quadratic
from nearzero.sampling import trajectory
from nearzero.solvers.ode import Heun


@dataclass(frozen=True)
class Found:
    """What an experiment found: `rows` below a `header` for a CSV file, a `summary` for JSON, tensors for pictures.

    `title`, `lead` and `text` say what it is and what it shows, as a page does.
    """

    title: str
    lead: str
    text: Sequence[str]
    header: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]
    summary: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def column(self, name: str, /, **where: str) -> list[Any]:
        """One column's cells of the rows whose other columns are as told."""
        place = {key: self.header.index(key) for key in (name, *where)}
        return [row[place[name]] for row in self.rows if all(row[place[k]] == value for k, value in where.items())]


def _on_one_thread(experiment: Callable[..., Found]) -> Callable[..., Found]:
    """Tensors as small as these lose time where threads wait for each other."""

    @functools.wraps(experiment)
    def alone(*args: Any, **options: Any) -> Found:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return experiment(*args, **options)
        finally:
            torch.set_num_threads(threads)

    return alone


SCHEDULES: dict[str, Process] = {
    "linear": LinearVP(),
    "quadratic": QuadraticVP(),
    "cosine": CosineVP(),
    "zero-terminal-SNR": ZeroTerminalSNR(LinearVP()),
    "cosine-shift": ShiftedCosine(),
    "cosine, s = 0": CosineVP(0.0),
    "EDM": KarrasVE(),
    "FullDiffusion": LinearSigmaVP(),
}
TARGETS = {"eps": Epsilon(), "v": Velocity(), "F": Karras(0.5), "x0": Denoised(), "nu": Nu(), "w": W()}
CASES = {"smooth, t to 0": ("smooth", False), "points, t to 0": ("points", False), "smooth, t to end": ("smooth", True)}


def smooth() -> GaussianMixture:
    """A skewed mixture of three normals in the plane with spreads of 0.25 to 0.45 and a mean that is not 0."""
    covariances = [[[0.0625, 0.02], [0.02, 0.1225]], [[0.1225, -0.03], [-0.03, 0.2025]], [[0.2025, 0.05], [0.05, 0.09]]]
    means = [[0.2, 0.4], [1.5, -0.3], [-0.8, 1.6]]
    return GaussianMixture(
        *(torch.tensor(value, dtype=torch.float64) for value in ([0.5, 0.3, 0.2], means, covariances))
    )


def eight() -> PointCloud:
    """Eight points on an ellipse in the plane, about a centre that is not 0."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4 + 0.2
    return PointCloud(torch.stack([0.8 * angle.cos() + 0.3, 0.9 * angle.sin() - 0.1], dim=1))


EXPONENTS = (
    "How singular the best network is",
    "The exponent p of the rate at which the exact network's answer changes with t, the noisy input held fixed, at "
    "both ends of the range: rate ~ u^-p, where u is t or end - t, at 1e-6 and 1e-5 of the range.",
    (
        "A smooth density: eps, v and F are singular with p = 1/2 where sigma grows like the square root of t, and "
        "bounded where it grows like t. x0, nu and w are bounded at t = 0 under every schedule.",
        "Points, which is what a network learns that memorises its images: eps, v and F have p = 1 under every "
        "schedule, nu and w more. No schedule cures that.",
        "At its end FullDiffusion is singular in t, as alpha falls like the square root of 1 - t; nu is singular "
        "wherever no signal is left, as the mean of the data is not 0, and w is not.",
    ),
)


@_on_one_thread
def exponents() -> Found:
    """p of |d/dt F*| ~ u^-p at both ends, for every schedule and what a network may predict; None where it cannot."""
    data = {"smooth": smooth(), "points": eight()}
    rows: list[tuple[str | float | None, ...]] = []
    for schedule, process in SCHEDULES.items():
        for case, (kind, at_end) in CASES.items():
            for target, parameterization in TARGETS.items():
                try:
                    rates = target_rates(process, parameterization, data[kind], at_end=at_end)
                    rows.append((schedule, case, target, rates.exponent, rates.u[0].item(), rates.value[0].item()))
                except ArgumentError:
                    rows.append((schedule, case, target, None, None, None))
    found = Found(*EXPONENTS, ("schedule", "case", "target", "exponent", "u", "rate"), rows, {})
    table = {
        schedule: {
            case: dict(zip(TARGETS, found.column("exponent", schedule=schedule, case=case), strict=True))
            for case in CASES
        }
        for schedule in SCHEDULES
    }
    return replace(found, summary={"exponents": table})


MODIFIED = {
    "linear": (LinearVP(), modified_linear),
    "quadratic": (QuadraticVP(), modified_quadratic),
    "cosine": (CosineVP(), modified_cosine),
}


SNR = (
    "Signal-to-noise ratios",
    "What Modified-NS and remapping do to the signal-to-noise ratio alpha^2 / sigma^2 (E-TSDM, Appendix D.3).",
    (
        "Modified-NS has beta(0) = 0, or offset 0, so that sigma grows at least like t. It adds far less noise near t "
        "= 0, the quadratic one over most of the range.",
        "Remapping tells the network 1/t or log(t / (1 - t)). Times that are uniform in 1/t spend nearly all of "
        "training where hardly any noise is left. The range of these times, timesteps 1 to 1000 and for the logarithm "
        "999, is assumed.",
    ),
)


def etsdm_snr() -> Found:
    """The SNR of three schedules and of Modified-NS over t (E-TSDM, Fig. A8), and under remapped times (Fig. A9).

    The times are k / 1000, k = 1 ... 999. Training times of Fig. A9 are 1000, equally spaced in t, in 1/t or in
    log(t / (1 - t)), each between the first and the last timestep that it can tell, from the least noise on.
    """
    t = torch.arange(1, 1000, dtype=torch.float64) / 1000
    rows: list[tuple[str | float | None, ...]] = []
    summary: dict[str, Any] = {}
    for name, (process, modified) in MODIFIED.items():
        before, after = process(t).logsnr, modified().process(t).logsnr
        ratio = (after - before).exp()
        rows += [
            ("A8", name, *row) for row in zip(*map(Tensor.tolist, (t, before.exp(), after.exp(), ratio)), strict=True)
        ]
        last = ratio[-1].item()
        summary[name] = {"ratio at t = 0.001": ratio[0].item(), "at 0.1": ratio[99].item(), "at 0.999": last}
    share = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    logit = torch.logit(torch.tensor([0.001, 0.999], dtype=torch.float64))
    remapped = {
        "t": 0.001 + 0.999 * share,
        "1/t": 1 / (1000 - 999 * share),
        "log(t / (1 - t))": torch.sigmoid(logit[0] + (logit[1] - logit[0]) * share),
    }
    for name, times in remapped.items():
        snr = DiscreteVP.linear()(times).logsnr.exp()
        rows += [
            ("A9", f"uniform in {name}", a, b, None, None) for a, b in zip(share.tolist(), snr.tolist(), strict=True)
        ]
        above = {f"share with SNR above {level}": (snr > level).double().mean().item() for level in (1, 100)}
        summary[f"uniform in {name}"] = {**above, "median t": times.median().item()}
    return Found(*SNR, ("figure", "name", "t or share", "snr", "modified snr", "ratio"), rows, summary)


LARGEST, STRAIGHT = 25.0, 0.2
ODE = (
    "The ODE in one dimension",
    "The probability-flow ODE for two points on the line, -1 and 1, in three processes (EDM, Fig. 3), solved by Heun.",
    (
        "Near the data x / alpha = +-1 + eps sigma / alpha with eps fixed: a straight line where time is sigma (EDM), "
        "half a parabola where sigma is the square root of time (VE), and nearly that for VP. Over sigma VE and EDM "
        "have the same paths.",
    ),
)
PATHS = {"VP": LinearVP(), "VE": SongVE(end=LARGEST**2), "EDM": KarrasVE(end=LARGEST)}


def pair() -> PointCloud:
    """Two points on the line, -1 and 1."""
    return PointCloud(torch.tensor([[-1.0], [1.0]], dtype=torch.float64))


def spread_seeds(count: int, among: int = 2000) -> list[int]:
    """Seeds whose first draws lie nearest to the middles of `count` equally likely parts of the normal law."""
    draws = torch.cat(
        [torch.randn(1, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(among)]
    )
    wanted = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    return (draws - wanted[:, None]).abs().argmin(1).tolist()


@_on_one_thread
def edm_ode(steps: int = 256, paths: int = 12) -> Found:
    """Paths of the probability-flow ODE from sigma / alpha = 25 to the points -1 and 1, in three processes.

    EDM, Fig. 3. Heun in each process's clock, at the same sigma / alpha in all three, from the same noise. `bend` is
    how far a path leaves its chord in t below sigma / alpha = 0.2, as a part of the chord's rise, the largest of all.
    """
    grid, seeds = KarrasGrid(sigma_min=0.002, sigma_max=LARGEST, rho=7.0), spread_seeds(paths)
    rows: list[tuple[str | float, ...]] = []
    summary: dict[str, Any] = {}
    for name, process in PATHS.items():
        denoiser = pair().denoiser(process)
        states = trajectory(denoiser, (1,), solver=Heun(), grid=grid, steps=steps, seeds=seeds, dtype=torch.float64)
        ratio = process(torch.tensor([state.t for state in states], dtype=torch.float64))
        sigma = (-ratio.logsnr / 2).exp().tolist()
        for i, seed in enumerate(seeds):
            rows += [(name, seed, one.t, s, one.x[i].item()) for one, s in zip(states, sigma, strict=True)]
        near = [i for i, value in enumerate(sigma) if value <= STRAIGHT]
        t = torch.tensor([states[i].t for i in near], dtype=torch.float64)
        bend = _bend(t, torch.stack([states[i].x[:, 0] for i in near]))
        summary[name] = {"paths to 1": int((states[-1].x > 0).sum()), "bend": bend}
    return Found(*ODE, ("process", "seed", "t", "sigma / alpha", "x"), rows, summary)


def _bend(t: Tensor, x: Tensor) -> float:
    """The largest distance between paths x (n, N) at times t (n,) and their chords, over the chords' rise."""
    part = ((t - t[-1]) / (t[0] - t[-1]))[:, None]
    rise = x[0] - x[-1]
    return ((x - x[-1] - part * rise).abs() / rise.abs()).max().item()


IDEAL = (
    "The best denoiser of a set of images",
    "The best denoiser of the 2,000 images that nearzero brings along, computed exactly (EDM, Fig. 1b).",
    (
        "With little noise it gives back the very image: it has memorised the set. With more it averages the images "
        "that the noise cannot tell apart, and it ends at the mean of the set.",
    ),
)
LEVELS = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0)


def edm_denoiser(size: int = 28, which: Sequence[int] = (650, 1650, 1850)) -> Found:
    """Images of the embedded set with noise of several sigma, and the best denoiser's answers for it (EDM, Fig. 1b)."""
    images, codec = embedded(size), Pixels()
    x = codec.encode(images.pixels).double()
    clean, mean = x[list(which)], x.mean(0)
    eps = torch.randn(clean.shape, generator=probe_generator(0), dtype=torch.float64)
    data, rows, noisy, best = PointCloud(x), [], [], []
    for sigma in LEVELS:
        noisy.append(clean + sigma * eps)
        level = Level(*torch.tensor([1.0, sigma], dtype=torch.float64))
        best.append(data.posterior(noisy[-1], level).x0)
        for i, image in enumerate(which):
            distances = [_rms(best[-1][i] - other) for other in (clean[i], mean)]
            rows.append((image, sigma, *distances, _rms(x - best[-1][i]).min().item()))
    header = ("image", "sigma", "rms to the clean image", "rms to the mean", "rms to the nearest image")
    rows = [(image, sigma, *map(float, rest)) for image, sigma, *rest in rows]
    tensors = {"noisy": torch.stack(noisy), "best": torch.stack(best), "mean": mean}
    return Found(
        *IDEAL, header, rows, {"images": len(x), "size": size, "spread": _rms(x - mean).mean().item()}, tensors
    )


def _rms(x: Tensor) -> Tensor:
    """The root mean square over an image (..., C, H, W)."""
    return x.square().mean((-3, -2, -1)).sqrt()
