"""One step of training: the gradient of the mean loss of a batch, and whether it may change the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nearzero.data.images import Images
from nearzero.randomness import Stream, uniform
from nearzero.recipe import Recipe
from nearzero.training.draws import examples, network_seed, samples
from nearzero.training.guards import Action, Guard, is_finite
from nearzero.training.state import TrainingState


class Progress(NamedTuple):
    """Where training is: steps done; of the last one the losses (batch,), times (batch,) and gradient's norm ().

    Losses and norm are on the device. `action` is "go", or what the guard said of a step that changed no weight.
    """

    step: int
    loss: Tensor
    t: Tensor
    norm: Tensor
    action: Action


def times(state: TrainingState, recipe: Recipe, seed: int) -> Tensor:
    """The times float64 (B,) of the whole batch of the next step, however it is split: some look at all of it."""
    u = uniform(seed, Stream.TIME, samples(recipe, state.step))
    objective: Any = state.objective
    return objective.times(u, state.denoiser.process)


def gradient(state: TrainingState, recipe: Recipe, images: Images, seed: int, t: Tensor) -> Tensor:
    """Leaves the gradient of the next step's mean loss in the weights; the losses (B,) of the batch at times t."""
    engine, device, index = state.engine, state.device, samples(recipe, state.step)
    rows, losses = engine.rows(recipe.training.batch), []
    state.forget()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for part in rows:
            x0, eps = examples(recipe, images, seed, index[part], device)
            torch.manual_seed(network_seed(seed, state.step, part.start))  # for what the network draws, as dropout does
            losses.append(engine.backward(state.losses, x0, t[part], eps, last=part is rows[-1]))
    return engine.gather(torch.cat(losses))


def steps(
    state: TrainingState, recipe: Recipe, images: Images, seed: int, guard: Guard | None = None
) -> Iterator[Progress]:
    """Trains from state.step to recipe.training.steps, one step for each item; what is not finite is left out."""
    guard = Guard() if guard is None else guard
    while state.step < recipe.training.steps:
        t = times(state, recipe, seed)
        loss = gradient(state, recipe, images, seed, t)
        norm = state.clip()
        action = judge(state, guard, loss, norm)
        state.apply() if action == "go" else state.skip()
        yield Progress(state.step, loss, t, norm, action)


def judge(state: TrainingState, guard: Guard, loss: Tensor, norm: Tensor) -> Action:
    """What all processes do with a step, before any weight has seen its gradient."""
    fine, scale = bool(is_finite(loss, norm)), state.engine.scale
    overflow = not fine and scale is not None and scale > 1 and bool(loss.isfinite().all())
    bad, hard = state.engine.any(not fine, not fine and not overflow)
    return guard.check(not bad, overflow=bad and not hard)
