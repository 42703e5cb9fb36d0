"""The regression baseline: one evaluation of the network maps the context to the expected forecast."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from dydiff_jax.config import ConfigError, check_sections
from dydiff_jax.diffusion.losses import mean_error
from dydiff_jax.system import SYSTEMS, Entry, Parts, Recipe, Rule, Stage, Weights, Window
from dydiff_jax.systems.windows import BlockCarry, WindowNetwork, place_rows, row_keys
from dydiff_jax.types import Array, Batch, Denoiser, Frames, Keys, Params, over_frames

#: Role of the network, that of the diffusion systems, which it is compared with; and name of the stage.
DENOISER = "denoiser"


def regress(denoise: Denoiser, x: Frames, num_context: int) -> Frames:
    """x_hat = f(context, zeros) [b, p + k, *s]: log SNR is +inf on the context and -inf on what is to be forecast.

    Args:
      denoise: the network.
      x: [b, p + k, *s], of which the p context frames are read.
      num_context: p.
    """
    known = jnp.broadcast_to(jnp.arange(x.shape[1]) < num_context, x.shape[:2])
    level = jnp.where(known, jnp.inf, -jnp.inf).astype(x.dtype)
    return denoise(jnp.where(over_frames(known, x), x, 0), level)


@dataclasses.dataclass(frozen=True)
class SquaredError:
    """loss = mean |x_hat - x|^2 over the observed points of forecast frames, then over examples.

    Attributes:
      network: of windows.
    """

    network: WindowNetwork

    @property
    def rules(self) -> Sequence[Rule]:
        return self.network.rules

    def init(self, key: jax.Array) -> Params:
        return self.network.init(key)

    def loss(
        self, params: Params, frozen: Weights, batch: Batch, key: jax.Array
    ) -> tuple[Array, dict[str, Array]]:
        x0, conditions = self.network.encode(frozen, batch)
        _, dropout_key = jax.random.split(key)
        denoise = self.network.bind(params, conditions, row_keys(dropout_key, x0))
        p = self.network.window.num_context
        error = (regress(denoise, x0, p) - x0) ** 2
        active = jnp.broadcast_to(jnp.arange(x0.shape[1]) >= p, x0.shape[:2])
        return mean_error(error, active, batch.observed)[0], {}


@dataclasses.dataclass(frozen=True)
class RegressionForecaster:
    """One evaluation for each block of k frames, and a single member.

    Attributes:
      network: of windows.
    """

    network: WindowNetwork

    delay: ClassVar[int] = 0
    max_members: ClassVar[int | None] = 1
    between: ClassVar[None] = None

    @property
    def block(self) -> int:
        return self.network.window.num_forecast

    @property
    def reach(self) -> int:
        return self.network.window.num_frames

    @property
    def nfe_per_frame(self) -> float:
        return 1

    @property
    def network_frames_per_frame(self) -> float:
        return self.network.frames_of_call / self.block

    def begin(self, weights: Weights, keys: Keys, batch: Batch) -> BlockCarry:
        scale = self.network.scale(weights, batch)
        context = self.network.context(weights, batch, scale)
        return place_rows(BlockCarry(context, jnp.zeros((), jnp.int32), scale))

    def advance(
        self, weights: Weights, keys: Keys, batch: Batch, carry: BlockCarry
    ) -> tuple[BlockCarry, Frames]:
        conditions = self.network.conditions(carry.context, batch, carry.blocks * self.block)
        denoise = self.network.bind(weights[DENOISER], conditions)
        room = jnp.zeros((len(carry.context), self.block, *carry.context.shape[2:]), carry.context.dtype)
        window = jnp.concatenate([carry.context, room], axis=1)
        x = regress(denoise, window, carry.context.shape[1])[:, -self.block :]
        context = jnp.concatenate([carry.context, x], axis=1)[:, self.block :]
        carry = place_rows(BlockCarry(context, carry.blocks + 1, carry.scale))
        return carry, self.network.codec.decode(weights, x, carry.scale)


@dataclasses.dataclass(frozen=True)
class Regression:
    """A network trained by least squares, in one stage.

    Attributes:
      network: of windows.
      recipe: of its training.
    """

    network: WindowNetwork
    recipe: Recipe

    def stages(self) -> Sequence[Stage]:
        """The network."""
        needs = tuple(stage.name for stage in self.network.codec.stages)
        reads = ("system", f"networks.{DENOISER}")
        return [Stage(DENOISER, SquaredError(self.network), self.recipe, needs, reads)]

    def calibrate(self, weights: Weights, batch: Batch, key: jax.Array) -> Params:
        """Nothing."""
        return ()

    def forecaster(self) -> RegressionForecaster:
        """Block after block."""
        return RegressionForecaster(self.network)


@dataclasses.dataclass(frozen=True)
class RegressionOptions:
    """``config.system`` of the regression, which has no options."""

    roles: ClassVar[tuple[str, ...]] = (DENOISER,)
    free: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """No keys."""
        return {}

    @classmethod
    def read(cls, section: Mapping[str, Any], path: str, window: Window) -> "RegressionOptions":
        """Refuse every key, and windows without context."""
        check_sections(section, (), path)
        if window.num_context < 1:
            raise ConfigError(
                f"config.window.num_context: a regression maps context to forecast; expected at least 1 frame, found "
                f"{window.num_context}"
            )
        return cls()

    def build(self, parts: Parts) -> Regression:
        """The system."""
        network = WindowNetwork(
            parts.networks[DENOISER], parts.codec, parts.conditioner, parts.window, parts.data
        )
        return Regression(network, parts.recipes[DENOISER])


SYSTEMS["regression"] = Entry(
    RegressionOptions,
    "no diffusion: one evaluation of the same network predicts the expected frames. It has a single member, hence no "
    "spread, and its CRPS is its absolute error.",
    "x = f(context), least squares",
    "#E69F00",
)
