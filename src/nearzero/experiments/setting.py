"""What an experiment that trains is run on, and where it keeps its runs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from nearzero.data import Images, embedded
from nearzero.errors import ArgumentError, CheckpointError, DataError
from nearzero.experiments.demo import Bar
from nearzero.manifest import Keep
from nearzero.recipe import Recipe, small
from nearzero.run import Run, is_run
from nearzero.training.loop import train


@dataclass(frozen=True)
class Plan:
    """How much is trained; an experiment's own budget adds how much is measured.

    `size` of the embedded images, where no others are named, and `base` width of the network; it is measured after
    each of `steps` of `batch` images.
    """

    size: int
    base: int
    steps: tuple[int, ...]
    batch: int

    @property
    def tested(self) -> int:
        """How many images of the test set are used."""
        return 0


B = TypeVar("B", bound=Plan)


@dataclass(frozen=True)
class Setting(Generic[B]):
    """A budget, images to train on and to measure on, and the folder `out`; a call that was cut short goes on."""

    budget: B
    images: Images
    test: Images
    out: Path
    bar: Bar
    seed: int = 0
    device: str = "cpu"

    def fitted(self, recipe: Recipe) -> Recipe:
        """A recipe with the network and the training that all of an experiment share."""
        recipe = small(recipe, self.images.size, self.images.channels)
        network: Any = recipe.network
        network = replace(network, base=self.budget.base, head_channels=self.budget.base)
        return replace(recipe, network=network, training=replace(recipe.training, batch=self.budget.batch))

    def check(self, fingerprint: str | None, images: Images, path: Path) -> None:
        """Raises ArgumentError where what is kept at `path` is of other images."""
        if fingerprint != images.fingerprint():
            raise ArgumentError(f"{path} is of other images than {images.name}; name another --out, or delete it")

    def run(self, recipe: Recipe, steps: int, keep: Keep | None = None) -> Run:
        """The recipe's run after that many steps, trained as far as it has not been.

        One that has been trained further is given at its checkpoint of that step, or as it is where it keeps none.
        `keep` says which checkpoints stay. Raises ArgumentError where the folder is of other images, another seed,
        budget or recipe.
        """
        folder = self.out / "runs" / f"{recipe.name}-{self.seed}"
        recipe = self.fitted(recipe)
        recipe = replace(recipe, training=replace(recipe.training, steps=steps))
        resume = is_run(folder)
        done = Run.load(folder).step if resume else 0
        if resume:
            where_from = Run.load(folder)
            self.check(where_from.data.get("fingerprint"), self.images, folder)
            found = where_from.with_steps(steps).recipe
            if replace(found, codec=recipe.codec) != recipe or where_from.seed != self.seed:
                raise ArgumentError(f"{folder} was made by another budget, recipe or seed; name another --out")
            if done > steps:
                with contextlib.suppress(CheckpointError):
                    return where_from.at(steps)
        if done >= steps:
            return Run.load(folder)
        with self.bar(f"training {recipe.name}", "steps") as show:
            return train(
                recipe,
                self.images,
                folder,
                seed=self.seed,
                resume=resume,
                device=self.device,
                keep=keep,
                progress=lambda now: show(now.step - done, steps - done),
            )


def setting(
    budgets: Mapping[str, B],
    budget: str,
    out: Path,
    bar: Bar,
    images: Images | None,
    test: Images | None,
    seed: int = 0,
    device: str = "cpu",
) -> Setting[B]:
    """A budget on images; without any, on the embedded ones, of which every fourth is kept for testing."""
    chosen = budgets[budget]
    if (images is None) != (test is None):
        raise ArgumentError("give both --data and --test, or neither for the embedded images")
    if images is None or test is None:
        every = embedded(chosen.size)
        tested = torch.arange(len(every)) % 4 == 3
        images, test = (replace(every, pixels=every.pixels[one], labels=None) for one in (~tested, tested))
    if (images.size, images.channels) != (test.size, test.channels):
        raise DataError(f"--data holds images of {images.size} pixels, --test of {test.size}; they must be alike")
    if len(test) < chosen.tested:
        raise DataError(f"--test holds {len(test)} images and this budget needs {chosen.tested}")
    return Setting(chosen, images, test, out, bar, seed, device)
