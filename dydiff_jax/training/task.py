"""What is trained and how: the arguments of the loop."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from dydiff_jax.training import optim
from dydiff_jax.training.state import Loss, Params
from dydiff_jax.types import Batch


class Task(NamedTuple):
    """What is trained.

    Attributes:
      init: maps a key to parameters.
      loss: maps (params, batch, key) to the loss and scalar metrics. The key is that of the step; keys of
        examples are derived from it and the row, so that nothing random depends on the number of devices.
      stream: maps (step, rows) to those rows of the batches of that step and all later ones, in numpy, read ahead.
      rows: maps (step, rows) to those rows of the batch of that step; what `stream` yields, read on the spot.
      ids: maps a step to the names of the examples in its batch, for error messages.
    """

    init: Callable[[jax.Array], Params]
    loss: Loss
    stream: Callable[[int, Sequence[int]], Iterator[Batch]]
    rows: Callable[[int, Sequence[int]], Batch]
    ids: Callable[[int], list]


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Length and rhythm of a run.

    Attributes:
      steps: steps in all.
      batch_size: examples in a step, over all devices.
      log_every: steps between two lines of metrics.
      checkpoint_every: steps between two checkpoints.
      keep_last: how many of the newest checkpoints are kept.
      keep_every: checkpoints of steps that this divides are kept too; None keeps no others.
      max_bad_steps: how many steps in a row may be skipped for a loss or gradient that is not finite.
      stuck_after: seconds without progress after which the process ends itself, so that it can be started
        again; None lets it hang. Compiling a large network is one piece of work.
    """

    steps: int
    batch_size: int
    log_every: int = 100
    checkpoint_every: int = 1000
    keep_last: int = 2
    keep_every: int | None = None
    max_bad_steps: int = 0
    stuck_after: float | None = 1800.0

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, found {getattr(self, name)}")
        if self.keep_every is not None and self.keep_every < 1:
            raise ValueError(f"keep_every: expected 1 or more, or None, found {self.keep_every}")
        if self.max_bad_steps < 0:
            raise ValueError(f"max_bad_steps: expected 0 or more, found {self.max_bad_steps}")
        if self.stuck_after is not None and not self.stuck_after > 0:
            raise ValueError(
                f"stuck_after: expected a positive number of seconds, or None, found {self.stuck_after}"
            )


class Recipe(NamedTuple):
    """How it is trained.

    Attributes:
      options: length and rhythm.
      optimizer: options of AdamW.
      ema: options of the moving average.
      seed: initial parameters and the noise of every step follow from it.
      config_hash: of the whole config; every checkpoint keeps it.
    """

    options: TrainOptions
    optimizer: optim.OptimizerOptions
    ema: optim.EmaOptions
    seed: int
    config_hash: str = ""
