"""A pipeline's folder, read without running anything that it holds: JSON, safetensors, classes of a closed table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from nearzero.conditioning import Shared
from nearzero.errors import CheckpointError
from nearzero.files import MAX_JSON_BYTES
from nearzero.interop.pipelines import predictor
from nearzero.interop.schedule import SCHEDULERS
from nearzero.interop.sharing import shared_by, unshare
from nearzero.interop.table import without_table
from nearzero.networks.foreign import ARCHITECTURES
from nearzero.process.discrete import MAX_STEPS
from nearzero.run import check_recipe

OLD = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
"""What diffusers once saved as Transformer2DModel, by its norm_type."""

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
WANTED = ("*.json", "diffusion_pytorch_model*.safetensors")


def vae(folder: Path) -> Any:
    """The AutoencoderKL of a pipeline's folder. Raises CheckpointError for another class, and as `load` does."""
    import diffusers

    name = _class(read_index(folder).get("vae"), "vae", ("AutoencoderKL",))
    place = _place(folder, "vae")
    _object(place / "config.json", "save the VAE anew with save_pretrained")
    _check_weights(place)
    return _pretrained(getattr(diffusers, name), place)


RUN = "NearzeroPipeline"
"""The class of a pipeline that holds a run, with axes that no scheduler of diffusers has."""


def holds_run(folder: Path) -> bool:
    """Whether a pipeline's folder is an exported run. Raises CheckpointError where it is no pipeline's."""
    return read_index(folder).get("_class_name") == RUN


def load_run(folder: Path) -> Any:
    """The NearzeroModel of an exported run. Raises CheckpointError where it is incomplete or damaged."""
    from nearzero.interop.exported import NearzeroModel

    place = folder / "model"
    _object(place / "config.json", "export the run anew")
    _check_weights(place)
    model = _pretrained(NearzeroModel, place)
    check_recipe(model.recipe, place)
    return model


def load(folder: Path) -> tuple[Any, Any, Shared | None]:
    """(model, scheduler, sharing) of a pipeline's folder; text encoders and VAE are not read.

    Where the folder is an export of nearzero's with shared timesteps, the model is the one that was shared, without a
    table or a hook, and `sharing` is what it is to be told. Raises CheckpointError for an unknown or foreign class,
    pickled or incomplete weights, and what is missing.
    """
    index = read_index(folder)
    part = predictor(index.get("_class_name"))
    model, sharing = _model(folder, part, index.get(part))
    return model, _scheduler(folder, index.get("scheduler")), sharing


def read_index(folder: Path) -> dict[str, Any]:
    """The content of model_index.json. Raises CheckpointError."""
    return _object(folder / "model_index.json", "give the folder of a whole pipeline, or a pair (model, scheduler)")


def weights_of(folder: Path) -> Path:
    """The file of the predicting model's weights, or the index that names its parts."""
    index = read_index(folder)
    part = "model" if holds_run(folder) else predictor(index.get("_class_name"))
    place = _place(folder, part)
    parts = place / "diffusion_pytorch_model.safetensors.index.json"  # which diffusers prefers to the one file
    return parts if parts.is_file() else place / "diffusion_pytorch_model.safetensors"


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
    """The class of diffusers that model_index.json names, or of which it names nearzero's Shared one.

    Raises CheckpointError for a class of anything else.
    """
    library, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
    if library == "nearzero" and isinstance(name, str) and name.removeprefix("Shared") in ARCHITECTURES:
        return name
    if library != "diffusers" or name not in known:
        raise CheckpointError(
            f"model_index.json names {entry!r:.200} as {what}; known, of diffusers: {', '.join(known)}"
        )
    return name


def _place(folder: Path, part: str) -> Path:
    return folder / part if (folder / part).is_dir() else folder  # the first pipelines kept all files in one


def _model(folder: Path, part: str, entry: object) -> tuple[Any, Shared | None]:
    """The model of a folder, and how its export shared it."""
    name = _class(entry, part, (*ARCHITECTURES, "Transformer2DModel"))
    place = _place(folder, part)
    config = _object(place / "config.json", "save the model anew with save_pretrained")
    inside = str(config.get("_class_name", name))
    if inside != name and {inside, name} & {"Transformer2DModel"} == set():
        raise CheckpointError(f"{place / 'config.json'} is of a {inside}, model_index.json says {name}; restore one")
    if name == "Transformer2DModel":
        name = OLD.get(str(config.get("norm_type")), inside)
    if name.removeprefix("Shared") not in ARCHITECTURES:
        raise CheckpointError(f"{place}: {name} is no model that nearzero knows; known: {', '.join(ARCHITECTURES)}")
    _check_weights(place)
    model = _weights(place, name)
    if name.startswith("Shared"):
        sharing = shared_by(model)
        unshare(model)
        return model, sharing
    return without_table(model, _metadata(place))


def _weights(place: Path, name: str) -> Any:
    """The model of a class, with all its weights."""
    import diffusers

    from nearzero.interop.exported import SHARED

    return _pretrained(SHARED.get(name) or getattr(diffusers, name), place)


def _pretrained(kind: Any, place: Path) -> Any:
    """What a class of diffusers' kind loads. Raises CheckpointError where a weight is missing or does not fit."""
    try:
        model, report = kind.from_pretrained(
            place, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except MemoryError:
        raise
    except Exception as error:  # a wrong config fails in as many ways as there are options
        reason = _first_line(error)
        raise CheckpointError(
            f"{place}: diffusers cannot load this {kind.__name__}: {reason}; restore or save it anew"
        ) from error
    if missing := report["missing_keys"]:
        raise CheckpointError(f"{place}: {len(missing)} weights are missing, {sorted(missing)[0]} first; restore them")
    return model


def _metadata(place: Path) -> dict[str, str]:
    """What the header of the weights says besides the tensors; of weights in parts nothing."""
    path = place / "diffusion_pytorch_model.safetensors"
    if not path.is_file():
        return {}
    with safe_open(path, framework="pt") as weights:
        return weights.metadata() or {}


def _check_weights(place: Path) -> None:
    """Raises CheckpointError unless the weights are safetensors, in one file or in the files that an index names."""
    index = place / "diffusion_pytorch_model.safetensors.index.json"  # which diffusers prefers to the one file
    if index.is_file() or not (place / "diffusion_pytorch_model.safetensors").is_file():
        if not index.is_file():
            pickled = sorted(path.name for pattern in PICKLED for path in place.glob(pattern))
            if pickled:
                raise CheckpointError(
                    f"{place / pickled[0]} is a pickle, which can run code when it is read; take its tensors out with: "
                    f"nearzero convert {place / pickled[0]} OUT --i-trust-this-file, and put OUT/weights.safetensors "
                    "here as diffusion_pytorch_model.safetensors"
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
