"""The convection solver against what is known of the equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dydiff_jax.data.simulators import rayleigh_benard as solver

PRANDTL = 0.71
#: Onset between rigid plates (Chandrasekhar 1961, section 15).
CRITICAL_RAYLEIGH = 1707.762
#: Steady rolls at Ra = 1e4, Pr = 0.71 (Clever and Busse, J. Fluid Mech. 65, 625, 1974).
ROLLS_NUSSELT = 2.661


advance = jax.jit(solver.advance)


def stirred(rows=12, columns=24, seed=0):
    """Random smooth flow that is free of divergence, with a random temperature."""
    flow = solver.physics(1e6, PRANDTL)
    return advance(solver.initial(jax.random.key(seed), rows, columns, noise=0.3), flow, 4.0), flow


def one_roll_pair(rows, amplitude):
    """The conducting state in a box twice as wide as high, with a little of the critical mode."""
    y, x = (np.arange(rows) + 0.5) / rows, (np.arange(2 * rows) + 0.5) / rows
    theta = 0.5 - y[:, None] + amplitude * np.outer(np.sin(np.pi * y), np.cos(np.pi * x))
    rest = jnp.zeros_like(jnp.asarray(theta))
    return solver.Fluid(rest, rest, jnp.asarray(theta))


def growth_rate(rows, rayleigh):
    flow = solver.physics(rayleigh, PRANDTL)
    first = advance(one_roll_pair(rows, 1e-6), flow, 20.0)
    last = advance(first, flow, 20.0)
    return float(jnp.log(jnp.linalg.norm(last.v) / jnp.linalg.norm(first.v))) / 20.0


def onset(rows):
    """The Rayleigh number of zero growth, between two runs."""
    below, above = growth_rate(rows, 1600.0), growth_rate(rows, 1760.0)
    assert below < 0 < above
    return 1600.0 - 160.0 * below / (above - below)


@pytest.mark.slow
def test_onset_of_convection_converges_to_the_critical_rayleigh_number(x64):
    coarse, fine = onset(12), onset(24)
    assert abs(fine / CRITICAL_RAYLEIGH - 1) < 0.012
    assert 3.0 < (coarse - CRITICAL_RAYLEIGH) / (fine - CRITICAL_RAYLEIGH) < 5.0  # second order
    assert abs((4 * fine - coarse) / 3 / CRITICAL_RAYLEIGH - 1) < 0.003


@pytest.fixture(scope="module")
def steady():
    """Steady rolls at Ra = 1e4 on two grids, each with its Nusselt number at every height."""
    flow = solver.physics(1e4, PRANDTL)
    with jax.enable_x64(True):
        fluids = [advance(one_roll_pair(rows, 0.1), flow, 100.0) for rows in (12, 24)]
        return fluids, flow, [np.asarray(solver.heat_flux(fluid, flow)) for fluid in fluids]


@pytest.mark.slow
def test_heat_flux_is_the_same_at_both_plates_and_in_the_volume(steady):
    _, _, fluxes = steady
    for flux in fluxes:
        np.testing.assert_allclose(flux, flux.mean(), rtol=1e-6)


def test_heat_flux_of_steady_rolls_refines_to_the_published_value(steady):
    coarse, fine = (flux.mean() for flux in steady[2])
    assert abs(coarse / fine - 1) < 0.04
    assert abs((4 * fine - coarse) / 3 / ROLLS_NUSSELT - 1) < 0.005


def test_dissipation_balances_the_work_of_buoyancy(steady, x64):
    """nu <|grad u|^2> = kappa (Nu - 1), exact for the equations; with differences of the test's own."""
    (_, fluid), flow, (_, flux) = steady
    rows = fluid.u.shape[0]
    velocity = np.asarray(solver.velocity(fluid))
    walls = np.zeros((1, *velocity.shape[1:]))
    heights = np.concatenate([[0.0], (np.arange(rows) + 0.5) / rows, [1.0]])
    along_y = np.gradient(np.concatenate([walls, velocity, walls]), heights, axis=0)
    along_x = (np.roll(velocity, -1, 1) - np.roll(velocity, 1, 1)) * rows / 2
    gradients = np.trapezoid((along_y**2).sum(-1).mean(1), heights) + (along_x**2).sum(-1).mean()
    np.testing.assert_allclose(flow.nu * gradients, flow.kappa * (flux.mean() - 1), rtol=0.03)


