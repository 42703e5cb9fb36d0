"""From a trained run to its scores: test windows, ensembles of all processes, the regression beside them, tables."""

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

from dydiff_jax import build
from dydiff_jax.config import Config
from dydiff_jax.data import pipeline
from dydiff_jax.distributed import collectives
from dydiff_jax.evaluation import evaluate
from dydiff_jax.evaluation import scores as scoring
from dydiff_jax.runs import directory as run_directory
from dydiff_jax.training.phases import Phases
from dydiff_jax.types import Batch

#: Windows that stand for the training part in the baselines.
TRAINING_WINDOWS = 512


def score(
    experiment: build.Experiment, splits: pipeline.Splits, mesh: Mesh, directory: pathlib.Path, command: str
) -> pathlib.Path:
    """Scores the newest checkpoint beside the baselines, unless that is done; prints the table, returns its folder.

    Every process draws its part of the ensembles; the first one scores and writes.
    """
    config = experiment.config
    with jax.set_mesh(mesh):
        params, step = run_directory.load_ema(experiment, mesh, directory)
    header = describe(experiment, step) | {"command": command}
    folder = pathlib.Path(
        collectives.on_main(lambda: str(run_directory.evaluation_folder(directory, header)))
    )
    if not collectives.on_main(lambda: run_directory.is_done(folder)):
        evaluation = make_evaluation(config, splits)
        missing = measure_missing(experiment, params, mesh, splits.train)
        batch = evaluation.test.batch._replace(frames=evaluation.context)
        drawn, seconds = ensemble_of(experiment, params, mesh, batch, evaluation.members, missing)
        header |= {"missing_variance": missing, "cost": cost(experiment, params, directory, drawn, seconds)}
        ensembles = {config.method: drawn}
        if config.evaluation.regression is not None:
            other, weights = open_regression(experiment, mesh)
            ensembles["regression"], _ = ensemble_of(other, weights, mesh, batch, evaluation.members)
        collectives.on_main(lambda: write_scores(folder, header, ensembles, evaluation, experiment.card.unit))
    if collectives.is_main():
        collectives.print_main((folder / evaluate.TABLE).read_text(encoding="utf-8"))
    collectives.print_main(f"{folder}: metrics.json, table.md, forecasts.npz, pictures and film.gif")
    return folder


def write_scores(
    folder: pathlib.Path,
    header: dict[str, Any],
    ensembles: dict[str, np.ndarray],
    evaluation: evaluate.Evaluation,
    unit: str,
) -> None:
    """Scores the ensembles, the trained one first, beside the baselines, and writes all of it."""
    forecasts = itertools.chain(ensembles.items(), evaluate.baseline_ensembles(evaluation))
    scores = evaluate.score_all(forecasts, evaluation, unit)
    keep = slice(header["evaluation"]["saved"])
    arrays = {
        "context": evaluation.context[keep],
        "truth": evaluation.truth[keep],
        "ensemble": next(iter(ensembles.values()))[:, keep],
        "leads": np.asarray(header["leads"]),
    }
    evaluate.write(folder, header, scores, arrays)


def measure_missing(
    experiment: build.Experiment, params: Any, mesh: Mesh, train: pipeline.Windows | None = None
) -> tuple[float, ...]:
    """`runfiles.missing_variance` on training windows, which are opened only where the process asks for it."""
    if not experiment.config.process.continues_noise:
        return (0.0,)
    train = open_data(experiment.config).train if train is None else train
    return run_directory.missing_variance(experiment, params, mesh, train)


def cost(
    experiment: build.Experiment, params: Any, directory: pathlib.Path, drawn: np.ndarray, seconds: float
) -> dict[str, Any]:
    """What training and sampling took, without compiling the sampler."""
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        **run_directory.training_cost(directory),
        "evaluations_per_frame": experiment.config.sampler.steps,
        "sampling_seconds": seconds,
        "frames": math.prod(drawn.shape[:3]),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def ensemble_of(
    experiment: build.Experiment,
    params: Any,
    mesh: Mesh,
    batch: Batch,
    members: int,
    missing: tuple[float, ...] = (0.0,),
) -> tuple[np.ndarray, float]:
    """The members of every window of a batch, of which the regression model has one, and the seconds that it took."""
    config = experiment.config
    members = 1 if config.method == "regression" else members
    chunk = chunk_rows(config, mesh, members * len(batch.frames))
    with jax.set_mesh(mesh), Phases(config.train.stuck_after) as phases, phases.phase("forecast"):
        key = jax.random.key(config.evaluation.seed)
        return evaluate.draw(
            experiment.forecaster(missing), params, key, batch, members, chunk, beat=phases.heartbeat
        )


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
    scoring.check_samples(config.scores, len(reference_windows(config, splits)), "training")
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
    other = build.build(config, run_directory.claim_card(directory, experiment.card))
    with jax.set_mesh(mesh):
        return other, run_directory.load_ema(other, mesh, directory)[0]


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
