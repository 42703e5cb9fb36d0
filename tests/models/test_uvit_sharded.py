"""Gradients of the U-ViT on meshes of 8 devices equal those of one device, leaf by leaf."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from small_uvit import TWO_LEVELS, init, inputs, network, relative_error

MODEL = network(**TWO_LEVELS)
Z, LOGSNR = inputs(batch=8, frames=2, height=8, width=8)


@functools.cache
def params():
    return init(MODEL, Z, LOGSNR)


def gradient(params, z, logsnr):
    weight = jnp.cos(jnp.arange(z.size, dtype=jnp.float32)).reshape(z.shape)
    return jax.grad(lambda p: jnp.sum(weight * MODEL.apply(p, z, logsnr)))(params)


@functools.cache
def on_one_device():
    return jax.device_get(jax.jit(gradient)(params(), np.asarray(Z), np.asarray(LOGSNR)))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_gradients_on_a_mesh(sizes):
    """Even where the input comes with its height sharded, which XLA gets wrong in convolutions."""
    mesh = jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    placed = NamedSharding(mesh, P("data", None, "tensor"))
    with jax.set_mesh(mesh):
        z = jax.device_put(np.asarray(Z), placed)
        logsnr = jax.device_put(np.asarray(LOGSNR), NamedSharding(mesh, P("data")))
        weights = jax.device_put(params(), NamedSharding(mesh, P()))
        found = jax.device_get(jax.jit(gradient)(weights, z, logsnr))
    errors = jax.tree.map(relative_error, found, on_one_device())
    assert max(jax.tree.leaves(errors)) < 1e-4, errors
