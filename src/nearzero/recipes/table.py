"""Recipes as a table: EDM's Table 1, for every recipe and all seven axes."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from nearzero.codec import Centred
from nearzero.process import DiscreteVP
from nearzero.recipe import Recipe
from nearzero.recipes import RECIPES

COLUMNS = ("process", "output", "condition", "times", "weighting", "solver", "grid, steps")


def brief(value: Any) -> str:
    """An object as the Python that makes it, without what is default; floats to six digits.

    >>> from nearzero.recipes import etsdm
    >>> brief(etsdm().conditioning)
    'Shared(Timestep(), interval=100, cells=5)'
    """
    if isinstance(value, DiscreteVP):
        name = type(value.betas).__name__.removesuffix("Betas").lower()
        arguments = _arguments(value.betas).replace("start=", "beta_start=").replace("end=", "beta_end=")
        return f"DiscreteVP.{'from_betas' if name == 'listed' else name}{arguments}"
    if is_dataclass(value):
        return f"{type(value).__name__}{_arguments(value)}"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def _arguments(value: Any) -> str:
    """In parentheses: the first field by place, every other by name."""
    found = []
    for place, field in enumerate(fields(value)):
        given = getattr(value, field.name)
        if field.init and given != _default(field):
            found.append(brief(given) if place == 0 and _default(field) is MISSING else f"{field.name}={brief(given)}")
    return f"({', '.join(found)})"


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def weighting(recipe: Recipe) -> str:
    """The weighting with its terms, or the bound that takes its place."""
    objective: Any = recipe.objective()
    while hasattr(objective, "objective"):
        objective = objective.objective
    name = type(objective).__name__
    terms = [brief(recipe.weighting) if name == "Regression" else name]
    terms += [f"LipschitzPenalty({recipe.penalty:g})"] if recipe.penalty else []
    terms += [f"LearnedUncertainty({recipe.uncertainty})"] if recipe.uncertainty else []
    return " + ".join(terms)


def row(recipe: Recipe) -> tuple[str, ...]:
    """The recipe's choice on each of COLUMNS."""
    seen = "" if recipe.through is None else f" through {brief(recipe.through.process)}"
    kinds = [*(["centred"] if isinstance(recipe.codec, Centred) else []), *(["dithered"] if recipe.dither else [])]
    return (
        brief(recipe.process) + seen,
        brief(recipe.parameterization),
        brief(recipe.conditioning),
        brief(recipe.times) + (f" on {', '.join(kinds)} pixels" if kinds else ""),
        weighting(recipe),
        brief(recipe.solver),
        f"{brief(recipe.grid)} {recipe.steps}",
    )


def table() -> dict[str, tuple[str, ...]]:
    """Every recipe's row, by name."""
    return {name: row(make()) for name, make in RECIPES.items()}
