"""The figures of an evaluation: fields over leads, errors, spectra and ranks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dydiff_jax.evaluation.plots.page import GAP, Page, field_image, panel_size, plain_axes, scales
from dydiff_jax.evaluation.plots.results import Forecast

# Okabe and Ito: colour-blind safe
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
MARGIN = 0.5  # inches left of the forecast figure, for the names of its rows
MAX_LEADS = 6  # columns of the forecast figure beside the last context frame
MAX_MEMBERS = 3  # its rows of single members


def forecast_figure(forecast: Forecast) -> Figure:
    """Rows: truth, mean, members, spread, residual of the mean. Columns: last context frame, then leads.

    The truth is known. A single member has no row beside its mean, and no spread.
    """
    options, fields = scales(forecast), forecast.fields(MAX_MEMBERS)
    rows = [(name, frames, "field") for name, frames in fields.items()]
    if len(forecast.ensemble) > 1:
        rows.append(("spread", forecast.spread, "spread"))
    rows.append((f"{rows[1][0]}\n- truth", forecast.mean - forecast.truth, "residual"))
    columns = _columns(len(forecast.times), known=min(1, len(forecast.context)))
    width, height = panel_size(forecast)
    page = Page(MARGIN + len(columns) * width + 1.0, 0.6 + len(rows) * height)
    for row, (name, frames, scale) in enumerate(rows):
        low = page.height - 0.25 - (row + 1) * height
        axes = [page.axes(MARGIN + i * width, low, width - GAP, height - GAP) for i in range(len(columns))]
        images = [field_image(axis, frames[i], options[scale]) for axis, i in zip(axes, columns, strict=True)]
        axes[0].set_ylabel(name)
        if row == 0:
            for axis, i in zip(axes, columns, strict=True):
                axis.set_title(f"+{time:.4g}" if (time := forecast.times[i]) else "context", fontsize=10)
        span, label = (row + 1, forecast.label) if scale == "field" else (1, forecast.unit)
        if row >= len(fields) - 1:
            bar = page.axes(page.width - 0.95, low + GAP, 0.12, span * height - 3 * GAP)
            page.figure.colorbar(images[-1], cax=bar, label=label)
    page.figure.text(0.5, 0.1 / page.height, f"lead time ({forecast.time_unit})", ha="center")
    return page.figure


def _columns(frames: int, known: int) -> list[int]:
    """The last context frame, if there is one, and up to MAX_LEADS of the leads, evenly spaced with first and last."""
    leads = np.linspace(known, frames - 1, min(frames - known, MAX_LEADS))
    return [*range(known), *np.unique(leads.round().astype(int))]


def _styles(info: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each forecast, the evaluated method first and thickest."""
    names = sorted(info["scores"], key=lambda name: name != info["method"])
    return {
        name: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linewidth": 1.4 if i else 2.6,
            "markersize": 4 if i else 6,
            "label": name,
        }
        for i, name in enumerate(names)
    }


def _two_panels() -> tuple[Figure, Axes, Axes]:
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    return figure, *figure.subplots(1, 2)


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)


def error_figure(info: Mapping[str, Any]) -> Figure:
    """RMSE of the mean with the spread of each ensemble, and CRPS, over lead time."""
    figure, left, right = _two_panels()
    times = np.asarray(info["leads"]) * info["interval"]
    for name, style in _styles(info).items():
        scores = info["scores"][name]
        left.plot(times, _values(scores["rmse"]), **style)
        right.plot(times, _values(scores["crps"]), **style)
        if "spread" in scores and np.isfinite(_values(scores["spread"])).any():
            left.plot(times, _values(scores["spread"]), color=style["color"], linestyle=":")
    left.plot([], [], color="0.3", linestyle=":", label="spread")
    xlabel = f"lead time ({info['time_unit']})"
    plain_axes(left, title="Error and spread", xlabel=xlabel, ylabel=f"RMSE of the mean ({info['unit']})")
    plain_axes(right, title="Score of the ensemble", xlabel=xlabel, ylabel=f"fair CRPS ({info['unit']})")
    for axis in (left, right):
        axis.set_ylim(bottom=0)
    _legend(figure, left)
    return figure


def _values(score: Mapping[str, Any]) -> np.ndarray:
    """A score at each lead, NaN where it is undefined."""
    return np.asarray(score["per_lead"], float)


def spectra_figure(info: Mapping[str, Any]) -> Figure:
    """Power spectra at the last lead, and their ratio to that of the truth."""
    figure, left, right = _two_panels()
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
    left.set_yscale("log")
    right.set_yscale("log", base=2)
    right.yaxis.set_major_formatter("{x:g}")
    for name, style in _styles(info).items():
        spectrum = info["scores"][name]["spectrum"]
        wavenumber, truth = np.asarray(spectrum["wavenumber"]), np.asarray(spectrum["truth"], float)
        forecast = np.asarray(spectrum["forecast"], float)
        line = {key: value for key, value in style.items() if "marker" not in key}
        left.plot(wavenumber, forecast, **line)
        right.plot(wavenumber, forecast / truth, **line)
    left.plot(wavenumber, truth, color="black", linestyle="--", label="truth", zorder=5)
    right.axhline(1.0, color="black", linestyle="--", zorder=5)
    xlabel = "wavenumber (cycles per shorter side)"
    plain_axes(left, title="Power at the last lead", xlabel=xlabel, ylabel=f"power, ({info['unit']})²")
    plain_axes(right, title="Forecast over truth", xlabel=xlabel, ylabel="ratio of power")
    _legend(figure, left)
    return figure


def rank_figure(info: Mapping[str, Any]) -> Figure:
    """How often the truth takes each rank among the members, one panel for each ensemble."""
    counts = {name: info["scores"][name]["rank_histogram"]["counts"] for name in _styles(info)}
    ensembles = {name: np.asarray(count) for name, count in counts.items() if count is not None}
    panels = max(len(ensembles), 1)
    figure = Figure(figsize=(2.9 * panels + 0.6, 3.2), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for axis, (name, count) in zip(axes, ensembles.items(), strict=False):
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.bar(np.arange(len(count)), count / count.mean(), width=0.85, color=_styles(info)[name]["color"])
    for axis, name in zip(axes, ensembles or ["no ensemble"], strict=True):
        axis.axhline(1.0, color="black", linestyle="--", linewidth=1)
        plain_axes(axis, title=name, xlabel="members below the truth")
    axes[0].set_ylabel("frequency (1 if flat)")
    return figure
