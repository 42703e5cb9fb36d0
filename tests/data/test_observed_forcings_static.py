"""Missing points, forcings and static fields reach batches and shards as they are; a start reads nothing known."""

import dataclasses
import pathlib

import numpy as np
import pytest
from trajectories import counting

from dydiff_jax.data import cache, moments, trajectories
from dydiff_jax.data.batches import TrainBatches
from dydiff_jax.data.formats import shard_writer, sidecar
from dydiff_jax.data.moments import Moments, measure
from dydiff_jax.data.simulators import ensemble
from dydiff_jax.data.sources import SOURCES
from dydiff_jax.data.sources.shards import Shards
from dydiff_jax.data.splits import DatasetOptions, make_splits
from dydiff_jax.data.statistics import statistics
from dydiff_jax.data.windows import Place, select
from dydiff_jax.types import DataSpec

FORMATS = ("zarr", "array_record")
LENGTHS = (40, 30, 30)
OPTIONS = dict(num_context=2, num_forecast=3, crop=4, split="trajectory", fractions=(0.4, 0.3, 0.3))


def rich(dtype=np.float32, lengths=LENGTHS, missing=np.nan, **fields):
    """Noise with a fifth of its points missing, forcings that hold the number of their frame, and static fields.

    ``missing`` stands at the missing points.
    """
    rng, (h, w, c) = np.random.default_rng(0), (6, 12, 2)
    shapes = [(length, h, w, c) for length in lengths]
    observed = tuple(rng.random(shape) > 0.2 for shape in shapes)
    arrays = tuple((100 * rng.standard_normal(shape)).astype(dtype) for shape in shapes)
    arrays = tuple(np.where(mask, a, np.asarray(missing).astype(dtype))
                   for a, mask in zip(arrays, observed, strict=True))  # fmt: skip
    forcings = tuple(np.stack([np.arange(n), 1e3 * i + np.arange(n)], 1).astype(np.float32)
                     for i, n in enumerate(lengths))  # fmt: skip
    return dataclasses.replace(
        counting(lengths=lengths, h=h, w=w, c=c, mirror=(-1.0, 1.0)),
        arrays=arrays,
        observed=observed,
        forcings=forcings,
        forcing_names=("frame", "action"),
        static=rng.standard_normal((h, w, 3)).astype(np.float32),
        static_names=("height", "coast", "soil"),
        **fields,
    )


def cut_by_hand(data, place, frames, beyond=0, side=4):
    """The window at a place, column by column."""
    columns = [(place.column + i) % data.grid[1] for i in range(side)]
    columns = columns[::-1] if place.mirrored else columns
    rows, time = slice(place.row, place.row + side), slice(place.frame, place.frame + frames)
    signs = np.asarray(data.mirror if place.mirrored else (1, 1), np.float32)
    array, mask = (each[place.trajectory][time, rows][:, :, columns] for each in (data.arrays, data.observed))
    forcings = data.forcings[place.trajectory][place.frame : place.frame + frames + beyond]
    return array * signs, mask, forcings, data.static[rows][:, columns]


def assert_same_bits(found, expected):
    """Batches without and with NaN, of the parts that they have."""
    found, expected = ([part for part in batch if part is not None] for batch in (found, expected))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        np.testing.assert_array_equal(one, other)


def train(data, **options):
    return make_splits(data, DatasetOptions(**OPTIONS | dict(flip=True) | options)).train


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("column", [0, 5, 10])
def test_a_window_is_cut_alike_from_frames_mask_forcings_and_static_fields(mirrored, column):
    """Column 10 wraps around; the mirror reverses columns, and changes the sign of frames alone."""
    data = rich()
    place = Place(1, 7, 2, column, mirrored)
    assert_same_bits(train(data).read(place), cut_by_hand(data, place, 5))


