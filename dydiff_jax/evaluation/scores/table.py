"""The table of scores: what each is, for which data it has a meaning, and the function that makes it."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from dydiff_jax import metrics
from dydiff_jax.evaluation.scores import entries, meaning
from dydiff_jax.evaluation.scores.options import ScoreOptions

Better = Literal["low", "high", "one", "none"]


@dataclasses.dataclass(frozen=True)
class Score:
    """A score of a forecast.

    Attributes:
      make: its numbers for a `Case`.
      title: a heading.
      plain: what it says, for a reader who knows no scores; {unit} is the unit of the data.
      definition: estimator, averages and masks, a template that `definitions` fills.
      kinds: data for which it is made by default.
      unit: of its values; {unit} is that of the data.
      better: the direction: low, high, near one, or none.
      counted: what of incomplete data it counts.
      min_members: that it needs; 0: it looks at no ensemble.
      over_leads: a value at every lead; else arrays, without a mean.
      asked: whether an option asks for it, whatever the kind of the data; None: no option does.
      refuse: (options, frame [h, w, c]) to the reason why it has no meaning for such data, or None.
    """

    make: entries.Make
    title: str
    plain: str
    definition: str
    kinds: tuple[str, ...] = ()
    unit: str = "{unit}"
    better: Better = "low"
    counted: str = "observed points"
    min_members: int = 1
    over_leads: bool = True
    asked: Callable[[ScoreOptions], bool] | None = None
    refuse: meaning.Refuse = lambda options, frame: None


def _has_scale(options: ScoreOptions) -> bool:
    return options.mse_scale is not None


def _biased(options: ScoreOptions) -> bool:
    return options.biased


ALL = ("field", "video", "series")
GRIDS = ("field", "video")
MEAN = "mean over windows, grid and fields"
FAIR = "mean|x_i - y| - sum_ij|x_i - x_j| / (2 e (e - 1)) of e members x and truth y"
BIASED = FAIR.replace("e (e - 1)", "e^2")
POOLED = (
    "Fair CRPS (as crps) after {how} pooling of members and truth over {{pool_window}} x {{pool_window}} points at "
    "stride {{pool_stride}}, {mask}"
)
NO_MASK = "mean over windows, places and fields, no mask"
NONNEG = (
    "mean over places where the truth is nowhere negative, then over fields and those windows in which every lead and "
    "field keeps a place"
)
EACH = "each member a forecast (not their mean, as in rmse)"
DISTANCE = (
    "magnitudes of {fsd_transform}, norm {fsd_norm!r}, of field {fsd_field} in the data's unit, Frechet distance of "
    "their mean and covariance, N = {fsd_samples} frames in each sample, one a window; at {lead_words} as far as the "
    "forecast goes, null at others, mean over these"
)
RINGS = (
    "in rings of the wavenumber (whole cycles per side of 2 pi) at the last lead, without taper; mean over members' "
    "spectra and windows"
)
FRAMES = "windows whose frame is wholly observed"


def _pooled(how: Literal["avg", "max"], nonneg: bool) -> Score:
    """One of the four pooled CRPS."""
    name = {"avg": "average", "max": "maximum"}[how]
    where = " where the truth is nowhere negative" if nonneg else ""
    return Score(
        make=entries.pooled_crps(how, nonneg),
        title=f"Fair CRPS of the {name} over neighbourhoods{where}",
        plain=f"the CRPS of the {name} over each neighbourhood{where}, which forgives small displacements ({{unit}})",
        definition=POOLED.format(how=name, mask=NONNEG if nonneg else NO_MASK),
        kinds=("field",) if nonneg else GRIDS,
        counted="pooled places that are wholly observed",
        refuse=meaning.window("pool_window"),
    )


def _ssr(per: Literal["lead", "window"]) -> Score:
    """One of the two spread-skill ratios of DYffusion."""
    of = {
        "lead": MEAN,
        "window": "mean over grid and fields; the ratio of a window and lead, mean over windows",
    }[per]
    return Score(
        make=entries.over_leads(metrics.ssr_biased, lambda options: {"per": per}),
        title=f"Spread over skill, uncorrected, by {per}",
        plain="as spread_skill without a correction for the number of members e: a calibrated ensemble scores "
        "sqrt((e - 1) / (e + 1)), below 1",
        definition=f"Root of the variance of the members (divisor e) over the root of mse_mean, {of}; a calibrated "
        "ensemble scores sqrt((e - 1) / (e + 1)), .980 for e = 50; the SSR of DYffusion (Ruehling Cachay et al. 2023)",
        unit="1",
        better="none",
        counted="observed points" if per == "lead" else "observed points, of windows that have one",
        min_members=2,
        asked=_biased,
    )


#: {name: score} in the order of the tables; a name holds the options that it depends on.
SCORES: dict[str, Score] = {
    "crps": Score(
        make=entries.over_leads(metrics.crps_per_lead),
        title="Fair CRPS",
        plain="distance of the ensemble from the truth ({unit}); proper score: rewards sharp and calibrated ensembles",
        definition=f"Fair CRPS, {FAIR}; {MEAN}, no mask",
        kinds=ALL,
    ),
    "crps_biased": Score(
        make=entries.over_leads(metrics.crps_per_lead, lambda options: {"fair": False}),
        title="CRPS of the empirical distribution",
        plain="as crps, of exactly these members: small ensembles score worse than large ones ({unit})",
        definition=f"CRPS of the empirical distribution, {BIASED}; {MEAN}, no mask",
        kinds=ALL,
    ),
    "crps_w{pool_window}_avg": _pooled("avg", False),
    "crps_w{pool_window}_max": _pooled("max", False),
    "crps_w{pool_window}_avg_nonneg": _pooled("avg", True),
    "crps_w{pool_window}_max_nonneg": _pooled("max", True),
    "rmse": Score(
        make=entries.over_leads(metrics.rmse),
        title="RMSE of the mean",
        plain="root mean square error of the ensemble mean ({unit})",
        definition=f"Root of the squared error of the ensemble mean, {MEAN} before the root",
        kinds=ALL,
    ),
    "mae": Score(
        make=entries.over_leads(metrics.mae),
        title="Absolute error of the mean",
        plain="mean absolute error of the ensemble mean ({unit})",
        definition=f"Absolute error of the ensemble mean, {MEAN}",
        kinds=ALL,
    ),
    "spread": Score(
        make=entries.over_leads(metrics.spread),
        title="Spread of the members",
        plain="standard deviation between the members ({unit}); it should match the rmse",
        definition=f"Root of the variance of the members (divisor e - 1), {MEAN} before the root",
        kinds=ALL,
        better="none",
        min_members=2,
    ),
    "spread_skill": Score(
        make=entries.over_leads(metrics.spread_skill_ratio),
        title="Spread over skill",
        plain="spread over error: 1 for a calibrated ensemble, below 1 over-confident, above 1 under-confident",
        definition="sqrt((e + 1) / e) spread / rmse, 1 for a calibrated ensemble",
        kinds=ALL,
        unit="1",
        better="one",
        min_members=2,
    ),
    "mse_mean": Score(
        make=entries.over_leads(metrics.mse_mean),
        title="Squared error of the mean",
        plain="mean squared error of the ensemble mean (square of {unit}), the square of rmse",
        definition=f"Squared error of the ensemble mean, {MEAN}; the MSE of DYffusion (Ruehling Cachay et al. 2023)",
        unit="square of {unit}",
        asked=_biased,
    ),
    "ssr_biased": _ssr("lead"),
    "ssr_biased_window": _ssr("window"),
    "csi_w{csi_window}": Score(
        make=entries.over_leads(
            metrics.csi,
            lambda options: {
                "threshold": options.csi_threshold,
                "pool": options.csi_window,
                "stride": options.csi_stride,
                "padding": options.csi_window // 2,
            },
        ),
        title="Critical success index",
        plain="share of forecast or true events, values at or above a threshold, that are both; 1 is perfect",
        definition="Hits / (hits + misses + false alarms), event: value >= {csi_threshold:g}, masks max-pooled over "
        "{csi_window} x {csi_window} points at stride {csi_stride} with {csi_padding} points of padding, each member a "
        "forecast, counts summed over members, windows, grid and fields",
        kinds=("field",),
        unit="1",
        better="high",
        counted="pooled places that are wholly observed",
        refuse=meaning.window("csi_window"),
    ),
    "spectrum_error": Score(
        make=entries.over_leads(metrics.spectrum_error),
        title="Spectrum error",
        plain="error of the power at each wavenumber, in powers of ten; forecasts too smooth or too noisy raise it",
        definition="Mean over wavenumbers of |log10(forecast / truth)| of the power spectra (as spectrum)",
        kinds=GRIDS,
        unit="decades",
        counted=FRAMES,
        refuse=meaning.no_grid,
    ),
    "mse": Score(
        make=entries.over_leads(metrics.mse),
        title="Squared error of single members (mean over grid and fields)",
        plain="mean squared error of single members (square of {unit})",
        definition=f"Mean of (x - y)^2 over members, windows, grid and fields, {EACH}",
        unit="square of {unit}",
        asked=_has_scale,
    ),
    "mse_sum": Score(
        make=entries.over_leads(metrics.mse_sum, lambda options: {"scale": options.mse_scale}),
        title="Squared error of single members (sum over grid and fields)",
        plain="squared error of single members, summed over the frame",
        definition="Sum over grid and fields of ((x - y) / {mse_scale:g})^2, mean over members and windows, "
        f"{EACH}; the size of the MSE in Ruhe et al. 2024, who do not state the sum",
        unit="square of {mse_scale:g} {unit}",
        counted="observed points, times the number of values of a frame",
        asked=_has_scale,
        refuse=meaning.no_scale,
    ),
    "fsd": Score(
        make=entries.spectral_distance,
        title="Frechet spectral distance (floor: truth against training frames)",
        plain="Frechet spectral distance at one lead: whether the distribution of forecast fields matches that of "
        "true fields, by their Fourier spectra (square of {unit}); other true fields score the floor, and a forecast "
        "still close to the truth, as at the first leads, may score below it",
        definition=f"Frechet spectral distance of forecast and truth: {DISTANCE}; members in turn, mean over members, "
        "their standard deviation (divisor e - 1) in std",
        unit="square of {unit}",
        counted="windows whose field is wholly observed (null if fewer than N)",
        asked=lambda options: options.fsd_samples is not None,
        refuse=meaning.no_distance,
    ),
    "fsd_floor": Score(
        make=entries.spectral_floor,
        title="Floor of the Frechet spectral distance",
        plain="Frechet spectral distance of true fields and training fields: what independent samples of one "
        "distribution score (square of {unit})",
        definition="Frechet spectral distance of truth and frames of the training split, what independent samples of "
        f"one law score with these N (a forecast still close to its truth may score less): {DISTANCE}",
        unit="square of {unit}",
        better="none",
        counted="windows whose field is wholly observed (null if fewer than N)",
        min_members=0,
        asked=lambda options: options.fsd_samples is not None,
        refuse=meaning.no_distance,
    ),
    "rank_histogram": Score(
        make=entries.rank_histogram,
        title="Rank histogram",
        plain="how often the truth takes each rank among the members: flat for a calibrated ensemble",
        definition="Number of grid points, windows, fields and leads where the truth lies above exactly r members, "
        "r = 0 ... {members}, ties ranked at random with seed {rank_seed}",
        kinds=ALL,
        unit="counts",
        better="none",
        min_members=2,
        over_leads=False,
    ),
    "spectrum": Score(
        make=entries.spectrum,
        title="Power spectrum",
        plain="variance by wavenumber, from large to small structures, of forecast and truth",
        definition="Variance in rings of the wavenumber (whole cycles per shorter side of the grid) at the last lead, "
        "summed over fields, after a Hann taper of the field minus its mean; mean over members' spectra and windows",
        kinds=GRIDS,
        unit="square of {unit}",
        better="none",
        counted=FRAMES,
        over_leads=False,
        refuse=meaning.no_grid,
    ),
    **{
        f"{name}_spectrum": Score(
            make=entries.flow_spectrum(metric),
            title=f"{title} spectrum",
            plain=f"{title.lower()} by wavenumber, from large to small eddies, of forecast and truth",
            definition=f"{definition}, {RINGS}",
            unit=unit,
            better="none",
            counted=FRAMES,
            over_leads=False,
            asked=lambda options: options.flow,
            refuse=meaning.no_flow,
        )
        for name, metric, title, definition, unit in (
            (
                "energy",
                metrics.energy_spectrum,
                "Kinetic energy",
                "Kinetic energy per mass, (u^2 + v^2) / 2",
                "square of {unit}",
            ),
            (
                "enstrophy",
                metrics.enstrophy_spectrum,
                "Enstrophy",
                "Enstrophy, (dv/dx - du/dy)^2 / 2 at the corners of a staggered grid's cells by spectral derivatives",
                "square of ({unit} per unit of length)",
            ),
        )
    },
}

#: Entries of the scores that hold arrays and so have no mean.
ARRAYS = tuple(name for name, score in SCORES.items() if not score.over_leads)
