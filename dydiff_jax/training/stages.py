"""The stages of a run in order: each is loaded from a source, loaded because it is finished, or trained."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import Mesh

from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.system import Examples, Stage, Weights
from dydiff_jax.training import fingerprints, loop
from dydiff_jax.training.checkpoints import loading
from dydiff_jax.training.fingerprints import Sections
from dydiff_jax.types import Params


def numbered(stages: Sequence[Stage]) -> list[Stage]:
    """The stages with their numbers in their recipes, so that each has keys of its own.

    Raises:
      ValueError: two have one name, or one needs a stage that does not come before it.
    """
    known: list[str] = []
    for stage in stages:
        if stage.name in known:
            raise ValueError(f"stage {stage.name}: expected a name of its own, found a second one; rename it")
        for name in stage.needs:
            if name not in known:
                raise ValueError(
                    f"stage {stage.name}: needs {name}: expected one of the stages before it, {known}"
                )
        known.append(stage.name)
    return [
        dataclasses.replace(stage, recipe=stage.recipe.folded(number)) for number, stage in enumerate(stages)
    ]


def check_sources(stages: Sequence[Stage], sections: Sections, workdir: pathlib.Path) -> None:
    """Refuse the sources that `train_stages` would refuse, before data are opened.

    Raises:
      as `fingerprints.open_source`.
    """
    known: dict[str, dict[str, Any]] = {}
    for stage in numbered(stages):
        if stage.source is not None:
            needs = {name: known[name] for name in stage.needs if name in known}
            known[stage.name] = fingerprints.check_source(stage, sections, needs, workdir)


def train_stages(
    stages: Sequence[Stage],
    examples_of: Callable[[Stage], Examples],
    session: loop.Session,
    sections: Sections,
    validation: Callable[[Stage, Weights], loop.Validate | None] | None = None,
    initial: pathlib.Path | None = None,
) -> dict[str, Params]:
    """Train a run, resuming in its first unfinished stage.

    A stage is finished when its last checkpoint has ``recipe.train.steps`` steps.

    Args:
      stages: in order; those of a learned codec first.
      examples_of: the batches of a stage.
      session: devices and work directory.
      sections: the config.
      validation: maps a stage and the weights of those before it to what scores its EMA, or None.
      initial: work directory of another run; a stage that begins, and that this run has trained, begins with its EMA.

    Returns:
      {stage: its EMA}, each on the mesh by the rules of its stage.

    Raises:
      ValueError: a checkpoint or a source is of another configuration, other data or other weights.
      and what `loop.train` and `fingerprints.open_source` raise.
    """
    weights: dict[str, Params] = {}
    identities: dict[str, dict[str, Any]] = {}
    for stage in numbered(stages):
        needs = {name: identities[name] for name in stage.needs}
        if stage.source is not None:
            weights[stage.name], identities[stage.name] = fingerprints.open_source(
                stage, sections, needs, session.mesh, session.workdir
            )
            continue
        digits = fingerprints.fingerprint(stage, sections, needs)
        ema = _finished(stage, digits, session)
        if ema is None:
            frozen = {name: weights[name] for name in stage.needs}
            validate = None if validation is None else validation(stage, weights)
            examples = examples_of(stage)
            first = None if initial is None else _initial(stage, initial, session)
            trained = loop.train(
                stage, frozen, examples, session, fingerprint=digits, initial=first, validate=validate
            )
            ema = trained.ema
            session = session._replace(began=None)
        weights[stage.name] = ema
        identities[stage.name] = fingerprints.identity(session.checkpoints(stage.name))
    return weights


def load_stages(
    stages: Sequence[Stage], mesh: Mesh, workdir: pathlib.Path, sections: Sections, step: int | None = None
) -> tuple[dict[str, Params], int]:
    """Load the weights of a run without training: safe while its last stage is being trained.

    Args:
      stages: in order; for what the stage i needs alone, ``stages[:i]``.
      mesh: the devices.
      workdir: of the run.
      sections: the config.
      step: which checkpoint of the last stage, such as its `loading.best_step`; the newest by default.

    Returns:
      {stage: its EMA}, and the step of the last stage; 0 without stages.

    Raises:
      FileNotFoundError: a stage has no checkpoint.
      ValueError: one is damaged, does not fit, or its source is not that of the run.
    """
    weights: dict[str, Params] = {}
    identities: dict[str, dict[str, Any]] = {}
    checked = {name for stage in stages if stage.source is not None for name in stage.needs}
    done = 0
    for number, stage in enumerate(numbered(stages)):
        if stage.source is not None:
            needs = {name: identities[name] for name in stage.needs}
            weights[stage.name], identities[stage.name] = fingerprints.open_source(
                stage, sections, needs, mesh, workdir
            )
            done = identities[stage.name]["step"]
            continue
        directory = loop.checkpoint_directory(workdir, stage.name)
        wanted = step if number == len(stages) - 1 else None
        weights[stage.name], done = loading.load_ema(directory, _abstract(stage, mesh), wanted)
        if stage.name in checked:
            identities[stage.name] = fingerprints.identity(directory)
    return weights, done


def _initial(stage: Stage, source: pathlib.Path, session: loop.Session) -> Params | None:
    """The EMA of the same stage of another run, for a stage that begins; None for one that has begun.

    Which weights a stage began with is kept in ``stages.json``; others are refused when it resumes.
    """
    directory = loop.checkpoint_directory(source, stage.name)
    begun = loading.newest_step(session.checkpoints(stage.name)) is not None
    if loading.newest_step(directory) is None:
        if begun:
            return None
        raise FileNotFoundError(
            f"config.initial: {directory}: expected a checkpoint of stage {stage.name}, found none; name the --workdir "
            "of a run that has trained it"
        )
    fingerprints.remember(f"initial {stage.name}", source, fingerprints.identity(directory), session.workdir)
    return None if begun else loading.load_ema(directory, _abstract(stage, session.mesh))[0]


def _finished(stage: Stage, digits: str, session: loop.Session) -> Params | None:
    """The EMA of a stage that is finished, else None."""
    directory = session.checkpoints(stage.name)
    if loading.newest_step(directory) != stage.recipe.train.steps:
        return None
    loading.check_fingerprint(directory / str(stage.recipe.train.steps), digits)
    return loading.load_ema(directory, _abstract(stage, session.mesh))[0]


def _abstract(stage: Stage, mesh: Mesh) -> Params:
    return meshes.abstract_params(stage.objective.init, mesh, stage.objective.rules)
