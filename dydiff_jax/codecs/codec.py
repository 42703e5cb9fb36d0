"""Codec: physical frames <-> model space. Called in two places only: where a batch enters the train step and
where a forecast leaves ``forecast.py``.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import jax.numpy as jnp

from dydiff_jax.types import Array


class Codec(Protocol):
    """A pair of inverse maps on ``[..., h, w, c]``."""

    def encode(self, frames: Array) -> Array:
        """Physical units to model space."""

    def decode(self, x: Array) -> Array:
        """Model space to physical units."""


@dataclass(frozen=True)
class Identity:
    """encode(x) = decode(x) = x, for data that come standardised."""

    def encode(self, frames: Array) -> Array:
        return jnp.asarray(frames, jnp.float32)

    def decode(self, x: Array) -> Array:
        return x


@dataclass(frozen=True)
class Standardize:
    """encode(x) = (x - mean) / std for each channel, decode its inverse.

    Dynamical diffusion needs zero-mean data: the recursion amplifies a constant (2.41 times for eta = 0.5).

    Attributes:
      mean: of each channel, physical units.
      std: of each channel, physical units, positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        if len(self.mean) != len(self.std):
            raise ValueError(f"std: expected {len(self.mean)} channels as in mean, found {len(self.std)}")
        if not all(s > 0 for s in self.std):
            raise ValueError(
                f"std: expected positive values, found {self.std}; a channel that never changes cannot be "
                "forecast: drop it from the data or pass it as a static field"
            )

    def encode(self, frames: Array) -> Array:
        return (jnp.asarray(frames, jnp.float32) - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def decode(self, x: Array) -> Array:
        return x * jnp.asarray(self.std) + jnp.asarray(self.mean)


def make_codec(name: Literal["standardize", "speed", "identity"], mean: tuple, std: tuple) -> Codec:
    """The codec of that name; mean and std [c] are those of the training frames, by its convention."""
    return Identity() if name == "identity" else Standardize(mean, std)
