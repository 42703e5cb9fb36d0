"""Samplers: a scan over a grid of levels, each step one network evaluation and one update of (x0, eps)."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from dydiff_jax.diffusion.process import Keys, Process, white_noise
from dydiff_jax.types import Array, Denoiser, Frames, Levels, PerFrame

#: Discrete times of the released grid; index i of its table is t = (i + 1) / 1000.
RELEASED_TIMES = 1000


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How to go from noise to data.

    A step from t to s is (x0, eps) = recover(z, prediction); eps' from eps; z_s = forward(x0, eps', s), where

    * "ddim": eps' = eps (Song et al. 2021, eq. 12 with sigma = 0; DyDiff Algorithm 2). First order.
    * "ancestral": eps' = sqrt(1 - rho^2) eps + rho xi with fresh white xi, rho^2 = churn^2 renewal(t, s). At
      churn = 1 the DDPM posterior, and its twin through D for mixed frames (DyDiff Theorem 2). First order.
    * "dpmpp_2m": x0 extrapolated from this and the last evaluation, eps' the residual noise (Lu et al. 2022,
      DPM-Solver++(2M), with the extrapolation in t). Second order, deterministic.

    Attributes:
      method: the update.
      steps: N, network evaluations.
      grid: "uniform" in t from the largest start of the process to 0; or "released", t = (i + 1)/1000 for
        i = 1, 1 + 1000/N, 1 + 2000/N, ... downwards (0.982 first at N = 50), then 0.
      churn: strength of the fresh noise in [0, 1]; read by "ancestral" only.

    Raises:
      ValueError: a field is out of its range.
    """

    method: Literal["ddim", "ancestral", "dpmpp_2m"] = "ddim"
    steps: int = 50
    grid: Literal["uniform", "released"] = "uniform"
    churn: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in ("ddim", "ancestral", "dpmpp_2m"):
            raise ValueError(f'method: expected "ddim", "ancestral" or "dpmpp_2m", found "{self.method}"')
        if self.grid not in ("uniform", "released"):
            raise ValueError(f'grid: expected "uniform" or "released", found "{self.grid}"')
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, found {self.steps}")
        if self.grid == "released" and (RELEASED_TIMES % self.steps or self.steps == RELEASED_TIMES):
            raise ValueError(
                f"steps: the released grid needs a proper divisor of {RELEASED_TIMES}, found {self.steps}"
            )
        if not 0 <= self.churn <= 1:
            raise ValueError(f"churn: expected a strength in [0, 1], found {self.churn}")

    def taus(self, start: float = 1.0) -> Float[np.ndarray, "n"]:
        """Window times [steps + 1], float64, decreasing to 0; the uniform grid begins at ``start``."""
        if self.grid == "uniform":
            return start * np.linspace(1.0, 0.0, self.steps + 1)
        indices = 1 + np.arange(0, RELEASED_TIMES, RELEASED_TIMES // self.steps)
        return np.append((indices[::-1] + 1) / RELEASED_TIMES, 0.0)


def grid_for(process: Process, sampler: Sampler) -> Float[np.ndarray, "n"]:
    """The grid of a sampler for a process, [steps + 1].

    Raises:
      ValueError: the grid starts above the process's max_start.
    """
    taus = sampler.taus(process.max_start)
    if taus[0] > process.max_start:
        raise ValueError(
            f"grid: expected a start at tau <= {process.max_start} for this process, found {taus[0]}; "
            "take fewer steps or the uniform grid"
        )
    return taus


class State(NamedTuple):
    """What a sampler carries: the frames, and the last estimate of x0 with the frames' times it was made at.

    Attributes:
      z: corrupted frames [b, p + k, h, w, c].
      x0: the last estimate, of the same shape.
      t: [b, p + k]; equal to the present time where there is no estimate yet.
    """

    z: Array
    x0: Array
    t: Array


def sample(
    keys: Keys, process: Process, denoise: Denoiser, context: Float[Array, "b p h w c"], sampler: Sampler
) -> Frames:
    """Draw one forecast for each example: N evaluations of ``denoise``, which is traced once.

    Args:
      keys: a typed key for each example, which decides all of its draws, so that chunks of an ensemble can be
        sampled apart.
      process: the corruption.
      denoise: (z, logsnr) to the prediction, its conditions bound.
      context: clean frames [b, p, h, w, c]; a process that corrupts its context reads only their shape.
      sampler: method and grid.

    Returns:
      [b, p + k, h, w, c], in the dtype of context: the context (as given, or sampled if corrupted), then the
      forecast.

    Raises:
      ValueError: context has another number of frames than the process, or the grid starts too high for it.
    """
    if context.shape[1] != process.num_context:
        raise ValueError(f"context: expected {process.num_context} frames, found shape {context.shape}")
    taus = grid_for(process, sampler)
    batch = context.shape[0]
    noise_keys, step_keys = jax.vmap(jax.random.split)(keys).T
    start = process.levels(jnp.full((batch,), taus[0], context.dtype), jnp.zeros((batch,), bool))
    room = jnp.zeros((batch, process.num_forecast, *context.shape[2:]), context.dtype)
    z = process.extend(noise_keys, jnp.concatenate([room, context], axis=1), start, process.num_forecast)
    state = State(z, jnp.zeros_like(z), start.t)
    return integrate(step_keys, process, denoise, state, jnp.asarray(taus, z.dtype), sampler).z


def integrate(
    keys: Keys,
    process: Process,
    denoise: Denoiser,
    state: State,
    taus: Float[Array, "n"],
    sampler: Sampler,
    sliding: Bool[Array, "b"] | None = None,
) -> State:
    """Carry frames along any decreasing grid of window times, from taus[0] to taus[-1], in one ``lax.scan``.

    Args:
      keys: a typed key for each example.
      process: the corruption.
      denoise: (z, logsnr) to the prediction.
      state: frames at taus[0]. A state returned by an earlier call continues its history of estimates.
      taus: [steps + 1] window times; the grid of ``sampler`` is not read.
      sampler: method and churn.
      sliding: kind of window of each example; none slides by default.

    Returns:
      The state at taus[-1].
    """
    batch = state.z.shape[0]
    sliding = jnp.zeros((batch,), bool) if sliding is None else sliding

    def step(state, inputs):
        index, tau_start, tau_end = inputs
        start = process.levels(jnp.broadcast_to(tau_start, (batch,)), sliding)
        end = process.levels(jnp.broadcast_to(tau_end, (batch,)), sliding)
        prediction = denoise(state.z, process.logsnr(start)).astype(state.z.dtype)
        fresh = jnp.zeros_like(state.z)
        if sampler.method == "ancestral":
            fresh = white_noise(jax.vmap(jax.random.fold_in, (0, None))(keys, index), state.z)
        return update(process, sampler, state, prediction, fresh, start, end), None

    steps = (jnp.arange(len(taus) - 1), taus[:-1], taus[1:])
    return jax.lax.scan(step, state, steps)[0]


def update(
    process: Process,
    sampler: Sampler,
    state: State,
    prediction: Frames,
    fresh: Frames,
    start: Levels,
    end: Levels,
) -> State:
    """One step between levels, given the prediction at ``start`` and, for "ancestral", fresh white noise."""
    x0, eps = process.recover(state.z, prediction, start)
    best = x0
    if sampler.method == "ancestral":
        rho2 = sampler.churn**2 * _over_pixels(process.renewal(start, end))
        eps = jnp.sqrt(1 - rho2) * eps + jnp.sqrt(rho2) * fresh
    if sampler.method == "dpmpp_2m":
        weight = _over_pixels(_extrapolation(state.t, start.t, end.t))
        best = (1 + weight) * x0 - weight * state.x0
        eps = process.residual(state.z, best, start)
    return State(process.forward(best, eps, end), x0, start.t)


def _extrapolation(previous: PerFrame, t: PerFrame, s: PerFrame) -> PerFrame:
    """Weight of x0 - x0_previous: (t - s) / (2 (t_previous - t)), to the middle of the step from t to s.

    0 at the last step of a frame (s = 0), where the frame did not move, and without a previous estimate.
    """
    usable = (previous > t) & (s > 0)
    return jnp.where(usable, 0.5 * (t - s) / jnp.where(usable, previous - t, 1), 0)


def _over_pixels(per_frame: PerFrame) -> Float[jax.Array, "b f 1 1 1"]:
    return per_frame[:, :, None, None, None]
