"""E-TSDM and what it is compared with: Yang et al., Lipschitz singularities in diffusion models, ICLR 2024."""

from __future__ import annotations

from dataclasses import replace

from nearzero.codec import Pixels
from nearzero.conditioning import InverseSigmoid, InverseTime, Shared, Time, Timestep
from nearzero.grid import QuantileGrid, TimestepGrid, UniformGrid
from nearzero.networks.unet import UNet
from nearzero.parameterization import Epsilon, Velocity
from nearzero.process import CosineVP, DiscreteVP, LinearVP, QuadraticVP, ShiftedCosine, ZeroTerminalSNR
from nearzero.recipe import Recipe, Training
from nearzero.solvers.sde import Ancestral
from nearzero.times import DiscreteTimes, UniformTimes, UniformTold
from nearzero.weighting import Simple


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
    """DDPM with sqrt(beta) linear, Table 2; the end values are assumed to be DDPM's, 1e-4 and 0.02.

    Paper: FID-10k 13.79 on FFHQ 256, 9.69 with sharing. Measured here: not yet.
    """
    return replace(ddpm(), name="ddpm_quadratic", process=DiscreteVP.quadratic(1000, 1e-4, 0.02))


def ddpm_cosine() -> Recipe:
    """DDPM with Improved DDPM's cosine schedule, Table 2: offset 0.008, betas capped at 0.999.

    Paper: FID-10k 27.17 on FFHQ 256, 26.08 with sharing. Measured here: not yet.
    """
    return replace(ddpm(), name="ddpm_cosine", process=DiscreteVP.cosine(1000, offset=0.008, cap=0.999))


def ddpm_cosine_shift() -> Recipe:
    """DDPM with the shifted cosine schedule of Hoogeboom et al., Table 2; 256 over 64 pixels is assumed.

    Its last time holds no signal, which eps cannot express: v-prediction and continuous time are assumed.
    Paper, continuous: FID-10k 12.80 on FFHQ 256, 9.94 with sharing. Measured here: not yet.
    """
    return replace(
        ddpm_continuous(), name="ddpm_cosine_shift", process=ShiftedCosine(shift=4.0), parameterization=Velocity()
    )


def ddpm_zero_terminal_snr() -> Recipe:
    """DDPM moved to end without signal, Table 2 (Lin et al.), with v-prediction, which that needs.

    Paper: FID-10k 11.66 on FFHQ 256, 8.58 with sharing. Measured here: not yet.
    """
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

    Paper: FID-10k 9.18 on FFHQ 256, at twice the cost. Measured here: not yet.
    """
    return replace(ddpm(), name="ddpm_regularized", penalty=0.01)


def modified_linear() -> Recipe:
    """Modified-NS, D.3.2: the linear schedule with beta(0) = 0, so that sigma grows like t. Continuous time is assumed.

    Paper: FID-10k 8.67 on FFHQ 256. Measured here: not yet.
    """
    return replace(ddpm_continuous(), name="modified_linear", process=LinearVP(beta_min=0.0, beta_max=20.0))


def modified_quadratic() -> Recipe:
    """Modified-NS, D.3.2: the quadratic schedule with beta(0) = 0 and beta(1) raised for the same terminal SNR.

    Sigma grows like t^1.5: less noise near 0 than any other. Continuous time is assumed. Paper: FID-10k 17.48 on FFHQ
    256, worse than the baseline's 13.79. Measured here: not yet.
    """
    return replace(
        ddpm_continuous(), name="modified_quadratic", process=QuadraticVP(beta_min=0.0, beta_max=20.1 + 2**0.5)
    )


def modified_cosine() -> Recipe:
    """Modified-NS, D.3.2: the cosine schedule with offset 0; v-prediction is assumed, as it ends without signal.

    Paper: FID-10k 26.84 on FFHQ 256. Measured here: not yet.
    """
    return replace(ddpm_continuous(), name="modified_cosine", process=CosineVP(offset=0.0), parameterization=Velocity())


def remap() -> Recipe:
    """Remapping, D.3.3: the network is told 1/t; times are uniform in training and in sampling.

    K in t is what it was. Paper: FID-10k 9.43 on FFHQ 256 (baseline 9.50). Measured here: not yet.
    """
    return replace(ddpm_continuous(), name="remap", conditioning=InverseTime())


def remap_sampling() -> Recipe:
    """Remapping with 1/t uniform in sampling, between 1 and 1000 (assumed). Table A5: FID-10k 83.71 on FFHQ 256."""
    return replace(remap(), name="remap_sampling", grid=QuantileGrid(UniformTold(InverseTime())))


def remap_training() -> Recipe:
    """Remapping with 1/t uniform in training, between 1 and 1000 (assumed). Table A5: FID-10k 83.44 on FFHQ 256."""
    return replace(remap(), name="remap_training", times=UniformTold(InverseTime()))


def remap_both() -> Recipe:
    """Remapping with 1/t uniform in training and in sampling. Table A5: FID-10k 171.06 on FFHQ 256."""
    return replace(remap_training(), name="remap_both", grid=remap_sampling().grid)


def remap_sigmoid() -> Recipe:
    """Remapping, D.3.3: the network is told log(t / (1 - t)); t is uniform in training and in sampling.

    Steps stop at the middles of equal parts of (0, 1), as the told number is infinite at both ends. Paper: FID-10k 9.33
    on FFHQ 256 (baseline 9.50). Measured here: not yet.
    """
    return replace(
        ddpm_continuous(),
        name="remap_sigmoid",
        conditioning=InverseSigmoid(),
        grid=QuantileGrid(UniformTimes()),
    )


def remap_sigmoid_sampling() -> Recipe:
    """`remap_sigmoid` with the told number uniform in sampling, from t = 1/1000 to 999/1000 (assumed).

    Table A5: FID-10k 468.90 on FFHQ 256.
    """
    return replace(
        remap_sigmoid(), name="remap_sigmoid_sampling", grid=QuantileGrid(UniformTold(InverseSigmoid(), t_max=0.999))
    )


def remap_sigmoid_training() -> Recipe:
    """`remap_sigmoid` with the told number uniform in training. Table A5: FID-10k 468.19 on FFHQ 256."""
    return replace(remap_sigmoid(), name="remap_sigmoid_training", times=UniformTold(InverseSigmoid(), t_max=0.999))


def remap_sigmoid_both() -> Recipe:
    """`remap_sigmoid` with the told number uniform in training and sampling. Table A5: FID-10k 351.89 on FFHQ 256."""
    return replace(remap_sigmoid_training(), name="remap_sigmoid_both", grid=remap_sigmoid_sampling().grid)
