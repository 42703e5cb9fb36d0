"""The CNN against its equations written out in numpy, its symmetries, its size, and itself on meshes."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy import special
from small_uvit import init, relative_error

from dydiff_jax.cost_model import hlo
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.models.cnn import CNN, CNNOptions, OnWindows
from dydiff_jax.models.layers import LOGSNR_BOUND
from dydiff_jax.models.network import Inputs
from dydiff_jax.types import Conditions

#: The first layer changes the width, the others have a residual; the second kernel is as wide as the image.
SMALL = CNNOptions(features=8, kernels=(3, 5, 1), groups=4, dropout=0.3)
#: Whether y and x wrap around.
WRAPS = {"zeros": (False, False), "periodic": (True, True), "periodic_x": (False, True)}
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 5, 6, 2), np.float32)
TIME = np.array([0.0, 1.5, 7.0], np.float32)


def image(**changes):
    """The layers before the head, and parameters that are nowhere zero."""
    model = CNN(dataclasses.replace(SMALL, **changes))
    return model, init(model, X, TIME, None)


def apply(model, params, x=X, time=TIME):
    return np.asarray(jax.jit(model.apply)(params, x, time, None))


def leaves(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_the_released_spring_mesh_has_the_published_number_of_parameters():
    """0.479 M: 4 channels of two frames and a static field, to 4 channels, with time.

    Group norm has as many parameters as the batch norm of the release. Built behind the seam, the interpolator has a
    head for each of the frames that it sees.
    """
    d, kernels, into, out = 64, (9, 7, 5, 3), 2 * 4 + 1, 4
    time = (d + 1) * 2 * d + (2 * d + 1) * 2 * d
    convolutions = sum(
        (side**2 * width + 1) * d for side, width in zip(kernels, (into, d, d, d), strict=True)
    )
    norms, films = len(kernels) * 2 * d, len(kernels) * (2 * d + 1) * 2 * d
    body, head = time + convolutions + norms + films, (d + 1) * out
    assert body + head == 478_532

    static = jnp.zeros((1, 10, 10, 1))
    for frames, channels, heads, norm in ((1, 8, 1, "group"), (2, 4, 2, "group"), (1, 8, 1, "affine")):
        network = CNNOptions(norm=norm).build(out)
        seen = Inputs(jnp.zeros((1, frames, 10, 10, channels)), jnp.zeros((1, 1)), Conditions(static=static))
        count = leaves(jax.eval_shape(network.init, jax.random.key(0), seen))
        assert count == body + heads * head
        assert count == pytest.approx(0.479e6, rel=5e-3)


def by_hand(params, x, time, padding, norm="group"):
    """The layers in float64, a convolution as a sum over the points of its kernel."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    d, groups = SMALL.features, SMALL.groups

    def dense(name, x):
        return x @ p[name]["kernel"] + p[name]["bias"]

    def gelu(x):
        return x * special.ndtr(x)

    frequency = 10_000.0 ** -(np.arange(d // 2) / (d // 2 - 1))
    angle = np.asarray(time, np.float64)[:, None] * frequency
    hidden = dense("time_out", gelu(dense("time_in", np.concatenate([np.sin(angle), np.cos(angle)], axis=1))))
    x = np.asarray(x, np.float64)
    for number, side in enumerate(SMALL.kernels):
        kernel, reach, wide = p[f"conv_{number}"]["kernel"], side // 2, x
        for axis, wrap in zip((1, 2), WRAPS[padding], strict=True):
            edges = [(reach, reach) if a == axis else (0, 0) for a in range(4)]
            wide = np.pad(wide, edges, mode="wrap" if wrap else "constant")
        h, w = x.shape[1:3]
        y = p[f"conv_{number}"]["bias"] + sum(
            wide[:, i : i + h, j : j + w] @ kernel[i, j] for i, j in np.ndindex(side, side)
        )
        if norm == "group":
            parts = y.reshape(len(y), h * w, groups, d // groups)
            centred = parts - parts.mean(axis=(1, 3), keepdims=True)
            parts = centred / np.sqrt(centred.var(axis=(1, 3), keepdims=True) + 1e-6)
            y = parts.reshape(y.shape)
        y = y * p[f"norm_{number}"]["scale"] + p[f"norm_{number}"]["bias"]
        affine = dense(f"film_{number}", hidden * special.expit(hidden))[:, None, None]
        y = gelu(y * (1 + affine[..., :d]) + affine[..., d:])
        x = x + y if x.shape[-1] == d else y
    return x


@pytest.mark.parametrize("padding, norm", [*((padding, "group") for padding in WRAPS), ("zeros", "affine")])
def test_the_layers_are_their_equations(padding, norm):
    model, params = image(padding=padding, norm=norm)
    np.testing.assert_allclose(
        apply(model, params), by_hand(params, X, TIME, padding, norm), rtol=1e-5, atol=2e-5
    )


@pytest.mark.parametrize("padding", WRAPS)
def test_a_shift_along_an_axis_that_wraps_shifts_the_output_and_along_no_other(padding):
    model, params = image(padding=padding)
    for axis, wraps in zip((1, 2), WRAPS[padding], strict=True):
        shifted = apply(model, params, np.roll(X, 2, axis))
        error = relative_error(shifted, np.roll(apply(model, params), 2, axis))
        assert error < 1e-5 if wraps else error > 1e-2, (axis, error)


def test_a_layer_is_residual_where_the_width_stays_and_only_there():
    """With kernels, norms and FiLM of zero a layer adds nothing: x goes through, or nothing does."""
    for width, kept in ((SMALL.features, True), (2, False)):
        x = RNG.standard_normal((1, 4, 4, width), np.float32)
        model = CNN(SMALL)
        params = jax.tree.map(jnp.zeros_like, init(model, x, TIME[:1], None))
        expected = x if kept else np.zeros((1, 4, 4, SMALL.features))
        np.testing.assert_array_equal(apply(model, params, x, TIME[:1]), expected)


def test_the_time_of_an_example_changes_it_and_no_other():
    model, params = image()
    change = np.abs(apply(model, params, time=TIME + np.float32([0, 0.25, 0])) - apply(model, params)).max(
        (1, 2)
    )
    np.testing.assert_array_equal(change[[0, 2]], 0)
    assert (change[1] > 1e-3).all(), "every feature"


def network_and_parameters(channels=2, **changes):
    network = dataclasses.replace(SMALL, **changes).build(channels)
    seen = Inputs(jnp.zeros((1, 2, 5, 6, 2)), jnp.zeros((1, 1)))
    shapes = jax.eval_shape(network.init, jax.random.key(0), seen)
    rng = np.random.default_rng(1)
    return network, jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), shapes)


def test_the_dropout_of_a_row_follows_its_key_alone():
    """The same bits beside other rows and in another place; another batch size is another program, which rounds."""
    network, params = network_and_parameters()
    keys = jax.random.split(jax.random.key(3), 4)
    x = RNG.standard_normal((4, 2, 5, 6, 2), np.float32)

    @jax.jit
    def draw(keys, x):
        return network.apply(params, Inputs(x, jnp.ones((len(x), 1))), keys)

    found = np.asarray(draw(keys, x))
    for order in ([3, 1, 0, 2], [1, 1, 2, 1]):
        np.testing.assert_array_equal(draw(keys[np.array(order)], x[order]), found[order])
    np.testing.assert_allclose(draw(keys[1:2], x[1:2]), found[1:2], rtol=0, atol=1e-5)
    other = np.asarray(draw(keys[::-1], x))
    assert (np.abs(other - found).max((1, 2, 3, 4)) > 1e-2).all(), "every row has another mask"


def test_without_keys_nothing_is_dropped():
    network, params = network_and_parameters()
    plain, _ = network_and_parameters(dropout=0.0)
    assert network.has_dropout and not plain.has_dropout
    seen = Inputs(RNG.standard_normal((2, 2, 5, 6, 2), np.float32), jnp.ones((2, 1)))
    keys = jax.random.split(jax.random.key(0), 2)
    without = jax.jit(network.apply)(params, seen)
    np.testing.assert_array_equal(without, jax.jit(plain.apply)(params, seen, keys))
    assert relative_error(jax.jit(network.apply)(params, seen, keys), without) > 1e-2


def gradient(network, params, x, time):
    """Value and gradient of a loss in which every output has a weight of its own, dropout on."""
    keys = jax.random.split(jax.random.key(1), len(x))
    weight = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    def loss(params):
        return jnp.sum(weight * network.apply(params, Inputs(x, time), keys))

    return jax.value_and_grad(loss)(params)


@pytest.fixture(scope="module")
def on_one_device():
    network, params = network_and_parameters(padding="periodic_x", kernels=(3, 1))
    x = RNG.standard_normal((8, 2, 5, 6, 2), np.float32)
    time = RNG.uniform(0, 4, (8, 1)).astype(np.float32)
    step = jax.jit(lambda *args: gradient(network, *args)).lower(params, x, time).compile()
    return network, params, x, time, (jax.device_get(step(params, x, time)), hlo.flops(step.as_text()))


def test_every_parameter_has_a_gradient(on_one_device):
    *_, ((_, gradients), _) = on_one_device
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(leaf).max() > 1e-4 * scale, jax.tree_util.keystr(path)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 2, 4)], ids=str)
def test_gradients_on_a_mesh_are_those_of_one_device(on_one_device, sizes):
    """Leaf by leaf; XLA scales the gradients of kernels split over tensor. Each device does its share."""
    network, params, x, time, (expected, whole) = on_one_device
    mesh = jax.make_mesh(sizes, meshes.AXES, axis_types=(AxisType.Auto,) * 3)
    batch = NamedSharding(mesh, P(("data", "fsdp")))
    with jax.set_mesh(mesh):
        abstract = meshes.abstract_params(lambda key: params, mesh, network.rules)
        placed = jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, abstract))
        x, time = (jax.device_put(each, batch) for each in (x, time))
        step = jax.jit(lambda *args: gradient(network, *args)).lower(placed, x, time).compile()
        found = jax.device_get(step(placed, x, time))
    assert hlo.flops(step.as_text()) < 1.1 * whole / 8
    held = placed["image"]["conv_1"]["kernel"].addressable_shards[0].data.size
    assert held * sizes[1] == params["image"]["conv_1"]["kernel"].size, "kernels are split over fsdp alone"
    errors = jax.tree.map(relative_error, found, expected)
    assert max(jax.tree.leaves(errors)) < 1e-5, errors


