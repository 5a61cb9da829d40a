"""Foreign checkpoints, from files that hold pickles, as safetensors and JSON; ADM's as a pipeline of diffusers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import nearzero
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.files import check_writable, new_folder, read_json, write_json
from nearzero.interop.adm import AdmOptions, is_adm, to_unet
from nearzero.interop.quarantine import StateDict, taken
from nearzero.run import load_tensors

RECORD = "source.json"
SAYS = "nearzero convert"
MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote: the folder, "adm" (a pipeline of diffusers) or "tensors" (safetensors), and its record."""

    path: Path
    kind: str
    source: dict[str, Any]


def convert(
    file: str | Path,
    out: str | Path,
    *,
    trust: bool = False,
    adm: AdmOptions | None = None,
    weights: str | None = None,
    overwrite: bool = False,
) -> Converted:
    """Writes what a foreign checkpoint holds into a new folder, without running any of it.

    An ADM U-Net, known by its names, becomes a DDPMPipeline of diffusers; `adm` says what its shapes do not tell, and
    `weights` which of several it is ("ema"). Of anything else the tensors are taken: one safetensors file for each
    state dict. source.json says where they come from. A file that holds a pickle is read in a process of its own (see
    `quarantine.taken`), and only where `trust` says so.

    Raises CheckpointError for a file that is not trusted, damaged, or holds no tensors; ArgumentError where `out`
    exists, unless `overwrite` and convert wrote it, and where an ADM U-Net is found without `adm`; DiskError.
    """
    file, out = Path(file), Path(out)
    if not file.is_file():
        raise CheckpointError(f"{file} is no file; name a checkpoint")
    _check_out(out, overwrite)
    plain = is_safetensors(file)
    if not plain and not trust:
        raise CheckpointError(distrust(file, out))
    with new_folder(out) as aside, _opened(file, aside, plain) as (record, dicts):
        places = {place: path for place, path, _ in dicts}
        names = {place: list(load_tensors(path)) for place, path in places.items()}
        networks = [place for place in names if is_adm(names[place])]
        if plain and not networks:
            raise CheckpointError(
                f"{file} is a safetensors file already, and not of an ADM U-Net: there is nothing to convert"
            )
        if not any(names.values()):
            raise CheckpointError(f"{file} holds no tensors that nearzero finds; nothing is written")
        place = _chosen(networks, weights)
        if place is None:
            record |= {"network": None, "state_dicts": _move(dicts, aside)}
        else:
            record |= {"network": _write_adm(aside, load_tensors(places[place]), place, adm, file)}
        record = {"by": SAYS, "nearzero": nearzero.__version__, **record}
        write_json(aside / RECORD, record)
    return Converted(out, "tensors" if place is None else "adm", record)


def distrust(file: Path, out: Path) -> str:
    """Why a file is not read before it is trusted, and what convert would do then, in one line."""
    typed = shlex.join(["nearzero", "convert", str(file), str(out), "--i-trust-this-file"])
    return (
        f"{file} is {_guess(file)}, and a pickle can run code where it is loaded; convert does not load it: it takes "
        "the tensors out in a process of its own, without network, and imports and runs nothing that the file names; "
        f"if you trust where it comes from: {typed}"
    )


def is_safetensors(file: Path) -> bool:
    """Whether a file begins as a safetensors file does: the length of a header, and the header's first brace."""
    with file.open("rb") as stream:
        start = stream.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER


def _guess(file: Path) -> str:
    with file.open("rb") as stream:
        start = stream.read(4)
    kinds = {b"PK\x03\x04": "a file of torch.save, or another .zip", b"\x80": "a pickle, or an old file of torch.save"}
    return next((kind for begins, kind in kinds.items() if start.startswith(begins)), "no safetensors file")


def _check_out(out: Path, overwrite: bool) -> None:
    """Raises ArgumentError where something stands there that convert must not replace."""
    check_writable(out)
    if not out.exists() and not out.is_symlink():
        return
    if out.is_symlink() or not out.is_dir():
        raise ArgumentError(f"{out} is a file or a link; name a new folder")
    if any(out.iterdir()):
        if not _is_ours(out):
            raise ArgumentError(f"{out} exists, and convert did not write it; name a new folder")
        if not overwrite:
            raise ArgumentError(f"{out} exists; name a new folder, or give --overwrite")


