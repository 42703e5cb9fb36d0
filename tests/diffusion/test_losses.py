"""The loss against exact values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import AutoRegression, corruption_matrices

from dydiff_jax.diffusion import Cosine, Dynamical, Regression, Standard, diffusion_loss
from dydiff_jax.diffusion.dynamics import dynamics

P, K, B = 2, 4, 5
KEYS = jax.random.split(jax.random.key(0), B)


def windows(seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((B, P + K, 3, 3, 1)))


def constant(value):
    return lambda z, logsnr: jnp.full_like(z, value)


def process_of(eta, prediction="v", context="clean"):
    return (
        Dynamical(Cosine(), P, K, prediction, context, eta=eta)
        if eta
        else Standard(Cosine(), P, K, prediction, context)
    )


@pytest.mark.parametrize("eta", [0, 0.5])
@pytest.mark.parametrize("context", ["clean", "noised"])
def test_x0_loss_of_a_constant_is_the_distance_to_the_mixed_frames(eta, context, x64):
    process, x0 = process_of(eta, "x0", context), windows()
    loss, aux = diffusion_loss(KEYS, process, constant(0.7), x0)
    gamma = 1 - eta * jnp.sin(jnp.pi * aux["tau"] / 2) ** 2
    distance = (dynamics(x0, gamma)[:, process.num_clean :] - 0.7) ** 2
    np.testing.assert_allclose(aux["loss_per_example"], distance.mean(axis=(1, 2, 3, 4)), rtol=1e-12)
    np.testing.assert_allclose(loss, distance.mean(), rtol=1e-12)


@pytest.mark.parametrize("eta", [0, 0.5])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_a_denoiser_that_knows_the_data_errs_by_what_is_added_to_it(eta, prediction, x64):
    """It solves z = alpha y + sigma n for n, knowing y: loss 0; with 0.3 added, 0.09 whatever the level."""
    process, x0 = process_of(eta, prediction), windows()

    def knowing(offset):
        def denoise(z, logsnr):
            level = logsnr[:, -1:, None, None, None]
            alpha, sigma = jnp.sqrt(jax.nn.sigmoid(level)), jnp.sqrt(jax.nn.sigmoid(-level))
            y = dynamics(x0, 1 - eta * sigma[:, 0, 0, 0, 0] ** 2)
            n = (z - alpha * y) / sigma
            return {"eps": n, "x0": y, "v": alpha * n - sigma * y}[prediction] + offset

        return denoise

    np.testing.assert_allclose(diffusion_loss(KEYS, process, knowing(0.0), x0)[0], 0, atol=1e-18)
    loss, aux = diffusion_loss(KEYS, process, knowing(0.3), x0)
    np.testing.assert_allclose(aux["loss_per_example"], 0.09, rtol=1e-7)
    np.testing.assert_allclose(loss, 0.09, rtol=1e-7)


@pytest.mark.parametrize(("context", "counts"), [("clean", False), ("noised", True)])
def test_only_active_frames_count(context, counts):
    x0 = windows().astype(jnp.float32)

    def spoiled(z, logsnr):
        return jnp.zeros_like(z).at[:, :P].set(100)

    process = process_of(0.5, context=context)
    plain, wrong = (diffusion_loss(KEYS, process, f, x0)[0] for f in (constant(0.0), spoiled))
    assert (float(plain) != float(wrong)) == counts


def test_the_optimal_denoiser_attains_the_conditional_variance(x64):
    """E |v - E[v | z]|^2 = tr Cov(y | z) / (sigma^2 k), since v = (alpha z - y) / sigma."""
    truth, process, number = AutoRegression(P, K), process_of(0.5), 4000
    lift, covariance = truth.conditional()
    joint = truth.a ** np.abs(np.subtract.outer(np.arange(P + K), np.arange(P + K)))
    x0 = np.random.default_rng(1).standard_normal((number, P + K)) @ np.linalg.cholesky(joint).T
    x0 = jnp.asarray(x0)[:, :, None, None, None]

    def posterior(logsnr, context):
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
        data, noise = corruption_matrices(process, 1 - 0.5 * sigma**2)
        cov_y, cov_n = (data @ covariance @ data.T)[P:, P:], (noise @ noise.T)[P:, P:]
        gain = alpha * jnp.linalg.solve(alpha**2 * cov_y + sigma**2 * cov_n, cov_y).T
        return alpha, sigma, (data @ lift @ context)[P:], gain, cov_y - alpha * gain @ cov_y

    def optimal(z, logsnr):
        def one(z, logsnr):
            alpha, sigma, mean, gain, _ = posterior(logsnr, z[:P])
            y = mean + gain @ (z[P:] - alpha * mean)
            return jnp.concatenate([jnp.zeros(P), (alpha * z[P:] - y) / sigma])

        return jax.vmap(one)(z[..., 0, 0, 0], logsnr[:, -1])[:, :, None, None, None]

    def expected(tau):
        logsnr = Cosine().logsnr(tau)
        sigma = Cosine().sigma(tau)
        return jnp.trace(posterior(logsnr, jnp.zeros(P))[-1]) / (K * sigma**2)

    _, aux = diffusion_loss(jax.random.split(jax.random.key(3), number), process, optimal, x0)
    excess = aux["loss_per_example"] - jax.vmap(expected)(aux["tau"])
    standard_error = excess.std() / np.sqrt(number)
    assert standard_error < 0.02
    assert abs(excess.mean()) < 4 * standard_error


def test_draws_of_an_example_depend_on_its_key_alone():
    process, x0 = process_of(0.5), windows().astype(jnp.float32)
    whole = diffusion_loss(KEYS, process, constant(0.1), x0)[1]
    parts = [diffusion_loss(KEYS[i : i + 1], process, constant(0.1), x0[i : i + 1])[1] for i in range(B)]
    for name in ("tau", "loss_per_example"):
        np.testing.assert_allclose(np.concatenate([part[name] for part in parts]), whole[name], rtol=1e-6)
    tau = diffusion_loss(
        jax.random.split(jax.random.key(1), 4000),
        Regression(1, 1),
        constant(0.0),
        jnp.zeros((4000, 2, 1, 1, 1)),
    )[1]["tau"]
    assert tau.min() > 0 and tau.max() <= 1
    np.testing.assert_allclose(tau.mean(), 0.5, atol=5 / np.sqrt(12 * 4000))


def test_regression_loss_is_the_mean_squared_error(x64):
    x0 = windows()
    loss, _ = diffusion_loss(KEYS, Regression(P, K), constant(0.2), x0)
    np.testing.assert_allclose(loss, jnp.mean((x0[:, P:] - 0.2) ** 2), rtol=1e-12)


def test_half_precision_predictions_are_scored_in_float32():
    x0 = windows().astype(jnp.float32)
    loss, _ = diffusion_loss(KEYS, Regression(P, K), lambda z, _: jnp.full_like(z, 0.2, jnp.bfloat16), x0)
    assert loss.dtype == jnp.float32
    exact = jnp.mean((x0[:, P:] - jnp.float32(jnp.bfloat16(0.2))) ** 2)
    np.testing.assert_allclose(loss, exact, rtol=1e-6)


def test_gradients_are_finite_at_every_level():
    def loss(scale):
        return diffusion_loss(KEYS, process_of(0.5), lambda z, _: scale * z, windows().astype(jnp.float32))[0]

    assert np.isfinite(jax.grad(loss)(jnp.float32(0.5)))


def test_windows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="^x0: expected windows of 6 frames"):
        diffusion_loss(KEYS, process_of(0.5), constant(0.0), windows()[:, 1:])
