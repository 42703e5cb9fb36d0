"""With one time for all frames, dynamical diffusion is standard diffusion seen through D."""

import jax
import numpy as np
import pytest
from networks import random_network

from dydiff_jax.diffusion import Cosine, Dynamical, Sampler, Standard, sample
from dydiff_jax.diffusion.dynamics import dynamics, inverse_dynamics

P, K, B, ETA = 2, 4, 3, 0.5
KEYS = jax.random.split(jax.random.key(0), B)
TAUS = np.array([0.2, 0.6, 1.0])


def draw(seed, frames=P + K):
    return np.random.default_rng(seed).standard_normal((B, frames, 3, 3, 1))


def gamma_at(tau):
    return 1 - ETA * np.sin(np.pi * tau / 2) ** 2


def corrupted(process, x0, eps):
    return jax.jit(lambda: process.forward(x0, eps, process.levels(TAUS, np.zeros((B,), bool))))()


def test_noised_windows_are_standard_windows_seen_through_d(x64):
    standard = Standard(Cosine(), P, K, context="noised")
    dynamical = Dynamical(Cosine(), P, K, context="noised", eta=ETA)
    plain, mixed = (corrupted(process, draw(0), draw(1)) for process in (standard, dynamical))
    np.testing.assert_allclose(mixed, dynamics(plain, gamma_at(TAUS)), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "sampler", [Sampler("ddim", 6), Sampler("ancestral", 6, churn=0.8), Sampler("dpmpp_2m", 6)]
)
def test_samples_of_noised_windows_are_those_of_the_conjugate_network(sampler, x64):
    """F on mixed frames and D^-1 F(D .) on plain ones draw the same frames, whatever the network F is."""
    network, context = random_network(P + K), draw(0, P)

    def conjugate(z, logsnr):
        gamma = 1 - ETA * jax.nn.sigmoid(-logsnr[:, 0])
        return inverse_dynamics(network(dynamics(z, gamma), logsnr), gamma)

    standard = Standard(Cosine(), P, K, context="noised")
    dynamical = Dynamical(Cosine(), P, K, context="noised", eta=ETA)
    mixed = jax.jit(lambda: sample(KEYS, dynamical, network, context, sampler))()
    plain = jax.jit(lambda: sample(KEYS, standard, conjugate, context, sampler))()
    np.testing.assert_allclose(mixed, plain, rtol=1e-10, atol=1e-10)


def test_clean_context_differs_in_the_first_forecast_frame_only(x64):
    """D'^-1 z = alpha (sqrt(gamma) x^1 + sqrt(1 - gamma) y^context, x^2, ...) + sigma eps; D' mixes noise."""
    x0, eps, gamma = draw(0), draw(1), gamma_at(TAUS)
    z = corrupted(Dynamical(Cosine(), P, K, eta=ETA), x0, eps)
    weight = gamma[:, None, None, None]
    signal = x0[:, P:].copy()
    signal[:, 0] *= np.sqrt(weight)
    signal[:, 0] += np.sqrt(1 - weight) * dynamics(x0[:, :P], gamma)[:, -1]
    alpha, sigma = (f(np.pi * TAUS / 2)[:, None, None, None, None] for f in (np.cos, np.sin))
    unmixed = inverse_dynamics(z[:, P:], gamma)
    np.testing.assert_allclose(unmixed, alpha * signal + sigma * eps[:, P:], rtol=1e-11, atol=1e-12)
