"""The continuous ranked probability score of an ensemble, at grid points and over pooled windows."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from dydiff_jax.metrics.leads import Ensemble, Observed, PerLead, Truth, average, over_shape, per_lead
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


def crps_per_lead(
    ensemble: Ensemble, truth: Truth, fair: bool = True, observed: Observed | None = None
) -> PerLead:
    """`crps_ensemble` averaged over the observed windows, grid points and channels: one value a lead."""

    def mean(members: np.ndarray, actual: np.ndarray, known: np.ndarray | None) -> np.ndarray | float:
        return average(crps_ensemble(members, actual, fair), known)

    return per_lead(mean, ensemble, truth, observed)


def crps_difference(
    ensemble: Ensemble, other: Float[Array, "o b k h w c"], truth: Truth, observed: Observed | None = None
) -> tuple[PerLead, PerLead]:
    """Fair CRPS of one ensemble minus that of another of the same windows: mean and standard error, one value a lead.

        d_b = <crps(ensemble_b) - crps(other_b)>,    mean d,    sqrt(var d / n),    b = 1 ... n windows

    < > is the mean over the observed grid points and channels of a window; windows without any do not count. Paired
    differences vary far less than scores of different windows do. The standard error takes the windows for
    independent: those that overlap, or follow each other closely, make it too small. Against draws of the exact law no
    expected difference is negative: one below -3 standard errors tells of a forecast that has seen its truth.
    """

    def score(values: Array) -> np.ndarray:
        def of_windows(members: np.ndarray, actual: np.ndarray, known: np.ndarray | None) -> np.ndarray:
            points = crps_ensemble(members, actual)
            seen = np.ones(points.shape, bool) if known is None else known
            axes = (1, 2, 3)
            with np.errstate(invalid="ignore"):
                return np.where(seen, points, 0).sum(axis=axes) / seen.sum(axis=axes)

        return per_lead(of_windows, values, truth, observed)

    difference = score(ensemble) - score(other)
    count = np.isfinite(difference).sum(axis=1)
    mean = np.nansum(difference, axis=1) / count
    deviation = np.sqrt(np.nansum((difference - mean[:, None]) ** 2, axis=1) / (count - 1))
    return mean, deviation / np.sqrt(count)


def pooled_crps(
    ensemble: Ensemble,
    truth: Truth,
    window: int,
    stride: int,
    how: Literal["avg", "max"],
    nonneg_mask: bool = False,
    observed: Observed | None = None,
) -> PerLead:
    """Fair CRPS of neighbourhoods: members and truth are pooled, then scored, then averaged; one value a lead.

    Pooling is without padding, channel by channel; a pooling window counts only if all of its points are
    observed. "CRPS w8" of DyDiff, Table 1, is window 8, stride 2.

    With `nonneg_mask` only pooling windows whose truth is nowhere negative count. A forecast window (b) where
    some lead and channel keeps no pooling window is dropped whole; each lead and channel of the others is
    averaged over its own pooling windows first, then over channels and forecast windows. The mask suits rain
    rates; on signed velocities it scores flow in one direction only. NaN at every lead if no forecast window
    is left: `nonneg_cases` tells which are.

    Raises:
      ValueError: the window does not fit on the grid, or shapes do not agree.
    """

    def places(members: np.ndarray, actual: np.ndarray) -> np.ndarray:
        return crps_ensemble(pool(members, window, stride, how), pool(actual, window, stride, how))

    def mean(members: np.ndarray, actual: np.ndarray, known: np.ndarray | None) -> np.ndarray | float:
        return average(
            places(members, actual), None if known is None else ~pool(~known, window, stride, "max")
        )

    def masked(members: np.ndarray, actual: np.ndarray, known: np.ndarray | None) -> float:
        kept = _nonneg_places(actual, known, window, stride)
        return ((places(members, actual) * kept).sum(axis=(1, 2)) / kept.sum(axis=(1, 2))).mean()

    ensemble, truth = np.asarray(ensemble), np.asarray(truth)
    if not nonneg_mask:
        return per_lead(mean, ensemble, truth, observed)
    cases = nonneg_cases(truth, window, stride, observed)
    if not cases.any():
        return np.full(truth.shape[1], np.nan)
    known = over_shape(observed, truth.shape)
    return per_lead(masked, ensemble[:, cases], truth[cases], None if known is None else known[cases])


def nonneg_cases(
    truth: Truth, window: int, stride: int, observed: Observed | None = None
) -> Bool[np.ndarray, "b"]:
    """The forecast windows that `pooled_crps` with `nonneg_mask` keeps.

    True where every lead and channel has at least one pooling window that is observed and without a negative value.
    """
    truth = np.asarray(truth)
    kept = _nonneg_places(truth, over_shape(observed, truth.shape), window, stride)
    return kept.any(axis=(2, 3)).all(axis=(1, 2))


def _nonneg_places(truth: np.ndarray, known: np.ndarray | None, window: int, stride: int) -> np.ndarray:
    """Pooled places whose points are all observed and nowhere negative."""
    lost = truth < 0 if known is None else (truth < 0) | ~known
    return ~pool(lost, window, stride, "max")
