"""The denoiser: a network that knows its process, its parameterization and its conditioning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nearzero.conditioning import Conditioning
from nearzero.errors import ArgumentError
from nearzero.level import Coefficients, Estimate, Level, Row, check_times, expand
from nearzero.parameterization import Parameterization
from nearzero.process import Clock, Process
from nearzero.process.base import reading


class Denoiser(nn.Module):
    """Estimates x0 and eps from x_t = alpha x0 + sigma eps, at any time in [0, end].

    The network is called as `network(x_in, c, **condition)`: x_in has x's shape and dtype, c has shape (B,) and x's
    dtype, and its answer F has x's shape. It may be any callable module, with or without parameters.
    Raises ArgumentError where the conditioning jumps outside the process, or t has a wrong shape or range.

    >>> denoiser = Denoiser(Zero(), DiscreteVP.linear(), Epsilon(), Timestep(1000))      # predicts eps = 0
    >>> x0, eps = denoiser(torch.ones(2, 3), 1.0)
    >>> x0[0]
    tensor([157.4105, 157.4105, 157.4105])
    """

    def __init__(
        self, network: nn.Module, process: Process, parameterization: Parameterization, conditioning: Conditioning
    ) -> None:
        super().__init__()
        for edge in conditioning.edges(process):
            if edge > process.end:
                raise ArgumentError(
                    f"the conditioning jumps at t = {edge:g}, beyond the process's end {process.end:g}; "
                    "take a shorter interval"
                )
        self.network = network
        self.process = process
        self.parameterization = parameterization
        self.conditioning = conditioning

    def forward(self, x: Tensor, t: Tensor | float, **condition: Tensor) -> Estimate:
        """Estimate(x0, eps) of x (B, ...) at time t, a number or a float tensor () or (B,)."""
        F, _, k = self.output(x, t, **condition)
        A, B, C, D = (expand(value, x) for value in k)
        return Estimate(A * x + B * F, C * x + D * F)

    def score(self, x: Tensor, t: Tensor | float, **condition: Tensor) -> Tensor:
        """The gradient of log p_t at x, shaped like x. Raises ArgumentError where the parameterization has none."""
        t, level = self._at(x, t)
        c_x, c_F = self.parameterization.score_coefficients(level)
        F = self._heard(x, t, level, c_F != 0, condition, (t, level))
        return expand(c_x, x) * x + expand(c_F, x) * F

    def output(self, x: Tensor, t: Tensor | float, **condition: Tensor) -> tuple[Tensor, Level, Coefficients]:
        """The network's own answer F, shaped like x, with the level and coefficients at t, float64 (B,).

        Where nothing that the network says is heard, B = D = 0, it is not asked and F is 0.
        """
        return self.stage(x, t, None, **condition)

    def stage(
        self, x: Tensor, t: Tensor | float, leaving: Tensor | float | None, **condition: Tensor
    ) -> tuple[Tensor, Level, Coefficients]:
        """`output` at a stage t of a solver's step that leaves `leaving` (None: t), whose cell the network is told."""
        t, level = here = self._at(x, t)
        k = self.parameterization.coefficients(level)
        left = here if leaving is None else self._at(x, leaving)
        return self._heard(x, t, level, (k.B != 0) | (k.D != 0), condition, left), level, k

    def _at(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Level]:
        """The times (B,) of the examples, and their levels in float64, both on the CPU."""
        t = torch.as_tensor(t, dtype=None if torch.is_tensor(t) else torch.float64)
        if t.shape not in ((), (len(x),)):
            raise ArgumentError(
                f"t has shape {tuple(t.shape)}; it must be one number or one for each of the {len(x)} examples"
            )
        t = check_times(t, self.process.end).cpu().expand(len(x))
        return t, self.process(t.to(torch.float64))

    def _heard(
        self,
        x: Tensor,
        t: Tensor,
        level: Level,
        heard: Tensor,
        condition: dict[str, Tensor],
        left: tuple[Tensor, Level],
    ) -> Tensor:
        """F for the examples that are heard, 0 for the others."""
        if bool(heard.all()):
            told = self.conditioning.stage(t, level, *left).to(device=x.device, dtype=x.dtype)
            return self.ask(x * expand(self.parameterization.input_scale(level), x), told, **condition)
        F, rows = torch.zeros_like(x), heard.to(x.device)
        if bool(heard.any()):
            here, there = (Level(*(value[heard] for value in one)) for one in (level, left[1]))
            some = {name: value[rows.to(value.device)] for name, value in condition.items()}
            F[rows] = self._heard(x[rows], t[heard], here, heard[heard], some, (left[0][heard], there))
        return F

    def ask(self, x_in: Tensor, told: Tensor, **condition: Tensor) -> Tensor:
        """The network's answer to a scaled input and conditions (B,). Raises ArgumentError unless shaped like x.

        Of a network with twice as many channels, which also learned its variance, the first half is read.
        """
        F = self.network(x_in, told, **condition)
        if F.ndim == x_in.ndim > 2 and F.shape[1] == 2 * x_in.shape[1]:
            F = F[:, : x_in.shape[1]]
        if F.shape != x_in.shape:
            raise ArgumentError(f"the network answers {tuple(F.shape)} to x of {tuple(x_in.shape)}; they must be alike")
        return F

    def rows(
        self,
        times: Tensor,
        leaving: Tensor | None = None,
        asked: Tensor | None = None,
        clock: Clock | None = None,
    ) -> list[Row]:
        """What a solver needs at each of `times`, float64 (n,), as Python floats, all computed at once on the CPU.

        `leaving` are the times that the steps of these stages leave; by default each time itself. `asked`, bool (n,),
        tells where the network is asked; elsewhere, as where a step arrives at data, the row has no coefficients (NaN).
        `clock` is the variable in which the solver steps; by default the process's own. A time within a relative 1e-9
        above an edge counts as on it: so far off comes an edge back through `Rescaled`.
        """
        times = check_times(times, self.process.end).cpu()
        leaving = times if leaving is None else leaving.to(times)
        t = times.to(torch.float64)
        level, left_level = (
            Level(*pair)
            for pair in zip(*(v.chunk(2) for v in self.process(torch.cat([t, leaving.to(t)]))), strict=True)
        )
        here = slice(None) if asked is None else asked.cpu()
        at, before = (Level(*(value[here] for value in one)) for one in (level, left_level))
        told = self.conditioning.stage(times[here], at, leaving[here], before)
        known = (*self.parameterization.coefficients(at), self.parameterization.input_scale(at), told.to(torch.float64))
        if asked is not None:
            known = (torch.full_like(t, torch.nan).masked_scatter(asked.cpu(), value) for value in known)
        edges = t.new_tensor(self.conditioning.edges(self.process))
        left = leaving.to(t) * (1 - 1e-9)  # the rounding that the docstring states
        columns = (
            *(t, *level, *known),
            *(*reading(clock or self.process.clock, t, level), self.process.drift(t), self.process.diffusion2(t)),
            (left[:, None] > edges).sum(1),
        )
        return [Row(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]
