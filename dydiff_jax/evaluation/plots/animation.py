"""The animation of a forecast."""

from pathlib import Path

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.image import AxesImage

from dydiff_jax.evaluation.plots.page import GAP, Page, field_image, panel_size, scales
from dydiff_jax.evaluation.plots.results import Forecast

DPI = 100
ZOOM = 1.6  # fields of the animation against those of the forecast figure
LEVELS = 48  # colours of a scale; a frame of the file has 256 in all
FRAMES_PER_SECOND = 3
MAX_MEMBERS = 2  # panels of single members
BAR_INSET = 0.1  # of a panel, at both ends of a colour bar: tick labels of neighbours stay apart


def save_animation(forecast: Forecast, path: Path) -> None:
    """Write the context, then lead by lead the truth (if known), mean, members and spread side by side."""
    panels = _panels(forecast)
    page, images = _page(forecast, panels)
    heading = page.figure.suptitle("")
    writer = PillowWriter(fps=FRAMES_PER_SECOND)
    with writer.saving(page.figure, path, DPI):
        for i, text in enumerate(_headings(forecast)):
            heading.set_text(text)
            for name, image in images.items():
                image.set_data(panels[name][i])
            writer.grab_frame()


def _panels(forecast: Forecast) -> dict[str, np.ndarray]:
    """{panel: frames [p + k, h, w]}, the spread last, left out if there is but one member."""
    earlier = forecast.context[:-1]
    fields = forecast.fields(MAX_MEMBERS)
    panels = {name: np.concatenate([earlier, frames]) for name, frames in fields.items()}
    if len(forecast.ensemble) > 1:
        panels["spread"] = np.concatenate([np.zeros_like(earlier), forecast.spread])
    return panels


def _page(forecast: Forecast, panels: dict[str, np.ndarray]) -> tuple[Page, dict[str, AxesImage]]:
    """The page with the first frame of every panel, and colour bars below: of the fields, of the spread."""
    width, height = (ZOOM * side for side in panel_size(forecast))
    page = Page(0.2 + len(panels) * width, height + 1.15)
    options, images = scales(forecast, LEVELS), {}
    for i, (name, frames) in enumerate(panels.items()):
        axis = page.axes(0.1 + i * width, 0.65, width - GAP, height - GAP)
        axis.set_title(name)
        images[name] = field_image(axis, frames[0], options["spread" if name == "spread" else "field"])
    fields = [name for name in panels if name != "spread"]
    bars = {fields[0]: (0, len(fields), forecast.label)}
    if "spread" in panels:
        bars["spread"] = (len(fields), 1, forecast.unit)
    for name, (first, across, label) in bars.items():
        bar = page.axes(0.1 + (first + BAR_INSET) * width, 0.48, (across - 2 * BAR_INSET) * width - GAP, 0.1)
        page.figure.colorbar(images[name], cax=bar, orientation="horizontal", label=label)
        bar.tick_params(labelsize=9)
    return page, images


def _headings(forecast: Forecast) -> list[str]:
    """The time of every frame, with as many decimals as the interval has, or the first lead."""
    finest = min([forecast.interval, *(time for time in forecast.times if time > 0)])
    interval = np.format_float_positional(finest, precision=4, fractional=False, trim="-")
    decimals = len(interval.partition(".")[2])
    earlier = np.arange(1 - len(forecast.context), 0) * forecast.interval
    return [
        f"{'forecast' if time > 0 else 'context'}, {time:+.{decimals}f} {forecast.time_unit}"
        for time in (*earlier, *forecast.times)
    ]
