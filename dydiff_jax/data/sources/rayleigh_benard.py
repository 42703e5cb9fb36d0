"""Rayleigh-Benard convection, simulated on first use and kept in a cache folder."""

import dataclasses
from typing import ClassVar, Literal

import jax

from dydiff_jax.data.simulators import rayleigh_benard as solver
from dydiff_jax.data.sources.simulated import SpunUp
from dydiff_jax.data.sources.source import register


@register("rayleigh_benard")
@dataclasses.dataclass(frozen=True)
class RayleighBenard(SpunUp):
    """Velocity of two-dimensional convection between rigid plates; the defaults are the published flow.

    The flow of TF-Net (Wang et al., KDD 2020, section 4.1): 256 x 1792 cells, Ra = 2.5e8, Pr = 0.71, every
    fourth cell kept, 64 x 448. All times are in free-fall units, H / sqrt(g a dT H), so velocities are in
    sqrt(g a dT H). Trajectories differ by the noise on their first state.

    Attributes:
      rayleigh: Ra, buoyancy over diffusion.
      prandtl: Pr, viscosity over thermal diffusivity.
      rows: cells from plate to plate; at Ra = 2.5e8 fewer than 128 give nearly periodic flow.
      columns: cells along the plates; the flow is periodic in this direction.
      out_rows: rows of the recorded frames; divides `rows`.
      downsample: "mean" averages blocks of cells, "stride" keeps one cell of each block, as TF-Net does.
    """

    interval: float = 0.25
    spin_up: float = 40.0
    duration: float = 375.0
    trajectories: int = 4
    rayleigh: float = 2.5e8
    prandtl: float = 0.71
    rows: int = 256
    columns: int = 1792
    out_rows: int = 64
    downsample: Literal["mean", "stride"] = "stride"

    title: ClassVar[str] = "convection"
    solver_version: ClassVar[int] = 1
    time_unit: ClassVar[str] = "free-fall time"
    unit: ClassVar[str] = "free-fall velocity"
    mirror: ClassVar[tuple[float, ...] | None] = (-1.0, 1.0)

    def __post_init__(self):
        super().__post_init__()
        for name in ("rayleigh", "prandtl"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, found {getattr(self, name)}")
        for name in ("rows", "columns"):
            if getattr(self, name) < 8:
                raise ValueError(f"{name}: expected at least 8, found {getattr(self, name)}")
        if self.out_rows < 1 or self.rows % self.out_rows or self.columns % self.factor:
            raise ValueError(
                "out_rows: expected a divisor of rows, with rows / out_rows a divisor of columns; found "
                f"{self.out_rows} for {self.rows} x {self.columns} cells"
            )

    @property
    def factor(self) -> int:
        """Cells along each side of the block that a recorded value stands for."""
        return self.rows // self.out_rows

    @property
    def label(self) -> str:
        """Grid and Rayleigh number."""
        return f"rayleigh_benard-{self.rows}x{self.columns}-ra{self.rayleigh:.2g}"

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of a recorded frame."""
        return (self.out_rows, self.columns // self.factor, 2)

    @property
    def remedy(self) -> str:
        """For the message when the flow becomes non-finite."""
        return f"at Ra = {self.rayleigh:g} on {self.rows} x {self.columns} cells; use more rows"

    def initial(self, index: int) -> solver.Fluid:
        """Conduction with noise of its own."""
        key = jax.random.fold_in(jax.random.key(self.seed), index)
        return solver.initial(key, self.rows, self.columns)

    def advance(self, state: solver.Fluid) -> solver.Fluid:
        """The state one interval later."""
        return solver.advance(state, solver.physics(self.rayleigh, self.prandtl), self.interval)

    def frame(self, state: solver.Fluid) -> jax.Array:
        """The velocity at the cell centres, [out_rows, columns / factor, 2], by block means or by a stride."""
        cells = solver.velocity(state)
        if self.downsample == "stride":
            return cells[:: self.factor, :: self.factor]
        rows, columns, channels = self.frame_shape
        return cells.reshape(rows, self.factor, columns, self.factor, channels).mean(axis=(1, 3))
