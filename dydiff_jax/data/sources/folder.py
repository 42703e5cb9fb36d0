"""A folder of the user's own trajectories: .npy, .npz or zarr, one trajectory in each."""

import dataclasses
import pathlib
from typing import Any, Literal

import numpy as np

from dydiff_jax.data.cache import BROKEN, broken, npz_header, open_npy
from dydiff_jax.data.sources.source import local_path, register
from dydiff_jax.data.trajectories import Trajectories, file_identity, moments_file
from dydiff_jax.runs import files
from dydiff_jax.types import DataSpec

SUFFIXES = (".npy", ".npz", ".zarr")


@register("folder")
@dataclasses.dataclass(frozen=True)
class Folder:
    """Every .npy, .npz and .zarr of a folder, in the order of their names, is one trajectory.

    Attributes:
      path: the folder.
      interval: time between two frames, in `time_unit`.
      time_unit: the unit of time.
      unit: the unit of the values.
      layout: order of the axes of each array; without channels "thw".
      fields: the name of each channel; () numbers them.
      key: the array in each .npz, and the array in each zarr group; None where there is only one.
      periodic_x: whether the last axis of space closes on itself.
    """

    path: str
    interval: float = 1.0
    time_unit: str = "frame"
    unit: str = "unit of the files"
    layout: Literal["thwc", "tchw", "thw"] = "thwc"
    fields: tuple[str, ...] = ()
    key: str | None = None
    periodic_x: bool = False

    def __post_init__(self):
        if self.interval <= 0:
            raise ValueError(f"interval: expected a positive time, found {self.interval}")

    def spec(self) -> DataSpec:
        """From the header of the first file."""
        path = self._paths()[0]
        if path.suffix == ".npz":
            with open_npy(path) as archive:
                key = self._key(path, archive.files)
            shape, dtype = npz_header(path, key)
        else:
            opened = self._open_zarr(path) if path.suffix == ".zarr" else open_npy(path)
            shape, dtype = opened.shape, np.dtype(opened.dtype)
        self._check_layout(path, shape, dtype)
        sizes = dict(zip(self.layout, shape, strict=True))
        frame = tuple(sizes.get(axis, 1) for axis in "hwc")
        return DataSpec(frame, self._fields(frame[-1]), self.unit, self.interval, self.time_unit)

    def load(self) -> Trajectories:
        """Open the files; .npy and zarr are read frame by frame, .npz at once.

        Raises:
          FileNotFoundError: the folder is not there, or holds no such file.
          ValueError: a file is broken or does not have the layout, or the grids differ.
          ImportError: a zarr store without zarr installed.
        """
        paths = self._paths()
        arrays = tuple(self._open(path) for path in paths)
        return Trajectories(
            arrays=arrays,
            names=tuple(str(path) for path in paths),
            fields=self._fields(arrays[0].shape[-1]),
            interval=self.interval,
            time_unit=self.time_unit,
            unit=self.unit,
            periodic_x=self.periodic_x,
            moments_files=tuple(moments_file(self._identity(path)) for path in paths),
        )

    def _paths(self) -> list[pathlib.Path]:
        folder = local_path(self.path, "a folder of .npy, .npz or zarr trajectories")
        paths = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)
        if not paths:
            raise FileNotFoundError(f"{folder}: expected a folder of {', '.join(SUFFIXES)} files, found none")
        return paths

    def _fields(self, channels: int) -> tuple[str, ...]:
        return self.fields or tuple(f"channel {number}" for number in range(channels))

    def _identity(self, path: pathlib.Path) -> str:
        """Of a file, or of all files of a zarr store."""
        parts = sorted(path.rglob("*")) if path.is_dir() else [path]
        return files.fingerprint(
            [file_identity(part, self.layout, self.key) for part in parts if part.is_file()]
        )

    def _open(self, path: pathlib.Path) -> "LayoutView":
        opened = {".npy": open_npy, ".npz": self._open_npz, ".zarr": self._open_zarr}[path.suffix](path)
        self._check_layout(path, opened.shape, np.dtype(opened.dtype))
        return LayoutView(opened, self.layout)

    def _check_layout(self, path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if len(shape) != len(self.layout) or dtype.kind not in "fiu":
            raise ValueError(
                f"{path}: expected numbers with axes {self.layout!r}, found shape {tuple(shape)} of {dtype}; set "
                "--config.data.layout"
            )

    def _open_npz(self, path: pathlib.Path) -> np.ndarray:
        with open_npy(path) as archive:
            key = self._key(path, archive.files)
            try:
                return archive[key]
            except BROKEN as error:
                raise broken(path, error) from error

    def _open_zarr(self, path: pathlib.Path) -> Any:
        try:
            import zarr
        except ImportError:
            raise ImportError(f"{path}: reading zarr needs zarr; pip install 'dydiff_jax[zarr]'") from None
        store = zarr.open(path, mode="r")
        return store[self._key(path, list(store.array_keys()))] if isinstance(store, zarr.Group) else store

    def _key(self, path: pathlib.Path, keys: list[str]) -> str:
        if self.key is None and len(keys) == 1:
            return keys[0]
        if self.key not in keys:
            raise ValueError(f"{path}: expected an array {self.key!r}, found {keys}; set key to one of them")
        return self.key


class LayoutView:
    """An array of any layout seen as [T, h, w, c], read frame by frame."""

    def __init__(self, array: Any, layout: str):
        self._array, self._layout = array, layout
        sizes = dict(zip(layout, array.shape, strict=True))
        self.shape = tuple(sizes.get(axis, 1) for axis in "thwc")
        self.dtype = np.dtype(array.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, window: tuple[slice, slice, slice]) -> np.ndarray:
        sides = dict(zip("thw", window, strict=True))
        values = np.asarray(self._array[tuple(sides.get(axis, slice(None)) for axis in self._layout)])
        if self._layout == "thw":
            return values[..., None]
        return values.transpose([self._layout.index(axis) for axis in "thwc"])
