"""What a codec is, and the registry of codecs."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

from dydiff_jax.system import Stage, Weights
from dydiff_jax.types import Array, DataSpec, Frames, Keys

#: What belongs to one window: () or, say, the mean size of a series; a tree of arrays.
Scale = Any


class Codec(Protocol):
    """Physical frames to model space and back.

    Attributes:
      stages: of a learned codec, trained before those of the system; () otherwise.
    """

    @property
    def stages(self) -> Sequence[Stage]: ...

    def frame_shape(self, physical: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a frame in model space."""
        ...

    def fit(self, weights: Weights, context: Frames, observed: Array | None) -> Scale:
        """What the context of each window decides."""
        ...

    def encode(self, weights: Weights, frames: Frames, scale: Scale, keys: Keys | None = None) -> Frames:
        """Physical units, in any dtype, to model space in float32; ``keys`` draw a posterior that has a spread."""
        ...

    def decode(self, weights: Weights, x: Frames, scale: Scale) -> Frames:
        """Model space to physical units."""
        ...


class CodecOptions(Protocol):
    """The checked options behind ``config.codec``.

    Attributes:
      statistics: the convention of mean and deviation that the codec needs of the training frames (see
        `data.statistics`); None: the data are not read for it.
    """

    statistics: ClassVar[Literal["channel", "speed"] | None]

    def build(self, data: DataSpec, mean: tuple[float, ...], std: tuple[float, ...]) -> Codec:
        """The codec for frames of these data; ``mean`` and ``std`` are () where no statistics are needed."""
        ...


#: Name -> options; modules of ``codecs/`` register theirs.
CODECS: dict[str, type[CodecOptions]] = {}
