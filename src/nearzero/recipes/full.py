"""FullDiffusion and its baselines: score-based models trained on likelihood."""

from __future__ import annotations

from dataclasses import replace

from nearzero.codec import Centred, Pixels
from nearzero.conditioning import Time
from nearzero.grid import SqrtGrid, UniformGrid
from nearzero.networks.unet import UNet
from nearzero.parameterization import Flow, Nu, W
from nearzero.process import LinearSigmaVP, StraightPath, SubVP
from nearzero.recipe import Recipe, Training
from nearzero.recipes.etsdm import ddpm_continuous
from nearzero.solvers.full import FullDiffusionSolver
from nearzero.solvers.ode import Heun
from nearzero.solvers.sde import EulerMaruyama
from nearzero.times import ImportanceTimes, LogTimes, SoftTruncation, Stratified, UniformTimes
from nearzero.weighting import LikelihoodWeight


def ddpmpp() -> Recipe:
    """DDPM++ on the continuous VP SDE (Song et al., ICLR 2021): t uniform in (0, 1), not cut off at 1e-5, told 999 t.

    The paper's network (DDPM++, with dropout 0.1) is to come; ADM's U-Net of its widths stands in. Training: batch 128,
    rate 2e-4 after 5,000 steps of warm-up, gradients clipped at 1, 1.3 million steps. Measured here: not yet.
    """
    return replace(
        ddpm_continuous(),
        name="ddpmpp",
        conditioning=Time(999.0),
        network=UNet(size=32, channels=3, base=128, multipliers=(1, 2, 2, 2), blocks=4, attention=(16,)),
        training=Training(steps=1_300_000, batch=128, learning_rate=2e-4, flip=True, warmup=640_000, clip=1.0),
    )


def ddpmpp_elbo() -> Recipe:
    """DDPM++ trained on the likelihood bound (Song et al., NeurIPS 2021), t of density g^2 / sigma^2 above 1e-5.

    Pixels are dithered, as in every recipe below that is trained on likelihood: 8-bit images have no density.
    """
    return replace(
        ddpmpp(), name="ddpmpp_elbo", times=ImportanceTimes(t_min=1e-5), weighting=LikelihoodWeight(), dither=True
    )


def soft_truncation() -> Recipe:
    """Soft truncation (Kim et al., ICML 2022): the likelihood bound with a cut-off drawn for each batch."""
    return replace(ddpmpp_elbo(), name="soft_truncation", times=SoftTruncation(t_min=1e-5, k=1.0))


def subvp() -> Recipe:
    """DDPM++ on the sub-VP SDE (Song et al., ICLR 2021), sigma = 1 - alpha^2: the best density of that paper."""
    return replace(ddpmpp(), name="subvp", process=SubVP(), solver=EulerMaruyama(), grid=UniformGrid(), dither=True)


def straight() -> Recipe:
    """Flow matching on straight paths, x_t = (1 - t) x0 + t eps, F = eps - x0 (Lipman et al., ICLR 2023).

    Network and training are those of `ddpmpp`; told 1000 t. Samples by Heun in 50 steps, 99 evaluations.
    """
    return replace(
        ddpmpp(),
        name="straight",
        process=StraightPath(),
        parameterization=Flow(),
        conditioning=Time(1000.0),
        solver=Heun(),
        grid=UniformGrid(),
        steps=50,
        dither=True,
    )


def full() -> Recipe:
    """FullDiffusion: sigma = t, Nu, the ELBO over all of [0, 1], stratified times; no time is truncated anywhere.

    Samples by FullDiffusion-Solver-2 in 50 steps, which are 99 evaluations: the paper's figure for convergence. The ODE
    of Eq. 30 is Heun() on AngleGrid(), in the angle; in t itself, as printed (Heun(clock=Itself(process))), it is of
    order 1/2 at t = 1 unless the data are centred. Nu assumes data of mean 0 and diverges at t = 1 otherwise: training
    subtracts the mean image, which the paper does not say. The network (DDPM++) is to come; training as in `ddpmpp`.
    """
    return replace(
        ddpmpp(),
        name="full",
        process=LinearSigmaVP(),
        parameterization=Nu(),
        times=Stratified(UniformTimes()),
        solver=FullDiffusionSolver(2),
        grid=UniformGrid(),
        steps=50,
        codec=Centred(),
        dither=True,
    )


def full_centred() -> Recipe:
    """`full` under the name that says what it does to the data."""
    return replace(full(), name="full_centred")


def full_uncentred() -> Recipe:
    """FullDiffusion as printed, without subtracting the mean.

    Nu's target diverges at t = 1 unless the data have mean 0. Measured here: not yet.
    """
    return replace(full(), name="full_uncentred", codec=Pixels())


def full_w() -> Recipe:
    """FullDiffusion with W, this project's own: the same ELBO, bounded for data of any mean.

    Times are uniform in log(t + 0.001): in a model of one dithered pixel the bound's variance is 20 to 24 times
    lower than with uniform times (scripts/bound_variance.py). Samples by FullDiffusion-Solver-2 with fitted weight and
    bridge noise, of weak order 2, on steps equal in sqrt(t).
    """
    return replace(
        full_uncentred(),
        name="full_w",
        parameterization=W(),
        times=Stratified(LogTimes()),
        solver=FullDiffusionSolver(2, "fitted"),
        grid=SqrtGrid(),
    )
