"""Scores of yes or no forecasts: is the value at or above a threshold?"""

import numpy as np

from dydiff_jax.metrics import pooling
from dydiff_jax.metrics.leads import Ensemble, PerLead, Truth, per_lead


def csi(
    ensemble: Ensemble, truth: Truth, threshold: float, pool: int = 1, stride: int = 1, padding: int = 0
) -> PerLead:
    """Critical success index, hits / (hits + misses + false alarms), one value a lead.

    An event is value >= threshold. The masks of events are max-pooled over `pool` x `pool` points every
    `stride` points after `padding` points of "no event" on each side. Each member is a forecast of its own.
    Hits, misses and false alarms are summed over members, windows, grid and channels before the ratio, which
    is then the Jaccard index of the two masks. NaN at a lead where neither forecast nor truth has an event.

    "CSI w5" of Guo et al. (DyDiff, Table 1) is pool 5, stride 2, padding 2.

    Raises:
      ValueError: the window does not fit on the padded grid, padding is outside 0 ... pool / 2, or shapes
      disagree.
    """
    if not 0 <= padding <= pool // 2:
        raise ValueError(f"padding: expected 0 to {pool // 2}, half of the pool of {pool}, found {padding}")

    def counts(members: np.ndarray, observed: np.ndarray) -> np.ndarray:
        forecast = _events(members, threshold, pool, stride, padding)
        event = _events(observed, threshold, pool, stride, padding)
        return np.array([np.sum(forecast & event), np.sum(forecast | event)])

    hits, either = per_lead(counts, ensemble, truth).T
    return np.divide(hits, either, out=np.full(hits.shape, np.nan), where=either > 0)


def _events(x: np.ndarray, threshold: float, window: int, stride: int, padding: int) -> np.ndarray:
    """Max-pooled masks of x >= threshold; the margin that padding adds never is an event."""
    margin = [(0, 0)] * (x.ndim - 3) + [(padding, padding), (padding, padding), (0, 0)]
    return pooling.pool(np.pad(x >= threshold, margin), window, stride, "max")
