"""The training loss: one formula for every process."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dydiff_jax.diffusion.process import Keys, Process, white_noise
from dydiff_jax.types import Denoiser, Frames, PerExample


def diffusion_loss(
    keys: Keys, process: Process, denoise: Denoiser, x0: Frames
) -> tuple[Float[jax.Array, ""], dict[str, PerExample]]:
    """Mean squared error of the network's prediction (DyDiff Algorithm 1; Ho et al. 2020, eq. 14).

        tau ~ U(0, 1],   eps ~ N(0, I),   z = forward(x0, eps),   loss = mean |denoise(z, logsnr) - target|^2,

    the mean over the elements of a window's active frames, then over examples, in float32 at least. An
    example's key decides all of its draws, whatever the batch it is in.

    Args:
      keys: a typed key for each example.
      process: the corruption.
      denoise: (z, logsnr) to the prediction.
      x0: clean windows [b, p + k, h, w, c].

    Returns:
      The loss, and ``loss_per_example`` and ``tau``, each [b].

    Raises:
      ValueError: x0 has another number of frames than the process.
    """
    if x0.shape[1] != process.num_frames:
        raise ValueError(f"x0: expected windows of {process.num_frames} frames, found shape {x0.shape}")
    x0 = jnp.asarray(x0, jnp.promote_types(x0.dtype, jnp.float32))
    tau_keys, sliding_keys, noise_keys = jax.vmap(jax.random.split, (0, None))(keys, 3).T
    tau = 1 - _uniform(tau_keys, x0.dtype)  # in (0, 1]
    sliding = _uniform(sliding_keys, x0.dtype) < process.sliding_rate
    eps = white_noise(noise_keys, x0)

    levels = process.levels(tau, sliding)
    prediction = denoise(process.forward(x0, eps, levels), process.logsnr(levels))
    error = jnp.mean((prediction - process.target(x0, eps, levels)) ** 2, axis=(2, 3, 4))
    per_example = jnp.mean(error, axis=1, where=levels.active)
    return jnp.mean(per_example), {"loss_per_example": per_example, "tau": tau}


def _uniform(keys: Keys, dtype: jnp.dtype) -> PerExample:
    return jax.vmap(lambda key: jax.random.uniform(key, (), dtype))(keys)
