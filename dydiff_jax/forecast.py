"""Forecasts: one window from its context, and ensembles of any size in chunks that fit memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dydiff_jax.codec import Codec
from dydiff_jax.conditions import Conditioner
from dydiff_jax.diffusion.process import Process
from dydiff_jax.diffusion.sampler import Sampler, sample
from dydiff_jax.types import Array, Batch


@dataclass(frozen=True)
class Forecaster:
    """codec.decode . sample . codec.encode: a forecast in physical units.

    Attributes:
      process: the corruption that the sampler reverses.
      sampler: method and grid of levels.
      codec: physical frames <-> model space.
      conditioner: what the network sees beside z.
      apply: (params, z, logsnr, conditions) -> prediction, the network in evaluation mode.
    """

    process: Process
    sampler: Sampler
    codec: Codec
    conditioner: Conditioner
    apply: Callable[..., Array]

    def __call__(self, params: Any, keys: Array, batch: Batch) -> Array:
        """Draws one member for each row.

        Args:
          params: the network's parameters, EMA weights as a rule.
          keys: [b] typed random keys, one a row, so that a row's member depends on nothing beside it.
          batch: frames [b, >= p, h, w, c] of which the first p are read; actions [b, p + k, a] and static
            fields [b, h, w, s] where the network was trained with them.

        Returns:
          [b, k, h, w, c] forecast frames in physical units.
        """
        context = self.codec.encode(batch.frames[:, : self.process.num_context])
        conditions = self.conditioner(context, batch.actions, batch.static)

        def denoise(z, logsnr):
            return self.apply(params, z, logsnr, conditions)

        x = sample(keys, self.process, denoise, context, self.sampler)
        return self.codec.decode(x[:, self.process.num_context :])


def _row_keys(key: Array, window: Array, member: Array) -> Array:
    """One key for each (window, member), whatever chunk it is drawn in."""
    return jax.vmap(lambda i, j: jax.random.fold_in(jax.random.fold_in(key, i), j))(window, member)


def chunks(total: int, size: int) -> Iterator[np.ndarray]:
    """Rows 0 ... total - 1 in groups of exactly ``size``; the last group repeats its final row."""
    for start in range(0, total, size):
        yield np.minimum(np.arange(start, start + size), total - 1)


def ensemble(
    forecaster: Forecaster, params: Any, key: Array, batch: Batch, members: int, chunk: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Draws ``members`` forecasts of every window of a batch, ``chunk`` rows at a time, with one compilation.

    Args:
      forecaster: draws one member for each row.
      params: the network's parameters.
      key: a typed random key; member j of window i is the same whatever the chunk.
      batch: n windows.
      members: e.
      chunk: rows in flight at once, which bounds the memory of the device.

    Yields:
      (member [r], window [r], forecast [r, k, h, w, c]) with r <= chunk, in member-major order.
    """
    n = len(batch.frames)
    draw = jax.jit(forecaster)
    for rows in chunks(members * n, chunk):
        member, window = np.divmod(rows, n)
        part = jax.tree.map(lambda x, window=window: np.asarray(x)[window], batch)
        keys = _row_keys(key, jnp.asarray(window), jnp.asarray(member))
        fresh = np.unique(rows, return_index=True)[1]
        yield member[fresh], window[fresh], np.asarray(draw(params, keys, part))[fresh]


def gather(parts: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]], members: int, n: int) -> np.ndarray:
    """Assembles the chunks of ``ensemble`` into [e, n, k, h, w, c]."""
    out = None
    for member, window, frames in parts:
        if out is None:
            out = np.empty((members, n, *frames.shape[1:]), frames.dtype)
        out[member, window] = frames
    return out
