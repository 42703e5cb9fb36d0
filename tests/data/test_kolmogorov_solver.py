"""The solver of Kolmogorov flow against what is known of the equations."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dydiff_jax.data.simulators import kolmogorov as solver

advance = jax.jit(solver.advance, static_argnums=(2, 3))
step = jax.jit(solver.step, static_argnums=2)

#: The corners of the published range of (viscosity, density).
CORNERS = [(nu, rho) for nu in (5e-4, 5e-3) for rho in (0.5, 2.0)]
STILL = dict(forcing=0.0, drag=0.0)


def coordinates(cells):
    """The size of a cell, and x and y of the lower left corners, [cells, cells]."""
    h = 2 * np.pi / cells
    y, x = np.mgrid[:cells, :cells] * h
    return h, x, y


def from_stream(cells, psi):
    """The flow (dpsi/dy, -dpsi/dx), free of divergence on the grid: differences of psi at the corners."""
    h, x, y = coordinates(cells)
    u = (psi(x, y + h) - psi(x, y)) / h
    v = -(psi(x + h, y) - psi(x, y)) / h
    return solver.Velocity(jnp.asarray(u), jnp.asarray(v))


def taylor_green(cells):
    return from_stream(cells, lambda x, y: np.sin(x) * np.sin(y))


def eddies(cells):
    """A smooth flow without symmetry, that the shear does work on."""
    return from_stream(
        cells,
        lambda x, y: (
            np.sin(x + 0.3) * np.sin(2 * y)
            + 0.5 * np.cos(2 * x - y)
            + 0.25 * np.sin(3 * x + 2 * y)
            - 0.1 * np.cos(4 * y)
        ),
    )


def stirred(cells=24, mean=(0.3, -0.2)):
    """Random flow with a mean."""
    flow = solver.initial(jax.random.key(0), cells, max_speed=4.0)
    return solver.Velocity(flow.u + mean[0], flow.v + mean[1])


def steps_of(dt, cells, max_speed=7.0, diffusivity=1e-3):
    return solver.TimeStep(dt, cells, max_speed, diffusivity)


def run(flow, physics, duration, dt, max_speed=7.0):
    """`duration` in equal steps of about dt."""
    count = int(np.ceil(duration / dt))
    time_step = steps_of(duration / count, flow.u.shape[0], max_speed, physics.viscosity / physics.density)
    return advance(flow, physics, time_step, count)


def energy(flow):
    return float((flow.u**2 + flow.v**2).mean() / 2)


def distance(a, b):
    return float(jnp.sqrt(((a.u - b.u) ** 2 + (a.v - b.v) ** 2).mean()))


def assert_same(found, expected, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found, expected)


def test_taylor_green_vortex_decays_at_the_analytic_rate(x64):
    """The velocity falls as exp(-2 k^2 nu t / rho), so the energy as exp(-4 nu t / rho) at k = 1."""
    physics = solver.Physics(viscosity=0.2, density=2.0, **STILL)
    errors = []
    for cells in (16, 32, 64):
        flow, h = taylor_green(cells), 2 * np.pi / cells
        later = run(flow, physics, 1.0, dt=0.2 * h**2, max_speed=1.2)
        errors.append(np.log(energy(flow) / energy(later)) / (4 * 0.1) - 1)
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert 0 < errors[-1] < 3e-3
    assert np.all((orders > 2.2) & (orders < 2.9)), orders  # second order, the limiter's error falls faster


def test_time_stepping_is_of_first_order(x64):
    physics = solver.Physics(viscosity=0.1, density=1.0)
    runs = [run(eddies(16), physics, 0.5, 0.5 / count) for count in (32, 64, 128)]
    assert 1.8 < distance(runs[0], runs[1]) / distance(runs[1], runs[2]) < 2.2


@pytest.mark.slow
def test_refined_grids_agree(x64):
    """Face means of grids of 16 to 128 cells: the distance falls four times or more when cells are halved."""
    physics = solver.Physics(viscosity=0.02, density=1.0)
    fields = []
    for cells in (16, 32, 64, 128):
        h = 2 * np.pi / cells
        fields.append(solver.face_means(run(eddies(cells), physics, 0.2, 0.1 * h**2), 16))
    gaps = [distance(a, b) for a, b in itertools.pairwise(fields)]
    assert gaps[0] / gaps[1] > 3.2 and 3.8 < gaps[1] / gaps[2] < 8.0, gaps
    assert gaps[2] < 0.005 * np.sqrt(2 * energy(fields[2]))


@pytest.mark.parametrize("density", [0.5, 2.0])
def test_laminar_flow_is_steady_with_the_analytic_amplitude(x64, density):
    """u = A sin(k y) needs nu k^2 A + a A = F, whatever the density: rho divides every term.

    On the grid k^2 is (2 - 2 cos(k h)) / h^2, of second order.
    """
    physics = solver.Physics(viscosity=1.0, density=density)
    errors = []
    for cells in (16, 32):
        h, _, y = coordinates(cells)
        grid_k2 = (2 - 2 * np.cos(4 * h)) / h**2
        rest = solver.Velocity(jnp.zeros((cells, cells)), jnp.zeros((cells, cells)))
        steady = run(rest, physics, 3.0 * density, dt=0.2 * h**2 * density, max_speed=0.1)
        expected = np.sin(4 * (y + h / 2)) / (grid_k2 + 0.1)
        assert_same(steady, solver.Velocity(expected, 0 * y), atol=1e-12)
        errors.append(float(steady.u.max() / np.sin(4 * (y + h / 2)).max()) * (16 + 0.1) - 1)
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_divergence_stays_at_rounding(x64):
    flow = run(stirred(), solver.Physics(1e-3, 1.0), 1.0, 0.01)
    assert energy(flow) > 0.1
    assert float(jnp.abs(solver.divergence(flow)).max()) < 1e-12 * 24


def test_divergence_is_that_of_the_faces():
    """A source in one cell: all that leaves through its four faces, over its area."""
    flow = solver.Velocity(jnp.zeros((8, 8)).at[2, 4].set(1.0), jnp.zeros((8, 8)).at[3, 3].set(2.0))
    expected = np.zeros((8, 8))
    expected[2, 3], expected[2, 4] = 1.0 + 2.0, -1.0
    expected[3, 3] = -2.0
    np.testing.assert_allclose(solver.divergence(flow), expected * 8 / (2 * np.pi), rtol=1e-6)


def test_projection_takes_off_a_gradient_and_nothing_else(x64):
    flow = stirred()
    h, x, y = coordinates(24)
    p = np.cos(x + h / 2) * np.sin(2 * y) + np.sin(3 * x)
    gradient = solver.Velocity(p - np.roll(p, 1, axis=1), p - np.roll(p, 1, axis=0))
    assert_same(solver.project(jax.tree.map(jnp.add, flow, gradient)), flow, atol=1e-13)


def test_mean_momentum_changes_by_drag_alone(x64):
    """d<u>/dt = -(a / rho) <u>: fluxes cancel in the sum, and the shear has no mean."""
    flow, physics = stirred(), solver.Physics(1e-3, 0.7)
    later = step(flow, physics, steps_of(0.01, 24))
    for before, after in zip(flow, later, strict=True):
        np.testing.assert_allclose(after.mean(), before.mean() * (1 - 0.01 * 0.1 / 0.7), rtol=1e-12)


def test_energy_changes_by_power_drag_and_dissipation(x64):
    """dE/dt = (<F sin(k y) u> - nu <|grad u|^2> - 2 a E) / rho, with differences of the test's own."""
    physics = solver.Physics(viscosity=0.05, density=0.5)
    losses = []
    for cells in (32, 64, 128):
        flow, (h, _, y) = eddies(cells), coordinates(cells)
        dt = 0.02 * h**2
        later = step(flow, physics, steps_of(dt, cells, diffusivity=0.1))
        gradients = sum(
            np.mean((np.roll(a, -1, axis) - a) ** 2) / h**2 for a in map(np.asarray, flow) for axis in (0, 1)
        )
        power = float(np.mean(np.sin(4 * (y + h / 2)) * flow.u))
        assert power > 0.1 and gradients > 1.0
        expected = (power - 0.05 * gradients - 2 * 0.1 * energy(flow)) / 0.5
        losses.append((energy(later) - energy(flow)) / dt / expected - 1)
    assert losses[0] > losses[1] > losses[2] > 0  # the limiter only takes energy
    assert losses[1] < 0.02 and losses[2] < 0.2 * losses[1], losses


