"""A file is there whole or not at all."""

import json

import numpy as np
import pytest

from dydiff_jax.runs import files


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    files.write_text(tmp_path / "table.md", "old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(tmp_path / "table.md", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]
    assert (tmp_path / "table.md").read_text() == "old"


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    files.write_json(path, [1.5, None])
    with pytest.raises(ValueError):
        files.write_json(path, [float("nan")])
    assert json.loads(path.read_text()) == [1.5, None]
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True, False])}
    files.write_npz(tmp_path / "several.npz", arrays)
    files.write_npy(tmp_path / "one.npy", arrays["a"])
    with np.load(tmp_path / "several.npz") as found:
        assert {name: found[name].tolist() for name in found} == {k: v.tolist() for k, v in arrays.items()}
    np.testing.assert_array_equal(np.load(tmp_path / "one.npy"), arrays["a"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.npy", "several.npz"]


def test_a_fingerprint_is_of_the_values_and_not_of_their_order():
    assert files.fingerprint({"a": 1, "b": [2]}) == files.fingerprint({"b": [2], "a": 1})
    assert files.fingerprint({"a": 1}) != files.fingerprint({"a": 2})
