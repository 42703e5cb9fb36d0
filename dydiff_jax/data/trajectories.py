"""Trajectories: what every data source delivers."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from dydiff_jax.data import moments
from dydiff_jax.data.cache import cache_root
from dydiff_jax.data.moments import Moments
from dydiff_jax.runs import files
from dydiff_jax.types import Array

#: Draws of the frames after a last one [h, w, c] given it and all before it: (key, last frame, horizon, members) to
#: [members, horizon, h, w, c]. A function that jax can trace; of one key it makes the same draws.
ExactLaw = Callable[[jax.Array, Array, int, int], jax.Array]

#: Frames read at once by what reads everything.
CHUNK = 64

#: Every row, every column.
ALL = slice(None)


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Recordings of one physical system on one grid.

    Attributes:
      arrays: one [T, h, w, c] for each trajectory: numpy, memory-mapped, a view of either, or anything with a
        length, a shape and a dtype that is indexed by three slices: of frames, rows and columns. Only what is asked
        for is read.
      names: where each array came from, for error messages.
      fields: the name of each channel.
      interval: the time between two frames, in `time_unit`.
      time_unit: the unit of time.
      unit: the unit of the values.
      periodic_x: whether the last axis of space closes on itself, so that crops may wrap around.
      mirror: the sign that each channel takes when x is mirrored, None where the mirror image is no solution.
      roles: "train", "valid" or "test" for each array where the data source comes split, else None.
      scale: factor from what `arrays` hold to the unit that `unit` names; other than 1 it makes frames float32.
      moments: of every frame of each array in the unit that `unit` names, where they are known without reading.
      moments_files: where the moments of each array are kept once they are measured; None: they are measured anew.
      observed: a mask for each array, of its shape or 1 along any axis on which it is constant, indexed like it:
        False is missing; None: nothing is missing.
      forcings: [T, m] for each array; row i is known in advance of frame i, an action is the one that led to it.
      forcing_names: of the m forcings.
      static: [h, w, q], fields of all trajectories that do not change with time; mirroring x reverses their columns
        and keeps their sign.
      static_names: of the q fields.
      law: of the frames of a trajectory, on its whole grid, where it is known: the best forecast that there can be.
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
    moments_files: tuple[pathlib.Path, ...] | None = None
    observed: tuple[Any, ...] | None = None
    forcings: tuple[np.ndarray, ...] | None = None
    forcing_names: tuple[str, ...] = ()
    static: np.ndarray | None = None
    static_names: tuple[str, ...] = ()
    law: ExactLaw | None = None

    def __post_init__(self):
        expected = (*self.grid, len(self.fields))
        for name, array in zip(self.names, self.arrays, strict=True):
            if len(array.shape) != 4 or array.shape[1:] != expected:
                raise ValueError(
                    f"{name}: expected frames [T, h, w, c] with (h, w, c) = {expected}, found shape "
                    f"{tuple(array.shape)}"
                )
        self._check_observed()
        self._check_forcings()
        wanted = (*self.grid, len(self.static_names))
        found = (*self.grid, 0) if self.static is None else self.static.shape
        if found != wanted:
            raise ValueError(
                f"static: expected fields {list(self.static_names)} of shape {wanted}, found {found}"
            )

    def _check_observed(self) -> None:
        if self.observed is None:
            return
        self._check_count("observed", self.observed)
        for name, array, mask in zip(self.names, self.arrays, self.observed, strict=True):
            fits = (found in (1, size) for found, size in zip(mask.shape, array.shape, strict=True))
            if len(mask.shape) != len(array.shape) or not all(fits):
                raise ValueError(
                    f"{name}: expected a mask of observed points of shape {tuple(array.shape)}, or 1 along an axis, "
                    f"found {tuple(mask.shape)}"
                )

    def _check_forcings(self) -> None:
        if (self.forcings is None) != (not self.forcing_names):
            raise ValueError(f"forcings: expected them with their names, found {self.forcing_names}")
        if self.forcings is None:
            return
        self._check_count("forcings", self.forcings)
        for name, array, forcing in zip(self.names, self.arrays, self.forcings, strict=True):
            wanted = (len(array), len(self.forcing_names))
            if forcing.shape != wanted:
                raise ValueError(
                    f"{name}: expected forcings of shape {wanted}, a row for each frame and a column for each of "
                    f"{list(self.forcing_names)}, found {forcing.shape}"
                )

    def _check_count(self, what: str, entries: tuple[Any, ...]) -> None:
        if len(entries) != len(self.arrays):
            raise ValueError(
                f"{what}: expected one for each of {len(self.arrays)} trajectories, found {len(entries)}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        height, width = self.arrays[0].shape[1:3]
        return height, width

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """Of what `read` returns, the same for all trajectories."""
        return np.dtype(np.float32) if self.scale != 1.0 else common_dtype(self.arrays)

    def read(
        self, trajectory: int, start: int, stop: int, rows: slice = ALL, columns: slice = ALL
    ) -> np.ndarray:
        """These rows and columns of frames [start, stop), in the unit that `unit` names, [., h, w, c]."""
        return self.physical(self.arrays[trajectory][start:stop, rows, columns])

    def read_observed(
        self, trajectory: int, start: int, stop: int, rows: slice = ALL, columns: slice = ALL
    ) -> np.ndarray | None:
        """Which points of these frames are observed, bool of the shape of `read`; None: all are."""
        if self.observed is None:
            return None
        mask, shape = self.observed[trajectory], self.arrays[trajectory].shape
        box = (slice(start, stop), rows, columns)
        found = mask[tuple(part if size > 1 else ALL for part, size in zip(box, mask.shape, strict=False))]
        sides = (len(range(*part.indices(size))) for part, size in zip(box, shape, strict=False))
        return np.broadcast_to(np.asarray(found, bool), (*sides, shape[-1]))

    def physical(self, values: np.ndarray) -> np.ndarray:
        """What `arrays` hold, in the unit that `unit` names.

        In the `common_dtype` of the arrays, so that every batch has one dtype; float32 where `scale` is not 1.
        """
        frames = np.asarray(values, self.dtype)
        return frames if self.scale == 1.0 else frames * np.float32(self.scale)

    def moments_of(self, trajectory: int) -> Moments:
        """The moments of every frame of a trajectory: known, cached, or measured and kept."""
        if self.moments is not None:
            return self.moments[trajectory]
        array = self.arrays[trajectory]
        path = None if self.moments_files is None else self.moments_files[trajectory]
        found = None if path is None else moments.read_cached(path, len(array), len(self.fields))
        if found is not None:
            return found
        parts = [
            moments.measure(
                np.asarray(self.read(trajectory, start, start + CHUNK), np.float32),
                self.read_observed(trajectory, start, start + CHUNK),
            )
            for start in range(0, len(array), CHUNK)
        ]
        measured = moments.joined(parts)
        if path is not None:
            moments.write_cached(path, measured)
        return measured

    def check_finite(self) -> None:
        """Look at every observed value, by the moments of its frame, at the forcings and at the static fields.

        Raises:
          ValueError: one is NaN or infinite; the file and the frame, or the field, are named.
        """
        for number, name in enumerate(self.names):
            finite = np.isfinite(self.moments_of(number).squares).all(axis=1)
            if not finite.all():
                raise ValueError(
                    f"{name}: frame {int(np.argmin(finite))} holds NaN or infinite values; repair the file, or mark "
                    "them as missing"
                )
        for name, rows in zip(self.names, self.forcings or (), strict=self.forcings is not None):
            finite = np.isfinite(rows).all(axis=1)
            if not finite.all():
                raise ValueError(
                    f"{name}: the forcings of frame {int(np.argmin(finite))} are NaN or infinite; repair the file"
                )
        if self.static is not None:
            finite = np.isfinite(self.static).all(axis=(0, 1))
            if not finite.all():
                name = self.static_names[int(np.argmin(finite))]
                raise ValueError(f"static: {name} holds NaN or infinite values; repair the file")

    def each_moments(self) -> Iterator[Moments]:
        """The moments of every trajectory in turn."""
        return (self.moments_of(number) for number in range(len(self.arrays)))


def common_dtype(arrays: tuple[Any, ...]) -> np.dtype:
    """Common dtype of the arrays, in native byte order, if it has <= 4 bytes; else float32, as on a device."""
    kinds = {np.dtype(array.dtype).newbyteorder("=") for array in arrays}
    dtype = kinds.pop()
    return np.dtype(np.float32) if kinds or dtype.itemsize > 4 else dtype


def file_identity(path: pathlib.Path, *options: Any) -> str:
    """Digits that change with a file (its path, size and time of change) and with how it is read."""
    found = os.stat(path)
    return files.fingerprint([str(path.resolve()), found.st_size, found.st_mtime_ns, *map(str, options)])


def moments_file(identity: str) -> pathlib.Path:
    """Where the moments of a user's file are kept: in the user's cache directory, by the identity of the file."""
    return cache_root(None) / "moments" / f"{identity}.npz"
