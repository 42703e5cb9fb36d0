"""Evaluate: ensembles scored beside baselines that need no training, written as numbers, tables and figures."""

import itertools
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from dydiff_jax.data.trajectories import ExactLaw
from dydiff_jax.data.windows import Windows
from dydiff_jax.distributed import collectives
from dydiff_jax.evaluation import baselines, plots
from dydiff_jax.evaluation import scores as scoring
from dydiff_jax.evaluation.scores import ScoreOptions
from dydiff_jax.runs import files
from dydiff_jax.types import Array, Batch, DataSpec

#: The file of an evaluation that is written last.
TABLE = "table.md"

#: Entries of metrics.json that tell one evaluation of a checkpoint from another.
EVALUATED_WITH = ("system", "evaluation", "score_options")


@dataclass(frozen=True)
class EvaluationOptions:
    """How a trained system is scored.

    Attributes:
      members: ensemble size e.
      windows: number of windows, evenly spaced over the split.
      horizon: forecast frames of a scored window, any number; None for those of a window.
      chunk: rows (members times windows) in flight at once.
      seed: of the ensemble and of the baselines.
      saved: windows whose forecasts are kept in forecasts.npz and drawn.
      beside: work directories of finished runs on the same data that are scored beside this one.
      figures: names of `plots.FIGURES`; None: those of the kind of the data.
      valid_windows: windows of the validation split that are scored while training.
      valid_members: members of these.
    """

    members: int
    windows: int
    horizon: int | None
    chunk: int
    seed: int
    saved: int
    beside: tuple[str, ...] = ()
    figures: tuple[str, ...] | None = None
    valid_windows: int = 8
    valid_members: int = 4

    def __post_init__(self):
        for name in ("members", "windows", "chunk", "saved", "valid_windows", "valid_members"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"horizon: expected at least 1 frame, found {self.horizon}")


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
      scored: windows of the scored split, as long as context and horizon.
      training: windows of the training split of the same length, from which the baselines draw.
      spec: of the data.
      num_context: p.
      members: ensemble size e of every probabilistic forecast.
      seed: of the baselines.
      scores: which scores, and their options.
      law: of the frames after the context, where it is known and holds for the scored windows.
      without: baselines that these data have and these windows have not, each with the reason.
    """

    scored: Sample
    training: Sample
    spec: DataSpec
    num_context: int
    members: int
    seed: int
    scores: ScoreOptions
    law: ExactLaw | None = None
    without: Mapping[str, str] = field(default_factory=dict)

    @property
    def context(self) -> Batch:
        """Frames [n, p, h, w, c] with what is known in advance: all that a forecast is made from."""
        known, batch = slice(self.num_context), self.scored.batch
        observed = None if batch.observed is None else batch.observed[:, known]
        return batch._replace(frames=batch.frames[:, known], observed=observed)

    @property
    def truth(self) -> np.ndarray:
        """[n, k, h, w, c]."""
        return np.asarray(self.scored.batch.frames[:, self.num_context :], np.float32)

    @property
    def reference(self) -> np.ndarray:
        """Frames [n, h, w, c] of the training split in which nothing is missing."""
        frames, observed = self.training.batch.frames[:, 0], self.training.batch.observed
        frames = np.asarray(frames, np.float32)
        if observed is None:
            return frames
        whole = np.broadcast_to(observed, self.training.batch.frames.shape)[:, 0]
        return frames[whole.reshape(len(frames), -1).all(axis=1)]

    @property
    def observed(self) -> np.ndarray | None:
        """Which points of the truth are known, or None: all are."""
        found = self.scored.batch.observed
        return None if found is None else np.asarray(found[:, self.num_context :])


def chunk_rows(options: EvaluationOptions, mesh: Mesh, rows: int) -> int:
    """Rows in flight: those of the options or all there are, up to a multiple of what the mesh splits a batch into."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return math.ceil(min(options.chunk, rows) / parts) * parts


def exact_law(windows: Windows) -> tuple[ExactLaw | None, dict[str, str]]:
    """The law of the frames after the context of these windows, and {its baseline: why it does not hold for them}.

    (None, {}) for data whose law is not known. It is that of the whole field, without missing points: what flows into
    a crop is not in its context.
    """
    data, found = windows.trajectories, (windows.shape.height, windows.shape.width)
    reason = None
    if data.law is None:
        return None, {}
    if found != data.grid:
        reason = (
            f"expected windows of the whole field, {data.grid[0]} x {data.grid[1]}, whose law is known, found crops of "
            f"{found[0]} x {found[1]}; use --config.dataset.crop=None"
        )
    elif data.observed is not None:
        reason = "expected context frames without missing points, found data with a mask"
    return (data.law, {}) if reason is None else (None, {baselines.EXACT_LAW: reason})


