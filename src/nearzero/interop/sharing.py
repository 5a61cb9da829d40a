"""E-TSDM on a model of diffusers, at run time: a hook on the module that embeds the timestep."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from nearzero.conditioning import LogSigma, Shared, Time, Timestep
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.interop.pipelines import pipeline_parts
from nearzero.interop.schedule import read_schedule
from nearzero.networks.foreign import Asked, architecture, embedding_modules, time_embedding, unwrapped
from nearzero.process import KarrasVE, StraightPath


class Stairs:
    """A forward pre-hook that tells a module, in place of its first argument, the number of its cell.

    The edges and numbers are what `shared` itself tells at the cells' edges: c in (edges[j-1], edges[j]] is told
    told[j], and c above the last edge itself. Compared in float32 at least; the dtype and device are c's. A Fourier
    model's sigma within a relative 1e-6 above an edge counts as on it: so far off comes float32's log sigma back.
    """

    def __init__(self, shared: Shared, *, fourier: bool, end: float) -> None:
        self.shared = shared
        process = KarrasVE(end) if fourier else StraightPath()
        times = torch.tensor(
            shared.edges(process), dtype=torch.float64, device="cpu"
        )  # also where models are made on meta
        level = process(times)
        alone, told = shared.inner(times, level), shared(times, level)
        near = 1 + 1e-6  # the rounding that the docstring states
        edges, numbers = (alone.exp() * near, told.exp()) if fourier else (alone, told)
        above = edges.new_tensor([[torch.inf], [0.0]])  # one more cell, which keeps its own numbers
        self._exact = self._here = torch.cat([torch.stack([edges, numbers]), above], dim=1)

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The hook."""
        c, *others = arguments
        return (self.share(c), *others)

    def share(self, c: Tensor) -> Tensor:
        """Model times, told by cells."""
        wide = c.to(torch.promote_types(c.dtype, torch.float32)).contiguous()
        if (self._here.device, self._here.dtype) != (wide.device, wide.dtype):  # once, not at each call
            self._here = self._exact.to(wide.dtype).to(wide.device)
        edges, told = self._here
        cell = torch.bucketize(wide, edges[:-1])
        return torch.where(cell < len(edges) - 1, told[cell].to(c.dtype), c)


class Sharing:
    """A model whose timesteps are shared, until `unshare` or the end of a with block.

    `conditioning` is the Shared that the model is told, `modules` the names of the modules with a hook.
    """

    def __init__(self, model: nn.Module, conditioning: Shared, modules: tuple[str, ...]) -> None:
        self.model, self.conditioning, self.modules = model, conditioning, modules

    def __enter__(self) -> Sharing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove(self.model)


def share_timesteps(source: Any, *, interval: float, cells: int, steps: int = 1000) -> Any:
    """Tells a model of diffusers one timestep for each cell near t = 0, as E-TSDM does; the weights stay as they are.

    `source` is a model, a pipeline, or what `from_diffusers` made. A hook on the module that embeds the timestep, and
    on no other, replaces the number: `Shared(Timestep(steps), interval=interval, cells=cells)` for models of DDPM's
    kind. `interval` is in the model's timesteps: of flow matching in sigma * steps, of a model with a Fourier
    embedding in sigma itself, whose first cell is told its upper edge. Every stage of a solver's step is told its own
    cell: for two-stage solvers give Shared to the Denoiser instead, and not both. save_pretrained saves no hook:
    `to_diffusers` writes what is shared. For a model that takes no hook give a scheduler (`share_scheduler`).

        with nz.share_timesteps(pipeline, interval=100, cells=5):
            images = pipeline(num_inference_steps=50).images

    Raises CheckpointError for a model that is shared already, or unknown; ArgumentError for cells that are none.
    Reference: Yang et al., Lipschitz singularities in diffusion models, ICLR 2024, Algorithm A2.
    """
    from nearzero.interop.shared_scheduler import is_scheduler, share_scheduler

    if is_scheduler(source):
        return share_scheduler(source, interval=interval, cells=cells, steps=steps)
    model, flow, known = _find(source)
    modules = embedding_modules(model)
    fourier = time_embedding(model) == "fourier"
    if known is not None and known != steps and not fourier:
        raise ArgumentError(f"this model counts {known} timesteps, not {steps}; say steps={known}")
    if _hooks(model):
        raise CheckpointError(f"this {type(model).__name__} is shared already; unshare it first")
    if time_embedding(model) == "learned" and has_equal_rows(model):
        raise CheckpointError(
            f"this {type(model).__name__} is shared already, by its table of timesteps; open the folder that "
            "nearzero exported with from_diffusers, which gives the model that it was made of"
        )
    if isinstance(getattr(source, "conditioning", None), Shared):
        raise CheckpointError(
            "this Denoiser is shared already, by its conditioning; a hook would share what it tells again"
        )
    shared = shared_condition(interval, cells, steps, flow=flow, fourier=fourier)
    stairs = Stairs(shared, fourier=fourier, end=float(interval))
    for module in modules.values():
        module.register_forward_pre_hook(stairs)
    _forget_compiled()
    return Sharing(model, shared, tuple(modules))


