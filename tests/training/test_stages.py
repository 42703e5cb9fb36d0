"""Stages in a row: each resumes, is loaded from a finished run, or refuses what does not belong to it."""

import dataclasses
import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest
import toy
from mesh_network import MESHES, make_mesh
from running import assert_same_bits, folder, metrics_of, read_lines, saved_steps

from dydiff_jax.distributed import global_batch
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.training import fingerprints, loop, stages, state
from dydiff_jax.training.checkpoints import loading, manifest
from dydiff_jax.training.fingerprints import Sections

pytestmark = pytest.mark.usefixtures("compilation_cache")
RUN = {"steps": 12, "checkpoint_every": 4}
KEY = jax.random.key(11)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache_directory):
    """(work directory, weights) of a run of two stages that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("two")
    return workdir, toy.train_two(workdir, **RUN)


@pytest.fixture
def source(finished, tmp_path):
    """A copy of the run, to be changed."""
    shutil.copytree(finished[0], tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def trained(monkeypatch):
    """The names of the stages for which a step is compiled."""
    names, make = [], loop.make_train_step

    def noted(objective, recipe, abstract, frozen):
        names.append(("first", "second")[recipe.number])
        return make(objective, recipe, abstract, frozen)

    monkeypatch.setattr(loop, "make_train_step", noted)
    return names


@pytest.mark.slow
def test_a_run_of_two_stages(finished):
    """Checkpoints, lines and events of each; what the second has learnt is not the first."""
    workdir, weights = finished
    assert list(weights) == ["first", "second"]
    assert saved_steps(workdir, "first") == saved_steps(workdir, "second") == [8, 12]
    lines = metrics_of(workdir)
    assert [line["stage"] for line in lines] == 4 * ["first"] + 4 * ["second"]
    assert all(list((workdir / "tensorboard" / name).glob("events*")) for name in weights)
    assert lines[3]["loss"] < lines[0]["loss"] and lines[7]["loss"] < lines[4]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [{"first": 6}, {"second": 6}, {"first": 9, "second": 3}], ids=str)
def test_killed_in_any_stage_a_run_ends_the_same(tmp_path, server, finished, kills):
    for stage, at in kills.items():
        server.start(tmp_path, two=True, pause=0.05, log_every=3, **RUN)
        server.wait_for(
            lambda stage=stage, at=at: any(
                line["stage"] == stage and line["step"] >= at for line in read_lines(tmp_path)
            )
        )
        assert server.signal(signal.SIGKILL)[0] == -signal.SIGKILL
    assert_same_bits(toy.train_two(tmp_path, **RUN), finished[1])
    assert metrics_of(tmp_path) == metrics_of(finished[0])


def test_a_finished_run_compiles_no_step(source, finished, trained):
    lines = (source / "metrics.jsonl").read_bytes()
    assert_same_bits(toy.train_two(source, **RUN), finished[1])
    assert trained == [] and (source / "metrics.jsonl").read_bytes() == lines


def test_the_first_stage_has_the_keys_of_the_seed_and_the_second_has_others(finished):
    recipe = toy.make_recipe()
    first, second = (jax.random.key_data(jax.numpy.stack(state.run_keys(recipe.folded(n)))) for n in (0, 1))
    seed = jax.random.key(recipe.seed)
    np.testing.assert_array_equal(first, jax.random.key_data(jax.random.split(seed)))
    folded = jax.random.split(jax.random.fold_in(seed, 1))
    np.testing.assert_array_equal(second, jax.random.key_data(folded))
    alone = metrics_of(finished[0])[0]["loss"]
    assert alone != metrics_of(finished[0])[4]["loss"]


def test_order_and_names_are_checked():
    first, second = toy.two_stages()
    with pytest.raises(ValueError, match="stage second: needs first: expected one of the stages before it"):
        stages.numbered([second, first])
    with pytest.raises(ValueError, match="stage first: expected a name of its own"):
        stages.numbered([first, first])
    assert [stage.recipe.number for stage in stages.numbered([first, second])] == [0, 1]


# Frozen weights


def lowered(width, mesh):
    """The program of a step of the second stage, whose frozen weights have this width."""
    stage = stages.numbered(toy.two_stages())[1]
    with jax.set_mesh(mesh):
        abstract = state.abstract_state(stage.objective, stage.recipe, mesh)
        objective = toy.make_objective(width)
        frozen = {"first": meshes.abstract_params(objective.init, mesh, objective.rules)}
        rng = np.random.default_rng(0)
        concrete = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), frozen)
        batch = toy.make_examples().rows(0, range(8))
        argument = state.make_train_step(stage.objective, stage.recipe, abstract, frozen)
        closure = jax.jit(lambda state, batch: stage.objective.loss(state.params, concrete, batch, KEY))
        return argument.lower(abstract, frozen, batch).as_text(), closure.lower(abstract, batch).as_text()


def test_frozen_weights_are_no_part_of_the_program():
    """A hundred times as many make it no longer; the same in a closure would."""
    mesh = make_mesh((2, 2, 2))
    (small, small_closure), (large, large_closure) = lowered(16, mesh), lowered(1600, mesh)
    assert abs(len(large) - len(small)) < 200
    assert len(large_closure) - len(small_closure) > 1000


@pytest.fixture(scope="module")
def on_one_device(cache_directory):
    return second_stage((1, 1, 1))


def second_stage(sizes, steps=3):
    """Losses, and parameters and first moments after some steps of the second stage."""
    mesh, stage = make_mesh(sizes), stages.numbered(toy.two_stages())[1]
    objective, recipe, examples = stage.objective, stage.recipe, toy.make_examples()
    with jax.set_mesh(mesh):
        abstract = state.abstract_state(objective, recipe, mesh)
        placed = meshes.abstract_params(objective.init, mesh, objective.rules)
        first = jax.jit(objective.init, out_shardings=jax.tree.map(lambda x: x.sharding, placed))(KEY)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        current = jax.jit(lambda: state.init_state(objective, recipe), out_shardings=shardings)()
        step, losses = state.make_train_step(objective, recipe, abstract, {"first": first}), []
        for number in range(steps):
            batch = global_batch.assemble(examples.rows(number, range(8)), range(8), 8, mesh)
            current, metrics = step(current, {"first": first}, batch)
            losses.append(float(metrics["loss"]))
            if number == 0:
                gradients = jax.device_get(current.opt_state[1][0].mu)
        assert step._cache_size() == 1
    held = first["up"]["kernel"].addressable_shards[0].data.size  # not donated: still there
    assert held * sizes[1] * sizes[2] == first["up"]["kernel"].size
    return losses, gradients, jax.device_get(current.params)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_with_sharded_frozen_weights_training_does_not_depend_on_the_mesh(on_one_device, sizes):
    losses, gradients, params = second_stage(sizes)
    np.testing.assert_allclose(losses, on_one_device[0], rtol=1e-5)
    for found, expected, tolerance in ((gradients, on_one_device[1], 1e-4), (params, on_one_device[2], 1e-3)):
        for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(leaf, other, atol=tolerance * np.abs(other).max(), rtol=0)


def test_frozen_weights_are_in_no_checkpoint(finished):
    found = loading.metadata(folder(finished[0], "second") / "12").metadata
    assert "first" not in json.dumps(jax.tree.map(str, found["params"]), default=str)
    assert len(jax.tree.leaves(found["params"])) == len(jax.tree.leaves(found["ema"])) == 4


# Sources


def test_a_source_is_loaded_and_not_trained(tmp_path, source, finished, trained):
    """The second stage begins from the same weights of the first, and ends with the same bits."""
    weights = toy.train_two(tmp_path / "consumer", source=source, **RUN)
    assert trained == ["second"]
    assert_same_bits(weights, finished[1])
    assert not folder(tmp_path / "consumer", "first").exists()
    written = json.loads((tmp_path / "consumer/stages.json").read_text())
    assert written == {"first": fingerprints.identity(folder(source, "first"))}
    assert {line["stage"] for line in read_lines(tmp_path / "consumer")} == {"second"}


@pytest.fixture
def consumer(tmp_path, source):
    """A run that has used the source: its work directory."""
    workdir = tmp_path / "consumer"
    stage = stages.numbered(toy.two_stages(source, **RUN))[0]
    fingerprints.open_source(stage, toy.SECTIONS, {}, toy.session(workdir).mesh, workdir)
    return workdir


def open_first(source, workdir, sections=toy.SECTIONS):
    stage = stages.numbered(toy.two_stages(source, **RUN))[0]
    return fingerprints.open_source(stage, sections, {}, toy.session(workdir).mesh, workdir)


def test_a_source_may_move(source, consumer, finished):
    moved = source.rename(source.parent / "moved")
    weights, identity = open_first(moved, consumer)
    assert_same_bits(weights, finished[1]["first"])
    assert identity["step"] == 12


def refused(source, workdir, kind=ValueError, sections=toy.SECTIONS):
    """The message, which is one line and names stage and source."""
    with pytest.raises(kind) as error:
        open_first(source, workdir, sections)
    text = str(error.value)
    assert text.startswith(f"stage first: source {source}: ") and "\n" not in text
    return text


def test_a_retrained_source_is_refused(source, consumer):
    before = (consumer / "stages.json").read_bytes()
    shutil.rmtree(folder(source, "first"))
    examples, session = toy.make_examples(), toy.session(source)
    stages.train_stages(toy.two_stages(**RUN)[:1], lambda stage: examples, session, toy.SECTIONS)
    # These are the same weights, bit for bit, and yet another training.
    assert "retrained: expected the weights that this run began with, step 12 of" in refused(source, consumer)
    assert (consumer / "stages.json").read_bytes() == before


def test_the_stage_after_a_retrained_one_is_refused(source):
    shutil.rmtree(folder(source, "first"))
    with pytest.raises(
        ValueError, match=r"checkpoints/second/12 was made with .* other weights of an earlier"
    ):
        toy.train_two(source, **RUN)


def test_an_unfinished_source_is_refused(source, tmp_path):
    shutil.rmtree(folder(source, "first") / "12")
    assert "expected 12 steps, found 8: unfinished; resume" in refused(source, tmp_path / "consumer")
    assert not (tmp_path / "consumer").exists()


def test_an_absent_source_is_refused(source, tmp_path):
    shutil.rmtree(folder(source, "first"))
    text = refused(source, tmp_path, FileNotFoundError)
    assert "expected checkpoints of this stage, found those of ['second']" in text
    (source / "config.json").unlink()
    assert "expected config.json of a finished run" in refused(source, tmp_path, FileNotFoundError)
    assert "expected config.json" in refused(tmp_path / "nowhere", tmp_path, FileNotFoundError)


def test_a_damaged_source_is_refused(source, tmp_path):
    """Though an older checkpoint is valid; damage beside the EMA does not matter."""
    (folder(source, "first") / "12/opt_state/_METADATA").write_bytes(b"")
    open_first(source, tmp_path / "other")
    path = folder(source, "first") / "12/ema/_METADATA"
    path.write_bytes(path.read_bytes()[:-1])
    text = refused(source, tmp_path)
    assert f"expected a valid checkpoint 12, found damage: {path}: shorter" in text and "restore" in text


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"networks": {"size": 2}}, "networks.size: expected 2, found 1"),
        ({"networks": {"size": 1, "dropout": 0.1}}, "networks.dropout: expected 0.1, found nothing"),
        ({"data": {"name": "waves"}}, "data.name: expected waves, found noise"),
    ],
)
def test_a_foreign_source_is_refused(source, tmp_path, changes, said):
    sections = toy.SECTIONS._replace(config=toy.CONFIG | changes)
    assert f"foreign: {said}" in refused(source, tmp_path, sections=sections)


def test_what_a_stage_does_not_read_may_differ(source, tmp_path):
    """Another section, another recipe, another seed."""
    config = toy.CONFIG | {"system": {"eta": 0.1, "sampler": {"nfe": 9}}, "seed": 3}
    (stage, _) = toy.two_stages(source, steps=99)
    stage = dataclasses.replace(stage, recipe=dataclasses.replace(stage.recipe, seed=99))
    sections, mesh = toy.SECTIONS._replace(config=config), toy.session(tmp_path).mesh
    assert fingerprints.open_source(stage, sections, {}, mesh, tmp_path)[1]["step"] == 12


def test_a_source_trained_on_other_weights_is_refused(source, tmp_path, finished):
    """The second stage of a run belongs to the first of that run, wherever that came from."""
    second = dataclasses.replace(stages.numbered(toy.two_stages(**RUN))[1], source=source)
    mesh = toy.session(tmp_path).mesh
    own = fingerprints.identity(folder(source, "first"))
    weights, _ = fingerprints.open_source(second, toy.SECTIONS, {"first": own}, mesh, tmp_path / "a")
    assert_same_bits(weights, finished[1]["second"])
    other = {**own, "sha256": 64 * "0"}
    with pytest.raises(ValueError, match="stage second: .* found one trained with other weights of it"):
        fingerprints.open_source(second, toy.SECTIONS, {"first": other}, mesh, tmp_path / "b")


# Fingerprints


def digits(sections=toy.SECTIONS, needs=None, **changes):
    """The fingerprint of the second stage."""
    stage = stages.numbered(toy.two_stages())[1]
    recipe = stage.recipe
    train = {k: changes.pop(k) for k in list(changes) if hasattr(recipe.train, k)}
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, **train), **changes)
    stage = dataclasses.replace(stage, recipe=recipe)
    return fingerprints.fingerprint(stage, sections, needs or {"first": {"step": 1, "sha256": "a"}})


def config(**changes):
    return toy.SECTIONS._replace(config=toy.CONFIG | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 13},
        {"batch_size": 16},
        {"max_bad_steps": 1},
        {"seed": 6},
        {"number": 2},
        {"ema": dataclasses.replace(toy.EMA, decay=0.5)},
        {"optimizer": dataclasses.replace(toy.OPTIMIZER, b1=0.5)},
        {"needs": {"first": {"step": 1, "sha256": "b"}}},
        {"sections": config(system={"eta": 0.6, "sampler": {"nfe": 4}})},
        {"sections": config(data={"name": "waves"})},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_decides_the_weights_is_in_the_fingerprint(changes):
    assert digits(**changes) != digits()


@pytest.mark.parametrize(
    "changes",
    [
        {"log_every": 1},
        {"checkpoint_every": 1},
        {"keep_last": 5},
        {"keep_every": 2},
        {"validate_every": 7},
        {"stuck_after": None},
        {"sections": config(system={"eta": 0.5, "sampler": {"nfe": 9}})},
        {"sections": config(networks={"size": 9})},
        {"sections": config(evaluation={"members": 9})},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_does_not_is_not(changes):
    assert digits(**changes) == digits()


def test_a_key_of_a_section_can_be_read_and_a_missing_one_is_named():
    stage = dataclasses.replace(toy.two_stages()[1], reads=("system.eta",))
    assert toy.SECTIONS.read_by(stage) == {"data": {"name": "noise"}, "system.eta": 0.5}
    whole = dataclasses.replace(stage, reads=("system",))
    assert toy.SECTIONS.read_by(whole)["system"] == {"eta": 0.5}
    with pytest.raises(ValueError, match=re.escape("stage second: expected system.eta in the config")):
        Sections({"data": {}, "system": {}}, ("data",)).read_by(stage)


def test_the_identity_is_that_of_the_files(source, tmp_path):
    found = fingerprints.identity(folder(source, "first"))
    assert found["step"] == 12
    assert found["sha256"] == manifest.digest(folder(source, "first") / "12")
    assert found["fingerprint"] == loading.fingerprint_of(folder(source, "first") / "12")
    with pytest.raises(FileNotFoundError, match="expected a valid checkpoint, found none"):
        fingerprints.identity(tmp_path / "nowhere")


# Reading a run, and beginning from given weights


@pytest.mark.slow
def test_the_weights_of_a_run_are_read_without_training(tmp_path, source, finished):
    made, mesh = toy.two_stages(**RUN), toy.session(source).mesh
    weights, step = stages.load_stages(made, mesh, source, toy.SECTIONS)
    assert step == 12
    assert_same_bits(weights, finished[1])
    older, step = stages.load_stages(made, mesh, source, toy.SECTIONS, step=8)
    assert step == 8
    assert_same_bits(older["first"], finished[1]["first"])
    assert stages.load_stages(made[:0], mesh, source, toy.SECTIONS) == ({}, 0)
    toy.train_two(tmp_path / "consumer", source=source, **RUN)
    consumed = toy.two_stages(source, **RUN)
    assert_same_bits(stages.load_stages(consumed, mesh, tmp_path / "consumer", toy.SECTIONS)[0], finished[1])


def test_a_stage_is_validated_with_the_weights_before_it(tmp_path):
    seen = []

    def validation(stage, weights):
        seen.append((stage.name, sorted(weights)))
        if stage.name == "first":
            return None
        return lambda ema, heartbeat: {"valid_bias": float(ema["out"]["bias"].sum())}

    examples, session = toy.make_examples(), toy.session(tmp_path)
    weights = stages.train_stages(
        toy.two_stages(**RUN), lambda stage: examples, session, toy.SECTIONS, validation
    )
    assert seen == [("first", []), ("second", ["first"])]
    found = [line for line in read_lines(tmp_path) if "valid_bias" in line]
    assert [(line["stage"], line["step"]) for line in found] == [("second", 12)]
    assert found[0]["valid_bias"] == float(weights["second"]["out"]["bias"].sum())


def test_training_begins_from_given_weights(tmp_path, finished):
    """Parameters and EMA both start there: the first loss is theirs, and an EMA that forgets nothing is they."""
    stage, examples = toy.make_stage(steps=4, checkpoint_every=1, keep_last=9), toy.make_examples()
    given = jax.device_get(finished[1]["first"])
    trained = loop.train(
        stage, {}, examples, toy.session(tmp_path), fingerprint="abc", initial=given, validate=toy.score
    )
    key = jax.random.fold_in(state.run_keys(stage.recipe)[1], 0)
    expected, _ = toy.make_objective().loss(given, {}, examples.rows(0, range(8)), key)
    first = loading.load_ema(folder(tmp_path), jax.eval_shape(lambda: given), step=1)[0]
    # The first update has learning rate 0 (warm-up): parameters and EMA are those given.
    assert_same_bits(jax.device_get(first), given)
    again = loop.train(stage, {}, examples, toy.session(tmp_path), fingerprint="abc", initial=given)
    assert_same_bits(again, trained)
    losses = [line["loss"] for line in read_lines(tmp_path) if "loss" in line]
    assert losses[0] < 1.5 * float(expected)


def test_given_weights_that_do_not_fit_are_named(tmp_path):
    given = jax.eval_shape(toy.make_objective(width=32).init, jax.random.key(0))
    given["extra"] = given["out"].pop("bias")
    with pytest.raises(ValueError) as error:
        loop.train(
            toy.make_stage(), {}, toy.make_examples(), toy.session(tmp_path), fingerprint="", initial=given
        )
    text = str(error.value)
    assert text.startswith("stage toy: initial parameters do not fit the model:")
    for name, wanted, found in [
        ("up/kernel", "float32[8, 16]", "float32[8, 32]"),
        ("out/bias", "float32[8]", "nothing"),
        ("extra", "nothing", "float32[8]"),
    ]:
        assert f"initial/{name}: expected {wanted}, found {found}" in text
    assert saved_steps(tmp_path) == []
