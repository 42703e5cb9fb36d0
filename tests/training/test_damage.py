"""A run whose newest checkpoint is damaged names the file, resumes from the one before, and ends the same."""

import errno
import os
import random
import shutil
import signal
import time

import pytest
import test_checkpoints
import toy
from running import assert_same_bits, assert_same_run, names
from running import folder as toy_folder

from dydiff_jax.training.checkpoints import folders, loading, manifest
from dydiff_jax.training.checkpoints import manager as checkpoints

pytestmark = pytest.mark.usefixtures("compilation_cache")
RUN = {"steps": 12, "checkpoint_every": 4, "keep_last": 3, "validate_every": 4}


@pytest.fixture(scope="module")
def reference(tmp_path_factory, cache_directory):
    """The work directory and the last state of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("reference")
    return workdir, toy.train(workdir, **RUN)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory of checkpoints 4 and 8, the abstract state, and the state that both hold."""
    directory = tmp_path_factory.mktemp("saved")
    abstract = test_checkpoints.abstract_of(test_checkpoints.ONE)
    current = test_checkpoints.random_state(abstract)
    test_checkpoints.save(directory, current, steps=(4, 8))
    return directory, abstract, current


@pytest.fixture
def copied(saved, tmp_path):
    """As `saved`, in a copy to be damaged."""
    directory, abstract, current = saved
    shutil.copytree(directory, tmp_path / "checkpoints")
    return tmp_path / "checkpoints", abstract, current


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip_a_bit(path, rng):
    content = bytearray(path.read_bytes())
    if not content:
        return False
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return True


def open_all(directory, keep_last=2, keep_every=None, fingerprint=""):
    return checkpoints.Checkpoints(directory, keep_last, keep_every, fingerprint)


FLIPPED = [
    "params/d/*", "opt_state/ocdbt.process_0/d/*", "ema/manifest.ocdbt", "counters/_METADATA", "params/_sharding",
    "ema/array_metadatas/*", "_CHECKPOINT_METADATA", "commit_success.txt", "manifest.json",
]  # fmt: skip
DAMAGES = {
    "truncated": ("opt_state/ocdbt.process_0/d/*", lambda path: path.write_bytes(path.read_bytes()[:-7])),
    "emptied": ("params/manifest.ocdbt", lambda path: path.write_bytes(b"")),
    "zeros": ("params/d/*", lambda path: path.write_bytes(bytes(path.stat().st_size))),
    "missing-file": ("ema/_METADATA", lambda path: path.unlink()),
    "missing-part": ("opt_state", shutil.rmtree),
    "missing-manifest": ("manifest.json", lambda path: path.unlink()),
    "empty-directory": ("", lambda path: (shutil.rmtree(path), path.mkdir())),
} | {f"flipped-{name}": (name, lambda path: flip_a_bit(path, random.Random(0))) for name in FLIPPED}


def damage_newest(directory, damage):
    """Spoils the newest checkpoint; the file or folder that is to blame."""
    pattern, change = DAMAGES[damage]
    newest = directory / max(names(directory), key=int)
    (path,) = newest.glob(pattern) if pattern else [newest]
    change(path)
    return path


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_restored(copied, capsys, damage):
    directory, abstract, current = copied
    path = damage_newest(directory, damage)
    with open_all(directory) as opened:
        found, notes = opened.restore(abstract)
    assert_same_bits(found, current)
    assert notes == {"count": 4}
    said = capsys.readouterr().err
    assert f"checkpoint {directory / '8'} is damaged: {path}" in said
    assert "it is kept as 8.damaged, and checkpoint 4 is used" in said
    assert names(directory) == ["4", "8.damaged"]


@pytest.mark.parametrize("damage", ["truncated", "missing-part", "missing-manifest", "flipped-params/d/*"])
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(tmp_path, reference, capsys, damage):
    workdir = tmp_path / "run"
    shutil.copytree(reference[0], workdir)
    damage_newest(toy_folder(workdir), damage)
    assert_same_run(workdir, toy.train(workdir, **RUN), reference)
    assert "8 of 12 steps done" in capsys.readouterr().err
    assert names(toy_folder(workdir)) == ["12", "12.damaged", "4", "8"]
    manifest.verify(toy_folder(workdir) / "12")


def test_a_run_resumes_from_the_checkpoint_before_a_removed_one(tmp_path, reference):
    workdir = tmp_path / "run"
    shutil.copytree(reference[0], workdir)
    shutil.rmtree(toy_folder(workdir) / "12")
    assert_same_run(workdir, toy.train(workdir, **RUN), reference)


