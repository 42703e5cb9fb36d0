"""A work directory belongs to one configuration and to one set of data, wherever it lies."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from dydiff_jax import build
from dydiff_jax.config import plain
from dydiff_jax.data.card import DataCard
from dydiff_jax.distributed.mesh import make_mesh
from dydiff_jax.runs import directory, scoring
from dydiff_jax.systems import SYSTEMS
from dydiff_jax.training import fingerprints
from dydiff_jax.types import Batch, DataSpec
from tests import small

SPEC = DataSpec((16, 16, 2), ("u", "v"), "m/s", 0.25, "s")
CARD = DataCard(SPEC, (0.5, -3.0), (2.0, 0.1))
CONFIG = {"networks": {"denoiser": {"size": "tiny", "width": 64}}, "seed": 0}


# The config of a run


def test_the_first_start_writes_and_later_ones_accept_the_same_configuration(tmp_path):
    path = tmp_path / "new" / "run"
    directory.create_or_verify(path, CONFIG)
    assert json.loads((path / "config.json").read_text()) == CONFIG
    directory.create_or_verify(path, dict(reversed(CONFIG.items())))
    assert [file.name for file in path.iterdir()] == ["config.json"]


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    directory.create_or_verify(tmp_path, CONFIG)
    other = {"networks": {"denoiser": {"size": "tiny", "width": 128, "depth": 2}}, "seed": 0}
    with pytest.raises(ValueError) as error:
        directory.create_or_verify(tmp_path, other)
    lines = str(error.value).splitlines()
    assert "  networks.denoiser.width: 64 there, 128 asked for" in lines
    assert "  networks.denoiser.depth: absent there, 2 asked for" in lines
    assert not any("seed" in line or "size" in line for line in lines)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_a_run_may_go_on_elsewhere(tmp_path):
    """Hardware and places may change, and the file keeps those that the run began with; others may not."""
    began = CONFIG | {"mesh": {"data": 8}, "loader": {"threads": 4}, "stages": {"step": {"source": "here"}}}
    directory.create_or_verify(tmp_path, began)
    moved = began | {"mesh": {"data": 2, "fsdp": 4}, "stages": {"step": {"source": "there"}}, "initial": "x"}
    directory.create_or_verify(tmp_path, moved)
    assert json.loads((tmp_path / "config.json").read_text()) == began
    with pytest.raises(ValueError, match="  seed: 0 there, 1 asked for"):
        directory.create_or_verify(tmp_path, began | {"seed": 1})
    with pytest.raises(ValueError, match="  evaluation: absent there, {} asked for"):
        directory.create_or_verify(tmp_path, began | {"evaluation": {}})


def test_key_that_is_gone_is_a_difference():
    assert directory.differences({"a": {"b": None}}, {"a": {}}) == ["a.b: null there, absent now"]
    assert directory.differences(CONFIG, CONFIG) == []


def test_broken_configuration_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        directory.create_or_verify(tmp_path, CONFIG)


def test_checkpoints_without_configuration_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"no config\.json"):
        directory.create_or_verify(tmp_path, CONFIG)


@pytest.mark.parametrize("method", ["dynamical", "regression"])
def test_what_is_free_at_evaluation_is_not_what_was_trained(method):
    config = plain(small.config(method))
    free = directory.free_keys(config)
    assert set(directory.EVALUATION_SECTIONS) <= set(config) & set(free)
    assert {"mesh", "loader", "evaluation", "scores"} <= set(free)
    assert {key for key in free if key.startswith("system.")} == {
        f"system.{key}" for key in SYSTEMS[method].options.free
    }
    kept = directory.without(config, free)
    trained = {
        "seed",
        "data",
        "window",
        "dataset",
        "codec",
        "networks",
        "conditions",
        "train",
        "optimizer",
        "ema",
    }
    assert trained <= kept.keys() and not set(free) & kept.keys()
    for key in trained:
        assert kept[key] == config[key]
    assert kept["system"] == {key: value for key, value in config["system"].items() if key != "sampler"}


def test_a_trained_run_is_evaluated_with_what_is_free_alone(tmp_path):
    directory.create_or_verify(tmp_path, plain(small.config("dynamical,size=tiny")))
    free = small.config("dynamical,size=tiny", system__sampler__nfe=12, evaluation__members=3, mesh__fsdp=2)
    directory.check_trained(tmp_path, plain(free))
    other = small.config("dynamical,size=tiny", system__process__eta=0.9)
    with pytest.raises(
        ValueError, match="trained with another config:\n  system.process.eta: 0.5 there, 0.9"
    ):
        directory.check_trained(tmp_path, plain(other))
    with pytest.raises(FileNotFoundError, match="train first"):
        directory.check_trained(tmp_path / "nothing", plain(free))


# Its data


def test_the_first_statistics_hold_for_the_whole_run(tmp_path):
    """Also where another computer adds the same numbers up to other last digits: the file's are compiled in."""
    assert directory.keep_card(tmp_path, CARD) == CARD
    text = (tmp_path / "statistics.json").read_text()
    rounded = dataclasses.replace(CARD, mean=(0.5 + 1e-9, -3.0), std=(2.0, 0.1 - 1e-9))
    assert rounded != CARD
    assert directory.keep_card(tmp_path, rounded) == CARD
    assert (tmp_path / "statistics.json").read_text() == text


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": (0.5, -3.00001)},
        {"std": (2.00001, 0.1)},
        {"mean": (0.5,)},
        {"unit": "km/h"},
        {"frame_shape": (16, 32, 2)},
        {"forcings": ("insolation",)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_data_are_refused(tmp_path, changes):
    directory.keep_card(tmp_path, CARD)
    (name,) = changes
    other = changes if name in ("mean", "std") else {"spec": SPEC._replace(**changes)}
    with pytest.raises(ValueError, match=f"not the data that the run began with:\n  {name}: "):
        directory.keep_card(tmp_path, dataclasses.replace(CARD, **other))


# What its weights depend on


def fingerprint(**changes):
    """Of the only stage of the miniature."""
    config = build.load(small.config("dynamical,size=tiny", **changes))
    (stage,) = build.build(config, build.spec_card(config)).stages
    return fingerprints.fingerprint(stage, scoring.sections(config), {})


def test_the_fingerprint_follows_what_is_learnt_and_not_where():
    first = fingerprint()
    free = dict(mesh__fsdp=8, loader__threads=2, system__sampler__nfe=12, evaluation__members=3)
    assert fingerprint(**free, train__checkpoint_every=7, train__log_every=7) == first
    for changes in (
        dict(optimizer__learning_rate=1e-4),
        dict(train__steps=7777),
        dict(seed=1),
        dict(system__process__eta=0.25),
        dict(networks__denoiser__embed_dim=32),
        dict(dataset__stride=2),
        dict(conditions__copy_path=False),
    ):
        assert fingerprint(**changes) != first, changes


# What is measured after training


class Measured:
    """A system of which a number and a vector are measured."""

    def calibrate(self, weights, batch, key):
        return {"mean": batch.frames.mean(), "channels": batch.frames.mean((0, 1, 2, 3))}


@pytest.fixture
def run():
    config = build.load(small.config("dynamical,size=tiny", mesh__data=1))
    made = build.build(config, build.spec_card(config))
    return dataclasses.replace(made, system=Measured())


def test_a_calibration_is_measured_once_and_moves_with_the_weights(run, tmp_path):
    mesh, reads = make_mesh(run.config.mesh), []

    def batch():
        reads.append(1)
        shape = (4, run.config.window.num_frames, *run.card.spec.frame_shape)
        return Batch(np.random.default_rng(0).normal(size=shape).astype(np.float32))

    identity = {"step": 3, "sha256": "abc"}
    with pytest.raises(FileNotFoundError, match="run --mode=eval with them once"):
        directory.calibration(tmp_path / "run", run, mesh, {}, identity, None)
    (tmp_path / "run").mkdir()
    first = directory.calibration(tmp_path / "run", run, mesh, {}, identity, batch)
    assert first["channels"].shape == (2,) and first["mean"].shape == ()
    shutil.move(tmp_path / "run", tmp_path / "moved")
    for source in (None, batch):
        again = directory.calibration(tmp_path / "moved", run, mesh, {}, identity, source)
        assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, again)), strict=True))
    assert len(reads) == 1
    directory.calibration(
        tmp_path / "moved", run, mesh, {}, identity | {"sha256": "of a retrained stage"}, batch
    )
    assert len(reads) == 2


def test_the_cost_of_training_is_that_of_each_stage(tmp_path):
    """100 steps at 10 a second and 100 at 20, then 50 at 5."""
    lines = [("a", 100, 10.0), ("a", 200, 20.0), ("b", 50, 5.0)]
    text = "".join(
        json.dumps({"stage": stage, "step": step, "steps_per_second": rate}) + "\n"
        for stage, step, rate in lines
    )
    (tmp_path / "metrics.jsonl").write_text(text)
    found = directory.trained(tmp_path)
    assert found == {"a": (200, 15.0, 15.0), "b": (50, 10.0, 5.0)}
    assert directory.trained(tmp_path / "elsewhere") == {}
