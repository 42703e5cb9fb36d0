"""Data sets at scale: trajectories in shards, as `dydiff_jax.export` writes them, on disk or in object storage.

A window reads only the chunks that it touches. Means, deviations and whether all values are finite follow from the
moments of every frame, which stand beside the shards, so that a host starts without reading the data.
"""

import dataclasses
import itertools

import numpy as np

from dydiff_jax.data.cache import npz_arrays
from dydiff_jax.data.formats import record_shards, sidecar, store, zarr_shards
from dydiff_jax.data.formats.sidecar import EXTRAS, MOMENTS, OBSERVED, Sidecar
from dydiff_jax.data.moments import Moments, measure
from dydiff_jax.data.sources.source import register, require_path
from dydiff_jax.data.trajectories import Trajectories
from dydiff_jax.types import DataSpec

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

    def spec(self) -> DataSpec:
        """From the sidecar alone."""
        return sidecar.read(self._where).spec()

    @property
    def _where(self) -> str:
        return require_path(self.path, "a folder of shards that dydiff_jax.export wrote")

    def load(self) -> Trajectories:
        """Open the shards, after measuring a few frames again.

        Raises:
          FileNotFoundError: there are no shards, or they were not written to the end.
          ValueError: something is broken, or the moments are not those of the shards; it is named.
        """
        path = self._where
        described = sidecar.read(path)
        open_shards = READERS[described.format]
        reader = open_shards(path, described)
        moments = read_moments(path, described)
        extras = read_extras(path, described)
        spans = [slice(*span) for span in itertools.pairwise(described.firsts.tolist())]
        roles = tuple(recording.role for recording in described.recordings)

        def cut(reader) -> tuple[Stretch, ...]:
            return tuple(Stretch(reader, span, described.frame_shape) for span in spans)

        trajectories = Trajectories(
            arrays=cut(reader),
            names=tuple(f"{path}, {recording.name}" for recording in described.recordings),
            moments=tuple(moments.at(span) for span in spans),
            roles=None if None in roles else roles,
            observed=cut(open_shards(path, described, OBSERVED)) if described.masked else None,
            forcings=tuple(extras["forcings"][span] for span in spans) if described.forcing_names else None,
            static=extras.get("static"),
            **{name: getattr(described, name) for name in sidecar.SHARED},
        )
        check_moments(trajectories, reader, described)
        return trajectories


class Stretch:
    """The frames of one trajectory among those of all, [T, h, w, c]."""

    def __init__(self, reader, span: slice, frame_shape: tuple[int, int, int]):
        self._reader, self._first = reader, span.start
        self.shape, self.dtype = (span.stop - span.start, *frame_shape), reader.dtype

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
    contents = store.read(path, MOMENTS)
    try:
        return Moments.from_npz(contents, described.total, len(described.fields))
    except ValueError as error:
        raise ValueError(f"{name}: {error}; export the data again") from error


def read_extras(path: str, described: Sidecar) -> dict[str, np.ndarray]:
    """Forcings and static fields by name; empty where there are none.

    Raises:
      FileNotFoundError: they are not there.
      ValueError: they are broken, or of other shapes.
    """
    if not (described.forcing_names or described.static_names):
        return {}
    name, expected = store.file_name(path, EXTRAS), {}
    if described.forcing_names:
        expected["forcings"] = (described.total, len(described.forcing_names))
    if described.static_names:
        expected["static"] = (*described.frame_shape[:2], len(described.static_names))
    contents = store.read(path, EXTRAS)
    try:
        found = npz_arrays(contents)
    except ValueError as error:
        raise ValueError(
            f"{name}: not a whole file of forcings and static fields ({error}); export the data again"
        ) from error
    shapes = {key: array.shape for key, array in found.items()}
    if shapes != expected:
        raise ValueError(
            f"{name}: expected arrays of shapes {expected}, found {shapes}; export the data again"
        )
    return found


def check_moments(trajectories: Trajectories, reader, described: Sidecar) -> None:
    """Measures a few frames again.

    Raises:
      ValueError: their moments are not those beside the shards; the shard is named.
    """
    for frame in np.unique(np.linspace(0, described.total - 1, CHECKED).round().astype(int)).tolist():
        number = int(np.searchsorted(described.firsts, frame, side="right")) - 1
        start = frame - int(described.firsts[number])
        values = np.asarray(trajectories.read(number, start, start + 1), np.float32)
        found = measure(values, trajectories.read_observed(number, start, start + 1))
        told = trajectories.moments[number]
        for part, expected in zip(found, told.at(slice(start, start + 1)), strict=True):
            if not np.allclose(part, expected, rtol=TOLERANCE, atol=TOLERANCE * np.sqrt(found.squares.sum())):
                raise ValueError(
                    f"{reader.where(frame)}: frame {frame} has not the moments that {MOMENTS} holds for it; the "
                    "shards and the moments are not of one export: export the data again"
                )
