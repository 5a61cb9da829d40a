"""The solver lab's pages: for each experiment of experiments/solvers.py its words, and one function of its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from torch import Tensor

from nearzero.files import contact_sheet, png, to_bytes
from nearzero.report.diagnosis import number
from nearzero.report.figures import _LOOK
from nearzero.report.page import Picture, Table
from nearzero.report.theory import Drawn, _axes, _png

if TYPE_CHECKING:
    from nearzero.experiments.theory import Found

LAB = (
    "What a network evaluation buys",
    "Every solver on data whose best denoiser is known exactly, so that what is left is the solver's own error: a "
    "smooth density of three normals in the plane, and a finite set of images of 8 x 8 pixels.",
    (
        "Deterministic solvers: the root mean square distance of their endpoints from the ODE's, which RK45 integrates "
        "with a tolerance of 1e-10 from the same noise. Where a grid's last positive time is fixed (log-SNR, Karras) "
        "it is measured there; on other grids the last step to 0 counts, which is DDIM's for DPM-Solver. An order is "
        "the slope over the last two doublings; DPM-3 fills a budget that is not 3 N + 1 with a lower order.",
        "On a set of points the ODE ends in one of them, and nearly every solver does too, in the same or in another. "
        "What is measured there is the share of starts that end elsewhere than the ODE; none at all is not shown.",
        "Stochastic solvers: how far the mean, the covariance and 16 projections (sliced Wasserstein-2) of many "
        "samples of the density in the plane are from its own. The floor is what as many independent draws show.",
        "Shared: E-TSDM's condition, 5 cells on [0, 0.1], with their edges on the grid and the best network that is "
        "told no more. Deterministic errors are to the end of the shared ODE itself; its distance from the ODE's end "
        "is the bias of sharing, which no number of steps removes.",
    ),
)
STEPS = (
    "The error of one Heun step",
    "The local error of one step of Heun at each noise level of EDM's grid for several rho (EDM, Appendix D): from an "
    "exact noisy sample, against the ODE's own way to the next level.",
    (
        "Three sets of data whose best denoiser is exact: the 2,000 images of 8 x 8 pixels as points; the same as a "
        "smooth density, a blurred normal for each class; and three normals in the plane.",
        "With small rho the steps near the data are too long and make nearly all of the error; a larger rho shortens "
        "them and pays at high noise. The spread is the standard deviation of log10 of the errors of all steps: with "
        "the least of it errors are balanced best, which need not mean that they are least in sum.",
        "On points the ODE is straight once one point is left to go to: errors vanish there but for rounding, no rho "
        "balances them, and only the sums can be compared.",
        "The last step, from 0.002 to 0, is Euler's, the same for all rho, and left out.",
    ),
)
CHURN = (
    "What churn does",
    "EDM's stochastic sampler adds noise and removes it again at each step. With an exact denoiser that keeps the "
    "distribution; with a trained one, errors come back at every step (EDM, Section 4).",
    (
        "The trained network is small and has been trained for 100 steps of 32 images: it stands for an imperfect "
        "denoiser. The exact one knows the same images as points and gives them back.",
        "Detail is the energy at more than half the largest frequency, variance that of the pixels within an image, "
        "saturation the mean distance of a pixel from mid-grey; pixels lie in [-1, 1]. Bars are two standard errors "
        "over samples; all settings start from the same seeds.",
    ),
)
STYLES: tuple[dict[str, Any], ...] = (
    *({"color": "#0072B2", "linestyle": "-", "marker": "o"}, {"color": "#D55E00", "linestyle": "--", "marker": "s"}),
    *({"color": "#009E73", "linestyle": "-.", "marker": "^"}, {"color": "#000000", "linestyle": ":", "marker": "D"}),
    *({"color": "#CC79A7", "linestyle": "-", "marker": "v"}, {"color": "#56B4E9", "linestyle": "--", "marker": "P"}),
    *({"color": "#E69F00", "linestyle": "-.", "marker": "X"}, {"color": "#595959", "linestyle": ":", "marker": "*"}),
)


def _records(found: Found) -> list[dict[str, Any]]:
    return [dict(zip(found.header, row, strict=True)) for row in found.rows]


def _groups(rows: Iterable[Mapping[str, Any]], name: str) -> dict[Any, list[Mapping[str, Any]]]:
    """Rows by one column, in order."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return groups


