"""A task small enough to be trained, killed and trained again many times; a script that trains it.

``python toy.py WORKDIR [name=value ...]`` sets the arguments of `train`; ``python toy.py --serve`` trains on request.
"""

import contextlib
import hashlib
import itertools
import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from dydiff_jax import system
from dydiff_jax.distributed import cluster, collectives
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.training import loop, state
from dydiff_jax.training.checkpoints import manager as checkpoints
from dydiff_jax.training.task import Recipe, Task, TrainOptions
from dydiff_jax.types import Batch

BATCH_SIZE = 8
OPTIMIZER = system.OptimizerOptions(learning_rate=1e-2, warmup_steps=3, decay="cosine", weight_decay=1e-2)
EMA = system.EmaOptions(decay=0.99)


def make_task(width: int = 16, nan_at: int = -1, nan_steps: int = 1, pause: float = 0.0) -> Task:
    """Regression of noisy frames with two dense layers."""

    def init(key):
        keys = jax.random.split(key)
        return {
            "up": {"kernel": jax.random.normal(keys[0], (8, width)) / 3, "bias": jnp.zeros(width)},
            "out": {"kernel": jax.random.normal(keys[1], (width, 8)) / 3, "bias": jnp.zeros(8)},
        }

    def loss(params, batch, key):
        x = batch.frames.reshape(batch.frames.shape[0], -1)
        noisy = x + 0.1 * jax.random.normal(key, x.shape)
        hidden = jnp.tanh(noisy @ params["up"]["kernel"] + params["up"]["bias"])
        error = hidden @ params["out"]["kernel"] + params["out"]["bias"] - x
        return jnp.mean(error**2), {"largest": jnp.max(jnp.abs(error))}

    def rows(step, wanted):
        time.sleep(pause)
        rng = np.random.default_rng([7, step])
        frames = rng.standard_normal((BATCH_SIZE, 2, 2, 2, 1), dtype=np.float32)
        if nan_at <= step < nan_at + nan_steps:
            frames[3] = np.nan
        return Batch(frames[list(wanted)])

    def stream(first, wanted):
        return (rows(step, wanted) for step in itertools.count(first))

    def ids(step):
        return [f"window-{step * BATCH_SIZE + row}" for row in range(BATCH_SIZE)]

    return Task(init, loss, stream, rows, ids)


def train(workdir, mesh=None, width=16, nan_at=-1, nan_steps=1, pause=0.0, **options):
    """Trains the toy, by default on one device.

    Args:
      workdir: where to.
      mesh: the device mesh.
      width: of the hidden layer.
      nan_at: the first step with a poisoned batch, and nan_steps how many there are.
      pause: seconds that a batch takes.
      **options: of TrainOptions.
    """
    options = TrainOptions(**({"steps": 12, "batch_size": BATCH_SIZE, "log_every": 3} | options))
    mesh = mesh or meshes.make_mesh(meshes.MeshOptions(data=1))
    task = make_task(width, nan_at, nan_steps, pause)
    return loop.train(task, Recipe(options, OPTIMIZER, EMA, seed=5), mesh, pathlib.Path(workdir))


def restore(workdir, mesh, steps):
    """The state of the newest checkpoint of a run of so many steps."""
    recipe = Recipe(TrainOptions(steps, BATCH_SIZE), OPTIMIZER, EMA, seed=5)
    with (
        jax.set_mesh(mesh),
        checkpoints.Checkpoints(pathlib.Path(workdir) / "checkpoints", 2, None) as opened,
    ):
        return opened.restore(state.abstract_state(loop.initializer(make_task().init, recipe), mesh))[0]


def digest(trained):
    """A hash of every bit of a state, wherever it lies."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(trained):
        found.update(collectives.gather_to_host(leaf).tobytes())
    return found.hexdigest()


def serve():
    """For each line on stdin, a WORKDIR and its settings, a fork that trains; answers with its process number.

    Nothing of jax has run before a fork, so each is a fresh process that need not import anything again.
    """
    for line in sys.stdin:
        workdir, *settings = line.split()
        child = os.fork()
        if child == 0:
            with contextlib.redirect_stdout(sys.stderr):
                main(workdir, settings)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def main(workdir, settings):
    """Trains with the settings ``name=value``; ``fsdp=N`` takes all devices of all processes."""
    settings = dict(setting.split("=") for setting in settings)
    settings = {k: float(v) if k == "pause" else int(v) for k, v in settings.items()}
    cluster.start()
    mesh = meshes.make_mesh(meshes.MeshOptions(fsdp=settings.pop("fsdp"))) if "fsdp" in settings else None
    print(digest(train(workdir, mesh, **settings)), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        main(sys.argv[1], sys.argv[2:])