def test_density_divides_viscosity_force_and_drag(x64):
    expected = run(eddies(16), solver.Physics(0.05, 1.0, forcing=1.0, drag=0.1), 0.5, 0.01)
    found = run(eddies(16), solver.Physics(0.15, 3.0, forcing=3.0, drag=0.3), 0.5, 0.01)
    assert_same(found, expected, atol=1e-13)
    assert distance(run(eddies(16), solver.Physics(0.05, 3.0), 0.5, 0.01), expected) > 0.01


def test_units_of_time_and_mass_scale_exactly(x64):
    """Twice as fast: u' = 2 u, dt' = dt / 2 with nu' = 2 nu, F' = 4 F, a' = 2 a; by powers of two, bit by bit."""
    slow = run(eddies(16), solver.Physics(0.05, 0.5), 0.5, 0.01)
    double = jax.tree.map(lambda a: 2 * a, eddies(16))
    fast = run(double, solver.Physics(0.1, 0.5, forcing=4.0, drag=0.2), 0.25, 0.005, max_speed=14.0)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), fast, slow)


def mirrored_in_x(flow):
    """(u, v)(x, y) -> (-u, v)(-x, y); a left face at i of the image is the right face of cell n - 1 - i."""
    return solver.Velocity(-jnp.roll(flow.u[:, ::-1], 1, axis=1), flow.v[:, ::-1])


