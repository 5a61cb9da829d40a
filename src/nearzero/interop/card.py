"""The model card of an exported folder: what it is, how to open it, what the network is told, where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nearzero
from nearzero.conditioning import Conditioning, Shared
from nearzero.run import Run


@dataclass(frozen=True)
class Facts:
    """What a card says of the source: a sentence, and (name, value) of a table."""

    source: str
    rows: tuple[tuple[str, str], ...]


def run_facts(run: Run, ema: bool | str) -> Facts:
    """Recipe, data and numbers of a run."""
    recipe, data = run.recipe, run.data
    weights = ema if isinstance(ema, str) else "averaged" if ema else "raw"
    seen = f"{run.step:,} steps of {recipe.training.batch} images"
    told = {
        "recipe": recipe.name,
        "process": str(recipe.process),
        "parameterization": str(recipe.parameterization),
        "conditioning": str(recipe.conditioning),
        "solver and grid": f"{recipe.solver} on {recipe.grid}, {recipe.steps} steps",
        "weights": f"{weights}, after {seen}" if run.step else "",
        "data": "{}: {} images, fingerprint {}".format(*_known(data, "name", "count", "fingerprint"))
        if "fingerprint" in data
        else "",
        "loss of the last steps": _loss(run),
        "made by": "nearzero {}, torch {}".format(*_known(run.provenance, "nearzero", "torch"))
        if run.provenance
        else "",
    }
    return Facts(f"the run {run.path.resolve().name}", tuple((name, value) for name, value in told.items() if value))


def _known(found: Mapping[str, Any], *names: str) -> list[str]:
    """What is known by these names."""
    return [str(found.get(name, "unknown")) for name in names]


def _loss(run: Run) -> str:
    """The newest line of the run's statistics."""
    path = run.path / "stats.jsonl"
    try:
        line = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])["Loss/loss"]
        return f"{line['mean']:.4g} over {line['num']} samples"
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def card(pipeline: str, kind: str, told: Conditioning, facts: Facts) -> str:
    """README.md, with the front matter that the Hugging Face hub reads."""
    lines = [
        "---",
        "library_name: diffusers",
        "tags:",
        "- diffusion",
        *(["- e-tsdm"] if isinstance(told, Shared) else []),
        "- nearzero",
        "---",
        "",
        f"# {_cell(facts.source[0].upper() + facts.source[1:])}",
        "",
        f"Written by nearzero {nearzero.__version__} as a {pipeline}.",
        "",
        "```python",
        *_opening(pipeline, kind),
        "```",
        "",
        "## What the network is told",
        "",
        *_sharing(kind, told),
        "",
    ]
    if facts.rows:
        rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.rows]
        lines += ["## Where it comes from", "", "| | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _opening(pipeline: str, kind: str) -> list[str]:
    """The lines of code that open the folder."""
    if pipeline == "NearzeroPipeline":
        use = 'pipeline = nz.NearzeroPipeline.from_pretrained("THIS_FOLDER")'
        return ["import nearzero as nz", "", use, "images = pipeline(seeds=[0, 1, 2, 3]).images"]
    imports = ["import diffusers"] + (["import nearzero  # before the folder is opened"] if kind == "B" else [])
    return [*imports, "", f'pipeline = diffusers.{pipeline}.from_pretrained("THIS_FOLDER")']


def _sharing(kind: str, told: Conditioning) -> list[str]:
    """The conditioning in words."""
    if not isinstance(told, Shared):
        return [f"`{told}`: each time by a number of its own."]
    shared = [
        f"`{told}`: near t = 0 the network is told one number for a whole cell of times, in sampling as in training "
        "(E-TSDM; Yang et al., Lipschitz singularities in diffusion models, ICLR 2024)."
    ]
    if kind == "A":
        return [
            *shared,
            "",
            "The cells stand in `unet/`, in a table with a row for each integer timestep: every pipeline of diffusers "
            "applies them, and float timesteps are an error. Keep the table frozen when you train the model further: "
            '`pipeline.unet.time_proj.requires_grad_(False)`. 50 steps with "leading" spacing may visit only timesteps '
            'that are told their own number; take "trailing".',
        ]
    return [*shared, "", "It takes nearzero: without it the folder does not open, rather than open unshared."]


def _cell(text: str) -> str:
    """Text that stays in its cell of a table and holds no HTML."""
    short = text if len(text) <= 300 else f"{text[:300]}..."
    return short.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
