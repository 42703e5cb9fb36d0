"""What the weights of a stage depend on, as digits; and stages that are loaded from another run.

The **fingerprint** of a stage hashes what its weights depend on: the sections of the config that it reads, the data,
its recipe, and the identities of the stages that it needs. The **identity** of a finished stage tells one training of
it from every other, wherever its files lie: a moved run directory keeps it, a retrained stage has another.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh

from dydiff_jax.distributed import collectives
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.runs import files
from dydiff_jax.system import Recipe, Stage
from dydiff_jax.training.checkpoints import folders, loading, manifest
from dydiff_jax.types import Params

#: Sections that decide what a batch is.
DATA_SECTIONS = ("data", "dataset", "window", "codec", "conditions")

#: In the work directory of a run: {stage: identity} of the stages that it loads from elsewhere.
SOURCES = "stages.json"

#: {"step": steps done, "sha256": of the manifest of its newest checkpoint, "fingerprint": of the stage}.
Identity = Mapping[str, Any]


class Sections(NamedTuple):
    """The config, and which parts of it weights depend on.

    Attributes:
      config: plain dictionaries, by section.
      data: sections that every stage depends on.
      exclude: SECTION.KEY of what changes no weights, such as the sampler.
    """

    config: Mapping[str, Any]
    data: tuple[str, ...] = DATA_SECTIONS
    exclude: tuple[str, ...] = ()

    def read_by(self, stage: Stage) -> dict[str, Any]:
        """{SECTION or SECTION.KEY: its value} of the data and of what a stage reads.

        Raises:
          ValueError: the config lacks one.
        """
        return {name: self._get(name, stage) for name in (*self.data, *stage.reads)}

    def _get(self, name: str, stage: Stage) -> Any:
        value: Any = self.config
        for key in name.split("."):
            if not isinstance(value, Mapping) or key not in value:
                raise ValueError(
                    f"stage {stage.name}: expected {name} in the config, which it reads, found none; add it, or "
                    "correct what the stage reads"
                )
            value = value[key]
        return _without(value, [e[len(name) + 1 :] for e in self.exclude if e.startswith(f"{name}.")])


def _without(value: Any, excluded: list[str]) -> Any:
    """A section without the keys K or K.L ... that are excluded."""
    if not isinstance(value, Mapping):
        return value
    return {
        key: _without(inner, [e[len(key) + 1 :] for e in excluded if e.startswith(f"{key}.")])
        for key, inner in value.items()
        if key not in excluded
    }


def fingerprint(stage: Stage, sections: Sections, needs: Mapping[str, Identity]) -> str:
    """The fingerprint of a stage.

    Args:
      stage: with its number in the recipe.
      sections: the config.
      needs: identities of the stages that it needs.
    """
    return files.fingerprint(
        {"reads": sections.read_by(stage), "recipe": _recipe(stage.recipe), "needs": dict(needs)}
    )


def _recipe(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides the weights: not how often is logged, saved or validated."""
    train = {name: getattr(recipe.train, name) for name in ("steps", "batch_size", "max_bad_steps")}
    options = {"optimizer": dataclasses.asdict(recipe.optimizer), "ema": dataclasses.asdict(recipe.ema)}
    return {**train, **options, "seed": recipe.seed, "number": recipe.number}


def identity(directory: pathlib.Path) -> dict[str, Any]:
    """The identity of a stage, from ``checkpoints/STAGE``: that of its newest checkpoint whose EMA is valid.

    Raises:
      FileNotFoundError: there is no such checkpoint.
    """
    return collectives.on_main(lambda: _newest_identity(directory))


def _newest_identity(directory: pathlib.Path) -> dict[str, Any]:
    step, _ = folders.newest_valid(directory, "ema")
    if step is None:
        raise FileNotFoundError(
            f"{directory}: expected a valid checkpoint, found none; train the stage first"
        )
    return _identity_of(directory / str(step))


def _identity_of(folder: pathlib.Path) -> dict[str, Any]:
    digits = loading.fingerprint_of(folder)
    return {"step": int(folder.name), "sha256": manifest.digest(folder), "fingerprint": digits}


def open_source(
    stage: Stage, sections: Sections, needs: Mapping[str, Identity], mesh: Mesh, workdir: pathlib.Path
) -> tuple[Params, dict[str, Any]]:
    """Load a stage from the run that ``stage.source`` names, in place of training it.

    At first use its identity is written to ``stages.json`` of this run's work directory; it must stay the same.

    Args:
      stage: what is loaded.
      sections: this run's config; the source must agree with it in what the stage reads and in the data, not in the
        recipe.
      needs: identities of the stages that it needs in this run; the source must have been trained with these.
      mesh: the devices.
      workdir: of this run.

    Returns:
      The EMA on the mesh, by the rules of the stage, and its identity.

    Raises:
      FileNotFoundError: the source holds no such stage.
      ValueError: it is unfinished, damaged, foreign or retrained.
    """
    found = check_source(stage, sections, needs, workdir)
    remember(stage.name, _source(stage), found, workdir)
    abstract = meshes.abstract_params(stage.objective.init, mesh, stage.objective.rules)
    return loading.load_ema(_directory(stage), abstract, found["step"])[0], found


