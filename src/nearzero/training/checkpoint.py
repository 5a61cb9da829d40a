"""One save: a folder of safetensors with the number of the step."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from nearzero.errors import CheckpointError, DiskError, NumericalError
from nearzero.files import new_folder, read_json, write_json
from nearzero.run import Run, load_tensors
from nearzero.training.state import TrainingState

KINDS = {"ema": "averaged weights", "optimizer": "moments"}


def save(state: TrainingState, run: Run) -> Path:
    """Writes checkpoints/STEP whole, then deletes the older ones. Raises NumericalError for what is not finite."""
    files = state.tensors()
    for file, tensors in files.items():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                what = f"the {KINDS.get(file, file)} of {name} are not finite at step {state.step}"
                raise NumericalError(f"{what}; lower the learning rate. The last good checkpoint is kept")
    path = run.path / "checkpoints" / f"{state.step:09d}"
    with new_folder(path) as aside:
        for file, tensors in files.items():
            _save(tensors, aside / f"{file}.safetensors")
        write_json(aside / "state.json", {"step": state.step, "images": state.step * run.recipe.training.batch})
    for older in path.parent.iterdir():
        if older != path:
            shutil.rmtree(older, ignore_errors=True)
    return path


def load(state: TrainingState, checkpoint: Path) -> None:
    """Restores every bit that `save` wrote."""
    files = {file: load_tensors(checkpoint / f"{file}.safetensors") for file in state.tensors()}
    try:
        state.restore(files, read_json(checkpoint / "state.json")["step"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint} does not fit the recipe's network ({error}); restore it or train again"
        ) from error


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise DiskError(f"cannot write {path}: {error}; free some space") from error