def test_a_flipped_bit_in_any_file_is_found(copied):
    """By a run; readers need only the EMA and the files beside the parts."""
    directory, _, _ = copied
    rng, seen = random.Random(1), 0
    for path in files_of(directory / "8"):
        content = path.read_bytes()
        if flip_a_bit(path, rng):
            seen += 1
            step, ((damaged, wrong),) = folders.newest_valid(directory)
            assert (step, damaged) == (4, 8) and wrong.startswith(f"{path}: ")
            parts = path.relative_to(directory / "8").parts
            assert folders.newest_valid(directory, "ema")[0] == (
                4 if len(parts) == 1 or parts[0] == "ema" else 8
            )
            path.write_bytes(content)
    assert folders.newest_valid(directory) == (8, [])
    assert seen > 25


@pytest.mark.parametrize("name, expected", [("ema/_METADATA", 4), ("params/_METADATA", 8)])
def test_a_reader_takes_the_newest_valid_ema_and_leaves_everything_as_it_is(copied, capsys, name, expected):
    directory, abstract, current = copied
    flip_a_bit(directory / "8" / name, random.Random(0))
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    ema, step = loading.load_ema(directory, abstract.ema)
    assert step == expected
    assert_same_bits(ema, current.ema)
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before
    said = capsys.readouterr().err
    assert (f"{directory / '8'} is damaged: {directory / '8' / name}: " in said) == (expected == 4)
    with open_all(directory) as opened:
        found, notes = opened.restore(abstract)
    assert notes == {"count": 4}
    assert_same_bits(found, current)
    assert names(directory) == ["4", "8.damaged"]


def test_a_reader_that_asks_for_a_damaged_step_is_refused(copied):
    directory, abstract, _ = copied
    path = directory / "8/ema/_METADATA"
    flip_a_bit(path, random.Random(0))
    with pytest.raises(ValueError, match=f"checkpoint {directory / '8'} is damaged: {path}: another content"):
        loading.load_ema(directory, abstract.ema, step=8)
    assert loading.load_ema(directory, abstract.ema, step=4)[1] == 4


def test_a_checkpoint_that_is_removed_while_it_is_read_is_not_damaged(copied, capsys, monkeypatch):
    """The run that trains removes old checkpoints at any time."""
    directory, abstract, _ = copied
    verify = manifest.verify

    def remove_first(folder, part):
        if folder.name == "8":
            shutil.rmtree(folder)
        verify(folder, part)

    monkeypatch.setattr(manifest, "verify", remove_first)
    assert loading.load_ema(directory, abstract.ema)[1] == 4
    assert "damaged" not in capsys.readouterr().err


def test_without_a_valid_checkpoint_a_run_never_starts_afresh(copied):
    """All are named; nothing is moved, so that the next attempt says the same; also what was quarantined counts."""
    directory, abstract, _ = copied
    rng = random.Random(0)
    flip_a_bit(directory / "4/_CHECKPOINT_METADATA", rng)
    (directory / "8/manifest.json").unlink()
    for _ in range(2):
        for load in (
            lambda: open_all(directory).restore(abstract),
            lambda: loading.load_ema(directory, abstract.ema),
        ):
            with pytest.raises(ValueError) as error:
                load()
            message = str(error.value)
            assert f"no checkpoint in {directory} is valid" in message
            assert f"8: {directory / '8/manifest.json'}: missing" in message
            assert f"4: {directory / '4/_CHECKPOINT_METADATA'}: another content" in message
            assert "from a copy" in message and "another work directory" in message
    assert names(directory) == ["4", "8"]
    shutil.rmtree(directory / "4")
    folders.quarantine(directory, 8)
    with pytest.raises(ValueError, match=r"8\.damaged: quarantined before"):
        open_all(directory).restore(abstract)


def test_a_new_run_has_nothing_to_restore(tmp_path):
    """Leftovers of a first save that was killed are none either."""
    abstract = test_checkpoints.abstract_of(test_checkpoints.ONE)
    for leftover in ("4.partial", "4.partial.orbax-checkpoint-tmp", "4.removed"):
        (tmp_path / leftover / "params").mkdir(parents=True)
    with open_all(tmp_path) as opened:
        assert opened.restore(abstract) is None
    assert names(tmp_path) == []


def test_damaged_checkpoints_are_not_among_those_kept(copied):
    """With keep_last=1 the valid one goes only when another is whole; names of those quarantined stay apart."""
    directory, abstract, current = copied
    rng = random.Random(0)
    for expected in (["4", "8.damaged"], ["8", "8.damaged"]):
        flip_a_bit(directory / "8/params/_METADATA", rng) if expected[0] == "4" else None
        with open_all(directory, keep_last=1) as opened:
            assert opened.restore(abstract)[1] == {"count": int(expected[0])}
            assert names(directory) == expected
            opened.save(8, current, {"count": 8})
        assert names(directory) == ["8", "8.damaged"]
    flip_a_bit(directory / "8/params/_METADATA", rng)
    test_checkpoints.save(directory / "other", current, steps=(4,))
    (directory / "other/4").rename(directory / "4")
    (directory / "other").rmdir()
    with open_all(directory, keep_last=1) as opened:
        opened.restore(abstract)
    assert names(directory) == ["4", "8.damaged", "8.damaged-2"]


