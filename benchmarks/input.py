"""How fast training windows come: files, zarr shards and ArrayRecord shards, by threads and worker processes.

    python -m benchmarks.input

prints a markdown table of examples per second, the median of repeats that take turns, and a second one for zarr shards
behind a local server that waits before each answer, as object storage does. An example is a window of 15 x 64 x 64 x 2
at a random place of 64 x 448 frames; 16 make a batch. Files are warm: what is timed is this library, the readers and
the copying, not a disk.
"""

import os
import pathlib
import statistics
import tempfile
import time

import numpy as np

from benchmarks.rangeserver import serving
from dydiff_jax.data.batches import LoaderOptions, TrainBatches
from dydiff_jax.data.formats import shard_writer, store
from dydiff_jax.data.sources.folder import Folder
from dydiff_jax.data.sources.shards import Shards
from dydiff_jax.data.splits import DatasetOptions, make_splits

BATCH, TRAJECTORIES, FRAMES, GRID = 16, 2, 400, (64, 448, 2)
#: Threads, workers and batches read ahead; the first reads on the spot.
WAYS = {
    "on the spot": LoaderOptions(1, 0, 0),
    "1 thread": LoaderOptions(1, 0, 8),
    "4 threads": LoaderOptions(4, 0, 8),
    "16 threads": LoaderOptions(16, 0, 16),
    "2 workers x 1": LoaderOptions(1, 2, 4),
    "2 workers x 4": LoaderOptions(4, 2, 4),
}
REPEATS, BATCHES, WARM = 5, 30, 10
#: Seconds before each answer of the server, and the threads that are compared.
DELAY, THREADS = 0.03, (1, 4, 16, 32)
#: What a step asks for: batches in a second.
NEEDED = 10


def sources(root: pathlib.Path) -> dict:
    """The same trajectories in every form."""
    rng = np.random.default_rng(0)
    (root / "files").mkdir()
    for number in range(TRAJECTORIES):
        np.save(root / "files" / f"{number}.npy", rng.standard_normal((FRAMES, *GRID)).astype(np.float32))
    files = Folder(str(root / "files"), periodic_x=True)
    for form in ("zarr", "array_record"):
        shard_writer.write(files.load(), str(root / form), form, lambda frames: None)
    return {
        "npy": files,
        "zarr": Shards(str(root / "zarr")),
        "array_record": Shards(str(root / "array_record")),
    }


def rate(windows, options: LoaderOptions) -> float:
    """Examples in a second once as many batches were taken as are read ahead, and some."""
    stream = TrainBatches(windows, BATCH, 0, options).stream(0, range(BATCH))
    for _ in range(WARM + options.prefetch * max(1, options.workers)):
        next(stream)
    begin = time.perf_counter()
    for _ in range(BATCHES):
        next(stream)
    taken = time.perf_counter() - begin
    stream.close()
    return BATCH * BATCHES / taken


def far_away(folder: pathlib.Path, options: DatasetOptions) -> list[float]:
    """Examples in a second from a server that waits; indexes of shards fit into the cache, frames do not."""
    store.CACHE = 2**22
    store.context.cache_clear()
    with serving(folder, DELAY) as (address, _):
        windows = make_splits(Shards(f"{address}/zarr").load(), options).train
        return [rate(windows, LoaderOptions(threads, 0, threads)) for threads in THREADS]


def table(head: str, columns, rows: dict) -> None:
    """Prints examples in a second, and megabytes."""
    example = 15 * 64 * 64 * 2 * 4 / 1e6
    print(f"\n| {head}: examples/s (MB/s) | " + " | ".join(columns) + " |")
    print("|---" + "|---:" * len(columns) + "|")
    for name, found in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.0f} ({value * example:.0f})" for value in found) + " |")


def main():
    """Prints the tables."""
    options = DatasetOptions(4, 11, crop=64, random_crop=True)
    with tempfile.TemporaryDirectory() as root:
        os.environ["DYDIFF_JAX_CACHE"] = root  # where moments are kept
        splits = {
            name: make_splits(s.load(), options).train for name, s in sources(pathlib.Path(root)).items()
        }
        rates = {name: [[] for _ in WAYS] for name in splits}
        for _ in range(REPEATS):
            for name, columns in rates.items():
                for found, way in zip(columns, WAYS.values(), strict=True):
                    found.append(rate(splits[name], way))
        distant = far_away(pathlib.Path(root), options)
    print(f"needed for {NEEDED} steps/s: {NEEDED * BATCH} examples/s")
    medians = {name: [statistics.median(found) for found in columns] for name, columns in rates.items()}
    table("local", list(WAYS), medians)
    table(f"answers after {DELAY:g} s", [f"{threads} threads" for threads in THREADS], {"zarr": distant})


if __name__ == "__main__":
    main()
