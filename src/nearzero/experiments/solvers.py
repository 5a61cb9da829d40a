"""The solver lab: what a network evaluation buys where the best denoiser is known exactly; and two studies of EDM's."""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nearzero.codec import Pixels
from nearzero.conditioning import Shared, Time
from nearzero.data import embedded
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError
from nearzero.experiments import demo, theory
from nearzero.experiments.theory import Found
from nearzero.grid import Aligned, AngleGrid, Grid, KarrasGrid, LogSNRGrid, SqrtGrid, UniformGrid
from nearzero.metrics.energy import energy_distance
from nearzero.oracle import GaussianMixture, PointCloud
from nearzero.oracle.base import Exact, ExactShared
from nearzero.parameterization import Denoised, Epsilon, Nu, W
from nearzero.path import Network, begin_all, plan_steps
from nearzero.process import KarrasVE, LinearSigmaVP, LinearVP, Process
from nearzero.randomness import order, probe_generator
from nearzero.recipes import edm, small
from nearzero.report.solvers import CHURN, LAB, STEPS
from nearzero.sampling import sample, trajectory
from nearzero.solvers import Solver, adaptive, churn, exponential, full, ode, plan, sde
from nearzero.training.loop import train

PROCESSES: dict[str, Process] = {"LinearVP": LinearVP(), "KarrasVE": KarrasVE(), "LinearSigmaVP": LinearSigmaVP()}
GRIDS: dict[str, Grid] = {
    **{"uniform t": UniformGrid(), "sqrt t": SqrtGrid(), "angle": AngleGrid()},
    **{"log-SNR": LogSNRGrid(), "Karras": KarrasGrid()},
}
ENDING = ("log-SNR", "Karras")  # their last positive time does not move with the number of steps
SOLVERS: dict[str, Solver] = {
    **{"Euler": ode.Euler(), "DDIM": exponential.DDIM(), "DPM-1": exponential.DPMSolver(1)},
    **{"DPM-2": exponential.DPMSolver(2), "DPM-3": exponential.DPMSolver(3), "DPM++ 2M": exponential.DPMSolverPP()},
    **{"Heun": ode.Heun(), "midpoint": ode.RungeKutta2(), "RK4": ode.RungeKutta4()},
}
STOCHASTIC: dict[str, tuple[Solver, str, str, Any]] = {
    "Euler-Maruyama": (sde.EulerMaruyama(), "LinearVP", "uniform t", None),
    **{f"Ancestral, {v}": (sde.Ancestral(v), "LinearVP", "uniform t", None) for v in ("upper", "lower")},
    "DPM++ SDE": (exponential.DPMSolverPP(noise=True), "LinearVP", "sqrt t", None),
    **{f"Churn {s}": (churn.Churn(float(s)), "KarrasVE", "Karras", None) for s in (0, 10, 40)},
    **{f"Full-{k}, nu": (full.FullDiffusionSolver(k), "LinearSigmaVP", "uniform t", Nu()) for k in (1, 2)},
    "Full-2, w": (full.FullDiffusionSolver(2), "LinearSigmaVP", "uniform t", W()),
    "Full-2 bridge, w": (full.FullDiffusionSolver(2, "bridge"), "LinearSigmaVP", "uniform t", W()),
    "Full-2 fitted, w": (full.FullDiffusionSolver(2, "fitted"), "LinearSigmaVP", "sqrt t", W()),
}
TOLERANCES = tuple(10.0**-k for k in range(1, 9))
TIGHT, NEAR = 1e-10, 0.002  # the reference's tolerance; points have no noise estimate below this sigma / alpha
NFE, CHURNS, RHOS = (10, 20, 40, 80, 160), (0, 10, 20, 40, 80), (1, 3, 5, 7, 9)
SHARED = Shared(Time(), interval=0.1, cells=5)
HEADER = (
    *("kind", "data", "process", "grid", "shared", "solver", "nfe", "evaluations", "error", "error at the last node"),
    *("elsewhere", "order", "mean error", "covariance error", "sliced W2", "why not"),
)


def best(data: Any, process: Process, parameterization: Any = None, shared: Shared | None = None) -> Denoiser:
    """The best denoiser; where it shares, the best for 8 training times a cell."""
    if shared is None:
        return data.denoiser(process, parameterization)
    exact = Exact(data, process, parameterization or Epsilon())
    return Denoiser(ExactShared(exact, shared, per_cell=8), process, exact.parameterization, shared)


def counting(denoiser: Denoiser) -> list[None]:
    """A list that grows with each call of the network from now on."""
    calls: list[None] = []
    denoiser.network.register_forward_hook(lambda *_: calls.append(None))
    return calls


