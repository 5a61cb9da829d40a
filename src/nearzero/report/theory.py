"""Figures of the theory: the doctor's, and for each experiment of experiments/theory.py one function of its name."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from torch import Tensor

from nearzero.diagnostics.schedule import Schedule
from nearzero.experiments.theory import (
    CASES,
    LARGEST,
    LEVELS,
    MODIFIED,
    PATHS,
    SCHEDULES,
    STRAIGHT,
    TARGETS,
    Found,
    pair,
)
from nearzero.level import Level
from nearzero.recipe import Recipe
from nearzero.report.diagnosis import number
from nearzero.report.figures import _LOOK, STYLES, _legend, _power, _style
from nearzero.report.page import Picture, Table

_PLAIN = {**_LOOK, "axes.grid": False}
_GREY = "#595959"


class Drawn(NamedTuple):
    """What a page shows of an experiment: pictures by the names of their PNG files, and tables."""

    pictures: Mapping[str, Picture]
    tables: Sequence[Table]


def _axes(height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Panels below each other, 5.4 inches wide, to be read on a phone."""
    figure = Figure(figsize=(5.4, height), layout="constrained")
    return figure, list(figure.subplots(panels, 1, squeeze=False)[:, 0])


def _png(figure: Figure) -> bytes:
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_formatter(FuncFormatter(_power))
                axis.set_minor_formatter(NullFormatter())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def schedule(recipe: Recipe, found: Schedule) -> Picture:
    """Four panels: alpha and sigma, sigma / alpha near 0 with its exponent, the SNR, where training looks."""
    process, end = recipe.process, recipe.process.end
    with rc_context(_LOOK):
        figure, (level, near, snr, density) = _axes(12.0, 4)
        t = torch.linspace(0, end, 401, dtype=torch.float64)
        for i, (name, value) in enumerate(zip(("alpha", "sigma"), process(t), strict=True)):
            level.plot(t, value, **_style(i, label=name, marker=""))
        level.set(xlabel="time t", ylabel="alpha, sigma")
        small = torch.logspace(-8, -1, 71, dtype=torch.float64) * end
        ratio = (-process(small).logsnr / 2).exp()
        near.plot(small, ratio, **_style(0, label="sigma / alpha", marker=""))
        line = ratio[0] * (small / small[0]) ** found.exponent
        near.plot(small, line, **_style(1, label=f"slope {found.exponent:.2f}", marker=""))
        near.set(xscale="log", yscale="log", xlabel="time t", ylabel="sigma / alpha")
        _snr(snr, recipe, found)
        _density(density, recipe)
        for axes in (level, near, density):
            _legend(axes)
        alt = "Four panels: alpha and sigma; sigma / alpha near 0; SNR; training times and the grid"
        caption = (
            "From above: the schedule; sigma / alpha near t = 0 beside a line of its exponent; the SNR, shaded where "
            "training or sampling never looks; how often training looks where, with the grid's stops as ticks."
        )
        return Picture(_png(figure), alt, caption)


def _snr(axes: Axes, recipe: Recipe, found: Schedule) -> None:
    """log10 SNR over t from a thirtieth of the first time that is used, shaded where nothing looks."""
    process, end = recipe.process, recipe.process.end
    first = min(1e-6, *(one.t / end / 30 for one in found.ledger))
    t = torch.cat([torch.logspace(math.log10(first), -2, 100), torch.linspace(0.01, 0.9999, 400)]).double() * end
    axes.plot(t, process(t).logsnr / math.log(10), **_style(0, marker=""))
    for low, high in _left_out(found, t[0].item(), end):
        axes.axvspan(low, high, color=STYLES[1]["color"], alpha=0.2, lw=0)
    axes.set(xscale="log", xlim=(t[0].item(), end), xlabel="time t", ylabel="log10 SNR")


def _left_out(found: Schedule, first: float, end: float) -> Iterator[tuple[float, float]]:
    """The spans of time that `truncations` names."""
    for one in found.ledger:
        if str(one) in found.truncations:
            yield (first, one.t) if "below" in one.what else (one.t, end)


