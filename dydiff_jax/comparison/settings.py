"""Settings of each run, and unintended differences between runs."""

import json
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Keys that change neither data, weights nor scores, beyond round-off.
HARMLESS = (
    "mesh",
    "loader",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_every",
    "train.keep_best",
    "train.validate_every",
    "train.stuck_after",
    "evaluation.chunk",
    "evaluation.saved",
    "evaluation.figures",
    "evaluation.beside",
    "evaluation.valid_windows",
    "evaluation.valid_members",
)

#: Names of runs in a line; the most common value of a setting that more have is that of all others.
MAX_NAMED = 3

#: What is compared: expected to differ.
COMPARED = ("system.name", "system.process", "seed")

#: Sections whose keys exist for the systems that take them: runs without a key are not compared in it.
OWN = ("system", "networks")

#: Entries of metrics.json that an evaluation was made with, and the sections of the config that they stand for.
EVALUATED = {"system": "system", "evaluation": "evaluation", "score_options": "scores"}


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all runs.

    Attributes:
      key: its name, SECTION.KEY of the config.
      runs: {value as JSON: labels of the runs that have it}.
    """

    key: str
    runs: Mapping[str, Sequence[str]]

    def __str__(self) -> str:
        order = sorted(self.runs, key=lambda value: len(self.runs[value]))
        named = {value: " / ".join(self.runs[value]) for value in order}
        if len(self.runs[order[-1]]) > MAX_NAMED:
            named[order[-1]] = "all others"
        return f"`{self.key}`: " + "; ".join(f"`{value}` in {names}" for value, names in named.items())


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"section.key": value} of nested dictionaries."""
    found = {}
    for key, value in section.items():
        found |= (
            flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        )
    return found


def read_config(run: pathlib.Path, info: Mapping[str, Any]) -> dict[str, Any]:
    """The config of one evaluation: config.json of the run, with the options that the evaluation was made with.

    Args:
      run: directory of the trained run.
      info: metrics.json of the evaluation; its "system" holds the sub-sections that are free at evaluation.
    """
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    for name, section in EVALUATED.items():
        config[section] = {**config[section], **info[name]}
    return config


def of_evaluation(run: pathlib.Path, info: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of one evaluation: its config, and what was found in the data.

    Args:
      run: directory of the trained run.
      info: metrics.json of the evaluation.
    """
    config = read_config(run, info)
    card = json.loads((run / "statistics.json").read_text(encoding="utf-8"))
    found = {
        "steps not trained": _steps_missing(config, info),
        "leads scored": info["leads"],
        "statistics of the data": card,
    }
    return flatten({**config, **found})


def _steps_missing(config: Mapping[str, Any], info: Mapping[str, Any]) -> int:
    """Steps that the last training stage lacks; a stage may have a length of its own."""
    stages = config.get("stages", {}).values()
    lengths = [config["train"]["steps"], *(stage.get("train", {}).get("steps") for stage in stages)]
    return 0 if info["step"] in lengths else config["train"]["steps"] - info["step"]


def differences(
    settings: Mapping[tuple[str, int], Mapping[str, Any]], swept: Collection[str]
) -> list[Difference]:
    """What differs between runs beyond system, process, seed and what was swept.

    A key that a run lacks is absent there, but for a key of a system or network: a run whose system does not take
    it is left out.

    Args:
      settings: {(label, seed) of the run: what `of_evaluation` returned}.
      swept: keys that were to differ.
    """
    keys = sorted({key for found in settings.values() for key in found})
    expected = (*HARMLESS, *COMPARED, *swept)
    listed = []
    for key in keys:
        if _within(key, expected):
            continue
        runs: dict[str, list[tuple[str, int]]] = {}
        for run, found in settings.items():
            if key in found:
                runs.setdefault(json.dumps(found[key]), []).append(run)
            elif not _within(key, OWN):
                runs.setdefault("absent", []).append(run)
        if len(runs) > 1:
            listed.append(Difference(key, {value: _names(some, settings) for value, some in runs.items()}))
    return listed


def _names(runs: Collection[tuple[str, int]], among: Collection[tuple[str, int]]) -> list[str]:
    """Labels of runs, with their seeds where not all seeds of a label are there."""
    names = []
    for label in dict.fromkeys(label for label, _ in runs):
        seeds = [str(seed) for other, seed in runs if other == label]
        whole = len(seeds) == sum(other == label for other, _ in among)
        names.append(label if whole else f"{label} seed {' '.join(seeds)}")
    return names


def _within(key: str, sections: Iterable[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)
