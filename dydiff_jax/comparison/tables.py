"""The tables of a report: numbers of comparison.json as cells."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dydiff_jax.comparison import words
from dydiff_jax.comparison.blocks import Block, Items, Table, Text
from dydiff_jax.comparison.results import COST, MAIN, summary

#: Scores that have a table over leads.
OVER_LEADS = ("crps", "rmse", "spread", "spread_skill", "spectrum_error", "fsd", "mse_sum")

ARROWS = {"low": " ↓", "high": " ↑", "one": " → 1", "none": ""}

FLOOR = "floor: truth against truth"


def number(entry: Mapping[str, Any] | None) -> str:
    """Mean over seeds ± standard deviation, with decimals for four digits of the mean; a dash where undefined."""
    if entry is None or entry["mean"] is None:
        return "-"
    mean, std = entry["mean"], entry["std"]
    if std is None:
        return f"{mean:.4g}"
    size = math.floor(math.log10(abs(mean))) if mean else 0
    if not -6 <= size <= 8:
        return f"{mean:.3e} ± {std:.1e}"
    decimals = max(0, 3 - size)
    return f"{mean:.{decimals}f} ± {std:.{decimals}f}"


def summary_table(found: Mapping[str, Any]) -> Table:
    """The main scores of groups and baselines, the best ones bold, and whether the best differs significantly."""
    groups, best = found["groups"], found["best"]
    names = _shown(groups)
    heading = ["method", *_headings(groups, names)]
    rows = []
    for group in groups:
        cells = [
            _bold(number(summary(group["scores"], name)), best.get(name, {}).get("label") == group["label"])
            for name in names
        ]
        rows.append([group["label"], *cells])
    for name, baseline in found["baselines"].items():
        rows.append([f"{name} (baseline)", *(number(summary(baseline["scores"], score)) for score in names)])
    floor = next((s for s in map(_floor, groups) if s), None)
    if "fsd" in names and floor:
        rows.append([FLOOR, *(number(floor) if name == "fsd" else "-" for name in names)])
    answers = {True: "yes", False: "no", None: "one seed"}
    told = [answers[best[name]["resolved"]] if name in best else "-" for name in names]
    return Table(heading, [*rows, ["best significantly different?", *told]] if best else rows)


def validation_table(validation: Mapping[str, Any]) -> Table:
    """The main scores of every swept point on the validation split, the chosen ones bold."""
    groups = validation["groups"]
    names = _shown(groups)
    rows = [
        [
            _bold(group["label"], group["chosen"]),
            *(number(summary(group["scores"], name)) for name in names),
            "yes" if group["chosen"] else "",
        ]
        for group in groups
    ]
    return Table(["validation split", *_headings(groups, names), "chosen"], rows)


def _shown(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """The main scores that any group has."""
    return [name for name in MAIN if any(summary(group["scores"], name) for group in groups)]


def _headings(groups: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    return [f"{name}{_where(groups, name)}{_arrow(groups, name)}" for name in names]


def _floor(group: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The floor at the lead at which the group's distance is given."""
    last, floor = group["scores"].get("fsd", {}).get("last"), group["scores"].get("fsd_floor")
    return floor["per_lead"][last["index"]] if last and floor else None


def _where(groups: Sequence[Mapping[str, Any]], name: str) -> str:
    """The lead of a score that is not a mean over leads."""
    if name != "fsd":
        return ""
    last = {g["scores"]["fsd"]["last"]["index"] + 1 for g in groups if summary(g["scores"], "fsd")}
    return f" at lead {last.pop()}" if len(last) == 1 else " at the last lead"


def _arrow(groups: Sequence[Mapping[str, Any]], name: str) -> str:
    return ARROWS[next(g["scores"][name]["better"] for g in groups if name in g["scores"])]


def _bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes and text != "-" else text


