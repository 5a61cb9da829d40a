"""FullDiffusion's Table 1 and Figure 1: likelihood and samples of networks trained with and without truncated time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nearzero.data import Images
from nearzero.errors import ArgumentError
from nearzero.experiments.setting import Plan, Setting
from nearzero.experiments.theory import Found
from nearzero.files import read_json, to_bytes
from nearzero.grid import AngleGrid, Grid, SqrtGrid, UniformGrid
from nearzero.metrics.energy import energy_distance
from nearzero.nll import ByBound, ByOde, ByTruncatedBound, evaluate
from nearzero.parameterization import Nu, W
from nearzero.randomness import order
from nearzero.recipe import Recipe
from nearzero.recipes.full import ddpmpp, ddpmpp_elbo, full, full_w
from nearzero.run import Run
from nearzero.solvers import Solver
from nearzero.solvers.full import FullDiffusionSolver
from nearzero.solvers.ode import Heun
from nearzero.solvers.sde import EulerMaruyama
from nearzero.times import UniformTimes

Sampler = tuple[Solver, Grid]

EULER: Sampler = (EulerMaruyama(), UniformGrid())
FIRST: Sampler = (FullDiffusionSolver(), UniformGrid())
SECOND: Sampler = (FullDiffusionSolver(2), UniformGrid())
FITTED: Sampler = (FullDiffusionSolver(2, "fitted"), SqrtGrid())
ODE: Sampler = (Heun(), AngleGrid())


class Row(NamedTuple):
    """A line of Table 1: its recipe, its sampler of the SDE, and the paper's NLL (SDE, ODE) and FID on CIFAR-10."""

    recipe: Recipe
    sde: Sampler
    paper: tuple[float, float, float, float] | None


def rows() -> dict[str, Row]:
    """The paper's four lines and W's, by name."""
    printed = replace(full(), name="full_no_strata", times=UniformTimes())
    return {
        "ddpmpp": Row(replace(ddpmpp(), dither=True), EULER, (3.28, 3.16, 2.55, 3.98)),
        "ddpmpp_elbo": Row(ddpmpp_elbo(), EULER, (3.08, 2.95, 5.87, 6.03)),
        "full": Row(full(), SECOND, (2.83, 2.80, 2.53, 2.89)),
        "full_no_strata": Row(printed, SECOND, (2.86, 2.85, 2.58, 2.92)),
        "full_w": Row(full_w(), FITTED, None),
    }


@dataclass(frozen=True)
class Budget(Plan):
    """How much is computed.

    Networks are measured after each of `steps` on `probes` images, and after the last on `images`. `draws` of the bound
    for each image, `tolerance` of the ODE, `samples` for distances at `nfe` evaluations, and for Figure 1 at each of
    `curve`.
    """

    probes: int
    images: int
    draws: int
    tolerance: float
    samples: int
    nfe: int
    curve: tuple[int, ...]

    @property
    def tested(self) -> int:
        """How many images of the test set are used."""
        return max(self.images, self.samples)


BUDGETS = {
    "smoke": Budget(16, 16, (100, 200), 16, 16, 32, 16, 1e-3, 32, 20, (5, 10, 20)),
    "small": Budget(28, 16, (600, 1200, 2400), 32, 128, 1000, 32, 1e-3, 256, 100, (10, 20, 50, 100, 200, 1000)),
    "gpu": Budget(
        32, 64, (12_500, 25_000, 50_000), 128, 1000, 5000, 256, 1e-4, 5000, 100, (10, 20, 50, 100, 200, 1000)
    ),
}