def mirrored_in_y(flow):
    """(u, v)(x, y) -> (u, -v)(x, -y)."""
    return solver.Velocity(flow.u[::-1], -jnp.roll(flow.v[::-1], 1, axis=0))


def shifted(flow, rows, columns=0):
    return jax.tree.map(lambda a: jnp.roll(a, (rows, columns), axis=(0, 1)), flow)


@pytest.mark.parametrize(
    "symmetry",
    [
        lambda flow: shifted(flow, 0, 5),
        lambda flow: shifted(flow, 6),  # a wave of the shear is 6 of 24 rows
        lambda flow: shifted(mirrored_in_x(flow), 3),
        lambda flow: shifted(mirrored_in_y(flow), 3),
        lambda flow: mirrored_in_x(mirrored_in_y(flow)),
    ],
    ids=["along x", "a wave in y", "mirror x, half a wave", "mirror y, half a wave", "half turn"],
)
def test_images_of_a_solution_are_solutions(x64, symmetry):
    move = functools.partial(run, physics=solver.Physics(1e-3, 1.0), duration=1.0, dt=0.01)
    assert_same(move(symmetry(stirred())), symmetry(move(stirred())), atol=1e-10)


@pytest.mark.parametrize("image", [mirrored_in_x, mirrored_in_y, lambda flow: shifted(flow, 3)])
def test_mirrors_alone_turn_the_force_round(x64, image):
    """Why `mirror = None`."""
    move = functools.partial(run, physics=solver.Physics(1e-3, 1.0), duration=1.0, dt=0.01)
    assert distance(move(image(stirred())), image(move(stirred()))) > 0.5


def test_face_means_keep_mean_momentum_and_zero_divergence(x64):
    flow = run(stirred(), solver.Physics(1e-3, 1.0), 1.0, 0.01)
    coarse = solver.face_means(flow, 8)
    assert coarse.u.shape == (8, 8)
    assert float(jnp.abs(solver.divergence(coarse)).max()) < 1e-12
    for fine, mean in zip(flow, coarse, strict=True):
        np.testing.assert_allclose(mean.mean(), fine.mean(), rtol=1e-12)
        assert float(jnp.abs(mean).max()) > 0.3
    np.testing.assert_allclose(coarse.u[2, 3], flow.u[6:9, 9].mean(), rtol=1e-12)
    np.testing.assert_allclose(coarse.v[2, 3], flow.v[6, 9:12].mean(), rtol=1e-12)


def test_the_first_state_is_random_free_of_divergence_with_its_spectrum_and_speed(x64):
    flows = jax.vmap(lambda key: solver.initial(key, 32))(jax.random.split(jax.random.key(0), 200))
    speed = np.sqrt(flows.u**2 + flows.v**2)
    np.testing.assert_allclose(speed.max(axis=(1, 2)), 7.0, rtol=1e-12)
    assert float(jnp.abs(jax.vmap(solver.divergence)(flows)).max()) < 1e-12 * 32
    power = sum(np.mean(np.abs(np.fft.fft2(a)) ** 2, axis=0) for a in flows)
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(32, 1 / 32), np.fft.fftfreq(32, 1 / 32)))
    power, k = power[(k > 0) & (k < 7)], k[(k > 0) & (k < 7)]
    density = np.exp(-((np.log(3) + 0.25 - np.log(k)) ** 2) / (2 * 0.25)) / k / k
    ratio = power / density**2
    assert np.std(np.log(ratio)) < 0.25  # 400 degrees of freedom each, and the faces' half cell


