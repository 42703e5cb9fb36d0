"""What a run finds in its work directory: its config, what it knows of its data, its weights and its evaluations."""

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from dydiff_jax import build
from dydiff_jax.evaluation import evaluate
from dydiff_jax.distributed import collectives
from dydiff_jax.config import Config, plain
from dydiff_jax.data import cache, pipeline
from dydiff_jax.training.checkpoints import manager as checkpoints
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.runs import workdir
from dydiff_jax.runs import files

#: Sections that say where and how fast a run is trained, not what it learns: it may go on with others.
HARDWARE_SECTIONS = ("mesh", "input")

#: Sections that change neither data nor weights: a trained run can be evaluated with others.
EVALUATION_SECTIONS = ("evaluation", "scores", "sampler", *HARDWARE_SECTIONS)

#: Entries of metrics.json that tell one evaluation of a checkpoint from another.
EVALUATED_WITH = ("sampler", "evaluation", "score_options")

#: By how much means and deviations of the same data may differ, in deviations.
ROUNDING = 1e-6

#: Training windows over which the variance that an estimate of noise lacks is averaged.
MISSING_WINDOWS = 64


def check_trained(raw: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Refuses a config that differs from that of a run in more than the `EVALUATION_SECTIONS` sections.

    Raises:
      FileNotFoundError: there is no run in this directory.
      ValueError: it was trained with another config.
    """
    path = directory / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected the config of a trained run; train first, with --mode=train"
        )
    found, asked = json.loads(path.read_text()), json.loads(json.dumps(plain(raw)))
    lines = workdir.differences(*({k: v for k, v in c.items() if k not in EVALUATION_SECTIONS} for c in (found, asked)))
    if lines:
        raise ValueError(f"{path}: this run was trained with another config:\n  " + "\n  ".join(lines))


def data_card(config: Config, splits: pipeline.Splits) -> build.DataCard:
    """What a forecast must know of the data, from the training part alone."""
    mean, std = pipeline.statistics(splits.train, "speed" if config.codec.name == "speed" else "channel")
    trajectories, example = splits.train.trajectories, splits.train[0]
    return build.DataCard(
        fields=trajectories.fields,
        unit=trajectories.unit,
        interval=trajectories.interval,
        time_unit=trajectories.time_unit,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        grid=example.frames.shape[1:3],
        forcings=0 if example.forcings is None else example.forcings.shape[-1],
        static=0 if example.static is None else example.static.shape[-1],
    )


def claim_card(directory: pathlib.Path, card: build.DataCard) -> build.DataCard:
    """Writes statistics.json, or checks that the data are those that the run began with.

    Returns:
      The card in the file. Sums that another computer adds up differ in their last digits: one of them must hold
      for all processes, as it is compiled into their common program, and for the whole of a run.

    Raises:
      ValueError: the data have other statistics than those of the run.
    """
    path = directory / "statistics.json"
    collectives.on_main(lambda: path.exists() or files.write_text(path, card.to_json()))
    found = build.DataCard.read(path)
    if len(found.mean) == len(card.mean):
        apart = np.abs(np.subtract((found.mean, found.std), (card.mean, card.std)))
        if np.all(apart <= ROUNDING * np.asarray(card.std)):
            card = dataclasses.replace(card, mean=found.mean, std=found.std)
    lines = workdir.differences(json.loads(found.to_json()), json.loads(card.to_json()))
    if lines:
        raise ValueError(f"{path}: these are not the data that the run began with:\n  " + "\n  ".join(lines))
    return found


def load_ema(experiment: build.Experiment, mesh: Mesh, directory: pathlib.Path) -> tuple[Any, int]:
    """The averaged weights of the newest checkpoint, on the mesh, and its step."""
    shapes = jax.eval_shape(experiment.init, jax.random.key(0))
    shardings = meshes.state_shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    return checkpoints.load_ema(directory / "checkpoints", abstract)


def missing_variance(
    experiment: build.Experiment, params: Any, mesh: Mesh, train: pipeline.Windows
) -> tuple[float, ...]:
    """What `Experiment.missing_variance` measures on training windows, for each channel."""
    batch = pipeline.select(train, min(MISSING_WINDOWS, len(train))).batch()
    with jax.set_mesh(mesh):
        key = jax.random.key(experiment.config.evaluation.seed)
        return tuple(collectives.gather_to_host(jax.jit(experiment.missing_variance)(params, batch, key)).tolist())


def training_cost(directory: pathlib.Path) -> dict[str, float]:
    """Seconds of all steps, their compilation among them, and the median rate between two lines of metrics.jsonl."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    steps = np.diff([0, *(line["step"] for line in lines)])
    rates = np.array([line["steps_per_second"] for line in lines])
    return {"training_seconds": float(np.sum(steps / rates)), "steps_per_second": float(np.median(rates))}


def fingerprint(config: dict[str, Any]) -> str:
    """The fingerprint of a config: digits that change with all of a config but the `EVALUATION_SECTIONS` sections."""
    return files.fingerprint({key: value for key, value in config.items() if key not in EVALUATION_SECTIONS})


def evaluation_folder(directory: pathlib.Path, header: dict[str, Any]) -> pathlib.Path:
    """eval/step_N, or the first of step_N-2, step_N-3 ... that does not hold an evaluation with other options."""
    for number in itertools.count(1):
        folder = directory / "eval" / (f"step_{header['step']}" + (f"-{number}" if number > 1 else ""))
        if not is_done(folder):
            return folder
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if all(found[name] == json.loads(json.dumps(header[name])) for name in EVALUATED_WITH):
            return folder


def is_done(folder: pathlib.Path) -> bool:
    """Whether a folder holds a whole evaluation."""
    return (folder / evaluate.TABLE).exists()
