"""The pages of a distance: the number with its floor, samples beside real images, and distance against cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from torch import Tensor

from nearzero.cards import Card, plain
from nearzero.files import grid_png
from nearzero.report.diagnosis import number
from nearzero.report.figures import _LOOK, STYLES, _figure, _legend, _style, _svg
from nearzero.report.page import Page, Picture, Section, Table

SHOWN = 64
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of Okabe and Ito's, one for each solver; its grids differ in dash and marker."""


def page(card: Card, samples: Tensor, real: Tensor, command: str) -> Page:
    """The page of a card, with samples and real images, uint8 (N, C, H, W), the first 64 of each."""
    subject = card.subject
    reference = card.protocol["reference"]
    told = (
        "" if card.floor is None else f" As many real images come to {_or(card.floor)}: nothing can be told below that."
    )
    lead = f"{card.title} {_or(card.value)}, 95 % within {_or(card.low)} to {_or(card.high)}.{told}"
    where = f"{reference['name']}, {reference['count']:,} images"
    pictures = (
        _grid(samples[:SHOWN], f"{min(SHOWN, len(samples))} samples", "Samples, in the order of their seeds."),
        _grid(real[:SHOWN], f"{min(SHOWN, len(real))} real images", f"Real images, by chance, of {where}."),
    )
    text = f"{card.protocol['count']:,} samples of {subject['recipe']} at step {subject['step']:,} against {where}."
    sections = [
        Section("Distance", (text,), (), (numbers(card),), commands=command),
        Section("Samples and real images", (), pictures),
    ]
    if "search" in card.made:
        sections.insert(1, searched(card.made["search"]))
    sections.append(Section("What the number depends on", (), (), (facts(card),)))
    return Page(f"Quality of {subject['recipe']}", (lead,), sections, str(subject["run"]))


def numbers(card: Card) -> Table:
    """All numbers of a card, each with its error, or interval, and that of real images."""
    rows = [(card.title, number(card.value, card.stderr), f"{_or(card.low)} to {_or(card.high)}", _or(card.floor))]
    for name, one in card.others.items():
        error = one.get("stderr")
        value = number(one["value"]) if error is None else number(one["value"], error)
        rows.append((name, value, "", _or(one.get("floor"))))
    return Table(("what", "value", "95 % interval", "real images"), rows, "Values with their standard error, if known.")


def facts(card: Card) -> Table:
    """The protocol, the subject and how the card was made, a row each."""
    rows = [(name, _text(value)) for part in (card.protocol, card.subject) for name, value in part.items()]
    rows += [
        (name, _text(card.made[name])) for name in ("nearzero", "torch", "device", "interval") if name in card.made
    ]
    return Table(("what", "value"), rows)


def searched(found: Mapping[str, Any]) -> Section:
    """The rounds of a search: who was tried on how many images, and the distance of each."""
    rows = [
        (str(r), f"{one['images']:,}", _churn(found["candidates"][place]), _or(score))
        for r, one in enumerate(found["rounds"])
        for score, place in sorted(zip(one["scores"], one["places"], strict=True))
    ]
    text = (
        f"Successive halving over {len(found['candidates'])} settings of EDM's sampler on the seeds {found['seeds']}: "
        "the better half of a round goes on and is drawn twice as often. Distances of two rounds do not compare. The "
        "distance above is that of the choice on other seeds."
    )
    header = ("round", "images of each", "S_churn, S_min, S_max, S_noise", "distance")
    return Section("The search", (text,), (), (Table(header, rows),))


