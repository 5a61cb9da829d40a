"""Figures as SVG: axes with units, lines that differ in colour, dash and marker, so that they also differ in grey.

Colours are Okabe and Ito's, which people with any colour vision tell apart.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from torch import Tensor

from nearzero.diagnostics.diagnosis import Diagnosis
from nearzero.diagnostics.lipschitz import LipschitzCurve

STYLES = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    {"color": "#000000", "linestyle": ":", "marker": "D"},
)
"""One for each line of a figure, in order."""

_LOOK: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.9,
    "svg.hashsalt": "nearzero",
    "text.parse_math": False,  # names of runs are text, whatever dollars they hold
}


def _figure(height: float, panels: int = 1, heights: Sequence[float] | None = None) -> tuple[Figure, Sequence[Axes]]:
    """A figure 5.4 inches wide, to be read at that width or on a phone, with panels on one horizontal axis."""
    figure = Figure(figsize=(5.4, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(panels, 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    return figure, list(axes)


def _svg(figure: Figure) -> bytes:
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                low, high = (math.log10(end) for end in sorted(axis.get_view_interval()))
                powers = math.floor(high) - math.ceil(low) + 1  # ticks that bear a number
                axis.set_major_formatter(FuncFormatter(_power))
                axis.set_minor_formatter(NullFormatter() if powers > 1 else FuncFormatter(_short))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _power(value: float, position: int | None = None) -> str:
    """A power of ten as text: 1000, 0.1, 1e-5."""
    return (
        f"{value:g}"
        if 1e-3 <= value < 1e5
        else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    )


def _short(value: float, position: int | None = None) -> str:
    """A number between two powers of ten, where there is room for it."""
    return f"{value:.3g}" if f"{value:e}"[0] in "2357" else ""


def _style(i: int, **more: Any) -> dict[str, Any]:
    """The i-th line's style. matplotlib hides a label that starts with an underscore: a blank hides that."""
    if "label" in more:
        more["label"] = " " + more["label"].encode("utf-8", "backslashreplace").decode()  # a name may be no UTF-8
    return {**STYLES[i % len(STYLES)], **more}


def _legend(axes: Axes, **more: Any) -> None:
    for text in axes.legend(fontsize=10, **more).get_texts():
        text.set_text(text.get_text().strip())


def _alone(value: Tensor) -> Tensor:
    """Where a positive value has no positive neighbour, so that a line cannot show it."""
    padded = torch.nn.functional.pad((value > 0).float(), (1, 1))
    return (value > 0) & (padded[:-2] + padded[2:] == 0)


def _curve(axes: Axes, x: Tensor, curve: LipschitzCurve, label: str, i: int) -> None:
    """K on a log axis. Zeros, which it cannot show, break the line; what stands alone between them is a marked stem."""
    value, alone, style = curve.value, _alone(curve.value), _style(i)
    low, high = (torch.where(value > 0, value + sign * 2 * curve.stderr, torch.nan) for sign in (-1, 1))
    axes.fill_between(x, torch.where(low > 0, low, value / 4), high, color=style["color"], alpha=0.2, lw=0)
    if bool(alone.any()):
        axes.vlines(x[alone], 0, value[alone], color=style["color"], linewidth=1)
        edges = _style(i, label=f"{label}: edges, 0 between them", linestyle="")
        axes.plot(x[alone], value[alone], **edges)
    axes.plot(x, torch.where(value > 0, value, torch.nan), **_style(i, label=label, marker=""))


def near_zero(
    curves: Mapping[str, LipschitzCurve],
    interval: float,
    *,
    told: Mapping[str, Tensor] | None = None,
    shown: tuple[float, float] | None = None,
    first: int = 0,
) -> bytes:
    """K(k, k+1) on a log axis up to twice the interval and, below it, the condition `told` at each timestep.

    `shown` are the limits of K, `first` is the number of the first line's style.
    """
    with rc_context(_LOOK):
        figure, axes = _figure(5.2, 2, (2, 1)) if told else _figure(3.6)
        one = next(iter(curves.values()))
        end = round(one.steps.number(one.times.new_tensor(interval)).item())
        for i, (name, curve) in enumerate(curves.items(), first):
            near = curve.around(interval)
            _curve(axes[0], near.steps.number(near.times) - 1, near, name, i)
        for i, (name, condition) in enumerate((told or {}).items(), first):
            k = torch.arange(min(2 * end, len(condition)))
            axes[1].plot(k, condition[k], **_style(i, label=name, marker=""), drawstyle="steps-mid")
            axes[1].set_ylabel("condition told")
        for panel in axes:
            panel.axvline(end - 0.5, color="#595959", linewidth=0.8)
        axes[0].set(
            yscale="log", ylim=shown or limits(list(curves.values()), interval), ylabel="K(k, k+1) per timestep"
        )
        axes[0].annotate("t~", (end - 0.5, 0.02), (3, 0), ("data", "axes fraction"), "offset points", color="#595959")
        _legend(axes[0], loc="upper right")
        axes[-1].set_xlabel("timestep k")
        return _svg(figure)


