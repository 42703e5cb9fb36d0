"""Frames of any shape: every method trains and rolls out on them, and a reshape of frames changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dydiff_jax.diffusion import Cosine, Dynamical, Sampler, Standard, diffusion_loss
from dydiff_jax.diffusion.rolling import Rolling
from dydiff_jax.diffusion.rolling_dynamical import RollingDynamical
from dydiff_jax.diffusion.rollout import Rollout
from dydiff_jax.types import over_frames

P, K, B, PASSES = 2, 3, 3, 4
KEYS = jax.random.split(jax.random.key(0), B)
WEIGHTS = np.random.default_rng(1).standard_normal((P + K, P + K)).astype(np.float32)
PROCESSES = {
    "standard": Standard(Cosine(), P, K),
    "dynamical": Dynamical(Cosine(), P, K),
    "rolling": Rolling(Cosine(), P, K, p_lin=0.5),
    "rolling_dynamical": RollingDynamical(Cosine(), P, K, p_lin=0.5),
}
#: Shapes of a frame, each with another of the same elements in the same order.
RESHAPED = {(3,): (1, 1, 3), (4, 4, 2): (32,), (2, 4, 4, 2): (8, 4, 2)}


def network(weights, z, logsnr):
    """Couples frames and treats the elements of a frame alike, so that it commutes with a reshape."""
    flat = jnp.einsum("ij,bjn->bin", weights, z.reshape(B, P + K, -1)).reshape(z.shape)
    return jnp.tanh(flat + over_frames(jax.nn.sigmoid(logsnr), z))


def trained_and_rolled(process, method, x0, observed):
    """Loss with and without a mask, its gradient, the residual variance where there is one, a rollout."""

    def loss(weights, observed):
        return diffusion_loss(KEYS, process, lambda *inputs: network(weights, *inputs), x0, observed)[0]

    rollout = Rollout(process, Sampler(method, nfe=6))

    @jax.jit
    def run():
        def denoise(z, logsnr):
            return network(WEIGHTS, z, logsnr)

        losses = [jax.value_and_grad(loss)(WEIGHTS, seen) for seen in (None, observed)]
        variance = 0.0
        if process.correlated_noise:
            tau = jnp.full((B,), 0.5)
            variance = process.residual_variance(denoise, x0, jnp.flip(x0, 0), tau)
        carry = rollout.begin(KEYS, x0[:, :P])
        _, frames = rollout.advance(KEYS, lambda *_: denoise, carry, PASSES, jnp.mean(variance))
        return losses, variance, frames

    return run()


@pytest.mark.slow
@pytest.mark.parametrize("shape", RESHAPED, ids=str)
@pytest.mark.parametrize("name", PROCESSES)
def test_every_method_takes_frames_of_any_shape_and_a_reshape_changes_nothing(name, shape):
    """Noise has the same bits in either shape; sums may be taken in another order."""
    process, method = PROCESSES[name], "ancestral" if "dynamical" in name else "dpmpp_2m"
    x0 = np.random.default_rng(0).standard_normal((B, P + K, *shape)).astype(np.float32)
    observed = np.random.default_rng(2).uniform(size=x0.shape) < 0.7
    losses, variance, frames = trained_and_rolled(process, method, x0, observed)
    assert frames.shape == (B, PASSES * process.stride, *shape)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((losses, frames)))
    assert all(np.any(gradient) for _, gradient in losses)
    if process.correlated_noise:
        assert variance.shape == shape[-1:]

    reshaped = (array.reshape(B, P + K, *RESHAPED[shape]) for array in (x0, observed))
    again = trained_and_rolled(process, method, *reshaped)
    np.testing.assert_allclose(again[2].reshape(frames.shape), frames, rtol=1e-5, atol=1e-6)
    for found, expected in zip(jax.tree.leaves(again[0]), jax.tree.leaves(losses), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jnp.mean(again[1]), jnp.mean(variance), rtol=1e-5)
