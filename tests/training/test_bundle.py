"""A step that stopped a run can be repeated from what it left behind."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from running import assert_same_bits, folder

from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.training import bad_step, loop, state
from dydiff_jax.training.checkpoints import manager as checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compilation_cache")]
RUN = {"steps": 40, "checkpoint_every": 9}
MESHES = {"one": meshes.MeshOptions(data=1), "eight": meshes.MeshOptions(data=2, fsdp=2, tensor=2)}


def repeat(bundle, mesh, stage=None, frozen=None):
    stage = stage or toy.make_stage(**RUN)
    return bad_step.repeat(bundle, stage, frozen or {}, mesh)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory, cache_directory):
    """{mesh: work directory} of runs that stopped at step 9."""
    workdirs = {}
    for name, options in MESHES.items():
        workdirs[name] = tmp_path_factory.mktemp(name)
        with pytest.raises(FloatingPointError, match=r"bad_step_toy_9 holds what repeats the step"):
            toy.train(workdirs[name], meshes.make_mesh(options), nan_at=9, **RUN)
    return workdirs


@pytest.mark.parametrize("name", MESHES)
def test_the_bundle_holds_the_state_before_the_step(poisoned, name):
    """Bit for bit, though the loop had started the next step, whose batch is whole, when it noticed."""
    mesh, workdir = meshes.make_mesh(MESHES[name]), poisoned[name]
    (bundle,) = bad_step.bundles(workdir)
    assert bundle == bad_step.folder_of(workdir, "toy", 9)
    facts, _ = repeat(bundle, mesh)
    stage = toy.make_stage(**RUN)
    abstract = state.abstract_state(stage.objective, stage.recipe, mesh)
    assert (facts["stage"], facts["number"], facts["step"], facts["loss"]) == ("toy", 0, 9, "nan")
    assert facts["examples"] == [f"window-{n}" for n in range(72, 80)]
    with jax.set_mesh(mesh), checkpoints.Checkpoints(bundle / "state", 1, None) as bad:
        found, _ = bad.restore(abstract)
    with jax.set_mesh(mesh), checkpoints.Checkpoints(folder(workdir), 2, None, "abc") as good:
        expected, _ = good.restore(abstract)
    for part in ("params", "opt_state", "ema"):
        assert_same_bits(getattr(found, part), getattr(expected, part))
    frames = toy.make_examples(nan_at=9).rows(9, range(8)).frames
    np.testing.assert_array_equal(np.load(bundle / "batch.npz")["frames"], frames)


def test_repeating_says_what_is_not_finite(poisoned):
    """Of a poisoned batch: the batch, the loss, every gradient."""
    _, lines = repeat(bad_step.folder_of(poisoned["one"], "toy", 9), meshes.make_mesh(MESHES["one"]))
    assert lines == [
        "loss: nan",
        "batch frames: 8 values are not finite",
        "gradient of out/bias: 8 values are not finite",
        "gradient of out/kernel: 128 values are not finite",
        "gradient of up/bias: 16 values are not finite",
        "gradient of up/kernel: 128 values are not finite",
    ]


def test_a_step_is_repeated_with_its_own_noise(tmp_path, poisoned):
    """With the whole batch in place of the poisoned one, the loss is that of a run which was never poisoned."""
    mesh, bundle = meshes.make_mesh(MESHES["one"]), tmp_path / "bundle"
    shutil.copytree(bad_step.folder_of(poisoned["one"], "toy", 9), bundle)
    np.savez(bundle / "batch.npz", frames=toy.make_examples().rows(9, range(8)).frames)
    _, lines = repeat(bundle, mesh)
    toy.train(tmp_path / "whole", mesh, log_every=1, **RUN)
    logged = [
        json.loads(line)["loss"] for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 1 and float(lines[0].removeprefix("loss: ")) == pytest.approx(logged[9], rel=1e-6)


def test_repeating_tells_a_whole_batch_from_a_broken_model(tmp_path):
    """The logarithm of a parameter that has turned negative, at the step at which it does; of a second stage.

    The loss reads frozen weights, and the keys are those of the second stage, which the bundle knows.
    """
    mesh, made = meshes.make_mesh(MESHES["one"]), toy.make_objective()

    def loss(params, frozen, batch, key):
        value, metrics = made.loss(params, frozen, batch, key)
        return value + jnp.log(jnp.min(params["out"]["bias"]) + 0.03), metrics

    broken = dataclasses.replace(toy.make_stage(**RUN), name="second", objective=made._replace(loss=loss))
    broken = dataclasses.replace(broken, recipe=broken.recipe.folded(1), needs=("first",))
    frozen = {"first": jax.device_put(made.init(jax.random.key(3)), jax.NamedSharding(mesh, jax.P()))}
    with pytest.raises(FloatingPointError) as error:
        loop.train(broken, frozen, toy.make_examples(), toy.session(tmp_path, mesh), fingerprint="abc")
    (bundle,) = bad_step.bundles(tmp_path)
    facts = bad_step.read_facts(bundle)
    assert bundle.name == f"bad_step_second_{facts['step']}" and facts["number"] == 1
    assert str(error.value).startswith(f"stage second, step {facts['step']} ")
    unnumbered = dataclasses.replace(broken, recipe=broken.recipe.folded(0))
    _, lines = repeat(bundle, mesh, unnumbered, frozen)
    assert lines[0] == "loss: nan"
    assert not any(line.startswith(("batch", "parameter")) for line in lines)
    with pytest.raises(ValueError, match="expected a step of stage toy, found one of second"):
        repeat(bundle, mesh)


def test_bundles_come_in_the_order_of_stages_and_steps(tmp_path):
    for number, stage, step in [(1, "after", 3), (0, "before", 10), (0, "before", 9)]:
        bundle = bad_step.folder_of(tmp_path, stage, step)
        bundle.mkdir()
        (bundle / bad_step.FACTS).write_text(json.dumps({"stage": stage, "number": number, "step": step}))
    expected = ["bad_step_before_9", "bad_step_before_10", "bad_step_after_3"]
    assert [path.name for path in bad_step.bundles(tmp_path)] == expected
