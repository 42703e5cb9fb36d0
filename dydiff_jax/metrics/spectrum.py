"""Variance, energy and enstrophy by wavenumber: are the small scales there, and not too strong?"""

import numpy as np
from jaxtyping import Float

from dydiff_jax.metrics.leads import Ensemble, Observed, PerLead, Truth, per_lead
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


def energy_spectrum(
    velocity: Float[Array, "*lead h w 2"],
) -> tuple[Float[np.ndarray, "rings"], Float[np.ndarray, "*lead rings"]]:
    """Kinetic energy per mass of a doubly periodic flow, in rings of the wavenumber.

        E(n) = 1/2 sum_{round(|kappa|) = n} (|u_hat|^2 + |v_hat|^2),    x_hat = FFT(x) / (h w)

    with kappa as in `power_spectrum`, but no taper and with the mean flow, ring 0. The sum over rings is the
    mean of (u^2 + v^2) / 2 over the grid (Parseval), also where u and v stand at different points.

    Args:
      velocity: [..., h, w, 2], rows along y, columns along x and channels u, v; cells are square.
    Returns:
      wavenumber [rings], whole cycles per shorter side of the grid (the wavenumber itself on sides of 2 pi), 0
      up to the grid's corner, and E [..., rings]. Rings beyond min(h, w) // 2 are incomplete.
    """
    u, v = _amplitudes(velocity)
    return _over_rings(np.abs(u) ** 2 + np.abs(v) ** 2, velocity.shape[-2])


def enstrophy_spectrum(
    velocity: Float[Array, "*lead h w 2"], length: float = 2 * np.pi, staggered: bool = True
) -> tuple[Float[np.ndarray, "rings"], Float[np.ndarray, "*lead rings"]]:
    """Enstrophy of a doubly periodic flow, in rings of the wavenumber.

        Z(n) = 1/2 sum_{round(|kappa|) = n} |omega_hat|^2,    omega = dv/dx - du/dy

    with spectral derivatives. On a staggered grid u stands half a cell right of the cell's centre and v half a
    cell above it; to their common point, the cell's upper right corner, u_hat turns by exp(i k_y d / 2) and
    v_hat by exp(i k_x d / 2), d the spacing. Of collocated points the highest wavenumber of an even side, +-1
    in turn, has no derivative. For a flow without divergence |omega_hat|^2 = k^2 (|u_hat|^2 + |v_hat|^2).

    Args:
      velocity: as in `energy_spectrum`.
      length: of the grid's shorter side.
      staggered: u and v at the middles of right and upper faces; else both at the same points.
    Returns:
      wavenumber [rings], as in `energy_spectrum`, and Z [..., rings].
    """
    h, w = velocity.shape[-3:-1]
    f_y, f_x = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)
    per_unit = 2 * np.pi * min(h, w) / length  # cycles per grid point to wavenumber
    if staggered:
        d_y, d_x = (1j * per_unit * f * np.exp(1j * np.pi * f) for f in (f_y, f_x))
    else:
        d_y, d_x = (1j * per_unit * np.where(np.abs(f) == 0.5, 0.0, f) for f in (f_y, f_x))
    u, v = _amplitudes(velocity)
    return _over_rings(np.abs(d_x * v - d_y * u) ** 2, w)


def _amplitudes(velocity: Array) -> np.ndarray:
    """FFT(u) and FFT(v), each over h w, on the half plane: [2, ..., h, w // 2 + 1]."""
    planes = np.moveaxis(np.asarray(velocity, np.float64), -1, 0)
    return np.fft.rfft2(planes, norm="forward")


def _over_rings(squares: np.ndarray, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Wavenumber, and half the sum over rings of a half plane [..., h, w // 2 + 1] and its mirror image."""
    h = squares.shape[-2]
    wavenumber, ring_sum = _rings(h, w)
    return wavenumber, squares.reshape(*squares.shape[:-2], -1) @ ring_sum / 2


def _rings(h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Wavenumbers [rings] and the matrix [h (w // 2 + 1), rings] that sums a half plane over rings."""
    kappa = np.rint(min(h, w) * np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)))
    copies = np.where(2 * np.arange(w // 2 + 1) % w == 0, 1.0, 2.0)  # a column and its mirror image
    wavenumber = np.arange(kappa.max() + 1)
    return wavenumber, ((kappa[:, :, None] == wavenumber) * copies[:, None]).reshape(-1, wavenumber.size)


def lead_spectra(
    ensemble: Ensemble, truth: Truth, observed: Observed | None = None
) -> tuple[Float[np.ndarray, "rings"], Float[np.ndarray, "k two rings"]]:
    """Power spectra of forecast and truth at each lead, on the complete rings 1 ... min(h, w) // 2.

    The spectrum of the forecast is the mean of its members' spectra (not the spectrum of their mean, which is
    smoother), both averaged over the windows whose frame is wholly observed; NaN where there are none.

    Returns:
      wavenumber [rings] and spectra [k, 2, rings], forecast first, then truth.
    """
    complete = slice(1, min(truth.shape[-3:-1]) // 2 + 1)

    wavenumber = np.arange(complete.start, complete.stop, dtype=np.float64)

    def spectra(members: np.ndarray, actual: np.ndarray, known: np.ndarray | None) -> np.ndarray:
        if known is not None:
            whole = known.all(axis=(1, 2, 3))
            if not whole.any():
                return np.full((2, wavenumber.size), np.nan)
            members, actual = members[:, whole], actual[whole]
        forecast = np.mean([power_spectrum(member)[1].mean(axis=0) for member in members], axis=0)
        return np.stack([forecast, power_spectrum(actual)[1].mean(axis=0)])[:, complete]

    return wavenumber, per_lead(spectra, ensemble, truth, observed)


def spectrum_error(ensemble: Ensemble, truth: Truth, observed: Observed | None = None) -> PerLead:
    """Mean over wavenumbers of |log10(P_forecast / P_truth)| of `lead_spectra`, one value a lead; 0 is
    perfect.

    In decades: 0.3 is a factor of two. Infinite or NaN where a spectrum is exactly zero.
    """
    _, spectra = lead_spectra(ensemble, truth, observed)
    with np.errstate(divide="ignore", invalid="ignore"):
        forecast, truth = np.moveaxis(np.log10(spectra), 1, 0)
        return np.abs(forecast - truth).mean(axis=-1)


def _hann(size: int) -> np.ndarray:
    """sin^2(pi (j + 1/2) / size), scaled to mean square 1."""
    taper = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    return taper / np.sqrt(np.mean(taper**2))
