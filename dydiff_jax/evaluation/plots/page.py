"""Shared by figures and animations: axes placed in inches, colour scales and images of fields."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from dydiff_jax.evaluation.plots.results import Forecast

PANEL, GAP = 1.25, 0.06  # inches: side of a square field, distance of fields


class Page:
    """A figure whose axes are placed in inches from its lower left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))

    def axes(self, left: float, low: float, width: float, height: float) -> Axes:
        """New axes with this lower left corner and size."""
        across, up = self.width, self.height
        return self.figure.add_axes((left / across, low / up, width / across, height / up))


def panel_size(forecast: Forecast) -> tuple[float, float]:
    """Width and height of a field in inches, with the gap to the next; grids of any shape have one area."""
    rows, columns = forecast.context.shape[1:]
    stretch = (columns / rows) ** 0.5
    return PANEL * stretch + GAP, PANEL / stretch + GAP


def scales(forecast: Forecast, levels: int = 256) -> dict[str, dict[str, Any]]:
    """Colour scales that leave out one known value in 500; signed ones are symmetric about zero.

    Returns:
      {"field": of the truth, or of the ensemble if there is none, "spread": ..., and with a truth "residual":
      of the mean}; each is the options of an image.
    """

    def scale(name: str, values: np.ndarray, signed: bool) -> dict[str, Any]:
        known = np.abs(values[np.isfinite(values)])
        reach = (float(np.quantile(known, 0.998)) if known.size else 0.0) or 1.0
        return {"cmap": colormaps[name].resampled(levels), "vmin": -reach * signed, "vmax": reach}

    spread = scale("cividis", forecast.spread, False)
    if forecast.truth is None:
        return {"field": scale("RdBu_r", forecast.ensemble, True), "spread": spread}
    residual = scale("PuOr_r", forecast.mean - forecast.truth, True)
    return {"field": scale("RdBu_r", forecast.truth, True), "spread": spread, "residual": residual}


def field_image(axis: Axes, frame: np.ndarray, scale: Mapping[str, Any]) -> AxesImage:
    """A field [h, w] without ticks that fills its axes."""
    axis.set(xticks=[], yticks=[])
    return axis.imshow(frame, origin="lower", aspect="auto", interpolation="nearest", **scale)


def plain_axes(axis: Axes, **labels: str) -> None:
    """Axes with these labels, a light grid and no frame above and to the right."""
    axis.set(**labels)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
