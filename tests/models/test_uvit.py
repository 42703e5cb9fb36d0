"""The U-ViT: equivalences between its ways of computing, what reaches what, and its sizes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_uvit import CHANNELS, init, inputs, network, options, relative_error

from dydiff_jax.models.uvit import (
    SIZES,
    Stage,
    UViT3D,
    UViTOptions,
    depth_to_space,
    parameter_count,
    space_to_depth,
)

Z, LOGSNR = inputs()
MODEL = network()


@pytest.fixture(scope="module")
def params():
    return init(MODEL, Z, LOGSNR)


@pytest.fixture(scope="module")
def apply():
    return jax.jit(MODEL.apply)


def loss_and_gradient(model, params, *args):
    """Of a loss in which every output has its own weight."""
    weight = jax.random.normal(jax.random.key(9), (*args[0].shape[:-1], CHANNELS))
    return jax.jit(jax.value_and_grad(lambda p: jnp.sum(weight * model.apply(p, *args))))(params)


def assert_same_gradient(found, expected, bound):
    """Leaf by leaf, relative to the norm of each leaf."""
    errors = jax.tree.map(relative_error, found, expected)
    assert max(jax.tree.leaves(errors)) < bound, errors


COUNTS = {"tiny": 631_976, "S": 28_154_114, "B": 198_706_434, "L": 737_634_306, "XL": 2_686_169_090}


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts(size):
    assert parameter_count(size) == COUNTS[size]


def test_parameter_count_of_one_block_by_hand():
    """A full block of width c: qkv 3c^2, out c^2, MLP 8c^2 + 5c, two FiLM (e + 1) 2c, two scales."""
    c, e, d = 16, 16, 8
    block = 12 * c * c + 5 * c + 2 * (e + 1) * 2 * c + 2 * d
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), Z, LOGSNR)["params"]["middle"]["block_0"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == block


@pytest.mark.parametrize("size", ["tiny", "S"])
def test_a_new_network_returns_zero(size):
    model = UViT3D(UViTOptions(**SIZES[size]), out_channels=3)
    z = jax.random.normal(jax.random.key(0), (1, 2, 16, 16, 2))
    out, _ = jax.jit(model.init_with_output)(jax.random.key(1), z, jnp.zeros((1, 2)))
    assert out.shape == (1, 2, 16, 16, 3) and out.dtype == jnp.float32
    np.testing.assert_array_equal(out, 0.0)


def test_every_residual_branch_ends_in_zeros():
    params = jax.jit(MODEL.init)(jax.random.key(0), Z, LOGSNR)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith(("conv_out/conv/kernel", "/out/kernel", "mlp_out/kernel", "head/kernel")):
            np.testing.assert_array_equal(leaf, 0.0, err_msg=name)


def test_every_parameter_has_a_gradient(params):
    _, gradient = loss_and_gradient(MODEL, params, Z, LOGSNR)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("frame", [0, 3])
def test_the_level_of_one_frame_reaches_all_frames_of_its_example_and_itself_most(params, apply, frame):
    change = apply(params, Z, LOGSNR.at[0, frame].add(4.0)) - apply(params, Z, LOGSNR)
    per_frame = np.sqrt((np.asarray(change) ** 2).mean((2, 3, 4)))
    assert (per_frame[0] > 0).all() and per_frame[0].argmax() == frame
    np.testing.assert_array_equal(per_frame[1], 0.0)


def test_one_pixel_reaches_every_pixel_of_every_frame_of_its_example_alone(params, apply):
    change = apply(params, Z.at[0, 1, 3, 5].add(1.0), LOGSNR) - apply(params, Z, LOGSNR)
    assert (np.abs(change[0]).max(-1) > 0).all()
    np.testing.assert_array_equal(change[1], 0.0)


def test_scanned_blocks_are_the_blocks_written_out(params):
    def stack(stage):
        blocks = [stage[name] for name in sorted(stage)]
        return {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}

    def stacked(tree):
        with_attention = {"middle", "down_1", "up_1"}
        return {"params": {k: stack(v) if k in with_attention else v for k, v in tree["params"].items()}}

    value, gradient = loss_and_gradient(MODEL, params, Z, LOGSNR)
    scanned_value, scanned_gradient = loss_and_gradient(network(scan=True), stacked(params), Z, LOGSNR)
    np.testing.assert_allclose(scanned_value, value, rtol=1e-4)
    assert_same_gradient(scanned_gradient, stacked(gradient), 1e-4)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_changes_no_number(remat, scan):
    params = init(network(scan=scan), Z, LOGSNR)
    value, gradient = loss_and_gradient(network(scan=scan), params, Z, LOGSNR)
    remat_value, remat_gradient = loss_and_gradient(network(scan=scan, remat=remat), params, Z, LOGSNR)
    np.testing.assert_allclose(remat_value, value, rtol=1e-4)
    assert_same_gradient(remat_gradient, gradient, 1e-4)


def test_both_attention_implementations_agree(params, apply):
    found = jax.jit(network(attention="xla").apply)(params, Z, LOGSNR)
    assert relative_error(found, apply(params, Z, LOGSNR)) < 1e-5


def test_bfloat16_is_close_to_float32(params, apply):
    """Products of bfloat16 are good to 2^-8; seven blocks in a row add up to a few times that."""
    model = network(dtype="bfloat16")
    expected, found = apply(params, Z, LOGSNR), jax.jit(model.apply)(params, Z, LOGSNR)
    assert found.dtype == jnp.float32
    assert 2**-12 < relative_error(found, expected) < 8 * 2**-8
    shapes = jax.eval_shape(model.init, jax.random.key(0), Z, LOGSNR)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_gradients_are_finite_at_infinite_log_snr(params):
    ends = jnp.array([[jnp.inf, jnp.inf, 0.0, -jnp.inf], [-jnp.inf] * 4])
    value, gradient = loss_and_gradient(MODEL, params, Z, ends)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient)))


@pytest.mark.parametrize("frames, height, width", [(1, 8, 8), (5, 40, 24)])
def test_any_grid_and_number_of_frames_that_the_levels_allow(params, frames, height, width):
    """The same parameters serve them all."""
    z, logsnr = inputs(1, frames, height, width)
    out = jax.eval_shape(MODEL.apply, params, z, logsnr)
    assert out.shape == z.shape


@pytest.mark.parametrize("height, width, use", [(38, 24, "40 x 24"), (2, 8, "8 x 8"), (0, 8, "8 x 8")])
def test_a_grid_that_does_not_fit_is_refused(height, width, use):
    with pytest.raises(ValueError, match=f"grid {height} x {width}.*multiples of 8; use {use}"):
        options(patch=2).check_grid(height, width)
    z, logsnr = jnp.zeros((1, 2, 12, 16, 2)), jnp.zeros((1, 2))
    with pytest.raises(ValueError, match="grid 12 x 16"):
        jax.eval_shape(network(patch=2).init, jax.random.key(0), z, logsnr)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_static_field_is_a_channel_that_is_the_same_in_every_frame(patch):
    model = network(patch=patch)
    static = jax.random.normal(jax.random.key(4), (2, *Z.shape[2:4], 3))
    repeated = jnp.broadcast_to(static[:, None], (*Z.shape[:4], 3))
    params = init(model, Z, LOGSNR, static=static)
    apply = jax.jit(model.apply)
    as_static = apply(params, Z, LOGSNR, static=static)
    np.testing.assert_array_equal(as_static, apply(params, Z, LOGSNR, channels=repeated))
    assert relative_error(apply(params, Z, LOGSNR, static=-static), as_static) > 1e-2


def test_actions_and_channels_change_the_output_where_they_change():
    """An action or a channel of example 1 changes nothing in example 0."""
    conditions = dict(channels=jnp.ones((*Z.shape[:4], 1)), actions=jnp.ones((*LOGSNR.shape, 3)))
    params = init(MODEL, Z, LOGSNR, **conditions)
    apply = jax.jit(MODEL.apply)
    before = apply(params, Z, LOGSNR, **conditions)
    for name, value in conditions.items():
        after = apply(params, Z, LOGSNR, **(conditions | {name: value.at[1, 2].add(1.0)}))
        np.testing.assert_array_equal(after[0], before[0])
        assert (np.abs(after - before)[1].max((1, 2, 3)) > 0).all()


def test_dropout_follows_its_key_in_training_and_is_off_otherwise(params, apply):
    model = network(dropout=(0.1, 0.1, 0.1))

    def train(key):
        return jax.jit(lambda p: model.apply(p, Z, LOGSNR, train=True, rngs={"dropout": key}))(params)

    one, again, other = (train(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert relative_error(other, one) > 1e-2
    off = jax.jit(model.apply)(params, Z, LOGSNR)
    np.testing.assert_array_equal(off, apply(params, Z, LOGSNR))
    assert relative_error(one, off) > 1e-2


@pytest.mark.parametrize("level", [0, 1, 2])
def test_dropout_is_set_for_each_level(params, apply, level):
    rates = tuple(0.3 if index == level else 0.0 for index in range(3))
    train = functools.partial(network(dropout=rates).apply, train=True, rngs={"dropout": jax.random.key(0)})
    assert relative_error(jax.jit(train)(params, Z, LOGSNR), apply(params, Z, LOGSNR)) > 1e-3


def test_scanned_blocks_draw_different_dropout():
    """Two equal blocks that add the constant silu(1) to each feature that dropout keeps."""
    stage = Stage(options(channels=(16,), blocks=(2,), kinds=("full",), dropout=(0.5,), scan=True), 0, True)
    x, emb, rngs = jnp.zeros((1, 2, 2, 2, 16)), jnp.zeros((1, 2, 16)), {"dropout": jax.random.key(1)}
    params = jax.tree.map(jnp.zeros_like, stage.init(jax.random.key(0), x, None, emb)["params"])
    mlp = params["blocks"]["mlp"]
    mlp["mlp_in"]["bias"] += 1.0
    mlp["mlp_out"]["kernel"] += jnp.eye(64, 16)
    _, outputs = stage.apply({"params": params}, x, None, emb, rngs=rngs)
    first, second = outputs[0] - x, outputs[1] - outputs[0]
    assert set(np.unique(np.round(first / jax.nn.silu(1.0), 3))) == {0.0, 2.0}
    assert (np.abs(first - second) > 0.5).mean() > 0.3, "half of the 128 features differ, sd 0.044"


def test_space_to_depth_keeps_squares_together_and_inverts():
    x = jnp.arange(2 * 3 * 4 * 6 * 5.0).reshape(2, 3, 4, 6, 5)
    deep = space_to_depth(x, 2)
    np.testing.assert_array_equal(deep[:, :, 1, 2], x[:, :, 2:4, 4:6].reshape(2, 3, 20))
    np.testing.assert_array_equal(depth_to_space(deep, 2), x)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(blocks=(1, 2)), "blocks: expected one entry for each of the 3 levels"),
        (dict(dropout=(0.1,)), "dropout: expected one entry"),
        (dict(blocks=(1, 0, 2)), "blocks: expected entries of at least 1"),
        (dict(patch=0), "patch: expected at least 1"),
        (dict(dropout=(0.0, 0.0, 1.0)), "dropout: expected rates"),
        (dict(kinds=("conv", "axial", "cnn")), "kinds: expected entries among"),
        (dict(kinds=("axial", "conv", "full")), "kinds: expected conv levels, then axial, then full"),
        (dict(kinds=("conv", "conv", "conv")), "kinds: the last level must be axial or full"),
        (dict(channels=(8, 12, 16)), "channels: expected multiples of head_dim=8"),
        (dict(head_dim=1), "head_dim: expected an even number"),
        (dict(attention="cudnn"), 'attention: "cudnn" needs dtype="bfloat16"'),
        (dict(attention="flash"), "attention: expected one of"),
        (dict(dtype="float16"), "dtype: expected one of"),
        (dict(remat="some"), "remat: expected one of"),
        (dict(channels=(), blocks=(), kinds=(), dropout=()), "channels: expected"),
    ],
)
def test_options_that_make_no_network_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        options(**changes)
