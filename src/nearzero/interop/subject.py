"""What can be diagnosed: a run, or a pipeline of diffusers, with the way from images to what its network sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nearzero import zoo
from nearzero.codec import Pixels
from nearzero.data.images import Images
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError, CheckpointError, DataError
from nearzero.interop.folder import holds_run, read_index, vae
from nearzero.interop.imported import Imported, imported
from nearzero.interop.pipeline_run import is_pipeline, open_run, spec
from nearzero.networks.foreign import AskedUNet
from nearzero.run import Run, load_tensors

LATENT = 64
"""Width of a latent where a model's config names none, as Flux's."""


class Subject(NamedTuple):
    """A denoiser with the size and channels of the images that `encode` (uint8 (N, C, H, W) -> x0) takes.

    `needs` are the names of what it must be told besides the time, `run` the run, where it is one, and `latent` says
    that a VAE encodes.
    """

    denoiser: Denoiser
    size: int
    channels: int
    encode: Callable[[Tensor], Tensor]
    needs: tuple[str, ...] = ()
    run: Run | None = None
    latent: bool = False


def open_subject(path: Path, *, ema: bool = True, device: torch.device | str = "cpu") -> Subject:
    """The run or pipeline in a folder, or the run called zoo:NAME. Raises CheckpointError for neither."""
    path = zoo.resolve(path)
    if not is_pipeline(path) or holds_run(path):
        run = open_run(path)
        network = run.recipe.network
        return Subject(
            run.denoiser(ema=ema, device=device), network.size, network.channels, run.recipe.codec.encode, run=run
        )
    found = imported(path)
    found.to(device).eval()
    if not isinstance(found.asked, AskedUNet):
        return _latent(found, path, device)
    network = spec(found)
    encode = (lambda images: images.float() / 255) if found.schedule.fourier else Pixels().encode
    return Subject(found, network.size, network.channels, encode, found.asked.needs())


def _latent(found: Imported, path: Path, device: torch.device | str) -> Subject:
    """A model of latents, seen through the VAE of its pipeline: the mean of the posterior, scaled as pipelines do."""
    if "vae" not in read_index(path):
        raise CheckpointError(f"{path} has a model of latents and no vae; diagnose it in Python, with latents as x0")
    coder = vae(path).to(device).eval()
    config, factor = coder.config, 2 ** (len(coder.config.block_out_channels) - 1)
    shift, scale = config.get("shift_factor") or 0.0, config.get("scaling_factor") or 1.0
    width = getattr(found.model.config, "sample_size", None) or LATENT

    def encode(images: Tensor) -> Tensor:
        with torch.inference_mode():
            parts = [coder.encode(part.to(device)).latent_dist.mode() for part in Pixels().encode(images).split(4)]
        return (torch.cat(parts) - shift) * scale

    return Subject(found, width * factor, config.in_channels, encode, found.asked.needs(), latent=True)


def condition(subject: Subject, images: Images, file: Path | None) -> dict[str, Tensor]:
    """What the network must be told besides the time, one entry for each image: from `file`, or the images' labels.

    The file is safetensors, whose tensors bear diffusers' names (encoder_hidden_states ...) and have one row, for all
    images, or a row for each. Raises ArgumentError for what is missing or does not fit.
    """
    given: Mapping[str, Tensor] = {} if file is None else load_tensors(file)
    told: dict[str, Tensor] = {}
    for name in subject.needs:
        if name in given:
            told[name] = _rows(name, given[name], len(images), file)
        elif name == "class_labels" and images.labels is not None:
            told[name] = images.labels
        else:
            raise ArgumentError(
                f"this model must be told {', '.join(subject.needs)}; save {name} as a tensor of that name in a "
                "safetensors file, with one row, and give it as --condition FILE"
            )
    if extra := sorted(given.keys() - set(subject.needs)):
        known = ", ".join(subject.needs) or "nothing"
        raise ArgumentError(f"{file} holds {extra[0]}, which this model is not told; it takes {known}")
    return told


def _rows(name: str, value: Any, count: int, file: Path | None) -> Tensor:
    if not value.ndim or len(value) not in (1, count):
        raise DataError(
            f"{name} in {file} has {len(value) if value.ndim else 0} rows for {count} images; give 1 or {count}"
        )
    return value.expand(count, *value.shape[1:])
