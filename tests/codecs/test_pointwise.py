"""Codecs of points: what they do to values, and what they refuse."""

import numpy as np
import pytest

from dydiff_jax.codecs import CODECS
from dydiff_jax.codecs.pointwise import Affine, Identity
from dydiff_jax.types import DataSpec

SPEC = DataSpec((8, 8, 2), ("u", "v"), "m/s", 1.0, "s")


def frames(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_standardize_is_inverted_and_gives_mean_0_and_variance_1():
    data = 3 + 2 * frames(5, 10, 8, 8, 2)
    codec = Affine(tuple(data.mean((0, 1, 2, 3)).tolist()), tuple(data.std((0, 1, 2, 3)).tolist()))
    encoded = np.asarray(codec.encode({}, data, ()))
    np.testing.assert_allclose(encoded.mean((0, 1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(encoded.std((0, 1, 2, 3)), 1, atol=1e-5)
    np.testing.assert_allclose(codec.decode({}, encoded, ()), data, atol=1e-5)
    identity = Identity()
    np.testing.assert_array_equal(identity.decode({}, identity.encode({}, data, ()), ()), data)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_model_space_is_float32_whatever_the_source_holds(dtype):
    data = np.arange(16).reshape(1, 2, 2, 2, 2).astype(dtype)
    for codec in (Affine((1.0, 2.0), (2.0, 4.0)), Identity()):
        encoded = codec.encode({}, data, ())
        assert encoded.dtype == np.float32
        np.testing.assert_allclose(codec.decode({}, encoded, ()), data.astype(np.float32), atol=1e-5)


def test_codecs_by_name():
    mean, std = (1.0, 2.0), (3.0, 3.0)
    assert CODECS["standardize"]().build(SPEC, mean, std) == Affine(mean, std)
    assert CODECS["speed"]().build(SPEC, mean, std) == Affine(mean, std)
    assert CODECS["identity"]().build(SPEC, (), ()) == Identity()
    assert {name: codec.statistics for name, codec in CODECS.items()} == {
        "standardize": "channel", "speed": "speed", "identity": None,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["standardize", "speed", "identity"])
def test_a_codec_of_points_keeps_the_shape_of_a_frame_and_learns_nothing(name):
    codec = CODECS[name]().build(SPEC, (1.0, 2.0), (3.0, 3.0))
    assert codec.frame_shape((8, 8, 2)) == (8, 8, 2) and codec.stages == ()
    assert codec.fit({}, frames(1, 2, 8, 8, 2), None) == ()


def test_a_constant_channel_is_refused():
    with pytest.raises(ValueError, match="never changes"):
        Affine((0.0, 0.0), (1.0, 0.0))
    with pytest.raises(ValueError, match="expected 2 channels"):
        Affine((0.0, 0.0), (1.0,))
