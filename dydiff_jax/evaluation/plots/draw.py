"""The table of figures, and from the results files in a folder to the figures beside them."""

import functools
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from dydiff_jax.evaluation.plots import animation, figures, results
from dydiff_jax.evaluation.plots.results import Forecast
from dydiff_jax.runs import files

DPI = 150


class Drawing(NamedTuple):
    """A figure of an evaluation.

    Attributes:
      save: writes it to a path, from the contents of metrics.json and one field of one window.
      kinds: data for which it is made by default.
      scores: that it shows.
      grid: whether it shows fields, of more than one point.
      suffix: of its file.
    """

    save: Callable[[Mapping[str, Any], Forecast, Path], None]
    kinds: tuple[str, ...]
    scores: tuple[str, ...] = ()
    grid: bool = False
    suffix: str = ".png"


def _of_scores(draw: Callable[[Mapping[str, Any]], Figure]) -> Callable[..., None]:
    return lambda info, forecast, path: draw(info).savefig(path, dpi=DPI)


def _of_fields(draw: Callable[[Forecast], Figure]) -> Callable[..., None]:
    return lambda info, forecast, path: draw(forecast).savefig(path, dpi=DPI)


#: {name: figure}, in the order in which they are drawn; the file is the name with its suffix.
FIGURES: dict[str, Drawing] = {
    "forecast": Drawing(_of_fields(figures.forecast_figure), ("field", "video"), grid=True),
    "error_over_lead": Drawing(
        _of_scores(figures.error_figure), ("field", "video", "series"), ("rmse", "crps")
    ),
    "spectra": Drawing(_of_scores(figures.spectra_figure), ("field", "video"), ("spectrum",)),
    "rank_histogram": Drawing(
        _of_scores(figures.rank_figure), ("field", "video", "series"), ("rank_histogram",)
    ),
    "animation": Drawing(
        lambda info, forecast, path: animation.save_animation(forecast, path),
        ("field", "video"),
        grid=True,
        suffix=".gif",
    ),
}


def chosen(
    names: Collection[str] | None, kind: str, frame: tuple[int, ...], scores: Collection[str]
) -> dict[str, Drawing]:
    """The figures that an evaluation draws, in the order of the table.

    Args:
      names: those to draw; None: those of the kind of the data that have a meaning for them.
      kind: of the data: "field", "video" or "series".
      frame: (h, w, ...).
      scores: names of the scores that are made.

    Raises:
      ValueError: a listed figure is unknown or has no meaning for these data, with the reason.
    """
    unknown = [name for name in names or () if name not in FIGURES]
    if unknown:
        raise ValueError(f"figures: expected some of {list(FIGURES)}, found {unknown}")
    found = {}
    for name, figure in FIGURES.items():
        if name in names if names is not None else kind in figure.kinds:
            reason = _no_meaning(figure, frame, scores)
            if names is not None and reason:
                raise ValueError(f"figures: no {name} for these data: {reason}")
            if not reason:
                found[name] = figure
    return found


def _no_meaning(figure: Drawing, frame: tuple[int, ...], scores: Collection[str]) -> str | None:
    """Why a figure has no meaning for some data, or None."""
    if figure.grid and max(frame[:2]) == 1:
        return "expected a grid of more than one point, found 1 x 1"
    missing = [name for name in figure.scores if name not in scores]
    return f"expected the scores {missing}, which are not made" if missing else None


def plot_all(folder: str | os.PathLike, field: str | None = None, window: int = 0) -> list[Path]:
    """Draw the figures of an evaluation into its folder.

    Those that the entry "figures" of the header's "evaluation" lists, else those of the header's "kind" (without one:
    "field").

    Args:
      folder: holds metrics.json and forecasts.npz.
      field: the field that forecast and animation show, one of metrics.json's "fields"; the last one if None.
      window: which of the stored windows they show.

    Returns:
      The files; for fields forecast.png (truth, mean, members, spread and residual over leads), error_over_lead.png,
      spectra.png, rank_histogram.png and animation.gif. Each is written atomically.

    Raises:
      FileNotFoundError: a results file is missing.
      ValueError: a results file lacks an entry, has no such field or window, or lists a figure without meaning.
    """
    folder = Path(folder)
    info = results.read_scores(folder)
    forecast = results.read_evaluation(folder, info, field, window)
    names = info.get("evaluation", {}).get("figures")
    drawn = chosen(
        names, info.get("kind", "field"), forecast.context.shape[1:], info["scores"][info["method"]]
    )
    return [
        write(folder / f"{name}{figure.suffix}", functools.partial(figure.save, info, forecast))
        for name, figure in drawn.items()
    ]


def animate(folder: str | os.PathLike, field: str | None = None, window: int = 0) -> Path | None:
    """Draw the animation of a forecast without truth into its folder.

    Args:
      folder: holds forecast.npz with context [n, p, h, w, c], ensemble [e, n, k, h, w, c], leads [k],
        interval, fields [c], unit and time_unit.
      field: the field that the animation shows, one of the file's "fields"; the last one if None.
      window: which of the n windows it shows.

    Returns:
      animation.gif: p context frames, then k leads of the mean, up to two members and the spread, or of the only
      member. It is written atomically. None for a grid of 1 x 1, which is not drawn.

    Raises:
      FileNotFoundError: forecast.npz is missing.
      ValueError: it lacks an entry, or has no such field or window.
    """
    folder = Path(folder)
    forecast = results.read_forecast(folder, field, window)
    if max(forecast.context.shape[1:]) == 1:
        return None
    return write(folder / "animation.gif", functools.partial(animation.save_animation, forecast))


def write(path: Path, save: Callable[[Path], None]) -> Path:
    """Save a figure or an animation atomically; returns its path."""
    with files.atomic(path) as temporary:
        save(temporary)
    return path
