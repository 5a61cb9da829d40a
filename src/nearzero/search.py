"""The noise that EDM's sampler wants, searched by successive halving: S_churn, S_min, S_max and S_noise."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nearzero.cards import Card
from nearzero.errors import ArgumentError
from nearzero.halving import halving, rounds_for
from nearzero.metrics.influence import influence_interval
from nearzero.pareto import card_file, overall
from nearzero.production import Production
from nearzero.quality import compact, measured
from nearzero.registry import encode
from nearzero.solvers.churn import Churn
from nearzero.yardstick import FEWEST, Progress, Reference

CHURNS, LOWS, HIGHS, NOISES = (0.0, 10.0, 20.0, 40.0, 80.0), (0.0, 0.05), (None, 50.0), (1.0, 1.007)
"""The grid of candidates, unless another is given: the range of EDM's Table 5."""


def candidates(
    churns: Sequence[float] = CHURNS,
    lows: Sequence[float] = LOWS,
    highs: Sequence[float | None] = HIGHS,
    noises: Sequence[float] = NOISES,
) -> list[Churn]:
    """Every combination once: without churn the other three change nothing. Raises ArgumentError as `Churn` does.

    >>> len(candidates()), candidates([0, 10], [0.0], [None], [1.0])
    (33, [Churn(churn=0.0, t_min=0.0, t_max=None, noise=1.0), Churn(churn=10.0, t_min=0.0, t_max=None, noise=1.0)])
    """
    every = itertools.product(churns, lows, highs, noises)
    found = [Churn(float(churn), low, high, noise) if churn else Churn(0.0) for churn, low, high, noise in every]
    return list(dict.fromkeys(found))


def counts(candidates: int, images: int) -> list[int]:
    """How many images each round draws of each candidate: `images` in the last, half as many in the one before.

    >>> counts(33, 1000)
    [31, 62, 125, 250, 500, 1000]
    """
    rounds = rounds_for(candidates)
    found = [images >> (rounds - 1 - r) for r in range(rounds)]
    if found and found[0] < FEWEST:
        raise ArgumentError(
            f"{candidates} candidates halve in {rounds} rounds, whose first would draw {found[0]} images each of "
            f"{images:,}; ask for at least {FEWEST << (rounds - 1):,}, or for fewer candidates"
        )
    return found


def search(
    production: Production,
    tried: Sequence[Churn],
    seeds: Sequence[int],
    fresh: Sequence[int],
    reference: Reference,
    *,
    out: Path,
    batch: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = lambda stage, done, of: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Card:
    """The card of the best of the candidates in place of the production's solver, with the trace in its `made`.

    Round r draws the first seeds, equal ones for all that are left and twice as many in each round, the last all of
    them; the better half goes on. The choice is then measured on `fresh` seeds: the distance by which it was chosen
    would flatter it. All cards are kept in `out`, and a call that was cut short goes on. Raises ArgumentError for too
    few seeds, or `fresh` ones among them, and what `measure` raises.

    Reference: Karras et al., NeurIPS 2022, Section 4 and Table 5, who search a grid.
    """
    if set(seeds) & set(fresh):
        raise ArgumentError(f"fresh seeds, {compact(fresh)}, must be others than those of the search, {compact(seeds)}")
    production, drawn = production.pinned(), counts(len(tried), len(seeds))
    weights = _images(len(tried), drawn)
    total, done = sum(weights) + len(fresh), 0
    tell(
        f"{len(tried)} candidates; {len(drawn)} rounds that draw {', '.join(map(str, drawn))} images of each that is "
        f"left, and {len(fresh):,} of the choice: {total:,} images"
    )

    def measure(churn: Churn, chosen: Sequence[int], weight: int) -> Card:
        nonlocal done
        one = replace(production, solver=churn)
        show = overall(progress, "candidates", done, 1, total)
        how = {"out": out, "batch": batch, "device": device, "interval": influence_interval, "progress": show}
        card = measured(card_file(out, one, chosen, reference), one, chosen, reference, **how)
        done += weight
        progress("candidates", done, total)
        return card

    def score(churn: Churn, r: int) -> float:
        with warnings.catch_warnings():  # a round ranks, and all have as few
            warnings.filterwarnings("ignore", message="rank-deficient")
            return measure(churn, seeds[: drawn[r]], drawn[r] - (drawn[r - 1] if r else 0)).value

    choice, trace = halving(tried, score)
    rounds = [{"images": drawn[r], **one._asdict()} for r, one in enumerate(trace)]
    card = measure(choice, fresh, len(fresh))
    told: dict[str, Any] = {"candidates": [encode(one) for one in tried], "seeds": compact(seeds), "rounds": rounds}
    return replace(card, made={**card.made, "search": told})


def _images(candidates: int, drawn: Sequence[int]) -> list[int]:
    """How many new images each round draws, of all candidates that are left."""
    found, left = [], candidates
    for r, count in enumerate(drawn):
        found.append(left * (count - (drawn[r - 1] if r else 0)))
        left = -(-left // 2)
    return found
