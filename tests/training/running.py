"""Runs of the toy in processes of their own, and what runs leave."""

import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import toy
from jax.experimental.compilation_cache.compilation_cache import reset_cache

#: Processes see the package that these tests belong to, wherever they are started.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
#: Seconds of compilation from which on a program is cached.
LEAST = "0.1"
#: What the speed of a run decides.
TIMED = ("steps_per_second", "goodput", "seconds", "starts")


def read_lines(workdir):
    """The lines of metrics.jsonl."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def metrics_of(workdir):
    """The lines of a run without what its speed decides."""
    return [{k: v for k, v in line.items() if k not in TIMED} for line in read_lines(workdir)]


def folder(workdir, stage=toy.NAME):
    """The checkpoints of a stage."""
    return pathlib.Path(workdir) / "checkpoints" / stage


def names(directory):
    """What is in a directory."""
    return sorted(path.name for path in directory.iterdir())


def saved_steps(workdir, stage=toy.NAME):
    """The steps of the checkpoints of a stage."""
    return sorted(int(path.name) for path in folder(workdir, stage).glob("[0-9]*") if path.name.isdigit())


def assert_same_bits(found, expected):
    """Two trees agree in structure, dtypes and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def assert_same_run(workdir, found, reference):
    """A run ended as the reference did, (work directory, last state), and logged the same."""
    expected_workdir, expected = reference
    assert_same_bits(found, expected)
    assert metrics_of(workdir) == metrics_of(expected_workdir)


def set_cache(directory, least):
    reset_cache()
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


class Server:
    """A process that has imported everything, whose forks train and are killed."""

    def __init__(self, directory, cache, prefix=()):
        """Starts it; what its forks print is in ``directory``."""
        self._out = pathlib.Path(directory) / "printed"
        self.child = None
        environment = ENVIRONMENT | {
            "JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": LEAST,
        }  # fmt: skip
        with open(self._out, "w") as out:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, toy.__file__, "--serve"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True, env=environment,
            )  # fmt: skip

    def start(self, workdir, **settings):
        """Begins to train; see `toy.main`."""
        self._seen = self._out.stat().st_size
        settings = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
        print(workdir, *settings, file=self._process.stdin, flush=True)
        self.child = int(self._process.stdout.readline())

    def wait(self):
        """Waits for the end; the exit status, negative for a signal, and what was printed."""
        status = int(self._process.stdout.readline())
        self.child = None
        return status, self._out.read_bytes()[self._seen :].decode()

    def wait_for(self, condition, seconds=60):
        """Waits until the condition holds of the run."""
        end = time.monotonic() + seconds
        while not condition():
            ended = select.select([self._process.stdout], [], [], 0)[0]
            assert not ended and time.monotonic() < end, f"no progress: {self._out.read_text()[-2000:]}"
            time.sleep(0.001)

    def signal(self, number):
        """Sends a signal to the run; its exit status and what it printed."""
        os.kill(self.child, number)
        return self.wait()

    def close(self):
        """Ends it, and a run that a failed test left."""
        if self.child is not None:
            os.kill(self.child, signal.SIGKILL)
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=20)
