"""Forecasts: a window that rolls on to any horizon, and ensembles of any size in chunks that fit memory."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dydiff_jax.codecs.codec import Codec
from dydiff_jax.diffusion.rollout import Carry, Rollout
from dydiff_jax.distributed import collectives
from dydiff_jax.distributed.rules import constrain_batch
from dydiff_jax.models.conditions import Conditioner
from dydiff_jax.types import Array, Batch


@dataclass(frozen=True)
class Forecaster:
    """codec.decode . rollout . codec.encode: a forecast in physical units, as many frames at a time as a window has.

    Attributes:
      rollout: the process, its sampler and how the window moves on.
      horizon: forecast frames, any number.
      codec: physical frames <-> model space.
      conditioner: what the network sees beside z.
      apply: (params, z, logsnr, conditions) -> prediction, the network in evaluation mode.
      missing: the variance that the estimate of a window's last noise lacks, one number or one for each channel;
        read where the process continues its noise.
    """

    rollout: Rollout
    horizon: int
    codec: Codec
    conditioner: Conditioner
    apply: Callable[..., Array]
    missing: tuple[float, ...] = (0.0,)

    @property
    def calls(self) -> int:
        """Calls of ``advance`` that reach the horizon."""
        return math.ceil((self.horizon + self.rollout.waiting) / self.rollout.process.num_forecast)

    @property
    def num_frames(self) -> int:
        """Frames, context among them, that the windows of a forecast cover."""
        return self.rollout.process.num_frames + (self.calls - 1) * self.rollout.process.num_forecast

    def begin(self, keys: Array, batch: Batch) -> Carry:
        """The first window of each row.

        Args:
          keys: [b] typed random keys, one a row, so that a row's member depends on nothing beside it.
          batch: frames [b, >= p, h, w, c] of which the first p are read.
        """
        context = self.codec.encode(batch.frames[:, : self.rollout.process.num_context])
        return jax.tree.map(_placed, self.rollout.begin(keys, context))

    def advance(self, params: Any, keys: Array, batch: Batch, carry: Carry) -> tuple[Carry, Array]:
        """The next k frames of each row, [b, k, h, w, c] in physical units; the first ``waiting`` are none.

        Args:
          params: the network's parameters, EMA weights as a rule.
          keys: those given to ``begin``.
          batch: forcings [b, num_frames, a] and static fields [b, h, w, s] where the network was trained with them.
          carry: where to go on.
        """
        process = self.rollout.process

        def bind(context, first):
            forcings = batch.forcings
            if forcings is not None:
                forcings = jax.lax.dynamic_slice_in_dim(forcings, first, process.num_frames, axis=1)
            conditions = self.conditioner(context, forcings, batch.static)
            return lambda z, logsnr: self.apply(params, z, logsnr, conditions)

        passes = self.rollout.boundary
        carry, x = self.rollout.advance(keys, bind, carry, passes, jnp.asarray(self.missing, jnp.float32))
        return jax.tree.map(_placed, carry), self.codec.decode(x)


def _placed(x: Array) -> Array:
    """Rows divided over the mesh, so that what a call returns lies as the next one wants it."""
    return constrain_batch(x) if x.ndim else x


def check_forcings(forecaster: Forecaster, batch: Batch) -> None:
    """Raises ValueError if the forcings end before the last window of a forecast does."""
    if batch.forcings is not None and batch.forcings.shape[1] < forecaster.num_frames:
        raise ValueError(
            f"forcings: expected one for each of {forecaster.num_frames} frames (context, a horizon of "
            f"{forecaster.horizon} and what the last window reaches beyond it), found {batch.forcings.shape[1]}"
        )


def _row_keys(key: Array, window: Array, member: Array) -> Array:
    """One key for each (window, member), whatever chunk it is drawn in."""
    return jax.vmap(lambda i, j: jax.random.fold_in(jax.random.fold_in(key, i), j))(window, member)


def chunks(total: int, size: int) -> Iterator[np.ndarray]:
    """Rows 0 ... total - 1 in groups of exactly ``size``; the last group repeats its final row."""
    for start in range(0, total, size):
        yield np.minimum(np.arange(start, start + size), total - 1)


class Piece(NamedTuple):
    """Some frames of some rows of an ensemble.

    Attributes:
      member: [r], the member of each row.
      window: [r], its window.
      first: the first of the leads, from 0.
      frames: [r, leads, h, w, c], physical units.
      seconds: that the device and the way to the host took, without compilation.
    """

    member: np.ndarray
    window: np.ndarray
    first: int
    frames: np.ndarray
    seconds: float


def ensemble(
    forecaster: Forecaster, params: Any, key: Array, batch: Batch, members: int, chunk: int
) -> Iterator[Piece]:
    """Draws ``members`` forecasts of every window of a batch, ``chunk`` rows and up to k leads at a time.

    Each program is compiled once, and the memory of the device does not depend on the horizon.

    Args:
      forecaster: makes the frames of each row.
      params: the network's parameters.
      key: a typed random key; member j of window i is the same whatever the chunk.
      batch: n windows.
      members: e.
      chunk: rows in flight at once, which bounds the memory of the device.

    Yields:
      Pieces of at most ``chunk`` rows, those of the first rows first, ``num_pieces`` in all.

    Raises:
      ValueError: the forcings of the batch end too early.
    """
    check_forcings(forecaster, batch)
    n, begin, advance = len(batch.frames), jax.jit(forecaster.begin), None
    for rows in chunks(members * n, chunk):
        member, window = np.divmod(rows, n)
        part = jax.tree.map(lambda x, window=window: np.asarray(x)[window], batch)
        keys = _row_keys(key, jnp.asarray(window), jnp.asarray(member))
        carry = begin(keys, part)
        if advance is None:
            advance = jax.jit(forecaster.advance, donate_argnums=3).lower(params, keys, part, carry).compile()
        fresh = np.unique(rows, return_index=True)[1]
        for call in range(forecaster.calls):
            start = time.perf_counter()
            carry, frames = advance(params, keys, part, carry)
            frames = collectives.gather_to_host(frames)
            seconds = time.perf_counter() - start
            first = call * frames.shape[1] - forecaster.rollout.waiting
            kept = frames[fresh, max(-first, 0) : forecaster.horizon - first]
            yield Piece(member[fresh], window[fresh], max(first, 0), kept, seconds)


def num_pieces(forecaster: Forecaster, rows: int, chunk: int) -> int:
    """Pieces that ``ensemble`` yields for that many rows, members times windows."""
    return math.ceil(rows / chunk) * forecaster.calls


def gather(pieces: Iterable[Piece], members: int, n: int, horizon: int) -> np.ndarray:
    """Assembles the pieces of ``ensemble`` into [e, n, horizon, h, w, c]."""
    out = None
    for piece in pieces:
        if out is None:
            out = np.empty((members, n, horizon, *piece.frames.shape[2:]), piece.frames.dtype)
        out[piece.member, piece.window, piece.first : piece.first + piece.frames.shape[1]] = piece.frames
    return out
