"""Checkpoints: written in the background, whole or not at all, compared with a manifest, readable on any mesh.

A checkpoint is a directory ``checkpoints/N``, N the steps done, of four parts that are readable one by one
(``params``, ``opt_state``, ``ema`` and ``counters``), notes and a configuration's hash in its metadata, and
``manifest.json``. It gets its name when all of that is on the disk. One that does not agree with its manifest is
set aside, and the one before it is used.

Every method is called by all processes of a run, in the same order.
"""

import os
import pathlib
import re
import tempfile
from concurrent import futures
from typing import Any

from orbax.checkpoint import v1 as ocp

from dydiff_jax.distributed import collectives
from dydiff_jax.training.checkpoints import fit, folders, manifest
from dydiff_jax.training.logging import message
from dydiff_jax.training.state import Params, TrainState

COUNTERS = ("step", "skipped", "bad_steps")

#: Copies of a leaf share the work of writing it where each has as many bytes to write: a slice is a program of its own.
LEAST_SLICE = 2**20


class CheckpointError(OSError):
    """A checkpoint could not be written; those before it are untouched."""


class Checkpoints:
    """The checkpoints of a run that is being trained; on leaving its context it waits for the last one.

    Opening removes what a killed run left half-written, so only the run that trains may open them; others use
    `load_ema`.
    """

    def __init__(
        self, directory: pathlib.Path, keep_last: int, keep_every: int | None, config_hash: str = ""
    ):
        """Opens a directory, which is made if need be.

        Args:
          directory: the run's ``checkpoints``.
          keep_last: how many of the newest checkpoints are kept.
          keep_every: those whose step it divides are kept too.
          config_hash: of the configuration; a checkpoint with another one is refused.

        Raises:
          CheckpointError: the directory cannot be made or written.
        """
        self._directory = pathlib.Path(directory).absolute()
        self._keep = keep_last, keep_every
        self._config_hash = config_hash
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending: futures.Future[None] | None = None
        collectives.on_main(lambda: _open(self._directory))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        try:
            if kind is None or issubclass(kind, SystemExit):
                self.wait()
            elif (failure := self._join()) is not None:  # perhaps this process alone failed: no collective
                message(str(failure))
        finally:
            self._thread.shutdown()

    def save(self, step: int, state: TrainState, notes: dict[str, Any]) -> None:
        """Starts to write a checkpoint; returns once the state may be donated. Waits for the one before.

        Args:
          step: steps done.
          state: the state after them.
          notes: JSON that belongs to the checkpoint; `restore` returns it.

        Raises:
          CheckpointError: this checkpoint, or the one before, could not be written.
        """
        self.wait()
        try:
            with _saving():
                written = ocp.save_checkpointables_async(
                    folders.partial(self._directory, step),
                    _parts(state),
                    custom_metadata={"notes": notes, "config_hash": self._config_hash},
                )
        except Exception as error:  # orbax and tensorstore raise whatever their layers raise
            raise self._failure(step, error) from error
        self._pending = self._thread.submit(self._finish, step, written)

    def wait(self) -> None:
        """Waits until the last checkpoint is whole.

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
        """Loads the newest sound checkpoint onto the shardings of ``abstract``, and its notes.

        Damaged ones that are newer are named in a message and set aside.

        Returns:
          The state and the notes; None if the run has not written a checkpoint.

        Raises:
          ValueError: no checkpoint is sound, or the newest sound one has another configuration, or a leaf of
            another shape or dtype, or one that is missing or has no place.
        """
        self.wait()
        step = _choose(self._directory, part=None, repair=True)
        if step is None:
            return None
        folder = self._directory / str(step)
        found = _metadata(folder).custom_metadata
        if found["config_hash"] != self._config_hash:
            raise ValueError(
                f"checkpoint {folder} was made with another configuration: expected the hash "
                f"{self._config_hash!r}, found {found['config_hash']!r}. Use the configuration in "
                f"{self._directory.parent / 'config.json'}, or another work directory."
            )
        parts = _load(folder, _parts(abstract))
        return TrainState(**parts.pop("counters"), **parts), found["notes"]

    def _finish(self, step: int, written: ocp.AsyncResponse[None]) -> None:
        """In the background: waits for the files, and makes a checkpoint of them."""
        try:
            written.result()
            if collectives.is_main():
                folders.commit(self._directory, step)
                folders.prune(self._directory, *self._keep)
        except Exception as error:
            if collectives.is_main():
                folders.sweep(self._directory)
            raise self._failure(step, error) from error

    def _join(self) -> BaseException | None:
        """Waits for the background; returns what it raised."""
        pending, self._pending = self._pending, None
        return None if pending is None else pending.exception()

    def _failure(self, step: int, error: Exception) -> CheckpointError:
        newest = max(folders.whole(self._directory), default=None)
        rest = (
            "there is none before it"
            if newest is None
            else f"the same command goes on from checkpoint {newest}"
        )
        return CheckpointError(
            f"checkpoint {self._directory / str(step)} could not be written: {_brief(error)}. Free space, or see "
            f"that the directory can be written to; {rest}."
        )


def load_ema(directory: pathlib.Path, abstract: Params, step: int | None = None) -> tuple[Params, int]:
    """Loads only the averaged parameters, without touching anything: safe while the run is training.

    Args:
      directory: the run's ``checkpoints``.
      abstract: shapes, dtypes and shardings of the parameters.
      step: which checkpoint; by default the newest whose averaged parameters are sound.

    Returns:
      The averaged parameters and the step of the checkpoint.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: the checkpoint is damaged or does not fit.
    """
    directory = pathlib.Path(directory).absolute()
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: expected a directory of checkpoints; train first")
    if step is None:
        step = _choose(directory, part="ema", repair=False)
        if step is None:
            raise FileNotFoundError(f"{directory}: expected a checkpoint, found none; train first")
    else:
        _check_step(directory, step)
    return _load(directory / str(step), {"ema": abstract})["ema"], step


def _check_step(directory: pathlib.Path, step: int) -> None:
    """Raises, on every process, what `load_ema` says of a checkpoint that it was asked for."""

    def look() -> tuple[list[int], str | None]:
        try:
            manifest.verify(directory / str(step), "ema")
            return [step], None
        except ValueError as error:
            return folders.steps(directory), str(error)

    steps, wrong = collectives.on_main(look)
    if step not in steps:
        raise FileNotFoundError(f"{directory}: expected checkpoint {step}, found {steps}")
    if wrong is not None:
        raise ValueError(f"checkpoint {directory / str(step)} is damaged: {wrong}")


def _open(directory: pathlib.Path) -> None:
    """Makes the directory, sees that it can be written, and removes what a killed run left."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
        folders.sweep(directory)
    except OSError as error:
        raise CheckpointError(
            f"checkpoints cannot be written to {directory}: {error.strerror}. Give a work directory that can."
        ) from error


