"""The figures of a comparison of methods, from comparison.json and the forecasts of the runs that it names.

A method has one colour in all of them, that of comparison.json; variants of it are lighter and differ in their lines.
"""

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from dydiff_jax.evaluation.plots import samples
from dydiff_jax.evaluation.plots.draw import DPI, write
from dydiff_jax.evaluation.plots.figures import MARKERS
from dydiff_jax.evaluation.plots.page import plain_axes

LINES = ("-", "--", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))  # of the variants of a method
THIN = ("--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))  # of the baselines
PALEST = 0.5  # share of white in the lightest variant
RING = {"linestyle": "none", "marker": "o", "markersize": 12, "fillstyle": "none", "color": "0.2"}
HEADROOM = 1.8  # top of an axis over the highest point of the methods; baselines beyond are cut off
WIDE = 8  # ratio of swept values from which their axis is logarithmic
LONGEST = 40  # characters of a name in a legend; of longer ones both ends are shown
MAX_MARKED = 16  # leads up to which each has a marker
LABELS = {
    "crps": "Fair CRPS ({})",
    "rmse": "RMSE of the mean ({})",
    "spread_skill": "Spread / error",
    "spectrum_error": "Spectrum error (decades)",
    "fsd": "Spectral distance fsd, ({})²",
    "mse_sum": "Squared error, summed",
}
SPECTRA = {
    "energy_spectrum": ("Kinetic energy", "energy, ({})²"),
    "enstrophy_spectrum": ("Enstrophy", "enstrophy, ({} per length)²"),
    "spectrum": ("Power", "power, ({})²"),
}

SWEEP = (
    "Scores of the validation split against {}; bars are one std over seeds, rings mark the chosen values."
)

Figures = dict[str, list[tuple[Path, str]]]


def compare_all(home: Path) -> Figures:
    """Draw every figure of a comparison into its folder "figures".

    Args:
      home: holds comparison.json; the folders that it names hold forecasts.npz.

    Returns:
      {"curves" | "spectra" | "samples" | "sweeps": [(file, caption)]}, each file written atomically; "sweeps" show the
      validation split.
    """
    found = json.loads((home / "comparison.json").read_text(encoding="utf-8"))
    out = home / "figures"
    out.mkdir(exist_ok=True)

    def saved(name: str, figure: Figure, caption: str) -> tuple[Path, str]:
        return write(out / f"{name}.png", functools.partial(figure.savefig, dpi=DPI)), caption

    drawn = [name for name in ("crps", "rmse", "fsd") if any(name in g["scores"] for g in found["groups"])]
    points = {**(found["validation"] or {"swept": [], "groups": []}), "unit": found["unit"]}
    kinds = [kind for kind in SPECTRA if any(kind in g["spectra"] for g in found["groups"])]
    if len(kinds) > 1:
        kinds.remove("spectrum")
    return {
        "curves": [saved(f"{name}_over_lead", curves(found, name), _caption(found, name)) for name in drawn],
        "spectra": [
            saved(
                kind, spectra(found, kind), f"{SPECTRA[kind][0]} by wavenumber, and over that of the truth."
            )
            for kind in kinds
        ],
        "samples": samples.draw(found, home, out),
        "sweeps": [saved(f"sweep_{key}", sweep(points, key), SWEEP.format(key)) for key in points["swept"]],
    }


def styles(groups: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{label: colour, line and marker}."""
    found = {}
    for group in groups:
        alike = [other["label"] for other in groups if other["method"] == group["method"]]
        i, base = alike.index(group["label"]), np.array(to_rgb(group["colour"]))
        pale = PALEST * i / max(len(alike) - 1, 1)
        found[group["label"]] = {
            "color": tuple((1 - pale) * base + pale),
            "linestyle": LINES[i % len(LINES)],
            "marker": MARKERS[group["number"] % len(MARKERS)],
            "linewidth": 2,
            "markersize": 5,
            "label": _short(group["label"]),
        }
    return found


def _short(label: str) -> str:
    """A label that leaves room for others in a legend."""
    return label if len(label) <= LONGEST else f"{label[: LONGEST // 2 - 1]} … {label[1 - LONGEST // 2 :]}"


def curves(found: Mapping[str, Any], name: str) -> Figure:
    """A score over lead: the mean over seeds in a band of one std; baselines thin, the floor of fsd dashed.

    The spread of each ensemble is dotted in the figure of the rmse.
    """
    figure, axis = _one_panel()
    groups = [group for group in found["groups"] if name in group["scores"]]
    top = highest = 0.0
    for group, style in zip(groups, styles(groups).values(), strict=True):
        times, mean, std = _over_lead(group["scores"][name], found["interval"])
        axis.plot(times, mean, markevery=max(1, len(times) // MAX_MARKED), **style)
        axis.fill_between(times, mean - std, mean + std, color=style["color"], alpha=0.2, linewidth=0)
        top = max([top, *(mean + std)])
        if name == "rmse" and "spread" in group["scores"]:
            times, spread, _ = _over_lead(group["scores"]["spread"], found["interval"])
            axis.plot(times, spread, color=style["color"], linestyle=":", linewidth=1.6)
            top = max([top, *spread])
    if name == "rmse" and any("spread" in group["scores"] for group in groups):
        axis.plot([], [], color="0.2", linestyle=":", linewidth=1.6, label="spread of the members")
    if name == "fsd" and "fsd_floor" in groups[0]["scores"]:
        times, floor, _ = _over_lead(groups[0]["scores"]["fsd_floor"], found["interval"])
        axis.plot(
            times, floor, color="black", linestyle="--", linewidth=1.2, label="floor: truth against truth"
        )
    baselines = {label: entry for label, entry in found["baselines"].items() if name in entry["scores"]}
    for i, (baseline, entry) in enumerate(baselines.items()):
        times, mean, _ = _over_lead(entry["scores"][name], found["interval"])
        beyond = " (off the scale)" if name != "fsd" and min(mean, default=0) > HEADROOM * top else ""
        highest = max([highest, *mean])
        dashes: Any = THIN[i % len(THIN)]
        axis.plot(times, mean, label=f"{baseline}{beyond}", color="0.5", linestyle=dashes, linewidth=1)
    if name == "fsd":
        axis.set_yscale("log")
    else:
        axis.set_ylim(0, min(HEADROOM * top, 1.05 * max(top, highest)) or 1)
    _finish(figure, axis, f"lead time ({found['time_unit']})", LABELS[name].format(found["unit"]))
    return figure


def spectra(found: Mapping[str, Any], kind: str) -> Figure:
    """A spectrum at the last lead, with the range over seeds, and its ratio to that of the truth."""
    figure = Figure(figsize=(5.8, 6.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    groups = [group for group in found["groups"] if kind in group["spectra"]]
    for group, style in zip(groups, styles(groups).values(), strict=True):
        spectrum = {key: np.asarray(value, float) for key, value in group["spectra"][kind].items()}
        shown = (spectrum["wavenumber"] > 0) & (spectrum["truth"] > 0)
        wavenumber, truth, power, low, high = (
            spectrum[key][shown] for key in ("wavenumber", "truth", "forecast", "low", "high")
        )
        line = {key: value for key, value in style.items() if "marker" not in key}
        for axis, over in ((upper, 1.0), (lower, truth)):
            axis.plot(wavenumber, power / over, **line)
            axis.fill_between(
                wavenumber, low / over, high / over, color=line["color"], alpha=0.2, linewidth=0
            )
    upper.plot(wavenumber, truth, color="black", linestyle="--", linewidth=1.2, label="truth", zorder=5)
    lower.axhline(1.0, color="black", linestyle="--", linewidth=1.2, zorder=5)
    upper.set_xscale("log", base=2)
    upper.set_yscale("log")
    lower.set_yscale("log", base=2)
    for values in (lower.xaxis, lower.yaxis):
        values.set_major_formatter("{x:g}")
    label = SPECTRA[kind][1].format(found["unit"])
    plain_axes(upper, ylabel=label)
    _finish(figure, lower, "wavenumber (cycles per shorter side)", "forecast over truth", upper)
    return figure


def sweep(found: Mapping[str, Any], key: str) -> Figure:
    """The main scores against the swept value, a line for each method and value of other sweeps.

    Methods that do not have the key are level lines. Chosen points are ringed.

    Args:
      found: "groups", and the "unit" of the data.
      key: of the sweep.
    """
    names = [name for name in LABELS if any(_point(g, name) for g in found["groups"])]
    rows = math.ceil(len(names) / 2)
    figure = Figure(figsize=(7, 2.6 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).flat
    places, ticks = _places([g["swept"][key] for g in found["groups"] if key in g["swept"]])
    wide = min(places.values()) > 0 and max(places.values()) >= WIDE * min(places.values())
    lines = _lines(found["groups"], key)
    shades = styles([{**groups[0], "label": name} for name, groups in lines.items()])
    for axis, name in zip(axes, names, strict=False):
        for line, groups in lines.items():
            points = [(group, point) for group in groups if (point := _point(group, name))]
            mean = np.array([point["mean"] for _, point in points])
            std = np.array([point["std"] or 0.0 for _, point in points])
            if key in groups[0]["swept"]:
                x = [places[str(group["swept"][key])] for group, _ in points]
                axis.errorbar(x, mean, std, capsize=3, **shades[line])
                rings = [
                    (place, y)
                    for place, y, (group, _) in zip(x, mean, points, strict=True)
                    if group["chosen"]
                ]
                axis.plot(*zip(*rings, strict=True) if rings else ((), ()), **RING)
            elif points:
                thin = {"linewidth": 1.2, "linestyle": "--"}
                axis.axhline(mean[0], color=shades[line]["color"], label=shades[line]["label"], **thin)
        label = LABELS[name].format(found["unit"]).replace(" (", "\n(").replace(", ", ",\n")
        plain_axes(axis, xlabel=key, ylabel=label)
        if wide:
            axis.set_xscale("log", base=2)
        axis.set_xticks(list(places.values()), ticks)
    for axis in list(axes)[len(names) :]:
        axis.set_axis_off()
    _legend(figure, figure.axes[0])
    return figure


def _lines(groups: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[Mapping[str, Any]]]:
    """{method and values of the other sweeps: its groups}."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for group in groups:
        others = [f"{k.rpartition('.')[2]} {v}" for k, v in group["swept"].items() if k != key]
        name = ", ".join([group["method"], *others]) if key in group["swept"] else group["label"]
        found.setdefault(name, []).append(group)
    return found


def _places(values: Iterable[Any]) -> tuple[dict[str, float], list[str]]:
    """{value as text: place on the axis} and the ticks' texts: numbers at themselves, all else side by side."""
    values = list(dict.fromkeys(values))
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if numeric:
        values = sorted(values)
    return {str(v): float(v) if numeric else float(i) for i, v in enumerate(values)}, [str(v) for v in values]


def _point(group: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The number that stands in the summary."""
    entry = group["scores"].get(name, {}).get("last" if name == "fsd" else "all")
    return entry if entry and entry["mean"] is not None else None


def _over_lead(score: Mapping[str, Any], interval: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, means and std over seeds (0 where unknown) of the leads that have a value."""
    known = [(i + 1, lead) for i, lead in enumerate(score["per_lead"]) if lead["mean"] is not None]
    times = np.array([lead for lead, _ in known]) * interval
    return times, np.array([e["mean"] for _, e in known]), np.array([e["std"] or 0.0 for _, e in known])


def _caption(found: Mapping[str, Any], name: str) -> str:
    several = any(len(group["seeds"]) > 1 for group in found["groups"])
    band = " Bands are one std over seeds." if several else " One seed each: no band."
    return f"{LABELS[name].format(found['unit'])} over lead time.{band} Baselines are thin and grey."


def _one_panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.8, 4.5), layout="constrained")
    return figure, figure.subplots()


def _finish(figure: Figure, axis: Axes, xlabel: str, ylabel: str, named: Axes | None = None) -> None:
    plain_axes(axis, xlabel=xlabel, ylabel=ylabel)
    _legend(figure, named or axis)


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) > 22 else 3
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
