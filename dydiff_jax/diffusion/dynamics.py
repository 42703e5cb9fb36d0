"""Temporal mixing of frames and its inverse: DyDiff (arXiv 2503.00951), eq. 5 and Algorithm 2."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dydiff_jax.types import Array

AnyShape = Float[Array, "..."]


def dynamics(
    x: AnyShape, gamma: AnyShape, axis: int = 1, initial: AnyShape | None = None
) -> Float[jax.Array, "..."]:
    """Mix every frame with the mixed frame before it, y = D(x) (DyDiff eq. 5):

        y^s = sqrt(1 - gamma^s) y^{s-1} + sqrt(gamma^s) x^s,      y^first = x^first.

    Rows of the matrix D have unit norm, so white noise keeps its variance; with one gamma for all frames its
    covariance becomes sqrt(1 - gamma)^|i - j|. The data variance of correlated frames grows.

    Args:
      x: frames [b, ..., frames, ...], the frames on ``axis``.
      gamma: weight in [0, 1], scalar, [b] or [b, frames], for every trailing element alike.
      axis: the frame axis of x; axis 0 is the batch.
      initial: the mixed frame before the first, of the shape of x without ``axis``. With it the first frame
        mixes too; without it the gamma of the first frame is ignored.

    Returns:
      y, of the shape of x, computed in float32 at least.

    Raises:
      ValueError: axis is not a frame axis of x, or gamma has another shape.
    """
    frames, keep, take = _frames_first(x, gamma, axis)

    if initial is None:
        _, mixed = jax.lax.scan(_mix, frames[0], (frames[1:], keep[1:], take[1:]))
        mixed = jnp.concatenate([frames[:1], mixed])
    else:
        _, mixed = jax.lax.scan(_mix, initial.astype(frames.dtype), (frames, keep, take))
    return jnp.moveaxis(mixed, 0, axis)


def _mix(previous: AnyShape, inputs: tuple[AnyShape, AnyShape, AnyShape]) -> tuple[AnyShape, AnyShape]:
    frame, keep, take = inputs
    mixed = keep * previous + take * frame
    return mixed, mixed


def inverse_dynamics(
    y: AnyShape, gamma: AnyShape, axis: int = 1, initial: AnyShape | None = None
) -> Float[jax.Array, "..."]:
    """Undo ``dynamics`` with the same gamma and initial (DyDiff Algorithm 2, line 6):

        x^s = (y^s - sqrt(1 - gamma^s) y^{s-1}) / sqrt(gamma^s),      x^first = y^first.

    Two frames enter each output, so errors do not accumulate over frames, but grow as 1 / sqrt(gamma).
    Arguments, result and errors are those of ``dynamics``, with gamma > 0.
    """
    frames, keep, take = _frames_first(y, gamma, axis)
    if initial is None:
        clean: Array = jnp.concatenate([frames[:1], (frames[1:] - keep[1:] * frames[:-1]) / take[1:]])
    else:
        previous = jnp.concatenate([initial.astype(frames.dtype)[None], frames[:-1]])
        clean = (frames - keep * previous) / take
    return jnp.moveaxis(clean, 0, axis)


def _frames_first(x: AnyShape, gamma: AnyShape, axis: int) -> tuple[AnyShape, AnyShape, AnyShape]:
    """x with frames in front, sqrt(1 - gamma) and sqrt(gamma) as [frames, b, 1, ...], in float32 at least."""
    if axis % x.ndim == 0:
        raise ValueError(f"axis: expected a frame axis of shape {x.shape} after the batch, found {axis}")
    batch, num_frames = x.shape[0], x.shape[axis]
    if gamma.shape not in ((), (batch,), (batch, num_frames)):
        raise ValueError(
            f"gamma: expected shape (), ({batch},) or ({batch}, {num_frames}), found {gamma.shape}"
        )
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    frames = jnp.moveaxis(jnp.asarray(x, dtype), axis, 0)
    columns = jnp.asarray(gamma, dtype).reshape(gamma.shape + (1,) * (2 - gamma.ndim))
    gamma = jnp.broadcast_to(columns, (batch, num_frames)).T
    gamma = gamma.reshape(gamma.shape + (1,) * (frames.ndim - 2))
    return frames, jnp.sqrt(1 - gamma), jnp.sqrt(gamma)
