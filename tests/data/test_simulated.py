"""Simulated data sets: whole parts or none, resumed after a kill, the same on any number of workers."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dydiff_jax.data import cache
from dydiff_jax.data.simulators import ensemble
from dydiff_jax.data.sources import SOURCES
from dydiff_jax.data.sources.simulated import Simulated
from dydiff_jax.data.splits import DatasetOptions, make_splits
from dydiff_jax.runs import files

#: A small flow of each data set, 8 frames of 4 rows.
FLOWS = {
    "rayleigh_benard": dict(
        rows=8, columns=16, out_rows=4, downsample="mean", rayleigh=1e5, spin_up=1.0, duration=2.0
    ),
    "kolmogorov": dict(cells=16, out_cells=4, interval=0.25, spin_up=1.0, duration=2.0),
}
ADVICE = {"rayleigh_benard": "use more rows", "kolmogorov": "use a smaller courant"}


@pytest.fixture(scope="module", params=FLOWS)
def flow(request):
    return request.param


def options(flow, folder, **changes):
    return SOURCES[flow](**FLOWS[flow] | dict(cache_dir=str(folder), trajectories=3) | changes)


def simulate(source, indices):
    """In this process, for speed."""
    source.folder.mkdir(parents=True, exist_ok=True)
    ensemble.simulate(source, indices, lambda frames: None)


def films(source):
    return [part.open() for part in source.parts()]


def assert_same_film(found, expected):
    """Threads may change the order of sums: equal to rounding, after a short time of flow."""
    np.testing.assert_allclose(found, expected, rtol=np.finfo(expected.dtype).eps, atol=1e-5)


@pytest.fixture(scope="module")
def simulated(flow, tmp_path_factory):
    """Three trajectories, made by two worker processes."""
    source = options(flow, tmp_path_factory.mktemp(flow), workers=2)
    source.load()
    return source


@pytest.fixture
def copied(flow, simulated, tmp_path):
    """The same in a cache of its own, to be broken."""
    source = options(flow, tmp_path)
    shutil.copytree(simulated.folder, source.folder)
    return source


@pytest.mark.slow
def test_workers_make_what_this_process_makes(flow, simulated, tmp_path):
    alone = options(flow, tmp_path)
    simulate(alone, [2])
    assert_same_film(alone.parts()[2].open(), films(simulated)[2])
    assert np.abs(films(simulated)[2]).max() > 0.01


@pytest.mark.slow
def test_neither_workers_nor_company_change_a_trajectory(flow, simulated, tmp_path):
    fewer = options(flow, tmp_path, workers=1, trajectories=2)
    fewer.load()
    for found, expected in zip(films(fewer), films(simulated), strict=False):
        np.testing.assert_array_equal(found, expected)


def test_trajectories_differ_by_seed_and_number(flow, simulated, tmp_path):
    other = options(flow, tmp_path, seed=1)
    simulate(other, [0])
    made = [*films(simulated), other.parts()[0].open()]
    for i in range(4):
        for j in range(i):
            assert np.abs(made[i] - made[j]).max() > 0.01


def test_one_program_serves_all_trajectories(flow, tmp_path):
    source = options(flow, tmp_path, seed=7)
    before = ensemble.next_frames._cache_size()
    for index in (0, 1):
        simulate(source, [index])
    assert ensemble.next_frames._cache_size() == before + 1


def test_side_by_side_is_one_by_one(flow, simulated, tmp_path, monkeypatch):
    """As on an accelerator, in several groups."""
    source = options(flow, tmp_path)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(ensemble, "SIDE_BY_SIDE", 2)
    source.load()
    for found, expected in zip(films(source), films(simulated), strict=True):
        assert_same_film(found, expected)


def test_spin_up_is_simulated_and_not_kept(flow, simulated, tmp_path):
    whole = options(flow, tmp_path, trajectories=1, spin_up=0.0, duration=3.0)
    simulate(whole, [0])
    kept = films(simulated)[0]
    assert_same_film(films(whole)[0][-len(kept) :], kept)


def test_loading_again_simulates_nothing(simulated, monkeypatch):
    monkeypatch.setattr(ensemble, "simulate_missing", None)  # a call would raise TypeError
    trajectories = simulated.load()
    assert {film.shape for film in trajectories.arrays} == {(8, *simulated.frame_shape)}
    parts = make_splits(trajectories, DatasetOptions(2, 2, crop=4, split="trajectory"))
    crops = simulated.frame_shape[1] // 4
    assert {len(part) for part in (parts.train, parts.valid, parts.test)} == {5 * crops}


def test_more_trajectories_of_the_same_flow_keep_those_that_are_there(flow, simulated):
    more = options(flow, simulated.cache_dir, trajectories=5)
    assert more.folder == simulated.folder
    assert [part.path for part in more.parts()[:3]] == [part.path for part in simulated.parts()]
    assert options(flow, simulated.cache_dir, interval=0.5).folder != simulated.folder


def test_only_missing_trajectories_are_made_again(copied, monkeypatch):
    before = copied.parts()[1].open().copy()
    copied.parts()[1].path.unlink()
    made = []

    def here(options, indices, workers, report):
        made.extend(indices)
        ensemble.simulate(options, indices, report)

    monkeypatch.setattr(ensemble, "run_workers", here)
    copied.load()
    assert made == [1]
    assert_same_film(copied.parts()[1].open(), before)


def test_the_user_is_told_what_is_simulated_where(copied, monkeypatch, capfd):
    for part in copied.parts()[1:]:
        part.path.unlink()
    monkeypatch.setattr(ensemble, "run_workers", lambda *arguments: [simulate(copied, [1, 2])])
    copied.load()
    assert f"Simulating 2 x {8 + copied.spin_up_frames} frames of {copied.title} into {copied.folder}\n" in (
        capfd.readouterr().err
    )


LOAD = """
import json, sys
from dydiff_jax.data.sources import SOURCES
SOURCES[sys.argv[1]](**json.loads(sys.argv[2])).load()
"""


@pytest.mark.slow
def test_a_killed_simulation_leaves_whole_parts_and_goes_on(tmp_path):
    changes = dict(trajectories=40, workers=1, duration=20.0)
    source = options("kolmogorov", tmp_path, **changes)
    given = FLOWS["kolmogorov"] | dict(cache_dir=str(tmp_path)) | changes
    command = [sys.executable, "-c", LOAD, "kolmogorov", json.dumps(given)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while not source.parts()[0].path.exists():
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    made = [part for part in source.parts() if part.path.exists()]
    assert 1 <= len(made) < 40
    before = [part.path.stat().st_mtime_ns for part in made if part.open() is not None]
    dataclasses.replace(source, trajectories=len(made) + 1).load()
    assert [part.path.stat().st_mtime_ns for part in made] == before


def test_a_part_that_is_cut_short_is_named(copied):
    path = copied.parts()[1].path
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"trajectory_001.npy: not a whole .*; delete or replace"):
        copied.load()


def test_a_part_of_another_shape_is_named(copied):
    h, w, c = copied.frame_shape
    np.save(copied.parts()[2].path, np.zeros((2, h, w, c), np.float32))
    with pytest.raises(
        ValueError, match=rf"trajectory_002.npy: expected an array of shape \(8, {h}, {w}, 2\)"
    ):
        copied.load()


def test_a_part_with_nan_is_named_with_its_frame(copied):
    film = films(copied)[0].copy()
    film[5, 0, 0, 0] = np.nan
    np.save(copied.parts()[0].path, film)
    with pytest.raises(ValueError, match=r"trajectory_000.npy: frame 5 holds NaN"):
        make_splits(copied.load(), DatasetOptions(1, 1, crop=4, split="trajectory"))


def test_a_flow_that_becomes_non_finite_stops_with_what_to_do(flow, tmp_path, monkeypatch):
    initial = SOURCES[flow].initial
    broken = lambda *args: jax.tree.map(lambda a: a * np.nan, initial(*args))  # noqa: E731
    monkeypatch.setattr(SOURCES[flow], "initial", broken)
    source = options(flow, tmp_path)
    with pytest.raises(FloatingPointError, match=rf"\[0\] became non-finite within 1 frames.*{ADVICE[flow]}"):
        simulate(source, [0])
    assert not source.parts()[0].path.exists()


def test_a_worker_that_fails_is_reported_with_its_last_words(flow, tmp_path, monkeypatch):
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho out of luck\nexit 3\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    with pytest.raises(RuntimeError, match="a simulation worker failed:\nout of luck"):
        options(flow, tmp_path).load()


@pytest.mark.parametrize(
    "changes",
    [
        dict(interval=0.0),
        dict(duration=0.0),
        dict(duration=0.1),
        dict(spin_up=-1.0),
        dict(workers=-1),
        dict(trajectories=0),
    ],
)
def test_options_are_checked_and_named(flow, changes):
    with pytest.raises(ValueError, match=f"^{next(iter(changes))}: "):
        SOURCES[flow](**FLOWS[flow] | changes)


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "x.npy"
    files.write_text(path, "old")

    with pytest.raises(OSError, match="disk full"), files.atomic(path) as temporary:
        temporary.write_bytes(b"half of the new")
        raise OSError("disk full")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_cache_is_where_the_user_says(monkeypatch):
    monkeypatch.setenv("DYDIFF_JAX_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache.cache_root("/c") == pathlib.Path("/c")
    assert cache.cache_root(None) == pathlib.Path("/a")
    monkeypatch.delenv("DYDIFF_JAX_CACHE")
    assert cache.cache_root(None) == pathlib.Path("/b/dydiff_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_root(None) == pathlib.Path("~/.cache/dydiff_jax").expanduser()


def test_every_simulated_source_is_tested_here_or_in_its_own_file():
    simulated = {name for name, source in SOURCES.items() if issubclass(source, Simulated)}
    assert simulated == {*FLOWS, "hasselmann", "lorenz96", "spring_mesh"}
