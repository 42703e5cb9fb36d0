"""Tables of scores in markdown: forecasts as rows, the best of a column bold."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dydiff_jax.evaluation.scores.options import shown_leads
from dydiff_jax.evaluation.scores.score import Scores
from dydiff_jax.evaluation.scores.table import ARRAYS, SCORES

#: The scores shown lead by lead where leads are chosen.
OVER_LEADS = ("crps", "fsd", "mse_sum", "mse", "spread_skill")


def markdown_table(results: Mapping[str, Scores], columns: Sequence[str] | None = None) -> str:
    """Mean over leads, forecasts as rows and scores as columns; the best of a column is bold.

    Args:
      results: {forecast name: what `score` returned}, in the order of the rows.
      columns: scores to show; all that have a mean if None.
    """
    first = next(iter(results.values()))
    columns = [name for name in first if name not in ARRAYS] if columns is None else list(columns)
    members = [str(scores[columns[0]]["members"]) if columns else "-" for scores in results.values()]
    cells = [_best_marked([scores[name] for scores in results.values()]) for name in columns]
    rows = zip(results, members, *cells, strict=True)
    return _markdown(["forecast", "members", *columns], rows)


def markdown_over_leads(header: Mapping[str, Any], results: Mapping[str, Scores]) -> str:
    """The tables per lead of one evaluation: the CRPS, or at chosen leads each of `OVER_LEADS`, where it was made.

    Args:
      header: of metrics.json; its "score_options" say which leads (none named: the CRPS at all of them).
      results: {forecast name: what `score` returned}.
    """
    asked = header["score_options"].get("leads")
    leads = shown_leads(asked, len(header["leads"]))
    times = [f"{lead * header['interval']:g}" for lead in leads]
    if asked is None:
        shown: tuple[str, ...] = ("crps",)
        axis, headings = header["time_unit"], times
    else:
        shown, axis = OVER_LEADS, f"frames ({header['time_unit']})"
        headings = [f"{lead} ({time})" for lead, time in zip(leads, times, strict=True)]
    columns = dict(zip(leads, headings, strict=True))
    names = [name for name in shown if name in next(iter(results.values()))]
    return "\n".join(
        f"{SCORES[name].title} over lead, {axis}.\n\n{markdown_leads(results, name, columns)}"
        for name in names
    )


def markdown_leads(results: Mapping[str, Scores], metric: str, leads: Mapping[int, str]) -> str:
    """One score per lead, forecasts as rows; the best of a lead is bold, a floor is the last row.

    Args:
      results: {forecast name: what `score` returned}.
      metric: its name in the scores.
      leads: {lead, from 1: heading of its column, such as "0.5 s"}.
    """
    entries = [scores[metric] for scores in results.values()]
    cells = [
        _best_marked([{"mean": e["per_lead"][lead - 1], "better": e["better"]} for e in entries])
        for lead in leads
    ]
    rows = list(zip(results, *cells, strict=True))
    floor = next(iter(results.values())).get(f"{metric}_floor")
    if floor is not None:
        rows.append(("floor", *(_text(floor["per_lead"][lead - 1]) for lead in leads)))
    return _markdown([metric, *leads.values()], rows)


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
    texts = [_text(e["mean"]) for e in entries]
    return [
        f"**{text}**" if cost == best < math.inf else text for text, cost in zip(texts, costs, strict=True)
    ]


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _markdown(heading: Sequence[str], rows: Any) -> str:
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
