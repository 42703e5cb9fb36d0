"""The training, validation and test split: windows that share no frame."""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

from dydiff_jax.data import spans
from dydiff_jax.data.trajectories import Trajectories
from dydiff_jax.data.windows import Windows, WindowShape


@dataclasses.dataclass(frozen=True)
class DatasetOptions:
    """How trajectories become windows.

    Attributes:
      num_context: p, frames that are known; 0 or more.
      num_forecast: k, frames that are forecast.
      stride: frames between the starts of two windows.
      split: "time" or "trajectory": no frame of one split is in another; "given": the files' own; "published":
        TF-Net's, in which windows of different splits share frames, for comparison only.
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


#: Names of the splits, for messages.
NAMES = ("training", "validation", "test")


class Splits(NamedTuple):
    """The windows of each split; one with a fraction of 0 is empty. Those that are scored may be longer."""

    train: Windows
    valid: Windows
    test: Windows


def make_splits(
    trajectories: Trajectories, options: DatasetOptions, horizon: int | None = None, beyond: int = 0
) -> Splits:
    """Check the data and cut them into the windows of each split.

    Args:
      trajectories: what is cut.
      options: how.
      horizon: forecast frames of a validation or test window; k if None. A validation split that is long enough for
        k frames and not for the horizon is empty.
      beyond: rows of forcings that a validation or test window has beyond its frames; windows that lack them are left
        out. Without forcings it changes nothing.

    Raises:
      ValueError: a value is not finite, a crop does not fit, mirroring is not defined, the split does not fit
        the data or the horizon, or a split has no window.
    """
    shape, corners = _crops(trajectories, options)
    if options.flip and trajectories.mirror is None:
        raise ValueError(
            "flip: the mirror image of these data is not known to be a solution; use --config.dataset.flip=False"
        )
    horizon = options.num_forecast if horizon is None else horizon
    beyond = 0 if trajectories.forcings is None else max(beyond, 0)
    scored = shape._replace(frames=options.num_context + horizon, beyond=beyond)
    if options.split == "published":
        train, valid, test = _published(trajectories, corners, options, horizon)
        last = len(trajectories.arrays[0]) - scored.frames - beyond
        places = Splits(train, valid[valid[:, 1] <= last], test[test[:, 1] <= last])
    else:
        found = _spans(trajectories, options)
        places = Splits(
            _places(trajectories, found.train, shape, corners, options),
            _places(trajectories, found.valid, scored, corners, options),
            _places(trajectories, found.test, scored, corners, options),
        )
    _check_split("training", places.train, shape, trajectories, options)
    if len(places.valid) == 0 and options.split != "published":
        short = _places(trajectories, found.valid, shape, corners, options)
        _check_split("validation", short, shape, trajectories, options)
    _check_split("test", places.test, scored, trajectories, options)
    trajectories.check_finite()
    shapes = Splits(shape, scored, scored)
    splits = Splits(*(Windows(trajectories, *each) for each in zip(shapes, places, strict=True)))
    train = dataclasses.replace(splits.train, random_crop=options.random_crop, flip=options.flip)
    return splits._replace(train=train)


def reference_windows(trajectories: Trajectories, options: DatasetOptions, horizon: int) -> Windows:
    """Windows of the training split that are as long as the scored ones: what baselines may know.

    Raises:
      ValueError: there is none.
    """
    shape, corners = _crops(trajectories, options)
    long = shape._replace(frames=options.num_context + horizon)
    if options.split == "published":
        places = _published(trajectories, corners, options, horizon)[0]
    else:
        places = _places(trajectories, _spans(trajectories, options).train, long, corners, options)
        _check_split("training", places, long, trajectories, options)
    return Windows(trajectories, long, places)


def _crops(trajectories: Trajectories, options: DatasetOptions) -> tuple[WindowShape, np.ndarray]:
    """The size of a window, and the corners [crops, 2] of crops laid side by side from the origin."""
    height, width = trajectories.grid
    side_y, side_x = (height, width) if options.crop is None else (options.crop, options.crop)
    if side_y > height or side_x > width:
        raise ValueError(f"crop: {options.crop} does not fit in the {height} x {width} grid of the data")
    rows, columns = np.arange(height // side_y) * side_y, np.arange(width // side_x) * side_x
    corners = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    return WindowShape(options.num_frames, side_y, side_x), corners


def _spans(trajectories: Trajectories, options: DatasetOptions) -> spans.Spans:
    if options.split == "time":
        return spans.by_time(trajectories, options.fractions, gap=options.num_frames)
    if options.split == "trajectory":
        return spans.by_trajectory(trajectories, options.fractions)
    return spans.given(trajectories, options.fractions)


def _places(
    trajectories: Trajectories,
    chosen: list[spans.Span],
    shape: WindowShape,
    corners: np.ndarray,
    options: DatasetOptions,
) -> np.ndarray:
    """Every crop of every window within the spans, [n, 4]; its forcings end with the trajectory, not with the span."""
    known = [len(array) - shape.beyond for array in trajectories.arrays]
    moments = [
        (span.trajectory, start)
        for span in chosen
        for start in range(
            span.start, min(span.stop, known[span.trajectory]) - shape.frames + 1, options.stride
        )
    ]
    moments = np.asarray(moments, int).reshape(-1, 2)
    return np.hstack([np.repeat(moments, len(corners), axis=0), np.tile(corners, (len(moments), 1))])


def _published(
    trajectories: Trajectories, corners: np.ndarray, options: DatasetOptions, horizon: int
) -> list[np.ndarray]:
    """The places of TF-Net's splits."""
    if horizon != options.num_forecast:
        raise ValueError(
            f'horizon: the split "published" has forecasts of {options.num_forecast} frames, found {horizon}; use '
            "another split"
        )
    found = spans.published(trajectories, options.num_context, options.num_forecast, len(corners))
    return [
        np.column_stack([np.zeros(len(samples), int), samples[:, 0], corners[samples[:, 1]]])
        for samples in found
    ]


def _check_split(
    name: str, places: np.ndarray, shape: WindowShape, trajectories: Trajectories, options: DatasetOptions
) -> None:
    if len(places) == 0 and options.fractions[NAMES.index(name)] > 0:
        lengths = sorted({len(array) for array in trajectories.arrays})
        raise ValueError(
            f"the {name} split holds no window of {shape.frames} frames: trajectories have "
            f"{lengths} frames, split {options.split!r} with fractions {options.fractions}; use longer "
            "trajectories, a shorter window or horizon, or other fractions"
        )
