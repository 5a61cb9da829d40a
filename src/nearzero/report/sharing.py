"""The page of experiments/sharing.py: tails, swaps, evaluations, losses and stages, and tables of the differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from nearzero.files import grid_png
from nearzero.report.diagnosis import number
from nearzero.report.figures import _LOOK, _style
from nearzero.report.full import _legend_above, _lines
from nearzero.report.page import Picture, Table
from nearzero.report.theory import _GREY, Drawn, _axes, _png

if TYPE_CHECKING:
    from nearzero.experiments.theory import Found

NETWORKS = ("ddpm", "etsdm")
DIFFERENCE = "etsdm - ddpm"
Points = list[tuple[float, float, float]]


def _points(found: Found, network: str, part: str, measure: str, seen: int | None = None) -> Points:
    """(x, value, error) of one network after a stage, by default the last."""
    seen = max(found.column("images seen")) if seen is None else seen
    keys = ("images seen", "part", "measure", "network")
    place = [found.header.index(key) for key in (*keys, "x", "value", "standard error")]
    cells = [[row[i] for i in place] for row in found.rows]
    return [(x, value, error) for *told, x, value, error in cells if told == [seen, part, measure, network]]  # pyright: ignore[reportReturnType]


def _of(found: Found, part: str, measure: str) -> dict[str, Points]:
    """Both networks' points."""
    return {name: _points(found, name, part, measure) for name in NETWORKS}


def _measures(found: Found) -> list[str]:
    """What samples are measured by."""
    return list(dict.fromkeys(found.column("measure", part="swap")))


def _distance(found: Found) -> str:
    return "Frechet distance" if "Frechet distance" in _measures(found) else "energy distance"


def _level(axes: Axes, y: float) -> None:
    axes.axhline(y, color=_GREY, linewidth=1)


def _ticks(axes: Axes, x: Sequence[float]) -> None:
    """A log axis with a tick at each of a few numbers."""
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{one:g}" for one in x], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())


def _tail(found: Found) -> Picture:
    longest = [one for one in found.column("measure", part="tail") if one.startswith("spectrum, ")][-1]
    residual = _points(found, DIFFERENCE, "tail", "residual")
    figure, (spectrum, left) = _axes(6.6, 2)
    _lines(spectrum, _of(found, "tail", longest))
    _level(spectrum, 1)
    spectrum.set(xlabel="frequency, waves in a side", ylabel="power over real images'", title=longest)
    _lines(left, {DIFFERENCE: residual})
    _level(left, 0)
    left.set(xlabel="steps from the interval's end to 0", ylabel=f"residual, {DIFFERENCE}")
    _ticks(left, [x for x, *_ in residual])
    _legend_above(figure, spectrum)
    return Picture(
        _png(figure),
        "Two panels: power by frequency over that of the real images; the difference of high-frequency power.",
        "Real images with the noise of the interval's end, brought down by each network. Above: 1 is the real images' "
        "spectrum. Below: how much more high-frequency power etsdm leaves, in squared grey levels, paired.",
    )


def _swap(found: Found) -> Picture:
    names = [one for one in dict.fromkeys(found.column("network", part="swap")) if " - " in one]
    measures = _measures(found)
    figure, panels = _axes(1.6 * len(measures) + 0.4, len(measures))
    for axes, measure in zip(panels, measures, strict=True):
        for i, name in enumerate(names):
            ((_, value, error),) = _points(found, name, "swap", measure)
            axes.errorbar([value], [len(names) - i], xerr=[error], capsize=2, **_style(i, linestyle=""))
        axes.axvline(0, color=_GREY, linewidth=1)
        axes.set_yticks(range(len(names), 0, -1), [one.removesuffix(" - ddpm") for one in names])
        axes.set(xlabel=f"{measure}, more than ddpm's", ylim=(0.5, len(names) + 0.5))
        axes.locator_params(axis="x", nbins=5)
    return Picture(
        _png(figure),
        "What distances and high-frequency power of samples gain or lose where etsdm takes ddpm's place.",
        "Samples of the same seeds by etsdm alone, and by one network down to the interval's end and another from "
        "there: paired differences from ddpm alone, with standard errors.",
    )


def _evaluations(found: Found) -> Picture:
    distance, ends = _distance(found), [(name, end) for end in ("1/n", "node 1") for name in NETWORKS]
    figure, (values, changes) = _axes(6.6, 2)
    lines = {f"{name}, {end}": _points(found, name, "evaluations", f"{distance}, {end}") for name, end in ends}
    for i, (label, points) in enumerate(lines.items()):
        values.plot([x for x, *_ in points], [y for _, y, _ in points], **_style(i, label=label))
    change = {f"{name}, {end}": _points(found, name, "evaluations", f"{distance}, {end}, change") for name, end in ends}
    _lines(changes, change)
    _level(changes, 0)
    values.set(xlabel="network evaluations", ylabel=distance)
    changes.set(xlabel="network evaluations", ylabel="change from the number before")
    _ticks(values, [x for x, *_ in next(iter(lines.values()))])
    _ticks(changes, [x for x, *_ in next(iter(change.values()))])
    _legend_above(figure, values)
    return Picture(
        _png(figure),
        "Distance of samples over network evaluations, and its changes, for two networks and two ends of the path.",
        "DDIM; the last time above 0 is 1/n or node 1. Below: each number of evaluations against the one before, on "
        "the same seeds, with standard errors. Above 0: more evaluations are worse.",
    )


