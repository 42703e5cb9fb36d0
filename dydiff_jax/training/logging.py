"""What a run writes about itself: ``metrics.jsonl``, TensorBoard events and a progress bar."""

import json
import math
import pathlib
import sys
import time
from typing import Any

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from dydiff_jax.training import workdir as workdirs


class MetricsLog:
    """Means of the metrics since the last line, as one JSON object a line, flushed; process 0 writes.

    Attributes:
      window: sums since the last line; a checkpoint keeps them, so that a resumed run writes the same lines.
    """

    def __init__(self, workdir: pathlib.Path, step: int, window: dict[str, Any]):
        """Opens the log of a run that has done ``step`` steps, after dropping later lines."""
        self.window = window or _empty()
        self._file = self._events = None
        self._since, self._clock = step, time.monotonic()
        if jax.process_index() == 0:
            path = workdir / "metrics.jsonl"
            drop_later_lines(path, step)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (__exit__ closes it)
            self._events = SummaryWriter(str(workdir), purge_step=step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()
            self._events.close()

    def add(self, metrics: dict[str, float]) -> None:
        """Adds the metrics of one step to the window."""
        sums = self.window["sums"]
        sums = {name: sums.get(name, 0.0) + value for name, value in metrics.items()}
        self.window = {"count": self.window["count"] + 1, "sums": sums}

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes a line: the step, the means of the window, ``values``, and the rate since the last line.

        A number that is not finite becomes null; a window in which every step was skipped has no means.
        """
        now = time.monotonic()
        rate = (step - self._since) / (now - self._clock)
        means = {name: total / self.window["count"] for name, total in self.window["sums"].items()}
        self.window, self._since, self._clock = _empty(), step, now
        if self._file is None:
            return
        values = {**means, **values, "steps_per_second": rate}
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)


def _empty() -> dict[str, Any]:
    return {"count": 0, "sums": {}}


def drop_later_lines(path: pathlib.Path, step: int) -> None:
    """Rewrites a metrics file without the lines after ``step`` and without a last line that a kill cut short.

    Raises:
      ValueError: another line is not a JSON object with a step.
    """
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
    kept = "".join(line for number, line in enumerate(lines, 1) if _step_of(path, number, line) <= step)
    if kept != text:
        workdirs.write_whole(path, kept)


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
    hidden = jax.process_index() != 0
    return tqdm(desc="train", initial=start, total=steps, unit="step", mininterval=interval, disable=hidden)


def message(text: str) -> None:
    """Prints a line above the progress bar, on process 0."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stderr)
