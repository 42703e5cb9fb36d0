"""The seam: what a system is, and what the training loop, the ensemble driver, scores and reports know of it.

A system is a method, complete: what is trained and in which order, what is measured afterwards, how it forecasts. A
new one is a file in ``systems/`` and an entry in `SYSTEMS`; nothing outside names it.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import numpy as np

from dydiff_jax.types import Array, Batch, DataSpec, Frames, Keys, Params

#: {stage: the EMA of its parameters}, and "calibration": all that a finished run is.
Weights = Mapping[str, Params]

#: What goes from one call of a forecaster to the next; a tree of arrays.
Carry = Any

#: (pattern searched in the path of a leaf, mesh axes of its last dimensions); see `distributed.rules`.
Rule = tuple[str, tuple[str | None, ...]]

#: The entry of `Weights` that holds what `System.calibrate` measured.
CALIBRATION = "calibration"


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Length and cadence of a training stage.

    Attributes:
      steps: steps in all.
      batch_size: examples in a step, over all devices.
      log_every: steps between two lines of metrics.
      checkpoint_every: steps between two checkpoints.
      keep_last: how many of the newest checkpoints are kept.
      keep_every: checkpoints of steps that this divides are kept too; None keeps no others.
      keep_best: keep the checkpoint with the lowest validation score too.
      validate_every: steps between two scores of the validation split; None: it is not scored while training.
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
    keep_best: bool = False
    validate_every: int | None = None
    max_bad_steps: int = 0
    stuck_after: float | None = 1800.0

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, found {getattr(self, name)}")
        for name in ("keep_every", "validate_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, or None, found {getattr(self, name)}")
        if self.keep_best and self.validate_every is None:
            raise ValueError("keep_best: expected validate_every to be set with it, found None")
        if self.validate_every is not None and self.validate_every % self.checkpoint_every and self.keep_best:
            raise ValueError(
                f"validate_every: expected a multiple of checkpoint_every = {self.checkpoint_every}, so that what is "
                f"scored is kept, found {self.validate_every}"
            )
        if self.max_bad_steps < 0:
            raise ValueError(f"max_bad_steps: expected 0 or more, found {self.max_bad_steps}")
        if self.stuck_after is not None and not self.stuck_after > 0:
            raise ValueError(
                f"stuck_after: expected a positive number of seconds, or None, found {self.stuck_after}"
            )


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """AdamW (Loshchilov and Hutter 2019, Algorithm 2).

    Attributes:
      learning_rate: peak learning rate.
      warmup_steps: updates over which the learning rate grows linearly from 0 to its peak.
      decay: what follows the warm-up: the peak, or half a cosine that ends at 0 with the last step.
      weight_decay: decoupled weight decay of kernels; biases, scales and embeddings have none.
      clip_norm: largest global norm of the gradient; a longer gradient is scaled down to it.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 1000
    decay: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self):
        for name in ("learning_rate", "clip_norm", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, found {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, found {getattr(self, name)}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), found {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class EmaOptions:
    """Exponential moving average (EMA) of the parameters; the weights that forecasts are made with.

    Attributes:
      decay: weight of the past once warmed up; 0 follows the parameters.
    """

    decay: float = 0.9999

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay: expected a number in [0, 1), found {self.decay}")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a stage is trained.

    Attributes:
      train: length and cadence.
      optimizer: of AdamW.
      ema: of the moving average.
      seed: of the run; initial parameters, batches and the noise of every step follow from it.
      number: of the stage in its run; the first one has the keys of the seed alone, a later one keys of its own.
    """

    train: TrainOptions
    optimizer: OptimizerOptions
    ema: EmaOptions
    seed: int
    number: int = 0

    def folded(self, number: int) -> "Recipe":
        """The same recipe for stage ``number``."""
        return dataclasses.replace(self, number=number)


class Objective(Protocol):
    """What one training stage minimises. The loop, ``--mode=plan`` and ``--mode=replay`` see nothing else.

    Attributes:
      rules: how the leaves of the parameters are sharded; those of the networks that they belong to.
    """

    @property
    def rules(self) -> Sequence[Rule]: ...

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""
        ...

    def loss(
        self, params: Params, frozen: Weights, batch: Batch, key: jax.Array
    ) -> tuple[Array, dict[str, Array]]:
        """The loss and scalar metrics of a batch.

        The key is that of the step; keys of examples are derived from it and the row, so that nothing random depends
        on the number of devices.
        """
        ...


class FramesRead(Protocol):
    """Which frames of a training window an example is made of; a module-level class, so that it can be pickled.

    Attributes:
      count: how many.
    """

    @property
    def count(self) -> int: ...

    def __call__(self, rng: np.random.Generator) -> Sequence[int]:
        """Their numbers in the window, increasing."""
        ...


@dataclasses.dataclass(frozen=True)
class Stage:
    """A training stage of a system or codec.

    Attributes:
      name: its checkpoints are ``checkpoints/NAME/N``; the "stage" of a line in metrics.jsonl.
      objective: what it minimises.
      recipe: how it is trained.
      needs: earlier stages, whose EMA arrives as ``frozen``.
      reads: sections of the config, SECTION or SECTION.KEY, that its weights depend on beside the data and the
        recipe; its fingerprint hashes these.
      frames: which frames of a window it reads; None: all.
      source: a finished run that holds the stage: loaded instead of trained.
    """

    name: str
    objective: Objective
    recipe: Recipe
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ("system", "networks")
    frames: FramesRead | None = None
    source: pathlib.Path | None = None


class Examples(Protocol):
    """The batches of a stage, a pure function of (seed, step)."""

    def stream(self, step: int, rows: Sequence[int] | np.ndarray) -> Iterator[Batch]:
        """These rows of the batches of one step and of all later ones, in numpy, read ahead."""
        ...

    def rows(self, step: int, rows: Sequence[int] | np.ndarray) -> Batch:
        """These rows of the batch of one step; what ``stream`` yields, read on the spot."""
        ...

    def ids(self, step: int) -> list:
        """The names of the examples of a step, for error messages."""
        ...


class Forecaster(Protocol):
    """A forecast, a block of frames at a time; the ensemble driver calls it and knows no method.

    Attributes:
      block: frames that one `advance` returns.
      delay: leading frames that are no forecast: the warm-up of a rolling window.
      reach: frames of forcings that a call may read, context among them: n calls read (n - 1) block + reach.
      max_members: 1 for a deterministic forecast, else None.
      nfe_per_frame: network evaluations (NFE) for each frame: those that it takes part in, or those of a block over
        its frames where each makes another frame.
      network_frames_per_frame: frames that pass through a network for each frame of the forecast, in steady state: the
        currency in which methods compare, as an evaluation of a window of f frames costs f times that of one.
      between: maps a number of substeps n to a forecaster whose blocks have n times as many frames, at 1/n, 2/n ... of
        a lead, those at whole leads being the same; None: there are frames at whole leads alone.
    """

    @property
    def block(self) -> int: ...

    @property
    def delay(self) -> int: ...

    @property
    def reach(self) -> int: ...

    @property
    def max_members(self) -> int | None: ...

    @property
    def nfe_per_frame(self) -> float: ...

    @property
    def network_frames_per_frame(self) -> float: ...

    @property
    def between(self) -> "Callable[[int], Forecaster] | None": ...

    def begin(self, weights: Weights, keys: Keys, batch: Batch) -> Carry:
        """The state before the first block, from the context frames of each row.

        Args:
          weights: of a finished run.
          keys: [b], one a row, so that the member of a row depends on nothing beside it.
          batch: windows of which the first p frames are read.
        """
        ...

    def advance(self, weights: Weights, keys: Keys, batch: Batch, carry: Carry) -> tuple[Carry, Frames]:
        """The next ``block`` frames of each row, in physical units, and what to go on from."""
        ...


class System(Protocol):
    """A method, complete."""

    def stages(self) -> Sequence[Stage]:
        """What is trained, in order; those of a learned codec come before."""
        ...

    def calibrate(self, weights: Weights, batch: Batch, key: jax.Array) -> Params:
        """What is measured once after training on training windows, and kept with the weights; () as a rule."""
        ...

    def forecaster(self) -> Forecaster:
        """How the trained system forecasts."""
        ...


class Window(NamedTuple):
    """The frames of a window.

    Attributes:
      num_context: p, frames that are known.
      num_forecast: k, frames that are forecast.
    """

    num_context: int
    num_forecast: int

    @property
    def num_frames(self) -> int:
        """p + k."""
        return self.num_context + self.num_forecast


class Parts(NamedTuple):
    """What `build` makes from config and data, once, for any system.

    Attributes:
      window: p and k.
      data: the frames of a training window, their fields, forcings and static fields.
      codec: physical frames to model space and back; see `codecs.codec`.
      conditioner: what networks see beside x; see `models.conditions`.
      networks: by role; see `models.network`.
      recipes: by stage.
    """

    window: Window
    data: DataSpec
    codec: Any
    conditioner: Any
    networks: Mapping[str, Any]
    recipes: Mapping[str, Recipe]


class SystemOptions(Protocol):
    """The checked options behind ``config.system``.

    Attributes:
      roles: networks that the system asks for, the keys of ``config.networks``.
      free: sub-sections of ``config.system`` that may change at evaluation.
    """

    roles: ClassVar[tuple[str, ...]]
    free: ClassVar[tuple[str, ...]]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """``config.system`` as a config file begins with it, but for its name."""
        ...

    @classmethod
    def read(cls, section: Mapping[str, Any], path: str, window: Window) -> "SystemOptions":
        """The options of a section of the config, checked; ``path`` names it in messages."""
        ...

    def build(self, parts: Parts) -> System:
        """The system."""
        ...


class Entry(NamedTuple):
    """A system as README, reports and plots know it.

    Attributes:
      options: what ``config.system`` holds.
      summary: what the method does, in a sentence, for a reader of a report.
      equation: in one line.
      colour: in every plot.
    """

    options: type[SystemOptions]
    summary: str
    equation: str
    colour: str


#: Name -> entry; modules of ``systems/`` register theirs.
SYSTEMS: dict[str, Entry] = {}
