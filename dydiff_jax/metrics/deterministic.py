"""Squared and absolute errors: of the ensemble mean, and of single members."""

import numpy as np

from dydiff_jax.metrics.leads import Ensemble, PerLead, Truth, per_lead


def rmse(ensemble: Ensemble, truth: Truth) -> PerLead:
    """Root mean square of (ensemble mean - truth) over windows, grid and channels, one value a lead."""
    return np.sqrt(per_lead(lambda x, y: np.mean((x.mean(axis=0) - y) ** 2), ensemble, truth))


def mae(ensemble: Ensemble, truth: Truth) -> PerLead:
    """Mean of |ensemble mean - truth| over windows, grid and channels, one value a lead."""
    return per_lead(lambda x, y: np.mean(np.abs(x.mean(axis=0) - y)), ensemble, truth)


def mse(ensemble: Ensemble, truth: Truth) -> PerLead:
    """Mean of (member - truth)^2 over members, windows, grid and channels, one value a lead.

    Each member is a forecast of its own: the mean exceeds that of the ensemble mean, rmse^2, by the members'
    variance (divisor e).
    """
    return per_lead(lambda x, y: np.mean((x - y) ** 2), ensemble, truth)


def mse_sum(ensemble: Ensemble, truth: Truth, scale: float = 1.0) -> PerLead:
    """Sum over grid and channels of ((member - truth) / scale)^2, mean over members and windows, one value a lead.

    The "MSE" of Ruhe et al. 2024 on Kolmogorov flow, whose sum they do not state, has this size with scale 7.

    Raises:
      ValueError: the scale is not positive.
    """
    if not scale > 0:
        raise ValueError(f"scale: expected more than 0, found {scale}")
    values = np.prod(np.shape(truth)[2:])
    return mse(ensemble, truth) * values / scale**2
