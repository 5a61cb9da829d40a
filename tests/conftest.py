"""Fixtures: a recipe that trains in a blink, pictures for it, a trained run, and a way to make the disk fail."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the processes that tests start, too: see below

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # tiny networks: two threads spend ten times the time waiting for each other on a busy machine
settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")


def pictures(count=10, size=8, channels=1, seed=0):
    """`count` different images of noise, without labels."""
    import nearzero as nz

    generator = torch.Generator().manual_seed(seed)
    return nz.Images(torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8))


def tiny_recipe(**training):
    """E-TSDM with a U-Net of 32,609 parameters for 8 x 8 grey images; training that is not given is 6 steps of 4."""
    import nearzero as nz
    from nearzero import recipes

    recipe = recipes.small(recipes.etsdm(), 8, 1)
    network = nz.UNet(8, 1, 16, (1,), 1, (), 16, time_channels=16, resample="conv", scale_shift=False)
    short = replace(recipe.training, **{"steps": 6, "batch": 4, **training})
    return replace(recipe, network=network, training=short, steps=5)


def write_folder(folder, count=6, size=8, mode="L", seed=0):
    """`count` PNG files of noise, 000.png and so on, in `folder`."""
    from PIL import Image

    channels = {"L": 1, "RGB": 3}[mode]
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pictures(count, size, channels, seed).pixels):
        array = (
            image.permute(1, 2, 0).squeeze(-1).numpy() if channels == 1 else image.permute(1, 2, 0).contiguous().numpy()
        )
        Image.fromarray(array).save(folder / f"{i:03d}.png")
    return folder


def tree(folder):
    """Everything below a folder: relative path -> content, None for folders."""
    found = sorted(Path(folder).rglob("*"))
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in found}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished run of `tiny_recipe()` on `pictures()`, seed 0. Read only: take `run_folder` to change it."""
    from nearzero.training.loop import train

    return train(tiny_recipe(), pictures(), tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def run_folder(trained, tmp_path):
    """A copy of the trained run that a test may damage."""
    return Path(shutil.copytree(trained.path, tmp_path / "run"))


class _Writer:
    """A file whose writes pass through the faults."""

    def __init__(self, file, faults):
        self._file, self._faults = file, faults

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, content):
        if self._faults.due("write"):
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            raise self._faults.error
        return self._file.write(content)


class Faults:
    """Makes the `at`-th call of one kind that changes the disk raise `error`; a failing write leaves its first half."""

    CALLS = ("fsync", "chmod", "replace", "rename")

    def __init__(self, monkeypatch):
        self.disarm()
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._failing(name, getattr(os, name)))
        fdopen = os.fdopen
        monkeypatch.setattr(os, "fdopen", lambda *args, **kwargs: _Writer(fdopen(*args, **kwargs), self))

    def arm(self, kind, at, error):
        self.kind, self.at, self.seen, self.error = kind, at, 0, error

    def disarm(self):
        self.arm("", 0, None)

    def due(self, name):
        self.seen += name.replace("rename", "replace") == self.kind
        return self.seen == self.at and name.replace("rename", "replace") == self.kind

    def _failing(self, name, call):
        def fail(*args, **kwargs):
            if self.due(name):
                raise self.error
            return call(*args, **kwargs)

        return fail


@pytest.fixture
def faults(monkeypatch):
    """A disk that fails on demand."""
    return Faults(monkeypatch)
