"""Context frames from a user's file, checked before they reach the network."""

import pathlib

import numpy as np

from dydiff_jax.data.cache import open_npy
from dydiff_jax.types import Batch

#: The array of an .npz file that holds the frames.
FRAMES = "frames"


def read_context(path: pathlib.Path, num_context: int, fields: tuple[str, ...]) -> Batch:
    """Reads context frames for a forecast.

    Args:
      path: an .npy file of frames [p, h, w, c] or [n, p, h, w, c] in physical units, or an .npz file that holds
        them under "frames".
      num_context: p; of a longer sequence the last p frames are taken.
      fields: names of the channels.

    Returns:
      A batch whose frames are float32 [n, p, h, w, c].

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, has another shape, or holds values that are not finite.
    """
    frames = _read(path)
    if frames.ndim == 4:
        frames = frames[None]
    wanted = f"[{num_context} or more frames, h, w, {len(fields)}] with channels {list(fields)}, or [n, ...] of them"
    if (
        frames.ndim != 5
        or frames.shape[1] < num_context
        or frames.shape[-1] != len(fields)
        or not frames.size
    ):
        raise ValueError(f"{path}: expected frames {wanted}, found shape {list(frames.shape)}")
    if not np.issubdtype(frames.dtype, np.number) or np.iscomplexobj(frames):
        raise ValueError(f"{path}: expected real numbers, found {frames.dtype}")
    frames = frames[:, -num_context:].astype(np.float32)
    bad = np.argwhere(~np.isfinite(frames))
    if bad.size:
        n, p, *rest = bad[0].tolist()
        raise ValueError(
            f"{path}: window {n}, frame {p} holds a value that is not finite at {rest}; fill or drop it"
        )
    return Batch(frames)


def _read(path: pathlib.Path) -> np.ndarray:
    opened = open_npy(path)
    if isinstance(opened, np.ndarray):
        return opened
    with opened as archive:
        if FRAMES not in archive:
            raise ValueError(f'{path}: expected an array "{FRAMES}", found {sorted(archive)}')
        return archive[FRAMES]
