"""The 3D U-ViT of Simple Diffusion (arXiv 2301.11093), as Rolling Diffusion (arXiv 2402.09470) uses it.

Levels halve height and width, never time. High resolutions have convolution blocks on each frame, the next
axial transformer blocks (space, then time), the lowest full space-time attention. Every down block emits its
output, which the up block opposite adds to its input. The log SNR of each frame modulates every block.

Parameter paths for sharding rules. BLOCK is ``LEVEL/block_N`` for each block of a level (``down_I``,
``middle``, ``up_I``), or, where it is scanned, ``LEVEL/blocks`` for all, stacked on a leading axis n.

| path                                                | shape        | features                     |
|-----------------------------------------------------|--------------|------------------------------|
| ``{embed,merge_I,split_I,head}/kernel``             | in out       |                              |
| ``condition/{level_in,level_out,forcing_in}/kernel`` | in out       |                              |
| ``BLOCK/**/modulate/film/kernel``                   | (n) in out   | out is (scale, shift)        |
| ``BLOCK/conv/{conv_in,conv_out}/conv/kernel``       | 3 3 in out   |                              |
| ``BLOCK/{space,time,joint}/qkv/kernel``             | (n) in out   | out is (head, qkv, head_dim) |
| ``BLOCK/{space,time,joint}/out/kernel``             | (n) in out   | in is (head, head_dim)       |
| ``BLOCK/mlp/{mlp_in,mlp_out}/kernel``               | (n) in out   |                              |

Column-parallel then row-parallel pairs: qkv with out, mlp_in with mlp_out; `layers.RULES` splits them so. What is
not a kernel (``bias``, ``scale``) is a vector, stacked the same way.
"""

import copy
import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Float

from dydiff_jax.distributed.rules import constrain_batch
from dydiff_jax.models.layers import (
    LOGSNR_BOUND,
    RULES,
    Attention,
    Conditioning,
    ConvBlock,
    Mlp,
    RMSNorm,
    dense,
    on_images,
)
from dydiff_jax.models.network import MODELS, LinenNetwork, Model, NetworkOptions
from dydiff_jax.types import Array, Keys

KINDS = ("conv", "axial", "full")
#: What the backward pass finds saved, beside the inputs of a block.
REMAT = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


