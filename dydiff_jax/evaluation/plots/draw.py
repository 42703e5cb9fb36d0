"""From the results files in a folder to the pictures beside them."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

from dydiff_jax.evaluation.plots import animation, figures, results
from dydiff_jax.runs import files

DPI = 150


def plot_all(folder: str | os.PathLike, field: str | None = None, window: int = 0) -> list[Path]:
    """Draw every picture of an evaluation into its folder.

    Args:
      folder: holds metrics.json and forecasts.npz.
      field: the field that pictures and film show, one of metrics.json's "fields"; the last one if None.
      window: which of the stored windows they show.

    Returns:
      The files: forecast.png (truth, mean, members, spread and residual over leads), error_over_lead.png,
      spectra.png, rank_histogram.png and film.gif. Each is written whole or not at all.

    Raises:
      FileNotFoundError: a results file is missing.
      ValueError: a results file lacks an entry, or has no such field or window.
    """
    folder = Path(folder)
    info = results.read_scores(folder)
    forecast = results.read_evaluation(folder, info, field, window)
    pictures = {
        "forecast.png": figures.forecast_figure(forecast),
        "error_over_lead.png": figures.error_figure(info),
        "spectra.png": figures.spectra_figure(info),
        "rank_histogram.png": figures.rank_figure(info),
    }
    saves = {name: functools.partial(figure.savefig, dpi=DPI) for name, figure in pictures.items()}
    saves["film.gif"] = functools.partial(animation.save_film, forecast)
    return [write(folder / name, save) for name, save in saves.items()]


def film(folder: str | os.PathLike, field: str | None = None, window: int = 0) -> Path:
    """Draw the film of a forecast without truth into its folder.

    Args:
      folder: holds forecast.npz with context [n, p, h, w, c], ensemble [e, n, k, h, w, c], leads [k],
        interval, fields [c], unit and time_unit.
      field: the field that the film shows, one of the file's "fields"; the last one if None.
      window: which of the n windows it shows.

    Returns:
      film.gif: p context frames, then k leads of the mean, up to two members and the spread, or of the only
      member. It is written whole or not at all.

    Raises:
      FileNotFoundError: forecast.npz is missing.
      ValueError: it lacks an entry, or has no such field or window.
    """
    folder = Path(folder)
    forecast = results.read_forecast(folder, field, window)
    return write(folder / "film.gif", functools.partial(animation.save_film, forecast))


def write(path: Path, save: Callable[[Path], None]) -> Path:
    """Save a picture or an animation atomically; returns its path."""
    with files.atomic(path) as temporary:
        save(temporary)
    return path
