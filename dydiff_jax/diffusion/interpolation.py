"""Interpolators: how the frame x_i between x_0 and x_h is drawn, and what each minimises.

A network is a function (x0, xh, lead, keys, noise) -> (mean, other), two frames of its output: keys switch its dropout
on, noise is one more frame that it sees. A file of the released method (dropout), and what calibrates it.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Bool, Float

from dydiff_jax.diffusion.dyffusion import Field, brownian_snr_ratio
from dydiff_jax.diffusion.losses import mean_error
from dydiff_jax.diffusion.process import white_noise
from dydiff_jax.diffusion.sampler import fold
from dydiff_jax.types import Array, Keys

#: (x0, xh, lead [b] or a scalar, keys or None, noise or None) to two frames, of which some read one.
Network = Callable[..., tuple[Field, Field]]


@dataclasses.dataclass(frozen=True)
class Deterministic:
    """x_i = f(x_0, x_h, i), without any randomness; trained by the squared error."""

    has_moments: ClassVar[bool] = False
    takes_noise: ClassVar[bool] = False
    needs_dropout: ClassVar[bool] = False

    def draw(self, network: Network, keys: Keys, x0: Field, xh: Field, lead: Array | float) -> Field:
        return network(x0, xh, lead)[0]

    def moments(self, network: Network, x0: Field, xh: Field, lead: Array | float) -> tuple[Field, Field]:
        raise NotImplementedError("this interpolator has no deviation")

    def loss(
        self,
        network: Network,
        keys: Keys,
        x0: Field,
        xi: Field,
        xh: Field,
        lead: Array | float,
        observed: Bool[Array, "..."] | None,
    ) -> Array:
        return _mean((self.draw(network, keys, x0, xh, lead) - xi) ** 2, observed)


@dataclasses.dataclass(frozen=True)
class Dropout(Deterministic):
    """x_i = f(x_0, x_h, i) with the network's dropout on, in training and in every draw (as released)."""

    needs_dropout: ClassVar[bool] = True

    def draw(self, network: Network, keys: Keys, x0: Field, xh: Field, lead: Array | float) -> Field:
        return network(x0, xh, lead, keys)[0]


@dataclasses.dataclass(frozen=True)
class Gaussian(Deterministic):
    """x_i = mean + exp(s) * white noise, (mean, s) = f(x_0, x_h, i).

    Trained by minus the log likelihood, s + (x_i - mean)^2 / (2 exp(2 s)).
    """

    has_moments: ClassVar[bool] = True

    def moments(self, network: Network, x0: Field, xh: Field, lead: Array | float) -> tuple[Field, Field]:
        mean, s = network(x0, xh, lead)
        return mean, jnp.exp(s)

    def draw(self, network: Network, keys: Keys, x0: Field, xh: Field, lead: Array | float) -> Field:
        mean, std = self.moments(network, x0, xh, lead)
        return mean + std * white_noise(keys, mean)

    def loss(
        self,
        network: Network,
        keys: Keys,
        x0: Field,
        xi: Field,
        xh: Field,
        lead: Array | float,
        observed: Bool[Array, "..."] | None,
    ) -> Array:
        mean, s = network(x0, xh, lead)
        return _mean(s + (xi - mean) ** 2 * jnp.exp(-2 * s) / 2, observed)


@dataclasses.dataclass(frozen=True)
class Noise(Deterministic):
    """x_i = f(x_0, x_h, i, white noise); the fair CRPS of two draws, (|x - y| + |x' - y| - |x - x'|) / 2."""

    takes_noise: ClassVar[bool] = True

    def draw(self, network: Network, keys: Keys, x0: Field, xh: Field, lead: Array | float) -> Field:
        return network(x0, xh, lead, None, white_noise(keys, x0))[0]

    def loss(
        self,
        network: Network,
        keys: Keys,
        x0: Field,
        xi: Field,
        xh: Field,
        lead: Array | float,
        observed: Bool[Array, "..."] | None,
    ) -> Array:
        one, other = (self.draw(network, fold(keys, number), x0, xh, lead) for number in (0, 1))
        return _mean((jnp.abs(one - xi) + jnp.abs(other - xi) - jnp.abs(one - other)) / 2, observed)


#: config.system.interpolator.name -> how it draws.
INTERPOLATORS = dict(dropout=Dropout, gaussian=Gaussian, noise=Noise, none=Deterministic)


@dataclasses.dataclass(frozen=True)
class Bound:
    """An interpolator bound to its network and a key for each example; see `dyffusion.Interpolator`.

    Attributes:
      kind: how it draws.
      network: the trained function.
      keys: [b].
      horizon: h.
      degrade: standard deviation of white noise that is added to every draw.
    """

    kind: Deterministic
    network: Network
    keys: Keys
    horizon: int
    degrade: float = 0.0

    @property
    def has_moments(self) -> bool:
        return self.kind.has_moments

    def draw(self, draw: Array | int, x0: Field, xh: Field, lead: Array | float) -> Field:
        keys = fold(self.keys, draw)
        x = self.kind.draw(self.network, keys, x0, xh, lead)
        return x + self.degrade * white_noise(fold(keys, 1), x) if self.degrade else x

    def moments(self, x0: Field, xh: Field, lead: Array | float) -> tuple[Field, Field]:
        mean, std = self.kind.moments(self.network, x0, xh, lead)
        return mean, jnp.hypot(std, self.degrade) if self.degrade else std

    def noise(self, draw: Array | int, like: Field) -> Field:
        return white_noise(fold(self.keys, draw), like)

    def snr_ratio(self, lead: Array | float, later: Array | float) -> Array | float:
        return brownian_snr_ratio(lead, later, self.horizon)


def _mean(error: Field, observed: Bool[Array, "..."] | None) -> Float[Array, ""]:
    frames = error[:, None]
    mask = None if observed is None else observed[:, None]
    return mean_error(frames, jnp.ones(frames.shape[:2], bool), mask)[0]
