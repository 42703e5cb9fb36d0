"""Global batches, made of the rows that each process reads for its own devices."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.types import Batch


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raise ValueError if the mesh does not divide the batch."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % parts:
        raise ValueError(
            f"batch_size: expected a multiple of the {parts} parts (data * fsdp) into which the mesh "
            f"{dict(mesh.shape)} splits it, found {batch_size}; "
            f"use {batch_size - batch_size % parts or parts} or another mesh"
        )


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """The rows [r] of the global batch that the devices of this process need, each once, in order."""
    parts = meshes.batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique([row for (part,) in parts for row in range(*part.indices(batch_size))])


def assemble(local: Batch, rows: Sequence[int] | np.ndarray, batch_size: int, mesh: Mesh) -> Batch:
    """The global batch, sharded by `mesh.BATCH_SPEC`.

    Args:
      local: the rows that this process read, in numpy.
      rows: which rows of the global batch they are, from `local_rows`.
      batch_size: rows of the global batch.
      mesh: the device mesh.
    """
    where = meshes.batch_sharding(mesh)

    def place(leaf: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            first = int(np.searchsorted(rows, start))
            return leaf[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *leaf.shape[1:]), where, part)

    return jax.tree.map(place, local)