def fitted_order(series: Sequence[Mapping[str, Any]], of: str, doublings: int = 2) -> float | None:
    """-d log error / d log evaluations over the last doublings; None for fewer, for an error of 0, and for points."""
    known = [one for one in series[-doublings - 1 :] if one.get(of) and "elsewhere" not in one]
    ends = [(math.log(one[of]), math.log(one["evaluations"])) for one in known]
    return None if len(ends) <= doublings else (ends[0][0] - ends[-1][0]) / (ends[-1][1] - ends[0][1])


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


class Lab(NamedTuple):
    """Deterministic solvers at work on one set of data: the seeds of the starts, and the evaluations to spend."""

    name: str
    data: Any
    seeds: range
    nfe: Sequence[int]
    shared: Shared | None = None

    def walk(self, process: Process, parameterization: Any, **how: Any) -> tuple[dict[float, Tensor], int]:
        """The states of a path by their times, and how often the network was asked."""
        denoiser = best(self.data, process, parameterization, self.shared)
        calls = counting(denoiser)
        shape = (self.data.points if isinstance(self.data, PointCloud) else self.data.means).shape[1:]
        states = trajectory(denoiser, shape, seeds=self.seeds, dtype=torch.float64, **how)
        return {state.t: state.x for state in states}, len(calls)

    def adaptive(self, process: Process, tolerance: float, *nodes: float) -> tuple[dict[float, Tensor], int]:
        """RK45's path over these nodes, the shared condition's edges and, for points, sigma / alpha = NEAR to 0."""
        pointed = isinstance(self.data, PointCloud)
        near = [process.time_of_logsnr(torch.tensor(-2 * math.log(NEAR), dtype=torch.float64)).item()] * pointed
        times = [*sorted({*nodes, *near, *(self.shared.edges(process) if self.shared else ())}, reverse=True), 0.0]

        def grid(steps: int, process: Process) -> torch.Tensor:
            return torch.tensor(times, dtype=torch.float64)

        solver = adaptive.RK45(tolerance, tolerance)
        return self.walk(process, Denoised() if pointed else None, solver=solver, grid=grid, steps=len(times) - 1)

    def rows(self, processes: Iterable[str], grids: Iterable[str]) -> Iterator[dict[str, Any]]:
        """One row for each process, grid, solver and number of evaluations, and for RK45's tolerances."""
        for name in processes:
            print(f"{self.name}, {name}{', shared' if self.shared else ''}", file=sys.stderr, flush=True)
            process, ends = PROCESSES[name], {}
            head = {"kind": "ODE", "data": self.name, "process": name, "shared": "yes" if self.shared else "no"}
            for grid, solver in itertools.product(grids, SOLVERS):
                series = [self._row(process, grid, solver, nfe, ends) for nfe in self.nfe]
                slope = fitted_order(series, "error at the last node" if grid in ENDING else "error")
                yield from ({**head, "grid": grid, "solver": solver, **one, "order": slope} for one in series)
            exact = ends.get((process.end,)) or self.adaptive(process, TIGHT, process.end)[0]
            for tolerance in TOLERANCES:
                path, calls = self.adaptive(process, tolerance, process.end)
                cells = {"grid": f"tolerance {tolerance:.0e}", "solver": "RK45", "evaluations": calls}
                yield {**head, **cells, **self._error(path[0.0], exact[0.0])}

    def _row(self, process: Process, name: str, solver: str, nfe: int, ends: dict[Any, Any]) -> dict[str, Any]:
        """The errors of one solver with one budget, or why it cannot be; `ends` keeps what they are compared with."""
        grid = Aligned(GRIDS[name], self.shared.edges(process)) if self.shared else GRIDS[name]
        try:
            path, calls = self.walk(process, None, solver=SOLVERS[solver], grid=grid, nfe=nfe)
        except ArgumentError as error:
            return {"nfe": nfe, "why not": str(error)}
        times = [*path]
        nodes = (times[0], times[-2]) if name in ENDING and len(times) > 2 else (times[0],)
        if nodes not in ends:  # the same whatever the number of steps
            ends[nodes] = self.adaptive(process, TIGHT, *nodes)[0]
        found = {"nfe": nfe, "evaluations": calls, **self._error(path[0.0], ends[nodes][0.0])}
        if len(nodes) > 1:
            found["error at the last node"] = _rms(path[nodes[1]] - ends[nodes][nodes[1]])
        return found

    def _error(self, x: Tensor, exact: Tensor) -> dict[str, float]:
        """The rms distance, and for points the share that ends at another point."""
        if not isinstance(self.data, PointCloud):
            return {"error": _rms(x - exact)}
        here, there = (torch.cdist(y.flatten(1), self.data.points.flatten(1)).argmin(1) for y in (x, exact))
        return {"error": _rms(x - exact), "elsewhere": (here != there).double().mean().item()}


