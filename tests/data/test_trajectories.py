"""Trajectories: shapes that agree, dtypes that stay, and moments that are measured once."""

import dataclasses
import os
import pathlib
import shutil
import time

import numpy as np
import pytest
import zarr
from trajectories import complete, counting

from dydiff_jax.data.batches import TrainBatches
from dydiff_jax.data.formats import shard_writer
from dydiff_jax.data.sources.kolmogorov import Kolmogorov
from dydiff_jax.data.sources.source import SOURCES
from dydiff_jax.data.splits import DatasetOptions, make_splits
from dydiff_jax.data.statistics import statistics
from dydiff_jax.data.trajectories import Trajectories

OPTIONS = DatasetOptions(2, 1, split="trajectory", crop=4, flip=False)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def shorter(arrays):
    return (arrays[0], arrays[1][:-1], arrays[2])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "arrays",
            lambda a: (a[0], a[1][:, :, :-1], a[2]),
            r"^file 1: expected frames .*\(6, 12, 2\), found shape",
        ),
        (
            "arrays",
            lambda a: (a[0], a[1][..., 0], a[2]),
            r"^file 1: expected frames .*found shape \(30, 6, 12\)",
        ),
        ("observed", shorter, r"^file 1: expected a mask .*\(30, 6, 12, 2\), .*found \(29, 6, 12, 2\)"),
        (
            "observed",
            lambda a: (a[0], a[1], a[2][:, :, :5]),
            r"^file 2: expected a mask .* found \(30, 6, 5, 2\)",
        ),
        ("observed", lambda a: a[:2], "^observed: expected one for each of 3 trajectories, found 2"),
        ("forcings", shorter, r"^file 1: expected forcings of shape \(30, 3\), .*'season'.*found \(29, 3\)"),
        ("forcings", lambda a: (a[0][:, :2], *a[1:]), r"^file 0: expected forcings .*found \(40, 2\)"),
        ("forcings", lambda a: a[:2], "^forcings: expected one for each of 3 trajectories, found 2"),
        ("forcings", lambda a: None, "^forcings: expected them with their names, found .*season"),
        ("forcing_names", lambda a: (), "^forcings: expected them with their names"),
        (
            "static",
            lambda a: a[:, :-1],
            r"^static: expected fields .*'height'.* \(6, 12, 2\), found \(6, 11, 2\)",
        ),
        ("static", lambda a: a[..., :1], r"^static: .*\(6, 12, 2\), found \(6, 12, 1\)"),
        ("static", lambda a: None, r"^static: .*found \(6, 12, 0\)"),
        ("static_names", lambda a: (), r"^static: expected fields \[\] .*found \(6, 12, 2\)"),
    ],
)
def test_shapes_that_disagree_are_refused_by_name(name, change, message):
    data = complete()
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(data, **{name: change(getattr(data, name))})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_observed_value_that_is_not_finite_is_named_and_a_missing_one_is_not_refused(value):
    data = complete(rubbish=value)
    assert not np.isfinite(data.arrays[1][17]).all()
    make_splits(data, OPTIONS)
    point = tuple(np.argwhere(data.observed[1][17])[5])
    data.arrays[1][17][point] = value
    with pytest.raises(
        ValueError, match="^file 1: frame 17 holds NaN or infinite values; .* mark them as missing"
    ):
        make_splits(data, OPTIONS)


def test_forcings_and_static_fields_that_are_not_finite_are_named():
    data = complete()
    data.forcings[2][11, 1] = np.nan
    with pytest.raises(ValueError, match="^file 2: the forcings of frame 11 are NaN"):
        make_splits(data, OPTIONS)
    data = complete()
    data.static[3, 4, 1] = np.inf
    with pytest.raises(ValueError, match="^static: land holds NaN or infinite values"):
        make_splits(data, OPTIONS)


DTYPES = {
    "uint8": "uint8", "int16": "int16", ">i2": "int16", "float16": "float16", ">f2": "float16", "float32": "float32",
    ">f4": "float32", "float64": "float32", ">f8": "float32", "int64": "float32",
}  # fmt: skip


