"""Pooling of fields over square windows of the grid."""

import functools
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from dydiff_jax.types import Array

Field = Float[Array, "*lead h w c"] | Bool[Array, "*lead h w c"]


def pool(x: Field, window: int, stride: int, how: Literal["avg", "max"]) -> np.ndarray:
    """Average or maximum over window x window grid points, every stride points, without padding.

    Args:
      x: [..., h, w, c]; Boolean masks pool with "max", which is then a logical or.
    Returns:
      [..., h', w', c] with h' = (h - window) // stride + 1 and w' likewise.
    Raises:
      ValueError: the window does not fit on the grid, a size is below 1, or `how` is unknown.
    """
    x = np.asarray(x)
    _check_window(x.shape[-3:-1], window, stride, how)
    combine = np.add if how == "avg" else np.maximum
    pooled = _slide(_slide(x, -3, window, stride, combine), -2, window, stride, combine)
    return pooled / window**2 if how == "avg" else pooled


def _slide(x: np.ndarray, axis: int, window: int, stride: int, combine: np.ufunc) -> np.ndarray:
    """Combine the window's shifted copies of x along one axis: a separable window is two of these."""
    x = np.moveaxis(x, axis, 0)
    span = stride * ((x.shape[0] - window) // stride) + 1
    shifted = (x[first : first + span : stride] for first in range(window))
    return np.moveaxis(functools.reduce(combine, shifted), 0, axis)


def _check_window(grid: tuple[int, ...], window: int, stride: int, how: str) -> None:
    if how not in ("avg", "max"):
        raise ValueError(f"how: expected 'avg' or 'max', found {how!r}")
    if window < 1 or stride < 1:
        raise ValueError(f"window and stride: expected at least 1, found {window} and {stride}")
    if min(grid) < window:
        raise ValueError(
            f"window: expected at most the grid's shorter side, found a window of {window} on a grid of "
            f"{grid[0]} x {grid[1]}; choose a smaller window"
        )
