"""The mesh changes where numbers live, never what they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from jax.sharding import PartitionSpec as P

from dydiff_jax.models.uvit import UViT3D, UViTOptions
from dydiff_jax.training import batches, optim, sharding, state
from dydiff_jax.types import Batch

MESHES = {
    "data": sharding.MeshOptions(),
    "fsdp": sharding.MeshOptions(data=1, fsdp=8),
    "all": sharding.MeshOptions(data=2, fsdp=2, tensor=2),
}
ONE = sharding.MeshOptions(data=1)
MODEL = UViT3D(
    UViTOptions(
        channels=(8, 16), blocks=(1, 1), kinds=("conv", "axial"), dropout=(0.0, 0.0), head_dim=8, embed_dim=16
    ),
    out_channels=2,
)
SHAPE = (8, 3, 4, 4, 2)


def model_params():
    """Parameters that are nowhere zero, so that every leaf has a gradient; in numpy: nothing to compile."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros(SHAPE), jnp.zeros(SHAPE[:2]))

    def draw(path, leaf):
        inputs = np.prod(leaf.shape[-4:-1]) if path[-2].key == "conv" else leaf.shape[-2:][0]
        drawn = rng.standard_normal(leaf.shape, dtype=np.float32) / np.sqrt(inputs)
        return 1 + drawn if path[-1].key == "scale" else drawn

    return jax.tree_util.tree_map_with_path(draw, shapes)


def model_loss(params, batch):
    """A squared error with noise and levels of its own for each row."""
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(2), row))(jnp.arange(SHAPE[0]))
    eps = jax.vmap(lambda key: jax.random.normal(key, SHAPE[1:]))(keys)
    prediction = MODEL.apply(params, batch.frames + eps, 3 * eps[:, :, 0, 0, 0])
    return jnp.mean((prediction - eps) ** 2)


def gradients(options):
    """Loss and gradients of the model, with parameters and batch sharded by the tables."""
    mesh = sharding.make_mesh(options)
    params = model_params()
    shardings = sharding.state_shardings(params, mesh)
    frames = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    with jax.set_mesh(mesh):
        batch = batches.assemble(Batch(frames), range(SHAPE[0]), SHAPE[0], mesh)
        gradient = jax.jit(
            jax.value_and_grad(model_loss),
            out_shardings=(None, shardings),
            compiler_options={"xla_backend_optimization_level": 0},  # compiles twice as fast
        )
        value, grads = gradient(jax.device_put(params, shardings), batch)
    return float(value), jax.device_get(grads)


def train(options, steps=4):
    """Losses of a few steps of the toy, the state after them, and how often the step was compiled."""
    mesh = sharding.make_mesh(options)
    task = toy.make_task()
    optimizer = optim.make_optimizer(toy.OPTIMIZER, steps)

    def init():
        return state.init_state(task.init, optimizer, seed=0)

    with jax.set_mesh(mesh):
        abstract = state.abstract_state(init, mesh)
        current = jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))()
        step = state.make_train_step(task.loss, optimizer, toy.EMA, 0, abstract)
        losses = []
        for n in range(steps):
            batch = batches.assemble(task.rows(n, range(8)), range(8), toy.BATCH_SIZE, mesh)
            current, metrics = step(current, batch)
            losses.append(float(metrics["loss"]))
    return losses, current, step._cache_size()


@pytest.fixture(scope="module")
def one_device():
    return gradients(ONE), train(ONE)


@pytest.mark.parametrize("name", MESHES)
def test_gradients_do_not_depend_on_the_mesh(one_device, name):
    """Leaf by leaf: sums of products of float32 in another order differ by some 1e-6 of the largest entry."""
    (expected_loss, expected), _ = one_device
    value, grads = gradients(MESHES[name])
    assert value == pytest.approx(expected_loss, rel=1e-5)

    def compare(path, found, leaf):
        scale = np.abs(leaf).max()
        assert scale > 0, f"{jax.tree_util.keystr(path)} has no gradient: the test is blind there"
        np.testing.assert_allclose(found, leaf, atol=2e-5 * scale, rtol=0, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, grads, expected)


@pytest.mark.parametrize("name", MESHES)
def test_training_does_not_depend_on_the_mesh(one_device, name):
    """Losses and parameters agree to the order of summation, from the initialisation on."""
    _, (expected, reference, _) = one_device
    losses, current, compilations = train(MESHES[name])
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    for leaf, other in zip(jax.tree.leaves(current.params), jax.tree.leaves(reference.params), strict=True):
        np.testing.assert_allclose(leaf, other, atol=1e-5)
    assert compilations == 1
    mesh = sharding.make_mesh(MESHES[name])
    for path, leaf in jax.tree_util.tree_leaves_with_path(current):
        spec = sharding.leaf_spec(sharding.leaf_name(path), leaf.shape, mesh)
        assert leaf.sharding.is_equivalent_to(jax.NamedSharding(mesh, spec), leaf.ndim)


def test_most_of_a_model_is_sharded():
    """With fsdp = 8 a device holds little more than an eighth of the parameters of the model."""
    params = model_params()
    shardings = sharding.state_shardings(params, sharding.make_mesh(MESHES["fsdp"]))
    parts = jax.tree.map(lambda leaf, where: np.prod(where.shard_shape(leaf.shape)), params, shardings)
    assert sum(jax.tree.leaves(parts)) / sum(leaf.size for leaf in jax.tree.leaves(params)) < 1 / 8 + 0.1


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
        ("params/embed/kernel", (3, 8), P(None, "tensor")),
        ("params/embed/bias", (8,), P()),
        ("step", (), P()),
    ],
)
def test_rules(path, shape, spec):
    """Kernels are split by inputs and outputs, never by a window; what is not divisible stays whole."""
    assert sharding.leaf_spec(path, shape, sharding.make_mesh(MESHES["all"])) == spec


def test_meshes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        sharding.make_mesh(sharding.MeshOptions(fsdp=3))
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        sharding.make_mesh(sharding.MeshOptions(data=4, fsdp=4))
    with pytest.raises(ValueError, match=r"^tensor: "):
        sharding.MeshOptions(tensor=0)
    with pytest.raises(ValueError, match="at most one"):
        sharding.MeshOptions(fsdp=-1)
    assert dict(sharding.make_mesh(sharding.MeshOptions(tensor=2)).shape) == {
        "data": 4,
        "fsdp": 1,
        "tensor": 2,
    }
