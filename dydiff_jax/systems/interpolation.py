"""The first stage of DYffusion: an interpolator, x_i between the last known frame x_0 and x_h.

Its equations are in `diffusion.interpolation`.
"""

import dataclasses
from collections.abc import Sequence

import jax

from dydiff_jax.diffusion import interpolation
from dydiff_jax.system import Rule, Weights
from dydiff_jax.systems.windows import FrameNetwork, row_keys
from dydiff_jax.types import Array, Batch, Keys, Params

#: Role of the network, and name of the training stage.
INTERPOLATOR = "interpolator"


def frames_seen(kind: interpolation.Deterministic, num_context: int) -> int:
    """Frames that the network sees: the context, x_h, and white noise where it takes some."""
    return num_context + 1 + kind.takes_noise


def bind(
    network: FrameNetwork, params: Params, older: Sequence[Array], static: Array | None
) -> interpolation.Network:
    """The network as a function of (x0, xh, lead, keys, noise); ``older`` context frames come before x_0."""

    def predict(x0, xh, lead, keys=None, noise=None):
        frames = [*older, x0, xh] if noise is None else [noise, *older, x0, xh]
        out = network(params, frames, lead, static, keys)
        return out[:, -1], out[:, -2]

    return predict


@dataclasses.dataclass(frozen=True)
class Interpolation:
    """The objective of an interpolator: that of its kind, at a random integer lead.

    Attributes:
      kind: how it draws.
      network: of the frames that it sees.
    """

    kind: interpolation.Deterministic
    network: FrameNetwork

    @property
    def rules(self) -> Sequence[Rule]:
        return self.network.network.rules

    def init(self, key: jax.Array) -> Params:
        return self.network.init(key)

    def loss(
        self, params: Params, frozen: Weights, batch: Batch, key: jax.Array
    ) -> tuple[Array, dict[str, Array]]:
        p = self.network.window.num_context
        x = self.network.encode(frozen, batch)
        *older, x0, xi, xh = (x[:, number] for number in range(p + 2))
        assert batch.at is not None  # the stage reads chosen frames
        lead = (batch.at[:, p] - batch.at[:, p - 1]).astype(x.dtype)
        observed = None if batch.observed is None else batch.observed[:, p]
        predict = bind(self.network, params, older, batch.static)
        keys: Keys = row_keys(key, x)
        return self.kind.loss(predict, keys, x0, xi, xh, lead, observed), {}
