"""The report of a run: what it is, what it is worth, how it was trained, and what is wrong with it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from nearzero import zoo
from nearzero.cards import Card
from nearzero.files import contact_sheet, png
from nearzero.recipes.table import COLUMNS, brief, row
from nearzero.report import diagnosis
from nearzero.report.compare import cells, cut
from nearzero.report.curves import points, training
from nearzero.report.findings import Copies, Findings
from nearzero.report.measured import numbers, steps
from nearzero.report.neighbours import median, nearer_than_real, sheet
from nearzero.report.page import Page, Picture, Section, Table
from nearzero.training.events import summary

FAULTS = (
    "skip",
    "roll back",
    "rolled_back",
    "stop",
    "weights_not_finite",
    "preview_failed",
    "log_failed",
    "disk_full",
    "data_changed",
)
"""Kinds of events that a reader should know of."""

SHOWN_EVENTS = 20
SHOWN_COPIES = 8


def page(found: Findings, command: str) -> Page:
    """The whole report."""
    name = found.run.recipe.name
    sections = [
        Section("What it is", tables=(about(found),)),
        _numbers(found),
        _training(found),
        _samples(found),
        _copies(found),
        _near_zero(found),
        _events(found),
        _origin(found, command),
    ]
    return Page(f"Report: {name}, {found.run.path.resolve().name}", verdict(found), sections, zoo.shown(found.run.path))


def verdict(found: Findings) -> list[str]:
    """What a reader should take away, in sentences."""
    lines = [_history(found)]
    lines += [_distance(card) for card in found.measured.cards.values()]
    nll = {name: card for name, card in numbers(found.measured).items() if name.startswith("nll-")}
    lines += [f"{name}: {card.value:.4f} bits per dimension." for name, card in nll.items()]
    if not lines[1:]:
        lines.append("Neither distances nor likelihoods have been measured.")
    if found.copies is not None:
        lines.append(_copied(found.copies))
    wrong = [*found.damaged, *_faults(found)]
    if wrong:
        lines.append(f"Something is wrong: {'; '.join(wrong)}.")
    return lines


def _history(found: Findings) -> str:
    """What was trained, and how far; a pipeline of diffusers has no history."""
    run, asked = found.run, found.run.recipe.training.steps
    if not run.data:
        return f"{run.recipe.name}, a pipeline: nobody says on what it was trained, or for how long."
    share = "" if found.step >= asked else f" of {asked:,}"
    seen = found.step * run.recipe.training.batch
    what = f"{run.recipe.name}, trained on {run.data.get('name', 'unknown images')}, training seed {run.seed}"
    return f"{what}: {found.step:,}{share} steps, {seen:,} images seen."


def _distance(card: Card) -> str:
    """A card in a sentence."""
    told = card.text()
    if card.floor is None:
        return f"{told}."
    apart = card.low > card.floor
    return f"{told}. " + ("Above what real images show." if apart else "No further than real images are.")


def _faults(found: Findings) -> list[str]:
    kinds = summary(found.events)
    return [f"{kind} {times} times" if times > 1 else kind for kind, times in kinds.items() if kind in FAULTS]


def about(found: Findings) -> Table:
    """The recipe's axes, its network and training, and the images."""
    run, data = found.run, found.run.data
    rows = [
        *zip(COLUMNS, row(run.recipe), strict=True),
        ("codec", brief(run.recipe.codec)),
        ("network", cut(brief(run.recipe.network), 400)),
    ]
    if data:
        rows += [
            ("training", brief(run.recipe.training)),
            ("images", f"{data.get('count', 0):,} of {data.get('name', 'unknown')}"),
            ("their fingerprint", str(data.get("fingerprint", "unknown"))),
            ("checkpoint", f"step {found.step:,}" if found.step else "none that is whole"),
        ]
    return Table(("what", "value"), rows)


def _numbers(found: Findings) -> Section:
    known = numbers(found.measured)
    whole = {name: card for name, card in known.items() if name != "nll"}
    rows = [(name, card.title, *cells(card)) for name, card in whole.items()]
    curve = sorted(found.measured.curve.values(), key=lambda card: _calls(card))
    curve_rows = [(_sampler(card), f"{_calls(card):g}", *cells(card)) for card in curve]
    header = ("file", "number", "value", "95 % interval", "real images", "images")
    caption = "Each from a sealed card or document in the run's folder. Real images: as many in place of samples."
    tables = [Table(header, rows, caption)] if rows else []
    if curve_rows:
        header = ("sampler", "network evaluations", "value", "95 % interval", "real images", "images")
        tables.append(Table(header, curve_rows, "Distance against network evaluations."))
    text = [
        f"{name} was measured at step {step}; the run is at step {found.step:,}."
        for name, step in steps(found.measured).items()
        if step != found.step
    ]
    place = shlex.quote(zoo.shown(found.run.path))
    lacking = sorted(found.measured.lacking)
    if lacking:
        text.append(f"Not measured yet: {' and '.join(lacking)}; the command stands below.")
    return Section(
        "The numbers", text, (), tables, commands="\n".join(f"nearzero evaluate {place} --{name}" for name in lacking)
    )


def _calls(card: Card) -> float:
    calls = card.subject.get("network_evaluations")
    return float(calls) if isinstance(calls, int | float) else 0.0


def _sampler(card: Card) -> str:
    """Solver and grid, as the card tells them."""
    return " ".join(_short(card.subject.get(part)) for part in ("solver", "grid")) or "unknown"


def _short(part: Any) -> str:
    return str(part.get("class", "")) if isinstance(part, Mapping) else "" if part is None else str(part)