def _choose(directory: pathlib.Path, part: str | None, repair: bool) -> int | None:
    """The newest sound checkpoint, the same on every process; with ``repair``, newer ones are set aside.

    Raises:
      ValueError: there are checkpoints, and none is sound.
    """

    def look() -> tuple[int | None, list[tuple[int, str]], list[str]]:
        step, damaged = folders.newest_valid(directory, part)
        if step is None:
            return step, damaged, folders.quarantined(directory)
        return step, damaged, [folders.quarantine(directory, bad) for bad, _ in damaged] if repair else []

    step, damaged, aside = collectives.on_main(look)
    if step is None and (damaged or aside):
        lines = [f"  {bad}: {wrong}" for bad, wrong in damaged] + [
            f"  {name}: set aside before" for name in aside
        ]
        listing = "\n".join(lines)
        raise ValueError(
            f"no checkpoint in {directory} is sound:\n{listing}\nPut these files back from a copy; or, to start "
            "anew, move these directories away or use another work directory."
        )
    for number, (bad, wrong) in enumerate(damaged):
        kept = f"it is kept as {aside[number]}, and " if repair else ""
        message(f"checkpoint {directory / str(bad)} is damaged: {wrong}; {kept}checkpoint {step} is used")
    return step


def _saving() -> ocp.Context:
    """How checkpoints are written."""
    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = LEAST_SLICE
    return context


def _parts(state: TrainState) -> dict[str, Any]:
    counters = {name: getattr(state, name) for name in COUNTERS}
    return {"params": state.params, "opt_state": state.opt_state, "ema": state.ema, "counters": counters}


def _metadata(folder: pathlib.Path) -> ocp.CheckpointMetadata:
    try:
        return ocp.checkpointables_metadata(folder)
    except Exception as error:  # orbax and tensorstore raise whatever their layers raise
        raise ValueError(_unreadable(folder, error)) from error


def _load(folder: pathlib.Path, abstract: dict[str, Any]) -> dict[str, Any]:
    found = _metadata(folder).metadata
    for name, expected in abstract.items():
        if found.get(name) is None:
            raise ValueError(_unreadable(folder / name, "missing"))
        fit.check(folder, name, found[name], expected)
    try:
        return ocp.load_checkpointables(folder, abstract)
    except Exception as error:  # as above
        raise ValueError(_unreadable(folder, error)) from error


def _unreadable(path: pathlib.Path, reason: Any) -> str:
    return (
        f"checkpoint {path} agrees with its manifest, and yet cannot be read. Is it of another version? Move the "
        "directory of its step away, and the same command goes on from the checkpoint before it. The reason: "
        f"{_brief(reason)}"
    )


def _brief(reason: Any) -> str:
    """What the operating system said, where tensorstore wraps it; else at most 300 characters."""
    code = re.search(r"os_error_code='(\d+)'", str(reason))
    return os.strerror(int(code[1])) if code else str(reason)[:300] or type(reason).__name__
