"""Frames, missing points, forcings and static fields arrive together: from a source to batches, to shards and back."""

import numpy as np
import pytest
from trajectories import Complete, assert_same, complete, expected

from configs import folder as folder_config
from configs import shards as shards_config
from dydiff_jax import build
from dydiff_jax.data.batches import LoaderOptions, TrainBatches
from dydiff_jax.data.formats import shard_writer, sidecar
from dydiff_jax.data.sources.shards import Shards
from dydiff_jax.data.sources.source import SOURCES
from dydiff_jax.data.splits import DatasetOptions, make_splits
from dydiff_jax.data.statistics import statistics
from dydiff_jax.data.windows import stack
from dydiff_jax.runs import commands

FORMATS = ("zarr", "array_record")
OPTIONS = dict(
    num_context=2, num_forecast=3, crop=4, split="trajectory", flip=True, fractions=(0.4, 0.3, 0.3)
)


@pytest.fixture
def small(monkeypatch):
    """Chunks and shards so small that a window lies in several."""
    monkeypatch.setattr(sidecar, "CHUNK_FRAMES", 4)
    monkeypatch.setattr(sidecar, "CHUNK_SIDE", 5)
    monkeypatch.setattr(sidecar, "SHARD_BYTES", 12 * 6 * 12 * 2 * 4)


def make(horizon=None, beyond=0, of=None, **options):
    return make_splits(complete() if of is None else of, DatasetOptions(**OPTIONS | options), horizon, beyond)


def through_shards(folder, original, form):
    shard_writer.write(original, str(folder / form), form, lambda frames: None)
    return Shards(str(folder / form)).load()


