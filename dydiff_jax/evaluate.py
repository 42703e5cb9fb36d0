"""Evaluate: ensembles scored beside baselines that need no training, written as numbers, tables and pictures."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from dydiff_jax import baselines, forecast, plots, report
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
      test: windows of the test part.
      training: windows of the training part, from which the baselines draw.
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
    scores: report.ScoreOptions

    @property
    def context(self) -> np.ndarray:
        """[n, p, h, w, c]."""
        return self.test.batch.frames[:, : self.num_context]

    @property
    def truth(self) -> np.ndarray:
        """[n, k, h, w, c]."""
        return self.test.batch.frames[:, self.num_context :]


def draw(
    forecaster: forecast.Forecaster, params: Any, key: jax.Array, batch: Batch, members: int, chunk: int
) -> np.ndarray:
    """An ensemble [e, n, k, h, w, c] of every window of a batch, ``chunk`` rows at a time, with a progress bar."""
    n = len(batch.frames)
    parts = forecast.ensemble(forecaster, params, key, batch, members, chunk)
    bar = tqdm(parts, "forecasting", -(-members * n // chunk), unit="chunk", disable=jax.process_index() > 0)
    return forecast.gather(bar, members, n)


def baseline_ensembles(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Persistence, dressed persistence and both climatologies, [e, n, k, h, w, c] each."""
    rng = np.random.default_rng(evaluation.seed)
    context, members = evaluation.context, evaluation.members
    n, k = evaluation.truth.shape[:2]
    windows, crops = evaluation.training.batch.frames, evaluation.training.crops
    increments = baselines.training_increments(windows, evaluation.num_context)
    frames = windows[:, 0]
    return {
        "persistence": baselines.persistence(context, k),
        "dressed persistence": baselines.dressed_persistence(context, increments, members, rng),
        "climatology (pooled)": baselines.climatology_pooled(frames, n, k, members, rng),
        "climatology (same crop)": baselines.climatology_same_crop(
            frames, crops, evaluation.test.crops, k, members, rng
        ),
    }


def score_all(
    ensembles: Mapping[str, np.ndarray], evaluation: Evaluation, unit: str
) -> dict[str, report.Scores]:
    """{forecast: its scores}, with a progress bar."""
    bar = tqdm(ensembles.items(), "scoring", unit="forecast", disable=jax.process_index() > 0)
    return {name: report.score(members, evaluation.truth, evaluation.scores, unit) for name, members in bar}


def write(
    folder: pathlib.Path,
    header: dict[str, Any],
    scores: dict[str, report.Scores],
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
    save_npz(folder / "forecasts.npz", arrays)
    report.write_metrics(folder / "metrics.json", header, scores)
    plots.plot_all(folder)
    with _whole(folder / TABLE) as path:
        path.write_text(tables(header, scores), encoding="utf-8")


def tables(header: dict[str, Any], scores: dict[str, report.Scores]) -> str:
    """The means over leads, the CRPS lead by lead, and every definition, in markdown."""
    leads = [f"{lead * header['interval']:g}" for lead in header["leads"]]
    return "\n".join(
        [
            f"Means over the leads; {header['windows']} windows, {header['weights']}, step {header['step']}.\n",
            report.markdown_table(scores),
            f"Fair CRPS over lead, {header['time_unit']}.\n",
            report.markdown_leads(scores, "crps", leads),
            "Definitions, as computed for the first row.\n",
            report.markdown_definitions(next(iter(scores.values()))),
        ]
    )


def save_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a compressed .npz that appears whole or not at all."""
    with _whole(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


@contextlib.contextmanager
def _whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path beside ``path`` that takes its name once the block is done."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    yield temporary
    os.replace(temporary, path)
