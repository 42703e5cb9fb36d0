"""Rolling diffusion (Ruhe et al. 2024, arXiv 2402.09470): noise grows along the window, which slides as it denoises."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, DTypeLike, Float

from dydiff_jax.diffusion.process import Corrupted, example_keys, uniform, window_times
from dydiff_jax.diffusion.standard import Standard
from dydiff_jax.types import Array, Frames, Keys, Levels, PerExample

Clock = Literal["lin", "init", "init_rescaled"]


def local_times(
    tau: Float[Array, "*batch"], window: int, num_clean: int, kind: Clock
) -> Float[Array, "*batch window"]:
    """The local time of each frame of a window (Rolling Diffusion, eq. 8 and appendix G), context frames at 0.

    With u = (w - m)/(W - m) for frame w = 0 ... W - 1 of which m are clean,

        lin:            clip((w + tau - m)/(W - m), 0, 1)       the sliding window,
        init:           0 for w < m, else clip(u + tau, 0, 1)   from pure noise to the sliding window,
        init_rescaled:  0 for w < m, else u + tau (1 - u)       the same, no frame waiting at 1.

    lin at tau = 0 is lin at tau = 1 one frame on, and the state that both init clocks reach at tau = 0.

    Args:
      tau: window time, 1 noisy to 0.
      window: W, at least m + 1.
      num_clean: m >= 0.
      kind: which clock.

    Raises:
      ValueError: the window is no longer than its context, or there is no such clock.
    """
    if not 0 <= num_clean < window:
        raise ValueError(
            f"window: expected more frames than the {num_clean} of its context (0 or more), found {window}"
        )
    tau = jnp.asarray(tau)[..., None]
    edges = ((np.arange(window + 1) - num_clean) / (window - num_clean)).astype(tau.dtype)
    u, clean = edges[:-1], np.arange(window) < num_clean
    if kind == "lin":
        # A quotient in tau would be compiled to a product, which misses the places of the frames by a rounding.
        return jnp.where(clean, 0, u + tau * np.diff(edges))
    if kind == "init":
        return jnp.where(clean, 0, jnp.clip(u + tau, 0, 1))
    if kind == "init_rescaled":
        return jnp.where(clean, 0, u + tau * (1 - u))
    raise ValueError(f'kind: expected "lin", "init" or "init_rescaled", found "{kind}"')


@dataclasses.dataclass(frozen=True)
class Rolling(Standard):
    """z^w = alpha(t^w) x0^w + sigma(t^w) eps^w with a time for each frame; a shift finishes one frame.

    A forecast begins with the ``clock`` from tau = 1 to 0, which finishes the first frame and leaves the others as
    a sliding window has them; then the window moves by a frame and "lin" runs from tau = 1 to 0, again and again.

    Attributes:
      clock: how a rollout begins, "init" or "init_rescaled".
      p_lin: probability with which training draws a sliding window, in [0, 1). "init" contains the sliding
        windows, at tau <= 1/k; "init_rescaled" does not, and needs p_lin > 0.

    Raises:
      ValueError: an eps prediction, which cannot be divided by alpha = 0 on frames of pure noise; noised context;
        p_lin outside its range.
    """

    clock: Literal["init", "init_rescaled"] = "init"
    p_lin: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prediction == "eps":
            raise ValueError(
                'prediction: a rolling clock keeps frames of pure noise, where an "eps" prediction would be divided '
                'by alpha = 0; expected "v" or "x0", found "eps"'
            )
        if self.context != "clean":
            raise ValueError(
                f'context: a rolling clock needs "clean" context frames, found "{self.context}"; frames that are '
                "finished become the context of the next"
            )
        if self.clock not in ("init", "init_rescaled"):
            raise ValueError(f'clock: expected "init" or "init_rescaled", found "{self.clock}"')
        if not 0 <= self.p_lin < 1:
            raise ValueError(
                f"p_lin: expected a probability in [0, 1), found {self.p_lin}; with 1 the start of a rollout would "
                "never be trained"
            )
        if self.clock == "init_rescaled" and self.p_lin == 0:
            raise ValueError(
                'p_lin: expected more than 0 with the clock "init_rescaled", found 0: its windows are never those of '
                'the sliding phase, which would stay untrained; set p_lin, or take the clock "init"'
            )

    @property
    def stride(self) -> int:
        return 1

    def draw(self, keys: Keys, dtype: DTypeLike = jnp.float32) -> Levels:
        """tau ~ U(0, 1], and a sliding window with probability ``p_lin``, drawn apart from the second key."""
        sliding = uniform(example_keys(keys)[1], dtype) < self.p_lin
        return self.levels(window_times(keys, dtype), sliding)

    def levels(self, tau: PerExample, sliding: Bool[Array, "b"]) -> Levels:
        """A time for each frame, and gamma of that time, so 1 on the context.

        Active are the frames whose time moves as tau falls: all with t > 0, but those that wait at 1 under "init".
        """
        shape = (self.num_frames, self.num_context)
        begin, slide = local_times(tau, *shape, self.clock), local_times(tau, *shape, "lin")
        t = jnp.where(sliding[:, None], slide, begin)
        u = local_times(jnp.zeros_like(tau), *shape, "lin")
        saturated = ~sliding[:, None] & (u + tau[:, None] > 1) & (self.clock == "init")
        return Levels(t, self.mixing(t), (t > 0) & ~saturated)

    def extend(
        self,
        z: Frames,
        noise: Frames | None,
        fresh: Frames,
        levels: Levels,
        num_new: int,
        residual_variance: float | Array = 0.0,
    ) -> Frames:
        """Drop the oldest num_new frames; as many of pure noise enter behind the last."""
        if noise is None:
            return super().extend(z, noise, fresh, levels, num_new, residual_variance)
        entering = self._entering(noise, fresh[:, -num_new:], levels, residual_variance)
        return jnp.concatenate([z[:, num_new:], entering], axis=1)

    def _entering(
        self, noise: Frames, fresh: Corrupted, levels: Levels, residual_variance: float | Array
    ) -> Corrupted:
        """The noise of the frames that enter."""
        return fresh
