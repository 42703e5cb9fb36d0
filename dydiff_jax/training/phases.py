"""Time breakdown of a run, goodput, and a watchdog for work that hangs."""

import collections
import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from dydiff_jax.runs import exit_codes

#: The phase that is counted as productive time.
PRODUCTIVE = "step"
#: Time lost to steps after the last checkpoint of an earlier process.
LOST = "lost"


class Phases:
    """The phase that a stage is in, the seconds spent in each, and a watchdog.

    Attributes:
      earlier: seconds in each phase that earlier processes spent on the same stage; see `resume`.
      starts: processes that the stage has had, this one among them.
    """

    def __init__(self, limit: float | None = None, began: float | None = None):
        """Begin in the phase "start".

        Args:
          limit: seconds in one phase, or between two calls of `heartbeat`, after which the watchdog ends the
            process with `exit_codes.STUCK`; None for no watchdog.
          began: when the process began, by ``time.monotonic``; now, if None.
        """
        self.earlier: dict[str, float] = {}
        self.starts = 1
        self._seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
        self._limit = math.inf if limit is None else limit
        self._name, self._note = "start", ""
        self._since = self._moved = time.monotonic()
        if began is not None:
            self._seconds["start"] = self._since - began
        self._done = threading.Event()

    def __enter__(self) -> "Phases":
        if self._limit < math.inf:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Callable[[], float]]:
        """A context in which the run is in another phase; gives a function that tells its seconds."""
        outer, began = self._name, time.monotonic()
        self._turn(name)
        try:
            yield lambda: time.monotonic() - began
        finally:
            self._turn(outer)

    def heartbeat(self, note: str = "") -> None:
        """Tell the watchdog that the phase makes progress, and how far it is."""
        self._note, self._moved = note, time.monotonic()

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count some seconds to another phase than the one they were spent in."""
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def resume(self, saved: dict[str, float], logged: dict[str, float], starts: int) -> None:
        """Count what earlier processes spent.

        Args:
          saved: their seconds up to the checkpoint that this process resumes from.
          logged: the seconds in their last line of metrics; what is beyond ``saved`` is lost.
          starts: the number of them.
        """
        lost = max(0.0, sum(logged.values()) - sum(saved.values()))
        self.earlier = {**saved, LOST: saved.get(LOST, 0.0) + lost}
        self.starts = starts + 1

    def seconds(self) -> dict[str, float]:
        """Seconds in each phase so far, over all processes of the stage; their sum is the total."""
        self._turn(self._name)
        names = dict.fromkeys((*self.earlier, *self._seconds))
        total = {name: self.earlier.get(name, 0.0) + self._seconds.get(name, 0.0) for name in names}
        return {name: seconds for name, seconds in total.items() if seconds > 0}

    def _turn(self, name: str) -> None:
        now = time.monotonic()
        self._seconds[self._name] += now - self._since
        self._name, self._since, self._moved = name, now, now

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._limit / 4)):
            still = time.monotonic() - self._moved
            if still > self._limit:
                self._give_up(still)

    def _give_up(self, still: float) -> None:
        where = f"phase {self._name!r}" + (f" ({self._note})" if self._note else "")
        print(
            f"\nstuck: no progress of process {os.getpid()} in {where} for {still:.0f} s, more than "
            f"config.train.stuck_after = {self._limit:g} s. It exits with code {exit_codes.STUCK}; re-running the "
            "command resumes from the newest checkpoint. Stack traces of all threads:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.stderr)
        os._exit(exit_codes.STUCK)


def goodput(seconds: dict[str, float]) -> float:
    """Productive over total time."""
    return seconds.get(PRODUCTIVE, 0.0) / max(sum(seconds.values()), 1e-9)
