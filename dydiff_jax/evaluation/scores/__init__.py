"""Scores of one forecast as plain numbers for JSON, each beside its definition, and tables of them."""

from dydiff_jax.evaluation.scores.catalogue import ARRAYS, definitions
from dydiff_jax.evaluation.scores.options import ScoreOptions, check_samples
from dydiff_jax.evaluation.scores.score import Scores, score, write_metrics
from dydiff_jax.evaluation.scores.tables import (
    markdown_definitions,
    markdown_leads,
    markdown_over_leads,
    markdown_table,
)

__all__ = [
    "ARRAYS",
    "ScoreOptions",
    "Scores",
    "check_samples",
    "definitions",
    "markdown_definitions",
    "markdown_leads",
    "markdown_over_leads",
    "markdown_table",
    "score",
    "write_metrics",
]
