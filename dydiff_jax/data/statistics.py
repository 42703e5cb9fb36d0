"""Mean and standard deviation of the frames that training may see."""

import numpy as np

from dydiff_jax.data.moments import Moments, joined, measure
from dydiff_jax.data.sources.source import CHUNK, Trajectories
from dydiff_jax.data.windows import Windows


def statistics(windows: Windows, convention: str = "channel") -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over all frames that the windows touch, float64 [c] each.

    Frames are read, unless their moments are known.

    Args:
      windows: the training windows.
      convention: "channel" for each channel's own deviation; "speed" for one deviation, that of the length
        of the vector of channels, as TF-Net scales velocities (though it counts the test frames too).
    """
    trajectories = windows.trajectories
    touched = [_moments(trajectories, number, frames) for number, frames in enumerate(_touched(windows))]
    found = joined([moments for moments in touched if moments is not None])
    count = len(found.speeds) * trajectories.grid[0] * trajectories.grid[1]
    mean, square, speed = (part.sum(axis=0) / count for part in found)
    variance = square - mean**2
    if convention == "speed":
        variance = np.full_like(mean, square.sum() - speed**2)
    return mean, np.sqrt(np.maximum(variance, 0.0))


def _touched(windows: Windows) -> list[np.ndarray]:
    """Which frames of each trajectory some window reads, bool [T]."""
    lengths = [len(array) for array in windows.trajectories.arrays]
    first = np.cumsum([0, *lengths])
    edges = np.zeros(first[-1] + 1, int)
    starts = first[windows.places[:, 0]] + windows.places[:, 1]
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + windows.cut.frames, -1)
    return np.split(np.cumsum(edges[:-1]) > 0, first[1:-1])


def _moments(trajectories: Trajectories, number: int, frames: np.ndarray) -> Moments | None:
    """Those of the chosen frames of one trajectory; None where none is chosen."""
    if not frames.any():
        return None
    if trajectories.moments is not None:
        return trajectories.moments[number].at(frames)
    starts = [start for start in range(0, len(frames), CHUNK) if frames[start : start + CHUNK].any()]
    return joined(
        [
            measure(trajectories.read(number, start, start + CHUNK)[frames[start : start + CHUNK]])
            for start in starts
        ]
    )
