"""The public files and a user's own, read through the path that training takes."""

import pathlib
import shutil
import sys

import numpy as np
import pytest
import zarr

from dydiff_jax.data.batches import TrainBatches
from dydiff_jax.data.sources.source import SOURCES
from dydiff_jax.data.splits import DatasetOptions, make_splits

FILES = pathlib.Path(__file__).parent / "files"


def load(name, **options):
    return SOURCES[name](**options).load()


def velocities(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", ["rbc_zip.pt", "rbc_legacy.pt"])
def test_rbc_file_keeps_every_fourth_point_and_puts_channels_last(name):
    n = np.arange(6 * 2 * 8 * 16, dtype=np.float32).reshape(6, 2, 8, 16)
    trajectories = load("rbc_file", path=str(FILES / name))
    assert trajectories.grid == (2, 4)
    expected = (n + np.sin(n))[1:5, :, ::4, ::4].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(trajectories.read(0, 0, 4), expected, rtol=2e-7)


def test_rbc_file_refuses_other_shapes_and_tells_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"rbc_data.pt: no such file; the TF-Net repository"):
        load("rbc_file", path=str(tmp_path / "rbc_data.pt"))
    shutil.copy(FILES / "transposed_zip.pt", tmp_path / "x.pt")
    assert load("rbc_file", path=str(tmp_path / "x.pt"), stride=1).grid == (16, 8)
    with pytest.raises(ValueError, match=r"stride: expected at least 1"):
        SOURCES["rbc_file"](path="", stride=0)


@pytest.fixture
def release(tmp_path):
    arrays = {"train": velocities(5, 16, 2, 8, 8), "test": velocities(2, 15, 2, 8, 8, seed=1)}
    for role, array in arrays.items():
        with open(tmp_path / f"{role}.npz.npy", "wb") as file:
            np.save(file, array)
    return tmp_path, arrays


def test_dydiff_release_uses_15_frames_divided_by_4_split_as_given(release):
    folder, arrays = release
    trajectories = load("dydiff_release", path=str(folder))
    parts = make_splits(trajectories, DatasetOptions(4, 11, split="given", random_crop=False))
    assert [len(part) for part in parts] == [4, 1, 2]
    expected = arrays["train"][:, :15].transpose(0, 1, 3, 4, 2) / 4
    found = np.concatenate([parts.train.batch().frames, parts.valid.batch().frames])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(parts.test.batch().frames, arrays["test"].transpose(0, 1, 3, 4, 2) / 4)


def test_dydiff_release_names_what_is_wrong(release):
    folder, arrays = release
    arrays["test"][1, 3, 0, 2, 2] = np.inf
    with open(folder / "test.npz.npy", "wb") as file:
        np.save(file, arrays["test"])
    with pytest.raises(ValueError, match=r"test.npz.npy, sequence 1: frame 3 holds NaN or infinite"):
        make_splits(load("dydiff_release", path=str(folder)), DatasetOptions(4, 11, split="given"))
    with open(folder / "test.npz.npy", "wb") as file:
        np.save(file, velocities(2, 14, 2, 8, 8))
    with pytest.raises(ValueError, match=r"test.npz.npy: .*L at least 15, found shape \(2, 14, 2, 8, 8\)"):
        load("dydiff_release", path=str(folder))
    whole = (folder / "train.npz.npy").read_bytes()
    (folder / "train.npz.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train.npz.npy: not a whole"):
        load("dydiff_release", path=str(folder))
    (folder / "train.npz.npy").unlink()
    with pytest.raises(FileNotFoundError, match="authors of Dynamical Diffusion"):
        load("dydiff_release", path=str(folder))


def write_npy(path, array):
    np.save(path.with_suffix(".npy"), array)


def write_npz(path, array):
    np.savez_compressed(path.with_suffix(".npz"), velocity=array, time=np.arange(3))


def write_zarr(path, array):
    group = zarr.open_group(path.with_suffix(".zarr"), mode="w")
    group.create_array("velocity", data=array, chunks=(4, *array.shape[1:]))
    group.create_array("time", data=np.arange(3))


