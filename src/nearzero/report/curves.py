"""Training as curves: loss, gradient norm and rate against images seen, of one run or of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes

from nearzero.report.figures import _LOOK, _figure, _legend, _style, _svg
from nearzero.report.page import Picture
from nearzero.training.events import record

SHOWN = 2000  # points of a curve at most: a page stays small however long the run

Points = Sequence[tuple[float, float]]


def read_stats(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's stats.jsonl that are whole; none where there is no file."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = map(record, text.splitlines())
    return [line for line in found if line is not None and type(line.get("step")) is int]


def points(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(images seen, mean) of one entry, where it is a finite number; of many about SHOWN, evenly."""
    found = []
    for line in lines:
        seen, entry = line.get("images"), line.get(name)
        value = entry.get("mean") if isinstance(entry, dict) else None
        if isinstance(seen, int | float) and isinstance(value, int | float) and math.isfinite(value):
            found.append((float(seen), float(value)))
    stride = max(1, math.ceil(len(found) / SHOWN))
    return found[stride - 1 :: stride]


def training(lines: Sequence[Mapping[str, Any]]) -> Picture:
    """Loss, gradient norm and learning rate of one run, one above the other."""
    panels = {"loss": "Loss/loss", "gradient norm": "Gradient/norm", "learning rate": "Training/rate"}
    with rc_context(_LOOK):
        figure, axes = _figure(6.4, 3, (2, 1.2, 0.8))
        for i, (panel, (label, name)) in enumerate(zip(axes, panels.items(), strict=True)):
            _draw(panel, points(lines, name), **_style(i, marker=""))
            panel.set_ylabel(label)
        axes[0].set_yscale("log" if all(y > 0 for _, y in points(lines, "Loss/loss")) else "linear")
        axes[2].set_ylim(bottom=0)
        axes[-1].set_xlabel("thousand images seen")
        return Picture(
            _svg(figure),
            alt="Training loss, gradient norm and learning rate against thousands of images seen",
            caption="From above: the loss, the norm of the gradient before clipping, and the learning rate; the mean "
            "of each stretch of steps.",
        )


def overlaid(runs: Mapping[str, Sequence[Points]]) -> Picture:
    """Training losses of several groups, a line for each of a group's runs."""
    with rc_context(_LOOK):
        figure, (axes,) = _figure(3.6)
        for i, (name, lines) in enumerate(runs.items()):
            for k, line in enumerate(lines):
                label = {"label": name} if k == 0 else {}
                _draw(axes, line, **_style(i, marker="", **label))
        every = [y for lines in runs.values() for line in lines for _, y in line]
        axes.set(xlabel="thousand images seen", ylabel="training loss")
        axes.set_yscale("log" if all(y > 0 for y in every) else "linear")
        _legend(axes)
        return Picture(
            _svg(figure),
            alt=f"Training losses of {' and '.join(runs)} against thousands of images seen",
            caption="Training loss, the mean of each stretch of steps; one line for each training seed. Losses of "
            "different parameterizations or weightings do not compare.",
        )


def _draw(axes: Axes, line: Points, **style: Any) -> None:
    if len(line) == 1:
        style = {**style, "marker": "o"}
    axes.plot([seen / 1000 for seen, _ in line], [value for _, value in line], **style)
