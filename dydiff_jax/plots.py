"""Pictures of an evaluation, drawn from its results files alone: `metrics.json` and `forecasts.npz`.

Times count from the last context frame, in the unit that metrics.json names. The first row of a field is at
the bottom.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

# Okabe and Ito: colour-blind safe
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
PANEL, GAP = 1.25, 0.06  # inches: height of a field in the forecast picture, distance of fields
DPI = 150
FILM_DPI = 100
FILM_ZOOM = 1.6  # fields of the film against those of the forecast picture
FILM_LEVELS = 48  # colours of a scale in the film, which has 256 in all
FRAMES_PER_SECOND = 3
MAX_LEADS = 6  # columns of the forecast picture beside the last context frame
MAX_MEMBERS = 3  # its rows of single members


class _Results(NamedTuple):
    """An evaluation's scores, and one field of one of its windows.

    Sequences begin with the last context frame: truth [1 + k, h, w], ensemble [e, 1 + k, h, w] and times
    [1 + k]; the context before it is `earlier` [p - 1, h, w].
    """

    info: dict[str, Any]
    earlier: np.ndarray
    truth: np.ndarray
    ensemble: np.ndarray
    times: np.ndarray
    label: str

    @property
    def mean(self) -> np.ndarray:
        return self.ensemble.mean(axis=0)

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation between the members, zero if there is but one."""
        return self.ensemble.std(axis=0, ddof=min(1, len(self.ensemble) - 1))


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
    results = _read(folder, field, window)
    figures = {
        "forecast.png": _forecast_figure(results),
        "error_over_lead.png": _error_figure(results.info),
        "spectra.png": _spectra_figure(results.info),
        "rank_histogram.png": _rank_figure(results.info),
    }
    for name, figure in figures.items():
        _write(folder / name, functools.partial(figure.savefig, dpi=DPI))
    _write(folder / "film.gif", functools.partial(_save_film, results))
    return [folder / name for name in (*figures, "film.gif")]


def _read(folder: Path, field: str | None, window: int) -> _Results:
    info_path, arrays_path = folder / "metrics.json", folder / "forecasts.npz"
    for path in (info_path, arrays_path):
        if not path.is_file():
            raise FileNotFoundError(
                f"expected the results file {path}; run an evaluation into {folder} first"
            )
    info = json.loads(info_path.read_text())
    with np.load(arrays_path) as arrays:
        stored = dict(arrays)
    _require(info_path, info, ("method", "scores", "leads", "interval", "time_unit", "unit", "fields"))
    _require(arrays_path, stored, ("context", "truth", "ensemble"))
    fields = list(info["fields"])
    field = fields[-1] if field is None else field
    if field not in fields:
        raise ValueError(f"field: expected one of {fields} of {info_path}, found {field!r}")
    if not 0 <= window < len(stored["truth"]):
        raise ValueError(f"window: expected 0 to {len(stored['truth']) - 1} of {arrays_path}, found {window}")
    select = (window, ..., fields.index(field))
    context, truth, members = (
        stored["context"][select],
        stored["truth"][select],
        stored["ensemble"][:, *select],
    )
    start = context[-1:]
    return _Results(
        info=info,
        earlier=context[:-1],
        truth=np.concatenate([start, truth]),
        ensemble=np.concatenate([np.broadcast_to(start, (len(members), *start.shape)), members], axis=1),
        times=np.asarray([0, *info["leads"]]) * info["interval"],
        label=f"{field} ({info['unit']})",
    )


def _require(path: Path, entries: Mapping[str, Any], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in entries]
    if missing:
        raise ValueError(f"expected the entries {missing} in {path}, found {sorted(entries)}; evaluate again")


