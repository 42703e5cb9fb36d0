"""Rollouts: a window that moves on by the stride of its process, for a horizon of any length in constant memory."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dydiff_jax.diffusion import sampler as samplers
from dydiff_jax.diffusion.process import GaussianProcess, white_noise
from dydiff_jax.diffusion.sampler import Sampler, SamplerState
from dydiff_jax.types import Array, Denoiser, Frames, Keys, Levels

#: Maps the clean context [b, p, *s] of a window and the number of its first frame to its denoiser.
Bind = Callable[[Frames, Int[Array, ""]], Denoiser]


class RolloutState(NamedTuple):
    """What goes from one pass to the next.

    Attributes:
      state: of the sampler.
      context: [b, p, *s], the clean frames before those that the window forecasts.
      passes: [], passes done.
    """

    state: SamplerState
    context: Array
    passes: Array


@dataclasses.dataclass(frozen=True)
class Rollout:
    """A window goes from noise to data in passes; each moves it on by the stride and finishes that many frames.

    With N evaluations a frame and g = k / stride passes to fill a window, a pass takes T = N / g evaluations. The
    first g passes are the warm-up, one window from tau = 1 to 0 in N steps, of which the last pass finishes
    frames; then each pass is a window from tau = 1 to 0 in T steps. For a block g = 1, a pass is a block, and its
    context is the last p frames of (context, forecast). For a rolling clock g = k (Rolling Diffusion, Algorithms 2
    and 3, with T0 = k T, so that steps of a frame's own time are 1/N in both phases): with the clock "init" every
    frame receives N evaluations, with "init_rescaled" frame i of the first k receives N + i T.

    Attributes:
      process: the corruption.
      sampler: the update and its window times; its ``nfe`` is N.

    Raises:
      ValueError: N is not a multiple of g, or the timesteps do not fit the process.
    """

    process: GaussianProcess
    sampler: Sampler

    def __post_init__(self) -> None:
        samplers.timesteps_for(self.process, self.sampler)
        if self.sampler.nfe % self.warmup_passes:
            near = max(round(self.sampler.nfe / self.warmup_passes), 1) * self.warmup_passes
            raise ValueError(
                f"nfe: expected a multiple of the {self.warmup_passes} frames of the window, found {self.sampler.nfe}: "
                f"a shift takes nfe / {self.warmup_passes} evaluations; take {near}"
            )
        if self.warmup_passes > 1 and self.sampler.timesteps != "uniform":
            raise ValueError(f'timesteps: a rolling clock needs "uniform", found "{self.sampler.timesteps}"')

    @property
    def warmup_passes(self) -> int:
        """g, the passes that fill the first window; the last of them finishes the first frames."""
        return self.process.num_forecast // self.process.stride

    @property
    def warmup_frames(self) -> int:
        """Frames that leave ``advance`` before those of the forecast, and are none of it."""
        return (self.warmup_passes - 1) * self.process.stride

    def timesteps(self) -> Float[np.ndarray, "passes n"]:
        """Window times of each pass of the warm-up, then of a later one, [g + 1, T + 1]."""
        whole = samplers.timesteps_for(self.process, self.sampler)
        steps = self.sampler.nfe // self.warmup_passes
        pieces = [whole[i * steps : (i + 1) * steps + 1] for i in range(self.warmup_passes)]
        return np.stack([*pieces, whole[:: self.warmup_passes]])

    def begin(self, keys: Keys, context: Frames) -> RolloutState:
        """The first window: clean context [b, p, *s], then pure noise.

        Raises:
          ValueError: context has another number of frames than the process.
        """
        samplers.check_context(self.process, context)
        noise_keys, _ = samplers.split_keys(keys)
        tau = jnp.asarray(self.timesteps()[0, 0], context.dtype)
        state = samplers.begin(noise_keys, self.process, context, tau)
        return RolloutState(state, context, jnp.zeros((), jnp.int32))

    def advance(
        self, keys: Keys, bind: Bind, carry: RolloutState, passes: int, residual_variance: float | Array = 0.0
    ) -> tuple[RolloutState, Frames]:
        """The next passes, in one ``lax.scan`` that traces the network once.

        Args:
          keys: those given to ``begin``; the noise of a pass depends on them and on its number.
          bind: makes the denoiser of a window.
          carry: where to go on.
          passes: how many.
          residual_variance: of the estimate of the last frame's noise, a number or [c]; read where
            ``correlated_noise``.

        Returns:
          What to go on from, and the finished frames [b, passes stride, *s], the first ``warmup_frames`` of a
          rollout being still noisy.
        """
        noise_keys, step_keys = samplers.split_keys(keys)
        process, p = self.process, self.process.num_context
        taus = jnp.asarray(self.timesteps(), carry.state.z.dtype)

        def run_pass(carry: RolloutState, _: None) -> tuple[RolloutState, Frames]:
            sliding = carry.passes >= self.warmup_passes
            grid = taus[jnp.minimum(carry.passes, self.warmup_passes)]
            fresh = white_noise(samplers.fold(noise_keys, carry.passes), carry.state.z)
            moved = self._move(carry, fresh, grid[0], residual_variance)
            carry = jax.tree.map(lambda a, b: jnp.where(sliding, a, b), moved, carry)
            steps = samplers.time_steps(grid, carry.passes * (len(grid) - 1))
            first = jnp.maximum(carry.passes - self.warmup_passes + 1, 0) * process.stride
            denoise = bind(carry.context, first)
            state = samplers.integrate(step_keys, process, denoise, carry.state, steps, self.sampler, sliding)
            return RolloutState(state, carry.context, carry.passes + 1), state.z[:, p : p + process.stride]

        carry, frames = jax.lax.scan(run_pass, carry, length=passes)
        frames = jnp.moveaxis(frames, 0, 1)
        return carry, frames.reshape(frames.shape[0], -1, *frames.shape[3:])

    def _move(
        self, carry: RolloutState, fresh: Frames, tau: Array, residual_variance: float | Array
    ) -> RolloutState:
        """The window one stride on, with the history of its frames, and its context."""
        process, state, (p, stride) = (
            self.process,
            carry.state,
            (self.process.num_context, self.process.stride),
        )
        batch = fresh.shape[0]
        start = process.levels(jnp.broadcast_to(tau, (batch,)), jnp.ones((batch,), bool))
        noise = process.noise(state.eps, state.levels)
        z = process.extend(state.z, noise, fresh, start, stride, residual_variance)
        kept = jnp.concatenate([state.levels.t[:, stride:], start.t[:, -stride:]], axis=1)
        levels = Levels(kept, start.gamma, start.active)
        x0, eps = (jnp.roll(estimate, -stride, axis=1) for estimate in (state.x0, state.eps))
        finished = state.z[:, p : p + stride]
        context = jnp.concatenate([carry.context, finished], axis=1)[:, stride:]
        return RolloutState(SamplerState(z, x0, eps, levels), context, carry.passes)
