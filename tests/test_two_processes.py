"""Two real processes with four devices each do what one with eight does, through the real command line."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest

from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.training import state
from dydiff_jax.training.checkpoints import loading
from tests import cli, small
from tests.training import toy

TOY = "tests.training.toy"
#: Seconds that a test may take; then what still runs is killed, and it fails.
LIMIT = 600
ARGUMENT = "configs/turbulence.py:dynamical,size=tiny"
FLAGS = small.flags(
    train__steps=4, train__checkpoint_every=2, train__batch_size=8, optimizer__warmup_steps=1,
    mesh__fsdp=2, mesh__tensor=2, evaluation__members=4, evaluation__windows=4, evaluation__chunk=16,
    system__sampler__nfe=6, evaluation__figures="()", **small.NETWORK,
)  # fmt: skip


def start(line, count):
    """``count`` processes on this machine, of eight devices together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    where = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
    several = [where | {"JAX_PROCESS_ID": str(index)} for index in range(count)] if count > 1 else [{}]
    devices = {"JAX_NUM_CPU_DEVICES": str(8 // count)}
    return [cli.Command(line, {**os.environ, **environ, **devices}) for environ in several]


def finish(processes, end):
    """Exit statuses and outputs; processes that are not done by ``end`` are killed, and the test fails."""
    try:
        outputs = [process.communicate(timeout=max(1.0, end - time.monotonic())) for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        pytest.fail("\n".join(process.communicate()[1][-2000:] for process in processes))
    return [process.returncode for process in processes], outputs


def run(workdir, count, end, *more, late=0):
    """The command line on ``count`` processes; standard output of the first.

    The last stands still for ``late`` seconds once they have found each other, or until the first has made its files.
    """
    line = ["dydiff_jax.main", f"--config={ARGUMENT}", f"--workdir={workdir}", *FLAGS, *more]
    processes = start(line, count)
    if late:
        while f"{count} processes" not in processes[0].printed and processes[0].poll() is None:
            time.sleep(0.01)
        processes[-1].send_signal(signal.SIGSTOP)
        until = time.monotonic() + late
        while not (workdir / "config.json").exists() and time.monotonic() < until:
            time.sleep(0.05)
        processes[-1].send_signal(signal.SIGCONT)
    statuses, outputs = finish(processes, end)
    assert statuses == [0] * count, outputs[0][1][-3000:]
    for _, (out, _) in zip(statuses[1:], outputs[1:], strict=True):
        assert "persistence" not in out  # one process speaks
    return outputs[0][0]


def lines_of(workdir):
    timed = ("steps_per_second", "goodput", "seconds", "starts")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def assert_close(found, expected, rtol):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if isinstance(b, str):  # the stage of a line
            assert a == b
            continue
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=rtol)


@pytest.mark.slow
def test_two_processes_train_evaluate_sample_save_and_resume_as_one(tmp_path):
    """Losses, weights and forecasts of 2 x 4 devices equal those of 1 x 8, also after one takes over from two.

    One of the two comes late, and must not take what the other has made since for what was there before.
    """
    end = time.monotonic() + LIMIT
    one, two = tmp_path / "one", tmp_path / "two"
    run(one, 1, end)
    printed = run(two, 2, end, late=10)
    assert printed.startswith("2 processes, 8 devices (cpu") and "| dynamical |" in printed
    assert_close(lines_of(two), lines_of(one), 1e-6)
    assert names(two / "eval/step_4") == names(one / "eval/step_4")
    expected, found = (np.load(workdir / "eval/step_4/forecasts.npz") for workdir in (one, two))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5)

    np.save(tmp_path / "context.npy", found["context"])
    run(two, 2, end, "--mode=forecast", f"--input={tmp_path / 'context.npy'}", "--members=4")
    drawn = np.load(two / "forecast/context/forecast.npz")["ensemble"]
    np.testing.assert_array_equal(drawn, found["ensemble"])

    shutil.rmtree(two / "checkpoints/denoiser/4")
    shutil.rmtree(two / "eval")
    run(two, 1, end)
    assert_close(lines_of(two), lines_of(one), 1e-6)
    resumed = np.load(two / "eval/step_4/forecasts.npz")["ensemble"]
    np.testing.assert_allclose(resumed, expected["ensemble"], atol=2e-5)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_what_two_processes_saved_one_restores_bit_for_bit(tmp_path):
    """SIGTERM to one of two: both save the same step and leave with 75, and go on from there as if never stopped."""
    end = time.monotonic() + LIMIT
    settings = ["steps=60", "checkpoint_every=1000", "log_every=1", "fsdp=2"]
    processes = start([TOY, str(tmp_path / "two"), "pause=0.1", *settings], 2)
    with contextlib.suppress(FileNotFoundError):
        while True:
            assert time.monotonic() < end and processes[0].poll() is None, processes[0].communicate()[1][
                -2000:
            ]
            if (tmp_path / "two/metrics.jsonl").exists() and lines_of(tmp_path / "two"):
                break
            time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    statuses, outputs = finish(processes, end)
    assert statuses == [75, 75], outputs
    (saved,) = (
        int(path.name) for path in (tmp_path / "two/checkpoints" / toy.NAME).iterdir() if path.name.isdigit()
    )
    assert saved == len(lines_of(tmp_path / "two")) < 60
    statuses, outputs = finish(start([TOY, str(tmp_path / "two"), *settings], 2), end)
    assert statuses == [0, 0], outputs
    digests = {out.splitlines()[-1] for out, _ in outputs}
    for options in (meshes.MeshOptions(data=1), meshes.MeshOptions(data=2, fsdp=2, tensor=2)):
        assert {toy.digest(toy.restore(tmp_path / "two", meshes.make_mesh(options), steps=60))} == digests
    undisturbed = toy.train(
        tmp_path / "one", meshes.make_mesh(meshes.MeshOptions(fsdp=2)), steps=60, log_every=1
    )
    assert_close(lines_of(tmp_path / "two"), lines_of(tmp_path / "one"), 1e-5)
    found = toy.restore(tmp_path / "two", meshes.make_mesh(meshes.MeshOptions(data=1)), steps=60)
    assert_close(found.params, undisturbed.params, 1e-5)


@pytest.mark.slow
def test_gradients_of_a_second_stage_with_sharded_frozen_weights_are_those_of_one_device(tmp_path):
    """The first stage, frozen in the second, lies on the devices of both processes."""
    end, settings = time.monotonic() + LIMIT, dict(steps=4, checkpoint_every=1, keep_last=4, log_every=1)
    arguments = [
        TOY,
        str(tmp_path / "two"),
        "two=1",
        "fsdp=8",
        *map("{0[0]}={0[1]}".format, settings.items()),
    ]
    statuses, outputs = finish(start(arguments, 2), end)
    assert statuses == [0, 0], outputs
    toy.train_two(tmp_path / "one", **settings)
    assert_close(lines_of(tmp_path / "two"), lines_of(tmp_path / "one"), 1e-5)
    for step, rtol in ((1, 1e-4), (4, 1e-3)):  # after one step the first moment is 1 - b1 of the gradient
        found, expected = (moments(tmp_path / name, step) for name in ("two", "one"))
        for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(leaf, other, atol=rtol * np.abs(other).max(), rtol=0)


def moments(workdir, step):
    """The first moments of the second stage after some steps, on one device."""
    stage, mesh = toy.two_stages(steps=4)[1], meshes.make_mesh(meshes.MeshOptions(data=1))
    with jax.set_mesh(mesh):
        abstract = state.abstract_state(stage.objective, stage.recipe, mesh)
    parts = loading.load_parts(workdir / "checkpoints/second" / str(step), {"opt_state": abstract.opt_state})
    return parts["opt_state"][1][0].mu
