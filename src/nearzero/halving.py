"""Successive halving: many candidates are tried a little, the better half of them twice as much, until one is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from nearzero.errors import ArgumentError

Candidate = TypeVar("Candidate")


class Round(NamedTuple):
    """Which candidates were tried in a round, by their places in the list, and the score of each."""

    places: tuple[int, ...]
    scores: tuple[float, ...]

    def ranked(self) -> list[int]:
        """The places, the best first; of equal scores the earlier place."""
        return [place for _, place in sorted(zip(self.scores, self.places, strict=True))]


def rounds_for(count: int) -> int:
    """How many rounds leave one of `count` candidates, half of them, rounded up, going on after each.

    >>> [rounds_for(count) for count in (1, 2, 3, 33)]
    [1, 1, 2, 6]
    """
    return max(1, math.ceil(math.log2(count))) if count > 0 else 0


def halving(
    candidates: Sequence[Candidate], score: Callable[[Candidate, int], float], rounds: int | None = None
) -> tuple[Candidate, list[Round]]:
    """The candidate with the lowest score in the last round, and what each round found.

    `score(candidate, r)` is asked in round r = 0, 1, ... and takes twice the effort in each. The better half, rounded
    up, goes on; `rounds` are as many as leave one, unless given. Raises ArgumentError without candidates or rounds, and
    for a score that is no number.

    Reference: Karnin et al., Almost optimal exploration in multi-armed bandits, ICML 2013; Jamieson and Talwalkar,
    Non-stochastic best arm identification and hyperparameter optimization, AISTATS 2016.

    >>> halving([3, 1, 2], lambda candidate, r: candidate)[0]
    1
    """
    asked = rounds_for(len(candidates)) if rounds is None else rounds
    if not candidates or asked < 1:
        raise ArgumentError(f"halving needs at least 1 candidate and 1 round, got {len(candidates)} and {asked}")
    places, trace = list(range(len(candidates))), []
    for r in range(asked):
        scores = [score(candidates[place], r) for place in places]
        if any(math.isnan(one) for one in scores):
            raise ArgumentError(f"the score of candidate {places[[math.isnan(s) for s in scores].index(True)]} is NaN")
        trace.append(Round(tuple(places), tuple(scores)))
        places = sorted(trace[-1].ranked()[: math.ceil(len(places) / 2)])
    return candidates[trace[-1].ranked()[0]], trace