def limits(curves: Sequence[LipschitzCurve], interval: float | None = None) -> tuple[float, float]:
    """Limits of K that hold all curves up to twice the interval, so that two figures can be compared."""
    values = torch.cat([(curve if interval is None else curve.around(interval)).value for curve in curves])
    values = values[values > 0] if bool((values > 0).any()) else torch.ones(1)
    return values.min().item() / 1.6, values.max().item() * 1.6


def whole_range(curves: Mapping[str, LipschitzCurve]) -> bytes:
    """K(k, k+1) over all timesteps, both axes logarithmic."""
    with rc_context(_LOOK):
        figure, (axes,) = _figure(3.6)
        for i, (name, curve) in enumerate(curves.items()):
            _curve(axes, curve.steps.number(curve.times), curve, name, i)
        shown = limits(list(curves.values()))
        k = torch.cat([curve.steps.number(curve.times) for curve in curves.values()])
        ends = (k.min().item() / 1.2, k.max().item() * 1.2)  # said, as where K is 0 throughout nothing is drawn
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=shown)
        axes.set(xlabel="timestep k + 1", ylabel="K(k, k+1) per timestep")
        _legend(axes)
        return _svg(figure)


def exponents(curves: Mapping[str, LipschitzCurve], until: float, first: int = 0) -> bytes:
    """K per unit of t against t, both logarithmic, with the exponent p of K ~ t^-p below `until`."""
    with rc_context(_LOOK):
        figure, (axes,) = _figure(3.6)
        for i, (name, curve) in enumerate(curves.items(), first):
            p = curve.between(0.0, until).exponent
            axes.plot(curve.times, curve.per_unit_time, **_style(i, label=f"{name}: p = {p:.2f}"), markevery=6)
        axes.axvspan(axes.get_xlim()[0], until, color="#f0f0f0")
        axes.set(xscale="log", yscale="log", xlabel="time t", ylabel="K per unit of t", xlim=_ends(curves))
        _legend(axes, title="K ~ t^-p where shaded", title_fontsize=10)
        return _svg(figure)


def _ends(curves: Mapping[str, LipschitzCurve]) -> tuple[float, float]:
    times = torch.cat([curve.times for curve in curves.values()])
    return times.min().item(), times.max().item()


def noise_levels(found: Mapping[str, Diagnosis]) -> bytes:
    """The loss at each noise level, with its spread over images, and that of a network that answers 0."""
    with rc_context(_LOOK):
        figure, (axes,) = _figure(3.5)
        for i, (name, one) in enumerate(found.items()):
            loss, style = one.losses, _style(i, label=name)
            low = torch.maximum(loss.value - loss.std, loss.value / 4)
            axes.fill_between(loss.noise, low, loss.value + loss.std, color=style["color"], alpha=0.15, lw=0)
            axes.plot(loss.noise, loss.value, **style)
        axes.plot(
            loss.noise, loss.silent, color="#595959", linewidth=1, linestyle=":", label="a network that answers 0"
        )
        axes.set(xscale="log", yscale="log", xlabel="noise level sigma / alpha", ylabel="loss of the output")
        _legend(axes)
        return _svg(figure)


def perturbations(found: Mapping[str, Diagnosis]) -> bytes:
    """How far a perturbed input moves the estimate of the data."""
    with rc_context(_LOOK):
        figure, (axes,) = _figure(3.5)
        for i, (name, one) in enumerate(found.items()):
            error = one.perturbation
            style = _style(i, label=name)
            axes.errorbar(error.scales, error.value, 2 * error.stderr.nan_to_num(), capsize=3, **style)
        axes.set(xlabel="scale of the noise added to x_t", ylabel="change of the estimated x0 (rms)", xlim=0, ylim=0)
        _legend(axes)
        return _svg(figure)


def losses(runs: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    """Training losses (step, mean) of several runs."""
    with rc_context(_LOOK):
        figure, (axes,) = _figure(3.5)
        for i, (name, points) in enumerate(runs.items()):
            axes.plot(*zip(*points, strict=True), **_style(i, label=name))
        axes.set(yscale="log", xlabel="training step", ylabel="training loss")
        _legend(axes)
        return _svg(figure)


def bits(values: Sequence[float], mean: float) -> bytes:
    """How bits per dimension spread over images, with their mean."""
    with rc_context(_LOOK):
        figure, (axes,) = _figure(3.2)
        axes.hist(values, bins=min(40, max(5, len(values) // 5)), color=STYLES[0]["color"], alpha=0.5)
        axes.axvline(mean, color="#595959", linewidth=1)
        axes.annotate(
            "mean", (mean, 0.97), (3, 0), ("data", "axes fraction"), "offset points", color="#595959", va="top"
        )
        axes.set(xlabel="bits per dimension", ylabel="images")
        return _svg(figure)
