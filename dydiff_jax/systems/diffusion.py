"""Diffusion of windows: standard, dynamical, rolling, and rolling with mixing. One network, one stage, one rollout.

What differs between the four is their process, a file each in `diffusion`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dydiff_jax.codecs import Scale
from dydiff_jax.config import check_sections, defaults, named, strict, within
from dydiff_jax.diffusion.dynamical import Dynamical
from dydiff_jax.diffusion.losses import diffusion_loss
from dydiff_jax.diffusion.process import GaussianProcess
from dydiff_jax.diffusion.rolling import Rolling
from dydiff_jax.diffusion.rolling_dynamical import RollingDynamical
from dydiff_jax.diffusion.rollout import Rollout, RolloutState
from dydiff_jax.diffusion.sampler import Sampler
from dydiff_jax.diffusion.schedules import SCHEDULES, Cosine
from dydiff_jax.diffusion.standard import Standard
from dydiff_jax.system import CALIBRATION, SYSTEMS, Entry, Parts, Recipe, Rule, Stage, Weights, Window
from dydiff_jax.systems.windows import WindowNetwork, place_rows, row_keys
from dydiff_jax.types import Array, Batch, Frames, Keys, Params

#: Role of the network, and name of the training stage.
DENOISER = "denoiser"


@dataclasses.dataclass(frozen=True)
class Denoising:
    """The objective `diffusion.losses.diffusion_loss`: mean |denoise(z, logsnr) - target|^2 over active points.

    Attributes:
      process: how windows are corrupted.
      network: the denoiser.
    """

    process: GaussianProcess
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
        noise_key, dropout_key = jax.random.split(key)
        keys = row_keys(noise_key, x0)
        denoise = self.network.bind(params, conditions, row_keys(dropout_key, x0))
        loss, _ = diffusion_loss(keys, self.process, denoise, x0, batch.observed)
        return loss, {}


class Carry(NamedTuple):
    """What goes from one block to the next.

    Attributes:
      rollout: the window and its context.
      scale: of the codec, fitted on the first context.
    """

    rollout: RolloutState
    scale: Scale


@dataclasses.dataclass(frozen=True)
class DiffusionForecaster:
    """decode . rollout . encode: k frames a call, for a rolling window after a warm-up.

    Attributes:
      rollout: the process, its sampler and how the window moves on.
      network: the denoiser.
    """

    rollout: Rollout
    network: WindowNetwork

    max_members: ClassVar[int | None] = None
    between: ClassVar[None] = None

    @property
    def block(self) -> int:
        return self.rollout.process.num_forecast

    @property
    def delay(self) -> int:
        return self.rollout.warmup_frames

    @property
    def reach(self) -> int:
        return self.rollout.process.num_frames

    @property
    def nfe_per_frame(self) -> float:
        return self.rollout.sampler.nfe

    @property
    def network_frames_per_frame(self) -> float:
        """N f / k: a pass of N stride / k evaluations finishes stride frames."""
        return self.nfe_per_frame * self.network.frames_of_call / self.block

    def begin(self, weights: Weights, keys: Keys, batch: Batch) -> Carry:
        scale = self.network.scale(weights, batch)
        context = self.network.context(weights, batch, scale)
        return place_rows(Carry(self.rollout.begin(keys, context), scale))

    def advance(self, weights: Weights, keys: Keys, batch: Batch, carry: Carry) -> tuple[Carry, Frames]:
        def bind(context, first):
            conditions = self.network.conditions(context, batch, first)
            return self.network.bind(weights[DENOISER], conditions)

        correlated = self.rollout.process.correlated_noise
        variance = weights[CALIBRATION] if correlated else 0.0
        rolled, x = self.rollout.advance(keys, bind, carry.rollout, self.rollout.warmup_passes, variance)
        carry = place_rows(Carry(rolled, carry.scale))
        return carry, self.network.codec.decode(weights, x, carry.scale)


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """A denoiser, trained in one stage, that forecasts by the rollout of its process.

    Attributes:
      rollout: the process and its sampler.
      network: the denoiser.
      recipe: of its training.
    """

    rollout: Rollout
    network: WindowNetwork
    recipe: Recipe

    def stages(self) -> Sequence[Stage]:
        """The denoiser."""
        needs = tuple(stage.name for stage in self.network.codec.stages)
        reads = ("system", f"networks.{DENOISER}")
        return [Stage(DENOISER, Denoising(self.rollout.process, self.network), self.recipe, needs, reads)]

    def calibrate(self, weights: Weights, batch: Batch, key: jax.Array) -> Params:
        """E|n - n_hat|^2 [c] of a window's last frame when it moves on, where noise is correlated between frames."""
        if not self.rollout.process.correlated_noise:
            return ()
        x0, conditions = self.network.encode(weights, batch)
        tau = jnp.full((len(x0),), self.rollout.timesteps()[-1, -2], x0.dtype)
        eps = jax.random.normal(key, x0.shape, x0.dtype)
        denoise = self.network.bind(weights[DENOISER], conditions)
        return self.rollout.process.residual_variance(denoise, x0, eps, tau)

    def forecaster(self) -> DiffusionForecaster:
        """The rollout."""
        return DiffusionForecaster(self.rollout, self.network)


