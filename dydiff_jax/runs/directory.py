"""The work directory of a run: one config that a later start must match, data, weights, calibration, cost."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dydiff_jax.build import Run
from dydiff_jax.data.card import DataCard
from dydiff_jax.distributed import collectives
from dydiff_jax.runs import files
from dydiff_jax.system import Stage, Weights
from dydiff_jax.systems import SYSTEMS
from dydiff_jax.types import Batch, Params

#: Sections that say where and how fast a run is trained, not what it learns: a run may resume with others.
HARDWARE_SECTIONS = ("mesh", "loader")

#: Sections that change neither data nor weights: a trained run can be evaluated with others.
EVALUATION_SECTIONS = ("evaluation", "scores", *HARDWARE_SECTIONS)

#: By how much means and deviations of the same data may differ, in deviations.
ROUNDING = 1e-6


def free_keys(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of a config, SECTION or SECTION.KEY, that a trained run can be evaluated with other values of."""
    system = config["system"]["name"]
    free = SYSTEMS[system].options.free if system in SYSTEMS else ()
    return (*EVALUATION_SECTIONS, *(f"system.{key}" for key in free), *moved_keys(config))


def moved_keys(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys that only say where a run lies that this one needs: it is known by its contents."""
    return ("initial", *(f"stages.{name}.source" for name in config.get("stages", {})))


def without(config: Mapping[str, Any], keys: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """A config without some of its keys, each given as SECTION or SECTION.KEY."""
    kept = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name not in keys:
            kept[key] = without(value, keys, f"{name}.") if isinstance(value, Mapping) else value
    return kept


def create_or_verify(directory: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Make the work directory and write ``config.json``, or check the one that is there.

    The directory is one that all processes of the run see.

    Raises:
      OSError: the directory cannot be made or written.
      ValueError: the directory holds another config (each difference is shown), a ``config.json`` that is not JSON,
        or checkpoints without a config.
    """
    collectives.on_main(lambda: _create_or_verify(directory, config))
    if not (directory / "config.json").exists():
        raise FileNotFoundError(
            f"{directory}: this process does not see the config.json that process 0 has written; give a work "
            "directory that all hosts share, such as a mounted bucket"
        )


def _create_or_verify(directory: pathlib.Path, config: Mapping[str, Any]) -> None:
    path = directory / "config.json"
    if path.exists():
        lines = _other_settings(path, config, (*HARDWARE_SECTIONS, *moved_keys(config)))
        if lines:
            raise ValueError(
                f"{path} holds another config:\n  "
                + "\n  ".join(lines)
                + "\nUse another work directory, or run with the config of this one to resume it."
            )
        return
    if (directory / "checkpoints").exists():
        raise ValueError(
            f"{directory} holds checkpoints but no config.json: restore the file or use another directory"
        )
    directory.mkdir(parents=True, exist_ok=True)
    files.write_json(path, config)


def check_trained(directory: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Refuse a config that differs from that of a run in more than what an evaluation may change.

    Raises:
      FileNotFoundError: there is no run in this directory.
      ValueError: it was trained with another config.
    """
    path = directory / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected the config of a trained run; train first, with --mode=train"
        )
    lines = _other_settings(path, config, free_keys(config))
    if lines:
        raise ValueError(f"{path}: this run was trained with another config:\n  " + "\n  ".join(lines))


def read_config(directory: pathlib.Path) -> dict[str, Any]:
    """The contents of ``config.json``.

    Raises:
      ValueError: it is not JSON.
    """
    path = directory / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): use another work directory") from error


def _other_settings(path: pathlib.Path, config: Mapping[str, Any], free: Sequence[str]) -> list[str]:
    found, asked = read_config(path.parent), json.loads(json.dumps(config))
    return differences(without(found, free), without(asked, free))


def differences(found: Any, asked: Any, prefix: str = "") -> list[str]:
    """What differs between two JSON values, a line for each key: ``train.steps: 64 there, 128 asked for``."""
    if isinstance(found, dict) and isinstance(asked, dict):
        lines = []
        for key in sorted(found.keys() | asked.keys()):
            name = f"{prefix}.{key}" if prefix else key
            if key not in asked:
                lines.append(f"{name}: {json.dumps(found[key])} there, absent now")
            elif key not in found:
                lines.append(f"{name}: absent there, {json.dumps(asked[key])} asked for")
            else:
                lines += differences(found[key], asked[key], name)
        return lines
    return [] if found == asked else [f"{prefix}: {json.dumps(found)} there, {json.dumps(asked)} asked for"]


def keep_card(directory: pathlib.Path, card: DataCard) -> DataCard:
    """Write statistics.json, or check that the data are those that the run began with.

    Returns:
      The card in the file. Sums that another computer adds up differ in their last digits: one of them must hold
      for all processes, as it is compiled into their common program, and for the whole of a run.

    Raises:
      ValueError: the data have other statistics than those of the run.
    """
    path = directory / "statistics.json"
    collectives.on_main(lambda: path.exists() or files.write_json(path, card.to_json()))
    found = DataCard.read(path)
    lines = _other_data(found, card)
    if lines:
        raise ValueError(f"{path}: these are not the data that the run began with:\n  " + "\n  ".join(lines))
    return found


def check_source_data(stage: Stage, card: DataCard, measured: bool = True) -> None:
    """Refuse to load a stage from a run whose frames were others than those of this one.

    The config may be the same: what lies in a folder may have changed since.

    Args:
      stage: with its source.
      card: of this run.
      measured: whether its statistics are; else frames, fields and static fields alone are compared.

    Raises:
      FileNotFoundError: the source has no statistics.json.
      ValueError: its frames are of another grid, or have other fields, static fields or statistics.
    """
    assert stage.source is not None  # asked for stages with a source alone
    found = DataCard.read(stage.source / "statistics.json")
    lines = _other_data(found, card if measured else DataCard(card.spec, found.mean, found.std))
    if lines:
        raise ValueError(
            f"stage {stage.name}: source {stage.source}: foreign: expected the data of this run, found others: "
            f"{'; '.join(lines)}; name another --config.stages.{stage.name}.source, or train the stage on these data"
        )


def _other_data(found: DataCard, card: DataCard) -> list[str]:
    """What differs between the data that a run began with and those of now, sums rounded in another order apart."""
    if len(found.mean) == len(card.mean):
        apart = np.abs(np.subtract((found.mean, found.std), (card.mean, card.std)))
        if np.all(apart <= ROUNDING * np.asarray(card.std)):
            card = DataCard(card.spec, found.mean, found.std)
    return differences(*(json.loads(json.dumps(each.to_json())) for each in (found, card)))


def calibration(
    directory: pathlib.Path, run: Run, mesh: Mesh, weights: Weights, identity: Any, batch: Any
) -> Params:
    """What `System.calibrate` measured, from the file beside the weights, or measured now and kept there.

    Args:
      directory: of the run.
      run: the system.
      mesh: the device mesh.
      weights: {stage: its EMA}.
      identity: of the last stage, as JSON: with the options of the system it names the file.
      batch: makes the training windows to measure on; None where no data may be opened.

    Raises:
      FileNotFoundError: nothing is kept, and no data may be opened.
    """
    key = jax.random.key(run.config.seed)
    shape = calibration_shape(run, weights, key)
    if not jax.tree.leaves(shape):
        return shape
    name = files.fingerprint({"weights": identity, "system": run.config.plain["system"]})
    path = directory / "calibration" / f"{name}.npz"
    if not collectives.on_main(path.exists):
        if batch is None:
            raise FileNotFoundError(
                f"{path}: expected what this system measures after training with these options of config.system; run "
                "--mode=eval with them once, which measures it"
            )
        with jax.set_mesh(mesh):
            measured = jax.jit(run.system.calibrate)(weights, batch(), key)
        leaves = [collectives.gather_to_host(leaf) for leaf in jax.tree.leaves(measured)]

        def write() -> None:
            path.parent.mkdir(exist_ok=True)
            files.write_npz(path, {str(number): leaf for number, leaf in enumerate(leaves)})

        collectives.on_main(write)
    with np.load(path) as found:
        leaves = [found[str(number)] for number in range(len(found.files))]
    return jax.tree.unflatten(jax.tree.structure(shape), leaves)


def calibration_shape(run: Run, weights: Weights, key: jax.Array) -> Params:
    """The shape of what a system measures after training, without measuring it; () as a rule."""
    window, spec = run.config.window, run.card.spec
    f32 = lambda *shape: jax.ShapeDtypeStruct((1, *shape), np.float32)  # noqa: E731
    batch = Batch(
        f32(window.num_frames, *spec.frame_shape),
        forcings=f32(window.num_frames, len(spec.forcings)) if spec.forcings else None,
        static=f32(*spec.frame_shape[:-1], len(spec.static)) if spec.static else None,
    )
    return jax.eval_shape(run.system.calibrate, weights, batch, key)


class Trained(NamedTuple):
    """What the training of a stage took, from metrics.jsonl.

    Attributes:
      steps: done.
      seconds: of all steps, compilation among them.
      steps_per_second: the median.
    """

    steps: int
    seconds: float
    steps_per_second: float


def trained(directory: pathlib.Path) -> dict[str, Trained]:
    """{stage: what its training took} of the stages that a run has trained itself, and not loaded from another."""
    path = directory / "metrics.jsonl"
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line for line in lines if "steps_per_second" in line]  # those of training, not of validation
    found = {}
    for stage in dict.fromkeys(line["stage"] for line in lines):
        own = [line for line in lines if line["stage"] == stage]
        steps, rates = [line["step"] for line in own], np.array([line["steps_per_second"] for line in own])
        seconds = float(np.sum(np.diff([0, *steps]) / rates))
        found[stage] = Trained(steps[-1], seconds, float(np.median(rates)))
    return found
