"""What a run does: train, evaluate, forecast, replay, export. Each goes from a config to files."""

import pathlib
import time

import ml_collections
import numpy as np
from tqdm import tqdm

from dydiff_jax import build
from dydiff_jax.build import Config
from dydiff_jax.data import splits as data_splits
from dydiff_jax.data.batches import TrainBatches
from dydiff_jax.data.card import DataCard
from dydiff_jax.data.formats import shard_writer
from dydiff_jax.data.splits import Splits
from dydiff_jax.data.statistics import statistics
from dydiff_jax.distributed import collectives, global_batch
from dydiff_jax.distributed.mesh import make_mesh
from dydiff_jax.evaluation import context_file, plots
from dydiff_jax.evaluation.forecast import num_forcings
from dydiff_jax.evaluation.scores import check_samples
from dydiff_jax.runs import directory as run_directory
from dydiff_jax.runs import files, scoring
from dydiff_jax.system import Recipe, Stage, Weights
from dydiff_jax.training import bad_step, stages
from dydiff_jax.training.loop import Session, Validate


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
    planned = build.build(config, build.spec_card(config)).stages
    for stage in planned:
        global_batch.check_batch(stage.recipe.train.batch_size, mesh)
    stages.check_sources(planned, scoring.sections(config), directory)
    loaded = [stage for stage in planned if stage.source is not None]
    for stage in loaded:
        run_directory.check_source_data(stage, build.spec_card(config), measured=False)
    validated = planned[-1].recipe.train.validate_every
    beside = [scoring.open_beside(path, config) for path in config.evaluation.beside]
    if collectives.on_main(
        (directory / "config.json").exists
    ):  # another config is refused before data are made
        run_directory.create_or_verify(directory, config.plain)
    splits = open_data(config, split)
    if validated is not None and not len(splits.valid):
        raise ValueError(
            f"config.train.validate_every: expected a validation window of {config.window.num_context} context frames "
            f"and a horizon of {config.horizon}, found none; use a shorter --config.evaluation.horizon or a larger "
            "validation share in --config.dataset.fractions, or --config.train.validate_every=None"
        )
    run_directory.create_or_verify(directory, config.plain)
    run = build.build(config, run_directory.keep_card(directory, data_card(config, splits)))
    for stage in loaded:
        run_directory.check_source_data(stage, run.card)

    def examples(stage: Stage) -> TrainBatches:
        recipe = stage.recipe
        return TrainBatches(
            splits.train, recipe.train.batch_size, data_seed(recipe), config.loader, stage.frames
        )

    def validation(stage: Stage, weights: Weights) -> Validate | None:
        wanted = validated is not None and stage.name == run.stages[-1].name
        return scoring.validator(run, weights, splits, mesh) if wanted else None

    session = Session(mesh, directory, began)
    initial = None if config.initial is None else pathlib.Path(config.initial)
    stages.train_stages(run.stages, examples, session, scoring.sections(config), validation, initial)
    return scoring.score(run, splits, split, mesh, directory, command, beside)


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
    planned = build.build(config, build.spec_card(config)).stages
    stages.check_sources(planned, scoring.sections(config), directory)
    beside = [scoring.open_beside(path, config) for path in config.evaluation.beside]
    splits = open_data(config, split)
    run = build.build(config, run_directory.keep_card(directory, data_card(config, splits)))
    return scoring.score(run, splits, split, make_mesh(config.mesh), directory, command, beside)


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
    weights, _ = stages.load_stages(run.stages[:number], mesh, directory, scoring.sections(config))
    stage = run.stages[number]
    frozen = {name: weights[name] for name in stage.needs}
    facts, lines = bad_step.repeat(found[-1], stage, frozen, mesh)
    collectives.print_main(
        f"{found[-1]}: step {facts['step']}, loss {facts['loss']}, gradient norm {facts['grad_norm']}"
    )
    collectives.print_main("\n".join(lines))


def forecast(
    raw: ml_collections.ConfigDict,
    directory: pathlib.Path,
    source: pathlib.Path,
    members: int | None,
    substeps: int = 1,
) -> None:
    """Draw an ensemble from the context frames of a file, with the newest checkpoint of a trained run.

    Args:
      raw: the config.
      directory: of the run.
      source: of the context frames.
      members: ensemble size; None: that of the evaluation.
      substeps: frames for each lead; more than one for a system that can forecast between them.
    """
    config = build.load(raw)
    if not config.window.num_context:
        raise ValueError(
            "config.window.num_context: a model without context frames has no input to forecast from"
        )
    run_directory.check_trained(directory, config.plain)
    run = build.build(config, DataCard.read(directory / "statistics.json"))
    scoring.forecaster_of(run, substeps)
    needed = num_forcings(run.system.forecaster(), config.horizon)
    batch = context_file.read_context(source, config.window.num_context, run.card.spec, needed)
    for network in config.networks.values():
        network.check(batch.frames.shape[2:])
    out = directory / "forecast" / (source.stem if substeps == 1 else f"{source.stem}_substeps_{substeps}")
    if collectives.on_main((out / "forecast.npz").exists):
        raise ValueError(f"{out} is there already: move it away, or rename the input file")
    mesh = make_mesh(config.mesh)
    weights, step = scoring.load_run(run, mesh, directory)
    members = config.evaluation.members if members is None else members
    ensemble, _ = scoring.ensemble_of(run, weights, mesh, batch, members, substeps)
    leads = np.arange(1, config.horizon * substeps + 1)
    arrays = {
        "context": batch.frames,
        "ensemble": ensemble,
        "leads": leads if substeps == 1 else leads / substeps,
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
    check_samples(config.scores, len(scoring.reference_windows(config, splits)), "training")
    return splits


def data_seed(recipe: Recipe) -> int:
    """The seed of a stage's batches: that of the run for the first stage, one of its own for a later one."""
    if recipe.number == 0:
        return recipe.seed
    return int(np.random.SeedSequence([recipe.seed, recipe.number]).generate_state(1)[0])
