"""The training loop, from the first step or from the newest checkpoint to the last step.

The batch, the key and the learning rate of a step are functions of the seed and of the train state, which a
checkpoint holds whole. A run that is killed at any time and started again therefore ends with the bits of one
that was not.
"""

import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from dydiff_jax.training import batches, optim
from dydiff_jax.training.checkpoints import Checkpoints
from dydiff_jax.training.logging import MetricsLog, message, progress_bar
from dydiff_jax.training.monitor import Monitor, StopRequest
from dydiff_jax.training.state import TrainState, abstract_state, init_state, make_train_step
from dydiff_jax.training.task import Task, TrainOptions
from dydiff_jax.types import Batch

#: Exit status of a run that saved and stopped on SIGTERM: EX_TEMPFAIL, run the same command again.
EXIT_STOPPED = 75


def train(
    task: Task,
    options: TrainOptions,
    optimizer_options: optim.OptimizerOptions,
    ema_options: optim.EmaOptions,
    mesh: Mesh,
    seed: int,
    workdir: str | os.PathLike,
) -> TrainState:
    """Trains to ``options.steps``, going on from the newest checkpoint of the work directory.

    Writes ``metrics.jsonl``, TensorBoard events and ``checkpoints`` there; returns the last state.

    Raises:
      ValueError: the mesh does not divide the batch, the warm-up is too long, or the checkpoint does not fit.
      FloatingPointError: more than ``max_bad_steps`` steps in a row had a non-finite loss or gradient.
      SystemExit: with `EXIT_STOPPED`, after SIGTERM and a checkpoint.
    """
    workdir = pathlib.Path(workdir)
    batches.check_batch(options.batch_size, mesh)
    schedule = optim.learning_rate(optimizer_options, options.steps)
    optimizer = optim.make_optimizer(optimizer_options, options.steps)

    def init() -> TrainState:
        return init_state(task.init, optimizer, seed)

    def stream(step: int) -> Iterator[Batch]:
        rows = batches.local_rows(options.batch_size, mesh)
        return (batches.assemble(local, rows, options.batch_size, mesh) for local in task.stream(step, rows))

    with (
        jax.set_mesh(mesh),
        StopRequest() as stop,
        Checkpoints(workdir / "checkpoints", options.keep_last, options.keep_every) as checkpoints,
    ):
        abstract = abstract_state(init, mesh)
        state, window = start(init, abstract, checkpoints)
        train_step = make_train_step(task.loss, optimizer, ema_options, seed, abstract)
        done = int(state.step)
        message(
            f"{done} of {options.steps} steps done; writing to {workdir}: metrics.jsonl, events, checkpoints"
        )
        with MetricsLog(workdir, done, window) as log, progress_bar(done, options.steps) as bar:
            monitor = Monitor(task.ids, options, schedule, log, bar)
            return run_steps(state, train_step, stream(done), options, monitor, checkpoints, stop)


def start(
    init: Callable[[], TrainState], abstract: TrainState, checkpoints: Checkpoints
) -> tuple[TrainState, dict[str, Any]]:
    """The state of the newest checkpoint and its unlogged sums of metrics, or a fresh state, made sharded."""
    if checkpoints.latest() is not None:
        return checkpoints.restore(abstract)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(init, out_shardings=shardings)(), {}


def run_steps(
    state: TrainState,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]],
    stream: Iterator[Batch],
    options: TrainOptions,
    monitor: Monitor,
    checkpoints: Checkpoints,
    stop: StopRequest,
) -> TrainState:
    """Starts a step, makes the next batch while the devices work, then looks at the step before."""
    first = int(state.step)
    batch = next(stream) if first < options.steps else None
    for step in range(first, options.steps):
        state, metrics = train_step(state, batch)
        monitor.watch(step, metrics)
        done = step + 1
        if done < options.steps:
            batch = next(stream)
        monitor.check(leave=1)
        stopping = stop.requested(done)
        if stopping or done % options.checkpoint_every == 0 or done == options.steps:
            monitor.check(leave=0)
            checkpoints.save(done, state, monitor.window)
        if stopping and done < options.steps:
            message(f"stopped on SIGTERM, step {done} is saved: run the same command again to go on")
            sys.exit(EXIT_STOPPED)
    return state