def lead_tables(found: Mapping[str, Any]) -> list[Block]:
    """A table of every main score at the leads that were asked for."""
    leads = [lead for lead in found["leads"] if found["table_leads"] is None or lead in found["table_leads"]]
    heading = [f"{lead} ({lead * found['interval']:.4g})" for lead in leads]
    made: list[Block] = []
    for name in OVER_LEADS:
        groups = [group for group in found["groups"] if name in group["scores"]]
        rows = {group["label"]: group["scores"][name]["per_lead"] for group in groups}
        marked = _best_of_leads(rows, groups, name, leads)
        rows |= {
            n: b["scores"][name]["per_lead"] for n, b in found["baselines"].items() if name in b["scores"]
        }
        if name == "fsd" and groups and "fsd_floor" in groups[0]["scores"]:
            rows[FLOOR] = groups[0]["scores"]["fsd_floor"]["per_lead"]
        rows = {row: entries for row, entries in rows.items() if any(e["mean"] is not None for e in entries)}
        if groups and rows:
            cells = [
                [row, *(_bold(number(_at(entries, lead)), marked.get(lead) == row) for lead in leads)]
                for row, entries in rows.items()
            ]
            made += [
                Text(
                    f"**{name}**{_arrow(groups, name)}, by lead (in frames; in brackets, {found['time_unit']}):"
                ),
                Table([name, *heading], cells),
            ]
    return made


def _best_of_leads(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    groups: Sequence[Mapping[str, Any]],
    name: str,
    leads: Sequence[int],
) -> dict[int, str]:
    """{lead: the row with the best mean over seeds}, where there is more than one."""
    if len(rows) < 2 or groups[0]["scores"][name]["better"] not in COST:
        return {}
    cost, found = COST[groups[0]["scores"][name]["better"]], {}
    for lead in leads:
        entries = {row: _at(entries, lead) for row, entries in rows.items()}
        costs = {row: cost(e["mean"]) for row, e in entries.items() if e and e["mean"] is not None}
        if costs:
            found[lead] = min(costs, key=costs.get)
    return found


def _at(entries: Sequence[Mapping[str, Any]], lead: int) -> Mapping[str, Any] | None:
    return entries[lead - 1] if lead <= len(entries) else None


def cost_table(found: Mapping[str, Any]) -> list[Block]:
    """What training and sampling took."""
    heading = (
        "method",
        "networks",
        "parameters",
        "NFE a frame",
        "network frames a frame",
        "GFLOP a frame",
        "training, all stages (steps)",
        "training, all stages (GFLOP)",
        "training, all stages (s)",
        "training (steps/s)",
        "sampling (s per frame of a member)",
        "device",
    )
    rows, devices = [], set()
    for group in found["groups"]:
        cost = group["cost"]
        devices |= set(cost["devices"])
        rows.append(
            [
                group["label"],
                _networks(cost["networks"], group["networks"]),
                _plain(cost["parameters"], ","),
                _plain(cost["nfe_per_frame"], ".4g"),
                _plain(cost["network_frames_per_frame"], ".4g"),
                _plain(cost["gflop_per_frame"], ".4g"),
                _plain(cost["training_steps"], ","),
                _plain(cost["training_gflop"], ".4g"),
                number(cost["training_seconds"]),
                number(cost["steps_per_second"]),
                number(cost["sampling_seconds_per_frame"]),
                ", ".join(cost["devices"]) or "-",
            ]
        )
    said = [f"**{name}**: {meaning}" for name, meaning in words.COSTS.items()]
    return [Table(heading, rows), Items(said), *([Text(words.OTHER_DEVICES)] if len(devices) > 1 else [])]


def _networks(count: int | None, named: Mapping[str, str]) -> str:
    """How many there are, and the size of each."""
    listed = ", ".join(f"{role}: {network}" for role, network in named.items())
    return f"{len(named) if count is None else count} ({listed})"


def _plain(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def all_scores(found: Mapping[str, Any]) -> Table:
    """Every score with a mean, groups and baselines as columns."""
    columns = {group["label"]: group["scores"] for group in found["groups"]}
    columns |= {name: baseline["scores"] for name, baseline in found["baselines"].items()}
    names = list(dict.fromkeys(name for scores in columns.values() for name in scores))
    rows = [
        [name, *(number(scores[name]["all"] if name in scores else None) for scores in columns.values())]
        for name in names
    ]
    return Table(["score", *columns], rows)