@dataclasses.dataclass(frozen=True)
class DiffusionOptions:
    """``config.system`` of a diffusion system: ``process``, ``schedule`` and ``sampler``.

    Attributes:
      rollout: the checked process and sampler.
    """

    rollout: Rollout

    process: ClassVar[type[GaussianProcess]]
    roles: ClassVar[tuple[str, ...]] = (DENOISER,)
    free: ClassVar[tuple[str, ...]] = ("sampler",)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every key with its default; their meanings are those of the dataclasses that they build."""
        return {
            "process": defaults(cls.process),
            "schedule": {"name": "cosine", **defaults(Cosine)},
            "sampler": defaults(Sampler),
        }

    @classmethod
    def read(cls, section: Mapping[str, Any], path: str, window: Window) -> "DiffusionOptions":
        """Check the three sections, and that they fit together."""
        check_sections(section, ("process", "schedule", "sampler"), path)
        schedule = named(SCHEDULES, section["schedule"], f"{path}.schedule")
        process = strict(
            cls.process, section["process"], f"{path}.process", schedule=schedule, **window._asdict()
        )
        sampler = strict(Sampler, section["sampler"], f"{path}.sampler")
        return cls(within(f"{path}.sampler", lambda: Rollout(process, sampler)))

    def build(self, parts: Parts) -> Diffusion:
        """The system; a process that corrupts its context gives the network the clean frames apart."""
        noised = self.rollout.process.context == "noised"
        conditioner = dataclasses.replace(parts.conditioner, context_channels=noised)
        network = WindowNetwork(parts.networks[DENOISER], parts.codec, conditioner, parts.window, parts.data)
        return Diffusion(self.rollout, network, parts.recipes[DENOISER])


class StandardOptions(DiffusionOptions):
    """Standard diffusion."""

    process = Standard


class DynamicalOptions(DiffusionOptions):
    """Dynamical diffusion."""

    process = Dynamical


class RollingOptions(DiffusionOptions):
    """Rolling diffusion."""

    process = Rolling


class RollingDynamicalOptions(DiffusionOptions):
    """Rolling diffusion with mixing."""

    process = RollingDynamical


# Colours: Okabe and Ito, distinct for colour-blind readers.
SYSTEMS |= {
    "standard": Entry(
        StandardOptions,
        "all frames of a window start as noise and are denoised together, at one noise level, each with noise of its "
        "own; a longer forecast is made window after window.",
        "z = alpha x + sigma eps",
        "#0072B2",
    ),
    "dynamical": Entry(
        DynamicalOptions,
        "as standard, but frames and noise are mixed along time before they are blended, so that each frame is "
        "correlated with the previous frame while it is denoised.",
        "z = alpha D(x) + sigma D(eps), D: y^s = sqrt(1 - gamma) y^(s-1) + sqrt(gamma) x^s, "
        "gamma = eta alpha^2 + 1 - eta",
        "#D55E00",
    ),
    "rolling": Entry(
        RollingOptions,
        "the noise level grows with the distance into the future: the next frame is nearly clean when it leaves the "
        "window, and a frame of pure noise enters at the far end.",
        "z^w = alpha(t^w) x^w + sigma(t^w) eps^w, t^w = clip((w - m + tau)/(W - m)) grows along the window",
        "#009E73",
    ),
    "rolling_dynamical": Entry(
        RollingDynamicalOptions,
        "both at once: a sliding window, and frames and noise mixed along time.",
        "both: a time for each frame, and D with gamma^w = gamma(t^w)",
        "#CC79A7",
    ),
}