def test_bfloat16_is_close_to_float32():
    """Products of bfloat16 are good to 2^-8; the layers in a row add up to a few times that."""
    network, params = network_and_parameters()
    half, _ = network_and_parameters(dtype="bfloat16")
    seen = Inputs(RNG.standard_normal((2, 2, 5, 6, 2), np.float32), jnp.ones((2, 1)))
    found, expected = (jax.jit(each.apply)(params, seen) for each in (half, network))
    steps = str(jax.make_jaxpr(half.apply)(params, seen))
    assert re.findall(r"(\w+)\[[\d,]*\] = conv_general_dilated", steps) == 3 * ["bf16"]
    assert found.dtype == jnp.float32
    assert 2**-12 < relative_error(found, expected) < 8 * 2**-8


# The adapter


class Copy(nn.Module):
    """An image network whose features are what it sees, and its time."""

    @nn.compact
    def __call__(self, x, time, keys):
        return jnp.concatenate([x, jnp.broadcast_to(time[:, None, None, None], (*x.shape[:3], 1))], axis=-1)


def test_the_adapter_makes_frames_channels_and_features_frames():
    """Frame f, channel c of the output is the head of feature (f, c) of the image network, at the time of the last."""
    windows = RNG.standard_normal((2, 3, 4, 5, 2), np.float32)
    level = np.array([[1.0], [2.0]], np.float32)
    head = RNG.standard_normal((7, 6), np.float32)
    params = {"head": {"kernel": head, "bias": np.arange(6, dtype=np.float32)}}
    found = OnWindows(Copy(), 2).apply({"params": params}, windows, level)
    assert found.shape == windows.shape
    for b, f, c in np.ndindex(2, 3, 2):
        seen = sum(
            head[2 * frame + channel, 2 * f + c] * windows[b, frame, ..., channel]
            for frame, channel in np.ndindex(3, 2)
        )
        expected = seen + head[6, 2 * f + c] * level[b, 0] + 2 * f + c
        np.testing.assert_allclose(found[b, f, ..., c], expected, atol=1e-5)