@dataclasses.dataclass(frozen=True)
class UViTOptions(NetworkOptions):
    """The shape of a U-ViT and how it is computed.

    Attributes:
      channels: features of each level, the highest resolution first; the last level is the middle.
      blocks: blocks of each level; a level above the middle has as many on the way up.
      kinds: "conv", "axial" or "full" for each level, in this order.
      dropout: rate of each level, in [0, 1).
      patch: pixels in the side of an input patch.
      head_dim: features of an attention head.
      embed_dim: features of the embedding of each frame's noise level.
      attention: "einsum", written out, or "xla" or "cudnn" of jax.nn.dot_product_attention.
      dtype: of activations and products; parameters and output are float32.
      remat: what the backward pass keeps: everything ("none"), products ("dots"), block inputs ("full").
      scan: compiles the equal blocks of a level with attention once and loops over their stacked parameters.
        Convolution blocks are few and always written out: on a CPU, XLA runs the gradient of a convolution
        inside a loop about 20 times slower.
    """

    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    kinds: tuple[str, ...]
    dropout: tuple[float, ...]
    patch: int = 1
    head_dim: int = 128
    embed_dim: int = 1024
    attention: Literal["einsum", "xla", "cudnn"] = "einsum"
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    scan: bool = True

    def __post_init__(self):
        for name, value in dict(blocks=self.blocks, kinds=self.kinds, dropout=self.dropout).items():
            if len(value) != len(self.channels):
                raise ValueError(
                    f"{name}: expected one entry for each of the {len(self.channels)} levels in "
                    f"channels={self.channels}, found {value}"
                )
        for name in ("channels", "blocks"):
            if not self.channels or min(getattr(self, name)) < 1:
                raise ValueError(f"{name}: expected entries of at least 1, found {getattr(self, name)}")
        for name in ("patch", "head_dim", "embed_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if not all(0 <= rate < 1 for rate in self.dropout):
            raise ValueError(f"dropout: expected rates in [0, 1), found {self.dropout}")
        self._check_kinds()
        self._check_attention()

    def _check_kinds(self):
        if not set(self.kinds) <= set(KINDS):
            raise ValueError(f"kinds: expected entries among {KINDS}, found {self.kinds}")
        order = [KINDS.index(kind) for kind in self.kinds]
        if order != sorted(order):
            raise ValueError(f"kinds: expected conv levels, then axial, then full, found {self.kinds}")
        if self.kinds[-1] == "conv":
            raise ValueError(
                "kinds: the last level must be axial or full, since only attention mixes frames, "
                f"found {self.kinds}"
            )

    def _check_attention(self):
        if self.head_dim % 2:
            raise ValueError(f"head_dim: expected an even number for rotary positions, found {self.head_dim}")
        for features, kind in zip(self.channels, self.kinds, strict=True):
            if kind != "conv" and features % self.head_dim:
                raise ValueError(
                    f"channels: expected multiples of head_dim={self.head_dim} at the levels with attention, "
                    f"found {features} in {self.channels}"
                )
        fits_cudnn = self.dtype == "bfloat16" and self.head_dim % 8 == 0 and self.head_dim <= 128
        if self.attention == "cudnn" and not fits_cudnn:
            raise ValueError(
                'attention: "cudnn" needs dtype="bfloat16" and a head_dim that is a multiple of 8 up to 128, '
                f'found dtype={self.dtype!r}, head_dim={self.head_dim}; choose another or attention="xla"'
            )

    @property
    def multiple(self) -> int:
        """The number of pixels that must divide height and width: a patch, halved at each level."""
        return self.patch * 2 ** (len(self.channels) - 1)

    def build(self, channels: int) -> LinenNetwork:
        """The network with so many output channels."""
        span = (-LOGSNR_BOUND, LOGSNR_BOUND)
        return LinenNetwork(UViT3D(self, channels), RULES, self.check, max(self.dropout) > 0, span)

    def check(self, frame: tuple[int, ...]) -> None:
        """Raise ValueError for frames that are not (h, w, c), or whose grid the levels do not divide."""
        if len(frame) != 3:
            raise ValueError(f"frames of shape {frame}: the U-ViT takes (h, w, c); choose another network")
        self.check_grid(*frame[:2])

    def uncached(self) -> "UViTOptions":
        """Without recomputation in the backward pass, with attention written out."""
        return dataclasses.replace(self, remat="none", attention="einsum")

    def on_cpu(self) -> "UViTOptions":
        """Attention that XLA:CPU has, and float16 for bfloat16, which it would widen to 32 bits."""
        options = dataclasses.replace(self, attention="xla") if self.attention == "cudnn" else self
        if options.dtype == "bfloat16":
            options = copy.copy(options)
            object.__setattr__(options, "dtype", "float16")  # a dtype that no config can choose
        return options

    def check_grid(self, height: int, width: int) -> None:
        """Raise ValueError for a grid that the levels do not divide."""
        unit = self.multiple
        if height % unit or width % unit or not height or not width:
            fit = tuple(max(unit, round(size / unit) * unit) for size in (height, width))
            raise ValueError(
                f"grid {height} x {width}: patch={self.patch} and {len(self.channels)} levels need multiples "
                f"of {unit}; use {fit[0]} x {fit[1]}, a smaller patch or fewer levels"
            )


#: Keyword arguments of UViTOptions. ``B`` follows Table 4 of Rolling Diffusion. ``L`` and ``XL`` double and
#: quadruple its channels, with four blocks a level: the scale of Tables 5 and 6, about 0.77 and 2.8 billion
#: parameters, rather than their letter.
SIZES: dict[str, dict] = {
    "tiny": dict(
        patch=2, channels=(48, 96), blocks=(1, 2), kinds=("conv", "axial"), dropout=(0.0, 0.0),
        head_dim=32, embed_dim=128, scan=False,
    ),
    "S": dict(
        channels=(64, 128, 256, 512), blocks=(2, 2, 2, 4), kinds=("conv", "conv", "axial", "full"),
        dropout=(0.0, 0.1, 0.1, 0.1), head_dim=64, embed_dim=512,
    ),
    "B": dict(
        channels=(128, 256, 512, 1024), blocks=(3, 3, 3, 8), kinds=("conv", "conv", "axial", "full"),
        dropout=(0.0, 0.1, 0.1, 0.1),
    ),
    "L": dict(
        channels=(256, 512, 1024, 2048), blocks=(4, 4, 4, 8), kinds=("conv", "conv", "axial", "full"),
        dropout=(0.1, 0.1, 0.1, 0.1),
    ),
    "XL": dict(
        channels=(512, 1024, 2048, 4096), blocks=(4, 4, 4, 8), kinds=("conv", "conv", "axial", "full"),
        dropout=(0.0, 0.0, 0.1, 0.1),
    ),
}  # fmt: skip


def space_to_depth(x: Float[Array, "b f h w c"], side: int) -> Float[Array, "b f h2 w2 c2"]:
    """Gathers each side x side square of pixels into the channels of one."""
    return rearrange(x, "b f (h i) (w j) c -> b f h w (i j c)", i=side, j=side)


def depth_to_space(x: Float[Array, "b f h w c"], side: int) -> Float[Array, "b f h2 w2 c2"]:
    """The inverse of ``space_to_depth``."""
    return rearrange(x, "b f h w (i j c) -> b f (h i) (w j) c", i=side, j=side)


class Block(nn.Module):
    """One block of a level, with the long skip that enters it if it has one: (x, skip, emb) -> (x, x).

    The sum with the skip is divided by sqrt(2) to keep the variance. The second x is the output to emit.
    """

    options: UViTOptions
    level: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        skip: Float[Array, "b f h w c"] | None,
        emb: Float[Array, "b f e"],
        keys: Keys | None = None,
    ) -> tuple[Float[Array, "b f h w c"], Float[Array, "b f h w c"]]:
        options = self.options
        kind, dropout = options.kinds[self.level], options.dropout[self.level]
        if skip is not None:
            x = (x + skip) / math.sqrt(2)
        if kind == "conv":
            x = ConvBlock(options.dtype, dropout, name="conv")(x, emb, keys)
            return x, x
        for over in ("space", "time") if kind == "axial" else ("joint",):
            attention = Attention(over, options.head_dim, options.attention, options.dtype, name=over)
            x = attention(x, emb)
        x = Mlp(options.dtype, dropout, name="mlp")(x, emb, keys)
        return x, x