def _shown(row: Mapping[str, Any]) -> float | None:
    """What a line shows: for points the share elsewhere, else the error, at the last positive node if it is fixed."""
    values = (row[name] for name in ("elsewhere", "error at the last node", "error"))
    return next((value for value in values if value is not None), None)


def solvers(found: Found) -> Drawn:
    """A picture for each set of data and process, with a panel for each grid; one of the stochastic solvers; tables."""
    rows = _records(found)
    ode = [row for row in rows if row["kind"] == "ODE"]
    pictures: dict[str, Picture] = {}
    with rc_context(_LOOK):
        for shared, some in _groups(ode, "shared").items():
            for (data, process), part in _cases(some).items():
                name = f"{data}-{process.lower()}{'-shared' if shared == 'yes' else ''}.png"
                pictures[name] = _errors(part, f"{data}, {process}{', shared' if shared == 'yes' else ''}")
        pictures["stochastic.png"] = _stochastic([row for row in rows if row["kind"] == "SDE"])
    tables = [_table(part, data, process, shared) for (data, process, shared), part in _cases(ode, "shared").items()]
    return Drawn(pictures, [*tables, _moments(rows, found.summary["bias of sharing"])])


def _cases(rows: Iterable[Mapping[str, Any]], *more: str) -> dict[tuple[str, ...], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in ("data", "process", *more)), []).append(row)
    return groups


def _beside(axes: Axes) -> None:
    """The legend to the right of the panel."""
    axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.05), handlelength=2.6, borderaxespad=0.2)


def _lines(axes: Axes, lines: Mapping[str, Iterable[tuple[Any, Any]]], **style: Any) -> None:
    """Lines through what a log axis can show, each by its label, with the legend to the right of the panel."""
    for i, (label, points) in enumerate(lines.items()):
        there = [(x, y) for x, y in points if x and y]
        if there:
            axes.plot(*zip(*there, strict=True), **{**STYLES[i % len(STYLES)], **style}, label=label)
    axes.set(xscale="log", yscale="log")
    if axes.get_legend_handles_labels()[0]:
        _beside(axes)


def _errors(rows: Sequence[Mapping[str, Any]], what: str) -> Picture:
    """One panel a grid; RK45, which makes its own steps, in each."""
    grids = _groups([row for row in rows if row["nfe"] and row["evaluations"]], "grid")
    most = max(row["evaluations"] for part in grids.values() for row in part)
    adaptive = [(row["evaluations"], _shown(row)) for row in rows if not row["nfe"] and row["evaluations"] <= 2 * most]
    figure, panels = _axes(2.7 * len(grids), len(grids))
    pointed = any(row["elsewhere"] is not None for row in rows)
    for axes, (grid, part) in zip(panels, grids.items(), strict=True):
        series = {name: one for name, one in _groups(part, "solver").items() if name != "DPM-1"}
        orders = {name: "" if one[0]["order"] is None else f": {one[0]['order']:.1f}" for name, one in series.items()}
        _lines(axes, {"RK45": adaptive}, color="#bbbbbb", marker=".", linewidth=3, zorder=1)
        _lines(axes, {n + orders[n]: [(row["evaluations"], _shown(row)) for row in one] for n, one in series.items()})
        axes.set(ylabel="share elsewhere" if pointed else "rms error")
        axes.set_title(f"{what}: {grid}", fontsize=11, loc="left")
    panels[-1].set_xlabel("network evaluations")
    shown = "the share that ends at another point" if pointed else "error (beside each name its fitted order)"
    caption = f"{what}: {shown} over network evaluations, one panel a grid; DPM-1 is DDIM."
    return Picture(_png(figure), f"Errors of solvers over network evaluations, {what}", caption)


