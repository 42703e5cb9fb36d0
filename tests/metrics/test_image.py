"""PSNR and SSIM against scikit-image."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dydiff_jax import metrics


def images(seed=0, shape=(2, 3, 24, 20, 3)):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(size=shape)
    return np.clip(truth + 0.2 * rng.normal(size=shape), 0, 1), truth


def test_agrees_with_scikit_image():
    forecast, truth = images()
    psnr, ssim = metrics.psnr(forecast, truth), metrics.ssim(forecast, truth)
    assert psnr.shape == ssim.shape == (2, 3)
    for i in np.ndindex(2, 3):
        expected = structural_similarity(
            truth[i],
            forecast[i],
            data_range=1.0,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert ssim[i] == pytest.approx(expected, rel=1e-10)
        assert psnr[i] == pytest.approx(
            peak_signal_noise_ratio(truth[i], forecast[i], data_range=1.0), rel=1e-12
        )


def test_values_by_hand():
    black, grey = np.zeros((11, 11, 1)), np.full((11, 11, 1), 0.1)
    assert metrics.psnr(grey, black) == pytest.approx(20.0, rel=1e-12)
    assert metrics.ssim(grey, black) == pytest.approx(1e-4 / (0.01 + 1e-4), rel=1e-9)  # luminance alone
    assert np.isinf(metrics.psnr(grey, grey))
    assert metrics.ssim(*[images()[0][0, 0]] * 2) == pytest.approx(1.0, rel=1e-12)


def test_symmetry():
    forecast, truth = images(1)
    np.testing.assert_allclose(metrics.ssim(forecast, truth), metrics.ssim(truth, forecast), rtol=1e-13)


def test_values_outside_the_unit_range_are_refused():
    forecast, truth = images()
    for bad in (forecast * 255, forecast - 0.5, np.where(forecast > 0.9, np.nan, forecast)):
        with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
            metrics.psnr(bad, truth)
    with pytest.raises(ValueError, match="at least 11 x 11"):
        metrics.ssim(forecast[:, :, :10], truth[:, :, :10])
