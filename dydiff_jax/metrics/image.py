"""Similarity of images with values in [0, 1]."""

import numpy as np
from jaxtyping import Float

from dydiff_jax.types import Array

Images = Float[Array, "*lead h w c"]
PerImage = Float[np.ndarray, "*lead"]

WINDOW = 11  # points across the Gaussian window of SSIM
WIDTH = 1.5  # its standard deviation, points


def psnr(forecast: Images, truth: Images) -> PerImage:
    """Peak signal to noise ratio, -10 log10(mean square error over h, w and c), in dB; infinite if equal.

    Raises:
      ValueError: values outside [0, 1].
    """
    forecast, truth = _unit_range(forecast), _unit_range(truth)
    with np.errstate(divide="ignore"):
        return np.asarray(-10 * np.log10(np.mean((forecast - truth) ** 2, axis=(-3, -2, -1))))


def ssim(forecast: Images, truth: Images) -> PerImage:
    """Structural similarity of Wang et al. 2004 (eq. 13), averaged over window positions and channels.

        (2 m_x m_y + C1) (2 s_xy + C2) / ((m_x^2 + m_y^2 + C1) (s_x^2 + s_y^2 + C2)),  C1 = 0.01^2, C2 =
        0.03^2

    Means and (co)variances are weighted by a Gaussian of standard deviation 1.5 on 11 x 11 points that lies
    wholly inside the image, without the n / (n - 1) of sample covariances.

    Raises:
      ValueError: values outside [0, 1], or an image smaller than 11 x 11.
    """
    x, y = _unit_range(forecast), _unit_range(truth)
    if min(x.shape[-3:-1]) < WINDOW:
        raise ValueError(
            f"ssim: expected images of at least {WINDOW} x {WINDOW} points, found {x.shape[-3:-1]}"
        )
    mean_x, mean_y = _gaussian_mean(x), _gaussian_mean(y)
    variance_x = _gaussian_mean(x * x) - mean_x**2
    variance_y = _gaussian_mean(y * y) - mean_y**2
    covariance = _gaussian_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return np.asarray(np.mean(luminance * structure, axis=(-3, -2, -1)))


def _gaussian_mean(x: np.ndarray) -> np.ndarray:
    """Gaussian-weighted mean over every 11 x 11 window inside the image."""
    offset = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (offset / WIDTH) ** 2)
    weights /= weights.sum()
    for axis in (-3, -2):
        x = np.lib.stride_tricks.sliding_window_view(x, WINDOW, axis=axis) @ weights
    return x


def _unit_range(images: Images) -> np.ndarray:
    images = np.asarray(images, np.float64)
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"expected images with values in [0, 1], found {low:g} to {high:g}; rescale or clip them"
        )
    return images
