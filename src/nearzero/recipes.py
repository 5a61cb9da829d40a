"""Recipes: the papers' tables as code. One function a recipe; the difference of two is a paper's contribution.

What a paper leaves open is called assumed. Networks other than ADM's U-Net and EDM's augmentation are to come: where a
paper has them, the U-Net stands in. Figures of the papers are theirs; measured here means by this project.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nearzero.codec import Pixels
from nearzero.conditioning import InverseTime, LogSigma, Shared, Time, Timestep
from nearzero.errors import ArgumentError, did_you_mean
from nearzero.grid import KarrasGrid, LogSNRGrid, TimestepGrid, UniformGrid
from nearzero.networks.unet import UNet
from nearzero.parameterization import Epsilon, Karras, Nu, Velocity, W
from nearzero.process import (
    CosineVP,
    DiscreteVP,
    KarrasVE,
    LinearSigmaVP,
    LinearVP,
    QuadraticVP,
    ShiftedCosine,
    SongVE,
    ZeroTerminalSNR,
)
from nearzero.recipe import EMA, PRESETS, Recipe, Training, differences, paper, small
from nearzero.solvers.exponential import DDIM
from nearzero.solvers.ode import Euler, Heun
from nearzero.solvers.sde import Ancestral
from nearzero.times import (
    DiscreteTimes,
    ImportanceTimes,
    LogNormalSigma,
    SoftTruncation,
    Stratified,
    UniformTimes,
)
from nearzero.weighting import LikelihoodWeight, Simple

__all__ = ["EMA", "PRESETS", "RECIPES", "Recipe", "Training", "differences", "named", "paper", "small"]


# E-TSDM (Yang et al., Lipschitz singularities in diffusion models, ICLR 2024)


def ddpm() -> Recipe:
    """DDPM with the network and training of E-TSDM's Table A1, the baseline of that paper.

    Paper: FID-10k 9.50 on FFHQ 256. It leaves open how long to train, the flip and the first steps of the EMA:
    500,000 steps, mirroring (ADM's) and a ramp are assumed. Measured here: not yet.
    Ho et al., Denoising diffusion probabilistic models, NeurIPS 2020.
    """
    return Recipe(
        name="ddpm",
        process=DiscreteVP.linear(steps=1000, beta_start=1e-4, beta_end=0.02),
        parameterization=Epsilon(),
        conditioning=Timestep(1000),
        times=DiscreteTimes(),
        weighting=Simple(),
        solver=Ancestral(variance="upper"),
        grid=TimestepGrid("trailing"),
        steps=1000,
        codec=Pixels(),
        network=UNet(size=256, channels=3, base=128, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, attention=(32, 16, 8)),
        training=Training(steps=500_000, batch=96, learning_rate=1e-4, flip=True),
    )


def etsdm() -> Recipe:
    """E-TSDM: DDPM that shares one timestep condition in each of 5 cells of the first 100 timesteps.

    Paper: FID-10k 6.62 on FFHQ 256, against 9.50 without sharing. What it leaves open is as in `ddpm`.
    Measured here: not yet. Yang et al., Lipschitz singularities in diffusion models, ICLR 2024.
    """
    return replace(ddpm(), name="etsdm", conditioning=Shared(Timestep(1000), interval=100, cells=5))


def ddpm_continuous() -> Recipe:
    """DDPM in continuous time, the baseline of Table 2: LinearVP, any t in (0, 1), told 1000 t (the factor is assumed).

    Paper: FID-10k 9.53 on FFHQ 256. Measured here: not yet.
    """
    return replace(
        ddpm(),
        name="ddpm_continuous",
        process=LinearVP(beta_min=0.1, beta_max=20.0),
        conditioning=Time(1000.0),
        times=UniformTimes(),
        grid=UniformGrid(),
    )


def etsdm_continuous() -> Recipe:
    """E-TSDM in continuous time, Table 2: five cells of [0, 0.1].

    Paper: FID-10k 6.95 on FFHQ 256. Measured here: not yet.
    """
    return replace(ddpm_continuous(), name="etsdm_continuous", conditioning=Shared(Time(1000.0), interval=0.1, cells=5))


def ddpm_quadratic() -> Recipe:
    """DDPM with sqrt(beta) linear, Table 2; the end values are assumed to be DDPM's, 1e-4 and 0.02."""
    return replace(ddpm(), name="ddpm_quadratic", process=DiscreteVP.quadratic(1000, 1e-4, 0.02))


def ddpm_cosine() -> Recipe:
    """DDPM with Improved DDPM's cosine schedule, Table 2: offset 0.008, betas capped at 0.999."""
    return replace(ddpm(), name="ddpm_cosine", process=DiscreteVP.cosine(1000, offset=0.008, cap=0.999))


def ddpm_cosine_shift() -> Recipe:
    """DDPM with the shifted cosine schedule of Hoogeboom et al., Table 2; 256 over 64 pixels is assumed.

    Its last time holds no signal, which eps cannot express: v-prediction is assumed.
    """
    return replace(
        ddpm_continuous(), name="ddpm_cosine_shift", process=ShiftedCosine(shift=4.0), parameterization=Velocity()
    )


def ddpm_zero_terminal_snr() -> Recipe:
    """DDPM moved to end without signal, Table 2 (Lin et al.), with v-prediction, which that needs."""
    return replace(
        ddpm(),
        name="ddpm_zero_terminal_snr",
        process=ZeroTerminalSNR(DiscreteVP.linear()),
        parameterization=Velocity(),
    )


def ddpm_v() -> Recipe:
    """DDPM that predicts v, Appendix C.2: as singular as eps."""
    return replace(ddpm(), name="ddpm_v", parameterization=Velocity())


def ddpm_regularized() -> Recipe:
    """DDPM-r: DDPM with a penalty on K(t, t'), Table A3. The weight, 0.01, and the square are assumed.

    Paper: FID-10k 9.04 on FFHQ 256, at twice the cost. Measured here: not yet.
    """
    return replace(ddpm(), name="ddpm_regularized", penalty=0.01)


def modified_linear() -> Recipe:
    """Modified-NS, D.3.2: the linear schedule with beta(0) = 0, so that sigma grows like t."""
    return replace(ddpm_continuous(), name="modified_linear", process=LinearVP(beta_min=0.0, beta_max=20.0))


def modified_quadratic() -> Recipe:
    """Modified-NS, D.3.2: the quadratic schedule with beta(0) = 0 and beta(1) raised for the same terminal SNR.

    Sigma grows like t^1.5: less noise near 0 than any other. Paper: worse than the baseline (FID-10k 17.48).
    """
    return replace(
        ddpm_continuous(), name="modified_quadratic", process=QuadraticVP(beta_min=0.0, beta_max=20.1 + 2**0.5)
    )


def modified_cosine() -> Recipe:
    """Modified-NS, D.3.2: the cosine schedule with offset 0; v-prediction is assumed, as it ends without signal."""
    return replace(ddpm_continuous(), name="modified_cosine", process=CosineVP(offset=0.0), parameterization=Velocity())


def remap() -> Recipe:
    """Remapping, D.3.3: the network is told 1/t; times are uniform in training and in sampling.

    K in t is what it was. Paper: no better than the baseline. The other three of Table A5's combinations sample 1/t.
    """
    return replace(ddpm_continuous(), name="remap", conditioning=InverseTime())


# Score SDE and its likelihood training, the baselines of FullDiffusion


def ddpmpp() -> Recipe:
    """DDPM++ on the continuous VP SDE (Song et al., ICLR 2021): t uniform in (0, 1), not cut off at 1e-5, told 999 t.

    The paper's network (DDPM++) is to come. Training: batch 128, rate 2e-4, 1.3 million steps; its warm-up of 5,000
    steps and its clipped gradients are to come. Measured here: not yet.
    """
    return replace(
        ddpm_continuous(),
        name="ddpmpp",
        conditioning=Time(999.0),
        training=Training(steps=1_300_000, batch=128, learning_rate=2e-4, flip=True),
    )


def ddpmpp_elbo() -> Recipe:
    """DDPM++ trained on the likelihood bound (Song et al., NeurIPS 2021), t of density g^2 / sigma^2 above 1e-5."""
    return replace(ddpmpp(), name="ddpmpp_elbo", times=ImportanceTimes(t_min=1e-5), weighting=LikelihoodWeight())


def soft_truncation() -> Recipe:
    """Soft truncation (Kim et al., ICML 2022): the likelihood bound with a cut-off drawn for each batch."""
    return replace(ddpmpp_elbo(), name="soft_truncation", times=SoftTruncation(t_min=1e-5, k=1.0))


# FullDiffusion


def full() -> Recipe:
    """FullDiffusion: sigma = t, Nu, the ELBO over all of [0, 1], stratified times; no time is truncated anywhere.

    FullDiffusion-Solver-1 is Ancestral with the posterior's variance. Assumes centred data: centre other data with
    Centred.of(images) as the codec. The network (DDPM++) is to come; training as in `ddpmpp`. Measured here: not yet.
    """
    return replace(
        ddpmpp(),
        name="full",
        process=LinearSigmaVP(),
        parameterization=Nu(),
        times=Stratified(UniformTimes()),
        solver=Ancestral("lower"),
    )


def full_w() -> Recipe:
    """FullDiffusion with W, this project's own: the ELBO, bounded for data of any mean. Measured here: not yet."""
    return replace(full(), name="full_w", parameterization=W())


# EDM (Karras et al., Elucidating the design space of diffusion-based generative models, NeurIPS 2022), Table 1


def vp() -> Recipe:
    """Table 1, VP: Song et al.'s, sampled with Euler in the angle instead of t."""
    return replace(ddpmpp(), name="vp", solver=Euler(), grid=UniformGrid(), steps=1000)


def ve() -> Recipe:
    """Table 1, VE: sigma = sqrt(t) up to 100, told log sigma, trained at log-uniform sigma from 0.02 on."""
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
    """Table 1, iDDPM: the cosine schedule with a deterministic solver; its learned variance is not read."""
    return replace(ddpm_cosine(), name="iddpm", solver=DDIM(), steps=250)


def edm() -> Recipe:
    """EDM, Table 1: sigma = t, preconditioning, log-normal sigma, Heun on 18 levels (35 evaluations).

    Paper: FID 1.97 on CIFAR-10, unconditional, with config F's augmentation, which is to come as is DDPM++.
    Training noise above sigma = 80 (1.6e-6 of it) is cut off. Training: config F on CIFAR-10, 200 million images in
    batches of 512 at rate 1e-3 without its ramp-up, average over half a million images. Measured here: not yet.
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
        network=ddpm().network,
        training=Training(
            steps=390_625, batch=512, learning_rate=1e-3, flip=False, ema=EMA(decay=0.5 ** (512 / 500_000))
        ),
    )


def edm_shared() -> Recipe:
    """EDM with E-TSDM's sharing in sigma, D.4. The paper gives no interval: five cells of [0, 0.1] are assumed.

    Paper: FID 1.797 +- .016 against 1.904 +- .015 on CIFAR-10, class-conditional. Measured here: not yet.
    """
    return replace(edm(), name="edm_shared", conditioning=Shared(LogSigma(scale=0.25), interval=0.1, cells=5))


ALL = (
    *(ddpm, etsdm, ddpm_continuous, etsdm_continuous, ddpm_quadratic, ddpm_cosine, ddpm_cosine_shift),
    *(ddpm_zero_terminal_snr, ddpm_v, ddpm_regularized, modified_linear, modified_quadratic, modified_cosine, remap),
    *(ddpmpp, ddpmpp_elbo, soft_truncation, full, full_w, vp, ve, iddpm, edm, edm_shared),
)
RECIPES: dict[str, Callable[[], Recipe]] = {recipe.__name__: recipe for recipe in ALL}
"""Every recipe by name."""


def named(name: str) -> Recipe:
    """The recipe of this name. Raises ArgumentError with the nearest one."""
    if name not in RECIPES:
        raise ArgumentError(f"unknown recipe {name!r}; {did_you_mean(name, RECIPES)}")
    return RECIPES[name]()
