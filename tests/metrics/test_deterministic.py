"""Squared errors of single members: against loops, and against the error of the mean."""

import numpy as np
import pytest

from dydiff_jax import metrics


def forecast(e=3, shape=(2, 3, 4, 5, 2)):
    rng = np.random.default_rng(0)
    return rng.normal(size=(e, *shape)).astype(np.float32), rng.normal(size=shape).astype(np.float32)


def test_mse_by_loops():
    ensemble, truth = forecast()
    members, windows, leads = ensemble.shape[:3]
    for lead in range(leads):
        sums = [
            sum(((float(x) - float(y)) / 7) ** 2 for x, y in zip(member.flat, observed.flat, strict=True))
            for m in range(members)
            for member, observed in ((ensemble[m, b, lead], truth[b, lead]) for b in range(windows))
        ]
        assert metrics.mse_sum(ensemble, truth, 7.0)[lead] == pytest.approx(np.mean(sums), rel=1e-12)
        assert metrics.mse(ensemble, truth)[lead] == pytest.approx(np.mean(sums) * 49 / 40, rel=1e-12)


def test_mse_is_that_of_the_mean_and_the_variance_of_the_members():
    ensemble, truth = forecast(e=5)
    variance = metrics.spread(ensemble, truth) ** 2 * 4 / 5
    np.testing.assert_allclose(
        metrics.mse(ensemble, truth), metrics.rmse(ensemble, truth) ** 2 + variance, rtol=1e-12
    )


def test_a_still_forecast_of_a_unit_flow_scores_its_number_of_values():
    truth = np.ones((2, 3, 4, 5, 2), np.float32)
    np.testing.assert_allclose(
        metrics.mse_sum(np.zeros((1, *truth.shape)), truth), np.full(3, 40.0), rtol=1e-14
    )


@pytest.mark.parametrize("scale", [0.0, -7.0, np.nan])
def test_a_scale_is_positive(scale):
    with pytest.raises(ValueError, match="scale: expected more than 0"):
        metrics.mse_sum(*forecast(), scale)