def likelihoods(where: Setting[Budget], name: str, steps: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What the bound and the ODE say of the test images after that many steps: (measure, document).

    A finished document is not measured again. Raises ArgumentError where the run has been trained further without.
    """
    budget = where.budget
    count = budget.images if steps == budget.steps[-1] else budget.probes
    bounded = isinstance(rows()[name].recipe.parameterization, Nu | W)
    bound = ByBound(budget.draws) if bounded else ByTruncatedBound(draws=budget.draws)
    for measure, method in (("bound", bound), ("ode", ByOde(budget.tolerance, budget.tolerance))):
        out = where.out / "nll" / f"{name}-{where.seed}-{steps}-{measure}.json"
        former = read_json(out) if out.exists() else {}
        if former.get("images_done") == count:
            where.check(former["settings"]["data"]["fingerprint"], where.test, out)
            yield measure, former
            continue
        run = where.run(rows()[name].recipe, steps)
        if run.step != steps:
            raise ArgumentError(
                f"{run.path} is at step {run.step}, past {steps}, and {out} is missing; name another --out"
            )
        with where.bar(f"{measure} of {name} at step {steps:,}", "images") as show:
            how = {"count": count, "seed": where.seed, "device": where.device, "progress": show}
            yield measure, evaluate(run, where.test, method, out=out, **how)


def drawn(where: Setting[Budget], run: Run, sampler: Sampler, nfe: int) -> Tensor:
    """Samples as uint8 pixels (N, C, H, W), the same seeds for every row."""
    solver, grid = sampler
    how = {"solver": solver, "grid": grid, "nfe": nfe, "batch": 64}
    denoiser = run.denoiser(device=where.device)
    return to_bytes(run.sample(range(where.budget.samples), denoiser=denoiser, **how))


def distance(where: Setting[Budget], samples: Tensor) -> tuple[float, float]:
    """The energy distance of samples to test images, in [0, 1], with its standard error."""
    count = max(where.budget.images, where.budget.samples)
    data = where.test.pixels[order(where.seed, torch.arange(count), len(where.test))]
    return energy_distance(samples.double() / 255, data.double() / 255)


def full_table1(where: Setting[Budget]) -> Found:
    """The four lines of Table 1 and W's: likelihood after every stage of training, distances after the last."""
    header = ("row", "images seen", "measure", "value", "standard error", "images", "evaluations")
    lines: list[tuple[Any, ...]] = []
    summary: dict[str, Any] = {"paper": {name: row.paper for name, row in rows().items()}, "paired": {}}
    sheets, bits = {}, {}
    for name, row in rows().items():
        for steps in where.budget.steps:
            seen = steps * where.budget.batch
            for measure, found in likelihoods(where, name, steps):
                calls = round(found["means"]["evaluations"]["mean"])
                for what, key in ((measure, "bits"), (f"{measure}, not black", "bits_foreground")):
                    if key in found["means"]:
                        mean, error = found["means"][key].values()
                        lines.append((name, seen, what, mean, error, found["images_done"], calls))
                bits[name, measure] = torch.tensor(found["columns"]["bits"], dtype=torch.float64)
        run = where.run(row.recipe, where.budget.steps[-1])
        for kind, sampler in (("SDE", row.sde), ("ODE", ODE)):
            with where.bar(f"samples of {name}, {kind}", "samples"):
                sheets[f"{name} {kind}"] = samples = drawn(where, run, sampler, where.budget.nfe)
            value, error = distance(where, samples)
            lines.append((name, seen, f"distance {kind}", value, error, len(samples), where.budget.nfe))
    for (name, measure), one in bits.items():
        if name != "ddpmpp":
            away = one - bits["ddpmpp", measure]
            summary["paired"][f"{name} {measure}"] = (away.mean().item(), (away.std() / len(away) ** 0.5).item())
    floor = where.test.pixels[order(where.seed + 1, torch.arange(where.budget.samples), len(where.test))]
    sheets["test images"] = floor
    summary |= {"budget": budget_of(where), "images": where.images.describe(), "test": where.test.describe()}
    return Found(*TABLE, header, lines, summary, {name: sheet[:32] for name, sheet in sheets.items()})


def budget_of(where: Setting[Budget]) -> dict[str, Any]:
    """The numbers that a result depends on."""
    return {"seed": where.seed, **{name: getattr(where.budget, name) for name in where.budget.__dataclass_fields__}}


def full_figure1(where: Setting[Budget]) -> Found:
    """(a) The loss of training with and without strata; (b) distance against network evaluations."""
    lines: list[tuple[Any, ...]] = []
    last = where.budget.steps[-1]
    for name in ("full", "full_no_strata", "full_w"):
        run = where.run(rows()[name].recipe, last)
        lines += [("loss", name, *line) for line in losses(run, where.images)]
    samplers = {
        "Euler-Maruyama": ("ddpmpp", EULER),
        "FullDiffusion-Solver-1": ("full", FIRST),
        "FullDiffusion-Solver-2": ("full", SECOND),
        "fitted, W": ("full_w", FITTED),
        "ODE, W": ("full_w", ODE),
    }
    for label, (name, sampler) in samplers.items():
        run = where.run(rows()[name].recipe, last)
        with where.bar(f"samples, {label}", "budgets") as show:
            for i, nfe in enumerate(where.budget.curve):
                if nfe <= 200 or label == "Euler-Maruyama":
                    lines.append(("distance", label, nfe, *distance(where, drawn(where, run, sampler, nfe))))
                show(i + 1, len(where.budget.curve))
    real = where.images.pixels[order(where.seed, torch.arange(where.budget.samples), len(where.images))]
    summary = {"floor": distance(where, real), "budget": budget_of(where)}
    return Found(*FIGURE, ("panel", "line", "x", "value", "error"), lines, summary)


def losses(run: Run, images: Images) -> Iterator[tuple[int, float, float]]:
    """From stats.jsonl: images seen, the bound's mean over some steps and a batch's deviation, in bits/dim."""
    dim = images.pixels[0].numel()
    for line in (run.path / "stats.jsonl").read_text().splitlines():
        record = json.loads(line)
        mean, std = (record["Loss/batch_mean"][name] / (dim * math.log(2)) for name in ("mean", "std"))
        yield record["images"], mean, std


TABLE = (
    "FullDiffusion, Table 1",
    "Likelihood and sample quality of DDPM++ with and without the ELBO's loss, of FullDiffusion with and without "
    "strata, and of W, this project's own: one network, the same images, times and steps for all.",
    (
        "Bits per dimension of test images, dithered uniformly; the bound's are at most these (DDPM++: from t = 1e-5 "
        "on, with its prior and reconstruction), the ODE's are the density's, from exactly 0 to the end. Errors are "
        "standard errors over images; differences are paired, image by image. All rows train on dithered pixels. One "
        "training seed: another could order rows otherwise.",
        "Not black: the whole bits of an image over its pixels that are not 0, as if black ones cost nothing.",
        "Distances are energy distances of pixels, not FID, and not comparable with the paper's numbers.",
    ),
)
FIGURE = (
    "FullDiffusion, Figure 1",
    "(a) What strata do to the loss of training; (b) how many network evaluations each solver needs.",
    (
        "(a) The mean over some steps of the batch's loss, in bits per dimension of the codec's space, and the "
        "standard deviation of one batch.",
        "(b) Energy distances of samples to test images (not FID) against network evaluations, with standard errors. "
        "The paper's claim: FullDiffusion converges at about 100, Euler-Maruyama on DDPM++ at about 1,000.",
    ),
)
