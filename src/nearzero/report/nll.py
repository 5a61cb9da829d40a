"""The page of an evaluation: bits per dimension, their spread, and everything that they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nearzero.report import figures
from nearzero.report.page import Page, Picture, Section, Table

KINDS = {
    "ByOde": "the density of the probability-flow ODE",
    "ByBound": "FullDiffusion's bound, over all of time: the bits are at most these",
    "ByTruncatedBound": "the bound from t_min on: the bits are at most these",
}
TERMS = ("prior", "diffusion", "reconstruction")


def value(mean: Mapping[str, float | None], digits: int = 4) -> str:
    """A mean with its standard error over images, where that is known."""
    error = "" if mean["stderr"] is None else f" +- {mean['stderr']:.{digits}f}"
    return f"{mean['mean']:.{digits}f}{error}"


def page(document: Mapping[str, Any], command: str) -> Page:
    """The page of what `nearzero.nll.evaluate` returned."""
    means, settings = document["means"], document["settings"]
    method, data = settings["method"], settings["data"]
    kind = KINDS.get(method["class"], method["class"])
    number = f"{value(means['bits'])} bits/dim"
    undithered = (
        ""
        if settings["dithered_in_training"]
        else (" The recipe was trained on whole grey levels, which have no density between them.")
    )
    lead = f"{number} on {document['images_done']:,} images of {data['name']}: {kind}.{undithered}"
    rows = [("bits per dimension", value(means["bits"]))]
    rows += [(f"of these, {name}", value(means[name])) for name in TERMS if name in means]
    if "bits_foreground" in means:
        share = f"{value(means['bits_foreground'])}: {means['foreground']['mean']:.1%} of all pixels"
        rows.append(("bits per dimension of pixels that are not 0, the others free", share))
    rows += [
        ("method", ", ".join(f"{name} {given}" for name, given in method.items())),
        ("evaluations of a batch", f"{means['evaluations']['mean']:,.0f}"),
        ("run", f"{settings['run']}, step {settings['step']:,} of {settings['recipe']}, {settings['weights']} weights"),
        ("images", f"{document['images_done']:,} of {data['count']:,}, {document['dimensions']:,} numbers each"),
        ("their hash", str(data.get("fingerprint", ""))),
        ("dithers of each, seed, batch", f"{settings['repeats']}, {settings['seed']}, {settings['batch']}"),
        ("software", f"nearzero {document['provenance']['nearzero']}, torch {document['provenance']['torch']}"),
    ]
    picture = Picture(
        figures.bits(document["columns"]["bits"], means["bits"]["mean"]),
        f"Histogram of the bits per dimension of {document['images_done']} images, whose mean is {number}.",
        "Each image's own bits: how far single images lie from the mean. The error above is that of the mean.",
    )
    section = Section("Likelihood", (), (picture,), (Table(("what", "value"), rows),), commands=command)
    return Page(f"Likelihood of {settings['recipe']}", (lead,), (section,), str(settings["run"]))
