"""Where frames come from: the trajectories every data set delivers, and the registry of data sets."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from dydiff_jax.data.moments import Moments

#: Frames read at once by what reads everything.
CHUNK = 64

#: Every row, every column.
ALL = slice(None)


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Films of one physical system on one grid.

    Attributes:
      arrays: one [T, h, w, c] for each trajectory: numpy, memory-mapped, a view of either, or anything with a
        length and a shape that is indexed by three slices: of frames, rows and columns. Only what is asked for is
        read.
      names: where each array came from, for error messages.
      fields: the name of each channel.
      interval: the time between two frames, in `time_unit`.
      time_unit: the unit of time.
      unit: the unit of the values.
      periodic_x: whether the last axis of space closes on itself, so that crops may wrap around.
      mirror: the sign that each channel takes when x is mirrored, None where the mirror image is no solution.
      roles: "train", "valid" or "test" for each array where the data set comes split, else None.
      scale: factor from what `arrays` hold to the unit that `unit` names.
      moments: of every frame of each array in the unit that `unit` names, where they are known without reading.
    """

    arrays: tuple[Any, ...]
    names: tuple[str, ...]
    fields: tuple[str, ...]
    interval: float
    time_unit: str
    unit: str
    periodic_x: bool
    mirror: tuple[float, ...] | None = None
    roles: tuple[str, ...] | None = None
    scale: float = 1.0
    moments: tuple[Moments, ...] | None = None

    def __post_init__(self):
        expected = (*self.grid, len(self.fields))
        for name, array in zip(self.names, self.arrays, strict=True):
            if len(array.shape) != 4 or array.shape[1:] != expected:
                raise ValueError(
                    f"{name}: expected frames [T, h, w, c] with (h, w, c) = {expected}, found shape "
                    f"{tuple(array.shape)}"
                )

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return tuple(self.arrays[0].shape[1:3])

    def read(
        self, trajectory: int, start: int, stop: int, rows: slice = ALL, columns: slice = ALL
    ) -> np.ndarray:
        """These rows and columns of frames [start, stop), in the unit that `unit` names, float32 [., h, w, c]."""
        return self.physical(self.arrays[trajectory][start:stop, rows, columns])

    def physical(self, values: np.ndarray) -> np.ndarray:
        """What `arrays` hold, in the unit that `unit` names, float32."""
        frames = np.asarray(values, np.float32)
        return frames if self.scale == 1.0 else frames * np.float32(self.scale)

    def check_finite(self) -> None:
        """Look at every frame, by its moments where they are known and else by reading it.

        Raises:
          ValueError: a value is NaN or infinite; the file and the frame are named.
        """
        for number, name in enumerate(self.names):
            for start, finite in self._finite(number):
                if not finite.all():
                    frame = start + int(np.argmin(finite))
                    raise ValueError(f"{name}: frame {frame} holds NaN or infinite values; repair the file")

    def _finite(self, number: int) -> Iterator[tuple[int, np.ndarray]]:
        """The first frame of a stretch of a trajectory, and which frames of the stretch are finite."""
        if self.moments is not None:
            yield 0, np.isfinite(self.moments[number].squares).all(axis=1)
            return
        for start in range(0, len(self.arrays[number]), CHUNK):
            yield start, np.isfinite(self.read(number, start, start + CHUNK)).all(axis=(1, 2, 3))


def given(path: str, what: str) -> str:
    """The path that the user gave.

    Raises:
      FileNotFoundError: there is none in the options.
    """
    if not path:
        raise FileNotFoundError(f"path: expected {what}; give it with --config.data.path=PATH")
    return path


def place(path: str, what: str) -> pathlib.Path:
    """The local path that the user gave; `given` says what it raises."""
    return pathlib.Path(given(path, what)).expanduser()


class Source(Protocol):
    """A data set: a frozen dataclass whose fields are its options."""

    def load(self) -> Trajectories:
        """Open the trajectories, after making those that can be made and are not there."""


#: Name -> the frozen dataclass of the data set; `SOURCES[name](**options).load()` opens it.
SOURCES: dict[str, type[Source]] = {}


def register(name: str):
    """Class decorator: enter a data set under `name`."""

    def enter(source):
        SOURCES[name] = source
        return source

    return enter
