"""What is read ahead is what would be read on the spot, by any threads, processes and hosts, and ends cleanly."""

import collections
import gc
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from trajectories import counting

from dydiff_jax.data.batches import LoaderOptions, TrainBatches, read_ahead
from dydiff_jax.data.formats import memmap
from dydiff_jax.data.sources.source import SOURCES
from dydiff_jax.data.splits import DatasetOptions, make_splits

WINDOWS = dict(num_context=2, num_forecast=1, crop=4, split="trajectory", fractions=(0.4, 0.3, 0.3))
BATCH = 8


def windows(**options):
    return make_splits(
        counting(mirror=(-1.0, 1.0)), DatasetOptions(**WINDOWS | dict(flip=True) | options)
    ).train


def batches(*how, of=None):
    return TrainBatches(windows() if of is None else of, BATCH, 3, LoaderOptions(*how) if how else None)


def assert_streams_what_rows_reads(options, step, rows, count=12):
    plain, read = batches(), batches(*options).stream(step, rows)
    for number in range(step, step + count):
        np.testing.assert_array_equal(next(read).frames, plain.rows(number, rows).frames)


@pytest.mark.parametrize("options", [(1, 0, 0), (1, 0, 1), (4, 0, 4), (16, 0, 40)])
@pytest.mark.parametrize("step", [0, 5, 10**9])
def test_threads_change_nothing(options, step):
    assert_streams_what_rows_reads(options, step, range(BATCH))
    assert_streams_what_rows_reads(options, step, [1, 2, 6])


@pytest.mark.slow
@pytest.mark.parametrize("options", [(2, 2, 3)])
def test_worker_processes_change_nothing(options):
    assert_streams_what_rows_reads(options, 7, range(2, BATCH))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_every_epoch_is_each_example_once_over_all_hosts(hosts):
    assert epochs(lambda step: hosts) == [1, 1, 1]


def test_every_epoch_is_each_example_once_when_hosts_come_and_go():
    assert epochs(lambda step: {0: 2, 1: 1, 2: 4}[min(step // 3, 2)]) == [1, 1, 1]


def epochs(hosts_at):
    """How often each example came in each of three epochs, if equally often; hosts change where `hosts_at` says."""
    chosen = windows(random_crop=False, flip=False)
    every = {chosen[index].frames.tobytes() for index in range(len(chosen))}
    steps = -(-3 * len(chosen) // BATCH)
    seen, streams, hosts = [], [], 0
    for step in range(steps):
        if hosts_at(step) != hosts:
            hosts = hosts_at(step)
            shares = np.split(np.arange(BATCH), hosts)
            streams = [batches(2, 0, 3, of=chosen).stream(step, share) for share in shares]
        seen += [window.tobytes() for share in streams for window in next(share).frames]
    counts = []
    for epoch in range(3):
        found = collections.Counter(seen[epoch * len(chosen) : (epoch + 1) * len(chosen)])
        assert set(found) == every
        counts += set(found.values())
    return counts


def test_what_is_read_next_does_not_wait_for_what_was_asked():
    asked, calls = [], threading.Event()

    def read(step):
        asked.append(step)
        if len(asked) == 4:
            calls.set()
        return step

    ahead = read_ahead(read, 10, LoaderOptions(2, 0, 4))
    assert calls.wait(10), "four batches are read before the first is asked for"
    time.sleep(0.1)
    assert sorted(asked) == [10, 11, 12, 13], "and no more than that"
    assert next(ahead) == 10


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]


@pytest.mark.parametrize("taken", [0, 2])
def test_threads_end_when_the_stream_is_dropped(taken):
    gc.collect()
    before = set(readers())
    read = batches(3, 0, 6).stream(0, range(BATCH))
    for _ in range(taken):
        next(read)
    assert set(readers()) - before
    del read
    gc.collect()
    deadline = time.monotonic() + 10
    while set(readers()) - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not set(readers()) - before


def fail_at_13(step):
    if step == 13:
        raise FileNotFoundError("some/shard: no such file")
    return np.full((2,), step)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(1, 0, 0), (4, 0, 8), (1, 1, 1)])
def test_an_error_comes_in_place_of_its_batch_with_the_name_of_the_file(options):
    read = read_ahead(fail_at_13, 10, LoaderOptions(*options))
    assert [int(next(read)[0]) for _ in range(3)] == [10, 11, 12]
    with pytest.raises(FileNotFoundError, match="some/shard: no such file"):
        next(read)


def about_the_worker(step):
    return np.array([os.getpid(), signal.getsignal(signal.SIGTERM) == signal.SIG_IGN, on_cpu(), step])


def on_cpu():
    return jax.config.jax_platforms == "cpu"


@pytest.mark.slow
def test_workers_keep_off_accelerators_and_survive_the_signal_that_stops_a_job(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    read = read_ahead(about_the_worker, 0, LoaderOptions(1, 1, 1))
    worker, ignores, cpu, step = next(read).tolist()
    assert worker != os.getpid() and ignores and cpu and step == 0
    os.kill(worker, signal.SIGTERM)
    assert [int(next(read)[3]) for _ in range(5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0, 0, 0), "threads: expected at least 1, found 0"),
        ((1, -1, 1), "workers: expected at least 0, found -1"),
        ((4, 0, 3), "prefetch: expected at least the 4 batches .*, or 0, found 3"),
        ((2, 1, 0), "prefetch: expected at least the 2 batches .* at once, found 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LoaderOptions(*options)


def test_arrays_on_disk_go_to_other_processes_by_name(tmp_path):
    film = np.random.default_rng(0).standard_normal((50, 2, 6, 8)).astype(np.float32)
    np.save(tmp_path / "a.npy", film)
    whole = np.load(tmp_path / "a.npy", mmap_mode="r")
    views = [whole, whole[3:40, :, ::2, ::-1].transpose(0, 2, 3, 1), whole[7:9]]
    for view in views:
        text = pickle.dumps(view)
        assert len(text) < 700 < view.nbytes
        np.testing.assert_array_equal(pickle.loads(text), view)
        assert not pickle.loads(text).flags.writeable
    copy = np.load(tmp_path / "a.npy", mmap_mode="c")
    copy[0] = 7
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(copy)), copy)
    memmap._bytes.cache_clear()


def test_data_sets_of_files_are_small_on_their_way_to_a_worker(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((400, 8, 8, 2), np.float32))
    assert len(pickle.dumps(SOURCES["folder"](path=str(tmp_path)).load())) < 3000
    for name in ("rbc_zip.pt", "rbc_legacy.pt"):
        path = pathlib.Path(__file__).parent / "files" / name
        (film,) = SOURCES["rbc_file"](path=str(path), stride=1).load().arrays
        text = pickle.dumps(film)
        assert len(text) < 700 < film.nbytes
        np.testing.assert_array_equal(pickle.loads(text), film)
    memmap._bytes.cache_clear()


ORPHAN = """
import os, sys, time
sys.path[:0] = {paths}
from test_batches import about_the_worker
from dydiff_jax.data import batches
if __name__ == "__main__":
    read = batches.read_ahead(about_the_worker, 0, batches.LoaderOptions(1, 1, 1))
    print(next(read)[0], flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_workers_end_with_a_process_that_is_killed(tmp_path):
    (tmp_path / "script.py").write_text(
        ORPHAN.format(paths=[str(pathlib.Path(__file__).parent), os.getcwd()])
    )
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")], stdout=subprocess.PIPE, text=True
    )
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(worker)


def running(process):
    """Whether there is such a process, and it has not ended unnoticed."""
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
