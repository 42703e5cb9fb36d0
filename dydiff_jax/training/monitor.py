"""Read the metrics of a step while the next one runs, and listen for a request to stop."""

import collections
import math
import signal
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils
from tqdm import tqdm

from dydiff_jax.system import TrainOptions
from dydiff_jax.training.logging import MetricsLog
from dydiff_jax.training.phases import Phases


class BadStep(FloatingPointError):
    """Raised for one step too many whose loss or gradient is not finite.

    Attributes:
      step: its number; the first is 0.
      facts: what is known of it, for its bundle.
    """

    def __init__(self, text: str, step: int, facts: dict[str, Any]):
        """An error with this text."""
        super().__init__(text)
        self.step, self.facts = step, facts


class Monitor:
    """Read metrics late, so that the host never waits for the step it has just started.

    `watch` takes metrics that the devices have yet to compute; `check` waits for them, logs them, and stops
    the run on a loss or gradient that is not finite. Skipped steps are left out of the logged means.
    """

    def __init__(
        self,
        ids: Callable[[int], list],
        options: TrainOptions,
        learning_rate: Callable[[int], float],
        log: MetricsLog,
        bar: tqdm,
    ):
        """Name examples by ``ids``, ask ``learning_rate`` for that of an update, write to ``log`` and ``bar``."""
        self._ids, self._options, self._learning_rate = ids, options, learning_rate
        self._log, self._bar = log, bar
        self._unread: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()

    @property
    def notes(self) -> dict[str, Any]:
        """What a checkpoint keeps of the log; see `MetricsLog.notes`."""
        return self._log.notes

    @property
    def phases(self) -> Phases:
        """Time breakdown of the stage."""
        return self._log.phases

    def is_due(self, done: int) -> bool:
        """Whether the validation split is to be scored after ``done`` steps and has not been yet."""
        every = self._options.validate_every
        due = done == self._options.steps or (done > 0 and every is not None and done % every == 0)
        return due and self._log.validated != done

    def validate(self, done: int, score: Callable[[], dict[str, float]]) -> None:
        """Score the validation split after ``done`` steps, and log what ``score`` returns."""
        with self.phases.phase("validation") as spent:
            values = {name: float(value) for name, value in score().items()}
        self._log.write_validation(done, values, spent())

    def watch(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of step ``step``, counted from 0."""
        self._unread.append((step, metrics))

    def check(self, leave: int) -> None:
        """Read all metrics but those of the last ``leave`` steps.

        Raises:
          BadStep: too many steps in a row were skipped.
        """
        while len(self._unread) > leave:
            step, metrics = self._unread.popleft()
            self._check(step, {name: value.item() for name, value in jax.device_get(metrics).items()})

    def _check(self, step: int, metrics: dict[str, float]) -> None:
        skipped, bad_steps = metrics.pop("skipped"), metrics.pop("bad_steps")
        if bad_steps > self._options.max_bad_steps:
            ids = self._ids(step)
            numbers = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
            raise BadStep(
                self._describe(step, metrics, ids), step, {"step": step, **numbers, "examples": ids}
            )
        if bad_steps == 0:
            self._log.add(metrics)
        self._bar.set_postfix_str(f"loss {metrics['loss']:.4g}", refresh=False)
        self._bar.update(1)
        done = step + 1
        if done % self._options.log_every == 0 or done == self._options.steps:
            last_update = int(max(done - skipped - 1, 0))
            self._log.write(done, {"learning_rate": self._learning_rate(last_update), "skipped": skipped})

    def _describe(self, step: int, metrics: dict[str, float], ids: list) -> str:
        return (
            f"step {step} (the first is 0): loss {metrics['loss']}, gradient norm {metrics['grad_norm']}. "
            f"No more than {self._options.max_bad_steps} such steps in a row are skipped (max_bad_steps). "
            f"The batch: {ids}. Nothing of it was applied or saved. Look at these examples; if they are as they "
            "should be, lower learning_rate or clip_norm, compute in float32 or raise max_bad_steps, in a new work "
            "directory."
        )


class StopRequest:
    """A context in which SIGTERM asks the run to save and stop, instead of ending it.

    With several processes jax's own notifier takes the signal, and all of them stop after the same step.
    """

    def __enter__(self) -> "StopRequest":
        self._received = False
        self._several = jax.process_count() > 1
        if not self._several:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._several:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, *_: object) -> None:
        self._received = True

    def requested(self, step: int) -> bool:
        """Whether to stop after ``step`` steps; every process must ask, once for each step."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received
