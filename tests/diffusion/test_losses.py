"""The loss against exact values."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import AutoRegression, corruption_matrices

from dydiff_jax.diffusion import Cosine, Dynamical, Regression, Standard, diffusion_loss
from dydiff_jax.diffusion.dynamics import dynamics

P, K, B = 2, 4, 6
KEYS = jax.random.split(jax.random.key(0), B)


def windows(dtype=np.float64):
    return np.random.default_rng(0).standard_normal((B, P + K, 3, 3, 1)).astype(dtype)


@partial(jax.jit, static_argnums=(1, 2))
def loss_of(keys, process, denoise, x0):
    return diffusion_loss(keys, process, denoise, x0)


def constant(value):
    return lambda z, logsnr: jnp.full_like(z, value)


def process_of(eta, prediction="v", context="clean"):
    return (
        Dynamical(Cosine(), P, K, prediction, context, eta=eta)
        if eta
        else Standard(Cosine(), P, K, prediction, context)
    )


@pytest.mark.parametrize(("eta", "context"), [(0, "clean"), (0.5, "clean"), (0.5, "noised")])
def test_x0_loss_of_a_constant_is_the_distance_to_the_mixed_frames(eta, context, x64):
    process, x0 = process_of(eta, "x0", context), windows()
    loss, aux = loss_of(KEYS, process, constant(0.7), x0)
    gamma = 1 - eta * np.sin(np.pi * aux["tau"] / 2) ** 2
    distance = np.asarray(dynamics(x0, gamma)[:, process.num_clean :] - 0.7) ** 2
    np.testing.assert_allclose(aux["loss_per_example"], distance.mean(axis=(1, 2, 3, 4)), rtol=1e-12)
    np.testing.assert_allclose(loss, distance.mean(), rtol=1e-12)


def test_a_denoiser_that_knows_the_data_errs_by_what_is_added_to_it(x64):
    """It solves z = alpha y + sigma n for n, knowing y: loss 0; with 0.3 added, 0.09 whatever the level."""
    x0, eta = windows(), 0.5

    def knowing(z, logsnr, prediction, offset):
        level = logsnr[:, -1:, None, None, None]
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(level)), jnp.sqrt(jax.nn.sigmoid(-level))
        y = dynamics(x0, 1 - eta * sigma[:, 0, 0, 0, 0] ** 2)
        n = (z - alpha * y) / sigma
        return {"eps": n, "x0": y, "v": alpha * n - sigma * y}[prediction] + offset

    @jax.jit
    def run(offset):
        return [
            diffusion_loss(KEYS, process_of(eta, kind), partial(knowing, prediction=kind, offset=offset), x0)
            for kind in ("eps", "x0", "v")
        ]

    for loss, _ in run(0.0):
        np.testing.assert_allclose(loss, 0, atol=1e-18)
    for loss, aux in run(0.3):
        np.testing.assert_allclose(aux["loss_per_example"], 0.09, rtol=1e-7)
        np.testing.assert_allclose(loss, 0.09, rtol=1e-7)


def test_the_optimal_denoiser_attains_the_conditional_variance(x64):
    """E |v - E[v | z]|^2 = tr Cov(y | z) / (sigma^2 k), since v = (alpha z - y) / sigma."""
    truth, process, number = AutoRegression(P, K), process_of(0.5), 4000
    lift, covariance = truth.conditional()

    def posterior(logsnr):
        """alpha, sigma, the map of the context to E[y], the gain and Cov(y | z)."""
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
        data, noise = corruption_matrices(process, 1 - 0.5 * sigma**2, jnp)
        cov_y, cov_n = (data @ covariance @ data.T)[P:, P:], (noise @ noise.T)[P:, P:]
        gain = alpha * jnp.linalg.solve(alpha**2 * cov_y + sigma**2 * cov_n, cov_y).T
        return alpha, sigma, (data @ lift)[P:], gain, cov_y - alpha * gain @ cov_y

    def optimal(z, logsnr):
        def one(z, logsnr):
            alpha, sigma, lift, gain, _ = posterior(logsnr)
            mean = lift @ z[:P]
            y = mean + gain @ (z[P:] - alpha * mean)
            return jnp.pad((alpha * z[P:] - y) / sigma, (P, 0))

        return jax.vmap(one)(z[..., 0, 0, 0], logsnr[:, -1])[:, :, None, None, None]

    def expected(tau):
        _, sigma, _, _, remaining = posterior(process.schedule.logsnr(tau))
        return jnp.trace(remaining) / (K * sigma**2)

    x0 = np.random.default_rng(1).standard_normal((number, P + K)) @ np.linalg.cholesky(truth.joint()).T
    _, aux = loss_of(
        jax.random.split(jax.random.key(3), number), process, optimal, x0[:, :, None, None, None]
    )
    excess = np.asarray(aux["loss_per_example"] - jax.jit(jax.vmap(expected))(aux["tau"]))
    standard_error = excess.std() / np.sqrt(number)
    assert standard_error < 0.02
    assert abs(excess.mean()) < 4 * standard_error


def test_draws_of_an_example_depend_on_its_key_alone():
    process, x0, network = process_of(0.5), windows(np.float32), constant(0.1)
    whole = loss_of(KEYS, process, network, x0)[1]
    halves = [loss_of(KEYS[i : i + 3], process, network, x0[i : i + 3])[1] for i in (0, 3)]
    for name in ("tau", "loss_per_example"):
        np.testing.assert_allclose(np.concatenate([half[name] for half in halves]), whole[name], rtol=1e-6)
    assert len(np.unique(whole["tau"])) == B


def test_window_times_are_uniform_and_never_zero():
    number = 4000
    keys, x0 = jax.random.split(jax.random.key(1), number), np.zeros((number, 2, 1, 1, 1), np.float32)
    tau = np.asarray(loss_of(keys, Regression(1, 1), constant(0.0), x0)[1]["tau"])
    assert tau.min() > 0 and tau.max() <= 1
    largest_gap = np.abs(np.sort(tau) - (np.arange(number) + 0.5) / number).max()
    assert largest_gap < 1.95 / np.sqrt(number)  # the Kolmogorov-Smirnov bound at p = 0.001


def test_regression_loss_is_the_mean_squared_error(x64):
    loss, _ = loss_of(KEYS, Regression(P, K), constant(0.2), windows())
    np.testing.assert_allclose(loss, np.mean((windows()[:, P:] - 0.2) ** 2), rtol=1e-12)


def test_half_precision_predictions_are_scored_in_float32():
    x0 = windows(np.float32)
    loss, _ = loss_of(KEYS, Regression(P, K), lambda z, _: jnp.full_like(z, 0.2, jnp.bfloat16), x0)
    assert loss.dtype == jnp.float32
    exact = np.mean((x0[:, P:] - float(jnp.bfloat16(0.2))) ** 2)
    np.testing.assert_allclose(loss, exact, rtol=1e-6)


def test_gradient_of_a_quadratic_is_its_difference_quotient():
    """The loss of the prediction s z is quadratic in s, so loss(1) - loss(0) is its derivative at 1/2."""
    process, x0 = process_of(0.5), windows(np.float32)
    run = jax.jit(jax.value_and_grad(lambda s: diffusion_loss(KEYS, process, lambda z, _: s * z, x0)[0]))
    (low, _), (_, slope), (high, _) = (run(np.float32(s)) for s in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(slope, high - low, rtol=1e-4)


def test_windows_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"^x0: expected windows of 6 frames"):
        diffusion_loss(KEYS, process_of(0.5), constant(0.0), windows()[:, 1:])
