"""The Kolmogorov data set: what it draws, records and refuses, and the presets of its config."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import kolmogorov
from dydiff_jax import build
from dydiff_jax.config import ConfigError
from dydiff_jax.data.simulators import ensemble
from dydiff_jax.data.simulators import kolmogorov as solver
from dydiff_jax.data.sources.kolmogorov import Kolmogorov
from dydiff_jax.data.splits import DatasetOptions, make_splits
from dydiff_jax.systems import SYSTEMS

#: The systems of the package; other tests may register their own.
METHODS = [name for name, entry in SYSTEMS.items() if entry.options.__module__.startswith("dydiff_jax.")]

SMALL = dict(cells=16, out_cells=8, interval=0.5, spin_up=1.0, duration=2.0, trajectories=3)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Three trajectories, made in this process through the whole of `load`."""
    source = Kolmogorov(**SMALL, cache_dir=str(tmp_path_factory.mktemp("cache")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ensemble, "run_workers", lambda options, indices, _, report: simulate(options, indices, report)
        )
        source.load()
    return source


def simulate(options, indices, report):
    for index in indices:
        ensemble.simulate(options, [index], report)


def test_the_manifest_tells_what_each_film_is(simulated):
    """From the numbers in it, and the first state, the solver makes the film again."""
    manifest = json.loads((simulated.folder / "manifest.json").read_text())
    assert manifest["cells"] == 16 and manifest["viscosity"] == [5e-4, 5e-3]
    assert list(manifest["drawn"]) == [part.path.name for part in simulated.parts()]
    drawn = manifest["drawn"]["trajectory_002.npy"]
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2), 0)
    flow = solver.initial(key, 16, max_speed=7.0)
    physics = solver.Physics(drawn["viscosity"], drawn["density"])
    time_step = solver.TimeStep(0.025, 16, 7.0, 0.01)
    flow = jax.jit(solver.advance, static_argnums=(2, 3))(flow, physics, time_step, 60)
    film = simulated.parts()[2].open()
    expected = np.stack([np.roll(flow.u, -1, axis=1), np.roll(flow.v, -1, axis=0)], axis=-1)
    expected_u = (expected[::2, 1::2, 0] + expected[1::2, 1::2, 0]) / 2  # right faces of blocks of two cells
    expected_v = (expected[1::2, ::2, 1] + expected[1::2, 1::2, 1]) / 2  # upper faces
    np.testing.assert_allclose(film[0, ..., 0], expected_u, rtol=2**-10, atol=1e-4)
    np.testing.assert_allclose(film[0, ..., 1], expected_v, rtol=2**-10, atol=1e-4)


def test_frames_are_the_faces_in_half_precision():
    """Rounded to nearest: an error of at most 2^-11 of the value; 200 frames of 64 x 64 are 3.3 MB."""
    source = Kolmogorov(**SMALL | dict(out_cells=16))
    state = source.initial(0)
    frame = np.asarray(source.frame(state))
    assert frame.dtype == np.float16 and frame.shape == source.frame_shape
    exact = np.stack([np.roll(state.flow.u, -1, axis=1), np.roll(state.flow.v, -1, axis=0)], axis=-1)
    assert np.all(np.abs(frame - exact) <= 2**-11 * np.abs(exact) + 2**-25)
    np.testing.assert_allclose(np.sqrt((state.flow.u**2 + state.flow.v**2).max()), 7.0, rtol=1e-6)


def test_recorded_frames_are_free_of_divergence(simulated):
    """Face means of a flow without divergence have none: what is left is the rounding of four faces."""
    u, v = np.moveaxis(np.asarray(simulated.load().read(1, 0, 4)), -1, 0)
    outflow = u - np.roll(u, 1, axis=2) + v - np.roll(v, 1, axis=1)
    assert np.abs(u).max() > 1.0
    assert np.abs(outflow).max() <= 4 * 2**-11 * max(np.abs(u).max(), np.abs(v).max())


