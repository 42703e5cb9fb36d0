"""No frame of one split is in another, but in the published ones, which is known to leak."""

import itertools

import numpy as np
import pytest
from trajectories import counting

from dydiff_jax.data import spans
from dydiff_jax.data.splits import DatasetOptions, make_splits


def read_frames(windows):
    """{(trajectory, frame)} that some window reads."""
    moments = {tuple(place[:2]) for place in windows.places.tolist()}
    return {(number, start + i) for number, start in moments for i in range(windows.shape.frames)}


@pytest.mark.parametrize("split", ["time", "trajectory", "given"])
@pytest.mark.parametrize("window", [(1, 1), (2, 3)])
@pytest.mark.parametrize("stride", [1, 3])
def test_no_frame_is_in_two_splits(split, window, stride):
    trajectories = counting(roles=("train", "train", "test"))
    options = DatasetOptions(*window, split=split, stride=stride, fractions=(0.4, 0.3, 0.3))
    parts = make_splits(trajectories, options)
    for one, other in itertools.combinations(map(read_frames, parts), 2):
        assert one and other
        assert not one & other


def test_time_split_leaves_a_window_between_the_splits():
    options = DatasetOptions(2, 3, split="time", fractions=(0.5, 0.2, 0.3))
    parts = make_splits(counting(lengths=(60, 40)), options)
    for number in (0, 1):
        read = [sorted(frame for n, frame in read_frames(part) if n == number) for part in parts]
        for before, after in itertools.pairwise(read):
            assert after[0] - before[-1] - 1 == options.num_frames
        assert read[0][0] == 0 and read[-1][-1] == (59, 39)[number]


def test_time_split_follows_the_fractions():
    found = spans.by_time(counting(lengths=(1020,)), (0.7, 0.1, 0.2), gap=10)
    assert [stop - start for ((_, start, stop),) in found] == [700, 100, 200]


def test_a_split_of_fraction_zero_takes_no_frame_and_no_gap():
    parts = make_splits(counting(lengths=(30,)), DatasetOptions(1, 1, fractions=(1.0, 0.0, 0.0)))
    assert len(parts.train) == 29 and len(parts.valid) == len(parts.test) == 0


def test_trajectory_split_tests_on_the_last_and_needs_one_for_each_split():
    train, valid, test = spans.by_trajectory(counting(lengths=(9,) * 10), (0.7, 0.1, 0.2))
    assert [span.trajectory for span in train + valid + test] == list(range(10))
    assert (len(train), len(valid), len(test)) == (7, 1, 2)
    with pytest.raises(ValueError, match=r'2 trajectories leave none.*split "time"'):
        spans.by_trajectory(counting(lengths=(9, 9)), (0.7, 0.1, 0.2))


def test_given_split_holds_out_the_last_training_trajectories():
    train, valid, test = spans.given(
        counting(lengths=(9,) * 5, roles=("train", "test", "train", "train", "train")), (0.6, 0.25, 0.15)
    )
    numbers = [[span.trajectory for span in part] for part in (train, valid, test)]
    assert numbers == [[0, 2, 3], [4], [1]]
    with pytest.raises(ValueError, match="without a split"):
        spans.given(counting(), (0.7, 0.1, 0.2))


def test_published_split_is_that_of_tf_net_and_leaks():
    trajectories = counting(lengths=(1499,), h=1, w=7, c=1, periodic_x=False)
    parts = make_splits(trajectories, DatasetOptions(4, 11, split="published", crop=1))
    assert [len(part) for part in parts] == [6000, 1700, 2100]
    for part, first_id in zip(parts, (0, 6000, 7700), strict=True):
        for index in (0, 1, len(part) - 1):
            j, i = divmod(first_id + index, 7)  # sample 7 j + i: frames j to j + 99, crop i, forecast from 40
            assert part.place(index) == (0, j + 40 - 4, 0, i, False)
    assert read_frames(parts.train) & read_frames(parts.valid)
    assert read_frames(parts.valid) & read_frames(parts.test)


@pytest.mark.parametrize(
    ("trajectories", "window", "message"),
    [
        (dict(lengths=(1498,), h=1, w=7), (4, 11), "at least 1499 frames.*found trajectories of \\[1498\\]"),
        (dict(lengths=(1500,), h=1, w=6), (4, 11), "7 crops.*and 6 crops"),
        (dict(lengths=(1500, 1500), h=1, w=7), (4, 11), "one trajectory"),
        (dict(lengths=(1500,), h=1, w=7), (41, 11), "40 context and 60 forecast"),
    ],
)
def test_published_split_refuses_other_data(trajectories, window, message):
    with pytest.raises(ValueError, match=message):
        make_splits(counting(**trajectories, c=1), DatasetOptions(*window, split="published", crop=1))


def test_too_few_frames_name_the_split_and_what_to_do():
    with pytest.raises(ValueError, match=r"the training split holds no window of 15 frames.*\[30, 40\]"):
        make_splits(counting(), DatasetOptions(4, 11))


def test_a_value_that_is_not_finite_is_found_by_file_and_frame():
    trajectories = counting(lengths=(100, 100, 100))
    trajectories.arrays[1][77, 1, 2, 0] = np.nan
    with pytest.raises(ValueError, match="file 1: frame 77 holds NaN"):
        make_splits(trajectories, DatasetOptions(1, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(crop=5), "crop: 5 does not fit in the 4 x 12 grid"),
        (dict(flip=True), "flip: the mirror image"),
    ],
)
def test_options_that_do_not_fit_the_data(options, message):
    with pytest.raises(ValueError, match=message):
        make_splits(counting(), DatasetOptions(1, 1, **options))


@pytest.mark.parametrize(
    "options",
    [
        dict(num_context=-1),
        dict(num_forecast=0),
        dict(stride=0),
        dict(crop=0),
        dict(fractions=(0.5, 0.5)),
        dict(fractions=(0.5, 0.5, 0.5)),
        dict(fractions=(0.0, 0.5, 0.5)),
        dict(fractions=(1.5, -0.5, 0.0)),
    ],
)
def test_options_are_checked_and_named(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}: expected"):
        DatasetOptions(**dict(num_context=1, num_forecast=1) | options)
