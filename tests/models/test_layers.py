"""Each part of the U-ViT against a closed form, an independent implementation, or what it must not mix."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from small_uvit import init

from dydiff_jax.distributed.rules import constrain_batch
from dydiff_jax.models import layers

B, F, H, W, C, E, D = 2, 3, 4, 5, 16, 8, 8
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((B, F, H, W, C), np.float32))
EMB = jnp.asarray(RNG.standard_normal((B, F, E), np.float32))


def attention(over):
    model = layers.Attention(over, D, "einsum", "float32")
    params = init(model, X, EMB)
    return params, jax.jit(model.apply)


def numpy_attention(params, x, emb, positions):
    """Attention over all tokens with positions [tokens, axes], written with complex numbers, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    x, emb = np.asarray(x, np.float64), np.asarray(emb, np.float64)
    film = emb / (1 + np.exp(-emb)) @ p["modulate"]["film"]["kernel"] + p["modulate"]["film"]["bias"]
    film = film[:, :, None, None, :]

    def normalise(u):
        return u / np.sqrt((u**2).mean(-1, keepdims=True) + 1e-6)

    y = (normalise(x) * (1 + film[..., :C]) + film[..., C:]).reshape(len(x), -1, C)
    pairs, axes = D // 2, positions.shape[1]
    frequency = layers.ROTARY_BASE ** (-np.arange(pairs // axes) / (pairs // axes))
    angle = np.concatenate([np.outer(positions[:, axis], frequency) for axis in range(axes)], axis=1)
    turn = np.exp(1j * np.pad(angle, ((0, 0), (0, pairs - angle.shape[1]))))
    out = np.zeros_like(y)
    for head in range(C // D):
        q, k, v = np.split((y @ p["qkv"]["kernel"])[..., 3 * D * head : 3 * D * (head + 1)], 3, axis=-1)
        q, k = normalise(q) * p["q_norm"]["scale"], normalise(k) * p["k_norm"]["scale"]
        q, k = ((u[..., :pairs] + 1j * u[..., pairs:]) * turn for u in (q, k))
        logits = (q @ k.conj().swapaxes(1, 2)).real / math.sqrt(D)
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        out[..., D * head : D * (head + 1)] = weights @ v
    return x + (out @ p["out"]["kernel"]).reshape(x.shape)


def test_joint_attention_is_softmax_attention_over_all_tokens():
    params, apply = attention("joint")
    positions = np.array([(f, i, j) for f in range(F) for i in range(H) for j in range(W)])
    np.testing.assert_allclose(apply(params, X, EMB), numpy_attention(params, X, EMB, positions), atol=2e-5)


def test_space_attention_is_softmax_attention_within_each_frame():
    params, apply = attention("space")
    positions = np.array([(i, j) for i in range(H) for j in range(W)])
    found = apply(params, X, EMB)
    for f in range(F):
        frame = slice(f, f + 1)
        expected = numpy_attention(params, X[:, frame], EMB[:, frame], positions)
        np.testing.assert_allclose(found[:, frame], expected, atol=2e-5)


def test_time_attention_is_softmax_attention_of_each_pixel():
    params, apply = attention("time")
    found = apply(params, X, EMB)
    for i, j in np.ndindex(H, W):
        pixel = np.s_[:, :, i : i + 1, j : j + 1]
        expected = numpy_attention(params, X[pixel], EMB, np.arange(F)[:, None])
        np.testing.assert_allclose(found[pixel], expected, atol=2e-5)


@pytest.mark.parametrize("over", ["space", "time", "joint"])
def test_attention_reaches_exactly_its_tokens(over):
    params, apply = attention(over)
    moved = apply(params, X.at[0, 1, 2, 3].add(1.0), EMB) != apply(params, X, EMB)
    reached = {"space": np.s_[1], "time": np.s_[:, 2, 3], "joint": np.s_[:]}[over]
    expected = np.zeros((B, F, H, W), bool)
    expected[0][reached] = True
    np.testing.assert_array_equal(moved.any(-1), expected)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_rotary_products_depend_on_the_difference_of_positions(axes):
    q, k = RNG.standard_normal((2, 1, 6, 1, 16), np.float32)
    positions = np.random.default_rng(0).integers(0, 20, (6, axes)).astype(np.float32)

    def products(at):
        angles = layers.rotary_angles(at, 16)
        return jnp.einsum("bqnd,bknd->bqk", layers.rotate(q, angles), layers.rotate(k, angles))

    shift = np.arange(1, axes + 1, dtype=np.float32) * 7
    np.testing.assert_allclose(products(positions + shift), products(positions), atol=2e-5)
    for axis in range(axes):
        moved = positions.copy()
        moved[0, axis] += 1
        assert jnp.abs(products(moved) - products(positions)).max() > 1e-2


def test_einsum_attention_is_that_of_jax():
    q, k, v = RNG.standard_normal((3, 2, 7, 2, 8), np.float32)
    np.testing.assert_allclose(layers.attend(q, k, v, "einsum"), layers.attend(q, k, v, "xla"), atol=2e-6)


def test_softmax_of_bfloat16_attention_is_float32():
    """The logits 272 and 273 (over sqrt(2)) are one number in bfloat16, whose spacing there is 2."""
    q = jnp.ones((1, 2, 1, 2), jnp.bfloat16)
    k = jnp.array([[256.0, 16.0], [256.0, 17.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
    v = jnp.array([[0.0, 0.0], [1.0, 1.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
    expected = 1 / (1 + math.exp(-1 / math.sqrt(2)))
    found = layers.attend(q, k, v, "einsum").astype(jnp.float32)
    np.testing.assert_allclose(found, expected, rtol=2**-8)


def conv_block():
    model = layers.ConvBlock("float32", 0.0)
    return init(model, X, EMB), jax.jit(model.apply)


def test_conv_block_treats_every_frame_alone():
    params, apply = conv_block()
    out = apply(params, X, EMB)
    moved = apply(params, X.at[0, 1].add(1.0), EMB) != out
    np.testing.assert_array_equal(moved.any((2, 3, 4)), [[False, True, False], [False, False, False]])
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(apply(params, X[:, order], EMB[:, order]), out[:, order], atol=1e-5)


def test_conv_block_commutes_with_translation_away_from_the_border():
    """Two 3x3 convolutions see two pixels each way."""
    params, apply = conv_block()
    x = RNG.standard_normal((1, 1, 9, 12, C), np.float32)
    rolled = apply(params, np.roll(x, 1, axis=3), EMB[:1, :1])
    expected = np.roll(apply(params, x, EMB[:1, :1]), 1, axis=3)
    np.testing.assert_allclose(rolled[:, :, :, 3:-2], expected[:, :, :, 3:-2], atol=1e-5)


def test_mlp_treats_every_token_alone():
    model = layers.Mlp("float32", 0.0)
    params = init(model, X, EMB)
    apply = jax.jit(model.apply)
    moved = apply(params, X.at[0, 1, 2, 3].add(1.0), EMB) != apply(params, X, EMB)
    assert moved.any(-1).sum() == 1 and moved[0, 1, 2, 3].any()


def test_rms_norm_has_unit_mean_square():
    np.testing.assert_allclose(jnp.mean(layers.rms_norm(X) ** 2, -1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(layers.rms_norm(3 * X), layers.rms_norm(X), rtol=1e-5)


def test_conditioning_embeds_the_level_of_each_frame():
    model = layers.Conditioning(16)
    logsnr = jnp.array([[-3.0, 1.0, 5.0]])
    params = init(model, logsnr, None)
    emb = model.apply(params, logsnr, None)
    moved = model.apply(params, logsnr.at[0, 1].add(0.5), None) != emb
    np.testing.assert_array_equal(moved.any(-1), [[False, True, False]])
    same_level = model.apply(params, jnp.zeros((1, 3)), None)
    assert jnp.abs(same_level[0, 0] - same_level[0, 1]).max() > 1e-3, "frames of one level differ by index"


def test_conditioning_clips_the_log_snr():
    model = layers.Conditioning(16)
    params = init(model, jnp.zeros((1, 2)), None)
    ends = jnp.array([[jnp.inf, -jnp.inf]])
    bound = layers.LOGSNR_BOUND
    found = model.apply(params, ends, None)
    np.testing.assert_array_equal(found, model.apply(params, jnp.array([[bound, -bound]]), None))
    assert jnp.abs(found[0, 0] - found[0, 1]).max() > 1e-2


def test_sinusoid_turns_once_in_each_period():
    value = jnp.array([0.3])
    features = layers.sinusoid(value, 4, shortest=2.0, longest=8.0)
    angle = 2 * np.pi * 0.3 / np.array([2.0, 8.0])
    np.testing.assert_allclose(features[0], [*np.sin(angle), *np.cos(angle)], rtol=1e-6)
    np.testing.assert_allclose(layers.sinusoid(value + 8, 4, 2.0, 8.0), features, atol=1e-5)


def test_constraint_shards_the_batch_alone():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    spaced = jax.device_put(jnp.zeros((8, 4, 4, 1)), jax.NamedSharding(mesh, P("data", "tensor")))
    with jax.set_mesh(mesh):
        found = jax.jit(constrain_batch)(spaced)
        odd = jax.jit(constrain_batch)(jnp.zeros((3, 4)))
    assert found.sharding.is_equivalent_to(jax.NamedSharding(mesh, P(("data", "fsdp"))), 4)
    assert odd.shape == (3, 4)
    assert jax.jit(constrain_batch)(spaced[:3]).shape == (3, 4, 4, 1), "without a mesh nothing happens"
