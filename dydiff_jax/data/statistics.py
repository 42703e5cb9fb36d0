"""Mean and standard deviation of the frames that training may see."""

import numpy as np

from dydiff_jax.data.moments import joined
from dydiff_jax.data.windows import Windows


def statistics(windows: Windows, convention: str = "channel") -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over all frames that the windows touch, float64 [c] each.

    They follow from the moments of the frames, over the points that are observed.

    Args:
      windows: the training windows.
      convention: "channel" for each channel's own deviation; "speed" for one deviation, that of the length
        of the vector of channels where all of them are observed, as TF-Net scales velocities (though it counts
        the test frames too).

    Raises:
      ValueError: no value of a channel is observed, or no vector of channels where its length is asked for.
    """
    trajectories = windows.trajectories
    touched = zip(trajectories.each_moments(), _touched(windows), strict=True)
    found = joined([moments.at(frames) for moments, frames in touched if frames.any()])
    points = found.points.sum(axis=0)
    if not points.all():
        raise ValueError(
            f"fields: no value of {trajectories.fields[int(np.argmin(points))]} is observed in the training split; "
            "drop the field"
        )
    mean, square = found.sums.sum(axis=0) / points, found.squares.sum(axis=0) / points
    variance = square - mean**2
    if convention == "speed":
        vectors = found.vectors.sum()
        if not vectors:
            raise ValueError(
                f"fields: {trajectories.fields} are nowhere observed together in the training split; drop a field, "
                'or use the convention "channel"'
            )
        speed, length = found.speeds.sum() / vectors, (found.vector_squares.sum(axis=0) / vectors).sum()
        variance = np.full_like(mean, length - speed**2)
    return mean, np.sqrt(np.maximum(variance, 0.0))


def _touched(windows: Windows) -> list[np.ndarray]:
    """Which frames of each trajectory some window reads, bool [T]."""
    lengths = [len(array) for array in windows.trajectories.arrays]
    first = np.cumsum([0, *lengths])
    edges = np.zeros(first[-1] + 1, int)
    starts = first[windows.places[:, 0]] + windows.places[:, 1]
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + windows.shape.frames, -1)
    return np.split(np.cumsum(edges[:-1]) > 0, first[1:-1])
