"""The training loop of one stage, from the first step or from the newest checkpoint to the last step.

The batch, the key and the learning rate of a step are functions of the recipe and of the train state, which a
checkpoint holds whole. A run that is killed at any time and started again therefore ends with the bits of one
that was not.
"""

import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dydiff_jax.distributed import collectives, global_batch
from dydiff_jax.runs import exit_codes
from dydiff_jax.system import Examples, Recipe, Stage, Weights
from dydiff_jax.training import bad_step, optim
from dydiff_jax.training.checkpoints import fit
from dydiff_jax.training.checkpoints.manager import Checkpoints
from dydiff_jax.training.logging import MetricsLog, message, progress_bar
from dydiff_jax.training.monitor import BadStep, Monitor, StopRequest
from dydiff_jax.training.phases import Phases
from dydiff_jax.training.state import (
    TrainState,
    TrainStep,
    abstract_state,
    init_state,
    make_train_step,
    state_of,
)
from dydiff_jax.types import Batch, Params

#: Maps an EMA to scores of the validation split by name; the first is the one by which the best step is chosen. The
#: second argument is to be called as the work goes on, so that the watchdog knows.
Validate = Callable[[Params, Callable[[str], None]], dict[str, float]]


class Session(NamedTuple):
    """One start of a run.

    Attributes:
      mesh: the devices.
      workdir: a directory that all processes share.
      began: when the process began, by ``time.monotonic``, for the time breakdown; None: now.
    """

    mesh: Mesh
    workdir: pathlib.Path
    began: float | None = None

    def checkpoints(self, stage: str) -> pathlib.Path:
        """The directory of a stage's checkpoints."""
        return checkpoint_directory(self.workdir, stage)


def checkpoint_directory(workdir: str | os.PathLike, stage: str) -> pathlib.Path:
    """The directory of a stage's checkpoints in a work directory."""
    return pathlib.Path(workdir) / "checkpoints" / stage


def train(
    stage: Stage,
    frozen: Weights,
    examples: Examples,
    session: Session,
    *,
    fingerprint: str,
    initial: Params | None = None,
    validate: Validate | None = None,
) -> TrainState:
    """Train a stage to its last step, resuming from its newest checkpoint in the work directory.

    Writes ``metrics.jsonl``, ``tensorboard/STAGE`` and ``checkpoints/STAGE`` there; returns the last state.

    Args:
      stage: what is trained, and how.
      frozen: {stage: its EMA} of the stages that it needs, on the mesh.
      examples: its batches.
      session: devices and work directory.
      fingerprint: of the stage; a checkpoint with another one is refused.
      initial: parameters to begin from, in place of fresh ones; the EMA begins there too.
      validate: called with the EMA and a heartbeat every ``validate_every`` steps and after the last one, by all
        processes; what it returns is logged. It must be a function of the EMA alone.

    Raises:
      ValueError: the mesh does not divide the batch, the warm-up is too long, or the checkpoint or ``initial`` does
        not fit.
      FloatingPointError: more than ``max_bad_steps`` steps in a row had a non-finite loss or gradient; what
        repeats the step is in ``bad_step_STAGE_N``.
      SystemExit: with `exit_codes.STOPPED`, after SIGTERM and a checkpoint.
    """
    options, mesh = stage.recipe.train, session.mesh
    global_batch.check_batch(options.batch_size, mesh)
    directory = session.checkpoints(stage.name)
    saved = Checkpoints(directory, options.keep_last, options.keep_every, fingerprint, options.keep_best)
    with (
        jax.set_mesh(mesh),
        StopRequest() as stop,
        Phases(options.stuck_after, session.began) as phases,
        saved,
    ):
        abstract = abstract_state(stage.objective, stage.recipe, mesh)
        with phases.phase("restore"):
            state, notes = start(stage, abstract, saved, initial)
            done = int(state.step)
        step = make_train_step(stage.objective, stage.recipe, abstract, frozen)
        message(
            f"stage {stage.name}: {done} of {options.steps} steps done; writing to {session.workdir}: metrics.jsonl, "
            "tensorboard, checkpoints"
        )
        with (
            MetricsLog(session.workdir, stage.name, done, notes, phases) as log,
            progress_bar(stage.name, done, options.steps) as bar,
        ):
            monitor = Monitor(examples.ids, options, learning_rate(stage.recipe), log, bar)
            loop = Loop(stage, examples, session, saved, validate)
            return loop.run(state, frozen, step, monitor, stop)


def learning_rate(recipe: Recipe) -> Callable[[int], float]:
    """The learning rate of an update, compiled now and not among the steps."""
    schedule = optim.learning_rate(recipe.optimizer, recipe.train.steps)
    compiled = jax.jit(schedule).lower(np.int32(0)).compile()
    return lambda updates: float(compiled(np.int32(updates)))


