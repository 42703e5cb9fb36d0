"""What DYffusion and its rivals refuse, through the command that trains, before data are made or read."""

import json
import shutil

import numpy as np
import pytest
from ar1 import H, built, config, record

from dydiff_jax.config import ConfigError
from dydiff_jax.data.batches import TrainBatches
from dydiff_jax.data.simulators.spring_mesh import REST
from dydiff_jax.distributed.mesh import make_mesh
from dydiff_jax.runs import commands, scoring
from dydiff_jax.runs import directory as run_directory
from dydiff_jax.training import fingerprints, stages
from dydiff_jax.training.loop import Session


class LongWork(Exception):
    """What would take long has begun."""


@pytest.fixture
def no_data(monkeypatch):
    """Opening the data is long work."""

    def begin(*args):
        raise LongWork

    monkeypatch.setattr(commands, "open_data", begin)


def message(kind, raw, workdir):
    """Of the refusal: one line with what is expected and found and, behind a semicolon, what to do."""
    with pytest.raises(kind) as error:
        commands.train(raw, workdir)
    text = str(error.value)
    assert "\n" not in text and "expected" in text and "found" in text, text
    assert len(text.rpartition("; ")[2]) > 10 and not (workdir / "checkpoints").exists(), text
    return text


# Options that do not belong together

SAMPLER, LEADS = "--config.system.sampler.", "--config.system.leads."
DROPOUT = "--config.networks.{}.dropout"


@pytest.mark.parametrize(
    "method, changes, begins, remedy",
    [
        ("dyffusion", dict(window__num_forecast=1), "window.num_forecast: expected 2 forecast frames or more",
         "--config.window.num_forecast=2"),
        ("dyffusion", dict(window__num_context=0), "window.num_context: expected 1 context", "num_context=1"),
        ("dropout", dict(window__num_context=0), "window.num_context: expected 1 context", "num_context=1"),
        ("dyffusion", dict(system__leads__factor=2), "system.leads.factor: expected 0", f"{LEADS}kind=linear"),
        ("dyffusion", dict(system__leads__kind="linear", system__leads__extra=1), "system.leads.extra: expected 0",
         f"{LEADS}kind=before_t1_only or"),
        ("dyffusion", dict(system__leads__kind="uniform"), "system.leads.steps: expected 2", f"{LEADS}steps"),
        ("dyffusion", dict(system__sampler__grid="first", system__sampler__count=3),
         "system.sampler.count: expected at most the 0 steps", f"{SAMPLER}count"),
        ("dyffusion", dict(system__leads__extra=3, system__sampler__grid="thin", system__sampler__count=4),
         "system.sampler.count: expected at most the 3 steps", f"{SAMPLER}count"),
        ("dyffusion", dict(system__sampler__grid="front"), "system.sampler.count: expected a number", f"{SAMPLER}grid"),
        ("dyffusion", dict(system__sampler__count=3), "system.sampler.count: expected None", f"{SAMPLER}count"),
        ("dyffusion", dict(system__sampler__rounded=True), "system.sampler.rounded: expected False",
         f"{SAMPLER}grid=front"),
        ("dyffusion", dict(system__sampler__name="naive", system__sampler__draws="step"),
         "system.sampler.draws: expected", f"{SAMPLER}draws=call"),
        ("dyffusion", dict(system__sampler__name="heun", system__sampler__last="cold"),
         "system.sampler.name: 'heun' expected draws='step'", f"{SAMPLER}draws=block"),
        ("dyffusion", dict(system__sampler__name="ancestral"), "system.sampler.name: 'ancestral' expected an",
         "--config.system.interpolator.name=gaussian"),
        ("dyffusion", dict(networks__interpolator__dropout=0.0), "networks.interpolator.dropout: expected a rate",
         DROPOUT.format("interpolator")),
        ("dropout", dict(networks__forecaster__dropout=0.0), "networks.forecaster.dropout: expected a rate",
         DROPOUT.format("forecaster")),
        ("dyffusion", dict(system__degrade=-1.0), "system.degrade: expected 0 or more", "--config.system.degrade"),
        ("perturbation", dict(system__scale=0.0), "system.scale: expected a standard deviation above 0",
         "--config.system.scale"),
    ],
)  # fmt: skip
def test_options_that_do_not_belong_together(method, changes, begins, remedy, data, no_data, tmp_path):
    text = message(ConfigError, config(data, method, **changes), tmp_path / "run")
    assert text.startswith(f"config.{begins}") and remedy in text.rpartition("; ")[2], text


