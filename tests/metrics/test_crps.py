"""The CRPS against its definition, closed forms and scoringrules; pooling and mask against plain loops."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from scipy import stats

from dydiff_jax import metrics
from dydiff_jax.metrics.pooling import pool


def forecast(seed=0, e=5, b=3, k=2, h=12, w=10, c=2, mean=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(mean, 1.0, size=(e, b, k, h, w, c)), rng.normal(mean, 1.0, size=(b, k, h, w, c))


def crps_by_definition(members, truth, fair):
    """Two loops over members at one point."""
    e = len(members)
    error = sum(abs(x - truth) for x in members) / e
    pairs = sum(abs(x - other) for x in members for other in members)
    return error - pairs / (2 * e * (e - 1) if fair else 2 * e * e)


def pool_by_loops(x, window, stride, how):
    """[h, w] -> [h', w'], written as it is read."""
    reduce = {"avg": np.mean, "max": np.max}[how]
    rows, columns = ((n - window) // stride + 1 for n in x.shape)
    corners = [(i * stride, j * stride) for i in range(rows) for j in range(columns)]
    return np.array([reduce(x[i : i + window, j : j + window]) for i, j in corners]).reshape(rows, columns)


def test_values_by_hand():
    members, truth = np.array([0.0, 1.0, 3.0]), np.array(2.0)
    # mean |x - y| = (2 + 1 + 1) / 3; sum over pairs = 2 (1 + 3 + 2) = 12
    assert metrics.crps_ensemble(members, truth) == pytest.approx(4 / 3 - 12 / 12, rel=1e-14)
    assert metrics.crps_ensemble(members, truth, fair=False) == pytest.approx(4 / 3 - 12 / 18, rel=1e-14)


@pytest.mark.parametrize("fair, estimator", [(True, "fair"), (False, "nrg"), (False, "qd")])
def test_agrees_with_scoringrules(fair, estimator):
    ensemble, truth = forecast(mean=3.0)
    expected = scoringrules.crps_ensemble(truth, ensemble, m_axis=0, estimator=estimator, backend="numpy")
    np.testing.assert_allclose(metrics.crps_ensemble(ensemble, truth, fair), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("fair", [True, False])
def test_agrees_with_the_definition(fair):
    rng = np.random.default_rng(1)
    for e in (2, 3, 8):
        members, truth = rng.normal(size=e), rng.normal()
        found = metrics.crps_ensemble(members, np.asarray(truth), fair)
        assert found == pytest.approx(crps_by_definition(members, truth, fair), rel=1e-12)


def test_one_member_scores_its_absolute_error():
    ensemble, truth = forecast(e=1)
    for fair in (True, False):
        np.testing.assert_array_equal(
            metrics.crps_ensemble(ensemble, truth, fair), np.abs(ensemble[0] - truth)
        )
    np.testing.assert_allclose(
        metrics.crps_per_lead(ensemble, truth), metrics.mae(ensemble, truth), rtol=1e-14
    )


@pytest.mark.parametrize("e", [2, 3, 4])
def test_fair_estimate_has_no_bias_at_any_ensemble_size(e):
    """All ensembles from a three-valued law, weighted by probability: E fair CRPS is the CRPS of the law."""
    values, chances, truth = np.array([-1.0, 0.5, 2.0]), np.array([0.2, 0.5, 0.3]), np.asarray(0.3)
    pair = np.abs(values[:, None] - values) * chances[:, None] * chances
    crps_of_law = chances @ np.abs(values - truth) - pair.sum() / 2
    expected = {True: crps_of_law, False: crps_of_law + pair.sum() / (2 * e)}
    for fair, value in expected.items():
        terms = [
            chances[list(pick)].prod() * metrics.crps_ensemble(values[list(pick)], truth, fair)
            for pick in itertools.product(range(3), repeat=e)
        ]
        assert sum(terms) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("e", [2, 16])
def test_converges_to_the_closed_form_of_a_gaussian(e):
    """CRPS(N(0, 1), y) = y (2 Phi(y) - 1) + 2 phi(y) - 1 / sqrt(pi) (Gneiting and Raftery 2007)."""
    draws = 20_000
    ensemble = np.random.default_rng(2).normal(size=(e, draws))
    y = 0.7
    found = metrics.crps_ensemble(ensemble, np.full(draws, y))
    expected = y * (2 * stats.norm.cdf(y) - 1) + 2 * stats.norm.pdf(y) - 1 / np.sqrt(np.pi)
    assert abs(found.mean() - expected) < 5 * found.std() / np.sqrt(draws)


def test_order_of_members_shift_and_scale():
    ensemble, truth = forecast()
    score = metrics.crps_ensemble(ensemble, truth)
    shuffled = ensemble[np.random.default_rng(3).permutation(len(ensemble))]
    np.testing.assert_array_equal(metrics.crps_ensemble(shuffled, truth), score)
    moved = metrics.crps_ensemble(-3 * ensemble + 5, -3 * truth + 5)
    np.testing.assert_allclose(moved, 3 * score, rtol=1e-9, atol=1e-13)


def test_accumulates_in_float64():
    """Millions of float32 values far from zero: a float32 mean would lose the score."""
    ensemble, truth = forecast(e=3, b=2, k=1, h=200, w=200, mean=4000.0)
    ensemble, truth = ensemble.astype(np.float32), truth.astype(np.float32)
    expected = metrics.crps_ensemble(ensemble.astype(np.float64), truth.astype(np.float64)).mean()
    assert metrics.crps_per_lead(jnp.asarray(ensemble), jnp.asarray(truth))[0] == pytest.approx(
        expected, rel=1e-13
    )


@pytest.mark.parametrize("how", ["avg", "max"])
@pytest.mark.parametrize("window, stride", [(1, 1), (3, 2), (4, 1), (8, 2), (10, 3)])
def test_pooling_agrees_with_loops(how, window, stride):
    x = forecast(seed=4)[1]
    pooled = pool(x, window, stride, how)
    for b, k, c in np.ndindex(x.shape[0], x.shape[1], x.shape[-1]):
        expected = pool_by_loops(x[b, k, :, :, c], window, stride, how)
        np.testing.assert_allclose(pooled[b, k, :, :, c], expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("how", ["avg", "max"])
def test_pooled_crps_agrees_with_scoringrules_on_loops(how):
    ensemble, truth = forecast(seed=5)
    each = []
    for b, k, c in np.ndindex(3, 2, 2):
        y = pool_by_loops(truth[b, k, :, :, c], 8, 2, how)
        x = np.stack([pool_by_loops(member[b, k, :, :, c], 8, 2, how) for member in ensemble])
        each.append(scoringrules.crps_ensemble(y, x, m_axis=0, estimator="fair", backend="numpy").mean())
    expected = np.reshape(each, (3, 2, 2)).mean(axis=(0, 2))
    np.testing.assert_allclose(metrics.pooled_crps(ensemble, truth, 8, 2, how), expected, rtol=1e-12)


def test_a_window_of_one_point_is_the_crps_of_the_points():
    ensemble, truth = forecast()
    for how in ("avg", "max"):
        found = metrics.pooled_crps(ensemble, truth, 1, 1, how)
        np.testing.assert_allclose(found, metrics.crps_per_lead(ensemble, truth), rtol=1e-14)


def test_averages_hide_errors_that_cancel_within_a_window():
    """A checkerboard of errors is gone after averages over an even window, not after maxima."""
    truth = np.ones((1, 1, 8, 8, 1))
    checkerboard = (-1.0) ** np.add.outer(np.arange(8), np.arange(8))[:, :, None]
    ensemble = (truth + checkerboard)[None]
    assert metrics.pooled_crps(ensemble, truth, 2, 2, "avg")[0] == 0
    assert metrics.pooled_crps(ensemble, truth, 2, 2, "max")[0] == 1


def test_mask_by_hand():
    """One member, windows of one row of two points: errors count only where the truth is nowhere negative."""
    truth = np.array([[1.0, 1.0, -1.0, 1.0], [1.0, -1.0, 2.0, 2.0]])[None, None, :, :, None]
    truth = np.concatenate([truth, truth, -np.ones_like(truth)])  # the third forecast window keeps nothing
    error = np.array([[3.0, 3.0, 50.0, 50.0], [50.0, 50.0, 5.0, 5.0]])[None, None, :, :, None]
    ensemble = (truth + np.concatenate([error, 2 * error, 100 * error]))[None]
    kept = metrics.pooled_crps(ensemble, truth, 2, 2, "avg", nonneg_mask=True)
    assert np.isnan(kept).all()  # 2 x 2 windows: every one has a negative truth
    np.testing.assert_array_equal(metrics.nonneg_cases(truth, 2, 2), [False, False, False])

    np.testing.assert_array_equal(metrics.nonneg_cases(truth, 1, 1), [True, True, False])
    points = metrics.pooled_crps(ensemble, truth, 1, 1, "avg", nonneg_mask=True)
    errors = np.array([3, 3, 50, 50, 5, 5])  # the six points with a truth of 0 or more
    np.testing.assert_allclose(points, [(errors.mean() + 2 * errors.mean()) / 2], rtol=1e-14)


def test_mask_averages_within_a_window_first():
    """A forecast window that keeps one place weighs as much as one that keeps four."""
    truth = np.ones((2, 1, 2, 2, 1))
    truth[1, 0, 0, :, 0] = truth[1, 0, 1, 0, 0] = -1.0
    ensemble = truth[None].copy()
    ensemble[0, 0] += 1.0
    ensemble[0, 1] += 4.0
    assert metrics.pooled_crps(ensemble, truth, 1, 1, "max", nonneg_mask=True) == pytest.approx([2.5])


def test_mask_drops_a_window_when_any_lead_or_channel_is_empty():
    truth = np.ones((3, 2, 4, 4, 2))
    truth[1, 1, :, :, 0] = -1.0
    np.testing.assert_array_equal(metrics.nonneg_cases(truth, 2, 2), [True, False, True])
    ensemble = truth[None] + np.array([1.0, 70.0, 2.0])[:, None, None, None, None]
    np.testing.assert_allclose(
        metrics.pooled_crps(ensemble, truth, 2, 2, "max", nonneg_mask=True), [1.5, 1.5]
    )


def test_mask_changes_nothing_where_all_is_positive():
    ensemble, truth = forecast()
    positive = truth - truth.min()
    for how in ("avg", "max"):
        masked = metrics.pooled_crps(ensemble, positive, 8, 2, how, nonneg_mask=True)
        np.testing.assert_allclose(masked, metrics.pooled_crps(ensemble, positive, 8, 2, how), rtol=1e-13)


def test_errors_say_what_to_do():
    ensemble, truth = forecast(h=6)
    with pytest.raises(ValueError, match=r"window: .* window of 8 on a grid of 6 x 10; choose a smaller"):
        metrics.pooled_crps(ensemble, truth, 8, 2, "avg")
    with pytest.raises(ValueError, match="at least 1, found 0"):
        pool(truth, 0, 1, "avg")
    truth[1, 1, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 360 NaN or infinite in the truth at frame 2"):
        metrics.crps_per_lead(ensemble, truth)
