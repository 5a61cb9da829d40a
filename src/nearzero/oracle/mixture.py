"""A smooth density: a mixture of Gaussians."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nearzero.conditioning import Shared
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError
from nearzero.level import Estimate, Level
from nearzero.oracle.base import DATA, as_tensor, best_denoiser, check_shape
from nearzero.parameterization import Parameterization
from nearzero.process import Process


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
            object.__setattr__(self, name, as_tensor(getattr(self, name), name))
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
        check_shape(x, self.means)
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

    def score(self, x: Tensor, level: Level | None = None) -> Tensor:
        """grad log p_t at x, shaped like x, of the data or at a level; no division by sigma."""
        log_p, y, variance = self._components(x, DATA if level is None else level)
        precise = log_p.softmax(1)[..., None] * y / variance
        return -torch.einsum("bke,kde->bd", precise, self._axes[1]).reshape(x.shape).to(x.dtype)

    def denoiser(
        self, process: Process, parameterization: Parameterization | None = None, shared: Shared | None = None
    ) -> Denoiser:
        """The best denoiser under a process, or the best that is told what `shared` tells.

        It predicts eps unless told otherwise, or v where the process ends without signal.
        """
        return best_denoiser(self, process, parameterization, shared)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n independent draws, (n, *shape), in the means' dtype, from a CPU generator."""
        which = torch.multinomial(self.weights.cpu(), n, replacement=True, generator=generator)
        z = torch.randn(n, self._centres.shape[1], dtype=torch.float64, generator=generator)
        variances, axes = (value[which.to(value.device)] for value in self._axes)
        x = self._centres[which.to(axes.device)] + torch.einsum("ne,nde->nd", variances.sqrt() * z.to(axes), axes)
        return x.reshape(n, *self.means.shape[1:]).to(self.means.dtype)

    def log_prob(self, x: Tensor, level: Level | None = None) -> Tensor:
        """log density in nats of x (B, *shape), (B,): of the data, or of x_t at a level."""
        return self._components(x, DATA if level is None else level)[0].logsumexp(1).to(x.dtype)