# An interpolator from another run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose interpolator is trained, with the folder of its data."""
    root = tmp_path_factory.mktemp("finished")
    (root / "data").mkdir()
    record(root / "data")
    raw = config(root / "data", "dyffusion", codec__name="standardize", train__checkpoint_every=2)
    run, source = built(raw), root / "source"
    splits = commands.open_data(run.config)
    run_directory.create_or_verify(source, run.config.plain)
    run_directory.keep_card(source, commands.data_card(run.config, splits))
    stages.train_stages(
        run.stages[:1],
        lambda stage: TrainBatches(splits.train, 16, seed=0, frames=stage.frames),
        Session(make_mesh(run.config.mesh), source),
        scoring.sections(run.config),
    )
    return root


@pytest.fixture
def source(finished, tmp_path):
    """A copy of the run, to be spoiled."""
    return shutil.copytree(finished / "source", tmp_path / "source")


def consumer(finished, source, **changes):
    """The config of a run that loads the interpolator."""
    raw = config(finished / "data", "dyffusion", codec__name="standardize", train__checkpoint_every=2)
    raw.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    raw.stages = {"interpolator": {"source": str(source)}}
    return raw


def test_an_interpolator_that_fits_is_not_refused(finished, source, no_data, tmp_path):
    """Though the forecaster, its training and its seed are others."""
    changes = dict(seed=4, train__steps=9, system__forecaster__conditioning="data", system__leads__extra=2)
    with pytest.raises(LongWork):
        commands.train(consumer(finished, source, **changes), tmp_path / "run")


def absent(source, workdir):
    shutil.rmtree(source / "checkpoints/interpolator")


def elsewhere(source, workdir):
    shutil.rmtree(source)


def unfinished(source, workdir):
    shutil.rmtree(source / "checkpoints/interpolator/4")


def changed_since(source, workdir):
    """The run began with other weights."""
    identity = fingerprints.identity(source / "checkpoints/interpolator")
    workdir.mkdir()
    (workdir / "stages.json").write_text(json.dumps({"interpolator": {**identity, "sha256": 64 * "0"}}))


def with_card(**changes):
    def spoil(source, workdir):
        path = source / "statistics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


@pytest.mark.parametrize(
    "spoil, kind, said, remedy",
    [
        (absent, FileNotFoundError, "expected checkpoints of this stage, found those of []", "interpolator.source"),
        (elsewhere, FileNotFoundError, "expected config.json of a finished run, found none", "interpolator.source"),
        (unfinished, ValueError, "expected 4 steps, found 2: unfinished", "resume that run"),
        (changed_since, ValueError, "retrained: expected the weights that this run began with", "--workdir"),
        (with_card(static=["mask"]), ValueError, 'static: ["mask"] there, [] asked for', "interpolator.source"),
        (with_card(frame_shape=[8, 8, 1]), ValueError, "frame_shape: [8, 8, 1] there, [6,", "interpolator.source"),
    ],
    ids=["absent", "elsewhere", "unfinished", "changed since", "static", "grid"],
)  # fmt: skip
def test_an_interpolator_that_is_not_there_or_not_whole(
    spoil, kind, said, remedy, finished, source, no_data, tmp_path
):
    spoil(source, tmp_path / "run")
    text = message(kind, consumer(finished, source), tmp_path / "run")
    assert text.startswith(f"stage interpolator: source {source}: ") and said in text, text
    assert remedy in text.rpartition("; ")[2], text


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(window__num_forecast=H + 1), "window.num_forecast: expected 5, found 4"),
        (dict(window__num_context=2), "window.num_context: expected 2, found 1"),
        (dict(data__interval=2.0), "data.interval: expected 2.0, found nothing"),
        (dict(codec__name="identity"), "codec.name: expected identity, found standardize"),
        (dict(dataset__crop=4), "dataset.crop: expected 4, found None"),
        (dict(system__interpolator__name="noise"), "system.interpolator.name: expected noise, found dropout"),
        (dict(networks__interpolator__features=8), "networks.interpolator.features: expected 8, found 16"),
    ],
    ids=["h", "context", "data", "codec", "grid", "kind", "network"],
)
def test_an_interpolator_of_another_problem(changes, said, finished, source, no_data, tmp_path):
    text = message(ValueError, consumer(finished, source, **changes), tmp_path / "run")
    assert text.startswith(f"stage interpolator: source {source}: foreign: {said}"), text
    assert "--config.stages.interpolator.source" in text.rpartition("; ")[2]


