"""A run ends with the same bits however often it was stopped, and stops by itself when it must."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import toy
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from dydiff_jax.distributed import global_batch
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.runs import exit_codes
from dydiff_jax.training import loop, optim, state
from dydiff_jax.training.checkpoints import manager as checkpoints
from dydiff_jax.training.task import TrainOptions

RUN = {"steps": 40, "checkpoint_every": 4}


def metrics_of(workdir):
    """The lines of a run without what its speed decides."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("steps_per_second", "goodput", "seconds", "starts")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def assert_same_run(workdir, found, reference):
    expected_workdir, expected = reference
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert metrics_of(workdir) == metrics_of(expected_workdir)


def start(workdir, **settings):
    arguments = [f"{name}={value}" for name, value in ({"pause": 0.1} | RUN | settings).items()]
    script = pathlib.Path(toy.__file__)
    return subprocess.Popen(
        [sys.executable, str(script), str(workdir), *arguments], stderr=subprocess.PIPE, env=dict(os.environ)
    )


def wait_for(condition, process, seconds=120):
    """Waits until the condition holds; the process must still be running then."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.002)


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """Every run of this file compiles the same two functions: here and in the processes that are killed."""
    directory = str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", directory)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        before = jax.config.jax_persistent_cache_min_compile_time_secs
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        yield
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
        reset_cache()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The work directory and the last state of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("reference")
    return workdir, toy.train(workdir, **RUN)


@pytest.fixture(scope="module")
def server():
    """A process that has imported everything, whose forks are killed."""
    script = pathlib.Path(toy.__file__)
    with subprocess.Popen(
        [sys.executable, str(script), "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=dict(os.environ),
    ) as process:  # fmt: skip
        yield process
        process.stdin.close()


def steps_done(workdir):
    """The steps that a run with log_every=1 has written."""
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def started(workdir):
    """The number of the process that wrote the last whole line."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["starts"] if lines else 0


def half_written(workdir):
    """A checkpoint that has not yet its name."""
    return list((workdir / "checkpoints").glob("*.partial*"))


def test_killed_at_20_random_instants_a_run_ends_the_same(tmp_path, server):
    """SIGKILL a random time after the first new step, half of them while a checkpoint is being written.

    The run can always go on. Lost are the steps of one interval at most, or, where a save was under way, those
    since the save before it.
    """
    rng, workdir = random.Random(0), tmp_path / "killed"
    settings = {"steps": 600, "checkpoint_every": 10, "log_every": 1}
    in_saves = 0
    for kill in range(20):
        print(
            workdir, "pause=0.01", *(f"{k}={v}" for k, v in settings.items()), file=server.stdin, flush=True
        )
        child = int(server.stdout.readline())
        wait_until(lambda kill=kill: started(workdir) == kill + 1)
        time.sleep(rng.uniform(0, 0.4))
        if kill % 2:
            wait_until(lambda: half_written(workdir))
        os.kill(child, signal.SIGKILL)
        assert int(server.stdout.readline()) == -signal.SIGKILL
        half = half_written(workdir)
        in_saves += bool(half)
        whole = max(saved_steps(workdir), default=0)
        assert steps_done(workdir) - whole <= settings["checkpoint_every"] * (2 if half else 1)
    assert in_saves >= 5
    found = toy.train(workdir, **settings)
    assert_same_run(
        workdir, found, (tmp_path / "undisturbed", toy.train(tmp_path / "undisturbed", **settings))
    )
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["starts"] == 21 and last["seconds"]["lost"] > 0 and 0 < last["goodput"] < 1


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.001)


def test_sigterm_saves_and_exits_with_75(tmp_path, reference):
    process = start(tmp_path, checkpoint_every=1000)
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists() and metrics_of(tmp_path), process)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=60)
    assert process.returncode == exit_codes.STOPPED == 75
    (step,) = saved_steps(tmp_path)
    assert 3 <= step < RUN["steps"]
    assert f"step {step} is saved: run the same command again" in output.decode()
    assert_same_run(tmp_path, toy.train(tmp_path, **RUN), reference)


def test_the_step_is_compiled_once(tmp_path):
    """Also after a restore: its arrays have the shardings, dtypes and layouts of the fresh ones."""
    mesh = meshes.make_mesh(meshes.MeshOptions(data=2, fsdp=2, tensor=2))
    task = toy.make_task()
    optimizer = optim.make_optimizer(toy.OPTIMIZER, RUN["steps"])

    def init():
        return state.init_state(task.init, optimizer, seed=5)

    with jax.set_mesh(mesh), checkpoints.Checkpoints(tmp_path, 2, None) as opened:
        abstract = state.abstract_state(init, mesh)
        step = state.make_train_step(task.loss, optimizer, toy.EMA, 5, abstract)
        for _ in range(2):
            current, _ = loop.start(init, abstract, opened)
            for _ in range(3):
                n = int(current.step)
                batch = global_batch.assemble(task.rows(n, range(8)), range(8), toy.BATCH_SIZE, mesh)
                current, _ = step(current, batch)
            opened.save(n + 1, current, {})
    assert int(current.step) == 6
    assert step._cache_size() == 1


