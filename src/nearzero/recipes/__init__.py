"""Recipes: the papers' tables as code. One function a recipe; the difference of two is a paper's contribution.

What a paper leaves open is called assumed. Networks other than ADM's U-Net and EDM's augmentation are to come: where a
paper has them, the U-Net stands in. Figures of the papers are theirs; measured here means by this project.
"""

from __future__ import annotations

from collections.abc import Callable

from nearzero.errors import ArgumentError, did_you_mean
from nearzero.recipe import EMA, PRESETS, Recipe, Training, centred, differences, paper, sharing, small
from nearzero.recipes.edm import (
    edm,
    edm_a_ve,
    edm_a_vp,
    edm_b_ve,
    edm_b_vp,
    edm_c_ve,
    edm_c_vp,
    edm_d_ve,
    edm_d_vp,
    edm_e,
    edm_shared,
    edm_uncertainty,
    iddpm,
    ve,
    vp,
)
from nearzero.recipes.etsdm import (
    ddpm,
    ddpm_continuous,
    ddpm_cosine,
    ddpm_cosine_shift,
    ddpm_quadratic,
    ddpm_regularized,
    ddpm_v,
    ddpm_zero_terminal_snr,
    etsdm,
    etsdm_continuous,
    modified_cosine,
    modified_linear,
    modified_quadratic,
    remap,
    remap_both,
    remap_sampling,
    remap_sigmoid,
    remap_sigmoid_both,
    remap_sigmoid_sampling,
    remap_sigmoid_training,
    remap_training,
)
from nearzero.recipes.full import (
    ddpmpp,
    ddpmpp_elbo,
    full,
    full_centred,
    full_uncentred,
    full_w,
    soft_truncation,
    straight,
    subvp,
)

__all__ = [
    "EMA",
    "PRESETS",
    "RECIPES",
    "Recipe",
    "Training",
    "centred",
    "ddpm",
    "ddpm_continuous",
    "ddpm_cosine",
    "ddpm_cosine_shift",
    "ddpm_quadratic",
    "ddpm_regularized",
    "ddpm_v",
    "ddpm_zero_terminal_snr",
    "ddpmpp",
    "ddpmpp_elbo",
    "differences",
    "edm",
    "edm_a_ve",
    "edm_a_vp",
    "edm_b_ve",
    "edm_b_vp",
    "edm_c_ve",
    "edm_c_vp",
    "edm_d_ve",
    "edm_d_vp",
    "edm_e",
    "edm_shared",
    "edm_uncertainty",
    "etsdm",
    "etsdm_continuous",
    "full",
    "full_centred",
    "full_uncentred",
    "full_w",
    "iddpm",
    "modified_cosine",
    "modified_linear",
    "modified_quadratic",
    "named",
    "paper",
    "remap",
    "remap_both",
    "remap_sampling",
    "remap_sigmoid",
    "remap_sigmoid_both",
    "remap_sigmoid_sampling",
    "remap_sigmoid_training",
    "remap_training",
    "sharing",
    "small",
    "soft_truncation",
    "straight",
    "subvp",
    "ve",
    "vp",
]

ALL = (
    *(ddpm, etsdm, ddpm_continuous, etsdm_continuous, ddpm_quadratic, ddpm_cosine, ddpm_cosine_shift),
    *(ddpm_zero_terminal_snr, ddpm_v, ddpm_regularized, modified_linear, modified_quadratic, modified_cosine),
    *(remap, remap_sampling, remap_training, remap_both),
    *(remap_sigmoid, remap_sigmoid_sampling, remap_sigmoid_training, remap_sigmoid_both),
    *(ddpmpp, ddpmpp_elbo, soft_truncation, subvp, straight, full, full_centred, full_uncentred, full_w),
    *(vp, ve, iddpm, edm_a_vp, edm_a_ve, edm_b_vp, edm_b_ve, edm_c_vp, edm_c_ve, edm_d_vp, edm_d_ve, edm_e),
    *(edm, edm_shared, edm_uncertainty),
)
RECIPES: dict[str, Callable[[], Recipe]] = {recipe.__name__: recipe for recipe in ALL}
"""Every recipe by name."""


def named(name: str) -> Recipe:
    """The recipe of this name. Raises ArgumentError with the nearest one."""
    if name not in RECIPES:
        raise ArgumentError(f"unknown recipe {name!r}; {did_you_mean(name, RECIPES)}")
    return RECIPES[name]()
