"""Variance by wavenumber: are the small scales there, and not too strong?"""

import numpy as np
from jaxtyping import Float

from dydiff_jax.metrics.leads import Ensemble, PerLead, Truth, per_lead
from dydiff_jax.types import Array


def power_spectrum(
    fields: Float[Array, "*lead h w c"],
) -> tuple[Float[np.ndarray, "rings"], Float[np.ndarray, "*lead rings"]]:
    """Variance in rings of the two-dimensional wavenumber, summed over channels.

        P(n) = sum_c sum_{round(|kappa|) = n} |FFT(taper (u - mean u))|^2 / (h w)^2,
        |kappa| = min(h, w) sqrt(f_x^2 + f_y^2),    f in cycles per grid point

    The fields are cut out of a larger flow and not periodic, so each is tapered by a Hann window,
    sin^2(pi (j + 1/2) / n) along each side, scaled to mean square 1; the mean over the grid is taken off
    first and does not count. By Parseval's theorem the sum over rings is the mean square of what was
    transformed.

    Args:
      fields: [..., h, w, c] in physical units.
    Returns:
      wavenumber [rings], whole cycles per shorter side of the grid, 0 up to the grid's corner, and the power
      [..., rings] in squared units. Rings beyond min(h, w) // 2 are incomplete.
    """
    planes = np.ascontiguousarray(np.moveaxis(np.asarray(fields, np.float64), -1, -3))
    h, w = planes.shape[-2:]
    anomaly = planes - planes.mean(axis=(-2, -1), keepdims=True)
    amplitude = np.fft.rfft2(anomaly * _hann(h)[:, None] * _hann(w)) / (h * w)
    power = np.sum(np.abs(amplitude) ** 2, axis=-3)
    wavenumber, ring_sum = _rings(h, w)
    return wavenumber, power.reshape(*power.shape[:-2], -1) @ ring_sum


def _rings(h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Wavenumbers [rings] and the matrix [h (w // 2 + 1), rings] that sums a half plane over rings."""
    kappa = np.rint(min(h, w) * np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)))
    copies = np.where(2 * np.arange(w // 2 + 1) % w == 0, 1.0, 2.0)  # a column and its mirror image
    wavenumber = np.arange(kappa.max() + 1)
    return wavenumber, ((kappa[:, :, None] == wavenumber) * copies[:, None]).reshape(-1, wavenumber.size)


def lead_spectra(
    ensemble: Ensemble, truth: Truth
) -> tuple[Float[np.ndarray, "rings"], Float[np.ndarray, "k two rings"]]:
    """Power spectra of forecast and truth at each lead, on the complete rings 1 ... min(h, w) // 2.

    The spectrum of the forecast is the mean of its members' spectra (not the spectrum of their mean, which is
    smoother), both averaged over windows.

    Returns:
      wavenumber [rings] and spectra [k, 2, rings], forecast first, then truth.
    """
    complete = slice(1, min(truth.shape[-3:-1]) // 2 + 1)

    def spectra(members: np.ndarray, observed: np.ndarray) -> np.ndarray:
        forecast = np.mean([power_spectrum(member)[1].mean(axis=0) for member in members], axis=0)
        return np.stack([forecast, power_spectrum(observed)[1].mean(axis=0)])[:, complete]

    wavenumber = np.arange(complete.start, complete.stop, dtype=np.float64)
    return wavenumber, per_lead(spectra, ensemble, truth)


def spectrum_error(ensemble: Ensemble, truth: Truth) -> PerLead:
    """Mean over wavenumbers of |log10(P_forecast / P_truth)| of `lead_spectra`, one value a lead; 0 is
    perfect.

    In decades: 0.3 is a factor of two. Infinite or NaN where a spectrum is exactly zero.
    """
    _, spectra = lead_spectra(ensemble, truth)
    with np.errstate(divide="ignore", invalid="ignore"):
        forecast, truth = np.moveaxis(np.log10(spectra), 1, 0)
        return np.abs(forecast - truth).mean(axis=-1)


def _hann(size: int) -> np.ndarray:
    """sin^2(pi (j + 1/2) / size), scaled to mean square 1."""
    taper = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    return taper / np.sqrt(np.mean(taper**2))
