"""Shards as one zarr v3 array [frames, h, w, c], read and written by tensorstore: local, gs://, s3:// or http://.

Each shard is one file or object; inside it every chunk is found by an index and read alone, by a range of bytes.
Chunks are stored as they are, with a checksum: turbulence compresses little, and decompressing costs more than reading.
"""

import functools

import numpy as np
import tensorstore as ts

from dydiff_jax.data.formats import store
from dydiff_jax.data.formats.sidecar import FRAMES, Sidecar

_PLAIN = {"name": "bytes", "configuration": {"endian": "little"}}
_CHECKED = [_PLAIN, {"name": "crc32c"}]


class ZarrShards:
    """Reads boxes of the frames of all trajectories; opened in each process when it first reads."""

    def __init__(self, path: str, sidecar: Sidecar, array: str = FRAMES):
        """Read the frames, or another array of `sidecar`."""
        self._path, self._sidecar, self._name = path, sidecar, array
        self.dtype = sidecar.dtype_of(array)

    def read(self, box: tuple[slice, slice, slice]) -> np.ndarray:
        """Frames, rows and columns of a box, [frames, rows, columns, c].

        Raises:
          StoreError: a shard is missing, cut short or changed, or the store does not answer; it is named.
        """
        try:
            return self._array[box].read().result()
        except store.FAILURES as error:
            frames = f"frames {box[0].start} to {box[0].stop}"
            raise store.StoreError(
                f"{self._path}: {frames} cannot be read: {store.advice(self._path, error)}"
            ) from error

    def where(self, frame: int) -> str:
        """The shard that holds a frame."""
        return store.file_name(self._path, f"{self._name}.zarr/c/{frame // self._sidecar.shard_frames}/0/0/0")

    @functools.cached_property
    def _array(self) -> ts.TensorStore:
        options = {
            "driver": "zarr3",
            "kvstore": _kvstore(self._path, self._name),
            "fill_missing_data_reads": False,  # a shard that is not there is an error, not a field of zeros
            "recheck_cached_data": "open",  # shards do not change
        }
        array = ts.open(options, open=True, read=True, context=store.context()).result()
        expected = (self._sidecar.total, *self._sidecar.frame_shape)
        if array.shape != expected or array.dtype.name != self.dtype.name:
            raise ValueError(
                f"expected an array {expected} of {self.dtype.name}, found {array.shape} of {array.dtype.name}"
            )
        return array

    def __getstate__(self) -> dict:
        return {"_path": self._path, "_sidecar": self._sidecar, "_name": self._name, "dtype": self.dtype}


def write_shards(path: str, sidecar: Sidecar, array: str = FRAMES):
    """A function that writes frames [n, h, w, c] of the shard that begins with a frame.

    Raises:
      StoreError: the store does not answer, or does not let us write.
    """
    try:
        opened = ts.open(_new(path, sidecar, array), create=True, context=store.context()).result()
    except store.FAILURES as error:
        raise store.StoreError(f"{path}/{array}.zarr: cannot be made: {store.advice(path, error)}") from error

    def write(first: int, frames: np.ndarray) -> None:
        try:
            opened[first : first + len(frames)].write(frames).result()
        except store.FAILURES as error:
            raise store.StoreError(
                f"{path}/{array}.zarr: cannot be written: {store.advice(path, error)}"
            ) from error

    return write


def _new(path: str, sidecar: Sidecar, array: str) -> dict:
    """A new array for tensorstore; every shard holds all rows and columns."""
    inner = [*sidecar.chunk, sidecar.frame_shape[2]]
    outer = [
        sidecar.shard_frames,
        *(n * step for n, step in zip(sidecar.chunks[1:], inner[1:3], strict=True)),
    ]
    shard = {"chunk_shape": inner, "codecs": _CHECKED, "index_codecs": _CHECKED}
    return {
        "driver": "zarr3",
        "kvstore": _kvstore(path, array),
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "shape": [sidecar.total, *sidecar.frame_shape],
            "data_type": sidecar.dtype_of(array).name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [*outer, inner[3]]}},
            "codecs": [{"name": "sharding_indexed", "configuration": shard}],
        },
    }


def _kvstore(path: str, array: str) -> str | dict:
    folder = store.spec(path)
    name = f"{array}.zarr/"
    return f"{folder}{name}" if store.is_remote(path) else {**folder, "path": f"{folder['path']}{name}"}
