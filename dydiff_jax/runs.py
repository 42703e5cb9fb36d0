"""The three things a run does: train, evaluate, forecast. Each goes from a config to files in its work directory."""

import dataclasses
import itertools
import json
import math
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from dydiff_jax import build, evaluate, inputs, plots, report, runfiles
from dydiff_jax.config import Config, plain
from dydiff_jax.data import pipeline
from dydiff_jax.training import batches, loop, sharding, workdir

#: Windows that stand for the training part in the baselines.
TRAINING_WINDOWS = 512


def train(raw: ml_collections.ConfigDict, directory: pathlib.Path, command: str = "") -> pathlib.Path:
    """Trains to the last step, from the newest checkpoint where there is one, then evaluates.

    Args:
      raw: the config.
      directory: of the run.
      command: what makes this run, for the results file.

    Returns:
      The folder of the evaluation.
    """
    config = build.load(raw)
    mesh = sharding.make_mesh(config.mesh)
    batches.check_batch(config.train.batch_size, mesh)
    check_regression(config)
    if (directory / "config.json").exists():
        workdir.claim(directory, json.dumps(plain(raw)))  # another config is refused before data are made
    splits = open_data(config)
    workdir.claim(directory, json.dumps(plain(raw)))
    experiment = build.build(config, runfiles.claim_card(directory, runfiles.data_card(config, splits)))
    examples = pipeline.TrainBatches(splits.train, config.train.batch_size, config.seed)
    task = loop.Task(experiment.init, experiment.loss, examples.stream, examples.rows, examples.ids)
    loop.train(task, config.train, config.optimizer, config.ema, mesh, config.seed, directory)
    return score(experiment, splits, mesh, directory, command)


def evaluate_run(raw: ml_collections.ConfigDict, directory: pathlib.Path, command: str = "") -> pathlib.Path:
    """Scores the newest checkpoint of a trained run; arguments and result are those of `train`."""
    config = build.load(raw)
    runfiles.check_trained(raw, directory)
    splits = open_data(config)
    experiment = build.build(config, runfiles.claim_card(directory, runfiles.data_card(config, splits)))
    return score(experiment, splits, sharding.make_mesh(config.mesh), directory, command)