def test_random_crops_that_wrap_and_mirror_reach_batches():
    data = rich()
    batches = TrainBatches(train(data), 64, seed=2)
    places = batches.ids(3)
    assert any(p.mirrored for p in places) and any(p.column > 8 for p in places)
    expected = [np.stack(parts) for parts in zip(*(cut_by_hand(data, p, 5) for p in places), strict=True)]
    assert_same_bits(batches.rows(3, range(64)), expected)


@pytest.mark.parametrize("axes", [(0,), (3,), (1, 2, 3), (0, 1, 2)], ids=str)
def test_a_mask_may_be_1_long_along_an_axis_on_which_it_is_constant(axes):
    """Batches and moments are those of the mask that is written out."""
    data, narrow = rich(missing=0.0), tuple(slice(1) if axis in axes else slice(None) for axis in range(4))
    short = tuple(mask[narrow] for mask in data.observed)
    whole = tuple(np.broadcast_to(mask, a.shape).copy() for mask, a in zip(short, data.arrays, strict=True))
    one, other = (dataclasses.replace(data, observed=masks) for masks in (short, whole))
    assert not all(mask.all() for mask in whole)
    batches = [TrainBatches(train(each), 32, seed=2).rows(3, range(32)) for each in (one, other)]
    assert_same_bits(*batches)
    for number in range(len(data.arrays)):
        assert_same_bits(one.moments_of(number), other.moments_of(number))


def test_the_forcing_of_a_frame_arrives_with_it():
    """The first channel of every frame is its number, and so is its first forcing."""
    data = rich()
    numbered = tuple(np.broadcast_to(np.arange(len(a), dtype=np.float32)[:, None, None, None], a.shape)
                     for a in data.arrays)  # fmt: skip
    data = dataclasses.replace(data, arrays=numbered, mirror=(1.0, 1.0))
    splits = make_splits(data, DatasetOptions(**OPTIONS, flip=True), horizon=6, beyond=4)
    batch = TrainBatches(splits.train, 32, seed=0).rows(0, range(32))
    np.testing.assert_array_equal(batch.forcings[..., 0], batch.frames[:, :, 0, 0, 0])
    for windows in (splits.valid, splits.test):
        batch = windows.batch()
        assert batch.frames.shape[1] == 2 + 6 and batch.forcings.shape[1] == 2 + 6 + 4
        np.testing.assert_array_equal(batch.forcings[:, :8, 0], batch.frames[:, :, 0, 0, 0])
        np.testing.assert_array_equal(np.diff(batch.forcings[..., 0], axis=1), 1.0)


def test_windows_that_lack_forcings_beyond_their_end_are_left_out():
    data = rich()
    plain, long = (make_splits(data, DatasetOptions(**OPTIONS), 6, beyond) for beyond in (0, 5))
    np.testing.assert_array_equal(plain.train.places, long.train.places)
    for one, other in ((plain.valid, long.valid), (plain.test, long.test)):
        kept = one.places[one.places[:, 1] + 8 + 5 <= 30]
        assert 0 < len(kept) < len(one)
        np.testing.assert_array_equal(other.places, kept)


def test_published_windows_that_lack_forcings_are_left_out():
    data = dataclasses.replace(
        counting(lengths=(1499,), h=1, w=7, c=1, periodic_x=False),
        forcings=(np.arange(1499.0)[:, None],),
        forcing_names=("frame",),
    )
    options = DatasetOptions(4, 11, split="published", crop=1)
    plain, long = (make_splits(data, options, beyond=beyond) for beyond in (0, 60))
    np.testing.assert_array_equal(plain.train.places, long.train.places)
    kept = plain.test.places[plain.test.places[:, 1] + 15 + 60 <= 1499]
    assert 0 < len(kept) < 2100
    np.testing.assert_array_equal(long.test.places, kept)
    assert long.test[len(kept) - 1].forcings.shape == (15 + 60, 1)


def test_without_forcings_nothing_is_left_out():
    data = dataclasses.replace(rich(), forcings=None, forcing_names=())
    plain, long = (make_splits(data, DatasetOptions(**OPTIONS), 6, beyond) for beyond in (0, 5))
    np.testing.assert_array_equal(plain.test.places, long.test.places)
    assert long.test.batch().forcings is None


