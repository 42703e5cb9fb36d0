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


def points(h, w, staggered=True):
    """y and x of u, then of v, on cells of a grid whose shorter side is 2 pi; row 0 is the lowest."""
    d = 2 * np.pi / min(h, w)
    row, column = np.arange(h)[:, None], np.arange(w)
    if not staggered:
        return (row * d, column * d), (row * d, column * d)
    return ((row + 0.5) * d, (column + 1) * d), ((row + 1) * d, (column + 0.5) * d)


def streaming(modes, h, w, staggered=True):
    """Velocity u = dpsi/dy, v = -dpsi/dx for psi = sum of a cos(k_x x + k_y y + phase), modes (a, k_x, k_y, phase)."""
    (y_u, x_u), (y_v, x_v) = points(h, w, staggered)
    u = sum(-a * k_y * np.sin(k_x * x_u + k_y * y_u + phase) for a, k_x, k_y, phase in modes)
    v = sum(a * k_x * np.sin(k_x * x_v + k_y * y_v + phase) for a, k_x, k_y, phase in modes)
    return np.stack([u, v], axis=-1)


@pytest.mark.parametrize("staggered", [True, False])
@pytest.mark.parametrize("h, w", [(16, 16), (16, 32), (34, 17)])
@pytest.mark.parametrize("k_x, k_y", [(3, 4), (3, -4), (5, 0), (0, 2), (1, 1), (-2, 3)])
def test_one_mode_without_divergence(h, w, k_x, k_y, staggered):
    """psi = a cos(k x): E = a^2 k^2 / 4 and Z = k^2 E, all of it in the ring of |k|."""
    velocity = streaming([(0.7, k_x, k_y, 0.4)], h, w, staggered)
    squared, ring = k_x**2 + k_y**2, round(np.hypot(k_x, k_y))
    for spectrum, total in (
        (metrics.energy_spectrum(velocity), 0.7**2 * squared / 4),
        (metrics.enstrophy_spectrum(velocity, staggered=staggered), 0.7**2 * squared**2 / 4),
    ):
        wavenumber, values = spectrum
        expected = np.where(wavenumber == ring, total, 0.0)
        np.testing.assert_allclose(values, expected, rtol=1e-11, atol=1e-13)


def test_taylor_green_vortex_on_a_staggered_grid():
    """u = sin x cos y, v = -cos x sin y: energy 1/4, vorticity 2 sin x sin y, enstrophy 1/2, |k| = sqrt 2."""
    (y_u, x_u), (y_v, x_v) = points(32, 32)
    velocity = np.stack([np.sin(x_u) * np.cos(y_u), -np.cos(x_v) * np.sin(y_v)], axis=-1)
    _, energy = metrics.energy_spectrum(velocity)
    _, enstrophy = metrics.enstrophy_spectrum(velocity)
    assert energy[1] == pytest.approx(1 / 4, rel=1e-12) and energy.sum() == pytest.approx(1 / 4, rel=1e-12)
    assert enstrophy[1] == pytest.approx(1 / 2, rel=1e-12) and enstrophy.sum() == pytest.approx(
        0.5, rel=1e-12
    )


def test_enstrophy_of_many_modes_is_half_the_mean_square_of_their_vorticity():
    rng = np.random.default_rng(3)
    modes = [(rng.normal(), *rng.integers(-5, 6, 2), rng.uniform(0, 2 * np.pi)) for _ in range(12)]
    (y, x), _ = points(16, 16, staggered=False)
    omega = sum(a * (k_x**2 + k_y**2) * np.cos(k_x * x + k_y * y + phase) for a, k_x, k_y, phase in modes)
    _, enstrophy = metrics.enstrophy_spectrum(streaming(modes, 16, 16))
    assert enstrophy.sum() == pytest.approx((omega**2).mean() / 2, rel=1e-12)


@pytest.mark.parametrize("h, w", [(16, 16), (12, 20), (15, 9), (8, 17)])
def test_energy_is_the_mean_square_of_the_velocity(h, w):
    velocity = fields((3, h, w, 2))
    wavenumber, energy = metrics.energy_spectrum(velocity)
    assert energy.shape == (3, wavenumber.size)
    np.testing.assert_allclose(energy.sum(-1), (velocity**2).sum(-1).mean((1, 2)) / 2, rtol=1e-12)
    _, steady = metrics.energy_spectrum(np.broadcast_to(np.array([3.0, 4.0]), (h, w, 2)))
    np.testing.assert_allclose(steady, np.where(wavenumber == 0, 12.5, 0.0), rtol=1e-13, atol=1e-25)


def test_compression_has_no_vorticity_and_shear_has():
    (_, x_u), _ = points(16, 16)
    wave = np.broadcast_to(np.cos(3 * x_u), (16, 16))
    _, along = metrics.enstrophy_spectrum(np.stack([wave, 0 * wave], axis=-1))
    _, across = metrics.enstrophy_spectrum(np.stack([0 * wave, wave], axis=-1))
    np.testing.assert_allclose(along, 0.0, atol=1e-25)
    assert across[3] == pytest.approx(9 / 4, rel=1e-12) and across.sum() == pytest.approx(9 / 4, rel=1e-12)


@pytest.mark.parametrize("staggered", [True, False])
def test_enstrophy_knows_no_direction(staggered):
    """Mirrored in the diagonal or along a side, or moved, a flow keeps its spectrum, highest wavenumbers included."""
    velocity = fields((12, 12, 2))
    u, v = velocity[..., 0], velocity[..., 1]
    face = -1 if staggered else 1  # a mirrored row of faces starts one face further on
    mirrored_x = np.stack(
        [np.roll(-u[:, ::-1], face, axis=1), np.roll(v[:, ::-1], 0 if staggered else 1, axis=1)], -1
    )
    mirrored_y = np.stack(
        [np.roll(u[::-1], 0 if staggered else 1, axis=0), np.roll(-v[::-1], face, axis=0)], -1
    )
    _, expected = metrics.enstrophy_spectrum(velocity, staggered=staggered)
    for other in (np.stack([v.T, u.T], axis=-1), mirrored_x, mirrored_y, np.roll(velocity, (2, 5), (0, 1))):
        found = metrics.enstrophy_spectrum(other, staggered=staggered)[1]
        np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_the_highest_wavenumber_has_a_slope_between_points_only():
    """u = (-1)^row: slope +-k between rows, 0 on them; k = 8 on 16 points over 2 pi."""
    u = np.broadcast_to((-1.0) ** np.arange(16)[:, None], (16, 16))
    velocity = np.stack([u, 0 * u], axis=-1)
    assert metrics.enstrophy_spectrum(velocity)[1][8] == pytest.approx(64 / 2, rel=1e-12)
    np.testing.assert_allclose(metrics.enstrophy_spectrum(velocity, staggered=False)[1], 0.0, atol=1e-25)


def test_enstrophy_falls_with_the_square_of_the_length():
    velocity = fields((2, 8, 16, 2))
    wavenumber, expected = metrics.enstrophy_spectrum(velocity)
    again, found = metrics.enstrophy_spectrum(velocity, length=6 * np.pi)
    np.testing.assert_array_equal(again, wavenumber)
    np.testing.assert_allclose(found, expected / 9, rtol=1e-12)