@torch.no_grad()
def walk(
    denoiser: Denoiser, solvers: Sequence[Solver], times: Tensor, x: Tensor, draw: torch.Generator | None
) -> Tensor:
    """The end of a path from x (n, ...) at times[0], its noise all from one generator: `sample` for many samples."""
    steps, ready = plan_steps(denoiser, solvers, times), begin_all(solvers)
    network = Network(denoiser, steps, {}, x)
    for one in steps:
        solver = ready[id(one.solver)]
        count = int(solver.noisy(one.row_t, one.row_s))
        noise = torch.randn(count, *x.shape, dtype=x.dtype, generator=draw)
        noise = None if count == 0 else noise[0] if count == 1 else noise
        x = solver.step(network, x, one.row_t, one.row_s, noise, one.inner)
    return x


class Truth:
    """The first two moments of a mixture in the plane, exactly, and n quantiles of 16 projections, from 16 n draws."""

    def __init__(self, data: GaussianMixture, n: int, draw: torch.Generator) -> None:
        w, m = data.weights, data.means
        self.mean = w @ m
        self.covariance = torch.einsum("k,kde->de", w, data.covariances) + (w * (m - self.mean).T) @ (m - self.mean)
        angle = torch.arange(16, dtype=torch.float64) * math.pi / 16
        self.directions = torch.stack([angle.cos(), angle.sin()])
        self.quantiles = (data.sample(16 * n, draw) @ self.directions).sort(0).values[8::16]

    def errors(self, x: Tensor) -> dict[str, float]:
        """Of samples (n, 2): |mean|, the Frobenius norm of the covariance's error, sliced Wasserstein-2."""
        return {
            "mean error": torch.linalg.vector_norm(x.mean(0) - self.mean).item(),
            "covariance error": torch.linalg.matrix_norm(x.T.cov() - self.covariance).item(),
            "sliced W2": _rms((x @ self.directions).sort(0).values - self.quantiles),
        }


def stochastic(seed: int, samples: int, nfe: Sequence[int]) -> Iterator[dict[str, Any]]:
    """How far many samples of each stochastic solver are from the mixture, and of draws of the mixture itself."""
    data, draw = theory.smooth(), probe_generator(seed)
    truth, head = Truth(data, samples, draw), {"kind": "SDE", "data": "plane"}
    for _ in range(4):
        yield {**head, "shared": "no", "solver": "floor", **truth.errors(data.sample(samples, draw))}
    shared = [(name, SHARED) for name, (_, process, *_) in STOCHASTIC.items() if process == "LinearVP"]
    for name, cells in [*((name, None) for name in STOCHASTIC), *shared]:
        solver, process, grid, parameterization = STOCHASTIC[name]
        print(f"{name}{', shared' if cells else ''}", file=sys.stderr, flush=True)
        denoiser = best(data, PROCESSES[process], parameterization, cells)
        calls = counting(denoiser)
        stops = Aligned(GRIDS[grid], cells.edges(denoiser.process)) if cells else GRIDS[grid]
        where = {**head, "process": process, "grid": grid, "shared": "yes" if cells else "no", "solver": name}
        for budget in nfe:
            calls.clear()
            solvers = plan(solver, budget)
            times = stops(len(solvers), denoiser.process)
            x = torch.randn(samples, 2, dtype=torch.float64, generator=draw) * denoiser.process(times[0]).sigma
            found = truth.errors(walk(denoiser, solvers, times, x, draw))
            yield {**where, "nfe": budget, "evaluations": len(calls), **found}


def clothes(size: int) -> Tensor:
    """The embedded images as data, (2000, 1, size, size)."""
    return Pixels().encode(embedded(size).pixels).double()


