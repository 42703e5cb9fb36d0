"""The glossary: one notation, used in every signature and docstring of the package.

| symbol    | name in code     | shape       | meaning                                                        |
|-----------|------------------|-------------|----------------------------------------------------------------|
| b p k     |                  | axes        | batch, context (past) frames, forecast frames                  |
| f         |                  | axis        | all frames of a window, f = p + k                              |
| *s        |                  | axes        | a frame, channels last: (h, w, c) for fields |
| h w c     |                  | axes        | height, width, channels; a series is the grid 1 x 1            |
| e n m q   |                  | axes        | ensemble member, sampler steps, forcings, static fields        |
| tau       | ``tau``          | b           | diffusion time of the whole window, 0 clean to 1 noise          |
| t         | ``t``            | b f         | diffusion time of each frame                                   |
| alpha, sigma | ``alpha``, ``sigma`` | b f  | signal and noise amplitude, alpha^2 + sigma^2 = 1              |
| alpha-bar | ``alpha_bar``    | b f         | alpha^2 (the cumulative product of the DDPM papers)            |
| log SNR   | ``logsnr``       | b f         | log(alpha^2 / sigma^2)                                         |
| gamma-bar | ``gamma``        | b f         | temporal mixing weight in (0, 1]; 1 means no mixing            |
| eta       | ``eta``          |             | mixing strength in gamma = eta alpha_bar + 1 - eta             |
| x, eps    | ``x0``, ``eps``  | b f *s      | clean frames, white noise                                      |
| y, n      | ``y``, ``noise`` | b f *s      | mixed data D(x), mixed noise D(eps)                            |
| z         | ``z``            | b f *s      | corrupted frames, what the network sees                        |

Channels are last and frames are an axis. Physical time is ``frame`` or ``lead``, never ``t``; the strength of
the sampler's fresh noise is ``churn``, never ``eta``.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Key, Shaped

Array = jax.Array | np.ndarray

#: A tree of arrays.
Params = Any

Frames = Float[Array, "b f *s"]
PerFrame = Float[Array, "b f"]
PerExample = Float[Array, "b"]

#: A typed random key for each example, which decides all of its draws, whatever the batch it is in.
Keys = Key[Array, "b"]

#: A denoiser maps (z [b f *s], logsnr [b f]) to the network's prediction [b f *s].
Denoiser = Callable[[Frames, PerFrame], Frames]


def over_frames(per_frame: Shaped[Array, "b f"], like: Shaped[Array, "b g *s"]) -> Shaped[Array, "b f ..."]:
    """A value for each frame as [b, f, 1, ...], which broadcasts over frames [b, f, *s] such as ``like``."""
    return per_frame.reshape(*per_frame.shape, *(1,) * (like.ndim - 2))


class Batch(NamedTuple):
    """What every data source delivers and every system consumes.

    Attributes:
      frames: [b, p + k, *s] in physical units, context then forecast frames, in the dtype of the source until
        ``codec.encode``.
      observed: bool, broadcastable to ``frames``, or None: all are. What is False is missing: it carries no loss and
        no score, whatever stands there.
      forcings: [b, p + k, m] or None; what is known in advance: actions, calendar, insolation. Row i belongs to
        frame i: an action is the one that led to it.
      static: [b, *grid, q] or None; fields that do not change with time.
      at: int [b, f] or None; the number of each frame in its window, where a stage reads some of them only; None: all
        of them, 0, 1, 2 ...
    """

    frames: Array
    observed: Array | None = None
    forcings: Array | None = None
    static: Array | None = None
    at: Array | None = None


class DataSpec(NamedTuple):
    """What a data source says of its frames without opening them.

    Attributes:
      frame_shape: of a frame, channels last: (h, w, c).
      fields: the name of each channel.
      unit: of the values.
      interval: time between two frames.
      time_unit: of the interval.
      kind: decides which scores and figures have a meaning.
      forcings: names of what is known in advance, one for each of the m forcings.
      static: names of the q fields that do not change with time.
    """

    frame_shape: tuple[int, ...]
    fields: tuple[str, ...]
    unit: str
    interval: float
    time_unit: str
    kind: Literal["field", "video", "series"] = "field"
    forcings: tuple[str, ...] = ()
    static: tuple[str, ...] = ()


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
    """What a network knows beside x.

    Attributes:
      channels: [b, p + k, *grid, m] or None; appended to the channels of x.
      forcings: [b, p + k, m] or None.
      static: [b, *grid, q] or None; appended to the channels of every frame.
    """

    channels: Array | None = None
    forcings: Array | None = None
    static: Array | None = None
