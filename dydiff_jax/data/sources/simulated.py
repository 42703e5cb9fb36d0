"""Data sources that a solver makes on first use, kept in a cache folder."""

import abc
import dataclasses
import os
import pathlib
from typing import Any, ClassVar

import jax
import numpy as np
from absl import logging

from dydiff_jax.data import cache
from dydiff_jax.data.simulators import ensemble
from dydiff_jax.data.trajectories import ExactLaw, Trajectories
from dydiff_jax.runs import files
from dydiff_jax.types import DataSpec


@dataclasses.dataclass(frozen=True)
class Simulated(abc.ABC):
    """Trajectories of one flow. A data set adds its own options, and says what a state is and how it moves on.

    Every trajectory follows from the options and its own number, whoever simulates it and beside which others.

    Attributes:
      interval: time between two frames.
      duration: recorded time; `duration / interval` frames for each trajectory.
      trajectories: how many.
      seed: of everything random.
      cache_dir: None for the user's cache directory.
      workers: processes on a CPU, 0 for one on each core; an accelerator runs many trajectories at once.
    """

    interval: float
    duration: float
    trajectories: int
    seed: int = 0
    cache_dir: str | None = None
    workers: int = 0

    #: What is simulated, in words.
    title: ClassVar[str]
    #: Raised when the solver changes what it computes, so that no cache of an older one is read.
    solver_version: ClassVar[int]
    #: Of `Trajectories`.
    fields: ClassVar[tuple[str, ...]] = ("horizontal velocity", "vertical velocity")
    time_unit: ClassVar[str]
    unit: ClassVar[str]
    mirror: ClassVar[tuple[float, ...] | None] = None
    periodic_x: ClassVar[bool] = True
    static: ClassVar[np.ndarray | None] = None
    static_names: ClassVar[tuple[str, ...]] = ()
    #: Whether the first state is itself the first frame; else that is the state one interval later.
    records_start: ClassVar[bool] = False

    def __post_init__(self):
        for name in ("interval", "duration"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, found {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"workers: expected 0 or more, found {self.workers}")
        if self.trajectories < 1:
            raise ValueError(f"trajectories: expected at least 1, found {self.trajectories}")
        if self.frames < 1:
            raise ValueError(f"duration: {self.duration} holds no frame of interval {self.interval}")

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """The start of the cache folder's name."""

    @property
    @abc.abstractmethod
    def frame_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of a recorded frame."""

    @property
    @abc.abstractmethod
    def remedy(self) -> str:
        """Where the flow is simulated and what to do if it becomes non-finite, for the message."""

    @abc.abstractmethod
    def initial(self, index: int) -> Any:
        """The state from which trajectory `index` starts: a tree of arrays, with all that sets it apart."""

    @abc.abstractmethod
    def advance(self, state: Any) -> Any:
        """The state one interval later."""

    @abc.abstractmethod
    def frame(self, state: Any) -> jax.Array:
        """What is recorded of a state, [h, w, c]."""

    @property
    def frames(self) -> int:
        """Frames in each trajectory."""
        return round(self.duration / self.interval)

    @property
    def spin_up_frames(self) -> int:
        """Frames that are simulated and not kept."""
        return 0

    @property
    def roles(self) -> tuple[str, ...] | None:
        """Of `Trajectories`: the split of each trajectory, where the data set has one of its own."""
        return None

    @property
    def exact_law(self) -> ExactLaw | None:
        """Of `Trajectories`: draws of the frames after a last one, where their law is known."""
        return None

    @property
    def folder(self) -> pathlib.Path:
        """The cache folder of these options: more trajectories of the same flow share it."""
        settings = dataclasses.asdict(self) | {"solver": self.solver_version}
        for name in ("trajectories", "cache_dir", "workers"):
            del settings[name]
        return cache.cache_root(self.cache_dir) / f"{self.label}-{files.fingerprint(settings)}"

    def parts(self) -> list[cache.Part]:
        """The cached array of each trajectory, there or not."""
        shape = (self.frames, *self.frame_shape)
        return [cache.Part(self.folder / f"trajectory_{i:03d}.npy", shape) for i in range(self.trajectories)]

    def manifest(self) -> dict:
        """What the cache folder says of its contents, in manifest.json."""
        return dataclasses.asdict(self)

    def spec(self) -> DataSpec:
        """From the options alone: nothing is simulated."""
        return DataSpec(
            self.frame_shape,
            self.fields,
            self.unit,
            self.interval,
            self.time_unit,
            static=self.static_names,
        )

    def load(self) -> Trajectories:
        """Simulate what is missing from the cache, and open it.

        Raises:
          ValueError: a cached file is broken; it is named.
          FloatingPointError: the flow became non-finite.
        """
        parts = self.parts()
        with cache.locked(self.folder):
            missing = [i for i, part in enumerate(parts) if not part.path.exists()]
            if missing:
                logging.info("simulating %d trajectories into %s", len(missing), self.folder)
                files.write_json(self.folder / "manifest.json", self.manifest())
                ensemble.simulate_missing(self, missing, self.workers or _cores())
        return Trajectories(
            arrays=tuple(part.open() for part in parts),
            names=tuple(str(part.path) for part in parts),
            fields=self.fields,
            interval=self.interval,
            time_unit=self.time_unit,
            unit=self.unit,
            periodic_x=self.periodic_x,
            mirror=self.mirror,
            roles=self.roles,
            moments_files=tuple(part.moments for part in parts),
            static=self.static,
            static_names=self.static_names,
            law=self.exact_law,
        )


@dataclasses.dataclass(frozen=True)
class SpunUp(Simulated):
    """A simulated data set whose trajectories start away from the attractor and approach it before they are recorded.

    Attributes:
      spin_up: time before the first frame, for the flow to forget its start.
    """

    spin_up: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.spin_up < 0:
            raise ValueError(f"spin_up: expected 0 or more, found {self.spin_up}")

    @property
    def spin_up_frames(self) -> int:
        """Frames that are simulated and not kept."""
        return round(self.spin_up / self.interval)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
