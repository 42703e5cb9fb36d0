"""Forecasts that need no training: persistence, dressed persistence, climatology, and the exact law where it is known.

Each returns an ensemble [e, b, k, h, w, c] in physical units, scored like any other. What stands for the past
to learn from (`increments`, `frames`) must come from the training split of the data: no function here sees the
truth of a forecast, and the only part of a test window that any of them takes is its context.

A missing value is replaced by an observed one of the same point: by the last one before it in its window
(persistence, increments), or by that of the training frame before it (climatology). ``fill``, [c], stands where a
point has no such value; what stands at a missing entry changes nothing.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from dydiff_jax.data.trajectories import ExactLaw
from dydiff_jax.types import Array


def persistence(
    context: Array, num_forecast: int, observed: Array | None = None, fill: Array | float = 0.0
) -> np.ndarray:
    """The last observed value of each point at every lead, x[lead] = x[0]: an ensemble of one.

    Args:
      context: [b, p, h, w, c], the frames before the forecast, oldest first.
      num_forecast: k.
      observed: bool, broadcastable to the context; None: nothing is missing.
      fill: [c], the value of points that the context never shows.
    Returns:
      [1, b, num_forecast, h, w, c].
    """
    last = _last_frame(context, observed, fill)
    return np.repeat(last[None, :, None], num_forecast, axis=2)


def training_increments(
    windows: Array, num_context: int, observed: Array | None = None, fill: Array | float = 0.0
) -> np.ndarray:
    """Change of the field in each training window, x[s + lead] - x[s] with s the last context frame.

    Args:
      windows: [n, num_context + k, h, w, c], windows of the training data.
      num_context: p.
      observed: bool, broadcastable to the windows; None: nothing is missing. A missing value is the last observed one
        of its point before it, so that an increment is zero until its point is observed again.
      fill: [c], the value of points that are not observed yet.
    Returns:
      [n, k, h, w, c].
    """
    windows = np.asarray(windows)
    if windows.ndim != 5 or not 0 < num_context < windows.shape[1]:
        raise ValueError(
            f"expected training windows [n, {num_context} + k, h, w, c] with at least one context and one "
            f"forecast frame, found shape {windows.shape}"
        )
    windows = _carried(windows, observed, fill, axis=1)
    return windows[:, num_context:] - windows[:, num_context - 1 : num_context]


def dressed_persistence(
    context: Array,
    increments: Array,
    members: int,
    rng: np.random.Generator,
    observed: Array | None = None,
    fill: Array | float = 0.0,
) -> np.ndarray:
    """Persistence plus a random training increment, x[lead] = x[0] + d[lead]: a persistence with spread.

    Every member of every window draws one training window, with replacement, and takes its increments at all
    leads: a member moves as some real flow did, and members are independent draws.

    Args:
      context: [b, p, h, w, c]; of each point only the last observed value is used.
      increments: [n, k, h, w, c] of `training_increments`.
      members: e.
      rng: draws the training windows.
      observed: bool, broadcastable to the context; None: nothing is missing.
      fill: [c], the value of points that the context never shows.
    Returns:
      [members, b, k, h, w, c].
    """
    last, increments = _last_frame(context, observed, fill), np.asarray(increments)
    _check_frames("increments", increments.shape[:1] + increments.shape[2:], last.shape[1:])
    drawn = rng.integers(len(increments), size=(members, len(last)))
    return last[None, :, None] + increments[drawn]


def climatology_pooled(
    frames: Array,
    num_windows: int,
    num_forecast: int,
    members: int,
    rng: np.random.Generator,
    observed: Array | None = None,
    fill: Array | float = 0.0,
) -> np.ndarray:
    """Random training frames from anywhere in the domain: the law of one frame when nothing else is known.

    Args:
      frames: [n, h, w, c], training frames at random times and random crops.
      num_windows: b.
      num_forecast: k.
      members: e.
      rng: draws the frames.
      observed: bool, broadcastable to the frames; None: nothing is missing. A missing value is that of the nearest
        frame before it that has its point observed; after the first frame comes the last one again.
      fill: [c], the value of points that no frame shows.
    Returns:
      [members, num_windows, num_forecast, h, w, c], each frame an independent draw with replacement.
    """
    frames = np.asarray(frames)
    _check_frames("frames", frames.shape, frames.shape[1:])
    frames = _carried_around(frames, observed, fill)
    return frames[rng.integers(len(frames), size=(members, num_windows, num_forecast))]


def climatology_same_crop(
    frames: Array,
    frame_crops: Array,
    window_crops: Array,
    num_forecast: int,
    members: int,
    rng: np.random.Generator,
    observed: Array | None = None,
) -> np.ndarray:
    """Random training frames from the crop that the forecast window covers: what this place usually looks
    like.

    Args:
      frames: [n, h, w, c], training frames at random times.
      frame_crops: [n], the crop of each training frame: any label that names it, such as its first column.
      window_crops: [b], the crop of each forecast window, by the same labels.
      num_forecast: k.
      members: e.
      rng: draws the frames.
      observed: as in `climatology_pooled`, among frames of one crop; a point that none of them shows has the mean of
        its channel over what is observed.
    Returns:
      [members, b, num_forecast, h, w, c], each frame an independent draw with replacement.

    Raises:
      ValueError: a forecast window whose crop no training frame covers.
    """
    frames, frame_crops = np.asarray(frames), np.asarray(frame_crops)
    _check_frames("frames", frames.shape, frames.shape[1:])
    if len(frame_crops) != len(frames):
        raise ValueError(
            f"frame_crops: expected one for each of {len(frames)} frames, found {len(frame_crops)}"
        )
    if observed is not None:
        known, fill = np.broadcast_to(observed, frames.shape), channel_means(frames, observed)
        groups = (np.flatnonzero(frame_crops == crop) for crop in np.unique(frame_crops))
        frames = frames.copy()
        for group in groups:
            frames[group] = _carried_around(frames[group], known[group], fill)
    size = (members, num_forecast)
    drawn = [_draw_from_crop(frame_crops, crop, size, rng) for crop in np.asarray(window_crops)]
    return frames[np.stack(drawn, axis=1)]


def exact_law(
    context: Array, num_forecast: int, members: int, law: ExactLaw, rng: np.random.Generator
) -> np.ndarray:
    """Draws of the law that the data have, given their past: the best forecast that there can be.

    Its fair CRPS is that of the truth against itself, E|x - x'| / 2 (s / sqrt(pi) for a Gaussian law of deviation s),
    and no forecast of the same context has a lower one but by chance.

    Args:
      context: [b, p, h, w, c] on the whole grid of the data; the law takes the last frame, with nothing missing.
      num_forecast: k.
      members: e.
      law: of the data.
      rng: draws the key.
    Returns:
      [members, b, num_forecast, h, w, c], float32; windows and members are independent draws.
    """
    key = jax.random.key(int(rng.integers(2**32)))
    draw = jax.jit(law, static_argnums=(2, 3))
    last = np.asarray(context, np.float32)[:, -1]
    drawn = [draw(jax.random.fold_in(key, b), frame, num_forecast, members) for b, frame in enumerate(last)]
    return np.stack([np.asarray(window, np.float32) for window in drawn], axis=1)


def channel_means(values: Array, observed: Array | None) -> np.ndarray:
    """Mean of each channel [c] over the observed values [..., c], in float64; 0 where there are none."""
    values = np.asarray(values)
    axes = tuple(range(values.ndim - 1))
    known = np.broadcast_to(True if observed is None else observed, values.shape)
    total = np.where(known, values, 0).sum(axis=axes, dtype=np.float64)
    return total / np.maximum(known.sum(axis=axes), 1)


class Known(NamedTuple):
    """What a baseline may know.

    Attributes:
      context: [b, p, h, w, c] of the test windows.
      training: [n, p + k, h, w, c], windows of the training split.
      context_crops: [b], which crop of the domain each test window covers.
      training_crops: [n].
      num_forecast: k.
      members: e of the baselines with spread.
      context_observed: bool, broadcastable to the context, or None.
      training_observed: bool, broadcastable to the training windows, or None.
      law: of the frames after the context, where it is known and holds for these windows.
    """

    context: np.ndarray
    training: np.ndarray
    context_crops: np.ndarray
    training_crops: np.ndarray
    num_forecast: int
    members: int
    context_observed: np.ndarray | None = None
    training_observed: np.ndarray | None = None
    law: ExactLaw | None = None

    @property
    def num_context(self) -> int:
        """p."""
        return self.context.shape[1]

    @property
    def fill(self) -> np.ndarray | float:
        """[c], the mean of each channel of the training windows, for points never observed."""
        if self.context_observed is None and self.training_observed is None:
            return 0.0
        return channel_means(self.training, self.training_observed)

    @property
    def frames_observed(self) -> np.ndarray | None:
        """Of the first frame of the training windows."""
        if self.training_observed is None:
            return None
        return np.broadcast_to(self.training_observed, self.training.shape)[:, 0]


class Baseline(NamedTuple):
    """A forecast that needs no training.

    Attributes:
      plain: what it is, for a reader who knows none.
      make: its ensemble [e, b, k, h, w, c].
      needs_context: not made for windows without context frames.
      needs_law: not made for data whose law is not known.
      bound: whether no forecast can have a lower expected CRPS.
    """

    plain: str
    make: Callable[[Known, np.random.Generator], np.ndarray]
    needs_context: bool = False
    needs_law: bool = False
    bound: bool = False

    def made_for(self, known: Known) -> bool:
        """Whether these windows have it."""
        return (known.num_context > 0 or not self.needs_context) and (
            known.law is not None or not self.needs_law
        )


def _persistence(known: Known, rng: np.random.Generator) -> np.ndarray:
    return persistence(known.context, known.num_forecast, known.context_observed, known.fill)


def _dressed_persistence(known: Known, rng: np.random.Generator) -> np.ndarray:
    fill = known.fill
    increments = training_increments(known.training, known.num_context, known.training_observed, fill)
    return dressed_persistence(known.context, increments, known.members, rng, known.context_observed, fill)


def _climatology_pooled(known: Known, rng: np.random.Generator) -> np.ndarray:
    shape = (len(known.context), known.num_forecast, known.members)
    return climatology_pooled(known.training[:, 0], *shape, rng, known.frames_observed, known.fill)


def _climatology_same_crop(known: Known, rng: np.random.Generator) -> np.ndarray:
    crops = known.training_crops, known.context_crops
    size = known.num_forecast, known.members
    return climatology_same_crop(known.training[:, 0], *crops, *size, rng, known.frames_observed)


def _exact_law(known: Known, rng: np.random.Generator) -> np.ndarray:
    assert known.law is not None  # `Baseline.made_for` has asked
    return exact_law(known.context, known.num_forecast, known.members, known.law, rng)


#: Name of the baseline that draws from the law of the data.
EXACT_LAW = "exact law"

#: {name: baseline} in the order of the tables; a later one changes no draw of those before it.
BASELINES: dict[str, Baseline] = {
    "persistence": Baseline("the last known frame, unchanged.", _persistence, needs_context=True),
    "dressed persistence": Baseline(
        "the last known frame plus changes seen in the training data.",
        _dressed_persistence,
        needs_context=True,
    ),
    "climatology (pooled)": Baseline("frames drawn at random from the training data.", _climatology_pooled),
    "climatology (same crop)": Baseline("the same, drawn from the same place.", _climatology_same_crop),
    EXACT_LAW: Baseline(
        "draws from the law that made the data, given the last known frame: no forecast has a lower crps but by "
        "chance; its rmse is that of a mean of so many draws.",
        _exact_law,
        needs_context=True,
        needs_law=True,
        bound=True,
    ),
}


def ensembles(known: Known, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Each baseline of the table and its ensemble [e, b, k, h, w, c], drawn from one generator in turn.

    They are made one at a time, as each may be as large as a long horizon is.
    """
    rng = np.random.default_rng(seed)
    for name, baseline in BASELINES.items():
        if baseline.made_for(known):
            yield name, baseline.make(known, rng)


