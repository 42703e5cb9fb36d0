"""TF-Net's file of Rayleigh-Benard convection, rbc_data.pt (Wang et al., KDD 2020, arXiv 1911.08655)."""

import dataclasses
import pathlib

import numpy as np

from dydiff_jax.data.formats.torch_file import read_tensor
from dydiff_jax.data.sources.source import local_path, register
from dydiff_jax.data.trajectories import Trajectories, file_identity, moments_file
from dydiff_jax.types import DataSpec

WHERE = "the TF-Net repository (Rose-STL-Lab/Turbulent-Flow-Net on GitHub) says where to get it"


FIELDS, UNIT = ("horizontal velocity", "vertical velocity"), "unit of the file"


@register("rbc_file")
@dataclasses.dataclass(frozen=True)
class RbcFile:
    """One trajectory [T, 2, 256, 1792] at Ra = 2.5e8, Pr = 0.71, every fourth point kept: [T, 64, 448, 2].

    Values are velocities in the units of the file, which are not published (mean about -1.6 and 0.005,
    standard deviation of the speed about 2322); neither is the time between two frames.

    Attributes:
      path: the file; it is memory-mapped.
      stride: keep every stride-th row and column.
    """

    path: str
    stride: int = 4

    def __post_init__(self):
        if self.stride < 1:
            raise ValueError(f"stride: expected at least 1, found {self.stride}")

    def spec(self) -> DataSpec:
        """From the header of the file."""
        rows, columns = (-(-side // self.stride) for side in self._open()[1].shape[2:])
        return DataSpec((rows, columns, 2), FIELDS, UNIT, 1.0, "frame")

    def load(self) -> Trajectories:
        """Open the file, which is memory-mapped.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is broken, or holds another shape.
        """
        path, frames = self._open()
        return Trajectories(
            arrays=(frames[:, :, :: self.stride, :: self.stride].transpose(0, 2, 3, 1),),
            names=(str(path),),
            fields=FIELDS,
            interval=1.0,
            time_unit="frame",
            unit=UNIT,
            periodic_x=False,
            mirror=(-1.0, 1.0),
            moments_files=(moments_file(file_identity(path, self.stride)),),
        )

    def _open(self) -> tuple[pathlib.Path, np.ndarray]:
        path = local_path(self.path, f"the file rbc_data.pt; {WHERE}")
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; {WHERE}")
        frames = read_tensor(path)
        if frames.ndim != 4 or frames.shape[1] != 2:
            raise ValueError(f"{path}: expected a tensor [T, 2, h, w], found shape {frames.shape}")
        return path, frames
