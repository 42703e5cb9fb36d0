"""The turbulence arrays of Dynamical Diffusion's released code (Guo et al., ICLR 2025, arXiv 2503.00951)."""

import dataclasses
import pathlib

from dydiff_jax.data.cache import open_npy
from dydiff_jax.data.sources.source import local_path, register
from dydiff_jax.data.trajectories import Trajectories, file_identity, moments_file
from dydiff_jax.types import DataSpec

FILES = {"train": "train.npz.npy", "test": "test.npz.npy"}  # plain .npy files under these names

FIELDS, UNIT = ("horizontal velocity", "vertical velocity"), "4 units of the file"


@register("dydiff_release")
@dataclasses.dataclass(frozen=True)
class DyDiffRelease:
    """Sequences [N, L, 2, h, w] of 64 x 64 velocities, split by file, of which the first 15 frames are used.

    Values are divided by 4, as the released code does before it trains and scores.

    Attributes:
      path: the folder of train.npz.npy and test.npz.npy; they are memory-mapped.
      frames: frames used of each sequence.
      scale: factor on the values.
    """

    path: str
    frames: int = 15
    scale: float = 0.25

    def spec(self) -> DataSpec:
        """From the header of a file."""
        shape = self._open(self._folder() / FILES["train"]).shape
        return DataSpec((*shape[3:], 2), FIELDS, UNIT, 1.0, "frame")

    def load(self) -> Trajectories:
        """Open both files; each sequence is a trajectory.

        Raises:
          FileNotFoundError: one of them is not there.
          ValueError: one is broken, or holds another shape.
        """
        folder = self._folder()
        arrays, names, roles, moments_files = [], [], [], []
        for role, file in FILES.items():
            sequences = self._open(folder / file)
            arrays += [sequence[: self.frames].transpose(0, 2, 3, 1) for sequence in sequences]
            names += [f"{folder / file}, sequence {number}" for number in range(len(sequences))]
            roles += [role] * len(sequences)
            options = (self.frames, self.scale)
            identities = (file_identity(folder / file, n, *options) for n in range(len(sequences)))
            moments_files += map(moments_file, identities)
        return Trajectories(
            arrays=tuple(arrays),
            names=tuple(names),
            fields=FIELDS,
            interval=1.0,
            time_unit="frame",
            unit=UNIT,
            periodic_x=False,
            roles=tuple(roles),
            scale=self.scale,
            moments_files=tuple(moments_files),
        )

    def _folder(self) -> pathlib.Path:
        return local_path(self.path, "the folder of train.npz.npy and test.npz.npy")

    def _open(self, path: pathlib.Path):
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: no such file; the authors of Dynamical Diffusion "
                "(thuml/dynamical-diffusion on GitHub) say where to get it"
            )
        sequences = open_npy(path)
        if sequences.ndim != 5 or sequences.shape[2] != 2 or sequences.shape[1] < self.frames:
            raise ValueError(
                f"{path}: expected an array [N, L, 2, h, w] with L at least {self.frames}, found shape "
                f"{sequences.shape}"
            )
        return sequences
