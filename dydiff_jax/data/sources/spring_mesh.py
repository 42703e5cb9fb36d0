"""The spring mesh of nn-benchmark, simulated on first use and kept in a cache folder."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dydiff_jax.data.simulators import spring_mesh as solver
from dydiff_jax.data.sources.simulated import Simulated
from dydiff_jax.data.sources.source import register

#: Inner and outer radius of the first displacements, in spacings of the mesh.
DISC = (0.0, 0.35)
RING = (0.35, 0.45)
FIELDS = (
    "horizontal momentum",
    "vertical momentum",
    "horizontal position",
    "vertical position",
)
TIME_UNIT, UNIT, STATIC_NAMES = "model time", "model unit", ("fixed",)


@register("spring_mesh")
@dataclasses.dataclass(frozen=True)
class SpringMesh(Simulated):
    """Momenta and positions of 10 x 10 points joined by damped springs (`data.simulators.spring_mesh`).

    The experiment of DYffusion (Cachay et al. 2023, arXiv 2306.01984): 805 frames from rest, the start among them, in
    100 training, 3 validation and 15 test trajectories; use it with ``dataset.split = "given"``. The law of the starts
    and the equations are those of nn-benchmark, the draws are our own. Channels are p_x, p_y, q_x, q_y, and the static
    field "fixed" marks the row that is held. The mirror image is a solution, but with q_x -> 9 - q_x, more than a sign.

    Attributes:
      trajectories: the first `test` are for testing, the next `valid` for validation, the others for training.
      valid: validation trajectories.
      test: test trajectories.
      out_of_distribution: displace the test trajectories by .35 to .45 at the start, in place of 0 to .35.
      substeps: time steps in one interval. The largest error after 134 frames falls as their square, from 8e-6 of a
        position and 5e-5 of a momentum.
    """

    interval: float = 0.00781
    duration: float = 6.28705
    trajectories: int = 118
    valid: int = 3
    test: int = 15
    out_of_distribution: bool = False
    substeps: int = 1

    title: ClassVar[str] = "a spring mesh"
    solver_version: ClassVar[int] = 1
    fields: ClassVar[tuple[str, ...]] = FIELDS
    time_unit: ClassVar[str] = TIME_UNIT
    unit: ClassVar[str] = UNIT
    periodic_x: ClassVar[bool] = False
    static: ClassVar[np.ndarray | None] = solver.FIXED
    static_names: ClassVar[tuple[str, ...]] = STATIC_NAMES
    records_start: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        for name in ("valid", "test"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, found {getattr(self, name)}")
        if self.trajectories <= self.valid + self.test:
            raise ValueError(
                f"trajectories: expected more than valid + test = {self.valid + self.test}, of which the rest is "
                f"for training; found {self.trajectories}"
            )
        if self.substeps < 1:
            raise ValueError(f"substeps: expected at least 1, found {self.substeps}")

    @property
    def roles(self) -> tuple[str, ...]:
        """Of `Trajectories`."""
        rest = self.trajectories - self.test - self.valid
        return ("test",) * self.test + ("valid",) * self.valid + ("train",) * rest

    @property
    def label(self) -> str:
        """Whether the test starts are those of training."""
        return "spring_mesh-out" if self.out_of_distribution else "spring_mesh"

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of a recorded frame."""
        return (solver.SIDE, solver.SIDE, 4)

    @property
    def remedy(self) -> str:
        """For the message when a state becomes non-finite."""
        return f"in {self.substeps} steps each; use a smaller interval or more substeps"

    def initial(self, index: int) -> solver.Mesh:
        """Displaced points at rest."""
        key = jax.random.fold_in(jax.random.key(self.seed), index)
        return solver.initial(key, *(RING if self.out_of_distribution and index < self.test else DISC))

    def advance(self, state: solver.Mesh) -> solver.Mesh:
        """The state one interval later."""
        return solver.advance(state, self.interval / self.substeps, self.substeps)

    def frame(self, state: solver.Mesh) -> jax.Array:
        """Momentum and position, float32 [y, x, (p_x, p_y, q_x, q_y)]."""
        return jnp.concatenate([state.velocity, solver.positions(state)], axis=-1).astype(jnp.float32)