def films(folder, dtype, lengths=(12, 9, 9)):
    """Whole numbers below 200, or 99.5 with a half where these are floats; saved as they are told."""
    folder.mkdir(exist_ok=True)
    for number, length in enumerate(lengths):
        half = 0.5 * (np.dtype(dtype).kind == "f")
        values = np.random.default_rng(number).integers(0, 100, (length, 4, 6, 2)) + half
        np.save(folder / f"{number}.npy", values.astype(dtype))
    return SOURCES["folder"](path=str(folder))


@pytest.mark.parametrize("dtype", DTYPES)
def test_frames_keep_the_dtype_of_their_source(tmp_path, dtype):
    trajectories = films(tmp_path / "files", dtype).load()
    windows = make_splits(trajectories, OPTIONS).train
    batch = TrainBatches(windows, 4, seed=0).rows(0, range(4))
    assert batch.frames.dtype == np.dtype(DTYPES[dtype]) and batch.frames.dtype.isnative
    (place, *_) = TrainBatches(windows, 4, seed=0).ids(0)
    stored = np.load(tmp_path / "files" / f"{place.trajectory}.npy")[place.frame : place.frame + 3]
    found = batch.frames[0]
    np.testing.assert_array_equal(
        found, stored[:, place.row : place.row + 4, place.column : place.column + 4]
    )
    shard_writer.write(trajectories, str(tmp_path / "zarr"), "zarr", lambda frames: None)
    again = make_splits(SOURCES["shards"](path=str(tmp_path / "zarr")).load(), OPTIONS).train
    from_shards = TrainBatches(again, 4, seed=0).rows(0, range(4))
    assert from_shards.frames.dtype == batch.frames.dtype
    np.testing.assert_array_equal(from_shards.frames, batch.frames)


def test_a_scale_makes_float32_frames():
    data = complete(dtype=np.float16, scale=0.5)
    assert make_splits(data, OPTIONS).train[0].frames.dtype == np.float32


@pytest.mark.parametrize(
    ("dtype", "found"), [("uint8", "float32"), ("int16", "int16"), ("float16", "float16")]
)
def test_a_mirrored_batch_has_one_dtype_whoever_is_mirrored(dtype, found):
    options = dataclasses.replace(OPTIONS, flip=True)
    data = counting(mirror=(-1.0, 1.0))
    data = dataclasses.replace(data, arrays=tuple((film % 100).astype(dtype) for film in data.arrays))
    batches = TrainBatches(make_splits(data, options).train, 2, seed=0)
    drawn = set()
    for step in range(12):
        drawn.add(sum(place.mirrored for place in batches.ids(step)))
        assert batches.rows(step, range(2)).frames.dtype == np.dtype(found)
    assert drawn == {0, 1, 2}


def test_unsigned_frames_without_a_change_of_sign_stay_unsigned_when_mirrored():
    data = counting(mirror=(1.0, 1.0))
    data = dataclasses.replace(data, arrays=tuple((film % 100).astype("uint8") for film in data.arrays))
    batches = TrainBatches(make_splits(data, dataclasses.replace(OPTIONS, flip=True)).train, 8, seed=0)
    assert batches.rows(0, range(8)).frames.dtype == np.uint8


def npz(folder):
    for number in range(3):
        np.savez(folder / f"{number}.npz", noise(20, 4, 6, 2, seed=number))
    return "folder", dict(path=str(folder)), folder / "1.npz"


def npy(folder):
    for number in range(3):
        np.save(folder / f"{number}.npy", noise(20, 4, 6, 2, seed=number))
    return "folder", dict(path=str(folder)), folder / "1.npy"


def zarr_stores(folder):
    for number in range(3):
        zarr.save_array(folder / f"{number}.zarr", noise(20, 4, 6, 2, seed=number))
    return "folder", dict(path=str(folder)), folder / "1.zarr" / "c" / "0" / "0" / "0" / "0"


def release(folder):
    for name in ("train", "test"):
        with open(folder / f"{name}.npz.npy", "wb") as file:
            np.save(file, noise(4, 15, 2, 4, 6))
    return "dydiff_release", dict(path=str(folder)), folder / "test.npz.npy"