def start(
    stage: Stage, abstract: TrainState, checkpoints: Checkpoints, initial: Params | None = None
) -> tuple[TrainState, dict[str, Any]]:
    """The state of the newest valid checkpoint and its notes, or one before the first step, made sharded.

    Raises:
      ValueError: a checkpoint or ``initial`` does not fit; every leaf that differs is named.
    """
    if initial is not None and (listing := fit.mismatches("initial", initial, abstract.params)):
        raise ValueError(
            f"stage {stage.name}: initial parameters do not fit the model:\n{listing}\n"
            "Use the configuration they were made with, or begin from fresh ones."
        )
    restored = checkpoints.restore(abstract)
    if restored is not None:
        return restored
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    if initial is None:
        return jax.jit(lambda: init_state(stage.objective, stage.recipe), out_shardings=shardings)(), {}
    initial = jax.device_put(initial, shardings.params)
    return jax.jit(lambda params: state_of(params, stage.recipe), out_shardings=shardings)(initial), {}


class Loop:
    """The steps of one process."""

    def __init__(
        self,
        stage: Stage,
        examples: Examples,
        session: Session,
        checkpoints: Checkpoints,
        validate: Validate | None,
    ):
        """Train ``stage`` on ``examples``, and save to ``checkpoints``."""
        self._stage, self._options, self._examples = stage, stage.recipe.train, examples
        self._session, self._checkpoints, self._validate = session, checkpoints, validate

    def run(
        self, state: TrainState, frozen: Weights, train_step: TrainStep, monitor: Monitor, stop: StopRequest
    ) -> TrainState:
        """Start a step, take the next batch while the devices work, then read the metrics of the step before.

        Args:
          state: after ``state.step`` steps.
          frozen: weights of the earlier stages.
          train_step: maps a state, frozen weights and a batch to the next state and metrics.
          monitor: reads metrics.
          stop: says when to save and exit.
        """
        options, phases, first = self._options, monitor.phases, int(state.step)
        if first < options.steps:
            self._score(first, state, monitor)  # where a stop came before the score that was due
        stream = self._batches(first)
        with phases.phase("input"):
            batch: Any = next(stream) if first < options.steps else None
        for step in range(first, options.steps):
            phases.heartbeat(f"step {step}")
            with phases.phase("compile" if step == first else "step"):
                if step == first:
                    step_on = collectives.compile_on_all(train_step.lower(state, frozen, batch))
                state, metrics = step_on(state, frozen, batch)
            monitor.watch(step, metrics)
            done = step + 1
            if done < options.steps:
                with phases.phase("input") as waited:
                    batch = next(stream)
                loss: Any = metrics["loss"]  # the type of arrays does not know is_ready
                if not loss.is_ready():
                    phases.move("input", "step", waited())
            with phases.phase("step"):
                self._check(monitor, state, leave=1)
                stopping = stop.requested(done)
            if (
                stopping
                or done == options.steps
                or done % options.checkpoint_every == 0
                or monitor.is_due(done)
            ):
                self._save(done, state, monitor, stopping and done < options.steps)
        return state

    def _save(self, done: int, state: TrainState, monitor: Monitor, stopping: bool) -> None:
        """Validate and save what is due after ``done`` steps; if ``stopping``, save at once and exit.

        Scores come before the checkpoint, so that one of this step implies their line. A stop has no time for them:
        the next start computes them.
        """
        options, phases = self._options, monitor.phases
        with phases.phase("step"):
            self._check(monitor, state, leave=0)
        if not stopping:
            self._score(done, state, monitor)
        if stopping or done % options.checkpoint_every == 0 or done == options.steps:
            with phases.phase("save"):
                self._checkpoints.save(done, state, {**monitor.notes, "steps": options.steps})
        if stopping:
            self._checkpoints.wait()
            message(f"SIGTERM: checkpoint saved at step {done}; re-run the command to resume")
            sys.exit(exit_codes.STOPPED)

    def _score(self, done: int, state: TrainState, monitor: Monitor) -> None:
        validate = self._validate
        if validate is not None and monitor.is_due(done):
            monitor.validate(done, lambda: validate(state.ema, monitor.phases.heartbeat))

    def _batches(self, first: int) -> Iterator[Batch]:
        """The global batches from step ``first`` on."""
        rows = global_batch.local_rows(self._options.batch_size, self._session.mesh)
        for local in self._examples.stream(first, rows):
            yield global_batch.assemble(local, rows, self._options.batch_size, self._session.mesh)

    def _check(self, monitor: Monitor, state: TrainState, leave: int) -> None:
        """Read the metrics; a step that stops the run leaves what repeats it."""
        try:
            monitor.check(leave)
        except BadStep as error:
            folder = bad_step.folder_of(self._session.workdir, self._stage.name, error.step)
            batch = self._examples.rows(error.step, range(self._options.batch_size))
            bad_step.write(folder, self._stage, state, batch, error.facts)
            raise FloatingPointError(
                f"stage {self._stage.name}, {error} {folder} holds what repeats the step: --mode=replay."
            ) from error
