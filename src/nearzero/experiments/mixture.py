"""What sharing costs and gives back, on data whose best network is known: DDPM, E-TSDM, DDPM without the times near 0.

The images are drawn from Gaussians, one for each class of real images, at CONTRAST and with noise of BLUR: a smooth
density that rarely leaves [0, 255]. At every time the network is held against the exact answer, which shows effects
that a distance of samples hides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearzero.codec import Pixels
from nearzero.conditioning import Shared, Timestep
from nearzero.data import Images
from nearzero.denoiser import Denoiser
from nearzero.diagnostics.lipschitz import lipschitz
from nearzero.diagnostics.price import ROUNDING
from nearzero.diagnostics.price import prices as price_of
from nearzero.diagnostics.probe import draw as noise
from nearzero.diagnostics.probe import slices
from nearzero.errors import ArgumentError
from nearzero.experiments.mixture_findings import (
    EXACT,
    SHARED,
    Line,
    constants,
    differences,
    excesses,
    findings,
    stated,
    summary,
)
from nearzero.experiments.setting import Plan, Setting
from nearzero.experiments.theory import Found
from nearzero.files import read_json, to_bytes, write_json
from nearzero.oracle import GaussianMixture
from nearzero.randomness import probe_generator
from nearzero.recipe import Recipe
from nearzero.recipes import ddpm, etsdm
from nearzero.weighting import Above

CONTRAST = 0.4  # of the images around middle grey: at a half, 1.5 in 1,000 pixel values of Fashion-MNIST leave [0, 255]
BLUR = 0.1  # standard deviation of the noise, in [-1, 1]
SHARING = Shared(Timestep(1000), interval=SHARED, cells=5)
NODES = (
    *(0, 2, 5, 10, 19, 20, 30, 39, 40, 50, 59, 60, 70, 79, 80, 90, 99),  # each cell's ends and its middle
    *(100, 105, 110, 120, 150, 200, 300, 400, 500, 600, 700, 800, 900, 999),
)
BELOW = sum(node < SHARED for node in NODES)


@dataclass(frozen=True)
class Budget(Plan):
    """How much is computed.

    Networks learn from `drawn` images of the mixture and are measured on `probes` others; the best shared network on
    `priced` of these, K on `pairs`. The price is tabled for cells of each of `intervals`.
    """

    drawn: int
    probes: int
    priced: int
    pairs: int
    intervals: tuple[int, ...]


BUDGETS = {
    "smoke": Budget(8, 16, (4, 8), 16, 500, 16, 16, 4, (100,)),
    "small": Budget(16, 32, (125, 250, 500), 64, 20_000, 256, 128, 32, (20, 50, 100)),
    "gpu": Budget(32, 64, (6_250, 12_500, 25_000), 128, 50_000, 1000, 64, 128, (20, 50, 100)),
}
CELLS = (1, 2, 5, 10, 20, 50)


def rows() -> dict[str, Recipe]:
    """The three recipes by name. `ddpm_above` sees what `ddpm` sees, and learns nothing from times up to t~."""
    plain = ddpm()
    edge = plain.process(torch.tensor((SHARED + 0.5) / 1000, dtype=torch.float64))
    above = Above(plain.weighting, (edge.sigma / edge.alpha).item())
    named = {"ddpm": plain, "etsdm": etsdm(), "ddpm_above": replace(plain, weighting=above)}
    return {name: replace(recipe, name=name) for name, recipe in named.items()}


def fit(images: Images) -> GaussianMixture:
    """A Gaussian for each class of the images (one without labels), at CONTRAST and with noise of BLUR, in [-1, 1]."""
    x = CONTRAST * Pixels().encode(images.pixels).double()
    labels = torch.zeros(len(x), dtype=torch.int64) if images.labels is None else images.labels
    parts = [x[labels == label] for label in labels.unique()]
    spread = BLUR**2 * torch.eye(x[0].numel(), dtype=torch.float64)
    return GaussianMixture(
        torch.tensor([len(part) / len(x) for part in parts], dtype=torch.float64),
        torch.stack([part.mean(0) for part in parts]),
        torch.stack([part.flatten(1).T.cov() + spread for part in parts]),
    )


def rounded(data: GaussianMixture) -> GaussianMixture:
    """The mixture as whole pixel values have it: with the variance of rounding, a twelfth of a value's square."""
    more = ROUNDING**2 * torch.eye(data.covariances.shape[-1], dtype=torch.float64)
    return replace(data, covariances=data.covariances + more)


