"""Windows cut what they say, and batches are a pure function of (seed, step)."""

import collections

import numpy as np
import pytest
from trajectories import counting

from dydiff_jax.data.batches import TrainBatches
from dydiff_jax.data.splits import DatasetOptions, make_splits, reference_windows
from dydiff_jax.data.windows import Place, select

OPTIONS = dict(num_context=2, num_forecast=1, crop=4, split="trajectory", fractions=(0.4, 0.3, 0.3))


def train_windows(trajectories=None, **options):
    trajectories = counting(mirror=(-1.0, 1.0)) if trajectories is None else trajectories
    return make_splits(trajectories, DatasetOptions(**OPTIONS | options)).train


def test_windows_are_slices_at_every_start_and_every_crop():
    windows = train_windows(counting(lengths=(7, 7, 7)))
    film = windows.trajectories.arrays[0]
    assert len(windows) == 5 * 3
    for index in range(len(windows)):
        start, column = index // 3, 4 * (index % 3)
        frames = windows[index].frames
        assert frames.dtype == np.float32 and windows.crops[index] == column
        np.testing.assert_array_equal(frames, film[start : start + 3, :, column : column + 4])


def test_crops_tile_both_directions():
    windows = train_windows(counting(lengths=(3, 3, 3), h=9, w=8))
    assert [tuple(place[2:]) for place in windows.places] == [(0, 0), (0, 4), (4, 0), (4, 4)]
    assert len(set(windows.crops)) == 4


def test_columns_wrap_around():
    windows = train_windows()
    film = windows.trajectories.arrays[0]
    found = windows.read(Place(0, 5, 0, 10)).frames
    np.testing.assert_array_equal(found, np.roll(film, -10, axis=2)[5:8, :, :4])


def test_mirroring_reverses_columns_and_changes_the_sign_of_the_horizontal_velocity():
    windows = train_windows()
    plain = windows.read(Place(0, 3, 0, 4)).frames
    mirrored = windows.read(Place(0, 3, 0, 4, mirrored=True)).frames
    np.testing.assert_array_equal(mirrored[..., 0], -plain[:, :, ::-1, 0])
    np.testing.assert_array_equal(mirrored[..., 1], plain[:, :, ::-1, 1])


def test_values_are_scaled_to_the_unit():
    plain, scaled = train_windows(), train_windows(counting(scale=0.25))
    np.testing.assert_array_equal(scaled[3].frames, 0.25 * plain[3].frames)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_any_number_of_processes_makes_the_same_global_batch(processes):
    windows, share = train_windows(flip=True), 8 // processes
    whole = TrainBatches(windows, 8, seed=3)
    for step in (0, 5):
        parts = [TrainBatches(windows, 8, seed=3).rows(step, range(i, i + share)) for i in range(0, 8, share)]
        together = np.concatenate([part.frames for part in parts])
        np.testing.assert_array_equal(together, whole.rows(step, range(8)).frames)


def test_rows_are_the_windows_that_ids_name():
    windows = train_windows(flip=True)
    batches = TrainBatches(windows, 4, seed=0)
    for step in (0, 1, 40):
        expected = np.stack([windows.read(place).frames for place in batches.ids(step)])
        np.testing.assert_array_equal(batches.rows(step, range(4)).frames, expected)


def test_a_batch_does_not_depend_on_what_was_read_before():
    windows = train_windows()
    forwards, backwards = TrainBatches(windows, 4, seed=1), TrainBatches(windows, 4, seed=1)
    in_order = [forwards.ids(step) for step in range(6)]
    assert in_order == [backwards.ids(step) for step in reversed(range(6))][::-1]
    assert in_order != [TrainBatches(windows, 4, seed=2).ids(step) for step in range(6)]


def test_every_epoch_visits_every_window_once_in_a_new_order():
    windows = train_windows(counting(lengths=(10, 10, 10)), random_crop=False)
    batches = TrainBatches(windows, len(windows), seed=0)
    first, second = batches.ids(0), batches.ids(1)
    every = [windows.place(index) for index in range(len(windows))]
    assert sorted(first) == sorted(second) == every
    assert first != second


