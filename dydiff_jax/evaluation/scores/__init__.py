"""Scores of one forecast as plain numbers for JSON, each beside its definition, and tables of them in markdown."""

from dydiff_jax.evaluation.scores.markdown import (
    markdown_definitions,
    markdown_leads,
    markdown_over_leads,
    markdown_table,
)
from dydiff_jax.evaluation.scores.options import ScoreOptions, check_samples
from dydiff_jax.evaluation.scores.score import (
    Scores,
    chosen,
    definitions,
    left_out,
    named,
    score,
    write_metrics,
)
from dydiff_jax.evaluation.scores.table import ARRAYS, SCORES, Score

__all__ = [
    "ARRAYS",
    "SCORES",
    "Score",
    "ScoreOptions",
    "Scores",
    "check_samples",
    "chosen",
    "definitions",
    "left_out",
    "markdown_definitions",
    "markdown_leads",
    "markdown_over_leads",
    "markdown_table",
    "named",
    "score",
    "write_metrics",
]
