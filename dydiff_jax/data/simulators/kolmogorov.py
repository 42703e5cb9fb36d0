"""Kolmogorov flow in two dimensions: a finite-volume solver.

Incompressible flow in a box of length 2 pi, periodic in x and y, driven by a shear and slowed by a drag:

    du/dt + div(u u) = -grad p + (nu lap u + F sin(k y) e_x - a u) / rho,     div u = 0,

the equations of JAX-CFD (Kochkov et al., PNAS 118, e2101784118, 2021, "Kolmogorov flow"), with F = 1, k = 4 and
a = 0.1. The density rho divides the viscosity and the whole forcing, drag included, so nu is the dynamic viscosity
and nu / rho the kinematic one. Time and length are in the units that make the box 2 pi and F / rho = 1 at rho = 1.

Space: square cells, velocities on their faces, conservative fluxes of Lax and Wendroff with van Leer's limiter.
The pressure is solved for exactly, by Fourier transforms. Time: forward Euler, followed by the projection. The scheme
is JAX-CFD's, step for step.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dydiff_jax.data.simulators.stencils import across_x, across_y, limited_upwind, x_faces, y_faces

#: Side of the box.
LENGTH = 2.0 * math.pi
#: Every time step is a whole fraction of it, as in Rolling Diffusion (Ruhe et al. 2024, arXiv 2402.09470, Table 7).
LONGEST_STEP = 0.05


class Velocity(NamedTuple):
    """The state; the row is y and the column is x, both from the corner of the box.

    Attributes:
      u: [n, n], velocity along x on the left face of each cell.
      v: [n, n], velocity along y on the lower face of each cell.
    """

    u: jax.Array
    v: jax.Array


class Physics(NamedTuple):
    """What drives and slows the flow.

    Attributes:
      viscosity: nu, dynamic.
      density: rho.
      forcing: F, amplitude of the shear.
      wavenumber: k of the shear; the box holds k of its waves.
      drag: a, friction proportional to the velocity.
    """

    viscosity: float | jax.Array
    density: float | jax.Array
    forcing: float = 1.0
    wavenumber: int = 4
    drag: float = 0.1


@dataclasses.dataclass(frozen=True)
class TimeStep:
    """A time step that the scheme bears: max_speed dt / h <= 1/2 and (nu / rho) dt / h^2 <= 1/4, as in JAX-CFD.

    The second is exact: beyond it the finest checkerboard grows. The first is measured: the fluxes of x and y are
    not split, so that a uniform flow along the diagonal amplifies what it carries, slowly from 0.45 on and at 0.6
    forty times in thirty units of time; along an axis it is stable up to 1.

    Attributes:
      dt: the step.
      cells: n, cells along each side of the box; h = 2 pi / n.
      max_speed: of the flow.
      diffusivity: the largest nu / rho.
    """

    dt: float
    cells: int
    max_speed: float
    diffusivity: float

    def __post_init__(self):
        if not 0 < self.dt <= self.limit * (1 + 1e-9):
            raise ValueError(
                f"a time step of {self.dt:.3g} on {self.cells} cells of {LENGTH / self.cells:.3g} is beyond the "
                f"CFL limit {self.limit:.3g} of the scheme at speed {self.max_speed:g} and diffusivity "
                f"{self.diffusivity:g}; use a smaller step or fewer cells"
            )

    @property
    def limit(self) -> float:
        """The longest step."""
        h = LENGTH / self.cells
        return min(h / (2.0 * self.max_speed), h**2 / (4.0 * self.diffusivity))


def whole_fraction(cells: int, max_speed: float, courant: float) -> float:
    """The longest dt with max_speed dt / h <= courant that goes a whole number of times into 0.05."""
    return LONGEST_STEP / math.ceil(LONGEST_STEP / (courant * LENGTH / cells / max_speed))


def initial(key: jax.Array, cells: int, max_speed: float = 7.0, peak: float = 3.0) -> Velocity:
    """Random flow free of divergence with the given largest speed, as JAX-CFD's `filtered_velocity_field`.

    White noise, filtered to a log-normal spectrum of variance 1/4 with its mode at the wavenumber `peak`; then
    three times projected and scaled.
    """
    frequency = np.fft.fftfreq(cells, 1.0 / cells)
    wavenumber = np.hypot(frequency[:, None], np.fft.rfftfreq(cells, 1.0 / cells))
    wavenumber[0, 0] = 1.0
    log_k = np.log(wavenumber)
    density = np.exp(-2.0 * (np.log(peak) + 0.25 - log_k) ** 2 - log_k) / wavenumber
    density[0, 0] = 0.0
    spectrum = jnp.fft.rfft2(jax.random.normal(key, (2, cells, cells))) * density
    flow = Velocity(*jnp.fft.irfft2(spectrum, s=(cells, cells)))
    for _ in range(3):
        flow = project(flow)
        scale = max_speed / jnp.sqrt(flow.u**2 + flow.v**2).max()
        flow = Velocity(scale * flow.u, scale * flow.v)
    return flow


def advance(flow: Velocity, physics: Physics, time_step: TimeStep, count: int) -> Velocity:
    """The state `count` time steps later."""
    return jax.lax.fori_loop(0, count, lambda _, state: step(state, physics, time_step), flow)


def step(flow: Velocity, physics: Physics, time_step: TimeStep) -> Velocity:
    """One forward Euler step, projected onto the flows that are free of divergence."""
    if flow.u.shape != (time_step.cells, time_step.cells):
        raise ValueError(f"expected {time_step.cells} x {time_step.cells} cells, found {flow.u.shape}")
    rates = tendency(flow, physics, time_step.dt)
    return project(Velocity(*(a + time_step.dt * rate for a, rate in zip(flow, rates, strict=True))))


def tendency(flow: Velocity, physics: Physics, dt: float) -> Velocity:
    """The right-hand sides without the pressure; the fluxes are those of a step of length dt."""
    h = LENGTH / flow.u.shape[0]
    u, v = (_ghosts(a) for a in flow)

    def balance(a, speed_x, speed_y):
        """-div of the fluxes, speed c - (nu / rho) grad a, around the faces on which `a` lies."""
        conductance = physics.viscosity / physics.density / h
        flux_x = _flux(speed_x, dt / h, conductance, across_x(a))
        flux_y = _flux(speed_y, dt / h, conductance, across_y(a))
        return -(flux_x[:, 1:] - flux_x[:, :-1] + flux_y[1:] - flux_y[:-1]) / h

    to_u = balance(u, _mean(x_faces(u, 0, -1), x_faces(u, 0, 0)), _mean(y_faces(v, 0, -1), y_faces(v, 0, 0)))
    to_v = balance(v, _mean(x_faces(u, -1, 0), x_faces(u, 0, 0)), _mean(y_faces(v, -1, 0), y_faces(v, 0, 0)))
    force = shear(flow.u.shape[0], physics)
    return Velocity(
        to_u + (force - physics.drag * flow.u) / physics.density,
        to_v - physics.drag * flow.v / physics.density,
    )


def shear(cells: int, physics: Physics) -> jax.Array:
    """F sin(k y) at the heights of u, [cells, 1]."""
    y = (np.arange(cells) + 0.5) * (LENGTH / cells)
    return physics.forcing * jnp.sin(physics.wavenumber * jnp.asarray(y))[:, None]


def divergence(flow: Velocity) -> jax.Array:
    """div u in each cell, [n, n]."""
    return _outflow(flow) * (flow.u.shape[0] / LENGTH)


def project(flow: Velocity) -> Velocity:
    """Subtract the gradient of the pressure that makes the velocity free of divergence."""
    cells = flow.u.shape[0]
    inverse = jnp.asarray(_inverse_laplacian(cells), flow.u.dtype)
    p = jnp.fft.irfft2(jnp.fft.rfft2(_outflow(flow)) * inverse, s=(cells, cells))
    return Velocity(flow.u - (p - jnp.roll(p, 1, axis=1)), flow.v - (p - jnp.roll(p, 1, axis=0)))


def face_means(flow: Velocity, cells: int) -> Velocity:
    """The flow on a coarser grid: the mean of u and v over each face of its cells.

    What flows through a face stays the same, so the divergence stays zero and mean momentum is kept.
    """
    factor = flow.u.shape[0] // cells
    u = flow.u[:, ::factor].reshape(cells, factor, cells).mean(axis=1)
    v = flow.v[::factor].reshape(cells, cells, factor).mean(axis=2)
    return Velocity(u, v)


def _mean(a, b):
    return 0.5 * (a + b)


def _flux(speed, time_over_space, conductance, across):
    """Lax-Wendroff's flux, limited: speed (upwind + (1 - |C|) slope / 2) - conductance (right - left).

    C is the Courant number of the face. The scheme is of second order where the flow is smooth.
    """
    upwind, half_slope = limited_upwind(speed, *across)
    _, left, right, _ = across
    value = upwind + (1.0 - time_over_space * jnp.abs(speed)) * half_slope
    return speed * value - conductance * (right - left)


def _ghosts(a):
    """Two periodic ghost cells on every side; the barrier keeps the fluxes from padding anew at each read."""
    rows = jnp.concatenate([a[-2:], a, a[:2]], axis=0)
    return jax.lax.optimization_barrier(jnp.concatenate([rows[:, -2:], rows, rows[:, :2]], axis=1))


def _outflow(flow):
    return jnp.roll(flow.u, -1, axis=1) - flow.u + jnp.roll(flow.v, -1, axis=0) - flow.v


def _inverse_laplacian(cells):
    """1 / the eigenvalues of the sum of neighbours less 4, [cells, cells // 2 + 1]."""
    along = 2.0 * np.cos(2.0 * np.pi * np.arange(cells) / cells) - 2.0
    eigenvalues = along[:, None] + along[: cells // 2 + 1]
    eigenvalues[0, 0] = np.inf  # the mean of the pressure is arbitrary
    return 1.0 / eigenvalues
