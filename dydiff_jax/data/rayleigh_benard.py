"""Rayleigh-Benard convection, simulated on first use and kept in a cache folder."""

import dataclasses
import os
import pathlib
from typing import Literal

from absl import logging

from dydiff_jax.data import cache
from dydiff_jax.data.simulators import ensemble
from dydiff_jax.data.source import Trajectories, register

#: Raised when the solver changes what it computes, so that no cache of an older one is read.
SOLVER_VERSION = 1


@register("rayleigh_benard")
@dataclasses.dataclass(frozen=True)
class RayleighBenard:
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
      interval: time between two frames.
      spin_up: time before the first frame, for the flow to forget its start.
      duration: recorded time; `duration / interval` frames for each trajectory.
      trajectories: how many.
      seed: of the initial noise.
      cache_dir: None for the user's cache directory.
      workers: processes on a CPU, 0 for one on each core; an accelerator runs all trajectories at once.
    """

    rayleigh: float = 2.5e8
    prandtl: float = 0.71
    rows: int = 256
    columns: int = 1792
    out_rows: int = 64
    downsample: Literal["mean", "stride"] = "stride"
    interval: float = 0.25
    spin_up: float = 40.0
    duration: float = 375.0
    trajectories: int = 4
    seed: int = 0
    cache_dir: str | None = None
    workers: int = 0

    def __post_init__(self):
        for name in ("rayleigh", "prandtl", "interval", "duration"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, found {getattr(self, name)}")
        for name in ("spin_up", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, found {getattr(self, name)}")
        for name, least in (("trajectories", 1), ("rows", 8), ("columns", 8)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if self.out_rows < 1 or self.rows % self.out_rows or self.columns % (self.rows // self.out_rows):
            raise ValueError(
                "out_rows: expected a divisor of rows, with rows / out_rows a divisor of columns; found "
                f"{self.out_rows} for {self.rows} x {self.columns} cells"
            )
        if self.frames < 1:
            raise ValueError(f"duration: {self.duration} holds no frame of interval {self.interval}")

    @property
    def frames(self) -> int:
        """Frames in each trajectory."""
        return round(self.duration / self.interval)

    @property
    def folder(self) -> pathlib.Path:
        """The cache folder of these options: more trajectories of the same flow share it."""
        settings = dataclasses.asdict(self) | {"solver": SOLVER_VERSION}
        for name in ("trajectories", "cache_dir", "workers"):
            del settings[name]
        flow = f"rayleigh_benard-{self.rows}x{self.columns}-ra{self.rayleigh:.2g}"
        return cache.cache_root(self.cache_dir) / f"{flow}-{cache.fingerprint(settings)}"

    def parts(self) -> list[cache.Part]:
        """The cached array of each trajectory, there or not."""
        factor = self.rows // self.out_rows
        shape = (self.frames, self.out_rows, self.columns // factor, 2)
        return [cache.Part(self.folder / f"trajectory_{i:03d}.npy", shape) for i in range(self.trajectories)]

    def load(self) -> Trajectories:
        """Simulate what is missing from the cache, and open it.

        Raises:
          ValueError: a cached file is broken; it is named.
          FloatingPointError: the flow became non-finite.
        """
        parts = self.parts()
        with cache.locked(self.folder):
            missing = [i for i, part in enumerate(parts) if not part.path.exists()]
            if missing:
                logging.info("simulating %d trajectories into %s", len(missing), self.folder)
                cache.write_json(self.folder / "manifest.json", dataclasses.asdict(self))
                ensemble.simulate_missing(self, missing, self._workers())
        return Trajectories(
            arrays=tuple(part.open() for part in parts),
            names=tuple(str(part.path) for part in parts),
            fields=("horizontal velocity", "vertical velocity"),
            interval=self.interval,
            time_unit="free-fall time",
            unit="free-fall velocity",
            periodic_x=True,
            mirror=(-1.0, 1.0),
        )

    def _workers(self) -> int:
        if self.workers:
            return self.workers
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
