"""What is not finite: skip the step, roll back, stop with a report.

A step whose loss or gradient is not finite changes no weight, moment or average; it is counted and its samples are used
up. A roll back takes these from the last good checkpoint, but not the number of the step: step n always trains on
samples n * batch ... (n + 1) * batch - 1. With `Guard.state` saved, a run that stops and goes on is one that does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError, CheckpointError, NumericalError
from nearzero.files import new_folder, write_bytes, write_json

Action = Literal["go", "skip", "overflow", "roll back", "stop"]
COUNTERS = ("in_a_row", "skipped", "overflows", "rolled_back", "good")


@dataclass
class Guard:
    """Says what to do with a step: `patience` bad ones in a row roll back, at most `rollbacks` times; then it stops.

    Five counters: bad steps `in_a_row` and all that were `skipped`; `overflows`, which a loss scaler (float16) left out
    to find its scale and which are no errors; `rolled_back`; and `good`, the step of the checkpoint to roll back to, 0
    for the first weights. Raises ArgumentError for a patience below 1 or rollbacks below 0.
    """

    patience: int = 10
    rollbacks: int = 3
    in_a_row: int = 0
    skipped: int = 0
    overflows: int = 0
    rolled_back: int = 0
    good: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (("patience", self.patience, 1), ("rollbacks", self.rollbacks, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ArgumentError(f"{name} must be an integer of at least {least}, got {value}")

    def check(self, finite: bool, *, overflow: bool = False) -> Action:
        """What to do with a step; only "go" updates. `overflow`: the loss was finite before a scale above 1."""
        if finite:
            self.in_a_row = 0
            return "go"
        if overflow:
            self.overflows += 1
            return "overflow"
        self.skipped += 1
        self.in_a_row += 1
        return "skip" if self.in_a_row < self.patience else self.condemn()

    def condemn(self) -> Action:
        """What to do with weights that are not finite, which skipping does not heal."""
        if self.rolled_back == self.rollbacks:
            return "stop"
        self.in_a_row = 0
        self.rolled_back += 1
        return "roll back"

    def saving(self, step: int) -> None:
        """Makes the checkpoint of `step` the one to roll back to, unless the step before it was bad.

        Call it before `state`, for checkpoints at fixed steps only: one that a signal asks for comes in no other run.
        """
        if not self.in_a_row:
            self.good = step

    def state(self) -> dict[str, int]:
        """The counters, for state.json."""
        return {name: getattr(self, name) for name in COUNTERS}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts the counters back; a missing one is 0. Raises CheckpointError for what is no count."""
        for name in COUNTERS:
            value = state.get(name, 0) if isinstance(state, Mapping) else None
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise CheckpointError(f"state.json counts {value!r} as {name}; restore it or train again")
            setattr(self, name, value)


def is_finite(losses: Tensor, norm: Tensor) -> Tensor:
    """Whether a step is finite: its losses (B,) and its gradients' squared norm; bool () on the losses' device.

    Read it before the optimizer's step, so that no weight sees a bad gradient: a wait for the device once a step. Of
    several processes take the least flag. The square, as Adam's second moment overflows where that of `norm` () does.
    """
    return losses.detach().isfinite().all() & norm.float().square().isfinite().to(losses.device)


class Samples(NamedTuple):
    """What a step saw: global sample indices int64 (B,), data x0, uniform numbers u (B,), noise eps, and conditions."""

    index: Tensor
    x0: Tensor
    u: Tensor
    eps: Tensor
    condition: Mapping[str, Tensor] = {}


def times(objective: Any, denoiser: Denoiser, u: Tensor) -> Tensor | None:
    """The times float64 (B,) that an objective makes of u (B,); None where it does not tell."""
    known = getattr(objective, "times", None)
    return None if known is None else known(u.to(torch.float64), denoiser.process)


def record(
    events: Any, action: Action, guard: Guard, step: int, index: Tensor, losses: Tensor, norm: Tensor, t: Tensor | None
) -> None:
    """One line for an action but "go": the first and last sample, those whose loss is not finite, and their times.

    Sample indices, losses and times are (B,). Where all losses are finite it was the gradient; the report finds whose.
    """
    bad = (~losses.detach().cpu().isfinite()).nonzero().flatten().tolist()
    events.add(
        action,
        step,
        samples=[int(index.min()), int(index.max())],
        what="loss" if bad else "gradient",
        not_finite=[int(index[i]) for i in bad],
        times=None if t is None else [float(t[i]) for i in bad],
        gradient_norm=number(float(norm)),
        **guard.state(),
    )


