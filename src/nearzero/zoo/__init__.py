"""Trained models that come with the package; `zoo:NAME` names one wherever a run is expected.

    NAME/run.json                  recipe, data, seed and versions: the folder is a run
    NAME/checkpoints/000004000/    the averaged weights alone, as float16, with their manifest
    NAME/card.json, README.md      what it was trained on, how long and where, and what it cannot do
    NAME/fd.json                   its distance to real images as a sealed card, where that was measured

scripts/pack_zoo.py makes such a folder of a run. Nothing writes into it afterwards: what is measured of a model lies in
zoo-NAME, in the current directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearzero.errors import ArgumentError, did_you_mean
from nearzero.files import read_json

if TYPE_CHECKING:
    from nearzero.run import Run

FOLDER = Path(__file__).parent
PREFIX = "zoo:"


def names() -> list[str]:
    """The models of this package, in the order of the alphabet."""
    return sorted(place.parent.name for place in FOLDER.glob("*/run.json"))


def path(name: str) -> Path:
    """The run folder of a model. Raises ArgumentError for an unknown name."""
    known = names()
    if name not in known:
        told = did_you_mean(name, known) if known else "this package has none"
        raise ArgumentError(f"unknown zoo model {name!r}; {told}")
    return FOLDER / name


def load(name: str) -> Run:
    """A model as a run, to draw with `sample(range(16))`; its `denoiser()` is of float32. Raises as `path`."""
    from nearzero.run import Run

    return Run.load(path(name))


def card(name: str) -> dict[str, Any]:
    """What there is to know of a model: data, images seen, seconds, machine, bytes, distance. Raises as `path`."""
    return read_json(path(name) / "card.json")


def resolve(place: str | Path) -> Path:
    """The folder that `place` means: the model's for zoo:NAME, else itself. Raises ArgumentError for an unknown name.

    >>> str(resolve("runs/mine"))
    'runs/mine'
    """
    text = str(place)
    return path(text.removeprefix(PREFIX)) if text.startswith(PREFIX) else Path(place)


def is_model(place: str | Path) -> bool:
    """Whether this is zoo:NAME, or a model's own folder."""
    place = resolve(place)
    return place.parent.resolve() == FOLDER.resolve() and place.name in names()


def shown(place: str | Path) -> str:
    """How to call a run in a command: a model by its name, any other by its folder.

    >>> shown("runs/mine")
    'runs/mine'
    """
    return PREFIX + resolve(place).name if is_model(place) else str(place)


def results(place: str | Path) -> Path:
    """Where what is found out about a run is kept: in its folder; of a model, in zoo-NAME, in the current directory.

    >>> str(results("runs/mine"))
    'runs/mine'
    """
    return Path(f"zoo-{resolve(place).name}") if is_model(place) else Path(place)


def check_trainable(place: str | Path) -> None:
    """Raises ArgumentError where a run would be trained in the package."""
    if str(place).startswith(PREFIX) or is_model(place):
        raise ArgumentError(
            f"{place} comes with the package and is only read; train your own with another --out, or train it further "
            "as a pipeline: nearzero export zoo:NAME DIR, then nearzero finetune DIR --data IMAGES --out RUN"
        )
