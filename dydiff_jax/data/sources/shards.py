"""Data sets at scale: trajectories in shards, as `dydiff_jax.export` writes them, on disk or in object storage.

A window reads only the chunks that it touches. Means, deviations and whether all values are finite follow from the
moments of every frame, which stand beside the shards, so that a host starts without reading the data.
"""

import dataclasses
import io

import numpy as np

from dydiff_jax.data.formats import record_shards, sidecar, store, zarr_shards
from dydiff_jax.data.formats.sidecar import MOMENTS, Sidecar
from dydiff_jax.data.moments import Moments, measure
from dydiff_jax.data.sources.source import Trajectories, given, register

READERS = {"zarr": zarr_shards.ZarrShards, "array_record": record_shards.RecordShards}

#: Frames, evenly spaced, whose moments are measured again when shards are opened.
CHECKED = 4
#: Two computers may add up the same numbers in another order.
TOLERANCE = 1e-9


@register("shards")
@dataclasses.dataclass(frozen=True)
class Shards:
    """Trajectories that `dydiff_jax.export` wrote, as zarr or ArrayRecord.

    Attributes:
      path: the folder, or gs://, s3:// or http:// with the name of one.
    """

    path: str

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of a frame, from the sidecar alone."""
        return sidecar.read(self._where).frame_shape

    @property
    def fields(self) -> tuple[str, ...]:
        """The name of each channel, from the sidecar alone."""
        return sidecar.read(self._where).fields

    @property
    def _where(self) -> str:
        return given(self.path, "a folder of shards that dydiff_jax.export wrote")

    def load(self) -> Trajectories:
        """Open the shards, after measuring a few frames again.

        Raises:
          FileNotFoundError: there are no shards, or they were not written to the end.
          ValueError: something is broken, or the moments are not those of the shards; it is named.
        """
        path = self._where
        described = sidecar.read(path)
        reader = READERS[described.format](path, described)
        moments = read_moments(path, described)
        firsts = described.firsts
        spans = list(zip(firsts[:-1].tolist(), firsts[1:].tolist(), strict=True))
        roles = tuple(film.role for film in described.films)
        trajectories = Trajectories(
            arrays=tuple(Span(reader, *span, described.frame_shape) for span in spans),
            names=tuple(f"{path}, {film.name}" for film in described.films),
            moments=tuple(moments.at(slice(*span)) for span in spans),
            roles=None if None in roles else roles,
            **{name: getattr(described, name) for name in sidecar.SHARED},
        )
        check_moments(trajectories, reader, described)
        return trajectories


class Span:
    """The frames of one trajectory among those of all, [T, h, w, c]."""

    def __init__(self, reader, first: int, stop: int, frame_shape: tuple[int, int, int]):
        self._reader, self._first = reader, first
        self.shape = (stop - first, *frame_shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, window: tuple[slice, slice, slice]) -> np.ndarray:
        sides = zip(window, self.shape, (self._first, 0, 0), strict=False)
        bounds = ((part.indices(side), first) for part, side, first in sides)
        return self._reader.read(tuple(slice(first + low, first + high) for (low, high, _), first in bounds))


def read_moments(path: str, described: Sidecar) -> Moments:
    """The moments of all frames.

    Raises:
      FileNotFoundError: they are not there.
      ValueError: they are broken, or not those of as many frames.
    """
    name = store.file_name(path, MOMENTS)
    expected = [(described.total, len(described.fields))] * 2 + [(described.total,)]
    try:
        with np.load(io.BytesIO(store.read(path, MOMENTS)), allow_pickle=False) as archive:
            found = Moments(*(archive[part] for part in Moments._fields))
    except (ValueError, KeyError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError | store.StoreError):
            raise
        raise ValueError(f"{name}: not a whole file of moments ({error}); export the data again") from error
    if [part.shape for part in found] != expected:
        raise ValueError(f"{name}: expected moments of shapes {expected}, found {[p.shape for p in found]}")
    return found


def check_moments(trajectories: Trajectories, reader, described: Sidecar) -> None:
    """Measures a few frames again.

    Raises:
      ValueError: their moments are not those beside the shards; the shard is named.
    """
    for frame in np.unique(np.linspace(0, described.total - 1, CHECKED).round().astype(int)).tolist():
        number = int(np.searchsorted(described.firsts, frame, side="right")) - 1
        start = frame - int(described.firsts[number])
        found, told = measure(trajectories.read(number, start, start + 1)), trajectories.moments[number]
        for part, expected in zip(found, told.at(slice(start, start + 1)), strict=True):
            if not np.allclose(part, expected, rtol=TOLERANCE, atol=TOLERANCE * np.sqrt(found.squares.sum())):
                raise ValueError(
                    f"{reader.where(frame)}: frame {frame} has not the moments that {MOMENTS} holds for it; the "
                    "shards and the moments are not of one export: export the data again"
                )