def _density(axes: Axes, recipe: Recipe, draws: int = 20_000) -> None:
    """The density of training times over log10(sigma / alpha), and the grid's stops."""
    times: Any = recipe.times
    process = recipe.process
    while hasattr(times, "inner"):  # a batch spread over u has the inner law
        times = times.inner
    u = (torch.arange(draws, dtype=torch.float64) + 0.5).reshape(-1, 100).T / draws
    drawn = torch.cat([times(batch, process) for batch in u])  # SoftTruncation cuts each batch off elsewhere
    trained, stops = (-process(t).logsnr / 2 / math.log(10) for t in (drawn, recipe.grid(recipe.steps, process)[:-1]))
    trained, stops = trained[trained.isfinite()], stops[stops.isfinite()]
    axes.hist(trained.numpy(), bins=60, density=True, color=STYLES[0]["color"], alpha=0.5, label="training times")
    axes.plot(
        *(stops, torch.full_like(stops, -0.04), "|"),
        **{"color": _GREY, "markersize": 9, "clip_on": False, "label": "stops of the grid"},
        transform=axes.get_xaxis_transform(),
    )
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", pad=12)
    axes.set(xlabel="log10 sigma / alpha", ylabel="training density", ylim=(0, 1.25 * axes.get_ylim()[1]))


def exponents(found: Found) -> Drawn:
    """A table for each case, and the same as shades."""
    tables = []
    with rc_context(_PLAIN):
        figure, panels = _axes(10.5, len(CASES))
        for axes, case in zip(panels, CASES, strict=True):
            p = [found.column("exponent", schedule=name, case=case) for name in SCHEDULES]
            rates = [found.column("rate", schedule=name, case=case) for name in SCHEDULES]
            _shades(axes, case, p)
            rows = [
                (name, *(f"{_p(a)} ({number(b)})" if _p(a) == "0" else _p(a) for a, b in zip(*pairs, strict=True)))
                for name, *pairs in zip(SCHEDULES, p, rates, strict=True)
            ]
            tables.append(Table(("schedule", *TARGETS), rows, f"{case}: p. Where it is 0, the rate at the smallest u."))
        caption = "p of rate ~ u^-p, the darker the more singular; 0 is bounded, - does not exist."
        return Drawn({"exponents.png": Picture(_png(figure), "Exponents in three shaded tables", caption)}, tables)


def _p(exponent: float | None) -> str:
    return "-" if exponent is None else f"{exponent:.2f}" if exponent > 0.02 else "0"


def _shades(axes: Axes, case: str, table: Sequence[Sequence[float | None]]) -> None:
    axes.imshow(
        [[math.nan if p is None else max(p, 0.0) for p in row] for row in table],
        **{"cmap": "Oranges", "vmin": 0, "vmax": 3.2, "aspect": "auto"},
    )
    for i, row in enumerate(table):
        for j, p in enumerate(row):
            axes.text(j, i, _p(p), ha="center", va="center")
    axes.set_title(case, fontsize=11)
    axes.set_xticks(range(len(TARGETS)), list(TARGETS))
    axes.set_yticks(range(len(SCHEDULES)), list(SCHEDULES))
    axes.tick_params(length=0)


def etsdm_snr(found: Found) -> Drawn:
    """Fig. A8 and Fig. A9 of E-TSDM."""
    remapped = [name for name in found.summary if name not in MODIFIED]
    with rc_context(_LOOK):
        figure, (snr, ratio) = _axes(7.2, 2)
        for i, name in enumerate(MODIFIED):
            t, before, after, change = (found.column(c, figure="A8", name=name) for c in found.header[2:])
            color = STYLES[i]["color"]
            snr.plot(t, before, color=color, linestyle="-", label=name)
            snr.plot(t, after, color=color, linestyle="--", label=f"{name}, modified")
            ratio.plot(t, change, **_style(i, label=name, marker=""))
        snr.set(xscale="log", yscale="log", xlabel="time t", ylabel="SNR")
        ratio.set(xscale="log", yscale="log", xlabel="time t", ylabel="SNR, modified over original")
        last, (axes,) = _axes(3.8)
        for i, name in enumerate(remapped):
            share, value = (found.column(c, figure="A9", name=name) for c in found.header[2:4])
            axes.plot(share, value, **_style(i, label=name, marker=""))
        axes.set(yscale="log", xlabel="share of training times, least noise first", ylabel="SNR")
        for one in (snr, ratio, axes):
            _legend(one)
        captions = (
            "As Fig. A8, over log t: the SNR of three schedules and of Modified-NS, and their ratio.",
            "As Fig. A9: the SNR at training times that are uniform in t, or in what the network is told.",
        )
        pictures = {
            "fig-a8.png": Picture(_png(figure), "SNR over t, and its ratio", captions[0]),
            "fig-a9.png": Picture(_png(last), "SNR of sorted training times", captions[1]),
        }
    titles = {"SNR of Modified-NS over the original's": [*MODIFIED], "training times": remapped}
    return Drawn(pictures, [_summary(found, title, names) for title, names in titles.items()])


