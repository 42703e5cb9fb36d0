"""Noise schedules: diffusion time t in [0, 1] to signal and noise amplitude, and the temporal mixing weight.

Every schedule is variance preserving, alpha(t)^2 + sigma(t)^2 = 1, with alpha(0) = 1 and sigma(0) = 0
exactly, and works in the dtype of ``t`` from constants computed in float64. ``logsnr`` returns +inf at t = 0
and, where alpha(1) = 0, -inf at t = 1; a network clips it before embedding it.
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dydiff_jax.types import Array

Times = Float[Array, "*shape"]


@runtime_checkable
class Schedule(Protocol):
    """A map from diffusion time, of any shape, to amplitudes of the same shape."""

    def alpha_bar(self, t: Times) -> Times:
        """Signal power alpha^2."""
        ...

    def alpha(self, t: Times) -> Times:
        """Signal amplitude."""
        ...

    def sigma(self, t: Times) -> Times:
        """Noise amplitude."""
        ...

    def logsnr(self, t: Times) -> Times:
        """log(alpha^2 / sigma^2), unclipped."""
        ...


@dataclasses.dataclass(frozen=True)
class Cosine:
    """The cosine schedule of Nichol and Dhariwal (2021, eq. 17), with the shift of Hoogeboom et al. (2023).

    With offset s, a = (pi/2) s/(1 + s) and theta = (pi/2) t/(1 + s),

        alpha = cos(a + theta) / cos(a),      sigma^2 = sin(theta) sin(theta + 2a) / cos(a)^2,

    which is alpha = cos(pi t/2), sigma = sin(pi t/2) at s = 0. ``shift`` is added to the log SNR.

    Attributes:
      offset: s >= 0; Nichol and Dhariwal use 0.008, for which alpha_bar((i + 1)/1000) is entry i of their
        table of 1000 steps, but for the last entry, which they clip.
      shift: added to the log SNR; 2 log(64/d) for images of d pixels a side, as 64 pixels need none.

    Raises:
      ValueError: offset is negative, or a field is not finite.
    """

    offset: float = 0.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not (self.offset >= 0 and math.isfinite(self.offset)):
            raise ValueError(f"offset: expected a finite number >= 0, found {self.offset}")
        if not math.isfinite(self.shift):
            raise ValueError(f"shift: expected a finite number, found {self.shift}")

    def _unnormalised(self, t: Times) -> tuple[Times, Times]:
        """Signal and noise amplitude up to a common factor; both are exact at their zeros."""
        quarter = 0.5 * math.pi / (1 + self.offset)
        theta, twice_a = quarter * t, 2 * quarter * self.offset
        signal = math.exp(0.5 * self.shift) * jnp.sin(quarter * (1 - t))
        noise = jnp.sqrt(jnp.sin(theta) * jnp.sin(theta + twice_a)) if self.offset else jnp.sin(theta)
        return signal, noise

    def alpha(self, t: Times) -> Times:
        return _share(*self._unnormalised(t))

    def sigma(self, t: Times) -> Times:
        return _share(*reversed(self._unnormalised(t)))

    def alpha_bar(self, t: Times) -> Times:
        return self.alpha(t) ** 2

    def logsnr(self, t: Times) -> Times:
        signal, noise = self._unnormalised(t)
        return 2 * (jnp.log(signal) - jnp.log(noise))


def _share(a: Times, b: Times) -> Times:
    """a / sqrt(a^2 + b^2), at most 1 and exactly 1 at b = 0, which a compiled reciprocal root would miss."""
    return jnp.where(b == 0, 1, jnp.minimum(a / jnp.sqrt(a**2 + b**2), 1))


@dataclasses.dataclass(frozen=True)
class LinearBeta:
    """The linear schedule of Ho et al. (2020), made continuous: a noise rate that is constant in each step.

        log alpha_bar(t) = sum_{j < i} log(1 - beta_j) + (t steps - i) log(1 - beta_i),    i = floor(t steps),

    with beta_j from ``beta_min`` to ``beta_max`` in equal increments. So alpha_bar(i/steps) is the cumulative
    product of the discrete table, to rounding. As alpha(1) > 0, pure noise is not quite the law at t = 1.

    Attributes:
      beta_min: variance added by the first step, in (0, 1).
      beta_max: variance added by the last step, in [beta_min, 1).
      steps: number of discrete steps.

    Raises:
      ValueError: a field is out of its range.
    """

    beta_min: float = 1e-4
    beta_max: float = 0.1
    steps: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < 1:
            raise ValueError(f"beta_min: expected a number in (0, 1), found {self.beta_min}")
        if not self.beta_min <= self.beta_max < 1:
            raise ValueError(f"beta_max: expected a number in [beta_min, 1), found {self.beta_max}")
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, found {self.steps}")

    def _log_alpha_bar(self, t: Times) -> Times:
        betas = np.linspace(self.beta_min, self.beta_max, self.steps)
        table = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
        grid = np.linspace(0.0, 1.0, self.steps + 1)
        return jnp.interp(t, grid.astype(t.dtype), table.astype(t.dtype))

    def alpha_bar(self, t: Times) -> Times:
        return jnp.exp(self._log_alpha_bar(t))

    def alpha(self, t: Times) -> Times:
        return jnp.exp(0.5 * self._log_alpha_bar(t))

    def sigma(self, t: Times) -> Times:
        return jnp.sqrt(-jnp.expm1(self._log_alpha_bar(t)))

    def logsnr(self, t: Times) -> Times:
        log_alpha_bar = self._log_alpha_bar(t)
        return log_alpha_bar - jnp.log(-jnp.expm1(log_alpha_bar))


def gamma_bar(alpha_bar: Times, eta: float) -> Times:
    """The mixing weight gamma = eta alpha_bar + 1 - eta of DyDiff; exactly 1 at alpha_bar = 1 or eta = 0."""
    strength = jnp.asarray(eta, alpha_bar.dtype)  # in this dtype eta + (1 - eta) rounds to 1
    return strength * alpha_bar + (1 - strength)


#: Name -> schedule, as ``config.system.schedule.name`` chooses it.
SCHEDULES: dict[str, type[Schedule]] = {"cosine": Cosine, "linear_beta": LinearBeta}