def simulated(folder):
    given = dict(
        cells=16, out_cells=8, interval=0.5, spin_up=1.0, duration=4.0, trajectories=3, cache_dir=str(folder)
    )
    source = Kolmogorov(**given)
    source.folder.mkdir()
    for number, part in enumerate(source.parts()):
        part.write(noise(8, 8, 8, 2, seed=number).astype(np.float16))
    return "kolmogorov", given, source.parts()[1].path


def rbc(folder):
    shutil.copy(pathlib.Path(__file__).parent / "files" / "rbc_zip.pt", folder / "rbc.pt")
    return "rbc_file", dict(path=str(folder / "rbc.pt"), stride=1), folder / "rbc.pt"


def start(name, options):
    """What a run does first: opens the data, looks at every value, and takes the statistics."""
    trajectories = SOURCES[name](**options).load()
    if len(trajectories.arrays) == 1:
        trajectories.check_finite()
        return np.concatenate([moments.squares for moments in trajectories.each_moments()])
    return np.stack(statistics(make_splits(trajectories, OPTIONS).train, "speed"))


@pytest.mark.parametrize("made", [npy, npz, zarr_stores, release, simulated, rbc])
def test_a_second_start_reads_no_frame_and_a_changed_file_is_measured_anew(
    tmp_path, monkeypatch, own_cache, made
):
    folder = tmp_path / "data"
    folder.mkdir()
    name, options, file = made(folder)
    first = start(name, options)
    assert [*(own_cache / "moments").glob("*.npz"), *file.parent.glob("*.moments.npz")]
    read = []

    def refused(self, trajectory, *box):
        read.append(trajectory)
        raise AssertionError("read")

    with monkeypatch.context() as patch:
        patch.setattr(Trajectories, "read", refused)
        np.testing.assert_array_equal(start(name, options), first)
        assert not read
        later = time.time_ns() + 10**9
        os.utime(file, ns=(later, later))  # as if rewritten, with as many bytes
        with pytest.raises(AssertionError, match="^read$"):
            start(name, options)
    np.testing.assert_array_equal(start(name, options), first)


def test_a_rewritten_file_has_statistics_of_its_own(tmp_path):
    name, options, _ = npy(tmp_path)
    first = start(name, options)
    status = os.stat(tmp_path / "0.npy")
    np.save(tmp_path / "0.npy", 3 * noise(20, 4, 6, 2))
    os.utime(tmp_path / "0.npy", ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    (_, std), (_, changed) = first, start(name, options)
    np.testing.assert_allclose(changed, 3 * std, rtol=1e-6)


def test_other_options_have_moments_of_their_own(tmp_path):
    name, options, _ = release(tmp_path)
    first, other = start(name, options), start(name, options | dict(scale=0.5))
    np.testing.assert_allclose(other, 2 * first, rtol=1e-6)


def test_another_layout_of_a_file_has_moments_of_its_own(tmp_path):
    values = noise(20, 2, 6, 2)
    np.save(tmp_path / "a.npy", values)
    for layout, space in (("thwc", (1, 2)), ("tchw", (2, 3))):  # moments of one shape
        found = SOURCES["folder"](path=str(tmp_path), layout=layout).load().moments_of(0)
        np.testing.assert_allclose(found.squares, (values.astype(np.float64) ** 2).sum(space))


@pytest.mark.parametrize("contents", [b"", b"PK", None])
def test_a_broken_cache_of_moments_is_measured_anew(tmp_path, own_cache, contents):
    name, options, _ = npy(tmp_path)
    first = start(name, options)
    for path in (own_cache / "moments").iterdir():
        path.write_bytes(path.read_bytes()[:-30] if contents is None else contents)
    np.testing.assert_array_equal(start(name, options), first)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    name, options, _ = npy(tmp_path)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DYDIFF_JAX_CACHE", str(tmp_path / "file"))
    first = start(name, options)
    np.testing.assert_array_equal(start(name, options), first)
