"""Schedules: end points, unit power, the tables they continue, and precision near both ends."""

import math
from functools import partial

import jax
import numpy as np
import pytest

from dydiff_jax.diffusion.schedules import Cosine, LinearBeta, Schedule, gamma_bar

SCHEDULES = [Cosine(), Cosine(offset=0.008), Cosine(shift=2 * math.log(64 / 256)), LinearBeta()]
DTYPES = [np.float32, np.float64]
NEAR_ZERO, TABLE = np.geomspace(1e-9, 1e-3, 1000), np.arange(1001) / 1000
T = np.sort(np.concatenate([NEAR_ZERO[:-1], TABLE]))


@partial(jax.jit, static_argnums=0)
def compiled(schedule, t):
    """(alpha, sigma, alpha_bar, logsnr); compiled, for XLA is free to rewrite roots and quotients."""
    return schedule.alpha(t), schedule.sigma(t), schedule.alpha_bar(t), schedule.logsnr(t)


def at(schedule, t):
    """``compiled`` in float64 at times of the grid T."""
    return [np.asarray(quantity)[np.searchsorted(T, t)] for quantity in compiled(schedule, T)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_power_is_one_and_the_clean_end_is_exact(schedule, dtype, x64):
    assert isinstance(schedule, Schedule)
    alpha, sigma, alpha_bar, logsnr = quantities = compiled(schedule, T.astype(dtype))
    assert all(quantity.dtype == dtype for quantity in quantities)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(alpha_bar, alpha**2, rtol=4 * np.finfo(dtype).eps)
    assert (alpha[0], sigma[0], alpha_bar[0], logsnr[0]) == (1, 0, 1, np.inf)
    assert np.all(np.diff(logsnr) < 0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_amplitudes_and_weights_never_leave_the_unit_interval(schedule, dtype, x64):
    """sqrt(1 - gamma) is NaN one rounding above 1, and mixes frames that are clean one rounding below it."""
    alpha, sigma, alpha_bar, _ = compiled(schedule, T.astype(dtype))
    gamma = jax.jit(gamma_bar, static_argnums=1)(alpha_bar, 0.3)
    assert gamma[0] == 1
    for quantity in (alpha, sigma, alpha_bar, gamma):
        assert np.all((quantity >= 0) & (quantity <= 1))


@pytest.mark.parametrize("schedule", SCHEDULES[:3])
def test_cosine_noise_end_is_exact(schedule):
    alpha, sigma, alpha_bar, logsnr = (quantity[-1] for quantity in compiled(schedule, T.astype(np.float32)))
    assert (alpha, sigma, alpha_bar, logsnr) == (0, 1, 0, -np.inf)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_logsnr_is_the_log_of_the_ratio(schedule, x64):
    alpha, sigma, _, logsnr = at(schedule, TABLE[1:-1])
    np.testing.assert_allclose(logsnr, np.log(alpha**2 / sigma**2), rtol=1e-12, atol=1e-12)


def test_cosine_closed_forms(x64):
    alpha, sigma, _, _ = at(Cosine(), TABLE)
    np.testing.assert_allclose(alpha, np.cos(np.pi * TABLE / 2), atol=1e-15)
    np.testing.assert_allclose(sigma, np.sin(np.pi * TABLE / 2), atol=1e-15)
    inside, shift = TABLE[1:-1], 2 * math.log(64 / 256)
    expected = -2 * np.log(np.tan(np.pi * inside / 2)) + shift
    np.testing.assert_allclose(at(Cosine(shift=shift), inside)[3], expected, rtol=1e-11, atol=1e-12)


def test_cosine_with_offset_equals_the_discrete_table_but_for_its_clipped_end(x64):
    f = np.cos((TABLE + 0.008) / 1.008 * np.pi / 2) ** 2
    table = np.cumprod(1 - np.clip(1 - f[1:] / f[:-1], 0, 0.999))
    ours = at(Cosine(offset=0.008), TABLE[1:])[2]
    np.testing.assert_allclose(ours[:-1], table[:-1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours[:-1], table[:-1], rtol=1e-9)
    assert ours[-1] == 0 and 2e-9 < table[-1] < 3e-9


def test_linear_beta_equals_the_discrete_table(x64):
    table = np.cumprod(1 - np.linspace(1e-4, 0.1, 100))
    np.testing.assert_allclose(at(LinearBeta(), TABLE[10::10])[2], table, rtol=1e-12)
    halfway = [math.sqrt(1 - 1e-4), table[98] * math.sqrt(1 - 0.1)]
    np.testing.assert_allclose(at(LinearBeta(), TABLE[[5, 995]])[2], halfway, rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_float32_agrees_with_float64_close_to_both_ends(schedule, x64):
    alpha, sigma, _, logsnr = compiled(schedule, T.astype(np.float32))
    exact = compiled(schedule, T.astype(np.float32).astype(np.float64))
    inside = slice(1, -1)
    np.testing.assert_allclose(alpha[inside], exact[0][inside], rtol=1e-5)
    np.testing.assert_allclose(sigma[inside], exact[1][inside], rtol=1e-5)
    np.testing.assert_allclose(logsnr[inside], exact[3][inside], atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradients_are_finite(schedule):
    quantities = (schedule.alpha, schedule.sigma, schedule.logsnr, schedule.alpha_bar)

    @jax.jit
    def gradients(t):
        return [jax.vmap(jax.grad(quantity))(t) for quantity in quantities]

    assert np.all(np.isfinite(gradients(np.linspace(1e-3, 1 - 1e-3, 21, dtype=np.float32))))
    if schedule == Cosine():  # sigma grows as sqrt(t) with an offset, and with linear betas
        alpha, sigma, _, alpha_bar = gradients(np.array([0, 1], np.float32))
        np.testing.assert_allclose(
            [alpha, sigma, alpha_bar], np.pi / 2 * np.array([[0, -1], [1, 0], [0, 0]]), atol=1e-6
        )


@pytest.mark.parametrize("eta", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gamma_is_exactly_one_on_clean_frames_and_falls_with_the_noise(eta, dtype, x64):
    assert gamma_bar(np.ones((), dtype), eta) == 1
    t = T.astype(dtype)
    _, _, alpha_bar, _ = compiled(Cosine(), t)
    gamma = gamma_bar(alpha_bar, eta)
    assert gamma.dtype == dtype and np.all(np.diff(gamma) <= 2 * np.finfo(dtype).eps)
    if eta == 0:
        assert np.all(gamma == 1)
    exact = 1 - eta * np.sin(np.pi * t.astype(np.float64) / 2) ** 2
    np.testing.assert_allclose(gamma, exact, atol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(offset=-0.1), "offset"),
        (lambda: Cosine(shift=math.inf), "shift"),
        (lambda: LinearBeta(beta_min=0.0), "beta_min"),
        (lambda: LinearBeta(beta_max=1.0), "beta_max"),
        (lambda: LinearBeta(steps=0), "steps"),
    ],
)
def test_bad_fields_are_refused(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
