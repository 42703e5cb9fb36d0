"""Every metric of one forecast as plain numbers, and the file that holds them."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dydiff_jax import metrics
from dydiff_jax.evaluation.scores.catalogue import definitions, lead_metrics
from dydiff_jax.evaluation.scores.options import ScoreOptions, check_samples, shown_leads
from dydiff_jax.runs import files
from dydiff_jax.types import Array

Scores = dict[str, dict[str, Any]]

#: The spectra of a flow.
FLOW_SPECTRA = {"energy_spectrum": metrics.energy_spectrum, "enstrophy_spectrum": metrics.enstrophy_spectrum}


def score(
    ensemble: Array,
    truth: Array,
    options: ScoreOptions | None = None,
    unit: str = "",
    reference: Array | None = None,
) -> Scores:
    """Every metric of one forecast, ready for JSON.

    Args:
      ensemble: [e, b, k, h, w, c], physical units.
      truth: [b, k, h, w, c].
      options: windows, strides and thresholds; the defaults of `ScoreOptions` if None.
      unit: of the data, named in the definitions.
      reference: frames [n, h, w, c] of the training part, for the floor of the Frechet spectral distance.

    Returns:
      {metric: {"per_lead": k numbers, "mean": their mean, "better": "low" | "high" | "one" | "none",
      "members": e, "windows": b, "definition": a sentence}}. What is undefined is None: spread of a single
      member, a mask that leaves nothing, CSI without events; a mean with an undefined lead is None too. The
      masked CRPS counts in "windows" those that the mask keeps. "fsd" and "fsd_floor", where asked for, count
      there the N of a sample, hold None at leads that are not asked for, and average over those that are; "fsd"
      has the standard deviation between members at each lead in "std". Entries of `ARRAYS` hold arrays:
      "rank_histogram" {"counts": over all leads or None for one member}; "spectrum", and "energy_spectrum" and
      "enstrophy_spectrum" of a flow, {"wavenumber", "forecast", "truth"} at the last lead.

    Raises:
      ValueError: shapes do not agree, values are not finite, a pooling window does not fit on the grid, or the
        options ask for more samples, or other channels, than there are.
    """
    options = options or ScoreOptions()
    ensemble, truth = np.asarray(ensemble), np.asarray(truth)
    metrics.check_forecast(ensemble, truth)
    _check_options(options, truth, reference)
    sentences = definitions(options, len(ensemble), len(truth), unit)
    scores = _lead_scores(ensemble, truth, options)
    if options.fsd_samples is not None:
        scores |= _spectral_distances(ensemble, truth, np.asarray(reference), options)
    scores["rank_histogram"] = _rank_histogram(ensemble, truth, options)
    scores["spectrum"] = _spectrum(ensemble, truth)
    if options.flow:
        scores |= {name: _flow_spectrum(each, ensemble, truth) for name, each in FLOW_SPECTRA.items()}
    return {name: entry | {"definition": sentences[name]} for name, entry in scores.items()}


def write_metrics(path: pathlib.Path, header: Mapping[str, Any], scores: Mapping[str, Scores]) -> None:
    """Write header, definitions for its "method" and all scores as JSON, whole or not at all.

    Args:
      path: of metrics.json.
      header: method, step, weights, members, windows, leads, interval, time_unit, unit, fields, command.
      scores: {forecast name: what `score` returned}; one name is the header's method.
    """
    sentences = {name: entry["definition"] for name, entry in scores[header["method"]].items()}
    files.write_json(path, {**header, "definitions": sentences, "scores": scores})


def _check_options(options: ScoreOptions, truth: np.ndarray, reference: Array | None) -> None:
    """Refuses what would fail after the other metrics are done."""
    channels = truth.shape[-1]
    if options.flow and channels != 2:
        raise ValueError(f"flow: expected the two channels u and v, found {channels}; set it to False")
    if options.fsd_samples is None:
        return
    check_samples(options, len(truth))
    if reference is None or reference.shape[1:] != truth.shape[2:]:
        raise ValueError(
            f"reference: expected frames [n, h, w, c] of {truth.shape[2:]} for the floor of the Frechet "
            f"spectral distance, found {None if reference is None else reference.shape}"
        )
    check_samples(options, len(reference), "training")
    if options.fsd_field >= channels:
        raise ValueError(f"fsd_field: expected a channel below {channels}, found {options.fsd_field}")


def _lead_scores(ensemble: np.ndarray, truth: np.ndarray, options: ScoreOptions) -> Scores:
    """The metrics with a value at every lead."""
    kept = int(metrics.nonneg_cases(truth, options.pool_window, options.pool_stride).sum())
    scores: Scores = {}
    for name, metric in lead_metrics(options).items():
        values = metric.score(ensemble, truth) if len(ensemble) >= metric.min_members else None
        scores[name] = {
            "per_lead": _plain(np.full(truth.shape[1], np.nan) if values is None else values),
            "mean": None if values is None else _plain(values.mean()),
            "better": metric.better,
            "members": len(ensemble),
            "windows": kept if name.endswith("_nonneg") else len(truth),
        }
    return scores


def _spectral_distances(
    ensemble: np.ndarray, truth: np.ndarray, reference: np.ndarray, options: ScoreOptions
) -> Scores:
    """The Frechet spectral distance of each member in turn, and its floor, at the leads asked for."""
    samples = options.fsd_samples

    def sample(frames: np.ndarray) -> np.ndarray:
        """N frames of the field, evenly spaced: [n, h, w, c] to [N, h, w]."""
        return frames[np.arange(samples) * len(frames) // samples, ..., options.fsd_field]

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return metrics.frechet_spectral_distance(
            sample(a), sample(b), options.fsd_transform, options.fsd_norm
        )

    horizon = truth.shape[1]
    at = [lead - 1 for lead in shown_leads(options.leads, horizon)]
    members, floor = np.full((len(ensemble), horizon), np.nan), np.full(horizon, np.nan)
    for lead in at:
        members[:, lead] = [distance(member[:, lead], truth[:, lead]) for member in ensemble]
        floor[lead] = distance(reference, truth[:, lead])
    mean = members.mean(axis=0)
    std = members.std(axis=0, ddof=1) if len(ensemble) > 1 else np.full(horizon, np.nan)

    def entry(values: np.ndarray, better: str, count: int) -> dict[str, Any]:
        average = _plain(values[at].mean()) if at else None
        return {
            "per_lead": _plain(values),
            "mean": average,
            "better": better,
            "members": count,
            "windows": samples,
        }

    return {
        "fsd": entry(mean, "low", len(ensemble)) | {"std": _plain(std)},
        "fsd_floor": entry(floor, "none", 1),
    }


def _rank_histogram(ensemble: np.ndarray, truth: np.ndarray, options: ScoreOptions) -> dict[str, Any]:
    if len(ensemble) < 2:
        return {"counts": None}
    return {"counts": metrics.rank_histogram(ensemble, truth, options.rank_seed).sum(axis=0).tolist()}


def _spectrum(ensemble: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    wavenumber, spectra = metrics.lead_spectra(ensemble[:, :, -1:], truth[:, -1:])
    return {
        "wavenumber": _plain(wavenumber),
        "forecast": _plain(spectra[0, 0]),
        "truth": _plain(spectra[0, 1]),
    }


def _flow_spectrum(
    spectrum: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], ensemble: np.ndarray, truth: np.ndarray
) -> dict[str, Any]:
    """A spectrum of velocities at the last lead on the complete rings: mean over windows, and over members."""
    complete = slice(1, min(truth.shape[2:4]) // 2 + 1)
    wavenumber, observed = spectrum(truth[:, -1])
    forecast = np.mean([spectrum(member[:, -1])[1].mean(axis=0) for member in ensemble], axis=0)
    return {
        "wavenumber": _plain(wavenumber[complete]),
        "forecast": _plain(forecast[complete]),
        "truth": _plain(observed.mean(axis=0)[complete]),
    }


def _plain(values: np.ndarray | float) -> Any:
    """Python numbers, with None for what is not finite: JSON has no NaN."""
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values), values.astype(object), None).tolist()