def give_up(guard: Guard, step: int, *arguments: Any, **facts: Any) -> NumericalError:
    """The error that ends a run, once `report` has had these arguments; a report that fails does not hide it."""
    try:
        where = f"see {report(*arguments, step=step, guard=guard.state(), **facts) / 'report.txt'}"
    except Exception as error:
        where = f"no report could be made ({' '.join(str(error).split())[:200]})"
    return NumericalError(
        f"the loss or its gradient is not finite at step {step}, after {guard.rolled_back} roll backs; {where}, and "
        "lower the learning rate. The last good checkpoint is kept"
    )


def report(
    folder: Path, denoiser: Denoiser, objective: nn.Module, samples: Samples, *, micro: int | None = None, **facts: Any
) -> Path:
    """Writes folder/nan_report/{report.json, report.txt} on a step that is not finite, and returns that folder.

    Time and loss of each sample; those whose gradient is not finite, found by halving; weights and the first layer's
    answer that are not; shares of the squared gradient norm of the finite samples by noise level and by layer. `facts`
    are copied; `micro` samples are taken at once. Changes no gradient, weight or random state. Raises DiskError.
    """
    probe = _Probe(denoiser, objective, samples, times(objective, denoiser, samples.u), micro or len(samples.x0))
    with torch.random.fork_rng(devices=[samples.x0.device] if samples.x0.device.type == "cuda" else []):
        found = {"schema_version": 1, **facts, **probe.look()}
    with new_folder(Path(folder) / "nan_report") as aside:
        write_json(aside / "report.json", found)
        write_bytes(aside / "report.txt", _text(found).encode())
    return Path(folder) / "nan_report"


