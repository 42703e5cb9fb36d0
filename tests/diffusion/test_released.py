"""With noised context and the offset cosine, the discrete scheme of the DyDiff authors, written out in numpy.

Tables of 1000 steps, i = 0..999; 50 deterministic steps from i = 981 down by 20, then the clean end.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_network

from dydiff_jax.diffusion import Cosine, Dynamical, Sampler
from dydiff_jax.diffusion.process import white_noise
from dydiff_jax.diffusion.sampler import sample

P, K, B, ETA = 4, 6, 2, 0.5


def tables():
    """(alpha_bar, gamma_bar), each cumulative over steps clipped at 0.999."""
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    g = ETA * f / f[0] + 1 - ETA
    return tuple(np.cumprod(1 - np.clip(1 - h[1:] / h[:-1], 0, 0.999)) for h in (f, g))


def mix(frames, gamma):
    out = frames.copy()
    for i in range(1, frames.shape[1]):
        out[:, i] = np.sqrt(1 - gamma) * out[:, i - 1] + np.sqrt(gamma) * frames[:, i]
    return out


def unmix(frames, gamma):
    out = frames.copy()
    for i in range(1, frames.shape[1]):
        out[:, i] = (frames[:, i] - np.sqrt(1 - gamma) * frames[:, i - 1]) / np.sqrt(gamma)
    return out


def released_loop(z, network):
    alpha_bar, gamma = tables()
    indices = list(range(1, 1000, 20))[::-1]
    for i, following in zip(indices, [*indices[1:], None], strict=True):
        next_alpha, next_gamma = (1.0, 1.0) if following is None else (alpha_bar[following], gamma[following])
        eps = network(z, np.log(alpha_bar[i] / (1 - alpha_bar[i])))
        clean = unmix((z - np.sqrt(1 - alpha_bar[i]) * eps) / np.sqrt(alpha_bar[i]), gamma[i])
        noise = mix(unmix(eps, gamma[i]), next_gamma)
        z = np.sqrt(next_alpha) * mix(clean, next_gamma) + np.sqrt(1 - next_alpha) * noise
    return z


PROCESS = Dynamical(Cosine(offset=0.008), P, K, prediction="eps", context="noised", eta=ETA)


def frames(seed):
    return np.random.default_rng(seed).standard_normal((B, P + K, 3, 3, 2))


@pytest.mark.parametrize("index", [0, 250, 500, 981])
def test_corrupted_batch_and_target(index):
    x0, eps = frames(0), frames(1)
    alpha_bar, gamma = (table[index] for table in tables())
    tau, x, e = (a.astype(np.float32) for a in (np.full((B,), (index + 1) / 1000), x0, eps))

    @jax.jit
    def ours(tau):
        levels = PROCESS.levels(tau, np.zeros((B,), bool))
        return PROCESS.forward(x, e, levels), PROCESS.target(x, e, levels), levels.active

    z, target, active = ours(tau)
    expected = np.sqrt(alpha_bar) * mix(x0, gamma) + np.sqrt(1 - alpha_bar) * mix(eps, gamma)
    np.testing.assert_allclose(z, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(target, mix(eps, gamma), rtol=0, atol=1e-4)
    assert np.all(active)


def test_fifty_deterministic_steps():
    """The network is scaled to eps-like size; the first step divides by sqrt(alpha_bar) = 0.028."""
    arbitrary = random_network(P + K)

    def network(z, logsnr):
        return 0.7 * z + 0.1 * arbitrary(z, logsnr)

    def by_numpy(z, level):
        with jax.enable_x64(True):
            return np.asarray(network(jnp.asarray(z), jnp.full((B, P + K), level)))

    keys = jax.random.split(jax.random.key(0), B)
    sampler = Sampler("ddim", 50, "released")
    context = jnp.zeros((B, P, 3, 3, 2))
    ours = jax.jit(lambda: sample(keys, PROCESS, network, context, sampler))()

    white = white_noise(jax.vmap(jax.random.split)(keys)[:, 0], jnp.zeros((B, P + K, 3, 3, 2)))
    expected = released_loop(mix(np.asarray(white, np.float64), tables()[1][981]), by_numpy)

    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
