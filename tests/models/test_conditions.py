"""What the network sees beside z."""

import numpy as np
import pytest

from dydiff_jax.models.conditions import Conditioner, context_channels, copy_path


def frames(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_copy_path_is_the_last_frame_and_the_last_difference_on_every_frame():
    context = frames(2, 3, 4, 5, 2)
    channels = np.asarray(copy_path(context, 6))
    assert channels.shape == (2, 9, 4, 5, 4)
    for frame in range(9):
        np.testing.assert_array_equal(channels[:, frame, ..., :2], context[:, 2])
        np.testing.assert_array_equal(channels[:, frame, ..., 2:], context[:, 2] - context[:, 1])


def test_copy_path_extrapolates_linear_motion_exactly():
    """A flow that moves linearly is the last frame plus lead times the difference: the channels hold both."""
    start, velocity = frames(1, 4, 4, 1), frames(1, 4, 4, 1)
    flow = np.stack([start + i * velocity for i in range(8)], axis=1)
    channels = np.asarray(copy_path(flow[:, :3], 5))
    for lead in range(1, 6):
        np.testing.assert_allclose(
            channels[:, 0, ..., :1] + lead * channels[:, 0, ..., 1:], flow[:, 2 + lead], atol=1e-5
        )


def test_one_context_frame_has_no_difference():
    assert copy_path(frames(1, 1, 4, 4, 2), 3).shape == (1, 4, 4, 4, 2)


def test_context_channels_hold_clean_context_and_two_masks():
    context = frames(2, 3, 4, 4, 2)
    channels = np.asarray(context_channels(context, 5))
    np.testing.assert_array_equal(channels[:, :3, ..., :2], context)
    np.testing.assert_array_equal(channels[:, 3:, ..., :2], 0)
    np.testing.assert_array_equal(channels[0, :, 0, 0, 2], [1, 1, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(channels[0, :, 0, 0, 3], [0, 0, 0, 1, 0, 0, 0, 0])


def test_conditioner_puts_them_side_by_side_and_passes_the_rest_on():
    context, forcings, static = frames(1, 2, 4, 4, 1), frames(1, 5, 3), frames(1, 4, 4, 2)
    conditions = Conditioner(3, copy_path=True, context_channels=True)(context, forcings, static)
    assert conditions.channels.shape == (1, 5, 4, 4, 2 + 3)
    assert conditions.forcings is forcings and conditions.static is static
    assert Conditioner(3, copy_path=False, context_channels=False)(context, None, None).channels is None


@pytest.mark.parametrize("shape", [(3,), (2, 4, 4, 2)], ids=["series", "volume"])
def test_the_channels_of_frames_of_any_shape(shape):
    context = frames(2, 3, *shape)
    copied, masked = np.asarray(copy_path(context, 5)), np.asarray(context_channels(context, 5))
    assert copied.shape == (2, 8, *shape[:-1], 2 * shape[-1]) and masked.shape == (
        2,
        8,
        *shape[:-1],
        shape[-1] + 2,
    )
    np.testing.assert_array_equal(copied[:, 7, ..., : shape[-1]], context[:, 2])
    np.testing.assert_array_equal(masked[..., -2].sum(axis=1), 3)
    np.testing.assert_array_equal(masked[..., -1].sum(axis=1), 1)
