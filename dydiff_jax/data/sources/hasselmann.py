"""Stochastic advection whose law is known, simulated on first use and kept in a cache folder."""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dydiff_jax.data.simulators import hasselmann as solver
from dydiff_jax.data.sources.simulated import Simulated
from dydiff_jax.data.sources.source import register
from dydiff_jax.data.trajectories import ExactLaw


class State(NamedTuple):
    """The field [h, w], and the key of the noise to come."""

    field: jax.Array
    key: jax.Array


@register("hasselmann")
@dataclasses.dataclass(frozen=True)
class Hasselmann(Simulated):
    """Sea surface temperature as a field that is carried, damped, mixed and stirred by noise; periodic in x and y.

    dT/dt = -c . grad T - (lambda - kappa lap) T + noise (`data.simulators.hasselmann`), stepped exactly from one frame
    to the next and started from its stationary law. It is Gaussian, so that the best forecast is known: `mean`,
    `variance` and `exact_ensemble` give the law of the frames after a last one. The CRPS of a perfect forecast is
    s(lead) / sqrt(pi), with s^2 = `variance`. The variance at each grid point is 1.

    slope = 0, velocity = (0, 0) and diffusion = 0 make every grid point an AR(1) of its own, with coefficient
    exp(-damping interval). The mirror image in x is a solution where the velocity along x is 0.

    Attributes:
      grid: h and w of a frame.
      velocity: c along x and y, in grid spacings a day.
      damping: lambda, over days.
      diffusion: kappa, in squared grid spacings a day.
      slope: the spectrum of the noise is |k|^-slope; 0 is white.
    """

    interval: float = 1.0
    duration: float = 1460.0
    trajectories: int = 11
    grid: tuple[int, ...] = (60, 60)
    velocity: tuple[float, ...] = (0.3, 0.1)
    damping: float = 0.05
    diffusion: float = 0.1
    slope: float = 2.0

    title: ClassVar[str] = "stochastic advection"
    solver_version: ClassVar[int] = 1
    fields: ClassVar[tuple[str, ...]] = ("temperature",)
    time_unit: ClassVar[str] = "day"
    unit: ClassVar[str] = "standard deviation"

    def __post_init__(self):
        super().__post_init__()
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"grid: expected h and w, each at least 1, found {self.grid}")
        if len(self.velocity) != 2:
            raise ValueError(f"velocity: expected its components along x and y, found {self.velocity}")
        if self.damping <= 0:
            raise ValueError(
                f"damping: expected more than 0, without which there is no stationary law; found {self.damping}"
            )
        if self.diffusion < 0:
            raise ValueError(f"diffusion: expected 0 or more, found {self.diffusion}")

    @property
    def mirror(self) -> tuple[float, ...] | None:
        """Of `Trajectories`."""
        return (1.0,) if self.velocity[0] == 0 else None

    @functools.cached_property
    def law(self) -> solver.Law:
        """The law of the field from one frame to the next."""
        physics = solver.Physics(self.velocity, self.damping, self.diffusion, self.slope)
        return solver.law(self.grid, physics, self.interval)

    @property
    def exact_law(self) -> ExactLaw | None:
        """`exact_ensemble`: the field is a Markov process, and the last frame all that counts."""
        return self.exact_ensemble

    @property
    def label(self) -> str:
        """The grid."""
        return f"hasselmann-{self.grid[0]}x{self.grid[1]}"

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of a recorded frame."""
        return (*self.grid, 1)

    @property
    def remedy(self) -> str:
        """For the message when the field becomes non-finite."""
        return f"with damping {self.damping:g} and slope {self.slope:g}; use a smaller slope"

    def initial(self, index: int) -> State:
        """A draw of the stationary law."""
        key, draw = jax.random.split(jax.random.fold_in(jax.random.key(self.seed), index))
        return State(solver.stationary(self.law, jax.random.normal(draw, self.grid)), key)

    def advance(self, state: State) -> State:
        """The state one interval later."""
        key, draw = jax.random.split(state.key)
        return State(solver.step(self.law, state.field, jax.random.normal(draw, self.grid)), key)

    def frame(self, state: State) -> jax.Array:
        """The field, float32 [h, w, 1]."""
        return state.field[..., None].astype(jnp.float32)

    def mean(self, last_frame: jax.Array, horizon: int) -> jax.Array:
        """The expected frames at leads 1 .. horizon after a last frame [h, w, 1], [horizon, h, w, 1]."""
        return solver.conditional_mean(self.law, last_frame[..., 0], horizon)[..., None]

    def variance(self, horizon: int) -> np.ndarray:
        """The variance at a grid point about `mean`, the same at all of them and after any frame, [horizon]."""
        return np.diag(solver.lead_covariance(self.law, horizon))

    def exact_ensemble(self, key: jax.Array, last_frame: jax.Array, horizon: int, members: int) -> jax.Array:
        """Draws of the frames after a last frame [h, w, 1] from their law, [members, horizon, h, w, 1]."""
        return solver.exact_ensemble(self.law, key, last_frame[..., 0], horizon, members)[..., None]
