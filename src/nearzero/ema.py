"""Averages of the weights: how much of the average each step keeps, and when it has forgotten the untrained weights.

An average starts as the untrained weights theta_0 and follows, after each step n = 1, 2, ...,

    average <- beta_n average + (1 - beta_n) theta_n
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from nearzero.errors import ArgumentError
from nearzero.registry import register


class Average(Protocol):
    """A running average of the weights; a user's own is a registered frozen dataclass with this method."""

    def beta(self, step: int, batch: int = 1) -> float:
        """How much of the average step `step`, counted from 1, of `batch` images keeps: in [0, 1)."""
        ...


@register
@dataclass(frozen=True)
class EMA:
    """An exponential average of a fixed decay, as DDPM's, with a ramp in steps.

        beta = min(decay, (1 + n) / (ramp + n))

    The ramp forgets the start of training: with a plain 0.9999 a run of 10,000 steps still samples noise.
    """

    decay: float = 0.9999
    ramp: float = 10.0

    def __post_init__(self) -> None:
        if not (0 <= self.decay < 1 and self.ramp >= 1):
            raise ArgumentError(f"EMA needs 0 <= decay < 1 and ramp >= 1, got {self.decay} and {self.ramp}")

    def beta(self, step: int, batch: int = 1) -> float:
        """The factor after step `step`, counted from 1; images are not counted."""
        return min(self.decay, (1 + step) / (self.ramp + step))


@register
@dataclass(frozen=True)
class HalfLife:
    """An exponential average that forgets half in `images` images, EDM's, or earlier in a fixed share of those seen.

        beta = 0.5^(batch / min(images, ramp (n - 1) batch))

    Step 1 has seen none before it and keeps nothing. With ramp = None the half-life is `images` from the start.
    Karras et al., Elucidating the design space of diffusion-based generative models, NeurIPS 2022, and its code.
    """

    images: float = 500_000
    ramp: float | None = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.images < math.inf:
            raise ArgumentError(f"a half-life is a positive number of images, got {self.images}")
        if self.ramp is not None and not 0 < self.ramp < math.inf:
            raise ArgumentError(f"the ramp of a half-life is a positive share of the images seen, or None: {self.ramp}")

    def beta(self, step: int, batch: int = 1) -> float:
        """The factor after step `step`, counted from 1, of `batch` images."""
        half = self.images if self.ramp is None else min(self.images, self.ramp * (step - 1) * batch)
        return 0.5 ** (batch / half) if half > 0 else 0.0


@register
@dataclass(frozen=True)
class Power:
    """A power-function average, EDM2's: its memory is a fixed share of the run, however long the run is.

        beta = (1 - 1 / n)^(gamma + 1)

    Step k <= n then has weight (k^(gamma + 1) - (k - 1)^(gamma + 1)) / n^(gamma + 1), the integral over [k - 1, k] of
    the density p(tau) = (gamma + 1) tau^gamma / n^(gamma + 1); the untrained weights have none. `std` is the standard
    deviation of p over n, from 1e-4 to 12^-1/2, where gamma = 0. Kept at two values of std, an average of any other
    can be made after training: nearzero.posthoc.
    Karras et al., Analyzing and improving the training dynamics of diffusion models, CVPR 2024, Section 3.
    """

    std: float = 0.05

    def __post_init__(self) -> None:
        if not 1e-4 <= self.std <= 12**-0.5:
            raise ArgumentError(f"the std of a power-function average is 0.0001 to 12^-1/2 = 0.2887, got {self.std}")

    @property
    def gamma(self) -> float:
        """The exponent gamma >= 0 with std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

        With a = gamma + 1 and s = 1 / std^2 that is a^3 + 4 a^2 + (5 - s) a + 2 = 0; a = y - 4/3 leaves
        y^3 - 3 c y + 2 d = 0 with c = (s + 1/3) / 3 and d = (2 s + 1/9) / 3, whose greatest root is
        y = 2 sqrt(c) cos(arccos(-d / c^(3/2)) / 3).
        """
        s = self.std**-2
        c, d = (s + 1 / 3) / 3, (2 * s + 1 / 9) / 3
        return 2 * math.sqrt(c) * math.cos(math.acos(-d / c**1.5) / 3) - 7 / 3

    def beta(self, step: int, batch: int = 1) -> float:
        """The factor after step `step`, counted from 1; images are not counted."""
        return (1 - 1 / step) ** (self.gamma + 1)


def initial_share(average: Average, step: int, batch: int = 1) -> float:
    """The weight of the untrained weights in the average after `step` steps: beta_1 beta_2 ... beta_step.

    >>> round(initial_share(EMA(0.9999, ramp=1.0), 10_000), 4)
    0.3679
    >>> initial_share(EMA(0.9999), 10_000) < 1e-17, initial_share(HalfLife(), 1, 512), initial_share(Power(), 1)
    (True, 0.0, 0.0)
    """
    if step == 0:
        return 1.0
    if isinstance(average, EMA):  # up to `risen` the ramp holds: 2 / (ramp + 1) ... (1 + risen) / (ramp + risen)
        risen = int(min(step, max(0.0, (average.decay * average.ramp - 1) / (1 - average.decay))))
        ramp = math.lgamma(risen + 2) + math.lgamma(average.ramp + 1) - math.lgamma(average.ramp + risen + 1)
        return math.exp(ramp) * average.decay ** (step - risen)
    if isinstance(average, HalfLife) and average.ramp is None:
        return 0.5 ** (step * batch / average.images)
    if isinstance(average, HalfLife | Power):
        return 0.0
    return math.prod(average.beta(n, batch) for n in range(1, step + 1))


def early(average: Average, step: int, batch: int = 1, limit: float = 0.05) -> str | None:
    """A note while the untrained weights have more than the share `limit` of the average; None after that.

    Measured by mixing them into the weights of small(etsdm()) for 16 x 16 images after 428 steps: a share of 1 % leaves
    the loss as it is, 5 % adds 3 % to it, 10 % adds 14 %, 20 % adds 64 %, half makes it six times as high.

    >>> early(EMA(0.9999, ramp=1.0), 2000)
    'at step 2000 the average is 81.9 % untrained weights, which makes samples noisy; below 5 % from step 29956 on'
    """
    share = initial_share(average, step, batch)
    if share <= limit:
        return None
    note = f"at step {step} the average is {100 * share:.3g} % untrained weights, which makes samples noisy"
    if not isinstance(average, EMA | HalfLife):
        return note
    low, high = step, 2 * max(step, 1)
    while initial_share(average, high, batch) > limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if initial_share(average, middle, batch) > limit else (low, middle)
    return f"{note}; below {100 * limit:g} % from step {high} on"