@pytest.mark.parametrize("periodic", [True, False])
def test_random_crops_reach_every_column_evenly_and_stay_on_the_grid(periodic):
    windows = train_windows(counting(periodic_x=periodic))
    batches = TrainBatches(windows, 1000, seed=0)
    counts = collections.Counter(place.column for place in batches.ids(0))
    possible = 12 if periodic else 12 - 4 + 1
    assert set(counts) == set(range(possible))
    # 1000 draws: each count is binomial, 5 standard deviations below and above its mean
    spread = 5 * np.sqrt(1000 / possible * (1 - 1 / possible))
    assert all(abs(count - 1000 / possible) < spread for count in counts.values())


def test_half_of_the_windows_are_mirrored():
    places = TrainBatches(train_windows(flip=True), 1000, seed=0).ids(0)
    assert abs(sum(place.mirrored for place in places) - 500) < 5 * np.sqrt(250)
    assert not any(place.mirrored for place in TrainBatches(train_windows(), 100, seed=0).ids(0))


def test_validation_and_test_windows_stay_where_they_are():
    parts = make_splits(counting(mirror=(-1.0, 1.0)), DatasetOptions(**OPTIONS, flip=True))
    rng = np.random.default_rng(0)
    for part in (parts.valid, parts.test):
        assert all(part.draw(index, rng) == part.place(index) for index in range(len(part)))


@pytest.mark.parametrize("count", [1, 5, 18, 30, 54])
def test_selected_windows_differ_are_evenly_spaced_and_go_round_the_crops(count):
    windows = train_windows(counting(lengths=(20, 9, 9)))
    chosen = select(windows, count)
    assert len({tuple(place) for place in chosen.places}) == len(chosen) == count
    np.testing.assert_array_equal(chosen.places, select(windows, count).places)
    gaps = np.diff(np.append(chosen.places[:, 1], 18 + chosen.places[0, 1]))
    assert set(gaps) <= {18 // count, 18 // count + 1}
    counts = collections.Counter(chosen.crops.tolist()).values()
    assert max(counts) - min(counts) <= (1 if len(counts) == 3 else 0)


def test_selecting_more_windows_than_there_are_is_refused():
    windows = train_windows(counting(lengths=(20, 9, 9)))
    with pytest.raises(ValueError, match="between 1 and 54 windows, got 55"):
        select(windows, 55)


def test_a_batch_of_all_windows_stacks_them_in_order():
    windows = select(train_windows(), 5)
    batch = windows.batch()
    assert batch.forcings is None and batch.static is None
    np.testing.assert_array_equal(batch.frames, np.stack([windows[i].frames for i in range(5)]))


@pytest.mark.parametrize("split", ["time", "trajectory"])
def test_a_horizon_lengthens_test_windows_and_leaves_the_training_split_as_it_is(split):
    options = DatasetOptions(**OPTIONS | dict(split=split))
    data = counting(lengths=(60, 60, 60))
    plain, long = make_splits(data, options), make_splits(data, options, horizon=9)
    np.testing.assert_array_equal(long.train.places, plain.train.places)
    np.testing.assert_array_equal(plain.test.places, make_splits(data, options, horizon=1).test.places)
    reference = reference_windows(data, options, horizon=9)
    assert long.train.shape.frames == 3 and long.test.shape.frames == reference.shape.frames == 2 + 9

    def frames(windows):
        return {(place[0], place[1] + i) for place in windows.places for i in range(windows.shape.frames)}

    assert frames(long.test) == frames(plain.test), "the same test frames, in longer windows"
    assert frames(reference) == frames(long.train)
    assert not frames(long.test) & frames(long.train)


def test_a_horizon_that_no_test_window_holds_is_refused():
    with pytest.raises(ValueError, match="the test split holds no window of 100 frames"):
        make_splits(counting(lengths=(60, 60, 60)), DatasetOptions(**OPTIONS), horizon=98)
    with pytest.raises(ValueError, match="the training split holds no window of 100 frames"):
        reference_windows(counting(lengths=(60, 60, 60)), DatasetOptions(**OPTIONS), horizon=98)
