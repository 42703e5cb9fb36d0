"""From trajectories to batches: splits, windows, and batches as a pure function of (seed, step)."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import grain
import numpy as np

from dydiff_jax.data import splits
from dydiff_jax.data.read_ahead import InputOptions, read_ahead
from dydiff_jax.data.sources.source import Trajectories
from dydiff_jax.data.statistics import statistics as statistics
from dydiff_jax.data.windows import Cut, Place, Windows, stack
from dydiff_jax.data.windows import select as select
from dydiff_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class WindowOptions:
    """How trajectories become windows.

    Attributes:
      num_context: p, frames that are known; 0 or more.
      num_forecast: k, frames that are forecast.
      stride: frames between the starts of two windows.
      split: "time" or "trajectory": no frame of one part is in another; "given": the files' own; "published":
        TF-Net's, in which windows of different parts share frames, for comparison only.
      fractions: of the data for training, validation and testing; they sum to 1. Not used by "published".
      crop: side of the square crops in grid points, None for whole frames.
      random_crop: training crops at any place, wrapping around where x is periodic; else side by side.
      flip: mirror half of the training windows in x.
    """

    num_context: int
    num_forecast: int
    stride: int = 1
    split: Literal["time", "trajectory", "given", "published"] = "time"
    fractions: tuple[float, ...] = (0.7, 0.1, 0.2)
    crop: int | None = None
    random_crop: bool = True
    flip: bool = False

    def __post_init__(self):
        for name, least in (("num_context", 0), ("num_forecast", 1), ("stride", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if self.crop is not None and self.crop < 1:
            raise ValueError(f"crop: expected at least 1 grid point, or None, found {self.crop}")
        whole = len(self.fractions) == 3 and abs(sum(self.fractions) - 1.0) < 1e-6
        if not whole or min(self.fractions) < 0 or self.fractions[0] == 0:
            raise ValueError(
                "fractions: expected three shares (training, validation, testing) that sum to 1, the first "
                f"above 0, found {self.fractions}"
            )

    @property
    def num_frames(self) -> int:
        """f = p + k."""
        return self.num_context + self.num_forecast


#: Names of the parts, for messages.
PARTS = ("training", "validation", "test")


class Splits(NamedTuple):
    """The windows of each part; a part with a fraction of 0 is empty. Test windows may be longer than the others."""

    train: Windows
    valid: Windows
    test: Windows


def make_splits(trajectories: Trajectories, options: WindowOptions, horizon: int | None = None) -> Splits:
    """Check the data and cut them into the windows of each part.

    Args:
      trajectories: what is cut.
      options: how.
      horizon: forecast frames of a test window; k if None.

    Raises:
      ValueError: a value is not finite, a crop does not fit, mirroring is not defined, the split does not fit
        the data or the horizon, or a part has no window.
    """
    cut, corners = _crops(trajectories, options)
    if options.flip and trajectories.mirror is None:
        raise ValueError("flip: the mirror image of these data is not known to be a solution; use flip=False")
    horizon = options.num_forecast if horizon is None else horizon
    cuts = Splits(cut, cut, cut._replace(frames=options.num_context + horizon))
    if options.split == "published":
        places = _published(trajectories, corners, options, horizon)
    else:
        parts = zip(_spans(trajectories, options), cuts, strict=True)
        places = Splits(*(_places(spans, cut, corners, options) for spans, cut in parts))
    for name, part, part_cut, share in zip(PARTS, places, cuts, options.fractions, strict=True):
        if share > 0:
            _check_part(name, part, part_cut, trajectories, options)
    trajectories.check_finite()
    parts = Splits(*(Windows(trajectories, *part) for part in zip(cuts, places, strict=True)))
    train = dataclasses.replace(parts.train, random_crop=options.random_crop, flip=options.flip)
    return parts._replace(train=train)


def reference_windows(trajectories: Trajectories, options: WindowOptions, horizon: int) -> Windows:
    """Windows of the training part that are as long as those of the test part: what baselines may know.

    Raises:
      ValueError: there is none.
    """
    cut, corners = _crops(trajectories, options)
    long = cut._replace(frames=options.num_context + horizon)
    if options.split == "published":
        return Windows(trajectories, long, _published(trajectories, corners, options, horizon).train)
    places = _places(_spans(trajectories, options).train, long, corners, options)
    _check_part(PARTS[0], places, long, trajectories, options)
    return Windows(trajectories, long, places)


class TrainBatches:
    """Batches of random training windows: row r of step s is element s batch_size + r of an endless sequence.

    Every epoch visits each training window once, in a new order, with new crops and mirrors. An element
    depends on the seed and its number alone, so any number of processes makes one batch, each its own rows.
    """

    def __init__(self, windows: Windows, batch_size: int, seed: int, options: InputOptions | None = None):
        self._windows, self._batch_size = windows, batch_size
        self._options = InputOptions() if options is None else options
        numbers = grain.MapDataset.range(len(windows))
        self._places = numbers.seed(seed).shuffle().repeat().random_map(windows.draw)

    def rows(self, step: int, rows: Sequence[int]) -> Batch:
        """These rows of the batch of one step."""
        return stack([self._windows.read(self._place(step, row)) for row in rows])

    def stream(self, step: int, rows: Sequence[int]) -> Iterator[Batch]:
        """These rows of the batches of one step and of all that follow, read ahead as the options say."""
        return read_ahead(functools.partial(self.rows, rows=[int(row) for row in rows]), step, self._options)

    def ids(self, step: int) -> list[Place]:
        """Where each row of the batch of one step is cut."""
        return [self._place(step, row) for row in range(self._batch_size)]

    def _place(self, step: int, row: int) -> Place:
        return self._places[step * self._batch_size + int(row)]


def _crops(trajectories: Trajectories, options: WindowOptions) -> tuple[Cut, np.ndarray]:
    """The size of a window, and the corners [crops, 2] of crops laid side by side from the origin."""
    height, width = trajectories.grid
    side_y, side_x = (height, width) if options.crop is None else (options.crop, options.crop)
    if side_y > height or side_x > width:
        raise ValueError(f"crop: {options.crop} does not fit in the {height} x {width} grid of the data")
    rows, columns = np.arange(height // side_y) * side_y, np.arange(width // side_x) * side_x
    corners = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    return Cut(options.num_frames, side_y, side_x), corners


def _spans(trajectories: Trajectories, options: WindowOptions) -> splits.Parts:
    if options.split == "time":
        return splits.by_time(trajectories, options.fractions, gap=options.num_frames)
    if options.split == "trajectory":
        return splits.by_trajectory(trajectories, options.fractions)
    return splits.given(trajectories, options.fractions)


def _places(spans: list[splits.Span], cut: Cut, corners: np.ndarray, options: WindowOptions) -> np.ndarray:
    """Every crop of every window within the spans, [n, 4]."""
    moments = [
        (span.trajectory, start)
        for span in spans
        for start in range(span.start, span.stop - cut.frames + 1, options.stride)
    ]
    moments = np.asarray(moments, int).reshape(-1, 2)
    return np.hstack([np.repeat(moments, len(corners), axis=0), np.tile(corners, (len(moments), 1))])


def _published(
    trajectories: Trajectories, corners: np.ndarray, options: WindowOptions, horizon: int
) -> Splits:
    """The places of TF-Net's split."""
    if horizon != options.num_forecast:
        raise ValueError(
            f'horizon: the split "published" has forecasts of {options.num_forecast} frames, found {horizon}; use '
            "another split"
        )
    parts = splits.published(trajectories, options.num_context, options.num_forecast, len(corners))
    return Splits(*(_published_places(samples, corners) for samples in parts))


def _published_places(samples: np.ndarray, corners: np.ndarray) -> np.ndarray:
    start, crop = samples.T
    return np.column_stack([np.zeros_like(start), start, corners[crop]])


def _check_part(
    name: str, places: np.ndarray, cut: Cut, trajectories: Trajectories, options: WindowOptions
) -> None:
    if len(places) == 0:
        lengths = sorted({len(array) for array in trajectories.arrays})
        raise ValueError(
            f"the {name} part holds no window of {cut.frames} frames: trajectories have "
            f"{lengths} frames, split {options.split!r} with fractions {options.fractions}; use longer "
            "trajectories, a shorter window or horizon, or other fractions"
        )
