"""Stages that several runs would train alike, trained once."""

import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from dydiff_jax import build
from dydiff_jax.distributed import collectives
from dydiff_jax.runs import directory as run_directory
from dydiff_jax.runs import scoring
from dydiff_jax.training import fingerprints
from dydiff_jax.training.checkpoints import folders, loading
from dydiff_jax.training.loop import checkpoint_directory


def take_over(raw: Any, directory: pathlib.Path, others: Sequence[pathlib.Path]) -> list[str]:
    """Copy the finished stages of other runs that a run would train to the same weights, before it is trained.

    Stages are the same where their fingerprints are, which hold the data, the recipe with its seed and the stages
    that are needed. A stage that has a source or a checkpoint of its own is left alone, and so is a run that begins
    with the weights of another.

    Args:
      raw: the config of the run.
      directory: of the run; it need not be there.
      others: directories of runs.

    Returns:
      The names of the stages that were copied.

    Raises:
      ValueError: the directory holds another config.
    """
    config = build.load(raw)
    if config.initial is not None:
        return []
    sections, copied, known = scoring.sections(config), [], {}
    for stage in build.build(config, build.spec_card(config)).stages:
        if stage.source is not None or not known.keys() >= set(stage.needs):
            break
        own, step = checkpoint_directory(directory, stage.name), stage.recipe.train.steps
        if loading.newest_step(own) is None:
            digits = fingerprints.fingerprint(stage, sections, {name: known[name] for name in stage.needs})
            folders_of_others = [checkpoint_directory(other, stage.name) for other in others]
            found = [folder for folder in folders_of_others if _holds(folder, step, digits)]
            if not found:
                break
            run_directory.create_or_verify(directory, config.plain)
            collectives.on_main(lambda source=found[0], own=own, step=step: _copy(source, own, step))
            collectives.print_main(f"stage {stage.name}: that of {found[0].parents[1]}, copied")
            copied.append(stage.name)
        known[stage.name] = fingerprints.identity(own)
    return copied


def _holds(folder: pathlib.Path, step: int, digits: str) -> bool:
    return loading.newest_step(folder) == step and loading.fingerprint_of(folder / str(step)) == digits


def _copy(source: pathlib.Path, own: pathlib.Path, step: int) -> None:
    """The copy appears whole, by a rename; its files are those that the manifest names."""
    shutil.rmtree(folders.partial(own, step), ignore_errors=True)
    shutil.copytree(source / str(step), folders.partial(own, step))
    folders.partial(own, step).rename(own / str(step))
