"""Scores per lead: one lead at a time in float64, so that memory stays within a few copies of that one
lead."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Num

from dydiff_jax.types import Array

Ensemble = Float[Array, "e b k h w c"]
Truth = Float[Array, "b k h w c"]
Observed = Bool[Array, "#b #k #h #w #c"]
PerLead = Float[np.ndarray, "k"]

#: Members [e, b, h, w, c] and truth [b, h, w, c] of a lead, and which of its points are observed; None: all.
LeadScore = Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray | float]


class Diverged(ValueError):
    """A forecast holds NaN or infinite values, and so has no score."""


def check_forecast(ensemble: np.ndarray, truth: np.ndarray) -> None:
    """Raise ValueError unless the shapes are [e, b, k, h, w, c] and [b, k, h, w, c] with nothing empty."""
    if ensemble.ndim != 6 or ensemble.shape[1:] != truth.shape or 0 in ensemble.shape:
        raise ValueError(
            "expected an ensemble [e, b, k, h, w, c] and a truth [b, k, h, w, c] of the same windows, "
            f"found shapes {ensemble.shape} and {truth.shape}"
        )


def over_shape(observed: Array | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """Mask of observed points, bool, broadcast to a shape; None where nothing is missing.

    Raises:
      ValueError: the mask is not bool or does not broadcast to the shape.
    """
    if observed is None:
        return None
    observed = np.asarray(observed)
    try:
        over = np.broadcast_to(observed, shape)
    except ValueError:
        over = None
    if over is None or observed.dtype != bool:
        raise ValueError(
            f"observed: expected bool that broadcasts to {shape}, found {observed.dtype} of shape {observed.shape}"
        )
    return None if observed.all() else over


def average(values: np.ndarray, observed: np.ndarray | None) -> np.ndarray | float:
    """Mean of the values [..., *s] over the observed points [*s] and all leading axes; NaN where there are none."""
    if observed is None:
        return values.mean()
    return values[..., observed].mean() if observed.any() else np.nan


def per_lead(
    score: LeadScore, ensemble: Array, truth: Array, observed: Array | None = None
) -> Num[np.ndarray, "k ..."]:
    """Stack the score of every lead along a first axis k; where the truth is missing the score sees 0.

    Raises:
      ValueError: shapes do not agree, or an observed value of the truth is NaN or infinite.
      Diverged: a value of the ensemble is.
    """
    ensemble, truth = np.asarray(ensemble), np.asarray(truth)
    check_forecast(ensemble, truth)
    observed = over_shape(observed, truth.shape)
    leads = range(truth.shape[1])
    return np.stack([np.asarray(score(*_lead_values(ensemble, truth, observed, lead))) for lead in leads])


def _lead_values(
    ensemble: np.ndarray, truth: np.ndarray, observed: np.ndarray | None, lead: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """One lead of all arrays, values in float64, refused if one that counts is not finite."""
    members, actual = ensemble[:, :, lead].astype(np.float64), truth[:, lead].astype(np.float64)
    known = None if observed is None or observed[:, lead].all() else observed[:, lead]
    actual = actual if known is None else np.where(known, actual, 0.0)
    for name, values in (("ensemble", members), ("truth", actual)):
        bad = values.size - np.count_nonzero(np.isfinite(values))
        if bad:
            error = Diverged if name == "ensemble" else ValueError
            raise error(
                f"expected finite values, found {bad} of {values.size} NaN or infinite in the {name} at "
                f"frame {lead + 1} of the forecast; a forecast that diverged has no score"
            )
    return members, actual, known
