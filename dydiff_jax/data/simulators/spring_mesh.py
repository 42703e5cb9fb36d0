"""A mesh of 10 x 10 points joined by damped springs, hung from one row.

The system of nn-benchmark (Otness et al., "An extensible benchmark suite for learning to simulate physical systems",
NeurIPS Datasets and Benchmarks 2021), as DYffusion (Cachay et al. 2023, arXiv 2306.01984) uses it. A point of mass 1 at
q with velocity v, which is its momentum p, obeys

    dq/dt = v,     dv/dt = -sum over its springs of (l - l_0) d / l - gamma v,     gamma = 0.1,

with d from the other end of a spring to the point, l = |d|, stiffness 1 and l_0 the length at rest. Springs join the
points whose Chebyshev distance at rest is 1, so 342 of them; the row y = 9 is fixed. The energy falls as
dE/dt = -gamma sum |v|^2.

Time: velocity Verlet between two exact half steps of the damping, v <- v exp(-gamma dt / 2), of order 2.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

#: Points along each side.
SIDE = 10
#: gamma.
DAMPING = 0.1
#: Positions at rest, [y, x, (x, y)]: the row is y and the column is x.
REST = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).astype(np.float64)
#: 1 where a point is fixed, [y, x, 1].
FIXED = (REST[..., 1:] == SIDE - 1).astype(np.float32)


def _springs() -> np.ndarray:
    points = REST.reshape(-1, 2)
    pairs = itertools.combinations(range(len(points)), 2)
    return np.array([pair for pair in pairs if np.abs(points[pair[0]] - points[pair[1]]).max() == 1])


#: The two points of each spring, numbered row by row, [342, 2].
SPRINGS = _springs()
#: Difference of the two ends of each spring, as a matrix over the points [342, 100]: the second less the first.
ENDS = np.eye(SIDE**2)[SPRINGS[:, 1]] - np.eye(SIDE**2)[SPRINGS[:, 0]]
#: d and l_0 of each spring at rest, [342, 2] and [342, 1].
REST_VECTORS = ENDS @ REST.reshape(-1, 2)
REST_LENGTHS = np.linalg.norm(REST_VECTORS, axis=-1, keepdims=True)


class Mesh(NamedTuple):
    """The state; positions are kept as displacements, which float32 resolves ten times finer.

    Attributes:
      velocity: v, [y, x, (x, y)].
      displacement: q less the position at rest, [y, x, (x, y)].
    """

    velocity: jax.Array
    displacement: jax.Array


def initial(key: jax.Array, inner: float | jax.Array, outer: float | jax.Array) -> Mesh:
    """At rest, each free point displaced by a draw of its own, uniform by area in the ring inner <= r < outer."""
    unit = jax.random.uniform(key, (2, SIDE, SIDE))
    radius = jnp.sqrt(inner**2 + (outer**2 - inner**2) * unit[0])
    angle = 2.0 * jnp.pi * unit[1]
    displacement = radius[..., None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return Mesh(jnp.zeros_like(displacement), (1.0 - FIXED) * displacement)


def forces(displacement: jax.Array) -> jax.Array:
    """What the springs exert on each point, 0 on the fixed ones, [y, x, (x, y)]."""
    d, stretch, length = _stretch(displacement)
    pull = jnp.matmul(jnp.asarray(ENDS.T, d.dtype), stretch / length * d, precision="highest")
    return -(1.0 - FIXED) * pull.reshape(displacement.shape)


def energy(mesh: Mesh) -> jax.Array:
    """E = sum |v|^2 / 2 + sum over springs of (l - l_0)^2 / 2."""
    return 0.5 * (mesh.velocity**2).sum() + 0.5 * (_stretch(mesh.displacement)[1] ** 2).sum()


def step(mesh: Mesh, dt: float) -> Mesh:
    """The state dt later."""
    decay = math.exp(-0.5 * DAMPING * dt)
    half = decay * mesh.velocity + 0.5 * dt * forces(mesh.displacement)
    displacement = mesh.displacement + dt * half
    return Mesh(decay * (half + 0.5 * dt * forces(displacement)), displacement)


def advance(mesh: Mesh, dt: float, count: int) -> Mesh:
    """The state `count` steps later."""
    return jax.lax.fori_loop(0, count, lambda _, state: step(state, dt), mesh)


def positions(mesh: Mesh) -> jax.Array:
    """q, [y, x, (x, y)]."""
    return jnp.asarray(REST, mesh.displacement.dtype) + mesh.displacement


def _stretch(displacement: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """d, l - l_0 and l of each spring."""
    ends, vectors, lengths = (jnp.asarray(a, displacement.dtype) for a in (ENDS, REST_VECTORS, REST_LENGTHS))
    d = vectors + jnp.matmul(ends, displacement.reshape(-1, 2), precision="highest")
    length = jnp.sqrt((d**2).sum(axis=-1, keepdims=True))
    return d, length - lengths, length