def test_validation_windows_are_as_long_as_test_windows():
    data = rich()
    splits = make_splits(data, DatasetOptions(**OPTIONS), horizon=9)
    assert splits.train.shape.frames == 5 and splits.valid.shape == splits.test.shape
    assert splits.valid.batch().frames.shape[1] == 11


@pytest.mark.parametrize("convention", ["channel", "speed"])
def test_statistics_are_those_of_the_observed_values(convention):
    data = rich()
    windows = train(data, stride=8)
    frames = sorted({(n, t + i) for n, t, _, _ in windows.places for i in range(5)})
    values = np.stack([data.arrays[n][t] for n, t in frames]).astype(np.float64)
    known = np.stack([data.observed[n][t] for n, t in frames])
    mean, std = statistics(windows, convention)
    np.testing.assert_allclose(mean, [values[..., c][known[..., c]].mean() for c in range(2)], rtol=1e-10)
    expected = [values[..., c][known[..., c]].std() for c in range(2)]
    if convention == "speed":
        expected = np.linalg.norm(values[known.all(-1)], axis=-1).std()
    np.testing.assert_allclose(std, np.broadcast_to(expected, 2), rtol=1e-10)


@pytest.mark.parametrize("missing", [np.inf, 0.0, -3e38])
@pytest.mark.parametrize("convention", ["channel", "speed"])
def test_what_stands_at_missing_points_changes_no_bit_of_the_statistics(missing, convention):
    expected = statistics(train(rich()), convention)
    found = statistics(train(rich(missing=missing)), convention)
    np.testing.assert_array_equal(found, expected)


