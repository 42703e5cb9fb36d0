"""Forecasts of every lead at once: a network whose time is the lead, with dropout or noisy input for an ensemble.

The baselines "dropout" and "perturbation" of DYffusion (Ruehling Cachay et al. 2023, arXiv 2306.01984):

    x_i' = f(x_0, i),   i ~ U{1 ... h} in training,   loss = |x_i' - x_i|^2.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from dydiff_jax.config import ConfigError, defaults, strict
from dydiff_jax.diffusion.losses import mean_error
from dydiff_jax.diffusion.process import white_noise
from dydiff_jax.diffusion.sampler import fold
from dydiff_jax.system import SYSTEMS, Entry, Parts, Recipe, Rule, Stage, Weights, Window
from dydiff_jax.systems.windows import (
    BlockCarry,
    ContextAnd,
    FrameNetwork,
    expect_context,
    place_rows,
    refuse_forcings,
    row_keys,
)
from dydiff_jax.types import Array, Batch, Frames, Keys, Params

#: Role of the network, and name of the training stage.
FORECASTER = "forecaster"


def predict(
    network: FrameNetwork,
    params: Params,
    context: Frames,
    lead: Array | float,
    static: Array | None,
    keys: Keys | None,
) -> Array:
    """x_i' [b, *s] from the context [b, p, *s]; keys switch dropout on."""
    frames = [context[:, number] for number in range(context.shape[1])]
    return network(params, frames, lead, static, keys)[:, -1]


@dataclasses.dataclass(frozen=True)
class AnyLead:
    """The objective: the error at a random lead.

    Attributes:
      network: of the context.
      loss: "mse" or "l1".
    """

    network: FrameNetwork
    loss_of: Literal["mse", "l1"]

    @property
    def rules(self) -> Sequence[Rule]:
        return self.network.network.rules

    def init(self, key: jax.Array) -> Params:
        return self.network.init(key)

    def loss(
        self, params: Params, frozen: Weights, batch: Batch, key: jax.Array
    ) -> tuple[Array, dict[str, Array]]:
        x = self.network.encode(frozen, batch)
        assert batch.at is not None  # the stage reads chosen frames
        lead = (batch.at[:, -1] - batch.at[:, -2]).astype(x.dtype)
        error = (
            predict(self.network, params, x[:, :-1], lead, batch.static, row_keys(key, x))[:, None]
            - x[:, -1:]
        )
        error = jnp.abs(error) if self.loss_of == "l1" else error**2
        observed = None if batch.observed is None else batch.observed[:, -1:]
        return mean_error(error, jnp.ones(error.shape[:2], bool), observed)[0], {}


@dataclasses.dataclass(frozen=True)
class Direct:
    """A network of the lead, trained in one stage; it is system and forecaster in one.

    Attributes:
      network: of the context.
      recipe: of its training.
      options: of the system.
    """

    network: FrameNetwork
    recipe: Recipe
    options: "DirectOptions"

    delay: ClassVar[int] = 0
    max_members: ClassVar[int | None] = None
    between: ClassVar[None] = None
    nfe_per_frame: ClassVar[float] = 1

    @property
    def network_frames_per_frame(self) -> float:
        return self.network.frames_of_call

    @property
    def block(self) -> int:
        return self.network.window.num_forecast

    @property
    def reach(self) -> int:
        return self.network.window.num_frames

    def stages(self) -> Sequence[Stage]:
        """The network."""
        window = self.network.window
        needs = tuple(stage.name for stage in self.network.codec.stages)
        objective = AnyLead(self.network, self.options.loss)
        frames = ContextAnd(window.num_context, drawn=(1, window.num_forecast))
        return [
            Stage(FORECASTER, objective, self.recipe, needs, ("system", f"networks.{FORECASTER}"), frames)
        ]

    def calibrate(self, weights: Weights, batch: Batch, key: jax.Array) -> Params:
        """Nothing."""
        return ()

    def forecaster(self) -> "Direct":
        """Itself."""
        return self

    def begin(self, weights: Weights, keys: Keys, batch: Batch) -> BlockCarry:
        return self.network.begin(weights, batch)

    def advance(
        self, weights: Weights, keys: Keys, batch: Batch, carry: BlockCarry
    ) -> tuple[BlockCarry, Frames]:
        context, keys = carry.context, fold(keys, carry.blocks)
        context = self.options.disturb(keys, context)

        def at(lead):
            drawn = self.options.dropout_keys(keys, lead)
            return predict(
                self.network, weights[FORECASTER], context, lead.astype(context.dtype), batch.static, drawn
            )

        x = jnp.moveaxis(jax.lax.map(at, jnp.arange(1, self.block + 1)), 0, 1)
        context = jnp.concatenate([carry.context, x], axis=1)[:, -context.shape[1] :]
        carry = place_rows(BlockCarry(context, carry.blocks + 1, carry.scale))
        return carry, self.network.codec.decode(weights, x, carry.scale)


