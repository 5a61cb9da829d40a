"""Out to diffusers: a run, or a pipeline whose timesteps are shared, as a folder that diffusers opens."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nearzero.codec import Pixels
from nearzero.conditioning import Conditioning, Shared, Timestep
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.files import check_writable, new_folder, safetensors, write_bytes, write_parts
from nearzero.interop.card import Facts, card, run_facts
from nearzero.interop.pipeline_run import KEPT, open_run
from nearzero.interop.pipelines import pipeline_parts, predictor_of
from nearzero.interop.scheduler import is_stock, scheduler
from nearzero.interop.sharing import shared_by
from nearzero.interop.table import has_table, header, with_table
from nearzero.networks.foreign import time_embedding, unwrapped
from nearzero.networks.pretrained import Pretrained, merged
from nearzero.registry import encode
from nearzero.run import Run

MARK = ".nearzero-export"
"""A file in every exported folder: what carries it may be replaced."""


@dataclass(frozen=True)
class Exported:
    """What `to_diffusers` wrote: the folder, "A" (stock classes) or "B" (nearzero's), and the pipeline's class."""

    path: Path
    kind: str
    pipeline: str


def to_diffusers(source: Any, path: str | Path, *, ema: bool | str = True, overwrite: bool = False) -> Exported:
    """Writes a pipeline's folder that diffusers opens, and never without the sharing that the source has.

    `source` is a Run, its folder, or a pipeline whose model `share_timesteps` shared. Export A, wherever it can be:
    stock classes alone, with the numbers that the network is told in a frozen table of timesteps; that takes a
    UNet2DModel that is told integer timesteps of a discrete process. Export B else: a class of nearzero's named in
    model_index.json, which diffusers finds once nearzero is imported and refuses otherwise; a run is then opened by
    nz.NearzeroPipeline.from_pretrained(path), and a shared pipeline by its own class. README.md is a model card.

    `ema` is Run.denoiser's. The folder appears whole or not at all. Raises ArgumentError where `path` exists, unless
    `overwrite` and an export made it; CheckpointError for a source that is none; DiskError.

        nz.to_diffusers("runs/mine", "exported")
        images = diffusers.DDIMPipeline.from_pretrained("exported")(num_inference_steps=50).images
    """
    path = Path(path)
    _check_out(path, overwrite)
    source = open_run(source) if isinstance(source, (str, Path)) else source
    with torch.random.fork_rng(devices=[]):  # models are made with fresh weights first
        if isinstance(source, Run):
            plan = _run(source, ema)
        elif isinstance(getattr(source, "components", None), dict):
            plan = _pipeline(source)
        else:
            raise CheckpointError(f"expected a run, its folder or a pipeline of diffusers, got {type(source).__name__}")
    name = type(plan.pipeline).__name__
    with new_folder(path) as aside:
        plan.pipeline.save_pretrained(aside, safe_serialization=True)
        if plan.header:
            weights = aside / "unet" / "diffusion_pytorch_model.safetensors"
            weights.unlink()
            write_parts(weights, safetensors(plan.pipeline.unet.state_dict(), plan.header))
        write_bytes(aside / "README.md", card(name, plan.kind, plan.told, plan.facts).encode())
        write_bytes(aside / MARK, b"")
    return Exported(path, plan.kind, name)


def _check_out(path: Path, overwrite: bool) -> None:
    check_writable(path)
    if path.is_file():
        raise ArgumentError(f"{path} is a file; name a folder")
    if path.exists() and any(path.iterdir()):
        if not (path / MARK).is_file():
            raise ArgumentError(f"{path} exists and is no export of nearzero's; choose another folder")
        if not overwrite:
            raise ArgumentError(f"{path} exists; choose another folder, or overwrite it (--overwrite)")


@dataclass(frozen=True)
class _Plan:
    """A pipeline to be saved; what the network is told; what the header of its weights and the card say besides."""

    pipeline: Any
    kind: str
    told: Conditioning
    header: dict[str, str]
    facts: Facts


def _run(run: Run, ema: bool | str) -> _Plan:
    """Export A of a run where every axis of it has a stock class, else B."""
    recipe, denoiser = run.recipe, run.denoiser(ema=ema)
    network: Any = denoiser.network
    model = merged(getattr(network, "model", None) or getattr(network, "unet", None))
    facts = run_facts(run, ema)
    stock = is_stock(recipe.process, recipe.parameterization) and recipe.through is None
    if stock and recipe.codec == Pixels() and has_table(recipe.conditioning) and _takes_table(model):
        learned = model.config.out_channels == 2 * model.config.in_channels
        axes = (recipe.process, recipe.parameterization, recipe.solver, recipe.grid)
        made = scheduler(*axes, learned=learned, kept=_kept(run))
        return _table(model, made, recipe.conditioning, facts)
    from nearzero.interop.exported import NearzeroModel, NearzeroPipeline

    whole = NearzeroModel(recipe=encode(replace(recipe, network=_plain(recipe.network))))
    whole.network.load_state_dict(network.state_dict())
    return _Plan(NearzeroPipeline(whole), "B", recipe.conditioning, {}, facts)


def _kept(run: Run) -> dict[str, Any]:
    """What a run records of the scheduler of the pipeline that it began with."""
    told = run.data.get("scheduler")
    told = told if isinstance(told, dict) else {}
    return {name: told[name] for name, kind in KEPT.items() if type(told.get(name)) is kind}


def _plain(network: Any) -> Any:
    """The spec of a network without the LoRA that was merged into it."""
    return replace(network, rank=0) if isinstance(network, Pretrained) else network


def _takes_table(model: Any) -> bool:
    """Whether a model is a UNet2DModel that embeds integer timesteps."""
    return _is_unet(model) and time_embedding(model) in ("positional", "learned")


def _is_unet(model: object) -> bool:
    """Whether a model is a UNet2DModel, or of a class derived from it."""
    return any(kind.__name__ == "UNet2DModel" for kind in type(model).__mro__)


def _table(model: Any, made: Any, told: Conditioning, facts: Facts) -> _Plan:
    """Export A: the pipeline of the scheduler, and the table where the conditioning is shared."""
    import diffusers

    steps = made.config.num_train_timesteps
    shared = told if isinstance(told, Shared) else None
    unet = model if shared is None else with_table(model, shared, steps)
    kind = diffusers.DDIMPipeline if type(made).__name__ == "DDIMScheduler" else diffusers.DDPMPipeline
    pipeline = kind(unet=unet, scheduler=made)
    pipeline.scheduler = made  # DDIMPipeline makes a new one, without what its own class does not know
    return _Plan(pipeline, "A", told, header(shared, steps, model) if shared else {}, facts)


def _pipeline(pipeline: Any) -> _Plan:
    """Export A of a pipeline with a shared UNet2DModel, B of any other that is shared."""
    model, made = pipeline_parts(pipeline)
    model = unwrapped(model)
    shared = shared_by(model)
    if shared is None:
        raise ArgumentError(
            f"the timesteps of this {type(model).__name__} are not shared, so nearzero has nothing to add; save it "
            "with pipeline.save_pretrained, or share_timesteps first"
        )
    if any(hasattr(layer, "get_base_layer") for layer in model.modules()):
        raise ArgumentError(
            "this model holds a LoRA apart; add it to the weights first: pipeline.fuse_lora(), then "
            "pipeline.unload_lora_weights()"
        )
    facts = Facts(source=f"a {type(pipeline).__name__} whose timesteps were shared", rows=())
    steps = made.timesteps  # PNDM has none yet
    whole = not (torch.is_tensor(steps) and steps.is_floating_point())  # a table has no row for Euler's 33.7
    if whole and _takes_table(model) and isinstance(shared.inner, Timestep):
        plan = _table(model, made, shared, facts)
        stock = copy.copy(pipeline)
        stock.register_modules(unet=plan.pipeline.unet)
        return replace(plan, pipeline=stock)
    from nearzero.interop.exported import with_sharing

    part, copied = predictor_of(pipeline), copy.copy(pipeline)
    copied.register_modules(**{part: with_sharing(model, shared)})
    return _Plan(copied, "B", shared, {}, facts)
