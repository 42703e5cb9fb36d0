"""The continuous ranked probability score of an ensemble, at grid points and over pooled windows."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from dydiff_jax.metrics.leads import Ensemble, PerLead, Truth, per_lead
from dydiff_jax.metrics.pooling import pool
from dydiff_jax.types import Array


def crps_ensemble(
    ensemble: Float[Array, "e *rest"], truth: Float[Array, "*rest"], fair: bool = True
) -> Float[np.ndarray, "*rest"]:
    """CRPS of the members x_1 ... x_e against the truth y, point by point, in the units of the data.

        fair:       mean_i |x_i - y| - sum_ij |x_i - x_j| / (2 e (e - 1))
        otherwise:  mean_i |x_i - y| - sum_ij |x_i - x_j| / (2 e^2)

    The fair estimator (Ferro 2014) is unbiased in the ensemble size: its expectation is the CRPS of the
    distribution that the members were drawn from. The other (the energy form, `nrg` and `qd` of scoringrules)
    is the CRPS of the empirical distribution itself and exceeds it by E|x - x'| / (2 e). One member scores
    |x - y| in both.

    Uses sum_ij |x_i - x_j| = 2 sum_i (2 i - e - 1) x_(i) over the sorted members, i from 1 (Gneiting and
    Raftery 2007); the weights sum to zero, so that x may be measured from y.
    """
    error = np.sort(np.asarray(ensemble, np.float64) - np.asarray(truth, np.float64), axis=0)
    members = error.shape[0]
    rank = np.arange(1, members + 1)
    pairs = members * max(members - 1, 1) if fair else members**2
    half_spread = np.tensordot((2 * rank - members - 1) / pairs, error, axes=1)
    return np.asarray(np.abs(error).mean(axis=0) - half_spread)


def crps_per_lead(ensemble: Ensemble, truth: Truth, fair: bool = True) -> PerLead:
    """`crps_ensemble` averaged over windows, grid points and channels: one value a lead."""
    return per_lead(lambda members, observed: crps_ensemble(members, observed, fair).mean(), ensemble, truth)


def pooled_crps(
    ensemble: Ensemble,
    truth: Truth,
    window: int,
    stride: int,
    how: Literal["avg", "max"],
    fair: bool = True,
    nonneg_mask: bool = False,
) -> PerLead:
    """CRPS of neighbourhoods: members and truth are pooled, then scored, then averaged; one value a lead.

    Pooling is without padding, channel by channel. "CRPS w8" of DyDiff, Table 1, is window 8, stride 2.

    With `nonneg_mask` only pooling windows whose truth is nowhere negative count. A forecast window (b) where
    some lead and channel keeps no pooling window is dropped whole; each lead and channel of the others is
    averaged over its own pooling windows first, then over channels and forecast windows. The mask suits rain
    rates; on signed velocities it scores flow in one direction only. NaN at every lead if no forecast window
    is left: `nonneg_cases` tells which are.

    Raises:
      ValueError: the window does not fit on the grid, or shapes do not agree.
    """

    def points(members: np.ndarray, observed: np.ndarray) -> np.ndarray:
        return crps_ensemble(pool(members, window, stride, how), pool(observed, window, stride, how), fair)

    def masked(members: np.ndarray, observed: np.ndarray) -> float:
        kept = ~pool(observed < 0, window, stride, "max")
        return ((points(members, observed) * kept).sum(axis=(1, 2)) / kept.sum(axis=(1, 2))).mean()

    ensemble, truth = np.asarray(ensemble), np.asarray(truth)
    if not nonneg_mask:
        return per_lead(lambda members, observed: points(members, observed).mean(), ensemble, truth)
    cases = nonneg_cases(truth, window, stride)
    if not cases.any():
        return np.full(truth.shape[1], np.nan)
    return per_lead(masked, ensemble[:, cases], truth[cases])


def nonneg_cases(truth: Truth, window: int, stride: int) -> Bool[np.ndarray, "b"]:
    """The forecast windows that `pooled_crps` with `nonneg_mask` keeps.

    True where every lead and channel has at least one pooling window without a negative value.
    """
    kept = ~pool(np.asarray(truth) < 0, window, stride, "max")
    return kept.any(axis=(2, 3)).all(axis=(1, 2))
