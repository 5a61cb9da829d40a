"""The comparison of runs: what they have in common, what differs, and which differences the numbers show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nearzero import zoo
from nearzero.cards import Card, plain
from nearzero.diagnostics.diagnosis import Diagnosis
from nearzero.files import contact_sheet, png
from nearzero.report import diagnosis
from nearzero.report.curves import overlaid, points, read_stats
from nearzero.report.groups import Group, Member, comparable, contrasts, differences_over_seeds
from nearzero.report.measured import steps
from nearzero.report.page import Page, Picture, Section, Table


@dataclass(frozen=True)
class Comparison:
    """Groups with their numbers, and what was made anew for them.

    `found` and `sheets` (uint8 images, the same seeds for all) are by the runs' labels; `notes` say what could not be
    measured, and why.
    """

    groups: Sequence[Group]
    found: Mapping[str, Diagnosis] = field(default_factory=dict)
    sheets: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def members(self) -> list[Member]:
        """Every run, group by group."""
        return [one for group in self.groups for one in group.members]


def ranking(members: Sequence[Member]) -> tuple[Table, list[str]]:
    """Every number of every run with its place among runs of one protocol, and sentences on what they show.

    A run's place is one more than the number of runs whose whole interval lies below its own.
    """
    rows, text = [], []
    for name in dict.fromkeys(name for one in members for name in one.numbers):
        cards = {one.label: one.numbers[name] for one in members if name in one.numbers}
        reason = comparable(cards)
        ranked = len(cards) > 1 and not reason and all(map(_is_ranked, cards.values()))
        for label, card in sorted(cards.items(), key=lambda item: item[1].value):
            place = "not comparable" if reason else str(_place(card, cards.values())) if ranked else ""
            rows.append((f"{name}: {label}", *cells(card), place))
        if reason:
            rows.append((f"{name}: not comparable: {reason}", "", "", "", "", ""))
        elif ranked:
            text.append(_verdict(name, cards))
    header = ("number and run", "value", "95 % interval", "real images", "images", "place")
    caption = (
        "Smaller is better where there are places, and runs whose intervals overlap share one. The interval: over the "
        "images measured."
    )
    return Table(header, rows, caption), text


def cells(card: Card) -> tuple[str, str, str, str]:
    """Value, interval, floor and number of images."""
    floor, count = card.floor, card.protocol.get("count")
    told = f"{count:,}" if isinstance(count, int) else ""
    interval = f"{plain(card.low)} to {plain(card.high)}" if _has_interval(card) else "unknown"
    return plain(card.value), interval, "" if floor is None else plain(floor), told


def _has_interval(card: Card) -> bool:
    """Whether its error is known: a number of one image, or of no known error, has an interval of no width."""
    return card.low < card.high


def _is_ranked(card: Card) -> bool:
    """Whether it has an interval, and is none of a card's further numbers, which may be better when they are larger."""
    return _has_interval(card) and "other" not in card.protocol


def _place(card: Card, others: Any) -> int:
    return 1 + sum(other.high < card.low for other in others)


def _verdict(name: str, cards: Mapping[str, Card]) -> str:
    (best, first), *rest = sorted(cards.items(), key=lambda item: item[1].value)
    above = [label for label, card in rest if card.low > first.high]
    if not above:
        return f"{name}: no difference is shown; the intervals of all runs overlap that of {best}."
    left = [label for label, _ in rest if label not in above]
    overlap = f" That of {' and '.join(left)} overlaps it." if left else ""
    return f"{name}: {best} lies below {' and '.join(above)} by more than their intervals.{overlap}"


def paired_table(groups: Sequence[Group]) -> Table | None:
    """Differences over equal training seeds; None where no two groups share two."""
    found = differences_over_seeds(groups)
    rows = [
        (f"{name}: {a} - {b}", plain(mean), f"{plain(low)} to {plain(high)}", str(n), _sign(low, high))
        for name, a, b, n, (mean, low, high) in found
    ]
    header = ("difference", "mean", "95 % interval", "pairs", "shown")
    caption = "Paired over equal training seeds, Student's interval: what another training would have changed, too."
    return Table(header, rows, caption) if rows else None


