"""The spring mesh against what is known of the equations; and its data set."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from dydiff_jax.data.simulators import ensemble
from dydiff_jax.data.simulators import spring_mesh as solver
from dydiff_jax.data.sources.spring_mesh import RING, SpringMesh
from dydiff_jax.data.splits import DatasetOptions, make_splits

INTERVAL = 0.00781


def start(seed=0, moving=0.0):
    """A displaced mesh; `moving` gives its free points random velocities."""
    rng = np.random.default_rng(seed)
    radius, angle = 0.35 * np.sqrt(rng.random((10, 10))), 2 * np.pi * rng.random((10, 10))
    displacement = radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    velocity = moving * rng.standard_normal((10, 10, 2))
    return solver.Mesh(*(np.where(solver.REST[..., 1:] == 9, 0.0, a) for a in (velocity, displacement)))


def neighbours(y, x):
    around = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    return [(j, i) for j, i in around if 0 <= j < 10 and 0 <= i < 10]


def forces(q):
    """The sum over neighbours written out, [10, 10, 2]."""
    total = np.zeros((10, 10, 2))
    for y in range(9):
        for x in range(10):
            for j, i in neighbours(y, x):
                d = q[y, x] - q[j, i]
                rest, length = np.hypot(y - j, x - i), np.linalg.norm(d)
                total[y, x] -= (length - rest) / length * d
    return total


def test_342_springs_join_the_eight_neighbours():
    assert len(solver.SPRINGS) == 342 == sum(len(neighbours(y, x)) for y in range(10) for x in range(10)) / 2
    assert len({tuple(sorted(pair)) for pair in solver.SPRINGS.tolist()}) == 342
    assert set(np.round(solver.REST_LENGTHS[:, 0] ** 2, 12)) == {1.0, 2.0}
    np.testing.assert_array_equal(solver.REST[3, 7], (7, 3))
    np.testing.assert_array_equal(np.argwhere(solver.FIXED[..., 0])[:, 0], 9)
    assert solver.FIXED.sum() == 10


def test_forces_are_the_sum_over_the_neighbours_and_the_gradient_of_the_energy(x64):
    mesh = start()
    found, slope = jax.jit(
        lambda mesh: (solver.forces(mesh.displacement), jax.grad(solver.energy)(mesh).displacement)
    )(mesh)
    np.testing.assert_allclose(found, forces(solver.REST + mesh.displacement), atol=1e-13)
    np.testing.assert_allclose(found[:9], -slope[:9], atol=1e-13)
    np.testing.assert_array_equal(found[9], 0.0)


def test_energy_falls_by_the_damping_alone(x64):
    """dE/dt = -0.1 sum |v|^2: E(0) - E(T) against the integral of it, by Simpson's rule over the steps."""
    dt, count = 1e-3, 2000

    def move(mesh, _):
        return solver.step(mesh, dt), (solver.energy(mesh), (mesh.velocity**2).sum())

    energies, squares = jax.jit(lambda mesh: jax.lax.scan(move, mesh, length=count + 1)[1])(start(moving=0.5))
    lost, worked = energies[0] - energies[-1], 0.1 * scipy.integrate.simpson(squares, dx=dt)
    assert lost > 1.0
    np.testing.assert_allclose(lost, worked, rtol=2e-6)


@functools.cache
def refined():
    """134 frames later with 1, 2, 4 and 64 steps a frame, in double precision; and in single, with 1."""
    with jax.enable_x64(True):

        @jax.jit
        def run(mesh):
            later = [solver.advance(mesh, INTERVAL / n, 134 * n) for n in (1, 2, 4, 64)]
            return later, solver.advance(jax.tree.map(jnp.float32, mesh), INTERVAL, 134)

        return jax.tree.map(np.asarray, run(start()))


def error(found, expected):
    return max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True))


def test_time_stepping_is_of_second_order():
    *coarse, exact = refined()[0]
    errors = [error(mesh, exact) for mesh in coarse]
    assert 3.8 < errors[0] / errors[1] < 4.2 and 3.8 < errors[1] / errors[2] < 4.3, errors


def test_one_step_a_frame_keeps_positions_to_a_hundred_thousandth_over_134_frames():
    (coarse, *_, exact), single = refined()
    assert error(coarse[1:], exact[1:]) < 1e-5 and error(coarse[:1], exact[:1]) < 5e-5
    assert np.abs(exact.displacement - start().displacement).max() > 0.3
    assert error(single, coarse) < 2e-6  # what float32 adds