def check_source(
    stage: Stage, sections: Sections, needs: Mapping[str, Identity], workdir: pathlib.Path
) -> dict[str, Any]:
    """The identity of a stage in its source, which is read and not loaded.

    Arguments and errors are those of `open_source`; of ``needs``, those that are known are compared.
    """
    found = collectives.on_main(lambda: _inspect(stage, sections, needs))
    collectives.on_main(lambda: _check_first_use(stage.name, _source(stage), found, _remembered(workdir)))
    return found


def _directory(stage: Stage) -> pathlib.Path:
    return _source(stage) / "checkpoints" / stage.name


def _source(stage: Stage) -> pathlib.Path:
    assert stage.source is not None  # asked for stages with a source alone
    return stage.source.absolute()


def _inspect(stage: Stage, sections: Sections, needs: Mapping[str, Identity]) -> dict[str, Any]:
    """The identity of the stage in its source, if it is what `open_source` expects."""
    source, directory = _source(stage), _directory(stage)
    where = f"stage {stage.name}: source {source}"
    steps = folders.steps(directory)
    if not (source / "config.json").is_file():
        raise FileNotFoundError(
            f"{where}: expected config.json of a finished run, found none; name its --workdir in "
            f"--config.stages.{stage.name}.source"
        )
    if not steps:
        others = sorted(path.name for path in directory.parent.glob("*") if path.is_dir())
        raise FileNotFoundError(
            f"{where}: expected checkpoints of this stage, found those of {others}; name a run that has trained "
            f"it in --config.stages.{stage.name}.source"
        )
    folder = directory / str(steps[-1])
    try:
        manifest.verify(folder, "ema")
    except ValueError as error:
        raise ValueError(
            f"{where}: expected a valid checkpoint {steps[-1]}, found damage: {error}; restore its files, or resume "
            "that run"
        ) from error
    total = loading.notes_of(folder)["steps"]
    if steps[-1] < total:
        raise ValueError(
            f"{where}: expected {total} steps, found {steps[-1]}: unfinished; resume that run first, with its own "
            "command"
        )
    _check_same(stage, sections, source, where)
    for name, expected in needs.items():
        if _identity_in(source, name) != expected:
            raise ValueError(
                f"{where}: expected one trained with the {name} of this run, found one trained with other weights of "
                f"it; load {name} from the same source"
            )
    return _identity_of(folder)


def _check_same(stage: Stage, sections: Sections, source: pathlib.Path, where: str) -> None:
    theirs = sections._replace(config=json.loads((source / "config.json").read_text(encoding="utf-8")))
    expected = json.loads(json.dumps(sections.read_by(stage)))
    try:
        found = theirs.read_by(stage)
    except ValueError as error:
        raise ValueError(f"{where}: foreign, its config has other sections: {error}") from error
    lines = _differences(expected, found)
    if lines:
        raise ValueError(
            f"{where}: foreign: {'; '.join(lines)}; use its values, or another --config.stages.{stage.name}.source"
        )


def _identity_in(source: pathlib.Path, stage: str) -> Any:
    """The identity of another stage of a source, trained there or loaded there from elsewhere."""
    directory = source / "checkpoints" / stage
    if folders.steps(directory):
        return _newest_identity(directory)
    path = source / SOURCES
    return json.loads(path.read_text(encoding="utf-8")).get(stage) if path.exists() else None


def _differences(expected: Any, found: Any, name: str = "") -> list[str]:
    """``SECTION.KEY: expected 1, found 2`` for each key in which two JSON values differ."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        return [
            line
            for key in sorted(expected.keys() | found.keys())
            for line in _differences(
                expected.get(key, "nothing"), found.get(key, "nothing"), f"{name}.{key}" if name else key
            )
        ]
    return [] if expected == found else [f"{name}: expected {expected}, found {found}"]


def remember(name: str, source: pathlib.Path, found: Mapping[str, Any], workdir: pathlib.Path) -> None:
    """Write the identity of another run's stage at its first use, or compare it with that of the first use.

    Args:
      name: of the stage, as ``stages.json`` of the work directory has it.
      source: the other run, for messages.
      found: the identity of its stage.
      workdir: of this run.

    Raises:
      ValueError: the stage was trained anew since.
    """
    path = workdir / SOURCES

    def act() -> None:
        known = _remembered(workdir)
        _check_first_use(name, source, found, known)
        if name not in known:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, {**known, name: found})

    collectives.on_main(act)


def _remembered(workdir: pathlib.Path) -> dict[str, Any]:
    path = workdir / SOURCES
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _check_first_use(
    name: str, source: pathlib.Path, found: Mapping[str, Any], known: Mapping[str, Any]
) -> None:
    if known.get(name, found) != found:
        raise ValueError(
            f"stage {name}: source {source}: retrained: expected the weights that this run began with, "
            f"{_short(known[name])}, found {_short(found)}; restore them, or use a new --workdir"
        )


def _short(identity: Identity) -> str:
    return f"step {identity['step']} of {identity['sha256'][:12]}"
