"""Recipes are the papers' tables, they survive JSON, and their network runs."""

import json
import math
import re
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nearzero as nz
from conftest import tiny_recipe
from nearzero import recipes
from nearzero.errors import ArgumentError
from nearzero.recipes import EMA, PRESETS, RECIPES, Recipe, Training, differences, named, paper, small
from nearzero.registry import decode, encode

every = pytest.mark.parametrize("recipe", [make() for make in RECIPES.values()], ids=RECIPES)
both = pytest.mark.parametrize("recipe", [recipes.ddpm(), recipes.etsdm()], ids=["ddpm", "etsdm"])


def parameters(spec):
    """How many parameters a network has, without memory for them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in spec.build().parameters())


def test_e_tsdm_differs_from_ddpm_in_the_condition_alone():
    """E-TSDM's contribution is one line: the condition is shared in 5 cells of [0, 100)."""
    assert differences(recipes.ddpm(), recipes.etsdm()) == {
        "conditioning": (nz.Timestep(1000), nz.Shared(nz.Timestep(1000), interval=100, cells=5))
    }
    assert (
        replace(recipes.ddpm(), name="etsdm", conditioning=nz.Shared(nz.Timestep(1000), interval=100, cells=5))
        == recipes.etsdm()
    )


def test_differences_name_every_field_that_differs():
    """differences(a, a) is empty, and one changed field is found whichever it is, with its old and new value."""
    a = recipes.ddpm()
    other = {
        "process": nz.LinearVP(), "parameterization": nz.Velocity(), "conditioning": nz.Time(), "times": nz.UniformTimes(),
        "solver": nz.DDIM(), "grid": nz.UniformGrid(), "steps": 50, "network": tiny_recipe().network, "training": tiny_recipe().training,
        "weighting": nz.MinSNR(), "codec": nz.Centred((0.1,)), "penalty": 0.1,
        "uncertainty": 4, "dither": True, "through": nz.Through(nz.LinearVP()),
    }  # fmt: skip
    assert differences(a, a) == differences(a, replace(a, name="other")) == {}
    for name, value in other.items():
        assert differences(a, replace(a, **{name: value})) == {name: (getattr(a, name), value)}
    assert {f.name for f in fields(Recipe)} - set(other) == {"name"}


@both
def test_table_a1(recipe):
    """E-TSDM, Table A1: 1000 steps, beta 1e-4 to 0.02, batch 96, rate 1e-4, base 128, 1,1,2,2,4,4, heads of 64, attention at 32, 16, 8."""
    node = torch.arange(1, 1001, dtype=torch.float64) / 1000
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    torch.testing.assert_close(recipe.process(node).alpha ** 2, alpha_bar, rtol=1e-10, atol=0)
    network, training = recipe.network, recipe.training
    assert (training.batch, training.learning_rate, training.ema.decay) == (96, 1e-4, 0.9999)
    assert (network.size, network.channels, network.base, network.blocks) == (256, 3, 128, 2)
    assert (network.multipliers, network.attention, network.head_channels) == ((1, 1, 2, 2, 4, 4), (32, 16, 8), 64)
    assert (recipe.parameterization, recipe.times, recipe.weighting) == (nz.Epsilon(), nz.DiscreteTimes(), nz.Simple())


def test_table_a1_of_e_tsdm():
    """Interval 100 and 5 cells: timesteps 0..99 are told 0, 20, 40, 60 or 80, later ones themselves."""
    k = torch.arange(1000)
    told = recipes.etsdm().conditioning((k + 1).double() / 1000, None)
    assert told.tolist() == [n // 20 * 20 if n < 100 else n for n in range(1000)]


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (recipes.ddpm().network, 138_286_467),
        (replace(recipes.ddpm().network, multipliers=(1, 1, 2, 4, 6, 8), blocks=4, time_channels=2048), 725_956_227),
        (small(recipes.etsdm(), 16, 1).network, 701_345),
        (small(recipes.etsdm(), 28, 1).network, 1_112_801),
        (tiny_recipe().network, 32_609),
    ],
)
def test_parameter_counts(spec, count):
    """The networks have exactly the parameters of ADM's code and of the docstrings."""
    assert parameters(spec) == count


