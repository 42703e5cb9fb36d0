"""What a run does: train, evaluate, forecast, replay, export. Each goes from a config to files."""

import json
import pathlib
import time

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from dydiff_jax import build
from dydiff_jax.evaluation import context_file, evaluate, plots, scoring
from dydiff_jax.distributed import collectives
from dydiff_jax.runs import directory as run_directory
from dydiff_jax.config import Config, plain
from dydiff_jax.data import pipeline
from dydiff_jax.data.formats import shard_writer
from dydiff_jax.distributed import global_batch, mesh as meshes
from dydiff_jax.training import bad_step, loop
from dydiff_jax.runs import workdir
from dydiff_jax.training.state import abstract_state
from dydiff_jax.training.task import Recipe, Task
from dydiff_jax.runs import files


def train(
    raw: ml_collections.ConfigDict, directory: pathlib.Path, command: str = "", began: float | None = None
) -> pathlib.Path:
    """Trains to the last step, from the newest checkpoint where there is one, then evaluates.

    Args:
      raw: the config.
      directory: of the run; all processes of a run share it.
      command: what makes this run, for the results file.
      began: when the process began, by ``time.monotonic``, for the account of its time.

    Returns:
      The folder of the evaluation.
    """
    config, began = build.load(raw), time.monotonic() if began is None else began
    mesh = meshes.make_mesh(config.mesh)
    global_batch.check_batch(config.train.batch_size, mesh)
    scoring.check_regression(config)
    given = json.dumps(plain(raw))
    if (directory / "config.json").exists():
        workdir.create_or_verify(directory, given, run_directory.HARDWARE_SECTIONS)  # another config is refused before data are made
    splits = scoring.open_data(config)
    workdir.create_or_verify(directory, given, run_directory.HARDWARE_SECTIONS)
    experiment = build.build(config, run_directory.claim_card(directory, run_directory.data_card(config, splits)))
    examples = pipeline.TrainBatches(splits.train, config.train.batch_size, config.seed, config.input)
    task = Task(experiment.init, experiment.loss, examples.stream, examples.rows, examples.ids)
    loop.train(task, recipe_of(config, raw), mesh, directory, began)
    return scoring.score(experiment, splits, mesh, directory, command)


def recipe_of(config: Config, raw: ml_collections.ConfigDict) -> Recipe:
    """How a run is trained."""
    fingerprint = run_directory.fingerprint(plain(raw))
    return Recipe(config.train, config.optimizer, config.ema, config.seed, fingerprint)


def evaluate_run(raw: ml_collections.ConfigDict, directory: pathlib.Path, command: str = "") -> pathlib.Path:
    """Scores the newest checkpoint of a trained run; arguments and result are those of `train`."""
    config = build.load(raw)
    run_directory.check_trained(raw, directory)
    splits = scoring.open_data(config)
    experiment = build.build(config, run_directory.claim_card(directory, run_directory.data_card(config, splits)))
    return scoring.score(experiment, splits, meshes.make_mesh(config.mesh), directory, command)


def replay(raw: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Repeats the last step of a run that stopped on a loss that is not finite, and says where it goes wrong.

    Raises:
      FileNotFoundError: the run left no such step.
    """
    config = build.load(raw)
    run_directory.check_trained(raw, directory)
    found = bad_step.bundles(directory)
    if not found:
        raise FileNotFoundError(f"{directory}: expected bad_step_N of a run that stopped on it, found none")
    experiment = build.build(config, build.DataCard.read(directory / "statistics.json"))
    mesh = meshes.make_mesh(config.mesh)
    abstract = abstract_state(loop.initializer(experiment.init, recipe_of(config, raw)), mesh)
    facts, lines = bad_step.repeat(found[-1], experiment.loss, abstract, mesh, config.seed)
    collectives.print_main(
        f"{found[-1]}: step {facts['step']}, loss {facts['loss']}, gradient norm {facts['grad_norm']}"
    )
    collectives.print_main("\n".join(lines))


def forecast(
    raw: ml_collections.ConfigDict, directory: pathlib.Path, source: pathlib.Path, members: int | None
) -> None:
    """Draws an ensemble from the context frames of a file, with the newest checkpoint of a trained run."""
    config = build.load(raw)
    if not config.window.num_context:
        raise ValueError(
            "config.window.num_context: a model without context frames has no input to forecast from"
        )
    run_directory.check_trained(raw, directory)
    card = build.DataCard.read(directory / "statistics.json")
    batch = context_file.read_context(source, config.window.num_context, card.fields)
    config.model.check_grid(*batch.frames.shape[2:4])
    out = directory / "forecast" / source.stem
    if collectives.on_main((out / "forecast.npz").exists):
        raise ValueError(f"{out} is there already: move it away, or rename the input file")
    experiment, mesh = build.build(config, card), meshes.make_mesh(config.mesh)
    members = config.evaluation.members if members is None else members
    with jax.set_mesh(mesh):
        params, step = run_directory.load_ema(experiment, mesh, directory)
    missing = scoring.measure_missing(experiment, params, mesh)
    ensemble, _ = scoring.ensemble_of(experiment, params, mesh, batch, members, missing)
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

    def write() -> None:
        out.mkdir(parents=True, exist_ok=True)  # a run that was killed may have left it empty
        files.write_npz(out / "forecast.npz", arrays)
        plots.film(out)

    collectives.on_main(write)
    collectives.print_main(f"{out}: forecast.npz with ensemble {list(ensemble.shape)} [e, n, k, h, w, c], film.gif")


def export(raw: ml_collections.ConfigDict, out: str, form: str) -> None:
    """Writes the trajectories of a config as shards, with a progress bar in frames.

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
