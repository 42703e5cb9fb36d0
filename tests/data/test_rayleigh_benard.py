"""The simulated data set: whole parts or none, resumed after a kill, the same on any number of workers."""

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
from dydiff_jax.data.pipeline import WindowOptions, make_splits
from dydiff_jax.data.rayleigh_benard import RayleighBenard
from dydiff_jax.data.simulators import ensemble
from dydiff_jax.data.simulators import rayleigh_benard as solver

SMALL = dict(rows=8, columns=16, out_rows=4, downsample="mean", rayleigh=1e5, spin_up=1.0, duration=2.0)


def options(folder, **changes):
    return RayleighBenard(**SMALL | dict(cache_dir=str(folder), trajectories=3) | changes)


def simulate(source, indices):
    """In this process, for speed."""
    source.folder.mkdir(parents=True, exist_ok=True)
    ensemble.simulate(source, indices, lambda frames: None)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Three trajectories, made by two worker processes."""
    source = options(tmp_path_factory.mktemp("cache"), workers=2)
    source.load()
    return source


def test_workers_make_what_this_process_makes(simulated, tmp_path):
    """Threads may change the order of sums: equal to float32, after 3 free-fall times of stable flow."""
    alone = options(tmp_path)
    simulate(alone, [2])
    expected, found = simulated.parts()[2].open(), alone.parts()[2].open()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.01


def test_trajectories_differ_by_seed_and_number(simulated, tmp_path):
    films = [part.open() for part in simulated.parts()]
    other = options(tmp_path, seed=1)
    simulate(other, [0])
    films.append(other.parts()[0].open())
    for i in range(4):
        for j in range(i):
            assert np.abs(films[i] - films[j]).max() > 0.01


def test_frames_are_block_means_of_the_velocity_at_the_cell_centres(tmp_path):
    source = options(tmp_path, trajectories=1, downsample="mean")
    simulate(source, [0])
    flow = solver.physics(source.rayleigh, source.prandtl)
    fluid = solver.initial(jax.random.fold_in(jax.random.key(0), 0), 8, 16)
    fluid = jax.jit(solver.advance)(fluid, flow, source.spin_up + source.interval)
    cells = np.asarray(solver.velocity(fluid))
    expected = (cells[::2, ::2] + cells[1::2, ::2] + cells[::2, 1::2] + cells[1::2, 1::2]) / 4
    film = source.parts()[0].open()
    assert film.shape == (8, 4, 8, 2) and film.dtype == np.float32
    np.testing.assert_allclose(film[0], expected, atol=1e-6)


def test_a_stride_keeps_one_cell_of_each_block():
    frame = np.arange(8 * 16 * 2).reshape(8, 16, 2)
    source = RayleighBenard(**SMALL | dict(downsample="stride"))
    np.testing.assert_array_equal(ensemble.downsample(frame, source), frame[::2, ::2])


def test_the_published_preset_is_the_layout_of_tf_net():
    source = RayleighBenard(trajectories=1)
    (part,) = source.parts()
    assert part.shape == (1500, 64, 448, 2)
    assert (source.rayleigh, source.prandtl, source.rows, source.columns) == (2.5e8, 0.71, 256, 1792)


def test_loading_again_simulates_nothing(simulated, monkeypatch):
    monkeypatch.setattr(ensemble, "simulate_missing", None)  # a call would raise TypeError
    trajectories = simulated.load()
    assert [film.shape for film in trajectories.arrays] == [(8, 4, 8, 2)] * 3
    parts = make_splits(trajectories, WindowOptions(2, 2, crop=4, flip=True, split="trajectory"))
    assert [len(part) for part in parts] == [10, 10, 10]


def test_more_trajectories_of_the_same_flow_keep_those_that_are_there(simulated):
    more = options(simulated.cache_dir, trajectories=5)
    assert more.folder == simulated.folder
    assert [part.path for part in more.parts()[:3]] == [part.path for part in simulated.parts()]
    assert options(simulated.cache_dir, interval=0.5).folder != simulated.folder


def test_only_missing_trajectories_are_made_again(simulated, tmp_path, monkeypatch):
    source = options(tmp_path)
    shutil.copytree(simulated.folder, source.folder)
    before = source.parts()[1].open().copy()
    source.parts()[1].path.unlink()
    made = []

    def here(options, indices, workers, report):
        made.extend(indices)
        ensemble.simulate(options, indices, report)

    monkeypatch.setattr(ensemble, "run_workers", here)
    source.load()
    assert made == [1]
    np.testing.assert_allclose(source.parts()[1].open(), before, atol=1e-5)


LOAD = """
import json, sys
from dydiff_jax.data.rayleigh_benard import RayleighBenard
RayleighBenard(**json.loads(sys.argv[1])).load()
"""


def test_a_killed_simulation_leaves_whole_parts_and_goes_on(tmp_path):
    source = options(tmp_path, trajectories=40, workers=1, duration=20.0)
    command = [sys.executable, "-c", LOAD, json.dumps(dataclasses.asdict(source))]
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


def test_a_part_that_is_cut_short_is_named(simulated, tmp_path):
    source = options(tmp_path)
    shutil.copytree(simulated.folder, source.folder)
    path = source.parts()[1].path
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"trajectory_001.npy: not a whole .*; delete or replace"):
        source.load()


def test_a_part_of_another_shape_is_named(simulated, tmp_path):
    source = options(tmp_path)
    shutil.copytree(simulated.folder, source.folder)
    np.save(source.parts()[2].path, np.zeros((2, 4, 8, 2), np.float32))
    with pytest.raises(ValueError, match=r"trajectory_002.npy: expected an array of shape \(8, 4, 8, 2\)"):
        source.load()


def test_a_part_with_nan_is_named_with_its_frame(simulated, tmp_path):
    source = options(tmp_path)
    shutil.copytree(simulated.folder, source.folder)
    film = source.parts()[0].open().copy()
    film[5, 0, 0, 0] = np.nan
    np.save(source.parts()[0].path, film)
    with pytest.raises(ValueError, match=r"trajectory_000.npy: frame 5 holds NaN"):
        make_splits(source.load(), WindowOptions(1, 1, split="trajectory"))


def test_a_flow_that_becomes_non_finite_stops_with_what_to_do(tmp_path, monkeypatch):
    initial = solver.initial
    monkeypatch.setattr(solver, "initial", lambda *args: solver.Fluid(*(a * np.nan for a in initial(*args))))
    with pytest.raises(FloatingPointError, match=r"\[0\] became non-finite within 1 frames.*more rows"):
        simulate(options(tmp_path), [0])
    assert not options(tmp_path).parts()[0].path.exists()


def test_a_worker_that_fails_is_reported_with_its_last_words(tmp_path, monkeypatch):
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho out of luck\nexit 3\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    with pytest.raises(RuntimeError, match="a simulation worker failed:\nout of luck"):
        options(tmp_path).load()


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "x.npy"
    cache.write_whole(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.write_whole(path, fail)
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


@pytest.mark.parametrize(
    "changes",
    [
        dict(rayleigh=0.0),
        dict(prandtl=-1.0),
        dict(interval=0.0),
        dict(duration=0.0),
        dict(duration=0.1),
        dict(spin_up=-1.0),
        dict(workers=-1),
        dict(trajectories=0),
        dict(rows=4),
        dict(columns=4),
        dict(out_rows=3),
        dict(columns=17),
    ],
)
def test_options_are_checked_and_named(changes):
    name = "out_rows" if changes == dict(columns=17) else next(iter(changes))
    with pytest.raises(ValueError, match=f"^{name}: "):
        RayleighBenard(**SMALL | changes)
