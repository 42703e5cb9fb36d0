"""Logs of a run: ``metrics.jsonl``, TensorBoard events and a progress bar."""

import json
import math
import os
import pathlib
import sys
import time
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from dydiff_jax.distributed import collectives
from dydiff_jax.runs import files
from dydiff_jax.training.phases import PRODUCTIVE, Phases, goodput

#: Share of the time of all steps, and seconds, for which devices may wait for data before a warning.
INPUT_BOUND = 0.1, 1.0


class MetricsLog:
    """Means of the metrics since the last line, as one JSON object a line, flushed; process 0 writes.

    Attributes:
      phases: time breakdown of the stage.
    """

    def __init__(self, workdir: pathlib.Path, stage: str, step: int, notes: dict[str, Any], phases: Phases):
        """Open the log of a stage that has done ``step`` steps, after dropping later lines.

        Args:
          workdir: where ``metrics.jsonl`` is, and ``tensorboard/STAGE`` for the events.
          stage: its name.
          step: steps done.
          notes: what the checkpoint of this step keeps; empty without one.
          phases: time breakdown of the stage; time that earlier processes spent is added to it.
        """
        self.phases = phases
        self._stage, self._window = stage, notes.get("window") or _empty()
        self._best, self._validated = notes.get("best"), notes.get("validated")
        self._file: Any = None
        self._events: Any = None
        self._since, self._clock, self._warned = step, time.monotonic(), False
        if collectives.is_main():
            path = workdir / "metrics.jsonl"
            last = drop_later_lines(path, stage, step)
            phases.resume(notes.get("seconds", {}), last.get("seconds", {}), last.get("starts", 0))
            self._at_open = phases.seconds()
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (__exit__ closes it)
            self._events = SummaryWriter(str(workdir / "tensorboard" / stage), purge_step=step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None and self._events is not None:
            self._file.close()
            self._events.close()

    @property
    def notes(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run logs what an undisturbed one does.

        The sums since the last line, the seconds of every phase, the step that was validated last, and the best one:
        {"step": N, "score": value}, or None.
        """
        seconds = self.phases.seconds()
        return {"window": self._window, "seconds": seconds, "validated": self._validated, "best": self._best}

    @property
    def validated(self) -> int | None:
        """The step that was validated last."""
        return self._validated

    def add(self, metrics: dict[str, float]) -> None:
        """Add the metrics of one step to the window."""
        sums = self._window["sums"]
        sums = {name: sums.get(name, 0.0) + value for name, value in metrics.items()}
        self._window = {"count": self._window["count"] + 1, "sums": sums}

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write a line: the step, the means of the window, ``values``, ``steps_per_second`` since the last line.

        With it goes the time breakdown: ``goodput``, ``seconds`` of every phase over all processes of the stage, and
        its ``starts``. A number that is not finite becomes null; a window in which every step was skipped has no
        means.
        """
        now = time.monotonic()
        rate = (step - self._since) / (now - self._clock)
        means = {name: total / self._window["count"] for name, total in self._window["sums"].items()}
        self._window, self._since, self._clock = _empty(), step, now
        self._write(step, {**means, **values, "steps_per_second": rate})

    def write_validation(self, step: int, values: dict[str, float], seconds: float) -> None:
        """Write a line of validation scores, which took ``seconds``; they are no part of ``steps_per_second``.

        The first of the values is the score by which the best step is chosen: the lowest, the earlier of two equal
        ones, never one that is not finite.
        """
        score = next(iter(values.values()))
        if math.isfinite(score) and (self._best is None or score < self._best["score"]):
            self._best = {"step": step, "score": score}
        self._validated = step
        self._clock += seconds
        self._write(step, values)

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._file is None:
            return
        seconds = self.phases.seconds()
        values = {**values, "goodput": goodput(seconds)}
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        breakdown = {
            "starts": self.phases.starts,
            "seconds": {name: round(s, 3) for name, s in seconds.items()},
        }
        self._file.write(json.dumps({"stage": self._stage, "step": step, **line, **breakdown}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # a mounted bucket uploads a file no sooner
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._warn_if_input_bound(seconds)

    def _warn_if_input_bound(self, seconds: dict[str, float]) -> None:
        """Warn once that the devices wait for data."""
        waited, worked = (seconds.get(s, 0.0) - self._at_open.get(s, 0.0) for s in ("input", PRODUCTIVE))
        share = waited / max(waited + worked, 1e-9)
        if share > INPUT_BOUND[0] and waited > INPUT_BOUND[1] and not self._warned:
            self._warned = True
            message(
                f"input-bound: devices idled {100 * share:.0f} % of the time waiting for data; raise "
                "config.loader.threads or config.loader.workers, or move the data closer"
            )


def _empty() -> dict[str, Any]:
    return {"count": 0, "sums": {}}


def drop_later_lines(path: pathlib.Path, stage: str, step: int) -> dict[str, Any]:
    """Rewrite a metrics file without what was logged after ``step`` of a stage, nor a last line that a kill cut short.

    Stages are trained one after the other, so lines of other stages that follow the first one of this stage are of
    later stages: they go too. Those before it are of earlier stages: they stay.

    Returns:
      The last whole line of the stage that was there, kept or not; empty without one.

    Raises:
      ValueError: another line is not a JSON object with a stage and a step.
    """
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
    found = [_read_line(path, number, line) for number, line in enumerate(lines, 1)]
    own = [number for number, line in enumerate(found) if line["stage"] == stage]
    first = own[0] if own else len(found)
    kept = "".join(
        text
        for number, (text, line) in enumerate(zip(lines, found, strict=True))
        if number < first or (line["stage"] == stage and line["step"] <= step)
    )
    if kept != text:
        files.write_text(path, kept)
    return found[own[-1]] if own else {}


def _read_line(path: pathlib.Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
        return {**found, "stage": str(found["stage"]), "step": int(found["step"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}, line {number}: expected a JSON object with a stage and a step, found {line[:80]!r}; "
            "repair the file or move it away"
        ) from error


def progress_bar(stage: str, start: int, steps: int) -> tqdm:
    """A bar on stderr with the name of the stage, rate and time left, to which the loss is added; on process 0."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    hidden = not collectives.is_main()
    return tqdm(
        desc=f"train {stage}", initial=start, total=steps, unit="step", mininterval=interval, disable=hidden
    )


def message(text: str) -> None:
    """Print a line above the progress bar, on process 0."""
    if collectives.is_main():
        tqdm.write(text, file=sys.stderr)
