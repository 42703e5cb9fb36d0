"""The report of a comparison, from comparison.json and the pictures drawn from it."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dydiff_jax.comparison import tables, words
from dydiff_jax.comparison.blocks import Block, Code, Heading, Items, Picture, Table, Text


def blocks(
    found: Mapping[str, Any], pictures: Mapping[str, Sequence[tuple[pathlib.Path, str]]], home: pathlib.Path
) -> list[Block]:
    """Every part of the report.

    Args:
      found: the contents of comparison.json.
      pictures: {section: files with captions} as `plots.compare_all` drew them.
      home: directory of the report.
    """

    def drawn(section: str) -> list[Block]:
        return [Picture(path, home, caption) for path, caption in pictures[section]]

    swept = [Heading("What was swept"), *drawn("sweeps")] if found["swept"] else []
    return [
        *_introduction(found),
        Heading("What came out"),
        tables.summary_table(found),
        *_verdicts(found),
        Heading("Are these runs comparable?"),
        *_comparable(found),
        *swept,
        Heading("Error over lead time"),
        *drawn("curves"),
        *tables.lead_tables(found),
        Heading("Spectra"),
        Text(
            "Power of the structures of each size at the last lead: small wavenumbers are large structures."
        ),
        *drawn("spectra"),
        Heading("Samples"),
        *drawn("samples"),
        Heading("Cost"),
        *tables.cost_table(found),
        Heading("All scores"),
        Text("Means over the leads."),
        tables.all_scores(found),
        Items([f"**{name}**: {sentence}" for name, sentence in found["definitions"].items()]),
        Heading("Commands"),
        *_commands(found),
    ]


def _introduction(found: Mapping[str, Any]) -> list[Block]:
    methods = list(dict.fromkeys(group["method"] for group in found["groups"]))
    shown = [name for name in tables.OVER_LEADS if any(name in group["scores"] for group in found["groups"])]
    meanings = [(name, words.SCORES[name][0].format(found["unit"]), words.SCORES[name][1]) for name in shown]
    return [
        Text(words.INTRODUCTION),
        Items([f"**{method}**: {words.METHODS[method]}" for method in methods]),
        Text(words.ENSEMBLE),
        Table(("every run", ""), _budget(found), words=True),
        Table(("score", "what it says", "better"), meanings, words=True),
    ]


def _budget(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the runs had in common, of the first one; what was swept or differs has a section of its own."""
    settings, groups = found["settings"], found["groups"]
    horizon = len(found["leads"])
    time = f"{horizon * found['interval']:.4g} {found['time_unit']}"
    evaluations = _joined(g["cost"]["evaluations_per_frame"] for g in groups if g["method"] != "regression")
    rows = [
        ("data", str(settings["data.name"])),
        ("fields", f"{', '.join(found['fields'])} ({found['unit']})"),
        (
            "training windows",
            f"{settings['window.num_context']} known frames, {settings['window.num_forecast']} to forecast",
        ),
        ("scored", f"{horizon} frames ({time}), {_joined(g['windows'] for g in groups)} test windows"),
        ("training", f"{settings['train.steps']} steps of {settings['train.batch_size']} windows"),
        ("parameters", _joined(g["cost"]["parameters"] for g in groups)),
        ("evaluations a frame", evaluations),
        ("members", _joined(g["members"] for g in groups if g["method"] != "regression")),
        ("seeds", _joined(seed for g in groups for seed in g["seeds"])),
    ]
    return [(name, text) for name, text in rows if text]


def _joined(values: Iterable[Any]) -> str:
    """Every value once."""
    return ", ".join(str(value) for value in dict.fromkeys(values) if value is not None)


def _verdicts(found: Mapping[str, Any]) -> list[Block]:
    """What the table says, in sentences."""
    single = all(len(group["seeds"]) == 1 for group in found["groups"])
    items = []
    for name, best in found["best"].items():
        first = f"**{name}**: {best['label']} is best"
        if best["resolved"] is None:
            items.append(f"{first}; without a spread over seeds, the difference is not resolved.")
        elif best["resolved"]:
            items.append(f"{first}, by more than the spread of seeds.")
        else:
            close = "; ".join(best["seconds"])
            items.append(
                f"{first}, but within the spread of seeds of {close}: the difference is not resolved."
            )
    for name, baseline in found["baselines"].items():
        worse = [group["label"] for group in found["groups"] if _crps(group) >= _crps(baseline)]
        if worse:
            all_of_them = len(worse) == len(found["groups"])
            items.append(
                f"Not better than {name} in crps: {'all of them' if all_of_them else '; '.join(worse)}."
            )
    rows = [f"**{name}**: {words.BASELINES[name]}" for name in found["baselines"] if name in words.BASELINES]
    return [
        Text(words.MARKS),
        Text(words.SINGLE_SEED if single else words.SEEDS),
        *([Items(items)] if items else []),
        *([Text(words.WORTH), Items(rows)] if rows else []),
    ]


def _crps(entry: Mapping[str, Any]) -> float:
    return entry["scores"]["crps"]["all"]["mean"]


def _comparable(found: Mapping[str, Any]) -> list[Block]:
    """What differs between the runs beside what was compared, and what is expected to."""
    compared = ["the method", "its own options", "the seed", *(f"`{key}`" for key in found["swept"])]
    said = f"{', '.join(compared[:-1])} and {compared[-1]}"
    listed = [str(line) for line in found["differences"]]
    verdict = [Text(words.INCOMPARABLE.format(said)), Items(listed)]
    if not listed:
        verdict = [Text(words.COMPARABLE.format(said))]
    groups = found["groups"]
    options = [
        f"{group['method']}: " + ", ".join(f"{key} {value}" for key, value in group["process"].items())
        for group in groups
        if group["process"]
    ]
    options = list(dict.fromkeys(options))
    notes = list(found["notes"])
    if any(group["method"] == "regression" for group in groups):
        notes.append(words.REGRESSION)
    if any(group["process"].get("clock") == "init_rescaled" for group in groups):
        notes.append(words.RESCALED)
    more = [Text("The methods' own options:"), Items(options)] if options else []
    return [*verdict, *([Items(notes)] if notes else []), *more]


def _commands(found: Mapping[str, Any]) -> list[Block]:
    return [
        Text("This comparison; again, it trains nothing and writes the report anew:"),
        Code([found["command"]]),
        Text("Each run by itself:"),
        Code([command for group in found["groups"] for command in group["commands"]]),
    ]
