"""From diffusers: a pipeline, a pair or a folder as a Denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nearzero.conditioning import Shared
from nearzero.denoiser import Denoiser
from nearzero.errors import CheckpointError
from nearzero.grid import Grid
from nearzero.interop.folder import download as from_hub
from nearzero.interop.folder import holds_run, load, load_run
from nearzero.interop.pipelines import pipeline_parts
from nearzero.interop.schedule import Schedule, read_schedule
from nearzero.networks.foreign import Asked, AskedFlux, AskedUNet, architecture, time_embedding


class Imported(Denoiser):
    """A model of diffusers as a Denoiser: `model` is the model itself, `schedule` what its scheduler said."""

    def __init__(self, network: Asked, schedule: Schedule, sharing: Shared | None = None) -> None:
        super().__init__(network, schedule.process, schedule.parameterization, sharing or schedule.conditioning)
        self.schedule = schedule

    @property
    def asked(self) -> Asked:
        """The network: the model behind the door through which it is asked."""
        return self.get_submodule("network")  # pyright: ignore[reportReturnType]

    @property
    def model(self) -> Any:
        """diffusers' own module."""
        return self.asked.model

    def grid(self, shape: Sequence[int] | None = None) -> Grid:
        """The grid of the scheduler's config: its timestep spacing, or its shift for flow matching.

        `shape` (C, H, W) of one x is needed where the shift depends on the size of the image (Flux). Raises
        ArgumentError without it, and where the config asks for noise levels that no grid here has.
        """
        flux = isinstance(self.network, AskedFlux)
        patch = 2 if flux else getattr(self.model.config, "patch_size", 1)
        tokens = None if shape is None else (shape[-2] // patch) * (shape[-1] // patch)
        return self.schedule.grid(tokens, own=not flux)


def from_diffusers(source: Any, *, download: bool = False) -> Denoiser:
    """A Denoiser of a diffusers pipeline, of a pair (model, scheduler), or of a pipeline's folder.

    Process, parameterization and conditioning are read from the scheduler's config; the model, text encoders and VAE
    stay as they are, so x is what the model sees: an image in [-1, 1] (score_sde's VE models: [0, 1]), or a scaled
    latent. Of a folder only the predicting model and the scheduler are read, from JSON and safetensors, and nothing in
    it is run; with `download` the name is that of a repository of the Hugging Face hub. What the model is told besides
    the time goes in as condition, under diffusers' names: class_labels, encoder_hidden_states, pooled_projections,
    text_embeds, time_ids.

    It is an `Imported`, which also has the scheduler's grid(). A folder that `to_diffusers` wrote gives its sharing
    back, as the conditioning Shared; one of an exported run is that run's own Denoiser.

    Raises CheckpointError for a model, scheduler or pipeline that is unknown, foreign, incomplete or pickled, and for
    epsilon prediction with zero terminal SNR.

        denoiser = nz.from_diffusers("google/ddpm-cifar10-32", download=True)
        images = nz.sample(denoiser, (3, 32, 32), solver=nz.DDIM(), grid=denoiser.grid(), steps=50, seeds=range(4))
    """
    if isinstance(source, (str, Path)) and not download and Path(source).is_dir() and holds_run(Path(source)):
        return load_run(Path(source)).denoiser
    return imported(source, download=download)


def imported(source: Any, *, download: bool = False) -> Imported:
    """As `from_diffusers`, of anything but an exported run. Leaves torch's own generator alone."""
    if isinstance(source, (str, Path)) and not download and Path(source).is_dir() and holds_run(Path(source)):
        raise CheckpointError(
            f"{source} is an exported run and no model of diffusers' own; take the run itself, as in: nearzero train "
            "--resume --out RUN"
        )
    with torch.random.fork_rng(devices=[]):  # models are made with fresh weights first
        return _imported(*_parts(source, download))


def _imported(model: Any, scheduler: Any, sharing: Shared | None) -> Imported:
    """The axes of a model, from its scheduler. Raises CheckpointError where the two do not go together."""
    config = getattr(scheduler, "config", None)
    if config is None:
        raise CheckpointError(f"a scheduler of diffusers with its config is needed, got {type(scheduler).__name__}")
    schedule, kind = read_schedule(type(scheduler).__name__, dict(config)), architecture(model)
    fourier = time_embedding(model) == "fourier"
    if fourier and kind.asked is not AskedUNet:
        raise CheckpointError(
            f"{type(model).__name__} with a Fourier time embedding is told no timestep; it is not read"
        )
    if fourier != schedule.fourier:
        told = "a noise level" if fourier else "timesteps"
        raise CheckpointError(f"this model is told {told}, which {schedule.name} does not tell; pair it with its own")
    _check_steps(model, schedule, sharing)
    return Imported(kind.asked(model, flow=schedule.flow, steps=schedule.steps), schedule, sharing)


def _check_steps(model: Any, schedule: Schedule, sharing: Shared | None) -> None:
    """Raises CheckpointError where the model, or its cells, count other timesteps than the scheduler."""
    told = {"its cells count": getattr(getattr(sharing, "inner", None), "steps", schedule.steps)}
    if time_embedding(model) == "learned":
        told["its table holds"] = model.time_proj.num_embeddings
    for what, count in told.items():
        if count != schedule.steps:
            raise CheckpointError(
                f"{schedule.name} counts {schedule.steps} timesteps, of this {type(model).__name__} {what} {count}; "
                "pair it with its own scheduler"
            )


def _parts(source: Any, download: bool) -> tuple[Any, Any, Shared | None]:
    """(model, scheduler, how an export shared it). Raises CheckpointError where there are none."""
    if isinstance(source, tuple) and len(source) == 2:
        return (*source, None)
    if isinstance(source, (str, Path)):
        if download:
            return load(from_hub(str(source)))
        if not Path(source).is_dir():
            raise CheckpointError(f"{source} is no folder; for a repository of the hub say download=True")
        return load(Path(source))
    if isinstance(getattr(source, "components", None), dict):
        return (*pipeline_parts(source), None)
    raise CheckpointError(
        f"expected a pipeline of diffusers, a pair (model, scheduler) or a folder, got {type(source).__name__}"
    )
