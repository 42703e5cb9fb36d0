"""Fluxes on a staggered grid of square cells, with two ghost cells on every side.

The row is the height y and the column is x. Velocities lie on the faces of the cells (Harlow and Welch, Phys.
Fluids 8, 2182, 1965): u on the left face, v on the lower one.
"""

import jax
import jax.numpy as jnp


def x_faces(a: jax.Array, row: int, column: int) -> jax.Array:
    """The entries at (row, column) from each of the columns + 1 vertical faces of the grid.

    Args:
      a: [rows + 4, columns + 4], with the ghosts.
    """
    rows, columns = a.shape[0] - 4, a.shape[1] - 4
    return a[2 + row : 2 + row + rows, 2 + column : 3 + column + columns]


def y_faces(a: jax.Array, row: int, column: int) -> jax.Array:
    """The entries at (row, column) from each of the rows + 1 horizontal faces of the grid."""
    rows, columns = a.shape[0] - 4, a.shape[1] - 4
    return a[2 + row : 3 + row + rows, 2 + column : 2 + column + columns]


def across_x(a: jax.Array) -> list[jax.Array]:
    """The two values on either side of each vertical face, from left to right."""
    return [x_faces(a, 0, i) for i in (-2, -1, 0, 1)]


def across_y(a: jax.Array) -> list[jax.Array]:
    """The two values on either side of each horizontal face, upwards."""
    return [y_faces(a, i, 0) for i in (-2, -1, 0, 1)]


def limited_upwind(speed, far_left, left, right, far_right) -> tuple[jax.Array, jax.Array]:
    """The upwind value at the face between `left` and `right`, and half of van Leer's slope there.

    The slope is the harmonic mean of the two differences around the upwind cell, 0 at an extremum (van Leer, J.
    Comput. Phys. 14, 361, 1974).
    """
    rightwards = speed > 0
    upwind = jnp.where(rightwards, left, right)
    behind = jnp.where(rightwards, left - far_left, right - far_right)
    ahead = jnp.where(rightwards, right - left, left - right)
    product = behind * ahead
    return upwind, jnp.where(product > 0, product / (behind + ahead), 0.0)
