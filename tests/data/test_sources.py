"""The public files and a user's own, read through the path that training takes."""

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
import zarr
from trajectories import complete

from dydiff_jax.data.batches import TrainBatches
from dydiff_jax.data.formats import shard_writer
from dydiff_jax.data.sources import shards
from dydiff_jax.data.sources.folder import Folder
from dydiff_jax.data.sources.simulated import Simulated
from dydiff_jax.data.sources.source import SOURCES
from dydiff_jax.data.splits import DatasetOptions, make_splits
from dydiff_jax.data.trajectories import Trajectories
from dydiff_jax.types import DataSpec

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
    elif case == "changed archive":
        np.savez(folder / "b.npz", velocities(5, 4, 6, 2))
        whole = (folder / "b.npz").read_bytes()
        (folder / "b.npz").write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
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
        ("changed archive", r"b.npz: not a whole"),
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


def make_folder(folder, suffix):
    write = {".npy": write_npy, ".npz": write_npz, ".zarr": write_zarr}[suffix]
    for number in range(2):
        write(folder / f"run{number}", velocities(6, 2, 4, 5, seed=number).astype(np.float16))
    options = dict(
        path=str(folder), layout="tchw", interval=0.5, time_unit="s", unit="m/s", fields=("u", "v")
    )
    return "folder", options | (dict(key="velocity") if suffix != ".npy" else {})


def make_release(folder):
    for role in ("train", "test"):
        with open(folder / f"{role}.npz.npy", "wb") as file:
            np.save(file, velocities(3, 16, 2, 8, 6))
    return "dydiff_release", dict(path=str(folder))


def make_shards(folder, form):
    shard_writer.write(complete(), str(folder / "out"), form, lambda frames: None)
    return "shards", dict(path=str(folder / "out"))


def make_kolmogorov(folder):
    given = dict(cells=16, out_cells=8, interval=0.5, spin_up=1.0, duration=2.0, trajectories=2)
    return fill_cache("kolmogorov", given | dict(cache_dir=str(folder)))


def make_rayleigh_benard(folder):
    given = dict(rows=8, columns=16, out_rows=4, duration=1.0, trajectories=2)
    return fill_cache("rayleigh_benard", given | dict(cache_dir=str(folder)))


def make_hasselmann(folder):
    return fill_cache("hasselmann", dict(grid=(4, 6), duration=3.0, trajectories=2, cache_dir=str(folder)))


def make_lorenz96(folder):
    return fill_cache("lorenz96", dict(duration=0.2, trajectories=2, cache_dir=str(folder)))


def make_spring_mesh(folder):
    options = dict(duration=0.0781, trajectories=3, valid=1, test=1, cache_dir=str(folder))
    return fill_cache("spring_mesh", options)


def make_spring_mesh_file(folder):
    start = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0), indexing="ij"), axis=-1).reshape(100, 2)
    keys = {name: f"traj_00000_{name}" for name in ("p", "q")}
    meta = dict(trajectories=[dict(field_keys=keys, time_step_size=0.00781)])
    (folder / "system_meta.json").write_text(json.dumps(meta))
    q = np.broadcast_to(start, (4, 100, 2))
    np.savez(folder / "trajectories.npz", traj_00000_p=velocities(4, 100, 2), traj_00000_q=q)
    return "spring_mesh_file", dict(path=str(folder))


def fill_cache(name, options):
    source = SOURCES[name](**options)
    source.folder.mkdir()
    for part in source.parts():
        part.write(velocities(*part.shape))
    return name, options


MADE = {
    "npy": lambda folder: make_folder(folder, ".npy"),
    "npz": lambda folder: make_folder(folder, ".npz"),
    "zarr folder": lambda folder: make_folder(folder, ".zarr"),
    "release": make_release,
    "rbc zip": lambda folder: ("rbc_file", dict(path=str(FILES / "rbc_zip.pt"))),
    "rbc legacy": lambda folder: ("rbc_file", dict(path=str(FILES / "rbc_legacy.pt"), stride=3)),
    "zarr shards": lambda folder: make_shards(folder, "zarr"),
    "array_record shards": lambda folder: make_shards(folder, "array_record"),
    "kolmogorov": make_kolmogorov,
    "rayleigh_benard": make_rayleigh_benard,
    "hasselmann": make_hasselmann,
    "lorenz96": make_lorenz96,
    "spring_mesh": make_spring_mesh,
    "spring_mesh_file": make_spring_mesh_file,
}


@pytest.mark.parametrize("case", MADE)
def test_a_source_tells_what_its_frames_are_without_opening_them(tmp_path, monkeypatch, case):
    name, options = MADE[case](tmp_path)
    source = SOURCES[name](**options)

    def refused(*arguments, **named):
        raise AssertionError("opened")

    with monkeypatch.context() as patch:
        patch.setattr(Trajectories, "__post_init__", refused)
        patch.setattr(Simulated, "load", refused)
        patch.setattr(Folder, "_open_npz", refused)
        if name != "rbc_file":  # which cuts its numbers out of the whole file, as a view
            patch.setattr(np.memmap, "__getitem__", refused)
        patch.setattr(zarr.Array, "__getitem__", refused)
        patch.setattr(shards, "READERS", {"zarr": refused, "array_record": refused})
        patch.setattr(shards, "read_moments", refused)
        patch.setattr(shards, "read_extras", refused)
        spec = source.spec()
        with pytest.raises(AssertionError, match="opened"):
            source.load()
    found = source.load()
    shape = found.read(0, 0, 1).shape[1:]
    assert spec == DataSpec(
        shape,
        found.fields,
        found.unit,
        found.interval,
        found.time_unit,
        "field",
        found.forcing_names,
        found.static_names,
    )
    assert all(array.shape[1:] == spec.frame_shape for array in found.arrays)
    assert len(spec.forcings) == (3 if name == "shards" else 0)


def test_every_source_is_among_them(tmp_path):
    names = set()
    for number, make in enumerate(MADE.values()):
        (tmp_path / str(number)).mkdir()
        names.add(make(tmp_path / str(number))[0])
    assert names == set(SOURCES)


def test_a_simulated_source_simulates_nothing_to_tell_what_it_is(tmp_path):
    for name in ("kolmogorov", "rayleigh_benard", "hasselmann", "lorenz96", "spring_mesh"):
        SOURCES[name](cache_dir=str(tmp_path / "none")).spec()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["folder", "dydiff_release", "rbc_file", "shards", "spring_mesh_file"])
def test_a_source_without_its_files_says_so_when_it_is_asked_what_it_is(tmp_path, name):
    for path in ("", str(tmp_path / "none")):
        with pytest.raises(FileNotFoundError):
            SOURCES[name](path=path).spec()
