"""Small trajectories whose every value tells where it stands."""

import numpy as np

from dydiff_jax.data.trajectories import Trajectories


def counting(*, lengths=(40, 30, 30), h=4, w=12, c=2, periodic_x=True, **fields) -> Trajectories:
    """Trajectory, frame, row, column and channel are the decimal digits of each value, below 2^24."""
    arrays = []
    for number, length in enumerate(lengths):
        frame, row, column, channel = np.indices((length, h, w, c))
        digits = 1e6 * number + 1e3 * frame + 100 * row + 4 * column + channel
        arrays.append(digits.astype(np.float32))
    return Trajectories(
        arrays=tuple(arrays),
        names=tuple(f"file {number}" for number in range(len(lengths))),
        fields=tuple("uv"[:c]),
        interval=0.5,
        time_unit="s",
        unit="m/s",
        periodic_x=periodic_x,
        **fields,
    )
