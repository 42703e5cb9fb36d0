"""A disk that is full or cannot be written: a clear error, nothing half-written, and the run can go on."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import toy

from dydiff_jax.training.checkpoints import manager as checkpoints
from dydiff_jax.training.checkpoints import manifest

RUN = {"steps": 12, "checkpoint_every": 4, "keep_last": 3, "log_every": 100, "width": 4096}
TOY = pathlib.Path(toy.__file__)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The hash of the last state of a run that had space enough, on one device as those of this file."""
    return trained(tmp_path_factory.mktemp("undisturbed")).stdout.split()[-1]


def trained(workdir, prefix=(), program=(str(TOY),)):
    """A run of the toy in a process of its own."""
    settings = [f"{name}={value}" for name, value in RUN.items()]
    return subprocess.run(
        [*prefix, sys.executable, *program, str(workdir), *settings],
        capture_output=True, text=True, timeout=120, env=dict(os.environ),
    )  # fmt: skip


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 2 MB in a mount namespace of its own: (prefix of commands in it, its path there, its path here)."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("no unshare or nsenter")
    mount = f"mount -t tmpfs -o size=2m tmpfs {tmp_path} && echo mounted && exec sleep 600"
    with subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        try:
            if holder.stdout.readline() != "mounted\n":
                pytest.skip(f"mounting is not allowed: {holder.stderr.read().strip()}")
            prefix = ("nsenter", f"--target={holder.pid}", "--user", "--mount", "--preserve-credentials")
            yield prefix, tmp_path, pathlib.Path(f"/proc/{holder.pid}/root{tmp_path}")
        finally:
            holder.kill()


def assert_refused(done, workdir, view, reason):
    """The last line names checkpoint, reason, remedy; checkpoint 4 is whole and alone."""
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert (
        f"CheckpointError: checkpoint {workdir}/checkpoints/8 could not be written: {reason}. Free space"
        in last
    )
    assert "the same command goes on from checkpoint 4" in last
    assert [path.name for path in (view / "checkpoints").iterdir()] == ["4"]
    manifest.verify(view / "checkpoints/4")


def test_a_full_disk(small_disk, expected):
    """One checkpoint of 1.3 MB fits, two do not. With more space the same command ends with the same bits."""
    prefix, workdir, view = small_disk
    assert_refused(trained(workdir, prefix), workdir, view, "No space left on device")
    subprocess.run([*prefix, "mount", "-o", "remount,size=64m", str(workdir)], check=True)
    done = trained(workdir, prefix)
    assert "4 of 12 steps done" in done.stderr
    assert (done.returncode, done.stdout.split()[-1]) == (0, expected), done.stderr


FILE_LIMIT = f"""
import resource, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, {str(TOY.parent)!r})
import toy
from dydiff_jax.training import folders
settle = folders.commit
def limit(directory, step):
    settle(directory, step)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, resource.RLIM_INFINITY))
folders.commit = limit
toy.main(sys.argv[0], sys.argv[1:])
"""


def test_a_limit_on_the_size_of_files(tmp_path, expected):
    """Every file over 128 KiB is refused after the first checkpoint, as a quota would."""
    done = trained(tmp_path, program=("-c", FILE_LIMIT))
    assert_refused(done, tmp_path, tmp_path, "File too large")
    done = trained(tmp_path)
    assert (done.returncode, done.stdout.split()[-1]) == (0, expected), done.stderr


def test_a_read_only_work_directory(small_disk):
    """Refused before any step, whether there are checkpoints or not."""
    prefix, workdir, view = small_disk
    (view / "checkpoints").mkdir()
    subprocess.run([*prefix, "mount", "-o", "remount,ro", str(workdir)], check=True)
    done = trained(workdir, prefix)
    last = done.stderr.strip().splitlines()[-1]
    assert (
        f"CheckpointError: checkpoints cannot be written to {workdir}/checkpoints: Read-only file system"
        in last
    )
    assert done.returncode == 1 and "steps done" not in done.stderr


def test_a_work_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        checkpoints.CheckpointError, match="file/run/checkpoints: Not a directory. Give a work"
    ):
        toy.train(tmp_path / "file/run")