def _sign(low: float, high: float) -> str:
    return "lower" if high < 0 else "higher" if low > 0 else "no difference"


def recipes_table(groups: Sequence[Group]) -> Table | None:
    """What differs between the recipes; None where nothing does."""
    first, *others = [group.members[0].run.recipe for group in groups]
    rows = [(name, *map(cut, values)) for name, values in contrasts(first, others).items()]
    return Table(("field", *(group.label for group in groups)), rows) if rows else None


def cut(text: str, length: int = 200) -> str:
    """A text that a table has room for: a foreign network's config may fill a page."""
    return text if len(text) <= length else f"{text[:length]} ..."


def runs_table(members: Sequence[Member]) -> Table:
    """Which runs these are."""
    rows = [
        (
            one.label,
            one.run.recipe.name,
            str(one.run.seed),
            f"{one.step:,}",
            f"{one.step * one.run.recipe.training.batch:,}",
            str(one.run.data.get("name", "unknown")),
            zoo.shown(one.run.path),
        )
        for one in members
    ]
    return Table(("run", "recipe", "training seed", "step", "images seen", "data", "folder"), rows)


def tables(one: Comparison) -> list[Table]:
    """The tables that a terminal shows."""
    found = [runs_table(one.members), recipes_table(one.groups), ranking(one.members)[0], paired_table(one.groups)]
    return [table for table in found if table is not None and table.rows]


def page(one: Comparison, command: str) -> Page:
    """Everything, as a page."""
    names = [group.text() for group in one.groups]
    lead = (f"{len(one.members)} runs: {', '.join(names)}.", *_unequal(one.groups))
    sections = [_what(one), *_samples(one), _numbers(one), *_near_zero(one), *_training(one)]
    sections.append(Section("Made by", commands=command))
    return Page(f"Comparison: {' and '.join(group.label for group in one.groups)}", lead, sections)


def _unequal(groups: Sequence[Group]) -> list[str]:
    """What a reader must know before comparing: other data, other steps."""
    firsts = [group.members[0] for group in groups]
    found = []
    if len({one.run.data.get("fingerprint") for one in firsts}) > 1:
        found.append("They were not all trained on the same images.")
    if len({one.step * one.run.recipe.training.batch for one in firsts}) > 1:
        found.append("They have not all seen the same number of images.")
    return found


def _what(one: Comparison) -> Section:
    table = recipes_table(one.groups)
    text = () if table else ("The recipes differ in nothing.",)
    return Section("What differs", text, (), [runs_table(one.members), *([table] if table else [])])


