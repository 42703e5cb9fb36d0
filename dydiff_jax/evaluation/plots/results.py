"""Reading results files: the scores of an evaluation, and one field of one window of a forecast."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

EVALUATE = "run an evaluation into this folder"
FORECAST = "run a forecast into this folder"
INFO = ("method", "scores", "leads", "interval", "time_unit", "unit", "fields")  # entries of metrics.json
DRAWN = ("context", "ensemble", "leads", "interval", "fields", "unit", "time_unit")  # of forecast.npz


class Forecast(NamedTuple):
    """One field of one window.

    Attributes:
      context: frames [p, h, w], the last one at time 0.
      truth: [1 + k, h, w], from the last context frame on; None if unknown. Without context (p = 0) [k, h, w].
      ensemble: [e, 1 + k, h, w], each member from the last context frame on; without context [e, k, h, w].
      times: [1 + k] or [k], in `time_unit`.
      interval: time from a frame to the next.
      field: its name.
      unit: of the field.
      time_unit: of the times.
    """

    context: np.ndarray
    truth: np.ndarray | None
    ensemble: np.ndarray
    times: np.ndarray
    interval: float
    field: str
    unit: str
    time_unit: str

    @property
    def mean(self) -> np.ndarray:
        """[1 + k, h, w]."""
        return self.ensemble.mean(axis=0)

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation between the members [1 + k, h, w], zero if there is but one."""
        return self.ensemble.std(axis=0, ddof=min(1, len(self.ensemble) - 1))

    def fields(self, most: int) -> dict[str, np.ndarray]:
        """{name: [1 + k, h, w]} of the truth, if known, the mean and at most `most` members; just truth and
        forecast if there is but one member."""
        known = {} if self.truth is None else {"truth": self.truth}
        if len(self.ensemble) == 1:
            return {**known, "forecast": self.ensemble[0]}
        members = {f"member {i + 1}": member for i, member in enumerate(self.ensemble[:most])}
        return {**known, "mean": self.mean, **members}

    @property
    def label(self) -> str:
        """The field with its unit."""
        return f"{self.field} ({self.unit})"


def read_scores(folder: Path) -> dict[str, Any]:
    """The contents of metrics.json.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it lacks an entry.
    """
    path = _found(folder / "metrics.json", EVALUATE)
    info = json.loads(path.read_text())
    _require(path, info, INFO, EVALUATE)
    return info


def read_evaluation(folder: Path, info: Mapping[str, Any], field: str | None, window: int) -> Forecast:
    """One field of one window of forecasts.npz, with the truth; units and leads are those of `info`.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it lacks an entry, or there is no such field or window.
    """
    path = folder / "forecasts.npz"
    arrays = _read_arrays(path, ("context", "truth", "ensemble"), EVALUATE)
    return _select(path, arrays, info, field, window)


def read_forecast(folder: Path, field: str | None, window: int) -> Forecast:
    """One field of one window of forecast.npz, without truth.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it lacks an entry, or has no such field or window.
    """
    path = folder / "forecast.npz"
    arrays = _read_arrays(path, DRAWN, FORECAST)
    info = {name: arrays[name].tolist() for name in DRAWN[2:]}
    return _select(path, {name: arrays[name] for name in DRAWN[:2]}, info, field, window)


def _read_arrays(path: Path, names: Sequence[str], remedy: str) -> dict[str, np.ndarray]:
    with np.load(_found(path, remedy)) as stored:
        _require(path, stored.files, names, remedy)
        return {name: stored[name] for name in names}


def _found(path: Path, remedy: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"expected the results file {path}; {remedy} first")
    return path


def _require(path: Path, entries: Iterable[str], names: Sequence[str], remedy: str) -> None:
    missing = [name for name in names if name not in entries]
    if missing:
        raise ValueError(f"expected the entries {missing} in {path}, found {sorted(entries)}; {remedy} again")


def _select(
    path: Path, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any], field: str | None, window: int
) -> Forecast:
    fields, windows = list(info["fields"]), len(arrays["context"])
    field = fields[-1] if field is None else field
    if field not in fields:
        raise ValueError(f"field: expected one of {fields} of {path.parent}, found {field!r}")
    if not 0 <= window < windows:
        raise ValueError(f"window: expected 0 to {windows - 1} of {path}, found {window}")
    select = (window, ..., fields.index(field))
    context, members = arrays["context"][select], arrays["ensemble"][:, *select]
    start = context[-1:]
    starts = np.broadcast_to(start, (len(members), *start.shape))
    return Forecast(
        context=context,
        truth=np.concatenate([start, arrays["truth"][select]]) if "truth" in arrays else None,
        ensemble=np.concatenate([starts, members], axis=1),
        times=np.asarray([0] * len(start) + list(info["leads"])) * info["interval"],
        interval=info["interval"],
        field=field,
        unit=info["unit"],
        time_unit=info["time_unit"],
    )
