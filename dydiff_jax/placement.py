"""Where arrays lie on the mesh in use."""

import math

import jax
from jax.sharding import PartitionSpec

from dydiff_jax.types import Array

#: Axes of the mesh that divide a batch.
BATCH_AXES = ("data", "fsdp")


def constrain_batch(x: Array) -> Array:
    """Shards axis 0 over the batch axes of the mesh in use, and no other axis.

    Without a mesh (``jax.set_mesh``), or where the axis does not divide, x is returned as it is. XLA computes
    wrong kernel gradients for a convolution whose space is sharded, so each one sits between two of these.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in BATCH_AXES if name in mesh.axis_names)
    if not axes or x.shape[0] % math.prod(mesh.shape[name] for name in axes):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))
