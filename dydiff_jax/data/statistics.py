"""Mean and standard deviation of the frames that training may see."""

import numpy as np

from dydiff_jax.data.windows import Windows

#: Frames read at once.
CHUNK = 64


def statistics(windows: Windows, convention: str = "channel") -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over all frames that the windows touch, float64 [c] each.

    Args:
      windows: the training windows.
      convention: "channel" for each channel's own deviation; "speed" for one deviation, that of the length
        of the vector of channels, as TF-Net scales velocities (though it counts the test frames too).
    """
    count = 0
    total, squares, speeds = (np.zeros(len(windows.trajectories.fields)) for _ in range(3))
    for frames in _touched(windows):
        values = frames.astype(np.float64)
        count += values[..., 0].size
        total += values.sum(axis=(0, 1, 2))
        squares += (values**2).sum(axis=(0, 1, 2))
        speeds += np.sqrt((values**2).sum(axis=-1)).sum()
    mean = total / count
    if convention == "speed":
        variance = np.full_like(mean, squares.sum() / count) - (speeds / count) ** 2
    else:
        variance = squares / count - mean**2
    return mean, np.sqrt(np.maximum(variance, 0.0))


def _touched(windows: Windows):
    """Every frame that some window reads, once, all rows and columns, in chunks [CHUNK or fewer, h, w, c]."""
    for number, array in enumerate(windows.trajectories.arrays):
        starts = np.unique(windows.places[windows.places[:, 0] == number, 1])
        touched = np.zeros(len(array), bool)
        for start in starts:
            touched[start : start + windows.cut.frames] = True
        for start in range(0, len(array), CHUNK):
            chunk = touched[start : start + CHUNK]
            if chunk.any():
                yield windows.trajectories.read(number, start, start + CHUNK)[chunk]
