"""Forecasts that need no training: persistence, dressed persistence and climatology.

Each returns an ensemble [e, b, k, h, w, c] in physical units, scored like any other. What stands for the past
to learn from (`increments`, `frames`) must come from the training part of the data: no function here sees the
truth of a forecast, and the only part of a test window that any of them takes is its context.
"""

import numpy as np

from dydiff_jax.types import Array


def persistence(context: Array, num_forecast: int) -> np.ndarray:
    """The last context frame at every lead, x[lead] = x[0]: an ensemble of one.

    Args:
      context: [b, p, h, w, c], the frames before the forecast, oldest first.
    Returns:
      [1, b, num_forecast, h, w, c].
    """
    last = _last_frame(context)
    return np.repeat(last[None, :, None], num_forecast, axis=2)


def training_increments(windows: Array, num_context: int) -> np.ndarray:
    """How far the field moved in each training window, x[s + lead] - x[s] with s the last context frame.

    Args:
      windows: [n, num_context + k, h, w, c], windows of the training data.
    Returns:
      [n, k, h, w, c].
    """
    windows = np.asarray(windows)
    if windows.ndim != 5 or not 0 < num_context < windows.shape[1]:
        raise ValueError(
            f"expected training windows [n, {num_context} + k, h, w, c] with at least one context and one "
            f"forecast frame, found shape {windows.shape}"
        )
    return windows[:, num_context:] - windows[:, num_context - 1 : num_context]


def dressed_persistence(
    context: Array, increments: Array, members: int, rng: np.random.Generator
) -> np.ndarray:
    """Persistence plus a random training increment, x[lead] = x[0] + d[lead]; the honest rival of a forecast.

    Every member of every window draws one training window, with replacement, and takes its increments at all
    leads: a member moves as some real flow did, and members are independent draws.

    Args:
      context: [b, p, h, w, c]; only its last frame is used.
      increments: [n, k, h, w, c] of `training_increments`.
    Returns:
      [members, b, k, h, w, c].
    """
    last, increments = _last_frame(context), np.asarray(increments)
    _check_frames("increments", increments.shape[:1] + increments.shape[2:], last.shape[1:])
    drawn = rng.integers(len(increments), size=(members, len(last)))
    return last[None, :, None] + increments[drawn]


def climatology_pooled(
    frames: Array, num_windows: int, num_forecast: int, members: int, rng: np.random.Generator
) -> np.ndarray:
    """Random training frames from anywhere in the domain: the law of one frame when nothing else is known.

    Args:
      frames: [n, h, w, c], training frames at random times and random crops.
    Returns:
      [members, num_windows, num_forecast, h, w, c], each frame an independent draw with replacement.
    """
    frames = np.asarray(frames)
    _check_frames("frames", frames.shape, frames.shape[1:])
    return frames[rng.integers(len(frames), size=(members, num_windows, num_forecast))]


def climatology_same_crop(
    frames: Array,
    frame_crops: Array,
    window_crops: Array,
    num_forecast: int,
    members: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Random training frames from the crop that the forecast window covers: what this place usually looks
    like.

    Args:
      frames: [n, h, w, c], training frames at random times.
      frame_crops: [n], the crop of each training frame: any label that names it, such as its first column.
      window_crops: [b], the crop of each forecast window, by the same labels.
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
    size = (members, num_forecast)
    drawn = [_draw_from_crop(frame_crops, crop, size, rng) for crop in np.asarray(window_crops)]
    return frames[np.stack(drawn, axis=1)]


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


def _last_frame(context: Array) -> np.ndarray:
    context = np.asarray(context)
    if context.ndim != 5 or not context.shape[1]:
        raise ValueError(f"context: expected [b, p, h, w, c] with a frame or more, found {context.shape}")
    return context[:, -1]


def _check_frames(name: str, shape: tuple[int, ...], frame: tuple[int, ...]) -> None:
    if len(shape) != 4 or shape[1:] != frame or not shape[0]:
        raise ValueError(f"{name}: expected at least one frame of [h, w, c] = {frame}, found {shape}")
