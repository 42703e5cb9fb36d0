"""CSI against hand counts and scikit-learn's Jaccard score."""

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from dydiff_jax import metrics


def forecast(seed=0, shape=(2, 3, 9, 11, 2), e=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(e, *shape)).round(1), rng.normal(size=shape).round(1)


def pool_mask(mask, window, stride, padding):
    """Max-pool of one [h, w] mask by loops: an event in the part of the window that is on the grid?"""
    h, w = ((n + 2 * padding - window) // stride + 1 for n in mask.shape)
    pooled = np.zeros((h, w), bool)
    for i, j in np.ndindex(h, w):
        top, left = i * stride - padding, j * stride - padding
        pooled[i, j] = mask[max(top, 0) : top + window, max(left, 0) : left + window].any()
    return pooled


def test_value_by_hand():
    truth = np.array([[1.0, 1.0, 0.0, 0.0]])[None, None, :, :, None]
    first = np.array([[1.0, 0.0, 1.0, 0.0]])[None, None, :, :, None]  # 1 hit, 1 miss, 1 false alarm
    second = np.array([[1.0, 1.0, 0.0, 0.0]])[None, None, :, :, None]  # 2 hits
    np.testing.assert_array_equal(metrics.csi(first[None], truth, 0.5), [1 / 3])
    np.testing.assert_array_equal(metrics.csi(np.stack([first, second]), truth, 0.5), [3 / 5])


@pytest.mark.parametrize("pool, stride, padding", [(1, 1, 0), (5, 2, 2), (3, 3, 0), (4, 2, 1)])
def test_agrees_with_the_jaccard_score_of_pooled_masks(pool, stride, padding):
    ensemble, truth = forecast()
    found = metrics.csi(ensemble, truth, 1.2, pool, stride, padding)
    for lead in range(3):
        pairs = []
        for e, b, c in np.ndindex(4, 2, 2):
            masks = (x[b, lead, :, :, c] >= 1.2 for x in (truth, ensemble[e]))
            pairs.append([pool_mask(mask, pool, stride, padding).ravel() for mask in masks])
        event, forecast_event = np.concatenate(pairs, axis=1)
        assert found[lead] == pytest.approx(jaccard_score(event, forecast_event), rel=1e-12)


def test_an_event_is_at_or_above_the_threshold():
    truth = np.full((1, 1, 2, 2, 1), 0.5)
    assert metrics.csi(truth[None], truth, 0.5) == [1.0]
    assert np.isnan(metrics.csi(truth[None], truth, np.nextafter(0.5, 1)))


def test_pooling_forgives_a_displacement():
    truth, shifted = np.zeros((2, 1, 1, 15, 15, 1))
    truth[0, 0, 7, 7], shifted[0, 0, 7, 8] = 1.0, 1.0
    assert metrics.csi(shifted[None], truth, 0.5) == [0.0]
    assert metrics.csi(shifted[None], truth, 0.5, pool=5, stride=5) == [1.0]


def test_padding_beyond_half_a_window_is_refused():
    ensemble, truth = forecast()
    with pytest.raises(ValueError, match="padding: expected 0 to 2, half of the pool of 5, found 3"):
        metrics.csi(ensemble, truth, 0.0, pool=5, stride=2, padding=3)
