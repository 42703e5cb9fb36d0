"""Per-frame sums over the grid, from which means and deviations of any frames follow; kept in a cache."""

import io
import pathlib
from typing import NamedTuple

import numpy as np

from dydiff_jax.data.cache import npz_arrays
from dydiff_jax.runs import files


class Moments(NamedTuple):
    """Of T frames, float64, over the points that are observed; NaN and inf propagate.

    Attributes:
      sums: [T, c], of the values of each channel.
      squares: [T, c], of their squares.
      speeds: [T], of the lengths of the vectors of channels, where all channels are observed.
      points: [T, c], observed points of each channel.
      vectors: [T], points at which all channels are observed.
      vector_squares: [T, c], of the squares at those points.
    """

    sums: np.ndarray
    squares: np.ndarray
    speeds: np.ndarray
    points: np.ndarray
    vectors: np.ndarray
    vector_squares: np.ndarray

    def at(self, frames: np.ndarray | slice) -> "Moments":
        """Those of some of the frames."""
        return Moments(*(column[frames] for column in self))

    def to_npz(self) -> bytes:
        """The contents of an .npz file."""
        buffer = io.BytesIO()
        np.savez(buffer, **self._asdict())
        return buffer.getvalue()

    @classmethod
    def from_npz(cls, contents: bytes, frames: int, channels: int) -> "Moments":
        """The moments in the contents of an .npz file.

        Raises:
          ValueError: they are broken, or not those of as many frames and channels.
        """
        try:
            found = cls(**npz_arrays(contents))
        except (ValueError, TypeError) as error:
            raise ValueError(f"not a whole file of moments ({error})") from error
        expected = [(frames, channels)] * 2 + [(frames,), (frames, channels), (frames,), (frames, channels)]
        if [column.shape for column in found] != expected:
            raise ValueError(f"expected moments of shapes {expected}, found {[c.shape for c in found]}")
        return found


def measure(frames: np.ndarray, observed: np.ndarray | None = None) -> Moments:
    """The moments of frames [T, h, w, c]; ``observed`` is a mask of that shape, or None: all points are."""
    values, grid = frames.astype(np.float64), (1, 2)
    if observed is None:
        squares = values**2
        sums, summed = values.sum(axis=grid), squares.sum(axis=grid)
        points = np.full(sums.shape, frames.shape[1] * frames.shape[2])
        speeds = np.sqrt(squares.sum(axis=-1)).sum(axis=grid)
        return Moments(sums, summed, speeds, points, points[:, 0], summed)
    values = np.where(observed, values, 0.0)
    squares, vectors = values**2, np.asarray(observed.all(axis=-1))
    vector_squares = np.where(vectors[..., None], squares, 0.0)
    return Moments(
        values.sum(axis=grid),
        squares.sum(axis=grid),
        np.sqrt(vector_squares.sum(axis=-1)).sum(axis=grid),
        observed.sum(axis=grid),
        vectors.sum(axis=grid),
        vector_squares.sum(axis=grid),
    )


def joined(parts: list[Moments]) -> Moments:
    """The moments of one stretch of frames after the other."""
    return Moments(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def read_cached(path: pathlib.Path, frames: int, channels: int) -> Moments | None:
    """The moments in a cache file, None where there are none that can be used."""
    try:
        return Moments.from_npz(path.read_bytes(), frames, channels)
    except (ValueError, OSError):
        return None


def write_cached(path: pathlib.Path, moments: Moments) -> None:
    """Keep moments in a cache file; a cache that cannot be written is done without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic(path) as temporary:
            temporary.write_bytes(moments.to_npz())
    except OSError:
        return
