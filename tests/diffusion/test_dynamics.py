"""The mixing recursion against closed forms and against a matrix written out element by element."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dydiff_jax.diffusion import dynamics as code

dynamics, inverse_dynamics = (
    jax.jit(function, static_argnums=2, static_argnames="axis")
    for function in (code.dynamics, code.inverse_dynamics)
)


def matrix(gamma):
    """D of one window [frames], D_ij = sqrt(gamma_j) prod_{j < l <= i} sqrt(1 - gamma_l), without a recursion."""
    logs = jnp.cumsum(jnp.log(1 - gamma)) / 2
    return jnp.tril(jnp.exp(logs[:, None] - logs[None, :])) * jnp.sqrt(gamma).at[0].set(1)


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def random_gamma(seed, *shape):
    return np.asarray(np.random.default_rng(seed).uniform(0.05, 0.95, shape))


def test_equals_the_triangular_matrix_forward_and_backward(x64):
    x, gamma, weight = random(0, 3, 6, 2, 2, 1), random_gamma(1, 3, 6), random(2, 3, 6, 2, 2, 1)

    def by_matrix(x, gamma):
        return jnp.einsum("bij,bjhwc->bihwc", jax.vmap(matrix)(gamma), x)

    np.testing.assert_allclose(dynamics(x, gamma), jax.jit(by_matrix)(x, gamma), rtol=1e-13, atol=1e-13)
    gradients, expected = (
        jax.jit(jax.grad(lambda x, g, f=f: jnp.vdot(weight, f(x, g)), (0, 1)))(x, gamma)
        for f in (dynamics, by_matrix)
    )
    np.testing.assert_allclose(gradients[0], expected[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradients[1], expected[1], rtol=1e-11, atol=1e-11)


def test_closed_form_for_constant_gamma(x64):
    gamma, x = 0.3, random(0, 1, 8, 1)
    a, b = np.sqrt(1 - gamma), np.sqrt(gamma)
    y = np.asarray(dynamics(x, np.full((1,), gamma)))
    for s in range(8):
        expected = a**s * x[0, 0] + sum(a ** (s - j) * b * x[0, j] for j in range(1, s + 1))
        np.testing.assert_allclose(y[0, s], expected, rtol=1e-13)


@pytest.mark.parametrize("with_initial", [False, True])
@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("gamma_shape", [(), (3,), (3, 5)])
def test_round_trip_on_any_axis(with_initial, axis, gamma_shape, x64):
    shape = [3, 4, 4]
    shape.insert(axis % 4, 5)
    x, gamma = random(0, *shape), random_gamma(1, *gamma_shape)
    initial = random(2, 3, 4, 4) if with_initial else None
    y = dynamics(x, gamma, axis, initial)
    np.testing.assert_allclose(inverse_dynamics(y, gamma, axis, initial), x, rtol=1e-10, atol=1e-11)
    moved = dynamics(np.moveaxis(x, axis, 1), gamma, 1, initial)
    np.testing.assert_array_equal(np.moveaxis(moved, 1, axis), y)


def test_initial_continues_a_chain(x64):
    x, gamma = random(0, 2, 9, 3), random_gamma(1, 2, 9)
    whole = dynamics(x, gamma)
    second = dynamics(x[:, 4:], gamma[:, 4:], initial=whole[:, 3])
    np.testing.assert_allclose(second, whole[:, 4:], rtol=1e-14, atol=1e-14)


def test_rows_have_unit_norm_with_a_gamma_for_each_frame(x64):
    gamma = random_gamma(0, 1, 15)
    d = np.asarray(dynamics(np.eye(15)[None], np.broadcast_to(gamma, (1, 15))))[0]
    np.testing.assert_allclose(np.sum(d**2, axis=1), 1, rtol=1e-13)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
def test_covariance_of_mixed_noise_decays_as_sqrt_one_minus_gamma(gamma, x64):
    d = np.asarray(dynamics(np.eye(15)[None], np.full((1,), gamma)))[0]
    lag = np.abs(np.subtract.outer(np.arange(15), np.arange(15)))
    np.testing.assert_allclose(d @ d.T, np.sqrt(1 - gamma) ** lag, rtol=1e-12, atol=1e-14)


def test_gamma_one_is_the_identity_bit_for_bit():
    x = random(0, 2, 5, 3, 3, 1).astype(jnp.float32)
    ones = np.ones((2, 5))
    np.testing.assert_array_equal(dynamics(x, ones), x)
    np.testing.assert_array_equal(inverse_dynamics(x, ones), x)
    np.testing.assert_array_equal(dynamics(x, ones, initial=x[:, 0]), x)
    np.testing.assert_array_equal(inverse_dynamics(x, ones, initial=x[:, 0]), x)


def test_a_constant_series_is_amplified(x64):
    last = dynamics(np.ones((1, 200, 1)), np.full((1,), 0.5))[0, -1, 0]
    np.testing.assert_allclose(last, np.sqrt(0.5) / (1 - np.sqrt(0.5)), rtol=1e-12)
    np.testing.assert_allclose(last, 2.41, atol=0.005)


def test_variance_of_slowly_varying_data_grows_to_four_and_a_half(x64):
    d = np.asarray(dynamics(np.eye(16)[None], np.full((1,), 0.5)))[0]
    lag = np.abs(np.subtract.outer(np.arange(16), np.arange(16)))
    variance = np.diag(d @ 0.9**lag @ d.T)
    np.testing.assert_allclose(variance[15], 4.5, atol=0.05)
    assert np.all(np.diff(variance) > 0)


@pytest.mark.parametrize(("eta", "condition"), [(0.5, 5.3), (0.9, 21), (0.95, 32), (0.99, 76)])
def test_condition_numbers_over_fifteen_frames(eta, condition, x64):
    d = np.asarray(dynamics(np.eye(15)[None], np.full((1,), 1 - eta)))[0]
    np.testing.assert_allclose(np.linalg.cond(d), condition, rtol=0.02)


def test_half_precision_is_computed_in_float32():
    x = random(0, 2, 12, 3).astype(jnp.bfloat16)
    gamma = random_gamma(1, 2)
    y = dynamics(x, gamma.astype(jnp.float32))
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, dynamics(x.astype(np.float32), gamma.astype(jnp.float32)))


def test_bad_arguments_are_refused():
    x = np.zeros((2, 5, 3))
    with pytest.raises(ValueError, match=r"^gamma: .*\(5,\)"):
        dynamics(x, np.ones((5,)))
    with pytest.raises(ValueError, match=r"^axis"):
        inverse_dynamics(x, np.ones((2,)), axis=0)
