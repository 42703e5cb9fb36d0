"""The choice among swept points: for each method the one with the lowest CRPS on the validation split."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dydiff_jax.comparison import results
from dydiff_jax.comparison.schedule import DECIDES

#: Entries of a group that comparison.json keeps of a swept point.
KEPT = ("label", "method", "number", "colour", "swept", "seeds", "members", "windows", "folders", "scores")


def select(points: Sequence[results.Entry], home: pathlib.Path) -> dict[str, Any]:
    """What comparison.json holds of a sweep.

    Args:
      points: evaluations of the validation split, of every point and seed.
      home: directory of the comparison; folders are given relative to it.

    Returns:
      "groups", one for each point, with its scores over seeds, averaged over "leads", those that all points have, and
      "chosen": whether it has the lowest mean CRPS of its method; "shortened": whether some points have more leads.
      A point with fewer seeds than others of its method, because a run diverged, is not chosen.
    """
    infos = [point.info() for point in points]
    leads = min((info["leads"] for info in infos), key=len)
    shortened = any(len(info["leads"]) > len(leads) for info in infos)
    if shortened:
        infos = [_first_leads(info, len(leads)) for info in infos]
    groups = results.grouped(points, infos, home)
    chosen = {_best([group for group in groups if group["method"] == m]) for m in _methods(groups)}
    return {
        "groups": [
            {**{name: group[name] for name in KEPT}, "chosen": group["label"] in chosen} for group in groups
        ],
        "swept": list(dict.fromkeys(key for point in points for key in point.swept)),
        "leads": leads,
        "shortened": shortened,
    }


def chosen(validation: Mapping[str, Any]) -> list[str]:
    """Labels of the chosen points of `select`."""
    return [group["label"] for group in validation["groups"] if group["chosen"]]


def _methods(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(group["method"] for group in groups))


def _best(groups: Sequence[Mapping[str, Any]]) -> str | None:
    """The label with the lowest mean over seeds, among those with the most seeds; the first of equals."""
    most = max(len(group["seeds"]) for group in groups)
    means = {
        group["label"]: group["scores"][DECIDES]["all"]["mean"]
        for group in groups
        if len(group["seeds"]) == most and group["scores"][DECIDES]["all"]["mean"] is not None
    }
    return min(means, key=means.get, default=None)


def _first_leads(info: Mapping[str, Any], leads: int) -> dict[str, Any]:
    """metrics.json as if the horizon were shorter: scores over leads, and their means, of the first leads alone."""
    scores = {}
    for name, entry in info["scores"][info["method"]].items():
        if "per_lead" in entry:
            values = entry["per_lead"][:leads]
            known = [value for value in values if value is not None]
            mean = sum(known) / len(known) if known and entry["mean"] is not None else None
            scores[name] = {**entry, "per_lead": values, "mean": mean}
    return {**info, "leads": info["leads"][:leads], "scores": {info["method"]: scores}}
