"""A run ends with the same bits however often it was stopped, and stops by itself when it must."""

import random
import signal
import time

import jax
import numpy as np
import pytest
import toy
from running import assert_same_run, folder, metrics_of, read_lines, saved_steps
from toy import RUN

from dydiff_jax.distributed import global_batch
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.runs import exit_codes
from dydiff_jax.system import TrainOptions
from dydiff_jax.training import loop, optim, state
from dydiff_jax.training.checkpoints import loading
from dydiff_jax.training.checkpoints import manager as checkpoints

pytestmark = pytest.mark.usefixtures("compilation_cache")


def steps_done(workdir):
    """The steps that a run with log_every=1 has written."""
    return sum("loss" in line for line in read_lines(workdir))


def half_written(workdir):
    """A checkpoint that has not yet its name."""
    return list(folder(workdir).glob("*.partial*"))


@pytest.mark.slow
def test_killed_at_20_random_instants_a_run_ends_the_same(tmp_path, server):
    """SIGKILL a random time after the first new step, half of them while a checkpoint is being written.

    The run can always resume. Lost are the steps of one interval at most, or, where a save was under way, those
    since the save before it.
    """
    rng, workdir = random.Random(0), tmp_path / "killed"
    settings = {"steps": 600, "checkpoint_every": 10, "log_every": 1, "validate_every": 20, "keep_best": True}
    in_saves = 0
    for kill in range(20):
        server.start(workdir, **settings, pause=0.01)
        server.wait_for(lambda kill=kill: [line["starts"] for line in read_lines(workdir)][-1:] == [kill + 1])
        time.sleep(rng.uniform(0, 0.4))
        if kill % 2:
            server.wait_for(lambda: half_written(workdir))
        assert server.signal(signal.SIGKILL)[0] == -signal.SIGKILL
        half = half_written(workdir)
        in_saves += bool(half)
        whole = max(saved_steps(workdir), default=0)
        assert steps_done(workdir) - whole <= settings["checkpoint_every"] * (2 if half else 1)
    assert in_saves >= 5
    found = toy.train(workdir, **settings)
    undisturbed = tmp_path / "undisturbed", toy.train(tmp_path / "undisturbed", **settings)
    assert_same_run(workdir, found, undisturbed)
    assert loading.best_step(folder(workdir)) == loading.best_step(folder(undisturbed[0]))
    last = read_lines(workdir)[-1]
    assert last["starts"] == 21 and last["seconds"]["lost"] > 0 and 0 < last["goodput"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("at", [7, 8], ids=["between", "where-a-score-is-due"])
def test_sigterm_saves_and_exits_with_75(tmp_path, server, reference, at):
    """At once: a validation score that is due then is computed by the next start."""
    server.start(tmp_path, **RUN, stop_at=at, pause=0.01)
    status, output = server.wait()
    assert status == exit_codes.STOPPED == 75
    assert f"SIGTERM: checkpoint saved at step {at}; re-run the command to resume" in output
    assert max(saved_steps(tmp_path)) == at
    assert not any("valid_error" in line for line in read_lines(tmp_path))
    assert_same_run(tmp_path, toy.train(tmp_path, **RUN), reference)


def test_the_step_is_compiled_once(tmp_path):
    """Also after a restore: its arrays have the shardings, dtypes and layouts of the fresh ones."""
    mesh = meshes.make_mesh(meshes.MeshOptions(data=2, fsdp=2, tensor=2))
    stage, examples = toy.make_stage(**RUN), toy.make_examples()
    with jax.set_mesh(mesh), checkpoints.Checkpoints(tmp_path, 2, None) as opened:
        abstract = state.abstract_state(stage.objective, stage.recipe, mesh)
        step = state.make_train_step(stage.objective, stage.recipe, abstract, {})
        for _ in range(2):
            current, _ = loop.start(stage, abstract, opened)
            for _ in range(3):
                n = int(current.step)
                batch = global_batch.assemble(examples.rows(n, range(8)), range(8), toy.BATCH_SIZE, mesh)
                current, _ = step(current, {}, batch)
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
    lines = [line for line in metrics_of(workdir) if "loss" in line]
    assert [line["step"] for line in lines] == [*range(3, 40, 3), 40]
    schedule = optim.learning_rate(toy.OPTIMIZER, RUN["steps"])
    for line in lines:
        rounding = 1e-7 * toy.OPTIMIZER.learning_rate  # of 1 + cos, which vanishes towards the end
        assert line["learning_rate"] == pytest.approx(float(schedule(line["step"] - 1)), abs=rounding)
        assert (line["stage"], line["skipped"]) == ("toy", 0)
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.slow
def test_an_input_bound_run_says_so_once(tmp_path, capfd):
    toy.train(tmp_path, pause=0.3, steps=9, log_every=3)
    assert capfd.readouterr().err.count("input-bound: devices idled") == 1
    last = read_lines(tmp_path)[-1]
    assert last["seconds"]["input"] >= 4 * 0.3


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, reference):
    """The message names step, examples and remedies; from its last good checkpoint the run can resume."""
    with pytest.raises(FloatingPointError) as error:
        toy.train(tmp_path, nan_at=9, **RUN)
    message = str(error.value)
    assert message.startswith("stage toy, step 9 (the first is 0): loss nan, gradient norm nan")
    assert "'window-72'" in message and "'window-79'" in message and "max_bad_steps" in message
    assert saved_steps(tmp_path) == [4, 8]
    assert [line["step"] for line in metrics_of(tmp_path)] == [3, 6, 8, 9]
    assert_same_run(tmp_path, toy.train(tmp_path, **RUN), reference)


def test_bad_steps_are_not_saved_even_at_a_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError):
        toy.train(tmp_path, nan_at=7, **RUN)
    assert saved_steps(tmp_path) == [4]


@pytest.mark.slow
def test_some_bad_steps_may_be_skipped(tmp_path):
    """Two in a row pass, three do not."""
    done = toy.train(tmp_path / "two", nan_at=4, nan_steps=2, max_bad_steps=2, **RUN)
    assert (int(done.step), int(done.skipped), int(done.bad_steps)) == (40, 2, 0)
    lines = [line for line in metrics_of(tmp_path / "two") if "loss" in line]
    assert [line["skipped"] for line in lines] == [0] + 13 * [2]
    assert all(np.isfinite(line["loss"]) for line in lines)
    with pytest.raises(FloatingPointError, match=r"^stage toy, step 6 "):
        toy.train(tmp_path / "three", nan_at=4, nan_steps=3, max_bad_steps=2, **RUN)


def test_a_skipped_step_changes_only_the_counters():
    mesh = meshes.make_mesh(meshes.MeshOptions(data=1))
    objective, recipe, examples = toy.make_objective(), toy.make_recipe(**RUN), toy.make_examples(nan_at=1)
    with jax.set_mesh(mesh):
        abstract = state.abstract_state(objective, recipe, mesh)
        step = state.make_train_step(objective, recipe, abstract, {})
        fresh = jax.jit(lambda: state.init_state(objective, recipe))()
        before, metrics = step(fresh, {}, examples.rows(0, range(8)))
        assert np.isfinite(metrics["loss"])
        kept = jax.device_get(before)
        after, metrics = step(before, {}, examples.rows(1, range(8)))
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
