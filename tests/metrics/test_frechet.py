"""The Frechet distance: closed forms, matrix square roots, invariances, its bias, and the spectral one."""

import tracemalloc

import numpy as np
import pytest
import scipy.fft
import scipy.linalg

from dydiff_jax import metrics

RNG_SHAPES = [(40, 30, 6), (8, 30, 12), (30, 8, 12), (7, 9, 20)]  # samples over and under the features


def exact_sample(n, mean, axes, variances, rng):
    """n rows whose sample mean is `mean` and whose covariance is axes diag(variances) axes^T, to round-off."""
    white = rng.normal(size=(n, len(variances)))
    white = np.linalg.qr(white - white.mean(axis=0))[0] * np.sqrt(n - 1)
    return mean + (white * np.sqrt(variances)) @ axes.T


def features(n, f, seed, gain=1.0):
    rng = np.random.default_rng(seed)
    return gain * rng.normal(size=(n, f)) @ rng.normal(size=(f, f)) + rng.normal(size=f)


def by_eigenvalues(a, b):
    """The distance from tr (R S_b R)^(1/2), R = S_a^(1/2), on [f, f]."""
    s_a, s_b = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(s_a)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ s_b @ root), 0, None)).sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s_a) + np.trace(s_b) - 2 * cross


@pytest.mark.parametrize("n, m, f, rank", [(40, 30, 6, 6), (40, 8, 12, 5), (7, 9, 20, 6)])
def test_commuting_covariances_have_a_closed_form(n, m, f, rank):
    """|mu_a - mu_b|^2 + sum (sqrt l_a - sqrt l_b)^2 on common axes, with as many dimensions as samples allow."""
    rng = np.random.default_rng(f)
    axes = np.linalg.qr(rng.normal(size=(f, rank)))[0]
    mean_a, mean_b, l_a, l_b = rng.normal(size=f), rng.normal(size=f), *rng.uniform(0.1, 4, size=(2, rank))
    a, b = exact_sample(n, mean_a, axes, l_a, rng), exact_sample(m, mean_b, axes, l_b, rng)
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((np.sqrt(l_a) - np.sqrt(l_b)) ** 2)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_matrix_square_root_of_scipy():
    a, b = features(40, 6, seed=1), features(30, 6, seed=2)
    cross = np.trace(scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T))).real
    traces = np.trace(np.cov(a.T)) + np.trace(np.cov(b.T))
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + traces - 2 * cross
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n, m, f", RNG_SHAPES)
def test_eigenvalues_of_the_large_matrix(n, m, f):
    a, b = features(n, f, seed=1), features(m, f, seed=2, gain=0.5)
    # zero eigenvalues come out as 1e-16 of the largest, their roots as 1e-8
    assert metrics.frechet_distance(a, b) == pytest.approx(by_eigenvalues(a, b), rel=1e-6)


@pytest.mark.parametrize("n, m, f", RNG_SHAPES)
def test_both_sides_of_the_matrix_agree(n, m, f):
    """The same points in a space of more dimensions than samples, where nothing is reduced."""
    a, b = features(n, f, seed=3), features(m, f, seed=4)
    wide = np.linalg.qr(np.random.default_rng(5).normal(size=(60, f)))[0].T
    assert metrics.frechet_distance(a @ wide, b @ wide) == pytest.approx(
        metrics.frechet_distance(a, b), rel=1e-11
    )


@pytest.mark.parametrize("n, f", [(40, 6), (10, 30)])
def test_a_sample_is_at_no_distance_from_itself(n, f):
    a = features(n, f, seed=6)
    scale = np.trace(np.cov(a.T))
    for b in (a, a[::-1]):
        assert abs(metrics.frechet_distance(a, b)) < 1e-13 * scale


