"""Kolmogorov flow, simulated on first use and kept in a cache folder."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dydiff_jax.data.simulators import kolmogorov as solver
from dydiff_jax.data.sources.simulated import SpunUp
from dydiff_jax.data.sources.source import register


class State(NamedTuple):
    """A flow with the viscosity and the density of its fluid, so that all trajectories share one program."""

    flow: solver.Velocity
    viscosity: jax.Array
    density: jax.Array


@register("kolmogorov")
@dataclasses.dataclass(frozen=True)
class Kolmogorov(SpunUp):
    """Velocity of two-dimensional flow driven by a shear, periodic in x and y.

    The flow of Rolling Diffusion (Ruhe et al. 2024, arXiv 2402.09470, Table 7 as we read it): viscosity and density
    are drawn for each trajectory, the first state is random with largest speed 7, and of 300 units of time, which
    the paper calls seconds, every 1.5 is recorded. The paper keeps all 200 frames; by default the first 75 units
    are dropped, in which the flow forgets its start, so that what is left is statistically steady. Velocities are
    recorded in half precision, 5e-4 of their value, on the faces of the recorded cells: as in JAX-CFD the right one
    for the horizontal, the upper one for the vertical. They are in model units: the box is 2 pi long and the force 1.

    The mirror image in x alone is no solution, as the force turns round; with a shift of pi / 4 in y it is.

    Attributes:
      viscosity: bounds of the dynamic viscosity, drawn uniformly.
      density: bounds of the density, drawn uniformly; it divides the viscosity, the force and the drag.
      cells: cells along each side of the simulated box.
      out_cells: cells along each side of a recorded frame, by means over their faces; divides `cells`.
      max_speed: largest speed of the first state, and the speed for which the time step is chosen.
      courant: time step times `max_speed` over the size of a cell, at most; the scheme bears 0.5.
    """

    interval: float = 1.5
    spin_up: float = 75.0
    duration: float = 225.0
    trajectories: int = 256
    viscosity: tuple[float, ...] = (5e-4, 5e-3)
    density: tuple[float, ...] = (0.5, 2.0)
    cells: int = 128
    out_cells: int = 64
    max_speed: float = 7.0
    courant: float = 0.5

    title: ClassVar[str] = "Kolmogorov flow"
    solver_version: ClassVar[int] = 1
    time_unit: ClassVar[str] = "model time"
    unit: ClassVar[str] = "model velocity"

    def __post_init__(self):
        super().__post_init__()
        for name in ("viscosity", "density"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise ValueError(f"{name}: expected bounds 0 < low <= high, found {bounds}")
        for name in ("max_speed", "courant"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, found {getattr(self, name)}")
        if self.cells < 16:
            raise ValueError(f"cells: expected at least 16, found {self.cells}")
        if self.out_cells < 1 or self.cells % self.out_cells:
            raise ValueError(f"out_cells: expected a divisor of cells = {self.cells}, found {self.out_cells}")
        pieces = self.interval / solver.LONGEST_STEP
        if abs(pieces - round(pieces)) > 1e-6 or round(pieces) < 1:
            raise ValueError(
                f"interval: expected a multiple of {solver.LONGEST_STEP}, of which time steps are whole "
                f"fractions, found {self.interval}"
            )
        try:
            _ = self.time_step
        except ValueError as error:
            raise ValueError(f"courant: {error}") from error

    @property
    def time_step(self) -> solver.TimeStep:
        """The step that all trajectories share."""
        dt = solver.whole_fraction(self.cells, self.max_speed, self.courant)
        return solver.TimeStep(dt, self.cells, self.max_speed, self.viscosity[1] / self.density[0])

    @property
    def label(self) -> str:
        """Simulated and recorded grid."""
        return f"kolmogorov-{self.cells}to{self.out_cells}"

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of a recorded frame."""
        return (self.out_cells, self.out_cells, 2)

    @property
    def remedy(self) -> str:
        """For the message when the flow becomes non-finite."""
        return f"on {self.cells} x {self.cells} cells at courant = {self.courant:g}; use a smaller courant"

    def parameters(self, index: int) -> dict[str, float]:
        """Viscosity and density of trajectory `index`."""
        key = jax.random.fold_in(jax.random.key(self.seed), index)
        draws = jax.random.uniform(jax.random.fold_in(key, 1), (2,))
        bounds = {"viscosity": self.viscosity, "density": self.density}
        return {
            name: low + (high - low) * float(draw)
            for (name, (low, high)), draw in zip(bounds.items(), draws, strict=True)
        }

    def manifest(self) -> dict:
        """The options, and viscosity and density of each trajectory."""
        drawn = {part.path.name: self.parameters(i) for i, part in enumerate(self.parts())}
        return super().manifest() | {"drawn": drawn}

    def initial(self, index: int) -> State:
        """A random flow of a random fluid."""
        key = jax.random.fold_in(jax.random.key(self.seed), index)
        flow = solver.initial(jax.random.fold_in(key, 0), self.cells, self.max_speed)
        return State(flow, **{name: jnp.float32(value) for name, value in self.parameters(index).items()})

    def advance(self, state: State) -> State:
        """The state one interval later."""
        physics = solver.Physics(state.viscosity, state.density)
        count = round(self.interval / self.time_step.dt)
        return state._replace(flow=solver.advance(state.flow, physics, self.time_step, count))

    def frame(self, state: State) -> jax.Array:
        """The velocity on the right and upper faces of the recorded cells, float16 [out_cells, out_cells, 2]."""
        left, lower = solver.face_means(state.flow, self.out_cells)
        faces = jnp.roll(left, -1, axis=1), jnp.roll(lower, -1, axis=0)
        return jnp.stack(faces, axis=-1).astype(jnp.float16)
