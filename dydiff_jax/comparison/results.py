"""Evaluations of several runs as one set of numbers: mean and standard deviation over seeds, and the best method.

The standard deviation over seeds has the divisor n - 1, and is None for a single seed.
"""

import json
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dydiff_jax.comparison import schedule, settings
from dydiff_jax.systems import SYSTEMS

#: Scores of the summary, in its order: those that a table of a few columns can hold.
MAIN = ("crps", "rmse", "spread_skill", "spectrum_error", "fsd", "mse_sum")

#: Spectra that are drawn, where a results file has them; the first two replace the third.
SPECTRA = ("energy_spectrum", "enstrophy_spectrum", "spectrum")

#: Colour of a system that is not registered here.
OTHER_COLOUR = "#56B4E9"

#: Entries of metrics.json that this version reads.
NEEDED = (
    "method",
    "seed",
    "split",
    "members",
    "leads",
    "system",
    "evaluation",
    "score_options",
    "cost",
    "scores",
)

#: Entries of the cost of an evaluation that do not depend on the seed.
COUNTS = (
    "networks",
    "parameters",
    "nfe_per_frame",
    "network_frames_per_frame",
    "gflop_per_frame",
    "training_steps",
    "training_gflop",
)

#: Distance from the best possible value.
COST = {"low": lambda x: x, "high": lambda x: -x, "one": lambda x: abs(x - 1)}


@dataclass(frozen=True)
class Entry:
    """One evaluation that takes part.

    Attributes:
      label: entries of one label differ in their seed only.
      method: name of the system.
      swept: {key: value} of the sweeps that it has.
      run: directory of the trained run.
      folder: of the evaluation.
      command: the shell line that repeats it.
    """

    label: str
    method: str
    swept: Mapping[str, Any]
    run: pathlib.Path
    folder: pathlib.Path
    command: str

    def info(self) -> dict[str, Any]:
        """The contents of metrics.json."""
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))


def entry_of(run: schedule.Run, folder: pathlib.Path) -> Entry:
    """The evaluation of a run as it takes part.

    Args:
      run: of the comparison.
      folder: of the evaluation.
    """
    return Entry(run.label, run.method, run.swept, run.directory, folder, run.command)


def elsewhere(directories: Sequence[str]) -> list[Entry]:
    """The newest finished evaluation of each run outside the comparison.

    Raises:
      FileNotFoundError: one is not the directory of a run with a finished evaluation.
      ValueError: one is there twice, or its evaluation lacks an entry that is compared.
    """
    places = [pathlib.Path(directory).resolve() for directory in directories]
    for place in places:
        if places.count(place) > 1:
            raise ValueError(
                f"--also: expected every directory once, found {place} {places.count(place)} times"
            )
    return [_newest(pathlib.Path(directory)) for directory in directories]


def _newest(run: pathlib.Path) -> Entry:
    for name in ("config.json", "statistics.json"):
        if not (run / name).exists():
            raise FileNotFoundError(
                f"--also: {run / name} is not there; expected the --workdir of a trained run"
            )
    done = [path.parent for path in run.glob("eval/step_*/table.md")]
    if not done:
        raise FileNotFoundError(f"--also: {run} holds no finished evaluation; evaluate it with --mode=eval")
    folder = max(done, key=lambda path: tuple(int(part) for part in re.findall(r"\d+", path.name)))
    info = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    lacking = [name for name in NEEDED if name not in info]
    if lacking:
        raise ValueError(
            f"--also: {folder / 'metrics.json'}: expected the entries {', '.join(NEEDED)}, found none of "
            f"{', '.join(lacking)}; score the run again with --mode=eval"
        )
    if schedule.DECIDES not in info["scores"][info["method"]]:
        raise ValueError(
            f"--also: {folder / 'metrics.json'}: expected the score {schedule.DECIDES}, found "
            f"{list(info['scores'][info['method']])}; add it to config.scores.names and score the run again"
        )
    return Entry(f"{info['method']} ({run})", info["method"], {}, run, folder, info["command"])


