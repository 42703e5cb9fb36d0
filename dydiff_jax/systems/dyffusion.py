"""DYffusion (arXiv 2306.01984): an interpolator and a forecaster, trained one after the other, sampled in turns.

Its equations are in `diffusion.dyffusion` and `diffusion.walk`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from dydiff_jax.config import ConfigError, check_sections, convert, defaults, named, strict, within
from dydiff_jax.diffusion import interpolation
from dydiff_jax.diffusion.dyffusion import DYffusion, Forecast, Leads, Step, condition, dyffusion_loss
from dydiff_jax.diffusion.interpolation import Bound
from dydiff_jax.diffusion.process import white_noise
from dydiff_jax.diffusion.sampler import fold
from dydiff_jax.diffusion.walk import WalkSampler, sample
from dydiff_jax.system import SYSTEMS, Entry, Parts, Recipe, Rule, Stage, Weights, Window
from dydiff_jax.systems.interpolation import INTERPOLATOR, Interpolation, bind, frames_seen
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

#: Number of the first draw of a frame between the whole leads; no walk has so many draws.
BETWEEN = 2**30


@dataclasses.dataclass(frozen=True)
class Functions:
    """F and I of some weights, bound to examples.

    Attributes:
      process: how F is trained and what it sees.
      kind: how I draws.
      degrade: standard deviation of white noise on every draw of I.
      forecaster: the network of F.
      interpolator: the network of I.
    """

    process: DYffusion
    kind: interpolation.Deterministic
    degrade: float
    forecaster: FrameNetwork
    interpolator: FrameNetwork

    def interpolate(self, params: Params, context: Frames, static: Array | None, keys: Keys) -> Bound:
        """I, for examples whose context is [b, p, *s]."""
        older = [context[:, number] for number in range(context.shape[1] - 1)]
        network = bind(self.interpolator, params, older, static)
        return Bound(self.kind, network, keys, self.process.leads.horizon, self.degrade)

    def forecast(
        self,
        params: Params,
        context: Frames,
        static: Array | None,
        noise_keys: Keys,
        keys: Keys | None = None,
    ) -> Forecast:
        """F; ``noise_keys`` decide the noise of what it is conditioned on, ``keys`` switch its dropout on."""
        *older, x0 = (context[:, number] for number in range(context.shape[1]))
        process = self.process

        def estimate(x: Array, step: Step) -> Array:
            noise = None
            if process.conditioning == "data_noise":
                number = jnp.broadcast_to(jnp.asarray(step.number, jnp.float32), x.shape[:1])
                bits = jax.lax.bitcast_convert_type(number, jnp.uint32)
                noise = white_noise(jax.vmap(jax.random.fold_in)(noise_keys, bits), x)
            seen = condition(process.conditioning, x0, step.number, process.leads.num_steps, noise)
            frames = [*older, x] if seen is None else [*older, seen, x]
            return self.forecaster(params, frames, process.time_of(step), static, keys)[:, -1]

        return estimate


@dataclasses.dataclass(frozen=True)
class Forecasting:
    """The objective of the forecaster, `diffusion.dyffusion.dyffusion_loss`, with the interpolator frozen.

    Attributes:
      functions: F and I.
    """

    functions: Functions

    @property
    def rules(self) -> Sequence[Rule]:
        return self.functions.forecaster.network.rules

    def init(self, key: jax.Array) -> Params:
        return self.functions.forecaster.init(key)

    def loss(
        self, params: Params, frozen: Weights, batch: Batch, key: jax.Array
    ) -> tuple[Array, dict[str, Array]]:
        x = self.functions.forecaster.encode(frozen, batch)
        context, xh = x[:, :-1], x[:, -1]
        steps, draws, noise, dropout = (row_keys(each, x) for each in jax.random.split(key, 4))
        interpolator = self.functions.interpolate(frozen[INTERPOLATOR], context, batch.static, draws)
        forecast = self.functions.forecast(params, context, batch.static, noise, dropout)
        observed = None if batch.observed is None else batch.observed[:, -1]
        return dyffusion_loss(
            steps, self.functions.process, forecast, interpolator, context[:, -1], xh, observed
        )


@dataclasses.dataclass(frozen=True)
class Walk:
    """A block of h frames for each walk from x_0 to x_h; the next begins with the frames of this one.

    With s substeps a block has the frames at 1/s, 2/s ... h. What lies between is I(x_0, x_h, i) with the x_h that the
    walk ends in, as if refined, and changes neither the walk nor the next block: frames at whole leads, refined or not,
    have the same draws and the same bits (with last="cold" up to the rounding of its sum, which the compiler fuses with
    what follows).

    Attributes:
      functions: F and I.
      sampler: how a sample walks.
      substeps: frames for each lead.
    """

    functions: Functions
    sampler: WalkSampler
    substeps: int = 1

    delay: ClassVar[int] = 0
    max_members: ClassVar[int | None] = None

    @property
    def wanted(self) -> Sequence[float]:
        """The leads of a block."""
        h = self.functions.process.leads.horizon
        return [number / self.substeps for number in range(1, h * self.substeps + 1)]

    @property
    def block(self) -> int:
        return len(self.wanted)

    @property
    def reach(self) -> int:
        return self.functions.forecaster.window.num_frames

    @property
    def nfe_per_frame(self) -> float:
        return sum(self.sampler.calls(self.functions.process.leads, self.wanted)) / self.block

    @property
    def network_frames_per_frame(self) -> float:
        """(3 N - 3) / h of a cold walk through images, (h - 1) / h more for its refinement."""
        forecasts, draws = self.sampler.calls(self.functions.process.leads, self.wanted)
        of_f, of_i = self.functions.forecaster.frames_of_call, self.functions.interpolator.frames_of_call
        return (forecasts * of_f + draws * of_i) / self.block

    def between(self, substeps: int) -> "Walk":
        """The same walk with so many frames for each lead."""
        return dataclasses.replace(self, substeps=substeps)

    def begin(self, weights: Weights, keys: Keys, batch: Batch) -> BlockCarry:
        return self.functions.forecaster.begin(weights, batch)

    def advance(
        self, weights: Weights, keys: Keys, batch: Batch, carry: BlockCarry
    ) -> tuple[BlockCarry, Frames]:
        context, leads = carry.context, self.functions.process.leads
        draws, noise = (fold(keys, number) for number in (0, 1))
        interpolator = self.functions.interpolate(weights[INTERPOLATOR], context, batch.static, draws)
        forecast = self.functions.forecast(
            weights[FORECASTER], context, batch.static, fold(noise, carry.blocks)
        )
        first = carry.blocks * self.sampler.draws_of_block(leads)
        between = BETWEEN + carry.blocks * self.block
        path = sample(
            forecast, interpolator, context[:, -1], leads, self.sampler, self.wanted, first, between
        )
        whole = path.frames[:, self.substeps - 1 :: self.substeps]
        context = jnp.concatenate([context, whole], axis=1)[:, -context.shape[1] :]
        carry = place_rows(BlockCarry(context, carry.blocks + 1, carry.scale))
        codec = self.functions.forecaster.codec
        return carry, codec.decode(weights, path.frames, carry.scale)


@dataclasses.dataclass(frozen=True)
class DYffusionSystem:
    """An interpolator, then a forecaster that learns with it frozen.

    Attributes:
      functions: F and I.
      sampler: how a sample walks.
      recipes: of the two stages.
    """

    functions: Functions
    sampler: WalkSampler
    recipes: Mapping[str, Recipe]

    def stages(self) -> Sequence[Stage]:
        """The interpolator and the forecaster."""
        window = self.functions.forecaster.window
        p, h = window.num_context, window.num_forecast
        codec = tuple(stage.name for stage in self.functions.forecaster.codec.stages)
        first = Stage(
            INTERPOLATOR,
            Interpolation(self.functions.kind, self.functions.interpolator),
            self.recipes[INTERPOLATOR],
            codec,
            ("system.interpolator", f"networks.{INTERPOLATOR}"),
            ContextAnd(p, drawn=(1, h - 1), fixed=(h,)),
        )
        reads = ("system", f"networks.{FORECASTER}")
        second = Stage(
            FORECASTER,
            Forecasting(self.functions),
            self.recipes[FORECASTER],
            (*codec, INTERPOLATOR),
            reads,
            ContextAnd(p, fixed=(h,)),
        )
        return [first, second]

    def calibrate(self, weights: Weights, batch: Batch, key: jax.Array) -> Params:
        """Nothing."""
        return ()

    def forecaster(self) -> Walk:
        """The walk."""
        return Walk(self.functions, self.sampler)


@dataclasses.dataclass(frozen=True)
class DYffusionOptions:
    """``config.system`` of DYffusion: ``leads``, ``interpolator``, ``forecaster`` and ``sampler``.

    Attributes:
      process: the checked schedule and loss.
      kind: how the interpolator draws.
      degrade: standard deviation of white noise on every draw, in model space.
      sampler: how a sample walks.
    """

    process: DYffusion
    kind: interpolation.Deterministic
    degrade: float
    sampler: WalkSampler

    roles: ClassVar[tuple[str, ...]] = (INTERPOLATOR, FORECASTER)
    free: ClassVar[tuple[str, ...]] = ("sampler",)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every key with its default; their meanings are those of the dataclasses that they build."""
        return {
            "leads": defaults(Leads),
            "interpolator": {"name": "dropout"},
            "forecaster": defaults(DYffusion),
            "degrade": 0.0,
            "sampler": defaults(WalkSampler),
        }

    @classmethod
    def read(cls, section: Mapping[str, Any], path: str, window: Window) -> "DYffusionOptions":
        """Check the sections, and that they fit together."""
        check_sections(section, ("leads", "interpolator", "forecaster", "degrade", "sampler"), path)
        expect_context(window)
        if window.num_forecast < 2:
            raise ConfigError(
                "config.window.num_forecast: expected 2 forecast frames or more, between which frames are drawn, found "
                f"{window.num_forecast}; use --config.window.num_forecast=2 or more, or another --config.system.name"
            )
        leads = strict(Leads, section["leads"], f"{path}.leads", horizon=window.num_forecast)
        process = strict(DYffusion, section["forecaster"], f"{path}.forecaster", leads=leads)
        kind = named(interpolation.INTERPOLATORS, section["interpolator"], f"{path}.interpolator")
        sampler = strict(WalkSampler, section["sampler"], f"{path}.sampler")
        within(f"{path}.sampler", lambda: sampler.check(leads, kind.has_moments))
        degrade = convert(section["degrade"], float, f"{path}.degrade")
        if degrade < 0:
            raise ConfigError(
                f"{path}.degrade: expected 0 or more, found {degrade}; use --config.system.degrade=0"
            )
        return cls(process, kind, degrade, sampler)

    def build(self, parts: Parts) -> DYffusionSystem:
        """The system.

        Raises:
          ConfigError: the interpolator draws by dropout and its network has none, or the data have forcings.
        """
        window, networks = parts.window, parts.networks
        if self.kind.needs_dropout and not networks[INTERPOLATOR].has_dropout:
            raise ConfigError(
                f"config.networks.{INTERPOLATOR}.dropout: expected a rate above 0, by which the interpolator 'dropout' "
                f"draws, found none; set --config.networks.{INTERPOLATOR}.dropout or another "
                "--config.system.interpolator.name"
            )
        refuse_forcings(parts.data)
        p, shared = window.num_context, (parts.codec, window, parts.data)
        seen = p + (self.process.conditioning != "none")
        longest = (self.process.leads.horizon, self.process.longest)
        interpolator = FrameNetwork(networks[INTERPOLATOR], *shared, frames_seen(self.kind, p), longest[0])
        forecaster = FrameNetwork(networks[FORECASTER], *shared, seen, longest[1])
        functions = Functions(self.process, self.kind, self.degrade, forecaster, interpolator)
        return DYffusionSystem(functions, self.sampler, parts.recipes)


SYSTEMS["dyffusion"] = Entry(
    DYffusionOptions,
    "a frozen interpolator draws the frames between the last known one and the end of the window, a forecaster "
    "estimates that end from each of them; a sample walks through physical time, the two taking turns.",
    "x <- x + I(x_0, F(x, i), j) - I(x_0, F(x, i), i) from lead i to the next, j",
    "#882255",
)
