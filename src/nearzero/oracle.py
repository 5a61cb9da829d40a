"""Exact denoisers: data whose best answer is known, so that what a network should say can be computed.

For data x0 and x_t = alpha x0 + sigma eps, the best estimates are the posterior means E[x0 | x_t] and E[eps | x_t], and
log p_t is a mixture of Gaussians. All of it is computed in float64 and cast to the dtype of x; nothing divides by sigma
or alpha except where a finite set of points is asked for its noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from nearzero.conditioning import Time
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError
from nearzero.level import Estimate, Level, expand
from nearzero.parameterization import Epsilon, Parameterization, Velocity, regression_target
from nearzero.process import Process

_DATA = Level(torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))


class Oracle(Protocol):
    """Data that knows its posterior."""

    def posterior(self, x: Tensor, level: Level) -> Estimate:
        """E[x0 | x_t = x] and E[eps | x_t = x], shaped like x (B, ...); level float64 () or (B,)."""
        ...


class Exact(nn.Module):
    """The network, without parameters, whose answer at time c is the best one: F = E[F* | x_t]."""

    def __init__(self, data: Oracle, process: Process, parameterization: Parameterization) -> None:
        super().__init__()
        self.data = data
        self.process = process
        self.parameterization = parameterization

    def forward(self, x_in: Tensor, c: Tensor) -> Tensor:
        """F for a scaled input (B, ...) at times c (B,), as Time() tells them."""
        t = torch.minimum(c.to(torch.float64), c.new_tensor(self.process.end, dtype=torch.float64))  # a float32 end
        level = self.process(t)
        x = x_in.to(torch.float64)
        x0, eps = self.data.posterior(x / expand(self.parameterization.input_scale(level), x), level)
        a, b = regression_target(level, self.parameterization.coefficients(level))  # F* is linear in x0 and eps
        return (expand(a, x) * x0 + expand(b, x) * eps).to(x_in.dtype)


def _denoiser(data: Oracle, process: Process, parameterization: Parameterization | None) -> Denoiser:
    if parameterization is None:
        end = process(torch.tensor(process.end, dtype=torch.float64))
        parameterization = Velocity() if end.alpha == 0 else Epsilon()
    return Denoiser(Exact(data, process, parameterization), process, parameterization, Time())


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Data sum_k w_k N(m_k, S_k), a smooth density: weights (K,), means (K, *shape), covariances (K, d, d).

        p_t = sum_k w_k N(alpha m_k, alpha^2 S_k + sigma^2 I)
        E[eps | x] = sigma sum_k r_k (alpha^2 S_k + sigma^2 I)^-1 (x - alpha m_k),  r_k the posterior of component k
        E[x0 | x]  = sum_k r_k (m_k + alpha S_k (alpha^2 S_k + sigma^2 I)^-1 (x - alpha m_k))

    d is the product of shape. Raises ArgumentError unless the weights are positive and sum to 1 and every covariance
    is symmetric and positive definite.

    >>> data = GaussianMixture([0.3, 0.7], [[0.0, 0.0], [2.0, 0.0]], [torch.eye(2), 0.1 * torch.eye(2)])
    >>> x0, eps = data.denoiser(LinearVP())(torch.ones(1, 2), 0.0)
    >>> x0
    tensor([[1., 1.]])
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        for name in ("weights", "means", "covariances"):
            object.__setattr__(self, name, _tensor(getattr(self, name), name))
        if self.means.ndim < 2 or not self.means.numel():
            raise ArgumentError(f"means must have shape (K, *shape), got {tuple(self.means.shape)}")
        count, d = len(self.means), self.means[0].numel()
        if self.weights.shape != (count,) or self.covariances.shape != (count, d, d):
            raise ArgumentError(
                f"a mixture of {count} components in {d} dimensions needs weights ({count},) and covariances "
                f"({count}, {d}, {d}), got {tuple(self.weights.shape)} and {tuple(self.covariances.shape)}"
            )
        total = self.weights.double().sum().item()
        if not (bool((self.weights > 0).all()) and abs(total - 1) < 1e-6):
            raise ArgumentError(f"weights must be positive and sum to 1, got {self.weights.tolist()}, sum {total:g}")
        asymmetry = (self.covariances - self.covariances.mT).abs().max()
        least, most = self._axes[0].min().item(), self._axes[0].max().item()
        rounding = d * torch.finfo(torch.float64).eps * most  # an eigenvalue below it may as well be 0
        if bool(asymmetry > 1e-6 * self.covariances.abs().max()) or least <= rounding:
            raise ArgumentError(
                f"covariances must be symmetric and positive definite: asymmetry {asymmetry:g}, smallest eigenvalue "
                f"{least:g}; for data without spread use nearzero.PointCloud"
            )

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        """Variances (K, d) and principal axes (K, d, d) of the components."""
        return tuple(torch.linalg.eigh(self.covariances.double()))

    @cached_property
    def _centres(self) -> Tensor:
        """The means (K, d)."""
        return self.means.double().flatten(1)

    def _components(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k p_t(x | k) (B, K), and along the axes of each component x - alpha m and its variance, (B, K, d)."""
        variances, axes = self._axes
        _check_shape(x, self.means)
        alpha, sigma = (value.to(x.device, torch.float64).reshape(-1, 1, 1) for value in level)
        y = x.double().flatten(1)[:, None] - alpha * self._centres
        y = torch.einsum("bkd,kde->bke", y, axes)
        variance = alpha**2 * variances + sigma**2
        log_p = -0.5 * (y**2 / variance + variance.log() + math.log(math.tau)).sum(-1)
        weights = self.weights.double()
        return (weights / weights.sum()).log() + log_p, y, variance

    def posterior(self, x: Tensor, level: Level) -> Estimate:
        """E[x0 | x_t = x] and E[eps | x_t = x], shaped like x (B, *shape)."""
        log_p, y, variance = self._components(x, level)
        share = log_p.softmax(1)
        precise = share[..., None] * y / variance
        alpha, sigma = (value.to(x.device, torch.float64).reshape(-1, 1) for value in level)
        variances, axes = self._axes
        eps = sigma * torch.einsum("bke,kde->bd", precise, axes)
        x0 = share @ self._centres + alpha * torch.einsum("bke,kde->bd", variances * precise, axes)
        return Estimate(x0.reshape(x.shape).to(x.dtype), eps.reshape(x.shape).to(x.dtype))

    def denoiser(self, process: Process, parameterization: Parameterization | None = None) -> Denoiser:
        """The best denoiser under a process. It predicts eps, or v where the process ends without signal."""
        return _denoiser(self, process, parameterization)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n independent draws, (n, *shape), in the means' dtype, from a CPU generator."""
        which = torch.multinomial(self.weights.cpu(), n, replacement=True, generator=generator)
        z = torch.randn(n, self._centres.shape[1], dtype=torch.float64, generator=generator)
        variances, axes = (value[which.to(value.device)] for value in self._axes)
        x = self._centres[which.to(axes.device)] + torch.einsum("ne,nde->nd", variances.sqrt() * z.to(axes), axes)
        return x.reshape(n, *self.means.shape[1:]).to(self.means.dtype)

    def log_prob(self, x: Tensor, level: Level | None = None) -> Tensor:
        """log density in nats of x (B, *shape), (B,): of the data, or of x_t at a level."""
        return self._components(x, _DATA if level is None else level)[0].logsumexp(1).to(x.dtype)


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Data that is one of finitely many points (N, *shape), each as likely: what a network learns that memorises.

        E[x0 | x]  = sum_i r_i p_i,  r = softmax(-|x - alpha p_i|^2 / (2 sigma^2))
        E[eps | x] = (x - alpha E[x0 | x]) / sigma

    At sigma = 0 a sample is its point and says nothing about the noise: E[x0 | x] = x and E[eps | x] = 0.

    >>> x0, eps = PointCloud(torch.zeros(1, 2)).denoiser(LinearVP())(torch.ones(1, 2), 0.5)
    >>> x0
    tensor([[0., 0.]])
    """

    points: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _tensor(self.points, "points"))
        if self.points.ndim < 2 or not self.points.numel():
            raise ArgumentError(f"points must have shape (N, *shape), got {tuple(self.points.shape)}")

    @cached_property
    def _flat(self) -> tuple[Tensor, Tensor]:
        """The points (N, d) and half their squared norms (N,)."""
        points = self.points.double().flatten(1)
        return points, points.square().sum(1) / 2

    def _rows(self, x: Tensor, level: Level) -> list[tuple[Tensor, Tensor, Tensor]]:
        """x (b, d), alpha and sigma (b, 1), cut so that b x N numbers take at most 32 MB."""
        _check_shape(x, self.points)
        b = max(1, 2**22 // len(self.points))
        values = (value.to(x.device, torch.float64).expand(len(x))[:, None] for value in level)
        columns = (x.double().flatten(1), *values)
        return list(zip(*(column.split(b) for column in columns), strict=True))

    def _squares(self, x: Tensor, alpha: Tensor) -> Tensor:
        """|x - alpha p_i|^2, (b, N): by a matrix product, and directly for the nearest, where products cancel."""
        points, half = self._flat
        squares = x.square().sum(1, keepdim=True) - 2 * alpha * (x @ points.T - alpha * half)
        near = squares.topk(min(8, len(points)), largest=False).indices
        return squares.scatter(1, near, (x[:, None] - alpha[:, None] * points[near]).square().sum(-1))

    def posterior(self, x: Tensor, level: Level) -> Estimate:
        """E[x0 | x_t = x] and E[eps | x_t = x], shaped like x (B, *shape)."""
        answers = []
        for y, alpha, sigma in self._rows(x, level):
            noisy = sigma > 0
            width = torch.where(noisy, sigma, 1.0)
            squares = self._squares(y, alpha)
            share = (-(squares - squares.amin(1, keepdim=True)) / width / width / 2).softmax(1)  # width^2 may underflow
            x0 = torch.where(noisy, share @ self._flat[0], y)
            answers.append((x0, torch.where(noisy, (y - alpha * x0) / width, 0.0)))
        x0, eps = (torch.cat(column).reshape(x.shape).to(x.dtype) for column in zip(*answers, strict=True))
        return Estimate(x0, eps)

    def denoiser(self, process: Process, parameterization: Parameterization | None = None) -> Denoiser:
        """The best denoiser under a process. It predicts eps, or v where the process ends without signal."""
        return _denoiser(self, process, parameterization)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n points drawn with replacement, (n, *shape)."""
        return self.points[torch.randint(len(self.points), (n,), generator=generator).to(self.points.device)]

    def log_prob(self, x: Tensor, level: Level | None = None) -> Tensor:
        """In nats, (B,): the log density of x_t at a level; without one the log probability of the point x.

        The data have no density: log_prob(x) is log(how many points equal x / N), -inf off the set.
        Raises ArgumentError for a level with sigma = 0.
        """
        _check_shape(x, self.points)
        log_count = math.log(len(self.points))
        if level is None:
            b = max(1, 2**22 // self.points.numel())
            hits = [(y[:, None] == self.points).flatten(2).all(2).sum(1) for y in x.split(b)]
            return torch.cat(hits).to(x.dtype).log() - log_count
        if bool((level.sigma == 0).any()):
            raise ArgumentError("a finite set has no density at sigma = 0; leave out the level for log probabilities")
        found = []
        for y, alpha, sigma in self._rows(x, level):
            squares = self._squares(y, alpha)
            least = squares.amin(1, keepdim=True)
            near = (-(squares - least) / sigma / sigma / 2).logsumexp(1) - (least / sigma / sigma / 2)[:, 0]
            found.append(near - y.shape[1] * (sigma[:, 0].log() + 0.5 * math.log(math.tau)) - log_count)
        return torch.cat(found).to(x.dtype)


def _check_shape(x: Tensor, data: Tensor) -> None:
    """Raises ArgumentError unless x (B, *shape) is shaped like data (N, *shape)."""
    if x.shape[1:] != data.shape[1:]:
        raise ArgumentError(f"x must be (B, {', '.join(map(str, data.shape[1:]))}), got {tuple(x.shape)}")


def _tensor(value: object, name: str) -> Tensor:
    """A finite float tensor of anything that numbers can be read from."""
    if isinstance(value, (list, tuple)) and any(torch.is_tensor(item) for item in value):
        value = torch.stack([torch.as_tensor(item) for item in value])
    tensor = torch.as_tensor(value)
    tensor = tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())
    if not bool(tensor.isfinite().all()):
        raise ArgumentError(f"{name} holds numbers that are not finite")
    return tensor
