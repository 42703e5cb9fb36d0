"""Checkpoints: written in the background, atomically, compared with a manifest, readable on any mesh.

A checkpoint is a directory ``checkpoints/STAGE/N``, N the steps done, of four parts that are readable one by one
(``params``, ``opt_state``, ``ema`` and ``counters``), notes and the fingerprint of the stage in its metadata, and
``manifest.json``. It gets its name when all of that is on the disk. One that does not agree with its manifest is
quarantined, and the one before it is used.

Every method is called by all processes of a run, in the same order.
"""

import pathlib
import tempfile
from concurrent import futures
from typing import Any

from orbax.checkpoint import v1 as ocp

from dydiff_jax.distributed import collectives
from dydiff_jax.training.checkpoints import folders, loading
from dydiff_jax.training.logging import message
from dydiff_jax.training.state import TrainState

COUNTERS = ("step", "skipped", "bad_steps")

#: Copies of a leaf share the work of writing it where each has as many bytes to write: a slice is a program of its own.
LEAST_SLICE = 2**20


class CheckpointError(OSError):
    """A checkpoint could not be written; those before it are untouched."""


class Checkpoints:
    """The checkpoints of a stage that is being trained; on leaving its context it waits for the last one.

    Opening removes what a killed run left half-written, so only the run that trains may open them; others use
    `loading.load_ema`.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        keep_last: int,
        keep_every: int | None,
        fingerprint: str = "",
        keep_best: bool = False,
    ):
        """Open a directory, which is made if need be.

        Args:
          directory: the stage's, ``checkpoints/STAGE``.
          keep_last: how many of the newest checkpoints are kept.
          keep_every: those whose step it divides are kept too.
          fingerprint: of the stage; a checkpoint with another one is refused.
          keep_best: the checkpoint that the notes name as the best is kept too.

        Raises:
          CheckpointError: the directory cannot be made or written.
        """
        self._directory = pathlib.Path(directory).absolute()
        self._keep = keep_last, keep_every
        self._fingerprint, self._keep_best = fingerprint, keep_best
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending: futures.Future[None] | None = None
        collectives.on_main(lambda: _open(self._directory))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or issubclass(kind, SystemExit):
                self.wait()
            elif (failure := self._join()) is not None:  # perhaps this process alone failed: no collective
                message(str(failure))
        finally:
            self._thread.shutdown()

    def save(self, step: int, state: TrainState, notes: dict[str, Any]) -> None:
        """Start to write a checkpoint; returns once the state may be donated. Waits for the one before.

        Args:
          step: steps done.
          state: the state after them.
          notes: JSON that belongs to the checkpoint; `restore` returns it. ``best``, if it is there, names the step
            with the lowest validation score so far: {"step": N, "score": value}.

        Raises:
          CheckpointError: this checkpoint, or the one before, could not be written.
        """
        self.wait()
        try:
            with _saving():
                written = ocp.save_checkpointables_async(
                    folders.partial(self._directory, step),
                    _parts(state),
                    custom_metadata={"notes": notes, "fingerprint": self._fingerprint},
                )
        except Exception as error:  # orbax and tensorstore raise whatever their layers raise
            raise self._failure(step, error) from error
        best = (notes.get("best") or {}).get("step") if self._keep_best else None
        self._pending = self._thread.submit(self._finish, step, written, best)

    def wait(self) -> None:
        """Wait until the last checkpoint is whole.

        Raises:
          CheckpointError: it could not be written.
        """
        if self._pending is None:
            return
        failure = self._join()
        text = collectives.on_main(lambda: None if failure is None else str(failure))
        if failure is not None:
            raise failure
        if text is not None:
            raise CheckpointError(text)

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Load the newest valid checkpoint onto the shardings of ``abstract``, and its notes.

        Damaged ones that are newer are named in a message and quarantined.

        Returns:
          The state and the notes; None if the stage has not written a checkpoint.

        Raises:
          ValueError: no checkpoint is valid, or the newest valid one has another fingerprint, or a leaf of another
            shape or dtype, or one too few or too many.
        """
        self.wait()
        step = loading.choose(self._directory, part=None, repair=True)
        if step is None:
            return None
        folder = self._directory / str(step)
        loading.check_fingerprint(folder, self._fingerprint)
        found = loading.metadata(folder).custom_metadata
        parts = loading.load_parts(folder, _parts(abstract))
        return TrainState(**parts.pop("counters"), **parts), found["notes"]

    def _finish(self, step: int, written: ocp.AsyncResponse[None], best: int | None) -> None:
        """In the background: wait for the files, and make a checkpoint of them."""
        try:
            written.result()
            if collectives.is_main():
                folders.commit(self._directory, step)
                folders.prune(self._directory, *self._keep, best)
        except Exception as error:
            if collectives.is_main():
                folders.sweep(self._directory)
            raise self._failure(step, error) from error

    def _join(self) -> BaseException | None:
        """Wait for the background; returns what it raised."""
        pending, self._pending = self._pending, None
        return None if pending is None else pending.exception()

    def _failure(self, step: int, error: Exception) -> CheckpointError:
        newest = max(folders.whole(self._directory), default=None)
        rest = (
            "there is none before it"
            if newest is None
            else f"re-running the command resumes from checkpoint {newest}"
        )
        return CheckpointError(
            f"checkpoint {self._directory / str(step)} could not be written: {loading.brief(error)}. Free space, or "
            f"make the directory writable; {rest}."
        )


def _open(directory: pathlib.Path) -> None:
    """Make the directory, check that it can be written, and remove what a killed run left."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
        folders.sweep(directory)
    except OSError as error:
        raise CheckpointError(
            f"checkpoints cannot be written to {directory}: {error.strerror}. Give a work directory that is writable."
        ) from error


def _saving() -> ocp.Context:
    """How checkpoints are written."""
    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = LEAST_SLICE
    return context


def _parts(state: TrainState) -> dict[str, Any]:
    counters = {name: getattr(state, name) for name in COUNTERS}
    return {"params": state.params, "opt_state": state.opt_state, "ema": state.ema, "counters": counters}