def test_divergence_is_zero(x64):
    fluid, _ = stirred()
    assert float(jnp.abs(fluid.v).max()) > 0.1
    assert float(jnp.abs(solver.divergence(fluid)).max()) < 1e-12


def test_heat_changes_only_through_the_plates(x64):
    fluid, flow = stirred()
    flux = solver.heat_flux(fluid, flow)
    dt = 1e-3
    later = solver._euler(fluid, flow, dt)
    gained = (later.theta - fluid.theta).mean()
    np.testing.assert_allclose(gained, dt * flow.kappa * (flux[0] - flux[-1]), rtol=1e-9)


def test_mean_horizontal_momentum_changes_only_through_the_plates(x64):
    fluid, flow = stirred()
    rows, dt = fluid.u.shape[0], 1e-3
    friction = -2.0 * flow.nu * rows * (fluid.u[0] + fluid.u[-1]).mean()
    later = solver._euler(fluid, flow, dt)
    np.testing.assert_allclose((later.u - fluid.u).mean(), dt * friction, rtol=1e-9)


def test_conduction_at_rest_stays(x64):
    flow = solver.physics(1000.0, PRANDTL)
    still = one_roll_pair(12, 0.0)
    later = advance(still, flow, 4.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), later, still)
    np.testing.assert_allclose(solver.heat_flux(later, flow), 1.0, rtol=1e-10)


def test_time_stepping_is_of_second_order(x64):
    fluid, flow = stirred()
    step = jax.jit(solver.step)

    def run(steps):
        state = fluid
        for _ in range(steps):
            state = step(state, flow, 0.2 / steps)
        return np.asarray(solver.velocity(state))

    coarse, middle, fine = (run(steps) for steps in (16, 32, 64))
    ratio = np.linalg.norm(coarse - middle) / np.linalg.norm(middle - fine)
    assert 3.0 < ratio < 5.5


def test_the_mirror_image_of_a_solution_is_a_solution(x64):
    """Why `mirror = (-1, 1)`: a left face at i of the image is the right face of cell columns - 1 - i."""
    fluid, flow = stirred()

    def mirror(state):
        return solver.Fluid(-jnp.roll(state.u[:, ::-1], 1, axis=1), state.v[:, ::-1], state.theta[:, ::-1])

    image = solver.velocity(mirror(fluid))
    np.testing.assert_allclose(image, solver.velocity(fluid)[:, ::-1] * np.array([-1.0, 1.0]), atol=1e-14)
    expected, found = mirror(advance(fluid, flow, 0.5)), advance(mirror(fluid), flow, 0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), expected, found)


def test_hot_and_cold_are_symmetric(x64):
    """The Boussinesq symmetry: upside down, with v and theta reversed, a solution is a solution."""
    fluid, flow = stirred()

    def turn(state):
        v = jnp.concatenate([state.v[:1], -state.v[:0:-1]])  # the lower face j becomes the upper face
        return solver.Fluid(state.u[::-1], v, -state.theta[::-1])

    expected, found = turn(advance(fluid, flow, 0.5)), advance(turn(fluid), flow, 0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), expected, found)


def test_translation_along_the_plates_commutes_with_time(x64):
    fluid, flow = stirred()
    shift = functools.partial(jax.tree.map, lambda a: jnp.roll(a, 5, axis=1))
    expected, found = shift(advance(fluid, flow, 0.5)), advance(shift(fluid), flow, 0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), expected, found)


def test_trajectories_side_by_side_are_those_one_by_one(x64):
    flow = solver.physics(1e6, PRANDTL)
    fluids = [stirred(seed=seed)[0] for seed in (0, 1)]
    batch = jax.tree.map(lambda *each: jnp.stack(each), *fluids)
    together = jax.jit(jax.vmap(lambda fluid: solver.advance(fluid, flow, 0.5)))(batch)
    for number, fluid in enumerate(fluids):
        alone = advance(fluid, flow, 0.5)
        jax.tree.map(lambda a, b, n=number: np.testing.assert_allclose(a[n], b, atol=1e-9), together, alone)
