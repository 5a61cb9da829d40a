"""The time of nz.lipschitz against the naive loop that asks the network twice for each pair of timesteps.

    .venv/bin/python benchmarks/lipschitz.py

On the demo's network (701,345 parameters, 16 x 16 pixels), the first 100 pairs of timesteps, for several numbers of
images. The naive loop draws its noise once as well and runs without gradients; both orders alternate, and the ratio is
that of the medians. `shared` is E-TSDM, whose equal conditions cost nothing.
"""

import itertools
import statistics
import time

import torch

import nearzero as nz
from nearzero import recipes

TIMES = torch.arange(1, 102, dtype=torch.float64) / 1000


@torch.no_grad()
def naive(denoiser, x0):
    """Two forwards a pair, as Eq. 8 reads."""
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for t, s in itertools.pairwise(TIMES):
        level = denoiser.process(t)
        x = level.alpha.float() * x0 + level.sigma.float() * eps
        told = (denoiser.conditioning(time, level).float().expand(len(x0)) for time in (t, s))
        first, second = (denoiser.network(x, c) for c in told)
        found.append((first - second).flatten(1).norm(dim=1).mean().item())
    return found


def seconds(function, *arguments):
    """How long a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main():
    """Prints a row for each number of images."""
    torch.manual_seed(0)
    images = nz.Pixels().encode(nz.embedded(16).pixels)
    plain, shared = (recipes.small(recipe(), 16, 1) for recipe in (recipes.ddpm, recipes.etsdm))
    network = plain.network.build().eval()
    a, b = plain.denoiser(network), shared.denoiser(network)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; seconds for 100 pairs, median of 5")
    print("images  naive  lipschitz  ratio  shared  ratio")
    for count in (4, 8, 16, 32, 64):
        x0 = images[:: len(images) // count][:count]
        measure = {
            "naive": lambda x0=x0: naive(a, x0),
            "plain": lambda x0=x0: nz.lipschitz(a, x0, times=TIMES),
            "shared": lambda x0=x0: nz.lipschitz(b, x0, times=TIMES),
        }
        taken = {name: [] for name in measure}
        for _ in range(6):
            for name, function in measure.items():
                taken[name].append(seconds(function))
        n, p, s = (statistics.median(values[1:]) for values in taken.values())  # the first round warms up
        print(f"{count:6d}  {n:5.2f}  {p:9.2f}  {p / n:5.2f}  {s:6.2f}  {s / n:5.2f}")


if __name__ == "__main__":
    main()