def compare(entries: Sequence[Entry], home: pathlib.Path, command: str) -> dict[str, Any]:
    """The contents of comparison.json.

    Args:
      entries: in the order of the rows.
      home: directory of the comparison; folders are given relative to it.
      command: the shell line that repeats the comparison.

    Returns:
      "groups", one for each label, and "baselines" with their scores over seeds; "best" for each main score;
      "differences" between the runs; "definitions" of the scores; units and times.
    """
    infos = [entry.info() for entry in entries]
    labels = list(dict.fromkeys(entry.label for entry in entries))
    groups = grouped(entries, infos, home)
    made = {
        (entry.label, info["seed"]): settings.of_evaluation(entry.run, info)
        for entry, info in zip(entries, infos, strict=True)
    }
    swept = list(dict.fromkeys(key for entry in entries for key in entry.swept))
    first = infos[0]
    return {
        "command": command,
        **{name: first[name] for name in ("interval", "time_unit", "unit", "fields")},
        "leads": max((info["leads"] for info in infos), key=len),
        "table_leads": first["score_options"].get("leads"),
        "swept": swept,
        "groups": groups,
        "baselines": _baselines(first),
        "best": {name: best(groups, name) for name in MAIN if best(groups, name)},
        "differences": [str(found) for found in settings.differences(made, swept)],
        "definitions": {
            name: sentence for info in reversed(infos) for name, sentence in info["definitions"].items()
        },
        "settings": made[labels[0], first["seed"]],
    }


def grouped(
    entries: Sequence[Entry], infos: Sequence[Mapping[str, Any]], home: pathlib.Path
) -> list[dict[str, Any]]:
    """What the runs of each label scored together, in the order of the labels.

    Args:
      entries: of the comparison.
      infos: metrics.json of each.
      home: directory of the comparison.
    """
    methods = list(dict.fromkeys(entry.method for entry in entries))
    found = []
    for label in dict.fromkeys(entry.label for entry in entries):
        chosen = [i for i, entry in enumerate(entries) if entry.label == label]
        group = _group([entries[i] for i in chosen], [infos[i] for i in chosen], home)
        found.append(group | {"number": methods.index(group["method"])})
    return found


def _group(
    entries: Sequence[Entry], infos: Sequence[Mapping[str, Any]], home: pathlib.Path
) -> dict[str, Any]:
    """What the runs of one label scored together."""
    first, own = entries[0], [info["scores"][info["method"]] for info in infos]
    members, config = _members(own[0]), settings.read_config(first.run, infos[0])
    system = {k: v for k, v in config["system"].items() if k != "name" and k not in infos[0]["system"]}
    return {
        "label": first.label,
        "method": first.method,
        **_known(first.method),
        "swept": dict(first.swept),
        "options": settings.flatten(system),
        "networks": {role: _network(section) for role, section in config["networks"].items()},
        "seeds": [info["seed"] for info in infos],
        "members": members,
        "deterministic": members == 1 < infos[0]["members"],
        "windows": infos[0]["windows"],
        "leads": infos[0]["leads"],
        "folders": [pathlib.Path(os.path.relpath(entry.folder, home)).as_posix() for entry in entries],
        "commands": [entry.command for entry in entries],
        "scores": _scores(own),
        "spectra": {name: _spectrum([scores[name] for scores in own]) for name in SPECTRA if name in own[0]},
        "cost": _cost([info.get("cost", {}) for info in infos]),
    }


def _known(method: str) -> dict[str, str]:
    """What the registry says of a system; a name alone where a run comes from elsewhere."""
    if method not in SYSTEMS:
        return {"summary": "", "equation": "", "colour": OTHER_COLOUR}
    entry = SYSTEMS[method]
    return {"summary": entry.summary, "equation": entry.equation, "colour": entry.colour}


def _network(section: Mapping[str, Any]) -> str:
    return f"{section['name']} {section['size']}"


