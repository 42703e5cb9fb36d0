"""Meshes, the rules of the U-ViT, and the training of a toy on a few meshes; the network has test_meshes.py."""

import jax
import numpy as np
import pytest
import toy
from jax.sharding import PartitionSpec as P

from dydiff_jax.distributed import global_batch
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.distributed.rules import leaf_spec
from dydiff_jax.models.layers import RULES
from dydiff_jax.training import state

MESHES = {
    "data": meshes.MeshOptions(),
    "fsdp": meshes.MeshOptions(data=1, fsdp=8),
    "all": meshes.MeshOptions(data=2, fsdp=2, tensor=2),
}
ONE = meshes.MeshOptions(data=1)


def train(options, steps=4):
    """Losses of a few steps of the toy, the state after them, and how often the step was compiled."""
    mesh = meshes.make_mesh(options)
    stage, examples = toy.make_stage(steps=steps), toy.make_examples()
    with jax.set_mesh(mesh):
        abstract = state.abstract_state(stage.objective, stage.recipe, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        current = jax.jit(lambda: state.init_state(stage.objective, stage.recipe), out_shardings=shardings)()
        step = state.make_train_step(stage.objective, stage.recipe, abstract, {})
        losses = []
        for n in range(steps):
            batch = global_batch.assemble(examples.rows(n, range(8)), range(8), toy.BATCH_SIZE, mesh)
            current, metrics = step(current, {}, batch)
            losses.append(float(metrics["loss"]))
    return losses, current, step._cache_size()


@pytest.fixture(scope="module")
def one_device():
    return train(ONE)


@pytest.mark.parametrize("name", MESHES)
def test_training_does_not_depend_on_the_mesh(one_device, name):
    """Losses and parameters agree to the order of summation, from the initialisation on."""
    expected, reference, _ = one_device
    losses, current, compilations = train(MESHES[name])
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    for leaf, other in zip(jax.tree.leaves(current.params), jax.tree.leaves(reference.params), strict=True):
        np.testing.assert_allclose(leaf, other, atol=1e-5)
    assert compilations == 1
    mesh = meshes.make_mesh(MESHES[name])
    for path, leaf in jax.tree_util.tree_leaves_with_path(current):
        spec = leaf_spec(meshes.leaf_name(path), leaf.shape, mesh, RULES)
        assert leaf.sharding.is_equivalent_to(jax.NamedSharding(mesh, spec), leaf.ndim)


@pytest.mark.parametrize(
    "path, shape, spec",
    [
        ("params/middle/block/space/qkv/kernel", (2, 32, 96), P(None, "fsdp", "tensor")),
        ("opt_state/1/0/mu/params/middle/block/mlp/mlp_out/kernel", (2, 64, 32), P(None, "tensor", "fsdp")),
        (
            "ema/params/down_0/block/conv/conv_in/conv/kernel",
            (2, 3, 3, 8, 16),
            P(None, None, None, None, "fsdp"),
        ),
        ("params/down_0/block/conv/modulate/film/kernel", (2, 8, 32), P(None, "fsdp", "tensor")),
        ("params/embed/kernel", (3, 8), P(None, "fsdp")),
        ("params/merge_0/kernel", (32, 16), P(None, "fsdp")),
        ("params/head/kernel", (8, 3), P("fsdp", None)),
        ("params/condition/level_out/kernel", (16, 16), P("tensor", "fsdp")),
        ("params/condition/forcing_in/kernel", (3, 16), P(None, "tensor")),
        ("params/embed/bias", (8,), P()),
        ("step", (), P()),
    ],
)
def test_rules(path, shape, spec):
    """Kernels are split by inputs and outputs, never by a window; what is not divisible stays whole."""
    assert leaf_spec(path, shape, meshes.make_mesh(MESHES["all"]), RULES) == spec


def test_the_rules_are_those_of_the_module():
    """Another table, another layout; without one all is replicated."""
    mesh = meshes.make_mesh(MESHES["all"])
    rules = ((r"kernel$", (None, "tensor")), (r"", ("fsdp",)))
    assert leaf_spec("a/kernel", (8, 8), mesh, rules) == P(None, "tensor")
    assert leaf_spec("a/bias", (8,), mesh, rules) == P("fsdp")
    assert leaf_spec("a/kernel", (8, 8), mesh, ()) == P()


def test_meshes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        meshes.make_mesh(meshes.MeshOptions(fsdp=3))
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        meshes.make_mesh(meshes.MeshOptions(data=4, fsdp=4))
    with pytest.raises(ValueError, match=r"^tensor: "):
        meshes.MeshOptions(tensor=0)
    with pytest.raises(ValueError, match="at most one"):
        meshes.MeshOptions(fsdp=-1)
    assert dict(meshes.make_mesh(meshes.MeshOptions(tensor=2)).shape) == {
        "data": 4,
        "fsdp": 1,
        "tensor": 2,
    }
