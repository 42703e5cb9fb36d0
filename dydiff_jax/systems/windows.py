"""What systems of windows share: a batch as model space and conditions, and a network bound to both."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dydiff_jax.codecs import Codec, Scale
from dydiff_jax.config import ConfigError
from dydiff_jax.diffusion.losses import fill
from dydiff_jax.distributed.rules import constrain_batch
from dydiff_jax.models.conditions import Conditioner
from dydiff_jax.models.network import Inputs, Network
from dydiff_jax.system import Rule, Weights, Window
from dydiff_jax.types import Array, Batch, Conditions, DataSpec, Denoiser, Frames, Keys, Params


@dataclasses.dataclass(frozen=True)
class WindowNetwork:
    """A network of whole windows, with what stands between it and a batch in physical units.

    Attributes:
      network: called on windows of p + k frames.
      codec: physical frames to model space and back.
      conditioner: what the network sees beside x.
      window: p and k.
      data: the frames in physical space.
    """

    network: Network
    codec: Codec
    conditioner: Conditioner
    window: Window
    data: DataSpec

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Of the network."""
        return tuple(self.network.rules)

    @property
    def frames_of_call(self) -> int:
        """Frames that pass through the network in an evaluation: p + k, or 1 where they are channels of one image."""
        return 1 if self.network.joins_frames else self.window.num_frames

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, from a window of zeros."""
        num_frames, frame = self.window.num_frames, self.codec.frame_shape(self.data.frame_shape)
        x = jnp.zeros((1, num_frames, *frame))
        forcings = jnp.zeros((1, num_frames, len(self.data.forcings))) if self.data.forcings else None
        static = jnp.zeros((1, *frame[:-1], len(self.data.static))) if self.data.static else None
        conditions = self.conditioner(x[:, : self.window.num_context], forcings, static)
        return self.network.init(key, Inputs(x, jnp.zeros(x.shape[:2]), conditions))

    def scale(self, weights: Weights, batch: Batch) -> Scale:
        """What the codec reads off the context of each window."""
        known = slice(self.window.num_context)
        observed = None if batch.observed is None else batch.observed[:, known]
        return self.codec.fit(weights, batch.frames[:, known], observed)

    def encode(self, weights: Weights, batch: Batch) -> tuple[Frames, Conditions]:
        """Windows in model space, missing points filled, and their conditions."""
        x0 = self.codec.encode(weights, batch.frames, self.scale(weights, batch))
        x0 = fill(x0, batch.observed)
        return x0, self.conditioner(x0[:, : self.window.num_context], batch.forcings, batch.static)

    def context(self, weights: Weights, batch: Batch, scale: Scale) -> Frames:
        """The context frames in model space, missing points filled."""
        known = slice(self.window.num_context)
        observed = None if batch.observed is None else batch.observed[:, known]
        return fill(self.codec.encode(weights, batch.frames[:, known], scale), observed)

    def conditions(self, context: Frames, batch: Batch, first: Array) -> Conditions:
        """Of the window whose frames begin at frame ``first`` of the batch's forcings."""
        forcings = batch.forcings
        if forcings is not None:
            forcings = jax.lax.dynamic_slice_in_dim(forcings, first, self.window.num_frames, axis=1)
        return self.conditioner(context, forcings, batch.static)

    def bind(self, params: Params, conditions: Conditions, keys: Keys | None = None) -> Denoiser:
        """The network as a function of x and level alone; keys switch dropout on."""
        return lambda x, level: self.network.apply(params, Inputs(x, level, conditions), keys)


def expect_context(window: Window) -> None:
    """Raise ConfigError for a window without a context frame, from which a system of images starts."""
    if window.num_context < 1:
        raise ConfigError(
            f"config.window.num_context: expected 1 context frame or more, found {window.num_context}; use "
            "--config.window.num_context=1 or more"
        )


def refuse_forcings(data: DataSpec) -> None:
    """Raise ConfigError for data with forcings, which a system of images does not read."""
    if data.forcings:
        raise ConfigError(
            f"config.data: expected no forcings, which this system does not read, found {list(data.forcings)}; choose "
            "data without them or another --config.system.name"
        )