def test_checkpoints_without_a_manifest_are_not_among_those_kept(copied):
    directory, _, current = copied
    (directory / "8/manifest.json").unlink()
    with open_all(directory, keep_last=2) as opened:
        opened.save(12, current, {})
    assert names(directory) == ["12", "4", "8"]


def test_a_valid_checkpoint_that_does_not_fit_is_refused_and_stays(copied):
    directory, abstract, _ = copied
    wide = test_checkpoints.abstract_of(test_checkpoints.ONE, width=32)
    with open_all(directory) as opened, pytest.raises(ValueError, match="does not fit the model"):
        opened.restore(wide)
    with open_all(directory, fingerprint="abc") as opened, pytest.raises(ValueError) as error:
        opened.restore(abstract)
    assert f"checkpoint {directory / '8'} was made with another configuration" in str(error.value)
    assert "expected the fingerprint 'abc', found ''" in str(error.value)
    assert names(directory) == ["4", "8"]


def test_a_checkpoint_of_the_same_configuration_is_restored(tmp_path, saved):
    _, abstract, current = saved
    with open_all(tmp_path, fingerprint="abc") as opened:
        opened.save(1, current, {"a": [1, None, "x"]})
        found, notes = opened.restore(abstract)
    assert_same_bits(found, current)
    assert notes == {"a": [1, None, "x"]}


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


PLACES = {
    "sync": (checkpoints.ocp, "save_checkpointables_async"),
    "manifest": (manifest, "write"),
    "prune": (folders, "prune"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_save_that_fails_says_so_at_the_next_save(copied, monkeypatch, place):
    """In the background or not; nothing half-written is left and the checkpoints before are as they were."""
    directory, abstract, current = copied
    with monkeypatch.context() as patch, pytest.raises(checkpoints.CheckpointError) as error:
        patch.setattr(*PLACES[place], no_space)
        with open_all(directory) as opened:
            opened.save(12, current, {})
            opened.save(16, current, {})
    assert isinstance(error.value, OSError)
    newest = 12 if place == "prune" else 8
    assert f"checkpoint {directory / '12'} could not be written: [Errno 28] No space left on device" in str(
        error.value
    )
    assert f"resumes from checkpoint {newest}" in str(error.value)
    with open_all(directory) as opened:
        assert folders.whole(directory)[-1] == newest
        assert_same_bits(opened.restore(abstract)[0], current)
    assert not [name for name in names(directory) if not name.isdigit()]


def test_what_is_half_deleted_is_no_checkpoint(copied, monkeypatch):
    directory, abstract, current = copied

    def interrupted(path, ignore_errors=False):
        if not ignore_errors:
            no_space()

    with monkeypatch.context() as patch, pytest.raises(checkpoints.CheckpointError):
        patch.setattr(folders.shutil, "rmtree", interrupted)
        with open_all(directory, keep_last=1) as opened:
            opened.save(12, current, {})
    assert names(directory) == ["12", "4.removed", "8"]
    with open_all(directory, keep_last=1) as opened:
        assert opened.restore(abstract) is not None
    assert names(directory) == ["12", "8"]


@pytest.mark.parametrize(
    "reason, raised",
    [
        (None, checkpoints.CheckpointError),
        (SystemExit(75), checkpoints.CheckpointError),
        (KeyError("x"), KeyError),
    ],
    ids=["none", "exit", "error"],
)
def test_a_save_that_fails_last_is_not_forgotten(tmp_path, saved, monkeypatch, capsys, reason, raised):
    """Neither by a run that ends nor by one that leaves with the status of a saved one; another error comes first."""
    monkeypatch.setattr(manifest, "write", no_space)
    with pytest.raises(raised), open_all(tmp_path) as opened:
        opened.save(4, saved[2], {})
        if reason is not None:
            raise reason
    if raised is KeyError:
        assert "No space left on device" in capsys.readouterr().err
    assert names(tmp_path) == []


@pytest.mark.slow
def test_killed_while_the_manifest_is_being_written_a_run_resumes_from_the_one_before(
    tmp_path, reference, server
):
    server.start(tmp_path, **RUN, slow_hash=8)
    half = toy_folder(tmp_path) / "8.partial"
    server.wait_for(lambda: half.exists() and not list(half.glob("*.orbax*")))
    time.sleep(0.1)
    assert server.signal(signal.SIGKILL)[0] == -signal.SIGKILL
    assert names(toy_folder(tmp_path)) == ["4", "8.partial"]
    assert not (half / "manifest.json").exists()
    assert_same_run(tmp_path, toy.train(tmp_path, **RUN), reference)
    assert names(toy_folder(tmp_path)) == ["12", "4", "8"]
