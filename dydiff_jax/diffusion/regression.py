"""The regression baseline as a process: one evaluation maps (context, zeros) to the forecast."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Bool

from dydiff_jax.types import Array, Frames, Levels, PerExample, PerFrame


@dataclasses.dataclass(frozen=True)
class Regression:
    """z = (context, zeros) at any tau > 0 and x0 at tau = 0; the target is x0, so the loss is the plain MSE.

    Sample with one step: every step evaluates the network on the same input.

    Attributes:
      num_context: p, context frames, at least 1.
      num_forecast: k, forecast frames, at least 1.

    Raises:
      ValueError: a number of frames is out of its range.
    """

    num_context: int
    num_forecast: int

    sliding_rate: ClassVar[float] = 0.0
    continues_noise: ClassVar[bool] = False
    max_start: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if self.num_context < 1:
            raise ValueError(f"num_context: expected at least 1 frame, found {self.num_context}")
        if self.num_forecast < 1:
            raise ValueError(f"num_forecast: expected at least 1 frame, found {self.num_forecast}")

    @property
    def num_frames(self) -> int:
        return self.num_context + self.num_forecast

    @property
    def stride(self) -> int:
        return self.num_forecast

    def levels(self, tau: PerExample, sliding: Bool[Array, "b"]) -> Levels:
        """t = 1 on forecast frames for any tau > 0; nothing is mixed."""
        del sliding
        forecast = jnp.arange(self.num_frames) >= self.num_context
        active = forecast & (tau > 0)[:, None]
        return Levels(active.astype(tau.dtype), jnp.ones(active.shape, tau.dtype), active)

    def logsnr(self, levels: Levels) -> PerFrame:
        return jnp.where(levels.t > 0, -jnp.inf, jnp.inf).astype(levels.t.dtype)

    def forward(self, x0: Frames, eps: Frames, levels: Levels) -> Frames:
        return self._where_active(jnp.zeros_like(x0), x0, levels)

    def target(self, x0: Frames, eps: Frames, levels: Levels) -> Frames:
        return x0

    def recover(self, z: Frames, prediction: Frames, levels: Levels) -> tuple[Frames, Frames]:
        return self._where_active(prediction, z, levels), jnp.zeros_like(z)

    def residual(self, z: Frames, x0: Frames, levels: Levels) -> Frames:
        return jnp.zeros_like(z)

    def renewal(self, start: Levels, end: Levels) -> PerFrame:
        return jnp.zeros_like(start.t)

    def frozen(self, start: Levels, end: Levels) -> Bool[Array, "b f"]:
        return start.t == end.t

    def noise(self, eps: Frames, levels: Levels) -> Frames:
        return jnp.zeros_like(eps)

    def extend(
        self,
        z: Frames,
        noise: Frames | None,
        fresh: Frames,
        levels: Levels,
        num_new: int,
        missing: float | Array = 0.0,
    ) -> Frames:
        """The last frames of z as context, then num_new frames of zeros."""
        return jnp.concatenate([z[:, num_new:], jnp.zeros_like(z[:, :num_new])], axis=1)

    def _where_active(self, a: Frames, b: Frames, levels: Levels) -> Frames:
        return jnp.where(levels.active[:, :, None, None, None], a, b)