def unshare(source: Any) -> None:
    """Undoes `share_timesteps`, without a trace. Raises ArgumentError for a model that is not shared."""
    from nearzero.interop.shared_scheduler import is_scheduler, unshare_scheduler

    if is_scheduler(source):
        return unshare_scheduler(source)
    model = _find(source)[0]
    if not _remove(model):
        raise ArgumentError(f"this {type(model).__name__} is not shared")


def has_equal_rows(model: nn.Module) -> bool:
    """Whether a table of timesteps tells one number at two neighbouring timesteps."""
    table: Any = model.get_parameter("time_proj.weight")
    return bool((table[1:] == table[:-1]).all(1).any())


def arguments(shared: Shared) -> dict[str, float]:
    """What `share_timesteps` is called with to share so: interval, cells and, of timesteps, steps."""
    inner, interval = shared.inner, shared.interval
    if isinstance(inner, Timestep):
        return {"interval": interval, "cells": shared.cells, "steps": inner.steps}
    if isinstance(inner, Time):  # of flow matching, counted in sigma
        steps = round(inner.scale)
        return {"interval": round(interval * steps, 9), "cells": shared.cells, "steps": steps}
    return {"interval": interval, "cells": shared.cells}


def shared_condition(interval: float, cells: int, steps: int, *, flow: bool, fourier: bool) -> Shared:
    """The Shared that a model of diffusers is told; `interval` counts its own timesteps, a Fourier model's in sigma."""
    if fourier:
        return Shared(LogSigma(1.0), interval=interval, cells=cells)
    inner = Timestep(steps)
    if not flow:
        return Shared(inner, interval=interval, cells=cells)
    if not 0 < interval <= inner.steps:
        raise ArgumentError(f"an interval of {interval} is none of the {steps} timesteps; take one in (0, {steps}]")
    return Shared(Time(float(steps)), interval=interval / steps, cells=cells)


def _find(source: Any) -> tuple[nn.Module, bool, int | None]:
    """The model, whether it is told flow matching's times, and how many timesteps it counts, where that is known."""
    if isinstance(source, nn.Module):
        asked = {id(part.model): part for part in source.modules() if isinstance(part, Asked)}
        if len(asked) > 1:
            raise ArgumentError(f"this {type(source).__name__} holds {len(asked)} models; share them one by one")
        for part in asked.values():
            return unwrapped(part.model), part.flow, part.steps
        return unwrapped(source), architecture(source).flow, None
    if isinstance(getattr(source, "components", None), dict):
        model, scheduler = pipeline_parts(source)
        schedule = read_schedule(type(scheduler).__name__, dict(scheduler.config))
        return unwrapped(model), schedule.flow, schedule.steps
    architecture(source)  # which raises, naming those that are known
    raise AssertionError


def shared_by(model: nn.Module) -> Shared | None:
    """How `share_timesteps` shares a model's timesteps; None where it does not."""
    hooks = (hook for module, key in _hooks(model) if isinstance(hook := module._forward_pre_hooks[key], Stairs))
    return next((hook.shared for hook in hooks), None)


def _hooks(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """Every module with our hook, a deep copy's too, and the hook's key."""
    return [
        (module, key)
        for module in model.modules()
        for key, hook in module._forward_pre_hooks.items()
        if isinstance(hook, Stairs)
    ]


def _remove(model: nn.Module) -> bool:
    """Takes our hooks away, and says whether there were any."""
    found = _hooks(model)
    for module, key in found:
        del module._forward_pre_hooks[key]
    if found:
        _forget_compiled()
    return bool(found)


def _forget_compiled() -> None:
    """Compiled code does not look for hooks that came or went: it is compiled anew at the next call."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