class Level(nn.Module):
    """The equal blocks of a level in a row: (x, a skip for each or None, emb) -> (x, the output of each).

    Attention enters and leaves with frames that are whole on each device, so that no loop gathers them again.
    """

    options: UViTOptions
    level: int

    @nn.compact
    def __call__(self, x, skips, emb, keys=None):
        place = (lambda x: x) if self.options.kinds[self.level] == "conv" else constrain_batch
        x, outputs = self._blocks(place(x), skips, emb, keys)
        return place(x), outputs

    def _blocks(self, x, skips, emb, keys):
        options, count = self.options, self.options.blocks[self.level]
        scan = options.scan and options.kinds[self.level] != "conv"
        block = Block
        if options.remat != "none":
            block = nn.remat(Block, policy=REMAT[options.remat], prevent_cse=not scan)
        if scan:
            blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs=dict(params=True, dropout=True),
                in_axes=(0, nn.broadcast, nn.broadcast),
                length=count,
            )
            return blocks(options, self.level, name="blocks")(x, skips, emb, keys)
        outputs = []
        for index in range(count):
            skip = None if skips is None else skips[index]
            x, output = block(options, self.level, name=f"block_{index}")(x, skip, emb, keys)
            outputs.append(output)
        return x, outputs


class UViT3D(nn.Module):
    """A prediction for every frame of a window, each with its own noise level.

    Zero-initialised: a new network returns 0. A regression model is the same network called with a constant
    log SNR. With keys, one for each example, dropout is on.
    """

    options: UViTOptions
    out_channels: int

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b f h w c"],
        logsnr: Float[Array, "b l"],
        channels: Float[Array, "b f h w m"] | None = None,
        forcings: Float[Array, "b f m"] | None = None,
        static: Float[Array, "b h w s"] | None = None,
        keys: Keys | None = None,
    ) -> Float[Array, "b f h w o"]:
        """Predicts from z [b f h w c] and logsnr [b f], or [b 1] for all; returns float32 [b f h w out_channels].

        Raises:
          ValueError: if the levels do not divide the grid.
        """
        options = self.options
        options.check_grid(*z.shape[2:4])
        emb = Conditioning(options.embed_dim, name="condition")(
            constrain_batch(jnp.broadcast_to(logsnr, z.shape[:2])), forcings
        )
        emb = emb.astype(options.dtype)
        x = space_to_depth(constrain_batch(_inputs(z, channels, static)), options.patch)
        x = self._dense(options.channels[0], "embed", x)
        skips = []
        for level, features in enumerate(options.channels[1:]):
            x, outputs = Level(options, level, name=f"down_{level}")(x, None, emb, keys)
            skips.append(outputs)
            x = self._dense(features, f"merge_{level}", space_to_depth(x, 2))
        x, _ = Level(options, len(skips), name="middle")(x, None, emb, keys)
        for level in reversed(range(len(skips))):
            x = depth_to_space(self._dense(4 * options.channels[level], f"split_{level}", x), 2)
            x, _ = Level(options, level, name=f"up_{level}")(x, skips[level][::-1], emb, keys)
        x = RMSNorm(name="head_norm")(x).astype(jnp.float32)
        zeros = nn.initializers.zeros
        head = dense(options.patch**2 * self.out_channels, "head", kernel_init=zeros)
        return constrain_batch(depth_to_space(on_images(head, x), options.patch))

    def _dense(self, features: int, name: str, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w d"]:
        return on_images(dense(features, name, self.options.dtype), x)


def _inputs(z: Array, channels: Array | None, static: Array | None) -> Array:
    """z with the condition channels and the static fields of every frame appended."""
    parts = [z]
    if channels is not None:
        parts.append(channels)
    if static is not None:
        parts.append(repeat(static, "b h w s -> b f h w s", f=z.shape[1]))
    return jnp.concatenate(parts, axis=-1)


def parameter_count(size: str, in_channels: int = 2, out_channels: int = 2) -> int:
    """Number of parameters of one of SIZES, for inputs of in_channels without forcings."""
    options = UViTOptions(**SIZES[size])
    side = options.multiple
    z, logsnr = jnp.zeros((1, 2, side, side, in_channels)), jnp.zeros((1, 2))
    params = jax.eval_shape(UViT3D(options, out_channels).init, jax.random.key(0), z, logsnr)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


MODELS["uvit"] = Model(UViTOptions, SIZES)
