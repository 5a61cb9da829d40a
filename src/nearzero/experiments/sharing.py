"""What sharing the condition near t = 0 does to a small network, seen where it acts: DDPM and E-TSDM, a pair.

Both are trained from the same weights on the same images, times and noise, and measured on the same noise and seeds, so
that differences are told from chance at a few hundred images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product

import torch
from torch import Tensor

from nearzero.errors import ArgumentError
from nearzero.experiments.paired import Line, Yard
from nearzero.experiments.setting import Plan, Setting
from nearzero.experiments.tail import Pair, evaluations, losses, perturbations, swap, tail
from nearzero.experiments.theory import Found
from nearzero.files import to_bytes
from nearzero.manifest import Keep
from nearzero.metrics import squeezenet
from nearzero.randomness import order
from nearzero.recipes import ddpm, etsdm
from nearzero.run import Run
from nearzero.yardstick import Reference

DIFFERENCE = "etsdm - ddpm"


@dataclass(frozen=True)
class Budget(Plan):
    """How much is computed.

    Tails are of `images` in each of `tails` steps, before the end of training without the longest; `samples` are
    swapped, at `nfe` evaluations; `probes` images for perturbations at the timesteps `at`, and for the loss at about
    `levels` timesteps; after the last stage `drawn` samples at each of `curve` evaluations. With `extractor` distances
    are of SqueezeNet's features too.
    """

    images: int
    tails: tuple[int, ...]
    samples: int
    nfe: int
    probes: int
    at: tuple[int, ...]
    levels: int
    drawn: int
    curve: tuple[int, ...]
    extractor: bool

    @property
    def tested(self) -> int:
        """How many images of the test set are used."""
        return max(self.images, self.samples, self.probes)


AT = (1, 10, 50, 100, 200, 500)
TAILS = (5, 10, 100)
CURVE = (10, 20, 50, 100, 250)
STEPS = (12_500, 25_000, 50_000)
BUDGETS = {
    "smoke": Budget(16, 16, (20, 40), 16, 16, (2, 5), 16, 20, 8, (1, 200), 4, 8, (5, 10), extractor=False),
    "small": Budget(16, 32, (250, 500, 1000), 64, 200, TAILS, 256, 50, 64, AT, 12, 40, CURVE, extractor=True),
    "gpu": Budget(32, 64, STEPS, 128, 1000, TAILS, 2000, 50, 512, AT, 25, 2000, (*CURVE, 1000), extractor=True),
}


def yard(where: Setting[Budget]) -> Yard:
    """The test images that samples are measured by. Raises DataError where SqueezeNet's weights are missing."""
    real = chosen(where, where.budget.tested)
    if not where.budget.extractor:
        return Yard(real)
    extractor = squeezenet.fetched()
    with where.bar("features of the test images", "images") as show:
        return Yard(real, Reference.of(where.test, extractor, lambda _, done, of: show(done, of)))


def chosen(where: Setting[Budget], count: int) -> Tensor:
    """The first test images in the seed's order, uint8 (count, C, H, W)."""
    return where.test.pixels[order(where.seed, torch.arange(count), len(where.test))]


def staged(where: Setting[Budget], steps: int) -> dict[str, Run]:
    """Both runs at one stage of training, whose checkpoints stay. Raises ArgumentError where a run is past it."""
    runs = {one.name: where.run(one, steps, Keep(every=where.budget.steps[0])) for one in (ddpm(), etsdm())}
    for run in runs.values():
        if run.step != steps:
            raise ArgumentError(
                f"{run.path} is at step {run.step}, and keeps no checkpoint of {steps}; name another --out"
            )
    return runs


def measure(where: Setting[Budget], steps: int, by: Yard) -> Iterator[tuple[Sequence[Line], Tensor | None]]:
    """All lines of one stage of training, part by part, and with the swapped samples eight of each kind."""
    budget, pair, last = where.budget, Pair.of(staged(where, steps), where.device), steps == where.budget.steps[-1]
    images, parts = chosen(where, budget.images), 5 if last else 4
    x0 = pair.codec.encode(images[: budget.probes]).to(where.device)
    with where.bar(f"measuring at step {steps:,}", "parts") as show:
        yield perturbations(pair, x0, budget.at, where.seed), None
        show(1, parts)
        yield losses(pair, x0, budget.levels, where.seed), None
        show(2, parts)
        yield tail(pair, images, budget.tails if last else budget.tails[:-1], where.seed), None
        show(3, parts)
        swapped = swap(pair, range(budget.samples), budget.nfe, by)
        yield swapped.lines, torch.cat([to_bytes(one[:8]) for one in swapped.samples.values()])
        show(4, parts)
        if last:
            yield evaluations(pair, range(budget.drawn), budget.curve, by), None
            show(5, parts)


