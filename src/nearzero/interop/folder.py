"""A pipeline's folder, read without running anything that it holds: JSON, safetensors, classes of a closed table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nearzero.errors import CheckpointError
from nearzero.files import MAX_JSON_BYTES
from nearzero.interop.models import ARCHITECTURES
from nearzero.interop.schedule import SCHEDULERS
from nearzero.process.discrete import MAX_STEPS

PIPELINES = {
    **dict.fromkeys(("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "LDMPipeline", "ScoreSdeVePipeline"), "unet"),
    **dict.fromkeys(("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"), "unet"),
    **dict.fromkeys(("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"), "unet"),
    **dict.fromkeys(("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"), "transformer"),
    **dict.fromkeys(("FluxPipeline", "FluxImg2ImgPipeline"), "transformer"),
    **dict.fromkeys(("PixArtAlphaPipeline", "PixArtSigmaPipeline", "DiTPipeline"), "transformer"),
}
"""The closed table: class of a pipeline -> the component that predicts."""

OLD = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
"""What diffusers once saved as Transformer2DModel, by its norm_type."""

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
WANTED = ("*.json", "diffusion_pytorch_model*.safetensors")


def predictor(name: object) -> str:
    """The component of a pipeline that predicts. Raises CheckpointError for an unknown class."""
    if not isinstance(name, str) or name not in PIPELINES:
        raise CheckpointError(f"{name} is no pipeline that nearzero knows; known: {', '.join(PIPELINES)}")
    return PIPELINES[name]


def load(folder: Path) -> tuple[Any, Any]:
    """(model, scheduler) of a pipeline's folder; text encoders and VAE are not read.

    Raises CheckpointError for an unknown or foreign class, pickled or incomplete weights, and what is missing.
    """
    index = _object(folder / "model_index.json", "give the folder of a whole pipeline, or a pair (model, scheduler)")
    part = predictor(index.get("_class_name"))
    return _model(folder, part, index.get(part)), _scheduler(folder, index.get("scheduler"))


def download(repository: str) -> Path:
    """The folder of a pipeline of the hub: its configs and the safetensors of its predictor, and nothing else."""
    from huggingface_hub import snapshot_download

    places = ("unet/", "transformer/", "scheduler/")
    wanted = ["model_index.json", *(f"{place}{pattern}" for place in places for pattern in WANTED)]
    return Path(snapshot_download(repository, allow_patterns=wanted, ignore_patterns=["*.fp16.*", "*.non_ema.*"]))


def _object(path: Path, remedy: str) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {remedy}")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path} has more than {MAX_JSON_BYTES:,} bytes; {remedy}")
    try:
        found = json.loads(
            path.read_text(encoding="utf-8")
        )  # diffusers writes -Infinity, which files.read_json refuses
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no valid JSON; {remedy}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object; {remedy}")
    return found


def _class(entry: object, what: str, known: tuple[str, ...]) -> str:
    """The class of diffusers that model_index.json names. Raises CheckpointError for a class of anything else."""
    if not (isinstance(entry, list) and len(entry) == 2 and entry[0] == "diffusers" and entry[1] in known):
        raise CheckpointError(f"model_index.json names {entry} as {what}; known, of diffusers: {', '.join(known)}")
    return entry[1]


def _place(folder: Path, part: str) -> Path:
    return folder / part if (folder / part).is_dir() else folder  # the first pipelines kept all files in one


def _model(folder: Path, part: str, entry: object) -> Any:
    import diffusers

    name = _class(entry, part, (*ARCHITECTURES, "Transformer2DModel"))
    place = _place(folder, part)
    config = _object(place / "config.json", "save the model anew with save_pretrained")
    inside = str(config.get("_class_name", name))
    if inside != name and {inside, name} & {"Transformer2DModel"} == set():
        raise CheckpointError(f"{place / 'config.json'} is of a {inside}, model_index.json says {name}; restore one")
    if name == "Transformer2DModel":
        name = OLD.get(str(config.get("norm_type")), inside)
    if name not in ARCHITECTURES:
        raise CheckpointError(f"{place}: {name} is no model that nearzero knows; known: {', '.join(ARCHITECTURES)}")
    _check_weights(place)
    try:
        model, report = getattr(diffusers, name).from_pretrained(
            place, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # a wrong config fails in as many ways as there are options
        reason = _first_line(error)
        raise CheckpointError(
            f"{place}: diffusers cannot load this {name}: {reason}; restore or save it anew"
        ) from error
    if missing := report["missing_keys"]:
        raise CheckpointError(f"{place}: {len(missing)} weights are missing, {sorted(missing)[0]} first; restore them")
    return model


def _check_weights(place: Path) -> None:
    """Raises CheckpointError unless the weights are safetensors, in one file or in the files that an index names."""
    index = place / "diffusion_pytorch_model.safetensors.index.json"  # which diffusers prefers to the one file
    if index.is_file() or not (place / "diffusion_pytorch_model.safetensors").is_file():
        if not index.is_file():
            pickled = sorted(path.name for pattern in PICKLED for path in place.glob(pattern))
            if pickled:
                raise CheckpointError(
                    f"{place / pickled[0]} is a pickle, which can run code when it is read; if you trust it, load it "
                    "with diffusers elsewhere and save it with save_pretrained(folder, safe_serialization=True)"
                )
            raise CheckpointError(f"{place} holds no diffusion_pytorch_model.safetensors; save it with save_pretrained")
        shards = _object(index, "save the model anew").get("weight_map")
        for name in shards.values() if isinstance(shards, dict) else [None]:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(f"{index} names {name!r}, no safetensors file beside it; save the model anew")


def _scheduler(folder: Path, entry: object) -> Any:
    import diffusers

    name = _class(entry, "scheduler", SCHEDULERS)
    place = _place(folder, "scheduler")
    config = _object(place / "scheduler_config.json", "save the pipeline's scheduler with save_pretrained")
    steps = config.get("num_train_timesteps", 1000)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise CheckpointError(f"{place}: num_train_timesteps is {steps!r:.100}, not 1 to {MAX_STEPS:,}; save it anew")
    try:
        return getattr(diffusers, name).from_config(config)
    except Exception as error:  # a wrong config fails in as many ways as there are options
        reason = _first_line(error)
        raise CheckpointError(f"{place}: diffusers cannot make this {name}: {reason}; save it anew") from error


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
