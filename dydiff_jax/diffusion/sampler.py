"""Samplers: a scan over levels, each step one network evaluation and one update of (x0, eps)."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from dydiff_jax.diffusion.process import GaussianProcess, white_noise
from dydiff_jax.types import Array, Denoiser, Frames, Keys, Levels, PerFrame, over_frames

#: Discrete times of the released sampler; index i of its table is t = (i + 1) / 1000.
RELEASED_TIMES = 1000

#: The clean context of a window.
Context = Float[Array, "b p *s"]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How to go from noise to data.

    A step from t to s is (x0, eps) = recover(z, prediction); eps' from eps; z_s = forward(x0, eps', s), where

    * "ddim": eps' = eps (Song et al. 2021, eq. 12 with sigma = 0; DyDiff Algorithm 2). First order.
    * "ancestral": eps' = sqrt(1 - rho^2) eps + rho xi with fresh white xi, rho^2 = churn^2
      refresh_fraction(t, s). At churn = 1 the DDPM posterior, and its twin through D for mixed frames (DyDiff
      Theorem 2). First order.
    * "dpmpp_2m": x0 extrapolated from this and the last evaluation, eps' the residual noise (Lu et al. 2022,
      DPM-Solver++(2M), with the extrapolation in t). Second order, deterministic.

    Attributes:
      name: of the update.
      nfe: N, network evaluations that every frame receives: those of a window whose frames share one time.
      timesteps: "uniform" in t from the largest start of the process to 0; or "released", t = (i + 1)/1000 for
        i = 1, 1 + 1000/N, 1 + 2000/N, ... downwards (0.982 first at N = 50), then 0.
      churn: strength of the fresh noise in [0, 1]; read by "ancestral" only.

    Raises:
      ValueError: a field is out of its range.
    """

    name: Literal["ddim", "ancestral", "dpmpp_2m"] = "ddim"
    nfe: int = 50
    timesteps: Literal["uniform", "released"] = "uniform"
    churn: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in ("ddim", "ancestral", "dpmpp_2m"):
            raise ValueError(f'name: expected "ddim", "ancestral" or "dpmpp_2m", found "{self.name}"')
        if self.timesteps not in ("uniform", "released"):
            raise ValueError(f'timesteps: expected "uniform" or "released", found "{self.timesteps}"')
        if self.nfe < 1:
            raise ValueError(f"nfe: expected at least 1, found {self.nfe}")
        if self.timesteps == "released" and (RELEASED_TIMES % self.nfe or self.nfe == RELEASED_TIMES):
            raise ValueError(
                f"nfe: the released timesteps need a proper divisor of {RELEASED_TIMES}, found {self.nfe}"
            )
        if not 0 <= self.churn <= 1:
            raise ValueError(f"churn: expected a strength in [0, 1], found {self.churn}")

    def taus(self, start: float = 1.0) -> Float[np.ndarray, "n"]:
        """Window times [nfe + 1], float64, decreasing to 0; uniform ones begin at ``start``."""
        if self.timesteps == "uniform":
            return start * np.linspace(1.0, 0.0, self.nfe + 1)
        indices = 1 + np.arange(0, RELEASED_TIMES, RELEASED_TIMES // self.nfe)
        return np.append((indices[::-1] + 1) / RELEASED_TIMES, 0.0)


def timesteps_for(process: GaussianProcess, sampler: Sampler) -> Float[np.ndarray, "n"]:
    """The window times of a sampler for a process, [nfe + 1].

    Raises:
      ValueError: they start above the process's max_start.
    """
    taus = sampler.taus(process.max_start)
    if taus[0] > process.max_start:
        raise ValueError(
            f"timesteps: expected a start at tau <= {process.max_start} for this process, found {taus[0]}; "
            'take a smaller nfe, or "uniform"'
        )
    return taus


class SamplerState(NamedTuple):
    """What a sampler carries: the frames, and the last estimate of (x0, eps) with the levels it was made at.

    Attributes:
      z: corrupted frames [b, p + k, *s].
      x0: the last estimate, of the same shape.
      eps: the last estimate, before any fresh noise.
      levels: of the last estimate; the present ones where there is no estimate yet. A window that moved on keeps
        the times of its estimates, which is all that is read of them.
    """

    z: Array
    x0: Array
    eps: Array
    levels: Levels


class TimeSteps(NamedTuple):
    """Steps of a sampler.

    Attributes:
      number: [n], of each step since the start of the forecast: it tells the noise of one step from another's.
      start: [n], the window time at which the network is evaluated.
      end: [n], the window time after the step.
    """

    number: Array
    start: Array
    end: Array


def time_steps(taus: Float[Array, "n"], first: int | Array = 0) -> TimeSteps:
    """The steps from taus[0] to taus[-1], numbered from ``first``."""
    return TimeSteps(first + jnp.arange(len(taus) - 1), taus[:-1], taus[1:])


def sample(
    keys: Keys, process: GaussianProcess, denoise: Denoiser, context: Context, sampler: Sampler
) -> Frames:
    """Draw one forecast for each example: N evaluations of ``denoise``, which is traced once.

    Args:
      keys: a typed key for each example, which decides all of its draws, so that chunks of an ensemble can be
        sampled apart.
      process: the corruption.
      denoise: (z, logsnr) to the prediction, its conditions bound.
      context: clean frames [b, p, *s]; a process that corrupts its context reads only their shape.
      sampler: the update and its window times.

    Returns:
      [b, p + k, *s], in the dtype of context: the context (as given, or sampled if corrupted), then the
      forecast.

    Raises:
      ValueError: context has another number of frames than the process, or sampling starts too high for it.
    """
    check_context(process, context)
    if process.stride != process.num_forecast:
        raise ValueError(
            f"process: expected one that finishes its {process.num_forecast} frames together, found a stride of "
            f"{process.stride}; use rollout.py"
        )
    taus = jnp.asarray(timesteps_for(process, sampler), context.dtype)
    noise_keys, step_keys = split_keys(keys)
    state = begin(noise_keys, process, context, taus[0])
    return integrate(step_keys, process, denoise, state, time_steps(taus), sampler).z


def check_context(process: GaussianProcess, context: Context) -> None:
    """Raises ValueError unless context has as many frames as the process asks for."""
    if context.shape[1] != process.num_context:
        raise ValueError(f"context: expected {process.num_context} frames, found shape {context.shape}")


def split_keys(keys: Keys) -> tuple[Keys, Keys]:
    """A key for the noise that enters and a key for that of the steps, for each example."""
    noise_keys, step_keys = jax.vmap(jax.random.split)(keys).T
    return noise_keys, step_keys


def begin(noise_keys: Keys, process: GaussianProcess, context: Context, tau: Array) -> SamplerState:
    """The context, then the prior at window time tau."""
    batch = context.shape[0]
    levels = process.levels(jnp.full((batch,), tau, context.dtype), jnp.zeros((batch,), bool))
    room = jnp.zeros((batch, process.num_forecast, *context.shape[2:]), context.dtype)
    window = jnp.concatenate([room, context], axis=1)
    z = process.extend(window, None, white_noise(noise_keys, window), levels, process.num_forecast)
    return SamplerState(z, jnp.zeros_like(z), jnp.zeros_like(z), levels)


def integrate(
    keys: Keys,
    process: GaussianProcess,
    denoise: Denoiser,
    state: SamplerState,
    steps: TimeSteps,
    sampler: Sampler,
    sliding: Bool[Array, ""] | bool = False,
) -> SamplerState:
    """Carry frames along any decreasing window times, in one ``lax.scan``.

    Args:
      keys: a typed key for each example.
      process: the corruption.
      denoise: (z, logsnr) to the prediction.
      state: frames at the first of the times. A state returned by an earlier call continues its history.
      steps: window times; those of ``sampler`` are not read.
      sampler: the update and its churn.
      sliding: whether the window slides, which a synchronous clock does not read.

    Returns:
      The state at the last of the times.
    """
    batch = state.z.shape[0]
    sliding = jnp.broadcast_to(sliding, (batch,))

    def step(state, inputs):
        start = process.levels(jnp.broadcast_to(inputs.start, (batch,)), sliding)
        end = process.levels(jnp.broadcast_to(inputs.end, (batch,)), sliding)
        prediction = denoise(state.z, process.logsnr(start)).astype(state.z.dtype)
        fresh: Frames = jnp.zeros_like(state.z)
        if sampler.name == "ancestral":
            fresh = white_noise(fold(keys, inputs.number), state.z)
        return update(process, sampler, state, prediction, fresh, start, end), None

    return jax.lax.scan(step, state, steps)[0]


def fold(keys: Keys, number: Array | int) -> Keys:
    """A key for each example that depends on a number too."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def update(
    process: GaussianProcess,
    sampler: Sampler,
    state: SamplerState,
    prediction: Frames,
    fresh: Frames,
    start: Levels,
    end: Levels,
) -> SamplerState:
    """One step between levels, given the prediction at ``start`` and, for "ancestral", fresh white noise."""
    x0, estimate = process.recover(state.z, prediction, start)
    best, eps = x0, estimate
    if sampler.name == "ancestral":
        rho2 = sampler.churn**2 * over_frames(process.refresh_fraction(start, end), fresh)
        eps = jnp.sqrt(1 - rho2) * eps + jnp.sqrt(rho2) * fresh
    if sampler.name == "dpmpp_2m":
        weight = over_frames(_extrapolation(state.levels.t, start.t, end.t), x0)
        best = (1 + weight) * x0 - weight * state.x0
        eps = process.residual(state.z, best, start)
    frozen = over_frames(process.frozen(start, end), state.z)
    z = jnp.where(frozen, state.z, process.forward(best, eps, end))
    return SamplerState(z, x0, estimate, start)


def _extrapolation(previous: PerFrame, t: PerFrame, s: PerFrame) -> PerFrame:
    """Weight of x0 - x0_previous: (t - s) / (2 (t_previous - t)), to the middle of the step from t to s.

    0 at the last step of a frame (s = 0), where the frame did not move but by rounding, and without a previous
    estimate.
    """
    usable = (previous - t > 0.01 * (t - s)) & (s > 0)
    return jnp.where(usable, 0.5 * (t - s) / jnp.where(usable, previous - t, 1), 0)
