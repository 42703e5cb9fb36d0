"""What a rollout does pass by pass: which evaluations a frame receives, and what it is in special cases."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_network

from dydiff_jax.diffusion import Cosine, Dynamical, Regression, Sampler, Standard, sample
from dydiff_jax.diffusion import sampler as samplers
from dydiff_jax.diffusion.rolling import Rolling
from dydiff_jax.diffusion.rolling_dynamical import RollingDynamical
from dydiff_jax.diffusion.rollout import Rollout

B = 3
KEYS = jax.random.split(jax.random.key(0), B)
METHODS = ("ddim", "ancestral", "dpmpp_2m")


def context_of(p, dtype=np.float32):
    return np.random.default_rng(0).standard_normal((B, p, 3, 3, 1)).astype(dtype)


@partial(jax.jit, static_argnums=(0, 1, 3))
def rolled(rollout, network, context, passes, missing=0.2):
    """(carry, finished frames) of the first passes."""
    carry = rollout.begin(KEYS, context)
    return rollout.advance(KEYS, lambda *_: network, carry, passes, missing)


@partial(jax.jit, static_argnums=(0, 1, 3))
def resumed(rollout, network, carry, passes, missing=0.2):
    return rollout.advance(KEYS, lambda *_: network, carry, passes, missing)


# Which evaluations a frame receives.


def paths(rollout, horizon, p):
    """Times at which the network sees each frame of the forecast, by frame; evaluations and traces of it."""
    seen, traces = [], []

    def network(z, logsnr):
        traces.append(1)
        jax.debug.callback(lambda row: seen.append(np.asarray(row)), logsnr[0], ordered=True)
        return 0.1 * z

    stride = rollout.process.stride
    passes = -(-(horizon + rollout.waiting) // stride)
    run = jax.jit(lambda: rolled.__wrapped__(rollout, network, context_of(p, np.float64), passes)[1])
    jax.block_until_ready(run())
    jax.effects_barrier()
    each = len(seen) // passes
    of_frame = [[] for _ in range(horizon)]
    for i, logsnr in enumerate(seen):
        first = max(i // each - rollout.boundary + 1, 0) * stride
        t = 2 / np.pi * np.arctan(np.exp(-logsnr / 2))
        np.testing.assert_array_equal(t[:p], 0)
        for frame in range(first, min(first + len(t) - p, horizon)):
            of_frame[frame].append(t[p + frame - first])
    return of_frame, len(seen), len(traces)


def moving(path):
    """The times of those evaluations after which the frame is less noisy; it ends at 0."""
    path = np.append(path, 0.0)
    assert np.all(np.diff(path) < 1e-12)
    return path[:-1][np.diff(path) < -1e-9]


@pytest.mark.parametrize("p", [0, 2])
def test_every_frame_receives_n_evaluations_on_one_grid_with_the_init_clock(p, x64):
    """Frame by frame, t = 1, 1 - 1/N, ..., 1/N: the grid of a window whose frames share one time."""
    k, steps, horizon = 3, 12, 8
    rollout = Rollout(Rolling(Cosine(), p, k), Sampler(steps=steps))
    found, evaluations, traces = paths(rollout, horizon, p)
    for path in found:
        np.testing.assert_allclose(moving(path), 1 - np.arange(steps) / steps, rtol=0, atol=1e-12)
    assert evaluations == steps + (horizon - 1) * steps // k
    assert traces == 1


def test_early_frames_receive_more_evaluations_with_the_rescaled_clock(x64):
    k, steps, horizon = 3, 12, 7
    rollout = Rollout(RollingDynamical(Cosine(), 2, k, clock="init_rescaled"), Sampler(steps=steps))
    found, evaluations, traces = paths(rollout, horizon, 2)
    counts = [len(moving(path)) for path in found]
    assert counts == [steps + min(i, k) * (steps // k) if i < k else steps for i in range(horizon)]
    assert evaluations == steps + (horizon - 1) * steps // k
    assert traces == 1
    for i, path in enumerate(found[:k]):  # first from 1 to i/k in N steps, then in steps of 1/N
        beginning = i / k + (1 - i / k) * (1 - np.arange(steps) / steps)
        rest = i / k - np.arange(i * steps // k) / steps
        np.testing.assert_allclose(moving(path), np.concatenate([beginning, rest]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("horizon", [1, 4, 5, 8])
def test_blocks_take_n_evaluations_each(horizon, x64):
    steps, k = 5, 4
    found, evaluations, traces = paths(Rollout(Dynamical(Cosine(), 2, k), Sampler(steps=steps)), horizon, 2)
    for path in found:
        np.testing.assert_allclose(moving(path), 1 - np.arange(steps) / steps, rtol=0, atol=1e-12)
    assert evaluations == steps * -(-horizon // k)
    assert traces == 1


def test_grids_of_the_boundary_and_of_a_shift():
    rollout = Rollout(Rolling(Cosine(), 2, 2), Sampler(steps=4))
    assert (rollout.boundary, rollout.waiting) == (2, 1)
    np.testing.assert_array_equal(rollout.grids(), [[1, 0.75, 0.5], [0.5, 0.25, 0], [1, 0.5, 0]])
    blocks = Rollout(Standard(Cosine(), 2, 4), Sampler(steps=50, grid="released"))
    assert (blocks.boundary, blocks.waiting) == (1, 0)
    np.testing.assert_array_equal(blocks.grids(), [Sampler(steps=50, grid="released").taus()] * 2)


def test_bind_receives_the_clean_frames_before_a_window_and_the_number_of_its_first(x64):
    """Every finished frame becomes context, in its place, and the network sees the same frames in z."""
    for process in (Rolling(Cosine(), 2, 3), Standard(Cosine(), 2, 3), Standard(Cosine(), 4, 3)):
        rollout, p, given, seen = Rollout(process, Sampler(steps=3)), process.num_context, None, []

        def bind(context, first, p=p, seen=seen):
            def network(z, logsnr):
                jax.debug.callback(
                    lambda *a: seen.append([np.asarray(x) for x in a]), context, first, z[:, :p], ordered=True
                )
                return jnp.tanh(z)

            return network

        given = context_of(p, np.float64)
        run = jax.jit(lambda r=rollout, g=given, bind=bind: r.advance(KEYS, bind, r.begin(KEYS, g), 6)[1])
        frames = np.asarray(run())[:, rollout.waiting :]
        jax.effects_barrier()
        all_frames = np.concatenate([given, frames], axis=1)
        steps = len(seen) // 6
        for i, (context, first, in_z) in enumerate(seen):
            assert first == max(i // steps - rollout.boundary + 1, 0) * process.stride
            np.testing.assert_array_equal(context, all_frames[:, first : first + p])
            np.testing.assert_array_equal(in_z, context)


# Special cases.

ROLLING = [
    Rolling(Cosine(), 2, 3),
    RollingDynamical(Cosine(), 2, 3, clock="init_rescaled"),
    Dynamical(Cosine(), 2, 3),
    Dynamical(Cosine(), 4, 3),
]


@pytest.mark.parametrize("process", ROLLING, ids=lambda process: type(process).__name__)
@pytest.mark.parametrize("method", METHODS)
def test_passes_in_several_calls_are_those_of_one_bit_for_bit(process, method):
    rollout, network = Rollout(process, Sampler(method, steps=6)), random_network(process.num_frames)
    context = context_of(process.num_context)
    _, whole = rolled(rollout, network, context, 6)
    carry, first = rolled(rollout, network, context, 2)
    carry, second = resumed(rollout, network, carry, 2)
    _, third = resumed(rollout, network, carry, 2)
    np.testing.assert_array_equal(np.concatenate([first, second, third], axis=1), whole)
    assert whole.shape[1] == 6 * process.stride


def test_eta_zero_is_rolling_diffusion_bit_for_bit():
    network = random_network(5)
    for method in METHODS:
        for clock in ("init", "init_rescaled"):
            mixed, plain = (
                rolled(Rollout(process, Sampler(method, steps=6)), network, context_of(2), 7)[1]
                for process in (
                    RollingDynamical(Cosine(), 2, 3, clock=clock, eta=0.0),
                    Rolling(Cosine(), 2, 3, clock=clock),
                )
            )
            np.testing.assert_array_equal(mixed, plain)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("p", [0, 2])
def test_a_window_of_one_forecast_frame_is_standard_diffusion_frame_by_frame(p, method):
    network = random_network(p + 1)
    for clock in ("init", "init_rescaled"):
        rolling, blocks = (
            rolled(Rollout(process, Sampler(method, steps=5)), network, context_of(p), 4)[1]
            for process in (Rolling(Cosine(), p, 1, clock=clock), Standard(Cosine(), p, 1))
        )
        np.testing.assert_array_equal(rolling, blocks)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "process",
    [
        Standard(Cosine(), 5, 3),
        Dynamical(Cosine(), 2, 3),
        Dynamical(Cosine(), 2, 3, "eps", "noised"),
        Standard(Cosine(), 0, 3),
    ],
    ids=["p>k", "p<k", "noised", "p=0"],
)
def test_block_rollouts_are_forecasts_one_after_another(process, method):
    """The first is ``sample``, bit for bit; a later one too, from the last p frames and with its own noise."""
    p, k, sampler = process.num_context, process.num_forecast, Sampler(method, steps=4)
    network, given = random_network(p + k), context_of(p)
    _, frames = rolled(Rollout(process, sampler), network, given, 3)

    alone = jax.jit(lambda: sample(KEYS, process, network, given, sampler))()
    np.testing.assert_array_equal(frames[:, :k], alone[:, p:])

    @jax.jit
    def one(context, number):
        noise_keys, step_keys = samplers.split_keys(KEYS)
        taus = jnp.asarray(samplers.grid_for(process, sampler), context.dtype)
        noise_keys = jax.vmap(jax.random.fold_in, (0, None))(noise_keys, number)
        state = samplers.begin(noise_keys, process, context, taus[0])
        steps = samplers.steps_of(taus, number * sampler.steps)
        return samplers.integrate(step_keys, process, network, state, steps, sampler).z

    for number in (1, 2):
        known = np.concatenate([given, frames[:, : number * k]], axis=1)
        by_hand = one(known[:, known.shape[1] - p :], number)
        np.testing.assert_array_equal(frames[:, number * k :][:, :k], by_hand[:, p:])


def test_no_two_draws_of_noise_are_the_same(x64):
    """Blocks of a denoiser that keeps the noise: what is drawn at any place differs from any other draw."""
    for process in (Standard(Cosine(), 2, 3), Rolling(Cosine(), 2, 3)):
        rollout = Rollout(process, Sampler("ancestral", steps=6))
        _, frames = rolled(rollout, lambda z, logsnr: 0.1 * z, context_of(2, np.float64), 6)
        rows = np.asarray(frames[:, rollout.waiting :]).reshape(B * (frames.shape[1] - rollout.waiting), 9)
        similarity = np.corrcoef(rows) - np.eye(len(rows))
        assert np.abs(similarity).max() < 0.99


def test_regression_blocks_feed_on_their_forecasts():
    process, network = Regression(2, 3), random_network(5)
    _, frames = rolled(Rollout(process, Sampler(steps=1)), network, context_of(2), 3)
    known = context_of(2)
    for _ in range(3):
        window = np.concatenate([known[:, -2:], np.zeros((B, 3, 3, 3, 1), np.float32)], axis=1)
        logsnr = np.where(np.arange(5) < 2, np.inf, -np.inf) * np.ones((B, 1))
        known = np.concatenate([known, network(window, logsnr.astype(np.float32))[:, 2:]], axis=1)
    np.testing.assert_allclose(frames, known[:, 2:], rtol=1e-5, atol=1e-6)


# Refusals.


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Rollout(Rolling(Cosine(), 2, 4), Sampler(steps=50)),
            r"^steps: .*multiple of the 4 .*found 50.*; take (48|52)",
        ),
        (lambda: Rollout(Rolling(Cosine(), 2, 4), Sampler(steps=55)), r"^steps: .*found 55.*; take 56"),
        (lambda: Rollout(Rolling(Cosine(), 2, 4), Sampler(steps=1)), r"^steps: .*found 1:.*; take 4"),
        (
            lambda: Rollout(Rolling(Cosine(), 2, 4), Sampler(steps=40, grid="released")),
            r'^grid: .*"uniform", found "released"',
        ),
        (
            lambda: Rollout(Standard(Cosine(), 2, 4, "eps"), Sampler(steps=500, grid="released")),
            r"^grid: .*0\.982",
        ),
        (
            lambda: rolled(Rollout(Rolling(Cosine(), 2, 3), Sampler(steps=6)), jnp.tanh, context_of(3), 1),
            r"^context: expected 2 frames",
        ),
        (
            lambda: rolled(Rollout(Standard(Cosine(), 2, 3), Sampler(steps=6)), jnp.tanh, context_of(1), 1),
            r"^context: expected 2 frames",
        ),
        (
            lambda: sample(KEYS, Rolling(Cosine(), 2, 3), jnp.tanh, context_of(2), Sampler(steps=6)),
            r"^process: .*3 frames together, found a stride of 1.*rollout",
        ),
    ],
)
def test_bad_rollouts_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
