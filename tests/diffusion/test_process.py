"""What a process does to a window, against matrices and closed forms written out here."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import AutoRegression, chain_matrix, corruption_matrices, exact_denoiser

from dydiff_jax.diffusion import Cosine, Dynamical, LinearBeta, Standard

P, K = 2, 4
KEYS = jax.random.split(jax.random.key(0), 3)
NO_SLIDE = np.zeros((3,), bool)


def draw(seed, frames=P + K):
    return np.random.default_rng(seed).standard_normal((3, frames, 2, 2, 1))


def make(eta, prediction="v", context="clean", **options):
    if eta == 0:
        return Standard(Cosine(), P, K, prediction, context)
    return Dynamical(Cosine(), P, K, prediction, context, eta=eta, **options)


def levels_at(process, taus):
    return jax.jit(process.levels)(np.asarray(taus), NO_SLIDE)


def over_frames(matrix, frames):
    return np.einsum("ij,...jhwc->...ihwc", matrix, frames)


ALL = [(eta, context) for eta in (0, 0.5, 0.9) for context in ("clean", "noised")]
KINDS = ("eps", "x0", "v")
FEW = [(0, "clean"), (0.5, "clean"), (0.5, "noised"), (0.9, "clean")]
ABLATIONS = [{"mix_data": False}, {"mix_noise": False}]


@pytest.mark.parametrize(("eta", "context"), ALL)
def test_synchronous_levels(eta, context, x64):
    process = make(eta, context=context)
    assert (process.stride, process.num_frames) == (K, P + K)
    tau = np.array([0.0, 0.3, 1.0])
    levels = levels_at(process, tau)
    clean = P if context == "clean" else 0
    expected = np.repeat(tau[:, None], P + K, 1)
    expected[:, :clean] = 0
    np.testing.assert_array_equal(levels.t, expected)
    gamma = 1 - eta * np.sin(np.pi * tau / 2) ** 2  # of the window's time, on context frames too
    np.testing.assert_allclose(levels.gamma, np.repeat(gamma[:, None], P + K, 1), rtol=1e-14)
    np.testing.assert_array_equal(levels.active, expected > 0)
    np.testing.assert_array_equal(process.logsnr(levels)[:, :clean], np.inf)
    np.testing.assert_array_equal(jax.jit(process.levels)(tau, ~NO_SLIDE).t, levels.t)


@pytest.mark.parametrize(
    ("eta", "context", "options"),
    [(eta, context, {}) for eta, context in ALL]
    + [(0.5, context, options) for context in ("clean", "noised") for options in ABLATIONS],
)
def test_forward_equals_the_matrices(eta, context, options, x64):
    process, x0, eps = make(eta, context=context, **options), draw(0), draw(1)
    taus = np.array([0.1, 0.5, 1.0])
    z = jax.jit(process.forward)(x0, eps, levels_at(process, taus))
    m = process.num_clean
    np.testing.assert_array_equal(z[:, :m], x0[:, :m])
    for row, tau in enumerate(taus):
        alpha, sigma = np.cos(np.pi * tau / 2), np.sin(np.pi * tau / 2)
        data, noise = corruption_matrices(process, 1 - eta * sigma**2)
        expected = alpha * over_frames(data, x0[row]) + sigma * over_frames(noise, eps[row])
        np.testing.assert_allclose(z[row, m:], expected[m:], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("eta", "context"), FEW)
def test_recover_and_residual_invert_forward(eta, context, x64):
    x0, eps, m = draw(0), draw(1), P if context == "clean" else 0

    def there_and_back(process):
        levels = process.levels(np.array([0.01, 0.5, 0.99]), NO_SLIDE)
        z = process.forward(x0, eps, levels)
        recovered = process.recover(z, process.target(x0, eps, levels), levels)
        return *recovered, process.residual(z, x0, levels)

    processes = [make(eta, prediction, context) for prediction in KINDS]
    for frames, noise, residual in jax.jit(lambda: [there_and_back(process) for process in processes])():
        np.testing.assert_allclose(frames, x0, rtol=1e-9, atol=1e-10)
        np.testing.assert_array_equal(frames[:, :m], x0[:, :m])
        for found in (noise, residual):
            np.testing.assert_allclose(found[:, m:], eps[:, m:], rtol=1e-9, atol=1e-10)
            np.testing.assert_array_equal(found[:, :m], 0)


@pytest.mark.parametrize(("eta", "context"), FEW)
def test_recover_gives_the_conditional_means_whatever_is_predicted(eta, context, x64):
    """E[x0 | z, c] and E[eps | z, c] by conditioning (x0, eps, z) jointly, with no D^-1."""
    processes = [make(eta, prediction, context) for prediction in KINDS]
    truth, tau = AutoRegression(P, K), 0.6
    f, m = P + K, processes[0].num_clean
    alpha, sigma = np.cos(np.pi * tau / 2), np.sin(np.pi * tau / 2)
    lift, covariance = truth.conditional()
    rng = np.random.default_rng(3)
    known, z = rng.standard_normal((3, P)), rng.standard_normal((3, f))
    z[:, :m] = known[:, :m]
    data, noise = corruption_matrices(processes[0], 1 - eta * sigma**2)
    of_z = np.concatenate(
        [alpha * data @ covariance, sigma * noise], axis=1
    )  # covariance of z with x0 and eps
    cov_z = (alpha**2 * data @ covariance @ data.T + sigma**2 * noise @ noise.T)[m:, m:]
    mean_x = known @ lift.T
    surprise = (z - alpha * mean_x @ data.T)[:, m:]
    expected = np.concatenate([mean_x, np.zeros((3, f))], axis=1) + surprise @ np.linalg.solve(
        cov_z, of_z[m:]
    )

    def estimates(process, z):
        levels = process.levels(np.full(3, tau), NO_SLIDE)
        denoise = exact_denoiser(process, truth, known, eta)
        return process.recover(z, denoise(z, process.logsnr(levels)), levels)

    z = z[:, :, None, None, None]
    for x0, eps in jax.jit(lambda z: [estimates(process, z) for process in processes])(z):
        np.testing.assert_allclose(x0[..., 0, 0, 0], expected[:, :f], rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(eps[:, m:, 0, 0, 0], expected[:, f + m :], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("context", ["clean", "noised"])
def test_eta_zero_is_standard_diffusion_bit_for_bit(context):
    x0, eps = draw(0).astype(np.float32), draw(1).astype(np.float32)
    taus = np.array([0.01, 0.4, 0.9], np.float32)

    @partial(jax.jit, static_argnums=0)
    def everything(processes):
        levels = [process.levels(taus, NO_SLIDE) for process in processes]
        pairs = list(zip(processes, levels, strict=True))
        return levels, [
            getattr(process, name)(x0, eps, at)
            for process, at in pairs
            for name in ("forward", "target", "recover")
        ]

    standard = everything(tuple(Standard(Cosine(0.008), P, K, kind, context) for kind in KINDS))
    dynamical = everything(tuple(Dynamical(Cosine(0.008), P, K, kind, context, eta=0.0) for kind in KINDS))
    jax.tree.map(np.testing.assert_array_equal, standard, dynamical)


@pytest.mark.parametrize("prediction", KINDS)
def test_clean_windows_are_frozen_bit_for_bit(prediction):
    z, nonsense = draw(0).astype(np.float32), draw(1).astype(np.float32)

    @partial(jax.jit, static_argnums=0)
    def freeze(process):
        levels = process.levels(np.zeros(3, np.float32), NO_SLIDE)
        x0, eps = process.recover(z, nonsense, levels)
        return x0, process.forward(x0, eps, levels)

    for context in ("clean", "noised"):
        x0, again = freeze(make(0.5, prediction, context))
        np.testing.assert_array_equal(x0, z)
        np.testing.assert_array_equal(again, z)


@pytest.mark.parametrize("context", ["clean", "noised"])
@pytest.mark.parametrize("eta", [0, 0.5])
def test_extend_keeps_the_last_context_and_appends_the_prior_chain(eta, context, x64):
    process, window = make(eta, context=context), draw(0)
    levels = levels_at(process, np.ones(3))
    fresh = draw(1)
    z = jax.jit(process.extend, static_argnums=4)(window, None, fresh, levels, K)
    m = process.num_clean
    np.testing.assert_array_equal(z[:, :m], window[:, K:][:, :m])
    expected = over_frames(chain_matrix(1 - eta, P + K - m), fresh[:, m:])
    np.testing.assert_allclose(z[:, m:], expected, rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match=r"^num_new"):
        process.extend(window, None, fresh, levels, 1)


def test_refresh_fraction_is_one_minus_the_ratio_of_snr_and_never_for_frames_that_stand_still(x64):
    process = make(0)
    share = process.refresh_fraction(levels_at(process, [0.8, 0.5, 1.0]), levels_at(process, [0.6, 0.5, 0.0]))

    def snr(t):
        return 1 / np.tan(np.pi * t / 2) ** 2

    np.testing.assert_allclose(share[0, P:], 1 - snr(0.8) / snr(0.6), rtol=1e-12)
    np.testing.assert_array_equal(share[1], 0)
    np.testing.assert_array_equal(share[:, :P], 0)
    np.testing.assert_allclose(share[2, P:], 1, rtol=1e-12)


def test_sampling_starts_where_the_estimate_is_finite():
    assert make(0.5).max_start == 1
    assert make(0.5, "eps").max_start == 0.982
    assert Standard(LinearBeta(), P, K, "eps").max_start == 1
    assert make(1.0, allow_large_eta=True).max_start == 0.982
    largest = jax.jit(lambda: jnp.full((), make(0.5, "eps").max_start))()
    np.testing.assert_allclose(largest, 0.982, rtol=1e-6)


def test_condition_number_that_the_start_of_large_eta_allows(x64):
    gamma = make(1.0, allow_large_eta=True).mixing(jnp.full((1, 1), 0.982))
    np.testing.assert_allclose(np.linalg.cond(chain_matrix(gamma[0, 0], 15)), 272, rtol=0.02)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make(-0.1), r"^eta: .*-0\.1"),
        (lambda: make(1.5), r"^eta: .*1\.5"),
        (lambda: make(0.99), r"^eta: .*allow_large_eta=True.*0\.982"),
        (lambda: Dynamical(Cosine(), 0, K), "^num_context"),
        (lambda: Standard(Cosine(), -1, K), "^num_context"),
        (lambda: Standard(Cosine(), P, 0), "^num_forecast"),
    ],
)
def test_bad_fields_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