def _draw_from_crop(
    frame_crops: np.ndarray, crop: np.generic, size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Indices of random frames of one crop, [members, k]."""
    candidates = np.flatnonzero(frame_crops == crop)
    if not candidates.size:
        raise ValueError(
            f"window_crops: expected crops that training frames cover, found {crop} where they have "
            f"{np.unique(frame_crops)[:8]}; draw training frames at the crops of the forecast windows"
        )
    return rng.choice(candidates, size=size)


def _carried(values: np.ndarray, observed: Array | None, fill: Array | float, axis: int) -> np.ndarray:
    """Values [..., c] with each missing one replaced by the last observed before it along an axis, else by ``fill``."""
    if observed is None:
        return values
    known = np.moveaxis(np.broadcast_to(observed, values.shape), axis, 0)
    values = np.moveaxis(values, axis, 0)
    position = np.arange(len(values)).reshape(-1, *(1,) * (values.ndim - 1))
    latest = np.maximum.accumulate(np.where(known, position, -1), axis=0)
    carried = np.take_along_axis(values, np.maximum(latest, 0), axis=0)
    filled = np.where(latest >= 0, carried, np.asarray(fill, values.dtype))
    return np.moveaxis(filled, 0, axis)


def _carried_around(frames: np.ndarray, observed: Array | None, fill: Array | float) -> np.ndarray:
    """As `_carried` along the frames [n, h, w, c], the last of which comes before the first."""
    if observed is None:
        return frames
    twice = np.concatenate([np.broadcast_to(observed, frames.shape)] * 2)
    return _carried(np.concatenate([frames, frames]), twice, fill, axis=0)[len(frames) :]


def _last_frame(context: Array, observed: Array | None, fill: Array | float) -> np.ndarray:
    context = np.asarray(context)
    if context.ndim != 5 or not context.shape[1]:
        raise ValueError(f"context: expected [b, p, h, w, c] with a frame or more, found {context.shape}")
    return _carried(context, observed, fill, axis=1)[:, -1]


def _check_frames(name: str, shape: tuple[int, ...], frame: tuple[int, ...]) -> None:
    if len(shape) != 4 or shape[1:] != frame or not shape[0]:
        raise ValueError(f"{name}: expected at least one frame of [h, w, c] = {frame}, found {shape}")
