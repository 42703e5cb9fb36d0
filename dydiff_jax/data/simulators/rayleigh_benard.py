"""Rayleigh-Benard convection in two dimensions: a finite-volume solver.

In free-fall units (length: the height H; velocity: sqrt(g a dT H); temperature: the difference dT between
the plates) the Boussinesq equations are

    du/dt + div(u u) = -grad p + nu lap u + theta e_y,     div u = 0,
    dtheta/dt + div(u theta) = kappa lap theta,            nu = sqrt(Pr/Ra),  kappa = 1/sqrt(Ra Pr),

with theta = +1/2 on the lower and -1/2 on the upper plate, no slip on both, and period columns/rows in x
(Ahlers, Grossmann and Lohse, Rev. Mod. Phys. 81, 503, 2009, section II).

Space: square cells, velocities on their faces (Harlow and Welch, 1965), conservative fluxes with van Leer's
limiter, which needs no further viscosity where the grid does not resolve the flow. The pressure is solved for
exactly, by a Fourier transform in x and a cosine transform in y. Time: the two-stage, second-order method of
Shu and Osher (1988), so that steady states do not depend on the time step. Every stage is free of divergence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dydiff_jax.data.simulators.stencils import across_x, across_y, limited_upwind, x_faces, y_faces

#: No parcel gains more speed in a leg than the leg's length times the largest buoyancy, 1/2.
LONGEST_LEG = 0.25


class Fluid(NamedTuple):
    """The state; the row is the height, counted from the lower plate, and the column is x.

    Attributes:
      u: [rows, columns], horizontal velocity on the left face of each cell.
      v: [rows, columns], vertical velocity on the lower face of each cell; row 0 is the plate and stays 0.
      theta: [rows, columns], temperature at the cell centres, in [-1/2, 1/2].
    """

    u: jax.Array
    v: jax.Array
    theta: jax.Array


class Physics(NamedTuple):
    """Viscosity nu and thermal diffusivity kappa, in free-fall units."""

    nu: float
    kappa: float


def physics(rayleigh: float, prandtl: float) -> Physics:
    """nu = sqrt(Pr/Ra) and kappa = 1/sqrt(Ra Pr)."""
    return Physics(nu=(prandtl / rayleigh) ** 0.5, kappa=(prandtl * rayleigh) ** -0.5)


def initial(key: jax.Array, rows: int, columns: int, noise: float = 0.05) -> Fluid:
    """Fluid at rest, with the conducting profile and white noise of standard deviation `noise` on it."""
    height = (jnp.arange(rows) + 0.5)[:, None] / rows
    theta = 0.5 - height + noise * jax.random.normal(key, (rows, columns))
    rest = jnp.zeros_like(theta)
    return Fluid(u=rest, v=rest, theta=theta)


def advance(fluid: Fluid, physics: Physics, duration: float) -> Fluid:
    """The state `duration` free-fall units later.

    The time step of each leg keeps  dt ((|u| + |v|)/h + 4 max(nu, kappa)/h^2) <= 1, the limit of the scheme.
    """
    legs = jnp.ceil(duration / LONGEST_LEG).astype(jnp.int32)
    leg = duration / legs

    def run_leg(_, fluid):
        steps = jnp.ceil(leg * _rate(fluid, physics, leg)).astype(jnp.int32)
        dt = (leg / steps).astype(fluid.u.dtype)
        return jax.lax.fori_loop(0, steps, lambda _, state: step(state, physics, dt), fluid)

    return jax.lax.fori_loop(0, legs, run_leg, fluid)


def step(fluid: Fluid, physics: Physics, dt: jax.Array) -> Fluid:
    """One step of the two-stage method: the mean of the state and of two forward Euler steps from it."""
    later = _euler(_euler(fluid, physics, dt), physics, dt)
    return jax.lax.optimization_barrier(jax.tree.map(lambda a, b: 0.5 * (a + b), fluid, later))


def velocity(fluid: Fluid) -> jax.Array:
    """Both velocity components at the cell centres, [rows, columns, 2]."""
    u, v = _right(fluid.u), _above(fluid.v)
    return jnp.stack([0.5 * (fluid.u + u), 0.5 * (fluid.v + v)], axis=-1)


def divergence(fluid: Fluid) -> jax.Array:
    """div u in each cell, [rows, columns]."""
    return _outflow(fluid.u, fluid.v) * fluid.u.shape[0]


def heat_flux(fluid: Fluid, physics: Physics) -> jax.Array:
    """Nusselt number at each height: the mean over x of (v theta - kappa dtheta/dy)/kappa, [rows + 1].

    The first and last entry are the plates. In a steady state all entries are equal, and their mean is that
    of the volume.
    """
    _, theta_y = _theta_fluxes(_ghosts(fluid), physics.kappa)
    return theta_y.mean(axis=1) / physics.kappa


def _rate(fluid, physics, leg):
    """Steps a unit of time that keep the scheme stable for the length of a leg."""
    rows = fluid.u.shape[0]
    speed = jnp.max(jnp.abs(fluid.u) + jnp.abs(fluid.v)) + 0.5 * leg
    return speed * rows + 4.0 * jnp.maximum(physics.nu, physics.kappa) * rows**2


def _euler(fluid, physics, dt):
    rates = _tendency(fluid, physics)
    u, v, theta = jax.tree.map(lambda a, rate: a + dt * rate, fluid, rates)
    u, v = _project(u, v)
    return Fluid(u, v, theta)


def _tendency(fluid: Fluid, physics: Physics) -> Fluid:
    """The right-hand sides without the pressure."""
    ghosts = _ghosts(fluid)
    u, v, theta = ghosts
    nu = physics.nu
    to_u = _balance(
        _flux_x(u, 0.5 * (x_faces(u, 0, -1) + x_faces(u, 0, 0)), nu),
        _flux_y(u, 0.5 * (y_faces(v, 0, -1) + y_faces(v, 0, 0)), nu),
    )
    to_v = _balance(
        _flux_x(v, 0.5 * (x_faces(u, -1, 0) + x_faces(u, 0, 0)), nu),
        _flux_y(v, 0.5 * (y_faces(v, -1, 0) + y_faces(v, 0, 0)), nu),
    )
    buoyancy = 0.5 * (theta[1:-3, 2:-2] + theta[2:-2, 2:-2])
    to_theta = _balance(*_theta_fluxes(ghosts, physics.kappa))
    return Fluid(to_u, (to_v + buoyancy).at[0].set(0.0), to_theta)


def _theta_fluxes(ghosts, kappa):
    u, v, theta = ghosts
    return _flux_x(theta, x_faces(u, 0, 0), kappa), _flux_y(theta, y_faces(v, 0, 0), kappa)


def _ghosts(fluid: Fluid) -> Fluid:
    """Two ghost cells on every side: periodic in x; odd about the plates' values in y.

    The barrier makes the padded arrays before the fluxes read them a few times; fused, each read pads anew.
    """
    u, v, theta = fluid
    padded = Fluid(
        u=[-u[1:2], -u[:1], u, -u[-1:], -u[-2:-1]],
        v=[-v[2:3], -v[1:2], v, jnp.zeros_like(v[:1]), -v[-1:]],
        theta=[1.0 - theta[1:2], 1.0 - theta[:1], theta, -1.0 - theta[-1:], -1.0 - theta[-2:-1]],
    )
    rows = Fluid(*(jnp.concatenate(parts, axis=0) for parts in padded))
    wrapped = Fluid(*(jnp.concatenate([a[:, -2:], a, a[:, :2]], axis=1) for a in rows))
    return jax.lax.optimization_barrier(wrapped)


def _flux_x(a, speed, diffusivity):
    return _flux(speed, diffusivity * (a.shape[0] - 4), *across_x(a))


def _flux_y(a, speed, diffusivity):
    return _flux(speed, diffusivity * (a.shape[0] - 4), *across_y(a))


def _flux(speed, conductance, far_left, left, right, far_right):
    """Flux through the face between `left` and `right`: speed c - conductance (right - left).

    c is the upwind value plus half of van Leer's slope.
    """
    upwind, half_slope = limited_upwind(speed, far_left, left, right, far_right)
    return speed * (upwind + half_slope) - conductance * (right - left)


def _balance(flux_x, flux_y):
    """-div of the fluxes, [rows, columns]."""
    rows = flux_x.shape[0]
    return -rows * (flux_x[:, 1:] - flux_x[:, :-1] + flux_y[1:] - flux_y[:-1])


def _right(a):
    return jnp.concatenate([a[:, 1:], a[:, :1]], axis=1)


def _above(v):
    """The vertical velocity on the upper faces; the upper plate is at rest."""
    return jnp.concatenate([v[1:], jnp.zeros_like(v[:1])], axis=0)


def _outflow(u, v):
    return _right(u) - u + _above(v) - v


def _project(u, v):
    """Subtract the gradient of the pressure that makes the velocity free of divergence."""
    cosines, inverse = _poisson(*u.shape)
    cosines, inverse = jnp.asarray(cosines, u.dtype), jnp.asarray(inverse, u.dtype)
    source = jax.lax.optimization_barrier(_outflow(u, v))
    spectrum = jnp.fft.rfft(jnp.matmul(cosines, source, precision="highest"), axis=1) * inverse
    p = jnp.fft.irfft(spectrum, n=u.shape[1], axis=1)
    p = jax.lax.optimization_barrier(jnp.matmul(cosines.T, p, precision="highest"))
    left = jnp.concatenate([p[:, -1:], p[:, :-1]], axis=1)
    below = jnp.concatenate([p[:1], p[:-1]], axis=0)
    return u - (p - left), v - (p - below)


def _poisson(rows, columns):
    """The cosine transform [rows, rows] and 1 / the Laplacian's eigenvalues [rows, columns // 2 + 1]."""
    wave = np.pi * np.arange(rows) / rows
    cosines = np.sqrt(2.0 / rows) * np.cos(wave[:, None] * (np.arange(rows) + 0.5))
    cosines[0] /= np.sqrt(2.0)
    along = 2.0 * np.cos(2.0 * np.pi * np.arange(columns // 2 + 1) / columns) - 2.0
    eigenvalues = (2.0 * np.cos(wave) - 2.0)[:, None] + along
    eigenvalues[0, 0] = np.inf  # the mean of the pressure is arbitrary
    return cosines, 1.0 / eigenvalues
