"""Frechet distance of two samples: of feature vectors, and of the spectra of fields."""

import numpy as np
from jaxtyping import Float

from dydiff_jax.types import Array

TRANSFORMS = {"fft2": np.fft.fft2, "rfft2": np.fft.rfft2}
NORMS = ("backward", "ortho", "forward")


def frechet_distance(features_a: Float[Array, "n f"], features_b: Float[Array, "m g"]) -> float:
    """Squared 2-Wasserstein distance of the Gaussians with the means and covariances of two samples.

        |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2)        (Dowson and Landau 1982; "FID")

    Covariances have the divisor n - 1. With A and B the features minus their means, S_a S_b has the nonzero
    eigenvalues of C C^T for C = A B^T / sqrt((n - 1)(m - 1)) [n, m], so that the last trace is the sum of the
    singular values of C: exact where covariances are singular, and without a matrix [f, f]. A sample larger
    than f enters as R of A = Q R, since Q changes no singular value.

    In float64; round-off may leave 1e-14 of the traces, of either sign, for equal samples. The distance of
    finite samples of one law is positive and falls as 1/n: compare values of equal n only, beside that floor.

    Args:
      features_a: [n, f], a sample a row.
      features_b: [m, f].
    Returns:
      The distance, in squared units of the features.
    Raises:
      ValueError: fewer than 2 samples, other features in the two, or a value that is not finite.
    """
    a, b = _sample("features_a", features_a), _sample("features_b", features_b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"expected the same features in both samples, found {a.shape[1]} and {b.shape[1]}")
    shift = a.mean(axis=0) - b.mean(axis=0)
    a, b = _factor(a), _factor(b)
    overlap = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(np.sum(shift**2) + np.sum(a**2) + np.sum(b**2) - 2 * overlap)


def frechet_spectral_distance(
    a: Float[Array, "n h w"], b: Float[Array, "m y x"], transform: str = "fft2", norm: str = "backward"
) -> float:
    """Frechet distance of the magnitudes of two-dimensional Fourier transforms (Ruhe et al. 2024, "FSD").

    A feature is |FFT(frame)| at one wavenumber. "fft2" has all h w of them, those of a real frame twice but
    for the few that are their own mirror image; "rfft2" has a half plane, h (w // 2 + 1). The paper states
    neither transform, norm nor number of samples, and each changes the value: name them beside it. The norm
    "ortho" gives 1 / (h w) and "forward" 1 / (h w)^2 of "backward".

    Args:
      a: frames [n, h, w] of one field.
      b: frames [m, h, w].
      transform: "fft2" or "rfft2".
      norm: "backward", "ortho" or "forward", as numpy.fft has them.
    Returns:
      The distance, in squared units of the field for every norm.
    Raises:
      ValueError: fewer than 2 frames, two grids, a value that is not finite, an unknown transform or norm.
    """
    if transform not in TRANSFORMS:
        raise ValueError(f"transform: expected one of {sorted(TRANSFORMS)}, found {transform!r}")
    if norm not in NORMS:
        raise ValueError(f"norm: expected one of {sorted(NORMS)}, found {norm!r}")
    frames_a, frames_b = _sample("a", a), _sample("b", b)
    if frames_a.shape[1:] != frames_b.shape[1:]:
        raise ValueError(f"expected frames on one grid, found {frames_a.shape[1:]} and {frames_b.shape[1:]}")
    features = (np.abs(TRANSFORMS[transform](x, norm=norm)).reshape(len(x), -1) for x in (frames_a, frames_b))
    return frechet_distance(*features)


def _factor(features: np.ndarray) -> np.ndarray:
    """A matrix [min(n, f), f] with factor^T factor = the covariance."""
    scaled = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.linalg.qr(scaled, mode="r") if scaled.shape[0] > scaled.shape[1] else scaled


def _sample(name: str, values: Array) -> np.ndarray:
    """The values in float64, refused where they have no covariance."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        raise ValueError(f"{name}: expected at least 2 samples, found {len(values)}: one has no covariance")
    bad = values.size - np.count_nonzero(np.isfinite(values))
    if bad:
        raise ValueError(
            f"{name}: expected finite values, found {bad} of {values.size} NaN or infinite; leave out the "
            "samples that diverged"
        )
    return values
