"""The training loss: one formula for every process."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from dydiff_jax.diffusion.process import GaussianProcess, example_keys, white_noise
from dydiff_jax.types import Array, Denoiser, Frames, Keys, PerExample, over_frames


def diffusion_loss(
    keys: Keys,
    process: GaussianProcess,
    denoise: Denoiser,
    x0: Frames,
    observed: Bool[Array, "..."] | None = None,
) -> tuple[Float[jax.Array, ""], dict[str, PerExample]]:
    """Mean squared error of the network's prediction (DyDiff Algorithm 1; Ho et al. 2020, eq. 14).

        levels ~ process.draw,   eps ~ N(0, I),   z = forward(x0, eps),   loss = mean |denoise(z, logsnr) - target|^2,

    the mean over the elements of a window's active frames, then over examples, in float32 at least. An
    example's key decides all of its draws, whatever the batch it is in.

    With ``observed`` the mean is over those elements of active frames that are observed, then over the examples that
    have one; an example without counts 0. What stands at a missing point changes neither loss nor gradient: `fill`
    replaces it, as the network sees z there and D carries x0 on to the frames behind.

    Args:
      keys: a typed key for each example.
      process: the corruption.
      denoise: (z, logsnr) to the prediction; what it is conditioned on is filled too.
      x0: clean windows [b, p + k, *s].
      observed: False where a point is missing, broadcastable to x0; None: all are observed.

    Returns:
      The loss, and ``loss_per_example`` [b].

    Raises:
      ValueError: x0 has another number of frames than the process; observed does not broadcast to x0.
    """
    if x0.shape[1] != process.num_frames:
        raise ValueError(f"x0: expected windows of {process.num_frames} frames, found shape {x0.shape}")
    x0 = fill(jnp.asarray(x0, jnp.promote_types(x0.dtype, jnp.float32)), observed)
    levels = process.draw(keys, x0.dtype)
    _, _, noise_keys = example_keys(keys)
    eps = white_noise(noise_keys, x0)

    prediction = denoise(process.forward(x0, eps, levels), process.logsnr(levels))
    error = (prediction - process.target(x0, eps, levels)) ** 2
    loss, per_example = mean_error(error, levels.active, observed)
    return loss, {"loss_per_example": per_example}


def mean_error(
    error: Frames, active: Bool[Array, "b f"], observed: Bool[Array, "..."] | None
) -> tuple[Float[jax.Array, ""], PerExample]:
    """The mean of an error over the observed points of active frames, then over the examples that have one.

    Args:
      error: [b, f, *s].
      active: the frames that count.
      observed: the points that count, broadcastable to error; None: all.

    Returns:
      The mean, and that of each example [b], 0 for one without any point.
    """
    within_frame = tuple(range(2, error.ndim))
    if observed is None:
        per_example = jnp.mean(jnp.mean(error, axis=within_frame), axis=1, where=active)
        return jnp.mean(per_example), per_example

    scored = jnp.broadcast_to(observed & over_frames(active, error), error.shape)
    count = jnp.sum(scored, axis=(1, *within_frame))
    per_example = jnp.sum(error, axis=(1, *within_frame), where=scored) / jnp.maximum(count, 1)
    return jnp.sum(per_example) / jnp.maximum(jnp.sum(count > 0), 1), per_example


def fill(x0: Frames, observed: Bool[Array, "..."] | None) -> Frames:
    """x0 with 0 at the points that are not observed: the mean, where the codec standardises. Idempotent.

    Args:
      x0: windows [b, f, *s]; what stands at a missing point, NaN included, is not read.
      observed: bool, broadcastable to x0; None: x0 as it is.

    Raises:
      ValueError: observed does not broadcast to x0.
    """
    if observed is None:
        return x0
    try:
        observed = jnp.broadcast_to(observed, x0.shape)
    except ValueError:
        raise ValueError(
            f"observed: expected a shape that broadcasts to {x0.shape}, found {observed.shape}"
        ) from None
    return jnp.where(observed, x0, 0)