def test_a_finished_run_is_left_alone(reference):
    """Nothing is done again, and SIGTERM means what it did before."""
    workdir, expected = reference
    lines, handler = (workdir / "metrics.jsonl").read_bytes(), signal.getsignal(signal.SIGTERM)
    assert_same_run(workdir, toy.train(workdir, **RUN), (workdir, expected))
    assert (workdir / "metrics.jsonl").read_bytes() == lines
    assert signal.getsignal(signal.SIGTERM) is handler


def test_lines_say_what_was_done(reference):
    """Each line holds the mean loss of its steps, the rate of its last update, and nothing was skipped."""
    workdir, _ = reference
    lines = metrics_of(workdir)
    assert [line["step"] for line in lines] == [*range(3, 40, 3), 40]
    schedule = optim.learning_rate(toy.OPTIMIZER, RUN["steps"])
    for line in lines:
        rounding = 1e-7 * toy.OPTIMIZER.learning_rate  # of 1 + cos, which vanishes towards the end
        assert line["learning_rate"] == pytest.approx(float(schedule(line["step"] - 1)), abs=rounding)
        assert line["skipped"] == 0
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_the_user_hears_once_that_the_devices_wait_for_batches(tmp_path, capfd):
    toy.train(tmp_path, pause=0.3, steps=9, log_every=3)
    assert capfd.readouterr().err.count("the devices waited for batches in") == 1
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["seconds"]["input"] >= 4 * 0.3


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, reference):
    """The message names step, examples and remedies; from its last good checkpoint the run can go on."""
    with pytest.raises(FloatingPointError) as error:
        toy.train(tmp_path, nan_at=9, **RUN)
    message = str(error.value)
    assert message.startswith("step 9 (the first is 0): loss nan, gradient norm nan")
    assert "'window-72'" in message and "'window-79'" in message and "max_bad_steps" in message
    assert saved_steps(tmp_path) == [4, 8]
    assert [line["step"] for line in metrics_of(tmp_path)] == [3, 6, 9]
    assert_same_run(tmp_path, toy.train(tmp_path, **RUN), reference)


def test_bad_steps_are_not_saved_even_at_a_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError):
        toy.train(tmp_path, nan_at=7, **RUN)
    assert saved_steps(tmp_path) == [4]


def test_some_bad_steps_may_be_skipped(tmp_path):
    """Two in a row pass, three do not."""
    done = toy.train(tmp_path / "two", nan_at=4, nan_steps=2, max_bad_steps=2, **RUN)
    assert (int(done.step), int(done.skipped), int(done.bad_steps)) == (40, 2, 0)
    lines = metrics_of(tmp_path / "two")
    assert [line["skipped"] for line in lines] == [0] + 13 * [2]
    assert all(np.isfinite(line["loss"]) for line in lines)
    with pytest.raises(FloatingPointError, match=r"^step 6 "):
        toy.train(tmp_path / "three", nan_at=4, nan_steps=3, max_bad_steps=2, **RUN)


def test_a_skipped_step_changes_only_the_counters():
    mesh = meshes.make_mesh(meshes.MeshOptions(data=1))
    task = toy.make_task(nan_at=1)
    optimizer = optim.make_optimizer(toy.OPTIMIZER, RUN["steps"])

    def init():
        return state.init_state(task.init, optimizer, seed=5)

    with jax.set_mesh(mesh):
        step = state.make_train_step(task.loss, optimizer, toy.EMA, 5, state.abstract_state(init, mesh))
        before, metrics = step(jax.jit(init)(), task.rows(0, range(8)))
        assert np.isfinite(metrics["loss"])
        kept = jax.device_get(before)
        after, metrics = step(before, task.rows(1, range(8)))
    assert np.isnan(metrics["loss"]) and np.isnan(metrics["grad_norm"])
    assert (int(after.step), int(after.skipped), int(after.bad_steps)) == (2, 1, 1)
    for name in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(kept, name))


def test_a_batch_that_the_mesh_does_not_divide_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match=r"^batch_size: .* 8 parts"):
        toy.train(tmp_path / "run", meshes.make_mesh(meshes.MeshOptions()), batch_size=12)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_width_is_refused(reference):
    workdir, _ = reference
    with pytest.raises(ValueError, match=r"params/out/kernel: expected float32\[32, 8\], found float32\[16"):
        toy.train(workdir, width=32, **RUN)


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"log_every": 0}, {"keep_last": 0}, {"keep_every": 0}, {"max_bad_steps": -1}]
)
def test_bad_options_are_named(changes):
    with pytest.raises(ValueError, match=f"^{next(iter(changes))}: "):
        TrainOptions(**({"steps": 1, "batch_size": 1} | changes))
