"""The report of a comparison, from comparison.json and the figures drawn from it."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dydiff_jax.comparison import tables, words
from dydiff_jax.comparison.blocks import Block, Code, Figure, Heading, Items, Table, Text
from dydiff_jax.evaluation.baselines import BASELINES
from dydiff_jax.evaluation.scores import SCORES

#: Keys that change the truth of an evaluation.
SCORED_ON = ("data.", "dataset.", "window.", "evaluation.windows", "evaluation.horizon")

#: {section: files with captions}, as `plots.compare_all` drew them.
Figures = Mapping[str, Sequence[tuple[pathlib.Path, str]]]


def blocks(found: Mapping[str, Any], figures: Figures, home: pathlib.Path) -> list[Block]:
    """The elements of the report, in order.

    Args:
      found: the contents of comparison.json.
      figures: of each section.
      home: directory of the report.
    """

    def drawn(section: str) -> list[Block]:
        return [Figure(path, home, caption) for path, caption in figures[section]]

    spectra = "Power at each wavenumber at the last lead: small wavenumbers are large structures."
    return [
        *_introduction(found),
        Heading("Results"),
        tables.summary_table(found),
        *_verdicts(found),
        Heading("Are these runs comparable?"),
        *_comparable(found),
        *([Heading("What was swept"), *_swept(found), *drawn("sweeps")] if found["validation"] else []),
        Heading("Error over lead time"),
        *drawn("curves"),
        *tables.lead_tables(found),
        *([Heading("Spectra"), Text(spectra), *drawn("spectra")] if figures["spectra"] else []),
        *([Heading("Samples"), *drawn("samples")] if figures["samples"] else []),
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
    methods = list(dict.fromkeys(_method(group) for group in found["groups"]))
    shown = [name for name in tables.OVER_LEADS if any(name in group["scores"] for group in found["groups"])]
    meanings = [
        (name, SCORES[name].plain.format(unit=found["unit"]), words.BETTER[SCORES[name].better])
        for name in shown
    ]
    return [
        Text(words.INTRODUCTION),
        Items(methods),
        Text(words.ENSEMBLE),
        Table(("every run", ""), _budget(found), words=True),
        Table(("score", "what it says", "better"), meanings, words=True),
    ]


def _method(group: Mapping[str, Any]) -> str:
    """What a method does, and its equation, as far as they are known."""
    equation = [f"`{group['equation']}`"] if group["equation"] else []
    said = " ".join([*([group["summary"]] if group["summary"] else []), *equation])
    return f"**{group['method']}**{': ' if said else ''}{said}"


def _budget(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the runs had in common, of the first one; what was swept or differs is in a section of its own."""
    settings, groups = found["settings"], found["groups"]
    horizon = len(found["leads"])
    time = f"{horizon * found['interval']:.4g} {found['time_unit']}"
    drawn = [group for group in groups if not group["deterministic"]] or groups
    steps, batch = (f"train.{name}" for name in ("steps", "batch_size"))
    swept = {steps, batch} & set(found["swept"])
    training = None if swept else f"{settings[steps]} steps of {settings[batch]} windows"
    rows = [
        ("data", str(settings["data.name"])),
        ("fields", f"{', '.join(found['fields'])} ({found['unit']})"),
        (
            "training windows",
            f"{settings['window.num_context']} known frames, {settings['window.num_forecast']} to forecast",
        ),
        ("scored", f"{horizon} frames ({time}), {_joined(g['windows'] for g in groups)} test windows"),
        ("training", training),
        ("parameters", _joined(g["cost"]["parameters"] for g in groups)),
        ("NFE a frame", _joined(_count(g, "nfe_per_frame") for g in drawn)),
        ("network frames a frame", _joined(_count(g, "network_frames_per_frame") for g in groups)),
        ("members", _joined(g["members"] for g in drawn)),
        ("seeds", _joined(seed for g in groups for seed in g["seeds"])),
    ]
    return [(name, text) for name, text in rows if text]


def _count(group: Mapping[str, Any], name: str) -> str | None:
    """A number of the costs of a group, where it is known."""
    found = group["cost"][name]
    return None if found is None else f"{found:.4g}"


