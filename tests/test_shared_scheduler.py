"""A scheduler that hands out shared timesteps: exactly the hook's numbers at the same noise levels, refused where it would be wrong."""

import inspect

import diffusers
import pytest
import torch

import nearzero as nz
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.interop.schedule import SCHEDULERS
from nearzero.interop.shared_scheduler import BY_INDEX
from nearzero.interop.sharing import share_timesteps, unshare
from test_export import IMAGE, stock

PAPER = {"interval": 100, "cells": 5}


def made(name):
    kind = getattr(diffusers, name)
    spaced = "timestep_spacing" in inspect.signature(kind.__init__).parameters
    return kind(**({"timestep_spacing": "trailing"} if spaced else {}))


def drawn(model, scheduler, steps):
    """A pipeline's loop of `steps` steps around the model."""
    torch.manual_seed(0)  # some schedulers take noise from torch's own generator
    x = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    with torch.no_grad():
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(model(seen, t).sample, t, x).prev_sample
    return x


NAMES = [name for name in BY_INDEX if "dummy" not in getattr(diffusers, name).__module__]
"""Without those that diffusers makes only with scipy or torchsde."""


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of diffusers, with NumPy 2
@pytest.mark.parametrize(("name", "steps"), [*((name, 23) for name in NAMES), *((name, 100) for name in NAMES[-3:])])
def test_it_is_the_hook(name, steps):
    """Model with scheduler shared = shared model with scheduler, bit for bit; alone both are another image; undone it is as before."""
    model, scheduler = stock().unet, made(name)
    alone = drawn(model, made(name), steps)
    with share_timesteps(scheduler, **PAPER) as sharing:
        by_scheduler = drawn(model, scheduler, steps)
        assert isinstance(sharing.conditioning, nz.Shared)
    with share_timesteps(model, **PAPER):
        by_hook = drawn(model, made(name), steps)
    assert torch.equal(by_scheduler, by_hook)
    assert not torch.equal(alone, by_scheduler)
    other = made(name)
    for one in (scheduler, other):
        one.set_timesteps(steps)
    assert torch.equal(scheduler.timesteps, other.timesteps)


def test_most_schedulers_are_tried():
    """Only what needs scipy or torchsde is left out."""
    assert len(NAMES) >= 10 and set(BY_INDEX) <= set(SCHEDULERS)


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - set(BY_INDEX)))
def test_it_is_refused_where_the_timestep_names_the_noise_level(name):
    """DDIM, DDPM and PNDM would take the cell's noise level too: an error that says what to do."""
    with pytest.raises(ArgumentError, match="finds its noise levels by the timesteps themselves.*share the model"):
        share_timesteps(getattr(diffusers, name)(), **PAPER)


def test_it_is_not_saved_shared_twice_or_for_other_timesteps(tmp_path):
    """Each an error of one line; a config cannot say that timesteps are shared, so saving is one too."""
    scheduler = diffusers.EulerDiscreteScheduler()
    share_timesteps(scheduler, **PAPER)
    with pytest.raises(CheckpointError, match="shared already"):
        share_timesteps(scheduler, **PAPER)
    with pytest.raises(ArgumentError, match="unshare it before you save it"):
        scheduler.save_pretrained(tmp_path)
    unshare(scheduler)
    scheduler.save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="is not shared"):
        unshare(scheduler)
    with pytest.raises(ArgumentError, match="counts 500 timesteps"):
        share_timesteps(diffusers.EulerDiscreteScheduler(num_train_timesteps=500), **PAPER)