def _stages(found: Found) -> Picture:
    distance, seen = _distance(found), sorted(set(found.column("images seen")))
    shortest = found.column("x", part="tail", measure="residual")[0]
    figure, (samples, tails) = _axes(6.6, 2)
    for axes, part, measure, names in (
        (samples, "swap", distance, NETWORKS),
        (tails, "tail", "residual", (DIFFERENCE,)),
    ):
        lines = {}
        for name in names:
            each = [(when, _points(found, name, part, measure, when)[0]) for when in seen]
            lines[name] = [(when / 1000, value, error) for when, (_, value, error) in each]
        _lines(axes, lines)
    samples.set(xlabel="thousand images seen", ylabel=distance)
    tails.set(xlabel="thousand images seen", ylabel=f"residual, {DIFFERENCE}")
    _level(tails, 0)
    _legend_above(figure, samples)
    return Picture(
        _png(figure),
        "Distance of samples, and the difference of what tails leave over, after each stage of training.",
        "Over training. Above: samples of each network. Below: how much more high-frequency power etsdm leaves in "
        f"tails of {shortest:g} steps, in squared grey levels, paired.",
    )


def _loss(found: Found) -> Picture:
    seen = sorted(set(found.column("images seen")))
    edge = _points(found, DIFFERENCE, "loss", "mean loss above the edge")[0][0]
    figure, (loss, moved) = _axes(6.6, 2)
    lines = {f"{when:,} images seen": _points(found, DIFFERENCE, "loss", "loss", when) for when in seen}
    _lines(loss, lines)
    _level(loss, 0)
    _legend_above(figure, loss)
    measure = found.column("measure", part="perturbation")[0]
    _lines(moved, _of(found, "perturbation", measure))
    loss.set(xscale="log", xlabel="timestep", ylabel=f"loss, {DIFFERENCE}")
    moved.set(xscale="log", xlabel="timestep", ylabel=measure, title="ddpm solid, etsdm dashed")
    for axes in (loss, moved):
        axes.axvline(edge, color=_GREY, linestyle=":", linewidth=1)
    return Picture(
        _png(figure),
        "The difference of the two losses, and the change of the estimate by added noise, over timesteps.",
        "Above: the loss on the same noisy images, etsdm's minus ddpm's. Below: how far noise moves the estimate of "
        "x0, root mean square. Dotted: the interval's end.",
    )


def _cells(found: Found, part: str, measure: str, networks: Sequence[str], x: float) -> list[str]:
    """A number of each network at x, with its error."""
    points = [{at: (value, error) for at, value, error in _points(found, name, part, measure)} for name in networks]
    return [number(*one[x]) for one in points]


def _tables(found: Found) -> list[Table]:
    sampled = dict.fromkeys(found.column("network", part="swap"))
    (nfe,) = set(found.column("x", part="swap"))
    pair = (*NETWORKS, DIFFERENCE)
    swapped = [(name, *(_cells(found, "swap", one, [name], nfe)[0] for one in _measures(found))) for name in sampled]
    tails = [
        (f"{measure}, {x:g} steps", *_cells(found, "tail", measure, pair, x))
        for measure in ("PSNR", "residual", "power ratio", "spectrum distance")
        for x in dict.fromkeys(found.column("x", part="tail", measure=measure))
    ]
    ended = [one for one in dict.fromkeys(found.column("measure", part="evaluations")) if "change" not in one]
    most = max(found.column("x", part="evaluations"))
    ends = [(measure, *_cells(found, "evaluations", measure, pair, most)) for measure in ended]
    return [
        Table(("samples by", *_measures(found)), swapped, "Networks swapped at the interval's end, and differences."),
        Table(("tails", *pair), tails, "PSNR in dB, the spectrum's distance too; the residual in squared grey levels."),
        Table(("measure, end", *pair), ends, f"Where the path ends, at {most:g} network evaluations."),
    ]


def sharing_pair(found: Found) -> Drawn:
    """Tails, swaps, evaluations, losses, stages, and eight samples of each kind."""
    with rc_context(_LOOK):
        pictures = {
            "tail.png": _tail(found),
            "swap.png": _swap(found),
            "evaluations.png": _evaluations(found),
            "loss.png": _loss(found),
            "stages.png": _stages(found),
        }
    kinds = [one for one in dict.fromkeys(found.column("network", part="swap")) if " - " not in one]
    caption = f"From above: {'; '.join(kinds)}. Each column is one seed."
    sheet = grid_png(found.tensors["samples"], 8, 480)
    pictures["samples.png"] = Picture(sheet, "Eight samples of each network and of both swaps.", caption, pixels=True)
    return Drawn(pictures, _tables(found))
