"""Forecasts: units, chunks and keys. The network is replaced by exact denoisers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dydiff_jax.codecs.pointwise import Affine, Identity
from dydiff_jax.diffusion.dynamical import Dynamical
from dydiff_jax.diffusion.rolling import Rolling
from dydiff_jax.diffusion.rolling_dynamical import RollingDynamical
from dydiff_jax.diffusion.rollout import Rollout
from dydiff_jax.diffusion.sampler import Sampler
from dydiff_jax.diffusion.schedules import Cosine
from dydiff_jax.diffusion.standard import Standard
from dydiff_jax.evaluation import forecast
from dydiff_jax.models.conditions import Conditioner
from dydiff_jax.system import CALIBRATION, Window
from dydiff_jax.systems.diffusion import DENOISER, DiffusionForecaster
from dydiff_jax.systems.regression import RegressionForecaster
from dydiff_jax.systems.windows import WindowNetwork
from dydiff_jax.types import Batch, DataSpec

CODEC = Affine((3.0,), (2.0,))
PROCESSES = {
    "standard": Standard(Cosine(), 2, 3, prediction="x0"),
    "dynamical": Dynamical(Cosine(), 2, 3, prediction="x0"),
    "rolling": Rolling(Cosine(), 2, 3, prediction="x0"),
    "rolling_dynamical": RollingDynamical(Cosine(), 2, 3, prediction="x0"),
}
METHODS = (*PROCESSES, "regression")
#: The parameters of an exact denoiser, and what a rolling window with mixing measures.
WEIGHTS = {DENOISER: (), CALIBRATION: np.zeros(1, np.float32)}


def white(inputs):
    """E[x0 | z] = alpha z for white data of variance 1, which standard diffusion denoises exactly."""
    alpha = jnp.sqrt(jax.nn.sigmoid(inputs.level))[:, :, None, None, None]
    return alpha * inputs.x


@dataclasses.dataclass(frozen=True)
class Function:
    """A network without parameters."""

    function: object
    rules = ()

    def apply(self, params, inputs, key=None):
        return self.function(inputs)


def forecaster(method, function=white, nfe=9, codec=CODEC, copy_path=False):
    network = WindowNetwork(
        Function(function),
        codec,
        Conditioner(3, copy_path),
        Window(2, 3),
        DataSpec((4, 4, 1), ("u",), "", 1.0, ""),
    )
    if method == "regression":
        return RegressionForecaster(network)
    return DiffusionForecaster(Rollout(PROCESSES[method], Sampler(nfe=nfe)), network)


def drawn(draw, key, given, members, chunk, horizon=3):
    """[e, n, horizon, h, w, c]."""
    driver = forecast.Ensemble(draw, horizon, chunk)
    pieces = list(driver.pieces(WEIGHTS, jax.random.key(key), given, members))
    assert len(pieces) == driver.num_pieces(members * len(given.frames))
    assert all(piece.seconds > 0 for piece in pieces)
    return forecast.gather(pieces, members, len(given.frames), horizon)


def batch(n):
    frames = np.random.default_rng(0).normal(3, 2, size=(n, 5, 4, 4, 1)).astype(np.float32)
    return Batch(frames)


def test_a_forecast_is_in_physical_units():
    """Exact denoising of white data gives back their law: mean 3 and deviation 2, from encoded draws of N(0, 1)."""
    frames = drawn(forecaster("standard", nfe=64), 0, batch(4), 50, 100)
    count = frames.size
    assert frames.shape == (50, 4, 3, 4, 4, 1)
    assert abs(frames.mean() - 3) < 4 * 2 / np.sqrt(count)
    assert abs(frames.std() / 2 - 1) < 4 / np.sqrt(2 * count) + 1 / 64


@pytest.mark.slow
def test_a_long_rolling_forecast_has_the_same_law_at_every_lead():
    frames = drawn(forecaster("rolling", nfe=192), 0, batch(4), 50, 200, 11)
    count = frames[:, :, 0].size
    assert frames.shape == (50, 4, 11, 4, 4, 1)
    assert np.abs(frames.mean(axis=(0, 1, 3, 4, 5)) - 3).max() < 4 * 2 / np.sqrt(count)
    assert np.abs(frames.std(axis=(0, 1, 3, 4, 5)) / 2 - 1).max() < 4 / np.sqrt(2 * count) + 1 / 64


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_chunks_do_not_change_an_ensemble(method):
    whole, parts = (drawn(forecaster(method), 1, batch(3), 4, chunk, 5) for chunk in (12, 5))
    np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_longer_horizon_begins_with_the_frames_of_a_shorter_one(method):
    short, long = (drawn(forecaster(method), 0, batch(2), 2, 4, horizon) for horizon in (2, 10))
    np.testing.assert_array_equal(long[:, :, :2], short)
    assert np.isfinite(long).all()


def test_members_and_windows_differ_and_the_seed_decides():
    draw = forecaster("standard")
    same = batch(1)._replace(frames=np.repeat(batch(1).frames, 2, axis=0))
    first, again, other = (drawn(draw, seed, same, 3, 6) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    draws = np.concatenate([first, other]).reshape(12, -1)
    assert len(np.unique(draws[:, 0])) == 12


@pytest.mark.parametrize("method", METHODS)
def test_an_ensemble_traces_the_network_once(method):
    traces = []

    def counted(inputs):
        traces.append(inputs.x.shape)
        return white(inputs)

    drawn(forecaster(method, counted), 0, batch(3), 5, 4, 20)
    assert traces == [(4, 5, 4, 4, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["standard", "rolling_dynamical"])
def test_500_frames_use_the_memory_of_50_and_compile_nothing_after_the_first_window(method):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )

    def most_bytes(horizon):
        used, counts = [], []
        driver = forecast.Ensemble(forecaster(method), horizon, 4)
        for piece in driver.pieces(WEIGHTS, jax.random.key(0), batch(2), 2):
            assert piece.frames.shape[1] <= 3
            used.append(sum(x.nbytes for x in jax.live_arrays()))
            counts.append(len(compiled))
        assert counts[0] > 0, "the listener hears of compilations"
        assert counts[-1] == counts[0], "nothing is compiled after the first piece"
        assert len(used) == -(-(horizon + (2 if method.startswith("rolling") else 0)) // 3)
        return max(used), used[1:]

    (short, _), (long, later) = most_bytes(50), most_bytes(500)
    assert long == short
    assert len(set(later)) == 1, "memory does not grow with the horizon"


def test_a_block_rollout_goes_on_from_its_own_frames():
    """A regression that adds 1 to the last context frame counts windows."""

    def one_more(inputs):
        return jnp.repeat(inputs.x[:, 1:2], 5, axis=1) + 1

    frames = drawn(forecaster("regression", one_more), 0, batch(2), 1, 2, 8)
    expected = (
        batch(2).frames[:, 1, None] + CODEC.std[0] * np.array([1, 1, 1, 2, 2, 2, 3, 3])[:, None, None, None]
    )
    np.testing.assert_allclose(frames[0], expected, rtol=1e-5)


@pytest.mark.parametrize("horizon", [1, 3, 8])
@pytest.mark.parametrize("method", ["standard", "rolling", "regression"])
def test_conditions_are_those_of_the_window(method, horizon):
    """The copy path carries the newest clean frame, and forcings are those of the window's own frames."""

    def last_action(inputs):
        conditions = inputs.conditions
        assert conditions.channels.shape[-1] == 2 and conditions.forcings.shape == (4, 5, 1)
        same = jnp.abs(conditions.channels[..., :1] - inputs.x[:, 1:2]).max()
        return jnp.broadcast_to(conditions.forcings[:, :, :, None, None], inputs.x.shape) + 1e3 * same

    draw = forecaster(method, last_action, codec=Identity(), copy_path=True)
    needed = forecast.num_forcings(draw, horizon)
    assert needed >= 2 + horizon
    forcings = np.tile(np.arange(needed, dtype=np.float32)[:, None], (4, 1, 1))
    given = batch(4)._replace(forcings=forcings)
    frames = drawn(draw, 0, given, 1, 4, horizon)
    np.testing.assert_allclose(
        frames[0, :, :, 0, 0, 0], np.tile(np.arange(2, 2 + horizon), (4, 1)), atol=1e-4
    )
    with pytest.raises(ValueError, match=rf"^forcings: expected a row for each of {needed} frames"):
        drawn(draw, 0, given._replace(forcings=forcings[:, :-1]), 1, 4, horizon)


def test_a_deterministic_forecaster_has_one_member():
    ensemble = forecast.Ensemble(forecaster("regression"), 3, 4)
    assert ensemble.members(8) == 1 and forecast.Ensemble(forecaster("rolling"), 3, 4).members(8) == 8


def test_the_context_alone_is_read():
    """Frames after the context do not exist at forecast time; changing them changes nothing."""
    draw = forecaster("dynamical")
    full = batch(2)
    cut = Batch(full.frames[:, :2])
    a, b = (drawn(draw, 0, x, 2, 4) for x in (full, cut))
    np.testing.assert_array_equal(a, b)


def test_chunks_cover_every_row_with_one_shape():
    for total, size in ((7, 3), (6, 3), (2, 5)):
        groups = list(forecast.chunks(total, size))
        assert {len(group) for group in groups} == {size}
        assert np.unique(np.concatenate(groups)).tolist() == list(range(total))