@pytest.mark.parametrize("nu, rho", CORNERS)
def test_the_flow_stays_turbulent_and_finite_over_the_whole_range(nu, rho):
    """Its energy obeys sqrt(2 E) <= max(start, F / (sqrt(2) a)): the shear cannot feed more against the drag."""
    cells, count = 32, 2400  # 30 units of time
    time_step = steps_of(solver.whole_fraction(cells, 7.0, 0.5), cells, diffusivity=5e-3 / 0.5)
    flow = advance(solver.initial(jax.random.key(1), cells), solver.Physics(nu, rho), time_step, count)
    assert 0.3 < np.sqrt(2 * energy(flow)) < 1 / (np.sqrt(2) * 0.1)
    assert float(jnp.sqrt(flow.u**2 + flow.v**2).max()) < 7.0
    assert float(jnp.abs(solver.divergence(flow)).max()) < 1e-4
    assert float(jnp.abs(flow.u - flow.u.mean(axis=1, keepdims=True)).max()) > 0.3  # not laminar


def test_the_time_step_is_the_published_one():
    """0.05 over 8, 15 and 29 steps for 64, 128 and 256 cells."""
    for cells, count in ((64, 8), (128, 15), (256, 29)):
        assert solver.whole_fraction(cells, 7.0, 0.5) == 0.05 / count
        steps_of(0.05 / count, cells, diffusivity=0.01)


def test_a_step_beyond_the_limit_is_refused():
    h = 2 * np.pi / 64
    good = steps_of(0.99 * h / 14, 64, max_speed=7.0, diffusivity=0.01)
    assert good.limit == pytest.approx(h / 14)
    assert dataclasses.replace(good, dt=0.001, diffusivity=1.0).limit == pytest.approx(h**2 / 4)
    changes = (
        dict(dt=0.0),
        dict(dt=-0.01),
        dict(dt=1.01 * h / 14),
        dict(max_speed=7.1),
        dict(diffusivity=1.0),
    )
    for change in changes:
        with pytest.raises(ValueError, match=r"a time step of .* on 64 cells .* beyond the CFL limit"):
            dataclasses.replace(good, **change)
    with pytest.raises(ValueError, match="CFL limit"):
        dataclasses.replace(good, cells=128)
    with pytest.raises(ValueError, match="expected 64 x 64 cells, found"):
        solver.step(stirred(24), solver.Physics(1e-3, 1.0), good)


def test_the_limit_of_advection_is_where_a_diagonal_flow_begins_to_amplify(x64):
    """Disturbances that a uniform flow carries for 30 units of time, without viscosity."""
    still = solver.Physics(0.0, 1.0, **STILL)
    for share, grows in ((0.8, False), (1.3, True)):
        flow = solver.initial(jax.random.key(1), 16, max_speed=0.01)
        limit = steps_of(1e-3, 16, max_speed=1.0).limit
        time_step = steps_of(share * limit, 16, max_speed=1.0 / share)
        carried = jax.tree.map(lambda a: a + 0.5**0.5, flow)
        later = advance(carried, still, time_step, int(30 / time_step.dt))
        gain = float(jnp.abs(later.u - 0.5**0.5).max() / jnp.abs(flow.u).max())
        assert gain > 30 if grows else gain < 1, (share, gain)


def test_the_limit_of_diffusion_is_sharp(x64):
    """The finest checkerboard is multiplied by 1 - 8 nu dt / h^2, at the limit -1."""
    h, x, y = coordinates(16)
    board = 1e-8 * (-1.0) ** (np.rint(x / h) + np.rint(y / h))
    flow = solver.Velocity(jnp.asarray(board), jnp.asarray(-board))
    limit = steps_of(1e-3, 16, max_speed=1e-3, diffusivity=0.5).limit
    assert 1 - 8 * 0.5 * limit / h**2 == pytest.approx(-1)
    for dt in (0.9 * limit, limit):
        later = step(flow, solver.Physics(0.5, 1.0, **STILL), steps_of(dt, 16, 1e-3, 0.5))
        np.testing.assert_allclose(later.u, (1 - 8 * 0.5 * dt / h**2) * board, atol=1e-14)
