"""Sums over the grid points of a frame, from which means and deviations of any frames follow."""

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Of T frames, float64. A value that is not finite makes those of its frame not finite.

    Attributes:
      sums: [T, c], of the values of each channel.
      squares: [T, c], of their squares.
      speeds: [T], of the lengths of the vectors of channels.
    """

    sums: np.ndarray
    squares: np.ndarray
    speeds: np.ndarray

    def at(self, frames: np.ndarray | slice) -> "Moments":
        """Those of some of the frames."""
        return Moments(*(part[frames] for part in self))


def measure(frames: np.ndarray) -> Moments:
    """The moments of frames [T, h, w, c]."""
    values = frames.astype(np.float64)
    squares = values**2
    speeds = np.sqrt(squares.sum(axis=-1)).sum(axis=(1, 2))
    return Moments(values.sum(axis=(1, 2)), squares.sum(axis=(1, 2)), speeds)


def joined(parts: list[Moments]) -> Moments:
    """The moments of one stretch of frames after the other."""
    return Moments(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
