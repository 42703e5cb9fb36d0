"""Statistics are those of the observed values of the training frames."""

import dataclasses

import numpy as np
import pytest
from trajectories import complete, counting

from dydiff_jax.data.splits import DatasetOptions, make_splits
from dydiff_jax.data.statistics import statistics

OPTIONS = dict(num_context=2, num_forecast=1, crop=4, split="trajectory", fractions=(0.4, 0.3, 0.3))


def train_windows(trajectories=None, **options):
    trajectories = counting(mirror=(-1.0, 1.0)) if trajectories is None else trajectories
    return make_splits(trajectories, DatasetOptions(**OPTIONS | options)).train


def test_statistics_are_those_of_the_training_frames():
    trajectories = counting(lengths=(150, 40, 40), c=1, w=12)
    windows = make_splits(trajectories, DatasetOptions(**OPTIONS | dict(split="time"))).train
    read = [film[: np.max(windows.places[windows.places[:, 0] == n, 1]) + 3].astype(np.float64)
            for n, film in enumerate(trajectories.arrays)]  # fmt: skip
    assert all(len(frames) < len(film) for frames, film in zip(read, trajectories.arrays, strict=True))
    values = np.concatenate(read).reshape(-1, 1)
    mean, std = statistics(windows)
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, values.std(0), rtol=1e-9)


def test_statistics_do_not_count_frames_twice_nor_frames_that_no_window_reads():
    windows = train_windows(counting(lengths=(20, 9, 9)), stride=8)  # windows at frames 0, 8 and 16
    frames = windows.trajectories.arrays[0][[0, 1, 2, 8, 9, 10, 16, 17, 18]].astype(np.float64)
    mean, std = statistics(windows)
    np.testing.assert_allclose(mean, frames.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, frames.std((0, 1, 2)), rtol=1e-9)


def test_speed_convention_is_the_deviation_of_the_length_of_the_vector():
    windows = train_windows(counting(lengths=(20, 9, 9)))
    frames = windows.trajectories.arrays[0].astype(np.float64)
    mean, std = statistics(windows, "speed")
    np.testing.assert_allclose(mean, frames.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, np.linalg.norm(frames, axis=-1).std(), rtol=1e-9)


def observed_values(windows):
    """The training frames [n, h, w, c], float64, with NaN where a point is missing."""
    data = windows.trajectories
    touched = sorted(
        {(n, t + i) for n, t, *_ in windows.places.tolist() for i in range(windows.shape.frames)}
    )
    frames = [
        np.where(data.observed[n][t], data.arrays[n][t].astype(np.float64) * data.scale, np.nan)
        for n, t in touched
    ]
    return np.stack(frames)


@pytest.mark.parametrize("split", ["time", "trajectory"])
def test_missing_points_are_not_counted(split):
    windows = train_windows(complete(scale=0.25), split=split, stride=4)
    values = observed_values(windows)
    assert 0.3 < np.isnan(values).mean() < 0.4
    mean, std = statistics(windows)
    np.testing.assert_allclose(mean, np.nanmean(values, (0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, np.nanstd(values, (0, 1, 2)), rtol=1e-9)
    mean, std = statistics(windows, "speed")
    lengths = np.linalg.norm(values, axis=-1)  # NaN where a channel is missing
    np.testing.assert_allclose(mean, np.nanmean(values, (0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, np.full(2, np.nanstd(lengths)), rtol=1e-9)


def test_channels_that_are_missing_at_different_points_have_the_speed_of_where_both_are_known():
    """The second channel is large, and known nowhere but at 1 of 12 columns."""
    data = complete()
    for array, mask in zip(data.arrays, data.observed, strict=True):
        array[..., 1] = 1000.0 + np.arange(len(array))[:, None, None]
        mask[..., 1], mask[..., 0] = False, True
        mask[:, :, 3, 1] = True
        array[..., 0] = np.arange(12)
    windows = train_windows(data)
    seen = np.arange(40)
    mean, std = statistics(windows, "speed")
    np.testing.assert_allclose(mean, [5.5, 1000.0 + seen.mean()], rtol=1e-12)
    np.testing.assert_allclose(std, np.hypot(3.0, 1000.0 + seen).std(), rtol=1e-6)


@pytest.mark.parametrize("convention", ["channel", "speed"])
def test_what_stands_at_missing_points_changes_no_bit(convention):
    found = []
    for rubbish in (0.0, np.nan, np.inf, -np.inf, 3e38):
        data = complete(rubbish=rubbish)
        assert rubbish == 0.0 or not np.array_equal(data.arrays[0], complete(rubbish=0.0).arrays[0])
        found.append(np.stack(statistics(train_windows(data), convention)))
    assert all(one.tobytes() == found[0].tobytes() for one in found)


def test_a_mask_without_a_missing_point_changes_no_bit():
    data = counting()
    masked = dataclasses.replace(data, observed=tuple(np.ones(film.shape, bool) for film in data.arrays))
    for convention in ("channel", "speed"):
        found, plain = (np.stack(statistics(train_windows(each), convention)) for each in (masked, data))
        assert found.tobytes() == plain.tobytes()


def test_a_field_that_is_observed_nowhere_is_named():
    data = complete()
    for mask in data.observed:
        mask[..., 1] = False
    with pytest.raises(ValueError, match="fields: no value of v is observed in the training split"):
        statistics(train_windows(data))


def test_fields_that_are_nowhere_observed_together_have_no_speed():
    data = complete(rubbish=0.0)
    for mask in data.observed:
        mask[:, :, ::2] = (True, False)
        mask[:, :, 1::2] = (False, True)
    windows = train_windows(data)
    assert np.isfinite(statistics(windows)).all()
    with pytest.raises(
        ValueError, match="^codec: expected points at which all fields are observed, found none"
    ):
        statistics(windows, "speed")
