"""What a network is, the adapter that makes one of a flax module, and the registry of networks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from flax import linen as nn
from jaxtyping import Float

from dydiff_jax.system import Rule
from dydiff_jax.types import Array, Conditions, Frames, Keys, Params


class Inputs(NamedTuple):
    """What a network sees: one object, so that a new condition changes no signature.

    Attributes:
      x: [b, p + k, *s], in model space.
      level: [b, p + k], the log SNR of each frame, or another number that tells frames apart; [b, 1] for all frames.
      conditions: what it knows beside.
    """

    x: Frames
    level: Float[Array, "b l"]
    conditions: Conditions = Conditions()


@runtime_checkable
class Network(Protocol):
    """A function of parameters and inputs.

    Attributes:
      rules: how the leaves of the parameters are sharded.
      has_dropout: whether keys change its prediction.
      span: the levels that it tells apart, beyond which it clips; None: any.
      joins_frames: whether all frames of a call are channels of one image, so that it costs as much as one frame.
    """

    @property
    def rules(self) -> Sequence[Rule]: ...

    @property
    def has_dropout(self) -> bool: ...

    @property
    def span(self) -> tuple[float, float] | None: ...

    @property
    def joins_frames(self) -> bool: ...

    def check(self, frame: tuple[int, ...]) -> None:
        """Raise ValueError for frames of a shape that the network cannot take."""
        ...

    def init(self, key: jax.Array, inputs: Inputs) -> Params:
        """Fresh parameters."""
        ...

    def apply(self, params: Params, inputs: Inputs, keys: Keys | None = None) -> Frames:
        """The prediction [b, p + k, *s]; keys, one for each example, switch dropout on, in training or in sampling."""
        ...


class NetworkOptions:
    """The options of a network; a frozen dataclass derives from it."""

    #: Of activations and products.
    dtype: str = "float32"

    def build(self, channels: int) -> Network:
        """The network with so many output channels."""
        raise NotImplementedError

    def check(self, frame: tuple[int, ...]) -> None:
        """Raise ValueError for frames of a shape that the network cannot take."""

    def uncached(self) -> "NetworkOptions":
        """The same network written so that nothing is computed twice: its arithmetic is what the model needs."""
        return self

    def on_cpu(self) -> "NetworkOptions":
        """The same network for XLA:CPU, which stands for an accelerator in a plan; 16 bits stay 16 bits."""
        return self


@dataclass(frozen=True)
class LinenNetwork:
    """A flax module called as ``module(x, level, channels, forcings, static, keys)``.

    A module whose attribute ``joins_frames`` is True makes channels of the frames.

    Attributes:
      module: the flax module.
      rules: how its parameters are sharded.
      check_frame: raises ValueError for a frame that it cannot take.
      has_dropout: whether keys change its prediction.
      span: the levels that it tells apart; None: any.
    """

    module: nn.Module
    rules: tuple[Rule, ...]
    check_frame: Callable[[tuple[int, ...]], None]
    has_dropout: bool = False
    span: tuple[float, float] | None = None

    @property
    def joins_frames(self) -> bool:
        """Whether the module makes channels of the frames."""
        return getattr(self.module, "joins_frames", False)

    def check(self, frame: tuple[int, ...]) -> None:
        """Raise ValueError for a frame that the module cannot take."""
        self.check_frame(frame)

    def init(self, key: jax.Array, inputs: Inputs) -> Params:
        """Fresh parameters."""
        return self.module.init(key, inputs.x, inputs.level, *inputs.conditions)["params"]

    def apply(self, params: Params, inputs: Inputs, keys: Keys | None = None) -> Frames:
        """The prediction; with keys, dropout drawn from them."""
        mode: dict[str, Any] = {}
        if keys is not None:  # the stream only tells layers apart
            mode = {"keys": keys, "rngs": dict(dropout=jax.random.key(0))}
        out: Any = self.module.apply({"params": params}, inputs.x, inputs.level, *inputs.conditions, **mode)
        return out


class Model(NamedTuple):
    """A network that ``config.networks.ROLE.name`` can choose.

    Attributes:
      options: its options.
      sizes: {name: the options that a size stands for}.
    """

    options: type[NetworkOptions]
    sizes: Mapping[str, Mapping[str, Any]]


#: Name -> model; modules of ``models/`` register theirs.
MODELS: dict[str, Model] = {}
