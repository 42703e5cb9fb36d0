"""Batches as a pure function of (seed, step), read ahead in order by threads or by processes of their own."""

import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import grain
import jax
import numpy as np
from absl import flags

from dydiff_jax.data.windows import Place, Windows, stack
from dydiff_jax.system import FramesRead
from dydiff_jax.types import Batch

#: More steps than any run has.
ENDLESS = 2**62


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
    """How batches are read ahead. The batches are the same ones whatever is chosen.

    Attributes:
      threads: threads that read, each a batch at a time; in every worker process where there are some.
      workers: processes that read, 0 for the training process itself; for data that take much time in Python.
      prefetch: batches that are ready or being read, in every worker process where there are some; 0 reads each
        batch when it is asked for.
    """

    threads: int = 4
    workers: int = 0
    prefetch: int = 8

    def __post_init__(self):
        for name, least in (("threads", 1), ("workers", 0), ("prefetch", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        least = self.threads if self.workers or self.prefetch else 0
        if self.prefetch < least:
            raise ValueError(
                f"prefetch: expected at least the {least} batches that as many threads read at once"
                f"{'' if self.workers else ', or 0'}, found {self.prefetch}"
            )


class TrainBatches:
    """Batches of random training windows: row r of step s is element s batch_size + r of an endless sequence.

    Every epoch visits each training window once, in a new order, with new crops and mirrors. An element
    depends on the seed and its number alone, so any number of processes makes one batch, each its own rows.
    """

    def __init__(
        self,
        windows: Windows,
        batch_size: int,
        seed: int,
        options: LoaderOptions | None = None,
        frames: FramesRead | None = None,
    ):
        """With ``frames``, an example is made of these frames of its window alone."""
        self._windows, self._batch_size, self._frames = windows, batch_size, frames
        self._options = LoaderOptions() if options is None else options
        numbers = grain.MapDataset.range(len(windows))
        elements = numbers.seed(seed).shuffle().repeat()
        self._places = elements.random_map(windows.draw)
        self._chosen = None if frames is None else elements.seed(seed + 1).random_map(self._choose)

    def rows(self, step: int, rows: Sequence[int]) -> Batch:
        """These rows of the batch of one step."""
        return stack([self._windows.read(self._place(step, row), self._numbers(step, row)) for row in rows])

    def stream(self, step: int, rows: Sequence[int]) -> Iterator[Batch]:
        """These rows of the batches of one step and of all that follow, read ahead as the options say."""
        return read_ahead(functools.partial(self.rows, rows=[int(row) for row in rows]), step, self._options)

    def ids(self, step: int) -> list[Place]:
        """Where each row of the batch of one step is cut."""
        return [self._place(step, row) for row in range(self._batch_size)]

    def _choose(self, index: int, rng: np.random.Generator) -> tuple[int, ...]:
        assert self._frames is not None
        return tuple(int(number) for number in self._frames(rng))

    def _numbers(self, step: int, row: int) -> Sequence[int] | None:
        return None if self._chosen is None else self._chosen[step * self._batch_size + int(row)]

    def _place(self, step: int, row: int) -> Place:
        return self._places[step * self._batch_size + int(row)]


def read_ahead(
    read: Callable[[int], Batch], first: int, options: LoaderOptions
) -> grain.DatasetIterator[Batch]:
    """read(first), read(first + 1), ... without end; read at once, until the iterator is closed or dropped.

    Args:
      read: makes the batch of a step, in any thread or process. An error that it raises is raised here, in place
        of its batch.
      first: the step to begin with.
      options: how many are read ahead, and by what.
    """
    dataset = grain.MapDataset.range(first, ENDLESS).map(read)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(options.threads, options.prefetch))
    if options.workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain asks for its flags, which a library's user may never parse
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(options.workers), enter_worker)
    batches = iter(dataset)
    batches.start_prefetch()
    return batches


def enter_worker(index: int, count: int) -> None:
    """What a worker process does first: it leaves accelerators and signals to its parent, and ends with it.

    A scheduler that stops a job sends its signal to every process; the parent still needs batches to save its state.
    """
    jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
