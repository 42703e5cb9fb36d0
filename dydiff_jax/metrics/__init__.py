"""Scores of forecasts, as pure functions of host arrays in physical units, accumulated in float64.

An ensemble is [e, b, k, h, w, c], the truth [b, k, h, w, c]; a score per lead is [k]. ``observed`` is bool and
broadcasts to the truth, None where nothing is missing: a missing point carries no score, and whatever the truth holds
there, NaN included, changes none. A lead without an observed point scores NaN.
"""

from dydiff_jax.metrics.categorical import csi
from dydiff_jax.metrics.crps import crps_difference, crps_ensemble, crps_per_lead, nonneg_cases, pooled_crps
from dydiff_jax.metrics.deterministic import mae, mse, mse_mean, mse_sum, rmse
from dydiff_jax.metrics.ensemble import rank_histogram, spread, spread_skill_ratio, ssr_biased
from dydiff_jax.metrics.frechet import frechet_distance, frechet_spectral_distance
from dydiff_jax.metrics.image import psnr, ssim
from dydiff_jax.metrics.leads import Diverged, check_forecast
from dydiff_jax.metrics.spectrum import (
    energy_spectrum,
    enstrophy_spectrum,
    lead_spectra,
    power_spectrum,
    spectrum_error,
)

__all__ = [
    "Diverged",
    "check_forecast",
    "crps_difference",
    "crps_ensemble",
    "crps_per_lead",
    "csi",
    "energy_spectrum",
    "enstrophy_spectrum",
    "frechet_distance",
    "frechet_spectral_distance",
    "lead_spectra",
    "mae",
    "mse",
    "mse_mean",
    "mse_sum",
    "nonneg_cases",
    "pooled_crps",
    "power_spectrum",
    "psnr",
    "rank_histogram",
    "rmse",
    "spectrum_error",
    "spread",
    "spread_skill_ratio",
    "ssim",
    "ssr_biased",
]
