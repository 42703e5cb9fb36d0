"""The power spectrum: Parseval, plane waves, a full-plane sum by loops, and what the error means."""

import numpy as np
import pytest
import scipy.fft

from dydiff_jax import metrics


def taper(n):
    window = np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2
    return window / np.sqrt((window**2).mean())


def fields(shape, seed=0):
    return np.random.default_rng(seed).normal(2.0, 1.0, size=shape)


@pytest.mark.parametrize("h, w", [(16, 16), (12, 20), (15, 9), (8, 17)])
def test_parseval(h, w):
    """The sum over rings is the mean square of the tapered anomaly, summed over channels."""
    x = fields((3, h, w, 2))
    tapered = (x - x.mean(axis=(1, 2), keepdims=True)) * (taper(h)[:, None] * taper(w))[:, :, None]
    wavenumber, power = metrics.power_spectrum(x)
    assert power.shape == (3, wavenumber.size)
    np.testing.assert_allclose(power.sum(axis=-1), (tapered**2).mean(axis=(1, 2)).sum(axis=-1), rtol=1e-12)


@pytest.mark.parametrize("h, w", [(16, 16), (12, 20), (15, 9)])
def test_rings_agree_with_a_loop_over_the_full_plane(h, w):
    x = fields((h, w, 1))
    spectrum = (
        np.abs(scipy.fft.fft2((x[..., 0] - x.mean()) * taper(h)[:, None] * taper(w))) ** 2 / (h * w) ** 2
    )
    wavenumber, power = metrics.power_spectrum(x)
    expected = np.zeros(wavenumber.size)
    for i, j in np.ndindex(h, w):
        cycles = min(h, w) * np.hypot(scipy.fft.fftfreq(h)[i], scipy.fft.fftfreq(w)[j])
        expected[round(cycles)] += spectrum[i, j]
    np.testing.assert_allclose(power, expected, rtol=1e-11, atol=1e-18)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_plane_wave_sits_in_its_ring(axis):
    """The Hann taper passes 2/3 of the power, a half in all, to ring 8 and 1/6 to each neighbour."""
    wave = np.cos(2 * np.pi * 8 * np.arange(32) / 32)
    x = np.broadcast_to(wave[:, None] if axis == 0 else wave, (32, 32))[:, :, None]
    _, power = metrics.power_spectrum(x)
    np.testing.assert_allclose(power[[7, 8, 9]], [1 / 12, 1 / 3, 1 / 12], rtol=1e-12)
    assert power.sum() == pytest.approx(1 / 2, rel=1e-12)


def test_wavenumbers_count_cycles_over_the_shorter_side():
    wave = np.cos(2 * np.pi * 8 * np.arange(32) / 32)  # 8 cycles over 32 points are 4 over 16
    _, power = metrics.power_spectrum(np.broadcast_to(wave, (16, 32))[:, :, None])
    assert power.argmax() == 4 and power[4] > 0.9 * power.sum()


def test_a_constant_has_no_power():
    _, power = metrics.power_spectrum(np.full((8, 8, 2), 3.0))
    np.testing.assert_allclose(power, 0.0, atol=1e-25)


def test_the_forecast_is_the_mean_of_the_members_spectra():
    """Opposite members: their mean is zero, their spectra are those of the truth."""
    truth = fields((2, 3, 16, 16, 1))
    ensemble = np.stack([truth, -truth])
    wavenumber, spectra = metrics.lead_spectra(ensemble, truth)
    np.testing.assert_array_equal(wavenumber, np.arange(1, 9))
    np.testing.assert_allclose(spectra[:, 0], spectra[:, 1], rtol=1e-12)
    np.testing.assert_allclose(
        spectra[1, 1], metrics.power_spectrum(truth[:, 1])[1][:, 1:9].mean(axis=0), rtol=1e-12
    )
    np.testing.assert_allclose(metrics.spectrum_error(ensemble, truth), np.zeros(3), atol=1e-12)


def test_error_is_in_decades_of_power_and_blind_to_its_sign():
    truth = fields((2, 2, 16, 16, 2))
    gain = np.array([10.0, 0.1])[:, None, None, None]  # amplitude of each lead: 2 decades of power
    np.testing.assert_allclose(metrics.spectrum_error((gain * truth)[None], truth), [2.0, 2.0], rtol=1e-10)


def test_smoothing_is_seen():
    truth = fields((4, 1, 32, 32, 1))
    smooth = (truth + np.roll(truth, 1, axis=2) + np.roll(truth, 1, axis=3)) / 3
    assert metrics.spectrum_error(smooth[None], truth)[0] > 0.3
