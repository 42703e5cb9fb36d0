"""Shards as ArrayRecord files, read through grain; each record is one chunk of frames, rows and columns.

A shard holds the chunks of its frames in order, columns fastest. Chunks at an edge are smaller. Files are local, or on
a file system that is mounted; gs:// is handed to the reader, whose PyPI build has a client for it, which no test here
has tried; s3:// and http:// it cannot read.
"""

import itertools
import pathlib

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from dydiff_jax.data.formats import store
from dydiff_jax.data.formats.sidecar import FRAMES, Sidecar

#: Each record alone and as it is: turbulence compresses little, and decompressing costs more than reading.
WRITER = "group_size:1,uncompressed"
#: For random access; grain turns off reading ahead itself.
READER = {"max_parallelism": "0"}


class RecordShards:
    """Reads boxes of the frames of all trajectories; files are opened in each process when they are first read."""

    def __init__(self, path: str, sidecar: Sidecar, array: str = FRAMES):
        """Read the frames, or another array of `sidecar`."""
        if store.is_remote(path) and not path.startswith("gs://"):
            raise ValueError(
                f"{path}: ArrayRecord shards are read from local folders and gs:// alone; use zarr"
            )
        self._path, self._sidecar, self._name = path, sidecar, array
        self.dtype = sidecar.dtype_of(array)
        folder = path if store.is_remote(path) else str(pathlib.Path(path).expanduser())
        names = [_file(folder, sidecar, array, first) for first, _ in sidecar.shards]
        counts = [_records(sidecar, first, stop) for first, stop in sidecar.shards]
        files = [f"{name}[0:{count}]" for name, count in zip(names, counts, strict=True)]
        self._records = grain.sources.ArrayRecordDataSource(files, READER)

    def read(self, box: tuple[slice, slice, slice]) -> np.ndarray:
        """Frames, rows and columns of a box, [frames, rows, columns, c].

        Raises:
          StoreError: a shard is missing, cut short or changed; it is named.
        """
        sidecar = self._sidecar
        grid = (sidecar.total, *sidecar.frame_shape[:2])
        bounds = [(part.start, part.stop) for part in box]
        out = np.empty([*(stop - start for start, stop in bounds), sidecar.frame_shape[2]], self.dtype)
        touched = (
            range(start // step, -(-stop // step))
            for (start, stop), step in zip(bounds, sidecar.chunk, strict=True)
        )
        for index in itertools.product(*touched):
            starts = [number * step for number, step in zip(index, sidecar.chunk, strict=True)]
            chunk = self._chunk(index, starts, grid)
            here, there = [], []
            for start, size, (low, high) in zip(starts, chunk.shape, bounds, strict=False):
                first, last = max(start, low), min(start + size, high)
                here.append(slice(first - start, last - start))
                there.append(slice(first - low, last - low))
            out[tuple(there)] = chunk[tuple(here)]
        return out

    def where(self, frame: int) -> str:
        """The shard that holds a frame."""
        return _file(self._path, self._sidecar, self._name, frame)

    def _chunk(self, index: tuple[int, ...], starts: list[int], grid: tuple[int, ...]) -> np.ndarray:
        sizes = zip(self._sidecar.chunk, starts, grid, strict=True)
        shape = [min(step, side - start) for step, start, side in sizes] + [self._sidecar.frame_shape[2]]
        try:
            record = self._records[int(np.ravel_multi_index(index, self._sidecar.chunks))]
            return np.frombuffer(record, self.dtype).reshape(shape)
        except store.FAILURES as error:
            raise store.StoreError(
                f"{self.where(starts[0])}: a chunk of {shape} values of {self.dtype} cannot be read: {error}"
            ) from error


def write_shards(path: str, sidecar: Sidecar, array: str = FRAMES):
    """A function that writes frames [n, h, w, c] of the shard that begins with a frame, into a local folder."""
    folder = str(pathlib.Path(path).expanduser())

    def write(first: int, frames: np.ndarray) -> None:
        name = _file(folder, sidecar, array, first)
        try:
            writer = ArrayRecordWriter(name, WRITER)
            for start in np.ndindex(*_grid(sidecar, len(frames))):
                box = (slice(n * step, (n + 1) * step) for n, step in zip(start, sidecar.chunk, strict=True))
                writer.write(frames[tuple(box)].tobytes())
            writer.close()
        except store.FAILURES as error:
            raise store.StoreError(f"{name}: cannot be written: {error}") from error

    return write


def _grid(sidecar: Sidecar, frames: int) -> tuple[int, int, int]:
    """Chunks of a stretch of frames that begins with a chunk."""
    return (-(-frames // sidecar.chunk[0]), *sidecar.chunks[1:])


def _records(sidecar: Sidecar, first: int, stop: int) -> int:
    return int(np.prod(_grid(sidecar, stop - first)))


def _file(folder: str, sidecar: Sidecar, array: str, frame: int) -> str:
    """The file of the shard that holds a frame."""
    number, count = frame // sidecar.shard_frames, len(sidecar.shards)
    return store.file_name(folder, f"{array}-{number:05d}-of-{count:05d}.array_record")
