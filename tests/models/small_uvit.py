"""Small networks and parameters for the tests of the models."""

import jax
import jax.numpy as jnp

from dydiff_jax.models.uvit import UViT3D, UViTOptions

FRAMES, HEIGHT, WIDTH, CHANNELS = 4, 16, 16, 2


def options(**changes) -> UViTOptions:
    """One level of each kind, on a grid of 16 x 16."""
    small = dict(
        channels=(8, 16, 16), blocks=(1, 2, 2), kinds=("conv", "axial", "full"), dropout=(0.0, 0.0, 0.0),
        head_dim=8, embed_dim=16, scan=False,
    )  # fmt: skip
    return UViTOptions(**(small | changes))


def network(**changes) -> UViT3D:
    return UViT3D(options(**changes), CHANNELS)


def inputs(batch=2, frames=FRAMES, height=HEIGHT, width=WIDTH):
    """z and logsnr, with another level for each frame."""
    z = jax.random.normal(jax.random.key(1), (batch, frames, height, width, CHANNELS))
    logsnr = jax.random.uniform(jax.random.key(2), (batch, frames), minval=-8.0, maxval=8.0)
    return z, logsnr


def perturbed(params, scale=0.2):
    """Parameters that are nowhere zero, so that every part of a network acts."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    return jax.tree.unflatten(structure, [x + scale * jax.random.normal(key, x.shape) for x, key in pairs])


def init(model, *args, **kwargs):
    """Perturbed parameters of a module for these arguments."""
    return perturbed(jax.jit(model.init)(jax.random.key(0), *args, **kwargs))


def relative_error(found, expected) -> float:
    """|found - expected| / |expected|, Euclidean norms over all entries."""
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))