@dataclasses.dataclass(frozen=True)
class DirectOptions:
    """``config.system`` of a direct forecast.

    Attributes:
      loss: mean squared ("mse") or absolute error ("l1").
    """

    loss: Literal["mse", "l1"] = "mse"

    roles: ClassVar[tuple[str, ...]] = (FORECASTER,)
    free: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every key with its default."""
        return defaults(cls)

    @classmethod
    def read(cls, section: Mapping[str, Any], path: str, window: Window) -> "DirectOptions":
        """Check the keys, and that there is a context."""
        expect_context(window)
        return strict(cls, section, path)

    def build(self, parts: Parts) -> Direct:
        """The system.

        Raises:
          ConfigError: the data have forcings.
        """
        refuse_forcings(parts.data)
        window = parts.window
        network = FrameNetwork(
            parts.networks[FORECASTER],
            parts.codec,
            window,
            parts.data,
            window.num_context,
            window.num_forecast,
        )
        return Direct(network, parts.recipes[FORECASTER], self)

    def disturb(self, keys: Keys, context: Frames) -> Frames:
        """The context that a member sees."""
        return context

    def dropout_keys(self, keys: Keys, lead: Array) -> Keys | None:
        """What switches dropout on at a lead, or None."""
        return None


class DropoutOptions(DirectOptions):
    """Members differ by the network's dropout, which stays on (Monte Carlo dropout, Gal and Ghahramani 2016)."""

    def build(self, parts: Parts) -> Direct:
        """The system; a network without dropout is refused."""
        if not parts.networks[FORECASTER].has_dropout:
            raise ConfigError(
                f"config.networks.{FORECASTER}.dropout: expected a rate above 0, by which members differ, found none; "
                f"set --config.networks.{FORECASTER}.dropout"
            )
        return super().build(parts)

    def dropout_keys(self, keys: Keys, lead: Array) -> Keys:
        """Keys of every lead of its own."""
        return fold(keys, lead)


@dataclasses.dataclass(frozen=True)
class PerturbationOptions(DirectOptions):
    """Members differ by white noise on the context.

    Attributes:
      scale: its standard deviation, in model space.
    """

    scale: float = 0.1

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(
                f"scale: expected a standard deviation above 0, found {self.scale}; set --config.system.scale"
            )

    def disturb(self, keys: Keys, context: Frames) -> Frames:
        """The context with white noise."""
        return context + self.scale * white_noise(keys, context)


SYSTEMS |= {
    "dropout": Entry(
        DropoutOptions,
        "one network forecasts every lead at once, with the lead as its time; members differ by its dropout, which "
        "stays on.",
        "x_i = f(x_0, i), dropout on",
        "#44AA99",
    ),
    "perturbation": Entry(
        PerturbationOptions,
        "one network forecasts every lead at once, with the lead as its time; members differ by white noise on what "
        "they start from.",
        "x_i = f(x_0 + scale eps, i)",
        "#56B4E9",
    ),
}
