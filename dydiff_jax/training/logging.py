"""What a run writes about itself: ``metrics.jsonl``, TensorBoard events and a progress bar."""

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

#: Share of the time of all steps, and seconds, for which devices may wait for batches before the user is told.
STARVING = 0.1, 1.0


class MetricsLog:
    """Means of the metrics since the last line, as one JSON object a line, flushed; process 0 writes.

    Attributes:
      phases: where the time of the run goes.
    """

    def __init__(self, workdir: pathlib.Path, step: int, notes: dict[str, Any], phases: Phases):
        """Opens the log of a run that has done ``step`` steps, after dropping later lines.

        Args:
          workdir: where ``metrics.jsonl`` is.
          step: steps done.
          notes: what the checkpoint of this step keeps; empty without one.
          phases: where the time of the run goes; time that earlier processes spent is added to it.
        """
        self.phases = phases
        self._window = notes.get("window") or _empty()
        self._file = self._events = None
        self._since, self._clock, self._hungry = step, time.monotonic(), False
        if collectives.is_main():
            path = workdir / "metrics.jsonl"
            last = drop_later_lines(path, step)
            phases.go_on_from(notes.get("seconds", {}), last.get("seconds", {}), last.get("starts", 0))
            self._at_open = phases.seconds()
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (__exit__ closes it)
            self._events = SummaryWriter(str(workdir), purge_step=step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()
            self._events.close()

    @property
    def notes(self) -> dict[str, Any]:
        """Sums since the last line and seconds of every phase: kept in a checkpoint, so that a resumed run goes on."""
        return {"window": self._window, "seconds": self.phases.seconds()}

    def add(self, metrics: dict[str, float]) -> None:
        """Adds the metrics of one step to the window."""
        sums = self._window["sums"]
        sums = {name: sums.get(name, 0.0) + value for name, value in metrics.items()}
        self._window = {"count": self._window["count"] + 1, "sums": sums}

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes a line: the step, the means of the window, ``values``, the rate since the last line, and the
        account of time: ``goodput``, ``seconds`` of every phase over all processes of the run, and its ``starts``.

        A number that is not finite becomes null; a window in which every step was skipped has no means.
        """
        now = time.monotonic()
        rate = (step - self._since) / (now - self._clock)
        means = {name: total / self._window["count"] for name, total in self._window["sums"].items()}
        self._window, self._since, self._clock = _empty(), step, now
        if self._file is None:
            return
        seconds = self.phases.seconds()
        values = {**means, **values, "steps_per_second": rate, "goodput": goodput(seconds)}
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        account = {
            "starts": self.phases.starts,
            "seconds": {name: round(s, 3) for name, s in seconds.items()},
        }
        self._file.write(json.dumps({"step": step, **line, **account}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # a mounted bucket uploads a file no sooner
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._warn_of_hunger(seconds)

    def _warn_of_hunger(self, seconds: dict[str, float]) -> None:
        """Says once that the devices wait for batches."""
        waited, worked = (seconds.get(s, 0.0) - self._at_open.get(s, 0.0) for s in ("input", PRODUCTIVE))
        share = waited / max(waited + worked, 1e-9)
        if share > STARVING[0] and waited > STARVING[1] and not self._hungry:
            self._hungry = True
            message(
                f"the devices waited for batches in {share:.0%} of the time: raise config.input.threads or "
                "config.input.workers, or keep the data nearer"
            )


def _empty() -> dict[str, Any]:
    return {"count": 0, "sums": {}}


def drop_later_lines(path: pathlib.Path, step: int) -> dict[str, Any]:
    """Rewrites a metrics file without the lines after ``step`` and without a last line that a kill cut short.

    Returns:
      The last whole line that was there, kept or not; empty without one.

    Raises:
      ValueError: another line is not a JSON object with a step.
    """
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
    kept = "".join(line for number, line in enumerate(lines, 1) if _step_of(path, number, line) <= step)
    if kept != text:
        files.write_text(path, kept)
    return json.loads(lines[-1]) if lines else {}


def _step_of(path: pathlib.Path, number: int, line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}, line {number}: expected a JSON object with a step, found {line[:80]!r}; "
            "repair the file or move it away"
        ) from error


def progress_bar(start: int, steps: int) -> tqdm:
    """A bar on stderr with rate and time left, to which the loss is added; on process 0."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    hidden = not collectives.is_main()
    return tqdm(desc="train", initial=start, total=steps, unit="step", mininterval=interval, disable=hidden)


def message(text: str) -> None:
    """Prints a line above the progress bar, on process 0."""
    if collectives.is_main():
        tqdm.write(text, file=sys.stderr)
