"""Standard diffusion: one clock for all forecast frames and no mixing."""

import dataclasses

import jax.numpy as jnp

from dydiff_jax.diffusion.process import GaussianProcess
from dydiff_jax.types import PerFrame


@dataclasses.dataclass(frozen=True)
class Standard(GaussianProcess):
    """z = alpha(tau) x0 + sigma(tau) eps (Ho et al. 2020, eq. 4): gamma = 1."""

    def mixing(self, t: PerFrame) -> PerFrame:
        return jnp.ones_like(t)
