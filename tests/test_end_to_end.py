"""The real command line on real (small) convection: train, evaluate, forecast, kill and resume."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from dydiff_jax import build
from dydiff_jax.data.card import DataCard
from dydiff_jax.distributed.mesh import make_mesh
from dydiff_jax.runs import commands, scoring
from dydiff_jax.types import Batch
from tests import cli, small

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
#: 16 x 56 frames of convection that moves between them, at Ra = 1e7 from 64 x 224 cells.
TRAINED = {
    "data__rayleigh": 1e7, "data__rows": 64, "data__columns": 224, "data__spin_up": 30.0,
    "train__steps": 300, "train__checkpoint_every": 150, "optimizer__warmup_steps": 30,
}  # fmt: skip
PICTURES = ("forecast.png", "error_over_lead.png", "spectra.png", "rank_histogram.png", "animation.gif")


def command(workdir, *arguments):
    config = "configs/turbulence.py:dynamical,size=tiny"
    return ["dydiff_jax.main", f"--config={config}", f"--workdir={workdir}", *arguments]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of a run that computes more than it compiles: two devices, and a cache where its flow is not simulated yet."""
    flags = os.environ["XLA_FLAGS"].replace("optimization_level=0", "optimization_level=1")
    cache = str(tmp_path_factory.mktemp("cache"))
    return {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": flags, "DYDIFF_JAX_CACHE": cache}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, environment):
    """A dynamical run through the command line, from the interpreter on."""
    workdir = tmp_path_factory.mktemp("runs") / "dynamical"
    line = [sys.executable, "-m", *command(workdir, *small.flags(**TRAINED))]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir, done


def test_a_short_run_beats_persistence(trained):
    workdir, _ = trained
    metrics = json.loads((workdir / "eval/step_300/metrics.json").read_text())
    crps = {name: scores["crps"]["mean"] for name, scores in metrics["scores"].items()}
    assert crps["dynamical"] < crps["persistence"], crps


def test_a_run_writes_what_the_readme_promises(trained):
    workdir, done = trained
    for name in (
        "config.json",
        "statistics.json",
        "metrics.jsonl",
        "checkpoints/denoiser/300",
        "eval/step_300/table.md",
    ):
        assert (workdir / name).exists(), name
    assert list(workdir.glob("tensorboard/denoiser/events.*"))
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(50, 301, 50))
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert "| dynamical |" in done.stdout and "dressed persistence" in done.stdout
    for said in ("Simulating", "of 300 steps done", str(workdir), "step/s", "loss", "forecasting"):
        assert said in done.stderr


def test_every_score_has_its_definition_and_every_picture_is_there(trained):
    folder = trained[0] / "eval/step_300"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["scores"]) == {
        "dynamical", "persistence", "dressed persistence", "climatology (pooled)", "climatology (same crop)",
    }  # fmt: skip
    for scores in metrics["scores"].values():
        for name in ("crps", "crps_w8_avg", "crps_w8_max", "crps_w8_avg_nonneg", "crps_w8_max_nonneg", "csi_w5", "rmse",
                     "mae", "spread", "spread_skill", "spectrum_error", "rank_histogram", "spectrum"):  # fmt: skip
            assert len(scores[name]["definition"]) > 20
        assert len(scores["crps"]["per_lead"]) == 6
    for name in PICTURES:
        with Image.open(folder / name) as image:
            assert np.asarray(image.convert("L")).std() > 5, f"{name} is blank"
    with Image.open(folder / "animation.gif") as animation:
        assert animation.n_frames == 10
    with np.load(folder / "forecasts.npz") as arrays:
        assert arrays["ensemble"].shape == (8, 4, 6, 16, 16, 2)
        assert arrays["truth"].shape == (4, 6, 16, 16, 2) and arrays["context"].shape == (4, 4, 16, 16, 2)


def test_the_same_command_again_trains_nothing_and_prints_the_same_table(trained, environment):
    workdir, done = trained
    before = (workdir / "eval/step_300/metrics.json").stat().st_mtime
    again = cli.run(command(workdir, *small.flags(**TRAINED)), environment)
    assert again.returncode == 0 and again.stdout == done.stdout
    assert (workdir / "eval/step_300/metrics.json").stat().st_mtime == before