@dataclasses.dataclass(frozen=True)
class ContextAnd:
    """`system.FramesRead`: the context, a frame at a random lead, and frames at fixed leads.

    Attributes:
      num_context: p.
      drawn: (a, b): one lead i ~ U{a ... b}, before the fixed ones; None: none.
      fixed: leads.
    """

    num_context: int
    drawn: tuple[int, int] | None = None
    fixed: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Frames of an example."""
        return self.num_context + (self.drawn is not None) + len(self.fixed)

    def __call__(self, rng: np.random.Generator) -> Sequence[int]:
        """Their numbers in the window."""
        drawn = () if self.drawn is None else (int(rng.integers(*self.drawn, endpoint=True)),)
        leads = (self.num_context - 1 + lead for lead in (*drawn, *self.fixed))
        return (*range(self.num_context), *leads)


class BlockCarry(NamedTuple):
    """What goes from one block of a forecast to the next.

    Attributes:
      context: [b, p, *s], the last frames of (context, forecast) in model space.
      blocks: [], blocks done.
      scale: of the codec, fitted on the first context.
    """

    context: Array
    blocks: Array
    scale: Scale


@dataclasses.dataclass(frozen=True)
class FrameNetwork:
    """A network of some frames of a window that share one time, with what stands between it and a batch.

    Attributes:
      network: called on windows of ``count`` frames.
      codec: physical frames to model space and back.
      window: p and k.
      data: the frames in physical space.
      count: frames that it sees.
      longest: the time that none reaches.
    """

    network: Network
    codec: Codec
    window: Window
    data: DataSpec
    count: int
    longest: float

    @property
    def frames_of_call(self) -> int:
        """Frames that pass through the network in a call: ``count``, or 1 where they are channels of one image."""
        return 1 if self.network.joins_frames else self.count

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, from frames of zeros."""
        frame = self.codec.frame_shape(self.data.frame_shape)
        static = jnp.zeros((1, *frame[:-1], len(self.data.static))) if self.data.static else None
        inputs = Inputs(jnp.zeros((1, self.count, *frame)), jnp.zeros((1, 1)), Conditions(static=static))
        return self.network.init(key, inputs)

    def __call__(
        self,
        params: Params,
        frames: Sequence[Array],
        time: Array | float,
        static: Array | None,
        keys: Keys | None = None,
    ) -> Frames:
        """The prediction of ``count`` frames [b, *s] at a time from 0 to ``longest``, a scalar or [b]."""
        x = jnp.stack(frames, axis=1)
        time = jnp.broadcast_to(jnp.asarray(time, x.dtype), x.shape[:1])[:, None]
        if self.network.span is not None:
            low, high = self.network.span
            time = low + (high - low) * time / self.longest
        return self.network.apply(params, Inputs(x, time, Conditions(static=static)), keys)

    def encode(self, weights: Weights, batch: Batch) -> Frames:
        """The frames of a batch in model space, missing points filled; the scale is that of its context."""
        known = slice(self.window.num_context)
        observed = None if batch.observed is None else batch.observed[:, known]
        scale = self.codec.fit(weights, batch.frames[:, known], observed)
        return fill(self.codec.encode(weights, batch.frames, scale), batch.observed)

    def begin(self, weights: Weights, batch: Batch) -> BlockCarry:
        """Before the first block: the context in model space and its scale."""
        known = slice(self.window.num_context)
        observed = None if batch.observed is None else batch.observed[:, known]
        batch = batch._replace(frames=batch.frames[:, known], observed=observed)
        scale = self.codec.fit(weights, batch.frames, observed)
        return place_rows(BlockCarry(self.encode(weights, batch), jnp.zeros((), jnp.int32), scale))


def row_keys(key: jax.Array, like: Array) -> Keys:
    """A key for each row of a batch."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(like)))


def place_rows(carry):
    """Rows divided over the mesh, so that what a call returns lies as the next one wants it."""
    return jax.tree.map(lambda x: constrain_batch(x) if x.ndim else x, carry)
