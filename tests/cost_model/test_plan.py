"""Plans of the shipped turbulence experiment in miniature, against what its state and its mesh imply."""

import collections
import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from dydiff_jax import build
from dydiff_jax.cost_model import plan
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.distributed.rules import leaf_spec
from dydiff_jax.training import state
from tests import dummy, small

ROOT = pathlib.Path(__file__).parents[2]
#: A window of 2 + 2 frames of 16 x 16, a batch of 8, one block a level.
TINY = dict(
    train__batch_size=8, window__num_context=2, window__num_forecast=2, networks__denoiser__blocks=(1, 1)
)


def config(argument="dynamical,size=tiny", **changes):
    return small.config(argument, **TINY | changes)


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """One plan for each mesh, made once, with what it holds of its only stage."""
    made = {}

    def make(**changes):
        key = tuple(sorted(changes.items()))
        if key not in made:
            directory = tmp_path_factory.mktemp("plan")
            found = plan.plan(config(**changes), 8, "H100", directory)
            assert json.loads((directory / "plan.json").read_text()) == json.loads(json.dumps(found))
            (stage,) = found["stages"].values()
            made[key] = found | stage
        return made[key]

    return make


def state_leaves(raw):
    """Every leaf of the train state with its path, and the sharding rules of the stage."""
    run = build.build(build.load(raw), build.spec_card(build.load(raw)))
    (stage,) = run.stages
    shapes = jax.eval_shape(lambda: state.init_state(stage.objective, stage.recipe))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return [(meshes.leaf_name(path), leaf) for path, leaf in leaves], stage.objective.rules


