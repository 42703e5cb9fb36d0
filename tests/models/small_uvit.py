"""Small networks and parameters for the tests of the models."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from dydiff_jax.models.uvit import UViT3D, UViTOptions

FRAMES, HEIGHT, WIDTH, CHANNELS = 4, 16, 16, 2


def options(**changes) -> UViTOptions:
    """One level of each kind, on a grid of 16 x 16."""
    small = dict(
        channels=(8, 8, 16), blocks=(1, 1, 1), kinds=("conv", "axial", "full"), dropout=(0.1, 0.1, 0.1),
        head_dim=8, embed_dim=16, scan=False,
    )  # fmt: skip
    return UViTOptions(**(small | changes))


#: Changes to ``options`` for what one block, or two levels, can show: what these tests wait for is compilation.
ONE_LEVEL = dict(channels=(16,), blocks=(1,), kinds=("full",), dropout=(0.0,))
TWO_LEVELS = dict(channels=(8, 8), blocks=(1, 1), kinds=("conv", "axial"), dropout=(0.0, 0.0))


def network(**changes) -> UViT3D:
    return UViT3D(options(**changes), CHANNELS)


def inputs(batch=2, frames=FRAMES, height=HEIGHT, width=WIDTH):
    """z and logsnr, with another level for each frame."""
    rng = np.random.default_rng(1)
    z = rng.standard_normal((batch, frames, height, width, CHANNELS), np.float32)
    logsnr = rng.uniform(-8, 8, (batch, frames)).astype(np.float32)
    return jnp.asarray(z), jnp.asarray(logsnr)


def init(model, *args, **kwargs):
    """Parameters of a module for these arguments that are nowhere zero, so that every part of it acts."""
    shapes = jax.eval_shape(functools.partial(model.init, **kwargs), jax.random.key(0), *args)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        if path[-1].key == "kernel":
            fan_in = math.prod(leaf.shape[-4:-1] if len(leaf.shape) == 4 else leaf.shape[-2:-1])
            return (noise / math.sqrt(fan_in)).astype(leaf.dtype)
        return (0.2 * noise + (path[-1].key == "scale")).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def relative_error(found, expected) -> float:
    """|found - expected| / |expected|, Euclidean norms over all entries."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
