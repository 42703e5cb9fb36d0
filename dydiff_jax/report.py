"""Scores of one forecast as plain numbers for JSON, each beside its definition, and tables of them.

A metric is a function, a sentence, a unit and the direction in which it is better; `_metrics` lists them
once, for scores, definitions and tables alike.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from dydiff_jax import metrics
from dydiff_jax.types import Array

Better = Literal["low", "high", "one", "none"]
Scores = dict[str, dict[str, Any]]

#: Entries of the scores that hold arrays and so have no mean.
ARRAYS = ("rank_histogram", "spectrum")


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """What the metrics leave open. Defaults are "CRPS w8" and "CSI w5" of DyDiff, Table 1.

    Attributes:
      pool_window: side of the pooling window of the pooled CRPS, grid points.
      pool_stride: distance of pooling windows, grid points.
      csi_threshold: an event is a value at or above it, in the units of the data.
      csi_window: side of the window over which masks of events are max-pooled, grid points; padded by half.
      csi_stride: distance of those windows, grid points.
      rank_seed: seed of the random ranks that ties get in the rank histogram.
    """

    pool_window: int = 8
    pool_stride: int = 2
    csi_threshold: float = 0.0
    csi_window: int = 5
    csi_stride: int = 2
    rank_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("pool_window", "pool_stride", "csi_window", "csi_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1 grid point, found {getattr(self, name)}")
        if not math.isfinite(self.csi_threshold):
            raise ValueError(f"csi_threshold: expected a finite value, found {self.csi_threshold}")
        if self.rank_seed < 0:
            raise ValueError(f"rank_seed: expected 0 or more, found {self.rank_seed}")


class _Metric(NamedTuple):
    """A function to [k], its sentence and unit (None: that of the data), and the members that it needs."""

    score: Callable[[Array, Array], np.ndarray]
    definition: str
    unit: str | None = None
    better: Better = "low"
    min_members: int = 1


def score(ensemble: Array, truth: Array, options: ScoreOptions | None = None, unit: str = "") -> Scores:
    """Every metric of one forecast, ready for JSON.

    Args:
      ensemble: [e, b, k, h, w, c], physical units.
      truth: [b, k, h, w, c].
      options: windows, strides and thresholds; the defaults of `ScoreOptions` if None.
      unit: of the data, named in the definitions.

    Returns:
      {metric: {"per_lead": k numbers, "mean": their mean, "better": "low" | "high" | "one" | "none",
      "members": e, "windows": b, "definition": a sentence}}. What is undefined is None: spread of a single
      member, a mask that leaves nothing, CSI without events; a mean with an undefined lead is None too. The
      masked CRPS counts in "windows" those that the mask keeps. Two entries hold arrays: "rank_histogram"
      {"counts": over all leads or None for one member} and "spectrum" {"wavenumber", "forecast", "truth"} at
      the last lead.

    Raises:
      ValueError: shapes do not agree, values are not finite, or a pooling window does not fit on the grid.
    """
    options = options or ScoreOptions()
    ensemble, truth = np.asarray(ensemble), np.asarray(truth)
    metrics.check_forecast(ensemble, truth)
    kept = int(metrics.nonneg_cases(truth, options.pool_window, options.pool_stride).sum())
    sentences = definitions(options, len(ensemble), len(truth), unit)
    scores: Scores = {}
    for name, metric in _metrics(options).items():
        values = metric.score(ensemble, truth) if len(ensemble) >= metric.min_members else None
        scores[name] = {
            "per_lead": _plain(np.full(truth.shape[1], np.nan) if values is None else values),
            "mean": None if values is None else _plain(values.mean()),
            "better": metric.better,
            "members": len(ensemble),
            "windows": kept if name.endswith("_nonneg") else len(truth),
            "definition": sentences[name],
        }
    arrays = {
        "rank_histogram": _rank_histogram(ensemble, truth, options),
        "spectrum": _spectrum(ensemble, truth),
    }
    return scores | {name: entry | {"definition": sentences[name]} for name, entry in arrays.items()}


def definitions(options: ScoreOptions, members: int, windows: int, unit: str = "") -> dict[str, str]:
    """What each entry of `score` is: estimator, pooling, mask, members, windows and unit in a sentence."""
    ensemble = f"{members} member{'s' if members > 1 else ''}, {windows} window{'s' if windows > 1 else ''}"
    sentences = {
        name: f"{metric.definition}; {ensemble}; unit: {metric.unit or unit or 'that of the data'}."
        for name, metric in _metrics(options).items()
    }
    sentences["rank_histogram"] = (
        "Number of grid points, windows, fields and leads where the truth lies above exactly r members, "
        f"r = 0 ... {members}, ties ranked at random with seed {options.rank_seed}; {ensemble}; unit: counts."
    )
    sentences["spectrum"] = (
        "Variance in rings of the wavenumber (whole cycles per shorter side of the grid) at the last lead, "
        "summed over fields, after a Hann taper of the field minus its mean; mean over members' spectra and "
        "windows; "
        f"{ensemble}; unit: square of {unit or 'that of the data'}."
    )
    return sentences


def _metrics(options: ScoreOptions) -> dict[str, _Metric]:
    """The metrics with a value per lead, in the order of the table."""
    average = "mean over windows, grid and fields"
    fair = "mean|x_i - y| - sum_ij|x_i - x_j| / (2 e (e - 1)) of e members x and truth y"
    biased = fair.replace("e (e - 1)", "e^2")
    return {
        "crps": _Metric(metrics.crps_per_lead, f"Fair CRPS, {fair}; {average}, no mask"),
        "crps_biased": _Metric(
            functools.partial(metrics.crps_per_lead, fair=False),
            f"CRPS of the empirical distribution, {biased}; {average}, no mask",
        ),
        **_pooled_metrics(options),
        "rmse": _Metric(
            metrics.rmse, f"Root of the squared error of the ensemble mean, {average} before the root"
        ),
        "mae": _Metric(metrics.mae, f"Absolute error of the ensemble mean, {average}"),
        "spread": _Metric(
            metrics.spread,
            f"Root of the variance of the members (divisor e - 1), {average} before the root",
            better="none",
            min_members=2,
        ),
        "spread_skill": _Metric(
            metrics.spread_skill_ratio, "sqrt((e + 1) / e) spread / rmse, 1 when honest", "1", "one", 2
        ),
        f"csi_w{options.csi_window}": _csi_metric(options),
        "spectrum_error": _Metric(
            metrics.spectrum_error,
            "Mean over wavenumbers of |log10(forecast / truth)| of the power spectra (as spectrum)",
            "decades",
        ),
    }


def _pooled_metrics(options: ScoreOptions) -> dict[str, _Metric]:
    """The pooled CRPS: average and maximum, without and with the mask."""
    window, stride = options.pool_window, options.pool_stride
    masks = {
        "": "mean over windows, places and fields, no mask",
        "_nonneg": "mean over places where the truth is nowhere negative, then over fields and those windows "
        "in which every lead and field keeps a place",
    }
    return {
        f"crps_w{window}_{how}{suffix}": _Metric(
            functools.partial(
                metrics.pooled_crps, window=window, stride=stride, how=how, nonneg_mask=bool(suffix)
            ),
            f"Fair CRPS (as crps) after {name} pooling of members and truth over {window} x {window} points "
            f"at stride {stride}, {mask}",
        )
        for suffix, mask in masks.items()
        for how, name in (("avg", "average"), ("max", "maximum"))
    }


def _csi_metric(options: ScoreOptions) -> _Metric:
    window, stride, padding = options.csi_window, options.csi_stride, options.csi_window // 2
    return _Metric(
        functools.partial(
            metrics.csi, threshold=options.csi_threshold, pool=window, stride=stride, padding=padding
        ),
        f"Hits / (hits + misses + false alarms), event: value >= {options.csi_threshold:g}, masks "
        f"max-pooled over {window} x {window} points at stride {stride} with {padding} points of padding, "
        "each member a forecast, counts summed over members, windows, grid and fields",
        "1",
        "high",
    )


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


def _plain(values: np.ndarray | float) -> Any:
    """Python numbers, with None for what is not finite: JSON has no NaN."""
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values), values.astype(object), None).tolist()


def write_metrics(path: pathlib.Path, header: Mapping[str, Any], scores: Mapping[str, Scores]) -> None:
    """Write header, definitions for its "method" and all scores as JSON, whole or not at all.

    Args:
      path: of metrics.json.
      header: method, step, weights, members, windows, leads, interval, time_unit, unit, fields, command.
      scores: {forecast name: what `score` returned}; one name is the header's method.
    """
    sentences = {name: entry["definition"] for name, entry in scores[header["method"]].items()}
    content = json.dumps({**header, "definitions": sentences, "scores": scores}, indent=1, allow_nan=False)
    part = path.with_name(f".{os.getpid()}-{path.name}")
    part.write_text(content + "\n")
    os.replace(part, path)


def markdown_table(results: Mapping[str, Scores], columns: Sequence[str] | None = None) -> str:
    """Mean over leads, forecasts as rows and metrics as columns; the best of a column is bold.

    Args:
      results: {forecast name: what `score` returned}, in the order of the rows.
      columns: metrics to show; all that have a mean if None.
    """
    first = next(iter(results.values()))
    columns = [name for name in first if name not in ARRAYS] if columns is None else list(columns)
    members = [str(scores[columns[0]]["members"]) for scores in results.values()]
    cells = [_best_marked([scores[name] for scores in results.values()]) for name in columns]
    rows = zip(results, members, *cells, strict=True)
    return _markdown(["forecast", "members", *columns], rows)


def markdown_leads(results: Mapping[str, Scores], metric: str, leads: Sequence[str]) -> str:
    """One metric per lead, forecasts as rows; the best of a lead is bold.

    Args:
      results: {forecast name: what `score` returned}.
      metric: its name in the scores.
      leads: headings of the columns, one a lead, such as "0.5 s".
    """
    entries = [scores[metric] for scores in results.values()]
    cells = [
        _best_marked([{"mean": entry["per_lead"][lead], "better": entry["better"]} for entry in entries])
        for lead in range(len(leads))
    ]
    return _markdown([metric, *leads], zip(results, *cells, strict=True))


def markdown_definitions(scores: Scores) -> str:
    """A list of the definitions that stand beside the scores of one forecast."""
    return "\n".join(f"- **{name}**: {entry['definition']}" for name, entry in scores.items()) + "\n"


def _best_marked(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The means of one metric as text, a dash where undefined, the best ones bold."""
    cost_of = {
        "low": lambda x: x,
        "high": lambda x: -x,
        "one": lambda x: abs(x - 1),
        "none": lambda x: math.inf,
    }
    costs = [math.inf if e["mean"] is None else cost_of[e["better"]](e["mean"]) for e in entries]
    best = min(costs)
    texts = ["-" if e["mean"] is None else f"{e['mean']:.4g}" for e in entries]
    return [
        f"**{text}**" if cost == best < math.inf else text for text, cost in zip(texts, costs, strict=True)
    ]


def _markdown(heading: Sequence[str], rows: Any) -> str:
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