class _Probe(NamedTuple):
    """Looks at rows int64 (n,) of a batch."""

    denoiser: Denoiser
    objective: nn.Module
    samples: Samples
    t: Tensor | None
    micro: int

    def look(self) -> dict[str, Any]:
        """All but the facts."""
        index, everything = self.samples.index.cpu(), torch.arange(len(self.samples.x0))
        losses = torch.cat([self.losses(rows).detach().double().cpu() for rows in everything.split(self.micro)])
        data = (self.samples.x0.isfinite() & self.samples.eps.isfinite()).flatten(1).all(1).cpu()
        culprits = self.culprits(losses.isfinite().nonzero().flatten())
        healthy = losses.isfinite() & ~torch.isin(everything, culprits)
        t = [None] * len(losses) if self.t is None else self.t.tolist()
        told = zip(index.tolist(), t, losses.tolist(), strict=True)
        return {
            "data_not_finite": index[~data].tolist(),
            "losses_not_finite": index[~losses.isfinite()].tolist(),
            "gradients_not_finite": index[culprits].tolist(),
            "weights_not_finite": [name for name, weight in self.weights().items() if not _finite(weight)],
            "first_layer": self.first_layer(torch.cat([everything[~healthy], everything])[: self.micro]),
            "by_time": self.by_time(healthy, losses),
            "by_layer": self.by_layer(everything[healthy]),
            "samples": [{"index": i, "time": t, "loss": number(loss)} for i, t, loss in told],
        }

    def weights(self) -> dict[str, nn.Parameter]:
        """Everything that learns, by name."""
        learned = {f"objective.{name}": weight for name, weight in self.objective.named_parameters()}
        return {**dict(self.denoiser.network.named_parameters()), **learned}

    def losses(self, rows: Tensor) -> Tensor:
        """Losses (n,) of these rows, at the times that they had in the whole batch if the objective takes times."""
        x0, u, eps = (value[rows.to(value.device)] for value in self.samples[1:4])
        some = {name: value[rows.to(value.device)] for name, value in self.samples.condition.items()}
        at: Any = getattr(self.objective, "at", None)
        if self.t is None or at is None:
            return self.objective(self.denoiser, x0, u, eps, **some)
        return at(self.denoiser, x0, self.t[rows.to(self.t.device)], eps, **some).loss

    def squares(self, rows: Tensor) -> dict[str, float]:
        """The squared norm, weight by weight, of the gradient of these rows' part of the mean loss."""
        weights = {name: weight for name, weight in self.weights().items() if weight.requires_grad}
        total: dict[str, Tensor] = {}
        for part in rows.split(self.micro) if len(rows) else ():
            loss = self.losses(part).sum() / len(self.samples.x0)
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    total[name] = gradient + total.get(name, 0)
        return {name: float(gradient.cpu().double().square().sum()) for name, gradient in total.items()}

    def culprits(self, rows: Tensor) -> Tensor:
        """Those of these rows whose gradient `is_finite` refuses; all of them where it refuses only their sum."""
        if sum(self.squares(rows).values()) <= torch.finfo(torch.float32).max:
            return rows[:0]
        found = torch.cat([self.culprits(half) for half in rows.tensor_split(2)]) if len(rows) > 1 else rows
        return found if len(found) else rows

    def by_time(self, healthy: Tensor, losses: Tensor) -> list[dict[str, Any]]:
        """Shares by log(sigma / alpha), in bins of 1 from -6 to 6; the last ones are open."""
        if self.t is None:
            return []
        edges = torch.arange(-6.0, 7, dtype=torch.float64)
        bins = torch.bucketize(-self.denoiser.process(self.t.cpu()).logsnr.double() / 2, edges)
        rows = {k: (bins == k) & healthy for k in bins.unique().tolist()}
        shares = _shares({k: sum(self.squares(mask.nonzero().flatten()).values()) for k, mask in rows.items()})
        return [
            {
                "log_sigma_over_alpha": [None, *edges.tolist(), None][k : k + 2],
                "samples": int((bins == k).sum()),
                "not_finite": int(((bins == k) & ~healthy).sum()),
                "mean_loss": float(losses[mask].mean()) if mask.any() else None,
                "share": shares[k] if mask.any() else None,
            }
            for k, mask in rows.items()
        ]

    def by_layer(self, rows: Tensor) -> list[dict[str, Any]]:
        """Shares by the module that owns the weight, the largest first."""
        layers: dict[str, float] = {}
        for name, square in self.squares(rows).items():
            layer = name.rpartition(".")[0] or name
            layers[layer] = layers.get(layer, 0.0) + square
        shares = sorted(_shares(layers).items(), key=lambda item: -(item[1] or 0))
        return [{"layer": name, "share": share} for name, share in shares]

    def first_layer(self, rows: Tensor) -> dict[str, Any] | None:
        """The first module whose answer to these rows is not finite, and whether what it was given was."""
        found: list[dict[str, Any]] = []

        def look(name: str, module: nn.Module, given: Any, answer: Any) -> None:
            if not found and not _finite(answer):
                found.append({"layer": name, "kind": type(module).__name__, "input_finite": _finite(given)})

        modules = self.denoiser.network.named_modules()
        hooks = [module.register_forward_hook(partial(look, name or "network")) for name, module in modules]
        try:
            with torch.no_grad():
                self.losses(rows)
        finally:
            for hook in hooks:
                hook.remove()
        return next(iter(found), None)


def number(value: float) -> float | str:
    """A number as strict JSON has it: what is not finite is a string."""
    return value if math.isfinite(value) else str(value)


def _finite(value: Any) -> bool:
    if torch.is_tensor(value):
        return bool(value.isfinite().all())
    return all(map(_finite, value)) if isinstance(value, tuple | list) else True


def _shares(squares: Mapping[Any, float]) -> dict[Any, float | None]:
    total = sum(squares.values())
    return {key: square / total if 0 < total < math.inf else None for key, square in squares.items()}


def _text(found: dict[str, Any]) -> str:
    """The report for people: a line for each fact, then a table for each list of rows."""
    lines, tables = [], []
    for name, value in found.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            tables += ["", name, "\t".join(value[0]), *("\t".join(map(str, row.values())) for row in value)]
        else:
            lines.append(f"{name}: {'none' if value in (None, []) else value}")
    return "\n".join([*lines, *tables]) + "\n"
