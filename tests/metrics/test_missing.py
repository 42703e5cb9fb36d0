"""Scores of incomplete data: against independent libraries on the observed points alone, and by hand."""

import functools

import numpy as np
import pytest
import scoringrules
from sklearn.metrics import jaccard_score, mean_absolute_error, mean_squared_error

from dydiff_jax import metrics

POINTS = {
    "crps": metrics.crps_per_lead,
    "mae": metrics.mae,
    "mse": metrics.mse,
    "mse_mean": metrics.mse_mean,
    "rmse": metrics.rmse,
    "spread": metrics.spread,
}


def forecast(e=4, shape=(3, 2, 9, 10, 2), missing=0.3, seed=0):
    """An ensemble, a truth of NaN where it is missing, and the mask."""
    rng = np.random.default_rng(seed)
    observed = rng.uniform(size=shape) > missing
    return rng.normal(size=(e, *shape)), np.where(observed, rng.normal(size=shape), np.nan), observed


def observed_points(ensemble, truth, observed, lead):
    """Members [e, n] and truth [n] of the observed points of a lead."""
    known = observed[:, lead]
    return ensemble[:, :, lead][:, known], truth[:, lead][known]


def test_scores_of_points_are_those_of_the_observed_ones():
    ensemble, truth, observed = forecast()
    for lead in range(2):
        x, y = observed_points(ensemble, truth, observed, lead)
        each = [mean_squared_error(y, member) for member in x]
        crps = scoringrules.crps_ensemble(y, x, m_axis=0, estimator="fair", backend="numpy").mean()
        expected = {
            "crps": crps,
            "mae": mean_absolute_error(y, x.mean(axis=0)),
            "mse": np.mean(each),
            "mse_mean": mean_squared_error(y, x.mean(axis=0)),
            "rmse": mean_squared_error(y, x.mean(axis=0)) ** 0.5,
            "spread": x.var(axis=0, ddof=1).mean() ** 0.5,
        }
        for name, score in POINTS.items():
            assert score(ensemble, truth, observed=observed)[lead] == pytest.approx(expected[name], rel=1e-12)
        ratio = np.sqrt(5 / 4) * expected["spread"] / expected["rmse"]
        found = metrics.spread_skill_ratio(ensemble, truth, observed)[lead]
        assert found == pytest.approx(ratio, rel=1e-12)
        biased = metrics.ssr_biased(ensemble, truth, observed=observed)[lead]
        assert biased == pytest.approx(ratio * np.sqrt(3 / 5), rel=1e-12)
        summed = metrics.mse_sum(ensemble, truth, 2.0, observed)[lead]
        assert summed == pytest.approx(expected["mse"] * 9 * 10 * 2 / 4, rel=1e-12)


def test_the_ratio_of_windows_is_the_mean_over_those_with_an_observed_point():
    ensemble, truth, observed = forecast(shape=(3, 2, 4, 5, 2))
    observed[1, 1] = False
    found = metrics.ssr_biased(ensemble, truth, per="window", observed=observed)
    for lead, windows in enumerate([(0, 1, 2), (0, 2)]):
        each = []
        for b in windows:
            x, y = ensemble[:, b, lead][:, observed[b, lead]], truth[b, lead][observed[b, lead]]
            each.append(np.sqrt(x.var(axis=0).mean() / mean_squared_error(y, x.mean(axis=0))))
        assert found[lead] == pytest.approx(np.mean(each), rel=1e-12)


def test_a_paired_difference_is_that_of_windows_with_an_observed_point():
    ensemble, truth, observed = forecast(shape=(4, 2, 4, 5, 2))
    other = forecast(e=6, shape=(4, 2, 4, 5, 2), seed=1)[0]
    observed[2, 0] = False
    found, error = metrics.crps_difference(ensemble, other, truth, observed)
    for lead, windows in enumerate([(0, 1, 3), (0, 1, 2, 3)]):
        at = [(slice(None), slice(b, b + 1), slice(lead, lead + 1)) for b in windows]
        one, two = (
            [metrics.crps_per_lead(x[i], truth[i[1:]], observed=observed[i[1:]]).item() for i in at]
            for x in (ensemble, other)
        )
        each = np.subtract(one, two)
        assert found[lead] == pytest.approx(each.mean(), rel=1e-12)
        assert error[lead] == pytest.approx(each.std(ddof=1) / len(each) ** 0.5, rel=1e-12)


def test_ranks_are_counted_at_observed_points():
    ensemble, truth, observed = forecast()
    counts = metrics.rank_histogram(ensemble, truth, observed=observed)
    for lead in range(2):
        x, y = observed_points(ensemble, truth, observed, lead)
        assert counts[lead].tolist() == np.bincount((x < y).sum(axis=0), minlength=5).tolist()


