"""What runs were made with, and what differs between them beside what was to be compared."""

import json
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Keys that change neither data, weights nor scores, beyond round-off.
HARMLESS = (
    "size",
    "mesh",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_every",
    "evaluation.chunk",
    "evaluation.saved",
    "evaluation.regression",
)

#: Names of runs in a line; the most common value of a setting that more have is that of all others.
MAX_NAMED = 3

#: What is compared: expected to differ.
COMPARED = ("method", "process", "seed")

#: Entries of metrics.json that an evaluation was made with, and the sections of the config that they stand for.
EVALUATED = {"sampler": "sampler", "evaluation": "evaluation", "score_options": "scores"}


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


def of_evaluation(run: pathlib.Path, info: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of one evaluation: config.json, but what was evaluated with, and what was found in the data.

    Args:
      run: directory of the trained run.
      info: metrics.json of the evaluation.
    """
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config |= {section: info[name] for name, section in EVALUATED.items()}
    card = json.loads((run / "statistics.json").read_text(encoding="utf-8"))
    missing = config["train"]["steps"] - info["step"]
    found = {"steps not trained": missing, "leads scored": info["leads"], "statistics of the data": card}
    return flatten({**config, **found})


def differences(
    settings: Mapping[tuple[str, int], Mapping[str, Any]], swept: Collection[str]
) -> list[Difference]:
    """What differs between runs beyond method, process, seed and what was swept; a key that a run lacks is absent.

    The sampler of a regression is left out: it takes one evaluation, whatever the others take.

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
            if key.startswith("sampler.") and found["method"] == "regression":
                continue
            value = json.dumps(found[key]) if key in found else "absent"
            runs.setdefault(value, []).append(run)
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
