"""What a run does: train, evaluate, forecast, replay, export. Each goes from a config to files."""

import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from dydiff_jax import build, metrics
from dydiff_jax.build import Config, Run
from dydiff_jax.cost_model import work
from dydiff_jax.data import splits as data_splits
from dydiff_jax.data.batches import TrainBatches
from dydiff_jax.data.card import DataCard
from dydiff_jax.data.formats import shard_writer
from dydiff_jax.data.splits import Splits
from dydiff_jax.data.statistics import statistics
from dydiff_jax.data.windows import Windows, select
from dydiff_jax.distributed import collectives, global_batch
from dydiff_jax.distributed.mesh import make_mesh
from dydiff_jax.evaluation import context_file, evaluate, plots
from dydiff_jax.evaluation.forecast import Ensemble, gather, num_forcings
from dydiff_jax.evaluation.scores import check_samples
from dydiff_jax.runs import directory as run_directory
from dydiff_jax.runs import files
from dydiff_jax.system import CALIBRATION, Recipe, Stage, Weights
from dydiff_jax.training import bad_step, fingerprints, stages
from dydiff_jax.training.fingerprints import Sections
from dydiff_jax.training.loop import Session, Validate
from dydiff_jax.training.phases import Phases
from dydiff_jax.types import Batch, Params

#: Windows that stand for the training split in the baselines.
TRAINING_WINDOWS = 512

#: Training windows on which a system is calibrated.
CALIBRATION_WINDOWS = 64


def train(
    raw: ml_collections.ConfigDict,
    directory: pathlib.Path,
    command: str = "",
    began: float | None = None,
    split: str = "test",
) -> pathlib.Path:
    """Train every stage to its last step, resuming where the run stopped, then evaluate.

    Args:
      raw: the config.
      directory: of the run; all processes of a run share it.
      command: what makes this run, for the results file.
      began: when the process began, by ``time.monotonic``, for the time breakdown.
      split: that is scored after training, "test" or "valid".

    Returns:
      The folder of the evaluation.
    """
    config, began = build.load(raw), time.monotonic() if began is None else began
    mesh = make_mesh(config.mesh)
    for stage in build.build(config, build.spec_card(config)).stages:
        global_batch.check_batch(stage.recipe.train.batch_size, mesh)
    beside = [open_beside(path, config) for path in config.evaluation.beside]
    if (directory / "config.json").exists():
        run_directory.create_or_verify(
            directory, config.plain
        )  # another config is refused before data are made
    splits = open_data(config, split)
    run_directory.create_or_verify(directory, config.plain)
    run = build.build(config, run_directory.keep_card(directory, data_card(config, splits)))

    def examples(stage: Stage) -> TrainBatches:
        recipe = stage.recipe
        return TrainBatches(splits.train, recipe.train.batch_size, data_seed(recipe), config.loader)

    def validation(stage: Stage, weights: Weights) -> Validate | None:
        wanted = stage.recipe.train.validate_every is not None and stage.name == run.stages[-1].name
        return validator(run, weights, splits, mesh) if wanted else None

    session = Session(mesh, directory, began)
    initial = None if config.initial is None else pathlib.Path(config.initial)
    stages.train_stages(run.stages, examples, session, sections(config), validation, initial)
    return score(run, splits, split, mesh, directory, command, beside)


def evaluate_run(
    raw: ml_collections.ConfigDict, directory: pathlib.Path, command: str = "", split: str = "test"
) -> pathlib.Path:
    """Score the newest checkpoint of a trained run; arguments and result are those of `train`.

    Args:
      raw: the config.
      directory: of the run.
      command: what makes this evaluation, for the results file.
      split: "test" or "valid".
    """
    config = build.load(raw)
    run_directory.check_trained(directory, config.plain)
    beside = [open_beside(path, config) for path in config.evaluation.beside]
    splits = open_data(config, split)
    run = build.build(config, run_directory.keep_card(directory, data_card(config, splits)))
    return score(run, splits, split, make_mesh(config.mesh), directory, command, beside)


