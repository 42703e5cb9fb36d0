"""From a trained run to its scores: weights, ensembles of all processes, runs beside it, cost."""

import math
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dydiff_jax import build, metrics
from dydiff_jax.build import Config, Run
from dydiff_jax.cost_model import plan, work
from dydiff_jax.data import splits as data_splits
from dydiff_jax.data.card import DataCard
from dydiff_jax.data.splits import Splits
from dydiff_jax.data.windows import Windows, select
from dydiff_jax.distributed import collectives
from dydiff_jax.evaluation import evaluate
from dydiff_jax.evaluation.forecast import Ensemble, Heartbeat, gather
from dydiff_jax.runs import directory as run_directory
from dydiff_jax.system import CALIBRATION, Forecaster, Weights
from dydiff_jax.training import fingerprints, stages
from dydiff_jax.training.fingerprints import Sections
from dydiff_jax.training.loop import Validate
from dydiff_jax.training.phases import Phases
from dydiff_jax.types import Batch, Params

#: Windows that stand for the training split in the baselines.
TRAINING_WINDOWS = 512

#: What is known of the training of a stage.
COSTS = ("steps", "seconds", "gflop")

#: Training windows on which a system is calibrated.
CALIBRATION_WINDOWS = 64


def sections(config: Config) -> Sections:
    """The config as the fingerprints of stages read it."""
    return Sections(config.plain, exclude=tuple(f"system.{key}" for key in config.system.free))


def load_run(
    run: Run, mesh: Mesh, directory: pathlib.Path, train: Windows | None = None
) -> tuple[Weights, int]:
    """All that a finished run is: the EMA of every stage and its calibration; and the steps of its last stage.

    Args:
      run: the system.
      mesh: where the weights are placed.
      directory: of the run.
      train: training windows, on which a system that was not calibrated yet is measured; None: no data are opened.
    """
    weights, step = stages.load_stages(run.stages, mesh, directory, sections(run.config))
    last = run.stages[-1]
    identity = fingerprints.identity((last.source or directory) / "checkpoints" / last.name)

    def batch() -> Batch:
        return select(train, min(CALIBRATION_WINDOWS, len(train))).batch()

    measured = run_directory.calibration(
        directory, run, mesh, weights, identity, None if train is None else batch
    )
    return {**weights, CALIBRATION: measured}, step


def open_beside(path: str, config: Config) -> tuple[pathlib.Path, Config]:
    """A finished run that is scored beside this one, and its config.

    Raises:
      FileNotFoundError: there is no such run.
      ValueError: it was trained on other data.
    """
    directory = pathlib.Path(path)
    if not (directory / "config.json").exists():
        raise FileNotFoundError(
            f"config.evaluation.beside: {directory / 'config.json'} is not there; expected the --workdir of a "
            "trained run"
        )
    raw = {**run_directory.read_config(directory), "evaluation": config.plain["evaluation"]}
    other = build.from_plain(raw)
    if (other.data, other.dataset) != (config.data, config.dataset):
        raise ValueError(
            f"config.evaluation.beside: expected a run on the same data and windows, found {directory}, whose "
            "sections data and dataset differ"
        )
    return directory, other


def reference_windows(config: Config, splits: Splits) -> Windows:
    """Windows of the training split as long as the context and horizon of the scored ones."""
    return data_splits.reference_windows(splits.train.trajectories, config.dataset, config.horizon)


def make_evaluation(run: Run, splits: Splits, split: str) -> evaluate.Evaluation:
    """The windows of an evaluation, and windows that stand for the training split, evenly spaced both."""
    config = run.config
    scored = select(getattr(splits, split), config.evaluation.windows)
    wanted = max(TRAINING_WINDOWS, config.scores.fsd_samples or 0)
    reference = reference_windows(config, splits)
    training = select(reference, min(wanted, len(reference)))
    law, without = evaluate.exact_law(scored)
    return evaluate.Evaluation(
        scored=evaluate.Sample(scored.batch(), scored.crops),
        training=evaluate.Sample(training.batch(), training.crops),
        spec=run.card.spec,
        num_context=config.window.num_context,
        members=config.evaluation.members,
        seed=config.evaluation.seed,
        scores=config.scores,
        law=law,
        without=without,
    )


