"""The work directory belongs to one configuration."""

import json

import pytest

from dydiff_jax.runs import files, workdir

CONFIG = {"model": {"size": "tiny", "width": 64}, "seed": 0}


def test_claim_writes_and_accepts_the_same_configuration(tmp_path):
    path = tmp_path / "new" / "run"
    workdir.create_or_verify(path, json.dumps(CONFIG))
    assert json.loads((path / "config.json").read_text()) == CONFIG
    workdir.create_or_verify(path, json.dumps(CONFIG, indent=7, sort_keys=True))
    assert [file.name for file in path.iterdir()] == ["config.json"]


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    workdir.create_or_verify(tmp_path, json.dumps(CONFIG))
    other = {"model": {"size": "tiny", "width": 128, "depth": 2}, "seed": 0}
    with pytest.raises(ValueError) as error:
        workdir.create_or_verify(tmp_path, json.dumps(other))
    lines = str(error.value).splitlines()
    assert "  model.width: 64 there, 128 asked for" in lines
    assert "  model.depth: absent there, 2 asked for" in lines
    assert not any("seed" in line or "size" in line for line in lines)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_a_run_may_go_on_elsewhere(tmp_path):
    """Free sections may change, and the file keeps those that the run began with; others may not."""
    began = CONFIG | {"mesh": {"data": 8}, "input": {"threads": 4}}
    workdir.create_or_verify(tmp_path, json.dumps(began), free=("mesh", "input"))
    workdir.create_or_verify(
        tmp_path, json.dumps(began | {"mesh": {"data": 2, "fsdp": 4}}), free=("mesh", "input")
    )
    assert json.loads((tmp_path / "config.json").read_text()) == began
    with pytest.raises(ValueError, match="  seed: 0 there, 1 asked for"):
        workdir.create_or_verify(tmp_path, json.dumps(began | {"seed": 1}), free=("mesh", "input"))


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    files.write_text(tmp_path / "table.md", "old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(tmp_path / "table.md", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]
    assert (tmp_path / "table.md").read_text() == "old"


def test_key_that_is_gone_is_a_difference():
    assert workdir.differences({"a": {"b": None}}, {"a": {}}) == ["a.b: null there, absent now"]
    assert workdir.differences(CONFIG, CONFIG) == []


def test_broken_configuration_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        workdir.create_or_verify(tmp_path, json.dumps(CONFIG))


def test_checkpoints_without_configuration_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"no config\.json"):
        workdir.create_or_verify(tmp_path, json.dumps(CONFIG))


def test_write_json_whole_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "results.json"
    files.write_json(path, [1.5, None])
    with pytest.raises(ValueError):
        files.write_json(path, [float("nan")])
    assert json.loads(path.read_text()) == [1.5, None]
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
