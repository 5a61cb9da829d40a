"""Likelihood without truncated time: the density of the probability-flow ODE, and the variational bound.

    (1)  log p_0(x_0) = log N(x_end; 0, sigma_end^2) + int_0^end div (dx/du) du
    (2)  div (dx/du) = (alpha' A + sigma' C) D + (alpha' B + sigma' D_c) c_in div F,   D numbers in an example

along the path that starts at x_0, in the process's clock u, from exactly t = 0 to exactly the end. Nats.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nearzero.conditioning import Timestep
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError, did_you_mean
from nearzero.guidance import Guided
from nearzero.level import Row, expand
from nearzero.objective import VariationalBound
from nearzero.parameterization import Nu, W
from nearzero.path import Step, check_finite
from nearzero.process import Process
from nearzero.randomness import probe_generator
from nearzero.solvers import Solver
from nearzero.solvers.adaptive import RK45
from nearzero.solvers.ode import Noiseless
from nearzero.times import UniformTimes


@dataclass(frozen=True, eq=False)
class Likelihood:
    """What `ode_likelihood` found: log densities in nats and their standard errors over probes, (B,); evaluations made.

    `stderr` is 0 for an exact divergence and NaN, unknown, for one probe. `latent` is where each example arrives.
    """

    nats: Tensor
    stderr: Tensor
    latent: Tensor
    evaluations: int


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    *,
    divergence: Literal["exact", "hutchinson"] = "exact",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    probes: int = 1,
    generator: torch.Generator | None = None,
    condition: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """log p(x) in nats, float64 (B,), of data x (B, ...) as the codec encodes them: `ode_likelihood(...).nats`.

    >>> data = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    >>> log_likelihood(data.denoiser(LinearSigmaVP()), torch.zeros(1, 2))                    # -log 2 pi
    tensor([-1.8379], dtype=torch.float64)
    """
    solver = RK45(rtol, atol)
    return ode_likelihood(
        denoiser, x, solver=solver, divergence=divergence, probes=probes, generator=generator, condition=condition
    ).nats


@torch.no_grad()
def ode_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    *,
    solver: Solver | None = None,
    steps: int = 1,
    divergence: Literal["exact", "hutchinson"] = "exact",
    probes: int = 1,
    noise: Literal["rademacher", "gaussian"] = "rademacher",
    generator: torch.Generator | None = None,
    condition: Mapping[str, Tensor] | None = None,
    t_min: float = 0.0,
    between_timesteps: bool = False,
) -> Likelihood:
    """The density (1) of the probability-flow ODE at data x (B, ...), with `steps` intervals, equal in the clock.

    `solver` is RK45() unless given, for which one interval is enough; RungeKutta4 and Heun have fixed steps. The edges
    of a shared condition end intervals too. "exact" takes one backward pass for each number of an example;
    "hutchinson" one for each of `probes` random directions, which stay the same along a path (from `generator`, CPU; a
    fixed one by default). `condition` holds tensors with an entry for each example. `t_min` takes x for x_{t_min} and
    starts there: for a network that does not exist at 0 (LogSigma), or to see what truncation costs. A network that was
    told whole timesteps in training has no density between them, unless `between_timesteps` says that it interpolates.
    Raises ArgumentError for bad arguments, NumericalError where the path stops being finite.
    Reference: Song et al., Score-based generative modeling through SDEs, ICLR 2021, D.2; FullDiffusion, Eq. 30.
    """
    solver = solver or RK45()
    _check(denoiser, x, solver, steps, divergence, probes, noise, t_min)
    if _whole_timesteps(denoiser.conditioning) and not between_timesteps:
        raise ArgumentError(
            "this network was told whole timesteps: between them its ODE is interpolated by the network, which nothing "
            "trained; say between_timesteps=True to take it so, or train with Time"
        )
    directions = None
    if divergence == "hutchinson":
        generator = generator or probe_generator(0)
        drawn = torch.randn(probes, *x.shape, generator=generator, dtype=x.dtype).to(x.device)
        directions = drawn.sign() if noise == "rademacher" else drawn
    field: Any = _Field(denoiser, x, directions, condition or {})
    state = torch.cat([x.flatten(1).to(torch.float64), x.new_zeros(len(x), field.count, dtype=torch.float64)], dim=1)
    for step in _intervals(denoiser, solver, t_min, steps):
        state = solver.step(field, state, step.row_t, step.row_s, None, step.inner)
        check_finite(state, step)
    latent, logs = state.split([x[0].numel(), field.count], dim=1)
    sigma = denoiser.process(torch.tensor(denoiser.process.end, dtype=torch.float64)).sigma
    prior = -(latent / sigma).square().sum(1) / 2 - x[0].numel() * (math.log(math.tau) / 2 + sigma.log().item())
    logs = logs.to(prior)
    stderr = torch.zeros_like(prior) if directions is None else _spread(logs) / math.sqrt(field.count)
    return Likelihood(prior + logs.mean(1), stderr, latent.reshape(x.shape), field.evaluations)


def _spread(logs: Tensor) -> Tensor:
    """The standard deviation over probes, (B, count) -> (B,); NaN, unknown, for one."""
    return logs.std(1) if logs.shape[1] > 1 else logs.new_full((len(logs),), torch.nan)


def elbo(
    denoiser: Denoiser,
    x: Tensor,
    *,
    draws: int,
    generator: torch.Generator | None = None,
    condition: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """A lower bound on log p(x) in nats, (B,), for Nu or W on LinearSigmaVP: the mean of `draws` estimates.

    The times of one example's draws are stratified: draw i lies in (i, i + 1) / draws. Unbiased for the bound; its
    error falls like draws^(-3/2) in t and draws^(-1/2) in the noise. Raises ArgumentError for another parameterization:
    with Velocity or Epsilon the bound is infinite, because the error of the score does not vanish at t = 0.
    Reference: FullDiffusion, Eq. 16-18.
    """
    if not isinstance(denoiser.parameterization, Nu | W):
        raise ArgumentError(
            f"{type(denoiser.parameterization).__name__} has an infinite bound: its score's error grows like 1 / sigma "
            "at t = 0; use log_likelihood, or train Nu or W"
        )
    if draws < 1:
        raise ArgumentError(f"elbo needs at least 1 draw, got {draws}")
    generator = generator or probe_generator(0)
    bound, total = VariationalBound(UniformTimes()), torch.zeros(len(x), dtype=torch.float64)
    with torch.no_grad():
        for i in range(draws):
            u = (i + torch.rand(len(x), generator=generator, dtype=torch.float64)) / draws
            eps = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
            total -= bound(denoiser, x, u, eps, **(condition or {})).to("cpu", torch.float64)
    return total / draws


def bits_per_dim(nats: Tensor, dim: int) -> Tensor:
    """-nats / (dim log 2): the cost of an example of `dim` numbers whose log density is `nats`.

    For 8-bit images `nats` is the density of pixel values: the model's, plus the codec's log_determinant(dim).
    """
    if dim < 1:
        raise ArgumentError(f"bits_per_dim needs a positive number of dimensions, got {dim}")
    return -nats / (dim * math.log(2))


class _Field:
    """d(x, log p) / du about states (B, D + count) in float64: the slope of x, and a divergence for each probe."""

    def __init__(
        self, denoiser: Denoiser, x: Tensor, directions: Tensor | None, condition: Mapping[str, Tensor]
    ) -> None:
        self.denoiser, self.like, self.directions, self.condition = denoiser, x, directions, condition
        self.count = 1 if directions is None else len(directions)
        self.evaluations = 0

    def __call__(self, state: Tensor, row: Row) -> Tensor:
        """The slope at a row of `_row`, which bears the later time of its interval as its condition."""
        return self._at(state, torch.full((len(state),), row.t, dtype=torch.float64), row.condition)

    def slope(self, state: Tensor, u: Tensor, leaving: Row) -> Tensor:
        """The slope at clock readings u, float64 (B,)."""
        return self._at(state, self.denoiser.process.clock.t(u), leaving.t)

    def error_norm(self, error: Tensor) -> Tensor:
        """The rms of x's errors or the largest of log p's, whichever is larger: log p is one number beside many."""
        dim = self.like[0].numel()
        return torch.maximum(error[:, :dim].square().mean(1).sqrt(), error[:, dim:].abs().amax(1))

    def _at(self, state: Tensor, t: Tensor, leaving: float) -> Tensor:
        self.evaluations += 1
        dim = self.like[0].numel()
        x = state[:, :dim].reshape(self.like.shape).to(self.like).requires_grad_()
        with torch.enable_grad():
            F, _, (A, B, C, D) = self.denoiser.stage(x, t, leaving, **self.condition)
        alpha, sigma = self.denoiser.process.clock.slopes(t)
        of_x, of_F = alpha * A + sigma * C, alpha * B + sigma * D
        slope = expand(of_x, x) * x.detach() + expand(of_F, x) * F.detach()
        divergence = (dim * of_x)[:, None] + of_F[:, None] * self._divergence(F, x).cpu()
        return torch.cat([slope.flatten(1).to(state), divergence.to(state)], dim=1)

    def _divergence(self, F: Tensor, x: Tensor) -> Tensor:
        """div_x F, exact (B, 1), or along each probe (B, count), float64."""
        if not F.requires_grad:
            return torch.zeros(len(x), self.count, dtype=torch.float64)  # an answer that does not depend on x
        if self.directions is not None:
            along = [(_vjp(F, x, e) * e).flatten(1).double().sum(1) for e in self.directions]
            return torch.stack(along, dim=1)
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for i in range(x[0].numel()):
            row = torch.zeros_like(F).flatten(1)
            row[:, i] = 1
            total += _vjp(F, x, row.reshape(F.shape)).flatten(1)[:, i].double()
        return total[:, None]


def _intervals(denoiser: Denoiser, solver: Solver, t_min: float, steps: int) -> list[Step]:
    """Steps upwards from t_min to the end, equal in the clock; the edges of a shared condition end one too."""
    process = denoiser.process
    ends = process.clock.u(torch.tensor([t_min, process.end], dtype=torch.float64))
    times = process.clock.t(ends[0] + (ends[1] - ends[0]) * torch.arange(steps + 1, dtype=torch.float64) / steps)
    inside = [*times[1:-1].tolist(), *(t for t in denoiser.conditioning.edges(process) if t_min < t < process.end)]
    stops = itertools.pairwise([t_min, *sorted(set(inside)), process.end])
    found = []
    for t, s in stops:
        inner = [_row(process, r, s) for r in solver.stages(t, s, process)]
        found.append(Step(solver, _row(process, t, s), _row(process, s, s), inner))
    return found


def _row(process: Process, t: float, later: float) -> Row:
    """A row of an interval that ends at `later`, whose estimate is the slope itself: d state / du = F."""
    time = torch.tensor([t], dtype=torch.float64)
    alpha, sigma = (value.item() for value in process(time))
    slope = {"A": 0.0, "B": 0.0, "C": 0.0, "D": 1.0, "alpha_slope": 0.0, "sigma_slope": 1.0}
    told = {"condition": later, "input_scale": 1.0, "clock": process.clock.u(time).item(), "f": 0.0, "g2": 0.0}
    return Row(t=t, alpha=alpha, sigma=sigma, **slope, **told)


def _check(
    denoiser: Denoiser, x: Tensor, solver: Solver, steps: int, divergence: str, probes: int, noise: str, t_min: float
) -> None:
    if not torch.is_tensor(x) or not x.is_floating_point() or x.ndim < 2 or not bool(x.isfinite().all()):
        raise ArgumentError("a likelihood needs a finite float tensor (B, ...), data as the codec encodes them")
    if not isinstance(solver, Noiseless) or getattr(solver, "clock", None) is not None:
        raise ArgumentError(f"a likelihood follows an ODE in the process's own clock, got {solver}; take RK45 or Heun")
    if isinstance(denoiser, Guided):
        raise ArgumentError("a guided denoiser has no density: its field is that of no distribution; unwrap it")
    for value, known, what in (
        *((divergence, ("exact", "hutchinson"), "divergence"), (noise, ("rademacher", "gaussian"), "noise")),
    ):
        if value not in known:
            raise ArgumentError(f"unknown {what} {value!r}; {did_you_mean(str(value), known)}")
    if steps < 1 or probes < 1:
        raise ArgumentError(f"a likelihood needs at least 1 step and 1 probe, got {steps} and {probes}")
    if not 0 <= t_min < denoiser.process.end:
        raise ArgumentError(f"t_min must lie in [0, {denoiser.process.end:g}), got {t_min}")


def _whole_timesteps(conditioning: Any) -> bool:
    """Whether a network was told whole timesteps only."""
    while hasattr(conditioning, "inner"):
        conditioning = conditioning.inner
    return isinstance(conditioning, Timestep)


def _vjp(F: Tensor, x: Tensor, e: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(F, x, e, retain_graph=True)
    return found
