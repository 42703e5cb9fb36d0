"""What the network predicts: eps, x0 or v, in mixed coordinates, where z = alpha y + sigma n is diagonal.

y = D(x0) and n = D(eps), so the algebra is that of any diffusion model (Salimans and Ho 2022, section 4). All
arrays broadcast; alpha^2 + sigma^2 = 1.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Float

from dydiff_jax.types import Array, Frames

Prediction = Literal["eps", "x0", "v"]

#: A number for each frame that broadcasts over it, as `over_frames` makes it.
Amplitude = Float[Array, "b f *#s"]


def target(kind: Prediction, y: Frames, noise: Frames, alpha: Amplitude, sigma: Amplitude) -> Frames:
    """The regression target: n for "eps", y for "x0", alpha n - sigma y for "v"."""
    if kind == "eps":
        return noise
    if kind == "x0":
        return y
    return alpha * noise - sigma * y


def recover(
    kind: Prediction, z: Frames, prediction: Frames, alpha: Amplitude, sigma: Amplitude
) -> tuple[Frames, Frames]:
    """Solve z = alpha y + sigma n and the prediction for (y, n).

    "eps" divides by alpha > 0. Where sigma = 0, y = z whatever is predicted, and "x0" gives n = 0.
    """
    if kind == "eps":
        return (z - sigma * prediction) / alpha, prediction
    if kind == "x0":
        y = jnp.where(sigma == 0, z, prediction)
        return y, residual(z, y, alpha, sigma)
    return alpha * z - sigma * prediction, sigma * z + alpha * prediction


def residual(z: Frames, y: Frames, alpha: Amplitude, sigma: Amplitude) -> Frames:
    """The noise n = (z - alpha y) / sigma that y leaves unexplained; 0 where sigma = 0."""
    clean = sigma == 0
    return jnp.where(clean, 0, (z - alpha * y) / jnp.where(clean, 1, sigma))
