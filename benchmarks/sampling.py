"""What sampling costs beside the network, for each solver and for diffusers' schedulers measured in the same run.

    .venv/bin/python benchmarks/sampling.py

1. Host cost: CPU microseconds per network call with a network that is free (it returns its input), 16 images of
   1 x 16 x 16 in float32, everything included: planning, the first noise, every step. Rounds alternate; medians.
2. The demo's network (701,345 parameters): wall time of sampling over the time of its forwards, alternately.
3. Peak memory, in states x of 64 images, of sampling with a free network: what torch's profiler saw allocated.
"""

import statistics
import time

import torch
from diffusers import schedulers
from torch import nn

import nearzero as nz
from nearzero import recipes
from nearzero.solvers import plan

SHAPE, SEEDS, ROUNDS = (1, 16, 16), range(16), 9
DETERMINISTIC = {
    "Euler": (nz.Euler(), 50),
    "Heun": (nz.Heun(), 35),
    "RungeKutta4": (nz.RungeKutta4(), 48),
    "DDIM": (nz.DDIM(), 50),
    "DPMSolver(3)": (nz.DPMSolver(3), 20),
    "DPMSolverPP 2M": (nz.DPMSolverPP(), 20),
}
STOCHASTIC = {
    "Ancestral": (nz.Ancestral(), 50),
    "DPMSolverPP SDE": (nz.DPMSolverPP(noise=True), 20),
    "Churn": (nz.Churn(10.0), 35),
    "FullDiffusionSolver(2)": (nz.FullDiffusionSolver(2), 50),
}
PEERS = {
    "DDPMScheduler": (schedulers.DDPMScheduler, {}, 50),
    "DDIMScheduler": (schedulers.DDIMScheduler, {}, 50),
    "EulerDiscreteScheduler": (schedulers.EulerDiscreteScheduler, {}, 50),
    "HeunDiscreteScheduler": (schedulers.HeunDiscreteScheduler, {}, 18),
    "DPMSolverMultistepScheduler": (schedulers.DPMSolverMultistepScheduler, {}, 20),
    "DPMSolverSinglestepScheduler": (schedulers.DPMSolverSinglestepScheduler, {}, 20),
    "UniPCMultistepScheduler": (schedulers.UniPCMultistepScheduler, {}, 20),
}
RANDOM_PEERS = ("DDPMScheduler",)


class Free(nn.Module):
    """A network that costs nothing; counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x, c):
        """x itself."""
        self.calls += 1
        return x


def ours(solver, nfe):
    """CPU seconds for each network call of nz.sample."""
    network = Free()
    denoiser = nz.Denoiser(network, nz.DiscreteVP.linear(), nz.Epsilon(), nz.Timestep())
    start = time.process_time()
    nz.sample(denoiser, SHAPE, solver=solver, grid=nz.LogSNRGrid(), nfe=nfe, seeds=SEEDS)
    return (time.process_time() - start) / network.calls


@torch.inference_mode()
def theirs(scheduler, options, steps):
    """CPU seconds for each network call of the usual loop over a diffusers scheduler."""
    generator, network, made = torch.Generator().manual_seed(0), Free(), scheduler(num_train_timesteps=1000, **options)
    start = time.process_time()
    made.set_timesteps(steps)
    x = torch.randn((len(SEEDS), *SHAPE), generator=generator) * made.init_noise_sigma
    for t in made.timesteps:
        F = network(made.scale_model_input(x, t), t)
        x = made.step(F, t, x, return_dict=False)[0]
    return (time.process_time() - start) / network.calls


def host_cost():
    """Prints the first table and the two ratios that are aimed at."""
    jobs = {name: lambda s=s, n=n: ours(s, n) for name, (s, n) in {**DETERMINISTIC, **STOCHASTIC}.items()}
    jobs |= {name: lambda a=a: theirs(*a) for name, a in PEERS.items()}
    taken = {name: [] for name in jobs}
    for _ in range(ROUNDS + 1):
        for name, job in jobs.items():
            taken[name].append(1e6 * job())
    cost = {name: statistics.median(values[1:]) for name, values in taken.items()}  # the first round warms up
    for title, names in (("deterministic", DETERMINISTIC), ("stochastic", STOCHASTIC), ("diffusers", PEERS)):
        print(f"\n{title}: CPU us per network call, median of {ROUNDS}")
        for name in names:
            print(f"  {name:29}{cost[name]:7.0f}")
    worst = max(cost[name] for name in DETERMINISTIC)
    best = min(cost[name] for name in PEERS if name not in RANDOM_PEERS)
    print(
        f"\nthe dearest deterministic solver {worst:.0f} us (goal 50), {worst / best:.2f} of the cheapest scheduler's"
    )
    print(f"{best:.0f} us (goal 0.33)")


def overhead():
    """Prints wall time of sampling over that of its forwards, for the demo's network."""
    recipe = recipes.small(recipes.ddpm(), 16, 1)
    torch.manual_seed(0)
    denoiser, x, c = recipe.denoiser().eval(), torch.randn(16, *SHAPE), torch.full((16,), 500.0)
    print("\nwall time over (calls x forward), demo's network, median of 7")
    for name in ("DDIM", "Heun", "DPMSolver(3)", "DPMSolverPP 2M"):
        solver, nfe = DETERMINISTIC[name]
        ratios = []
        for _ in range(8):
            start = time.perf_counter()
            nz.sample(denoiser, SHAPE, solver=solver, grid=nz.LogSNRGrid(), nfe=nfe, seeds=SEEDS)
            middle = time.perf_counter()
            with torch.inference_mode():
                for _ in range(nfe):
                    denoiser.network(x, c)
            ratios.append((middle - start) / (time.perf_counter() - middle))
        print(f"  {name:29}{statistics.median(ratios[1:]):7.3f}")


def memory():
    """Prints the largest sum of live tensors while sampling, in states."""
    shape, seeds = (3, 64, 64), range(64)
    state = 64 * 3 * 64 * 64 * 4
    denoiser = nz.Denoiser(Free(), nz.DiscreteVP.linear(), nz.Epsilon(), nz.Timestep())
    print("\npeak memory in states x, free network (goal 4)")
    for name, (solver, _) in {**DETERMINISTIC, **STOCHASTIC}.items():
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            nz.sample(denoiser, shape, solver=solver, grid=nz.LogSNRGrid(), steps=len(plan(solver, 12)), seeds=seeds)
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        live = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            live += event.nbytes()
            peak = max(peak, live)
        print(f"  {name:29}{peak / state:7.2f}")


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    host_cost()
    overhead()
    memory()
