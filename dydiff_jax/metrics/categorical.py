"""Scores of yes or no forecasts: is the value at or above a threshold?"""

import numpy as np

from dydiff_jax.metrics import pooling
from dydiff_jax.metrics.leads import Ensemble, Observed, PerLead, Truth, per_lead


def csi(
    ensemble: Ensemble,
    truth: Truth,
    threshold: float,
    pool: int = 1,
    stride: int = 1,
    padding: int = 0,
    observed: Observed | None = None,
) -> PerLead:
    """Critical success index, hits / (hits + misses + false alarms), one value a lead.

    An event is value >= threshold. The masks of events are max-pooled over `pool` x `pool` points every
    `stride` points after `padding` points of "no event" on each side. Each member is a forecast of its own.
    Hits, misses and false alarms are summed over members, windows, grid and channels before the ratio, which
    is then the Jaccard index of the two masks. NaN at a lead where neither forecast nor truth has an event.

    A pooled place counts only if all of its points are observed; the margin counts as observed.

    "CSI w5" of Guo et al. (DyDiff, Table 1) is pool 5, stride 2, padding 2.

    Raises:
      ValueError: the window does not fit on the padded grid, padding is outside 0 ... pool / 2, or shapes
      disagree.
    """
    if not 0 <= padding <= pool // 2:
        raise ValueError(f"padding: expected 0 to {pool // 2}, half of the pool of {pool}, found {padding}")

    def pooled(events: np.ndarray) -> np.ndarray:
        """Max-pooled masks; the margin that padding adds never is an event."""
        margin = [(0, 0)] * (events.ndim - 3) + [(padding, padding), (padding, padding), (0, 0)]
        return pooling.pool(np.pad(events, margin), pool, stride, "max")

    def counts(members: np.ndarray, actual: np.ndarray, known: np.ndarray | None) -> np.ndarray:
        forecast, event = pooled(members >= threshold), pooled(actual >= threshold)
        if known is not None:
            whole = ~pooled(~known)
            forecast, event = forecast & whole, event & whole
        return np.array([np.sum(forecast & event), np.sum(forecast | event)])

    hits, either = per_lead(counts, ensemble, truth, observed).T
    return np.divide(hits, either, out=np.full(hits.shape, np.nan), where=either > 0)
