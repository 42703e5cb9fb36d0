"""A global batch is the rows of its processes, in order."""

import numpy as np
import pytest

from dydiff_jax.distributed import global_batch
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.types import Batch


def test_a_batch_is_assembled_in_order():
    mesh = meshes.make_mesh(meshes.MeshOptions(data=2, fsdp=2, tensor=2))
    local = Batch(np.arange(16.0).reshape(8, 1, 1, 1, 2), static=np.arange(8.0))
    rows = global_batch.local_rows(8, mesh)
    np.testing.assert_array_equal(rows, np.arange(8))
    batch = global_batch.assemble(local, rows, 8, mesh)
    assert batch.forcings is None
    np.testing.assert_array_equal(batch.frames, local.frames)
    np.testing.assert_array_equal(batch.static, local.static)
    assert batch.frames.sharding.is_equivalent_to(meshes.batch_sharding(mesh), 5)


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
    mesh = meshes.make_mesh(meshes.MeshOptions(data=2, fsdp=2, tensor=2))
    with pytest.raises(ValueError, match=r"^batch_size: expected a multiple of the 4 .* found 10; use 8"):
        global_batch.check_batch(10, mesh)
