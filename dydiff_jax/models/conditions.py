"""Conditions: what the network sees beside z, made from the context once and bound before sampling."""

from dataclasses import dataclass

import jax.numpy as jnp

from dydiff_jax.types import Array, Conditions, Frames, over_frames


def copy_path(context: Frames, num_forecast: int) -> Array:
    """The last context frame and the last difference as channels of every frame.

    A copy path that a small network cannot do without: from the frame axis alone it must learn copying through
    attention before it learns anything else.

    Args:
      context: [b, p, *grid, c].
      num_forecast: k.

    Returns:
      [b, p + k, *grid, 2 c]; with one context frame there is no difference and only c channels.
    """
    last = context[:, -1:]
    parts = [last] if context.shape[1] == 1 else [last, last - context[:, -2:-1]]
    channels = jnp.concatenate(parts, axis=-1)
    return jnp.repeat(channels, context.shape[1] + num_forecast, axis=1)


def context_channels(context: Frames, num_forecast: int) -> Array:
    """Clean context frames and two masks, for a network whose context frames are noised (DyDiff's release).

    Args:
      context: [b, p, *grid, c].
      num_forecast: k.

    Returns:
      [b, p + k, *grid, c + 2]: the clean context (zeros on forecast frames), a mask that is 1 on context frames,
      and a mask that is 1 on the first forecast frame.
    """
    p, frames = context.shape[1], context.shape[1] + num_forecast
    clean = jnp.pad(context, [(0, num_forecast if axis == 1 else 0) for axis in range(context.ndim)])
    frame = over_frames(jnp.arange(frames)[None], clean)
    masks = [jnp.broadcast_to(mask, (*clean.shape[:-1], 1)) for mask in (frame < p, frame == p)]
    return jnp.concatenate([clean, *(mask.astype(context.dtype) for mask in masks)], axis=-1)


@dataclass(frozen=True)
class Conditioner:
    """Makes the conditions of a window from its context.

    Attributes:
      num_forecast: k.
      copy_path: append the last context frame and the last difference to every frame.
      context_channels: append the clean context and its masks, which ``context="noised"`` needs.
    """

    num_forecast: int
    copy_path: bool = False
    context_channels: bool = False

    def __call__(self, context: Frames, forcings: Array | None, static: Array | None) -> Conditions:
        """Conditions of [b, p, *grid, c] context frames in model space."""
        parts = []
        if self.copy_path:
            parts.append(copy_path(context, self.num_forecast))
        if self.context_channels:
            parts.append(context_channels(context, self.num_forecast))
        channels = jnp.concatenate(parts, axis=-1) if parts else None
        return Conditions(channels, forcings, static)
