"""What is trained and how: the arguments of the loop."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from dydiff_jax.system import EmaOptions, OptimizerOptions, TrainOptions
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
    optimizer: OptimizerOptions
    ema: EmaOptions
    seed: int
    config_hash: str = ""
