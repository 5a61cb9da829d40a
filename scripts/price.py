"""What sharing timesteps must cost the best network, by data, resolution and cells: results/price/price.csv.

python scripts/price.py > results/price/price.csv, after nearzero data fetch fashion-mnist and cifar10; two minutes.
"""

import csv
import sys
from pathlib import Path

import torch

import nearzero as nz
from nearzero.cli.common import load_images
from nearzero.diagnostics.price import prices
from nearzero.randomness import order

DATA = (("fashion-mnist", 8), ("fashion-mnist", 16), ("fashion-mnist", 28), ("fashion-mnist", 32), ("cifar10", 32))
CELLS = ((100, 1), (100, 5), (100, 10), (100, 20), (100, 50), (50, 5), (20, 1), (20, 5))
IMAGES = 4096


def main() -> None:
    """One line for each data set and way to share."""
    torch.set_num_threads(1)
    out = csv.writer(sys.stdout, lineterminator="\n")
    print("# python scripts/price.py")
    out.writerow(["data", "size", "interval", "cells", "mean excess", "largest residual in grey levels of 255"])
    for name, size in DATA:
        images = load_images(Path(name), size, None)
        x0 = nz.Pixels().encode(images.pixels[order(0, torch.arange(IMAGES), len(images))])
        shared = [nz.Shared(nz.Timestep(1000), interval=interval, cells=cells) for interval, cells in CELLS]
        for (interval, cells), found in zip(CELLS, prices(x0, nz.DiscreteVP.linear(), shared), strict=True):
            out.writerow([name, size, interval, cells, f"{found.mean:.3g}", f"{found.levels:.2f}"])


if __name__ == "__main__":
    main()
