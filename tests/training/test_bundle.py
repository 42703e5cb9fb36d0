"""A step that stopped a run can be repeated from what it left behind."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.training import bad_step, loop, state, task
from dydiff_jax.training.checkpoints import manager as checkpoints

RUN = {"steps": 40, "checkpoint_every": 9}


def repeat(workdir, folder, made, mesh):
    recipe = task.Recipe(task.TrainOptions(40, toy.BATCH_SIZE), toy.OPTIMIZER, toy.EMA, seed=5)
    abstract = state.abstract_state(loop.initializer(made.init, recipe), mesh)
    return bad_step.repeat(folder, made.loss, abstract, mesh, seed=5), abstract


@pytest.mark.parametrize(
    "options", [meshes.MeshOptions(data=1), meshes.MeshOptions(data=2, fsdp=2, tensor=2)]
)
def test_the_bundle_holds_the_state_before_the_step(tmp_path, options):
    """Bit for bit, though the loop had started the next step, whose batch is sound, when it noticed."""
    mesh = meshes.make_mesh(options)
    with pytest.raises(FloatingPointError, match=r"bad_step_9 holds what repeats the step"):
        toy.train(tmp_path, mesh, nan_at=9, **RUN)
    (folder,) = bad_step.bundles(tmp_path)
    assert folder == bad_step.folder_of(tmp_path, 9)
    (facts, _), abstract = repeat(tmp_path, folder, toy.make_task(), mesh)
    assert (facts["step"], facts["loss"]) == (9, "nan")
    assert facts["examples"] == [f"window-{n}" for n in range(72, 80)]
    with jax.set_mesh(mesh), checkpoints.Checkpoints(folder / "state", 1, None) as bad:
        found, _ = bad.restore(abstract)
    with jax.set_mesh(mesh), checkpoints.Checkpoints(tmp_path / "checkpoints", 2, None) as good:
        expected, _ = good.restore(abstract)
    for name in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(
        np.load(folder / "batch.npz")["frames"], toy.make_task(nan_at=9).rows(9, range(8)).frames
    )


def test_repeating_says_what_is_not_finite(tmp_path):
    """Of a poisoned batch: the batch, the loss, every gradient."""
    mesh = meshes.make_mesh(meshes.MeshOptions(data=1))
    with pytest.raises(FloatingPointError):
        toy.train(tmp_path, mesh, nan_at=9, **RUN)
    (_, lines), _ = repeat(tmp_path, bad_step.folder_of(tmp_path, 9), toy.make_task(), mesh)
    assert lines == [
        "loss: nan",
        "batch frames: 8 values are not finite",
        "gradient of out/bias: 8 values are not finite",
        "gradient of out/kernel: 128 values are not finite",
        "gradient of up/bias: 16 values are not finite",
        "gradient of up/kernel: 128 values are not finite",
    ]


def test_a_step_is_repeated_with_its_own_noise(tmp_path):
    """With the sound batch in place of the poisoned one, the loss is that of a run which was never poisoned."""
    mesh = meshes.make_mesh(meshes.MeshOptions(data=1))
    with pytest.raises(FloatingPointError):
        toy.train(tmp_path / "poisoned", mesh, nan_at=9, **RUN)
    folder = bad_step.folder_of(tmp_path / "poisoned", 9)
    np.savez(folder / "batch.npz", frames=toy.make_task().rows(9, range(8)).frames)
    (_, lines), _ = repeat(tmp_path, folder, toy.make_task(), mesh)
    toy.train(tmp_path / "sound", mesh, log_every=1, **RUN)
    logged = [
        json.loads(line)["loss"] for line in (tmp_path / "sound/metrics.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 1 and float(lines[0].removeprefix("loss: ")) == pytest.approx(logged[9], rel=1e-6)


def test_repeating_tells_a_sound_batch_from_a_broken_model(tmp_path):
    """The logarithm of a parameter that has turned negative, at the step at which it does."""
    mesh = meshes.make_mesh(meshes.MeshOptions(data=1))
    made = toy.make_task()

    def loss(params, batch, key):
        value, metrics = made.loss(params, batch, key)
        return value + jnp.log(jnp.min(params["out"]["bias"]) + 0.03), metrics

    broken = made._replace(loss=loss)
    recipe = task.Recipe(
        task.TrainOptions(40, toy.BATCH_SIZE, checkpoint_every=9), toy.OPTIMIZER, toy.EMA, seed=5
    )
    with pytest.raises(FloatingPointError) as error:
        loop.train(broken, recipe, mesh, tmp_path)
    (folder,) = bad_step.bundles(tmp_path)
    step = json.loads((folder / "step.json").read_text())["step"]
    assert str(error.value).startswith(f"step {step} ")
    (_, lines), _ = repeat(tmp_path, folder, broken, mesh)
    assert lines[0] == "loss: nan"
    assert not any(line.startswith(("batch", "parameter")) for line in lines)