def _is_ours(out: Path) -> bool:
    try:
        record = read_json(out / RECORD)
    except CheckpointError:
        return False
    return isinstance(record, dict) and record.get("by") == SAYS


@contextmanager
def _opened(file: Path, beside: Path, plain: bool) -> Iterator[tuple[dict[str, Any], Sequence[StateDict]]]:
    """What is to be recorded of a file, and its state dicts as safetensors files, as long as the block lasts."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    record = {"file": file.name, "bytes": file.stat().st_size, "sha256": digest}
    if plain:
        yield record | {"kind": "a safetensors file"}, [("", file, {})]
        return
    with taken(file, beside) as found:
        cut = "by the kernel" if found.offline else "by Python's audit hook"
        about = {"kind": found.kind, "names": list(found.names), "names_left_out": found.names_left_out}
        yield record | about | {"network_cut_off": cut}, found.dicts


def _move(dicts: Sequence[StateDict], folder: Path) -> list[dict[str, Any]]:
    """Gives every state dict a name made of its place; (place, file, tensors, numbers, left out) of each."""
    entries, used = [], set[str]()
    for place, path, left_out in dicts:
        name, tensors = _file_name(place, used), load_tensors(path)
        numbers = sum(tensor.numel() for tensor in tensors.values())
        os.replace(path, folder / name)
        entry = {"place": place, "file": name, "tensors": len(tensors), "numbers": numbers, "left_out": left_out}
        entries.append(entry)
    return entries


def _file_name(place: str, used: set[str]) -> str:
    """A file's name for a place in a checkpoint: letters, digits and ._- of it, not yet used."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "_", place)[:80].strip("._-") or "weights"
    name, number = base, 2
    while name.lower() in used:
        name, number = f"{base}-{number}", number + 1
    used.add(name.lower())
    return f"{name}.safetensors"


def _chosen(networks: list[str], weights: str | None) -> str | None:
    """The state dict that becomes the pipeline; None where there is none. Raises ArgumentError where several could."""
    if weights is not None and weights not in networks:
        known = ", ".join(networks) or "none of an ADM U-Net"
        raise ArgumentError(f"--weights {weights} is no ADM U-Net in this file; known: {known}")
    if weights is None and len(networks) > 1:
        raise ArgumentError(f"this file holds {len(networks)} ADM U-Nets; choose with --weights {networks[-1]}")
    return weights if weights is not None else next(iter(networks), None)


def _write_adm(
    folder: Path, tensors: Mapping[str, Tensor], place: str, options: AdmOptions | None, file: Path
) -> dict[str, Any]:
    """Writes the pipeline: a UNet2DModel, and the scheduler with which ADM's models were trained."""
    if options is None:
        raise ArgumentError(f"{file} is an ADM U-Net, whose weights do not tell the size of its images; give --size")
    from diffusers import DDPMPipeline

    unet = to_unet(tensors, options)
    config = dict(unet.config)
    learned = config["out_channels"] == 2 * config["in_channels"]
    DDPMPipeline(unet=unet, scheduler=scheduler(options, learned)).save_pretrained(folder, safe_serialization=True)
    names = ("sample_size", "in_channels", "block_out_channels", "layers_per_block", "down_block_types")
    names += ("attention_head_dim", "resnet_time_scale_shift", "downsample_type", "num_class_embeds")
    return {
        "kind": "ADM",
        "place": place,
        "parameters": sum(weight.numel() for weight in unet.parameters()),
        "learned_variance": learned,
        "order": options.order,
        "schedule": options.schedule,
        "config": json.loads(json.dumps({name: config[name] for name in names})),
    }


def scheduler(options: AdmOptions, learned: bool) -> Any:
    """DDPM's scheduler with every choice of ADM's said: betas, no clipping, epsilon, the variance's kind."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear" if options.schedule == "linear" else "squaredcos_cap_v2",
        variance_type="learned_range" if learned else "fixed_large",
        clip_sample=False,
        prediction_type="epsilon",
        timestep_spacing="trailing",
    )
