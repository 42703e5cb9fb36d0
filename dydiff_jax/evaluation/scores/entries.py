"""From one forecast to the numbers of each score, as plain numbers for JSON."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dydiff_jax import metrics
from dydiff_jax.evaluation.scores.options import ScoreOptions, shown_leads

#: Numbers of a score: {"per_lead", "mean", "members", "windows", "std" if any}, or its arrays.
Numbers = dict[str, Any]

Make = Callable[["Case"], Numbers]


class Case(NamedTuple):
    """One forecast to be scored.

    Attributes:
      ensemble: [e, b, k, h, w, c], physical units.
      truth: [b, k, h, w, c]; 0 where it is missing.
      observed: bool [b, k, h, w, c], or None where nothing is missing.
      options: what the metrics leave open.
      reference: frames [n, h, w, c] of the training split, for the floor of the Frechet spectral distance.
    """

    ensemble: np.ndarray
    truth: np.ndarray
    observed: np.ndarray | None
    options: ScoreOptions
    reference: np.ndarray | None

    @property
    def horizon(self) -> int:
        """k."""
        return self.truth.shape[1]


def undefined(case: Case) -> Numbers:
    """The numbers of a score that this ensemble does not have."""
    return {**_numbers(case, np.full(case.horizon, np.nan)), "mean": None}


def over_leads(
    metric: Callable[..., np.ndarray],
    arguments: Callable[[ScoreOptions], Mapping[str, Any]] = lambda options: {},
) -> Make:
    """metric(ensemble, truth, observed=..., and what the options say) to [k], and its mean."""

    def make(case: Case) -> Numbers:
        values = metric(case.ensemble, case.truth, observed=case.observed, **arguments(case.options))
        return _numbers(case, values)

    return make


def pooled_crps(how: str, nonneg: bool = False) -> Make:
    """The pooled CRPS; with the mask "windows" counts those that it keeps."""

    def arguments(options: ScoreOptions) -> dict[str, Any]:
        return {
            "window": options.pool_window,
            "stride": options.pool_stride,
            "how": how,
            "nonneg_mask": nonneg,
        }

    score = over_leads(metrics.pooled_crps, arguments)

    def masked(case: Case) -> Numbers:
        options = case.options
        kept = metrics.nonneg_cases(case.truth, options.pool_window, options.pool_stride, case.observed)
        return score(case) | {"windows": int(kept.sum())}

    return masked if nonneg else score


def spectral_distance(case: Case) -> Numbers:
    """The Frechet spectral distance of each member in turn: their mean and, in "std", their deviation."""

    def of(x: np.ndarray) -> np.ndarray:
        return _distances(case, lambda lead, whole: x[whole, lead])

    members = np.stack([of(x) for x in case.ensemble])
    lone = len(members) == 1
    std = np.full(case.horizon, np.nan) if lone else members.std(axis=0, ddof=1)
    return _at_leads(case, members.mean(axis=0), len(members)) | {"std": plain(std)}


def spectral_floor(case: Case) -> Numbers:
    """The Frechet spectral distance of truth and training frames at the leads asked for."""
    reference = case.reference
    assert reference is not None  # `score` has checked it
    return _at_leads(case, _distances(case, lambda lead, whole: reference), 1)


def _distances(case: Case, frames: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
    """Distance [k] of frames(lead, windows) and the truth, N of each.

    NaN at leads not asked for, and at those with fewer than N windows whose field is wholly observed.
    """
    options, distances = case.options, np.full(case.horizon, np.nan)
    samples = options.fsd_samples
    assert samples is not None  # the score is made where it is set

    def sample(x: np.ndarray) -> np.ndarray:
        """N frames of the field, evenly spaced: [n, h, w, c] to [N, h, w]."""
        return x[..., options.fsd_field][np.arange(samples) * len(x) // samples]

    for lead in shown_leads(options.leads, case.horizon):
        whole = _whole(case, lead - 1, slice(options.fsd_field, options.fsd_field + 1))
        if whole.sum() >= samples:
            pair = sample(frames(lead - 1, whole)), sample(case.truth[whole, lead - 1])
            distances[lead - 1] = metrics.frechet_spectral_distance(
                *pair, options.fsd_transform, options.fsd_norm
            )
    return distances


def _whole(case: Case, lead: int, fields: slice = slice(None)) -> np.ndarray:
    """Which windows [b] are wholly observed at a lead in these fields."""
    if case.observed is None:
        return np.ones(len(case.truth), bool)
    return np.asarray(case.observed[:, lead, ..., fields].all(axis=(1, 2, 3)))


def _at_leads(case: Case, values: np.ndarray, members: int) -> Numbers:
    """Numbers that average over the leads asked for alone; "windows" counts the N of a sample."""
    at = [lead - 1 for lead in shown_leads(case.options.leads, case.horizon)]
    return {
        "per_lead": plain(values),
        "mean": plain(values[at].mean()) if at else None,
        "members": members,
        "windows": case.options.fsd_samples,
    }


def rank_histogram(case: Case) -> Numbers:
    """{"counts": over all leads, or None for one member}."""
    if len(case.ensemble) < 2:
        return {"counts": None}
    counts = metrics.rank_histogram(case.ensemble, case.truth, case.options.rank_seed, case.observed)
    return {"counts": counts.sum(axis=0).tolist()}


def spectrum(case: Case) -> Numbers:
    """{"wavenumber", "forecast", "truth"} at the last lead."""
    observed = None if case.observed is None else case.observed[:, -1:]
    wavenumber, spectra = metrics.lead_spectra(case.ensemble[:, :, -1:], case.truth[:, -1:], observed)
    return {"wavenumber": plain(wavenumber), "forecast": plain(spectra[0, 0]), "truth": plain(spectra[0, 1])}


def flow_spectrum(spectrum: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Make:
    """A spectrum of velocities at the last lead on the complete rings: mean over windows, and over members."""

    def make(case: Case) -> Numbers:
        complete, whole = slice(1, min(case.truth.shape[2:4]) // 2 + 1), _whole(case, -1)
        if not whole.any():
            nothing = [None] * (complete.stop - 1)
            rings = np.arange(1, complete.stop)
            return {"wavenumber": plain(rings), "forecast": nothing, "truth": nothing}
        wavenumber, actual = spectrum(case.truth[whole, -1])
        forecast = np.mean([spectrum(x[whole, -1])[1].mean(axis=0) for x in case.ensemble], axis=0)
        return {
            "wavenumber": plain(wavenumber[complete]),
            "forecast": plain(forecast[complete]),
            "truth": plain(actual.mean(axis=0)[complete]),
        }

    return make


def _numbers(case: Case, values: np.ndarray) -> Numbers:
    """Numbers of a value at every lead."""
    return {
        "per_lead": plain(values),
        "mean": plain(values.mean()),
        "members": len(case.ensemble),
        "windows": len(case.truth),
    }


def plain(values: np.ndarray | float) -> Any:
    """Python numbers, with None for what is not finite: JSON has no NaN."""
    numbers = np.asarray(values, np.float64).astype(object)
    numbers[~np.isfinite(numbers.astype(np.float64))] = None
    return numbers.tolist()
