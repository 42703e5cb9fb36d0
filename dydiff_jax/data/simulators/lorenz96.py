"""Lorenz's model of 1996: variables on a circle of latitude, carried, damped and forced.

    dx_i/dt = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + F        (Lorenz, "Predictability: a problem partly solved", 1996)

The first term keeps the energy sum x^2 / 2, so that d/dt sum x^2 / 2 = -sum x^2 + F sum x. With 40 variables at F = 8
it is chaotic, with a leading Lyapunov exponent near 1.7. Time: the classical Runge-Kutta scheme of order 4; noise
sigma dW, if any, is added after each step as by Euler and Maruyama.
"""

import jax
import jax.numpy as jnp


def tendency(x: jax.Array, forcing: float) -> jax.Array:
    """dx/dt, [..., variables]."""
    advection = (jnp.roll(x, -1, axis=-1) - jnp.roll(x, 2, axis=-1)) * jnp.roll(x, 1, axis=-1)
    return advection - x + forcing


def step(x: jax.Array, forcing: float, dt: float) -> jax.Array:
    """The state dt later, without noise: Runge and Kutta's scheme of order 4."""
    k_1 = tendency(x, forcing)
    k_2 = tendency(x + 0.5 * dt * k_1, forcing)
    k_3 = tendency(x + 0.5 * dt * k_2, forcing)
    k_4 = tendency(x + dt * k_3, forcing)
    return x + dt / 6.0 * (k_1 + 2.0 * k_2 + 2.0 * k_3 + k_4)


def advance(x: jax.Array, forcing: float, dt: float, count: int) -> jax.Array:
    """The state `count` steps later, without noise."""
    return jax.lax.fori_loop(0, count, lambda _, state: step(state, forcing, dt), x)


def advance_noisy(
    x: jax.Array, key: jax.Array, forcing: float, dt: float, count: int, noise: float
) -> jax.Array:
    """The state `count` steps later, each followed by noise sqrt(dt) n with n standard normal."""

    def move(now, key):
        return step(now, forcing, dt) + noise * dt**0.5 * jax.random.normal(key, now.shape, now.dtype), None

    return jax.lax.scan(move, x, jax.random.split(key, count))[0]


def initial(key: jax.Array, variables: int, forcing: float) -> jax.Array:
    """The fixed point x_i = F with standard normal noise."""
    return forcing + jax.random.normal(key, (variables,))