def test_a_mask_that_hides_nothing_changes_no_bit():
    frames = np.random.default_rng(0).standard_normal((9, 6, 12, 2)).astype(np.float32)
    for one, other in zip(measure(frames), measure(frames, np.ones(frames.shape, bool)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_value_is_refused_where_it_is_observed_and_only_there():
    data = rich()
    make_splits(data, DatasetOptions(**OPTIONS))
    where = tuple(np.argwhere(data.observed[1])[1000])
    data.arrays[1][where] = np.inf
    with pytest.raises(ValueError, match=f"file 1: frame {where[0]} holds NaN or infinite .* as missing"):
        make_splits(data, DatasetOptions(**OPTIONS))


@pytest.mark.parametrize("missing", [0, 1])
def test_fields_that_are_never_observed_have_no_statistics(missing):
    data = rich(missing=0.0)
    for mask in data.observed:
        mask[..., missing] = False
    with pytest.raises(ValueError, match=f"no value of {data.fields[missing]} is observed"):
        statistics(train(data))
    for mask in data.observed:
        mask[:, :3, :, 0], mask[:, :3, :, 1] = True, False
        mask[:, 3:, :, 0], mask[:, 3:, :, 1] = False, True
    statistics(train(data))
    with pytest.raises(ValueError, match="all fields are observed, found none .*codec.name=standardize"):
        statistics(train(data), "speed")


@pytest.mark.parametrize("name", ["forcings", "static"])
def test_forcings_and_static_fields_that_are_not_finite_are_refused(name):
    data = rich()
    if name == "forcings":
        data.forcings[2][11, 1] = np.nan
    else:
        data.static[3, 4, 1] = np.inf
    with pytest.raises(ValueError, match="file 2: the forcings of frame 11 are|static: coast holds"):
        make_splits(data, DatasetOptions(**OPTIONS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(observed=tuple(np.ones((n, 6, 11, 2), bool) for n in LENGTHS)),
            "file 0: expected a mask .*11, 2",
        ),
        (
            dict(forcings=tuple(np.ones((n - 1, 2)) for n in LENGTHS)),
            r"file 0: expected forcings .*\(39, 2\)",
        ),
        (dict(forcing_names=("frame",)), r"file 0: expected forcings of shape \(40, 1\)"),
        (dict(forcings=None), "forcings: expected them with their names"),
        (dict(forcings=(np.ones((40, 2)),)), "forcings: expected one for each of 3 trajectories, found 1"),
        (dict(observed=()), "observed: expected one for each of 3 trajectories, found 0"),
        (dict(static=np.ones((6, 11, 3))), r"static: expected fields .*\(6, 12, 3\), found \(6, 11, 3\)"),
        (dict(static_names=()), r"static: expected fields .*\(6, 12, 0\), found \(6, 12, 3\)"),
    ],
)
def test_shapes_that_disagree_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(rich(), **changes)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_shards_carry_everything_bit_for_bit(tmp_path, monkeypatch, form, dtype):
    monkeypatch.setattr(sidecar, "CHUNK_SIDE", 5)
    monkeypatch.setattr(sidecar, "SHARD_BYTES", 2**13)
    original, path = rich(dtype), str(tmp_path / "shards")
    shard_writer.write(original, path, form, lambda frames: None)
    found = Shards(path).load()
    assert found.dtype == dtype
    for number, length in enumerate(LENGTHS):
        assert_same_bits(
            (found.read(number, 0, length), found.read_observed(number, 0, length), found.forcings[number]),
            (original.arrays[number], original.observed[number], original.forcings[number]),
        )
    assert_same_bits([found.static], [original.static])
    names = ("forcing_names", "static_names", "fields", "mirror")
    assert [getattr(found, name) for name in names] == [getattr(original, name) for name in names]
    rows = [TrainBatches(train(data), 16, seed=5).rows(2, range(16)) for data in (found, original)]
    assert_same_bits(*rows)
    np.testing.assert_array_equal(statistics(train(found)), statistics(train(original)))
    again = str(tmp_path / "again")
    shard_writer.write(found, again, FORMATS[1 - FORMATS.index(form)], lambda frames: None)
    assert_same_bits(TrainBatches(train(Shards(again).load()), 16, seed=5).rows(2, range(16)), rows[1])


def test_broken_extras_are_named(tmp_path):
    path = tmp_path / "shards"
    shard_writer.write(rich(), str(path), "zarr", lambda frames: None)
    np.savez(path / "extras.npz", forcings=np.zeros((100, 2)))
    with pytest.raises(ValueError, match=r"extras.npz: expected arrays of shapes .*static.*; export"):
        Shards(str(path)).load()
    (path / "extras.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="extras.npz: not a whole file of forcings"):
        Shards(str(path)).load()
    (path / "extras.npz").unlink()
    with pytest.raises(FileNotFoundError, match="extras.npz"):
        Shards(str(path)).load()


def folder_of(tmp_path, dtype, count=3, lengths=(12, 12, 12), seed=0):
    """A folder of files and what is in them."""
    rng = np.random.default_rng(seed)
    (tmp_path / "files").mkdir(exist_ok=True)
    arrays = [(50 * rng.random((n, 4, 6, 2))).astype(dtype) for n in lengths[:count]]
    for number, array in enumerate(arrays):
        np.save(tmp_path / "files" / f"{number}.npy", array)
    return SOURCES["folder"](path=str(tmp_path / "files")), arrays


@pytest.mark.parametrize(
    ("stored", "delivered"),
    [
        ("u1", "u1"),
        ("i2", "i2"),
        ("f2", "f2"),
        ("f4", "f4"),
        (">f4", "f4"),
        (">f2", "f2"),
        ("f8", "f4"),
        ("i8", "f4"),
    ],
)
def test_frames_keep_their_dtype_up_to_the_batch(tmp_path, stored, delivered):
    source, arrays = folder_of(tmp_path, stored)
    data = source.load()
    windows = make_splits(data, DatasetOptions(2, 1, split="trajectory", crop=3)).train
    batch = TrainBatches(windows, 8, seed=0).rows(0, range(8)).frames
    assert batch.dtype == data.dtype == np.dtype(delivered) and batch.dtype.isnative
    np.testing.assert_array_equal(data.read(1, 0, 12), arrays[1].astype(delivered))
    scaled = dataclasses.replace(data, scale=0.5)
    assert scaled.read(0, 0, 3).dtype == scaled.dtype == np.float32


def test_every_batch_has_one_dtype(tmp_path):
    source, arrays = folder_of(tmp_path, np.float16)
    np.save(tmp_path / "files" / "1.npy", arrays[1].astype(np.float32))
    assert {source.load().read(number, 0, 3).dtype for number in range(3)} == {np.dtype(np.float32)}


def test_unsigned_values_stay_unsigned_where_the_mirror_changes_no_sign(tmp_path):
    source, _ = folder_of(tmp_path, np.uint8)
    options = DatasetOptions(2, 1, split="trajectory", crop=4, flip=True)
    picture = dataclasses.replace(source.load(), mirror=(1.0, 1.0))
    windows = make_splits(picture, options).train
    plain, mirrored = (windows.read(Place(0, 0, 0, 1, flag)).frames for flag in (False, True))
    assert mirrored.dtype == np.uint8
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])
    signed = make_splits(dataclasses.replace(picture, mirror=(-1.0, 1.0)), options).train
    plain, mirrored = (signed.read(Place(0, 0, 0, 1, flag)).frames for flag in (False, True))
    assert plain.dtype == mirrored.dtype == np.float32
    np.testing.assert_array_equal(mirrored[..., 0], -plain[:, :, ::-1, 0])