@every
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_recipe_survives_json(recipe, preset, channels):
    """decode(loads(dumps(encode(recipe)))) == recipe for every recipe and preset."""
    fitted = PRESETS[preset](recipe, 32, channels)
    assert decode(json.loads(json.dumps(encode(fitted), allow_nan=False))) == fitted


@every
def test_presets_keep_the_axes(recipe):
    """paper changes nothing but the images' size; small changes network, training and sampling, no axis of training."""
    assert differences(recipe, paper(recipe, recipe.network.size, 3)) == {}
    assert differences(recipe, paper(recipe, 64, 1)) == {
        "network": (recipe.network, replace(recipe.network, size=64, channels=1))
    }
    changed = set(differences(recipe, small(recipe, 32, 3)))
    ancestral = {"solver", "steps"} if recipe.solver == nz.Ancestral("upper") else set()
    assert {"network", "training"} | ancestral <= changed <= {"network", "training", "solver", "steps"}
    assert "solver" not in changed or ancestral


@pytest.mark.parametrize(("size", "innermost"), [(8, 4), (16, 8), (28, 7), (32, 8), (64, 8), (256, 8)])
def test_small_halves_to_eight_pixels(size, innermost):
    """small halves an image until at most 8 pixels are left, at least once, and attends there."""
    network = small(recipes.ddpm(), size, 1).network
    assert size >> len(network.multipliers) - 1 == innermost
    assert network.attention == (innermost,)


@pytest.mark.parametrize(
    ("preset", "size", "near"),
    [
        ("small", 30, "28 or 32"),
        ("small", 9, "8 or 10"),
        ("small", 50, "48 or 56"),
        ("paper", 30, "32"),
        ("paper", 100, "64 or 128"),
        ("paper", 96, "64 or 128"),
    ],
)
def test_a_size_that_cannot_be_halved_is_refused(preset, size, near):
    """The message names the size and the nearest ones that fit, and these do fit."""
    with pytest.raises(ArgumentError, match=f"image size {size} .*use --size {near}$"):
        PRESETS[preset](recipes.etsdm(), size, 1)
    for fits in near.split(" or "):
        assert PRESETS[preset](recipes.etsdm(), int(fits), 1).network.size == int(fits)


@given(st.integers(1, 10**6), st.floats(0, 0.99999), st.floats(1, 1000))
def test_the_average_ramps_up(step, decay, ramp):
    """beta(n) = min(decay, (1 + n) / (ramp + n)): it never falls, never exceeds decay, and at ramp 1 is decay at once."""
    ema = EMA(decay, ramp)
    assert ema.beta(step) == min(decay, (1 + step) / (ramp + step))
    assert 0 <= ema.beta(step) <= ema.beta(step + 1) <= decay
    assert EMA(decay, 1.0).beta(step) == decay


def test_the_first_average_is_mostly_the_new_weights():
    """With the default ramp of 10 the first step keeps 2/11 of the old average, step 100 keeps 101/110, the end 0.9999."""
    ema = EMA()
    assert (ema.beta(1), ema.beta(100), ema.beta(10**6)) == (2 / 11, 101 / 110, 0.9999)


def bad(make, **values):
    return pytest.param(make, values, id=f"{make.__name__} {values}")


@pytest.mark.parametrize(
    ("make", "values"),
    [
        *[bad(EMA, decay=value) for value in (-0.1, 1.0, 1.5, math.nan)],
        *[bad(EMA, ramp=value) for value in (0.0, 0.99, -10, math.nan)],
        *[bad(Training, steps=value) for value in (0, -1, 2.5, True, "10")],
        *[bad(Training, batch=value) for value in (0, -1, 2.5, True, None)],
        *[bad(Training, warmup=value) for value in (-1, 2.5, True, None)],
        *[bad(Training, clip=value) for value in (0.0, -1.0, math.inf, math.nan)],
        *[bad(Training, learning_rate=value) for value in (0.0, -1e-4, math.inf, math.nan)],
        *[
            bad(nz.UNet, **{name: value})
            for name in ("size", "channels", "base", "blocks", "head_channels", "time_channels")
            for value in (0, -1, 1.5)
        ],
        bad(nz.UNet, multipliers=()),
        bad(nz.UNet, multipliers=(1, 0)),
        bad(nz.UNet, base=48),
        bad(nz.UNet, base=96),
        bad(nz.UNet, head_channels=48),
        bad(nz.UNet, resample="nearest"),
        bad(nz.UNet, attention=(33,)),
    ],
)
def test_bad_values_are_refused(make, values):
    """A value outside its law raises ArgumentError, one line that names the value, when the object is made."""
    usual = {"steps": 1, "batch": 1, "learning_rate": 1e-3, "flip": False} if make is Training else {}
    with pytest.raises(ArgumentError) as caught:
        make(**{**usual, **values})
    message = str(caught.value)
    assert "\n" not in message and all(str(value) in message for value in values.values())


