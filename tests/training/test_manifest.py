"""What a manifest says of a folder that is as it was, and of one that is not."""

import errno
import json
import os
import re

import pytest

from dydiff_jax.training.checkpoints import manifest

CONTENTS = {"_METADATA": b"text", "ema/d/1": bytes(range(40)), "ema/empty": b"", "params/d/2": b"\x00" * 40}


@pytest.fixture
def folder(tmp_path):
    for name, content in CONTENTS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    manifest.write(tmp_path)
    return tmp_path


def flip(path, byte, bit):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


def test_an_untouched_folder_agrees_and_nothing_else_is_written(folder):
    manifest.verify(folder)
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == sorted([*CONTENTS, "manifest.json"])
    entries = json.loads((folder / "manifest.json").read_text())["files"]
    assert {entry["name"]: entry["bytes"] for entry in entries} == {k: len(v) for k, v in CONTENTS.items()}
    empty = next(entry for entry in entries if entry["name"] == "ema/empty")
    assert empty["sha256"] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_writing_again_gives_the_same_manifest(folder):
    before = (folder / "manifest.json").read_bytes()
    manifest.write(folder)
    assert (folder / "manifest.json").read_bytes() == before


def assert_found(folder, path, places):
    for place in places:
        flip(path, *divmod(place, 8))
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: "):
            manifest.verify(folder)
        flip(path, *divmod(place, 8))
    manifest.verify(folder)


@pytest.mark.parametrize("name", [name for name in CONTENTS if CONTENTS[name]])
def test_every_flipped_bit_is_found(folder, name):
    assert_found(folder, folder / name, range(8 * len(CONTENTS[name])))


def test_a_flipped_bit_of_the_manifest_is_found(tmp_path):
    """Wherever it falls: in a name, a size, a sum, a brace or a blank."""
    (tmp_path / "1").write_bytes(b"1")
    manifest.write(tmp_path)
    path = tmp_path / "manifest.json"
    assert_found(tmp_path, path, range(0, 8 * path.stat().st_size, 3))


@pytest.mark.parametrize(
    "change, wrong",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "shorter, 39 of 40 bytes"),
        (lambda path: path.write_bytes(b""), "shorter, 0 of 40 bytes"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\x00"), "longer, 41 of 40 bytes"),
        (lambda path: path.write_bytes(bytes(40)), "another content, of the same 40 bytes"),
        (lambda path: path.unlink(), "missing"),
        (lambda path: (path.unlink(), path.parent.rmdir()), "missing"),
    ],
    ids=["truncated", "emptied", "longer", "zeros", "missing", "missing-folder"],
)
def test_what_is_wrong_is_said(folder, change, wrong):
    path = folder / "ema/d/1"
    change(path)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {wrong}')}$"):
        manifest.verify(folder)


def test_a_file_that_cannot_be_read_is_named(folder, monkeypatch):
    def broken(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(manifest, "_digest", broken)
    with pytest.raises(
        ValueError, match=r"_METADATA: cannot be read \(Input/output error\), and 3 more files$"
    ):
        manifest.verify(folder)


def test_one_part_is_compared_with_the_files_beside_it(folder):
    (folder / "params/d/2").unlink()
    manifest.verify(folder, "ema")
    flip(folder / "_METADATA", 0, 0)
    with pytest.raises(ValueError, match="_METADATA"):
        manifest.verify(folder, "ema")


def test_all_damaged_files_are_counted(folder):
    for name in ("ema/d/1", "params/d/2", "_METADATA"):
        flip(folder / name, 0, 0)
    with pytest.raises(
        ValueError, match=r"_METADATA: another content, of the same 4 bytes, and 2 more files$"
    ):
        manifest.verify(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"files": []}', "null"])
def test_what_is_not_a_manifest_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="manifest.json: not a manifest"):
        manifest.verify(folder)


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(ValueError, match="manifest.json: missing"):
        manifest.verify(tmp_path)
