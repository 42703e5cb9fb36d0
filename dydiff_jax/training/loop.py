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
import numpy as np
from jax.sharding import Mesh

from dydiff_jax.distributed import global_batch
from dydiff_jax.runs import exit_codes
from dydiff_jax.training import bad_step, optim
from dydiff_jax.training.checkpoints.manager import Checkpoints
from dydiff_jax.training.logging import MetricsLog, message, progress_bar
from dydiff_jax.training.monitor import BadStep, Monitor, StopRequest
from dydiff_jax.training.phases import Phases
from dydiff_jax.training.state import Params, TrainState, abstract_state, init_state, make_train_step
from dydiff_jax.training.task import Recipe, Task, TrainOptions
from dydiff_jax.types import Batch

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def train(
    task: Task, recipe: Recipe, mesh: Mesh, workdir: str | os.PathLike, began: float | None = None
) -> TrainState:
    """Trains to the last step, going on from the newest checkpoint of the work directory.

    Writes ``metrics.jsonl``, TensorBoard events and ``checkpoints`` there; returns the last state.

    Args:
      task: what is trained.
      recipe: how.
      mesh: the devices.
      workdir: a directory that all processes share.
      began: when the process began, by ``time.monotonic``, for the account of its time.

    Raises:
      ValueError: the mesh does not divide the batch, the warm-up is too long, or the checkpoint does not fit.
      FloatingPointError: more than ``max_bad_steps`` steps in a row had a non-finite loss or gradient; what
        repeats the step is in ``bad_step_N``.
      SystemExit: with `exit_codes.STOPPED`, after SIGTERM and a checkpoint.
    """
    workdir, options = pathlib.Path(workdir), recipe.options
    global_batch.check_batch(options.batch_size, mesh)
    init = initializer(task.init, recipe)
    saved = Checkpoints(workdir / "checkpoints", options.keep_last, options.keep_every, recipe.config_hash)
    with jax.set_mesh(mesh), StopRequest() as stop, Phases(options.stuck_after, began) as phases, saved:
        abstract = abstract_state(init, mesh)
        with phases.phase("restore"):
            state, notes = start(init, abstract, saved)
            done = int(state.step)
        step = make_step(task, recipe, abstract)
        message(
            f"{done} of {options.steps} steps done; writing to {workdir}: metrics.jsonl, events, checkpoints"
        )
        with MetricsLog(workdir, done, notes, phases) as log, progress_bar(done, options.steps) as bar:
            monitor = Monitor(task.ids, options, learning_rate(recipe), log, bar)
            run = Run(task, options, mesh, workdir, saved)
            return run.steps_from(done, state, step, monitor, stop)


def initializer(init: Callable[[jax.Array], Params], recipe: Recipe) -> Callable[[], TrainState]:
    """A function that makes the first state of a run; ``init`` maps a key to parameters."""
    optimizer = optim.make_optimizer(recipe.optimizer, recipe.options.steps)
    return lambda: init_state(init, optimizer, recipe.seed)


def make_step(task: Task, recipe: Recipe, abstract: TrainState) -> TrainStep:
    """The compiled step of a run."""
    optimizer = optim.make_optimizer(recipe.optimizer, recipe.options.steps)
    bad = recipe.options.max_bad_steps
    return make_train_step(task.loss, optimizer, recipe.ema, recipe.seed, abstract, bad)


def learning_rate(recipe: Recipe) -> Callable[[int], float]:
    """The learning rate of an update, compiled now and not among the steps."""
    schedule = optim.learning_rate(recipe.optimizer, recipe.options.steps)
    compiled = jax.jit(schedule).lower(np.int32(0)).compile()
    return lambda updates: float(compiled(np.int32(updates)))


def start(
    init: Callable[[], TrainState], abstract: TrainState, checkpoints: Checkpoints
) -> tuple[TrainState, dict[str, Any]]:
    """The state of the newest sound checkpoint and its notes, or a fresh state, made sharded."""
    restored = checkpoints.restore(abstract)
    if restored is not None:
        return restored
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(init, out_shardings=shardings)(), {}


class Run:
    """The steps of one process of a run."""

    def __init__(
        self, task: Task, options: TrainOptions, mesh: Mesh, workdir: pathlib.Path, checkpoints: Checkpoints
    ):
        """Trains ``task`` on ``mesh``, and saves to ``checkpoints``."""
        self._task, self._options, self._mesh = task, options, mesh
        self._workdir, self._checkpoints = workdir, checkpoints

    def steps_from(
        self, first: int, state: TrainState, train_step: TrainStep, monitor: Monitor, stop: StopRequest
    ) -> TrainState:
        """Starts a step, takes the next batch while the devices work, then looks at the step before."""
        options, phases = self._options, monitor.phases
        stream = self._batches(first)
        with phases.phase("input"):
            batch = next(stream) if first < options.steps else None
        for step in range(first, options.steps):
            phases.heartbeat(f"step {step}")
            with phases.phase("compile" if step == first else "step"):
                state, metrics = train_step(state, batch)
            monitor.watch(step, metrics)
            done = step + 1
            if done < options.steps:
                with phases.phase("input") as waited:
                    batch = next(stream)
                if not metrics["loss"].is_ready():
                    phases.move("input", "step", waited())
            with phases.phase("step"):
                self._check(monitor, state, leave=1)
                stopping = stop.requested(done)
            if stopping or done % options.checkpoint_every == 0 or done == options.steps:
                with phases.phase("step"):
                    self._check(monitor, state, leave=0)
                with phases.phase("save"):
                    self._checkpoints.save(done, state, monitor.notes)
            if stopping and done < options.steps:
                self._checkpoints.wait()
                message(f"stopped on SIGTERM, step {done} is saved: run the same command again to go on")
                sys.exit(exit_codes.STOPPED)
        return state

    def _batches(self, first: int) -> Iterator[Batch]:
        """The global batches from step ``first`` on."""
        rows = global_batch.local_rows(self._options.batch_size, self._mesh)
        for local in self._task.stream(first, rows):
            yield global_batch.assemble(local, rows, self._options.batch_size, self._mesh)

    def _check(self, monitor: Monitor, state: TrainState, leave: int) -> None:
        """Looks at the metrics; a step that stops the run leaves what repeats it."""
        try:
            monitor.check(leave)
        except BadStep as error:
            folder = bad_step.folder_of(self._workdir, error.step)
            batch = self._task.rows(error.step, range(self._options.batch_size))
            bad_step.write(folder, state, batch, error.facts | bad_step.versions())
            raise FloatingPointError(
                f"{error} {folder} holds what repeats the step: --mode=replay."
            ) from error