def pareto_page(found: Mapping[str, Any], command: str) -> Page:
    """The page of `nearzero.pareto.document`."""
    points = found["points"]
    best, chosen = (next(one for one in points if one[mark]) for mark in ("best", "recommended"))
    near = sum(one["within"] for one in points)
    value = f"{found['title']} {number(best['value'], best['stderr'])}"
    lead = f"{_name(best)} is the best and the cheapest within its noise: {value}."
    if best != chosen:
        cost = number(chosen["value"], chosen["stderr"])
        lead = f"Take {_name(chosen)}: {cost}. It is the cheapest of {near} within the noise of {_name(best)}: {value}."
    picture = Picture(
        figure(found),
        f"{found['title']} against network evaluations, {len(points)} points; recommended is {_name(chosen)}.",
        "Distance against network evaluations for each image, with 95 % intervals. Rings: within the noise of the "
        "best; star: the cheapest of these. Line: as many real images.",
    )
    rows = [
        (
            f"{one['solver']} on {one['grid']}",
            f"{one['network_evaluations']:g}",
            number(one["value"], one["stderr"]),
            f"{_or(one['low'])} to {_or(one['high'])}",
            ", ".join(mark for mark in ("best", "within", "recommended") if one[mark]),
        )
        for one in sorted(points, key=lambda one: (one["network_evaluations"], one["value"]))
    ]
    header = ("sampler", "evaluations", "distance", "95 % interval", "marks")
    caption = f"Within: the set holds the true best with at least {found['confidence']:.0%}. Equal seeds for all."
    protocol = found["protocol"]
    about = [(name, _text(found[name])) for name in ("run", "recipe", "step", "checkpoint", "weights", "seeds")]
    about += [(name, _text(value)) for name, value in protocol.items()]
    sections = (
        Section("Distance against cost", (), (picture,), (Table(header, rows, caption),), commands=command),
        Section("What the numbers depend on", (), (), (Table(("what", "value"), about),)),
    )
    return Page(f"Distance against cost of {found['recipe']}", (lead,), sections, str(found["run"]))


def figure(found: Mapping[str, Any]) -> bytes:
    """Distance against network evaluations, both logarithmic, a line for each solver and grid (EDM, Fig. 2, 4)."""
    points = found["points"]
    solvers, grids = (list(dict.fromkeys(one[key] for one in points)) for key in ("solver", "grid"))
    lines = [(solver, grid) for solver in solvers for grid in grids]
    with rc_context(_LOOK):
        drawn, (axes,) = _figure(3.8 + 0.25 * -(-len(lines) // 2))
        for solver, grid in lines:
            mine = [one for one in points if (one["solver"], one["grid"]) == (solver, grid)]
            dash = {key: STYLES[grids.index(grid) % len(STYLES)][key] for key in ("linestyle", "marker")}
            style = {**dash, "color": COLOURS[solvers.index(solver) % len(COLOURS)]}
            _line(axes, f"{solver} on {grid}", sorted(mine, key=lambda one: one["network_evaluations"]), style)
        if found["floor"] is not None and found["floor"] > 0:
            axes.axhline(found["floor"], color="#595959", linestyle=":", linewidth=1.4, label="real images")
        axes.set(xscale="log", yscale="log", xlabel="network evaluations for each image", ylabel=found["title"])
        axes.set_xticks(_apart(one["network_evaluations"] for one in points))
        axes.xaxis.set_minor_locator(NullLocator())
        _legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        return _svg(drawn)


def _line(axes: Axes, name: str, points: Sequence[Mapping[str, Any]], style: Mapping[str, Any]) -> None:
    x, y = ([one[key] for one in points] for key in ("network_evaluations", "value"))
    errors = [[one["value"] - one["low"] for one in points], [one["high"] - one["value"] for one in points]]
    axes.errorbar(x, y, errors, capsize=3, **{**_style(0, label=name), **style})
    for one in points:
        mark = {"linestyle": "", "color": style["color"]}
        place = ([one["network_evaluations"]], [one["value"]])
        if one["within"]:
            axes.plot(*place, marker="o", markersize=11, markerfacecolor="none", **mark)
        if one["recommended"]:
            axes.plot(*place, marker="*", markersize=14, **mark)


def _apart(values: Iterable[float]) -> list[float]:
    """Those of the values that have room for a number beside the one before, on a logarithmic axis."""
    found: list[float] = []
    for value in sorted(set(values), reverse=True):
        if not found or found[-1] >= 1.25 * value:
            found.append(value)
    return found


def _grid(images: Tensor, alt: str, caption: str) -> Picture:
    return Picture(grid_png(images), alt, caption, pixels=True)


def _name(point: Mapping[str, Any]) -> str:
    return f"{point['solver']} on {point['grid']} with {point['network_evaluations']:g} evaluations"


def _churn(solver: Mapping[str, Any]) -> str:
    high = "none" if solver["t_max"] is None else f"{solver['t_max']:g}"
    return f"{solver['churn']:g}, {solver['t_min']:g}, {high}, {solver['noise']:g}"


def _or(value: float | None) -> str:
    """A number to four digits, all of those before the point; nothing for None."""
    return "" if value is None else plain(value)


def _text(value: Any) -> str:
    """JSON for people: the class of an axis with its fields, names with their values."""
    if isinstance(value, Mapping):
        fields = ", ".join(f"{name} {_text(one)}" for name, one in value.items() if name != "class")
        return f"{value['class']}({fields})" if "class" in value else fields
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
