"""Grids, single steps against published formulas, and what sampling costs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import corruption_matrices
from networks import random_network

from dydiff_jax.diffusion import Cosine, Dynamical, Sampler, Standard, sample
from dydiff_jax.diffusion.sampler import SamplerState, integrate, time_steps, update

P, K, B = 2, 4, 3
KEYS = jax.random.split(jax.random.key(0), B)
METHODS = ["ddim", "ancestral", "dpmpp_2m"]
NETWORK = random_network(P + K)


def draw(seed, frames=P + K, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((B, frames, 3, 3, 1)).astype(dtype)


def amplitudes(tau):
    return np.cos(np.pi * tau / 2), np.sin(np.pi * tau / 2)


def levels_at(process, tau):
    return process.levels(jnp.full((B,), tau), jnp.zeros((B,), bool))


@partial(jax.jit, static_argnums=(0, 1))
def sampled(process, sampler, keys, context):
    return sample(keys, process, NETWORK, context, sampler)


@partial(jax.jit, static_argnums=(0, 1))
def integrated(process, sampler, state, taus):
    return integrate(KEYS, process, NETWORK, state, time_steps(taus), sampler)


def noise_state(process, tau):
    nothing = np.zeros((B, P + K, 3, 3, 1))
    return SamplerState(draw(0), nothing, nothing, levels_at(process, tau))


@partial(jax.jit, static_argnums=(0, 1))
def one_step(process, sampler, times, x0_previous, fresh):
    """(z, x0, eps, result) of one update from t to s, times = (previous, t, s), for a random prediction."""
    z, prediction = draw(0), draw(1)
    history, start, end = (levels_at(process, time) for time in times)
    out = update(process, sampler, SamplerState(z, x0_previous, z, history), prediction, fresh, start, end)
    return z, *process.recover(z, prediction, start), out.z


def test_uniform_grid():
    np.testing.assert_array_equal(Sampler(nfe=4).taus(), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(Sampler(nfe=2).taus(0.982), [0.982, 0.491, 0])


def test_released_grid():
    taus = Sampler(nfe=50, timesteps="released").taus()
    np.testing.assert_array_equal(taus, [*((np.arange(981, 0, -20) + 1) / 1000), 0])
    assert len(taus) == 51 and taus[0] == 0.982 and taus[-2] == 0.002


@pytest.mark.parametrize("churn", [0.0, 0.6, 1.0])
def test_ancestral_step_is_the_ddpm_posterior(churn, x64):
    """Mean and variance of q(z_s | z_t, x0): Ho et al. 2020, eq. 7, in the notation of Kingma et al. 2021."""
    t, s, fresh = 0.7, 0.5, draw(2)
    process, sampler = Standard(Cosine(), P, K), Sampler("ancestral", churn=churn)
    z, x0, eps, out = one_step(process, sampler, (t, t, s), draw(3), fresh)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = amplitudes(t), amplitudes(s)
    ratio = alpha_t / alpha_s
    added = sigma_t**2 - ratio**2 * sigma_s**2
    variance = added * sigma_s**2 / sigma_t**2
    if churn == 1:
        mean = ratio * sigma_s**2 / sigma_t**2 * z + alpha_s * added / sigma_t**2 * x0
    else:  # Song et al. 2021, eq. 12, with churn times the posterior's standard deviation
        mean = alpha_s * x0 + np.sqrt(sigma_s**2 - churn**2 * variance) * eps
    expected = mean + churn * np.sqrt(variance) * fresh
    np.testing.assert_allclose(out[:, P:], expected[:, P:], rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(out[:, :P], z[:, :P])


@pytest.mark.parametrize("context", ["clean", "noised"])
def test_ancestral_noise_of_mixed_frames_passes_through_their_chain(context, x64):
    """DyDiff Theorem 2: z_s has covariance (posterior variance) D D^T with D at gamma(s)."""
    process, t, s, fresh = Dynamical(Cosine(), P, K, context=context), 0.7, 0.5, draw(2)
    _, x0, eps, out = one_step(process, Sampler("ancestral"), (t, t, s), draw(3), fresh)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = amplitudes(t), amplitudes(s)
    kept = (alpha_t * sigma_s / (sigma_t * alpha_s)) ** 2
    data, noise = corruption_matrices(process, 1 - 0.5 * sigma_s**2)
    inner = np.sqrt(kept) * eps + np.sqrt(1 - kept) * fresh
    expected = alpha_s * np.einsum("ij,bjhwc->bihwc", data, x0)
    expected += sigma_s * np.einsum("ij,bjhwc->bihwc", noise, inner)
    m = process.num_clean
    np.testing.assert_allclose(out[:, m:], expected[:, m:], rtol=1e-11, atol=1e-12)


def test_second_order_step_is_dpm_solver_plus_plus(x64):
    """Lu et al. 2022: z_s = (sigma_s / sigma_t) z - alpha_s (exp(-h) - 1) x, with h = lambda_s - lambda_t."""
    previous, t, s, x0_previous = 0.8, 0.7, 0.55, draw(3)
    process, sampler = Standard(Cosine(), P, K), Sampler("dpmpp_2m")
    z, x0, _, out = one_step(process, sampler, (previous, t, s), x0_previous, draw(2))
    weight = (t - s) / (2 * (previous - t))
    extrapolated = (1 + weight) * x0 - weight * x0_previous
    (alpha_t, sigma_t), (alpha_s, sigma_s) = amplitudes(t), amplitudes(s)
    h = np.log(alpha_s / sigma_s) - np.log(alpha_t / sigma_t)
    expected = sigma_s / sigma_t * z - alpha_s * np.expm1(-h) * extrapolated
    np.testing.assert_allclose(out[:, P:], expected[:, P:], rtol=1e-12, atol=1e-13)


def test_second_order_loop_is_dpm_solver_plus_plus(x64):
    process, taus = Standard(Cosine(), P, K, "x0"), np.linspace(1, 0, 9)
    out = integrated(process, Sampler("dpmpp_2m"), noise_state(process, 1.0), taus).z

    network, expected, last = jax.jit(NETWORK), draw(0), None
    for i in range(8):
        t, s = taus[i], taus[i + 1]
        (alpha_t, sigma_t), (alpha_s, sigma_s) = amplitudes(t), amplitudes(s)
        with np.errstate(divide="ignore"):
            logsnr = np.full((B, P + K), 2 * np.log(np.tan(np.pi * (1 - t) / 2)))
        logsnr[:, :P] = np.inf
        x0 = np.asarray(network(expected, logsnr))
        best = x0 if last is None or s == 0 else x0 + (t - s) / (taus[i - 1] - t) / 2 * (x0 - last)
        decay = alpha_t * sigma_s / (sigma_t * alpha_s)  # exp(-h)
        expected[:, P:] = (sigma_s / sigma_t * expected + alpha_s * (1 - decay) * best)[:, P:]
        last = x0
    np.testing.assert_allclose(out, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("method", "context"), [("ancestral", "noised"), ("dpmpp_2m", "clean")])
def test_eta_zero_samples_are_those_of_standard_diffusion_bit_for_bit(method, context):
    processes = Standard(Cosine(), P, K, context=context), Dynamical(Cosine(), P, K, context=context, eta=0.0)
    given = draw(0, P, np.float32)
    ours, theirs = (sampled(process, Sampler(method, nfe=6), KEYS, given) for process in processes)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("method", METHODS)
def test_steps_cost_as_many_evaluations_and_one_compilation(method):
    evaluations, traces = [], []

    def counted(z, logsnr):
        traces.append(1)
        jax.debug.callback(lambda: evaluations.append(1))
        return NETWORK(z, logsnr)

    process, sampler = Dynamical(Cosine(), P, K), Sampler(method, nfe=7)
    run = jax.jit(lambda keys, given: sample(keys, process, counted, given, sampler))
    for seed in (0, 1):
        jax.block_until_ready(run(jax.random.split(jax.random.key(seed), B), draw(seed, P, np.float32)))
    jax.effects_barrier()
    assert (len(evaluations), len(traces), run._cache_size()) == (14, 1, 1)


def test_an_ensemble_in_chunks_equals_one_at_once():
    process, sampler = Dynamical(Cosine(), P, K), Sampler("ancestral", nfe=5)
    keys = jax.random.split(jax.random.key(1), 6)
    context = np.tile(draw(0, P, np.float32)[:1], (6, 1, 1, 1, 1))
    run = jax.jit(lambda keys, context: sample(keys, process, lambda z, _: jnp.tanh(z), context, sampler))
    whole = run(keys, context)
    chunks = [run(keys[:3], context[:3]), run(keys[3:], context[3:])]
    np.testing.assert_array_equal(np.concatenate(chunks), whole)
    np.testing.assert_array_equal(whole[:, :P], context)
    assert len(np.unique(whole[:, -1, 0, 0, 0])) == 6


def test_a_window_can_be_integrated_in_two_calls(x64):
    """The state carries the history of estimates across the break."""
    process, sampler, taus = Dynamical(Cosine(), P, K), Sampler("dpmpp_2m"), np.linspace(1, 0, 9)
    start = noise_state(process, 1.0)
    whole = integrated(process, sampler, start, taus).z
    half = integrated(process, sampler, start, taus[:5])
    np.testing.assert_allclose(integrated(process, sampler, half, taus[4:]).z, whole, rtol=1e-12, atol=1e-13)
    forgotten = integrated(process, sampler, half._replace(levels=levels_at(process, 0.5)), taus[4:]).z
    assert np.abs(forgotten - whole).max() > 1e-3


def test_the_scan_is_the_composition_of_updates(x64):
    process, sampler, taus = Dynamical(Cosine(), P, K), Sampler("ancestral"), np.linspace(0.9, 0, 4)
    state = noise_state(process, 0.9)
    whole = integrated(process, sampler, state, taus).z

    @jax.jit
    def by_hand(state, index, t, s):
        start, end = levels_at(process, t), levels_at(process, s)
        keys = [jax.random.fold_in(KEYS[row], index) for row in range(B)]
        fresh = jnp.stack([jax.random.normal(key, state.z.shape[1:], state.z.dtype) for key in keys])
        return update(process, sampler, state, NETWORK(state.z, process.logsnr(start)), fresh, start, end)

    for i in range(3):
        state = by_hand(state, i, taus[i], taus[i + 1])
    np.testing.assert_allclose(whole, state.z, rtol=1e-12, atol=1e-13)


def test_sampling_without_context():
    network = random_network(K)
    run = jax.jit(lambda c: sample(KEYS, Standard(Cosine(), 0, K), network, c, Sampler(nfe=3)))
    out = run(np.zeros((B, 0, 3, 3, 1), np.float32))
    assert out.shape == (B, K, 3, 3, 1) and np.all(np.isfinite(out))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nfe": 0}, r"^nfe: expected at least 1, found 0"),
        ({"nfe": 30, "timesteps": "released"}, r"^nfe: .*divisor of 1000, found 30"),
        ({"nfe": 1000, "timesteps": "released"}, r"^nfe: .*divisor of 1000, found 1000"),
        ({"churn": 1.5}, r"^churn: .*1\.5"),
    ],
)
def test_bad_fields_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**options)


def test_grids_that_start_too_high_and_foreign_contexts_are_refused():
    eps, context = Standard(Cosine(), P, K, "eps"), draw(0, P, np.float32)
    with pytest.raises(ValueError, match=r"^timesteps: .*0\.982"):
        sample(KEYS, eps, NETWORK, context, Sampler(nfe=500, timesteps="released"))
    with pytest.raises(ValueError, match=r"^context: expected 2 frames"):
        sample(KEYS, eps, NETWORK, context[:, 1:], Sampler())
    assert np.all(np.isfinite(sampled(eps, Sampler(nfe=3), KEYS, context)))