@pytest.mark.parametrize("write", [write_npy, write_npz, write_zarr])
@pytest.mark.parametrize("layout", ["thwc", "tchw"])
def test_a_folder_of_any_kind_trains_through_the_same_path(tmp_path, write, layout):
    films = [velocities(length, 4, 6, 2, seed=length) for length in (12, 15, 20)]
    for number, film in enumerate(films):
        write(tmp_path / f"run{number}", film if layout == "thwc" else film.transpose(0, 3, 1, 2))
    trajectories = load("folder", path=str(tmp_path), layout=layout, key="velocity")
    windows = make_splits(trajectories, DatasetOptions(2, 1, split="trajectory", crop=4)).train
    batches = TrainBatches(windows, 4, seed=0)
    expected = [films[n][t : t + 3, :4, x : x + 4] for n, t, _, x, _ in batches.ids(0)]
    np.testing.assert_array_equal(batches.rows(0, range(4)).frames, expected)
    for number, film in enumerate(films):
        np.testing.assert_array_equal(trajectories.read(number, 3, 9), film[3:9])


def test_a_folder_of_single_fields_has_one_channel(tmp_path):
    film = velocities(5, 4, 6)
    np.save(tmp_path / "a.npy", film)
    trajectories = load("folder", path=str(tmp_path), layout="thw")
    assert trajectories.fields == ("channel 0",)
    np.testing.assert_array_equal(trajectories.read(0, 0, 5)[..., 0], film)


def test_npy_trajectories_stay_on_disk(tmp_path):
    np.save(tmp_path / "a.npy", velocities(5, 4, 6, 2))
    assert isinstance(load("folder", path=str(tmp_path)).arrays[0]._array, np.memmap)


def broken(folder, case):
    np.save(folder / "a.npy", velocities(5, 4, 6, 2))
    if case == "grid":
        np.save(folder / "b.npy", velocities(5, 4, 5, 2))
    elif case == "rank":
        np.save(folder / "b.npy", velocities(5, 4, 6))
    elif case == "objects":
        np.save(folder / "b.npy", np.array([{}, {}], dtype=object))
    elif case == "text":
        np.save(folder / "b.npy", np.full((5, 4, 6, 2), "1"))
    elif case == "cut":
        (folder / "b.npy").write_bytes((folder / "a.npy").read_bytes()[:-1])
    elif case == "cut archive":
        np.savez(folder / "b.npz", velocities(5, 4, 6, 2))
        (folder / "b.npz").write_bytes((folder / "b.npz").read_bytes()[:-100])
    elif case == "key":
        np.savez(folder / "b.npz", one=velocities(5, 4, 6, 2), two=velocities(5, 4, 6, 2))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("grid", r"b.npy: expected frames .*\(4, 6, 2\), found shape \(5, 4, 5, 2\)"),
        ("rank", r"b.npy: expected numbers with axes 'thwc', found shape \(5, 4, 6\)"),
        ("objects", r"b.npy: not a whole .npy or .npz file of numbers"),
        ("text", r"b.npy: expected numbers .* <U1; set --config.data.layout"),
        ("cut", r"b.npy: not a whole"),
        ("cut archive", r"b.npz: not a whole"),
        ("key", r"b.npz: expected an array None, found \['one', 'two'\]; set key"),
    ],
)
def test_a_bad_file_in_the_folder_is_named(tmp_path, case, message):
    broken(tmp_path, case)
    with pytest.raises(ValueError, match=message):
        load("folder", path=str(tmp_path))


def test_fields_must_be_as_many_as_channels(tmp_path):
    np.save(tmp_path / "a.npy", velocities(5, 4, 6, 2))
    assert load("folder", path=str(tmp_path), fields=("u", "v")).fields == ("u", "v")
    with pytest.raises(ValueError, match=r"a.npy: expected frames .*\(4, 6, 3\)"):
        load("folder", path=str(tmp_path), fields=("u", "v", "w"))


def test_an_empty_or_missing_folder_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=r"expected a folder of \.npy.* files, found none"):
            load("folder", path=str(folder))


def test_zarr_is_needed_for_zarr_only(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", velocities(5, 4, 6, 2))
    write_zarr(tmp_path / "b", velocities(5, 4, 6, 2))
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"b.zarr: reading zarr needs zarr; pip install"):
        load("folder", path=str(tmp_path), key="velocity")
