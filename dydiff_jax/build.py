"""Build: checked options -> an Experiment, the objects that a run is made of.

A new method, noise schedule or data source is one short file and one line in a table here.
"""

import dataclasses
import functools
import json
import pathlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from dydiff_jax.codecs.codec import Codec, make_codec
from dydiff_jax.config import Config, Tables, parse
from dydiff_jax.data.sources.source import SOURCES
from dydiff_jax.diffusion.dynamical import Dynamical
from dydiff_jax.diffusion.losses import diffusion_loss
from dydiff_jax.diffusion.regression import Regression
from dydiff_jax.diffusion.rolling import Rolling
from dydiff_jax.diffusion.rolling_dynamical import RollingDynamical
from dydiff_jax.diffusion.rollout import Rollout
from dydiff_jax.diffusion.schedules import Cosine, LinearBeta
from dydiff_jax.diffusion.standard import Standard
from dydiff_jax.evaluation.forecast import Forecaster
from dydiff_jax.models.conditions import Conditioner
from dydiff_jax.models.uvit import UViT3D
from dydiff_jax.types import Array, Batch, Conditions

METHODS = {
    "standard": Standard,
    "dynamical": Dynamical,
    "rolling": Rolling,
    "rolling_dynamical": RollingDynamical,
    "regression": Regression,
}
SCHEDULES = {"cosine": Cosine, "linear_beta": LinearBeta}


def load(config: ml_collections.ConfigDict) -> Config:
    """Checks a config against the tables of this module."""
    return parse(config, Tables(METHODS, SCHEDULES, SOURCES))


@dataclass(frozen=True)
class DataCard:
    """What a forecast must know of the data it was trained on; statistics.json of a work directory.

    Attributes:
      fields: names of the channels.
      unit: of the values.
      interval: time between two frames.
      time_unit: of the interval.
      mean: of each channel over the training frames.
      std: of each channel over the training frames.
      grid: (height, width) of a training window.
      forcings: number of forcings, 0 without.
      static: number of static fields, 0 without.
    """

    fields: tuple[str, ...]
    unit: str
    interval: float
    time_unit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    grid: tuple[int, int]
    forcings: int = 0
    static: int = 0

    def to_json(self) -> str:
        """The card as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: pathlib.Path) -> "DataCard":
        """The card of a trained run."""
        if not path.exists():
            raise FileNotFoundError(f"{path}: expected the statistics that training writes; train first")
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


@dataclass(frozen=True)
class Experiment:
    """The objects of one run, without its data and its weights.

    Attributes:
      config: the options it was built from.
      card: what it knows of its data.
      model: the network.
      codec: physical frames <-> model space.
      conditioner: what the network sees beside z.
    """

    config: Config
    card: DataCard
    model: UViT3D
    codec: Codec
    conditioner: Conditioner

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters."""
        window, (h, w), c = self.config.window, self.card.grid, len(self.card.fields)
        frames = jnp.zeros((1, window.num_frames, h, w, c))
        forcings = jnp.zeros((1, window.num_frames, self.card.forcings)) if self.card.forcings else None
        static = jnp.zeros((1, h, w, self.card.static)) if self.card.static else None
        conditions = self.conditioner(frames[:, : window.num_context], forcings, static)
        return self.model.init(key, frames, jnp.zeros(frames.shape[:2]), *conditions)["params"]

    def apply(self, params: Any, z: Array, logsnr: Array, conditions: Conditions) -> Array:
        """The network's prediction in evaluation mode."""
        return self.model.apply({"params": params}, z, logsnr, *conditions)

    def loss(self, params: Any, batch: Batch, key: jax.Array) -> tuple[Array, dict[str, Array]]:
        """The training loss of a batch in physical units; every row has a key of its own."""
        x0 = self.codec.encode(batch.frames)
        conditions = self.conditioner(x0[:, : self.config.window.num_context], batch.forcings, batch.static)
        noise_key, dropout_key = jax.random.split(key)
        keys = jax.vmap(functools.partial(jax.random.fold_in, noise_key))(jnp.arange(len(x0)))

        def denoise(z, logsnr):
            rngs = {"dropout": dropout_key}
            return self.model.apply({"params": params}, z, logsnr, *conditions, train=True, rngs=rngs)

        loss, _ = diffusion_loss(keys, self.config.process, denoise, x0)
        return loss, {}

    @property
    def rollout(self) -> Rollout:
        """How windows move on."""
        return Rollout(self.config.process, self.config.sampler)

    def forecaster(self, missing: tuple[float, ...] = (0.0,)) -> Forecaster:
        """A forecast for each row of a batch; ``missing`` is what `missing_variance` gave, where it is needed."""
        horizon = self.config.horizon
        return Forecaster(self.rollout, horizon, self.codec, self.conditioner, self.apply, missing)

    def missing_variance(self, params: Any, batch: Batch, key: jax.Array) -> Array:
        """The variance [c] that the network's estimate of a window's last noise lacks when the window moves on.

        Args:
          params: the network's parameters.
          batch: training windows, frames [b, p + k, h, w, c] in physical units.
          key: of the noise.
        """
        x0 = self.codec.encode(batch.frames)
        conditions = self.conditioner(x0[:, : self.config.window.num_context], batch.forcings, batch.static)
        tau = jnp.full((len(x0),), self.rollout.grids()[-1, -2], x0.dtype)
        eps = jax.random.normal(key, x0.shape, x0.dtype)

        def denoise(z, logsnr):
            return self.apply(params, z, logsnr, conditions)

        return self.config.process.missing_variance(denoise, x0, eps, tau)


def build(config: Config, card: DataCard) -> Experiment:
    """The experiment of a config on data that a card describes.

    Raises:
      ValueError: the network's levels do not divide the grid, or a pooling window does not fit on it.
    """
    config.model.check_grid(*card.grid)
    if config.scores.pool_window > min(card.grid):
        raise ValueError(
            f"config.scores.pool_window: expected at most the shorter side of the grid {card.grid}, "
            f"found {config.scores.pool_window}"
        )
    return Experiment(
        config=config,
        card=card,
        model=UViT3D(config.model, out_channels=len(card.fields)),
        codec=make_codec(config.codec.name, card.mean, card.std),
        conditioner=Conditioner(
            num_forecast=config.window.num_forecast,
            copy_path=config.conditions.copy_path,
            context_channels=needs_context_channels(config),
        ),
    )


def needs_context_channels(config: Config) -> bool:
    """Whether the process corrupts the context, so that the network must be given the clean frames apart."""
    return getattr(config.process, "context", "clean") == "noised"