def forecast(
    raw: ml_collections.ConfigDict, directory: pathlib.Path, source: pathlib.Path, members: int | None
) -> None:
    """Draws an ensemble from the context frames of a file, with the newest checkpoint of a trained run."""
    config = build.load(raw)
    if not config.window.num_context:
        raise ValueError(
            "config.window.num_context: a model without context frames has no input to forecast from"
        )
    runfiles.check_trained(raw, directory)
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
        params, step = runfiles.load_ema(experiment, mesh, directory)
        missing = measure_missing(experiment, params, mesh)
        chunk = chunk_rows(config, mesh, members * len(batch.frames))
        ensemble, _ = evaluate.draw(experiment.forecaster(missing), params, key, batch, members, chunk)
    arrays = {
        "context": batch.frames,
        "ensemble": ensemble,
        "leads": np.arange(1, config.horizon + 1),
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


def score(
    experiment: build.Experiment, splits: pipeline.Splits, mesh: Mesh, directory: pathlib.Path, command: str
) -> pathlib.Path:
    """Scores the newest checkpoint beside the baselines, unless that is done; prints the table, returns its folder."""
    config = experiment.config
    with jax.set_mesh(mesh):
        params, step = runfiles.load_ema(experiment, mesh, directory)
    header = describe(experiment, step) | {"command": command}
    folder = runfiles.evaluation_folder(directory, header)
    if not runfiles.is_done(folder):
        evaluation = make_evaluation(config, splits)
        missing = measure_missing(experiment, params, mesh, splits.train)
        drawn, seconds = ensemble_of(experiment, params, mesh, evaluation, missing)
        header |= {"missing_variance": missing, "cost": cost(experiment, params, directory, drawn, seconds)}
        ensembles = {config.method: drawn}
        if config.evaluation.regression is not None:
            other, weights = open_regression(experiment, mesh)
            ensembles["regression"], _ = ensemble_of(other, weights, mesh, evaluation)
        forecasts = itertools.chain(ensembles.items(), evaluate.baseline_ensembles(evaluation))
        scores = evaluate.score_all(forecasts, evaluation, experiment.card.unit)
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
    return folder


def measure_missing(
    experiment: build.Experiment, params: Any, mesh: Mesh, train: pipeline.Windows | None = None
) -> tuple[float, ...]:
    """`runfiles.missing_variance` on training windows, which are opened only where the process asks for it."""
    if not experiment.config.process.continues_noise:
        return (0.0,)
    train = open_data(experiment.config).train if train is None else train
    return runfiles.missing_variance(experiment, params, mesh, train)


def cost(
    experiment: build.Experiment, params: Any, directory: pathlib.Path, drawn: np.ndarray, seconds: float
) -> dict[str, Any]:
    """What training and sampling took, without compiling the sampler."""
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        **runfiles.training_cost(directory),
        "evaluations_per_frame": experiment.config.sampler.steps,
        "sampling_seconds": seconds,
        "frames": math.prod(drawn.shape[:3]),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def ensemble_of(
    experiment: build.Experiment,
    params: Any,
    mesh: Mesh,
    evaluation: evaluate.Evaluation,
    missing: tuple[float, ...] = (0.0,),
) -> tuple[np.ndarray, float]:
    """The members of every test window, of which the regression model has one, and the seconds that it took."""
    members = 1 if experiment.config.method == "regression" else evaluation.members
    batch = evaluation.test.batch._replace(frames=evaluation.context)
    chunk = chunk_rows(experiment.config, mesh, members * len(batch.frames))
    with jax.set_mesh(mesh):
        key = jax.random.key(evaluation.seed)
        return evaluate.draw(experiment.forecaster(missing), params, key, batch, members, chunk)


def chunk_rows(config: Config, mesh: Mesh, rows: int) -> int:
    """Rows in flight: those of the config or all there are, up to a multiple of what the mesh splits a batch into."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return math.ceil(min(config.evaluation.chunk, rows) / parts) * parts


def open_data(config: Config) -> pipeline.Splits:
    """The trajectories of a config, made or opened, and split into training, validation and test windows.

    Raises:
      ValueError: a part has fewer windows than the evaluation or a score asks for.
    """
    splits = pipeline.make_splits(config.data.load(), config.windows, config.horizon)
    if config.evaluation.windows > len(splits.test):
        raise ValueError(
            f"config.evaluation.windows: expected at most the {len(splits.test)} windows of the test part, "
            f"found {config.evaluation.windows}"
        )
    report.check_samples(config.scores, len(reference_windows(config, splits)), "training")
    return splits


def reference_windows(config: Config, splits: pipeline.Splits) -> pipeline.Windows:
    """Windows of the training part as long as the context and horizon of the test windows."""
    return pipeline.reference_windows(splits.train.trajectories, config.windows, config.horizon)


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
    config = dataclasses.replace(config, evaluation=experiment.config.evaluation)
    other = build.build(config, runfiles.claim_card(directory, experiment.card))
    with jax.set_mesh(mesh):
        return other, runfiles.load_ema(other, mesh, directory)[0]


def make_evaluation(config: Config, splits: pipeline.Splits) -> evaluate.Evaluation:
    """The test windows of an evaluation, and windows that stand for the training part, evenly spaced both."""
    test = pipeline.select(splits.test, config.evaluation.windows)
    wanted = max(TRAINING_WINDOWS, config.scores.fsd_samples or 0)
    reference = reference_windows(config, splits)
    training = pipeline.select(reference, min(wanted, len(reference)))
    return evaluate.Evaluation(
        test=evaluate.Sample(test.batch(), test.crops),
        training=evaluate.Sample(training.batch(), training.crops),
        num_context=config.window.num_context,
        members=config.evaluation.members,
        seed=config.evaluation.seed,
        scores=config.scores,
    )


def describe(experiment: build.Experiment, step: int) -> dict[str, Any]:
    """The header of metrics.json: what was scored."""
    config, card = experiment.config, experiment.card
    return {
        "method": config.method,
        "size": config.size,
        "step": step,
        "weights": "moving average (EMA)",
        "seed": config.seed,
        "members": config.evaluation.members,
        "windows": config.evaluation.windows,
        "horizon": config.horizon,
        "leads": list(range(1, config.horizon + 1)),
        "interval": card.interval,
        "time_unit": card.time_unit,
        "unit": card.unit,
        "fields": list(card.fields),
        "sampler": dataclasses.asdict(config.sampler),
        "evaluation": dataclasses.asdict(config.evaluation),
        "score_options": dataclasses.asdict(config.scores),
    }


def say(text: str) -> None:
    """Prints once for all processes."""
    if jax.process_index() == 0:
        print(text, flush=True)
