"""The ensemble driver: members of any number to any horizon, in chunks that fit memory, for every forecaster."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dydiff_jax.distributed import collectives
from dydiff_jax.system import Forecaster, Weights
from dydiff_jax.types import Array, Batch

#: Tells a watchdog that work goes on, and how far it is.
Heartbeat = Callable[[str], None]


class Piece(NamedTuple):
    """Some frames of some rows of an ensemble.

    Attributes:
      member: [r], the member of each row.
      window: [r], its window.
      first: the first of the leads, from 0.
      frames: [r, leads, *s], physical units.
      seconds: device time plus transfer to the host, excluding compilation.
    """

    member: np.ndarray
    window: np.ndarray
    first: int
    frames: np.ndarray
    seconds: float


class Ensemble:
    """Draws forecasts of a trained system; each of its two programs is compiled once.

    Attributes:
      forecaster: makes the frames of each row.
      horizon: forecast frames, any number.
      chunk: rows (members times windows) in flight at once, which bounds the memory of the device; that does not
        depend on the horizon.
    """

    def __init__(self, forecaster: Forecaster, horizon: int, chunk: int):
        """Prepare to draw; nothing is compiled yet."""
        self.forecaster, self.horizon, self.chunk = forecaster, horizon, chunk
        self._begin = jax.jit(forecaster.begin)
        self._advance = jax.jit(forecaster.advance, donate_argnums=3)
        self._compiled: Callable | None = None

    def members(self, wanted: int) -> int:
        """The members that a forecast has: those wanted, or those that the forecaster can make."""
        most = self.forecaster.max_members
        return wanted if most is None else min(wanted, most)

    def num_pieces(self, rows: int) -> int:
        """Pieces that `pieces` yields for that many rows, members times windows."""
        return math.ceil(rows / self.chunk) * num_calls(self.forecaster, self.horizon)

    def pieces(
        self,
        weights: Weights,
        key: Array,
        batch: Batch,
        members: int,
        heartbeat: Heartbeat = lambda note: None,
    ) -> Iterator[Piece]:
        """Draw ``members`` forecasts of every window of a batch, ``chunk`` rows and a block of leads at a time.

        Args:
          weights: of a finished run.
          key: a typed random key; member j of window i is the same whatever is drawn beside it, to the rounding of
            programs for chunks of other sizes.
          batch: n windows, of which the context is read, with forcings as far as `num_forcings` says.
          members: e.
          heartbeat: hears of every piece.

        Yields:
          Pieces of at most ``chunk`` rows, those of the first rows first, ``num_pieces`` in all.

        Raises:
          ValueError: the forcings of the batch end too early.
        """
        check_forcings(self.forecaster, batch, self.horizon)
        n, done = len(batch.frames), 0
        total = self.num_pieces(members * n)
        for rows in chunks(members * n, self.chunk):
            member, window = np.divmod(rows, n)
            part = jax.tree.map(lambda x, window=window: np.asarray(x)[window], batch)
            keys = row_keys(key, jnp.asarray(window), jnp.asarray(member))
            carry = self._begin(weights, keys, part)
            if self._compiled is None:
                program = self._advance.lower(weights, keys, part, carry)
                self._compiled = collectives.compile_on_all(program)
            fresh = np.unique(rows, return_index=True)[1]
            for call in range(num_calls(self.forecaster, self.horizon)):
                start = time.perf_counter()
                carry, frames = self._compiled(weights, keys, part, carry)
                frames = collectives.gather_to_host(frames)
                seconds = time.perf_counter() - start
                first = call * frames.shape[1] - self.forecaster.delay
                kept = frames[fresh, max(-first, 0) : self.horizon - first]
                done += 1
                heartbeat(f"{done} of {total} pieces")
                yield Piece(member[fresh], window[fresh], max(first, 0), kept, seconds)

    def draw(
        self,
        weights: Weights,
        key: Array,
        batch: Batch,
        members: int,
        heartbeat: Heartbeat = lambda note: None,
    ) -> tuple[np.ndarray, float]:
        """An ensemble [e, n, horizon, *s] with a progress bar, and the seconds of its pieces; see `pieces`."""
        n, seconds = len(batch.frames), []
        total = self.num_pieces(members * n)

        def timed() -> Iterator[Piece]:
            pieces = self.pieces(weights, key, batch, members, heartbeat)
            bar = tqdm(pieces, "forecasting", total, unit="window", disable=not collectives.is_main())
            for piece in bar:
                seconds.append(piece.seconds)
                yield piece

        return gather(timed(), members, n, self.horizon), sum(seconds)


def num_calls(forecaster: Forecaster, horizon: int) -> int:
    """Calls of ``advance`` that reach the horizon."""
    return math.ceil((horizon + forecaster.delay) / forecaster.block)


def num_forcings(forecaster: Forecaster, horizon: int) -> int:
    """Frames, context among them, of which the forcings are read by a forecast to this horizon."""
    return (num_calls(forecaster, horizon) - 1) * forecaster.block + forecaster.reach


def check_forcings(forecaster: Forecaster, batch: Batch, horizon: int) -> None:
    """Raise ValueError if the forcings end before the last window of a forecast does."""
    needed = num_forcings(forecaster, horizon)
    if batch.forcings is not None and batch.forcings.shape[1] < needed:
        raise ValueError(
            f"forcings: expected a row for each of {needed} frames (context, a horizon of {horizon} and what the last "
            f"window reaches beyond it), found {batch.forcings.shape[1]}"
        )


def row_keys(key: Array, window: Array, member: Array) -> Array:
    """One key for each (window, member), whatever chunk it is drawn in."""
    return jax.vmap(lambda i, j: jax.random.fold_in(jax.random.fold_in(key, i), j))(window, member)


def chunks(total: int, size: int) -> Iterator[np.ndarray]:
    """Rows 0 ... total - 1 in groups of exactly ``size``; the last group repeats its final row."""
    for start in range(0, total, size):
        yield np.minimum(np.arange(start, start + size), total - 1)


def gather(pieces: Iterable[Piece], members: int, n: int, horizon: int) -> np.ndarray:
    """Assemble pieces into [e, n, horizon, *s]."""
    out = np.empty(0)
    for piece in pieces:
        if not out.size:
            out = np.empty((members, n, horizon, *piece.frames.shape[2:]), piece.frames.dtype)
        out[piece.member, piece.window, piece.first : piece.first + piece.frames.shape[1]] = piece.frames
    return out
