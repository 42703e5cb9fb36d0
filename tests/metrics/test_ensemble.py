"""Errors of the mean, spread and ranks: hand values, inequalities and laws of exchangeable ensembles."""

import inspect

import numpy as np
import pytest
from scipy import stats

from dydiff_jax import metrics


def forecast(seed=0, e=6, shape=(3, 2, 8, 10, 2)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(e, *shape)), rng.normal(size=shape)


def point(*members):
    """An ensemble of one window, lead, grid point and channel."""
    return np.reshape(members, (len(members), 1, 1, 1, 1, 1)).astype(float)


def test_values_by_hand():
    ensemble, truth = point(1.0, 3.0, 5.0), point(7.0)[0]
    assert metrics.rmse(ensemble, truth) == [4.0]
    assert metrics.mae(ensemble, truth) == [4.0]
    assert metrics.spread(ensemble, truth) == [2.0]
    assert metrics.spread_skill_ratio(ensemble, truth) == pytest.approx([np.sqrt(4 / 3) * 2 / 4], rel=1e-14)


def test_leads_are_kept_apart_and_all_else_is_averaged():
    ensemble, truth = forecast()
    error = ensemble.mean(axis=0) - truth
    np.testing.assert_allclose(
        metrics.rmse(ensemble, truth) ** 2, (error**2).mean(axis=(0, 2, 3, 4)), rtol=1e-13
    )
    np.testing.assert_allclose(
        metrics.mae(ensemble, truth), np.abs(error).mean(axis=(0, 2, 3, 4)), rtol=1e-13
    )
    second = metrics.spread(ensemble[:, :, 1:], truth[:, 1:])
    np.testing.assert_array_equal(metrics.spread(ensemble, truth)[1:], second)


def test_the_mean_errs_less_than_its_members():
    """Jensen: RMSE and MAE of the mean are below those of the members, and MAE below RMSE."""
    ensemble, truth = forecast()
    each = (1, 3, 4, 5)
    assert np.all(
        metrics.rmse(ensemble, truth) <= np.sqrt(((ensemble - truth) ** 2).mean(axis=each).mean(axis=0))
    )
    assert np.all(metrics.mae(ensemble, truth) <= np.abs(ensemble - truth).mean(axis=each).mean(axis=0))
    assert np.all(metrics.mae(ensemble, truth) <= metrics.rmse(ensemble, truth))


def test_order_of_members_does_not_matter():
    ensemble, truth = forecast()
    shuffled = ensemble[[3, 1, 5, 0, 4, 2]]
    for score in (metrics.rmse, metrics.mae, metrics.spread, metrics.spread_skill_ratio):
        np.testing.assert_allclose(score(shuffled, truth), score(ensemble, truth), rtol=1e-13)
    np.testing.assert_array_equal(
        metrics.rank_histogram(shuffled, truth), metrics.rank_histogram(ensemble, truth)
    )


@pytest.mark.parametrize("e", [2, 3, 10])
def test_spread_over_skill_of_an_exchangeable_ensemble_is_one(e):
    """Independent Gaussian points: the root of a ratio of chi-squared means, of known sampling error."""
    ensemble, truth = forecast(seed=e, e=e, shape=(20, 2, 32, 32, 1))
    points = 20 * 32 * 32
    sampling_error = 0.5 * np.sqrt(2 / points * (1 + 1 / (e - 1)))
    assert np.all(np.abs(metrics.spread_skill_ratio(ensemble, truth) - 1) < 5 * sampling_error)
    assert np.all(np.abs(metrics.spread_skill_ratio(0.5 * ensemble, truth) - 1) > 50 * sampling_error)


@pytest.mark.parametrize("per", ["lead", "window"])
@pytest.mark.parametrize("e", [2, 10, 50])
def test_the_uncorrected_ratio_of_a_calibrated_ensemble_is_known(e, per):
    """sqrt((e - 1) / (e + 1)), .980 for 50 members; the mean of ratios of windows of n points is high by 3 / (4 n)."""
    ensemble, truth = forecast(seed=e, e=e, shape=(8, 2, 32, 32, 1))
    points = 8 * 32 * 32
    bound = 5 * 0.5 * np.sqrt(2 / points * (1 + 1 / (e - 1))) + (1 / 32**2 if per == "window" else 0)
    found = metrics.ssr_biased(ensemble, truth, per) / np.sqrt((e - 1) / (e + 1))
    assert np.all(np.abs(found - 1) < bound)


def test_the_uncorrected_ratio_is_that_of_the_corrected_one_by_hand_and_by_window():
    ensemble, truth = forecast(e=5)
    corrected = metrics.spread_skill_ratio(ensemble, truth)
    np.testing.assert_allclose(metrics.ssr_biased(ensemble, truth), corrected * np.sqrt(4 / 6), rtol=1e-14)
    each = [metrics.ssr_biased(ensemble[:, b : b + 1], truth[b : b + 1]) for b in range(3)]
    np.testing.assert_allclose(
        metrics.ssr_biased(ensemble, truth, "window"), np.mean(each, axis=0), rtol=1e-14
    )
    assert metrics.ssr_biased(point(1.0, 3.0), point(4.0)[0]) == [0.5]
    assert metrics.mse_mean(point(1.0, 3.0), point(4.0)[0]) == [4.0]
    with pytest.raises(ValueError, match="^per: expected 'lead' or 'window', found 'frame'"):
        inspect.unwrap(metrics.ssr_biased)(ensemble, truth, "frame")  # without the check of types


def test_one_member_has_no_spread():
    ensemble, truth = forecast(e=1)
    for score in (metrics.spread, metrics.spread_skill_ratio, metrics.ssr_biased):
        with pytest.raises(ValueError, match="at least 2 members, found 1"):
            score(ensemble, truth)


def test_ranks_by_hand():
    ensemble = np.concatenate([point(1.0, 2.0, 3.0)] * 4, axis=1)
    truth = np.reshape([0.0, 1.5, 2.5, 9.0], (4, 1, 1, 1, 1))
    np.testing.assert_array_equal(metrics.rank_histogram(ensemble, truth), [[1, 1, 1, 1]])
    np.testing.assert_array_equal(metrics.rank_histogram(ensemble, truth + 10), [[0, 0, 0, 4]])


def too_uneven(counts):
    """Pearson's test of equal chances, at a level of one in a million."""
    statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    return statistic > stats.chi2.ppf(1 - 1e-6, counts.size - 1)


def test_ranks_of_an_exchangeable_ensemble_are_flat():
    ensemble, truth = forecast(e=7, shape=(10, 2, 32, 32, 1))
    counts = metrics.rank_histogram(ensemble, truth)
    assert counts.shape == (2, 8)
    np.testing.assert_array_equal(counts.sum(axis=1), [10 * 32 * 32] * 2)
    assert not any(map(too_uneven, counts))
    narrow = metrics.rank_histogram(0.5 * ensemble, truth)
    assert all(map(too_uneven, narrow)) and np.all(narrow[:, [0, -1]] > 1.5 * narrow.mean())


def test_ties_are_spread_evenly_over_their_ranks_and_reproducibly():
    """Two members below the truth and three equal to it: ranks 2 ... 5 with equal chances."""
    truth = np.zeros((4, 1, 32, 32, 1))
    ensemble = np.stack([truth - 1, truth, truth, truth - 2, truth])
    counts = metrics.rank_histogram(ensemble, truth, seed=5)[0]
    assert counts[:2].tolist() == [0, 0] and not too_uneven(counts[2:])
    np.testing.assert_array_equal(counts, metrics.rank_histogram(ensemble, truth, seed=5)[0])
