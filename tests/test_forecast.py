"""Forecasts: units, chunks and keys. The network is replaced by exact denoisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dydiff_jax import forecast
from dydiff_jax.codec import Standardize
from dydiff_jax.conditions import Conditioner
from dydiff_jax.diffusion.dynamical import Dynamical
from dydiff_jax.diffusion.sampler import Sampler
from dydiff_jax.diffusion.schedules import Cosine
from dydiff_jax.diffusion.standard import Standard
from dydiff_jax.types import Batch

CODEC = Standardize((3.0,), (2.0,))
METHODS = {
    "standard": Standard(Cosine(), 2, 3, prediction="x0"),
    "dynamical": Dynamical(Cosine(), 2, 3, prediction="x0"),
}


def white(params, z, logsnr, conditions):
    """E[x0 | z] = alpha z for white data of variance 1, which standard diffusion denoises exactly."""
    alpha = jnp.sqrt(jax.nn.sigmoid(logsnr))[:, :, None, None, None]
    return alpha * z


def forecaster(method, apply=white, steps=8):
    return forecast.Forecaster(
        METHODS[method], Sampler(steps=steps), CODEC, Conditioner(3, False, False), apply
    )


def batch(n):
    frames = np.random.default_rng(0).normal(3, 2, size=(n, 5, 4, 4, 1)).astype(np.float32)
    return Batch(frames)


def test_a_forecast_is_in_physical_units():
    """Exact denoising of white data gives back their law: mean 3 and deviation 2, from encoded draws of N(0, 1)."""
    frames = forecast.gather(
        forecast.ensemble(forecaster("standard", steps=64), None, jax.random.key(0), batch(4), 50, 100), 50, 4
    )
    count = frames.size
    assert frames.shape == (50, 4, 3, 4, 4, 1)
    assert abs(frames.mean() - 3) < 4 * 2 / np.sqrt(count)
    assert abs(frames.std() / 2 - 1) < 4 / np.sqrt(2 * count) + 1 / 64


@pytest.mark.parametrize("method", METHODS)
def test_chunks_do_not_change_an_ensemble(method):
    draw = forecaster(method)
    whole, parts = (
        forecast.gather(forecast.ensemble(draw, None, jax.random.key(1), batch(3), 4, chunk), 4, 3)
        for chunk in (12, 5)
    )
    np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-5)


def test_members_and_windows_differ_and_the_seed_decides():
    draw = forecaster("standard")
    same = batch(1)._replace(frames=np.repeat(batch(1).frames, 2, axis=0))
    first, again, other = (
        forecast.gather(forecast.ensemble(draw, None, jax.random.key(seed), same, 3, 6), 3, 2)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    draws = np.concatenate([first, other]).reshape(12, -1)
    assert len(np.unique(draws[:, 0])) == 12


def test_an_ensemble_compiles_once():
    traces = []

    def counted(params, z, logsnr, conditions):
        traces.append(z.shape)
        return white(params, z, logsnr, conditions)

    list(forecast.ensemble(forecaster("standard", counted), None, jax.random.key(0), batch(3), 5, 4))
    assert traces == [(4, 5, 4, 4, 1)]


def test_the_context_alone_is_read():
    """Frames after the context do not exist at forecast time; changing them changes nothing."""
    draw, key = forecaster("dynamical"), jax.random.key(0)
    full = batch(2)
    cut = Batch(full.frames[:, :2])
    a, b = (forecast.gather(forecast.ensemble(draw, None, key, x, 2, 4), 2, 2) for x in (full, cut))
    np.testing.assert_array_equal(a, b)


def test_chunks_cover_every_row_with_one_shape():
    for total, size in ((7, 3), (6, 3), (2, 5)):
        groups = list(forecast.chunks(total, size))
        assert {len(group) for group in groups} == {size}
        assert np.unique(np.concatenate(groups)).tolist() == list(range(total))
