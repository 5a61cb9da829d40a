"""Recipes against the tables of their papers, written out again here, and each of them from training to samples."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import nearzero as nz
from conftest import pictures, tiny_recipe
from nearzero import recipes
from nearzero.recipes import RECIPES, differences, named


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


def axes(recipe):
    """The axes of a recipe, apart from its network, training and number of steps."""
    left = {"name", "codec", "network", "training", "steps"}
    return {field.name: getattr(recipe, field.name) for field in fields(recipe) if field.name not in left}


def ratio(process, t):
    """sigma / alpha at times, in numpy."""
    alpha, sigma = process(f64(t))
    return (sigma / alpha).numpy()


# ---- EDM, Table 1

SIGMA = np.array([0.002, 0.02, 0.3, 1.0, 5.0, 50.0, 79.0])


def network_of(recipe, sigma):
    """(c_skip, c_out, c_in, c_noise) at noise levels sigma, of a recipe brought to x = x0 + sigma eps by its own scaling."""
    t = recipe.process.time_of_logsnr(-2 * f64(sigma).log())
    level = recipe.process(t)
    A, B, _, _ = recipe.parameterization.coefficients(level)
    c_in = level.alpha * recipe.parameterization.input_scale(level)
    told = recipe.conditioning(t, level)
    return tuple(value.numpy() for value in (level.alpha * A, B, c_in, told))


def training_levels(recipe, u):
    """The noise levels sigma / alpha that uniform numbers train."""
    return ratio(recipe.process, recipe.times(f64(u), recipe.process))


def effective_weight(recipe, sigma):
    """The weight of |D(x) - x0|^2, EDM's lambda, that the recipe gives: its weight of |F - F*|^2 over B^2 as alpha = 1 sees it."""
    t = recipe.process.time_of_logsnr(-2 * f64(sigma).log())
    level = recipe.process(t)
    k = recipe.parameterization.coefficients(level)
    return (recipe.weighting(level, k) / k.B**2).numpy()


def test_table_1_vp():
    """VP: beta 0.1 .. 20, c_skip = 1, c_out = -sigma, c_in = 1 / sqrt(sigma^2 + 1), c_noise = 999 sigma^-1, weight 1 / sigma^2, uniform times, 1000 steps from 1 by 1e-3 down."""
    recipe = recipes.vp()
    t = np.linspace(0.01, 1, 9)
    np.testing.assert_allclose(ratio(recipe.process, t), np.sqrt(np.expm1(19.9 / 2 * t**2 + 0.1 * t)), rtol=1e-12)
    skip, out, into, noise = network_of(recipe, SIGMA)
    root = (np.sqrt(0.1**2 + 2 * 19.9 * np.log1p(SIGMA**2)) - 0.1) / 19.9
    np.testing.assert_allclose(skip, 1, rtol=1e-12)
    np.testing.assert_allclose(out, -SIGMA, rtol=1e-10)
    np.testing.assert_allclose(into, 1 / np.sqrt(SIGMA**2 + 1), rtol=1e-10)
    np.testing.assert_allclose(noise, 999 * root, rtol=1e-9)
    np.testing.assert_allclose(effective_weight(recipe, SIGMA), 1 / SIGMA**2, rtol=1e-9)
    u = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(recipe.times(f64(u), recipe.process).numpy(), u, rtol=1e-12)
    grid = recipe.grid(recipe.steps, recipe.process).numpy()
    np.testing.assert_allclose(grid, [*np.linspace(1, 1e-3, 1000), 0], rtol=0, atol=1e-15)
    assert recipe.solver == nz.Euler()