def replay(raw: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Repeat the last step of a run that stopped on a loss that is not finite, and say where it goes wrong.

    Raises:
      FileNotFoundError: the run left no such step.
    """
    config = build.load(raw)
    run_directory.check_trained(directory, config.plain)
    found = bad_step.bundles(directory)
    if not found:
        raise FileNotFoundError(
            f"{directory}: expected bad_step_STAGE_N of a run that stopped on it, found none"
        )
    run = build.build(config, DataCard.read(directory / "statistics.json"))
    mesh = make_mesh(config.mesh)
    number = [stage.name for stage in run.stages].index(bad_step.read_facts(found[-1])["stage"])
    weights, _ = stages.load_stages(run.stages[:number], mesh, directory, sections(config))
    stage = run.stages[number]
    frozen = {name: weights[name] for name in stage.needs}
    facts, lines = bad_step.repeat(found[-1], stage, frozen, mesh)
    collectives.print_main(
        f"{found[-1]}: step {facts['step']}, loss {facts['loss']}, gradient norm {facts['grad_norm']}"
    )
    collectives.print_main("\n".join(lines))


def forecast(
    raw: ml_collections.ConfigDict, directory: pathlib.Path, source: pathlib.Path, members: int | None
) -> None:
    """Draw an ensemble from the context frames of a file, with the newest checkpoint of a trained run."""
    config = build.load(raw)
    if not config.window.num_context:
        raise ValueError(
            "config.window.num_context: a model without context frames has no input to forecast from"
        )
    run_directory.check_trained(directory, config.plain)
    run = build.build(config, DataCard.read(directory / "statistics.json"))
    needed = num_forcings(run.system.forecaster(), config.horizon)
    batch = context_file.read_context(source, config.window.num_context, run.card.spec, needed)
    for network in config.networks.values():
        network.check(batch.frames.shape[2:])
    out = directory / "forecast" / source.stem
    if collectives.on_main((out / "forecast.npz").exists):
        raise ValueError(f"{out} is there already: move it away, or rename the input file")
    mesh = make_mesh(config.mesh)
    weights, step = load_run(run, mesh, directory)
    members = config.evaluation.members if members is None else members
    ensemble, _ = ensemble_of(run, weights, mesh, batch, members)
    arrays = {
        "context": batch.frames,
        "ensemble": ensemble,
        "leads": np.arange(1, config.horizon + 1),
        "interval": run.card.spec.interval,
        "fields": run.card.spec.fields,
        "unit": run.card.spec.unit,
        "time_unit": run.card.spec.time_unit,
        "kind": run.card.spec.kind,
        "step": step,
    }

    def write() -> None:
        out.mkdir(parents=True, exist_ok=True)  # a run that was killed may have left it empty
        files.write_npz(out / "forecast.npz", arrays)
        plots.animate(out)

    collectives.on_main(write)
    collectives.print_main(
        f"{out}: forecast.npz with ensemble {list(ensemble.shape)} [e, n, k, h, w, c], animation.gif"
    )


def export(raw: ml_collections.ConfigDict, out: str, form: str) -> None:
    """Write the trajectories of a config as shards, with a progress bar in frames.

    Args:
      raw: the config.
      out: a folder that is not there yet.
      form: a name of `sidecar.FORMATS`.
    """
    config = build.load(raw)
    shard_writer.check_target(out, form)
    trajectories = config.data.load()
    frames = sum(len(array) for array in trajectories.arrays)
    with tqdm(total=frames, unit="frame", desc=f"writing {form} shards") as bar:
        described = shard_writer.write(trajectories, out, form, bar.update)
    print(
        f"{out}: {len(described.shards)} {form} shards, {frames} frames {list(described.frame_shape)} of "
        f"{described.dtype}; read them with --config=configs/shards.py --config.data.path={out}"
    )


# Data


def data_card(config: Config, splits: Splits) -> DataCard:
    """What a forecast must know of the data, from the training split alone."""
    card = build.spec_card(config)
    if config.codec.statistics is None:
        return card
    mean, std = statistics(splits.train, config.codec.statistics)
    return DataCard(card.spec, tuple(mean.tolist()), tuple(std.tolist()))


def open_data(config: Config, split: str = "test") -> Splits:
    """The trajectories of a config, made or opened, and split into training, validation and test windows.

    Raises:
      ValueError: a network cannot take the frames, or a split has fewer windows than the evaluation or a score asks
        for.
    """
    card = build.spec_card(config)
    forecaster = build.build(config, card).system.forecaster()
    beyond = num_forcings(forecaster, config.horizon) - config.window.num_context - config.horizon
    extra = beyond if card.spec.forcings else 0
    splits = data_splits.make_splits(config.data.load(), config.dataset, config.horizon, extra)
    windows = getattr(splits, split)
    if config.evaluation.windows > len(windows):
        raise ValueError(
            f"config.evaluation.windows: expected at most the {len(windows)} windows of the {split} split, "
            f"found {config.evaluation.windows}"
        )
    check_samples(config.scores, len(reference_windows(config, splits)), "training")
    return splits


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
    return evaluate.Evaluation(
        scored=evaluate.Sample(scored.batch(), scored.crops),
        training=evaluate.Sample(training.batch(), training.crops),
        spec=run.card.spec,
        num_context=config.window.num_context,
        members=config.evaluation.members,
        seed=config.evaluation.seed,
        scores=config.scores,
    )


# Weights


def sections(config: Config) -> Sections:
    """The config as the fingerprints of stages read it."""
    return Sections(config.plain, exclude=tuple(f"system.{key}" for key in config.system.free))


def data_seed(recipe: Recipe) -> int:
    """The seed of a stage's batches: that of the run for the first stage, one of its own for a later one."""
    if recipe.number == 0:
        return recipe.seed
    return int(np.random.SeedSequence([recipe.seed, recipe.number]).generate_state(1)[0])


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
    last = fingerprints.identity(directory / "checkpoints" / run.stages[-1].name)

    def batch() -> Batch:
        return select(train, min(CALIBRATION_WINDOWS, len(train))).batch()

    measured = run_directory.calibration(
        directory, run, mesh, weights, last, None if train is None else batch
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


# Forecasts and scores


def ensemble_of(
    run: Run, weights: Weights, mesh: Mesh, batch: Batch, members: int
) -> tuple[np.ndarray, float]:
    """The members of every window of a batch, as many as the system can make, and the seconds that it took."""
    config, forecaster = run.config, run.system.forecaster()
    members = min(members, forecaster.max_members or members)
    chunk = evaluate.chunk_rows(config.evaluation, mesh, members * len(batch.frames))
    with jax.set_mesh(mesh), Phases(config.train.stuck_after) as phases, phases.phase("forecast"):
        key = jax.random.key(config.evaluation.seed)
        driver = Ensemble(forecaster, config.horizon, chunk)
        return driver.draw(weights, key, batch, members, heartbeat=phases.heartbeat)


def validator(run: Run, weights: Weights, splits: Splits, mesh: Mesh) -> Callable[[Params], dict[str, float]]:
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

    def validate(ema: Params) -> dict[str, float]:
        found = {**weights, run.stages[-1].name: ema}
        found[CALIBRATION] = calibrate(found, train, jax.random.key(run.config.seed))
        pieces = driver.pieces(found, jax.random.key(options.seed), context, members)
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
    """What training and sampling took, compilation of the sampler excluded, in the same terms for every system."""
    forecaster = run.system.forecaster()
    return {
        "parameters": sum(leaf.size for stage in run.stages for leaf in jax.tree.leaves(weights[stage.name])),
        **run_directory.training_cost(directory),
        "nfe_per_frame": forecaster.nfe_per_frame,
        "gflop_per_frame": forecast_flops(run, weights, context) / forecaster.block / 1e9,
        "sampling_seconds": seconds,
        "frames": math.prod(drawn.shape[:3]),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def forecast_flops(run: Run, weights: Weights, context: Batch) -> int:
    """Arithmetic of one block of one member, traced and not run."""
    forecaster = run.system.forecaster()
    row = jax.tree.map(lambda x: np.asarray(x)[:1], context)
    keys = jax.random.split(jax.random.key(0), 1)
    carry = jax.eval_shape(forecaster.begin, weights, keys, row)
    return work.model_flops(forecaster.advance, weights, keys, row, carry)