def _stochastic(rows: Sequence[Mapping[str, Any]]) -> Picture:
    """Sliced Wasserstein-2 over evaluations, one panel a process, the shared ones and the floor."""
    groups = _cases([row for row in rows if row["solver"] != "floor"], "shared")
    floor = fmean([row["sliced W2"] for row in rows if row["solver"] == "floor"])
    figure, panels = _axes(2.7 * len(groups), len(groups))
    for axes, ((_, process, shared), part) in zip(panels, groups.items(), strict=True):
        axes.axhline(floor, color="#bbbbbb", linewidth=3, zorder=1, label="floor")
        series = _groups(part, "solver").items()
        _lines(axes, {name: [(row["evaluations"], row["sliced W2"]) for row in one] for name, one in series})
        axes.set(ylabel="sliced W2")
        axes.set_title(f"{process}{', shared' if shared == 'yes' else ''}", fontsize=11, loc="left")
    panels[-1].set_xlabel("network evaluations")
    caption = "Stochastic solvers on the density in the plane, one panel a process; grey: draws of the density itself."
    return Picture(_png(figure), "Distance of stochastic solvers' samples over network evaluations", caption)


def _table(rows: Sequence[Mapping[str, Any]], data: str, process: str, shared: str) -> Table:
    """What the lines show at the middle budget, with the order; RK45's below."""
    fixed = [row for row in rows if row["nfe"]]
    middle = _middle(fixed)
    grids = _groups([row for row in fixed if row["nfe"] == middle], "grid")
    lines = [(grid, *map(_cell, part)) for grid, part in grids.items()]
    adaptive = [f"{row['evaluations']}: {number(_shown(row) or 0.0)}" for row in rows if not row["nfe"]]
    caption = (
        f"{data}, {process}{', shared' if shared == 'yes' else ''}: at most {middle} evaluations (order); - cannot be. "
        f"RK45, evaluations: error, over its tolerances: {', '.join(adaptive)}."
    )
    return Table(("grid", *_groups(fixed, "solver")), lines, caption)


