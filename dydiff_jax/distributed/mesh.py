"""The device mesh, and the sharding of every array of a training run on it.

The mesh has three axes. A batch is split over ``data`` and ``fsdp``; a parameter is split over ``fsdp``
(memory) and ``tensor`` (width), by the rules of the module that it belongs to. One device is a mesh of one: there is
one code path.

Only the channel dimensions of a kernel are ever split. Splitting the space or time dimension of a convolution
makes XLA scale its kernel gradient by the size of any idle mesh axis, without a word.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dydiff_jax.distributed.rules import BATCH_AXES, leaf_spec
from dydiff_jax.system import Rule
from dydiff_jax.types import Params

AXES = ("data", "fsdp", "tensor")

#: Every array of a batch is split along its first dimension.
BATCH_SPEC = P(BATCH_AXES)


@dataclasses.dataclass(frozen=True)
class MeshOptions:
    """Sizes of the mesh axes; one of them may be -1 and takes the devices that the others leave.

    Attributes:
      data: copies of the parameters; each works on its own part of the batch.
      fsdp: parts into which parameters, optimizer state and batch are split.
      tensor: parts into which the width of a layer is split.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        for name, size in zip(AXES, dataclasses.astuple(self), strict=True):
            if size != -1 and size < 1:
                raise ValueError(f"{name}: expected a positive number of devices or -1, found {size}")
        if dataclasses.astuple(self).count(-1) > 1:
            raise ValueError(f"data: at most one mesh axis can be -1, found {dataclasses.asdict(self)}")


def make_mesh(options: MeshOptions) -> Mesh:
    """Arranges the devices of all processes in a (data, fsdp, tensor) mesh.

    A mesh that is smaller than the machine uses its first devices, in a single-process run only.

    Raises:
      ValueError: the sizes do not fit the number of devices.
    """
    count = jax.device_count()
    sizes = list(dataclasses.astuple(options))
    if -1 in sizes:
        fixed = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = count // fixed
        fits = count % fixed == 0
    else:
        fits = np.prod(sizes) == count or (np.prod(sizes) < count and jax.process_count() == 1)
    if not fits:
        raise ValueError(
            f"mesh {dataclasses.asdict(options)} does not fit {count} devices: make the product of its axes "
            f"divide {count}, or set data=-1 to use all of them"
        )
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array of a batch."""
    return NamedSharding(mesh, BATCH_SPEC)


def leaf_name(path: tuple[Any, ...]) -> str:
    """The path of a leaf as ``params/block/qkv/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def state_shardings(abstract: Any, mesh: Mesh, rules: Sequence[Rule]) -> Any:
    """A tree of shardings for a tree of shapes: parameters, or a whole train state.

    The moments and the EMA of a parameter end in the parameter's own path, so that the same rules serve them all.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, leaf_spec(leaf_name(path), leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(sharding, abstract)


def abstract_params(init: Callable[[jax.Array], Params], mesh: Mesh, rules: Sequence[Rule]) -> Params:
    """Shapes, dtypes and shardings of the parameters that ``init`` makes from a key, without making them."""
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = state_shardings(shapes, mesh, rules)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
