"""What a page says of diagnoses: the same sections for one network, for two, and for the demo."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nearzero.diagnostics.diagnosis import Diagnosis
from nearzero.diagnostics.lipschitz import LipschitzCurve
from nearzero.report import figures
from nearzero.report.page import Picture, Section, Table


def number(value: float, stderr: float = math.nan) -> str:
    """Three significant digits; with a standard error, that to two digits and the value to as many decimals."""
    if not math.isfinite(value):
        return "unknown"
    if not math.isfinite(stderr):
        return f"{value:z.3g}"
    if stderr == 0:
        return f"{value:z.3g} ± 0"
    stderr = float(f"{stderr:.1e}") if stderr < 100 else stderr
    last = 1 - math.floor(math.log10(stderr))  # the decimal of the error's second digit
    if last <= 6 and max(abs(value), stderr) < 1e6:
        return f"{value:z.{max(last, 0)}f} ± {stderr:.{max(last, 0)}f}"
    digits = max(0, math.floor(math.log10(abs(value))) + last) if value else 0
    return f"{value:z.{digits}e} ± {stderr:.1e}"


def count(images: int) -> str:
    """1 image, 2 images."""
    return f"{images:,} image" if images == 1 else f"{images:,} images"


def rows(found: Mapping[str, Diagnosis]) -> list[tuple[str, ...]]:
    """The numbers of each network side by side, ready for a table: a label, then a cell for each."""
    summaries = [one.summary() for one in found.values()]
    end = next(iter(found.values())).interval
    scale = summaries[0]["perturbation_scale"]
    lines = {
        f"largest K on [0, {end:g}], per timestep": [number(s["max"], s["max_stderr"]) for s in summaries],
        "timestep of the largest K": [str(s["max_at_timestep"]) for s in summaries],
        f"total variation of the answer on [0, {end:g}]": [number(s["total_variation"]) for s in summaries],
        f"largest K measured above {end:g}, per timestep": [number(s["max_above"]) for s in summaries],
        f"change of x0 at t = {end:g} by noise of {scale:g} (rms)": [
            number(s["perturbation"], s["perturbation_stderr"]) for s in summaries
        ],
        "loss at the first timestep": [number(s["loss_first"]) for s in summaries],
        "mean loss over noise levels": [number(s["loss"]) for s in summaries],
    }
    return [(label, *cells) for label, cells in lines.items()]


def table(found: Mapping[str, Diagnosis]) -> Table:
    """The numbers, with what they were measured on."""
    one = next(iter(found.values()))
    units = " ".join(dict.fromkeys(other.unit for other in found.values() if other.unit))
    error = " ± one standard error." if one.images > 1 else ""
    caption = f"{count(one.images)}, the same noise for every network.{error} {units}".strip()
    return Table(("", *found), rows(found), caption)


def shares(one: Diagnosis) -> bool:
    """Whether the network is told one number at two neighbouring timesteps."""
    return bool((one.told.diff() == 0).any())


def curves(found: Mapping[str, Diagnosis]) -> dict[str, LipschitzCurve]:
    """The Lipschitz curves alone."""
    return {name: one.lipschitz for name, one in found.items()}


def near_picture(found: Mapping[str, Diagnosis], shown: tuple[float, float] | None = None) -> Picture:
    """K near t = 0 with the condition that the network is told."""
    interval = max(one.interval for one in found.values())
    told = {name: one.told for name, one in found.items()}
    shared = any(map(shares, found.values()))
    zero = " Inside a shared cell the answer does not move at all." if shared else ""
    return Picture(
        figures.near_zero(curves(found), interval, told=told, shown=shown),
        alt=f"Lipschitz constants K(k, k+1) of {_names(found)} against the timestep, and the condition each is told",
        caption="Above: how far the network's answer moves from one timestep to the next (logarithmic; band: two "
        f"standard errors). Below: the condition that it is told.{zero}",
    )


def other_pictures(found: Mapping[str, Diagnosis]) -> tuple[Picture, ...]:
    """K over all timesteps, the loss at each noise level, the effect of a perturbed input."""
    names, t = _names(found), next(iter(found.values())).interval
    return (
        Picture(
            figures.whole_range(curves(found)),
            alt=f"Lipschitz constants of {names} over all timesteps, both axes logarithmic",
            caption="The same K over all timesteps, both axes logarithmic.",
        ),
        Picture(
            figures.noise_levels(found),
            alt=f"Loss of {names} against the noise level sigma / alpha, both axes logarithmic",
            caption="Loss of the output at each noise level (mean; band: one standard deviation over images).",
        ),
        Picture(
            figures.perturbations(found),
            alt=f"Change of the estimated image of {names} against the scale of noise added to the input",
            caption=f"How far the estimate of x0 moves when noise is added to x_t at t = {t:g} (two standard errors).",
        ),
    )


def section(found: Mapping[str, Diagnosis]) -> Section:
    """Everything about these networks near t = 0."""
    shared = [name for name, one in found.items() if shares(one)]
    text = [
        "K(k, k+1) is the mean distance between the network's answers to one noisy image when it is told timestep k "
        "and timestep k + 1 (E-TSDM, Eq. 8). The total variation adds these changes up over the interval."
    ]
    if shared:
        verb = "shares its" if len(shared) == 1 else "share their"
        text.append(
            f"{' and '.join(shared)} {verb} condition in cells: K is exactly 0 inside them, and the whole change "
            "sits on their edges. So the maximum can grow while the total variation shrinks; both stand below."
        )
    return Section("Near t = 0", text, (near_picture(found), *other_pictures(found)), (table(found),))


def _names(found: Mapping[str, Diagnosis]) -> str:
    return " and ".join(found)
