"""Stochastic advection against linear algebra, and samples of it against its law."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from dydiff_jax.data.simulators import ensemble
from dydiff_jax.data.simulators import hasselmann as solver
from dydiff_jax.data.sources.hasselmann import Hasselmann

MOVING = solver.Physics(velocity=(0.7, -0.4), damping=0.1, diffusion=0.2, slope=2.0)
STILL = solver.Physics(velocity=(0.0, 0.0), damping=0.25, diffusion=0.0, slope=0.0)


def derivative(points):
    """d/dx of the trigonometric interpolant on an odd number of points, from its cardinal functions."""
    away = np.subtract.outer(np.arange(points), np.arange(points))
    half = np.where(away == 0, 1.0, np.sin(np.pi * away / points))
    return np.where(away == 0, 0.0, np.pi / points * (-1.0) ** away / half)


def dense(grid, physics):
    """The drift matrix and the stationary covariance of the field as a vector, without a Fourier transform."""
    height, width = grid
    along_y = np.kron(derivative(height), np.eye(width))
    along_x = np.kron(np.eye(height), derivative(width))
    laplacian = along_x @ along_x + along_y @ along_y
    drift = physics.diffusion * laplacian - physics.damping * np.eye(height * width)
    drift -= physics.velocity[0] * along_x + physics.velocity[1] * along_y
    squares, vectors = np.linalg.eigh(-laplacian)
    squares = np.maximum(squares, (2 * np.pi / max(grid)) ** 2)
    noise = (vectors * squares ** (-physics.slope / 2)) @ vectors.T
    covariance = scipy.linalg.solve_continuous_lyapunov(drift, -noise)
    return drift, covariance / covariance[0, 0]


@pytest.mark.parametrize("physics", [MOVING, MOVING._replace(slope=0.0), STILL])
def test_the_law_is_that_of_linear_algebra(x64, physics):
    """Mean expm(L l dt) x, covariance E^(m-l) (P - E^l P E^lT): matrix exponential and Lyapunov equation."""
    grid, horizon, interval = (3, 5), 4, 0.8
    drift, stationary = dense(grid, physics)
    law = solver.law(grid, physics, interval)
    frame = np.random.default_rng(0).standard_normal(grid)
    means = jax.jit(functools.partial(solver.conditional_mean, law, horizon=horizon))(frame)
    covariances = solver.lead_covariance(law, horizon)
    assert means.shape == (horizon, *grid) and covariances.shape == (horizon, horizon)
    for first in range(1, horizon + 1):
        move = scipy.linalg.expm(drift * interval * first)
        np.testing.assert_allclose(means[first - 1].ravel(), move @ frame.ravel(), atol=1e-12)
        given = stationary - move @ stationary @ move.T
        for second in range(first, horizon + 1):
            between = scipy.linalg.expm(drift * interval * (second - first)) @ given
            np.testing.assert_allclose(np.diag(between), covariances[first - 1, second - 1], atol=1e-12)
            assert covariances[second - 1, first - 1] == covariances[first - 1, second - 1]
            spectrum = solver.lead_spectrum(law, first, second)
            shifts = np.fft.irfft2(spectrum, s=grid)  # Cov(T_m(x), T_l(0))
            np.testing.assert_allclose(shifts.ravel(), between[:, 0], atol=1e-12)


def test_one_step_is_the_drift_and_the_innovation(x64):
    """The matrix of a step by its effect on unit vectors: M = expm(L dt), B B^T = P - M P M^T."""
    grid, interval = (3, 5), 0.8
    drift, stationary = dense(grid, MOVING)
    law = solver.law(grid, MOVING, interval)

    @jax.jit
    def matrices(units):
        zero = jnp.zeros_like(units)
        return solver.step(law, units, zero), solver.step(law, zero, units), solver.stationary(law, units)

    move, stir, start = (np.reshape(m, (15, 15)).T for m in matrices(np.eye(15).reshape(15, *grid)))
    np.testing.assert_allclose(move, scipy.linalg.expm(drift * interval), atol=1e-12)
    np.testing.assert_allclose(stir @ stir.T, stationary - move @ stationary @ move.T, atol=1e-12)
    np.testing.assert_allclose(start @ start.T, stationary, atol=1e-12)


@pytest.mark.parametrize("grid", [(4, 6), (4, 5), (1, 6)])
def test_the_step_keeps_the_law_on_even_sides_too(x64, grid):
    """Where the highest wavenumber has no sine: M P M^T + B B^T = P, and leads by powers of the matrix M of a step."""
    law, points = solver.law(grid, MOVING, 0.8), grid[0] * grid[1]

    @jax.jit
    def matrices(units):
        zero = jnp.zeros_like(units)
        means = jax.vmap(lambda frame: solver.conditional_mean(law, frame, 3)[2])(units)
        return (
            solver.step(law, units, zero),
            solver.step(law, zero, units),
            solver.stationary(law, units),
            means,
        )

    move, stir, start, third = (
        np.reshape(m, (points, points)).T for m in matrices(np.eye(points).reshape(points, *grid))
    )
    stationary = start @ start.T
    np.testing.assert_allclose(np.diag(stationary), 1.0)
    np.testing.assert_allclose(move @ stationary @ move.T + stir @ stir.T, stationary, atol=1e-12)
    np.testing.assert_allclose(third, move @ move @ move, atol=1e-12)
    between = move @ (stationary - move @ stationary @ move.T)
    np.testing.assert_allclose(np.diag(between), solver.lead_covariance(law, 2)[0, 1], atol=1e-12)


def test_white_noise_without_transport_makes_every_grid_point_an_ar1(x64):
    law = solver.law((4, 6), STILL, 2.0)
    frame, noise = np.random.default_rng(1).standard_normal((2, 4, 6))
    a = np.exp(-0.25 * 2.0)
    found = jax.jit(functools.partial(solver.step, law))(frame, noise)
    np.testing.assert_allclose(found, a * frame + np.sqrt(1 - a**2) * noise, atol=1e-14)
    leads = np.arange(1, 6)
    expected = [
        [a ** abs(m - n) * (1 - a ** (2 * min(m, n))) for m in map(int, leads)] for n in map(int, leads)
    ]
    np.testing.assert_allclose(solver.lead_covariance(law, 5), expected, atol=1e-14)


@pytest.mark.parametrize("grid", [(5, 7), (1, 9)])
def test_a_velocity_of_one_grid_point_an_interval_shifts_the_field(x64, grid):
    physics = solver.Physics((1.0, 0.0 if grid[0] == 1 else -1.0), 0.1, 0.0, 1.0)
    frame = np.random.default_rng(2).standard_normal(grid)
    mean = jax.jit(functools.partial(solver.conditional_mean, solver.law(grid, physics, 1.0), horizon=2))(
        frame
    )
    for lead in (1, 2):
        shifted = np.roll(frame, (int(physics.velocity[1]) * lead, lead), axis=(0, 1))
        np.testing.assert_allclose(mean[lead - 1], np.exp(-0.1 * lead) * shifted, atol=1e-12)


def test_the_law_does_not_depend_on_the_interval(x64):
    """Two steps of dt are one of 2 dt, and the variance at a grid point is 1, on sides even and odd."""
    for grid in ((4, 6), (5, 6), (1, 8)):
        fine, coarse = (solver.law(grid, MOVING, interval) for interval in (0.5, 1.0))
        np.testing.assert_allclose(fine.transfer**2, coarse.transfer, rtol=1e-13)
        np.testing.assert_allclose(fine.power, coarse.power)
        np.testing.assert_allclose((fine.share * fine.power).sum(), 1.0)
        np.testing.assert_allclose(fine.share.sum(), 1.0)
        covariance = solver.lead_covariance(fine, 4)
        np.testing.assert_allclose(covariance[1::2, 1::2], solver.lead_covariance(coarse, 2), atol=1e-14)


@functools.cache
def samples(grid=(6, 9), count=4000, frames=3):
    """Frames of many trajectories as the data set makes them, [count, frames, h, w]."""
    source = Hasselmann(grid=grid, velocity=(0.7, -0.4), damping=0.1, diffusion=0.2, seed=3)

    def trajectory(index):
        def move(state, _):
            state = source.advance(state)
            return state, source.frame(state)[..., 0]

        return jax.lax.scan(move, source.initial(index), length=frames)[1]

    return np.asarray(jax.jit(jax.vmap(trajectory))(np.arange(count))), source


def test_simulated_frames_have_the_spectrum_from_the_first_on():
    """Periodogram and cross-periodogram within 5 standard errors, S / sqrt(n) and more for the real modes."""
    frames, source = samples()
    modes, law = np.fft.rfft2(frames), source.law
    points = frames[0, 0].size
    bound = 5 * np.sqrt(2 / len(frames)) * law.power
    for first, second in [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]:
        found = (modes[:, second] * modes[:, first].conj()).mean(axis=0) / points
        expected = law.transfer ** (second - first) * law.power
        assert np.all(np.abs(found - expected) < bound), (first, second)
    assert np.all(np.abs(modes.mean(axis=0)) < 5 * np.sqrt(law.power * points / len(frames)))


def test_simulated_frames_have_the_variance_and_autocovariance_at_a_grid_point():
    frames, source = samples()
    law = source.law
    for lag in range(3):
        found = (frames[:, 0] * frames[:, lag]).mean(axis=0)
        expected = (law.share * (law.transfer**lag * law.power).real).sum()
        np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(2 / len(frames)))
        assert lag or expected == pytest.approx(1.0)


def test_an_exact_ensemble_has_the_law():
    """Mean, spectrum of the deviations between all leads, and s / sqrt(pi) as its CRPS against itself."""
    source = Hasselmann(grid=(5, 6), velocity=(0.7, -0.4), damping=0.1, diffusion=0.2)
    last = np.random.default_rng(4).standard_normal((5, 6, 1)).astype(np.float32)
    members, horizon = 4000, 3
    draw = jax.jit(
        lambda key: (source.exact_ensemble(key, last, horizon, members), source.mean(last, horizon))
    )
    frames, mean = map(np.asarray, draw(jax.random.key(5)))
    assert frames.shape == (members, horizon, 5, 6, 1) and mean.shape == (horizon, 5, 6, 1)
    deviation, s = np.sqrt(source.variance(horizon)), (frames - mean)[..., 0]
    np.testing.assert_array_less(
        np.abs(s.mean(axis=0)), 5 * deviation[:, None, None] / np.sqrt(members) * np.ones((5, 6))
    )
    modes = np.fft.rfft2(s)
    for first, second in [(1, 1), (2, 2), (3, 3), (1, 2), (1, 3), (2, 3)]:
        found = (modes[:, second - 1] * modes[:, first - 1].conj()).mean(axis=0) / 30
        bound = [solver.lead_spectrum(source.law, lead, lead).real for lead in (first, second)]
        expected = solver.lead_spectrum(source.law, first, second)
        assert np.all(np.abs(found - expected) < 5 * np.sqrt(2 / members * bound[0] * bound[1]))
    half_distance = np.abs(s[: members // 2] - s[members // 2 :]).mean(axis=(0, 2, 3)) / 2
    np.testing.assert_allclose(half_distance, deviation / np.sqrt(np.pi), rtol=0.02)


def simulate(source):
    source.folder.mkdir(parents=True, exist_ok=True)
    ensemble.simulate(source, list(range(source.trajectories)), lambda frames: None)
    return source.load()


def test_the_data_set_is_made_the_same_one_by_one_and_side_by_side(tmp_path, monkeypatch):
    options = dict(grid=(4, 6), duration=5.0, trajectories=2)
    one = simulate(Hasselmann(**options, cache_dir=str(tmp_path / "cpu")))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    two = simulate(Hasselmann(**options, cache_dir=str(tmp_path / "gpu")))
    for found, expected in zip(two.arrays, one.arrays, strict=True):
        assert found.shape == (5, 4, 6, 1) and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(one.arrays[0] - one.arrays[1]).max() > 0.1
    assert one.periodic_x and one.mirror is None and one.roles is None
    assert Hasselmann(**options, velocity=(0.0, 1.0)).mirror == (1.0,)


@pytest.mark.parametrize(
    "changes",
    [
        dict(grid=(4,)),
        dict(grid=(0, 4)),
        dict(velocity=(1.0,)),
        dict(damping=0.0),
        dict(diffusion=-0.1),
        dict(duration=0.1),
    ],
)
def test_options_are_checked_and_named(changes):
    with pytest.raises(ValueError, match=f"^{next(iter(changes))}: "):
        Hasselmann(**changes)


def test_a_stationary_field_needs_no_spin_up():
    with pytest.raises(TypeError, match="spin_up"):
        Hasselmann(spin_up=1.0)