def split_bytes(leaves, mesh, rules):
    """Sum over leaves of 4 bytes * size / product of the mesh axes that split it."""
    sizes = dict(mesh.shape)
    parts = [
        [sizes[axis] for axis in leaf_spec(name, leaf.shape, mesh, rules) if axis] for name, leaf in leaves
    ]
    return sum(4 * leaf.size // math.prod(part) for (_, leaf), part in zip(leaves, parts, strict=True))


def sums(program, kind):
    """{mesh axes: bytes} of the collectives of a kind."""
    found = collections.Counter()
    for row in program["collectives"]:
        if row["kind"] == kind:
            found[row["axes"]] += row["bytes"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [dict(data=8), dict(data=2, fsdp=4), dict(data=2, fsdp=2, tensor=2)])
def test_memory_is_the_sum_of_the_shards(plans, mesh):
    found = plans(**{f"mesh__{axis}": mesh.get(axis, 1) for axis in meshes.AXES})
    program, (leaves, rules) = found["programs"]["CPU"], state_leaves(config())
    where = meshes.make_mesh(meshes.MeshOptions(**{"data": 1} | mesh))
    assert program["state"] == split_bytes(leaves, where, rules)
    weights = [leaf for leaf in leaves if leaf[0].startswith("params")]
    assert program["parameters"] == split_bytes(weights, where, rules) and program["frozen"] == 0
    parts = where.shape["data"] * where.shape["fsdp"]
    assert program["batch"] == 4 * (8 // parts) * 4 * 16 * 16 * 2
    assert program["peak"] > program["state"] + program["batch"] + program["temporaries"]


@pytest.mark.slow
def test_data_parallel_gradients_are_reduced_once(plans):
    """4 bytes for each parameter, and the loss and norm."""
    found = plans(mesh__data=8, mesh__fsdp=1, mesh__tensor=1)
    program = found["programs"]["CPU"]
    assert {row["kind"] for row in program["collectives"]} == {"all-reduce"}
    assert 0 <= sums(program, "all-reduce")["data"] - program["parameters"] <= 64


def test_data_parallel_flops_are_the_share_of_the_model(plans):
    found = plans(mesh__data=8, mesh__fsdp=1, mesh__tensor=1)
    assert found["programs"]["CPU"]["flops"] * 8 == found["model_flops"]


@pytest.mark.slow
def test_fully_sharded_weights_are_gathered(plans):
    """Each split kernel at least once a step, and no more than in both passes; over fsdp alone."""
    found = plans(mesh__data=2, mesh__fsdp=4, mesh__tensor=1)
    program = found["programs"]["CPU"]
    where = meshes.make_mesh(meshes.MeshOptions(data=2, fsdp=4))
    leaves, rules = state_leaves(config())
    split = [
        leaf
        for name, leaf in leaves
        if name.startswith("params") and any(leaf_spec(name, leaf.shape, where, rules))
    ]
    whole = sum(4 * leaf.size for leaf in split)
    gathered = sums(program, "all-gather")
    assert set(gathered) == {"fsdp"}
    assert whole <= gathered["fsdp"] <= 2 * whole


@pytest.mark.slow
def test_scanned_blocks_count_with_their_number():
    """Written out or in a loop, a stage needs the same arithmetic; XLA's own analysis says otherwise."""
    levels = dict(networks__denoiser__blocks=(1, 2), mesh__data=8)
    counts = []
    for scan in (True, False):
        settings = build.load(config(networks__denoiser__scan=scan, **levels))
        run = build.build(settings, build.spec_card(settings))
        (stage,) = run.stages
        step = plan.compile_step(run, stage, plan.virtual_mesh(settings, 8))
        counts.append((step.flops, plan.needed_flops(settings, run.card)[stage.name]))
    assert counts[0] == counts[1] and counts[0][0] * 8 == counts[0][1]


@pytest.mark.slow
def test_recomputation_shows_beside_what_the_model_needs(plans):
    full = plans(mesh__data=8, networks__denoiser__remat="full")
    assert full["model_flops"] == plans(mesh__data=8, mesh__fsdp=1, mesh__tensor=1)["model_flops"]
    assert 1 < full["programs"]["CPU"]["flops"] * 8 / full["model_flops"] < 4 / 3


def test_predictions_follow_from_the_program(plans):
    found = plans(mesh__data=8, mesh__fsdp=1, mesh__tensor=1)
    program, row = found["programs"]["CPU"], found["predictions"]["H100"]
    assert row["fits"] and row["program"] == "CPU"
    assert row["compute"] == pytest.approx(program["flops"] / 494.7e12)
    assert row["traffic"] == pytest.approx(program["traffic"] / 3.35e12)
    sent = 2 * 7 / 8 * sums(program, "all-reduce")["data"]
    assert row["network"] == pytest.approx(sent / 450e9) and row["link_bytes"] == pytest.approx(sent)
    assert row["outside_bytes"] == 0
    parts = [row["compute"], row["traffic"], row["network"]]
    assert row["step"] == pytest.approx((max(parts), sum(parts)))
    assert row["mfu"][0] == pytest.approx(found["model_flops"] / (8 * 494.7e12 * row["step"][0]))
    assert row["examples_per_second"][0] == pytest.approx(8 / row["step"][0])


@pytest.mark.slow
def test_half_precision_halves_what_the_gradients_send(plans):
    """XLA:CPU would widen bfloat16 gradients to 4 bytes; here they take 2, but for parameters used in float32."""
    wide = plans(mesh__data=8, mesh__fsdp=1, mesh__tensor=1)["programs"]["CPU"]
    narrow = plans(mesh__data=8, networks__denoiser__dtype="bfloat16")["programs"]["CPU"]
    ratio = sums(narrow, "all-reduce")["data"] / sums(wide, "all-reduce")["data"]
    assert 0.5 <= ratio < 0.6
    assert narrow["flops"] == wide["flops"] and narrow["state"] == wide["state"]


def test_no_data_are_made(monkeypatch):
    monkeypatch.setattr(type(build.load(config()).data), "load", lambda self: pytest.fail("data were made"))
    card = build.spec_card(build.load(config()))
    assert card.spec.frame_shape == (16, 16, 2)


@pytest.mark.parametrize(
    "changes, hardware, message",
    [
        (dict(train__batch_size=12), None, "batch_size: expected a multiple of the 8 parts .* use 8"),
        (dict(mesh__data=2), None, "config.mesh: .* takes 2 of 8 devices"),
        (dict(mesh__fsdp=3), None, "does not fit 8 devices"),
        (dict(), "H900", "hardware: expected one of .*'H100'.*, found 'H900'"),
    ],
)
def test_what_does_not_fit_is_refused_before_work(changes, hardware, message, monkeypatch):
    monkeypatch.setattr(plan, "compile_step", lambda *_: pytest.fail("it was compiled"))
    with pytest.raises(ValueError, match=message):
        plan.plan(config(**changes), 8, hardware)


def test_every_stage_is_planned_with_the_weights_that_it_needs(tmp_path):
    """A second stage holds the state of its own network, and beside it the frozen weights of the first."""
    np.save(tmp_path / "a.npy", np.zeros((40, 8, 8, 2), np.float32))
    raw = dummy.get_config("corrected")
    raw.update_from_flattened_dict({"data.path": str(tmp_path), "mesh.data": 8, "train.batch_size": 8})
    found = plan.plan(raw, 8, "H100")
    assert list(found["stages"]) == ["step", "correction"]
    first, second = (stage["programs"]["CPU"] for stage in found["stages"].values())
    parameters = 4 * (2 * 2 + 2)
    assert (first["parameters"], first["frozen"]) == (parameters, 0)
    assert (second["parameters"], second["frozen"]) == (parameters, parameters)
    assert first["state"] == second["state"] >= 4 * parameters
    assert first["batch"] == second["batch"] == 4 * 5 * 8 * 8 * 2
    product = 2 * 2 * 2 * 8 * 4 * 8 * 8  # x W at 4 frames of 8 windows; backward, the gradient of W
    assert found["stages"]["step"]["model_flops"] == 2 * product
    assert found["stages"]["correction"]["model_flops"] == 3 * product


def test_another_number_of_devices_needs_prepare():
    with pytest.raises(ValueError, match="call plan.prepare first"):
        plan.plan(config(), 64)


MANY = """
from dydiff_jax.cost_model import plan
plan.prepare(64)
from tests import small
found = plan.plan(small.config("dynamical,size=tiny", train__batch_size=64, mesh__fsdp=8), 64, "H100")
assert found["mesh"] == {"data": 8, "fsdp": 8, "tensor": 1}
(stage,) = found["stages"].values()
assert stage["predictions"]["H100"]["link_bytes"] > 0 and stage["predictions"]["H100"]["outside_bytes"] > 0
assert {row["axes"] for row in stage["programs"]["CPU"]["collectives"]} >= {"fsdp"}
"""

CHIPS = """
from dydiff_jax import build
from dydiff_jax.cost_model import plan
plan.prepare(8)
from tests import small
changes = dict(train__batch_size=8, mesh__fsdp=2, networks__denoiser__blocks=(1, 1))
changes |= dict(networks__denoiser__dtype="bfloat16")
config = build.load(small.config("dynamical,size=tiny", **changes))
mesh = plan.virtual_mesh(config, 8)

def step(config, mesh):
    run = build.build(config, build.spec_card(config))
    return plan.compile_step(run, run.stages[0], mesh)

virtual = step(plan.with_networks(config, lambda options: options.on_cpu()), mesh)
topology = plan.tpu_topology(plan.DEVICES["v5e"], 8)
assert topology == "v5e:2x4", topology
chips = step(config, plan.tpu_mesh(mesh, topology))
assert (chips.flops, chips.state) == (virtual.flops, virtual.state), (chips, virtual)
kinds = {collective.kind for collective in chips.collectives}
assert "all-gather" in kinds and kinds & {"reduce-scatter", "all-reduce"}, kinds
"""


def run(program):
    """Runs a program on its own: jax starts with a number of devices, and libtpu ends at a flag of XLA:CPU."""
    ours = ("JAX_NUM_CPU_DEVICES", "JAX_PLATFORMS", "XLA_FLAGS")
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_64_devices():
    run(MANY)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_compiler_of_a_tpu_agrees_on_arithmetic_and_state():
    run(CHIPS)
