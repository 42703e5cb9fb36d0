"""Squared and absolute errors: of the ensemble mean, and of single members."""

import numpy as np

from dydiff_jax.metrics.leads import Ensemble, Observed, PerLead, Truth, average, per_lead


def mse_mean(ensemble: Ensemble, truth: Truth, observed: Observed | None = None) -> PerLead:
    """Mean of (ensemble mean - truth)^2 over the observed windows, grid points and channels, one value a lead.

    The "MSE" of DYffusion (Ruehling Cachay et al. 2023). It exceeds that of the mean of the law by the variance of the
    members over e, so that ensembles of one size alone compare.
    """

    def square(x: np.ndarray, y: np.ndarray, known: np.ndarray | None) -> np.ndarray | float:
        return average((x.mean(axis=0) - y) ** 2, known)

    return per_lead(square, ensemble, truth, observed)


def rmse(ensemble: Ensemble, truth: Truth, observed: Observed | None = None) -> PerLead:
    """Root of `mse_mean`, one value a lead."""
    return np.sqrt(mse_mean(ensemble, truth, observed))


def mae(ensemble: Ensemble, truth: Truth, observed: Observed | None = None) -> PerLead:
    """Mean of |ensemble mean - truth| over the observed windows, grid points and channels, one value a lead."""
    return per_lead(lambda x, y, known: average(np.abs(x.mean(axis=0) - y), known), ensemble, truth, observed)


def mse(ensemble: Ensemble, truth: Truth, observed: Observed | None = None) -> PerLead:
    """Mean of (member - truth)^2 over members and the observed windows, grid points and channels, one value a lead.

    Each member is a forecast of its own: the mean exceeds that of the ensemble mean, `mse_mean`, by the members'
    variance (divisor e).
    """
    return per_lead(lambda x, y, known: average((x - y) ** 2, known), ensemble, truth, observed)


def mse_sum(
    ensemble: Ensemble, truth: Truth, scale: float = 1.0, observed: Observed | None = None
) -> PerLead:
    """Sum over grid and channels of ((member - truth) / scale)^2, mean over members and windows, one value a lead.

    Missing points count as the mean of the observed ones: the sum is `mse` times the number of values of a frame.

    The "MSE" of Ruhe et al. 2024 on Kolmogorov flow, whose sum they do not state, has this size with scale 7.

    Raises:
      ValueError: the scale is not positive.
    """
    if not scale > 0:
        raise ValueError(f"scale: expected more than 0, found {scale}")
    values = np.prod(np.shape(truth)[2:])
    return mse(ensemble, truth, observed) * values / scale**2
