"""The demo: DDPM and E-TSDM from the same weights on the same images, times and noise, and what sharing did.

The two recipes differ in the condition alone. Beside the trained networks stand two exact ones: a smooth density, whose
best network is singular like t^-1/2 (Theorem 3.1), and the finite set of images itself, whose best network is singular
like t^-1 under every schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nearzero import zoo
from nearzero.data.images import Images
from nearzero.diagnostics.diagnosis import Diagnosis, diagnose, shared_interval
from nearzero.diagnostics.lipschitz import LipschitzCurve, lipschitz
from nearzero.diagnostics.probe import Timesteps
from nearzero.errors import ArgumentError
from nearzero.files import read_json, to_bytes
from nearzero.metrics.energy import Distance, energy_distance
from nearzero.oracle import GaussianMixture, PointCloud
from nearzero.process import LinearVP
from nearzero.randomness import order, probe_generator
from nearzero.recipes import Recipe, ddpm, etsdm, small
from nearzero.report.page import Page
from nearzero.run import Run, is_run
from nearzero.solvers.exponential import DDIM
from nearzero.training.loop import train
from nearzero.training.preflight import measure
from nearzero.training.start import check_folder

Bar = Callable[[str, str], AbstractContextManager[Callable[[int, int], None]]]
"""A progress bar of a label and a unit; inside, show(done, of)."""

BLUR = 0.25  # standard deviation of the noise that makes the classes of images a smooth density
SMALL = 1e-5  # exponents are fitted below this t
EVALUATIONS = 19  # of the network for each image of the package's models: 19 steps, or 10 of a solver with two stages
SHOWN = 16  # images of each, at most
LEAST = 4  # steps of training, however short: blocks begin at zero, so that one step leaves a network blind to t


@dataclass(frozen=True)
class Exact:
    """K of the two exact networks: in timesteps beside the trained ones, and in continuous time down to t = 1e-7."""

    timesteps: Mapping[str, LipschitzCurve]
    continuous: Mapping[str, LipschitzCurve]


@dataclass(frozen=True)
class Demo:
    """Everything that the page shows. Samples and distances are named (recipe, solver), `longer` by the zoo's model."""

    runs: Mapping[str, Run]
    images: Images
    found: Mapping[str, Diagnosis]
    exact: Exact
    samples: Mapping[tuple[str, str], Tensor]
    distances: Mapping[tuple[str, str], Distance]
    floor: Distance
    longer: Mapping[str, Tensor]


def recipes(images: Images, seconds: float, out: Path, device: str) -> dict[str, Recipe]:
    """DDPM and E-TSDM, small, for as many steps each as fit into half of `seconds` at the speed measured now, and 4."""
    both = {name: small(recipe(), images.size, images.channels) for name, recipe in (("ddpm", ddpm), ("etsdm", etsdm))}
    cost = measure(both["ddpm"], out, device)
    steps = max(LEAST, round(seconds / 2 * cost.images_per_second / both["ddpm"].training.batch))
    return {name: replace(one, training=replace(one.training, steps=steps)) for name, one in both.items()}


def check_place(out: Path) -> None:
    """Raises ArgumentError where `out` holds anything but a former demo; only that is replaced."""
    known = {"ddpm", "etsdm", "index.html", "demo.json"}
    if not out.is_dir():
        return check_folder(out, resume=False, overwrite=False)
    strange = sorted(path.name for path in out.iterdir() if path.name not in known)
    if strange:
        raise ArgumentError(f"{out} holds {strange[0]}, which is no part of a demo; choose another --out")
    for name in ("ddpm", "etsdm"):
        check_folder(out / name, resume=False, overwrite=True)
        if is_run(out / name) and not (Run.load(out / name).data.get("source") or {}).get("demo"):
            raise ArgumentError(f"{out / name} is a run of your own; choose another --out")
        if is_run(out / name) and (out / "demo.json").exists():
            if Run.load(out / name).step != read_json(out / "demo.json").get("steps"):
                raise ArgumentError(f"{out / name} has been trained on since the demo; choose another --out")
    if (out / "index.html").exists() and not Page.is_one(out / "index.html"):
        raise ArgumentError(f"{out / 'index.html'} is no page of nearzero's; choose another --out")


def train_both(
    recipes: Mapping[str, Recipe], images: Images, out: Path, seed: int, device: str, bar: Bar
) -> dict[str, Run]:
    """Trains both from one seed: the same first weights, order of images, times and noise."""
    source = {"data": None, "size": images.size, "channels": None, "preset": "small", "demo": True}
    runs = {}
    for name, recipe in recipes.items():
        size, of, folder = recipe.training.batch, recipe.training.steps * recipe.training.batch, out / name
        with bar(f"training {name}", "images") as show:
            runs[name] = train(
                recipe,
                images,
                folder,
                seed=seed,
                overwrite=is_run(folder),
                device=device,
                source=source,
                progress=lambda now, show=show, size=size, of=of: show(now.step * size, of),
            )
    return runs