def test_table_1_ve():
    """VE: sigma = sqrt(t), c_skip = 1, |c_out| = sigma, c_in = 1, log-uniform sigma in (0.02, 100), weight 1 / sigma^2, sigma_i^2 = 100^2 (0.02^2 / 100^2)^(i / (N - 1))."""
    recipe = recipes.ve()
    np.testing.assert_allclose(ratio(recipe.process, [0.25, 4.0, 1e4]), [0.5, 2.0, 100.0], rtol=1e-12)
    skip, out, into, _ = network_of(recipe, SIGMA)
    np.testing.assert_allclose(np.stack([skip, -out / SIGMA, into]), 1, rtol=1e-10)
    np.testing.assert_allclose(effective_weight(recipe, SIGMA), 1 / SIGMA**2, rtol=1e-9)
    u = np.array([1e-12, 0.1, 0.5, 0.9, 1 - 1e-12])
    np.testing.assert_allclose(training_levels(recipe, u), 0.02 * (100 / 0.02) ** u, rtol=1e-9)
    times = recipe.grid(recipe.steps, recipe.process).numpy()
    np.testing.assert_allclose(times[:-1], 100**2 * (0.02**2 / 100**2) ** (np.arange(1000) / 999), rtol=1e-9)
    assert times[-1] == 0 and (recipe.solver, recipe.steps) == (nz.Euler(), 1000)


def test_table_1_ve_is_told_the_logarithm_of_half_the_noise():
    """VE: c_noise = log(sigma / 2), up to the constant log 2, as the recipe says."""
    _, _, _, noise = network_of(recipes.ve(), SIGMA)
    np.testing.assert_allclose(np.asarray(noise) - math.log(2), np.log(SIGMA / 2), rtol=1e-9)


def test_table_1_iddpm():
    """iDDPM: u_1000 = 0, u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1} / abar_j, 0.001) - 1), abar_j = sin^2(pi / 2 j / (1000 1.008)); told M - 1 - j, weight 1 / sigma^2, a deterministic solver."""
    recipe = recipes.iddpm()
    abar = np.sin(np.pi / 2 * np.arange(1001) / (1000 * 1.008)) ** 2
    u = [0.0]
    for j in range(1000, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(abar[j - 1] / abar[j], 0.001) - 1))
    k = np.arange(1000)
    np.testing.assert_allclose(ratio(recipe.process, (k + 1) / 1000), u[1:], rtol=1e-7)
    told = recipe.conditioning(f64((k + 1) / 1000), recipe.process(f64((k + 1) / 1000)))
    assert told.tolist() == k.tolist()
    skip, out, into, _ = network_of(recipe, np.array(u[100:900:100]))
    sigma = np.array(u[100:900:100])
    np.testing.assert_allclose(skip, 1, rtol=1e-10)
    np.testing.assert_allclose(out, -sigma, rtol=1e-9)
    np.testing.assert_allclose(into, 1 / np.sqrt(sigma**2 + 1), rtol=1e-9)
    assert (recipe.times, recipe.weighting, recipe.solver) == (nz.DiscreteTimes(), nz.Simple(), nz.DDIM())


