"""What a forecast and its training cost, in one currency for every system."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from dydiff_jax import build
from dydiff_jax.config import plain
from dydiff_jax.diffusion.dyffusion import Leads
from dydiff_jax.diffusion.walk import WalkSampler
from dydiff_jax.models.cnn import CNNOptions
from dydiff_jax.models.uvit import UViTOptions
from dydiff_jax.runs import scoring
from dydiff_jax.system import Window
from dydiff_jax.systems.diffusion import DiffusionForecaster
from dydiff_jax.systems.dyffusion import Walk
from dydiff_jax.systems.regression import RegressionForecaster
from dydiff_jax.systems.windows import FrameNetwork, WindowNetwork
from tests import dummy

WIDE = UViTOptions(channels=(16,), blocks=(1,), kinds=("axial",), dropout=(0.0,), head_dim=8).build(1)
IMAGE = CNNOptions(features=8).build(1)


def walk(leads, network=IMAGE, count=2, **sampler):
    """DYffusion whose networks see ``count`` frames."""
    networks = {
        role: FrameNetwork(network, None, None, None, count, 1.0) for role in ("forecaster", "interpolator")
    }
    return Walk(SimpleNamespace(process=SimpleNamespace(leads=leads), **networks), WalkSampler(**sampler))


@pytest.mark.parametrize(
    "leads, sampler, expected",
    [
        (Leads(7, extra=25), {}, 93 / 7),  # SST: 32 F and 61 I for 7 days
        (Leads(16), {}, 45 / 16),  # Navier-Stokes
        (Leads(16), {"refine": True}, 60 / 16),
        (Leads(134), {"refine": True}, (3 * 134 - 3 + 133) / 134),  # spring mesh
        (Leads(4), {"name": "naive"}, 7 / 4),
    ],
)
def test_a_walk_takes_the_frames_that_its_calls_take(leads, sampler, expected):
    found = walk(leads, **sampler)
    assert found.network_frames_per_frame == found.nfe_per_frame == pytest.approx(expected, rel=1e-15)
    assert walk(leads, WIDE, 3, **sampler).network_frames_per_frame == pytest.approx(3 * expected, rel=1e-15)


def test_an_evaluation_of_a_window_takes_all_of_its_frames():
    """N (p + k) / k of a denoiser, (p + k) / k of a regression; 1 in place of p + k where frames are channels."""
    for network, frames in ((WIDE, 15), (IMAGE, 1)):
        windows = WindowNetwork(network, None, None, Window(4, 11), None)
        rollout = SimpleNamespace(process=SimpleNamespace(num_forecast=11), sampler=SimpleNamespace(nfe=55))
        assert DiffusionForecaster(rollout, windows).network_frames_per_frame == 55 * frames / 11
        assert RegressionForecaster(windows).network_frames_per_frame == frames / 11


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for number in range(3):
        np.save(folder / f"{number}.npy", np.zeros((20, 8, 8, 1), np.float32))
    return folder


def config(data, **changes):
    raw = dummy.get_config("corrected")
    raw.data.path = str(data)
    raw.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return raw


def log(directory, *lines):
    directory.mkdir(exist_ok=True)
    entries = [dict(stage=stage, step=step, steps_per_second=rate) for stage, step, rate in lines]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_training_is_that_of_all_stages_wherever_they_were_trained(data, tmp_path):
    """A step of the first stage: forward, and the gradient of its one kernel, 2 FLOPs a point of 4 x 4 frames each."""
    raw = config(data)
    run = build.build(build.load(raw), build.spec_card(build.load(raw)))
    own, other = tmp_path / "own", tmp_path / "other"
    log(own, ("step", 100, 10.0), ("step", 200, 20.0), ("correction", 50, 5.0))
    found = scoring.training_cost(run, own)
    assert (
        found["training_steps"] == 250
        and found["training_seconds"] == 25.0
        and found["steps_per_second"] == 5.0
    )
    gflop = {name: stage["gflop"] for name, stage in found["stages"].items()}
    points = 4 * 4 * 8 * 8
    assert gflop["step"] == pytest.approx(200 * points * 2 * 2 / 1e9)
    assert found["training_gflop"] == pytest.approx(sum(gflop.values()))

    log(other, ("step", 300, 10.0))
    raw = config(data, stages={"step": {"source": str(other)}})
    run = build.build(build.load(raw), build.spec_card(build.load(raw)))
    log(own, ("correction", 50, 5.0))
    (other / "config.json").write_text(json.dumps(plain(config(data, train__batch_size=8))))
    shared = scoring.training_cost(run, own)
    assert shared["stages"]["correction"] == found["stages"]["correction"]
    assert shared["stages"]["step"] == {
        "steps": 300,
        "seconds": 30.0,
        "gflop": pytest.approx(3 * gflop["step"]),
    }
    assert shared["training_steps"] == 350 and shared["training_seconds"] == 40.0

    (other / "config.json").write_text(json.dumps({"of": "another version"}))
    older = scoring.training_cost(run, own)
    assert older["stages"]["step"]["gflop"] is None and older["training_gflop"] is None
    (other / "metrics.jsonl").unlink()
    assert scoring.training_cost(run, own)["training_seconds"] is None