def test_an_unknown_recipe_is_named_with_its_neighbour():
    """A misspelt recipe raises ArgumentError with the nearest name; one like no other, with all of them."""
    with pytest.raises(ArgumentError, match=re.escape("unknown recipe 'etsmd'; did you mean 'etsdm'?") + "$"):
        named("etsmd")
    with pytest.raises(ArgumentError, match="known: " + ", ".join(sorted(RECIPES)) + "$"):
        named("zebra")
    assert {name: named(name).name for name in RECIPES} == {name: name for name in RECIPES}


# ---- the network


def shaken(network, seed=0):
    """The network with every parameter moved: nothing is zero any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


specs = pytest.mark.parametrize(
    "spec",
    [
        *[small(recipes.etsdm(), size, channels).network for size, channels in ((8, 1), (16, 1), (28, 1), (32, 3))],
        nz.UNet(16, 3, 32, (1, 2), 1, (8,), 32, time_channels=64),
    ],
    ids=lambda spec: f"{spec.size}x{spec.channels}{spec.resample}",
)


@specs
@torch.no_grad()
def test_the_network_says_zero_at_first_and_listens_later(spec):
    """A fresh network answers exactly 0; once its weights move, every example's answer changes with its own condition and image only."""
    torch.manual_seed(0)
    network = spec.build().eval()
    generator = torch.Generator().manual_seed(1)
    x, c = torch.randn(3, spec.channels, spec.size, spec.size, generator=generator), torch.tensor([0.0, 20.0, 999.0])
    assert torch.equal(network(x, c), torch.zeros_like(x))
    F = shaken(network)(x, c)
    assert F.shape == x.shape and F.dtype == x.dtype
    other = network(x, torch.tensor([0.0, 40.0, 999.0]))
    rounding, heard = 1e-5 * F.abs().max(), 1e-3 * F.abs().max()
    assert (F[1] - other[1]).abs().max() > heard
    assert (F - other)[::2].abs().max() < rounding
    assert (network(x[[1, 0, 2]], c[[1, 0, 2]])[1] - F[0]).abs().max() < rounding


@torch.no_grad()
def test_a_fraction_of_a_timestep_is_heard():
    """The condition is a real number, not cut to an integer: 33.7 is neither 33 nor 34."""
    torch.manual_seed(0)
    network = shaken(tiny_recipe().network.build().eval())
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    answers = [network(x, torch.tensor([c])) for c in (33.0, 33.7, 34.0)]
    assert len({answer.sum().item() for answer in answers}) == 3


def test_fresh_weights_come_from_torchs_generator():
    """The seed of torch's global generator decides the weights, and nothing else does."""
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(torch.cat([parameter.flatten() for parameter in tiny_recipe().network.build().parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_denoiser_is_made_of_the_recipes_axes():
    """recipe.denoiser(network) puts the network behind the recipe's process, parameterization and conditioning."""
    recipe, network = tiny_recipe(), torch.nn.Identity()
    denoiser = recipe.denoiser(network)
    assert denoiser.network is network
    assert (denoiser.process, denoiser.parameterization, denoiser.conditioning) == (
        recipe.process,
        recipe.parameterization,
        recipe.conditioning,
    )
    assert (recipe.objective().times, recipe.objective().weighting) == (recipe.times, recipe.weighting)