def _samples(one: Comparison) -> list[Section]:
    if not one.sheets:
        return []
    pictures = [
        Picture(
            png(contact_sheet(sheet), scale=max(1, 96 // sheet.shape[-1])),
            alt=f"{len(sheet)} samples of {label}",
            caption=f"{label}: seeds 0 to {len(sheet) - 1}.",
            pixels=True,
        )
        for label, sheet in one.sheets.items()
    ]
    text = "Samples at the same place start from the same noise, each with its recipe's own solver and grid."
    return [Section("The same seeds", (text,), pictures)]


def _numbers(one: Comparison) -> Section:
    table, text = ranking(one.members)
    paired = paired_table(one.groups)
    text = [*text, *remarks(one)]
    lacking = sorted(set.intersection(*(member.measured.lacking for member in one.members)))
    commands = "\n".join(f"nearzero evaluate RUN --{name}" for name in lacking)
    if not table.rows:
        text.append("Nothing has been measured.")
    shown = [part for part in (table, paired) if part is not None and part.rows]
    if lacking:
        text.append(f"Measured of no run: {' and '.join(lacking)}; the command stands below.")
    return Section("The numbers", text, (), shown, commands=commands)


def of_another_step(members: Sequence[Member]) -> list[str]:
    """Which numbers were measured before training went on, each in one sentence for all of its runs."""
    labels: dict[tuple[str, int, int], list[str]] = {}
    for one in members:
        for name, step in steps(one.measured).items():
            if isinstance(step, int) and step != one.step:
                labels.setdefault((name, step, one.step), []).append(one.label)
    found = []
    for (name, step, now), those in labels.items():
        whose = "all runs" if 1 < len(those) == len(members) else ", ".join(those)
        runs = "the run is" if len(those) == 1 else "the runs are"
        found.append(f"{name} of {whose} was measured at step {step:,}; {runs} at step {now:,}.")
    return found


SAMPLER = ("solver", "grid", "steps", "nfe", "through", "guidance", "weights")
"""What a card says of how samples were drawn."""


def of_other_samplers(members: Sequence[Member]) -> list[str]:
    """Which numbers are of samples that were drawn in different ways, so that they compare more than the networks."""
    found = []
    for name in dict.fromkeys(name for one in members for name in one.measured.cards):
        cards = [one.measured.cards[name] for one in members if name in one.measured.cards]
        parts = [
            part for part in SAMPLER if any(card.subject.get(part) != cards[0].subject.get(part) for card in cards)
        ]
        if parts:
            found.append(f"{name}: the samples differ in {', '.join(parts)} too.")
    return found


def remarks(one: Comparison) -> list[str]:
    """Everything that a reader must know beside the numbers."""
    return [*of_another_step(one.members), *of_other_samplers(one.members), *one.notes]


def _near_zero(one: Comparison) -> list[Section]:
    """Curves of the first seed of each group, and every run's numbers."""
    firsts = {group.members[0].label: one.found.get(group.members[0].label) for group in one.groups}
    shown = {label: found for label, found in firsts.items() if found is not None}
    if not shown:
        return []
    section = diagnosis.section(shown)
    several = len(one.found) > len(shown)
    text = [*section.text, *(["The figures show one training seed of each recipe, the table all."] if several else [])]
    return [Section(section.title, text, section.pictures, (diagnosis.table(one.found),))]


def _training(one: Comparison) -> list[Section]:
    lines = {
        group.label: [
            line
            for member in group.members
            if (line := points(read_stats(member.run.path / "stats.jsonl"), "Loss/loss"))
        ]
        for group in one.groups
    }
    lines = {label: found for label, found in lines.items() if found}
    return [Section("Training", (), (overlaid(lines),))] if lines else []


def describe(one: Comparison) -> dict[str, Any]:
    """Everything but pictures as JSON."""
    firsts = [group.members[0].run.recipe for group in one.groups]
    names = dict.fromkeys(name for member in one.members for name in member.numbers)
    cards = {name: {m.label: m.numbers[name] for m in one.members if name in m.numbers} for name in names}
    return {
        "runs": {
            member.label: {
                "run": zoo.shown(member.run.path),
                "recipe": member.run.recipe.name,
                "seed": member.run.seed,
                "step": member.step,
                "numbers": {name: _number(card) for name, card in member.numbers.items()},
            }
            for member in one.members
        },
        "groups": {group.label: [member.label for member in group.members] for group in one.groups},
        "differences": contrasts(firsts[0], firsts[1:]),
        "not_comparable": {name: why for name, found in cards.items() if (why := comparable(found))},
        "paired": [
            {"number": name, "group": a, "against": b, "pairs": n, "mean": mean, "low": low, "high": high}
            for name, a, b, n, (mean, low, high) in differences_over_seeds(one.groups)
        ],
        "notes": remarks(one),
    }


def _number(card: Card) -> dict[str, Any]:
    return {"title": card.title, "value": card.value, "low": card.low, "high": card.high, "floor": card.floor}
