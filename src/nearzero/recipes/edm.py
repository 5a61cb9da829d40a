"""EDM, Table 1: Karras et al., Elucidating the design space of diffusion-based generative models, NeurIPS 2022."""

from __future__ import annotations

from dataclasses import replace

from nearzero.codec import Pixels
from nearzero.conditioning import LogSigma, Shared
from nearzero.ema import EMA, HalfLife
from nearzero.grid import KarrasGrid, LogSNRGrid, UniformGrid
from nearzero.networks.unet import UNet
from nearzero.parameterization import Karras
from nearzero.process import KarrasVE, LinearVP, SongVE
from nearzero.recipe import Recipe, Training
from nearzero.recipes.etsdm import ddpm_cosine
from nearzero.recipes.full import ddpmpp
from nearzero.rescaled import Through
from nearzero.solvers.exponential import DDIM
from nearzero.solvers.ode import Euler, Heun
from nearzero.times import ImportanceTimes, LogNormalSigma, Matched, UniformTimes
from nearzero.weighting import LikelihoodWeight, Simple

HALF_MILLION = HalfLife(images=500_000, ramp=0.05)
"""A half-life of half a million images, or of a twentieth of those seen while that is less."""


def vp() -> Recipe:
    """Table 1, VP: Song et al.'s, sampled with Euler in the angle instead of t."""
    return replace(ddpmpp(), name="vp", solver=Euler(), grid=UniformGrid(), steps=1000)


def ve() -> Recipe:
    """Table 1, VE: sigma = sqrt(t) up to 100, trained at log-uniform sigma from 0.02 on.

    The network is told log sigma; the paper's log(sigma / 2) differs by a constant. Euler steps in sigma; the paper's
    in t leaves half of the last sigma as noise. Measured here: not yet.
    """
    return replace(
        ddpmpp(),
        name="ve",
        process=SongVE(end=10000.0),
        conditioning=LogSigma(scale=1.0),
        times=ImportanceTimes(t_min=0.0004),
        solver=Euler(),
        grid=LogSNRGrid(last=0.0004),
        steps=1000,
    )


def iddpm() -> Recipe:
    """Table 1, iDDPM: the cosine schedule with a deterministic solver; its learned variance is not read.

    The paper starts from the ninth-last node; here steps are spaced from the last. Measured here: not yet.
    """
    return replace(ddpm_cosine(), name="iddpm", solver=DDIM(), steps=250)


def _with_edm_sampler(recipe: Recipe, name: str, sigma_min: float = 0.002) -> Recipe:
    """EDM Section 3: a network of another process, seen through sigma = t, with Heun on EDM's levels."""
    grid = KarrasGrid(sigma_min=sigma_min, sigma_max=80.0, rho=7.0)
    return replace(recipe, name=name, through=Through(KarrasVE(end=80.0)), solver=Heun(), grid=grid, steps=18)


def edm_a_vp() -> Recipe:
    """EDM, Table 2, config A, VP: Song et al.'s training, EDM's deterministic sampler. Measured here: not yet.

    Paper: FID 3.01 on CIFAR-10, unconditional, as every figure of these configs here.
    """
    return _with_edm_sampler(vp(), "edm_a_vp")


def edm_a_ve() -> Recipe:
    """EDM, Table 2, config A, VE: Song et al.'s training, whose noise starts at 0.02. Measured here: not yet.

    Paper: FID 3.77. NCSN++ is to come: the VP column's network stands in.
    """
    training = replace(ve().training, ema=EMA(decay=0.999))
    return replace(_with_edm_sampler(ve(), "edm_a_ve", sigma_min=0.02), training=training)


def _b(recipe: Recipe, name: str) -> Recipe:
    training = Training(steps=390_625, batch=512, learning_rate=1e-3, flip=True, ema=HALF_MILLION, warmup=10_000_000)
    return replace(recipe, name=name, training=training)


def edm_b_vp() -> Recipe:
    """Config B, VP: A with batches of 512, rate 1e-3 after ten million images, no clipping. Paper: FID 2.51."""
    return _b(edm_a_vp(), "edm_b_vp")