def _training(found: Findings) -> Section:
    if not points(found.stats, "Loss/loss"):
        return _absent(found, "Training", "There is no stats.jsonl, so nothing is known of the training.", "")
    return Section("Training", (), (training(found.stats),))


def _absent(found: Findings, title: str, text: str, command: str) -> Section:
    """A section that says what is missing and how to get it."""
    return Section(title, (found.missing.get(title, text),), commands=command)


def _samples(found: Findings) -> Section:
    if found.samples is None:
        command = f"nearzero sample {shlex.quote(zoo.shown(found.run.path))} -n 64 --out samples"
        return _absent(found, "Samples", "No samples were asked for.", command)
    images, recipe = found.samples, found.run.recipe
    how = f"{brief(recipe.solver)} on {brief(recipe.grid)} in {recipe.steps} steps"
    picture = Picture(
        png(contact_sheet(images), scale=max(1, 96 // images.shape[-1])),
        alt=f"{len(images)} samples",
        caption=f"Seeds 0 to {len(images) - 1}: {how}.",
        pixels=True,
    )
    return Section("Samples", (), (picture,))


def _copies(found: Findings) -> Section:
    title = "Nearest training images"
    if found.copies is None or found.samples is None:
        text = "Without samples and the training images nothing can be compared; name the images with --data DIR."
        return _absent(found, title, text, "")
    one = found.copies
    shown = [("samples, by pixels", found.samples, one.training, one.pixels)]
    if one.features is not None and one.featured is not None:
        shown.append(("samples, by features of SqueezeNet", found.samples, one.featured, one.features))
    if one.real is not None and one.real_pixels is not None:
        shown.append(("held-out real images, by pixels", one.real, one.training, one.real_pixels))
    pictures = [
        Picture(
            sheet(queries[:SHOWN_COPIES], training, type(found)(*(part[:SHOWN_COPIES] for part in found))),
            alt=f"The nearest training images of {label}",
            caption=f"{label[0].upper()}{label[1:]}: each at the left, its nearest training images to the right.",
            pixels=True,
        )
        for label, queries, training, found in shown
    ]
    text = [
        "A network that has learned its images by heart draws them again. Distances are root mean squares over pixels, "
        "0 to 255; 0 is a copy. Blurred samples lie near to everything, so look at the pictures as well.",
        _copied(one),
        *([found.missing[title]] if title in found.missing else []),
    ]
    return Section(title, text, pictures, (_distances(one),))


def _copied(one: Copies) -> str:
    """Whether samples lie nearer to the training images than real ones do."""
    exact = int((one.pixels.distance[:, 0] == 0).sum())
    total = len(one.pixels.distance)
    if exact:
        return f"{exact} of {total} samples are copies of training images, pixel by pixel."
    if one.real_pixels is None:
        return f"No sample of {total} is a copy, pixel by pixel; no held-out images tell what is near."
    count, limit = nearer_than_real(one.pixels, one.real_pixels)
    return (
        f"{count} of {total} samples lie nearer to a training image than {limit:.3g}, as one in a hundred held-out "
        f"real images does: {'look for copies among them' if count > 0.05 * total + 1 else 'no sign of copying'}."
    )


def _distances(one: Copies) -> Table:
    """Least and median distances of samples and held-out images."""
    lines = {
        "samples, pixels": one.pixels,
        "held-out images, pixels": one.real_pixels,
        f"samples, features ({0 if one.featured is None else len(one.featured):,} training images)": one.features,
        "held-out images, features (the same)": one.real_features,
    }
    rows = [
        (name, f"{near.distance[:, 0].min().item():.4g}", f"{median(near.distance[:, 0]):.4g}", str(len(near.distance)))
        for name, near in lines.items()
        if near is not None
    ]
    return Table(("distance to the nearest training image", "least", "median", "images"), rows)


def _near_zero(found: Findings) -> Section:
    if found.diagnosis is None:
        command = f"nearzero diagnose {shlex.quote(zoo.shown(found.run.path))} --data DIR --html"
        return _absent(found, "Near t = 0", "No diagnosis was asked for.", command)
    return diagnosis.section({found.run.recipe.name: found.diagnosis})


def _events(found: Findings) -> Section:
    counts = summary(found.events)
    items = [f"Damaged: {line}" for line in found.damaged]
    tables = [Table(("event", "times"), [(kind, f"{times:,}") for kind, times in counts.items()])] if counts else []
    last = [_event(event) for event in found.events[-SHOWN_EVENTS:]]
    if last:
        tables.append(Table(("time", "step", "event", "facts"), last, "The last events."))
    text = "No fault is known." if not found.damaged and not _faults(found) else "Faults, and what became of them:"
    return Section("Events and faults", (text,), (), tables, items)


def _event(event: Mapping[str, Any]) -> tuple[str, str, str, str]:
    facts = {name: value for name, value in event.items() if name not in ("time", "kind", "step")}
    told = ", ".join(f"{name} {value}" for name, value in facts.items())
    return str(event.get("time"))[:19], str(event.get("step")), str(event.get("kind")), told[:300]


def _origin(found: Findings, command: str) -> Section:
    origin = found.run.provenance
    rows = [(name, str(value)) for name, value in origin.items() if name != "argv"]
    argv = origin.get("argv")
    lines = [f"# trained by\n{_line(argv)}"] if isinstance(argv, Sequence) and not isinstance(argv, str) else []
    lines.append(f"# this page\n{command}")
    tables = [Table(("environment of the training", "value"), rows)] if rows else []
    return Section("Environment and commands", (), (), tables, commands="\n".join(lines))


def _line(argv: Sequence[Any]) -> str:
    """A command line without the folder of the program."""
    first, *rest = [str(part) for part in argv] or [""]
    return shlex.join([first.rsplit("/", 1)[-1], *rest])
