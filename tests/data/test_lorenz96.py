"""Lorenz 96 against what is known of the equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dydiff_jax.data.simulators import ensemble
from dydiff_jax.data.simulators import lorenz96 as solver
from dydiff_jax.data.sources.lorenz96 import Lorenz96

STATE = 8.0 * np.random.default_rng(0).standard_normal(40)


def test_the_tendency_is_the_equation_written_out(x64):
    x, n = STATE, 40
    expected = [(x[(i + 1) % n] - x[i - 2]) * x[i - 1] - x[i] + 5.0 for i in range(n)]
    np.testing.assert_allclose(jax.jit(solver.tendency)(x, 5.0), expected, rtol=1e-13)


def test_energy_changes_by_forcing_and_damping_alone(x64):
    """d/dt sum x^2 / 2 = -sum x^2 + F sum x, by the tendency and by a short step."""
    balance = -(STATE**2).sum() + 8.0 * STATE.sum()
    rate, later = jax.jit(lambda x: (solver.tendency(x, 8.0), solver.step(x, 8.0, 1e-6)))(STATE)
    np.testing.assert_allclose(STATE @ rate, balance, rtol=1e-12)
    np.testing.assert_allclose(((later**2).sum() - (STATE**2).sum()) / 2e-6, balance, rtol=1e-3)


def test_time_stepping_is_of_fourth_order(x64):
    @jax.jit
    def runs(x):
        x = solver.advance(x, 8.0, 0.005, 1000)
        return jnp.stack([solver.advance(x, 8.0, 0.4 / count, count) for count in (20, 40, 80, 160)])

    gaps = np.linalg.norm(np.diff(runs(8.0 + 0.1 * STATE), axis=0), axis=1)
    orders = np.log2(gaps[:-1] / gaps[1:])
    assert np.all((orders > 3.8) & (orders < 4.3)), orders


@pytest.mark.slow
def test_the_leading_lyapunov_exponent_is_the_published_one():
    """1.68 at 40 variables and F = 8: growth of a tangent, mean over 48 trajectories of 60 units of time."""
    step = functools.partial(solver.step, forcing=8.0, dt=0.01)

    def move(state, _):
        x, tangent = jax.jvp(step, *((each,) for each in state))
        growth = jnp.linalg.norm(tangent, axis=-1, keepdims=True)
        return (x, tangent / growth), jnp.log(growth[:, 0])

    @jax.jit
    def growth(key):
        starts = 8.0 + jax.random.normal(key, (2, 48, 40))
        return jax.lax.scan(move, (starts[0], starts[1]), length=7500)[1]

    rates = np.asarray(growth(jax.random.key(0)))[1500:].mean(axis=0) / 0.01
    assert rates.std() / np.sqrt(48) < 0.02
    assert abs(rates.mean() - 1.68) < 0.05, (rates.mean(), rates.std() / np.sqrt(48))


def test_noise_has_the_variance_of_its_time(x64):
    """On the drift step, n sigma sqrt(dt); after several small steps sigma^2 t, independent of one another."""
    x = jnp.full((8,), 0.5)
    keys = jax.random.split(jax.random.key(1), 20000)

    @jax.jit
    def spread(keys):
        noisy = jax.vmap(lambda key: solver.advance_noisy(x, key, 0.5, 1e-4, 5, 0.3))(keys)
        return noisy - solver.advance(x, 0.5, 1e-4, 5)

    covariance = np.cov(spread(keys).T) / (0.3**2 * 5e-4)
    np.testing.assert_allclose(covariance, np.eye(8), atol=5 * np.sqrt(2 / 20000))


def simulate(source):
    source.folder.mkdir(parents=True, exist_ok=True)
    ensemble.simulate(source, list(range(source.trajectories)), lambda frames: None)
    return source.load()


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_frames_are_steps_of_the_solver_after_the_spin_up(tmp_path, noise):
    options = dict(spin_up=0.2, duration=0.3, trajectories=2, noise=noise, cache_dir=str(tmp_path))
    found = simulate(Lorenz96(**options))
    assert found.arrays[0].shape == (6, 1, 40, 1) and found.arrays[0].dtype == np.float32
    assert found.periodic_x and found.mirror is None
    assert np.abs(found.arrays[0] - found.arrays[1]).max() > 0.1
    frames = np.asarray(found.arrays[0])[:, 0, :, 0]
    expected = np.asarray(jax.jit(jax.vmap(lambda x: solver.advance(x, 8.0, 0.01, 5)))(frames))
    gaps = np.abs(frames[1:] - expected[:-1])
    if noise == 0:
        assert gaps.max() < 1e-4
    else:
        np.testing.assert_allclose(np.sqrt((gaps**2).mean()), 0.5 * np.sqrt(0.05), rtol=0.2)
        assert len(np.unique(gaps)) > 150  # fresh noise at each frame


def test_side_by_side_is_one_by_one(tmp_path, monkeypatch):
    options = dict(spin_up=0.2, duration=0.1, trajectories=2, noise=0.1)
    one = simulate(Lorenz96(**options, cache_dir=str(tmp_path / "cpu")))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    two = simulate(Lorenz96(**options, cache_dir=str(tmp_path / "gpu")))
    np.testing.assert_allclose(two.arrays, one.arrays, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        dict(variables=3),
        dict(noise=-1.0),
        dict(dt=0.03),
        dict(dt=0.1),
        dict(dt=0.0),
        dict(spin_up=-1.0),
    ],
)
def test_options_are_checked_and_named(changes):
    with pytest.raises(ValueError, match=f"^{next(iter(changes))}: "):
        Lorenz96(**changes)
