"""A small convolutional network of images, that of DYffusion's spring mesh, and the adapter that gives it windows.

Ruehling Cachay et al. 2023 (arXiv 2306.01984): four convolutions of 64 features with kernels of 9, 7, 5 and 3 points,
each followed by a norm, FiLM of the embedded time, GELU and dropout, residual where the width stays, and a linear head.
The paper's batch norm would make an example depend on those beside it. Two norms with as many parameters stand for it:
``group`` divides by the deviation of an image; ``affine`` has no statistics, as batch norm in inference, and keeps the
amplitude of an image. DYffusion's interpolator needs that, as it is called with estimates of x_h that are smoother than
data: of an AR(1) process (a = 0.9, h = 8) the ensemble mean at lead 1 was 1.4 times the true one with ``group``, and
1.0 times with ``affine``.
"""

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Float

from dydiff_jax.distributed.rules import constrain_batch, constrain_images, gather_kernel
from dydiff_jax.models.layers import LOGSNR_BOUND, RULES, Dropout, dense
from dydiff_jax.models.network import MODELS, LinenNetwork, Model, NetworkOptions
from dydiff_jax.types import Array, Keys

#: CNNOptions.padding -> whether y and x wrap around.
WRAPS = {"zeros": (False, False), "periodic": (True, True), "periodic_x": (False, True)}


@dataclasses.dataclass(frozen=True)
class CNNOptions(NetworkOptions):
    """The shape of the network.

    Attributes:
      features: of every layer; the embedding of time has twice as many.
      kernels: points in the side of the kernel of each layer.
      dropout: rate behind every layer, in [0, 1).
      norm: "group", over ``groups`` of features, or "affine".
      groups: of features that a norm takes together.
      padding: what lies beyond an edge: "zeros", or the opposite edge, of both axes ("periodic") or of x alone
        ("periodic_x").
      dtype: of activations and products; parameters and output are float32.
    """

    features: int = 64
    kernels: tuple[int, ...] = (9, 7, 5, 3)
    dropout: float = 0.0
    norm: Literal["group", "affine"] = "group"
    groups: int = 8
    padding: Literal["zeros", "periodic", "periodic_x"] = "zeros"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if not self.kernels or any(side < 1 or side % 2 == 0 for side in self.kernels):
            raise ValueError(f"kernels: expected odd numbers of points, found {self.kernels}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a rate in [0, 1), found {self.dropout}")
        if self.groups < 1 or self.features < 4 or self.features % 2 or self.features % self.groups:
            raise ValueError(
                f"features: expected an even number of 4 or more that the {self.groups} groups divide, "
                f"found {self.features}"
            )

    def build(self, channels: int) -> LinenNetwork:
        """The network with so many output channels for each frame."""
        return LinenNetwork(OnWindows(CNN(self), channels), RULES, self.check, self.dropout > 0)

    def check(self, frame: tuple[int, ...]) -> None:
        """Raise ValueError for frames that are not (h, w, c)."""
        if len(frame) != 3:
            raise ValueError(f"frames of shape {frame}: the CNN takes (h, w, c); choose another network")


class OnWindows(nn.Module):
    """An image network on windows: frames become channels, with their levels, and its features frames again.

    The image network maps (x [b h w m], time [b], keys) to features [b h w d]; a linear head makes the frames.
    """

    image: nn.Module
    out_channels: int

    joins_frames: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        level: Float[Array, "b l"],
        channels: Float[Array, "b f h w m"] | None = None,
        forcings: Float[Array, "b f n"] | None = None,
        static: Float[Array, "b h w s"] | None = None,
        keys: Keys | None = None,
    ) -> Float[Array, "b f h w o"]:
        """Predict every frame; levels [b, 1] are one time for all frames, levels [b, f] become channels too."""
        _b, f, h, w, _ = x.shape
        level = jnp.where(jnp.isinf(level), jnp.sign(level) * LOGSNR_BOUND, level)
        parts = [x] if channels is None else [x, channels]
        parts = [rearrange(part, "b f h w c -> b h w (f c)") for part in parts]
        if static is not None:
            parts.append(static)
        if level.shape[1] > 1:
            parts.append(repeat(level / LOGSNR_BOUND, "b f -> b h w f", h=h, w=w))
        if forcings is not None:
            parts.append(repeat(forcings, "b f n -> b h w (f n)", h=h, w=w))
        features = self.image(constrain_batch(jnp.concatenate(parts, axis=-1)), level[:, -1], keys)
        y = dense(f * self.out_channels, "head")(features.astype(jnp.float32))
        return constrain_batch(rearrange(y, "b h w (f c) -> b f h w c", f=f))


class CNN(nn.Module):
    """The layers before the head.

    They see one image at a time: on a mesh each device works on a part of the images, with kernels that are whole.
    """

    options: CNNOptions

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w m"], time: Float[Array, "b"], keys: Keys | None
    ) -> Float[Array, "b h w d"]:
        options, d = self.options, self.options.features
        hidden = constrain_batch(dense(2 * d, "time_in")(sinusoidal(time, d)), width=-1)
        hidden = constrain_batch(dense(2 * d, "time_out")(nn.gelu(hidden, approximate=False)))
        for number, side in enumerate(options.kernels):
            y = self._convolve(x, side, f"conv_{number}")
            y = self._norm(f"norm_{number}")(y)
            affine = constrain_batch(dense(2 * d, f"film_{number}")(nn.silu(hidden)), width=-1)
            affine = constrain_images(affine)[:, None, None].astype(y.dtype)
            scale, shift = jnp.split(affine, 2, axis=-1)
            y = Dropout(options.dropout, name=f"dropout_{number}")(
                nn.gelu(y * (1 + scale) + shift, approximate=False), keys
            )
            x = x + y if x.shape[-1] == d else y
        return x

    def _norm(self, name: str) -> nn.Module:
        if self.options.norm == "affine":
            return Affine(self.options.dtype, name=name)
        return nn.GroupNorm(self.options.groups, dtype=self.options.dtype, name=name)

    def _convolve(self, x: Float[Array, "b h w m"], side: int, name: str) -> Float[Array, "b h w d"]:
        """A convolution; opposite edges are neighbours where an axis wraps around."""
        options, reach = self.options, side // 2
        wraps = WRAPS[options.padding]
        around = [(0, 0), *((reach, reach) if wrap else (0, 0) for wrap in wraps), (0, 0)]
        beyond = [(0, 0) if wrap else (reach, reach) for wrap in wraps]
        product = gather_kernel(jax.lax.conv_general_dilated, f"{name}/kernel", RULES)
        conv = nn.Conv(
            options.features,
            (side, side),
            padding=beyond,
            dtype=options.dtype,
            conv_general_dilated=product,
            name=name,
        )
        return constrain_images(conv(constrain_images(jnp.pad(x, around, mode="wrap"))))


class Affine(nn.Module):
    """x scale + bias, by feature."""

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return x * scale.astype(self.dtype) + bias.astype(self.dtype)


def sinusoidal(time: Float[Array, "b"], dim: int) -> Float[Array, "b {dim}"]:
    """sin and cos of time at dim / 2 frequencies from 1 to 1 / 10000 (Vaswani et al. 2017)."""
    frequency = np.exp(-math.log(10000) * np.arange(dim // 2) / (dim // 2 - 1)).astype(np.float32)
    angle = time.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


SIZES: dict[str, dict] = {
    "tiny": dict(features=32, kernels=(5, 3, 3), dropout=0.05),
    "S": dict(dropout=0.05),
}

MODELS["cnn"] = Model(CNNOptions, SIZES)
