"""The page of `sharing-mixture`: errors over timesteps, paired differences, K, and the price of sharing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nearzero.experiments.mixture_findings import ABOVE, BELOW, BEST, EXACT, NAMES, PAIRS, SHARED, SILENT, Numbers
from nearzero.report.diagnosis import number
from nearzero.report.figures import _LOOK, _style
from nearzero.report.page import Picture, Table
from nearzero.report.theory import Drawn, _axes, _png

if TYPE_CHECKING:
    from nearzero.experiments.theory import Found

Points = Sequence[tuple[float, float, float]]
"""Timestep counted from 1, value, standard error."""
Which = tuple[str, str, int | None]
"""Measure, of what, images seen."""

_GREY = "#595959"


def sharing_mixture(found: Found) -> Drawn:
    """Excess errors and differences after each stage, K against the exact one, and tables."""
    numbers, points = Numbers(found.rows), _points(found)  # pyright: ignore[reportArgumentType]
    with rc_context(_LOOK):
        pictures = {
            "excess.png": _excess(points, numbers.stages),
            "difference.png": _difference(points, numbers.stages),
            "k.png": _steepness(points, numbers.stages),
        }
    return Drawn(pictures, [_spans(numbers), _pairs(numbers), _ratios(numbers), _prices(found)])


def _points(found: Found) -> Callable[[str, str, int | None], Points]:
    """The points of a line, by its measure, of what it is, and the images seen."""
    lines: dict[Which, list[tuple[float, float, float]]] = {}
    for measure, of, seen, timestep, value, error in found.rows:
        if isinstance(timestep, int):
            key: Which = (str(measure), str(of), None if seen is None else int(seen))
            lines.setdefault(key, []).append((timestep + 1, float(value or 0), float(error or 0)))
    return lambda *key: lines[key]


def _panels(height: float, stages: Sequence[int]) -> tuple[Figure, Sequence[Axes]]:
    """A panel a stage, below each other, on the same axes."""
    figure, panels = _axes(height * len(stages) + 0.6, len(stages))
    for axes, seen in zip(panels, stages, strict=True):
        axes.set_title(f"after {seen:,} images", fontsize=11)
        axes.axvline(SHARED + 0.5, color=_GREY, linewidth=0.8, linestyle=":")
        axes.set(xscale="log")
    panels[-1].set_xlabel("timestep, counted from 1")
    return figure, panels


def _bars(axes: Axes, points: Points, place: int, label: str) -> None:
    x, y, error = zip(*points, strict=True)
    style = _style(place, label=label)
    if place >= 4:
        style |= {"color": _GREY, "marker": "", "linewidth": 1}
    axes.errorbar(x, y, yerr=error, capsize=1.5, **style)


def _legend_above(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=10)


def _excess(points: Callable[..., Points], stages: Sequence[int]) -> Picture:
    figure, panels = _panels(3.2, stages)
    for axes, seen in zip(panels, stages, strict=True):
        lines = [(name, seen) for name in NAMES] + [(BEST, None), (SILENT, None)]
        for place, (name, when) in enumerate(lines):
            _bars(axes, points("excess", name, when), place, name)
        axes.set(yscale="log", ylabel="excess error")
    _legend_above(figure, panels[0])
    caption = (
        "E |F - F*|^2 / D on test images: the distance from the exact network. The best shared network is told what "
        "etsdm is told; the grey line is a network that answers 0. Dotted: t~."
    )
    return Picture(_png(figure), "The error of three networks over timesteps, after each stage of training.", caption)


def _difference(points: Callable[..., Points], stages: Sequence[int]) -> Picture:
    figure, panels = _panels(2.4, stages)
    for axes, seen in zip(panels, stages, strict=True):
        base = {k: value for k, value, _ in points("excess", "ddpm_above", seen)}
        for place, (one, other) in enumerate(PAIRS[:2]):
            pair = f"{one} - {other}"
            line = [(k, 100 * v / base[k], 100 * e / base[k]) for k, v, e in points("difference", pair, seen)]
            _bars(axes, [point for point in line if point[0] > SHARED], place, pair)
        axes.axhline(0, color=_GREY, linewidth=1)
        axes.set(ylabel="% of ddpm_above's")
    _legend_above(figure, panels[0])
    caption = (
        "What learning up to t~ costs the timesteps above: the excess of ddpm and of etsdm minus that of ddpm_above, "
        "which learns nothing up to t~; image by image, in per cent of the latter's."
    )
    return Picture(_png(figure), "Paired differences of errors above t~, after each stage of training.", caption)


def _steepness(points: Callable[..., Points], stages: Sequence[int]) -> Picture:
    figure, (axes,) = _axes(4.2)
    exponents: list[float] = []
    for place, (name, seen) in enumerate([*(("ddpm", seen) for seen in stages), (EXACT, None)]):
        x, y, _ = zip(*points("K", name, seen), strict=True)
        exponents += [math.log10(value) for value in y if value > 0]  # a blind network has 0
        axes.plot(x, y, **_style(place, label=name if seen is None else f"{name}, {seen:,} images", marker=""))
    axes.set(xscale="log", yscale="log", xlabel="timestep, counted from 1", ylabel="K of neighbouring timesteps")
    axes.set_ylim(10 ** math.floor(min(exponents)), 10 ** math.ceil(max(exponents)))  # whole decades have labels
    _legend_above(figure, axes)
    caption = "How fast the answer changes with t: the trained ddpm after each stage, and the exact network."
    return Picture(_png(figure), "Lipschitz constants of trained networks and of the exact one.", caption)


def _spans(numbers: Numbers) -> Table:
    rows = [(BEST, "any", numbers.text("excess", BEST, None, BELOW), "0")]
    rows += [(SILENT, "any", *(numbers.text("excess", SILENT, None, span) for span in (BELOW, ABOVE)))]
    for seen in numbers.stages:
        rows += [
            (name, f"{seen:,}", *(numbers.text("excess", name, seen, span) for span in (BELOW, ABOVE)))
            for name in NAMES
        ]
        rows += [("etsdm, from the best shared", f"{seen:,}", numbers.text("unlearned", "etsdm", seen, BELOW), "-")]
    caption = "The mean excess over timesteps, with standard errors over test images."
    return Table(("network", "images seen", f"timesteps {BELOW}", f"timesteps {ABOVE}"), rows, caption)


def _pairs(numbers: Numbers) -> Table:
    rows = []
    for one, other in PAIRS:
        pair = f"{one} - {other}"
        for seen in numbers.stages:
            part = numbers("difference", pair, seen, ABOVE)[0] / numbers("excess", other, seen, ABOVE)[0]
            cells = [numbers.text("difference", pair, seen, span) for span in (BELOW, ABOVE)]
            rows.append((pair, f"{seen:,}", *cells, f"{part:+.1%}"))
    header = ("difference", "images seen", f"timesteps {BELOW}", f"timesteps {ABOVE}", "relative, above")
    return Table(header, rows, "Differences of the mean excess, image by image; relative to the second's.")


def _ratios(numbers: Numbers) -> Table:
    rows = []
    exact = numbers.largest(EXACT, None)[0]
    for seen in numbers.stages:
        ratios = (numbers.ratio(seen), numbers.largest("ddpm", seen)[0] / exact, numbers.ratio(seen, "sum of K", BELOW))
        rows.append((f"{seen:,}", *map(number, ratios)))
    header = ("images seen", "K(0, 1)", "largest K", "sum of K")
    return Table(header, rows, f"K of the trained ddpm over the exact network's, timesteps {BELOW}.")


def _prices(found: Found) -> Table:
    pixels: Mapping[tuple[str, str], str] = {
        (str(row[1]), str(row[3])): f"{row[4]:.2g}" for row in found.rows if row[0] == "price in pixel values"
    }
    rows = [
        (str(of), str(span), number(float(value or 0), float(error or 0)), pixels[str(of), str(span)])
        for measure, of, _, span, value, error in found.rows
        if measure == "price"
    ]
    caption = (
        "The price of sharing, computed without training for one Gaussian like the mixture and one like the images: "
        "the best shared network's mean excess, and the error that it leaves in x0, a root mean square, at the "
        "timestep where it is largest."
    )
    return Table(("data and cells", "timesteps", "excess", "pixel values of [0, 255]"), rows, caption)
