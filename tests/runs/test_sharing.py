"""A stage that several runs would train alike is trained once."""

import filecmp
import json

import numpy as np
import pytest

from dydiff_jax.runs import commands, sharing
from tests import dummy

pytestmark = pytest.mark.slow  # a run is trained, though it is small

#: The second stage of another length: the first is the same.
LONGER = {"correction": {"train": {"steps": 12}}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for number in range(10):
        np.save(folder / f"{number}.npy", rng.normal(size=(20, 8, 8, 2)).astype(np.float32))
    return folder


def config(data, stages=None, **changes):
    raw = dummy.get_config("corrected")
    raw.data.path, raw.stages = str(data), stages or {}
    raw.train.update(steps=16, checkpoint_every=8, log_every=4)
    raw.evaluation.figures = ()
    raw.scores.names = ("crps",)
    raw.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return raw


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "first"
    commands.train(config(data), directory)
    return directory


def trained_stages(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return list(dict.fromkeys(json.loads(line)["stage"] for line in lines))


def test_the_stage_that_is_the_same_is_copied_and_the_other_one_trained(data, trained, tmp_path):
    asked, directory = config(data, LONGER), tmp_path / "second"
    assert sharing.take_over(asked, directory, [tmp_path / "nothing", trained]) == ["step"]
    place = "checkpoints/step/16"
    assert not filecmp.dircmp(trained / place, directory / place).diff_files
    commands.train(asked, directory)
    assert trained_stages(directory) == ["correction"]
    assert sharing.take_over(asked, directory, [trained]) == [], "it has them by now"


def test_what_is_the_same_in_all_stages_is_copied_whole(data, trained, tmp_path):
    assert sharing.take_over(config(data), tmp_path / "second", [trained]) == ["step", "correction"]
    folder = commands.train(config(data), tmp_path / "second")
    found, expected = (
        json.loads((place / "metrics.json").read_text())["scores"]
        for place in (folder, trained / "eval/step_16")
    )
    assert found == expected


@pytest.mark.parametrize(
    "changes",
    [dict(seed=1), dict(optimizer__learning_rate=3e-3), dict(dataset__stride=2), dict(initial="elsewhere")],
    ids=lambda changes: next(iter(changes)),
)
def test_what_differs_is_not(data, trained, tmp_path, changes):
    assert sharing.take_over(config(data, **changes), tmp_path / "second", [trained]) == []
    assert not (tmp_path / "second").exists()


def test_what_is_not_finished_is_not(data, trained, tmp_path):
    longer = config(data, {"step": {"train": {"steps": 17}}})
    assert sharing.take_over(longer, tmp_path / "second", [trained]) == []
