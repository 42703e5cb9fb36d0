"""eps, x0 and v predictions are the same statement about (y, n)."""

import jax.numpy as jnp
import numpy as np
import pytest

from dydiff_jax.diffusion.prediction import recover, residual, target
from dydiff_jax.diffusion.schedules import Cosine

T = np.linspace(0.02, 0.98, 14).reshape(2, 7, 1, 1, 1)


def draw(seed):
    return np.random.default_rng(seed).standard_normal((2, 7, 3, 3, 1))


def corrupted():
    alpha, sigma = Cosine().alpha(T), Cosine().sigma(T)
    y, n = draw(0), draw(1)
    return y, n, alpha, sigma, alpha * y + sigma * n


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_recover_inverts_target(kind, x64):
    y, n, alpha, sigma, z = corrupted()
    recovered = recover(kind, z, target(kind, y, n, alpha, sigma), alpha, sigma)
    np.testing.assert_allclose(recovered[0], y, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(recovered[1], n, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(residual(z, jnp.asarray(y), alpha, sigma), n, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_any_prediction_is_consistent_with_z(kind, x64):
    _, _, alpha, sigma, z = corrupted()
    y, n = recover(kind, z, draw(2), alpha, sigma)
    np.testing.assert_allclose(alpha * y + sigma * n, z, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_losses_differ_by_powers_of_the_snr(kind, x64):
    y, n, alpha, sigma, z = corrupted()
    guess_y, guess_n = recover(kind, z, draw(2), alpha, sigma)
    snr = alpha**2 / sigma**2

    def squared(name):
        return (target(name, y, n, alpha, sigma) - target(name, guess_y, guess_n, alpha, sigma)) ** 2

    np.testing.assert_allclose(squared("v"), (snr + 1) * squared("x0"), rtol=1e-9)
    np.testing.assert_allclose(squared("eps"), snr * squared("x0"), rtol=1e-9)
    np.testing.assert_allclose(squared("eps"), alpha**2 * squared("v"), rtol=1e-9)
    np.testing.assert_allclose(squared("v"), squared("eps") + squared("x0"), rtol=1e-9)


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_clean_frames_are_kept_bit_for_bit(kind):
    z, prediction = draw(0).astype(np.float32), draw(1).astype(np.float32)
    one, zero = np.ones((2, 7, 1, 1, 1), np.float32), np.zeros((2, 7, 1, 1, 1), np.float32)
    y, n = recover(kind, z, prediction, one, zero)
    np.testing.assert_array_equal(y, z)
    assert np.all(np.isfinite(n))
    np.testing.assert_array_equal(residual(z, prediction, one, zero), 0)