def cannot_read(monkeypatch):
    """From here on, reading a frame is an error."""

    def read(*_):
        raise AssertionError("a frame is read")

    monkeypatch.setattr(trajectories.Trajectories, "read", read)
    monkeypatch.setattr(moments, "measure", read)


def small_kolmogorov(tmp_path, monkeypatch, **changes):
    """A simulated source whose solver draws noise."""

    def write(options, indices, workers):
        for index in indices:
            part = options.parts()[index]
            part.write(np.random.default_rng(index).standard_normal(part.shape).astype(np.float16))

    monkeypatch.setattr(ensemble, "simulate_missing", write)
    flow = dict(cells=16, out_cells=4, interval=0.25, spin_up=0.0, duration=3.0, trajectories=3)
    return SOURCES["kolmogorov"](**flow | dict(cache_dir=str(tmp_path / "flows")) | changes)


def start(source):
    """What a run does first."""
    splits = make_splits(source.load(), DatasetOptions(2, 1, split="trajectory", crop=4))
    return statistics(splits.train)


@pytest.mark.parametrize("kind", ["folder", "simulated"])
def test_a_second_start_reads_not_one_frame(tmp_path, monkeypatch, kind):
    source = (
        folder_of(tmp_path, np.float32)[0] if kind == "folder" else small_kolmogorov(tmp_path, monkeypatch)
    )
    expected = start(source)
    cannot_read(monkeypatch)
    np.testing.assert_array_equal(start(source), expected)


def test_moments_of_simulated_arrays_stand_beside_them_and_are_checked(tmp_path, monkeypatch):
    source = small_kolmogorov(tmp_path, monkeypatch)
    expected = start(source)
    assert len(list(source.folder.glob("trajectory_00?.moments.npz"))) == 3
    assert not (cache.cache_root(None) / "moments").exists()
    kept = source.parts()[1].moments
    for spoiled in (b"PK", measure(np.zeros((5, 4, 4, 2)))):
        kept.write_bytes(spoiled.to_npz() if isinstance(spoiled, Moments) else spoiled)
        np.testing.assert_array_equal(start(source), expected)
    part = source.parts()[0]
    spoiled = part.open().copy()
    spoiled[7, 1, 2, 0] = np.nan
    np.save(part.path, spoiled)
    with pytest.raises(ValueError, match=r"trajectory_000.npy: frame 7 holds NaN"):
        start(source)


