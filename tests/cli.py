"""The commands in processes of their own that share one import: forks in which ``python -m MODULE`` begins.

Nothing of jax has run before the fork. `tests/test_end_to_end.py` starts one command the whole way, by the interpreter.
"""

import atexit
import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time

import jax

import dydiff_jax
import dydiff_jax.comparison.report
import dydiff_jax.comparison.selection
import dydiff_jax.cost_model.plan
import dydiff_jax.runs.commands
import dydiff_jax.runs.sharing  # what the commands import

ROOT = pathlib.Path(__file__).parents[1]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([__name__])


class Command:
    """``python -m LINE`` in the project's folder, started; the members are those of `subprocess.Popen`."""

    def __init__(self, line: list[str], environ: dict[str, str] | None = None):
        """Start a module with arguments, in the environment of this process unless another is given."""
        self.args, self._folder = line, tempfile.TemporaryDirectory()
        self._paths = [pathlib.Path(self._folder.name) / name for name in ("out", "err")]
        self._process = _SERVER.Process(
            target=_begin, args=(line, dict(os.environ if environ is None else environ), self._paths)
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    @property
    def printed(self) -> str:
        """Standard output so far."""
        return self._paths[0].read_text() if self._paths[0].exists() else ""

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (path.read_text() for path in self._paths)
        return out, err

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()


def run(
    line: list[str], environ: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess:
    """Run a command to its end, as `subprocess.run` does."""
    command = Command(line, environ)
    try:
        out, err = command.communicate(timeout)
    finally:
        command.kill()
    return subprocess.CompletedProcess(command.args, command.returncode, out, err)


def _begin(line: list[str], environ: dict[str, str], paths: list[pathlib.Path]) -> None:
    for number, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(ROOT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    jax.config.update("jax_num_cpu_devices", int(environ["JAX_NUM_CPU_DEVICES"]))
    dydiff_jax.BEGAN = time.monotonic()
    sys.argv = list(line)
    try:
        runpy.run_module(line[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
