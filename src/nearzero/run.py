"""The run folder: what training leaves behind and sampling starts from.

    run.json                      schema version, recipe, data, seed, provenance
    stats.jsonl                   one line every few steps, in EDM's format
    checkpoints/000001000/        weights, averages and optimizer as safetensors, state.json, manifest.json
    previews/000001000.png        samples of the EMA weights at fixed seeds

Everything is safetensors, JSON or PNG: reading a run executes nothing.
"""

from __future__ import annotations

import platform
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import nearzero
from nearzero import zoo
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError, CheckpointError, NearzeroError, did_you_mean
from nearzero.files import read_json, write_json
from nearzero.grid import Grid
from nearzero.manifest import checkpoints, newest, problem
from nearzero.recipe import Recipe
from nearzero.registry import decode, encode
from nearzero.rescaled import Through
from nearzero.sampling import sample
from nearzero.solvers import Solver

SCHEMA = 2  # 1: checkpoints have no manifest
_AVERAGE = re.compile("ema(-.+)?")


@dataclass(frozen=True)
class Run:
    """A run folder that exists: its recipe, the data it was trained on, its seed and where it came from.

    `pin` is the checkpoint to use whatever training adds meanwhile; without it always the newest.
    """

    path: Path
    recipe: Recipe
    data: Mapping[str, Any]
    seed: int
    provenance: Mapping[str, Any]
    pin: Path | None = None

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Reads a run folder, or zoo:NAME. Raises CheckpointError for none, a damaged one and one that is too new."""
        path = zoo.resolve(path)
        if not is_run(path):
            what = "is no run folder (it has no run.json)" if path.exists() else "does not exist"
            raise CheckpointError(f"{path} {what}; make a run with: nearzero train etsdm --out {path}")
        record = read_json(path / "run.json")
        version = record.get("schema_version") if isinstance(record, dict) else None
        if type(version) is not int or version < 1:
            raise CheckpointError(f"{path / 'run.json'} has no schema version; it was not written by nearzero")
        if version > SCHEMA:
            raise CheckpointError(
                f"{path} has schema version {version}, this nearzero reads up to {SCHEMA}; upgrade nearzero"
            )
        recipe = decode(record.get("recipe"))
        if (
            not isinstance(recipe, Recipe)
            or type(record.get("seed")) is not int
            or not _is_data(record.get("data"))
            or not isinstance(record.get("provenance", {}), dict)
        ):
            raise CheckpointError(f"{path / 'run.json'} is incomplete; restore it or train again")
        check_recipe(recipe, path / "run.json")
        return cls(path, recipe, record["data"], record["seed"], record.get("provenance", {}))

    @classmethod
    def create(cls, path: Path, recipe: Recipe, data: Mapping[str, Any], seed: int) -> Run:
        """Writes run.json into a new folder."""
        run = cls(path, recipe, data, seed, provenance())
        run.write()
        return run

    def write(self) -> None:
        """Writes run.json, atomically."""
        record = {"schema_version": SCHEMA, "recipe": encode(self.recipe), "data": dict(self.data), "seed": self.seed}
        write_json(self.path / "run.json", {**record, "provenance": dict(self.provenance)})

    def with_steps(self, steps: int) -> Run:
        """The same run, to be trained for another number of steps."""
        return replace(self, recipe=replace(self.recipe, training=replace(self.recipe.training, steps=steps)))

    def checkpoint(self) -> Path | None:
        """The folder of the newest checkpoint that is whole, or of the pinned one; None before the first.

        Warns of newer ones that are damaged. Raises CheckpointError where all are.
        """
        if self.pin is not None:
            return self.pin
        path, wrong = newest(self.path / "checkpoints")
        if path is None and wrong:
            raise CheckpointError(
                f"{self.path} has no whole checkpoint: {'; '.join(wrong)}; restore the file or train again"
            )
        if wrong and path is not None:
            warnings.warn(f"left out a damaged checkpoint: {'; '.join(wrong)}; using {path.name}", stacklevel=1)
        return path

    def pinned(self, step: int | None = None) -> Run:
        """The same run, at the checkpoint that is its newest now, or at that of a step."""
        return replace(self, pin=self.checkpoint()) if step is None else self.at(step)

    def at(self, step: int) -> Run:
        """The same run at the checkpoint of that step. Raises CheckpointError where it is damaged or not kept."""
        known = {int(path.name): path for path in checkpoints(self.path / "checkpoints")}
        if step not in known:
            kept = ", ".join(map(str, sorted(known))) or "none"
            raise CheckpointError(f"{self.path} keeps no checkpoint of step {step}; it keeps {kept}")
        if wrong := problem(known[step]):
            raise CheckpointError(f"{wrong}; restore the file, or take another step")
        return replace(self, pin=known[step])

    @property
    def step(self) -> int:
        """How many training steps the newest checkpoint holds."""
        checkpoint = self.checkpoint()
        return 0 if checkpoint is None else int(checkpoint.name)

    @property
    def results(self) -> Path:
        """Where what is found out about the run is kept, see `nearzero.zoo.results`."""
        return zoo.results(self.path)

    def averages(self) -> list[str]:
        """The averages that the checkpoint holds, by the names that `denoiser(ema=...)` takes: "ema" and others."""
        checkpoint = self.checkpoint()
        found = [] if checkpoint is None else [path.stem for path in checkpoint.glob("*.safetensors")]
        return sorted(name for name in found if _AVERAGE.fullmatch(name))

    def denoiser(self, *, ema: bool | str = True, device: torch.device | str = "cpu") -> Denoiser:
        """The trained denoiser, with averaged weights, raw ones (ema=False), or those of one of several `averages`.

        Raises CheckpointError before the first checkpoint, ArgumentError for an average that it does not hold.
        """
        path = self.weights(ema)
        with torch.random.fork_rng(devices=[]):  # the fresh weights are thrown away; leave the caller's generator alone
            denoiser = self.recipe.denoiser()
        load_weights(denoiser.network, path)
        return denoiser.to(device).eval()

    def weights(self, ema: bool | str = True) -> Path:
        """The file whose weights `denoiser(ema=...)` has. Raises as it does."""
        checkpoint = self.checkpoint()
        if checkpoint is None:
            raise CheckpointError(
                f"{self.path} has no checkpoint yet; train it with: nearzero train --resume --out {self.path}"
            )
        name = ema if isinstance(ema, str) else "ema" if ema else "weights"
        if isinstance(ema, str) and ema not in (known := self.averages()):
            raise ArgumentError(f"{checkpoint} holds no average {ema!r}; {did_you_mean(ema, known)}")
        if name == "weights" and not (checkpoint / "weights.safetensors").exists() and self.averages():
            raise ArgumentError(f"{checkpoint} holds averaged weights alone; take those, without --raw-weights")
        return checkpoint / f"{name}.safetensors"

    def sample(
        self,
        seeds: Sequence[int],
        *,
        solver: Solver | None = None,
        grid: Grid | None = None,
        steps: int | None = None,
        nfe: int | None = None,
        through: Through | None = None,
        batch: int | None = None,
        denoiser: Denoiser | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """One image for each seed as pixel values, float32 (N, C, H, W), not rounded.

        Solver, grid, steps (or `nfe`, a number of network evaluations) and `through`, the process that samples see, are
        the recipe's unless given; `denoiser` is `self.denoiser(device=device)` unless given.
        """
        recipe = self.recipe
        denoiser = denoiser or self.denoiser(device=device)
        x = sample(
            recipe.sampled(denoiser) if through is None else through(denoiser),
            (recipe.network.channels, recipe.network.size, recipe.network.size),
            solver=solver or recipe.solver,
            grid=grid or recipe.grid,
            steps=recipe.steps if steps is None and nfe is None else steps,
            nfe=nfe,
            seeds=seeds,
            batch=batch,
            dtype=torch.float32,
        )
        return recipe.codec.decode(x)


def check_recipe(recipe: Recipe, where: Path) -> None:
    """Raises CheckpointError where a recipe that was read from a file does not work."""
    try:
        try_recipe(recipe)
    except (NearzeroError, TypeError, ValueError, AttributeError, RuntimeError, LookupError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{where} does not work: {reason}; restore it or train again") from error


def try_recipe(recipe: Recipe) -> None:
    """Uses every axis once, on two numbers, so that what does not fit together fails at once."""

    class Zero(torch.nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return torch.zeros_like(x)

    denoiser, x0 = recipe.denoiser(Zero()), torch.zeros(2, 1)  # two, as Antithetic takes pairs
    recipe.objective()(denoiser, x0, torch.tensor([0.5, 0.5]), x0)
    steps = min(2, recipe.steps)
    seen = recipe.sampled(denoiser)
    sample(seen, (1,), solver=recipe.solver, grid=recipe.grid, steps=steps, seeds=[0], dtype=torch.float32)
    image = torch.zeros(1, recipe.network.channels, recipe.network.size, recipe.network.size)
    recipe.codec.encode(recipe.codec.decode(image))
    for average in recipe.training.kept().values():
        average.beta(1, recipe.training.batch)
    if not callable(recipe.network.build) or recipe.network.size * recipe.network.channels < 1:
        raise ArgumentError(f"{recipe.network} is no network; use nearzero.UNet")


def _is_data(data: Any) -> bool:
    """Whether what a run says of its images has the types that `Images.describe` and `train` write."""
    kinds = {"name": str, "count": int, "channels": int, "size": int, "classes": list, "fingerprint": str}
    if not isinstance(data, dict) or not isinstance(source := data.get("source") or {}, dict):
        return False
    types = {"data": str, "size": int, "channels": int, "preset": str, "bad_images": str}
    told = all(isinstance(data.get(key, kind()), kind) for key, kind in kinds.items())
    return told and all(isinstance(source[key], kind | None) for key, kind in types.items() if key in source)


def is_run(path: Path) -> bool:
    """Whether a folder is a run."""
    return (Path(path) / "run.json").is_file()


def is_ours(path: Path) -> bool:
    """Whether a folder's run.json was written by nearzero, whatever became of the rest."""
    try:
        record = read_json(path / "run.json")
    except CheckpointError:
        return False
    return isinstance(record, dict) and isinstance(record.get("schema_version"), int) and "recipe" in record


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises CheckpointError where it is missing or damaged."""
    if not path.is_file():  # a pipe would wait for ever
        raise CheckpointError(f"cannot read {path}: it is missing, or no file; restore the file or train again")
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; restore the file or train again") from error


def fill(network: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads a state dict that names each parameter once, however often the network uses it."""
    first = {parameter: name for name, parameter in network.named_parameters()}
    aliases = {name: first[parameter] for name, parameter in network.named_parameters(remove_duplicate=False)}
    shared = {name: tensors[main] for name, main in aliases.items() if main in tensors}
    network.load_state_dict({**tensors, **shared})


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Fills a network from a safetensors file. Raises CheckpointError where names or shapes do not match."""
    try:
        fill(network, load_tensors(path))
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise CheckpointError(
            f"{path} does not fit the recipe's network: {' '.join(line.strip() for line in lines[:2])}"
        ) from error


def provenance() -> dict[str, Any]:
    """Where a run comes from: versions, command, time."""
    return {
        "nearzero": nearzero.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "argv": sys.argv,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