def test_a_changed_file_is_measured_again(tmp_path, monkeypatch):
    source, _ = folder_of(tmp_path, np.float32)
    first = start(source)
    folder_of(tmp_path, np.float32, seed=1)
    second = start(source)
    assert not np.array_equal(first, second)
    np.save(tmp_path / "files" / "1.npy", np.full((12, 4, 6, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match="1.npy: frame 0 holds NaN"):
        start(source)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, own_cache):
    (own_cache / "moments").write_text("a file where a folder should be")
    source, _ = folder_of(tmp_path, np.float32)
    np.testing.assert_array_equal(start(source), start(source))


def test_the_spec_of_simulated_data_follows_from_the_options(tmp_path, monkeypatch):
    monkeypatch.setattr(ensemble, "simulate_missing", None)
    monkeypatch.setattr(cache.Part, "open", None)
    fields = ("horizontal velocity", "vertical velocity")
    flows = dict(cache_dir=str(tmp_path / "none"))
    found = SOURCES["kolmogorov"](**flows, interval=0.5).spec()
    assert found == DataSpec((64, 64, 2), fields, "model velocity", 0.5, "model time")
    found = SOURCES["rayleigh_benard"](**flows).spec()
    assert found == DataSpec((64, 448, 2), fields, "free-fall velocity", 0.25, "free-fall time")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".zarr"])
def test_the_spec_of_a_folder_is_that_of_a_header(tmp_path, monkeypatch, suffix):
    array = np.zeros((5, 2, 4, 6), np.float16)
    path = tmp_path / f"a{suffix}"
    if suffix == ".zarr":
        zarr = pytest.importorskip("zarr")
        zarr.open_group(path, mode="w").create_array("velocity", data=array)
        monkeypatch.setattr(zarr.Array, "__getitem__", None)
    elif suffix == ".npz":
        np.savez(path, velocity=array)
    else:
        np.save(path, array)
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", None)
    monkeypatch.setattr(np.memmap, "__getitem__", None)
    source = SOURCES["folder"](path=str(tmp_path), layout="tchw", unit="m/s", interval=2.0, time_unit="h")
    assert source.spec() == DataSpec((4, 6, 2), ("channel 0", "channel 1"), "m/s", 2.0, "h")


def test_the_specs_of_the_other_files_are_those_of_what_they_load(tmp_path, monkeypatch):
    files = pathlib.Path(__file__).parent / "files"
    for split, count in (("train", 3), ("test", 2)):
        with open(tmp_path / f"{split}.npz.npy", "wb") as file:
            np.save(file, np.zeros((count, 15, 2, 8, 6), np.float32))
    shard_writer.write(rich(), str(tmp_path / "shards"), "zarr", lambda frames: None)
    sources = [
        SOURCES["dydiff_release"](path=str(tmp_path)),
        SOURCES["rbc_file"](path=str(files / "rbc_zip.pt"), stride=3),
        Shards(str(tmp_path / "shards")),
    ]
    loaded = [source.load() for source in sources]
    monkeypatch.setattr(np.memmap, "__getitem__", None)
    monkeypatch.setattr(trajectories.Trajectories, "__post_init__", None)
    for source, data in zip(sources[::2], loaded[::2], strict=True):
        assert source.spec() == spec_of(data)
    monkeypatch.undo()
    assert sources[1].spec() == spec_of(loaded[1]) and sources[1].spec().frame_shape == (3, 6, 2)
    assert sources[2].spec().forcings == ("frame", "action")
    assert sources[2].spec().static == ("height", "coast", "soil")


def spec_of(data):
    shape, names = (*data.grid, len(data.fields)), (data.forcing_names, data.static_names)
    return DataSpec(shape, data.fields, data.unit, data.interval, data.time_unit, "field", *names)


def test_selected_windows_keep_what_belongs_to_them():
    data = rich()
    chosen = select(make_splits(data, DatasetOptions(**OPTIONS), horizon=6, beyond=2).test, 7)
    expected = [cut_by_hand(data, chosen.place(i), 8, beyond=2) for i in range(7)]
    assert_same_bits(chosen.batch(), [np.stack(parts) for parts in zip(*expected, strict=True)])
