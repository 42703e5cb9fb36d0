"""Corruption processes: a method is a clock, a mixing and a noise schedule; all else is shared, and is here.

A window is corrupted as z^s = alpha(t^s) y^s + sigma(t^s) n^s, where y = D_gamma(x0) and n = D_gamma(eps) are
clean frames and white noise mixed along time (DyDiff, arXiv 2503.00951, eq. 4 and 5).
"""

import abc
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, DTypeLike, Float

from dydiff_jax.diffusion import prediction as targets
from dydiff_jax.diffusion.dynamics import dynamics, inverse_dynamics
from dydiff_jax.diffusion.schedules import Schedule
from dydiff_jax.types import Array, Denoiser, Frames, Keys, Levels, PerExample, PerFrame, over_frames

#: The largest tau at which dividing by an amplitude that vanishes at tau = 1 is still usable (alpha = 0.028).
SAFE_START = 0.982

#: log SNR beyond which a level counts as clean or as pure noise.
MAX_LOGSNR = 20.0

#: The frames of a window that are corrupted: all but clean context.
Corrupted = Float[Array, "b g *s"]


@dataclasses.dataclass(frozen=True)
class GaussianProcess(abc.ABC):
    """A corruption of windows of p + k frames of any shape, and how to undo it; the clock is synchronous.

        z = alpha D_gamma(x0) + sigma D_gamma(eps).

    Samplers, rollouts and the loss know a method as this class. A subclass says how frames mix and, where its clock is
    another, overrides `levels`, `draw`, `stride` and `extend`. Every array has the full frame axis.

    With ``context="clean"`` (DyDiff Algorithms 1 and 2) z holds the raw context frames; the data recursion
    runs through them from the oldest, the noise recursion starts undamped at the first forecast frame, and
    loss is on forecast frames. With ``context="noised"`` both recursions start at the oldest context frame,
    and the whole window is noised and scored; what the denoiser knows of the context is bound into it.

    Attributes:
      schedule: t to alpha and sigma.
      num_context: p, context frames.
      num_forecast: k, forecast frames.
      prediction: what the network regresses, in mixed coordinates; v = alpha n - sigma y.
      context: whether context frames are given clean or corrupted like the others.

    Raises:
      ValueError: a number of frames is out of its range.
    """

    schedule: Schedule
    num_context: int
    num_forecast: int
    prediction: Literal["eps", "x0", "v"] = "v"
    context: Literal["clean", "noised"] = "clean"

    def __post_init__(self) -> None:
        if self.num_context < 0:
            raise ValueError(f"num_context: expected 0 or more frames, found {self.num_context}")
        if self.num_forecast < 1:
            raise ValueError(f"num_forecast: expected at least 1 frame, found {self.num_forecast}")
        if self.prediction not in ("eps", "x0", "v"):
            raise ValueError(f'prediction: expected "eps", "x0" or "v", found "{self.prediction}"')
        if self.context not in ("clean", "noised"):
            raise ValueError(f'context: expected "clean" or "noised", found "{self.context}"')

    @property
    def mixes_data(self) -> bool:
        """Whether D on the data is another map than the identity."""
        return False

    @property
    def mixes_noise(self) -> bool:
        """Whether D on the noise is another map than the identity."""
        return False

    @property
    def correlated_noise(self) -> bool:
        """Whether the noise of frames that enter a moving window depends on that of the frames before them.

        Then `extend` reads the residual variance of its estimate.
        """
        return False

    @property
    def num_frames(self) -> int:
        """Frames of a window, p + k."""
        return self.num_context + self.num_forecast

    @property
    def stride(self) -> int:
        """Frames finished by one pass."""
        return self.num_forecast

    @property
    def num_clean(self) -> int:
        """Leading frames that are given, never corrupted."""
        return self.num_context if self.context == "clean" else 0

    @property
    def max_start(self) -> float:
        """The largest tau from which sampling may start.

        1, or 0.982 where an eps prediction would be divided by alpha(1) = 0.
        """
        with jax.ensure_compile_time_eval():
            no_signal = bool(self.schedule.alpha(jnp.ones(())) == 0)
        return SAFE_START if self.prediction == "eps" and no_signal else 1.0

    @abc.abstractmethod
    def mixing(self, t: PerFrame) -> PerFrame:
        """gamma of frames at time t."""

    def levels(self, tau: PerExample, sliding: Bool[Array, "b"]) -> Levels:
        """t = tau on corrupted frames, 0 on clean context; gamma(tau) on all frames; active where t > 0."""
        del sliding  # a synchronous clock has one kind of window
        window = jnp.broadcast_to(tau[:, None], (tau.shape[0], self.num_frames))
        t = jnp.where(jnp.arange(self.num_frames) < self.num_clean, 0, window)
        return Levels(t, self.mixing(window), t > 0)

    def draw(self, keys: Keys, dtype: DTypeLike = jnp.float32) -> Levels:
        """The levels of training examples: tau ~ U(0, 1], each from its own key (Ho et al. 2020, Algorithm 1).

        Args:
          keys: those of the examples; of the three keys in `example_keys` the first gives tau.
          dtype: of t and gamma.
        """
        tau = window_times(keys, dtype)
        return self.levels(tau, jnp.zeros(tau.shape, bool))

    def logsnr(self, levels: Levels) -> PerFrame:
        """The unclipped log SNR of each frame, as given to the denoiser."""
        return self.schedule.logsnr(levels.t)

    def forward(self, x0: Frames, eps: Frames, levels: Levels) -> Frames:
        """Corrupt frames, z = alpha D(x0) + sigma D(eps), deterministic given eps; clean context frames stay raw."""
        alpha, sigma = self._amplitudes(levels, x0)
        z = alpha * self._mix_data(x0, levels) + sigma * self._mix_noise(eps, levels)
        return self._after_clean(x0, z)

    def target(self, x0: Frames, eps: Frames, levels: Levels) -> Frames:
        """What the network regresses: n, y or alpha n - sigma y; 0 on clean context."""
        y, noise = self._mix_data(x0, levels), self._mix_noise(eps, levels)
        wanted = targets.target(self.prediction, y, noise, *self._amplitudes(levels, x0))
        return self._after_clean(jnp.zeros_like(x0), wanted)

    def recover(self, z: Frames, prediction: Frames, levels: Levels) -> tuple[Frames, Frames]:
        """(x0, eps) from the network's prediction: solve for (y, n) and unmix both.

        Frames at t = 0 are kept; eps is 0 on clean context.
        """
        corrupted = slice(self.num_clean, None)
        amplitudes = self._amplitudes(levels, z)
        y, noise = targets.recover(self.prediction, z[:, corrupted], prediction[:, corrupted], *amplitudes)
        x0 = self._after_clean(z, self._unmix_data(y, z, levels))
        return x0, self._after_clean(jnp.zeros_like(z), self._unmix_noise(noise, levels))

    def residual(self, z: Frames, x0: Frames, levels: Levels) -> Frames:
        """eps = D^-1(n) for another estimate of x0: n = (z - alpha D(x0)) / sigma, and n = 0 where sigma = 0."""
        y = self._mix_data(x0, levels)
        noise = targets.residual(z[:, self.num_clean :], y, *self._amplitudes(levels, z))
        return self._after_clean(jnp.zeros_like(z), self._unmix_noise(noise, levels))

    def refresh_fraction(self, start: Levels, end: Levels) -> PerFrame:
        """Share of the noise variance that an ancestral step from start to end draws afresh.

        1 - SNR_start / SNR_end (the DDPM posterior: Ho et al. 2020, eq. 7); 0 where t does not fall.
        """
        before, after = (jnp.clip(self.logsnr(x), -MAX_LOGSNR, MAX_LOGSNR) for x in (start, end))
        return jnp.where(start.t > end.t, -jnp.expm1(before - after), 0)

    def frozen(self, start: Levels, end: Levels) -> Bool[Array, "b f"]:
        """Frames that a step from start to end leaves as they are, bit for bit.

        t = s = 0; without mixing, where a frame does not see its neighbours, t = s.
        """
        still = start.t == end.t
        return still & (end.t == 0) if self.mixes_data or self.mixes_noise else still

    def noise(self, eps: Frames, levels: Levels) -> Frames:
        """Mixed noise n = D(eps), 0 on clean context."""
        return self._after_clean(jnp.zeros_like(eps), self._mix_noise(eps, levels))

    def residual_variance(
        self, denoise: Denoiser, x0: Frames, eps: Frames, tau: PerExample
    ) -> Float[Array, "c"]:
        """E|n - n_hat|^2 of the last frame of sliding windows at time tau, the mean over windows and all
        axes of a frame but the last.

        Args:
          denoise: (z, logsnr) to the prediction.
          x0: clean windows [b, p + k, *s, c].
          eps: white noise of the same shape.
          tau: [b], the start of the last step before the window moves on.
        """
        levels = self.levels(tau, jnp.ones(tau.shape, bool))
        z = self.forward(x0, eps, levels)
        _, estimate = self.recover(z, denoise(z, self.logsnr(levels)), levels)
        error = self.noise(eps - estimate, levels)[:, -1]
        return jnp.mean(error**2, axis=tuple(range(error.ndim - 1)))

    def extend(
        self,
        z: Frames,
        noise: Frames | None,
        fresh: Frames,
        levels: Levels,
        num_new: int,
        residual_variance: float | Array = 0.0,
    ) -> Frames:
        """The next window, deterministic given fresh: the oldest num_new frames leave, as many enter at the noisy end.

        Here its context, where that is clean, from z; then the prior D_gamma(fresh).

        Args:
          z: the window that is finished; its frames move to the front by num_new.
          noise: the mixed noise of z as estimated in the last step; None starts a window from the prior.
          fresh: white noise for the frames that enter, of the shape of z.
          levels: those at which the next pass starts.
          num_new: frames that enter.
          residual_variance: E|n - noise|^2 of the last frame, a number or [c]; read where ``correlated_noise``.

        Raises:
          ValueError: num_new is not k, the frames of a window that starts anew.
        """
        if num_new != self.num_forecast:
            raise ValueError(f"num_new: expected {self.num_forecast} frames, found {num_new}")
        return self._after_clean(jnp.roll(z, -num_new, axis=1), self._mix_noise(fresh, levels))

    def _amplitudes(
        self, levels: Levels, like: Float[Array, "b g *s"]
    ) -> tuple[targets.Amplitude, targets.Amplitude]:
        t = over_frames(levels.t[:, self.num_clean :], like)
        return self.schedule.alpha(t), self.schedule.sigma(t)

    def _after_clean(self, clean: Frames, corrupted: Corrupted) -> Frames:
        return jnp.concatenate([clean[:, : self.num_clean], corrupted], axis=1)

    def _mix_data(self, x0: Frames, levels: Levels) -> Corrupted:
        y = dynamics(x0, levels.gamma) if self.mixes_data else x0
        return y[:, self.num_clean :]

    def _unmix_data(self, y: Corrupted, z: Frames, levels: Levels) -> Corrupted:
        if not self.mixes_data:
            return y
        m = self.num_clean
        initial = dynamics(z[:, :m], levels.gamma[:, :m])[:, -1] if m else None
        return inverse_dynamics(y, levels.gamma[:, m:], initial=initial)

    def _mix_noise(self, eps: Frames, levels: Levels) -> Corrupted:
        m = self.num_clean
        return dynamics(eps[:, m:], levels.gamma[:, m:]) if self.mixes_noise else eps[:, m:]

    def _unmix_noise(self, noise: Corrupted, levels: Levels) -> Corrupted:
        return inverse_dynamics(noise, levels.gamma[:, self.num_clean :]) if self.mixes_noise else noise


def white_noise(keys: Keys, like: Frames) -> Frames:
    """Standard normal noise of the shape and dtype of ``like``, each example from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(keys)


def example_keys(keys: Keys) -> tuple[Keys, Keys, Keys]:
    """The keys of an example's window time, of its kind of window and of its noise, which are independent."""
    tau_keys, sliding_keys, noise_keys = jax.vmap(jax.random.split, (0, None))(keys, 3).T
    return tau_keys, sliding_keys, noise_keys


def window_times(keys: Keys, dtype: DTypeLike) -> PerExample:
    """tau ~ U(0, 1] of each example, from the first of `example_keys`."""
    return 1 - uniform(example_keys(keys)[0], dtype)


def uniform(keys: Keys, dtype: DTypeLike) -> PerExample:
    """A number in [0, 1) from each key."""
    return jax.vmap(lambda key: jax.random.uniform(key, (), dtype))(keys)