def draw(data: GaussianMixture, count: int, seed: int) -> Tensor:
    """`count` draws, float64 (count, C, H, W); a component at a time, as data.sample needs count D^2 numbers."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.multinomial(data.weights, count, replacement=True, generator=generator)
    x = torch.randn(count, data.means[0].numel(), dtype=torch.float64, generator=generator)
    for k, root in enumerate(torch.linalg.cholesky(data.covariances)):
        x[which == k] = data.means[k].flatten() + x[which == k] @ root.T
    return x.reshape(count, *data.means.shape[1:])


def drawn(where: Setting[Budget], data: GaussianMixture) -> tuple[Setting[Budget], Tensor]:
    """The same setting on images of the mixture, to train on and to measure on; and the latter before rounding."""
    counts = (where.budget.drawn, where.budget.probes)
    x, test = (draw(data, n, 2 * where.seed + i) for i, n in enumerate(counts))
    name = f"mixture of {where.images.name}"
    both = (Images(to_bytes(Pixels().decode(one)), name=name) for one in (x, test))
    return replace(where, **dict(zip(("images", "test"), both, strict=True))), test


@dataclass(frozen=True, eq=False)
class Truth:
    """Test images x0 and noise eps, (B, C, H, W), and answers at NODES: the best (n, B, C, H, W), and the best shared.

    The latter at those up to t~, for the first `priced` images.
    """

    x0: Tensor
    eps: Tensor
    best: Tensor
    shared: Tensor


def truth(where: Setting[Budget], data: GaussianMixture) -> Truth:
    """What the exact networks answer."""
    process, count = ddpm().process, where.budget.priced
    x0 = Pixels().encode(where.test.pixels)
    eps = noise(x0, probe_generator(where.seed))
    with where.bar("exact network", "timesteps") as show:
        best = ask(data.denoiser(process), x0, eps, NODES, show)
    with where.bar("best shared network", "timesteps") as show:
        shared = ask(data.denoiser(process, shared=SHARING), x0[:count], eps[:count], NODES[:BELOW], show)
    return Truth(x0, eps, best, shared)


def ask(denoiser: Denoiser, x0: Tensor, eps: Tensor, nodes: Sequence[int], show: Any = None) -> Tensor:
    """F at x_t of each node, (n, B, C, H, W) on the CPU."""
    found = torch.empty(len(nodes), *x0.shape)
    with torch.inference_mode():
        for i, node in enumerate(nodes):
            t = torch.tensor((node + 1) / 1000, dtype=torch.float64)
            alpha, sigma = (value.item() for value in denoiser.process(t))
            for part in slices(len(x0), 128):
                found[i, part] = denoiser.output(alpha * x0[part] + sigma * eps[part], t)[0].cpu()
            if show is not None:
                show(i + 1, len(nodes))
    return found


def squares(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|^2 / D, float64, of (..., C, H, W)."""
    return (a - b).double().square().mean((-3, -2, -1))


def document(where: Setting[Budget], true: Truth, name: str, steps: int) -> dict[str, Any]:
    """What is measured of a network after that many steps, image by image; a finished document is not made again.

    Raises ArgumentError where the run has been trained further without.
    """
    out = where.out / "measured" / f"{name}-{where.seed}-{steps}.json"
    if out.exists():
        former = read_json(out)
        where.check(former["fingerprint"], where.test, out)
        return former
    run = where.run(rows()[name], steps)
    if run.step != steps:
        raise ArgumentError(f"{run.path} is at step {run.step}, past {steps}, and {out} is missing; name another --out")
    return measure(where, true, run.denoiser(device=where.device), name, out)


def measure(where: Setting[Budget], true: Truth, denoiser: Denoiser, name: str, out: Path) -> dict[str, Any]:
    """Writes and returns the document of a network."""
    x0, eps = (value.to(where.device) for value in (true.x0, true.eps))
    with where.bar(f"measuring {out.stem}", "timesteps") as show:
        answers = ask(denoiser, x0, eps, NODES, show)
    found: dict[str, Any] = {"excess": squares(answers, true.best).tolist()}
    if name == "etsdm":
        found["unlearned"] = squares(answers[:BELOW, : len(true.shared[0])], true.shared).tolist()
    if name == "ddpm":
        found["K"] = curve(where, denoiser, x0)
    write_json(out, found | {"fingerprint": where.test.fingerprint(), "nodes": NODES})
    return read_json(out)


