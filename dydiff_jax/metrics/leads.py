"""Scores per lead: one lead at a time in float64, so that memory stays within a few copies of that one
lead."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Num

from dydiff_jax.types import Array

Ensemble = Float[Array, "e b k h w c"]
Truth = Float[Array, "b k h w c"]
PerLead = Float[np.ndarray, "k"]

LeadScore = Callable[[np.ndarray, np.ndarray], np.ndarray | float]


class Diverged(ValueError):
    """A forecast holds NaN or infinite values, and so has no score."""


def check_forecast(ensemble: np.ndarray, truth: np.ndarray) -> None:
    """Raise ValueError unless the shapes are [e, b, k, h, w, c] and [b, k, h, w, c] with nothing empty."""
    if ensemble.ndim != 6 or ensemble.shape[1:] != truth.shape or 0 in ensemble.shape:
        raise ValueError(
            "expected an ensemble [e, b, k, h, w, c] and a truth [b, k, h, w, c] of the same windows, "
            f"found shapes {ensemble.shape} and {truth.shape}"
        )


def per_lead(score: LeadScore, ensemble: Array, truth: Array) -> Num[np.ndarray, "k ..."]:
    """Stack score(ensemble [e, b, h, w, c], truth [b, h, w, c]) of every lead along a first axis k.

    Raises:
      ValueError: shapes do not agree, or a lead of the truth holds a NaN or an infinity.
      Diverged: a lead of the ensemble does.
    """
    ensemble, truth = np.asarray(ensemble), np.asarray(truth)
    check_forecast(ensemble, truth)
    leads = range(truth.shape[1])
    return np.stack([np.asarray(score(*_lead_values(ensemble, truth, lead))) for lead in leads])


def _lead_values(ensemble: np.ndarray, truth: np.ndarray, lead: int) -> tuple[np.ndarray, np.ndarray]:
    """One lead of both arrays in float64, refused if it holds a value that is not finite."""
    members, observed = ensemble[:, :, lead].astype(np.float64), truth[:, lead].astype(np.float64)
    for name, values in (("ensemble", members), ("truth", observed)):
        bad = values.size - np.count_nonzero(np.isfinite(values))
        if bad:
            error = Diverged if name == "ensemble" else ValueError
            raise error(
                f"expected finite values, found {bad} of {values.size} NaN or infinite in the {name} at "
                f"frame {lead + 1} of the forecast; a forecast that diverged has no score"
            )
    return members, observed
