"""The loss against exact values."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import AutoRegression, corruption_matrices

from dydiff_jax.diffusion import Cosine, Dynamical, Standard, diffusion_loss, fill
from dydiff_jax.diffusion.dynamics import dynamics
from dydiff_jax.diffusion.process import example_keys, white_noise, window_times
from dydiff_jax.diffusion.rolling import Rolling
from dydiff_jax.diffusion.rolling_dynamical import RollingDynamical

P, K, B = 2, 4, 6
KEYS = jax.random.split(jax.random.key(0), B)


def windows(dtype=np.float64):
    return np.random.default_rng(0).standard_normal((B, P + K, 3, 3, 1)).astype(dtype)


@partial(jax.jit, static_argnums=(1, 2))
def loss_of(keys, process, denoise, x0):
    return diffusion_loss(keys, process, denoise, x0)


times = jax.jit(window_times, static_argnums=1)


@cache
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
    gamma = 1 - eta * np.sin(np.pi * np.asarray(times(KEYS, jnp.float64)) / 2) ** 2
    distance = (np.asarray(jax.jit(dynamics)(x0, gamma))[:, process.num_clean :] - 0.7) ** 2
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
    keys = jax.random.split(jax.random.key(3), number)
    _, aux = loss_of(keys, process, optimal, x0[:, :, None, None, None])
    tau = times(keys, jnp.float64)
    excess = np.asarray(aux["loss_per_example"] - jax.jit(jax.vmap(expected))(tau))
    standard_error = excess.std() / np.sqrt(number)
    assert standard_error < 0.02
    assert abs(excess.mean()) < 4 * standard_error


def test_draws_of_an_example_depend_on_its_key_alone():
    process, x0, network = process_of(0.5), windows(np.float32), constant(0.1)
    whole = loss_of(KEYS, process, network, x0)[1]["loss_per_example"]
    halves = [
        loss_of(KEYS[i : i + 3], process, network, x0[i : i + 3])[1]["loss_per_example"] for i in (0, 3)
    ]
    np.testing.assert_allclose(np.concatenate(halves), whole, rtol=1e-6)
    assert len(np.unique(np.asarray(jax.jit(process.draw)(KEYS).t)[:, -1])) == B


def test_window_times_are_uniform_and_never_zero():
    number = 4000
    levels = jax.jit(Standard(Cosine(), 1, 1).draw)(jax.random.split(jax.random.key(1), number))
    tau = np.asarray(levels.t[:, 1])
    np.testing.assert_array_equal(levels.active, np.tile([False, True], (number, 1)))
    assert tau.min() > 0 and tau.max() <= 1
    largest_gap = np.abs(np.sort(tau) - (np.arange(number) + 0.5) / number).max()
    assert largest_gap < 1.95 / np.sqrt(number)  # the Kolmogorov-Smirnov bound at p = 0.001


def test_half_precision_predictions_are_scored_in_float32():
    x0 = windows(np.float32)
    process = process_of(0, "x0")
    loss, _ = loss_of(KEYS, process, lambda z, _: jnp.full_like(z, 0.2, jnp.bfloat16), x0)
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


# Missing points.

PROCESSES = [
    process_of(0),
    process_of(0.5),
    process_of(0.5, context="noised"),
    Rolling(Cosine(), P, K, p_lin=0.5),
    RollingDynamical(Cosine(), P, K, p_lin=0.5),
]
IDS = ["standard", "dynamical", "noised", "rolling", "rolling_dynamical"]


def mask():
    """Points at random, context included; one frame of example 1, every forecast frame of example 2."""
    observed = np.random.default_rng(1).uniform(size=(B, P + K, 3, 3, 1)) < 0.7
    observed[1, 3], observed[2, P:] = False, False
    return observed


def coupled(weights, z, logsnr):
    """A network whose every output reads every input."""
    level = jax.nn.sigmoid(logsnr)[:, :, None, None, None]
    return jnp.tanh(jnp.einsum("ij,bjhwc->bihwc", weights, z) + jnp.roll(z, 1, 2) + level)


WEIGHTS = np.random.default_rng(2).standard_normal((P + K, P + K)).astype(np.float32)


@partial(jax.jit, static_argnums=0)
def masked(process, x0, observed):
    """((loss, aux), gradient)."""
    return jax.value_and_grad(
        lambda weights: diffusion_loss(KEYS, process, partial(coupled, weights), x0, observed), has_aux=True
    )(WEIGHTS)


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_what_stands_at_a_missing_point_changes_neither_loss_nor_gradient(process):
    """NaN, infinite or large, bit for bit; and what is observed does change them."""
    x0, observed = windows(np.float32), mask()
    plain = masked(process, x0, observed)
    assert np.all(np.isfinite(plain[1])) and np.any(plain[1])
    for nonsense in (np.nan, np.inf, 1e30):
        spoilt = masked(process, np.where(observed, x0, np.float32(nonsense)), observed)
        jax.tree.map(np.testing.assert_array_equal, spoilt, plain)
    np.testing.assert_array_equal(masked(process, fill(x0, observed), observed)[1], plain[1])
    assert np.any(masked(process, x0 + observed, observed)[1] != plain[1])


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_masked_loss_is_the_mean_over_observed_elements_of_active_frames(process):
    """Element by element in numpy; an example without any counts 0 and is left out of the mean."""
    x0, observed = windows(np.float32), mask()
    (loss, aux), _ = masked(process, x0, observed)

    @jax.jit
    def by_hand(x):
        levels, eps = process.draw(KEYS), white_noise(example_keys(KEYS)[2], x)
        prediction = coupled(WEIGHTS, process.forward(x, eps, levels), process.logsnr(levels))
        return levels.active, prediction - process.target(x, eps, levels)

    active, error = jax.device_get(by_hand(np.where(observed, x0, 0)))
    error = np.square(error)
    scored = [observed[row] & active[row, :, None, None, None] for row in range(B)]
    expected = [error[row][seen].mean() if seen.any() else 0 for row, seen in enumerate(scored)]
    np.testing.assert_allclose(aux["loss_per_example"], expected, rtol=1e-5)
    counted = [value for value, seen in zip(expected, scored, strict=True) if seen.any()]
    assert len(counted) == (B if process.context == "noised" else B - 1)
    np.testing.assert_allclose(loss, np.mean(counted), rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (B, P + K, 1, 1, 1), (1, P + K, 3, 3, 1), (3, 1)])
def test_masks_broadcast_and_a_full_one_is_none(shape):
    process, x0 = process_of(0.5), windows(np.float32)
    full = masked(process, x0, np.ones(shape, bool))
    for found, expected in zip(
        jax.tree.leaves(full), jax.tree.leaves(masked(process, x0, None)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_without_an_observed_point_has_no_loss_and_no_gradient():
    (loss, aux), gradient = masked(
        process_of(0.5), windows(np.float32) * np.float32(np.nan), np.zeros((), bool)
    )
    for zero in (loss, aux["loss_per_example"], gradient):
        np.testing.assert_array_equal(zero, 0)


def test_fill_is_idempotent_and_puts_zero_where_nothing_is_observed():
    x0, observed = windows(np.float32), mask()
    filled = fill(np.where(observed, x0, np.nan), observed)
    np.testing.assert_array_equal(filled, np.where(observed, x0, 0))
    np.testing.assert_array_equal(fill(filled, observed), filled)
    assert filled.dtype == np.float32 and fill(x0, None) is x0
    with pytest.raises(ValueError, match=r"^observed: .*\(6, 6, 3, 3, 1\), found \(6, 5, 1, 1, 1\)"):
        fill(x0, observed[:, :5, :1, :1])