def forecaster_of(run: Run, substeps: int = 1) -> Forecaster:
    """How a run forecasts, with so many frames for each lead.

    Raises:
      ValueError: there is no such forecaster.
    """
    if substeps < 1:
        raise ValueError(f"--substeps: expected 1 frame for each lead or more, found {substeps}")
    forecaster = run.system.forecaster()
    if substeps == 1:
        return forecaster
    if forecaster.between is None:
        raise ValueError(
            f"--substeps: expected 1 with the system {run.config.method!r}, whose frames are at whole leads, found "
            f"{substeps}; leave it out, or forecast with a system that interpolates, such as DYffusion"
        )
    return forecaster.between(substeps)


def ensemble_of(
    run: Run, weights: Weights, mesh: Mesh, batch: Batch, members: int, substeps: int = 1
) -> tuple[np.ndarray, float]:
    """The members of every window of a batch, as many as the system can make, and the seconds that it took."""
    config, forecaster = run.config, forecaster_of(run, substeps)
    members = min(members, forecaster.max_members or members)
    chunk = evaluate.chunk_rows(config.evaluation, mesh, members * len(batch.frames))
    with jax.set_mesh(mesh), Phases(config.train.stuck_after) as phases, phases.phase("forecast"):
        key = jax.random.key(config.evaluation.seed)
        driver = Ensemble(forecaster, config.horizon * substeps, chunk)
        return driver.draw(weights, key, batch, members, heartbeat=phases.heartbeat)


def validator(run: Run, weights: Weights, splits: Splits, mesh: Mesh) -> Validate:
    """A function from the EMA of the last stage to the fair CRPS of a few validation windows.

    Args:
      run: the system.
      weights: of the stages before the last.
      splits: of the data.
      mesh: the device mesh.
    """
    options, forecaster = run.config.evaluation, run.system.forecaster()
    sample = select(splits.valid, min(options.valid_windows, len(splits.valid))).batch()
    train = select(splits.train, min(CALIBRATION_WINDOWS, len(splits.train))).batch()
    known = slice(run.config.window.num_context)
    observed = None if sample.observed is None else sample.observed[:, known]
    context = sample._replace(frames=sample.frames[:, known], observed=observed)
    ahead = slice(run.config.window.num_context, None)
    truth = np.asarray(sample.frames[:, ahead], np.float32)
    scored = None if sample.observed is None else sample.observed[:, ahead]
    members = min(options.valid_members, forecaster.max_members or options.valid_members)
    chunk = evaluate.chunk_rows(options, mesh, members * len(truth))
    driver = Ensemble(forecaster, run.config.horizon, chunk)
    calibrate = jax.jit(run.system.calibrate)

    def validate(ema: Params, heartbeat: Heartbeat) -> dict[str, float]:
        found = {**weights, run.stages[-1].name: ema}
        found[CALIBRATION] = calibrate(found, train, jax.random.key(run.config.seed))
        pieces = driver.pieces(found, jax.random.key(options.seed), context, members, heartbeat)
        drawn = gather(pieces, members, len(truth), run.config.horizon)
        per_lead = metrics.crps_per_lead(drawn, truth, observed=scored)
        return {"valid_crps": float(np.mean(per_lead))}

    return validate


def score(
    run: Run,
    splits: Splits,
    split: str,
    mesh: Mesh,
    directory: pathlib.Path,
    command: str,
    beside: list[tuple[pathlib.Path, Config]],
) -> pathlib.Path:
    """Score the newest checkpoint beside the baselines, unless that is done; print the table, return its folder.

    Every process draws its part of the ensembles; the first one scores and writes.
    """
    weights, step = load_run(run, mesh, directory, splits.train)
    header = describe(run, step, split) | {"command": command}
    folder = pathlib.Path(collectives.on_main(lambda: str(evaluate.evaluation_folder(directory, header))))
    if not collectives.on_main(lambda: evaluate.is_done(folder)):
        evaluation = make_evaluation(run, splits, split)
        drawn, seconds = ensemble_of(run, weights, mesh, evaluation.context, evaluation.members)
        header["cost"] = cost(run, weights, directory, evaluation.context, drawn, seconds)
        header["calibration"] = jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), weights[CALIBRATION])
        ensembles = {run.config.method: drawn}
        for path, other in beside:
            name, found = ensemble_beside(path, other, mesh, evaluation, splits)
            ensembles[name if name not in ensembles else f"{name} ({path})"] = found
        collectives.on_main(lambda: evaluate.write_scores(folder, header, ensembles, evaluation))
    if collectives.is_main():
        collectives.print_main((folder / evaluate.TABLE).read_text(encoding="utf-8"))
    collectives.print_main(f"{folder}: metrics.json, table.md, forecasts.npz, figures and animation.gif")
    return folder