def curve(where: Setting[Budget], denoiser: Denoiser, x0: Tensor) -> dict[str, Any]:
    """K(k, k + 1) for k up to t~, with its standard error, and their sum."""
    times = torch.arange(1, SHARED + 2, dtype=torch.float64) / 1000
    found = lipschitz(denoiser, x0[: where.budget.pairs], times=times, generator=probe_generator(where.seed))
    sums = {"sum": found.total_variation, "sum_error": found.stderr.sum().item()}  # at most so much
    return {"value": found.value.tolist(), "error": found.stderr.tolist(), **sums}


def sharing_mixture(where: Setting[Budget]) -> Found:
    """Excess errors of DDPM, E-TSDM and DDPM without the times up to t~, their price, interference, and K."""
    smooth = fit(where.images)
    inner, plain = drawn(where, smooth)
    data = rounded(smooth)
    true = truth(inner, data)
    measured = {
        (name, steps * where.budget.batch): document(inner, true, name, steps)
        for steps in where.budget.steps
        for name in rows()
    }
    lines = [
        *excesses(measured, *known(true)),
        *differences(measured),
        *constants(measured, curve(where, data.denoiser(ddpm().process), true.x0)),
        *rounding(data, plain, true),
        *prices(where, inner),
    ]
    about = {
        "budget": {"seed": where.seed, **vars(where.budget)},
        "images": where.images.describe(),
        "pixel values cut off": (plain.abs() > 1).double().mean().item(),
    }
    header = ("measure", "of", "images seen", "timestep", "value", "standard error")
    return Found(TITLE, LEAD, [*findings(lines), *TEXT], header, lines, summary(lines) | about)


def known(true: Truth) -> tuple[Tensor, Tensor]:
    """The excess of the best shared network, and that of one that answers 0."""
    count = len(true.shared[0])
    return squares(true.shared, true.best[:BELOW, :count]), squares(true.best, torch.zeros(()))


def rounding(data: GaussianMixture, plain: Tensor, true: Truth) -> Iterator[Line]:
    """What 8 bits cost the exact network: its loss on the test images minus that on them before rounding, paired."""
    nodes = (0, 19, 99)
    places = [NODES.index(node) for node in nodes]
    before = ask(data.denoiser(ddpm().process), plain.float(), true.eps, nodes)
    yield from stated("rounding", EXACT, None, nodes, squares(true.best[places], true.eps) - squares(before, true.eps))


def prices(where: Setting[Budget], inner: Setting[Budget]) -> Iterator[Line]:
    """The price of sharing without training: one Gaussian, for the mixture and for the images as they are."""
    ways = [
        Shared(Timestep(1000), interval=interval, cells=cells)
        for interval in where.budget.intervals
        for cells in CELLS
        if interval % cells == 0
    ]
    for name, pixels in (("mixture", inner.images.pixels), ("images", where.images.pixels[: where.budget.drawn])):
        for shrink in (1, 2):
            x0 = torch.nn.functional.avg_pool2d(Pixels().encode(pixels), shrink)
            for shared, found in zip(ways, price_of(x0, ddpm().process, ways), strict=True):
                of = f"{name}, {x0.shape[-1]} pixels, {shared.cells} cell{'s' * (shared.cells > 1)}"
                span, worst = f"0-{shared.interval - 1:g}", int(found.residual.argmax())
                error = found.residual[worst] * found.stderr[worst] / (2 * found.excess[worst]) if found.levels else 0
                yield "price", of, None, span, found.mean, found.stderr.mean().item()
                yield "price in pixel values", of, None, span, found.levels, 127.5 * float(error)


TITLE = "What sharing timesteps costs and gives back"
LEAD = (
    "DDPM, E-TSDM and DDPM without the timesteps near 0, from the same weights, on images, times and noise that are "
    "the same, drawn from a density whose best network is known."
)
TEXT = (
    f"Images are drawn from Gaussians, one for each class of the real images, at {CONTRAST:g} of their contrast and "
    f"with noise of {BLUR:g} in [-1, 1], and rounded to 8 bits; the exact network knows the variance of rounding. Its "
    "answer F*, E[eps | x_t], is what each network is held against, on test images and noise that all share: the "
    "excess is E |F - F*|^2 / D. A silent network, which answers 0, has E |F*|^2 / D.",
    "The best shared network knows x_t and the cell, not t. Its excess is what sharing costs even when it is trained "
    "for ever; on the average over a cell a trained network's excess is that plus its distance from the best shared "
    "network (unlearned).",
    "ddpm_above sees every draw that ddpm sees, with weight 0 at the timesteps up to t~: its gradient is ddpm's "
    "without their part. What ddpm does worse above t~ is the interference of the times near 0, which sharing is to "
    "end. One training seed: errors are over images.",
)