def _joined(values: Iterable[Any]) -> str:
    """Every value once."""
    return ", ".join(str(value) for value in dict.fromkeys(values) if value is not None)


def _verdicts(found: Mapping[str, Any]) -> list[Block]:
    """What the table says, in sentences."""
    single = all(len(group["seeds"]) == 1 for group in found["groups"])
    items = []
    for name, best in found["best"].items():
        first = words.BEST.format(name, best["label"])
        if best["resolved"] is None:
            items.append(words.UNKNOWN.format(first))
        elif best["resolved"]:
            items.append(words.SIGNIFICANT.format(first))
        else:
            items.append(words.NOT_SIGNIFICANT.format(first, "; ".join(best["seconds"])))
    bounds = {name for name in found["baselines"] if name in BASELINES and BASELINES[name].bound}
    for name, baseline in found["baselines"].items():
        if name in bounds:
            above = (f"{group['label']} by {_excess(group, baseline):.1f} %" for group in found["groups"])
            items.append(words.BOUND.format(name, "; ".join(above)))
            continue
        worse = [group["label"] for group in found["groups"] if _crps(group) >= _crps(baseline)]
        if worse:
            all_of_them = len(worse) == len(found["groups"])
            items.append(
                f"Not better than {name} in crps: {'all of them' if all_of_them else '; '.join(worse)}."
            )
    rows = [f"**{name}**: {BASELINES[name].plain}" for name in found["baselines"] if name in BASELINES]
    return [
        Text(words.MARKS),
        Text(words.SINGLE_SEED if single else words.SEEDS),
        *([Items(items)] if items else []),
        *([Text(words.WORTH), Items(rows)] if rows else []),
    ]


def _excess(group: Mapping[str, Any], bound: Mapping[str, Any]) -> float:
    """By how much the CRPS of a group is above that of a bound, in percent."""
    return 100 * (_crps(group) / _crps(bound) - 1)


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
        f"{group['method']}: " + ", ".join(f"`{key}` {value}" for key, value in group["options"].items())
        for group in groups
        if group["options"]
    ]
    options = list(dict.fromkeys(options))
    notes = [*found["notes"], *_unlike(groups)]
    more = [Text("The options of each method:"), Items(options)] if options else []
    return [*verdict, *([Items(notes)] if notes else []), *more]


def _unlike(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """What makes methods unlike one another that no setting says."""
    notes = [
        words.DETERMINISTIC.format(group["label"], group["cost"]["nfe_per_frame"])
        for group in groups
        if group["deterministic"]
    ]
    drawn = [group for group in groups if not group["deterministic"]]
    for name, said, some in (
        ("nfe_per_frame", words.OTHER_NFE, drawn),
        ("network_frames_per_frame", words.OTHER_FRAMES, groups),
    ):
        labels: dict[str, list[str]] = {}
        for group in some:
            labels.setdefault(_count(group, name) or "", []).append(group["label"])
        labels.pop("", None)
        if len(labels) > 1:
            listed = (f"{count} in {' / '.join(which)}" for count, which in labels.items())
            notes.append(said.format("; ".join(listed)))
    if any(group["options"].get("process.clock") == "init_rescaled" for group in groups):
        notes.append(words.RESCALED)
    return notes


def _swept(found: Mapping[str, Any]) -> list[Block]:
    """How the swept values were chosen, and the scores they were chosen by."""
    validation = found["validation"]
    said = [words.SWEPT_TRUTH.format(key) for key in validation["swept"] if key.startswith(SCORED_ON)]
    if validation["shortened"]:
        said.append(words.SWEPT_LEADS.format(len(validation["leads"])))
    return [Text(words.SWEPT), *([Items(said)] if said else []), tables.validation_table(validation)]


def _commands(found: Mapping[str, Any]) -> list[Block]:
    return [
        Text("This comparison; re-running resumes, and once all is done writes the report again:"),
        Code([found["command"]]),
        Text("Each run on its own:"),
        Code([command for group in found["groups"] for command in group["commands"]]),
    ]