def _middle(rows: Iterable[Mapping[str, Any]]) -> int:
    budgets = sorted({row["nfe"] for row in rows if row["nfe"]})
    return budgets[len(budgets) // 2]


def _cell(row: Mapping[str, Any]) -> str:
    value = _shown(row)
    if value is None:
        return "-"
    return number(value) if row["order"] is None else f"{number(value)} ({row['order']:.1f})"


def _moments(rows: Sequence[Mapping[str, Any]], bias: float) -> Table:
    """Sliced W2 at each budget, and the errors of mean and covariance at the middle one; the floor last."""
    measures = ("mean error", "covariance error")
    sde = [row for row in rows if row["kind"] == "SDE" and row["nfe"]]
    floor = [row for row in rows if row["solver"] == "floor"]
    known = {key: number(fmean([row[key] for row in floor])) for key in (*measures, "sliced W2")}
    middle, budgets, lines = _middle(sde), list(_groups(sde, "nfe")), []
    for (_, process, shared, grid, name), part in _cases(sde, "shared", "grid", "solver").items():
        label = f"{name}, {process}, {grid}{', shared' if shared == 'yes' else ''}"
        cells = [number(row["sliced W2"]) for row in part]
        lines.append((label, *cells, *(number(r[key]) for key in measures for r in part if r["nfe"] == middle)))
    lines.append(("floor", *[known["sliced W2"]] * len(budgets), *(known[key] for key in measures)))
    header = ("solver", *(f"W2 at {nfe}" for nfe in budgets), *(f"{key} at {middle}" for key in measures))
    caption = f"Stochastic solvers: sliced Wasserstein-2. The bias of sharing, of the ODE itself: {number(bias)} (rms)."
    return Table(header, lines, caption)


def edm_steps(found: Found) -> Drawn:
    """Errors over sigma, one panel a set of data, and their spread and sum."""
    groups = _groups(_records(found), "data")
    with rc_context(_LOOK):
        figure, panels = _axes(3.1 * len(groups), len(groups))
        for axes, (data, rows) in zip(panels, groups.items(), strict=True):
            series = _groups(rows, "rho").items()
            _lines(axes, {f"rho {rho}": [(row["sigma"], row["error"]) for row in one] for rho, one in series})
            axes.set(ylim=(1e-10, 3 * max(row["error"] for row in rows)), ylabel="rms error of a step")
            axes.set_title(data, fontsize=11, loc="left")
        panels[-1].set_xlabel("noise level sigma at which the step begins")
        content = _png(figure)
    measures = [key for key in next(iter(found.summary.values())) if key.startswith("rho")]
    columns = list(next(iter(found.summary.values()))[measures[0]])
    tables = [
        Table(
            ("rho", *columns), [(rho, *(number(one[rho][c]) for c in columns)) for rho in measures], _verdict(data, one)
        )
        for data, one in found.summary.items()
    ]
    caption = (
        "The rms error of one Heun step over the level where it begins, one panel a set of data; below 1e-10 not shown."
    )
    return Drawn({"steps.png": Picture(content, "Local errors over sigma for five rho", caption)}, tables)


def _verdict(data: str, one: Mapping[str, Any]) -> str:
    balanced = f"rho {one['least spread']} balances the errors best; " if "least spread" in one else ""
    return f"{data}: {balanced}rho {one['least sum']} has the least sum."


def edm_churn(found: Found) -> Drawn:
    """Measures of images over churn, exact and trained; the mixture's errors over churn; the images."""
    rows = _records(found)
    images = [row for row in rows if row["denoiser"] in ("exact", "trained")]
    real = {row["measure"]: row for row in rows if row["denoiser"] == "images"}
    measures = _groups(images, "measure")
    with rc_context(_LOOK):
        figure, panels = _axes(2.5 * len(measures), len(measures))
        for axes, (measure, part) in zip(panels, measures.items(), strict=True):
            for i, (name, series) in enumerate(_groups(part, "denoiser").items()):
                churn, value, error = ([row[key] for row in series] for key in ("churn", "value", "standard error"))
                axes.errorbar(churn, value, [2 * e for e in error], capsize=3, **STYLES[i], label=name)
            axes.axhline(real[measure]["value"], color="#bbbbbb", linewidth=3, zorder=1, label="images")
            axes.set(ylabel=measure)
            _beside(axes)
        panels[-1].set_xlabel("churn")
        drift = Picture(_png(figure), "Measures of samples over churn", "Samples over churn; grey: real images.")
        plane = _plane([row for row in rows if row["denoiser"] == "plane"])
    sheets = {
        f"{name}.png": _sheet([one for key, one in found.tensors.items() if key.startswith(name)], name)
        for name in ("exact", "trained")
    }
    tables = [_drift(part, real, name) for name, part in _groups(images, "denoiser").items()]
    return Drawn({"drift.png": drift, "plane.png": plane, **sheets}, tables)


def _plane(rows: Sequence[Mapping[str, Any]]) -> Picture:
    """Errors of mean, covariance and projections of the exact denoiser's samples in the plane."""
    figure, (axes,) = _axes(3.2)
    for i, (measure, part) in enumerate(_groups(rows, "measure").items()):
        churned = [(row["churn"], row["value"]) for row in part if row["churn"] is not None]
        floor = fmean([row["value"] for row in part if row["churn"] is None])
        axes.plot(*zip(*churned, strict=True), **STYLES[i], label=measure)
        axes.axhline(floor, color=STYLES[i]["color"], linestyle=":", linewidth=1)
    axes.set(xlabel="churn", ylabel="error", ylim=0)
    _beside(axes)
    caption = "The density in the plane, exact denoiser: errors over churn; dotted: the mean of five sets of draws."
    return Picture(_png(figure), "Errors of the exact denoiser's samples in the plane over churn", caption)


def _sheet(samples: Sequence[Tensor], name: str) -> Picture:
    """Rows of samples, one a churn, from the same seeds."""
    sheet = contact_sheet(to_bytes((torch.cat([one[:10] for one in samples]) + 1) * 127.5), columns=10)
    caption = f"{name}: samples from the same ten seeds, a row for each churn, 0 above."
    return Picture(
        png(sheet, scale=6), f"Samples of the {name} denoiser under more and more churn", caption, pixels=True
    )


def _drift(rows: Sequence[Mapping[str, Any]], real: Mapping[str, Any], name: str) -> Table:
    """Each measure of the images and at each churn."""
    churned = list(_groups(rows, "churn"))
    lines = []
    for measure, part in _groups(rows, "measure").items():
        cells = (number(row["value"], row["standard error"]) for row in (real[measure], *part))
        lines.append((measure, *cells))
    header = (name, "images", *(f"churn {one:g}" for one in churned))
    return Table(header, lines, f"{name}: means with one standard error; the first column is real images.")
