"""Distance against cost: the same seeds drawn by several solvers, on several grids, with several budgets."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import torch

from nearzero.cards import Card, check_alike
from nearzero.errors import ArgumentError
from nearzero.metrics.influence import influence_interval
from nearzero.production import Production
from nearzero.quality import key, measured, outline
from nearzero.solvers import plan
from nearzero.yardstick import Progress, Reference

CONFIDENCE = 0.95
COLUMNS = ("solver", "grid", "network_evaluations", "value", "low", "high", "stderr", "best", "within", "recommended")


class Point(NamedTuple):
    """What is measured: the names of solver and grid for people, and the production, whose `nfe` is the budget."""

    solver: str
    grid: str
    production: Production

    @property
    def label(self) -> str:
        """All three in a line."""
        return f"{self.solver} on {self.grid} at {self.production.nfe} evaluations"


class Choice(NamedTuple):
    """Places in a list of cards: the lowest distance, all within its noise, and the cheapest of these."""

    best: int
    within: tuple[int, ...]
    recommended: int


def check(point: Point) -> int:
    """How often one image asks the network, at most. Raises ArgumentError where solver, grid and process do not fit."""
    production = point.production
    if production.nfe is None:
        raise ArgumentError(
            f"{point.solver} on {point.grid}: a point needs nfe, its network evaluations, and not steps"
        )
    process = production.run.recipe.process if production.through is None else production.through.process
    try:
        production.grid(len(plan(production.solver, production.nfe)), process)
    except ArgumentError as error:
        raise ArgumentError(f"{point.label}: {error}") from error
    return production.nfe * (1 if production.guide is None else 2)


def pareto(
    points: Sequence[Point],
    seeds: Sequence[int],
    reference: Reference,
    *,
    out: Path,
    batch: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = lambda stage, done, of: None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Card]:
    """A card for each point, with equal seeds, kept in `out`: a call that was cut short goes on.

    What it takes is told first, in network evaluations of one image, in which `progress` counts too. Errors are those
    of `influence_interval`. Raises ArgumentError for a point that cannot be, before anything is drawn, DataError for a
    card in `out` that was edited, and what `measure` raises.
    """
    costs = [check(point) * len(seeds) for point in points]
    files = [card_file(out, point.production, seeds, reference) for point in points]
    there = [file.exists() for file in files]
    total, done = sum(cost for cost, is_there in zip(costs, there, strict=True) if not is_there), 0
    tell(
        f"{len(points)} points of {len(seeds):,} images, {sum(there)} of them are there; the others ask for "
        f"{total:,} network evaluations of one image"
    )
    cards = []
    for point, file, cost, is_there in zip(points, files, costs, there, strict=True):
        show = overall(progress, "points", done, cost // len(seeds), total)
        how = {"out": out, "batch": batch, "device": device, "interval": influence_interval, "progress": show}
        with warnings.catch_warnings():
            if cards:  # it was said of the first, and is so of all
                warnings.filterwarnings("ignore", message="rank-deficient")
            cards.append(measured(file, point.production, seeds, reference, **how))
        done += 0 if is_there else cost
        tell(f"{point.label}: {cards[-1].text()}")
    check_alike({point.label: card for point, card in zip(points, cards, strict=True)})
    return cards


def card_file(out: Path, production: Production, seeds: Sequence[int], reference: Reference) -> Path:
    """Where the card of a production lies below `out`."""
    return out / "cards" / f"{key(*outline(production.pinned(), seeds, reference))}.json"


def overall(progress: Progress, name: str, before: int, weight: int, total: int) -> Progress:
    """Progress of one part, in which each image counts `weight`, as that of the whole, a stage called `name`."""

    def show(stage: str, done: int, of: int) -> None:
        if stage == "sampling":
            progress(name, before + done * weight, total)

    return show


def choose(cards: Sequence[Card], confidence: float = CONFIDENCE) -> Choice:
    """The best of the cards and those that may be better in truth.

    A card stays within the noise of the best unless its distance lies above by more than

        z sqrt(stderr^2 + stderr_best^2),   z the normal quantile of 1 - (1 - confidence) / (n - 1)

    Of n cards with independent normal errors the set holds the true best with at least this confidence; equal seeds
    make the errors alike and the set larger than it need be. Raises ArgumentError without cards.

    Reference: Gupta, On some multiple decision (selection and ranking) rules, Technometrics 7, 1965.
    """
    if not cards:
        raise ArgumentError("there are no cards to choose from")
    best = min(range(len(cards)), key=lambda i: cards[i].value)
    z = NormalDist().inv_cdf(1 - (1 - confidence) / max(1, len(cards) - 1))
    within = tuple(
        i
        for i, card in enumerate(cards)
        if i == best or card.value - cards[best].value <= z * math.hypot(card.stderr, cards[best].stderr)
    )
    return Choice(best, within, min(within, key=lambda i: (evaluations(cards[i]), cards[i].value)))


def evaluations(card: Card) -> float:
    """Network evaluations for each image."""
    return float(card.subject["network_evaluations"])


def document(points: Sequence[Point], cards: Sequence[Card]) -> dict[str, Any]:
    """The points with their numbers and marks, as JSON."""
    choice = choose(cards)
    rows = [
        {
            **{"solver": point.solver, "grid": point.grid, "network_evaluations": evaluations(card)},
            **{name: getattr(card, name) for name in ("value", "low", "high", "stderr")},
            **{"best": i == choice.best, "within": i in choice.within, "recommended": i == choice.recommended},
            "others": dict(card.others),
        }
        for i, (point, card) in enumerate(zip(points, cards, strict=True))
    ]
    return {
        **{"title": cards[0].title, "floor": cards[0].floor, "protocol": dict(cards[0].protocol)},
        **{name: cards[0].subject[name] for name in ("run", "recipe", "step", "checkpoint", "weights", "seeds")},
        **{"confidence": CONFIDENCE, "points": rows},
    }


def table(found: dict[str, Any]) -> str:
    """The points of a document as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found["points"])
    return text.getvalue()
