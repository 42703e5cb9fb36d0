"""The directory of a stage's checkpoints as files: which are valid, which are kept, what was left behind.

``N`` is a checkpoint after N steps. It appears by a rename, when all its files and its manifest are there.
``N.partial`` is being written, ``N.removed`` is being deleted: a killed run leaves them, and the next one removes them.
``N.damaged`` did not agree with its manifest and was quarantined.
"""

import itertools
import pathlib
import re
import shutil

from dydiff_jax.training.checkpoints import manifest

_LEFTOVER = re.compile(r"\d+\.(partial|removed|orbax-checkpoint-tmp)")


def steps(directory: pathlib.Path) -> list[int]:
    """The steps of all checkpoints, valid or not, ascending."""
    return sorted(int(path.name) for path in directory.glob("*") if re.fullmatch(r"\d+", path.name))


def whole(directory: pathlib.Path) -> list[int]:
    """The steps of the checkpoints that have a manifest, ascending."""
    return [step for step in steps(directory) if (directory / str(step) / manifest.NAME).exists()]


def partial(directory: pathlib.Path, step: int) -> pathlib.Path:
    """Where a checkpoint is written before it is whole."""
    return directory / f"{step}.partial"


def newest_valid(
    directory: pathlib.Path, part: str | None = None
) -> tuple[int | None, list[tuple[int, str]]]:
    """The newest checkpoint that agrees with its manifest, and what is wrong with each newer one, newest first.

    With ``part`` only this subfolder is compared. Safe while another process saves and removes checkpoints.
    """
    damaged: dict[int, str] = {}
    while untried := [step for step in steps(directory) if step not in damaged]:
        folder = directory / str(untried[-1])
        try:
            manifest.verify(folder, part)
            return untried[-1], list(damaged.items())
        except ValueError as error:
            if folder.exists():  # else the run that trains has removed it in the meantime
                damaged[untried[-1]] = str(error)
    return None, list(damaged.items())


def commit(directory: pathlib.Path, step: int) -> None:
    """Make a checkpoint of what was written for it; an older one of the same step gives way."""
    manifest.write(partial(directory, step))
    if (directory / str(step)).exists():
        _remove(directory / str(step))
    partial(directory, step).rename(directory / str(step))


def prune(directory: pathlib.Path, keep_last: int, keep_every: int | None, best: int | None) -> None:
    """Remove all but the ``keep_last`` newest checkpoints, those whose step ``keep_every`` divides, and ``best``."""
    for step in whole(directory)[:-keep_last]:
        if (keep_every is None or step % keep_every) and step != best:
            _remove(directory / str(step))


def _remove(folder: pathlib.Path) -> None:
    """Rename first: what is half deleted has no checkpoint's name."""
    removed = folder.with_name(f"{folder.name}.removed")
    folder.rename(removed)
    shutil.rmtree(removed)


def sweep(directory: pathlib.Path) -> None:
    """Remove what was half written or half deleted."""
    for path in directory.iterdir():
        if _LEFTOVER.match(path.name):
            shutil.rmtree(path, ignore_errors=True)


def quarantine(directory: pathlib.Path, step: int) -> str:
    """Rename a damaged checkpoint; returns its new name, the first that is free of N.damaged, N.damaged-2, ..."""
    names = (f"{step}.damaged{f'-{n}' if n > 1 else ''}" for n in itertools.count(1))
    name = next(name for name in names if not (directory / name).exists())
    (directory / str(step)).rename(directory / name)
    return name


def quarantined(directory: pathlib.Path) -> list[str]:
    """The names of the quarantined checkpoints."""
    return sorted(path.name for path in directory.glob("*.damaged*"))
