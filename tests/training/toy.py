"""A stage small enough to be trained, killed and trained again many times; a script that trains it, or two of it.

``python toy.py WORKDIR [name=value ...]`` sets the arguments of `train`; ``python toy.py --serve`` trains on request.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dydiff_jax import system
from dydiff_jax.distributed import cluster, collectives
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.models.layers import RULES
from dydiff_jax.runs import files
from dydiff_jax.system import Recipe, Stage, TrainOptions
from dydiff_jax.training import loop, stages, state
from dydiff_jax.training.checkpoints import folders, manifest
from dydiff_jax.training.checkpoints import manager as checkpoints
from dydiff_jax.training.fingerprints import Sections
from dydiff_jax.types import Batch

BATCH_SIZE = 8
OPTIMIZER = system.OptimizerOptions(learning_rate=1e-2, warmup_steps=3, decay="cosine", weight_decay=1e-2)
EMA = system.EmaOptions(decay=0.99)
NAME = "toy"
#: The run that most tests disturb.
RUN = {"steps": 40, "checkpoint_every": 4, "validate_every": 8, "keep_best": True}


class Objective(NamedTuple):
    """What a stage minimises."""

    init: Callable
    loss: Callable
    rules: tuple = RULES


class Examples(NamedTuple):
    """The batches of a stage."""

    stream: Callable
    rows: Callable
    ids: Callable


def make_objective(width: int = 16) -> Objective:
    """Regression of noisy frames with two dense layers; of an earlier stage, if there is one, only what it leaves."""

    def init(key):
        keys = jax.random.split(key)
        return {
            "up": {"kernel": jax.random.normal(keys[0], (8, width)) / 3, "bias": jnp.zeros(width)},
            "out": {"kernel": jax.random.normal(keys[1], (width, 8)) / 3, "bias": jnp.zeros(8)},
        }

    def network(params, x):
        hidden = jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"])
        return hidden @ params["out"]["kernel"] + params["out"]["bias"]

    def loss(params, frozen, batch, key):
        x = batch.frames.reshape(batch.frames.shape[0], -1)
        noisy = x + 0.1 * jax.random.normal(key, x.shape)
        for earlier in frozen.values():
            x = x - network(earlier, noisy)
        error = network(params, noisy) - x
        return jnp.mean(error**2), {"largest": jnp.max(jnp.abs(error))}

    return Objective(init, loss)


def make_examples(nan_at: int = -1, nan_steps: int = 1, pause: float = 0.0, stop_at: int = -1) -> Examples:
    """White noise, poisoned at some steps; SIGTERM arrives once ``stop_at`` steps are done."""

    def rows(step, wanted):
        time.sleep(pause)
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        rng = np.random.default_rng([7, step])
        frames = rng.standard_normal((BATCH_SIZE, 2, 2, 2, 1), dtype=np.float32)
        if nan_at <= step < nan_at + nan_steps:
            frames[3] = np.nan
        return Batch(frames[list(wanted)])

    def stream(first, wanted):
        return (rows(step, wanted) for step in itertools.count(first))

    def ids(step):
        return [f"window-{step * BATCH_SIZE + row}" for row in range(BATCH_SIZE)]

    return Examples(stream, rows, ids)


def make_recipe(**options) -> Recipe:
    """The recipe of the toy; ``options`` are those of TrainOptions."""
    options = {"steps": 12, "batch_size": BATCH_SIZE, "log_every": 3} | options
    return Recipe(TrainOptions(**options), OPTIMIZER, EMA, seed=5)


def make_stage(width: int = 16, **options) -> Stage:
    """The toy as a stage of its own."""
    return Stage(NAME, make_objective(width), make_recipe(**options))


def session(workdir, mesh=None) -> loop.Session:
    """A start of a run, by default on one device."""
    return loop.Session(mesh or meshes.make_mesh(meshes.MeshOptions(data=1)), pathlib.Path(workdir))


@functools.cache
def compiled_loss():
    """The loss of the toy."""
    return jax.jit(make_objective().loss)


def score(ema, heartbeat):
    """A validation score: the error of a fixed batch."""
    batch, key = make_examples().rows(1000, range(BATCH_SIZE)), jax.random.key(9)
    value, _ = compiled_loss()(ema, {}, batch, key)
    return {"valid_error": value.item(), "valid_bias": jnp.sum(ema["out"]["bias"]).item()}


def train(workdir, mesh=None, width=16, nan_at=-1, nan_steps=1, pause=0.0, stop_at=-1, **options):
    """Train the toy, by default on one device; with ``validate_every``, validated by `score`.

    Args:
      workdir: where to.
      mesh: the device mesh.
      width: of the hidden layer.
      nan_at: the first step with a poisoned batch, and nan_steps how many there are.
      pause: seconds that a batch takes.
      stop_at: steps done when SIGTERM arrives.
      **options: of TrainOptions.
    """
    stage, examples = make_stage(width, **options), make_examples(nan_at, nan_steps, pause, stop_at)
    validate = score if "validate_every" in options else None
    return loop.train(stage, {}, examples, session(workdir, mesh), fingerprint="abc", validate=validate)


CONFIG = {"data": {"name": "noise"}, "networks": {"size": 1}, "system": {"eta": 0.5, "sampler": {"nfe": 4}}}
SECTIONS = Sections(CONFIG, ("data",), ("system.sampler",))


def two_stages(source=None, **options) -> list[Stage]:
    """Two of the toy, of which the second learns what the first leaves."""
    first = dataclasses.replace(make_stage(**options), name="first", source=source, reads=("networks",))
    return [
        first,
        dataclasses.replace(first, name="second", needs=("first",), source=None, reads=("system",)),
    ]


def train_two(workdir, mesh=None, pause=0.0, sections=SECTIONS, source=None, **options):
    """Train both stages; the weights of each."""
    made, examples = two_stages(source, **options), make_examples(pause=pause)
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    files.write_json(pathlib.Path(workdir) / "config.json", sections.config)
    return stages.train_stages(made, lambda stage: examples, session(workdir, mesh), sections)


def restore(workdir, mesh, steps):
    """The state of the newest checkpoint of a run of so many steps."""
    stage, here = make_stage(steps=steps), session(workdir, mesh)
    with jax.set_mesh(mesh), checkpoints.Checkpoints(here.checkpoints(NAME), 2, None, "abc") as opened:
        return opened.restore(state.abstract_state(stage.objective, stage.recipe, mesh))[0]


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
    """Train with the settings ``name=value``, and print the digest of the result.

    Beside those of `train` there are ``two=1`` for two stages, ``fsdp=N`` for all devices of all processes,
    ``slow_hash=N`` for a checkpoint N whose manifest takes seconds, and ``file_limit=N`` for files of N bytes at most
    after the first checkpoint.
    """
    settings = dict(setting.split("=") for setting in settings)
    settings = {name: json.loads(value) for name, value in settings.items()}
    cluster.start()
    mesh = meshes.make_mesh(meshes.MeshOptions(fsdp=settings.pop("fsdp"))) if "fsdp" in settings else None
    hash_slowly(settings.pop("slow_hash", None))
    limit_files(settings.pop("file_limit", None))
    act = train_two if settings.pop("two", 0) else train
    print(digest(act(workdir, mesh, **settings)), flush=True)


def hash_slowly(step):
    """Take seconds for the manifest of a checkpoint, so that a kill meets it."""
    digest = manifest._digest

    def slow(path):
        time.sleep(0.2 if f"/{step}.partial/" in str(path) else 0)
        return digest(path)

    manifest._digest = slow


def limit_files(size):
    """Let the system refuse larger files once there is a checkpoint, as a quota would."""
    commit = folders.commit

    def limited(directory, step):
        commit(directory, step)
        if size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    folders.commit = limited


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        main(sys.argv[1], sys.argv[2:])
