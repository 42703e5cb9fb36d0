"""The parts of the U-ViT: conditioning, rotary positions, attention, and one block for each kind of level.

Activations are [b f h w c]. A convolution sees the frames folded into its batch, so it mixes neither frames
nor shards; time is mixed by attention alone. Parameters, statistics of the norms, and softmax are float32;
matrix products and convolutions run in ``dtype``.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Float

from dydiff_jax.distributed.rules import WIDTH_AXIS, constrain_batch, constrain_images, gather_kernel
from dydiff_jax.system import Rule
from dydiff_jax.types import Array, Keys

#: How the kernels of the U-ViT lie on the mesh: axes of their last dimensions, inputs and outputs. Layers come in
#: pairs, the first split over tensor by its outputs and the second by its inputs; see `distributed.rules`.
RULES: tuple[Rule, ...] = (
    (r"((conv|merge|split)(_\d+)?|embed)/kernel$", (None, "fsdp")),
    (r"head/kernel$", ("fsdp", None)),
    (r"out/kernel$", (WIDTH_AXIS, "fsdp")),
    (r"/kernel$", ("fsdp", WIDTH_AXIS)),
)

#: The network sees log SNR within these bounds; t = 0 and t = 1 have +inf and -inf.
LOGSNR_BOUND = 20.0
#: Base of the rotary frequencies: wavelengths from 2 pi to 2 pi * ROTARY_BASE tokens.
ROTARY_BASE = 100.0

Attend = Literal["einsum", "xla", "cudnn"]
#: Which tokens attend to each other: those within one group of parentheses that does not hold b.
TOKENS = {"space": "(b f) (h w)", "time": "(b h w) f", "joint": "b (f h w)"}
#: Axes of [f h w] along which the tokens of a kind of attention differ.
POSITION_AXES = {"space": (1, 2), "time": (0,), "joint": (0, 1, 2)}


def sinusoid(
    value: Float[Array, "*shape"], dim: int, shortest: float, longest: float
) -> Float[Array, "*shape {dim}"]:
    """sin and cos of 2 pi value / period, for dim / 2 periods in geometric progression."""
    periods = np.geomspace(shortest, longest, dim // 2)
    angle = 2 * jnp.pi * value[..., None] / periods.astype(np.float32)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def rotary_angles(positions: Float[Array, "tokens axes"], head_dim: int) -> Float[Array, "tokens pairs"]:
    """Angle of each of the head_dim / 2 pairs: position times frequency, the pairs shared out among the axes.

    RoFormer (arXiv 2104.09864, eq. 15) for each axis with an equal number of pairs and the frequencies
    ROTARY_BASE^(-i / pairs); the pairs left over do not turn.
    """
    num_axes = positions.shape[1]
    pairs = head_dim // 2 // num_axes
    frequency = ROTARY_BASE ** (-np.arange(pairs) / max(pairs, 1))
    angles = (positions[:, :, None] * frequency).reshape(len(positions), num_axes * pairs)
    return np.pad(angles, ((0, 0), (0, head_dim // 2 - num_axes * pairs))).astype(np.float32)


def rotate(
    x: Float[Array, "batch tokens heads d"], angles: Float[Array, "tokens pairs"]
) -> Float[Array, "batch tokens heads d"]:
    """Turns the pair (x_i, x_{i + d/2}) by the angle of pair i, in float32."""
    cos, sin = jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x.dtype)


def attend(
    q: Float[Array, "batch tokens heads d"],
    k: Float[Array, "batch tokens heads d"],
    v: Float[Array, "batch tokens heads d"],
    implementation: Attend,
) -> Float[Array, "batch tokens heads d"]:
    """softmax(q k^T / sqrt(d)) v, softmax in float32.

    ``einsum`` is written out here; ``xla`` and ``cudnn`` are those of ``jax.nn.dot_product_attention``.
    """
    if implementation != "einsum":
        return jax.nn.dot_product_attention(q, k, v, implementation=implementation)
    logits = jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits / math.sqrt(q.shape[-1]), axis=-1)
    return jnp.einsum("bnqk,bknd->bqnd", weights.astype(v.dtype), v)


def rms_norm(x: Float[Array, "*shape c"]) -> Float[Array, "*shape c"]:
    """x / sqrt(mean(x^2)) over the last axis, with the mean in float32."""
    square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(square + 1e-6)).astype(x.dtype)


def dense(features: int, name: str, dtype: str | None = None, **options: Any) -> nn.Dense:
    """A linear layer whose kernel is gathered where it is used."""
    product = gather_kernel(jax.lax.dot_general, f"{name}/kernel", RULES)
    return nn.Dense(features, dtype=dtype, name=name, dot_general=product, **options)


def on_images(
    layer: Callable[[Float[Array, "n h w c"]], Float[Array, "n h w d"]], x: Float[Array, "b f h w c"]
) -> Float[Array, "b f h w d"]:
    """A layer that sees one frame at a time, on the frames folded into the batch, shared out over all devices."""
    y = constrain_images(layer(constrain_images(rearrange(x, "b f h w c -> (b f) h w c"))))
    return rearrange(y, "(b f) h w d -> b f h w d", b=x.shape[0])


class RMSNorm(nn.Module):
    """``rms_norm`` with a learned scale."""

    @nn.compact
    def __call__(self, x: Float[Array, "*shape c"]) -> Float[Array, "*shape c"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return rms_norm(x) * scale.astype(x.dtype)


class Film(nn.Module):
    """x (1 + scale) + shift, both linear in the embedding of the frame (FiLM, arXiv 1709.07871)."""

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], emb: Float[Array, "b f e"]) -> Float[Array, "b f h w c"]:
        affine = constrain_batch(dense(2 * x.shape[-1], "film", self.dtype)(nn.silu(emb)), width=-1)
        affine = constrain_batch(affine)[:, :, None, None, :]
        scale, shift = (constrain_batch(part) for part in jnp.split(affine, 2, axis=-1))
        return x * (1 + scale) + shift


class Conditioning(nn.Module):
    """Embedding of each frame: an MLP of its log SNR, its index in the window, and its forcings if given."""

    embed_dim: int

    @nn.compact
    def __call__(
        self, logsnr: Float[Array, "b f"], forcings: Float[Array, "b f m"] | None
    ) -> Float[Array, "b f e"]:
        level = jnp.clip(logsnr.astype(jnp.float32), -LOGSNR_BOUND, LOGSNR_BOUND)
        index = jnp.broadcast_to(jnp.arange(level.shape[1], dtype=jnp.float32), level.shape)
        sinusoids = [
            sinusoid(level, 128, shortest=2.0, longest=8 * LOGSNR_BOUND),
            sinusoid(index, 64, shortest=4.0, longest=1024.0),
        ]
        features = constrain_batch(jnp.concatenate(sinusoids, axis=-1))
        hidden = dense(self.embed_dim, "level_in")(features)
        if forcings is not None:
            hidden += dense(self.embed_dim, "forcing_in", use_bias=False)(forcings)
        hidden = constrain_batch(nn.silu(hidden), width=-1)
        return constrain_batch(dense(self.embed_dim, "level_out")(hidden))


class Dropout(nn.Module):
    """Zero entries at random, by a key for each example: what it draws does not depend on the batch around it.

    The "dropout" stream gives each layer numbers of its own; keys None draw nothing.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "b *s"], keys: Keys | None) -> Float[Array, "b *s"]:
        if keys is None or not self.rate:
            return x
        layer = jax.random.bits(self.make_rng("dropout"))

        def kept(key):
            return jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(kept)(keys), x / (1 - self.rate), 0).astype(x.dtype)


