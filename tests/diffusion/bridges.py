"""Exact interpolators and forecasters of an AR(1) process, on the coefficients of a frame's independent draws.

x_{i+1} = a x_i + sqrt(1 - a^2) w has unit variance. A "frame" here holds its coefficients on x_0 and on every draw of
the interpolator, so that what a sampler does to it is its law, without sampling: the sum of squares is the variance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dydiff_jax.diffusion import dyffusion, walk


class Bridge(NamedTuple):
    """The law of x_i given x_0 and x_h; a = 1 is the Brownian bridge of unit increments.

    Attributes:
      a: correlation of a frame with the one before.
      h: the horizon.
      draws: coefficients of a frame beside that on x_0.
    """

    a: float
    h: int
    draws: int

    has_moments = True

    def variance(self, lead):
        """Of x_lead given x_0."""
        return lead if self.a == 1 else 1 - self.a ** (2 * lead)

    def moments(self, x0, xh, lead):
        lead = jnp.asarray(lead, x0.dtype)
        lead = lead[:, None] if lead.ndim else lead
        own, left, whole = (self.variance(i) for i in (lead, self.h - lead, self.h))
        share, rest = self.a**lead * left / whole, self.a ** (self.h - lead) * own / whole
        return share * x0 + rest * xh, jnp.sqrt(jnp.maximum(own * left / whole, 0))

    def noise(self, draw, like):
        return jnp.broadcast_to(jax.nn.one_hot(draw + 1, self.draws + 1, dtype=like.dtype), like.shape)

    def draw(self, draw, x0, xh, lead):
        mean, std = self.moments(x0, xh, lead)
        return mean + std * self.noise(draw, x0)

    def snr_ratio(self, lead, later):
        if self.a == 1:
            return dyffusion.brownian_snr_ratio(lead, later, self.h)
        kept = self.a ** (2 * (later - lead)) * self.variance(lead) * self.variance(self.h - later)
        return kept / (self.variance(later) * self.variance(self.h - lead))

    def forecast(self, x, step):
        """The conditional mean of x_h."""
        return self.a ** (self.h - step.lead) * x

    def start(self):
        """x_0, which is known: the first coefficient."""
        return jax.nn.one_hot(jnp.zeros(1, int), self.draws + 1, dtype=jnp.float64)


class Plain:
    """What a deterministic interpolator has beside its `draw`."""

    has_moments = False

    def moments(self, x0, xh, lead):
        raise NotImplementedError

    def noise(self, draw, like):
        raise NotImplementedError

    def snr_ratio(self, lead, later):
        raise NotImplementedError


def law(bridge, leads, sampler, wanted=None):
    """Coefficients on x_0 [j], and on the draws [j, draws], of the frames at the wanted leads."""

    @jax.jit
    def run(x0):
        return walk.sample(bridge.forecast, bridge, x0, leads, sampler, wanted).frames[0]

    frames = np.asarray(run(bridge.start()))
    return frames[:, 0], frames[:, 1:]
