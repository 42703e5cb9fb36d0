"""Reading checkpoints: which one is valid, what is in it. Nothing here writes but `choose` with ``repair``."""

import os
import pathlib
import re
from typing import Any

from orbax.checkpoint import v1 as ocp

from dydiff_jax.distributed import collectives
from dydiff_jax.training.checkpoints import fit, folders, manifest
from dydiff_jax.training.logging import message
from dydiff_jax.types import Params


def load_ema(directory: pathlib.Path, abstract: Params, step: int | None = None) -> tuple[Params, int]:
    """Load only the EMA of the parameters, and write nothing: safe while the run is training.

    Args:
      directory: of a stage, ``checkpoints/STAGE``.
      abstract: shapes, dtypes and shardings of the parameters.
      step: which checkpoint; by default the newest whose EMA is valid.

    Returns:
      The EMA and the step of the checkpoint.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: the checkpoint is damaged or does not fit.
    """
    directory = pathlib.Path(directory).absolute()
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: expected a directory of checkpoints; train first")
    if step is None:
        step = choose(directory, part="ema", repair=False)
        if step is None:
            raise FileNotFoundError(f"{directory}: expected a checkpoint, found none; train first")
    else:
        _check_step(directory, step)
    return load_parts(directory / str(step), {"ema": abstract})["ema"], step


def newest_step(directory: pathlib.Path) -> int | None:
    """The newest checkpoint whose EMA is valid; None if there is none."""
    directory = pathlib.Path(directory).absolute()
    return collectives.on_main(lambda: folders.newest_valid(directory, "ema")[0])


def best_step(directory: pathlib.Path) -> int | None:
    """The step with the lowest validation score that the newest valid checkpoint of a stage knows of.

    Returns:
      Its number; None without a checkpoint or a score. With ``keep_best`` its checkpoint is kept.
    """
    directory = pathlib.Path(directory).absolute()
    step = newest_step(directory)
    return None if step is None else (notes_of(directory / str(step)).get("best") or {}).get("step")


def notes_of(folder: pathlib.Path) -> dict[str, Any]:
    """The notes of a checkpoint ``checkpoints/STAGE/N``."""
    return metadata(folder).custom_metadata["notes"]


def fingerprint_of(folder: pathlib.Path) -> str:
    """The fingerprint of the stage that a checkpoint ``checkpoints/STAGE/N`` was made by."""
    return metadata(folder).custom_metadata["fingerprint"]


def check_fingerprint(folder: pathlib.Path, expected: str) -> None:
    """Raise ValueError for a checkpoint of another fingerprint."""
    found = fingerprint_of(folder)
    if found != expected:
        raise ValueError(
            f"checkpoint {folder} was made with another configuration, other data or other weights of an earlier "
            f"stage: expected the fingerprint {expected!r}, found {found!r}. Use the configuration that it was made "
            "with, or another work directory, or move its stage's directory away."
        )


def choose(directory: pathlib.Path, part: str | None, repair: bool) -> int | None:
    """The newest valid checkpoint, the same on every process; with ``repair``, newer ones are quarantined.

    Raises:
      ValueError: there are checkpoints, and none is valid.
    """

    def look() -> tuple[int | None, list[tuple[int, str]], list[str]]:
        step, damaged = folders.newest_valid(directory, part)
        if step is None:
            return step, damaged, folders.quarantined(directory)
        return step, damaged, [folders.quarantine(directory, bad) for bad, _ in damaged] if repair else []

    step, damaged, quarantined = collectives.on_main(look)
    if step is None and (damaged or quarantined):
        lines = [f"  {bad}: {wrong}" for bad, wrong in damaged] + [
            f"  {name}: quarantined before" for name in quarantined
        ]
        listing = "\n".join(lines)
        raise ValueError(
            f"no checkpoint in {directory} is valid:\n{listing}\nRestore these files from a copy; or, to start "
            "afresh, move these directories away or use another work directory."
        )
    for number, (bad, wrong) in enumerate(damaged):
        kept = f"it is kept as {quarantined[number]}, and " if repair else ""
        message(f"checkpoint {directory / str(bad)} is damaged: {wrong}; {kept}checkpoint {step} is used")
    return step


def metadata(folder: pathlib.Path) -> ocp.CheckpointMetadata:
    """What orbax says of a checkpoint: its notes, its fingerprint, the shapes in its parts."""
    try:
        return ocp.checkpointables_metadata(folder)
    except Exception as error:  # orbax and tensorstore raise whatever their layers raise
        raise ValueError(_unreadable(folder, error)) from error


def load_parts(folder: pathlib.Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """Load parts of a checkpoint onto the shardings of ``abstract``.

    Raises:
      ValueError: one cannot be read or does not fit.
    """
    found = metadata(folder).metadata
    for name, expected in abstract.items():
        if found.get(name) is None:
            raise ValueError(_unreadable(folder / name, "missing"))
        fit.check(folder, name, found[name], expected)
    try:
        return ocp.load_checkpointables(folder, abstract)
    except Exception as error:  # as above
        raise ValueError(_unreadable(folder, error)) from error


def brief(reason: Any) -> str:
    """What the operating system said, where tensorstore wraps it; else at most 300 characters."""
    code = re.search(r"os_error_code='(\d+)'", str(reason))
    return os.strerror(int(code[1])) if code else str(reason)[:300] or type(reason).__name__


def _check_step(directory: pathlib.Path, step: int) -> None:
    """Raise, on every process, what `load_ema` says of a checkpoint that it was asked for."""

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


def _unreadable(path: pathlib.Path, reason: Any) -> str:
    return (
        f"checkpoint {path} passes its checksums but cannot be deserialised; was it written by another orbax "
        "version? Move the directory of its step away to resume from the checkpoint before it. The reason: "
        f"{brief(reason)}"
    )
