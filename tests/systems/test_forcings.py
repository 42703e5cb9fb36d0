"""What is known in advance reaches the frames that it leads to: in training, in every rollout, and from a file."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from dydiff_jax.data.sources import SOURCES
from dydiff_jax.data.trajectories import Trajectories
from dydiff_jax.models.network import MODELS, Model, NetworkOptions
from dydiff_jax.runs import commands
from dydiff_jax.types import DataSpec

pytestmark = pytest.mark.slow

#: Of the recursion x_{t+1} = A x_t + forcing_{t+1}.
A = 0.8
CONTEXT, FORECAST, HORIZON = 1, 2, 5


def recordings(number=12, length=40):
    """Frames [length, 4, 4, 1] that obey the recursion, and the forcings [length, 1] that led to them."""
    rng = np.random.default_rng(number)
    found = []
    for _ in range(number):
        forcings = rng.normal(size=(length, 1)).astype(np.float32)
        frames = [rng.normal(size=(4, 4, 1)).astype(np.float32)]
        for forcing in forcings[1:]:
            frames.append(A * frames[-1] + forcing)
        found.append((np.stack(frames), forcings))
    return found


@dataclasses.dataclass(frozen=True)
class Forced:
    """The recordings, or with forcings of other times."""

    shuffled: bool = False

    def spec(self):
        return DataSpec((4, 4, 1), ("x",), "K", 1.0, "h", forcings=("insolation",))

    def load(self):
        frames, forcings = zip(*recordings(), strict=True)
        if self.shuffled:
            forcings = [np.random.default_rng(0).permutation(rows) for rows in forcings]
        return Trajectories(
            arrays=frames,
            names=tuple(f"recording {number}" for number in range(len(frames))),
            fields=("x",),
            interval=1.0,
            time_unit="h",
            unit="K",
            periodic_x=False,
            forcings=tuple(forcings),
            forcing_names=("insolation",),
        )


@dataclasses.dataclass(frozen=True)
class Small(NetworkOptions):
    """Base of the networks of these tests: options and network in one."""

    rules, joins_frames = (), False

    def build(self, channels):
        return self


@dataclasses.dataclass(frozen=True)
class Linear(Small):
    """Every frame is a linear map of all frames and all forcings of its window."""

    def init(self, key, inputs):
        count = inputs.x.shape[1]
        return {"frames": jnp.zeros((count, count)), "forcings": jnp.zeros((count, count))}

    def apply(self, params, inputs, key=None):
        moved = jnp.einsum("fg,bghwc->bfhwc", params["frames"], inputs.x)
        return (
            moved
            + jnp.einsum("fg,bgm->bfm", params["forcings"], inputs.conditions.forcings)[:, :, None, None]
        )


@dataclasses.dataclass(frozen=True)
class Echo(Small):
    """Every frame is its own forcing."""

    def init(self, key, inputs):
        return {"weight": jnp.ones(())}

    def apply(self, params, inputs, key=None):
        rows = inputs.conditions.forcings[:, :, None, None]
        return params["weight"] * jnp.broadcast_to(rows, inputs.x.shape)


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The source and the networks have their names for the length of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "forced", Forced)
        patch.setitem(MODELS, "linear", Model(Linear, {"only": {}}))
        patch.setitem(MODELS, "echo", Model(Echo, {"only": {}}))
        yield


def config(method, network, shuffled=False, **changes):
    raw = base.get_config(method, "tiny", "cosine")
    base.miniature(raw)
    del raw.networks
    raw.networks = {"denoiser": dict(name=network, size="only")}
    raw.data = dict(name="forced", shuffled=shuffled)
    raw.codec.name = "identity"
    raw.conditions.copy_path = False
    raw.window.update(num_context=CONTEXT, num_forecast=FORECAST)
    raw.dataset.update(crop=None, random_crop=False, split="trajectory")
    raw.mesh.data = 1
    raw.train.update(steps=2, batch_size=16, log_every=1, checkpoint_every=1000)
    raw.optimizer.update(learning_rate=1e-30, warmup_steps=1, weight_decay=0.0)
    raw.evaluation.update(members=2, windows=4, horizon=HORIZON, saved=4, figures=())
    if "sampler" in raw.system:
        raw.system.process.prediction = "x0"
        raw.system.sampler.update(name="ddim", nfe=4)
    raw.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return raw


def context(path, rows=30):
    """A file with three frames, of which the last is the context, and its forcings."""
    frames, forcings = recordings(1)[0]
    np.savez(path, frames=frames[:3], forcings=forcings[:rows])
    return frames, forcings


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """Runs of the regression with the forcings of its frames, and with those of other times."""
    home, folders = tmp_path_factory.mktemp("learnt"), {}
    changes = dict(train__steps=400, optimizer__learning_rate=0.03, ema__decay=0.9, train__log_every=100)
    for shuffled in (False, True):
        raw = config("regression", "linear", shuffled, **changes)
        folders[shuffled] = commands.train(raw, home / str(shuffled)), raw
    return folders


def test_a_network_learns_from_forcings_and_not_from_shuffled_ones(learnt):
    found = {
        shuffled: json.loads((folder / "metrics.json").read_text())["scores"]["regression"]["rmse"]["mean"]
        for shuffled, (folder, _) in learnt.items()
    }
    assert found[False] < 0.05, "the recursion has no noise"
    assert found[True] > 10 * found[False]


def test_a_forecast_from_a_file_obeys_the_recursion_at_every_lead(learnt, tmp_path):
    """Five frames in blocks of two: a forcing that came a frame early or late would show in each of them."""
    folder, raw = learnt[False]
    frames, forcings = context(tmp_path / "context.npz")
    commands.forecast(raw, folder.parents[1], tmp_path / "context.npz", None)
    with np.load(folder.parents[1] / "forecast/context/forecast.npz") as arrays:
        np.testing.assert_array_equal(arrays["context"][0], frames[2:3])
        found = arrays["ensemble"][0, 0]
    np.testing.assert_allclose(found, frames[3 : 3 + HORIZON], atol=0.1)
    before = np.concatenate([frames[2:3], found])
    np.testing.assert_allclose(
        (before[1:] - A * before[:-1]).mean((1, 2, 3)), forcings[3 : 3 + HORIZON, 0], atol=0.1
    )


@pytest.mark.parametrize("method", ["standard", "rolling", "regression"])
def test_the_forcing_that_led_to_a_frame_arrives_with_it(method, tmp_path):
    """In the evaluation and from a file, for a horizon of several windows: the network gives it back."""
    raw = config(method, "echo")
    folder = commands.train(raw, tmp_path / "run")
    with np.load(folder / "forecasts.npz") as arrays:
        for window in range(4):
            expected = forcings_of(arrays["context"][window])
            found = arrays["ensemble"][:, window]
            np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-5)
    _, forcings = context(tmp_path / "context.npz")
    commands.forecast(raw, tmp_path / "run", tmp_path / "context.npz", 2)
    with np.load(tmp_path / "run/forecast/context/forecast.npz") as arrays:
        found = arrays["ensemble"]
    expected = forcings[3 : 3 + HORIZON, :, None, None]
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-5)
    context(tmp_path / "short.npz", rows=2 + CONTEXT + HORIZON - 1)
    with pytest.raises(ValueError, match='expected "forcings"'):
        commands.forecast(raw, tmp_path / "run", tmp_path / "short.npz", 2)


def forcings_of(last):
    """[HORIZON, 1, 1, 1], those that follow a context of one frame, which is found in the recordings."""
    for frames, forcings in recordings():
        hits = np.flatnonzero((frames == last[0]).all((1, 2, 3)))
        if hits.size:
            return forcings[hits[0] + 1 : hits[0] + 1 + HORIZON, :, None, None]
    raise AssertionError("a window that is in no recording")
