"""Lorenz's model of 1996, simulated on first use and kept in a cache folder."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dydiff_jax.data.simulators import lorenz96 as solver
from dydiff_jax.data.sources.simulated import SpunUp
from dydiff_jax.data.sources.source import register


class State(NamedTuple):
    """The variables [variables], and the key of the noise to come."""

    x: jax.Array
    key: jax.Array


@register("lorenz96")
@dataclasses.dataclass(frozen=True)
class Lorenz96(SpunUp):
    """Lorenz's 40 variables on a circle, a frame of 1 x 40 x 1, periodic in x; chaotic at F = 8.

    dx_i/dt = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + F, plus noise sigma dW_i (`data.simulators.lorenz96`). A unit of time
    is 5 days of Lorenz's atmosphere, the interval of 0.05 six hours; errors double in about 0.4 units.

    Attributes:
      variables: on the circle, at least 4.
      forcing: F.
      dt: time step, a whole fraction of the interval.
      noise: sigma of the additive noise; 0 is deterministic.
    """

    interval: float = 0.05
    spin_up: float = 20.0
    duration: float = 500.0
    trajectories: int = 20
    variables: int = 40
    forcing: float = 8.0
    dt: float = 0.01
    noise: float = 0.0

    title: ClassVar[str] = "Lorenz 96"
    solver_version: ClassVar[int] = 1
    fields: ClassVar[tuple[str, ...]] = ("x",)
    time_unit: ClassVar[str] = "model time"
    unit: ClassVar[str] = "model unit"

    def __post_init__(self):
        super().__post_init__()
        if self.variables < 4:
            raise ValueError(f"variables: expected at least 4, found {self.variables}")
        if self.noise < 0:
            raise ValueError(f"noise: expected 0 or more, found {self.noise}")
        if self.dt <= 0 or self.steps < 1 or abs(self.interval / self.dt - self.steps) > 1e-6:
            raise ValueError(
                f"dt: expected a whole fraction of interval = {self.interval:g}, found {self.dt}"
            )

    @property
    def steps(self) -> int:
        """Time steps in one interval."""
        return round(self.interval / self.dt)

    @property
    def label(self) -> str:
        """Variables and forcing."""
        return f"lorenz96-{self.variables}-f{self.forcing:g}"

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of a recorded frame."""
        return (1, self.variables, 1)

    @property
    def remedy(self) -> str:
        """For the message when the state becomes non-finite."""
        return f"at F = {self.forcing:g} and dt = {self.dt:g}; use a smaller dt"

    def initial(self, index: int) -> State:
        """The fixed point with noise of its own."""
        key, draw = jax.random.split(jax.random.fold_in(jax.random.key(self.seed), index))
        return State(solver.initial(draw, self.variables, self.forcing), key)

    def advance(self, state: State) -> State:
        """The state one interval later."""
        if self.noise == 0:
            return state._replace(x=solver.advance(state.x, self.forcing, self.dt, self.steps))
        key, draw = jax.random.split(state.key)
        return State(solver.advance_noisy(state.x, draw, self.forcing, self.dt, self.steps, self.noise), key)

    def frame(self, state: State) -> jax.Array:
        """The variables along x, float32 [1, variables, 1]."""
        return state.x[None, :, None].astype(jnp.float32)
