"""EDM, Table 1: Karras et al., Elucidating the design space of diffusion-based generative models, NeurIPS 2022."""

from __future__ import annotations

from dataclasses import replace

from nearzero.codec import Pixels
from nearzero.conditioning import LogSigma, Shared
from nearzero.grid import KarrasGrid, LogSNRGrid, UniformGrid
from nearzero.parameterization import Karras
from nearzero.process import KarrasVE, SongVE
from nearzero.recipe import EMA, Recipe, Training
from nearzero.recipes.etsdm import ddpm, ddpm_cosine
from nearzero.recipes.full import ddpmpp
from nearzero.solvers.exponential import DDIM
from nearzero.solvers.ode import Euler, Heun
from nearzero.times import ImportanceTimes, LogNormalSigma
from nearzero.weighting import Simple


def vp() -> Recipe:
    """Table 1, VP: Song et al.'s, sampled with Euler in the angle instead of t."""
    return replace(ddpmpp(), name="vp", solver=Euler(), grid=UniformGrid(), steps=1000)


def ve() -> Recipe:
    """Table 1, VE: sigma = sqrt(t) up to 100, trained at log-uniform sigma from 0.02 on.

    The network is told log sigma; the paper's log(sigma / 2) differs by a constant. Euler in t leaves half of the last
    sigma as noise. Measured here: not yet.
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
    """EDM with E-TSDM's sharing in sigma, D.4. The paper gives no interval: five cells of [0, 0.1] are assumed,
    of which the first two are told one number.

    Paper: FID-50k 1.797 +- .016 against its own 1.904 +- .015 on CIFAR-10. Measured here: not yet.
    """
    return replace(edm(), name="edm_shared", conditioning=Shared(LogSigma(scale=0.25), interval=0.1, cells=5))