def test_an_interpolator_of_what_the_folder_held_before(finished, source, monkeypatch, tmp_path):
    """Other numbers under the same names: known once the data are read, and before a step is compiled."""
    with_card(std=[1.5])(source, tmp_path / "run")

    def begin(*args, **kwargs):
        raise LongWork

    monkeypatch.setattr(stages, "train_stages", begin)
    text = message(ValueError, consumer(finished, source), tmp_path / "run")
    assert "foreign: expected the data of this run, found others: std" in text
    with pytest.raises(LongWork):
        commands.train(consumer(finished, finished / "source"), tmp_path / "other")


# A published set of the spring mesh


def mesh_set(folder, frames=40):
    """The points of three meshes at rest, as nn-benchmark writes them: (arrays, entries of system_meta.json)."""
    arrays, entries = {}, []
    for number in range(3):
        for key, values in (("p", 0 * REST), ("q", REST)):
            arrays[f"{number}_{key}"] = np.broadcast_to(values.reshape(100, 2), (frames, 100, 2))
        fields = {key: f"{number}_{key}" for key in ("p", "q")}
        entries.append(dict(time_step_size=0.00781, field_keys=fields))
    folder.mkdir()
    write(folder, arrays, entries)
    return arrays, entries


def write(folder, arrays, entries):
    (folder / "system_meta.json").write_text(json.dumps(dict(trajectories=entries)))
    np.savez(folder / "trajectories.npz", **arrays)


def without_description(folder, arrays, entries):
    (folder / "system_meta.json").unlink()


def without_a_named_field(folder, arrays, entries):
    write(folder, arrays, [dict(time_step_size=0.00781, field_keys=dict(q="0_q")), *entries[1:]])


def without_an_array(folder, arrays, entries):
    write(folder, {key: value for key, value in arrays.items() if key != "1_q"}, entries)


def of_shapes_that_disagree(folder, arrays, entries):
    write(folder, arrays | {"1_q": arrays["1_q"][:-1]}, entries)


@pytest.mark.parametrize(
    "spoil, kind, said, remedy",
    [
        (
            without_description,
            FileNotFoundError,
            "system_meta.json: expected the description of a set",
            "unpack",
        ),
        (
            without_a_named_field,
            ValueError,
            "system_meta.json: expected trajectories, each with the field_keys p and q",
            "unpack",
        ),
        (
            without_an_array,
            ValueError,
            "trajectories.npz: expected the array 1_q",
            "take both files from one set",
        ),
        (
            of_shapes_that_disagree,
            ValueError,
            "trajectories.npz: expected 1_p and 1_q of one shape",
            "take a set",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_mesh_set_that_is_not_whole(spoil, kind, said, remedy, tmp_path):
    arrays, entries = mesh_set(tmp_path / "set")
    raw = config(tmp_path / "set", "dyffusion")
    raw.data = dict(name="spring_mesh_file", path=str(tmp_path / "set"))
    assert len(commands.open_data(built(raw).config).train), "as it is, it is read"
    spoil(tmp_path / "set", arrays, entries)
    text = message(kind, raw, tmp_path / "run")
    assert f"{tmp_path / 'set'}/{said}" in text and remedy in text, text
    assert not (tmp_path / "run").exists()
