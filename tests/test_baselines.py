"""The laws of the forecasts that need no training."""

import numpy as np
import pytest

from dydiff_jax.evaluation import baselines


def walks(windows, frames, seed=0, grid=(6, 5, 2)):
    """Random walks of unit steps, independent at every point: increments over a lead have variance lead."""
    steps = np.random.default_rng(seed).normal(size=(windows, frames, *grid))
    return np.cumsum(steps, axis=1)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_persistence_repeats_the_last_context_frame():
    context = walks(3, 4)
    forecast = baselines.persistence(context, num_forecast=5)
    assert forecast.shape == (1, 3, 5, 6, 5, 2)
    for lead in range(5):
        np.testing.assert_array_equal(forecast[0, :, lead], context[:, -1])


def test_increments_are_differences_to_the_last_context_frame():
    windows = walks(7, 6)
    increments = baselines.training_increments(windows, num_context=2)
    assert increments.shape == (7, 4, 6, 5, 2)
    np.testing.assert_array_equal(increments[3, 2], windows[3, 4] - windows[3, 1])


def test_dressed_persistence_adds_whole_training_paths():
    """Each member minus the last frame is the path of one training window, the same window at all leads."""
    context, training = walks(3, 2), walks(5, 6, seed=1)
    increments = baselines.training_increments(training, num_context=2)
    forecast = baselines.dressed_persistence(context, increments, 8, rng())
    assert forecast.shape == (8, 3, 4, 6, 5, 2)
    paths = forecast - context[None, :, -1:]
    distance = np.abs(paths[:, :, None] - increments).max(axis=(3, 4, 5, 6))
    assert np.all((distance < 1e-12).sum(axis=2) == 1)
    assert len(np.unique(distance.argmin(axis=2))) == 5


def test_dressed_persistence_spreads_as_the_flow_does():
    """For a random walk the variance between members grows with the lead, and the truth ranks evenly."""
    k, members, windows = 6, 40, 20
    training, test = walks(400, 2 + k, seed=2), walks(windows, 2 + k, seed=3)
    increments = baselines.training_increments(training, 2)
    forecast = baselines.dressed_persistence(test[:, :2], increments, members, rng())
    variance = forecast.var(axis=0, ddof=1).mean(axis=(0, 2, 3, 4))
    # 400 training paths at 60 independent points: relative error of each variance sqrt(2 / 24000)
    np.testing.assert_allclose(variance, np.arange(1, k + 1), rtol=5 * np.sqrt(2 / (400 * 60)))
    error = ((forecast.mean(axis=0) - test[:, 2:]) ** 2).mean(axis=(0, 2, 3, 4))
    expected = variance * (1 + 1 / members)
    np.testing.assert_allclose(error, expected, rtol=5 * np.sqrt(2 / (windows * 60)))


def test_climatology_draws_whole_training_frames():
    frames = walks(9, 1, seed=4)[:, 0]
    forecast = baselines.climatology_pooled(frames, 3, 4, 6, rng())
    assert forecast.shape == (6, 3, 4, 6, 5, 2)
    found = {drawn.tobytes() for drawn in forecast.reshape(-1, 6, 5, 2)}
    assert found == {frame.tobytes() for frame in frames}  # 72 draws of 9 frames


def test_climatology_of_the_same_crop_stays_there():
    """Frames that carry their crop as their value."""
    crops = np.array([0, 16, 32, 16, 0, 32, 32])
    frames = np.broadcast_to(crops[:, None, None, None], (7, 4, 4, 1)).astype(float)
    forecast = baselines.climatology_same_crop(frames, crops, np.array([32, 0, 32, 16]), 3, 5, rng())
    assert forecast.shape == (5, 4, 3, 4, 4, 1)
    for window, crop in enumerate([32, 0, 32, 16]):
        assert np.all(forecast[:, window] == crop)


def test_draws_follow_the_generator():
    context, increments, frames = walks(2, 3), walks(50, 4, seed=5), walks(50, 1)[:, 0]
    crops = np.zeros(50)
    draws = (
        lambda r: baselines.dressed_persistence(context, increments, 4, r),
        lambda r: baselines.climatology_pooled(frames, 2, 3, 4, r),
        lambda r: baselines.climatology_same_crop(frames, crops, np.zeros(2), 3, 4, r),
    )
    for draw in draws:
        np.testing.assert_array_equal(draw(rng(1)), draw(rng(1)))
        assert np.any(draw(rng(1)) != draw(rng(2)))


def test_wrong_inputs_are_named():
    context, frames = walks(2, 3), walks(5, 1)[:, 0]
    with pytest.raises(ValueError, match=r"increments: expected .* \(6, 5, 2\), found \(5, 4, 4, 2\)"):
        baselines.dressed_persistence(context, walks(5, 3, grid=(4, 4, 2)), 2, rng())
    with pytest.raises(ValueError, match="context: expected"):
        baselines.persistence(context[:, :0], 2)
    with pytest.raises(ValueError, match=r"windows \[n, 3 \+ k, h, w, c\]"):
        baselines.training_increments(walks(5, 3), num_context=3)
    with pytest.raises(ValueError, match=r"window_crops: .* found 8 where they have"):
        baselines.climatology_same_crop(frames, np.zeros(5), np.array([0, 8]), 2, 2, rng())
    with pytest.raises(ValueError, match="frame_crops: expected one for each of 5 frames, found 4"):
        baselines.climatology_same_crop(frames, np.zeros(4), np.zeros(2), 2, 2, rng())
    with pytest.raises(ValueError, match="frames: expected at least one frame"):
        baselines.climatology_pooled(frames[:0], 2, 2, 2, rng())
