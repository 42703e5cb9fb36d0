"""A run moves between numbers of devices: the state keeps its bits, the loss its course, the data their order."""

import ast
import collections
import itertools
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import toy
from running import ENVIRONMENT, assert_same_bits

from dydiff_jax.data.batches import TrainBatches
from dydiff_jax.data.splits import DatasetOptions, make_splits
from dydiff_jax.distributed import global_batch
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.training import loop
from dydiff_jax.training.checkpoints import manager as checkpoints
from dydiff_jax.training.state import abstract_state, make_train_step

sys.path.append(str(pathlib.Path(__file__).parents[1] / "data"))
from trajectories import counting

#: (data, fsdp, tensor): 8, 4, 1 and again 8 devices.
MOVES = [(2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 4, 2)]
LEG = 10
STAGE = toy.make_stage(steps=LEG * len(MOVES))


def make_mesh(sizes):
    return meshes.make_mesh(meshes.MeshOptions(*sizes))


def leg(directory, mesh, steps, after=lambda state: None):
    """Trains some steps from the newest checkpoint or from the start, and saves; the losses."""
    examples, losses = toy.make_examples(), []
    with jax.set_mesh(mesh), checkpoints.Checkpoints(directory, 1, None, "abc") as opened:
        abstract = abstract_state(STAGE.objective, STAGE.recipe, mesh)
        current, _ = loop.start(STAGE, abstract, opened)
        after(current)
        step = make_train_step(STAGE.objective, STAGE.recipe, abstract, {})
        for n in range(int(current.step), int(current.step) + steps):
            rows = global_batch.local_rows(toy.BATCH_SIZE, mesh)
            batch = global_batch.assemble(examples.rows(n, rows), rows, toy.BATCH_SIZE, mesh)
            current, metrics = step(current, {}, batch)
            losses.append(float(metrics["loss"]))
        opened.save(n + 1, current, {})
        saved = jax.device_get(current)
    return losses, saved


@pytest.mark.slow
def test_from_8_devices_to_4_to_1_and_back(tmp_path):
    """Restored bits are those saved, on the new mesh's shardings; losses are those of a run on one device."""
    saved, losses, split = None, [], set()

    def restored(current):
        if saved is not None:
            assert_same_bits(current, saved)
        kernel = current.ema["up"]["kernel"].sharding
        assert kernel.mesh.devices.size == np.prod(sizes)
        split.update(axis for axis in kernel.spec if axis is not None)

    for sizes in MOVES:
        more, saved = leg(tmp_path / "moved", make_mesh(sizes), LEG, after=restored)
        losses += more
    undisturbed, expected = leg(tmp_path / "still", make_mesh((1, 1, 1)), LEG * len(MOVES))
    np.testing.assert_allclose(losses, undisturbed, rtol=1e-5)
    assert losses[-1] < losses[0] / 2
    assert {"fsdp", "tensor"} <= split
    for found, wanted in zip(jax.tree.leaves(saved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [4, 8, 12])
def test_every_example_is_seen_once_an_epoch_on_whatever_meshes(size):
    """An epoch and its batches are cut at other places: the sequence of examples is one, for all meshes together."""
    options = DatasetOptions(num_context=2, num_forecast=1, split="trajectory", fractions=(0.4, 0.3, 0.3))
    windows = make_splits(counting(lengths=(13, 13, 13)), options).train
    epoch = len(windows)
    steps = -(-2 * epoch // size)
    meshes = [make_mesh(sizes) for sizes in MOVES if size % (sizes[0] * sizes[1]) == 0]
    seen = []
    for step, mesh in zip(range(steps), itertools.cycle(meshes), strict=False):
        source = TrainBatches(windows, size, seed=3)  # a process that was started again
        rows = global_batch.local_rows(size, mesh)
        batch = global_batch.assemble(source.rows(step, rows), rows, size, mesh)
        whole = np.asarray(batch.frames)
        for row, place in enumerate(source.ids(step)):
            np.testing.assert_array_equal(whole[row], windows.read(place).frames)
            seen.append((place.trajectory, place.frame))
    assert epoch == 11 and epoch % size
    for first in (0, epoch):
        counts = collections.Counter(seen[first : first + epoch])
        assert len(counts) == epoch and set(counts.values()) == {1}


PROCESSES = """
import pathlib, sys
sys.path.insert(0, {tests!r})
import jax
import test_checkpoints, toy
from jax.experimental import multihost_utils
from dydiff_jax.distributed import cluster
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.training.checkpoints import loading, manager as checkpoints, manifest

cluster.start()
directory = pathlib.Path({directory!r})
abstract = test_checkpoints.abstract_of(meshes.MeshOptions(fsdp=4, tensor=2))
current = test_checkpoints.random_state(abstract)

def spoil(step):
    if jax.process_index() == 0:
        path = directory / str(step) / "params/_METADATA"
        path.write_bytes(path.read_bytes()[:-1])
    multihost_utils.sync_global_devices(f"spoiled {{step}}")

def refused(act, kind):
    try:
        act()
    except kind as error:
        return str(error)

with checkpoints.Checkpoints(directory, 2, None) as opened:
    opened.save(4, current, {{"count": 4}})
    opened.save(8, current, {{"count": 8}})
    opened.wait()
    spoil(8)
    found, notes = opened.restore(abstract)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(current), strict=True):
        for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True):
            assert x.data.tobytes() == y.data.tobytes()
    write = manifest.write
    def fails(folder):
        raise OSError(28, "No space left on device")
    manifest.write = fails
    opened.save(8, current, {{}})
    full = refused(opened.wait, checkpoints.CheckpointError)
    manifest.write = write
    spoil(4)
    spoilt = refused(lambda: opened.restore(abstract), ValueError)
    ema = refused(lambda: loading.load_ema(directory, abstract.ema, 4), ValueError) or "read"
    print([notes["count"], full, spoilt, ema], flush=True)
"""


@pytest.mark.slow
def test_two_processes_agree_on_the_checkpoint_and_on_what_is_wrong(tmp_path):
    """Only process 0 looks at the files and only it can fail to write the manifest; both resume or stop alike."""
    script = PROCESSES.format(tests=str(pathlib.Path(__file__).parent), directory=str(tmp_path))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    settings = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "4"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**ENVIRONMENT, **settings, "JAX_PROCESS_ID": str(i)},
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=110) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    found = [ast.literal_eval(out.strip().splitlines()[-1]) for out, _ in outputs]
    assert found[0] == found[1]
    count, full, spoilt, ema = found[0]
    assert count == 4
    assert "8 could not be written: [Errno 28] No space left" in full and "from checkpoint 4" in full
    assert (
        "no checkpoint" in spoilt
        and "4/params/_METADATA: shorter" in spoilt
        and "8.damaged: quarantined" in spoilt
    )
    assert ema == "read"
    said = [f"checkpoint {tmp_path / '8'} is damaged" in error for _, error in outputs]
    assert said == [True, False]