@pytest.mark.parametrize("how, window, stride", [("avg", 3, 2), ("max", 2, 1), ("max", 3, 3)])
def test_a_pooled_place_counts_if_all_of_it_was_observed(how, window, stride):
    ensemble, truth, observed = forecast(missing=0.05)
    reduce, sums = {"avg": np.mean, "max": np.max}[how], []
    for b, i, j, c in np.ndindex(3, (9 - window) // stride + 1, (10 - window) // stride + 1, 2):
        place = slice(i * stride, i * stride + window), slice(j * stride, j * stride + window), c
        if observed[b, 1][place].all():
            x = np.array([reduce(member[b, 1][place]) for member in ensemble])
            sums.append(scoringrules.crps_ensemble(reduce(truth[b, 1][place]), x, estimator="fair"))
    found = metrics.pooled_crps(ensemble, truth, window, stride, how, observed=observed)
    assert found[1] == pytest.approx(np.mean(sums), rel=1e-12)


def test_with_the_mask_of_negative_truth_a_missing_point_takes_its_place_away():
    """One member, one row of four points, errors 1, 2, 4, 8: the last is negative, the third missing."""
    truth = np.array([1.0, 1.0, np.nan, -1.0]).reshape(1, 1, 1, 4, 1)
    observed = np.isfinite(truth)
    ensemble = np.array([1.0 + 1, 1.0 + 2, 1.0 + 4, -1.0 + 8]).reshape(1, 1, 1, 1, 4, 1)
    masked = metrics.pooled_crps(ensemble, truth, 1, 1, "avg", nonneg_mask=True, observed=observed)
    assert masked == pytest.approx([1.5])
    nothing = observed & (truth < 0)
    assert not metrics.nonneg_cases(truth, 1, 1, nothing).any() and metrics.nonneg_cases(
        truth, 1, 1, observed
    )
    assert np.isnan(metrics.pooled_crps(ensemble, truth, 1, 1, "avg", nonneg_mask=True, observed=nothing))


@pytest.mark.parametrize("pool, stride, padding", [(1, 1, 0), (3, 2, 1), (4, 3, 0)])
def test_events_count_at_pooled_places_that_are_wholly_observed(pool, stride, padding):
    ensemble, truth, observed = forecast(missing=0.05)
    events, forecasts = [], []
    for e, b, c in np.ndindex(4, 3, 2):
        shape = ((n + 2 * padding - pool) // stride + 1 for n in (9, 10))
        for i, j in np.ndindex(*shape):
            top, left = i * stride - padding, j * stride - padding
            place = slice(max(top, 0), top + pool), slice(max(left, 0), left + pool), c
            if observed[b, 0][place].all():
                events.append((truth[b, 0][place] >= 0.8).any())
                forecasts.append((ensemble[e, b, 0][place] >= 0.8).any())
    found = metrics.csi(ensemble, truth, 0.8, pool, stride, padding, observed)
    assert found[0] == pytest.approx(jaccard_score(events, forecasts), rel=1e-12)


def test_spectra_are_those_of_windows_wholly_observed():
    ensemble, truth, _ = forecast(missing=0.0)
    observed = np.ones(truth.shape, bool)
    observed[1, 0, 4, 4, 1] = observed[2, 0, 0] = observed[:, 1, 3, 3, 0] = False
    wavenumber, spectra = metrics.lead_spectra(ensemble, np.where(observed, truth, np.nan), observed)
    _, alone = metrics.lead_spectra(ensemble[:, :1, :1], truth[:1, :1])
    np.testing.assert_array_equal(spectra[0], alone[0])
    assert np.isnan(spectra[1]).all() and wavenumber.tolist() == [1, 2, 3, 4]
    error = metrics.spectrum_error(ensemble, truth, observed)
    assert error[0] == metrics.spectrum_error(ensemble[:, :1, :1], truth[:1, :1])[0] and np.isnan(error[1])


def test_a_mask_broadcasts_and_one_without_holes_changes_no_bit():
    ensemble, truth, _ = forecast(missing=0.0)
    frames = np.array([[True, True], [False, True], [True, True]])[:, :, None, None, None]
    for score in [*POINTS.values(), metrics.rank_histogram, metrics.spectrum_error]:
        full = score(ensemble, truth)
        np.testing.assert_array_equal(score(ensemble, truth, observed=np.ones((1, 1, 1, 1, 1), bool)), full)
        np.testing.assert_array_equal(score(ensemble, truth, observed=np.ones(truth.shape, bool)), full)
        found = score(ensemble, truth, observed=frames)
        np.testing.assert_array_equal(found[0], score(ensemble[:, ::2, :1], truth[::2, :1])[0])
        np.testing.assert_array_equal(found[1], full[1])


def test_a_lead_without_observations_has_no_score():
    ensemble, truth, observed = forecast()
    observed[:, 1] = False
    by_window = functools.partial(metrics.ssr_biased, per="window")
    ratios = metrics.spread_skill_ratio, metrics.ssr_biased, by_window
    for score in [*POINTS.values(), *ratios, lambda *a, **k: metrics.csi(*a, 0.0, **k)]:
        assert np.isfinite(score(ensemble, truth, observed=observed)).tolist() == [True, False]
    assert metrics.rank_histogram(ensemble, truth, observed=observed)[1].sum() == 0


def test_a_mask_of_another_shape_or_type_is_refused():
    ensemble, truth, observed = forecast()
    for mask in (observed[:, :, :3], observed.astype(float)):
        with pytest.raises(
            ValueError, match=r"observed: expected bool that broadcasts to \(3, 2, 9, 10, 2\)"
        ):
            metrics.leads.over_shape(mask, truth.shape)
    with pytest.raises(ValueError, match="NaN or infinite in the truth at frame 1"):
        metrics.mae(ensemble, truth)
    ensemble[0, 0, 1, 0, 0, 0] = np.nan
    observed[0, 1, 0, 0, 0] = False  # a forecast that diverged has no score, wherever it did
    with pytest.raises(metrics.Diverged):
        metrics.mae(ensemble, truth, observed)
