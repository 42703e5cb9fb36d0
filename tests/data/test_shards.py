"""Shards hold what was exported: the same batches bit for bit, and the same statistics without reading the frames."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import zarr
from trajectories import complete, counting

from benchmarks.rangeserver import serving
from configs import folder as folder_config
from configs import shards as shards_config
from dydiff_jax import build
from dydiff_jax.data.batches import LoaderOptions, TrainBatches
from dydiff_jax.data.formats import shard_writer, sidecar, store
from dydiff_jax.data.moments import Moments
from dydiff_jax.data.sources.shards import Shards
from dydiff_jax.data.splits import DatasetOptions, make_splits
from dydiff_jax.data.statistics import statistics
from dydiff_jax.data.trajectories import Trajectories
from dydiff_jax.runs import commands

FORMATS = ("zarr", "array_record")
LENGTHS = (37, 5, 50)


def films(dtype=np.float32, h=10, w=21, lengths=LENGTHS, **fields):
    """Noise, of which no two values are equal, so that no misplaced value goes unseen."""
    made = counting(lengths=lengths, h=h, w=w, **fields)
    rng = np.random.default_rng(0)
    arrays = tuple(rng.standard_normal(array.shape).astype(dtype) for array in made.arrays)
    return Trajectories(
        **{name: getattr(made, name) for name in made.__dataclass_fields__} | {"arrays": arrays}
    )


@pytest.fixture
def small(monkeypatch):
    """Chunks and shards so small that a few frames fill many, with smaller ones at every edge."""
    monkeypatch.setattr(sidecar, "CHUNK_FRAMES", 4)
    monkeypatch.setattr(sidecar, "CHUNK_SIDE", 8)
    monkeypatch.setattr(sidecar, "SHARD_BYTES", 12 * 10 * 21 * 2 * 4)


def written(path, trajectories, form):
    shard_writer.write(trajectories, str(path), form, lambda frames: None)
    return str(path)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16])
def test_every_box_reads_what_was_written(small, tmp_path, form, dtype):
    original = films(dtype, scale=0.5, mirror=(-1.0, 1.0), roles=("train", "test", "valid"))
    path = written(tmp_path / "shards", original, form)
    found = Shards(path).load()
    described = sidecar.read(path)
    assert described.chunk == (4, 5, 7)
    assert described.shard_frames == 48 // np.dtype(described.dtype).itemsize
    assert len(described.shards) == -(-92 // described.shard_frames)
    assert described.dtype == ("float32" if dtype == np.float64 else np.dtype(dtype).name)
    rng = np.random.default_rng(1)
    for number, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(found.read(number, 0, length), original.read(number, 0, length))
        for _ in range(10):
            start, top, left = (int(rng.integers(0, side)) for side in (length, 10, 21))
            box = (number, start, start + 9, slice(top, top + 6), slice(left, left + 8))
            np.testing.assert_array_equal(found.read(*box), original.read(*box))
    same = ("fields", "unit", "interval", "time_unit", "periodic_x", "mirror", "roles", "scale")
    assert all(getattr(found, name) == getattr(original, name) for name in same)
    assert Shards(path).spec()[:2] == ((10, 21, 2), ("u", "v"))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_are_those_of_the_source(small, tmp_path, form, workers):
    original = films(np.float16)
    options = DatasetOptions(3, 4, crop=9, fractions=(0.8, 0.0, 0.2), split="time")
    parts = [
        make_splits(trajectories, options).train
        for trajectories in (original, Shards(written(tmp_path / "shards", original, form)).load())
    ]
    expected = TrainBatches(parts[0], 6, seed=1)
    found = TrainBatches(parts[1], 6, 1, LoaderOptions(2, workers, 3)).stream(4, range(1, 6))
    for step in range(4, 12):
        np.testing.assert_array_equal(next(found).frames, expected.rows(step, range(1, 6)).frames)


def test_zarr_shards_are_an_array_to_other_software(small, tmp_path):
    original = films()
    array = zarr.open_array(written(tmp_path / "shards", original, "zarr") + "/frames.zarr", mode="r")
    assert array.shards == (12, 10, 21, 2) and array.chunks == (4, 5, 7, 2)
    np.testing.assert_array_equal(array[:], np.concatenate(original.arrays))


def test_shards_are_as_large_as_intended():
    assert sidecar.chunk_of((64, 448, 2)) == (8, 64, 64)
    assert sidecar.chunk_of((32, 112, 2)) == (8, 32, 56)
    frames = sidecar.shard_frames_of((64, 448, 2), np.dtype(np.float32), 10**6)
    assert frames % 8 == 0 and 0.9 * sidecar.SHARD_BYTES < frames * 64 * 448 * 8 <= sidecar.SHARD_BYTES
    assert sidecar.shard_frames_of((4096, 4096, 3), np.dtype(np.float32), 10**6) == 8
    assert sidecar.shard_frames_of((16, 16, 2), np.dtype(np.float16), 150) == 152


@pytest.mark.parametrize("convention", ["channel", "speed"])
@pytest.mark.parametrize("form", FORMATS)
def test_statistics_follow_from_the_moments_without_reading(small, tmp_path, monkeypatch, form, convention):
    original = films(scale=3.0)
    loaded = Shards(written(tmp_path / "shards", original, form)).load()
    options = DatasetOptions(2, 1, stride=5, fractions=(0.6, 0.1, 0.3))
    expected = statistics(make_splits(original, options).train, convention)
    touched = make_splits(original, options).train
    monkeypatch.setattr(type(loaded.arrays[0]), "__getitem__", None)  # reading is an error from here on
    found = statistics(make_splits(loaded, options).train, convention)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    # and independently: every frame of a window once
    frames = {(n, t + i) for n, t, _, _ in touched.places for i in range(3)}
    values = np.stack([original.read(n, t, t + 1)[0] for n, t in sorted(frames)]).astype(np.float64)
    mean = values.mean((0, 1, 2))
    std = values.std((0, 1, 2)) if convention == "channel" else np.linalg.norm(values, axis=-1).std()
    np.testing.assert_allclose(found[0], mean, rtol=1e-9)
    np.testing.assert_allclose(found[1], np.broadcast_to(std, 2), rtol=1e-9)


def test_a_value_that_is_not_finite_is_found_in_the_moments(small, tmp_path):
    loaded = Shards(written(tmp_path / "shards", films(), "zarr")).load()
    loaded.moments[2].squares[30, 1] = np.inf
    with pytest.raises(ValueError, match="file 2: frame 30 holds NaN or infinite"):
        make_splits(loaded, DatasetOptions(2, 1))


@pytest.mark.parametrize("form", FORMATS)
def test_a_value_that_is_not_finite_is_not_exported(small, tmp_path, form):
    original = films()
    original.arrays[2][30, 4, 5, 1] = np.nan
    with pytest.raises(ValueError, match="file 2: frame 30 holds NaN or infinite"):
        written(tmp_path / "shards", original, form)
    with pytest.raises(FileNotFoundError, match=r"shards/manifest.json: no such file; .* wrote to its end"):
        Shards(str(tmp_path / "shards")).load()
    with pytest.raises(FileExistsError, match="shards: expected a folder that is not there yet"):
        written(tmp_path / "shards", films(), form)


def shard_file(path, form):
    """The shard that holds frames 36 to 48, of which no frame is looked at when shards are opened."""
    found = {"zarr": "frames.zarr/c/3/0/0/0", "array_record": "frames-00003-of-00008.array_record"}[form]
    return pathlib.Path(path) / found


SPOILED = {
    "vanished": lambda file: file.unlink(),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "a flipped bit": lambda file: file.write_bytes(flipped(file.read_bytes())),
}


def flipped(data, at=900):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("spoil", SPOILED)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("threads", [0, 3])
def test_a_spoiled_shard_stops_the_stream_and_is_named(small, tmp_path, form, spoil, threads):
    path = written(tmp_path / "shards", films(), form)
    train = make_splits(Shards(path).load(), DatasetOptions(2, 1, fractions=(1.0, 0.0, 0.0))).train
    SPOILED[spoil](shard_file(path, form))
    read = TrainBatches(train, 4, 0, LoaderOptions(max(threads, 1), 0, threads)).stream(0, range(4))
    with pytest.raises(store.StoreError, match=str(shard_file(path, form))):
        for _ in range(60):
            next(read)


@pytest.mark.parametrize("form", FORMATS)
def test_moments_of_another_export_are_refused(small, tmp_path, form):
    paths = [written(tmp_path / str(n), films(scale=scale), form) for n, scale in enumerate((1.0, 1.0001))]
    shutil.copy(f"{paths[1]}/moments.npz", f"{paths[0]}/moments.npz")
    first = {"zarr": "frames.zarr/c/0/0/0/0", "array_record": "frames-00000-of-00008"}[form]
    with pytest.raises(ValueError, match=f"0/{first}.*: frame 0 has not the moments that moments.npz holds"):
        Shards(paths[0]).load()


def change(name, value):
    def spoil(path):
        file = pathlib.Path(path) / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))

    return spoil


def cut(file):
    file.write_bytes(file.read_bytes()[:-30])


def flip(file):
    file.write_bytes(flipped(file.read_bytes()))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: cut(p / "extras.npz"), "extras.npz: not a whole file of forcings and static fields"),
        (lambda p: flip(p / "extras.npz"), "extras.npz: not a whole file of forcings and static fields"),
        (
            lambda p: np.savez(p / "extras.npz", static=np.zeros(3)),
            "extras.npz: expected arrays of shapes .*forcings",
        ),
        (
            lambda p: np.savez(p / "extras.npz", forcings=np.zeros((100, 2)), static=np.zeros((6, 12, 2))),
            r"extras.npz: expected arrays of shapes .*\(100, 3\).*found .*\(100, 2\)",
        ),
    ],
)
def test_broken_forcings_and_static_fields_are_named(small, tmp_path, spoil, message):
    path = tmp_path / "shards"
    written(path, complete(), "zarr")
    spoil(path)
    with pytest.raises(ValueError, match=message):
        Shards(str(path)).load()
    (path / "extras.npz").unlink()
    with pytest.raises(FileNotFoundError, match="extras.npz: no such file"):
        Shards(str(path)).load()


@pytest.mark.parametrize("form", FORMATS)
def test_what_stands_at_a_missing_point_is_exported_and_an_observed_nan_is_not(small, tmp_path, form):
    original = complete()
    written(tmp_path / "first", original, form)
    point = tuple(np.argwhere(original.observed[1][17])[5])
    original.arrays[1][17][point] = np.nan
    with pytest.raises(ValueError, match="file 1: frame 17 holds NaN or infinite"):
        written(tmp_path / "second", original, form)


@pytest.mark.parametrize("form", FORMATS)
def test_a_mask_that_is_spoiled_is_named(small, tmp_path, form):
    path = pathlib.Path(written(tmp_path / "shards", complete(), form))
    file = {"zarr": "observed.zarr/c/1/0/0/0", "array_record": "observed-00001-of-00004.array_record"}[form]
    (path / file).unlink()
    with pytest.raises(store.StoreError, match=str(path / file)):
        for windows in make_splits(Shards(str(path)).load(), DatasetOptions(2, 1, split="trajectory")):
            windows.batch()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "manifest.json").write_text('{"version": 2'), "manifest.json: not the description"),
        (change("version", 1), "manifest.json: not the description .*version 1"),
        (change("colour", "red"), "manifest.json: not the description .*colour"),
        (change("chunk", [0, 5, 7]), "manifest.json: not the description .*sizes"),
        (change("format", "tar"), "manifest.json: not the description .*tar"),
        (change("recordings", []), "manifest.json: not the description .*sizes"),
        (change("dtype", "float31"), "manifest.json: not the description .*float31"),
        (change("dtype", "int32"), "expected an array .* of int32, found .* of float32"),
        (lambda p: (p / "moments.npz").write_bytes(b"PK"), "moments.npz: not a whole file of moments"),
        (lambda p: cut(p / "moments.npz"), "moments.npz: not a whole file of moments"),
        (lambda p: flip(p / "moments.npz"), "moments.npz: not a whole file of moments"),
        (lambda p: np.savez(p / "moments.npz", sums=np.zeros(3)), "moments.npz: not a whole file of moments"),
        (
            lambda p: np.savez(p / "moments.npz", **Moments(*[np.zeros((92, 2))] * 6)._asdict()),
            "moments.npz: expected moments of shapes",
        ),
    ],
)
def test_a_broken_description_is_named(small, tmp_path, spoil, message):
    path = tmp_path / "shards"
    written(path, films(), "zarr")
    spoil(path)
    with pytest.raises(ValueError, match=message):
        Shards(str(path)).load()


def test_shards_are_read_over_http_by_ranges_of_their_chunks_alone(small, tmp_path):
    original = films()
    written(tmp_path / "shards", original, "zarr")
    with serving(tmp_path) as (address, asked):
        found = Shards(f"{address}/shards").load()
        np.testing.assert_array_equal(found.read(2, 0, 50), original.read(2, 0, 50))
        del asked[:]
        found = Shards(f"{address}/shards").load()
        opened = len(asked)
        np.testing.assert_array_equal(
            found.read(0, 5, 7, slice(0, 5), slice(7, 14)), original.read(0, 5, 7, slice(0, 5), slice(7, 14))
        )
        sizes = [size for path, size in asked[opened:] if path.endswith("c/0/0/0/0")]
        assert sum(sizes) <= 4 * 5 * 7 * 2 * 4 + 4, "no more than one chunk and its checksum"
        with pytest.raises(FileNotFoundError, match=f"{address}/none/manifest.json: no such file"):
            Shards(f"{address}/none").load()
        shard_file(tmp_path / "shards", "zarr").unlink()
        with pytest.raises(store.StoreError, match=f"{address}/shards.*c/3/0/0/0"):
            Shards(f"{address}/shards").load().read(0, 30, 37)


def test_a_store_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(store, "RETRIES", dict(max_retries=1, initial_delay="1ms", max_delay="1ms"))
    store.context.cache_clear()
    with pytest.raises(
        store.StoreError, match=r"http://127.0.0.1:9/x/manifest.json: cannot be read: .*credentials"
    ):
        Shards("http://127.0.0.1:9/x").load()
    store.context.cache_clear()
    with pytest.raises(store.StoreError, match=r"ftp://x/manifest.json: cannot be read: .*scheme"):
        Shards("ftp://x").load()
    with pytest.raises(FileNotFoundError, match="config.data.path"):
        Shards("").load()


def test_array_record_is_not_read_where_it_cannot_be(small, tmp_path):
    written(tmp_path / "shards", films(), "array_record")
    with serving(tmp_path) as (address, _), pytest.raises(ValueError, match="gs:// alone; use zarr"):
        Shards(f"{address}/shards").load()
    with pytest.raises(ValueError, match="written to local folders alone"):
        written("gs://bucket/x", films(), "array_record")


def own_config(module, path):
    config = module.get_config("dynamical,size=tiny")
    config.data.path = str(path)
    return config


@pytest.mark.parametrize("form", FORMATS)
def test_exported_data_are_those_of_the_config(tmp_path, form, capsys):
    (tmp_path / "films").mkdir()
    for number, film in enumerate(films(h=16, w=16).arrays):
        np.save(tmp_path / "films" / f"{number}.npy", film)
    raw = own_config(folder_config, tmp_path / "films")
    raw.window.update(num_context=1, num_forecast=2)
    commands.export(raw, str(tmp_path / "out"), form)
    assert "1 " + form + " shards, 92 frames [16, 16, 2] of float32" in capsys.readouterr().out
    other = own_config(shards_config, tmp_path / "out")
    other.window.update(num_context=1, num_forecast=2)
    streams = []
    for config in map(build.load, (raw, other)):
        train = make_splits(config.data.load(), config.dataset, 2).train
        streams.append(TrainBatches(train, 4, 0, config.loader).stream(0, range(4)))
    for _ in range(20):
        np.testing.assert_array_equal(next(streams[0]).frames, next(streams[1]).frames)


def test_an_export_that_is_killed_leaves_nothing_that_is_read(small, tmp_path):
    def stop(frames):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shard_writer.write(films(), str(tmp_path / "out"), "zarr", stop)
    with pytest.raises(FileNotFoundError, match="wrote to its end"):
        Shards(str(tmp_path / "out")).load()
