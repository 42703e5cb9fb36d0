"""Stochastic advection on a torus: every Fourier mode is an Ornstein-Uhlenbeck process whose phase turns.

    dT/dt = -c . grad T - (lambda - kappa lap) T + noise,

the model of sea surface temperature of Hasselmann (Tellus 28, 473, 1976) and Frankignoul and Hasselmann (Tellus 29,
289, 1977), with an ocean that damps what the atmosphere's white noise stirs, here carried and mixed as well. Lengths
are in grid spacings. With r(k) = lambda + kappa |k|^2, a mode obeys over one interval dt, exactly,

    T(k, t + dt) = A(k) T(k, t) + sqrt(S(k) (1 - |A(k)|^2)) W(k),     A(k) = exp(-(r(k) + i c . k) dt),

where W is the transform of white noise of unit variance at each grid point. At any time the field has the stationary
law of sqrt(S) W; S(k) is the spectrum of the noise, |k|^-slope, over 2 r(k), scaled so that the variance at a grid
point is 1.

At the highest wavenumber of a side with an even number of points, where cos(k x) has no sine beside it, the phase
does not turn with the velocity along that side. All of the law below is that of the field on the grid.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Physics(NamedTuple):
    """What carries, damps, mixes and stirs the field.

    Attributes:
      velocity: c along x and y, in grid spacings over time.
      damping: lambda, above 0.
      diffusion: kappa, in squared grid spacings over time.
      slope: the spectrum of the noise is |k|^-slope, that of the mean as at the smallest |k| above 0; 0 is white.
    """

    velocity: tuple[float, float]
    damping: float
    diffusion: float
    slope: float


class Law(NamedTuple):
    """The law of the field on a grid [h, w], one entry for each mode of `rfft2`, [h, w // 2 + 1]; float64 on the host.

    Attributes:
      transfer: A, complex: the expected mode one interval later over the mode now.
      power: S, the stationary variance of a mode over that of white noise.
      share: of a mode in a mean over the spectrum; it counts twice where its conjugate is not stored, and all sum to 1.
    """

    transfer: np.ndarray
    power: np.ndarray
    share: np.ndarray


def law(grid: tuple[int, int], physics: Physics, interval: float) -> Law:
    """The law of the field on `grid` = (h, w), from one frame to the next."""
    height, width = grid
    k_y, k_x = np.fft.fftfreq(height), np.fft.rfftfreq(width)
    turn_y, turn_x = (np.where(np.abs(k) == 0.5, 0.0, k) for k in (k_y, k_x))
    wavenumber = 2.0 * np.pi * np.hypot(k_y[:, None], k_x)
    rate = physics.damping + physics.diffusion * wavenumber**2
    phase = 2.0 * np.pi * (physics.velocity[0] * turn_x + physics.velocity[1] * turn_y[:, None])
    smallest = 2.0 * np.pi / max(height, width)
    power = np.maximum(wavenumber, smallest) ** -physics.slope / (2.0 * rate)
    share = np.where((k_x == 0.0) | (k_x == 0.5), 1.0, 2.0) * np.full((height, 1), 1.0 / (height * width))
    return Law(np.exp(-(rate + 1j * phase) * interval), power / (share * power).sum(), share)


def stationary(law: Law, noise: jax.Array) -> jax.Array:
    """A field with the stationary law from white noise [..., h, w]."""
    return _filter(np.sqrt(law.power), noise)


def step(law: Law, frame: jax.Array, noise: jax.Array) -> jax.Array:
    """The field one interval later, from white noise of the shape of `frame`, [..., h, w]."""
    innovation = np.sqrt(law.power * (1.0 - np.abs(law.transfer) ** 2))
    return _filter(law.transfer, frame) + _filter(innovation, noise)


def conditional_mean(law: Law, frame: jax.Array, horizon: int) -> jax.Array:
    """E[T_l | T_0 = frame] = A^l T_0 at leads l = 1 .. horizon, [horizon, h, w]."""
    lead = np.arange(1, horizon + 1)[:, None, None]
    return _filter(law.transfer**lead, frame)


def lead_spectrum(law: Law, first: int, second: int) -> np.ndarray:
    """Cov(T_m(k), T_l(k) | T_0) at leads l = first <= m = second, over that of white noise, [h, w // 2 + 1].

    It is A^(m - l) S (1 - |A|^2l), and the covariance between two grid points is its inverse Fourier transform.
    """
    return law.transfer ** (second - first) * law.power * (1.0 - np.abs(law.transfer) ** (2 * first))


def lead_covariance(law: Law, horizon: int) -> np.ndarray:
    """Cov(T_l, T_m | T_0) at one grid point, the same at all of them, at leads 1 .. horizon, [horizon, horizon]."""
    covariance = np.empty((horizon, horizon))
    for first in range(horizon):
        for second in range(first, horizon):
            mean = (law.share * lead_spectrum(law, first + 1, second + 1).real).sum()
            covariance[first, second] = covariance[second, first] = mean
    return covariance


def exact_ensemble(law: Law, key: jax.Array, frame: jax.Array, horizon: int, members: int) -> jax.Array:
    """Independent draws of T_1 .. T_horizon given T_0 = frame [h, w], [members, horizon, h, w]."""

    def advance(now, key):
        later = step(law, now, jax.random.normal(key, now.shape))
        return later, later

    start = jnp.broadcast_to(frame, (members, *frame.shape))
    _, frames = jax.lax.scan(advance, start, jax.random.split(key, horizon))
    return jnp.moveaxis(frames, 0, 1)


def _filter(factor: np.ndarray, field: jax.Array) -> jax.Array:
    return jnp.fft.irfft2(jnp.asarray(factor) * jnp.fft.rfft2(field), s=field.shape[-2:])