def test_forecast_from_a_file(trained, environment, tmp_path):
    workdir, _ = trained
    with np.load(workdir / "eval/step_300/forecasts.npz") as arrays:
        np.savez(tmp_path / "two.npz", frames=arrays["context"][:2])
    asked = ["--mode=forecast", f"--input={tmp_path}/two.npz", "--members=3"]
    line = command(workdir, *small.flags(**TRAINED), *asked)
    done = cli.run(line, environment)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(workdir / "forecast/two/forecast.npz") as arrays:
        assert arrays["ensemble"].shape == (3, 2, 6, 16, 16, 2)
        assert np.isfinite(arrays["ensemble"]).all()
    with Image.open(workdir / "forecast/two/animation.gif") as animation:
        assert animation.n_frames == 10
    again = cli.run(line, environment)
    assert again.returncode != 0 and "is there already" in again.stderr


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    """SIGKILL after the first checkpoint, then the same command: parameters, average, optimizer and metrics agree."""
    flags = small.flags(
        train__steps=40, train__checkpoint_every=10, train__log_every=5, optimizer__warmup_steps=5,
        evaluation__windows=4, evaluation__members=2, evaluation__figures=(), **small.NETWORK,
    )  # fmt: skip
    two = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    whole = cli.run(command(tmp_path / "whole", *flags), two)
    assert whole.returncode == 0, whole.stderr[-3000:]
    process = cli.Command(command(tmp_path / "killed", *flags), two)
    while not list((tmp_path / "killed/checkpoints/denoiser").glob("[0-9]*")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed = cli.run(command(tmp_path / "killed", *flags), two)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert same_bits(tmp_path / "whole", tmp_path / "killed")
    assert resumed.stdout.replace(str(tmp_path / "killed"), str(tmp_path / "whole")) == whole.stdout


def same_bits(first, second):
    """The last checkpoint, the scores and the losses of two runs."""
    config = build.load(small.config("dynamical,size=tiny", **small.NETWORK))
    made = build.build(config, DataCard.read(first / "statistics.json"))
    mesh = make_mesh(config.mesh)
    weights = [jax.tree.leaves(scoring.load_run(made, mesh, folder)[0]) for folder in (first, second)]
    scores = [
        json.loads((folder / "eval/step_40/metrics.json").read_text())["scores"] for folder in (first, second)
    ]
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (first, second)
    ]
    assert scores[0] == scores[1] and losses[0] == losses[1] and len(losses[0]) == 8
    return all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_noised_context_of_the_release_trains_and_forecasts(tmp_path):
    config = small.config(
        "dynamical,size=tiny", system__process__context="noised", system__process__prediction="eps",
        system__sampler__name="ddim", system__sampler__timesteps="released", system__sampler__nfe=5, mesh__data=1,
        train__steps=2, train__batch_size=2, optimizer__warmup_steps=1, evaluation__windows=4, evaluation__members=2,
        evaluation__figures=(), **small.NETWORK,
    )  # fmt: skip
    commands.train(config, tmp_path)
    assert (tmp_path / "eval/step_2/metrics.json").exists()


def test_a_rolling_forecast_from_nothing(tmp_path):
    """No context frame: an unconditional model, scored beside climatology, drawn and rolled on."""
    config = small.config(
        "rolling,size=tiny", window__num_context=0, conditions__copy_path=False, system__process__clock="init_rescaled",
        mesh__data=1, train__steps=2, train__batch_size=2, optimizer__warmup_steps=1, evaluation__windows=4,
        evaluation__members=2, evaluation__horizon=8, **small.NETWORK,
    )  # fmt: skip
    folder = commands.train(config, tmp_path)
    scores = json.loads((folder / "metrics.json").read_text())["scores"]
    assert set(scores) == {"rolling", "climatology (pooled)", "climatology (same crop)"}
    for name in PICTURES:
        assert (folder / name).exists()
    with Image.open(folder / "animation.gif") as animation:
        assert animation.n_frames == 8
    with pytest.raises(ValueError, match="a model without context frames has no input"):
        commands.forecast(config, tmp_path, tmp_path / "context.npy", 2)


def test_a_step_of_the_papers_experiment_compiles_and_runs():
    """configs/turbulence.py as it is, but for a batch of 1: 64 x 64, 4 -> 11 frames, size S."""
    from configs import turbulence

    config = build.load(turbulence.get_config())
    card = build.spec_card(config)
    assert (card.spec.frame_shape, card.spec.fields) == ((64, 64, 2), config.data.spec().fields)
    (stage,) = build.build(config, card).stages
    params = jax.jit(stage.objective.init)(jax.random.key(0))
    frames = np.random.default_rng(0).normal(size=(1, 15, 64, 64, 2)).astype(np.float32)
    step = jax.jit(
        jax.value_and_grad(lambda p: stage.objective.loss(p, {}, Batch(frames), jax.random.key(1))[0])
    )
    loss, grads = step(params)
    assert np.isfinite(loss)
    norms = [float(np.abs(leaf).max()) for leaf in jax.tree.leaves(grads)]
    assert np.isfinite(norms).all() and max(norms) > 0
