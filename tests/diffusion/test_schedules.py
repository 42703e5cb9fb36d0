"""Schedules: end points, unit power, the tables they continue, and precision near both ends."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dydiff_jax.diffusion.schedules import Cosine, LinearBeta, Schedule, gamma_bar, gamma_complement

SCHEDULES = [Cosine(), Cosine(offset=0.008), Cosine(shift=2 * math.log(64 / 256)), LinearBeta()]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_power_is_one_and_clean_end_is_exact(schedule, dtype, x64):
    assert isinstance(schedule, Schedule)
    t = np.linspace(0, 1, 1001, dtype=dtype)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert alpha.dtype == sigma.dtype == schedule.logsnr(t).dtype == dtype
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=4 * np.finfo(dtype).eps)
    assert (alpha[0], sigma[0], schedule.logsnr(t)[0]) == (1, 0, np.inf)
    assert np.all(np.diff(schedule.logsnr(t)) < 0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compiled_amplitudes_and_weights_never_leave_the_unit_interval(schedule, dtype, x64):
    """sqrt(1 - gamma) is NaN one rounding above 1, and mixes frames that are clean one rounding below it."""
    t = np.concatenate([[0], np.geomspace(1e-9, 1, 4000)]).astype(dtype)
    alpha, sigma, alpha_bar, gamma = jax.jit(
        lambda t: (
            schedule.alpha(t),
            schedule.sigma(t),
            schedule.alpha_bar(t),
            gamma_bar(schedule.alpha_bar(t), 0.3),
        )
    )(t)
    assert (alpha[0], sigma[0], alpha_bar[0], gamma[0]) == (1, 0, 1, 1)
    for quantity in (alpha, sigma, alpha_bar, gamma):
        assert np.all((quantity >= 0) & (quantity <= 1))


@pytest.mark.parametrize("schedule", SCHEDULES[:3])
def test_cosine_noise_end_is_exact(schedule):
    one = np.ones((), np.float32)
    assert (schedule.alpha(one), schedule.sigma(one), schedule.logsnr(one)) == (0, 1, -np.inf)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_logsnr_is_the_ratio_and_alpha_bar_the_square(schedule, x64):
    t = np.linspace(0.01, 0.99, 99)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    np.testing.assert_allclose(schedule.logsnr(t), np.log(alpha**2 / sigma**2), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(schedule.alpha_bar(t), alpha**2, rtol=1e-13)


def test_cosine_closed_forms(x64):
    t = np.linspace(0, 1, 101)
    np.testing.assert_allclose(Cosine().alpha(t), np.cos(np.pi * t / 2), atol=1e-15)
    np.testing.assert_allclose(Cosine().sigma(t), np.sin(np.pi * t / 2), atol=1e-15)
    inside = t[1:-1]
    shift = 2 * math.log(64 / 256)
    np.testing.assert_allclose(
        Cosine(shift=shift).logsnr(inside), -2 * np.log(np.tan(np.pi * inside / 2)) + shift, rtol=1e-12
    )


def test_cosine_with_offset_equals_the_discrete_table_but_for_its_clipped_end(x64):
    def f(u):
        return np.cos((u / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2

    i = np.arange(1000)
    betas = np.clip(1 - f(i + 1) / f(i), 0, 0.999)
    table = np.cumprod(1 - betas)
    ours = np.asarray(Cosine(offset=0.008).alpha_bar((i + 1) / 1000))
    np.testing.assert_allclose(ours[:-1], table[:-1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours[:-1], table[:-1], rtol=1e-9)
    assert ours[-1] == 0 and 2e-9 < table[-1] < 3e-9


def test_linear_beta_equals_the_discrete_table(x64):
    table = np.cumprod(1 - np.linspace(1e-4, 0.1, 100))
    ours = LinearBeta().alpha_bar(np.arange(1, 101) / 100)
    np.testing.assert_allclose(ours, table, rtol=1e-12)
    between = LinearBeta().alpha_bar(np.array([0.005, 0.995]))
    np.testing.assert_allclose(between, [math.sqrt(1 - 1e-4), table[98] * math.sqrt(1 - 0.1)], rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_float32_agrees_with_float64_close_to_both_ends(schedule, x64):
    t = np.array([1e-6, 1e-4, 1e-2, 0.5, 0.99, 0.9999])
    for quantity in (schedule.alpha, schedule.sigma, schedule.logsnr):
        # t itself is rounded: 1 - t keeps 6e-8 / (1 - t) of relative precision
        np.testing.assert_allclose(quantity(t.astype(np.float32)), quantity(t), rtol=2e-3)
    np.testing.assert_allclose(schedule.sigma(t.astype(np.float32))[:4], schedule.sigma(t)[:4], rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradients_are_finite(schedule):
    inside = jnp.linspace(1e-3, 1 - 1e-3, 21)
    for quantity in (schedule.alpha, schedule.sigma, schedule.logsnr, schedule.alpha_bar):
        assert np.all(np.isfinite(jax.vmap(jax.grad(quantity))(inside)))
    ends = jnp.array([0.0, 1.0])
    assert np.all(np.isfinite(jax.vmap(jax.grad(Cosine().sigma))(ends)))
    assert np.all(np.isfinite(jax.vmap(jax.grad(Cosine().alpha))(ends)))


@pytest.mark.parametrize("eta", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gamma_is_exactly_one_on_clean_frames_and_keeps_its_complement(eta, dtype, x64):
    assert gamma_bar(np.ones((), dtype), eta) == 1
    t = np.linspace(0, 1, 101, dtype=dtype)
    gamma = gamma_bar(Cosine().alpha_bar(t), eta)
    assert gamma.dtype == dtype and np.all(np.diff(gamma) <= 0)
    if eta == 0:
        assert np.all(gamma == 1)
    complement = gamma_complement(Cosine().sigma(t), eta)
    np.testing.assert_allclose(gamma + complement, 1, atol=2 * np.finfo(dtype).eps)
    exact = eta * np.sin(np.pi * t.astype(np.float64) / 2) ** 2
    np.testing.assert_allclose(complement, exact, rtol=20 * np.finfo(dtype).eps)


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
