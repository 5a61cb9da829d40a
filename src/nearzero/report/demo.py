"""The demo's page."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from nearzero import zoo
from nearzero.experiments.demo import BLUR, EVALUATIONS, SMALL, Demo
from nearzero.files import contact_sheet, png
from nearzero.report import figures
from nearzero.report.diagnosis import curves, near_picture, number, other_pictures, table
from nearzero.report.page import Page, Picture, Section, Table
from nearzero.training.stats import read_losses

NAMES = {"ddpm": "DDPM", "etsdm": "E-TSDM"}


def page(demo: Demo, out: Path, seconds: float) -> Page:
    """Everything that the demo found, written for somebody who sees it for the first time."""
    return Page(
        title="What happens near t = 0, and what sharing does to it",
        lead=(
            "A network that predicts noise has to change its answer ever faster as the time t goes to 0, because the "
            "noise level grows like the square root of t. E-TSDM tells it one number for a whole cell of times there, "
            "so that inside a cell its answer cannot change with t at all. Below, DDPM and E-TSDM are trained side by "
            f"side: {_budget(demo)}; they differ in the condition alone.",
        ),
        sections=(
            _samples(demo),
            *_longer(demo),
            _curves(demo),
            _singularity(demo),
            _losses(demo),
            _numbers(demo, seconds),
            _shown(demo),
            _onward(out, 10 * demo.runs["ddpm"].step),
        ),
        origin=f"nearzero demo --out {shlex.quote(str(out))}",
    )


def summary(demo: Demo, seconds: float) -> dict[str, Any]:
    """The numbers of the page as JSON."""
    return {
        "steps": demo.runs["ddpm"].step,
        "images_seen": _seen(demo),
        "seconds": round(seconds, 1),
        "diagnosis": {name: one.describe() for name, one in demo.found.items()},
        "exponents": _exponents(demo),
        "energy_distance": {
            **{f"{name}, {solver}": one._asdict() for (name, solver), one in demo.distances.items()},
            "real images": demo.floor._asdict(),
        },
        "zoo": {
            name: {"images_seen": zoo.card(name)["images_seen"], "command": _draw(demo, name)} for name in demo.longer
        },
    }


def _seen(demo: Demo) -> int:
    run = demo.runs["ddpm"]
    return run.step * run.recipe.training.batch


def _budget(demo: Demo) -> str:
    run = demo.runs["ddpm"]
    return (
        f"{run.step:,} steps of {run.recipe.training.batch} images each, from the same first weights, on the same "
        "images, times and noise"
    )


def _exponents(demo: Demo) -> dict[str, float]:
    return {name: curve.between(0.0, SMALL).exponent for name, curve in demo.exact.continuous.items()}


def _samples(demo: Demo) -> Section:
    images, steps = demo.images, demo.runs["ddpm"].recipe.steps
    count = len(next(iter(demo.samples.values())))
    pictures = [
        Picture(
            png(contact_sheet(sheet), scale=3),
            alt=f"{count} samples of {NAMES[name]} with {solver}",
            caption=f"{NAMES[name]}, {solver} in {steps} steps, seeds 0 to {count - 1}.",
            pixels=True,
        )
        for (name, solver), sheet in sorted(demo.samples.items(), key=lambda item: item[0][1])
    ]
    real = images.pixels[:: max(1, len(images) // count)][:count]
    data = Picture(png(contact_sheet(real), scale=3), f"{count} training images", "Training images.", pixels=True)
    text = (
        f"Trained on {len(images):,} images of clothing, {images.size} x {images.size} pixels. Samples at the same "
        "place start from the same noise.",
    )
    return Section("Samples", text, (*pictures[:2], data, *pictures[2:]))


def _longer(demo: Demo) -> list[Section]:
    """The models of the package, none where it has none."""
    if not demo.longer:
        return []
    cards = {name: zoo.card(name) for name in demo.longer}
    pictures = [
        Picture(
            png(contact_sheet(sheet), scale=3),
            alt=f"{len(sheet)} samples of zoo:{name}",
            caption=f"zoo:{name}, {cards[name]['images_seen']:,} images seen, seeds 0 to {len(sheet) - 1}.",
            pixels=True,
        )
        for name, sheet in demo.longer.items()
    ]
    sizes = sorted({f"{one['size']} x {one['size']}" for one in cards.values()})
    text = (
        "These models come with nearzero and were trained for longer than this demo has time for, on images of "
        f"{' and '.join(sizes)} pixels; they are small networks all the same. Each image took {EVALUATIONS} "
        "network evaluations of the recipe's own solver; images at the same place start from the same noise.",
    )
    commands = "\n".join(_draw(demo, name) for name in demo.longer)
    return [Section("Trained for longer", text, pictures, commands=commands)]


def _draw(demo: Demo, name: str) -> str:
    """The command that draws a model's samples."""
    return f"nearzero sample zoo:{name} -n {len(demo.longer[name])} --nfe {EVALUATIONS} --out {name}"


def _curves(demo: Demo) -> Section:
    found = {NAMES[name]: one for name, one in demo.found.items()}
    interval = next(iter(found.values())).interval
    shown = figures.limits([*curves(found).values(), *demo.exact.timesteps.values()], interval)
    exact = Picture(
        figures.near_zero(demo.exact.timesteps, interval, shown=shown, first=2),
        alt="Lipschitz constants of the two exact networks against the timestep",
        caption="The best networks that there can be, computed exactly, on the same axis: for a smooth density (each "
        f"class a Gaussian, blurred by {BLUR:g}) and for the {len(demo.images):,} images as points.",
    )
    text = (
        "K(k, k+1) is the mean distance between a network's answers to one noisy image when it is told timestep k and "
        "timestep k + 1 (E-TSDM, Eq. 8). Up to t~ E-TSDM shares its condition: inside a cell K is exactly 0, and what "
        "the cell holds back comes at its edge.",
    )
    return Section("How fast the answer changes", text, (near_picture(found, shown), exact))


