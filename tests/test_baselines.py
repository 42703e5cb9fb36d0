"""The laws of the forecasts that need no training."""

import math

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


def holes(shape, seed=0):
    """A mask, and a function that sets NaN where it is False."""
    observed = np.random.default_rng(seed).uniform(size=shape) > 0.3
    return observed, lambda values: np.where(observed, values, np.nan)


def test_persistence_repeats_the_last_observed_value_of_each_point():
    context = walks(3, 4)
    observed, missing = holes(context.shape)
    forecast = baselines.persistence(missing(context), 2, observed, fill=[7.0, 8.0])
    for b, i, j, c in np.ndindex(3, 6, 5, 2):
        seen = np.flatnonzero(observed[b, :, i, j, c])
        expected = context[b, seen[-1], i, j, c] if seen.size else 7.0 + c
        assert forecast[0, b, 1, i, j, c] == forecast[0, b, 0, i, j, c] == expected
    assert np.any(~observed.any(axis=1))  # some points are never seen


def test_increments_start_and_end_at_the_last_observed_values():
    windows = walks(2, 5)
    observed, missing = holes(windows.shape, seed=1)
    increments = baselines.training_increments(missing(windows), 2, observed, fill=9.0)
    for n, i, j, c in np.ndindex(2, 6, 5, 2):
        path, last = [], 9.0
        for value, seen in zip(windows[n, :, i, j, c], observed[n, :, i, j, c], strict=True):
            last = value if seen else last
            path.append(last)
        np.testing.assert_array_equal(increments[n, :, i, j, c], np.array(path[2:]) - path[1])


def test_climatology_draws_observed_values_of_the_same_point():
    """Each value of a draw is one that was observed at its point, in its crop where it has one."""
    frames, crops = walks(40, 1, seed=4)[:, 0], np.arange(40) % 2
    observed, missing = holes(frames.shape, seed=2)
    observed[:, 0, 0, 0] = False  # never seen, nor is the next in the second crop
    observed[crops == 1, 0, 1, 1] = False
    pooled = baselines.climatology_pooled(missing(frames), 2, 3, 4, rng(), observed, fill=5.0)
    same = baselines.climatology_same_crop(missing(frames), crops, np.array([1, 0]), 3, 4, rng(), observed)
    means = [math.fsum(frames[..., c][observed[..., c]]) / observed[..., c].sum() for c in range(2)]
    for i, j, c in np.ndindex(6, 5, 2):
        seen = observed[:, i, j, c]
        assert np.isin(pooled[..., i, j, c], frames[seen, i, j, c] if seen.any() else [5.0]).all()
        for window, crop in enumerate([1, 0]):
            here = frames[seen & (crops == crop), i, j, c]
            found = same[:, window, :, i, j, c]
            if here.size:
                assert np.isin(found, here).all()
            else:
                np.testing.assert_allclose(found, means[c], rtol=1e-12)
    whole = observed.all(axis=(1, 2, 3), keepdims=True)
    assert not whole.any()  # no frame could be drawn as it is


def known(observed=False):
    """What the baselines take, of windows with holes or without."""
    context, training, crops = walks(3, 2), walks(30, 6, seed=1), np.arange(30) % 3
    given = baselines.Known(context, training, np.array([2, 0, 1]), crops, num_forecast=4, members=5)
    if not observed:
        return given
    (seen, missing), (seen_training, missing_training) = holes(context.shape), holes(training.shape)
    return given._replace(
        context=missing(context),
        training=missing_training(training),
        context_observed=seen,
        training_observed=seen_training,
    )


def test_the_table_makes_each_baseline_in_turn_from_one_generator():
    given, r = known(), rng(3)
    frames, increments = given.training[:, 0], baselines.training_increments(given.training, 2)
    expected = {
        "persistence": baselines.persistence(given.context, 4),
        "dressed persistence": baselines.dressed_persistence(given.context, increments, 5, r),
        "climatology (pooled)": baselines.climatology_pooled(frames, 3, 4, 5, r),
        "climatology (same crop)": baselines.climatology_same_crop(
            frames, given.training_crops, given.context_crops, 4, 5, r
        ),
    }
    found = dict(baselines.ensembles(given, seed=3))
    assert list(found) == list(expected) == list(baselines.BASELINES)[:-1]  # no law is known
    for name, ensemble in found.items():
        np.testing.assert_array_equal(ensemble, expected[name])
        assert baselines.BASELINES[name].plain.endswith(".")
    without = baselines.ensembles(given._replace(context=given.context[:, :0]), seed=3)
    assert [name for name, _ in without] == ["climatology (pooled)", "climatology (same crop)"]


def test_a_mask_without_holes_changes_no_bit_and_what_stands_in_a_hole_none_either():
    full = dict(baselines.ensembles(known(), 0))
    whole = known()._replace(
        context_observed=np.ones((3, 2, 6, 5, 2), bool), training_observed=np.ones((1, 1, 1, 1, 1), bool)
    )
    for name, ensemble in baselines.ensembles(whole, 0):
        np.testing.assert_array_equal(ensemble, full[name])
        assert ensemble.dtype == full[name].dtype
    given = known(observed=True)
    other = given._replace(
        context=np.where(given.context_observed, given.context, 1e9),
        training=np.where(given.training_observed, given.training, -np.inf),
    )
    for (name, one), (_, two) in zip(
        baselines.ensembles(given, 0), baselines.ensembles(other, 0), strict=True
    ):
        np.testing.assert_array_equal(one, two)
        assert np.isfinite(one).all() and np.any(one != full[name]), name
