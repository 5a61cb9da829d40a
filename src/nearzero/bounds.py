"""The variational bound of a recipe that truncates time, term by term: what each truncation costs is a term of its own.

    -log p(x0) <= E KL(q(x_end | x0) | N(0, sigma_end^2))                       prior
                + 1/2 int E |eps - eps^(x_t, t)|^2 d logSNR, end to t_min       diffusion
                + E[-log N(x0; x_tmin / alpha, (sigma / alpha)^2)]              reconstruction

Reference: Kingma et al., Variational diffusion models, NeurIPS 2021, Eq. 11-15; Song et al., Maximum likelihood
training of score-based diffusion models, NeurIPS 2021.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError
from nearzero.level import Level, expand
from nearzero.likelihood import check_data
from nearzero.randomness import probe_generator


class Terms(NamedTuple):
    """The three terms in nats, float64 (B,) each; minus their sum is a lower bound on log p(x0)."""

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor

    @property
    def bound(self) -> Tensor:
        """The lower bound on log p(x0), (B,)."""
        return -(self.prior + self.diffusion + self.reconstruction)


def truncated_elbo(
    denoiser: Denoiser,
    x: Tensor,
    *,
    t_min: float,
    draws: int,
    generator: torch.Generator | None = None,
    condition: Mapping[str, Tensor] | None = None,
) -> Terms:
    """The bound above for data x (B, ...), by `draws` stratified log-SNRs between those of t_min and of the end.

    The reconstruction is a normal around x_tmin / alpha: a t_min that is too large costs there, one that is too small
    costs variance. Raises ArgumentError where the process ends without signal, whose log-SNR has no end (take LinearVP
    or elbo), or t_min is not inside (0, end).

    >>> data = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    >>> terms = truncated_elbo(data.denoiser(LinearVP()), torch.zeros(1, 2), t_min=1e-3, draws=4)
    >>> bool(terms.bound < -1.8)                                                             # log p(0) = -1.8379
    True
    """
    check_data(x)
    if not 0 < t_min < denoiser.process.end:
        raise ArgumentError(f"t_min must lie inside (0, {denoiser.process.end:g}), got {t_min}")
    if draws < 1:
        raise ArgumentError(f"truncated_elbo needs at least 1 draw, got {draws}")
    first, last = (denoiser.process(torch.tensor(t, dtype=torch.float64)) for t in (t_min, float(denoiser.process.end)))
    if last.alpha == 0:
        raise ArgumentError(
            f"{type(denoiser.process).__name__} ends without signal: its log-SNR has no end; use elbo with Nu or W"
        )
    generator = generator or probe_generator(0)
    span, total = first.logsnr - last.logsnr, torch.zeros(len(x), dtype=torch.float64)
    with torch.no_grad():
        for i in range(draws):
            u = (i + torch.rand(len(x), generator=generator, dtype=torch.float64)) / draws
            total += _error(denoiser, x, last.logsnr + u * span, generator, condition or {})
    dim, size = x[0].numel(), x.to("cpu", torch.float64).flatten(1).square().sum(1)
    prior = size * (last.alpha / last.sigma) ** 2 / 2
    ratio = (first.sigma / first.alpha).log().item()
    reconstruction = torch.full_like(prior, dim * ((1 + math.log(math.tau)) / 2 + ratio))
    return Terms(prior, span / 2 * total / draws, reconstruction)


def _error(
    denoiser: Denoiser, x: Tensor, logsnr: Tensor, generator: torch.Generator, condition: Mapping[str, Tensor]
) -> Tensor:
    """|eps - eps^|^2 for each example at its own log-SNR."""
    t = denoiser.process.time_of_logsnr(logsnr)
    level: Level = denoiser.process(t)
    eps = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    found = denoiser(expand(level.alpha, x) * x + expand(level.sigma, x) * eps, t, **condition).eps
    return (eps - found).to("cpu", torch.float64).flatten(1).square().sum(1)
