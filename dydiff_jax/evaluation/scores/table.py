"""The metrics of a forecast, listed once for scores, definitions and tables alike.

A metric is a function, a sentence, a unit and the direction in which it is better.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from dydiff_jax import metrics
from dydiff_jax.evaluation.scores.options import ScoreOptions
from dydiff_jax.types import Array

Better = Literal["low", "high", "one", "none"]

#: Entries of the scores that hold arrays and so have no mean.
ARRAYS = ("rank_histogram", "spectrum", "energy_spectrum", "enstrophy_spectrum")


class Metric(NamedTuple):
    """A function to [k], its sentence, its unit ({}: that of the data), and the members that it needs."""

    score: Callable[[Array, Array], np.ndarray]
    definition: str
    unit: str = "{}"
    better: Better = "low"
    min_members: int = 1


def definitions(options: ScoreOptions, members: int, windows: int, unit: str = "") -> dict[str, str]:
    """What each entry of `score` is: estimator, pooling, mask, members, windows and unit in a sentence."""
    unit = unit or "that of the data"
    ensemble = f"{members} member{'s' if members > 1 else ''}, {windows} window{'s' if windows > 1 else ''}"
    sentences = {
        name: f"{metric.definition}; {ensemble}; unit: {metric.unit.format(unit)}."
        for name, metric in lead_metrics(options).items()
    }
    sentences |= _fsd_definitions(options, ensemble, unit)
    sentences["rank_histogram"] = (
        "Number of grid points, windows, fields and leads where the truth lies above exactly r members, "
        f"r = 0 ... {members}, ties ranked at random with seed {options.rank_seed}; {ensemble}; unit: counts."
    )
    sentences["spectrum"] = (
        "Variance in rings of the wavenumber (whole cycles per shorter side of the grid) at the last lead, "
        "summed over fields, after a Hann taper of the field minus its mean; mean over members' spectra and "
        "windows; "
        f"{ensemble}; unit: square of {unit}."
    )
    return sentences | _flow_definitions(options, ensemble, unit)


def lead_metrics(options: ScoreOptions) -> dict[str, Metric]:
    """The metrics with a value at every lead, in the order of the table."""
    average = "mean over windows, grid and fields"
    fair = "mean|x_i - y| - sum_ij|x_i - x_j| / (2 e (e - 1)) of e members x and truth y"
    biased = fair.replace("e (e - 1)", "e^2")
    return {
        "crps": Metric(metrics.crps_per_lead, f"Fair CRPS, {fair}; {average}, no mask"),
        "crps_biased": Metric(
            functools.partial(metrics.crps_per_lead, fair=False),
            f"CRPS of the empirical distribution, {biased}; {average}, no mask",
        ),
        **_pooled_metrics(options),
        "rmse": Metric(
            metrics.rmse, f"Root of the squared error of the ensemble mean, {average} before the root"
        ),
        "mae": Metric(metrics.mae, f"Absolute error of the ensemble mean, {average}"),
        "spread": Metric(
            metrics.spread,
            f"Root of the variance of the members (divisor e - 1), {average} before the root",
            better="none",
            min_members=2,
        ),
        "spread_skill": Metric(
            metrics.spread_skill_ratio, "sqrt((e + 1) / e) spread / rmse, 1 when honest", "1", "one", 2
        ),
        f"csi_w{options.csi_window}": _csi_metric(options),
        "spectrum_error": Metric(
            metrics.spectrum_error,
            "Mean over wavenumbers of |log10(forecast / truth)| of the power spectra (as spectrum)",
            "decades",
        ),
        **_squared_errors(options),
    }


def _pooled_metrics(options: ScoreOptions) -> dict[str, Metric]:
    """The pooled CRPS: average and maximum, without and with the mask."""
    window, stride = options.pool_window, options.pool_stride
    masks = {
        "": "mean over windows, places and fields, no mask",
        "_nonneg": "mean over places where the truth is nowhere negative, then over fields and those windows "
        "in which every lead and field keeps a place",
    }
    return {
        f"crps_w{window}_{how}{suffix}": Metric(
            functools.partial(
                metrics.pooled_crps, window=window, stride=stride, how=how, nonneg_mask=bool(suffix)
            ),
            f"Fair CRPS (as crps) after {name} pooling of members and truth over {window} x {window} points "
            f"at stride {stride}, {mask}",
        )
        for suffix, mask in masks.items()
        for how, name in (("avg", "average"), ("max", "maximum"))
    }


def _csi_metric(options: ScoreOptions) -> Metric:
    window, stride, padding = options.csi_window, options.csi_stride, options.csi_window // 2
    return Metric(
        functools.partial(
            metrics.csi, threshold=options.csi_threshold, pool=window, stride=stride, padding=padding
        ),
        f"Hits / (hits + misses + false alarms), event: value >= {options.csi_threshold:g}, masks "
        f"max-pooled over {window} x {window} points at stride {stride} with {padding} points of padding, "
        "each member a forecast, counts summed over members, windows, grid and fields",
        "1",
        "high",
    )


def _squared_errors(options: ScoreOptions) -> dict[str, Metric]:
    """The squared error of single members, averaged and summed, where a scale is given."""
    if options.mse_scale is None:
        return {}
    each = "each member a forecast (not their mean, as in rmse)"
    return {
        "mse": Metric(
            metrics.mse,
            f"Mean of (x - y)^2 over members, windows, grid and fields, {each}",
            "square of {}",
        ),
        "mse_sum": Metric(
            functools.partial(metrics.mse_sum, scale=options.mse_scale),
            f"Sum over grid and fields of ((x - y) / {options.mse_scale:g})^2, mean over members and windows, "
            f"{each}; the size of the MSE in Ruhe et al. 2024, who do not state the sum",
            f"square of {options.mse_scale:g} {{}}",
        ),
    }


def _fsd_definitions(options: ScoreOptions, ensemble: str, unit: str) -> dict[str, str]:
    if options.fsd_samples is None:
        return {}
    leads = "every lead" if options.leads is None else f"leads {', '.join(map(str, options.leads))}"
    convention = (
        f"magnitudes of {options.fsd_transform}, norm {options.fsd_norm!r}, of field {options.fsd_field} in the "
        f"data's unit, Frechet distance of their mean and covariance, N = {options.fsd_samples} frames in each "
        f"sample, one a window; at {leads} as far as the forecast goes, null at others, mean over these"
    )
    return {
        "fsd": f"Frechet spectral distance of forecast and truth: {convention}; members in turn, mean over members, "
        f"their standard deviation (divisor e - 1) in std; {ensemble}; unit: square of {unit}.",
        "fsd_floor": "Frechet spectral distance of truth and frames of the training part, what independent samples "
        f"of one law score with these N (a forecast still close to its truth may score less): {convention}; "
        f"unit: square of {unit}.",
    }


def _flow_definitions(options: ScoreOptions, ensemble: str, unit: str) -> dict[str, str]:
    if not options.flow:
        return {}
    rings = (
        "in rings of the wavenumber (whole cycles per side of 2 pi) at the last lead, without taper; mean over "
        "members' spectra and windows"
    )
    return {
        "energy_spectrum": f"Kinetic energy per mass, (u^2 + v^2) / 2, {rings}; {ensemble}; unit: square of {unit}.",
        "enstrophy_spectrum": "Enstrophy, (dv/dx - du/dy)^2 / 2 at the corners of a staggered grid's cells by "
        f"spectral derivatives, {rings}; {ensemble}; unit: square of ({unit} per unit of length).",
    }
