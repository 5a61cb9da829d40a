"""Averages made after training: of any std, at any step, from the power-function averages that checkpoints kept.

The average kept at step t with exponent gamma is int p(tau; t, gamma) theta(tau) dtau over the weights theta of all
steps, with the density p = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]. A sum of kept averages with coefficients x
is the average of density sum x_i p_i, so the x that bring it nearest to a wanted density p in L2 serve for any weights:

    minimise ||sum x_i p_i - p||^2    with sum x_i = 1,

where the condition, this project's own, leaves weights that never changed as they are. For every constant c,

    |reconstructed - wanted| <= residual ||p|| ||theta - c||,    residual = ||sum x_i p_i - p|| / ||p||.

Karras et al., Analyzing and improving the training dynamics of diffusion models, CVPR 2024, Section 3 and Appendix C.
Steps that training skipped or rolled back make the densities, and so the result, approximate.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nearzero.denoiser import Denoiser
from nearzero.ema import Power
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.manifest import checkpoints, problem
from nearzero.run import Run, fill, load_tensors


@dataclass(frozen=True)
class Fit:
    """The average of relative width `std` at `step` as a sum of files: sum of coefficient times file.

    `residual` is the distance of its density from the wanted one over that one's norm, 0 where it was kept.
    """

    step: int
    std: float
    files: tuple[Path, ...]
    coefficients: tuple[float, ...]
    residual: float

    def tensors(self) -> dict[str, Tensor]:
        """The sum in float64, a file at a time, in the types of the files; what is not floating is the last file's.

        Raises CheckpointError where a file is missing, damaged or names other tensors.
        """
        total: dict[str, Tensor] = {}
        known: dict[str, tuple[torch.dtype, torch.Size]] = {}
        for path, coefficient in zip(self.files, self.coefficients, strict=True):
            tensors = load_tensors(path)
            layout = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
            known = known or layout
            if layout != known:
                raise CheckpointError(
                    f"{path} does not hold the tensors of {self.files[0]}; restore it or move it away"
                )
            for name, tensor in tensors.items():
                if not tensor.is_floating_point():
                    total[name] = tensor
                elif name in total:
                    total[name].add_(tensor.double(), alpha=coefficient)
                else:
                    total[name] = coefficient * tensor.double()
        return {name: tensor.to(known[name][0]) for name, tensor in total.items()}


def inner(s: Tensor, a: Tensor, t: Tensor, b: Tensor) -> Tensor:
    """The inner product of two densities, that of step s and exponent a and that of t and b; any shapes that broadcast.

    int_0^m p q dtau = (a + 1) (b + 1) / (a + b + 1) (m / s)^(a + 1) (m / t)^(b + 1) / m,    m = min(s, t)
    """
    m = torch.minimum(s, t)
    return (a + 1) * (b + 1) / (a + b + 1) * (m / s) ** (a + 1) * (m / t) ** (b + 1) / m


def combination(kept: Sequence[tuple[int, float]], step: int, std: float) -> tuple[list[float], float]:
    """The coefficients x of averages kept at (step, std) for the one at `step` of `std`, and the residual.

    With unit densities the Lagrange conditions are A y + c l = b, c y = 1: an N + 1 square system in float64.

    >>> x, residual = combination([(1000, 0.05), (1000, 0.10), (2000, 0.05), (2000, 0.10)], 2000, 0.07)
    >>> [round(each, 3) for each in x], round(residual, 3)
    ([0.009, -0.022, 0.471, 0.543], 0.048)
    """
    s = torch.tensor([at for at, _ in kept], dtype=torch.float64)
    a = torch.tensor([Power(width).gamma for _, width in kept], dtype=torch.float64)
    t, gamma = torch.tensor([float(step), Power(std).gamma], dtype=torch.float64)
    norm, wanted = inner(s, a, s, a).sqrt(), inner(t, gamma, t, gamma).sqrt()
    A = inner(s[:, None], a[:, None], s, a) / norm[:, None] / norm
    b = inner(s, a, t, gamma) / norm / wanted
    c = wanted / norm
    system = torch.cat([torch.cat([A, c[:, None]], 1), torch.cat([c, c.new_zeros(1)])[None]])
    y = torch.linalg.lstsq(system, torch.cat([b, b.new_ones(1)])[:, None], driver="gelsd").solution[:-1, 0]
    square = float(1 - 2 * b @ y + y @ A @ y)
    return (y * c).tolist(), max(square, 0.0) ** 0.5


def fit(run: Run, std: float, *, step: int | None = None) -> Fit:
    """How the run's checkpoints add up to the average of `std` at `step`, the newest checkpoint's unless given.

    Damaged checkpoints are left out with a warning. Raises ArgumentError where the run keeps no power-function average
    or has no weights up to `step`, and CheckpointError where it has no whole checkpoint.
    """
    powers = {file: average.std for file, average in run.recipe.training.kept().items() if isinstance(average, Power)}
    if not powers:
        raise ArgumentError(
            f"{run.path} keeps no power-function average; train with averages=(Power(0.05), Power(0.1)) in its Training"
        )
    found = {path: problem(path) for path in reversed(checkpoints(run.path / "checkpoints"))}
    folders, wrong = [path for path in found if found[path] is None], "; ".join(filter(None, found.values()))
    if not folders:
        raise CheckpointError(f"{run.path} has no whole checkpoint{wrong and ': ' + wrong}; restore one or train again")
    if wrong:
        warnings.warn(f"left out a damaged checkpoint: {wrong}", stacklevel=2)
    last = int(folders[-1].name)
    step = int((run.pin or folders[-1]).name) if step is None else step
    if not 1 <= step <= last:
        raise ArgumentError(f"an average at step {step} needs weights up to there; the checkpoints end at step {last}")
    files = [(folder / f"{file}.safetensors", width) for folder in folders for file, width in powers.items()]
    x, residual = combination([(int(path.parent.name), width) for path, width in files], step, std)
    return Fit(step, std, tuple(path for path, _ in files), tuple(x), residual)


def reconstruct(run: Run, std: float, *, step: int | None = None, device: torch.device | str = "cpu") -> Denoiser:
    """The denoiser with the average of `std` at `step`, made from the run's checkpoints: run.sample(..., denoiser=it).

    See `fit` for how near it comes and for errors.
    """
    with torch.random.fork_rng(devices=[]):  # the fresh weights are thrown away; leave the caller's generator alone
        denoiser = run.recipe.denoiser()
    fill(denoiser.network, fit(run, std, step=step).tensors())
    return denoiser.to(device).eval()
