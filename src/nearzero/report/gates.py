"""Conditions on what was measured, such as 'fd>12.5': read by rules, never run as code.

    NAME SIGN NUMBER                        holds where it does for any run
    NAME[RUN] SIGN NUMBER
    NAME[RUN] SIGN NAME[RUN]                and behind it, if you like, + NUMBER or - NUMBER

SIGN is >, >=, < or <=. NAME is a number's name (fd, nll, lipschitz), RUN a run's path, folder, label or group, which
stands for the mean over its training seeds.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nearzero.cards import Card, check_alike
from nearzero.errors import ArgumentError, DataError, NumericalError, did_you_mean

LONGEST = 400  # characters of a condition
SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_PLAIN = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_NAME = r"[A-Za-z][A-Za-z0-9_./-]*"
_RUN = r"\[([^\[\]]+)\]"
_CONDITION = re.compile(
    rf"\s*({_NAME})\s*(?:{_RUN})?\s*(>=|<=|>|<)\s*"
    rf"(?:([+-]?{_PLAIN})|({_NAME})\s*{_RUN}(?:\s*([+-])\s*({_PLAIN}))?)\s*",
    re.ASCII,
)

Lookup = Callable[[str], Mapping[str, Mapping[str, Card]]]
"""From a RUN to the runs that it means, each with its numbers by name; "" means all."""


@dataclass(frozen=True)
class Condition:
    """NAME[RUN] SIGN OTHER[OTHER_RUN] + OFFSET; `run` is "" for any run, and without `other` the right is `offset`."""

    text: str
    name: str
    run: str
    sign: str
    other: str
    other_run: str
    offset: float

    def check(self, lookup: Lookup) -> str | None:
        """How it holds, in words; None where it does not.

        Raises ArgumentError for a name or a run that nobody knows, or measurements of different protocols; DataError
        where a run lacks the number.
        """
        right, told = self.offset, f"{self.offset:g}"
        others: dict[str, Card] = {}
        if self.other:
            others = _numbers(self, self.other, lookup, self.other_run)
            right, told = _mean(self, others) + self.offset, f"{self.other}[{self.other_run}]"
            told += f" {'-' if self.offset < 0 else '+'} {abs(self.offset):g}" if self.offset else ""
        found = _numbers(self, self.name, lookup, self.run)
        sides = [found] if self.run else [{label: card} for label, card in found.items()]
        for side in sides:
            if len(both := side | others) > 1:
                check_alike(both)
            left = _mean(self, side)
            if SIGNS[self.sign](left, right):
                who = self.run or next(iter(side))
                value = f" = {right:.6g}" if self.other else ""
                return f"{self.name}[{who}] is {left:.6g}, {self.sign} {told}{value}"
        return None


def parse(text: str) -> Condition:
    """Reads a condition. Raises ArgumentError for anything else.

    >>> one = parse("fd[etsdm] > fd[ddpm] + 0.1")
    >>> one.name, one.run, one.sign, one.other, one.other_run, one.offset
    ('fd', 'etsdm', '>', 'fd', 'ddpm', 0.1)
    """
    match = _CONDITION.fullmatch(text) if len(text) <= LONGEST else None
    if match is None:
        raise ArgumentError(
            f"--fail-if {text[:100]!r}: write NAME>NUMBER, NAME[RUN]>NUMBER or NAME[RUN]>NAME[RUN]+NUMBER with "
            ">, >=, < or <=, as in 'fd>12.5' or 'fd[etsdm]>fd[ddpm]+0.1'"
        )
    name, run, sign, number, other, other_run, plus, by = match.groups()
    offset = float(number or by or 0) * (-1 if plus == "-" else 1)
    if not math.isfinite(offset):
        raise ArgumentError(f"--fail-if {text!r}: {number or by} is no finite number")
    if other and run is None:
        raise ArgumentError(f"--fail-if {text!r}: say whose {name} is compared, as in {name}[RUN]{sign}{other}[RUN]")
    strip = [part.strip() if part else "" for part in (run, other_run)]
    return Condition(text, name, strip[0], sign, other or "", strip[1], offset)


def precheck(conditions: Sequence[Condition], lookup: Lookup) -> None:
    """Raises what `check` would, as far as it can be told before K is measured."""
    for one in conditions:
        if "lipschitz" not in (one.name, one.other):
            one.check(lookup)
        else:
            for run in (one.run, one.other_run):
                lookup(run)


def check(conditions: Sequence[Condition], lookup: Lookup) -> dict[str, str | None]:
    """Every condition by its text, with how it holds; None where it does not. Raises as `Condition.check` does."""
    return {one.text: one.check(lookup) for one in conditions}


def _numbers(one: Condition, name: str, lookup: Lookup, run: str) -> dict[str, Card]:
    """The number of each run that is meant, by label."""
    everywhere = {known for numbers in lookup("").values() for known in numbers}
    known = everywhere | {"fd", "nll", "lipschitz"}
    if name not in known:
        raise ArgumentError(f"--fail-if {one.text!r}: unknown number {name!r}; {did_you_mean(name, known)}")
    found = lookup(run)
    for label, numbers in found.items():
        if name not in numbers:
            raise DataError(f"--fail-if {one.text!r}: {label} has no {name}; {_remedy(name, numbers)}")
    return {label: numbers[name] for label, numbers in found.items()}


def _remedy(name: str, numbers: Mapping[str, Card]) -> str:
    if name == "lipschitz":
        return "K was not measured; name images with --data DIR"
    if name == "nll" and (several := [known for known in numbers if known.startswith("nll-")]):
        return f"name one of {', '.join(several)}"
    if name.startswith("nll"):
        return "measure it: nearzero evaluate RUN --nll"
    return "measure it: nearzero evaluate RUN --fd"


def _mean(one: Condition, cards: Mapping[str, Card]) -> float:
    mean = math.fsum(card.value for card in cards.values()) / len(cards)
    if not math.isfinite(mean):
        raise NumericalError(f"--fail-if {one.text!r}: {', '.join(cards)} has {mean}, no finite number; measure again")
    return mean
