"""A disk that is full or cannot be written: a clear error, nothing half-written, and the run can resume."""

import pathlib
import shutil
import subprocess

import pytest
import toy
from running import Server, folder, names

from dydiff_jax.training.checkpoints import manager as checkpoints
from dydiff_jax.training.checkpoints import manifest

pytestmark = pytest.mark.usefixtures("compilation_cache")
RUN = {"steps": 12, "checkpoint_every": 4, "keep_last": 3, "log_every": 100, "width": 4096}


@pytest.fixture(scope="module")
def expected(tmp_path_factory, cache_directory):
    """The hash of the last state of a run that had space enough."""
    return toy.digest(toy.train(tmp_path_factory.mktemp("undisturbed"), **RUN))


def trained(server, workdir, **settings):
    """The exit status of a run of the toy, and what it printed."""
    server.start(workdir, **RUN, **settings)
    return server.wait()


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory, cache_directory):
    """A tmpfs of 2 MB in a mount namespace of its own.

    (a server in it, the prefix of commands in it, its path there, its path here)
    """
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("no unshare or nsenter")
    place = tmp_path_factory.mktemp("small")
    mount = f"mount -t tmpfs -o size=2m tmpfs {place} && echo mounted && exec sleep 600"
    with subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        try:
            if holder.stdout.readline() != "mounted\n":
                pytest.skip(f"mounting is not allowed: {holder.stderr.read().strip()}")
            prefix = ("nsenter", f"--target={holder.pid}", "--user", "--mount", "--preserve-credentials")
            server = Server(tmp_path_factory.mktemp("server"), cache_directory, prefix)
            yield server, prefix, place, pathlib.Path(f"/proc/{holder.pid}/root{place}")
            server.close()
        finally:
            holder.kill()


def assert_refused(done, workdir, view, reason):
    """The last line names checkpoint, reason, remedy; checkpoint 4 is whole and alone."""
    status, printed = done
    assert status == 1, printed
    last = printed.strip().splitlines()[-1]
    assert (
        f"CheckpointError: checkpoint {folder(workdir)}/8 could not be written: {reason}. Free space" in last
    )
    assert "re-running the command resumes from checkpoint 4" in last
    assert names(folder(view)) == ["4"]
    manifest.verify(folder(view) / "4")


@pytest.mark.slow
def test_a_full_disk(small_disk, expected):
    """One checkpoint of 1.3 MB fits, two do not. With more space the same command ends with the same bits."""
    server, prefix, place, view = small_disk
    assert_refused(trained(server, place / "run"), place / "run", view / "run", "No space left on device")
    subprocess.run([*prefix, "mount", "-o", "remount,size=64m", str(place)], check=True)
    status, printed = trained(server, place / "run")
    assert "4 of 12 steps done" in printed
    assert (status, printed.split()[-1]) == (0, expected), printed


@pytest.mark.slow
def test_a_read_only_work_directory(small_disk):
    """Refused before any step, whether there are checkpoints or not."""
    server, prefix, place, view = small_disk
    folder(view / "empty").mkdir(parents=True)
    subprocess.run([*prefix, "mount", "-o", "remount,ro", str(place)], check=True)
    for workdir in (place / "run", place / "empty"):
        status, printed = trained(server, workdir)
        last = printed.strip().splitlines()[-1]
        refused = (
            f"CheckpointError: checkpoints cannot be written to {folder(workdir)}: Read-only file system"
        )
        assert refused in last
        assert status == 1 and "steps done" not in printed


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(tmp_path, expected, server):
    """Every file over 128 KiB is refused after the first checkpoint, as a quota would."""
    assert_refused(trained(server, tmp_path, file_limit=1 << 17), tmp_path, tmp_path, "File too large")
    status, printed = trained(server, tmp_path)
    assert (status, printed.split()[-1]) == (0, expected), printed


def test_a_work_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        checkpoints.CheckpointError, match="file/run/checkpoints/toy: Not a directory. Give a work"
    ):
        toy.train(tmp_path / "file/run")
