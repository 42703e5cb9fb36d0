"""What a user gets wrong is named before any long work: by the command line, and for data, directories and meshes."""

import json
import pathlib
import shutil
import time

import numpy as np
import pytest

from configs import folder
from dydiff_jax import build
from dydiff_jax.data.card import DataCard
from dydiff_jax.distributed.mesh import make_mesh
from dydiff_jax.evaluation import context_file
from dydiff_jax.runs import commands, scoring
from dydiff_jax.types import DataSpec
from tests import cli, small

ROOT = pathlib.Path(__file__).parents[1]
SPEC = DataSpec((16, 16, 2), ("u", "v"), "m/s", 1.0, "s")


def own_data(path, **changes):
    """A tiny run on a folder of arrays; 16 x 16, 4 -> 6 frames."""
    config = folder.get_config("dynamical,size=tiny")
    values = {"data.path": str(path), "mesh.data": 1, "train.steps": 2, "train.batch_size": 2,
              "optimizer.warmup_steps": 1,
              "evaluation.windows": 2, "evaluation.members": 2, "evaluation.figures": (),
              "system.sampler.nfe": 1}  # fmt: skip
    changed = {name.replace("__", "."): value for name, value in (small.NETWORK | changes).items()}
    config.update_from_flattened_dict(values | changed)
    return config


