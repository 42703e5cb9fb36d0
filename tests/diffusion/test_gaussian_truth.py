"""With the exact denoiser of an AR(1) process, samplers draw the exact conditional law, at their order.

A sampler sees a process only through (x0, eps) = recover(...), and ``test_process`` shows these to be the exact
conditional means for every method, context and prediction; here the samplers converge on top of them.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import AutoRegression, error, sampled_law

from dydiff_jax.diffusion import Cosine, Dynamical, Sampler, Standard

P, K = 2, 4
TRUTH = AutoRegression(P, K)
STEPS = 256


def grid(steps, start=1.0):
    """``steps`` uniform steps after enough steps of length zero to make ``STEPS``: one compilation serves all."""
    return jnp.asarray(np.concatenate([np.full(STEPS - steps, start), np.linspace(start, 0, steps + 1)]))


def convergence(process, method, eta):
    """(error with 64 steps, observed order from 64 to 256 steps)."""
    coarse, fine = (error(process, TRUTH, Sampler(method), eta, grid(steps)) for steps in (64, STEPS))
    return coarse, np.log2(coarse / fine) / 2


PROCESSES = {
    "standard": (Standard(Cosine(), P, K), 0),
    "dynamical": (Dynamical(Cosine(0.008), P, K), 0.5),
    "strong": (Dynamical(Cosine(), P, K, eta=0.9), 0.9),
    "noised": (Dynamical(Cosine(), P, K, context="noised"), 0.5),
    "independent_noise": (Dynamical(Cosine(), P, K, mix_noise=False), 0.5),
    "unmixed_latents": (Dynamical(Cosine(), P, K, mix_data=False), 0.5),
}


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(
    ("method", "bound", "lowest", "highest"),
    [("ddim", 0.03, 0.8, 1.2), ("ancestral", 0.052, 0.8, 1.2), ("dpmpp_2m", 6e-4, 1.8, np.inf)],
)
def test_samplers_converge_to_the_exact_law_at_their_order(name, method, bound, lowest, highest, x64):
    coarse, order = convergence(PROCESSES[name][0], method, PROCESSES[name][1])
    assert coarse < bound
    assert lowest < order < highest


@pytest.mark.parametrize("prediction", ["eps", "x0"])
@pytest.mark.parametrize("method", ["ddim", "ancestral", "dpmpp_2m"])
def test_the_law_does_not_depend_on_the_prediction(prediction, method, x64):
    """From a start below 1, as an eps prediction needs."""
    taus = jnp.linspace(0.982, 0, 17)
    laws = [
        sampled_law(Dynamical(Cosine(), P, K, kind), TRUTH, Sampler(method), 0.5, taus)
        for kind in ("v", prediction)
    ]
    for ours, theirs in zip(*laws, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)


def test_weaker_churn_converges_too(x64):
    process, eta = PROCESSES["dynamical"]
    taus = grid(STEPS)
    errors = [error(process, TRUTH, Sampler("ancestral", churn=churn), eta, taus) for churn in (0.0, 0.5)]
    np.testing.assert_allclose(errors[0], error(process, TRUTH, Sampler("ddim"), eta, taus), rtol=1e-6)
    assert errors[1] < 0.014
