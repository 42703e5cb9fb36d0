"""Writes the trajectories of any data set as shards."""

import io
from collections.abc import Callable, Iterator

import numpy as np

from dydiff_jax.data.formats import record_shards, sidecar, store, zarr_shards
from dydiff_jax.data.formats.sidecar import FRAMES, OBSERVED, Recording, Sidecar
from dydiff_jax.data.moments import Moments, joined, measure
from dydiff_jax.data.trajectories import CHUNK, Trajectories, common_dtype

WRITERS = {"zarr": zarr_shards.write_shards, "array_record": record_shards.write_shards}


def write(trajectories: Trajectories, path: str, form: str, report: Callable[[int], None]) -> Sidecar:
    """Writes trajectories as shards; the sidecar comes last.

    Args:
      trajectories: what is written, in the precision of its arrays.
      path: a folder that is not there yet, or an unused name in object storage.
      form: "zarr" or "array_record".
      report: called with the number of frames that were written since the last call.

    Raises:
      FileExistsError: the folder is there.
      ValueError: a value is not finite, or something cannot be written; it is named.
    """
    described = describe(trajectories, form)
    check_target(path, form)
    store.make(path)
    arrays = [FRAMES, *([OBSERVED] if described.masked else [])]
    writers = {array: WRITERS[form](path, described, array) for array in arrays}
    measured = []
    for first, stop in described.shards:
        shard = {
            array: np.empty((stop - first, *described.frame_shape), described.dtype_of(array))
            for array in arrays
        }
        for number, start, begin, end in _pieces(described, first, stop):
            box = slice(start, start + end - begin), slice(None), slice(None)
            values, mask = np.asarray(trajectories.arrays[number][box]), None
            shard[FRAMES][begin - first : end - first] = values
            if described.masked:
                mask = trajectories.read_observed(number, start, start + end - begin)
                shard[OBSERVED][begin - first : end - first] = mask
            measured.append(_measure(trajectories, number, start, values, mask))
        for array, write_shard in writers.items():
            write_shard(first, shard[array])
        report(stop - first)
    store.write(path, sidecar.MOMENTS, joined(measured).to_npz())
    if described.forcing_names or described.static_names:
        store.write(path, sidecar.EXTRAS, _extras(trajectories))
    store.write(path, sidecar.MANIFEST, described.to_json())
    return described


def _extras(trajectories: Trajectories) -> bytes:
    """The contents of `sidecar.EXTRAS`."""
    arrays = {}
    if trajectories.forcings is not None:
        arrays["forcings"] = np.concatenate(trajectories.forcings)
    if trajectories.static is not None:
        arrays["static"] = trajectories.static
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def check_target(path: str, form: str) -> None:
    """Refuses a target before any long work.

    Raises:
      FileExistsError: it is there.
      ValueError: the format is not written there, or the store does not answer.
    """
    if form == "array_record" and store.is_remote(path):
        raise ValueError(
            f"{path}: ArrayRecord shards are written to local folders alone; copy them, or use zarr"
        )
    store.check_free(path)


def describe(trajectories: Trajectories, form: str) -> Sidecar:
    """The sidecar of trajectories that are to be written."""
    dtype = common_dtype(trajectories.arrays)
    shape = (*trajectories.grid, len(trajectories.fields))
    roles = trajectories.roles or (None,) * len(trajectories.names)
    entries = zip(trajectories.names, trajectories.arrays, roles, strict=True)
    return Sidecar(
        format=form,
        frame_shape=shape,
        dtype=dtype.name,
        chunk=sidecar.chunk_of(shape),
        shard_frames=sidecar.shard_frames_of(shape, dtype, sum(map(len, trajectories.arrays))),
        recordings=tuple(Recording(name, len(array), role) for name, array, role in entries),
        masked=trajectories.observed is not None,
        **{name: getattr(trajectories, name) for name in sidecar.SHARED},
    )


def _pieces(described: Sidecar, first: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Frames [first, stop) of all in stretches of one trajectory: its number, its first frame, begin and end."""
    firsts = described.firsts
    number = int(np.searchsorted(firsts, first, side="right")) - 1
    begin = first
    while begin < stop:
        end = min(stop, int(firsts[number + 1]), begin + CHUNK)
        if end > begin:
            yield number, begin - int(firsts[number]), begin, end
        number += end == firsts[number + 1]
        begin = end


def _measure(
    trajectories: Trajectories, number: int, start: int, values: np.ndarray, observed: np.ndarray | None
) -> Moments:
    found = measure(np.asarray(trajectories.physical(values), np.float32), observed)
    finite = np.isfinite(found.squares).all(axis=1)
    if not finite.all():
        frame = start + int(np.argmin(finite))
        raise ValueError(
            f"{trajectories.names[number]}: frame {frame} holds NaN or infinite values; repair the file"
        )
    return found