@pytest.mark.parametrize("n, m, f", RNG_SHAPES)
def test_rotations_shifts_and_units(n, m, f):
    a, b = features(n, f, seed=7), features(m, f, seed=8)
    rotation = np.linalg.qr(np.random.default_rng(9).normal(size=(f, f)))[0]
    distance = metrics.frechet_distance(a, b)
    assert metrics.frechet_distance(b, a) == pytest.approx(distance, rel=1e-12)
    assert metrics.frechet_distance(a @ rotation + 2, b @ rotation + 2) == pytest.approx(distance, rel=1e-11)
    assert metrics.frechet_distance(3 * a, 3 * b) == pytest.approx(9 * distance, rel=1e-12)
    shift = np.random.default_rng(10).normal(size=f)
    gap = a.mean(axis=0) - b.mean(axis=0)
    assert metrics.frechet_distance(a + shift, b) - distance == pytest.approx(
        np.sum((gap + shift) ** 2) - np.sum(gap**2), rel=1e-9
    )


@pytest.mark.parametrize("n, f", [(4, 20_000), (2_000, 3)])
def test_no_matrix_of_the_long_side_is_made(n, f):
    """[f, f] would be 3.2 GB, [n, n] 32 MB."""
    a, b = np.random.default_rng(12).normal(size=(2, n, f))
    tracemalloc.start()
    metrics.frechet_distance(a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * a.nbytes


def test_the_bias_of_finite_samples_falls_as_one_over_n():
    """Two samples of N(0, 1)^f: E = 2 f / n from the means + f (f + 1) / (2 (n - 1)) from the covariances."""
    f, repeats = 3, 400
    rng = np.random.default_rng(11)
    for n in (200, 800):
        found = [metrics.frechet_distance(*rng.normal(size=(2, n, f))) for _ in range(repeats)]
        expected = 2 * f / n + f * (f + 1) / (2 * (n - 1))
        # next order in 1 / n: below 5 % at n = 200
        assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(repeats) + 10 / n * expected


def frames(n=6, h=8, w=8, seed=0):
    return np.random.default_rng(seed).normal(1.0, 1.0, size=(n, h, w))


def waves(amplitudes, h, w, rows, columns):
    y, x = np.arange(h)[:, None] / h, np.arange(w) / w
    return np.asarray(amplitudes)[:, None, None] * np.cos(2 * np.pi * (rows * y + columns * x) + 0.3)


@pytest.mark.parametrize("norm, scale", [("backward", 1.0), ("ortho", 1 / 80), ("forward", 1 / 80**2)])
@pytest.mark.parametrize(
    "rows, columns, transform, copies",
    [
        (2, 3, "fft2", 2),
        (2, 3, "rfft2", 1),  # its mirror image is on the other half of the plane
        (2, 0, "rfft2", 2),  # both are in the column 0
        (0, 3, "fft2", 2),
    ],
)
def test_plane_waves(norm, scale, rows, columns, transform, copies):
    """|FFT| is h w |a| / 2 at each of the two mirrored wavenumbers: means and deviations of |a| in closed form."""
    h, w = 8, 10
    a, b = [1.0, -2.0, 4.0, 3.0], [0.5, 0.7, -1.0]
    gap = (np.mean(np.abs(a)) - np.mean(np.abs(b))) ** 2
    gap += (np.std(np.abs(a), ddof=1) - np.std(np.abs(b), ddof=1)) ** 2
    found = metrics.frechet_spectral_distance(
        waves(a, h, w, rows, columns), waves(b, h, w, rows, columns), transform, norm
    )
    assert found == pytest.approx(copies * (h * w / 2) ** 2 * gap * scale, rel=1e-10)


@pytest.mark.parametrize("h, w", [(8, 8), (6, 9), (7, 10)])
def test_norms_and_transforms_in_terms_of_each_other(h, w):
    a, b = frames(5, h, w), 1.5 * frames(7, h, w, seed=1)
    whole = metrics.frechet_spectral_distance(a, b)
    assert whole == metrics.frechet_spectral_distance(a, b, "fft2", "backward")
    for norm, scale in (("ortho", h * w), ("forward", (h * w) ** 2)):
        found = metrics.frechet_spectral_distance(a, b, norm=norm)
        assert found == pytest.approx(whole / scale, rel=1e-11)
    magnitudes = [np.abs(scipy.fft.fft2(x)).reshape(len(x), -1) for x in (a, b)]
    assert whole == pytest.approx(metrics.frechet_distance(*magnitudes), rel=1e-12)
    half = [np.abs(scipy.fft.rfft2(x)) for x in (a, b)]
    found = metrics.frechet_spectral_distance(a, b, "rfft2")
    assert found == pytest.approx(metrics.frechet_distance(*(x.reshape(len(x), -1) for x in half)), rel=1e-12)
    column = np.arange(w // 2 + 1)
    twice = np.where((column == 0) | (2 * column == w), 1.0, np.sqrt(2.0))  # columns with a mirror image
    weighted = [(x * twice).reshape(len(x), -1) for x in half]
    assert whole == pytest.approx(metrics.frechet_distance(*weighted), rel=1e-11)


def test_an_empty_forecast_is_at_the_mean_square_of_the_truth():
    a = frames()
    magnitude = np.abs(scipy.fft.fft2(a)).reshape(len(a), -1)
    expected = np.sum(magnitude.mean(axis=0) ** 2) + np.sum(magnitude.var(axis=0, ddof=1))
    assert metrics.frechet_spectral_distance(a, 0 * a) == pytest.approx(expected, rel=1e-13)


def test_magnitudes_are_blind_to_place_and_sign():
    a = frames()
    moved = np.stack([np.roll(x, (i, 3 * i), (0, 1)) * (-1) ** i for i, x in enumerate(a)])
    assert abs(metrics.frechet_spectral_distance(a, moved)) < 1e-12 * np.sum(a**2) * a[0].size
    assert metrics.frechet_spectral_distance(a, a * 1.1) > 1e-4 * np.sum(a**2)


def test_single_precision_is_summed_in_double():
    a = (1000 + frames()).astype(np.float32)
    double = metrics.frechet_spectral_distance(a.astype(np.float64), frames(seed=2))
    assert metrics.frechet_spectral_distance(a, frames(seed=2)) == double


@pytest.mark.parametrize(
    "a, b, options, message",
    [
        (frames(1), frames(), {}, "a: expected at least 2 samples, found 1"),
        (frames(), frames(1), {}, "b: expected at least 2 samples, found 1"),
        (frames(), frames(w=10), {}, r"one grid, found \(8, 8\) and \(8, 10\)"),
        (frames(), frames(h=16, w=4), {}, r"one grid, found \(8, 8\) and \(16, 4\)"),  # as many features
        (
            frames() + np.where(np.arange(8) > 6, np.nan, 0),
            frames(),
            {},
            "a: expected finite values, found 48 of 384",
        ),
        (
            frames(),
            frames(),
            {"transform": "dct"},
            r"transform: expected one of \['fft2', 'rfft2'\], found 'dct'",
        ),
        (frames(), frames(), {"norm": "none"}, "norm: expected one of .*, found 'none'"),
    ],
)
def test_what_has_no_distance_is_refused(a, b, options, message):
    with pytest.raises(ValueError, match=message):
        metrics.frechet_spectral_distance(a, b, **options)


def test_features_that_have_no_distance_are_refused():
    a = features(4, 3, seed=0)
    with pytest.raises(ValueError, match="features_b: expected at least 2 samples, found 1"):
        metrics.frechet_distance(a, a[:1])
    with pytest.raises(ValueError, match="same features in both samples, found 3 and 2"):
        metrics.frechet_distance(a, a[:, :2])
    with pytest.raises(ValueError, match="features_a: expected finite values, found 12 of 12"):
        metrics.frechet_distance(a * np.inf, a)
