"""What the measurements of `sharing-mixture` say: lines of its table, and sentences made of the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nearzero.report.diagnosis import number

Line = tuple[str, str, int | None, int | str | None, float, float | None]
"""Measure, of what, images seen in training, timestep (or a span of them), value, standard error."""
Documents = Mapping[tuple[str, int], Mapping[str, Any]]
"""What was measured of each network after so many images."""

SHARED = 100
"""The timesteps up to t~, of 1000."""
BELOW, ABOVE = f"0-{SHARED - 1}", f"{SHARED}-999"
EXACT, BEST, SILENT = "exact network", "best shared network", "silent network"
NAMES = ("ddpm", "etsdm", "ddpm_above")
PAIRS = (("ddpm", "ddpm_above"), ("etsdm", "ddpm_above"), ("etsdm", "ddpm"))
"""Whose errors are compared, image by image: the first minus the second."""


def spans(nodes: Sequence[int], values: Tensor) -> dict[str, Tensor]:
    """The means over timesteps below and above t~ of values (n, B) at nodes, by the trapezoid rule, (B,)."""
    k = torch.tensor(nodes[: len(values)], dtype=torch.float64)
    found = {}
    for name, here in ((BELOW, k < SHARED), (ABOVE, k >= SHARED)):
        if bool(here.any()):
            width = k[here][-1] - k[here][0]
            found[name] = torch.trapezoid(values[here], k[here], dim=0) / width
    return found


def stated(measure: str, of: str, seen: int | None, nodes: Sequence[int], values: Tensor) -> Iterator[Line]:
    """Means and standard errors over images of values (n, B), at each node and over each span."""
    for timestep, one in (*zip(nodes, values, strict=False), *spans(nodes, values).items()):
        yield measure, of, seen, timestep, one.mean().item(), (one.std() / len(one) ** 0.5).item()


def _column(found: Mapping[str, Any], name: str) -> Tensor:
    return torch.tensor(found[name], dtype=torch.float64)


def excesses(measured: Documents, price: Tensor, silent: Tensor) -> Iterator[Line]:
    """Of each network, of the best shared one, the price (n, B), and of silence; how far etsdm is from the shared."""
    for (name, seen), found in measured.items():
        yield from stated("excess", name, seen, found["nodes"], _column(found, "excess"))
        if "unlearned" in found:
            yield from stated("unlearned", name, seen, found["nodes"], _column(found, "unlearned"))
    nodes = next(iter(measured.values()))["nodes"]
    yield from stated("excess", BEST, None, nodes, price)
    yield from stated("excess", SILENT, None, nodes, silent)


def differences(measured: Documents) -> Iterator[Line]:
    """Of PAIRS."""
    for seen in sorted({seen for _, seen in measured}):
        for one, other in PAIRS:
            a, b = (measured[name, seen] for name in (one, other))
            away = _column(a, "excess") - _column(b, "excess")
            yield from stated("difference", f"{one} - {other}", seen, a["nodes"], away)


def constants(measured: Documents, exact: Mapping[str, Any]) -> Iterator[Line]:
    """K(k, k + 1) of ddpm and of the exact network, and their sums up to t~."""
    curves = {(name, seen): found["K"] for (name, seen), found in measured.items() if "K" in found}
    for (name, seen), found in (*curves.items(), ((EXACT, None), exact)):
        for node, (value, error) in enumerate(zip(found["value"], found["error"], strict=True)):
            yield "K", name, seen, node, value, error
        yield "sum of K", name, seen, BELOW, found["sum"], found["sum_error"]


class Numbers:
    """Lines by what they are of."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.found = {tuple(line[:4]): (line[4], line[5]) for line in lines}
        self.stages = sorted({line[2] for line in lines if line[2] is not None})

    def __call__(self, measure: str, of: str, seen: int | None, timestep: int | str | None) -> tuple[float, Any]:
        """Value and standard error."""
        return self.found[measure, of, seen, timestep]

    def text(self, measure: str, of: str, seen: int | None, timestep: int | str | None) -> str:
        """Value and standard error as text."""
        return number(*self(measure, of, seen, timestep))

    def ratio(self, seen: int, measure: str = "K", timestep: int | str = 0) -> float:
        """ddpm's K, or sum of K, over the exact network's."""
        return self(measure, "ddpm", seen, timestep)[0] / self(measure, EXACT, None, timestep)[0]

    def largest(self, of: str, seen: int | None) -> tuple[float, int]:
        """The largest K up to t~ and its timestep."""
        return max((self("K", of, seen, node)[0], node) for node in range(SHARED))


