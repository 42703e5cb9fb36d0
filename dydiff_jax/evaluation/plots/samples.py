"""One member of each method beside the truth: a strip of a few leads, and an animation."""

import functools
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure

from dydiff_jax.evaluation.plots.animation import DPI, LEVELS
from dydiff_jax.evaluation.plots.draw import DPI as STRIP_DPI
from dydiff_jax.evaluation.plots.draw import write
from dydiff_jax.evaluation.plots.page import GAP, Page, field_image, panel_size, scales
from dydiff_jax.evaluation.plots.results import Forecast, read_evaluation, read_scores

MAX_PANELS = 8  # the truth and as many methods as fit
ACROSS = 4  # panels of the animation side by side
MAX_LEADS = 6  # columns of the strip
MAX_FRAMES = 60  # of the animation, evenly spaced
ZOOM = 1.5  # fields of the animation against those of the strip
NAMES = 1.5  # inches left of the strip, for the names of its rows
TITLE = 0.36  # inches above a panel of the animation: two lines
LONGEST = 20  # characters of a line


def draw(found: Mapping[str, Any], home: Path, out: Path) -> list[tuple[Path, str]]:
    """Draw strip and animation of the first window that is kept, of the last field.

    Args:
      found: the contents of comparison.json.
      home: what the folders in it are relative to.
      out: where the files go.

    Returns:
      The files with their captions; none for a grid of 1 x 1.
    """
    forecasts, missing = _read(found, home)
    first, panels = next(iter(forecasts.values())), _panels(forecasts)
    if max(first.context.shape[1:]) == 1:
        return []
    what = f"The truth and one member of each method, one test window, {first.label}, one colour scale."
    if missing:
        what += f" Not shown: {', '.join(missing)}."
    strip = functools.partial(_strip(first, panels).savefig, dpi=STRIP_DPI)
    animation = functools.partial(_animate, first, panels)
    return [
        (write(out / "samples.png", strip), what),
        (write(out / "animation.gif", animation), "The same as an animation."),
    ]


def _read(found: Mapping[str, Any], home: Path) -> tuple[dict[str, Forecast], list[str]]:
    """{label: forecast of the first seed}, the first variant of every method before the others, as many as fit;
    and the labels left out, for lack of room or because their test window is another."""
    groups = found["groups"]
    firsts = {group["method"]: group for group in reversed(groups)}
    order = sorted(groups, key=lambda group: group is not firsts[group["method"]])
    forecasts: dict[str, Forecast] = {}
    for group in order[: MAX_PANELS - 1]:
        folder = home / group["folders"][0]
        forecast = read_evaluation(folder, read_scores(folder), None, 0)
        if not forecasts or _same_window(forecast, next(iter(forecasts.values()))):
            forecasts[group["label"]] = forecast
    shown = [group["label"] for group in groups if group["label"] in forecasts]
    missing = [group["label"] for group in groups if group["label"] not in forecasts]
    return {label: forecasts[label] for label in shown}, missing


def _panels(forecasts: Mapping[str, Forecast]) -> dict[str, np.ndarray]:
    """The truth, and the first member of every forecast, [1 + k, h, w] each."""
    truth = next(iter(forecasts.values())).truth
    assert truth is not None  # these forecasts come from evaluations
    return {"truth": truth} | {label: forecast.ensemble[0] for label, forecast in forecasts.items()}


def _same_window(one: Forecast, other: Forecast) -> bool:
    """Whether the truth is the same as far as both go."""
    assert one.truth is not None and other.truth is not None  # these forecasts come from evaluations
    frames = min(len(one.truth), len(other.truth))
    return np.array_equal(one.truth[:frames], other.truth[:frames], equal_nan=True)


def _frames(panels: Mapping[str, np.ndarray], most: int) -> list[int]:
    """The first frame, and up to `most` of the others that every panel has, evenly spaced."""
    last = min(len(frames) for frames in panels.values()) - 1
    return [0, *np.unique(np.linspace(1, last, min(last, most)).round().astype(int))]


def _strip(forecast: Forecast, panels: Mapping[str, np.ndarray]) -> Figure:
    """Rows: truth and methods. Columns: the last context frame and leads."""
    chosen, options = _frames(panels, MAX_LEADS), scales(forecast)["field"]
    width, height = panel_size(forecast)
    page = Page(NAMES + len(chosen) * width + 0.95, 0.65 + len(panels) * height)
    for row, (name, frames) in enumerate(panels.items()):
        low = page.height - 0.25 - (row + 1) * height
        for column, i in enumerate(chosen):
            axis = page.axes(NAMES + column * width, low, width - GAP, height - GAP)
            image = field_image(axis, frames[i], options)
            if row == 0:
                axis.set_title(f"+{forecast.times[i]:.4g}" if forecast.times[i] else "context", fontsize=10)
        page.figure.text(
            (NAMES - 0.1) / page.width,
            (low + height / 2) / page.height,
            _broken(name),
            ha="right",
            va="center",
            fontsize=9,
        )
    bar = page.axes(page.width - 0.9, 0.4 + GAP, 0.12, len(panels) * height - 2 * GAP)
    page.figure.colorbar(image, cax=bar, label=forecast.label)
    centre = (NAMES + len(chosen) * width / 2) / page.width
    page.figure.text(centre, 0.12 / page.height, f"lead time ({forecast.time_unit})", ha="center")
    return page.figure


def _animate(forecast: Forecast, panels: Mapping[str, np.ndarray], path: Path) -> None:
    """All panels side by side, lead by lead."""
    options, chosen = scales(forecast, LEVELS)["field"], _frames(panels, MAX_FRAMES)
    width, height = (ZOOM * side for side in panel_size(forecast))
    rows = math.ceil(len(panels) / ACROSS)
    across = math.ceil(len(panels) / rows)
    page = Page(0.2 + across * width, 1.0 + rows * (height + TITLE))
    images = {}
    for name, (row, column) in zip(panels, itertools.product(range(rows), range(across)), strict=False):
        low = page.height - 0.3 - (row + 1) * (height + TITLE)
        axis = page.axes(0.1 + column * width, low, width - GAP, height - GAP)
        axis.set_title(_broken(name), fontsize=8, pad=2)
        images[name] = field_image(axis, panels[name][0], options)
    bar = page.axes(0.3, 0.42, page.width - 0.6, 0.08)
    page.figure.colorbar(images["truth"], cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=8)
    page.figure.text(0.5, 0.06 / page.height, forecast.label, ha="center", fontsize=9)
    heading = page.figure.text(0.5, 1 - 0.2 / page.height, "", ha="center")
    writer = PillowWriter(fps=3 if len(chosen) <= 20 else 8)
    with writer.saving(page.figure, path, DPI):
        for i in chosen:
            lead = f"lead {forecast.times[i]:.4g} {forecast.time_unit}"
            heading.set_text(lead if forecast.times[i] else "last known frame")
            for name, image in images.items():
                image.set_data(panels[name][i])
            writer.grab_frame()


def _broken(name: str) -> str:
    """A label in lines that fit beside a panel."""
    lines = name.replace(", ", ",\n", 1).replace(" (", "\n(").split("\n")
    return "\n".join(line if len(line) <= LONGEST else f"…{line[1 - LONGEST :]}" for line in lines)
