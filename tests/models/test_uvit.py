"""The U-ViT: equivalences between its ways of computing, what reaches what, and its sizes."""

import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_uvit import ONE_LEVEL, TWO_LEVELS, init, inputs, network, options, relative_error

from dydiff_jax.models.layers import Dropout
from dydiff_jax.models.network import Inputs, LinenNetwork
from dydiff_jax.models.uvit import SIZES, Level, depth_to_space, parameter_count, space_to_depth

Z, LOGSNR = inputs()
MODEL = network()


@pytest.fixture(scope="module")
def params():
    return init(MODEL, Z, LOGSNR)


@pytest.fixture(scope="module")
def apply():
    return jax.jit(MODEL.apply)


@functools.cache
def loss_and_gradient(model):
    """(params, z, logsnr) -> value and gradient of a loss in which every output has a weight of its own."""

    def loss(params, z, logsnr):
        weight = jnp.cos(jnp.arange(z.size, dtype=jnp.float32)).reshape(z.shape)
        return jnp.sum(weight * model.apply(params, z, logsnr))

    return jax.jit(jax.value_and_grad(loss))


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


@pytest.mark.slow
def test_a_new_network_returns_zero_and_so_does_each_residual_branch():
    z, logsnr = inputs(1, 1, 8, 8)
    out, params = jax.jit(network(**TWO_LEVELS).init_with_output)(jax.random.key(0), z, logsnr)
    assert out.shape == z.shape and out.dtype == jnp.float32
    np.testing.assert_array_equal(out, 0.0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        last = name.endswith(("conv_out/conv/kernel", "/out/kernel", "mlp_out/kernel", "head/kernel"))
        if name.endswith("kernel"):
            assert np.any(leaf) != last, name


@pytest.mark.slow
def test_every_parameter_has_a_gradient(params):
    _, gradient = loss_and_gradient(MODEL)(params, Z, LOGSNR)
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


def test_long_skips_pair_the_last_block_down_with_the_first_up():
    """With the outputs s1, s2 on the way down and nothing else, the way up is (s2 / sqrt(2) + s1) / sqrt(2).

    The bias of block 1 is feature 0 and that of block 2 is feature 1, so that s1 = (1, 0) and s2 = (1, 1).
    """
    model = network(channels=(8, 8), blocks=(2, 1), kinds=("conv", "full"), dropout=(0.0, 0.0))
    z, logsnr = inputs(1, 1, 2, 2)
    params = jax.tree.map(np.zeros_like, init(model, z, logsnr))["params"]
    for index in range(2):
        params["down_0"][f"block_{index}"]["conv"]["conv_out"]["conv"]["bias"][index] = 1.0
    params["head_norm"]["scale"] += 1.0
    params["head"]["kernel"] += np.eye(8, 2, dtype=np.float32)
    out = np.asarray(jax.jit(model.apply)({"params": params}, z, logsnr))
    np.testing.assert_allclose(out[..., 1] / out[..., 0], 0.5 / (0.5 + math.sqrt(0.5)), rtol=1e-5)


@pytest.mark.slow
def test_scanned_blocks_are_the_blocks_written_out():
    changes = dict(channels=(8, 16), blocks=(2, 1), kinds=("full", "full"), dropout=(0.0, 0.0))

    def stacked(tree):
        params = dict(tree["params"])
        for name in ("down_0", "middle", "up_0"):
            blocks = [params[name][key] for key in sorted(params[name])]
            params[name] = {"blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}
        return {"params": params}

    written, scanned = network(**changes), network(**changes, scan=True)
    params = init(written, Z, LOGSNR)
    value, gradient = loss_and_gradient(written)(params, Z, LOGSNR)
    scanned_value, scanned_gradient = loss_and_gradient(scanned)(stacked(params), Z, LOGSNR)
    np.testing.assert_allclose(scanned_value, value, rtol=1e-4)
    assert_same_gradient(scanned_gradient, stacked(gradient), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_changes_no_number(remat):
    """Of convolution blocks written out and of attention blocks scanned."""
    changes = dict(channels=(8, 16), blocks=(1, 2), kinds=("conv", "full"), dropout=(0.0, 0.0), scan=True)
    plain, remade = network(**changes), network(**changes, remat=remat)
    params = init(plain, Z, LOGSNR)
    value, gradient = loss_and_gradient(plain)(params, Z, LOGSNR)
    remade_value, remade_gradient = loss_and_gradient(remade)(params, Z, LOGSNR)
    np.testing.assert_allclose(remade_value, value, rtol=1e-4)
    assert_same_gradient(remade_gradient, gradient, 1e-4)


def test_both_attention_implementations_agree():
    params = init(network(**ONE_LEVEL), Z, LOGSNR)
    found, expected = (
        jax.jit(network(**ONE_LEVEL, attention=name).apply)(params, Z, LOGSNR) for name in ("xla", "einsum")
    )
    assert relative_error(found, expected) < 1e-5


def test_bfloat16_is_close_to_float32():
    """Products of bfloat16 are good to 2^-8; the sublayers in a row add up to a few times that."""
    single, half = network(**TWO_LEVELS), network(**TWO_LEVELS, dtype="bfloat16")
    params = init(single, Z, LOGSNR)
    found, expected = jax.jit(half.apply)(params, Z, LOGSNR), jax.jit(single.apply)(params, Z, LOGSNR)
    assert found.dtype == jnp.float32
    assert 2**-12 < relative_error(found, expected) < 8 * 2**-8
    assert jax.tree.map(np.shape, init(half, Z, LOGSNR)) == jax.tree.map(np.shape, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(init(half, Z, LOGSNR))} == {np.dtype("float32")}


@pytest.mark.slow
def test_gradients_are_finite_at_infinite_log_snr(params):
    ends = jnp.array([[jnp.inf, jnp.inf, 0.0, -jnp.inf], [-jnp.inf] * 4])
    value, gradient = loss_and_gradient(MODEL)(params, Z, ends)
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


def test_a_static_field_is_a_channel_that_is_the_same_in_every_frame():
    model = network(**ONE_LEVEL, patch=2)
    static = np.random.default_rng(4).standard_normal((2, *Z.shape[2:4], 3), np.float32)
    params = init(model, Z, LOGSNR, static=static)
    as_static = jax.jit(model.apply)(params, Z, LOGSNR, static=static)
    repeated = np.broadcast_to(static[:, None], (*Z.shape[:4], 3))
    np.testing.assert_array_equal(as_static, jax.jit(model.apply)(params, Z, LOGSNR, channels=repeated))


@pytest.mark.parametrize("name", ["channels", "forcings", "static"])
def test_a_condition_changes_the_output_of_its_example(name):
    model = network(**ONE_LEVEL)
    shape = dict(channels=(*Z.shape[:4], 1), forcings=(*LOGSNR.shape, 3), static=(2, *Z.shape[2:4], 1))[name]
    value = np.zeros(shape, np.float32)
    params = init(model, Z, LOGSNR, **{name: value})
    apply = jax.jit(model.apply)
    changed = value.copy()
    changed[1] += 1.0
    change = apply(params, Z, LOGSNR, **{name: changed}) - apply(params, Z, LOGSNR, **{name: value})
    np.testing.assert_array_equal(change[0], 0.0)
    assert (np.abs(change[1]).max((1, 2, 3)) > 0).all()


def test_dropout_follows_its_key_in_training_and_needs_none_otherwise():
    model = network(**TWO_LEVELS | dict(dropout=(0.1, 0.1)))
    params = init(model, Z, LOGSNR)
    adapted = LinenNetwork(model, (), lambda frame: None)
    train = jax.jit(lambda p, keys: adapted.apply(p["params"], Inputs(Z, LOGSNR), keys))
    one, again, other = (train(params, jax.random.split(jax.random.key(seed), len(Z))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert relative_error(other, one) > 1e-2
    assert relative_error(one, jax.jit(model.apply)(params, Z, LOGSNR)) > 1e-2


def test_the_dropout_of_an_example_depends_on_its_key_alone():
    """The same bits beside other examples; another layer draws others."""
    layer, keys = Dropout(0.5), jax.random.split(jax.random.key(1), 64)
    x = np.ones((64, 32), np.float32)
    drop = jax.jit(lambda x, keys, stream: layer.apply({}, x, keys, rngs={"dropout": stream}))
    all_rows, stream = np.asarray(drop(x, keys, jax.random.key(0))), jax.random.key(0)
    np.testing.assert_array_equal(drop(x[5:7], keys[5:7], stream), all_rows[5:7])
    assert set(np.unique(all_rows)) == {0.0, 2.0}
    assert abs(all_rows.mean() - 1) < 4 / np.sqrt(64 * 32)
    other = np.asarray(drop(x, keys, jax.random.key(3)))
    assert 0.4 < (other != all_rows).mean() < 0.6


@pytest.mark.parametrize("level", [0, 1, 2])
def test_dropout_is_set_for_each_level(level):
    """In training a level with a rate asks for a key, one without asks for none."""
    rates = tuple(0.3 if index == level else 0.0 for index in range(3))
    x, emb = np.zeros((1, 2, 4, 4, 16), np.float32), np.zeros((1, 2, 16), np.float32)
    for number in range(3):
        model = Level(options(dropout=rates, channels=(16, 16, 16)), number)
        shapes = jax.eval_shape(functools.partial(model.init, jax.random.key(0)), x, None, emb)
        keys = jax.random.split(jax.random.key(0), 1)
        if number == level:
            with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
                jax.eval_shape(model.apply, shapes, x, None, emb, keys)
        else:
            jax.eval_shape(model.apply, shapes, x, None, emb, keys)


def test_scanned_blocks_draw_different_dropout():
    """Two equal blocks that add the constant 2 silu(1) to each feature that dropout keeps."""
    stage = Level(options(**ONE_LEVEL | dict(blocks=(2,), dropout=(0.5,), scan=True)), 0)
    x, emb = np.zeros((1, 2, 2, 2, 16), np.float32), np.zeros((1, 2, 16), np.float32)
    params = jax.tree.map(np.zeros_like, init(stage, x, None, emb))
    mlp = params["params"]["blocks"]["mlp"]
    mlp["mlp_in"]["bias"] += 1.0
    mlp["mlp_out"]["kernel"] += np.eye(64, 16, dtype=np.float32)
    keys = jax.random.split(jax.random.key(1), 1)
    draw = jax.jit(lambda p: stage.apply(p, x, None, emb, keys, rngs={"dropout": jax.random.key(0)})[1])
    outputs = np.asarray(draw(params))
    kept = np.diff(outputs, axis=0, prepend=0) / (2 * jax.nn.silu(1.0))
    assert set(np.unique(kept.round(5))) == {0.0, 1.0}
    assert 0.3 < (kept[0] != kept[1]).mean() < 0.7, "of 128 features, half differ: standard deviation 0.044"


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
        (dict(channels=(), blocks=(), kinds=(), dropout=()), "channels: expected"),
    ],
)
def test_options_that_make_no_network_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        options(**changes)