def baseline_ensembles(evaluation: Evaluation) -> Iterator[tuple[str, np.ndarray]]:
    """Every baseline that these data have, [e, n, k, h, w, c], one at a time."""
    known = baselines.Known(
        context=np.asarray(evaluation.context.frames, np.float32),
        training=np.asarray(evaluation.training.batch.frames, np.float32),
        context_crops=evaluation.scored.crops,
        training_crops=evaluation.training.crops,
        num_forecast=evaluation.truth.shape[1],
        members=evaluation.members,
        context_observed=_mask(evaluation.context.observed),
        training_observed=_mask(evaluation.training.batch.observed),
        law=evaluation.law,
    )
    return baselines.ensembles(known, evaluation.seed)


def score_all(
    ensembles: Iterable[tuple[str, np.ndarray]], evaluation: Evaluation
) -> dict[str, scoring.Scores]:
    """{forecast: its scores} for pairs of name and ensemble, taken one after the other, with a progress bar."""
    reference = evaluation.reference
    bar = tqdm(ensembles, "scoring", unit="forecast", disable=not collectives.is_main())
    spec, options = evaluation.spec, evaluation.scores
    return {
        name: scoring.score(
            members, evaluation.truth, options, spec.unit, reference, evaluation.observed, spec.kind
        )
        for name, members in bar
    }


def write_scores(
    folder: pathlib.Path,
    header: dict[str, Any],
    ensembles: Mapping[str, np.ndarray],
    evaluation: Evaluation,
) -> None:
    """Score the ensembles, the trained one first, beside the baselines, and write all of it.

    Writes forecasts.npz, metrics.json, the figures and table.md, which comes last and marks a complete evaluation.

    Args:
      folder: made where it is missing.
      header: what was scored; with the scores, and why some of these or of the baselines were left out, it makes
        metrics.json.
      ensembles: [e, n, k, h, w, c] by name.
      evaluation: what they are scored on.
    """
    kind, frame = evaluation.spec.kind, evaluation.truth.shape[2:]
    left_out = scoring.left_out(evaluation.scores, kind, frame) | dict(evaluation.without)
    header = header | {"left_out": left_out}
    scores = score_all(itertools.chain(ensembles.items(), baseline_ensembles(evaluation)), evaluation)
    keep = slice(header["evaluation"]["saved"])
    arrays = {
        "context": _blank(evaluation.context.frames[keep], _mask(evaluation.context.observed), keep),
        "truth": _blank(evaluation.truth[keep], evaluation.observed, keep),
        "ensemble": next(iter(ensembles.values()))[:, keep],
        "leads": np.asarray(header["leads"]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    files.write_npz(folder / "forecasts.npz", arrays)
    scoring.write_metrics(folder / "metrics.json", header, scores)
    plots.plot_all(folder)
    files.write_text(folder / TABLE, tables(header, scores))


def _mask(observed: Array | None) -> np.ndarray | None:
    return None if observed is None else np.asarray(observed)


def _blank(frames: Array, observed: np.ndarray | None, keep: slice) -> np.ndarray:
    """Frames of the kept windows, float32, with NaN where they are missing."""
    frames = np.asarray(frames, np.float32)
    return frames if observed is None else np.where(observed[keep], frames, np.nan)


def tables(header: dict[str, Any], scores: dict[str, scoring.Scores]) -> str:
    """The means over leads, the scores lead by lead, and every definition, in markdown."""
    return "\n".join(
        [
            f"Means over the leads; {header['windows']} windows, {header['weights']}, step {header['step']}.\n",
            scoring.markdown_table(scores),
            *(f"Without {name}: {reason}.\n" for name, reason in header.get("left_out", {}).items()),
            scoring.markdown_over_leads(header, scores),
            "Definitions, as computed for the first row.\n",
            scoring.markdown_definitions(next(iter(scores.values()))),
        ]
    )


def evaluation_folder(directory: pathlib.Path, header: Mapping[str, Any]) -> pathlib.Path:
    """eval/step_N, or the first of step_N-2, step_N-3 ... that does not hold an evaluation with other options.

    An evaluation of the validation split is in eval/valid_step_N.
    """
    prefix = "" if header["split"] == "test" else f"{header['split']}_"
    for number in itertools.count(1):
        suffix = f"-{number}" if number > 1 else ""
        folder = directory / "eval" / f"{prefix}step_{header['step']}{suffix}"
        if not is_done(folder):
            return folder
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if all(found.get(name) == json.loads(json.dumps(header[name])) for name in EVALUATED_WITH):
            return folder
    raise AssertionError("folders are numbered without end")


def is_done(folder: pathlib.Path) -> bool:
    """Whether a folder holds a complete evaluation."""
    return (folder / TABLE).exists()
