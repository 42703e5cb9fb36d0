"""Errors of the ensemble mean, in the units of the data."""

import numpy as np

from dydiff_jax.metrics.leads import Ensemble, PerLead, Truth, per_lead


def rmse(ensemble: Ensemble, truth: Truth) -> PerLead:
    """Root mean square of (ensemble mean - truth) over windows, grid and channels, one value a lead."""
    return np.sqrt(per_lead(lambda x, y: np.mean((x.mean(axis=0) - y) ** 2), ensemble, truth))


def mae(ensemble: Ensemble, truth: Truth) -> PerLead:
    """Mean of |ensemble mean - truth| over windows, grid and channels, one value a lead."""
    return per_lead(lambda x, y: np.mean(np.abs(x.mean(axis=0) - y)), ensemble, truth)
