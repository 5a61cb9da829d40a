"""What the ODE's likelihood costs beside its network: over evaluations x (forward + backward to the input).

    .venv/bin/python benchmarks/likelihood.py

The demo's network (701,345 parameters) at 16 x 16 with fresh weights, batches of 64 in float32, one Hutchinson probe.
Both are timed alternately; the median of the ratios of CPU time is shown, and the goal is 1.1.
"""

import statistics
import time

import torch

import nearzero as nz
from nearzero import recipes
from nearzero.likelihood import ode_likelihood

ROUNDS = 5


def bare(network, x, c, evaluations):
    """CPU seconds of so many forwards of the network with their vector-Jacobian products."""
    direction = torch.ones_like(x)
    start = time.process_time()
    for _ in range(evaluations):
        y = x.detach().requires_grad_()
        F = network(y, c)
        torch.autograd.grad(F, y, direction)
    return time.process_time() - start


def main():
    """Prints the ratio for each solver."""
    torch.manual_seed(0)
    denoiser = recipes.small(recipes.full_w(), 16, 1).denoiser().eval().requires_grad_(False)
    x, c = torch.randn(64, 1, 16, 16), torch.full((64,), 0.5)
    for name, options in {
        "RK45(1e-3)": {"solver": nz.RK45(1e-3, 1e-3)},
        "RungeKutta4, 8 steps": {"solver": nz.RungeKutta4(), "steps": 8},
        "Heun, 16 steps": {"solver": nz.Heun(), "steps": 16},
    }.items():
        ratios = []
        for _ in range(ROUNDS):
            start = time.process_time()
            found = ode_likelihood(denoiser, x, divergence="hutchinson", **options)
            spent = time.process_time() - start
            ratios.append(spent / bare(denoiser.network, x, c, found.evaluations))
        print(f"{name:22} {found.evaluations:4} evaluations  {statistics.median(ratios):.3f} x their forwards and vjps")


if __name__ == "__main__":
    main()
