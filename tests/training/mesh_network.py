"""A U-ViT with a level of each kind, trained for some steps on a mesh of 8 devices, and what came of it."""

import contextlib
import functools
import gc
import os
import tempfile
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from dydiff_jax import system
from dydiff_jax.cost_model import hlo
from dydiff_jax.distributed import global_batch
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.models.layers import RULES
from dydiff_jax.models.uvit import UViT3D, UViTOptions
from dydiff_jax.training import state
from dydiff_jax.types import Batch

ONE = (1, 1, 1)
#: All (data, fsdp, tensor) of 8 devices.
MESHES = (
    (8, 1, 1),
    (4, 2, 1),
    (4, 1, 2),
    (2, 4, 1),
    (2, 2, 2),
    (2, 1, 4),
    (1, 8, 1),
    (1, 4, 2),
    (1, 2, 4),
    (1, 1, 8),
)
STEPS = 20
#: b f h w c; 8 divides batch and frames, and every dimension that the table of rules shards.
SHAPE = (8, 8, 8, 8, 2)
ACTIONS = 8
OPTIONS = UViTOptions(
    channels=(8, 16, 16), blocks=(1, 1, 2), kinds=("conv", "axial", "full"), dropout=(0.1, 0.1, 0.1),
    patch=2, head_dim=2, embed_dim=16,
)  # fmt: skip
MODEL = UViT3D(OPTIONS, out_channels=SHAPE[-1])
#: Clips nothing, so that the first moment after one step is 1 - b1 of the gradient; eps is large, or the sign of
#: what is rounding would move a parameter as far as a gradient does.
OPTIMIZER = system.OptimizerOptions(
    learning_rate=2e-4, warmup_steps=2, weight_decay=1e-2, clip_norm=1e9, eps=1e-2
)
RECIPE = system.Recipe(system.TrainOptions(STEPS, SHAPE[0]), OPTIMIZER, system.EmaOptions(decay=0.9), seed=0)
#: Halves the time of compilation; the second is an option of the jax for Python 3.11 only.
QUICK = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):
    QUICK["xla_cpu_use_fusion_emitters"] = False


class Run(NamedTuple):
    """What a training run on a mesh gave.

    Attributes:
      gradients: of every parameter at the first step.
      losses: of every step.
      final: the last state.
      flops: of one device in the compiled step.
      collectives: of the compiled step.
      log: what XLA wrote while it compiled.
    """

    gradients: dict
    losses: np.ndarray
    final: state.TrainState
    flops: int
    collectives: list[hlo.Collective]
    log: list[str]


def make_mesh(sizes):
    return meshes.make_mesh(meshes.MeshOptions(*sizes))


def init(key):
    """Parameters of the network as a fresh run has them."""
    z, logsnr, forcings = (
        jnp.zeros((1, *SHAPE[1:])),
        jnp.zeros((1, SHAPE[1])),
        jnp.zeros((1, SHAPE[1], ACTIONS)),
    )
    return MODEL.init(key, z, logsnr, forcings=forcings)["params"]


@functools.cache
def params():
    """Parameters that are nowhere zero, so that every leaf has a gradient; in numpy: nothing to compile."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        inputs = np.prod(leaf.shape[-4:-1] if path[-2].key == "conv" else leaf.shape[-2:-1])
        drawn = rng.standard_normal(leaf.shape, dtype=np.float32) / np.sqrt(inputs)
        return 1 + drawn if path[-1].key == "scale" else drawn

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, jax.random.key(0)))


def loss(params, frozen, batch, key):
    """A squared error with noise and levels of its own for each row, and dropout."""
    noise_key, dropout_key = jax.random.split(key)
    keys = jax.vmap(functools.partial(jax.random.fold_in, noise_key))(jnp.arange(len(batch.frames)))
    eps = jax.vmap(lambda key: jax.random.normal(key, SHAPE[1:]))(keys)
    rows = jax.vmap(functools.partial(jax.random.fold_in, dropout_key))(jnp.arange(len(batch.frames)))
    z, logsnr, rngs = batch.frames + eps, 3 * eps[:, :, 0, 0, 0], {"dropout": jax.random.key(0)}
    prediction = MODEL.apply({"params": params}, z, logsnr, forcings=batch.forcings, keys=rows, rngs=rngs)
    return jnp.mean((prediction - eps) ** 2), {}


def batch(step):
    """The rows of a step, in numpy."""
    rng = np.random.default_rng([3, step])
    return Batch(
        rng.standard_normal(SHAPE, dtype=np.float32),
        forcings=rng.standard_normal((*SHAPE[:2], ACTIONS), dtype=np.float32),
    )


class Fresh:
    """What is trained, from the parameters of the network."""

    rules: ClassVar = RULES
    init = staticmethod(init)
    loss = staticmethod(loss)


class Objective(Fresh):
    """The same from `params`: the network is not traced for the shapes, on each mesh anew."""

    init = staticmethod(lambda key: params())


@functools.cache
def start():
    """The state before the first step, in numpy."""
    moved = jax.eval_shape(lambda: state.state_of(params(), RECIPE))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), moved)
    return zeros.replace(params=params(), ema=params())


@contextlib.contextmanager
def written_to_stderr():
    """A list that afterwards holds what this process wrote to its standard error, C++ included."""
    lines, kept = [], os.dup(2)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines.extend(file)


@contextlib.contextmanager
def compiled_afresh():
    """Nothing comes from a cache on the disk, which would say nothing while it compiles."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        reset_cache()


@contextlib.contextmanager
def uncollected():
    """No garbage collection, which walks all that the process holds and takes a fifth of the time of tracing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@functools.cache
def run(sizes):
    """Trains from `params` on a mesh of these sizes."""
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh), uncollected():
        abstract = state.abstract_state(Objective, RECIPE, mesh)
        batched = [
            global_batch.assemble(batch(step), range(SHAPE[0]), SHAPE[0], mesh) for step in range(STEPS)
        ]
        lowered = state.make_train_step(Objective, RECIPE, abstract, {}).lower(abstract, {}, batched[0])
        with compiled_afresh(), written_to_stderr() as log:
            step = lowered.compile(compiler_options=QUICK)
        current = jax.device_put(start(), jax.tree.map(lambda leaf: leaf.sharding, abstract))
        losses = []
        for number, rows in enumerate(batched):
            current, metrics = step(current, {}, rows)
            losses.append(float(metrics["loss"]))
            if number == 0:
                moments = jax.device_get(current.opt_state[1][0].mu)
                gradients = jax.tree.map(lambda mu: mu / np.float32(1 - OPTIMIZER.b1), moments)
        program = step.as_text()
        flops, collectives = hlo.flops(program), hlo.collectives(program)
    return Run(gradients, np.asarray(losses), current, flops, collectives, log)
