"""Small trajectories whose every value tells where it stands."""

import dataclasses

import numpy as np

from dydiff_jax.data.trajectories import Trajectories
from dydiff_jax.data.windows import Place, Windows
from dydiff_jax.types import Batch, DataSpec


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


def complete(*, lengths=(40, 30, 30), h=6, w=12, dtype=np.float32, rubbish=np.nan, **fields) -> Trajectories:
    """Noise with all that trajectories can have: a third of the points is missing, with `rubbish` at half of these.

    A forcing tells its trajectory, frame and column; so does a static field its row, column and number.
    """
    rng = np.random.default_rng(0)
    observed = tuple(rng.random((length, h, w, 2)) > 1 / 3 for length in lengths)
    arrays = []
    for mask in observed:
        values = (100 * rng.random(mask.shape)).astype(dtype)
        values[~mask & (rng.random(mask.shape) > 0.5)] = rubbish
        arrays.append(values)
    row, column, number = np.indices((h, w, 2))
    forcings = []
    for trajectory, length in enumerate(lengths):
        frame, which = np.indices((length, 3))
        forcings.append((1e4 * trajectory + 10 * frame + which).astype(np.float32))
    made = counting(lengths=lengths, h=h, w=w, **{"mirror": (-1.0, 1.0)} | fields)
    return dataclasses.replace(
        made,
        arrays=tuple(arrays),
        observed=observed,
        forcings=tuple(forcings),
        forcing_names=("action", "season", "insolation"),
        static=(1000 + 100 * row + 2 * column + number).astype(np.float32),
        static_names=("height", "land"),
    )


@dataclasses.dataclass(frozen=True)
class Complete:
    """A data source of them."""

    scale: float = 0.5

    def spec(self) -> DataSpec:
        return DataSpec(
            (6, 12, 2),
            ("u", "v"),
            "m/s",
            0.5,
            "s",
            "field",
            ("action", "season", "insolation"),
            ("height", "land"),
        )

    def load(self) -> Trajectories:
        return complete(scale=self.scale)


def expected(windows: Windows, place: Place) -> Batch:
    """What stands at a place, point by point."""
    data, shape = windows.trajectories, windows.shape
    columns = [(place.column + i) % data.grid[1] for i in range(shape.width)]
    rows = [place.row + i for i in range(shape.height)]
    sign = np.ones(len(data.fields), np.float32)
    if place.mirrored:
        columns, sign = columns[::-1], np.asarray(data.mirror, np.float32)
    times = [place.frame + i for i in range(shape.frames)]
    box = np.ix_(times, rows, columns)
    frames = data.arrays[place.trajectory][box].astype(np.float32) * np.float32(data.scale) * sign
    known = [place.frame + i for i in range(shape.frames + shape.beyond)]
    return Batch(
        frames,
        data.observed[place.trajectory][box],
        data.forcings[place.trajectory][known],
        data.static[np.ix_(rows, columns)],
    )


def assert_same(found: Batch, wanted: Batch) -> None:
    """Bit for bit, and of one dtype; NaN equals NaN."""
    for name, one, other in zip(Batch._fields, found, wanted, strict=True):
        if one is None or other is None:
            assert one is other, name
            continue
        assert one.dtype == other.dtype, name
        np.testing.assert_array_equal(one, other, err_msg=name)