def _scores(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{score: over seeds: the mean over leads, every lead, and the last lead that has a value}."""
    found = {}
    for name in (name for name, entry in runs[0].items() if "per_lead" in entry):
        per_lead = [
            over_seeds(values) for values in zip(*(run[name]["per_lead"] for run in runs), strict=True)
        ]
        last = max((i for i, lead in enumerate(per_lead) if lead["mean"] is not None), default=None)
        found[name] = {
            "better": runs[0][name]["better"],
            "all": over_seeds([run[name]["mean"] for run in runs]),
            "per_lead": per_lead,
            "last": None if last is None else {"index": last, **per_lead[last]},
        }
    return found


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, standard deviation (divisor n - 1) and values; None where one value is, or where there is but one."""
    if any(value is None for value in values):
        return {"mean": None, "std": None, "values": list(values)}
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "values": list(values)}


def _spectrum(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean over seeds of the power of the forecasts, at the last lead, with that of the truth."""
    powers = np.array([run["forecast"] for run in runs], float)
    return {
        "wavenumber": runs[0]["wavenumber"],
        "forecast": _plain(powers.mean(axis=0)),
        "low": _plain(powers.min(axis=0)),
        "high": _plain(powers.max(axis=0)),
        "truth": runs[0]["truth"],
    }


def _plain(values: np.ndarray) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _cost(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was counted, times over seeds, and the devices they were measured on."""
    times = {}
    for name in ("training_seconds", "steps_per_second"):
        times[name] = over_seeds([run.get(name) for run in runs])
    times["sampling_seconds_per_frame"] = over_seeds(
        [run["sampling_seconds"] / run["frames"] if run.get("frames") else None for run in runs]
    )
    return {
        **{name: runs[0].get(name) for name in COUNTS},
        **times,
        "devices": sorted({run["device"] for run in runs if "device" in run}),
    }


def _baselines(info: Mapping[str, Any]) -> dict[str, Any]:
    """The forecasts that stand beside the trained one of an evaluation."""
    others = {name: scores for name, scores in info["scores"].items() if name != info["method"]}
    return {name: {"members": _members(s), "scores": _scores([s])} for name, s in others.items()}


def _members(scores: Mapping[str, Any]) -> int:
    return scores["crps"]["members"]


def summary(scores: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The one number of a score over seeds: the Frechet distance at its last lead, else the mean over leads."""
    if name not in scores:
        return None
    found = scores[name]["last" if name == "fsd" else "all"]
    return found if found and found["mean"] is not None else None


def best(groups: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any] | None:
    """Which group is best in a score, and which others lie within the spread of seeds.

    Returns:
      None where fewer than two groups have the score; else "label", "seconds" (labels that are not significantly
      different from it, as `significant` says), and "resolved": whether there are none, None where no deviation is
      known.
    """
    found = {g["label"]: summary(g["scores"], name) for g in groups}
    found = {label: entry for label, entry in found.items() if entry}
    better = next((g["scores"][name]["better"] for g in groups if name in g["scores"]), "none")
    if len(found) < 2 or better not in COST:
        return None
    cost = {label: COST[better](entry["mean"]) for label, entry in found.items()}
    first, second = sorted(cost, key=cost.get)[:2]
    differs = {
        label: significant(found[first], found[label], cost[label] - cost[first])
        for label in cost
        if label != first
    }
    seconds = [label for label, known in differs.items() if known is False]
    return {"label": first, "seconds": seconds, "resolved": None if differs[second] is None else not seconds}


def significant(one: Mapping[str, Any], other: Mapping[str, Any], difference: float) -> bool | None:
    """Whether two means over seeds differ by more than their combined std, sqrt(s_1^2 + s_2^2), s that over seeds.

    Where one of them is a single seed, the deviation of the other stands for both; None where both are.
    """
    known = [entry["std"] for entry in (one, other) if entry["std"] is not None]
    return difference > math.hypot(known[0], known[-1]) if known else None
