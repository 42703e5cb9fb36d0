"""The glossary: one notation, used in every signature and docstring of the package.

| symbol    | name in code     | shape       | meaning                                                        |
|-----------|------------------|-------------|----------------------------------------------------------------|
| b p k h w c |                | axes        | batch, context (past) frames, forecast frames, height, width, channels |
| f         |                  | axis        | all frames of a window, f = p + k                              |
| e n a s   |                  | axes        | ensemble member, sampler steps, action dimension, static fields |
| tau       | ``tau``          | b           | diffusion time of the whole window, 0 clean to 1 noise          |
| t         | ``t``            | b f         | diffusion time of each frame                                   |
| alpha, sigma | ``alpha``, ``sigma`` | b f  | signal and noise amplitude, alpha^2 + sigma^2 = 1              |
| alpha-bar | ``alpha_bar``    | b f         | alpha^2 (the cumulative product of the DDPM papers)            |
| log SNR   | ``logsnr``       | b f         | log(alpha^2 / sigma^2)                                         |
| gamma-bar | ``gamma``        | b f         | temporal mixing weight in (0, 1]; 1 means no mixing            |
| eta       | ``eta``          |             | mixing strength in gamma = eta alpha_bar + 1 - eta             |
| x, eps    | ``x0``, ``eps``  | b f h w c   | clean frames, white noise                                      |
| y, n      | ``y``, ``noise`` | b f h w c   | mixed data D(x), mixed noise D(eps)                            |
| z         | ``z``            | b f h w c   | corrupted frames, what the network sees                        |

Channels are last and frames are an axis. Physical time is ``frame`` or ``lead``, never ``t``; the strength of
the sampler's fresh noise is ``churn``, never ``eta``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

Array = jax.Array | np.ndarray

Frames = Float[Array, "b f h w c"]
PerFrame = Float[Array, "b f"]
PerExample = Float[Array, "b"]

#: A denoiser maps (z [b f h w c], logsnr [b f]) to the network's prediction [b f h w c].
Denoiser = Callable[[Frames, PerFrame], Frames]


class Batch(NamedTuple):
    """What every data set delivers and every method consumes, in physical units.

    Attributes:
      frames: float32 [b, p + k, h, w, c], context then forecast frames.
      actions: float32 [b, p + k, a] or None; the action that led to each frame.
      static: float32 [b, h, w, s] or None; fields that do not change with time.
    """

    frames: Array
    actions: Array | None = None
    static: Array | None = None


class Levels(NamedTuple):
    """The corruption of each frame of a window, each entry [b, p + k].

    Attributes:
      t: diffusion time; the network sees its log SNR.
      gamma: weight of the temporal mixing.
      active: True on the frames that carry loss.
    """

    t: PerFrame
    gamma: PerFrame
    active: Bool[Array, "b f"]


class Conditions(NamedTuple):
    """What a denoiser knows beside z: bound before sampling, so that samplers never see it.

    Attributes:
      channels: [b, p + k, h, w, m] or None; appended to the channels of z.
      actions: [b, p + k, a] or None.
      static: [b, h, w, s] or None; appended to the channels of every frame.
    """

    channels: Array | None = None
    actions: Array | None = None
    static: Array | None = None
