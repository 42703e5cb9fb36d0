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
        of the vector of channels, as TF-Net scales velocities (though it counts the test frames too), over the
        points at which all channels are observed.

    Raises:
      ValueError: no value of a channel, or for "speed" no whole vector, is observed.
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
                "codec: expected points at which all fields are observed, found none in the training split; use "
                "--config.codec.name=standardize"
            )
        speed = found.speeds.sum(axis=0) / vectors
        variance = np.full_like(mean, (found.vector_squares.sum(axis=0) / vectors).sum() - speed**2)
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