def ensemble_beside(
    path: pathlib.Path, config: Config, mesh: Mesh, evaluation: evaluate.Evaluation, splits: Splits
) -> tuple[str, np.ndarray]:
    """The name of another run's system, and its forecasts of the same windows."""
    run = build.build(config, DataCard.read(path / "statistics.json"))
    weights, _ = load_run(run, mesh, path, splits.train)
    return config.method, ensemble_of(run, weights, mesh, evaluation.context, evaluation.members)[0]


def describe(run: Run, step: int, split: str) -> dict[str, Any]:
    """The header of metrics.json: what was scored."""
    config, spec = run.config, run.card.spec
    return {
        "method": config.method,
        "size": config.size,
        "split": split,
        "step": step,
        "weights": "EMA",
        "seed": config.seed,
        "members": config.evaluation.members,
        "windows": config.evaluation.windows,
        "horizon": config.horizon,
        "leads": list(range(1, config.horizon + 1)),
        "interval": spec.interval,
        "time_unit": spec.time_unit,
        "unit": spec.unit,
        "fields": list(spec.fields),
        "kind": spec.kind,
        "system": {key: config.plain["system"][key] for key in config.system.free},
        "evaluation": config.plain["evaluation"],
        "score_options": config.plain["scores"],
    }


def cost(
    run: Run, weights: Weights, directory: pathlib.Path, context: Batch, drawn: np.ndarray, seconds: float
) -> dict[str, Any]:
    """What training and sampling took, in the same terms for every system.

    "networks" and their "parameters", frozen ones among them. For each frame of a member: "nfe_per_frame" and
    "network_frames_per_frame" (`system.Forecaster`), "gflop_per_frame" (of matrix products and convolutions, both sides
    of a branch among them), and "sampling_seconds" over "frames", compilation excluded. Of training: see
    `training_cost`.
    """
    forecaster = run.system.forecaster()
    return {
        "networks": len(run.config.networks),
        "parameters": sum(leaf.size for stage in run.stages for leaf in jax.tree.leaves(weights[stage.name])),
        **training_cost(run, directory),
        "nfe_per_frame": forecaster.nfe_per_frame,
        "network_frames_per_frame": forecaster.network_frames_per_frame,
        "gflop_per_frame": forecast_flops(run, weights, context) / forecaster.block / 1e9,
        "sampling_seconds": seconds,
        "frames": math.prod(drawn.shape[:3]),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def training_cost(run: Run, directory: pathlib.Path) -> dict[str, Any]:
    """What the training of all stages took, those that were trained in another run among them; None: unknown.

    "stages" holds "steps", "seconds" (compilation among them) and "gflop" (`plan.needed_flops` of all steps) of each;
    "training_steps", "training_seconds" and "training_gflop" are their sums, "steps_per_second" is that of the last.
    """
    own = plan.needed_flops(run.config, run.card, [s.name for s in run.stages if s.source is None])
    stages: dict[str, dict[str, float | None]] = {}
    rate = None
    for stage in run.stages:
        found = run_directory.trained(stage.source or directory).get(stage.name)
        flops = (
            own.get(stage.name) if stage.source is None else flops_elsewhere(run, stage.name, stage.source)
        )
        stages[stage.name] = {
            "steps": found and found.steps,
            "seconds": found and found.seconds,
            "gflop": found and flops and found.steps * flops / 1e9,
        }
        rate = found and found.steps_per_second
    sums = {f"training_{name}": _sum(each[name] for each in stages.values()) for name in COSTS}
    return {"stages": stages, **sums, "steps_per_second": rate}


def _sum(values: Iterable[float | None]) -> float | None:
    """Their sum; None if one is unknown."""
    found = list(values)
    return None if None in found else sum(value for value in found if value is not None)


def flops_elsewhere(run: Run, stage: str, source: pathlib.Path) -> int | None:
    """Arithmetic of a step of a stage in the run that trained it; None where its config is not of this version."""
    try:
        config = build.from_plain(run_directory.read_config(source))
        return plan.needed_flops(config, run.card, [stage]).get(stage)
    except ValueError:
        return None


def forecast_flops(run: Run, weights: Weights, context: Batch) -> int:
    """Arithmetic of one block of one member, traced and not run."""
    forecaster = run.system.forecaster()
    row = jax.tree.map(lambda x: np.asarray(x)[:1], context)
    keys = jax.random.split(jax.random.key(0), 1)
    carry = jax.eval_shape(forecaster.begin, weights, keys, row)
    return work.model_flops(forecaster.advance, weights, keys, row, carry)
