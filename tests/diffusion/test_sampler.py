"""Grids, single steps against published formulas, and what sampling costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import corruption_matrices
from networks import random_network

from dydiff_jax.diffusion import Cosine, Dynamical, LinearBeta, Regression, Sampler, Standard, sample
from dydiff_jax.diffusion.sampler import State, integrate, update

P, K, B = 2, 4, 3
KEYS = jax.random.split(jax.random.key(0), B)
METHODS = ["ddim", "ancestral", "dpmpp_2m"]


def draw(seed, frames=P + K):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((B, frames, 3, 3, 1)))


def levels_at(process, tau):
    return process.levels(jnp.full((B,), tau), jnp.zeros((B,), bool))


def amplitudes(tau):
    return np.cos(np.pi * tau / 2), np.sin(np.pi * tau / 2)


def one_step(process, method, t, s, previous=None, x0_previous=None, fresh=None, **options):
    """One update from t to s for a random window and prediction; also the x0 and eps they imply."""
    z, prediction = draw(0), draw(1)
    start, end = levels_at(process, t), levels_at(process, s)
    history = start if previous is None else levels_at(process, previous)
    state = State(z, jnp.zeros_like(z) if x0_previous is None else x0_previous, history.t)
    fresh = jnp.zeros_like(z) if fresh is None else fresh
    out = update(process, Sampler(method, **options), state, prediction, fresh, start, end)
    return z, *process.recover(z, prediction, start), out.z


def test_uniform_grid():
    np.testing.assert_array_equal(Sampler(steps=4).taus(), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(Sampler(steps=2).taus(0.982), [0.982, 0.491, 0])


def test_released_grid():
    taus = Sampler(steps=50, grid="released").taus()
    np.testing.assert_array_equal(taus, [*((np.arange(981, 0, -20) + 1) / 1000), 0])
    assert len(taus) == 51 and taus[0] == 0.982 and taus[-2] == 0.002


@pytest.mark.parametrize("churn", [0.0, 0.6, 1.0])
def test_ancestral_step_is_the_ddpm_posterior(churn, x64):
    """Mean and variance of q(z_s | z_t, x0): Ho et al. 2020, eq. 7, with alpha_t|s and sigma_t|s of Kingma et al. 2021."""
    process, t, s, fresh = Standard(Cosine(), P, K), 0.7, 0.5, draw(2)
    z, x0, eps, out = one_step(process, "ancestral", t, s, fresh=fresh, churn=churn)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = amplitudes(t), amplitudes(s)
    ratio = alpha_t / alpha_s
    added = sigma_t**2 - ratio**2 * sigma_s**2
    variance = added * sigma_s**2 / sigma_t**2
    if churn == 1:
        mean = ratio * sigma_s**2 / sigma_t**2 * z + alpha_s * added / sigma_t**2 * x0
    else:  # Song et al. 2021, eq. 12, with their sigma_t = churn times the posterior's
        mean = alpha_s * x0 + np.sqrt(sigma_s**2 - churn**2 * variance) * eps
    expected = mean + churn * np.sqrt(variance) * fresh
    np.testing.assert_allclose(out[:, P:], expected[:, P:], rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(out[:, :P], z[:, :P])


@pytest.mark.parametrize("context", ["clean", "noised"])
def test_ancestral_noise_of_mixed_frames_passes_through_their_chain(context, x64):
    """DyDiff Theorem 2: z_s has covariance (posterior variance) D D^T with D at gamma(s)."""
    process, t, s, fresh = Dynamical(Cosine(), P, K, context=context), 0.7, 0.5, draw(2)
    _, x0, eps, out = one_step(process, "ancestral", t, s, fresh=fresh)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = amplitudes(t), amplitudes(s)
    kept = (alpha_t * sigma_s / (sigma_t * alpha_s)) ** 2
    data, noise = corruption_matrices(process, 1 - 0.5 * sigma_s**2)
    inner = np.sqrt(kept) * eps + np.sqrt(1 - kept) * fresh
    expected = alpha_s * jnp.einsum("ij,bjhwc->bihwc", data, x0) + sigma_s * jnp.einsum(
        "ij,bjhwc->bihwc", noise, inner
    )
    m = process.num_clean
    np.testing.assert_allclose(out[:, m:], expected[:, m:], rtol=1e-11, atol=1e-12)


def test_second_order_step_is_dpm_solver_plus_plus(x64):
    """Lu et al. 2022, Algorithm 2: z_s = (sigma_s / sigma_t) z - alpha_s (exp(-h) - 1) x, h = lambda_s - lambda_t."""
    process, previous, t, s, x0_previous = Standard(Cosine(), P, K), 0.8, 0.7, 0.55, draw(3)
    z, x0, _, out = one_step(process, "dpmpp_2m", t, s, previous, x0_previous)
    weight = (t - s) / (2 * (previous - t))
    extrapolated = (1 + weight) * x0 - weight * x0_previous
    (alpha_t, sigma_t), (alpha_s, sigma_s) = amplitudes(t), amplitudes(s)
    h = np.log(alpha_s / sigma_s) - np.log(alpha_t / sigma_t)
    expected = sigma_s / sigma_t * z - alpha_s * np.expm1(-h) * extrapolated
    np.testing.assert_allclose(out[:, P:], expected[:, P:], rtol=1e-12, atol=1e-13)


def test_second_order_loop_is_dpm_solver_plus_plus(x64):
    process, network, taus = Standard(Cosine(), P, K, "x0"), random_network(P + K), np.linspace(1, 0, 9)
    z = draw(0)
    state = State(z, jnp.zeros_like(z), levels_at(process, 1.0).t)
    out = integrate(KEYS, process, network, state, jnp.asarray(taus), Sampler("dpmpp_2m")).z

    expected, last = np.array(z), None
    for i, (t, s) in enumerate(zip(taus[:-1], taus[1:], strict=True)):
        x0 = np.asarray(network(jnp.asarray(expected), process.logsnr(levels_at(process, t))))
        best = x0 if last is None or s == 0 else x0 + (t - s) / (taus[i - 1] - t) / 2 * (x0 - last)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = amplitudes(t), amplitudes(s)
        decay = alpha_t * sigma_s / (sigma_t * alpha_s)  # exp(-h)
        expected[:, P:] = (sigma_s / sigma_t * expected + alpha_s * (1 - decay) * best)[:, P:]
        last = x0
    np.testing.assert_allclose(out, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("context", ["clean", "noised"])
def test_eta_zero_samples_are_those_of_standard_diffusion_bit_for_bit(method, context):
    given, network = draw(0, P).astype(jnp.float32), random_network(P + K)
    processes = Standard(Cosine(), P, K, context=context), Dynamical(Cosine(), P, K, context=context, eta=0.0)
    ours, theirs = (
        jax.jit(
            lambda keys, given, process=process: sample(
                keys, process, network, given, Sampler(method, steps=6)
            )
        )(KEYS, given)
        for process in processes
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("method", METHODS)
def test_steps_cost_as_many_evaluations_and_one_compilation(method):
    evaluations, traces = [], []
    network = random_network(P + K)

    def counted(z, logsnr):
        traces.append(1)
        jax.debug.callback(lambda: evaluations.append(1))
        return network(z, logsnr)

    run = jax.jit(
        lambda keys, given: sample(keys, Dynamical(Cosine(), P, K), counted, given, Sampler(method, steps=7))
    )
    for seed in (0, 1):
        jax.block_until_ready(
            run(jax.random.split(jax.random.key(seed), B), draw(seed, P).astype(jnp.float32))
        )
    jax.effects_barrier()
    assert (len(evaluations), len(traces), run._cache_size()) == (14, 1, 1)


@pytest.mark.parametrize("method", METHODS)
def test_an_ensemble_in_chunks_equals_one_at_once(method):
    keys, context = (
        jax.random.split(jax.random.key(1), 6),
        jnp.tile(draw(0, P)[:1], (6, 1, 1, 1, 1)).astype(jnp.float32),
    )
    process, sampler = Dynamical(Cosine(), P, K), Sampler(method, steps=5)

    def pointwise(z, logsnr):
        return jnp.tanh(z)

    run = jax.jit(lambda keys, context: sample(keys, process, pointwise, context, sampler))
    whole = run(keys, context)
    np.testing.assert_array_equal(
        np.concatenate([run(keys[:3], context[:3]), run(keys[3:], context[3:])]), whole
    )
    assert len(np.unique(whole[:, -1, 0, 0, 0])) == 6
    np.testing.assert_array_equal(whole[:, :P], context)


@pytest.mark.parametrize("method", METHODS)
def test_a_window_can_be_integrated_in_two_calls(method, x64):
    """The state carries the history of estimates; only the fresh noise of the second call differs."""
    process, network, taus = Dynamical(Cosine(), P, K), random_network(P + K), jnp.linspace(1, 0, 9)
    z, sampler = draw(0), Sampler(method, churn=0.0)
    start = State(z, jnp.zeros_like(z), levels_at(process, 1.0).t)
    whole = integrate(KEYS, process, network, start, taus, sampler)
    half = integrate(KEYS, process, network, start, taus[:5], sampler)
    np.testing.assert_allclose(
        integrate(KEYS, process, network, half, taus[4:], sampler).z, whole.z, rtol=1e-12
    )


def test_the_scan_is_the_composition_of_updates(x64):
    process, network, taus = Dynamical(Cosine(), P, K), random_network(P + K), np.linspace(0.9, 0, 4)
    state = State(draw(0), jnp.zeros_like(draw(0)), levels_at(process, 0.9).t)
    out = integrate(KEYS, process, network, state, jnp.asarray(taus), Sampler("ancestral"))
    for i, (t, s) in enumerate(zip(taus[:-1], taus[1:], strict=True)):
        start, end = levels_at(process, t), levels_at(process, s)
        keys = jnp.stack([jax.random.fold_in(key, i) for key in KEYS])
        fresh = jnp.stack([jax.random.normal(key, state.z.shape[1:], float) for key in keys])
        prediction = network(state.z, process.logsnr(start))
        state = update(process, Sampler("ancestral"), state, prediction, fresh, start, end)
    np.testing.assert_allclose(out.z, state.z, rtol=1e-12)


def test_regression_is_one_evaluation():
    context, answer = draw(0, P).astype(jnp.float32), draw(1).astype(jnp.float32)
    seen = []

    def network(z, logsnr):
        jax.debug.callback(lambda z: seen.append(z), z)
        return answer

    out = sample(KEYS, Regression(P, K), network, context, Sampler(steps=1))
    jax.effects_barrier()
    np.testing.assert_array_equal(out, jnp.concatenate([context, answer[:, P:]], axis=1))
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], jnp.concatenate([context, jnp.zeros((B, K, 3, 3, 1))], axis=1))


def test_sampling_without_context():
    process = Standard(Cosine(), 0, K)
    out = sample(KEYS, process, random_network(K), jnp.zeros((B, 0, 3, 3, 1)), Sampler(steps=3))
    assert out.shape == (B, K, 3, 3, 1) and np.all(np.isfinite(out))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "^steps"),
        ({"steps": 30, "grid": "released"}, "^steps: .*divisor of 1000"),
        ({"steps": 1000, "grid": "released"}, "^steps"),
        ({"churn": 1.5}, "^churn"),
        ({"method": "heun"}, "^method"),
        ({"grid": "log"}, "^grid"),
    ],
)
def test_bad_fields_are_refused(options, message):
    expected = (
        ValueError
        if options.keys().isdisjoint({"method", "grid"}) or options.get("grid") == "released"
        else Exception
    )
    with pytest.raises(expected):
        Sampler(**options)


def test_grids_that_start_too_high_and_foreign_contexts_are_refused():
    eps = Standard(Cosine(), P, K, "eps")
    with pytest.raises(ValueError, match=r"^grid: .*0\.982"):
        sample(KEYS, eps, random_network(P + K), draw(0, P), Sampler(steps=500, grid="released"))
    with pytest.raises(ValueError, match="^context: expected 2 frames"):
        sample(KEYS, eps, random_network(P + K), draw(0, P + 1), Sampler())
    out = sample(KEYS, eps, random_network(P + K), draw(0, P), Sampler(steps=3))
    assert np.all(np.isfinite(out))