def test_parameters_are_uniform_in_their_bounds_and_independent():
    source = Kolmogorov(**SMALL)
    drawn = np.array([list(source.parameters(i).values()) for i in range(400)])
    low, high = np.array([5e-4, 0.5]), np.array([5e-3, 2.0])
    share = (drawn - low) / (high - low)
    assert share.min() >= 0 and share.max() < 1
    for column in share.T:  # Kolmogorov-Smirnov distance: above 1.95 / sqrt(n) with probability 0.001
        ranks = np.arange(401) / 400
        ordered = np.sort(column)
        assert max(np.max(ranks[1:] - ordered), np.max(ordered - ranks[:-1])) < 1.95 / 20
    assert abs(np.corrcoef(share.T)[0, 1]) < 4 / 20
    fixed = Kolmogorov(**SMALL, viscosity=(1e-3, 1e-3), density=(1.0, 1.0))
    assert fixed.parameters(5) == {"viscosity": 1e-3, "density": 1.0}


def test_the_state_carries_what_was_drawn():
    source = Kolmogorov(**SMALL)
    for index in (0, 7):
        state = source.initial(index)
        np.testing.assert_allclose([state.viscosity, state.density], list(source.parameters(index).values()))
    assert float(jnp.abs(source.initial(0).flow.u - source.initial(7).flow.u).max()) > 1.0


def test_windows_cannot_be_mirrored(simulated):
    """Alone, the mirror image in x is no solution; see the test of the solver."""
    trajectories = simulated.load()
    assert trajectories.mirror is None and trajectories.periodic_x
    with pytest.raises(ValueError, match="flip: the mirror image of these data is not known"):
        make_splits(trajectories, DatasetOptions(1, 1, split="trajectory", flip=True))


@pytest.mark.parametrize(
    "changes",
    [
        dict(viscosity=(0.0, 1e-3)),
        dict(viscosity=(1e-3,)),
        dict(density=(2.0, 1.0)),
        dict(max_speed=0.0),
        dict(courant=-1.0),
        dict(cells=8),
        dict(out_cells=0),
        dict(out_cells=5),
        dict(interval=0.12),
        dict(interval=0.01),
    ],
)
def test_options_are_checked_and_named(changes):
    with pytest.raises(ValueError, match=f"^{next(iter(changes))}: "):
        Kolmogorov(**SMALL | changes)


@pytest.mark.parametrize("changes", [dict(courant=0.9), dict(cells=256, out_cells=8, viscosity=(1e-3, 1.0))])
def test_a_time_step_beyond_the_limit_is_refused_before_any_work(changes):
    with pytest.raises(ValueError, match=r"^courant: a time step of .* is beyond the CFL limit"):
        Kolmogorov(**SMALL | changes)


def test_the_published_preset_is_table_7():
    """6000 steps of 0.05 on 256 x 256 cells, every 30th frame kept, at 64 x 64."""
    source = build.load(kolmogorov.get_config("rolling,data=published")).data
    assert (source.cells, source.max_speed, source.courant) == (256, 7.0, 0.5)
    assert (source.viscosity, source.density) == ((5e-4, 5e-3), (0.5, 2.0))
    assert source.parts()[0].shape == (200, 64, 64, 2)
    assert round(source.interval / source.time_step.dt) == 30 * 29 and source.spin_up_frames == 0


@pytest.mark.parametrize(
    "argument, cells", [("", (128, 64)), ("size=tiny", (32, 32)), ("data=smoke", (32, 32))]
)
def test_the_presets_differ_by_the_grid(argument, cells):
    config = build.load(kolmogorov.get_config(argument))
    assert (config.data.cells, config.data.out_cells) == cells
    assert (config.window.num_context, config.window.num_forecast) == (2, 4)
    assert (config.data.spin_up, config.data.duration) == (75.0, 225.0)


def test_tiny_takes_other_data_on_request():
    assert build.load(kolmogorov.get_config("standard,size=tiny,data=quality")).data.cells == 128


@pytest.mark.parametrize("forecast", [2, 4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_the_published_windows_fit_every_method(method, forecast):
    for size in ("tiny", "B"):
        raw = kolmogorov.get_config(f"{method},size={size}")
        raw.window.num_forecast = forecast
        assert build.load(raw).window.num_frames == 2 + forecast


def test_a_wrong_courant_number_is_named_in_the_config():
    raw = kolmogorov.get_config("rolling,size=tiny")
    raw.data.courant = 0.9
    with pytest.raises(ConfigError, match=r"^config\.data\.courant: a time step"):
        build.load(raw)