def _singularity(demo: Demo) -> Section:
    p = list(_exponents(demo).values())
    trained = demo.found["ddpm"].lipschitz.value[0].item()
    best = [curve.value[0].item() for curve in demo.exact.timesteps.values()]
    picture = Picture(
        figures.exponents(demo.exact.continuous, SMALL, first=2),
        alt="K of the exact networks against t on logarithmic axes: straight lines as t goes to 0",
        caption="The exact networks in the same schedule without timesteps, per unit of t.",
    )
    text = (
        f"Below t = {SMALL:g} K of the smooth density grows like t^-{p[0]:.2f}, the singularity that the E-TSDM "
        "paper proves (Theorem 3.1); a schedule in which sigma grows like t does not have it. K of the points grows "
        f"like t^-{p[1]:.2f}: a network that has memorised its images is singular under every schedule.",
        f"The networks trained here: K(0, 1) is {number(trained)} for DDPM, where the exact ones have "
        f"{' and '.join(map(number, best))} per timestep.",
    )
    return Section("The singularity itself", text, (picture,))


def _losses(demo: Demo) -> Section:
    found = {NAMES[name]: one for name, one in demo.found.items()}
    points = {NAMES[name]: read_losses(run.path / "stats.jsonl") for name, run in demo.runs.items()}
    training = Picture(
        figures.losses(points),
        alt="Training losses of both networks against the step",
        caption="Training loss, the mean of each stretch of steps; both see the same batches.",
    )
    return Section("Losses and stability", (), (training, *other_pictures(found)))


def _numbers(demo: Demo, seconds: float) -> Section:
    run = demo.runs["ddpm"]
    count = len(next(iter(demo.samples.values())))
    solvers = dict.fromkeys(solver for _, solver in demo.distances)
    rows = [
        (solver, *(number(*demo.distances[name, solver]) for name in NAMES), number(*demo.floor)) for solver in solvers
    ]
    distance = Table(
        ("energy distance to the images", *NAMES.values(), f"{count} real images"),
        rows,
        f"Of {count} samples, pixels in [0, 1]; 0 for equal distributions, estimated without bias, so below 0 too; "
        "± one standard error over samples.",
    )
    text = (
        f"Budget: {run.step:,} steps of {run.recipe.training.batch} images for each network, that is {_seen(demo):,} "
        f"images, one training seed; {seconds / 60:.1f} minutes in all, samples and diagnosis included.",
    )
    found = {NAMES[name]: one for name, one in demo.found.items()}
    return Section("The numbers", text, (), (table(found), distance))


def _shown(demo: Demo) -> Section:
    plain, shared = demo.found["ddpm"], demo.found["etsdm"]
    a, b = plain.summary(), shared.summary()
    inside = int((shared.near.value == 0).sum())
    items = [
        f"By construction: inside its cells E-TSDM's K is exactly 0, at {inside} of {len(shared.near.value)} pairs.",
        f"Shown: the change sits on the edges. The largest K is {number(a['max'])} for DDPM and {number(b['max'])} "
        f"for E-TSDM (at timestep {b['max_at_timestep']}); added up over the interval the answer moves "
        f"{number(a['total_variation'])} and {number(b['total_variation'])}.",
        *(_verdict(demo, solver) for solver in dict.fromkeys(solver for _, solver in demo.distances)),
        "Not shown: which of the two is better. The paper compares networks of 138 million parameters at 256 x 256 "
        "pixels; these are small, trained for minutes from one seed, and their samples come from one set of seeds.",
    ]
    return Section("What this shows, and what it does not", items=items)


def _verdict(demo: Demo, solver: str) -> str:
    """What the distances of a solver's samples say, given their errors."""
    a, b = (demo.distances[name, solver] for name in NAMES)
    error = (a.stderr**2 + b.stderr**2) ** 0.5
    lower = "E-TSDM" if b.value < a.value else "DDPM"
    both = f"{number(*a)} for DDPM and {number(*b)} for E-TSDM"
    if not abs(a.value - b.value) > 2 * error:
        return f"Not shown: a difference between the samples of {solver}. Their distances agree within errors: {both}."
    return f"Measured, for this one training: {solver}'s samples of {lower} are nearer to the images, {both}."


def _onward(out: Path, longer: int) -> Section:
    commands = "\n".join(
        (
            "# your own images: a folder of PNG, JPEG or WebP files",
            "nearzero train etsdm --data my_images --size 32 --out runs/etsdm",
            "nearzero train ddpm --data my_images --size 32 --out runs/ddpm",
            "nearzero diagnose runs/etsdm --against runs/ddpm --html",
            "nearzero sample runs/etsdm -n 64 --out samples",
            "",
            "# these two, for longer",
            *(f"nearzero train --resume --out {shlex.quote(str(out / name))} --steps {longer}" for name in NAMES),
            "",
            "# in Python",
            "import nearzero as nz",
            f"run = nz.Run.load({str(out / 'etsdm')!r})",
            "x0 = run.recipe.codec.encode(nz.embedded(16).pixels[::40])",
            "curve = nz.lipschitz(run.denoiser(), x0)",
            "print(curve.max, curve.total_variation)",
        )
    )
    return Section("Go on", commands=commands)
