"""Codecs without weights that act on each point alone."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp

from dydiff_jax.codecs.codec import CODECS, Scale
from dydiff_jax.system import Stage, Weights
from dydiff_jax.types import Array, DataSpec, Frames, Keys


@dataclass(frozen=True)
class Affine:
    """encode(x) = (x - mean) / std for each channel, decode its inverse.

    Dynamical diffusion needs zero-mean data: the recursion amplifies a constant (2.41 times for eta = 0.5).

    Attributes:
      mean: of each channel, physical units.
      std: of each channel, physical units, positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    stages: ClassVar[tuple[Stage, ...]] = ()

    def __post_init__(self):
        if len(self.mean) != len(self.std):
            raise ValueError(f"std: expected {len(self.mean)} channels as in mean, found {len(self.std)}")
        if not all(s > 0 for s in self.std):
            raise ValueError(
                f"std: expected positive values, found {self.std}; a channel that never changes cannot be "
                "forecast: drop it from the data or pass it as a static field"
            )

    def frame_shape(self, physical: tuple[int, ...]) -> tuple[int, ...]:
        return physical

    def fit(self, weights: Weights, context: Frames, observed: Array | None) -> Scale:
        return ()

    def encode(self, weights: Weights, frames: Frames, scale: Scale, keys: Keys | None = None) -> Frames:
        return (jnp.asarray(frames, jnp.float32) - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def decode(self, weights: Weights, x: Frames, scale: Scale) -> Frames:
        return x * jnp.asarray(self.std) + jnp.asarray(self.mean)


@dataclass(frozen=True)
class Identity:
    """encode(x) = decode(x) = x, for data that come standardised."""

    stages: ClassVar[tuple[Stage, ...]] = ()

    def frame_shape(self, physical: tuple[int, ...]) -> tuple[int, ...]:
        return physical

    def fit(self, weights: Weights, context: Frames, observed: Array | None) -> Scale:
        return ()

    def encode(self, weights: Weights, frames: Frames, scale: Scale, keys: Keys | None = None) -> Frames:
        return jnp.asarray(frames, jnp.float32)

    def decode(self, weights: Weights, x: Frames, scale: Scale) -> Frames:
        return x


@dataclass(frozen=True)
class StandardizeOptions:
    """Standardise by the mean and standard deviation of each channel over the training frames."""

    statistics: ClassVar[Literal["channel", "speed"] | None] = "channel"

    def build(self, data: DataSpec, mean: tuple[float, ...], std: tuple[float, ...]) -> Affine:
        """The codec with these statistics."""
        return Affine(mean, std)


@dataclass(frozen=True)
class SpeedOptions(StandardizeOptions):
    """Standardise by the means and one deviation, that of the length of the vector of channels, as TF-Net does."""

    statistics: ClassVar[Literal["channel", "speed"] | None] = "speed"


@dataclass(frozen=True)
class IdentityOptions:
    """Frames as they are."""

    statistics: ClassVar[Literal["channel", "speed"] | None] = None

    def build(self, data: DataSpec, mean: tuple[float, ...], std: tuple[float, ...]) -> Identity:
        """The codec."""
        return Identity()


CODECS |= {"standardize": StandardizeOptions, "speed": SpeedOptions, "identity": IdentityOptions}