def verdict(pair: tuple[float, float], more: str, less: str) -> str:
    """`more` or `less` where a difference lies beyond two of its standard errors; else that it does not."""
    value, error = pair
    return more if value > 2 * error else less if value < -2 * error else "that is within two standard errors of none"


def findings(lines: Sequence[Line]) -> list[str]:
    """Sentences made of the numbers after the last stage of training."""
    found = Numbers(lines)
    last = found.stages[-1]
    return [_near(found, last), _above(found, last), _steep(found, last)]


def _near(found: Numbers, last: int) -> str:
    trained, away = ("etsdm", "ddpm"), found("difference", "etsdm - ddpm", last, BELOW)
    etsdm, ddpm = (found.text("excess", name, last, BELOW) for name in trained)
    price, whole = found("excess", BEST, None, BELOW)[0], found("excess", "etsdm", last, BELOW)[0]
    said = verdict(away, "sharing makes the network worse there", "sharing makes the network better there")
    return (
        f"Up to timestep {SHARED - 1}, after {last:,} images, the mean squared distance from the exact network is "
        f"{ddpm} for ddpm and {etsdm} for etsdm, in units of the noise; the difference, image by image, is "
        f"{number(*away)}: {said}. The best shared network, however long it is trained, stays at "
        f"{found.text('excess', BEST, None, BELOW)}: {price / whole:.1%} of etsdm's distance is the price of sharing, "
        f"and from that network etsdm is {found.text('unlearned', 'etsdm', last, BELOW)} away."
    )


def _above(found: Numbers, last: int) -> str:
    base = found("excess", "ddpm_above", last, ABOVE)[0]
    parts = []
    for one, other in PAIRS:
        pair = found("difference", f"{one} - {other}", last, ABOVE)
        said = verdict(pair, f"{one} is farther from the exact network", f"{one} is nearer to the exact network")
        parts.append(f"{one} minus {other} {number(*pair)} ({pair[0] / base:+.1%}; {said})")
    return (
        f"From timestep {SHARED} on the distance of ddpm_above, which learns nothing below, is "
        f"{found.text('excess', 'ddpm_above', last, ABOVE)}. In comparison: {'; '.join(parts)}. The first is what "
        "training near t = 0 costs (+) or spares (-) the other timesteps; a cost is the most that sharing could give "
        "back."
    )


def _steep(found: Numbers, last: int) -> str:
    (largest, node), (exact, exact_node) = found.largest("ddpm", last), found.largest(EXACT, None)
    stages = ", ".join(f"{found.ratio(seen):.2g} after {seen:,}" for seen in found.stages)
    return (
        f"The trained ddpm's K between timesteps 0 and 1, over the exact network's, is {stages} images; its largest K "
        f"up to timestep {SHARED - 1} is {number(largest)} at {node} (exact: {number(exact)} at {exact_node}), and the "
        f"sum of K over them is {found.ratio(last, 'sum of K', BELOW):.2g} times the exact one."
    )


def summary(lines: Sequence[Line]) -> dict[str, Any]:
    """The numbers of the sentences, after each stage: values with standard errors."""
    found, stages = Numbers(lines), {}
    for seen in found.stages:
        spanned = {
            f"{measure} {of}, {span}": found(measure, of, seen, span)
            for measure, several in (("excess", NAMES), ("difference", [f"{one} - {other}" for one, other in PAIRS]))
            for of in several
            for span in (BELOW, ABOVE)
        }
        ratios = {
            "K 0": found.ratio(seen),
            "largest K": found.largest("ddpm", seen)[0] / found.largest(EXACT, None)[0],
            "sum of K": found.ratio(seen, "sum of K", BELOW),
        }
        unlearned = found("unlearned", "etsdm", seen, BELOW)
        stages[f"{seen}"] = {**spanned, "unlearned": unlearned, "K, trained over exact": ratios}
    return {"stages": stages, "price": found("excess", BEST, None, BELOW)}
