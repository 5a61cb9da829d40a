"""Where the time of an evaluation goes: the network, the extractor, and all that is neither.

    nearzero data fetch squeezenet
    .venv/bin/python benchmarks/evaluate.py [IMAGES]

One card, `nearzero evaluate RUN --fd`: the demo's network (701,345 parameters, weights of chance, 16 x 16 grey), 50
steps of DDIM, 1,000 images unless said, SqueezeNet, the embedded images as reference. Everything but the network's and
the extractor's own calls counts as outside: planning, noise, PNGs, their records, reading back, statistics, the
bootstrap. The reference's features, which are kept for all cards, are timed apart. Last, the interval of --pareto.
"""

import contextlib
import os
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch

import nearzero as nz
from nearzero import quality, recipes
from nearzero.metrics import squeezenet
from nearzero.metrics.extractors import ModuleExtractor
from nearzero.metrics.influence import influence_interval
from nearzero.production import Production, folder, job
from nearzero.yardstick import Reference, features_of

SPENT = {}


def timed(owner, name, label):
    """Adds the time of owner.name to SPENT[label]."""
    inner = getattr(owner, name)

    def call(*args, **kwargs):
        start = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            SPENT[label] = SPENT.get(label, 0.0) + time.perf_counter() - start

    setattr(owner, name, call)


@contextlib.contextmanager
def own_cache(path):
    """Features are kept in a folder of this run, so that nothing is read from an earlier one."""
    before = dict(os.environ)
    os.environ["NEARZERO_CACHE"] = str(path)
    yield
    os.environ.clear()
    os.environ.update(before)


def run(path):
    """A run of the demo's size with one checkpoint."""
    recipe = recipes.small(recipes.ddpm(), 16, 1)
    return nz.train(replace(recipe, training=replace(recipe.training, steps=1, batch=4)), nz.embedded(16), path)


def report(title, total):
    """Prints each part's share."""
    inside = SPENT["network"] + SPENT["extractor"]
    print(f"\n{title}: {total:.1f} s, outside the network and the extractor {100 * (total - inside) / total:.1f} %")
    for name, seconds in sorted(SPENT.items(), key=lambda item: -item[1]):
        print(f"  {name:44}{seconds:9.2f} s{100 * seconds / total:7.2f} %")


def main(count):
    """Measures and prints the table."""
    extractor = squeezenet.fetched()
    timed(ModuleExtractor, "features", "extractor")
    timed(folder, "write_bytes", "PNG: writing (inside: fsync)")
    timed(job, "png", "PNG: encoding")
    timed(quality, "read_samples", "PNG: reading back and comparing")
    timed(quality, "frechet_interval", "the distance and its bootstrap")
    timed(quality, "_others", "KID, precision, recall, spectrum")
    with tempfile.TemporaryDirectory() as aside, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = run(Path(aside) / "run")
        production = Production(made, solver=nz.DDIM(), grid=nz.UniformGrid(), steps=50)
        forward = type(made.denoiser().network)
        timed(forward, "forward", "network")
        with own_cache(aside):
            SPENT.clear()
            start = time.perf_counter()
            reference = Reference.of(nz.embedded(16), extractor)
            print(f"reference, once: {time.perf_counter() - start:.1f} s, {SPENT['extractor']:.1f} s in the extractor")
            SPENT.clear()
            start = time.perf_counter()
            quality.measure(production, range(count), reference, out=Path(aside))
            report(f"{count:,} images", time.perf_counter() - start)
            pixels = quality.read_samples(quality.samples_folder(Path(aside), production), range(count))
            features = features_of(extractor, pixels, Path(aside) / "features")
            start = time.perf_counter()
            influence_interval(features, reference.statistics)
            print(f"the interval of --pareto in place of the bootstrap: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
