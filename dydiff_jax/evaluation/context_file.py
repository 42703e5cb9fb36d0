"""Context frames, and what is known in advance, from a user's file, checked before they reach a network."""

import pathlib

import numpy as np

from dydiff_jax.data.cache import open_npy
from dydiff_jax.types import Batch, DataSpec


def read_context(path: pathlib.Path, num_context: int, spec: DataSpec, num_forcings: int) -> Batch:
    """Read what a forecast is made from.

    Args:
      path: an .npy file of frames [p, *s] or [n, p, *s] in physical units; or an .npz file with ``frames``, where
        wanted ``observed`` (bool, broadcastable to frames), and, where the model was trained with them, ``forcings``
        [p + horizon, m] or [n, p + horizon, m] and ``static`` [*grid, q] or [n, *grid, q].
      num_context: p; of a longer sequence the last p frames are taken, and the forcings from the first of them on.
      spec: of the data that the model was trained on; the grid may differ.
      num_forcings: frames, context among them, of which the forecast reads the forcings.

    Returns:
      A batch of n windows, frames [n, p, *s].

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, lacks an array, or one has another shape or observed values that are not finite.
    """
    arrays = _read(path)
    frames = arrays["frames"]
    axes = len(spec.frame_shape)
    if frames.ndim == axes + 1:
        arrays = {name: array[None] for name, array in arrays.items()}
        frames = arrays["frames"]
    wanted = (
        f"[{num_context} or more frames, {', '.join('hw'[: axes - 1])}, {len(spec.fields)}] with channels "
        f"{list(spec.fields)}, or [n, ...] of them"
    )
    fits = frames.ndim == axes + 2 and frames.shape[1] >= num_context and frames.size
    if not fits or frames.shape[-1] != len(spec.fields):
        raise ValueError(f"{path}: expected frames {wanted}, found shape {list(frames.shape)}")
    if not np.issubdtype(frames.dtype, np.number) or np.iscomplexobj(frames):
        raise ValueError(f"{path}: expected real numbers, found {frames.dtype}")
    dropped = frames.shape[1] - num_context
    frames = frames[:, dropped:].astype(np.float32)
    observed = _observed(path, arrays.get("observed"), frames, dropped)
    forcings = _forcings(path, arrays.get("forcings"), spec, len(frames), dropped, num_forcings)
    static = _static(path, arrays.get("static"), spec, frames)
    return Batch(frames, observed, forcings, static)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    opened = open_npy(path)
    if isinstance(opened, np.ndarray):
        return {"frames": opened}
    with opened as archive:
        if "frames" not in archive:
            raise ValueError(f'{path}: expected an array "frames", found {sorted(archive)}')
        unknown = sorted(set(archive) - set(Batch._fields))
        if unknown:
            raise ValueError(f"{path}: expected arrays among {list(Batch._fields)}, found {unknown} too")
        return {name: archive[name] for name in archive}


def _observed(
    path: pathlib.Path, observed: np.ndarray | None, frames: np.ndarray, dropped: int
) -> np.ndarray | None:
    """Which points are known, as a mask of the shape of the frames; a value there must be finite."""
    if observed is not None:
        if observed.dtype != bool:
            raise ValueError(f'{path}: expected "observed" of bool, found {observed.dtype}')
        whole = (frames.shape[0], frames.shape[1] + dropped, *frames.shape[2:])
        try:
            observed = np.broadcast_to(observed, whole)[:, dropped:]
        except ValueError:
            raise ValueError(
                f'{path}: expected "observed" that broadcasts to frames {list(whole)}, found {list(observed.shape)}'
            ) from None
    known = np.isfinite(frames) if observed is None else np.isfinite(frames) | ~observed
    bad = np.argwhere(~known)
    if bad.size:
        n, p, *rest = bad[0].tolist()
        raise ValueError(
            f"{path}: window {n}, frame {p} holds a value that is not finite at {rest}; fill or drop it, or mark it in "
            'an array "observed"'
        )
    return observed


def _forcings(
    path: pathlib.Path, forcings: np.ndarray | None, spec: DataSpec, n: int, dropped: int, needed: int
) -> np.ndarray | None:
    if not spec.forcings:
        if forcings is not None:
            raise ValueError(f'{path}: expected no "forcings": the model was trained without')
        return None
    found = None if forcings is None else list(forcings.shape)
    wanted = f'"forcings" {list(spec.forcings)} [{n}, {needed + dropped} or more, {len(spec.forcings)}]'
    if (
        forcings is None
        or forcings.ndim != 3
        or forcings.shape[::2] != (n, len(spec.forcings))
        or forcings.shape[1] < needed + dropped
    ):
        raise ValueError(f"{path}: expected {wanted}, in an .npz file, found {found}")
    return forcings[:, dropped:].astype(np.float32)


def _static(
    path: pathlib.Path, static: np.ndarray | None, spec: DataSpec, frames: np.ndarray
) -> np.ndarray | None:
    if not spec.static:
        if static is not None:
            raise ValueError(f'{path}: expected no "static" fields: the model was trained without')
        return None
    wanted = (len(frames), *frames.shape[2:-1], len(spec.static))
    if static is None or static.shape != wanted:
        raise ValueError(
            f'{path}: expected "static" fields {list(spec.static)} {list(wanted)}, in an .npz file, found '
            f"{None if static is None else list(static.shape)}"
        )
    return static.astype(np.float32)