def test_table_1_edm():
    """EDM: sigma = t up to 80, data_std = .5, c_noise = log(sigma) / 4, log sigma ~ N(-1.2, 1.2^2), lambda = (sigma^2 + .25) / (.5 sigma)^2, rho = 7 on .002 .. 80, Heun."""
    recipe = recipes.edm()
    assert (recipe.process, recipe.solver) == (nz.KarrasVE(80.0), nz.Heun())
    skip, out, into, noise = network_of(recipe, SIGMA)
    np.testing.assert_allclose(skip, 0.25 / (SIGMA**2 + 0.25), rtol=1e-10)
    np.testing.assert_allclose(out, SIGMA * 0.5 / np.sqrt(SIGMA**2 + 0.25), rtol=1e-10)
    np.testing.assert_allclose(into, 1 / np.sqrt(SIGMA**2 + 0.25), rtol=1e-10)
    np.testing.assert_allclose(noise, np.log(SIGMA) / 4, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(effective_weight(recipe, SIGMA), (SIGMA**2 + 0.25) / (0.5 * SIGMA) ** 2, rtol=1e-9)
    u, z = [0.02275013194817921, 0.15865525393145707, 0.5, 0.8413447460685429, 0.9772498680518208], [-2, -1, 0, 1, 2]
    np.testing.assert_allclose(training_levels(recipe, u), np.exp(-1.2 + 1.2 * np.array(z)), rtol=1e-4)  # cut at 80
    levels = (80 ** (1 / 7) + np.arange(18) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(recipe.grid(recipe.steps, recipe.process).numpy(), [*levels, 0], rtol=1e-12)
    assert recipe.steps == 18


def test_table_1_loss_of_edm():
    """At sigma = .3 EDM's loss is lambda |D(x) - x0|^2, written out, whatever the network answers."""
    recipe, sigma = recipes.edm(), 0.3
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 1, 2, 2, generator=generator, dtype=torch.float64)

    class Fixed(torch.nn.Module):
        def forward(self, x, c):
            return torch.sin(3 * x) + c[:, None, None, None]

    class At(nz.UniformTimes):
        def __call__(self, u, process):
            return torch.full_like(u, sigma)

    objective = nz.Regression(At(), recipe.weighting)
    loss = objective(recipe.denoiser(Fixed()), x0, torch.full((5,), 0.5, dtype=torch.float64), eps)
    x, z = x0 + sigma * eps, sigma**2 + 0.25
    F = torch.sin(3 * x / math.sqrt(z)) + math.log(sigma) / 4
    D = 0.25 / z * x + sigma * 0.5 / math.sqrt(z) * F
    torch.testing.assert_close(loss, z / (0.5 * sigma) ** 2 * (D - x0).square().flatten(1).mean(1), rtol=1e-10, atol=0)


def test_training_of_edm():
    """200 million images in batches of 512 at rate 1e-3; the average forgets half in 500,000 images."""
    training = recipes.edm().training
    assert (training.batch, training.learning_rate) == (512, 1e-3)
    assert training.steps * training.batch == 200_000_000
    assert training.ema.beta(training.steps, 512) ** (500_000 / 512) == pytest.approx(0.5, rel=1e-12)


def test_sharing_is_all_that_etsdm_changes():
    """edm_shared and etsdm_continuous differ from their baselines in the condition alone."""
    for base, shared in (("edm", "edm_shared"), ("ddpm_continuous", "etsdm_continuous")):
        a, b = named(base), named(shared)
        assert differences(a, b) == {"conditioning": (a.conditioning, b.conditioning)}
        assert b.conditioning.inner == a.conditioning and b.conditioning.cells == 5
        assert b.conditioning.interval == 0.1


# ---- EDM, Table 2: from Song et al.'s training to EDM's

STEPS = {
    "vp": [
        ("vp", "edm_a_vp", {"through", "solver", "grid", "steps"}),
        ("edm_a_vp", "edm_b_vp", {"training"}),
        ("edm_b_vp", "edm_c_vp", {"network"}),
        ("edm_c_vp", "edm_d_vp", {"process", "through", "parameterization", "conditioning", "times", "weighting"}),
        ("edm_d_vp", "edm_e", {"process", "times", "weighting"}),
        ("edm_e", "edm", {"training"}),
    ],
    "ve": [
        ("ve", "edm_a_ve", {"through", "solver", "grid", "steps", "training"}),
        ("edm_a_ve", "edm_b_ve", {"training"}),
        ("edm_b_ve", "edm_c_ve", {"network"}),
        ("edm_c_ve", "edm_d_ve", {"process", "through", "parameterization", "conditioning", "times", "weighting"}),
        ("edm_d_ve", "edm_e", {"process", "times", "weighting", "grid"}),
        ("edm_e", "edm", {"training"}),
    ],
}


@pytest.mark.parametrize("column", STEPS)
def test_each_config_changes_what_its_name_says(column):
    """A: EDM's sampler on Song et al.'s training; B: training; C: network; D: preconditioning on sigma = t; E: noise levels and weight; F: mirroring. Nothing else."""
    assert [(a, b, set(differences(named(a), named(b)))) for a, b, _ in STEPS[column]] == STEPS[column]


@pytest.mark.parametrize("column", STEPS)
def test_training_of_each_config(column):
    """A: batch 128, rate 2e-4 after 640,000 images, clip 1, average 0.9999 (VE 0.999); B to F: 512, 1e-3 after ten million, no clip, half-life 500,000; mirrored but for F."""
    a, *rest = (named(name).training for name in (f"edm_a_{column}", f"edm_b_{column}", f"edm_d_{column}", "edm_e"))
    assert (a.batch, a.learning_rate, a.warmup, a.clip, a.flip) == (128, 2e-4, 640_000, 1.0, True)
    assert a.ema.decay == {"vp": 0.9999, "ve": 0.999}[column]
    for b in rest:
        assert (b.batch, b.learning_rate, b.warmup, b.clip, b.flip) == (512, 1e-3, 10_000_000, None, True)
        assert b.ema.beta(b.steps, 512) ** (500_000 / 512) == pytest.approx(0.5, rel=1e-12)
    assert differences(named("edm_e"), recipes.edm())["training"][1] == replace(rest[-1], flip=False)


@pytest.mark.parametrize(
    ("config", "widths"), [("a", (1, 2, 2, 2)), ("b", (1, 2, 2, 2)), ("c", (2, 2, 2)), ("d", (2, 2, 2))]
)
def test_config_c_drops_the_lowest_resolution(config, widths):
    """128 channels times 1, 2, 2, 2 until B; from C on 2, 2, 2."""
    for column in STEPS:
        network = named(f"edm_{config}_{column}").network
        assert (network.base, network.multipliers) == (128, widths)


@pytest.mark.parametrize("name", [f"edm_{config}_{column}" for config in "abcd" for column in STEPS])
def test_every_config_is_sampled_on_edms_levels(name):
    """Samples see sigma = t and 18 levels from 80 with rho 7, by Heun; VE's networks know no less noise than 0.02."""
    recipe = named(name)
    seen = recipe.sampled(recipe.denoiser(Recorded()))
    grid = recipe.grid(recipe.steps, seen.process).numpy()
    low = 0.02 if name.endswith("ve") else 0.002
    levels = (80 ** (1 / 7) + np.arange(18) / 17 * (low ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grid, [*levels, 0], rtol=1e-9)
    t = f64([0.0, 0.3, 80.0])
    assert torch.equal(seen.process(t).sigma, t) and recipe.solver == nz.Heun()


class Recorded(torch.nn.Module):
    """A fixed answer that depends on x and c, which keeps what it was told."""

    def forward(self, x, c):
        self.told = c
        return torch.sin(2 * x + c.reshape(-1, *(1,) * (x.ndim - 1)) / 300)


@pytest.mark.parametrize("sigma", [1e-3, 0.02, 0.5, 3.0, 80.0])
def test_config_a_of_vp_is_edms_reading_of_song_et_al(sigma):
    """D(x; sigma) = x - sigma F(x / sqrt(1 + sigma^2); 999 sigma^-1(sigma)), sigma^-1 = (sqrt(.01 + 39.8 log(1 + sigma^2)) - .1) / 19.9 written out."""
    recipe, network = recipes.edm_a_vp(), Recorded()
    trained = recipe.denoiser(network)
    seen = recipe.sampled(trained)
    assert type(seen) is nz.Rescaled and trained.process == nz.LinearVP() and seen.network is network
    x = (1 + sigma) * torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x0, eps = seen(x, sigma)
    noise = 999 * (math.sqrt(0.01 + 39.8 * math.log1p(sigma**2)) - 0.1) / 19.9
    F = torch.sin(2 * x / math.sqrt(1 + sigma**2) + noise / 300)
    torch.testing.assert_close(network.told, torch.full((3,), noise, dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(x0, x - sigma * F, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(eps, F, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.02, 0.5, 80.0])
def test_config_a_of_ve_is_edms_reading_of_song_et_al(sigma):
    """D(x; sigma) = x - sigma F(x; log sigma), up to the constant log 2 in what the network is told."""
    recipe, network = recipes.edm_a_ve(), Recorded()
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x0, _ = recipe.sampled(recipe.denoiser(network))(x, sigma)
    torch.testing.assert_close(x0, x - sigma * torch.sin(2 * x + math.log(sigma) / 300), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("column", STEPS)
def test_the_loss_of_config_d(column):
    """lambda(sigma) |D(x) - x0|^2 / dimensions with lambda = 1 / sigma^2, EDM's preconditioning of D written out, and sigma that of the VP or VE SDE's training."""
    recipe, network = named(f"edm_d_{column}"), Recorded()
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 6, 1, 2, 2, generator=generator, dtype=torch.float64)
    u = f64([1e-3, 0.1, 0.4, 0.6, 0.9, 0.999])
    vp = torch.sqrt(torch.expm1(19.9 / 2 * u**2 + 0.1 * u))
    sigma = (vp if column == "vp" else 0.02 * (100 / 0.02) ** u)[:, None, None, None]
    loss = recipe.objective()(recipe.denoiser(network), x0, u, eps)
    x, z = x0 + sigma * eps, sigma**2 + 0.25
    F = network(x / z.sqrt(), sigma.flatten().log() / 4)
    D = 0.25 / z * x + 0.5 * sigma / z.sqrt() * F
    torch.testing.assert_close(loss, ((D - x0).square() / sigma**2).flatten(1).mean(1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("column", STEPS)
def test_config_d_keeps_the_noise_levels_and_the_weight(column):
    """From A to D the noise levels of every draw and the weight 1 / sigma^2 of |D(x) - x0|^2 stay; E changes both."""
    a, d, e = named(f"edm_a_{column}"), named(f"edm_d_{column}"), recipes.edm_e()
    u = np.array([1e-6, 0.1, 0.5, 0.9, 0.999])
    np.testing.assert_allclose(training_levels(d, u), training_levels(a, u), rtol=1e-9)
    for recipe in (a, d):
        np.testing.assert_allclose(effective_weight(recipe, SIGMA), 1 / SIGMA**2, rtol=1e-8)
    assert (np.abs(training_levels(e, u) / training_levels(d, u) - 1) > 0.1).all()


def test_uncertainty_is_all_that_edm_uncertainty_adds():
    """edm_uncertainty is EDM with 16 learned coefficients."""
    assert differences(recipes.edm(), recipes.edm_uncertainty()) == {"uncertainty": (0, 16)}
    assert len(recipes.edm_uncertainty().objective().a) == 16


# ---- E-TSDM


def betas(process):
    """1 - abar_k / abar_{k-1} of the 1000 nodes."""
    alpha, _ = process(torch.arange(1001, dtype=torch.float64) / 1000)
    return 1 - (alpha[1:] / alpha[:-1]).square().numpy()


def test_table_2_schedules():
    """Linear, quadratic and cosine betas; shifted cosine of 256 over 64; zero terminal SNR of DDPM's with its first level kept."""
    np.testing.assert_allclose(betas(recipes.ddpm().process), np.linspace(1e-4, 0.02, 1000), rtol=1e-9)
    quadratic = np.linspace(0.01, 0.02**0.5, 1000) ** 2
    np.testing.assert_allclose(betas(recipes.ddpm_quadratic().process), quadratic, rtol=1e-9)
    cosine = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    expected = np.minimum(1 - cosine[1:] / cosine[:-1], 0.999)
    np.testing.assert_allclose(betas(recipes.ddpm_cosine().process), expected, rtol=1e-8)
    t = np.linspace(0.01, 0.99, 9)
    np.testing.assert_allclose(ratio(recipes.ddpm_cosine_shift().process, t), 4 * np.tan(np.pi / 2 * t), rtol=1e-12)
    alpha = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    moved = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    found = recipes.ddpm_zero_terminal_snr().process(f64(np.arange(1, 1001) / 1000)).alpha
    np.testing.assert_allclose(found.numpy(), moved, rtol=1e-9, atol=1e-15)
    assert found[-1].item() == 0


def test_modified_schedules():
    """D.3.2: beta(0) = 0 in all three; the quadratic's beta(1) is raised so that its terminal SNR is the original's to 1e-12; the cosine has offset 0."""
    original, modified = nz.QuadraticVP(0.1, 20.0), recipes.modified_quadratic().process
    snr = [process(f64(1.0)).alpha.square() / process(f64(1.0)).sigma.square() for process in (original, modified)]
    assert snr[1].item() == pytest.approx(snr[0].item(), rel=1e-12)
    assert modified.beta_max > 20 and modified.beta_min == 0
    for recipe in (recipes.modified_linear(), recipes.modified_quadratic(), recipes.modified_cosine()):
        assert recipe.process.diffusion2(f64(0.0)).item() == 0  # g^2 = beta
    t = np.linspace(0.1, 0.9, 5)
    np.testing.assert_allclose(ratio(recipes.modified_cosine().process, t), np.tan(np.pi / 2 * t), rtol=1e-12)
    assert recipes.modified_linear().process == nz.LinearVP(0.0, 20.0)


def test_variants_of_ddpm_change_one_thing():
    """Each variant differs from its baseline in the axes of its name, and in v-prediction where it ends without signal."""
    expected = {
        ("ddpm", "ddpm_v"): {"parameterization"},
        ("ddpm", "ddpm_quadratic"): {"process"},
        ("ddpm", "ddpm_cosine"): {"process"},
        ("ddpm", "ddpm_zero_terminal_snr"): {"process", "parameterization"},
        ("ddpm", "ddpm_regularized"): {"penalty"},
        ("ddpm", "ddpm_continuous"): {"process", "conditioning", "times", "grid"},
        ("ddpm_continuous", "ddpm_cosine_shift"): {"process", "parameterization"},
        ("ddpm_continuous", "modified_linear"): {"process"},
        ("ddpm_continuous", "modified_quadratic"): {"process"},
        ("ddpm_continuous", "modified_cosine"): {"process", "parameterization"},
        ("ddpm_continuous", "remap"): {"conditioning"},
        ("ddpm_continuous", "remap_sigmoid"): {"conditioning", "grid"},
        ("full", "full_uncentred"): {"codec"},
        ("full_uncentred", "full_w"): {"parameterization", "times", "solver", "grid"},
        ("ddpmpp_elbo", "soft_truncation"): {"times"},
    }
    found = {pair: set(differences(*map(named, pair))) for pair in expected}
    assert found == expected


REMAPPED = {  # Table A5: told, times of training, times of sampling
    "remap": (nz.InverseTime(), False, False),
    "remap_sampling": (nz.InverseTime(), False, True),
    "remap_training": (nz.InverseTime(), True, False),
    "remap_both": (nz.InverseTime(), True, True),
    "remap_sigmoid": (nz.InverseSigmoid(), False, False),
    "remap_sigmoid_sampling": (nz.InverseSigmoid(), False, True),
    "remap_sigmoid_training": (nz.InverseSigmoid(), True, False),
    "remap_sigmoid_both": (nz.InverseSigmoid(), True, True),
}


@pytest.mark.parametrize("name", REMAPPED)
def test_table_a5(name):
    """Told 1/t or log(t / (1 - t)); in training and in sampling either t is uniform in (0, 1) or what is told is, from 1 to 1000 or -6.9 to 6.9; all else is DDPM's."""
    recipe, base = named(name), recipes.ddpm_continuous()
    conditioning, training, sampling = REMAPPED[name]
    u = (np.arange(40) + 0.5) / 40
    inverse = isinstance(conditioning, nz.InverseTime)
    low, high = (1000, 1) if inverse else (-math.log(999), math.log(999))
    line = low + u * (high - low)
    remapped = 1 / line if inverse else 1 / (1 + np.exp(-line))
    np.testing.assert_allclose(recipe.times(f64(u), recipe.process).numpy(), remapped if training else u, rtol=1e-9)
    whole = np.arange(1, 41) / 40 if inverse else u  # log(t / (1 - t)) is infinite at t = 1
    grid = recipe.grid(40, recipe.process).numpy()
    np.testing.assert_allclose(grid, [*(remapped if sampling else whole)[::-1], 0], rtol=1e-9)
    changed = {"conditioning"} | ({"times"} if training else set()) | ({"grid"} if sampling or not inverse else set())
    assert set(differences(base, recipe)) == changed and recipe.conditioning == conditioning


# ---- score-based models and FullDiffusion


def test_full_diffusion():
    """FullDiffusion: sigma = t, nu, the variational bound on stratified uniform times, nothing cut off at either end, its own second solver in at most 100 evaluations."""
    recipe = recipes.full()
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    alpha, sigma = recipe.process(t)
    torch.testing.assert_close(
        torch.stack([alpha.square() + t.square(), sigma]), torch.stack([torch.ones(11).double(), t])
    )
    assert recipe.parameterization == nz.Nu() and recipes.full_w().parameterization == nz.W()
    assert isinstance(recipe.objective(), nz.VariationalBound) and isinstance(
        recipes.full_w().objective(), nz.VariationalBound
    )
    u = f64([0.25, 0.5, 0.999, 1e-9])
    torch.testing.assert_close(recipe.times(u, recipe.process), (torch.arange(4) + u) / 4, rtol=0, atol=1e-15)
    grid = recipe.grid(10, recipe.process)
    assert (grid[0].item(), grid[-1].item()) == (1.0, 0.0)
    assert recipe.solver == nz.FullDiffusionSolver(2) and 2 * recipe.steps <= 100


def test_likelihood_training():
    """ddpmpp_elbo weighs |eps error|^2 by g^2 / sigma^2 per time: density of its times times its weight, by differences, is proportional to it above 1e-5."""
    recipe = recipes.ddpmpp_elbo()
    u = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    step = 1e-6
    slope = (recipe.times(u + step, recipe.process) - recipe.times(u - step, recipe.process)) / (2 * step)
    t = recipe.times(u, recipe.process)
    level = recipe.process(t)
    weight = recipe.weighting(level, recipe.parameterization.coefficients(level)) / slope
    wanted = recipe.process.diffusion2(t) / level.sigma.square()
    share = (weight / wanted).numpy()
    np.testing.assert_allclose(share / share[0], 1, rtol=1e-6)
    low = recipe.times(f64([1e-15]), recipe.process).item()
    assert low == pytest.approx(1e-5, rel=1e-6)


# ---- from training to samples


def tiny(recipe, **changed):
    """The recipe's axes with a network of 32,609 parameters, one training step of four pictures and five sampling steps."""
    small = tiny_recipe(steps=1)
    return replace(recipe, network=small.network, training=small.training, steps=5, **changed)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_and_samples(name, tmp_path):
    """One step of nz.train moves the weights by a finite amount, and two samples in five steps are finite and differ."""
    recipe = tiny(named(name))
    assert axes(recipe) == axes(named(name))
    run = nz.train(recipe, pictures(), tmp_path / "run")
    denoiser = run.denoiser(ema=False)
    assert all(bool(parameter.isfinite().all()) for parameter in denoiser.parameters())
    answer = denoiser.network(torch.ones(1, 1, 8, 8), torch.ones(1))
    assert bool((answer != 0).any())  # a fresh network answers exactly 0
    samples = nz.sample(
        recipe.sampled(denoiser), (1, 8, 8), solver=recipe.solver, grid=recipe.grid, steps=5, seeds=[1, 2]
    )
    assert samples.shape == (2, 1, 8, 8) and bool(samples.isfinite().all())
    assert not torch.equal(samples[0], samples[1])
