"""Evaluate: ensembles scored beside baselines that need no training, written as numbers, tables and pictures."""

import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from dydiff_jax.distributed import collectives
from dydiff_jax.evaluation import baselines, forecast, plots
from dydiff_jax.evaluation import scores as scoring
from dydiff_jax.runs import files
from dydiff_jax.types import Batch

#: The file of an evaluation that is written last.
TABLE = "table.md"


class Sample(NamedTuple):
    """Windows in physical units, and which crop of the domain each covers.

    Attributes:
      batch: frames [n, p + k, h, w, c].
      crops: [n], a number for each crop.
    """

    batch: Batch
    crops: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """What is scored, and how.

    Attributes:
      test: windows of the test part, as long as context and horizon.
      training: windows of the training part of the same length, from which the baselines draw.
      num_context: p.
      members: ensemble size e of every probabilistic forecast.
      seed: of the baselines.
      scores: what the metrics leave open.
    """

    test: Sample
    training: Sample
    num_context: int
    members: int
    seed: int
    scores: scoring.ScoreOptions

    @property
    def context(self) -> np.ndarray:
        """[n, p, h, w, c]."""
        return self.test.batch.frames[:, : self.num_context]

    @property
    def truth(self) -> np.ndarray:
        """[n, k, h, w, c]."""
        return self.test.batch.frames[:, self.num_context :]


def draw(
    forecaster: forecast.Forecaster,
    params: Any,
    key: jax.Array,
    batch: Batch,
    members: int,
    chunk: int,
    beat: Callable[[str], None] = lambda note: None,
) -> tuple[np.ndarray, float]:
    """An ensemble [e, n, horizon, h, w, c] of every window of a batch, with a progress bar, and the seconds it took.

    The seconds are those of the device and the way from it, without compilation. ``beat`` hears of every piece.
    """
    n, seconds = len(batch.frames), []
    pieces = forecast.ensemble(forecaster, params, key, batch, members, chunk)
    total = forecast.num_pieces(forecaster, members * n, chunk)

    def timed() -> Iterator[forecast.Piece]:
        for piece in tqdm(pieces, "forecasting", total, unit="window", disable=not collectives.is_main()):
            seconds.append(piece.seconds)
            beat(f"{len(seconds)} of {total} pieces")
            yield piece

    return forecast.gather(timed(), members, n, forecaster.horizon), sum(seconds)


def baseline_ensembles(evaluation: Evaluation) -> Iterator[tuple[str, np.ndarray]]:
    """Persistence, dressed persistence (without context neither) and both climatologies, [e, n, k, h, w, c] each.

    They are made one at a time, as each may be as large as a long horizon is.
    """
    rng = np.random.default_rng(evaluation.seed)
    context, members = evaluation.context, evaluation.members
    n, k = evaluation.truth.shape[:2]
    windows, crops = evaluation.training.batch.frames, evaluation.training.crops
    if evaluation.num_context:
        yield "persistence", baselines.persistence(context, k)
        increments = baselines.training_increments(windows, evaluation.num_context)
        yield "dressed persistence", baselines.dressed_persistence(context, increments, members, rng)
    frames = windows[:, 0]
    yield "climatology (pooled)", baselines.climatology_pooled(frames, n, k, members, rng)
    same_crop = (frames, crops, evaluation.test.crops, k, members, rng)
    yield "climatology (same crop)", baselines.climatology_same_crop(*same_crop)


def score_all(
    ensembles: Iterable[tuple[str, np.ndarray]], evaluation: Evaluation, unit: str
) -> dict[str, scoring.Scores]:
    """{forecast: its scores} for pairs of name and ensemble, taken one after the other, with a progress bar."""
    reference = evaluation.training.batch.frames[:, 0]
    bar = tqdm(ensembles, "scoring", unit="forecast", disable=not collectives.is_main())
    return {
        name: scoring.score(members, evaluation.truth, evaluation.scores, unit, reference)
        for name, members in bar
    }


def write(
    folder: pathlib.Path,
    header: dict[str, Any],
    scores: dict[str, scoring.Scores],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Writes forecasts.npz, metrics.json, the pictures and table.md, which comes last and marks a whole evaluation.

    Args:
      folder: made where it is missing.
      header: what was scored; with ``scores`` it makes metrics.json.
      scores: of every forecast, the trained one first.
      arrays: context, truth, ensemble and leads of the windows that are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files.write_npz(folder / "forecasts.npz", arrays)
    scoring.write_metrics(folder / "metrics.json", header, scores)
    plots.plot_all(folder)
    files.write_text(folder / TABLE, tables(header, scores))


def tables(header: dict[str, Any], scores: dict[str, scoring.Scores]) -> str:
    """The means over leads, the scores lead by lead, and every definition, in markdown."""
    return "\n".join(
        [
            f"Means over the leads; {header['windows']} windows, {header['weights']}, step {header['step']}.\n",
            scoring.markdown_table(scores),
            scoring.markdown_over_leads(header, scores),
            "Definitions, as computed for the first row.\n",
            scoring.markdown_definitions(next(iter(scores.values()))),
        ]
    )