def test_a_solver_of_another_kind_agrees(x64):
    """An adaptive one of order 8, with the forces of this file."""
    mesh, free = start(moving=0.2), np.s_[:9]

    def rates(_, state):
        v, u = state.reshape(2, 10, 10, 2)
        rate = forces(solver.REST + u) - 0.1 * v
        return np.concatenate([np.where(solver.FIXED > 0, 0.0, rate).ravel(), v.ravel()])

    found = jax.jit(functools.partial(solver.advance, dt=1e-3, count=300))(mesh)
    state = np.concatenate([a.ravel() for a in mesh])
    exact = scipy.integrate.solve_ivp(rates, (0, 0.3), state, method="DOP853", rtol=1e-7, atol=1e-8)
    exact = exact.y[:, -1].reshape(2, 10, 10, 2)
    np.testing.assert_allclose(np.stack(found)[:, free], exact[:, free], atol=5e-7)


def reflected(mesh):
    return jax.tree.map(lambda a: a[:, ::-1] * np.array([-1.0, 1.0]), mesh)


def test_the_reflection_in_x_is_a_solution_and_the_one_in_y_is_not(x64):
    run = jax.jit(functools.partial(solver.advance, dt=INTERVAL, count=100))
    later, mirrored = run(start()), run(reflected(start()))
    assert error(mirrored, reflected(later)) < 1e-12 < 1e-2 < error(later, reflected(later))
    upside_down = jax.tree.map(lambda a: a[::-1] * np.array([1.0, -1.0]), start())
    assert error(run(upside_down), jax.tree.map(lambda a: a[::-1] * np.array([1.0, -1.0]), later)) > 1e-2


@pytest.mark.parametrize("inner, outer", [(0.0, 0.35), RING])
def test_starts_are_uniform_by_area_and_at_rest(inner, outer):
    keys = jax.random.split(jax.random.key(0), 50)
    meshes = jax.jit(jax.vmap(lambda key: solver.initial(key, inner, outer)))(keys)
    assert not np.any(meshes.velocity) and not np.any(meshes.displacement[:, 9])
    x, y = np.moveaxis(np.asarray(meshes.displacement)[:, :9], -1, 0).reshape(2, -1)
    area = (x**2 + y**2 - inner**2) / (outer**2 - inner**2)
    assert scipy.stats.kstest(area, "uniform").pvalue > 0.01
    assert scipy.stats.kstest(np.arctan2(y, x) / (2 * np.pi) % 1, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(area[:-1], area[1:])[0, 1]) < 0.06


SMALL = dict(duration=20 * INTERVAL, trajectories=4, valid=1, test=2)


def simulate(source):
    source.folder.mkdir(parents=True, exist_ok=True)
    ensemble.simulate(source, list(range(source.trajectories)), lambda frames: None)
    return source.load()


def test_frames_begin_with_the_start_and_keep_the_row_still(tmp_path):
    source = SpringMesh(**SMALL, cache_dir=str(tmp_path))
    found = simulate(source)
    assert found.roles == ("test", "test", "valid", "train") and not found.periodic_x and found.mirror is None
    np.testing.assert_array_equal(found.static, solver.FIXED)
    for index, frames in enumerate(map(np.asarray, found.arrays)):
        assert frames.shape == (20, 10, 10, 4) and frames.dtype == np.float32
        mesh = source.initial(index)
        np.testing.assert_allclose(frames[0, ..., 2:], solver.REST + mesh.displacement, atol=1e-6)
        assert not np.any(frames[0, ..., :2]) and not np.any(frames[:, 9, :, :2])
        np.testing.assert_array_equal(frames[:, 9, :, 2:], np.broadcast_to(solver.REST[9], (20, 10, 2)))
        later = jax.jit(functools.partial(solver.advance, dt=INTERVAL, count=19))(mesh)
        np.testing.assert_allclose(frames[19, ..., :2], later.velocity, atol=1e-6)
        np.testing.assert_allclose(frames[19, ..., 2:], solver.REST + later.displacement, atol=2e-6)
    splits = make_splits(found, DatasetOptions(1, 4, split="given"))
    assert [len(part) for part in splits] == [16, 16, 32]


def test_only_test_trajectories_start_out_of_distribution():
    source = SpringMesh(**SMALL, out_of_distribution=True)
    for index in range(4):
        radius = np.linalg.norm(np.asarray(source.initial(index).displacement)[:9], axis=-1)
        assert (radius.min() > 0.3499 and radius.max() < 0.4501) if index < 2 else radius.max() < 0.3501
    assert source.folder != SpringMesh(**SMALL).folder


def test_the_default_is_the_published_experiment():
    source = SpringMesh()
    assert source.frames == 805 and source.spec().interval == INTERVAL
    assert [source.roles.count(role) for role in ("train", "valid", "test")] == [100, 3, 15]


@pytest.mark.parametrize(
    "changes", [dict(valid=-1), dict(test=-1), dict(trajectories=18), dict(substeps=0), dict(interval=0.0)]
)
def test_options_are_checked_and_named(changes):
    with pytest.raises(ValueError, match=f"^{next(iter(changes))}: "):
        SpringMesh(**changes)
