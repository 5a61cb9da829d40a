"""Runs side by side: what each is called, and which differ in the training seed alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from nearzero.cards import Card, check_alike, paired
from nearzero.errors import ArgumentError, CheckpointError, did_you_mean
from nearzero.recipe import Recipe, differences
from nearzero.recipes.table import brief
from nearzero.report.measured import Measured
from nearzero.run import Run


@dataclass(frozen=True)
class Member:
    """A run with its label, its step and its numbers."""

    label: str
    run: Run
    step: int
    measured: Measured
    numbers: Mapping[str, Card]

    def names(self) -> set[str]:
        """What a condition may call it."""
        return {self.label, str(self.run.path), self.run.path.resolve().name}


@dataclass(frozen=True)
class Group:
    """Runs of one recipe, the same images and the same number of steps, each of another training seed."""

    label: str
    members: tuple[Member, ...]

    def text(self) -> str:
        """In words: "3 seeds of etsdm"."""
        return self.label if len(self.members) == 1 else f"{len(self.members)} seeds of {self.label}"

    def by_seed(self, name: str) -> dict[int, Card]:
        """A number by training seed, of the runs that have it."""
        return {one.run.seed: one.numbers[name] for one in self.members if name in one.numbers}


def grouped(runs: Sequence[Run], found: Sequence[Measured]) -> list[Group]:
    """Runs in the groups that they form, in the order given.

    A label is the recipe's name with the seed where a group has several; where two recipes have one name, the folder's
    stands behind it, and its path where folders share a name. Raises ArgumentError for one run twice.
    """
    places = [run.path.resolve() for run in runs]
    twice = [str(place) for place, times in Counter(places).items() if times > 1]
    if twice:
        raise ArgumentError(f"{twice[0]} is named twice; name each run once")
    parts: list[list[tuple[Run, Measured]]] = []
    for run, one in zip(runs, found, strict=True):
        home = next((part for part in parts if _belongs(run, [other for other, _ in part])), None)
        if home is None:
            parts.append(home := [])
        home.append((run, one))
    labels = _labels([part[0][0] for part in parts])
    return [Group(label, tuple(_members(label, part))) for label, part in zip(labels, parts, strict=True)]


def _belongs(run: Run, others: Sequence[Run]) -> bool:
    first = others[0]
    return (
        run.recipe.name == first.recipe.name
        and not differences(run.recipe, first.recipe)
        and run.data.get("fingerprint") == first.data.get("fingerprint")
        and _step(run) == _step(first)
        and run.seed not in {one.seed for one in others}
    )


def _members(label: str, part: Sequence[tuple[Run, Measured]]) -> list[Member]:
    several = len(part) > 1
    return [
        Member(f"{label} seed {run.seed}" if several else label, run, _step(run), one, {})
        for run, one in sorted(part, key=lambda pair: pair[0].seed)
    ]


def _step(run: Run) -> int:
    """The step of its newest checkpoint; 0 where there is none that is whole."""
    try:
        return run.step
    except CheckpointError:
        return 0


def _labels(firsts: Sequence[Run]) -> list[str]:
    """One for each group, all different."""
    labels = [run.recipe.name for run in firsts]
    for place in (lambda run: run.path.resolve().name, lambda run: str(run.path.resolve())):
        times = Counter(labels)
        labels = [
            f"{run.recipe.name} ({place(run)})" if times[label] > 1 else label
            for label, run in zip(labels, firsts, strict=True)
        ]
    return labels


def with_numbers(groups: Sequence[Group], numbers: Mapping[str, Mapping[str, Card]]) -> list[Group]:
    """The same groups, whose members have the numbers of their labels."""
    return [
        replace(group, members=tuple(replace(one, numbers=numbers[one.label]) for one in group.members))
        for group in groups
    ]


def lookup(groups: Sequence[Group], text: str) -> dict[str, Mapping[str, Card]]:
    """The numbers of the runs that `text` means: a label, a group's, a path or a folder's name; all for "".

    Raises ArgumentError where it means none, or different ones.
    """
    everyone = {one.label: one.numbers for group in groups for one in group.members}
    if not text:
        return everyone
    meant = {tuple(one.label for one in group.members) for group in groups if text == group.label}
    meant |= {(one.label,) for group in groups for one in group.members if text in one.names()}
    if not meant:
        raise ArgumentError(f"no run here is called {text!r}; {did_you_mean(text, [*everyone, *_more(groups)])}")
    if len(meant) > 1:
        raise ArgumentError(f"{text!r} means {' and '.join(', '.join(one) for one in sorted(meant))}; name one by path")
    return {label: everyone[label] for label in next(iter(meant))}


def _more(groups: Sequence[Group]) -> list[str]:
    return [group.label for group in groups if len(group.members) > 1]


def contrasts(first: Recipe, others: Sequence[Recipe]) -> dict[str, list[str]]:
    """What differs between recipes: each field of any difference from the first, with every recipe's value in brief.

    Of two objects of one class the fields that differ, as training.steps; their names are no difference.
    """
    found = [dict(_deeper(pair, name)) for one in others for name, pair in differences(first, one).items()]
    names = list(dict.fromkeys(name for one in found for name in one))
    return {name: [brief(_at(recipe, name)) for recipe in (first, *others)] for name in _outermost(names)}


def _deeper(pair: tuple[Any, Any], name: str) -> list[tuple[str, tuple[Any, Any]]]:
    a, b = pair
    if not is_dataclass(a) or type(a) is not type(b) or hasattr(a, "betas"):
        return [(name, pair)]
    parts = [(f.name, (getattr(a, f.name), getattr(b, f.name))) for f in fields(a) if f.compare]
    return [deep for part, both in parts if both[0] != both[1] for deep in _deeper(both, f"{name}.{part}")]


def _outermost(names: Sequence[str]) -> list[str]:
    """The names without those that lie in another."""
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _at(recipe: Recipe, name: str) -> Any:
    value: Any = recipe
    for part in name.split("."):
        value = getattr(value, part)
    return value


def differences_over_seeds(groups: Sequence[Group]) -> list[tuple[str, str, str, int, tuple[float, float, float]]]:
    """Every later group against the first: (number, group, first group, pairs, mean and 95 % interval).

    Only numbers of one protocol that both have for two training seeds at least.
    """
    if len(groups) < 2:
        return []
    first, *others = groups
    found = []
    for group in others:
        for name in dict.fromkeys(name for one in group.members for name in one.numbers):
            ours, theirs = group.by_seed(name), first.by_seed(name)
            seeds = sorted(ours.keys() & theirs.keys())
            cards = {f"{k}-{seed}": side[seed] for seed in seeds for k, side in enumerate((ours, theirs))}
            if len(seeds) > 1 and comparable(cards) is None:
                values = paired([ours[seed].value for seed in seeds], [theirs[seed].value for seed in seeds])
                found.append((name, group.label, first.label, len(seeds), values))
    return found


def comparable(cards: Mapping[str, Card]) -> str | None:
    """Why cards cannot be ranked; None where they can."""
    try:
        check_alike(cards)
    except ArgumentError as error:
        return str(error)
    return None