def edm_b_ve() -> Recipe:
    """Config B, VE: A with the training of `edm_b_vp`. Paper: FID 2.94."""
    return _b(edm_a_ve(), "edm_b_ve")


def _c(recipe: Recipe, name: str) -> Recipe:
    return replace(recipe, name=name, network=edm().network)


def edm_c_vp() -> Recipe:
    """Config C, VP: B without the lowest resolution, twice the width at the highest. Paper: FID 2.31."""
    return _c(edm_b_vp(), "edm_c_vp")


def edm_c_ve() -> Recipe:
    """Config C, VE: B with the widths of `edm_c_vp`. Paper: FID 2.83."""
    return _c(edm_b_ve(), "edm_c_ve")


def edm_d_vp() -> Recipe:
    """Config D, VP: C with EDM's preconditioning, noise levels and weight still Song et al.'s. Paper: FID 2.29.

    The process ends at 153, beyond the 152.2 of the VP SDE's last level; samples start at 80.
    """
    return replace(
        edm_e(),
        name="edm_d_vp",
        process=KarrasVE(end=153.0),
        times=Matched(UniformTimes(), LinearVP()),
        weighting=LikelihoodWeight(),
    )


def edm_d_ve() -> Recipe:
    """Config D, VE: C with EDM's preconditioning; sigma still log-uniform in [0.02, 100]. Paper: FID 3.10."""
    return replace(
        edm_e(),
        name="edm_d_ve",
        process=KarrasVE(end=100.0),
        times=ImportanceTimes(t_min=0.02),
        weighting=LikelihoodWeight(),
        grid=KarrasGrid(sigma_min=0.02, sigma_max=80.0, rho=7.0),
    )


def edm_e() -> Recipe:
    """Config E: EDM's loss; images are still mirrored. Paper: FID 2.05 (VP's network), 1.99 (VE's)."""
    return replace(edm(), name="edm_e", training=replace(edm().training, flip=True))


def edm() -> Recipe:
    """EDM, Table 1: sigma = t, preconditioning, log-normal sigma, Heun on 18 levels (35 evaluations).

    Paper: FID 1.97 on CIFAR-10, unconditional, with config F's augmentation, which is to come as is DDPM++: ADM's U-Net
    of its widths stands in. Training noise above sigma = 80 (1.6e-6 of it) is cut off. Training: config F on CIFAR-10,
    200 million images in batches of 512, rate 1e-3 after ten million, average of half-life half a million, with
    EDM's ramp-up. Measured here: not yet.
    """
    return Recipe(
        name="edm",
        process=KarrasVE(end=80.0),
        parameterization=Karras(data_std=0.5),
        conditioning=LogSigma(scale=0.25),
        times=LogNormalSigma(mean=-1.2, std=1.2),
        weighting=Simple(),
        solver=Heun(),
        grid=KarrasGrid(sigma_min=0.002, sigma_max=80.0, rho=7.0),
        steps=18,
        codec=Pixels(),
        network=UNet(size=32, channels=3, base=128, multipliers=(2, 2, 2), blocks=4, attention=(16,)),
        training=Training(
            steps=390_625, batch=512, learning_rate=1e-3, flip=False, ema=HALF_MILLION, warmup=10_000_000
        ),
    )


def edm_shared() -> Recipe:
    """EDM with E-TSDM's sharing in sigma, D.4. The paper gives no interval: five cells of [0, 0.1] are assumed,
    of which the first two are told one number.

    Paper: FID-50k 1.797 +- .016 against its own 1.904 +- .015 on CIFAR-10. Measured here: not yet.
    """
    return replace(edm(), name="edm_shared", conditioning=Shared(LogSigma(scale=0.25), interval=0.1, cells=5))


def edm_uncertainty() -> Recipe:
    """EDM with EDM2's learned balance of noise levels, a cosine series of 16 terms (its form is this project's own).

    Karras et al., Analyzing and improving the training dynamics of diffusion models, CVPR 2024. Measured here: not yet.
    """
    return replace(edm(), name="edm_uncertainty", uncertainty=16)
