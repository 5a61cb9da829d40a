"""Pages of FullDiffusion's Table 1 and Figure 1: one function for each experiment of experiments/full.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from nearzero.files import grid_png
from nearzero.report.figures import _LOOK, _style
from nearzero.report.page import Picture, Table
from nearzero.report.theory import Drawn, _axes, _png

if TYPE_CHECKING:
    from nearzero.experiments.theory import Found

MEASURES = ("bound", "ode", "distance SDE", "distance ODE")


def _cell(value: float, error: float | None, digits: int = 3) -> str:
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


def _last(found: Found) -> dict[tuple[str, str], tuple[float, float | None, int]]:
    """(row, measure) -> the value after the last stage of training, its error, its images."""
    return {(row[0], row[2]): (row[3], row[4], row[5]) for row in found.rows}  # pyright: ignore[reportReturnType]


def _lines(axes: Axes, lines: Mapping[str, Sequence[tuple[float, float, float | None]]]) -> None:
    for i, (name, points) in enumerate(lines.items()):
        x, y, error = zip(*points, strict=True)
        bars = [0.0 if one is None else one for one in error]
        style = _style(i, label=name)
        if i >= 4:
            style["markerfacecolor"] = "white"
        axes.errorbar(x, y, yerr=bars, capsize=2, **style)


def _legend_above(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=10)


def full_table1(found: Found) -> Drawn:
    """Bits over images seen, samples of each row, and the table beside the paper's."""
    names = list(dict.fromkeys(str(row[0]) for row in found.rows))
    with rc_context(_LOOK):
        figure, panels = _axes(7.2, 2)
        for axes, measure, title in zip(
            panels, ("bound", "ode"), ("the bound (SDE)", "the ODE's density"), strict=True
        ):
            points = {
                name: [
                    (seen / 1000, value, error)
                    for seen, value, error in zip(
                        *(
                            found.column(of, row=name, measure=measure)
                            for of in ("images seen", "value", "standard error")
                        ),
                        strict=True,
                    )
                ]
                for name in names
            }
            _lines(axes, points)
            axes.set(xlabel="thousand images seen", ylabel="bits per dimension", title=title)
        _legend_above(figure, panels[0])
        nll = Picture(
            _png(figure),
            "Bits per dimension of each recipe against images seen in training: above the bound, below the ODE's.",
            "Test images, means and standard errors over them. Fewer images are measured before the end of training.",
        )
    pictures = {"nll.png": nll}
    for name, sheet in found.tensors.items():
        alt = f"32 {name}." if name == "test images" else f"32 samples of {name}."
        pictures[f"{name.replace(' ', '-')}.png"] = Picture(grid_png(sheet, 8, 480), alt, name, pixels=True)
    return Drawn(pictures, [_table(found, names), _paired(found), _not_black(found, names)])


def _table(found: Found, names: Sequence[str]) -> Table:
    last, paper = _last(found), found.summary["paper"]
    cells = []
    for name in names:
        ours = [_cell(*last[name, measure][:2]) for measure in MEASURES]
        theirs = paper[name]
        cells.append((name, *ours, "ours alone" if theirs is None else " / ".join(f"{one:.2f}" for one in theirs)))
    header = ("row", "NLL, SDE (at most)", "NLL, ODE", "distance, SDE", "distance, ODE", "paper, CIFAR-10")
    caption = "Bits per dimension and energy distances, with standard errors. The paper: NLL SDE / ODE, FID SDE / ODE."
    return Table(header, cells, caption)


def _paired(found: Found) -> Table:
    cells = [(name, _cell(*pair)) for name, pair in found.summary["paired"].items()]
    caption = "What each row needs more (+) or less (-) than ddpmpp, image by image, in bits per dimension."
    return Table(("row and measure", "difference from ddpmpp"), cells, caption)


def _not_black(found: Found, names: Sequence[str]) -> Table:
    last = _last(found)
    measures = [f"{measure}, not black" for measure in ("bound", "ode")]
    cells = [
        (name, *(_cell(*last[name, measure][:2]) for measure in measures))
        for name in names
        if all((name, measure) in last for measure in measures)
    ]
    return Table(("row", "bound", "ODE"), cells, "Bits on each pixel that is not black, if black ones cost nothing.")


def full_figure1(found: Found) -> Drawn:
    """The loss's mean and spread over images seen, and distances over network evaluations."""
    lines: dict[str, dict[str, list[Any]]] = {"loss": {}, "distance": {}}
    for panel, name, *point in found.rows:
        lines[str(panel)].setdefault(str(name), []).append(point)
    with rc_context(_LOOK):
        figure, (mean, spread) = _axes(6.4, 2)
        for i, (name, points) in enumerate(lines["loss"].items()):
            x, y, error = zip(*points, strict=True)
            thousands = [seen / 1000 for seen in x]
            mean.plot(thousands, y, **_style(i, label=name, marker=""))
            spread.plot(thousands, error, **_style(i, label=name, marker=""))
        mean.set(ylabel="loss, bits per dimension")
        spread.set(xlabel="thousand images seen", ylabel="deviation of one batch", ylim=(0, None))
        _legend_above(figure, mean)
        left = Picture(_png(figure), "Loss of training and its deviation.", "(a) The loss of a batch and its spread.")
        figure, (axes,) = _axes(4.6)
        _lines(axes, lines["distance"])
        axes.axhline(found.summary["floor"][0], color="#595959", linewidth=1)
        axes.set(xlabel="network evaluations", ylabel="energy distance", xscale="log")
        budgets = sorted({x for points in lines["distance"].values() for x, *_ in points})
        axes.set_xticks(budgets, [f"{nfe:g}" for nfe in budgets], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
        _legend_above(figure, axes)
        caption = "(b) Distance against evaluations. The grey line: as many real images of the training set."
        right = Picture(_png(figure), "Energy distance of samples over network evaluations.", caption)
    header = ("line", "evaluations", "distance")
    cells = [(name, f"{x}", _cell(y, e, 4)) for name, points in lines["distance"].items() for x, y, e in points]
    return Drawn({"loss.png": left, "distance.png": right}, [Table(header, cells)])
