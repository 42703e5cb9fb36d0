"""The three things a run does: train, evaluate, forecast. Each goes from a config to files in its work directory."""

import dataclasses
import itertools
import json
import math
import pathlib
import shlex
import sys
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from dydiff_jax import build, evaluate, inputs, plots
from dydiff_jax.config import Config, plain
from dydiff_jax.data import pipeline
from dydiff_jax.training import checkpoints, loop, sharding, workdir

#: Sections that change neither data nor weights: a trained run can be evaluated with others.
FREE = ("evaluation", "scores", "sampler", "mesh")

#: Entries of metrics.json that tell one evaluation of a checkpoint from another.
EVALUATED_WITH = ("sampler", "evaluation", "score_options")

#: Windows that stand for the training part in the baselines.
TRAINING_WINDOWS = 512


def train(raw: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Trains to the last step, from the newest checkpoint where there is one, then evaluates."""
    config = build.load(raw)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.train.batch_size, mesh)
    check_regression(config)
    if (directory / "config.json").exists():
        workdir.claim(directory, json.dumps(plain(raw)))  # another config is refused before data are made
    splits = open_data(config)
    workdir.claim(directory, json.dumps(plain(raw)))
    experiment = build.build(config, claim_card(directory, data_card(config, splits)))
    batches = pipeline.TrainBatches(splits.train, config.train.batch_size, config.seed)
    task = loop.Task(experiment.init, experiment.loss, batches.rows, batches.ids)
    loop.train(task, config.train, config.optimizer, config.ema, mesh, config.seed, directory)
    score(experiment, splits, mesh, directory)


def evaluate_run(raw: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Scores the newest checkpoint of a trained run."""
    config = build.load(raw)
    check_trained(raw, directory)
    splits = open_data(config)
    experiment = build.build(config, claim_card(directory, data_card(config, splits)))
    score(experiment, splits, sharding.make_mesh(config.mesh), directory)


def forecast(
    raw: ml_collections.ConfigDict, directory: pathlib.Path, source: pathlib.Path, members: int | None
) -> None:
    """Draws an ensemble from the context frames of a file, with the newest checkpoint of a trained run."""
    config = build.load(raw)
    check_trained(raw, directory)
    card = build.DataCard.read(directory / "statistics.json")
    batch = inputs.read_context(source, config.window.num_context, card.fields)
    config.model.check_grid(*batch.frames.shape[2:4])
    out = directory / "forecast" / source.stem
    if (out / "forecast.npz").exists():
        raise ValueError(f"{out} is there already: move it away, or rename the input file")
    experiment, mesh = build.build(config, card), sharding.make_mesh(config.mesh)
    members = config.evaluation.members if members is None else members
    key = jax.random.key(config.evaluation.seed)
    with jax.set_mesh(mesh):
        params, step = load_ema(experiment, mesh, directory)
        chunk = chunk_rows(config, mesh, members * len(batch.frames))
        ensemble = evaluate.draw(experiment.forecaster, params, key, batch, members, chunk)
    leads = np.arange(1, config.window.num_forecast + 1)
    arrays = {
        "context": batch.frames,
        "ensemble": ensemble,
        "leads": leads,
        "interval": card.interval,
        "fields": card.fields,
        "unit": card.unit,
        "time_unit": card.time_unit,
        "step": step,
    }
    out.mkdir(parents=True, exist_ok=True)  # a run that was killed may have left it empty
    evaluate.save_npz(out / "forecast.npz", arrays)
    plots.film(out)
    say(f"{out}: forecast.npz with ensemble {list(ensemble.shape)} [e, n, k, h, w, c], film.gif")


def score(experiment: build.Experiment, splits: pipeline.Splits, mesh: Mesh, directory: pathlib.Path) -> None:
    """Scores the newest checkpoint beside the baselines, unless that is done; prints the table and where it is."""
    config = experiment.config
    with jax.set_mesh(mesh):
        params, step = load_ema(experiment, mesh, directory)
    header = describe(experiment, step)
    folder = evaluation_folder(directory, header)
    if not is_done(folder):
        evaluation = make_evaluation(config, splits)
        ensembles = {config.method: ensemble_of(experiment, params, mesh, evaluation)}
        if config.evaluation.regression is not None:
            other, weights = open_regression(experiment, mesh)
            ensembles["regression"] = ensemble_of(other, weights, mesh, evaluation)
        ensembles |= evaluate.baseline_ensembles(evaluation)
        scores = evaluate.score_all(ensembles, evaluation, experiment.card.unit)
        keep = slice(config.evaluation.saved)
        arrays = {
            "context": evaluation.context[keep],
            "truth": evaluation.truth[keep],
            "ensemble": ensembles[config.method][:, keep],
            "leads": np.asarray(header["leads"]),
        }
        evaluate.write(folder, header, scores, arrays)
    say((folder / evaluate.TABLE).read_text(encoding="utf-8"))
    say(f"{folder}: metrics.json, table.md, forecasts.npz, pictures and film.gif")


def ensemble_of(
    experiment: build.Experiment, params: Any, mesh: Mesh, evaluation: evaluate.Evaluation
) -> np.ndarray:
    """The members of every test window; the regression model has one."""
    members = 1 if experiment.config.method == "regression" else evaluation.members
    batch = evaluation.test.batch._replace(frames=evaluation.context)
    chunk = chunk_rows(experiment.config, mesh, members * len(batch.frames))
    with jax.set_mesh(mesh):
        key = jax.random.key(evaluation.seed)
        return evaluate.draw(experiment.forecaster, params, key, batch, members, chunk)


def chunk_rows(config: Config, mesh: Mesh, rows: int) -> int:
    """Rows in flight: those of the config or all there are, up to a multiple of what the mesh splits a batch into."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return math.ceil(min(config.evaluation.chunk, rows) / parts) * parts


def open_data(config: Config) -> pipeline.Splits:
    """The trajectories of a config, made or opened, and split into training, validation and test windows.

    Raises:
      ValueError: the test part has fewer windows than the evaluation asks for.
    """
    splits = pipeline.make_splits(config.data.load(), config.windows)
    if config.evaluation.windows > len(splits.test):
        raise ValueError(
            f"config.evaluation.windows: expected at most the {len(splits.test)} windows of the test part, "
            f"found {config.evaluation.windows}"
        )
    return splits


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
        actions=0 if example.actions is None else example.actions.shape[-1],
        static=0 if example.static is None else example.static.shape[-1],
    )


def claim_card(directory: pathlib.Path, card: build.DataCard) -> build.DataCard:
    """Writes statistics.json, or checks that the data are those that the run began with.

    Raises:
      ValueError: the data have other statistics than those of the run.
    """
    path = directory / "statistics.json"
    if not path.exists():
        workdir.write_whole(path, card.to_json())
    lines = workdir.differences(json.loads(path.read_text()), json.loads(card.to_json()))
    if lines:
        raise ValueError(f"{path}: these are not the data that the run began with:\n  " + "\n  ".join(lines))
    return card


def check_trained(raw: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Refuses a config that differs from that of a run in more than the `FREE` sections.

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
    lines = workdir.differences(*({k: v for k, v in c.items() if k not in FREE} for c in (found, asked)))
    if lines:
        raise ValueError(f"{path}: this run was trained with another config:\n  " + "\n  ".join(lines))


def load_ema(experiment: build.Experiment, mesh: Mesh, directory: pathlib.Path) -> tuple[Any, int]:
    """The averaged weights of the newest checkpoint, on the mesh, and its step."""
    shapes = jax.eval_shape(experiment.init, jax.random.key(0))
    shardings = sharding.state_shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    return checkpoints.load_ema(directory / "checkpoints", abstract)


def check_regression(config: Config) -> Config | None:
    """The config of the regression run that is to be scored beside this one, None where none is asked for.

    Raises:
      FileNotFoundError: there is no such run.
      ValueError: it is a run of another method or on other data.
    """
    if config.evaluation.regression is None:
        return None
    path = pathlib.Path(config.evaluation.regression) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"config.evaluation.regression: {path} is not there; train :regression first")
    other = build.load(ml_collections.ConfigDict(json.loads(path.read_text())))
    if other.method != "regression" or (other.data, other.windows) != (config.data, config.windows):
        raise ValueError(
            "config.evaluation.regression: expected a regression run on the same data and windows, found "
            f"method {other.method!r} in {path}"
        )
    return other


def open_regression(experiment: build.Experiment, mesh: Mesh) -> tuple[build.Experiment, Any]:
    """The regression run to score beside this one, and its weights."""
    directory = pathlib.Path(experiment.config.evaluation.regression)
    config = check_regression(experiment.config)
    other = build.build(config, claim_card(directory, experiment.card))
    with jax.set_mesh(mesh):
        return other, load_ema(other, mesh, directory)[0]


def make_evaluation(config: Config, splits: pipeline.Splits) -> evaluate.Evaluation:
    """The test windows of an evaluation, and windows that stand for the training part, evenly spaced both."""
    test = pipeline.select(splits.test, config.evaluation.windows)
    training = pipeline.select(splits.train, min(TRAINING_WINDOWS, len(splits.train)))
    return evaluate.Evaluation(
        test=evaluate.Sample(test.batch(), test.crops),
        training=evaluate.Sample(training.batch(), training.crops),
        num_context=config.window.num_context,
        members=config.evaluation.members,
        seed=config.evaluation.seed,
        scores=config.scores,
    )


def describe(experiment: build.Experiment, step: int) -> dict[str, Any]:
    """The header of metrics.json: what was scored, and the command that did."""
    config, card = experiment.config, experiment.card
    return {
        "method": config.method,
        "size": config.size,
        "step": step,
        "weights": "moving average (EMA)",
        "seed": config.seed,
        "members": config.evaluation.members,
        "windows": config.evaluation.windows,
        "leads": list(range(1, config.window.num_forecast + 1)),
        "interval": card.interval,
        "time_unit": card.time_unit,
        "unit": card.unit,
        "fields": list(card.fields),
        "sampler": dataclasses.asdict(config.sampler),
        "evaluation": dataclasses.asdict(config.evaluation),
        "score_options": dataclasses.asdict(config.scores),
        "command": shlex.join(["python", "-m", "dydiff_jax.main", *sys.argv[1:]]),
    }


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


def say(text: str) -> None:
    """Prints once for all processes."""
    if jax.process_index() == 0:
        print(text, flush=True)