def _write(path: Path, save: Callable[[Path], None]) -> None:
    """Save under another name, then rename, so that the file at path is whole at any time."""
    part = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        save(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _scales(results: _Results, levels: int = 256) -> dict[str, dict[str, Any]]:
    """Colour scales that leave out one value in 500; signed ones are symmetric about zero."""

    def scale(name: str, values: np.ndarray, signed: bool) -> dict[str, Any]:
        reach = float(np.quantile(np.abs(values), 0.998)) or 1.0
        return {"cmap": colormaps[name].resampled(levels), "vmin": -reach * signed, "vmax": reach}

    return {
        "field": scale("RdBu_r", results.truth, True),
        "spread": scale("cividis", results.spread, False),
        "residual": scale("PuOr_r", results.mean - results.truth, True),
    }


def _forecast_figure(results: _Results) -> Figure:
    """Rows: truth, mean, members, spread, residual of the mean. Columns: last context frame, then leads."""
    scales, members = _scales(results), min(len(results.ensemble), MAX_MEMBERS)
    rows = [("truth", results.truth, "field"), ("mean", results.mean, "field")]
    rows += [(f"member {i + 1}", results.ensemble[i], "field") for i in range(members)]
    rows += [("spread", results.spread, "spread"), ("mean - truth", results.mean - results.truth, "residual")]
    k = len(results.times) - 1
    columns = [0, *np.unique(np.linspace(1, k, min(k, MAX_LEADS)).round().astype(int))]
    width, height = _panel_size(results)
    page = _Page(0.4 + len(columns) * width + 1.0, 0.6 + len(rows) * height)
    for row, (name, frames, scale) in enumerate(rows):
        low = page.height - 0.25 - (row + 1) * height
        axes = [page.axes(0.4 + i * width, low, width - GAP, height - GAP) for i in range(len(columns))]
        images = [_field_image(axis, frames[i], scales[scale]) for axis, i in zip(axes, columns, strict=True)]
        axes[0].set_ylabel(name)
        if row == 0:
            for axis, i in zip(axes, columns, strict=True):
                axis.set_title(f"+{results.times[i]:g}" if i else "last context", fontsize=10)
        span, label = (row + 1, results.label) if scale == "field" else (1, results.info["unit"])
        if row >= members + 1:
            bar = page.axes(page.width - 0.95, low, 0.12, span * height - GAP)
            page.figure.colorbar(images[-1], cax=bar, label=label)
    page.figure.text(0.5, 0.1 / page.height, f"lead time ({results.info['time_unit']})", ha="center")
    return page.figure


class _Page:
    """A figure whose axes are placed in inches from its lower left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))

    def axes(self, left: float, low: float, width: float, height: float) -> Axes:
        across, up = self.width, self.height
        return self.figure.add_axes((left / across, low / up, width / across, height / up))


def _panel_size(results: _Results) -> tuple[float, float]:
    """Width and height of a field in inches, with the gap to the next."""
    rows, columns = results.truth.shape[1:]
    return PANEL * columns / rows + GAP, PANEL + GAP


def _field_image(axis: Axes, frame: np.ndarray, scale: Mapping[str, Any]) -> AxesImage:
    axis.set(xticks=[], yticks=[])
    return axis.imshow(frame, origin="lower", aspect="auto", interpolation="nearest", **scale)


def _plain_axes(axis: Axes, **labels: str) -> None:
    axis.set(**labels)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)


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


def _error_figure(info: Mapping[str, Any]) -> Figure:
    """RMSE of the mean with the spread of each ensemble, and CRPS, over lead time."""
    figure, left, right = _two_panels()
    times = np.asarray(info["leads"]) * info["interval"]
    for name, style in _styles(info).items():
        scores = info["scores"][name]
        left.plot(times, scores["rmse"]["per_lead"], **style)
        right.plot(times, scores["crps"]["per_lead"], **style)
        if scores["spread"]["mean"] is not None:
            left.plot(times, scores["spread"]["per_lead"], color=style["color"], linestyle=":")
    left.plot([], [], color="0.3", linestyle=":", label="spread")
    xlabel = f"lead time ({info['time_unit']})"
    _plain_axes(left, title="Error and spread", xlabel=xlabel, ylabel=f"RMSE of the mean ({info['unit']})")
    _plain_axes(right, title="Score of the ensemble", xlabel=xlabel, ylabel=f"fair CRPS ({info['unit']})")
    for axis in (left, right):
        axis.set_ylim(bottom=0)
    _legend(figure, left)
    return figure


def _spectra_figure(info: Mapping[str, Any]) -> Figure:
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
    _plain_axes(left, title="Power at the last lead", xlabel=xlabel, ylabel=f"power, ({info['unit']})²")
    _plain_axes(right, title="Forecast over truth", xlabel=xlabel, ylabel="ratio of power")
    _legend(figure, left)
    return figure


def _rank_figure(info: Mapping[str, Any]) -> Figure:
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
        _plain_axes(axis, title=name, xlabel="members below the truth")
    axes[0].set_ylabel("frequency (1 if flat)")
    return figure


def _save_film(results: _Results, path: Path) -> None:
    """Context, then truth, mean, two members and spread side by side, lead by lead."""
    films = {"truth": results.truth, "mean": results.mean}
    films |= {f"member {i + 1}": member for i, member in enumerate(results.ensemble[:2])}
    films = {name: np.concatenate([results.earlier, film]) for name, film in films.items()}
    films["spread"] = np.concatenate([np.zeros_like(results.earlier), results.spread])
    width, height = (FILM_ZOOM * side for side in _panel_size(results))
    page = _Page(0.2 + len(films) * width, height + 1.15)
    scales, images = _scales(results, FILM_LEVELS), []
    for i, (name, film) in enumerate(films.items()):
        axis = page.axes(0.1 + i * width, 0.65, width - GAP, height - GAP)
        axis.set_title(name)
        images.append(_field_image(axis, film[0], scales["spread" if name == "spread" else "field"]))
    bars = ((0.1, (len(films) - 1) * width - GAP, results.label), (page.width - 0.1 - width, width - GAP, ""))
    for image, (left, length, label) in zip((images[0], images[-1]), bars, strict=True):
        bar = page.axes(left, 0.48, length, 0.1)
        page.figure.colorbar(image, cax=bar, orientation="horizontal", label=label or results.info["unit"])
    heading = page.figure.suptitle("")
    writer = PillowWriter(fps=FRAMES_PER_SECOND)
    with writer.saving(page.figure, path, FILM_DPI):
        for i in range(len(films["truth"])):
            lead = i - len(results.earlier)
            time = f"{lead * results.info['interval']:+.2f} {results.info['time_unit']}"
            heading.set_text(f"{'forecast' if lead > 0 else 'context'}, {time}")
            for image, film in zip(images, films.values(), strict=True):
                image.set_data(film[i])
            writer.grab_frame()