def test_batches_are_what_stands_at_their_places():
    windows = make(of=complete(scale=0.5)).train
    batches = TrainBatches(windows, 16, seed=0)
    for step in range(4):
        places = batches.ids(step)
        assert any(place.mirrored and place.column > 8 for place in places), "wrapped around and mirrored"
        assert len({place.column for place in places}) > 5 and len({place.row for place in places}) == 3
        assert_same(batches.rows(step, range(16)), stack([expected(windows, place) for place in places]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("form", FORMATS)
def test_shards_hold_all_of_it_bit_for_bit(small, tmp_path, form, dtype):
    original = complete(dtype=dtype)
    found = through_shards(tmp_path, original, form)
    assert found.forcing_names == original.forcing_names and found.static_names == original.static_names
    batches = [TrainBatches(make(of=data).train, 8, 3, LoaderOptions(2, 0, 4)) for data in (original, found)]
    streams = [each.stream(5, range(8)) for each in batches]
    for _ in range(5):
        batch = next(streams[1])
        assert_same(batch, next(streams[0]))
        assert batch.frames.dtype == dtype and batch.observed.dtype == bool
    for one, other in zip(
        make(horizon=6, beyond=2, of=original), make(horizon=6, beyond=2, of=found), strict=True
    ):
        assert_same(other.batch(), one.batch())
    for convention in ("channel", "speed"):
        expected_statistics = statistics(make(of=original).train, convention)
        np.testing.assert_array_equal(statistics(make(of=found).train, convention), expected_statistics)


@pytest.mark.parametrize("form", FORMATS)
def test_an_exported_source_is_that_source(small, tmp_path, monkeypatch, form):
    monkeypatch.setitem(SOURCES, "complete", Complete)
    raw, other = (
        folder_config.get_config("dynamical,size=tiny"),
        shards_config.get_config("dynamical,size=tiny"),
    )
    raw.data = dict(name="complete", scale=0.25)
    commands.export(raw, str(tmp_path / "out"), form)
    other.data.path = str(tmp_path / "out")
    source, read = build.load(raw).data, build.load(other).data
    assert isinstance(source, Complete) and read.spec() == source.spec()
    first, second = (TrainBatches(make(of=each.load()).train, 8, seed=1) for each in (source, read))
    for step in range(5):
        assert_same(second.rows(step, range(8)), first.rows(step, range(8)))


@pytest.mark.parametrize("beyond", [0, 4])
def test_the_forcing_of_a_frame_arrives_with_it(beyond):
    splits = make(horizon=5, beyond=beyond)
    assert {places[0] for places in splits.valid.places} == {1} and {p[0] for p in splits.test.places} == {2}
    for number, windows in enumerate(splits):
        frames, rows = (5, 5) if number == 0 else (7, 7 + beyond)
        for index in (0, 1, len(windows) // 2, len(windows) - 1):
            place, window = windows.place(index), windows[index]
            assert window.frames.shape[0] == frames and window.forcings.shape == (rows, 3)
            times = 1e4 * place.trajectory + 10 * (place.frame + np.arange(rows))
            np.testing.assert_array_equal(window.forcings, times[:, None] + np.arange(3))
            assert_same(window, expected(windows, place))


def starts(windows):
    return sorted({int(frame) for frame in windows.places[:, 1]})


def test_windows_without_all_of_their_forcings_are_left_out():
    """Of trajectories of 30 frames, windows of 2 + 5 frames start up to frame 23; 4 rows more end 4 frames sooner."""
    for windows in make(horizon=5)[1:]:
        assert starts(windows) == list(range(24))
    splits = make(horizon=5, beyond=4)
    for windows in splits[1:]:
        assert starts(windows) == list(range(20))
        assert windows[len(windows) - 1].forcings[-1, 0] == 1e4 * windows.place(0).trajectory + 10 * 29
    assert starts(splits.train) == list(range(36)), "training windows read no row beyond"
    for name, horizon, beyond in (("test", 5, 24), ("test", 29, 0)):
        with pytest.raises(ValueError, match=f"the {name} split holds no window of {2 + horizon} frames"):
            make(horizon=horizon, beyond=beyond)


def test_forcings_end_with_the_trajectory_and_not_with_the_split():
    options = dict(split="time", crop=None)
    whole, short = make(3, 0, **options), make(3, 3, **options)
    assert starts(short.valid) == starts(whole.valid), (
        "the frames of the gap and of the test split have forcings"
    )
    last = max(place[1] for place in whole.test.places if place[0] == 0)
    assert max(place[1] for place in short.test.places if place[0] == 0) == last - 3


def test_a_published_window_without_its_forcings_is_left_out():
    data = complete(lengths=(1499,), h=1, w=7, periodic_x=False)
    options = DatasetOptions(4, 60, split="published", crop=1)
    assert starts(make_splits(data, options).test)[-1] == 1399 + 36
    splits = make_splits(data, options, None, 3)
    assert starts(splits.test)[-1] == 1396 + 36
    assert splits.test[len(splits.test) - 1].forcings[-1, 0] == 10 * 1498
    assert len(splits.train) == 6000


@pytest.mark.parametrize("split", ["time", "trajectory"])
def test_validation_windows_are_as_long_as_test_windows(split):
    splits = make(horizon=4, split=split)
    assert splits.valid.shape == splits.test.shape and splits.valid.shape.frames == 2 + 4
    assert splits.train.shape.frames == 2 + 3
    for windows in splits:
        assert len(windows) and windows[0].frames.shape[0] == windows.shape.frames


def test_a_validation_split_too_short_for_the_horizon_is_empty():
    data = complete(lengths=(40, 8, 30))
    splits = make(horizon=10, of=data)
    assert len(splits.valid) == 0 and len(splits.test) > 0 and len(splits.train) > 0
    with pytest.raises(ValueError, match="the validation split holds no window of 5 frames"):
        make(horizon=10, of=complete(lengths=(40, 4, 30)))


def test_a_negative_number_of_rows_beyond_takes_no_row_away():
    windows = make(horizon=5, beyond=-3).test
    assert windows[0].forcings.shape[0] == windows.shape.frames and starts(windows) == list(range(24))