def sharing_pair(where: Setting[Budget]) -> Found:
    """DDPM and E-TSDM after every stage of training: tails, swaps, perturbations, losses; then evaluations."""
    budget, by = where.budget, yard(where)
    rows: list[tuple[int, Line]] = []
    sheets = {}
    for steps in budget.steps:
        for lines, sheet in measure(where, steps, by):
            rows += [(steps * budget.batch, line) for line in lines]
            if sheet is not None:
                sheets["samples"] = sheet
    last = [line for seen, line in rows if seen == budget.steps[-1] * budget.batch]
    paired = {
        f"{one.part}: {one.measure} at {one.x:g}, {one.network}": (one.value, one.error)
        for one in last
        if " - " in one.network and not one.measure.startswith("spectrum,")
    }
    summary = {
        "budget": {"seed": where.seed, **asdict(budget)},
        "images": where.images.describe(),
        "test": where.test.describe(),
    }
    header = ("images seen", "part", "measure", "network", "x", "value", "standard error", "images")
    text = (*TEXT, *sentences(rows, budget))
    return Found(
        TITLE, LEAD, text, header, [(seen, *line) for seen, line in rows], summary | {"paired": paired}, sheets
    )


def said(line: Line) -> str:
    """A difference with its standard error, and whether its 95 % interval holds 0."""
    error = 1.96 * line.error
    side = "above" if line.value > error else "below" if line.value < -error else "not told from"
    return f"{line.value:+.3g} +- {line.error:.2g} ({side} 0)"


def sentences(rows: Sequence[tuple[int, Line]], budget: Budget) -> Iterator[str]:
    """What the numbers say after the last stage of training, and of samples after each."""
    last = budget.steps[-1] * budget.batch
    at = {(one.part, one.measure, one.network, one.x): one for seen, one in rows if seen == last}
    for n in budget.tails:
        told = [f"{name} {said(at['tail', name, DIFFERENCE, n])}" for name in ("PSNR", "residual", "spectrum distance")]
        yield f"Tails of {n} steps, {DIFFERENCE}: {'; '.join(told)}."
    distance = "Frechet distance" if budget.extractor else "energy distance"
    for measure in (distance, "power ratio"):
        kinds = [f"{name} - ddpm" for name in ("etsdm", "ddpm then etsdm", "etsdm then ddpm")]
        told = [f"{kind} {said(at['swap', measure, kind, budget.nfe])}" for kind in kinds]
        yield f"Samples with the networks swapped, {measure}: {'; '.join(told)}."
    for name, end in product(("ddpm", "etsdm"), ("1/n", "node 1")):
        found = [at["evaluations", f"energy distance, {end}, change", name, n] for n in budget.curve[1:]]
        told = [f"{fewer} to {one.x:g}: {said(one)}" for fewer, one in zip(budget.curve, found, strict=False)]
        yield f"What more evaluations add to the energy distance of {name}, end {end}: {'; '.join(told)}."
    told = [f"{one.measure} {said(one)}" for one in at.values() if (one.part, one.network) == ("loss", DIFFERENCE)]
    yield f"Loss, {DIFFERENCE}: {'; '.join(told[-2:])}."
    stages = [(seen, one) for seen, one in rows if tuple(one[:3]) == ("swap", distance, DIFFERENCE)]
    told = [f"{seen:,} images seen {said(one)}" for seen, one in stages]
    yield f"{distance} of samples, {DIFFERENCE}: {'; '.join(told)}."


TITLE = "Sharing near t = 0, in pairs"
LEAD = (
    "DDPM and E-TSDM, which shares one timestep condition in each of 5 cells of the first 100 timesteps, trained alike "
    "and measured on the same noise: where does what sharing changes come from?"
)
TEXT = (
    "Errors are standard errors over images, the networks held fixed; differences are paired, image by image. One "
    "training seed: another could say otherwise.",
    "Tails start from test images with the noise of timestep 100. The residual is high-frequency power beyond the "
    "image's own, in squared grey levels; a power ratio of 1 is that of real images. Swaps: one network above timestep "
    "100 and another from there down.",
    "Tails are compared in pixel values that are not rounded, samples as the images that they become.",
)
