"""The scores of one forecast as plain numbers, and the file that holds them."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dydiff_jax import metrics
from dydiff_jax.evaluation.scores import entries
from dydiff_jax.evaluation.scores.options import ScoreOptions, check_samples
from dydiff_jax.evaluation.scores.table import SCORES, Score
from dydiff_jax.metrics.leads import over_shape
from dydiff_jax.runs import files
from dydiff_jax.types import Array

Scores = dict[str, dict[str, Any]]


def named(options: ScoreOptions) -> dict[str, Score]:
    """`SCORES` by the names that they have with these options: "crps_w8_avg" for a pooling window of 8."""
    values = dataclasses.asdict(options)
    return {name.format(**values): score for name, score in SCORES.items()}


def chosen(
    options: ScoreOptions, kind: str, frame: tuple[int, ...], members: int | None = None
) -> dict[str, Score]:
    """The scores that an evaluation makes, in the order of the table.

    Without a list of names, scores of the kind of the data are left out where they have no meaning; those that were
    listed or that an option asks for are refused.

    Args:
      options: of the scores.
      kind: of the data: "field", "video" or "series".
      frame: (h, w, c).
      members: of the ensembles; None: not checked.

    Raises:
      ValueError: a listed score is unknown; or one that was asked for has no meaning for these data, with the reason.
    """
    known, names = named(options), options.names
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"names: expected scores among {list(known)}, found {unknown}")

    def wanted(name: str, score: Score) -> bool:
        if names is not None:
            return name in names
        return score.asked(options) if score.asked else kind in score.kinds

    skipped = left_out(options, kind, frame)
    found = {name: score for name, score in known.items() if wanted(name, score) and name not in skipped}
    for name, score in found.items():
        reason = score.refuse(options, frame)
        if names is not None and not reason and members is not None and members < score.min_members:
            reason = f"members: expected {score.min_members} or more, found {members}"
        if reason:
            raise ValueError(reason if names is None else f"names: no {name} for these data: {reason}")
    return found


def left_out(options: ScoreOptions, kind: str, frame: tuple[int, ...]) -> dict[str, str]:
    """Scores of the kind of the data that have no meaning for them, each with the reason; none if names are listed."""
    if options.names is not None:
        return {}
    scores = {
        name: score for name, score in named(options).items() if not score.asked and kind in score.kinds
    }
    reasons = {name: score.refuse(options, frame) for name, score in scores.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def definitions(
    scores: Mapping[str, Score],
    options: ScoreOptions,
    members: int,
    windows: int,
    unit: str = "",
    incomplete: bool = False,
) -> dict[str, str]:
    """What each of these scores is: estimator, pooling, mask, members, windows and unit in a sentence.

    Args:
      scores: what `chosen` returned.
      options: of the scores.
      members: e.
      windows: b.
      unit: of the data.
      incomplete: whether points of the truth are missing; then the sentences say what counts.
    """
    leads = "every lead" if options.leads is None else f"leads {', '.join(map(str, options.leads))}"
    words = dataclasses.asdict(options) | {
        "unit": unit or "that of the data",
        "members": members,
        "csi_padding": options.csi_window // 2,
        "lead_words": leads,
    }
    ensemble = f"; {members} member{'s' if members > 1 else ''}, {windows} window{'s' if windows > 1 else ''}"
    return {
        name: score.definition.format(**words)
        + (f"; only {score.counted}" if incomplete else "")
        + (ensemble if score.min_members else "")
        + f"; unit: {score.unit.format(**words)}."
        for name, score in scores.items()
    }


def score(
    ensemble: Array,
    truth: Array,
    options: ScoreOptions | None = None,
    unit: str = "",
    reference: Array | None = None,
    observed: Array | None = None,
    kind: str = "field",
) -> Scores:
    """The scores of one forecast, ready for JSON.

    Args:
      ensemble: [e, b, k, h, w, c], physical units.
      truth: [b, k, h, w, c].
      options: which scores; windows, strides and thresholds; the defaults of `ScoreOptions` if None.
      unit: of the data, named in the definitions.
      reference: frames [n, h, w, c] of the training split, nothing missing, for the floor of the Frechet spectral
        distance.
      observed: bool, broadcastable to the truth; None: nothing is missing. A missing point carries no score, and what
        the truth holds there, NaN included, changes none. What each score counts is in `Score.counted`.
      kind: of the data, which decides which scores are made: "field", "video" or "series".

    Returns:
      {score: {"per_lead": k numbers, "mean": their mean, "better": "low" | "high" | "one" | "none",
      "members": e, "windows": b, "definition": a sentence}}. What is undefined is None: spread of a single
      member, a mask that leaves nothing, CSI without events; a mean with an undefined lead is None too. The
      masked CRPS counts in "windows" those that the mask keeps. "fsd" and "fsd_floor", where asked for, count
      there the N of a sample, hold None at leads that are not asked for, and average over those that are; "fsd"
      has the standard deviation between members at each lead in "std". Entries of `ARRAYS` hold arrays:
      "rank_histogram" {"counts": over all leads or None for one member}; "spectrum", and "energy_spectrum" and
      "enstrophy_spectrum" of a flow, {"wavenumber", "forecast", "truth"} at the last lead.

    Raises:
      ValueError: shapes do not agree, values are not finite, or a score that was asked for has no meaning for these
        data, is unknown, or needs more samples than there are.
    """
    options = options or ScoreOptions()
    ensemble, truth = np.asarray(ensemble), np.asarray(truth)
    metrics.check_forecast(ensemble, truth)
    _check_reference(options, truth, reference)
    scores = chosen(options, kind, truth.shape[2:])
    known = over_shape(observed, truth.shape)
    truth = truth if known is None else np.where(known, truth, np.zeros((), truth.dtype))
    case = entries.Case(ensemble, truth, known, options, None if reference is None else np.asarray(reference))
    sentences = definitions(scores, options, len(ensemble), len(truth), unit, known is not None)
    return {name: _entry(each, case) | {"definition": sentences[name]} for name, each in scores.items()}


def _entry(score: Score, case: entries.Case) -> dict[str, Any]:
    """The numbers of a score with its direction."""
    if not score.over_leads:
        return score.make(case)
    numbers = score.make(case) if len(case.ensemble) >= score.min_members else entries.undefined(case)
    return {"per_lead": numbers["per_lead"], "mean": numbers["mean"], "better": score.better} | numbers


def write_metrics(path: pathlib.Path, header: Mapping[str, Any], scores: Mapping[str, Scores]) -> None:
    """Write header, definitions for its "method" and all scores as JSON, atomically.

    Args:
      path: of metrics.json.
      header: method, step, weights, members, windows, leads, interval, time_unit, unit, fields, kind, command.
      scores: {forecast name: what `score` returned}; one name is the header's method.
    """
    sentences = {name: entry["definition"] for name, entry in scores[header["method"]].items()}
    files.write_json(path, {**header, "definitions": sentences, "scores": scores})


def _check_reference(options: ScoreOptions, truth: np.ndarray, reference: Array | None) -> None:
    """Validate the samples of a distance up front, so that a late score cannot fail after the slow ones."""
    if not options.spectral_distance:
        return
    check_samples(options, len(truth))
    if reference is None or reference.shape[1:] != truth.shape[2:]:
        raise ValueError(
            f"reference: expected frames [n, h, w, c] of {truth.shape[2:]} for the floor of the Frechet "
            f"spectral distance, found {None if reference is None else reference.shape}"
        )
    check_samples(options, len(reference), "training")