def sample_both(runs: Mapping[str, Run], count: int, device: str, bar: Bar) -> dict[tuple[str, str], Tensor]:
    """Pixels of seeds 0 to count - 1 from each run with the recipe's solver and with DDIM, in as many steps, uint8."""
    samples, tasks = {}, [(name, run, solver) for name, run in runs.items() for solver in (run.recipe.solver, DDIM())]
    with bar("sampling", "images") as show:
        for done, (name, run, solver) in enumerate(tasks, 1):
            pixels = run.sample(range(count), solver=solver, device=device)
            samples[name, type(solver).__name__] = to_bytes(pixels)
            show(done * count, len(tasks) * count)
    return samples


def sample_zoo(count: int, device: str, bar: Bar) -> dict[str, Tensor]:
    """uint8 pixels of seeds 0 to count - 1, at most SHOWN, from each model of the package with its recipe's solver."""
    count, known = min(count, SHOWN), zoo.names()
    samples = {}
    with bar("sampling the package's models", "images") as show:
        for done, name in enumerate(known, 1):
            samples[name] = to_bytes(zoo.load(name).sample(range(count), nfe=EVALUATIONS, device=device))
            show(done * count, len(known) * count)
    return samples


def distances(
    samples: Mapping[tuple[str, str], Tensor], images: Images
) -> tuple[dict[tuple[str, str], Distance], Distance]:
    """The energy distance of samples to the images, in [0, 1], and that of as many real images to the others."""
    data = images.pixels[order(0, torch.arange(len(images)), len(images))].double() / 255
    count = len(next(iter(samples.values())))
    found = {name: energy_distance(one.double() / 255, data) for name, one in samples.items()}
    return found, energy_distance(data[:count], data[count:])


def diagnose_both(runs: Mapping[str, Run], x0: Tensor, seed: int, device: str, bar: Bar) -> dict[str, Diagnosis]:
    """Both networks on the same noisy images, over the interval that one of them shares."""
    denoisers = {name: run.denoiser(device=device) for name, run in runs.items()}
    interval = max(filter(None, map(shared_interval, denoisers.values())), default=None)
    found = {}
    for name, denoiser in denoisers.items():
        with bar(f"diagnosing {name}", "pairs of timesteps") as show:
            found[name] = diagnose(denoiser, x0.to(device), interval=interval, seed=seed, progress=show)
    return found


def smooth(x: Tensor, labels: Tensor) -> GaussianMixture:
    """A smooth density like the images x (N, *shape): a Gaussian for each class, blurred by noise of BLUR."""
    parts = [x[labels == label].double() for label in labels.unique()]
    d = x[0].numel()
    return GaussianMixture(
        torch.tensor([len(part) / len(x) for part in parts], dtype=torch.float64),
        torch.stack([part.mean(0) for part in parts]),
        torch.stack([part.flatten(1).T.cov() + BLUR**2 * torch.eye(d, dtype=torch.float64) for part in parts]),
    )


def exact(recipe: Recipe, images: Images, x0: Tensor, upto: float, seed: int, bar: Bar) -> Exact:
    """K of the best networks for the smooth density and for the images as points, x0 of them, up to the time `upto`."""
    x = recipe.codec.encode(images.pixels)
    labels = torch.zeros(len(x)) if images.labels is None else images.labels
    generator = torch.Generator().manual_seed(seed)
    mixture, points = smooth(x, labels), PointCloud(x)
    data = {
        "smooth density": (mixture, mixture.sample(len(x0), generator)),
        f"{len(x):,} points": (points, x0.double()),
    }
    t = Timesteps(recipe.process).times()
    fine = torch.logspace(-7, 0, 43, dtype=torch.float64)  # six a decade, in the same schedule without timesteps
    curves: list[dict[str, LipschitzCurve]] = [{}, {}]
    with bar("exact networks", "curves") as show:
        for i, (name, (oracle, sample)) in enumerate(data.items()):
            for j, (process, times) in enumerate(((recipe.process, t[t <= upto]), (LinearVP(), fine))):
                noise = probe_generator(seed)
                curves[j][name] = lipschitz(oracle.denoiser(process), sample, times=times, generator=noise)
                show(2 * i + j + 1, 2 * len(data))
    return Exact(*curves)


def run(
    recipes: Mapping[str, Recipe],
    images: Images,
    out: Path,
    *,
    seed: int,
    samples: int,
    probes: int,
    device: str,
    bar: Bar,
) -> Demo:
    """Trains, samples and diagnoses both; `samples` images of each sampler, `probes` images for the diagnosis."""
    runs = train_both(recipes, images, out, seed, device, bar)
    drawn = sample_both(runs, samples, device, bar)
    found_distances, floor = distances(drawn, images)
    recipe = next(iter(recipes.values()))
    x0 = recipe.codec.encode(images.pixels[order(seed, torch.arange(probes), len(images))])
    found = diagnose_both(runs, x0, seed, device, bar)
    interval = next(iter(found.values())).interval
    known = exact(recipe, images, x0, 2 * interval, seed, bar)
    return Demo(runs, images, found, known, drawn, found_distances, floor, sample_zoo(samples, device, bar))