def waves(frames=160, side=16):
    """Two travelling waves, float32 [frames, side, side, 2]."""
    t, x = np.arange(frames)[:, None, None], np.arange(side)
    phase = 2 * np.pi * x / side
    u = np.sin(phase[None, None] - 0.2 * t) + 0 * phase[None, :, None]
    v = np.cos(phase[None, :, None] - 0.1 * t) + 0 * phase[None, None]
    return np.stack([u, v], axis=-1).astype(np.float32)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A folder of two trajectories."""
    path = tmp_path_factory.mktemp("own") / "data"
    path.mkdir()
    for i in range(2):
        np.save(path / f"wave_{i}.npy", waves())
    return path


@pytest.fixture(scope="module")
def run(originals):
    """A run of two steps on them."""
    commands.train(own_data(originals), originals.parent / "run")
    return originals.parent / "run"


@pytest.fixture
def data(originals, tmp_path):
    """A copy of the data that a test may spoil."""
    return shutil.copytree(originals, tmp_path / "data")


@pytest.fixture
def trained(run, originals, data, tmp_path):
    """A copy of the run, on the copy of the data."""
    copy = shutil.copytree(run, tmp_path / "run")
    config = (copy / "config.json").read_text().replace(str(originals), str(data))
    (copy / "config.json").write_text(config)
    return copy


@pytest.mark.slow
def test_own_data_train_with_three_lines(trained):
    scores = json.loads((trained / "eval/step_2/metrics.json").read_text())["scores"]
    assert np.isfinite(scores["dynamical"]["crps"]["mean"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config=configs/turbulence.py:dinamical"], "did you mean 'dynamical'"),
        (["--config=configs/turbulence.py:dynamical,size=huge"], "expected a size among"),
        (["--config=configs/turbulence.py", "--config.system.process.etta=0.5"], "etta"),
        (["--config=configs/turbulence.py", "--config.system.process.eta=0.99"], "expected at most 0.98"),
        (["--config=configs/turbulence.py", "stray"], "unexpected arguments"),
        (["--config=configs/turbulence.py", "--mode=forecast"], "--input"),
        (["--config=configs/turbulence.py", "--substeps=8"], "--substeps=N belongs to --mode=forecast"),
        (["--config=configs/folder.py"], "config.data.path"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_the_command_line_says_what_is_wrong(arguments, message, tmp_path):
    started = time.monotonic()
    done = cli.run(["dydiff_jax.main", f"--workdir={tmp_path}/run", *arguments], timeout=120)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    assert time.monotonic() - started < 60
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "not a whole .npy or .npz file"),
        (
            lambda path: np.save(path, np.where(np.arange(160)[:, None, None, None] == 7, np.nan, waves())),
            "frame 7",
        ),
        (lambda path: np.save(path, waves()[..., 0]), "expected numbers with axes"),
        (lambda path: np.save(path, waves(side=8)), "expected frames"),
        (
            lambda path: np.save(path, np.array([{"a": 1}], object), allow_pickle=True),
            "not a whole .npy or .npz file",
        ),
    ],
    ids=["truncated", "nan", "axes", "grid", "pickle"],
)
def test_a_bad_data_file_is_named(spoil, message, data, tmp_path):
    spoil(data / "wave_1.npy")
    with pytest.raises(ValueError, match=message) as error:
        commands.train(own_data(data), tmp_path / "run")
    assert "wave_1.npy" in str(error.value)


def test_a_missing_folder_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        commands.train(own_data(tmp_path / "nowhere"), tmp_path / "run")


def test_more_context_than_frames(data, tmp_path):
    with pytest.raises(ValueError, match="holds no window of 206 frames"):
        commands.train(own_data(data, window__num_context=200), tmp_path / "run")


def test_more_test_windows_than_there_are(data, tmp_path):
    with pytest.raises(ValueError, match="evaluation.windows: expected at most"):
        commands.train(own_data(data, evaluation__windows=10_000), tmp_path / "run")


def test_a_grid_smaller_than_the_pooling_window(data, tmp_path):
    """A score that is asked for is refused."""
    config = own_data(data, scores__pool_window=17, scores__names=("crps", "crps_w17_avg"))
    with pytest.raises(ValueError, match="config.scores.names: no crps_w17_avg .*pool_window"):
        commands.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_score_that_was_left_out_is_named_with_the_reason_beside_the_table(data, tmp_path):
    folder = commands.train(own_data(data, scores__pool_window=17), tmp_path / "run")
    header, table = json.loads((folder / "metrics.json").read_text()), (folder / "table.md").read_text()
    assert header["left_out"].keys() == {
        f"crps_w17_{name}" for name in ("avg", "max", "avg_nonneg", "max_nonneg")
    }
    reason = "pool_window: expected at most the shorter side of the grid of 16 x 16, found 17"
    assert table.count(reason) == 4 and f"Without crps_w17_avg: {reason}." in table
    assert header["scores"]["dynamical"].keys().isdisjoint(header["left_out"])


def test_a_validation_split_without_a_window_of_the_horizon_is_refused_where_it_is_to_be_scored(
    data, tmp_path
):
    """Training and test have room for a horizon of 30 frames, validation has not."""
    wanted = dict(evaluation__horizon=30, dataset__split="time", dataset__fractions=(0.5, 0.2, 0.3))
    commands.open_data(build.load(own_data(data, **wanted)))
    with pytest.raises(ValueError, match="config.train.validate_every: .*horizon of 30, found none; use"):
        commands.train(own_data(data, **wanted, train__validate_every=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_the_mesh_does_not_divide(data, tmp_path):
    with pytest.raises(ValueError, match=r"batch_size: expected a multiple of the 2 parts"):
        commands.train(own_data(data, mesh__data=2, train__batch_size=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mesh_that_does_not_fit_the_devices(data, tmp_path):
    with pytest.raises(ValueError, match="mesh .* does not fit"):
        commands.train(own_data(data, mesh__data=3, mesh__fsdp=3), tmp_path / "run")


def test_a_missing_run_beside_is_found_before_training(data, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="config.evaluation.beside: .*expected the --workdir of a trained"
    ):
        commands.train(own_data(data, evaluation__beside=(str(tmp_path / "none"),)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_work_directory_of_another_config_is_refused_with_the_difference(trained, data):
    with pytest.raises(ValueError, match=r"system.process.eta: 0.5 there, 0.9 asked for"):
        commands.train(own_data(data, system__process__eta=0.9), trained)
    with pytest.raises(ValueError, match=r"system.process.eta: 0.5 there, 0.9 asked for"):
        commands.evaluate_run(own_data(data, system__process__eta=0.9), trained)


@pytest.mark.slow
def test_data_that_changed_since_the_run_began_are_refused(trained, data):
    np.save(data / "wave_0.npy", 2 * waves())
    with pytest.raises(ValueError, match="not the data that the run began with"):
        commands.train(own_data(data), trained)


def test_evaluating_before_training_says_so(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="train first"):
        commands.evaluate_run(own_data(data), tmp_path / "nothing")


@pytest.mark.slow
def test_an_evaluation_with_other_options_stands_beside_the_first(trained, data):
    before = (trained / "eval/step_2/metrics.json").read_bytes()
    commands.evaluate_run(own_data(data, evaluation__members=3), trained)
    assert (trained / "eval/step_2/metrics.json").read_bytes() == before
    assert json.loads((trained / "eval/step_2-2/metrics.json").read_text())["members"] == 3
    commands.evaluate_run(own_data(data, evaluation__members=3), trained)
    assert not (trained / "eval/step_2-3").exists()


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_named_leaf_by_leaf(trained, data):
    config = build.load(own_data(data, networks__denoiser__channels=(16, 32)))
    run = build.build(config, DataCard.read(trained / "statistics.json"))
    with pytest.raises(ValueError, match=r"(?s)does not fit the model.*expected float32\[.*found float32\["):
        scoring.load_run(run, make_mesh(config.mesh), trained)


CONTEXTS = {
    "channels": (np.zeros((4, 16, 16, 3), np.float32), r"expected frames \[4 or more frames, h, w, 2\]"),
    "too few": (np.zeros((3, 16, 16, 2), np.float32), r"found shape \[1, 3, 16, 16, 2\]"),
    "axes": (np.zeros((16, 16), np.float32), r"found shape \[16, 16\]"),
    "nan": (
        np.full((4, 16, 16, 2), np.nan, np.float32),
        "window 0, frame 0 holds a value that is not finite",
    ),
    "complex": (np.zeros((4, 16, 16, 2), complex), "expected real numbers"),
    "grid": (np.zeros((4, 15, 16, 2), np.float32), "grid 15 x 16"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTEXTS)
def test_a_bad_forecast_input(name, trained, data, tmp_path):
    frames, message = CONTEXTS[name]
    np.save(tmp_path / "context.npy", frames)
    with pytest.raises(ValueError, match=message):
        commands.forecast(own_data(data), trained, tmp_path / "context.npy", 2)
    assert not (trained / "forecast").exists()


def test_a_forecast_input_that_is_no_array(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        context_file.read_context(tmp_path / "none.npy", 4, SPEC, 10)
    (tmp_path / "text.npy").write_text("not an array")
    with pytest.raises(ValueError, match="not a whole .npy or .npz file"):
        context_file.read_context(tmp_path / "text.npy", 4, SPEC, 10)
    np.savez(tmp_path / "other.npz", data=np.zeros(3))
    with pytest.raises(ValueError, match='expected an array "frames", found'):
        context_file.read_context(tmp_path / "other.npz", 4, SPEC, 10)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


FORCED = SPEC._replace(forcings=("wind", "rain"), static=("height",))
FRAMES, ROWS, FIELDS = np.zeros((6, 16, 16, 2), np.float32), np.zeros((12, 2)), np.zeros((16, 16, 1))


@pytest.mark.parametrize(
    "spec, arrays, message",
    [
        (SPEC, dict(frames=FRAMES, rows=ROWS), r"expected arrays among .*, found \['rows'\] too"),
        (SPEC, dict(frames=FRAMES, forcings=ROWS), 'expected no "forcings": the model was trained without'),
        (SPEC, dict(frames=FRAMES, static=FIELDS), 'expected no "static" fields: the model was trained without'),
        (FORCED, dict(frames=FRAMES, static=FIELDS), r'expected "forcings" .*found None'),
        (FORCED, dict(frames=FRAMES, forcings=ROWS[:11], static=FIELDS), r"\[1, 12 or more, 2\].* found \[1, 11, 2\]"),
        (FORCED, dict(frames=FRAMES, forcings=ROWS[:, :1], static=FIELDS), r"12 or more, 2\].* found \[1, 12, 1\]"),
        (FORCED, dict(frames=FRAMES, forcings=ROWS), r'expected "static" fields .* found None'),
        (FORCED, dict(frames=FRAMES, forcings=ROWS, static=FIELDS[:8]), r"found \[1, 8, 16, 1\]"),
        (SPEC, dict(frames=FRAMES, observed=FRAMES), 'expected "observed" of bool, found float32'),
        (SPEC, dict(frames=FRAMES, observed=np.ones((5, 1, 1, 1), bool)), 'expected "observed" that broadcasts'),
    ],
)  # fmt: skip
def test_what_is_known_in_advance_is_checked_with_the_frames(spec, arrays, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        context_file.read_context(save(tmp_path / "context.npz", **arrays), 4, spec, 10)


def test_the_last_frames_are_read_with_the_forcings_from_the_first_of_them_on(tmp_path):
    frames = np.broadcast_to(np.arange(6.0)[:, None, None, None], (6, 16, 16, 2))
    rows = np.arange(24.0).reshape(12, 2)
    mask = np.arange(6).reshape(6, 1, 1, 1) != 3
    missing = np.where(mask, frames, np.nan)
    path = save(tmp_path / "context.npz", frames=missing, observed=mask, forcings=rows, static=FIELDS)
    batch = context_file.read_context(path, 4, FORCED, 10)
    assert batch.frames.shape == (1, 4, 16, 16, 2) and batch.static.shape == (1, 16, 16, 1)
    np.testing.assert_array_equal(batch.frames[0, [0, 2, 3], 0, 0, 0], [2, 4, 5])
    np.testing.assert_array_equal(batch.observed[0, :, 0, 0, 0], [True, False, True, True])
    np.testing.assert_array_equal(batch.forcings[0, :, 0], rows[2:, 0])