def _summary(found: Found, title: str, names: Sequence[str]) -> Table:
    columns = list(found.summary[names[0]])
    return Table((title, *columns), [(name, *(number(found.summary[name][c]) for c in columns)) for name in names])


def edm_ode(found: Found) -> Drawn:
    """Fig. 3 of EDM: one picture a process."""
    caption = f"{{}}: up to sigma / alpha = {LARGEST:g}, and below it up to 1. Shaded: the density at each time."
    pictures = {
        f"{name.lower()}.png": Picture(_paths(found, name), f"Paths of the ODE for {name}", caption.format(name))
        for name in PATHS
    }
    bend = (
        f"bend: how far a path leaves its chord in t below sigma / alpha = {STRAIGHT:g}, as a part of the chord's "
        "rise, the largest of all paths."
    )
    table = _summary(found, "process", [*PATHS])
    return Drawn(pictures, [Table(table.header, table.rows, bend)])


def _paths(found: Found, name: str) -> bytes:
    """Paths over t, all of them above and the last part below, over the density, each time's in its own scale."""
    process, widest = PATHS[name], max(map(abs, found.column("x", process=name)))
    columns = (found.column(c, process=name) for c in ("seed", "t", "x", "sigma / alpha"))
    points = list(zip(*columns, strict=True))
    with rc_context(_PLAIN):
        figure, panels = _axes(6.4, 2)
        for axes, most, reach in zip(panels, (LARGEST, 1.0), (1.1 * widest, 3.2), strict=True):
            last = process.time_of_logsnr(-2 * torch.tensor(most, dtype=torch.float64).log()).item()
            t, x = (torch.linspace(*ends, 400, dtype=torch.float64) for ends in ((last / 800, last), (-reach, reach)))
            axes.imshow(
                _density_of(t, x, name).numpy(),
                **{"extent": (0, last, -reach, reach), "origin": "lower", "aspect": "auto"},
                **{"cmap": "Greys", "vmax": 2.2, "interpolation": "bilinear"},
            )
            for seed in dict.fromkeys(seed for seed, *_ in points):
                here = [(a, b) for one, a, b, sigma in points if one == seed and sigma <= most * (1 + 1e-9)]
                axes.plot(*zip(*here, strict=True), **_style(int(here[-1][1] < 0), marker="", linewidth=1.3))
            axes.set(xlim=(0, last), ylim=(-reach, reach), ylabel="x")
            axes.set_xlabel(f"time t, up to sigma / alpha = {most:g}")
        return _png(figure)


def _density_of(t: Tensor, x: Tensor, name: str) -> Tensor:
    """The density of x_t, (x, t), over its largest value at each time."""
    level = Level(*(value.repeat(len(x)) for value in PATHS[name](t)))
    logs = pair().log_prob(x.repeat_interleave(len(t))[:, None], level).reshape(len(x), len(t))
    return (logs - logs.amax(0)).exp()


def edm_denoiser(found: Found) -> Drawn:
    """Fig. 1b of EDM: pairs of rows, noisy above and denoised below."""
    noisy, best = (found.tensors[name][:, :, 0] for name in ("noisy", "best"))
    count = noisy.shape[1]
    with rc_context(_PLAIN):
        figure = Figure(figsize=(7.2, 2.0 * count), layout="constrained")
        panels = figure.subplots(2 * count, len(LEVELS), squeeze=False)
        for (row, column), axes in ((divmod(i, len(LEVELS)), axes) for i, axes in enumerate(panels.flat)):
            image = (best if row % 2 else noisy)[column, row // 2]
            span = 1.0 if row % 2 else max(1.0, 2.0 * LEVELS[column])
            axes.imshow(image.numpy(), cmap="gray", vmin=-span, vmax=span)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(f"{'sigma ' if column == 0 else ''}{LEVELS[column]:g}", fontsize=11)
        content = _png(figure)
    names = found.header[2:]
    values = [[found.column(name)[j * count : (j + 1) * count] for name in names] for j in range(len(LEVELS))]
    rows = [(f"{s:g}", *(number(sum(v) / count) for v in row)) for s, row in zip(LEVELS, values, strict=True)]
    caption = (
        "Each pair of rows: an image with more and more noise, its range shrunk to be seen, and the best estimate."
    )
    table = Table(("sigma", *names), rows, f"Root mean squares over pixels in [-1, 1], means of {count} images.")
    return Drawn({"denoiser.png": Picture(content, "Noisy images and the best estimates of them", caption)}, [table])
