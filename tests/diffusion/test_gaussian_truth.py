"""With the exact denoiser of an AR(1) process, samplers draw the exact conditional law, at their order.

A sampler sees a prediction only through (x0, eps) = recover(...), and ``test_process`` shows these to be the
exact conditional means for every method, context and prediction; here the samplers converge on top of them.
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
    """``steps`` uniform steps after as many of length zero as make ``STEPS``: one compilation serves all."""
    return jnp.asarray(np.concatenate([np.full(STEPS - steps, start), np.linspace(start, 0, steps + 1)]))


def convergence(process, method, eta):
    """(error with 64 steps, observed order from 64 to 256 steps)."""
    coarse, fine = (error(process, TRUTH, Sampler(method), eta, grid(steps)) for steps in (64, STEPS))
    return coarse, np.log2(coarse / fine) / 2


PROCESSES = {
    "standard": (Standard(Cosine(), P, K), 0),
    "dynamical": (Dynamical(Cosine(), P, K), 0.5),
    "strong": (Dynamical(Cosine(), P, K, eta=0.9), 0.9),
    "noised": (Dynamical(Cosine(), P, K, context="noised"), 0.5),
    "independent_noise": (Dynamical(Cosine(), P, K, mix_noise=False), 0.5),
    "unmixed_latents": (Dynamical(Cosine(), P, K, mix_data=False), 0.5),
}
EXPECTED = {  # largest error with 64 steps, range of the observed order
    "ddim": (0.03, 0.8, 1.2),
    "ancestral": (0.052, 0.8, 1.2),
    "dpmpp_2m": (6e-4, 1.8, np.inf),
}


@pytest.mark.parametrize("name", ["standard", "dynamical", "strong", "noised"])
@pytest.mark.parametrize("method", EXPECTED)
def test_samplers_converge_to_the_exact_law_at_their_order(name, method, x64):
    bound, lowest, highest = EXPECTED[method]
    coarse, order = convergence(PROCESSES[name][0], method, PROCESSES[name][1])
    assert coarse < bound
    assert lowest < order < highest


@pytest.mark.parametrize("name", ["independent_noise", "unmixed_latents"])
@pytest.mark.parametrize("method", ["ancestral", "dpmpp_2m"])
def test_ablations_converge_to_the_exact_law_too(name, method, x64):
    bound, lowest, highest = EXPECTED[method]
    coarse, order = convergence(PROCESSES[name][0], method, PROCESSES[name][1])
    assert coarse < bound
    assert lowest < order < highest


@pytest.mark.parametrize("prediction", ["eps", "x0"])
@pytest.mark.parametrize("method", EXPECTED)
def test_the_law_does_not_depend_on_the_prediction(prediction, method, x64):
    """From a start below 1, as an eps prediction needs."""
    processes = [Dynamical(Cosine(), P, K, kind) for kind in ("v", prediction)]
    laws = [sampled_law(process, TRUTH, Sampler(method), 0.5, grid(32, 0.982)) for process in processes]
    for ours, theirs in zip(*laws, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)


def test_weaker_churn_converges_too(x64):
    sampler = Sampler("ancestral", churn=0.5)
    assert error(PROCESSES["dynamical"][0], TRUTH, sampler, 0.5, grid(STEPS)) < 0.012
