"""Layout of arrays on the mesh in use: rules for parameters, and a few constraints on activations.

A batch is split over ``data`` and ``fsdp``; a parameter over ``fsdp`` (memory) and ``tensor`` (width), by the rules
that stand beside the module that it belongs to. A layer
gathers its kernel over fsdp when it needs it, so that weights travel and activations do not. Over tensor

- a block of attention works on a part of its heads and of its hidden features: layers come in pairs, the first
  split by its outputs and the second by its inputs, and only the output of the second is summed over devices
  (Megatron-LM, arXiv 1909.08053, section 3);
- all that sees one frame at a time (convolutions, the layers between levels, embedding and head) works on a part
  of the frames, with kernels that are whole: there the frames are much larger than the kernels.

No convolution is ever split over its space: XLA scales its kernel gradient by the size of any idle mesh axis,
without a word. Nothing here acts without a mesh (``jax.set_mesh``).
"""

import functools
import math
import re
from collections.abc import Callable, Sequence

import jax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from dydiff_jax.system import Rule
from dydiff_jax.types import Array

#: Axes of the mesh that divide a batch, and the one that divides the width of a layer.
BATCH_AXES = ("data", "fsdp")
WIDTH_AXIS = "tensor"


def leaf_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Sequence[Rule]) -> P:
    """The partition of one leaf.

    Replicated are leading dimensions (layers of a scan, the window of a convolution), leaves without a rule (biases,
    scales, counters), and dimensions that their mesh axis does not divide.

    Args:
      path: of the leaf, its keys joined by ``/``.
      shape: of the leaf.
      mesh: the device mesh.
      rules: (pattern searched in the path, mesh axes of the last dimensions); the first match decides.
    """
    for pattern, axes in rules:
        if re.search(pattern, path) and len(shape) >= len(axes):
            sizes = shape[-len(axes) :]
            fitting = [a if a and n % mesh.shape[a] == 0 else None for a, n in zip(axes, sizes, strict=True)]
            return P(*[None] * (len(shape) - len(axes)), *fitting)
    return P()


def constrain_batch(x: Array, width: int | None = None) -> Array:
    """Shards axis 0 over the batch axes of the mesh in use, axis ``width`` over tensor if given, and no other.

    Where axis 0 does not divide, x is returned as it is; where ``width`` does not, it stays whole.
    """
    batch = _dividing(x.shape[0], BATCH_AXES)
    if not batch:
        return x
    spec = [batch] + [None] * (x.ndim - 1)
    if width is not None:
        spec[width] = _dividing(x.shape[width], (WIDTH_AXIS,)) or None
    return jax.lax.with_sharding_constraint(x, P(*spec))


def constrain_images(x: Array) -> Array:
    """Shards axis 0, frames folded into the batch, over all axes of the mesh in use, and no other axis.

    Where it does not divide, the batch axes alone, or nothing. XLA computes wrong kernel gradients for a
    convolution whose space is sharded, so each one sits between two of these.
    """
    axes = _dividing(x.shape[0], (*BATCH_AXES, WIDTH_AXIS)) or _dividing(x.shape[0], BATCH_AXES)
    return jax.lax.with_sharding_constraint(x, P(axes)) if axes else x


def _dividing(size: int, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the axes that the mesh in use has, if together they divide the size, else none."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in names if name in mesh.axis_names)
    return () if size % math.prod(mesh.shape[name] for name in axes) else axes


def gather_kernel(product: Callable[..., Array], path: str, rules: Sequence[Rule]) -> Callable[..., Array]:
    """``product(x, kernel, ...)``, for the kernel at ``path``, that first gathers the kernel over fsdp.

    The kernel lies as ``rules`` say; they must be those that the train state is sharded by.

    It travels in the dtype of the product. The backward pass gathers it again rather than keep it: with fsdp a
    device never holds the kernels of all layers. Its gradient is summed into the parts that are stored.
    """

    def gathered(x: Array, kernel: Array, *args, **kwargs) -> Array:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.shape.get("fsdp", 1) == 1:
            return product(x, kernel, *args, **kwargs)
        stored = leaf_spec(path, kernel.shape, mesh, rules)
        used = P(*(axis if axis == WIDTH_AXIS else None for axis in stored))

        def run(x: Array, kernel: Array) -> Array:
            return product(x, _gather(kernel, stored, used), *args, **kwargs)

        return jax.checkpoint(run, prevent_cse=False)(x, kernel)

    return gathered


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(kernel: Array, stored: P, used: P) -> Array:
    """The kernel laid out as it is used. Its transpose would lay the gradient out so, whole on every device."""
    return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(kernel, stored), used)


def _gather_forward(kernel: Array, stored: P, used: P) -> tuple[Array, None]:
    return _gather(kernel, stored, used), None


def _gather_backward(stored: P, used: P, _: None, gradient: Array) -> tuple[Array]:
    return (jax.lax.with_sharding_constraint(gradient, stored),)


_gather.defvjp(_gather_forward, _gather_backward)
