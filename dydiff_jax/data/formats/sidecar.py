"""Metadata of a shard set (manifest.json)."""

import dataclasses
import json
import math
from typing import Any, NamedTuple

import numpy as np

from dydiff_jax.data.formats import store
from dydiff_jax.types import DataSpec

#: The file that describes the shards. It is written last: a folder without it is not a set of shards.
MANIFEST = "manifest.json"
VERSION = 2
FORMATS = ("array_record", "zarr")
#: The moments of all frames, float64, beside it.
MOMENTS = "moments.npz"
#: Forcings [total, m] of all frames and static fields [h, w, q], where there are some.
EXTRAS = "extras.npz"
#: The arrays that are sharded: the frames, and the mask of observed points where something is missing.
FRAMES, OBSERVED = "frames", "observed"
#: What trajectories and their sidecar say in the same words.
SHARED = (
    "fields", "interval", "time_unit", "unit", "periodic_x", "mirror", "scale", "forcing_names", "static_names",
)  # fmt: skip

#: Frames in a chunk, and its side in grid points at most: what is read for one value.
CHUNK_FRAMES, CHUNK_SIDE = 8, 64
#: Bytes of a shard, about; as many are in memory while it is written.
SHARD_BYTES = 128 * 2**20


class Recording(NamedTuple):
    """One trajectory: where it came from, its frames, and its split where the data came split."""

    name: str
    frames: int
    role: str | None = None


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """The trajectories one after the other are frames [total, h, w, c], cut into shards along the frames.

    Attributes:
      format: of the shards, one of `FORMATS`.
      fields: with the rest of `SHARED`, that of `data.trajectories.Trajectories`.
      frame_shape: (h, w, c).
      dtype: of the numbers in the shards.
      chunk: (frames, rows, columns) of what is read at once, with all channels.
      shard_frames: frames of a shard, a multiple of those of a chunk; the last shard may have fewer.
      recordings: the trajectories in order.
      masked: whether a mask of observed points stands beside the frames.
      forcing_names: of the forcings.
      static_names: of the static fields.
      version: of this description.
    """

    format: str
    fields: tuple[str, ...]
    unit: str
    interval: float
    time_unit: str
    periodic_x: bool
    mirror: tuple[float, ...] | None
    scale: float
    frame_shape: tuple[int, int, int]
    dtype: str
    chunk: tuple[int, int, int]
    shard_frames: int
    recordings: tuple[Recording, ...]
    masked: bool = False
    forcing_names: tuple[str, ...] = ()
    static_names: tuple[str, ...] = ()
    version: int = VERSION

    @property
    def total(self) -> int:
        """Frames of all trajectories."""
        return sum(recording.frames for recording in self.recordings)

    @property
    def firsts(self) -> np.ndarray:
        """The first frame of each trajectory, and the total."""
        return np.cumsum([0, *(recording.frames for recording in self.recordings)])

    @property
    def shards(self) -> list[tuple[int, int]]:
        """The first frame of each shard and the one after its last."""
        starts = range(0, self.total, self.shard_frames)
        return [(start, min(start + self.shard_frames, self.total)) for start in starts]

    @property
    def chunks(self) -> tuple[int, int, int]:
        """Chunks along frames, rows and columns."""
        sides = zip((self.total, *self.frame_shape[:2]), self.chunk, strict=True)
        return tuple(math.ceil(side / step) for side, step in sides)

    def to_json(self) -> bytes:
        """The text of manifest.json."""
        recordings = [recording._asdict() for recording in self.recordings]
        return json.dumps(dataclasses.asdict(self) | {"recordings": recordings}, indent=1).encode()

    def dtype_of(self, array: str) -> np.dtype:
        """Of the numbers of `FRAMES` or `OBSERVED`."""
        return np.dtype(bool) if array == OBSERVED else np.dtype(self.dtype)

    def spec(self) -> DataSpec:
        """What the frames are."""
        return DataSpec(
            self.frame_shape,
            self.fields,
            self.unit,
            self.interval,
            self.time_unit,
            forcings=self.forcing_names,
            static=self.static_names,
        )


def chunk_of(frame_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Frames, rows and columns of a chunk: a frame is cut into as few equal tiles as `CHUNK_SIDE` allows."""
    sides = (math.ceil(side / math.ceil(side / CHUNK_SIDE)) for side in frame_shape[:2])
    return (CHUNK_FRAMES, *sides)


def shard_frames_of(frame_shape: tuple[int, int, int], dtype: np.dtype, total: int) -> int:
    """Frames of a shard: whole chunks of them, about `SHARD_BYTES`, no more than there are."""
    chunk_bytes = CHUNK_FRAMES * math.prod(frame_shape) * dtype.itemsize
    return CHUNK_FRAMES * min(max(1, SHARD_BYTES // chunk_bytes), math.ceil(total / CHUNK_FRAMES))


def read(path: str) -> Sidecar:
    """The sidecar of the shards in a folder or under a prefix of object storage.

    Raises:
      FileNotFoundError: there is none.
      StoreError: the store does not answer, or does not let us read.
      ValueError: it is broken, or of another version.
    """
    name = store.file_name(path, MANIFEST)
    try:
        text = store.read(path, MANIFEST)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{name}: no such file; expected a folder that dydiff_jax.export wrote to its end"
        ) from None
    try:
        values = json.loads(text)
        if values["version"] != VERSION:
            raise ValueError(f"version {values['version']}, and this program reads version {VERSION}")
        return _parse(values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{name}: not the description of a set of shards ({type(error).__name__}: {error}); export the data again"
        ) from error


def _parse(values: dict[str, Any]) -> Sidecar:
    recordings = tuple(Recording(**recording) for recording in values["recordings"])
    tuples = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    sidecar = Sidecar(**tuples | {"recordings": recordings})
    numbers = (sidecar.total, sidecar.shard_frames, *sidecar.frame_shape, *sidecar.chunk)
    if not recordings or min(numbers) < 1 or len(sidecar.frame_shape) != 3 or len(sidecar.chunk) != 3:
        raise ValueError(f"sizes {numbers}")
    if sidecar.format not in FORMATS:
        raise ValueError(f"format {sidecar.format!r} is none of {FORMATS}")
    np.dtype(sidecar.dtype)
    return sidecar