class FrameConv(nn.Module):
    """A 3x3 convolution of each frame, [b f h w c] -> [b f h w features]."""

    features: int
    dtype: str
    zero: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w d"]:
        kernel_init = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        product = gather_kernel(jax.lax.conv_general_dilated, f"{self.name}/conv/kernel", RULES)
        conv = nn.Conv(
            self.features,
            (3, 3),
            dtype=self.dtype,
            kernel_init=kernel_init,
            conv_general_dilated=product,
            name="conv",
        )
        return on_images(conv, x)


class ConvBlock(nn.Module):
    """Residual block of a level without attention: norm, conv, norm with FiLM, dropout, zero conv."""

    dtype: str
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w c"], emb: Float[Array, "b f e"], keys: Keys | None = None
    ) -> Float[Array, "b f h w c"]:
        y = FrameConv(x.shape[-1], self.dtype, name="conv_in")(nn.silu(RMSNorm(name="norm")(x)))
        y = nn.silu(Film(self.dtype, name="modulate")(rms_norm(y), emb))
        y = Dropout(self.dropout)(y, keys)
        return x + FrameConv(x.shape[-1], self.dtype, zero=True, name="conv_out")(y)


class Attention(nn.Module):
    """Residual self-attention over the tokens of a frame, of a pixel through time, or of the whole window."""

    over: Literal["space", "time", "joint"]
    head_dim: int
    implementation: Attend
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], emb: Float[Array, "b f e"]) -> Float[Array, "b f h w c"]:
        b, f, h, w, c = x.shape
        y = constrain_batch(Film(self.dtype, name="modulate")(rms_norm(x), emb))
        qkv = dense(3 * c, "qkv", self.dtype, use_bias=False)(y)
        tokens = TOKENS[self.over]
        q, k, v = rearrange(qkv, f"b f h w (n three d) -> three {tokens} n d", three=3, d=self.head_dim)
        q, k, v = (constrain_batch(part, width=-2) for part in (q, k, v))
        axes = POSITION_AXES[self.over]
        positions = np.indices([(f, h, w)[axis] for axis in axes]).reshape(len(axes), -1).T
        angles = rotary_angles(positions.astype(np.float32), self.head_dim)
        q, k = rotate(RMSNorm(name="q_norm")(q), angles), rotate(RMSNorm(name="k_norm")(k), angles)
        y = constrain_batch(attend(q, k, v, self.implementation), width=-2)
        y = rearrange(y, f"{tokens} n d -> b f h w (n d)", b=b, f=f, h=h, w=w)
        zeros = nn.initializers.zeros
        y = dense(c, "out", self.dtype, use_bias=False, kernel_init=zeros)(y)
        return constrain_batch(x + y)


class Mlp(nn.Module):
    """Residual MLP of each token, four times as wide inside."""

    dtype: str
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w c"], emb: Float[Array, "b f e"], keys: Keys | None = None
    ) -> Float[Array, "b f h w c"]:
        y = constrain_batch(Film(self.dtype, name="modulate")(rms_norm(x), emb))
        y = nn.silu(constrain_batch(dense(4 * x.shape[-1], "mlp_in", self.dtype)(y), width=-1))
        y = Dropout(self.dropout)(y, keys)
        zeros = nn.initializers.zeros
        return constrain_batch(x + dense(x.shape[-1], "mlp_out", self.dtype, kernel_init=zeros)(y))
