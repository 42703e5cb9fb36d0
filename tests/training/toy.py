"""A task small enough to be trained, killed and trained again many times; a script that trains it.

``python toy.py WORKDIR [name=value ...]`` sets the arguments of `train`.
"""

import itertools
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from dydiff_jax.training import loop, optim, sharding
from dydiff_jax.types import Batch

BATCH_SIZE = 8
OPTIMIZER = optim.OptimizerOptions(learning_rate=1e-2, warmup_steps=3, decay="cosine", weight_decay=1e-2)
EMA = optim.EmaOptions(decay=0.99)


def make_task(width: int = 16, nan_at: int = -1, nan_steps: int = 1, pause: float = 0.0) -> loop.Task:
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

    return loop.Task(init, loss, stream, rows, ids)


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
    options = loop.TrainOptions(**({"steps": 12, "batch_size": BATCH_SIZE, "log_every": 3} | options))
    mesh = mesh or sharding.make_mesh(sharding.MeshOptions(data=1))
    task = make_task(width, nan_at, nan_steps, pause)
    return loop.train(task, options, OPTIMIZER, EMA, mesh, seed=5, workdir=pathlib.Path(workdir))


if __name__ == "__main__":
    settings = dict(argument.split("=") for argument in sys.argv[2:])
    train(sys.argv[1], **{k: float(v) if k == "pause" else int(v) for k, v in settings.items()})
