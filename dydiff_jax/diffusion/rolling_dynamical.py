"""Rolling and dynamical diffusion at once: a rolling clock with frames and noise mixed along time."""

import dataclasses

import jax.numpy as jnp

from dydiff_jax.diffusion.dynamical import MAX_ETA, Dynamical
from dydiff_jax.diffusion.dynamics import dynamics
from dydiff_jax.diffusion.process import Corrupted
from dydiff_jax.diffusion.rolling import Rolling
from dydiff_jax.types import Array, Frames, Levels, PerFrame, over_frames


@dataclasses.dataclass(frozen=True)
class RollingDynamical(Dynamical, Rolling):
    """z^w = alpha(t^w) y^w + sigma(t^w) n^w,  y = D_gamma(x0),  n = D_gamma(eps),  gamma^w = gamma(t^w).

    Context frames have gamma(0) = 1, which leaves the joint law of a window as it is when the window moves on. A
    frame that enters must be correlated with the noise of the frame before it, which is known only by its estimate
    n_hat; with the residual variance r = E|n - n_hat|^2,

        n_new = sqrt(1 - gamma(1)) (n_hat + sqrt(r) xi') + sqrt(gamma(1)) xi.

    n_hat is one step old when the window moves on, so a rollout is of first order in the step for every sampler.

    Raises:
      ValueError: what `Rolling` and `Dynamical` refuse; eta above 0.98 also where that is asked for, as the last
        frame of a window is always at t = 1.
    """

    def __post_init__(self) -> None:
        if self.eta > MAX_ETA:
            raise ValueError(
                f"eta: expected at most {MAX_ETA} with a rolling clock, whose last frame starts at t = 1, found "
                f"{self.eta}"
            )
        super().__post_init__()

    @property
    def correlated_noise(self) -> bool:
        return self.mixes_noise

    def refresh_fraction(self, start: Levels, end: Levels) -> PerFrame:
        """min(1 - SNR_start / SNR_end, 4 pi (t - s)); the first where noise is not mixed.

        Without the cap the last steps of a frame would draw a share of its noise afresh that does not fall with the
        size of a step, and pass it on to its neighbours.
        """
        share = super().refresh_fraction(start, end)
        cap = 4 * jnp.pi * jnp.maximum(start.t - end.t, 0)
        return jnp.minimum(share, cap) if self.mixes_noise else share

    def _entering(
        self, noise: Frames, fresh: Corrupted, levels: Levels, residual_variance: float | Array
    ) -> Corrupted:
        """The chain goes on from n_hat; xi' and xi are one white noise of the sum of their variances."""
        if not self.mixes_noise:
            return fresh
        gamma = levels.gamma[:, -fresh.shape[1] :]
        first = over_frames(gamma[:, :1], fresh)
        fresh = jnp.asarray(fresh).at[:, :1].multiply(jnp.sqrt(1 + (1 - first) / first * residual_variance))
        return dynamics(fresh, gamma, initial=noise[:, -1])