def test_a_window_of_one_frame_is_the_image_network_and_a_head():
    model, params = image()
    head = {"kernel": RNG.standard_normal((8, 2), np.float32), "bias": np.ones(2, np.float32)}
    whole = {"params": {"image": params["params"], "head": head}}
    found = jax.jit(OnWindows(model, 2).apply)(whole, X[:, None], TIME[:, None])
    expected = by_hand(params, X, TIME, "zeros") @ head["kernel"] + 1
    np.testing.assert_allclose(found[:, 0], expected, atol=5e-5)


def test_the_adapter_sees_static_fields_once_and_levels_and_forcings_of_every_frame():
    """Infinite log SNR is clipped, and levels are channels in units of the bound."""
    b, f, h, w = 2, 3, 4, 5
    windows = np.zeros((b, f, h, w, 1), np.float32)
    channels, static = (RNG.standard_normal((b, *shape), np.float32) for shape in ((f, h, w, 1), (h, w, 2)))
    level = np.array([[np.inf, 4.0, -np.inf], [0.0, 1.0, 2.0]], np.float32)
    forcings = RNG.standard_normal((b, f, 1), np.float32)
    seen = f + f + 2 + f + f + 1  # x, channels, static, levels, forcings; and the time
    params = {"head": {"kernel": np.eye(seen, f * seen, dtype=np.float32), "bias": np.zeros(f * seen)}}
    found = OnWindows(Copy(), seen).apply({"params": params}, windows, level, channels, forcings, static)[
        :, 0
    ]
    everywhere = np.ones((b, h, w, 1))
    clipped = np.clip(level, -LOGSNR_BOUND, LOGSNR_BOUND)
    np.testing.assert_allclose(found[..., f : 2 * f], np.moveaxis(channels[..., 0], 1, -1))
    np.testing.assert_allclose(found[..., 2 * f : 2 * f + 2], static)
    np.testing.assert_allclose(
        found[..., 2 * f + 2 : 3 * f + 2], everywhere * clipped[:, None, None] / LOGSNR_BOUND, rtol=1e-6
    )
    np.testing.assert_allclose(found[..., 3 * f + 2 : -1], everywhere * forcings[:, None, None, :, 0])
    np.testing.assert_allclose(found[..., -1], everywhere[..., 0] * clipped[:, -1, None, None])


# What is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(kernels=()), "kernels: expected odd numbers of points"),
        (dict(kernels=(3, 4)), "kernels: expected odd numbers of points, found \\(3, 4\\)"),
        (dict(dropout=1.0), "dropout: expected a rate in"),
        (
            dict(features=6),
            "features: expected an even number of 4 or more that the 4 groups divide, found 6",
        ),
    ],
)
def test_options_that_make_no_network_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_frames_that_are_no_images_are_refused():
    with pytest.raises(ValueError, match=r"frames of shape \(3,\): the CNN takes \(h, w, c\)"):
        SMALL.check((3,))
