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
from nearzero.solvers import Noiseless, Solver
from nearzero.solvers.adaptive import RK45
from nearzero.times import Times, UniformTimes

Condition = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Likelihood:
    """What `ode_likelihood` found: log densities in nats and their standard errors over probes, (B,); evaluations made.

    `stderr` is 0 for an exact divergence and NaN, unknown, for one probe. `latent` is where each example arrives. All
    are float64, on the data's device; on the CPU where that has no float64 (MPS).
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
    **options: Any,
) -> Tensor:
    """log p(x) in nats, float64 (B,), of data x (B, ...) as the codec encodes them: `ode_likelihood(...).nats`.

    `options` are those of `ode_likelihood`: probes, noise, generator, condition, t_min, between_timesteps.

    >>> data = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    >>> log_likelihood(data.denoiser(LinearSigmaVP()), torch.zeros(1, 2))                    # -log 2 pi
    tensor([-1.8379], dtype=torch.float64)
    """
    return ode_likelihood(denoiser, x, solver=RK45(rtol, atol), divergence=divergence, **options).nats


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
    condition: Condition | None = None,
    t_min: float = 0.0,
    between_timesteps: bool = False,
) -> Likelihood:
    """The density (1) of the probability-flow ODE at data x (B, ...), with `steps` intervals, equal in the clock.

    `solver` is RK45() unless given, for which one interval is enough; RungeKutta4 and Heun have fixed steps. The edges
    of a shared condition end intervals too. "exact" takes one backward pass for each number of an example;
    "hutchinson" one for each of `probes` random directions, which stay the same along a path (from `generator`, CPU; a
    fixed one by default; an example's depend on its place, not on those behind it). The network is asked in x's dtype,
    all else is float64. `condition` holds tensors with an entry for each example. `t_min` takes x for x_{t_min} and
    starts there: for a network that does not exist at 0 (LogSigma), or to see what truncation costs. A network that was
    told whole timesteps in training has no density between them, unless `between_timesteps` says that it interpolates.
    Raises ArgumentError for bad arguments, and for a network whose answer has no gradient in x though it depends on x;
    NumericalError where the path stops being finite.
    Reference: Song et al., Score-based generative modeling through SDEs, ICLR 2021, D.2; FullDiffusion, Eq. 30.
    """
    solver = solver or RK45()
    _check(denoiser, x, solver, steps, divergence, probes, noise, t_min)
    _check_time(denoiser.conditioning, between_timesteps)
    _check_start(denoiser, t_min)
    directions = None
    if divergence == "hutchinson":
        own = _generators(generator or probe_generator(0), len(x))
        drawn = _normal(own, probes, *x.shape[1:]).transpose(0, 1)
        directions = _like(torch.where(drawn < 0, -1.0, 1.0) if noise == "rademacher" else drawn, x)
    field: Any = _Field(denoiser, x, directions, condition or {})
    path, dim = _intervals(denoiser, solver, t_min, steps), field.dim
    state = torch.cat([_exact(x.flatten(1)), _exact(x.new_zeros(len(x), field.count))], dim=1)
    for step in path:
        state = solver.step(field, state, step.row_t, step.row_s, None, step.inner)
        check_finite(state, step)
    latent, logs = state.split([dim, field.count], dim=1)
    sigma = path[-1].row_s.sigma
    prior = -(latent / sigma).square().sum(1) / 2 - dim * (math.log(math.tau) / 2 + math.log(sigma))
    variance = (logs - logs.mean(1, keepdim=True)).square().mean(1) / (field.count - 1)  # 0 / 0 for one probe
    stderr = torch.zeros_like(prior) if directions is None else variance.sqrt()
    return Likelihood(prior + logs.mean(1), stderr, latent.reshape(x.shape), field.evaluations)


def elbo(
    denoiser: Denoiser,
    x: Tensor,
    *,
    draws: int,
    times: Times | None = None,
    generator: torch.Generator | None = None,
    condition: Condition | None = None,
) -> Tensor:
    """A lower bound on log p(x) in nats, (B,), for Nu or W on LinearSigmaVP: the mean of `draws` estimates.

    One example's draws are stratified over `times`, by default UniformTimes: draw i has u in (i, i + 1) / draws. The
    error falls like draws^(-3/2) in t and draws^(-1/2) in the noise; LogTimes has less for sharp data. Raises
    ArgumentError for Velocity or Epsilon, whose score is wrong by a multiple of 1 / sigma: an infinite bound.
    Reference: FullDiffusion, Eq. 16-18.
    """
    if not isinstance(denoiser.parameterization, Nu | W):
        raise ArgumentError(f"{denoiser.parameterization} has an infinite bound; use log_likelihood, or train Nu or W")
    check_data(x)
    if draws < 1:
        raise ArgumentError(f"elbo needs at least 1 draw, got {draws}")
    own = _generators(generator or probe_generator(0), len(x))
    bound, total = VariationalBound(times or UniformTimes()), _exact(x.new_zeros(len(x)))
    with torch.no_grad():
        for i in range(draws):
            u = torch.tensor([torch.rand((), generator=one, dtype=torch.float64) for one in own], dtype=torch.float64)
            eps = _like(_normal(own, *x.shape[1:]), x)
            total -= _exact(bound(denoiser, x, (i + u) / draws, eps, **(condition or {})))
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

    def __init__(self, denoiser: Denoiser, x: Tensor, directions: Tensor | None, condition: Condition) -> None:
        self.denoiser, self.like, self.directions, self.condition = denoiser, x, directions, condition
        self.dim, self.count = math.prod(x.shape[1:]), 1 if directions is None else len(directions)
        self.evaluations, self.heard = 0, False

    def __call__(self, state: Tensor, row: Row) -> Tensor:
        """The slope at a row of `_row`, which bears the later time of its interval as its condition."""
        return self._at(state, torch.full((len(state),), row.t, dtype=torch.float64), row.condition)

    def slope(self, state: Tensor, u: Tensor, leaving: Row) -> Tensor:
        """The slope at clock readings u, float64 (B,)."""
        return self._at(state, self.denoiser.process.clock.t(u), leaving.t)

    def error_norm(self, error: Tensor) -> Tensor:
        """The rms of x's errors or the largest of log p's, whichever is larger: log p is one number beside many."""
        return torch.maximum(error[:, : self.dim].square().mean(1).sqrt(), error[:, self.dim :].abs().amax(1))

    def _at(self, state: Tensor, t: Tensor, leaving: float) -> Tensor:
        self.evaluations += 1
        exact = state[:, : self.dim].reshape(self.like.shape)
        x = _like(exact, self.like).clone().requires_grad_()
        with torch.enable_grad():
            F, _, (A, B, C, D) = self.denoiser.stage(x, t, leaving, **self.condition)
        alpha, sigma = self.denoiser.process.clock.slopes(t)
        of_x, of_F = ((alpha * value + sigma * noise).to(state.device) for value, noise in ((A, C), (B, D)))
        if not self.heard and bool((F != 0).any()):
            self._check_gradient(F, x, t, leaving)
        divergence = (self.dim * of_x)[:, None] + of_F[:, None] * self._divergence(F, x)
        slope = expand(of_x, exact) * exact + expand(of_F, exact) * _exact(F.detach())
        return torch.cat([slope.flatten(1), divergence], dim=1)

    def _divergence(self, F: Tensor, x: Tensor) -> Tensor:
        """div_x F, exact (B, 1), or along each probe (B, count), float64."""
        basis = self.directions
        if basis is None:
            basis = torch.eye(self.dim, dtype=x.dtype, device=x.device).reshape(self.dim, *x.shape[1:])
        along = torch.stack([_exact((_vjp(F, x, e.expand_as(x)) * e).flatten(1)).sum(1) for e in basis], dim=1)
        return along.sum(1, keepdim=True) if self.directions is None else along

    def _check_gradient(self, F: Tensor, x: Tensor, t: Tensor, leaving: float) -> None:
        """Once, that an answer without a gradient in x does not depend on x: not one of a network under no_grad."""
        silent = not bool((_vjp(F, x, torch.ones_like(F)) != 0).any())
        if silent and not torch.equal(self.denoiser.stage(1 - x, t, leaving, **self.condition)[0], F):
            raise ArgumentError("the network's answer has no gradient in x: take no_grad or detach out of its forward")
        self.heard = True


def _intervals(denoiser: Denoiser, solver: Solver, t_min: float, steps: int) -> list[Step]:
    """Steps upwards from t_min to the end, equal in the clock; the edges of a shared condition end one too."""
    process = denoiser.process
    first, last = process.clock.u(torch.tensor([t_min, process.end], dtype=torch.float64))
    times = process.clock.t(first + (last - first) * torch.arange(1, steps, dtype=torch.float64) / steps)
    inside = [*times.tolist(), *(t for t in denoiser.conditioning.edges(process) if t_min < t < process.end)]
    stops = itertools.pairwise([t_min, *sorted(set(inside)), process.end])
    rows = [[_row(process, r, s) for r in (t, *solver.stages(t, s, process), s)] for t, s in stops]
    return [Step(solver, row_t, row_s, inner) for row_t, *inner, row_s in rows]


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
    check_data(x)
    if torch.is_inference_mode_enabled():
        raise ArgumentError("a likelihood needs gradients in x, which inference_mode forbids; use torch.no_grad")
    if not isinstance(solver, Noiseless) or getattr(solver, "clock", None) is not None:
        raise ArgumentError(f"a likelihood follows an ODE in the process's own clock, got {solver}; take RK45 or Heun")
    if isinstance(denoiser, Guided) or isinstance(getattr(denoiser.network, "other", None), Denoiser):  # rescaled, too
        raise ArgumentError("a guided denoiser has no density: its field is that of no distribution; unwrap it")
    for value, known in ((divergence, ("exact", "hutchinson")), (noise, ("rademacher", "gaussian"))):
        if value not in known:
            raise ArgumentError(f"unknown divergence or noise {value!r}; {did_you_mean(str(value), known)}")
    if steps < 1 or probes < 1:
        raise ArgumentError(f"a likelihood needs at least 1 step and 1 probe, got {steps} and {probes}")
    if not 0 <= t_min < denoiser.process.end:
        raise ArgumentError(f"t_min must lie in [0, {denoiser.process.end:g}), got {t_min}")


def check_data(x: Tensor) -> None:
    """Raises ArgumentError unless x is a finite float tensor (B, ...)."""
    if not torch.is_tensor(x) or not x.is_floating_point() or x.ndim < 2 or not bool(x.isfinite().all()):
        raise ArgumentError("a likelihood needs a finite float tensor (B, ...), data as the codec encodes them")


def _check_start(denoiser: Denoiser, t: float) -> None:
    try:
        denoiser.rows(torch.tensor([t], dtype=torch.float64))
    except ArgumentError as error:
        raise ArgumentError(f"{error}; or start above 0: ode_likelihood(..., t_min=0.002)") from error


def _check_time(conditioning: Any, between_timesteps: bool) -> None:
    while hasattr(conditioning, "inner"):
        conditioning = conditioning.inner
    if isinstance(conditioning, Timestep) and not between_timesteps:
        raise ArgumentError(
            "a network told whole timesteps has no field between them; say between_timesteps=True, or train with Time"
        )


def _vjp(F: Tensor, x: Tensor, e: Tensor) -> Tensor:
    found = torch.autograd.grad(F, x, e, retain_graph=True, allow_unused=True)[0] if F.requires_grad else None
    return torch.zeros_like(x) if found is None else found


def _exact(value: Tensor) -> Tensor:
    """In float64 on its device, on the CPU where that has none (MPS)."""
    return (value.cpu() if value.device.type == "mps" else value).to(torch.float64)


def _like(value: Tensor, x: Tensor) -> Tensor:
    """In x's dtype and on its device, rounded first: not every device has float64."""
    return value.to(x.dtype).to(x.device)


def _generators(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """A generator for each example, whose draws depend on its place only, not on how many follow."""
    return [torch.Generator().manual_seed(s) for s in torch.randint(2**63 - 1, (count,), generator=generator).tolist()]


def _normal(generators: list[torch.Generator], *shape: int) -> Tensor:
    """Standard normal numbers, float64 (B, *shape), each example's from its own generator."""
    drawn = torch.empty(len(generators), *shape, dtype=torch.float64)
    for one, row in zip(generators, drawn, strict=True):
        row.normal_(generator=one)
    return drawn