@theory._on_one_thread
def solvers(seed: int = 0, starts: int = 64, samples: int = 12_000, nfe: Any = NFE, points: int = 256) -> Found:
    """Evaluations against error: all solvers, grids and processes on the mixture and on `points` images of 8 x 8."""
    seeds, cloud = range(seed * starts, (seed + 1) * starts), PointCloud(clothes(8)[:: 2000 // points])
    plane, images = Lab("plane", theory.smooth(), seeds, nfe), Lab("images", cloud, seeds, nfe)
    shared, rows = plane._replace(shared=SHARED), [*plane.rows(PROCESSES, GRIDS), *images.rows(PROCESSES, GRIDS)]
    rows += [*shared.rows(("LinearVP",), ("uniform t", "sqrt t")), *stochastic(seed, samples, nfe)]
    ends = [lab.adaptive(LinearVP(), TOLERANCES[-3], 1.0)[0][0.0] for lab in (plane, shared)]
    summary = {"bias of sharing": _rms(ends[0] - ends[1]), "starts": starts, "samples": samples, "points": points}
    return Found(*LAB, HEADER, [tuple(row.get(name) for name in HEADER) for row in rows], summary)


@theory._on_one_thread
def edm_steps(seed: int = 0, steps: int = 32, draws: int = 32, size: int = 8) -> Found:
    """The local error of one Heun step at each level, from exact noisy data, for several rho (EDM, Appendix D)."""
    x, process, rows, summary = clothes(size), KarrasVE(), [], {}
    labels: Any = embedded(size).labels
    everything = {"images": PointCloud(x), "classes": demo.smooth(x, labels), "plane": theory.smooth()}
    for (name, data), rho in itertools.product(everything.items(), RHOS):
        print(f"{name}, rho {rho}", file=sys.stderr, flush=True)
        denoiser, draw, errors = data.denoiser(process), probe_generator(seed), []
        for t, s in itertools.pairwise(KarrasGrid(rho=float(rho))(steps, process)[:-1].tolist()):
            clean = data.sample(draws, draw)
            noisy = clean + t * torch.randn(clean.shape, generator=draw, dtype=torch.float64)
            ends = torch.tensor([t, s], dtype=torch.float64)
            one, exact = (walk(denoiser, [by], ends, noisy, None) for by in (ode.Heun(), adaptive.RK45(1e-8, 1e-8)))
            errors.append(_rms(one - exact))
            rows.append((name, rho, t, s, errors[-1]))
        logs = torch.tensor(errors, dtype=torch.float64).log10()
        spread = logs[logs.isfinite()].std().item()
        summary.setdefault(name, {})[f"rho {rho}"] = {"spread": spread, "sum": sum(errors), "largest": max(errors)}
    for name, what in [("images", "sum"), *itertools.product(("classes", "plane"), ("spread", "sum"))]:
        summary[name][f"least {what}"] = min(RHOS, key=lambda rho, of=summary[name], k=what: of[f"rho {rho}"][k])
    return Found(*STEPS, ("data", "rho", "sigma", "next sigma", "error"), rows, summary)


def looks(y: Tensor, x: Tensor) -> list[tuple[str, float, float]]:
    """Measures of images y (n, 1, S, S), their means and standard errors; the last is the distance to the images x."""
    k = torch.fft.fftfreq(y.shape[-1]).abs()
    fine = torch.fft.fft2(y, norm="forward").abs().square()[..., torch.maximum(k[:, None], k) > 0.25]
    each = {"detail": fine.flatten(1).sum(1), "variance": y.flatten(1).var(1, correction=0)}
    each |= {"saturation": y.abs().flatten(1).mean(1), "brightness": y.flatten(1).mean(1)}
    values = [(name, one.mean().item(), one.std().item() / math.sqrt(len(y))) for name, one in each.items()]
    distance = energy_distance(y, x)
    return [*values, ("energy distance", distance.value, distance.stderr)]


@theory._on_one_thread
def edm_churn(
    seed: int = 0, churns: Any = CHURNS, steps: int = 200, count: int = 96, samples: int = 20_000, training: int = 100
) -> Found:
    """Samples of 2 `steps` - 1 evaluations under more churn: of exact denoisers, and of one trained briefly."""
    x, draw, data, sheets = clothes(8), probe_generator(seed), theory.smooth(), {}
    truth, exact, recipe = Truth(data, samples, draw), PointCloud(x).denoiser(KarrasVE()), small(edm(), 8, 1)
    recipe = replace(recipe, training=replace(recipe.training, steps=training))
    with tempfile.TemporaryDirectory() as folder:
        print(f"training, {training} steps", file=sys.stderr, flush=True)
        trained = train(recipe, embedded(8), f"{folder}/run", seed=seed).denoiser()
    real = x[order(seed, torch.arange(len(x)), len(x))]
    rows: list[Any] = [("images", None, *row) for row in looks(real[:count], real[count:])]
    rows += [("plane", None, *one, None) for _ in range(5) for one in truth.errors(data.sample(samples, draw)).items()]
    for churned in churns:
        print(f"churn {churned:g}", file=sys.stderr, flush=True)
        solver, times = churn.Churn(float(churned)), KarrasGrid()(steps, KarrasVE())
        noise = times[0] * torch.randn(samples, 2, dtype=torch.float64, generator=draw)
        plane = truth.errors(walk(data.denoiser(KarrasVE()), [solver] * steps, times, noise, draw))
        rows += [("plane", churned, name, value, None) for name, value in plane.items()]
        for name, denoiser, dtype in (("exact", exact, torch.float64), ("trained", trained, torch.float32)):
            how = {"solver": solver, "grid": KarrasGrid(), "steps": steps, "seeds": range(count), "dtype": dtype}
            sheets[f"{name} {churned:g}"] = y = sample(denoiser, x.shape[1:], **how).double()
            rows += [(name, churned, *row) for row in looks(y, x)]
    summary = {"steps": steps, "samples": samples, "images": count, "training steps": training}
    return Found(*CHURN, ("denoiser", "churn", "measure", "value", "standard error"), rows, summary, sheets)
