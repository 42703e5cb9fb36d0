"""What a rollout does pass by pass: which evaluations a frame receives, and what it is in special cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_network

from dydiff_jax.diffusion import Cosine, Dynamical, Sampler, Standard, sample
from dydiff_jax.diffusion import rollout as rollouts
from dydiff_jax.diffusion import sampler as samplers
from dydiff_jax.diffusion.rolling import Rolling
from dydiff_jax.diffusion.rolling_dynamical import RollingDynamical
from dydiff_jax.diffusion.rollout import Rollout

B = 3
KEYS = jax.random.split(jax.random.key(0), B)
METHODS = ("ancestral", "dpmpp_2m")  # with fresh noise, and with history


def context_of(p, dtype=np.float32):
    return np.random.default_rng(0).standard_normal((B, p, 3, 3, 1)).astype(dtype)


def rolled(rollout, network, context, passes):
    """Finished frames of the first passes, in one program."""

    @jax.jit
    def run(context):
        return advanced(rollout, network, rollout.begin(KEYS, context), passes)[1]

    return run(context)


def advanced(rollout, network, carry, passes):
    return rollout.advance(KEYS, lambda *_: network, carry, passes, 0.2)


def compiled(function, static=()):
    """The function as a program of its own, also where nothing else is compiled."""
    fast = jax.jit(function, static_argnums=static)

    def call(*arguments):
        with jax.disable_jit(False):
            return fast(*arguments)

    return call


@pytest.fixture
def interpreted(monkeypatch):
    """One operation after another, so that equal formulas give equal bits, however they would be compiled.

    Random numbers have the same bits either way, and what begins, updates or moves a window is the same program for all
    who call it.
    """
    programs = {"white_noise": (), "fold": (), "split_keys": (), "begin": (1,), "update": (0, 1)}
    for name, static in programs.items():
        monkeypatch.setattr(samplers, name, compiled(getattr(samplers, name), static))
    monkeypatch.setattr(rollouts, "white_noise", samplers.white_noise)
    monkeypatch.setattr(Rollout, "_move", compiled(Rollout._move, (0,)))
    with jax.disable_jit():
        yield


# Which evaluations a frame receives.


@functools.cache
def levels_seen(rollout, passes):
    """The log SNR of every frame of the window at each evaluation of the network, in double precision.

    It leaves the program as integers, since the thread of a callback knows no double precision.
    """
    seen = []

    def record(bits):
        seen.append(np.asarray(bits).view(np.float64)[:, 0])

    def network(z, logsnr):
        jax.debug.callback(record, jax.lax.bitcast_convert_type(logsnr[0], jnp.uint32), ordered=True)
        return 0.1 * z

    rolled(rollout, network, context_of(rollout.process.num_context, np.float64), passes)
    jax.effects_barrier()
    return seen


def paths(rollout, horizon, p):
    """Times at which the network sees each frame of the forecast, by frame; the number of evaluations."""
    stride = rollout.process.stride
    passes = -(-(horizon + rollout.warmup_frames) // stride)
    seen = levels_seen(rollout, passes)
    each = len(seen) // passes
    of_frame = [[] for _ in range(horizon)]
    for i, logsnr in enumerate(seen):
        first = max(i // each - rollout.warmup_passes + 1, 0) * stride
        t = 2 / np.pi * np.arctan(np.exp(-logsnr / 2))
        np.testing.assert_array_equal(t[:p], 0)
        for frame in range(first, min(first + len(t) - p, horizon)):
            of_frame[frame].append(t[p + frame - first])
    return of_frame, len(seen)


def moving(path):
    """The times of those evaluations after which the frame is less noisy; it ends at 0."""
    path = np.append(path, 0.0)
    assert np.all(np.diff(path) < 1e-12)
    return path[:-1][np.diff(path) < -1e-9]


@pytest.mark.parametrize("p", [0, 2])
def test_every_frame_receives_n_evaluations_on_one_grid_with_the_init_clock(p, x64):
    """Frame by frame, t = 1, 1 - 1/N, ..., 1/N: the grid of a window whose frames share one time."""
    k, steps, horizon = 3, 12, 8
    rollout = Rollout(Rolling(Cosine(), p, k), Sampler(nfe=steps))
    found, evaluations = paths(rollout, horizon, p)
    for path in found:
        np.testing.assert_allclose(moving(path), 1 - np.arange(steps) / steps, rtol=0, atol=1e-12)
    assert evaluations == steps + (horizon - 1) * steps // k


def test_early_frames_receive_more_evaluations_with_the_rescaled_clock(x64):
    k, steps, horizon = 3, 12, 7
    rollout = Rollout(RollingDynamical(Cosine(), 2, k, clock="init_rescaled"), Sampler(nfe=steps))
    found, evaluations = paths(rollout, horizon, 2)
    counts = [len(moving(path)) for path in found]
    assert counts == [steps + min(i, k) * (steps // k) if i < k else steps for i in range(horizon)]
    assert evaluations == steps + (horizon - 1) * steps // k
    for i, path in enumerate(found[:k]):  # first from 1 to i/k in N steps, then in steps of 1/N
        beginning = i / k + (1 - i / k) * (1 - np.arange(steps) / steps)
        rest = i / k - np.arange(i * steps // k) / steps
        np.testing.assert_allclose(moving(path), np.concatenate([beginning, rest]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("horizon", [1, 4, 5, 8])
def test_blocks_take_n_evaluations_each(horizon, x64):
    steps, k = 5, 4
    found, evaluations = paths(Rollout(Dynamical(Cosine(), 2, k), Sampler(nfe=steps)), horizon, 2)
    for path in found:
        np.testing.assert_allclose(moving(path), 1 - np.arange(steps) / steps, rtol=0, atol=1e-12)
    assert evaluations == steps * -(-horizon // k)


def test_a_rollout_of_any_length_traces_the_network_once():
    for process in (Rolling(Cosine(), 2, 3), Dynamical(Cosine(), 2, 3)):
        traces = []

        def network(z, logsnr, traces=traces):
            traces.append(1)
            return z

        rollout = Rollout(process, Sampler("ancestral", nfe=12))
        jax.eval_shape(lambda c, r=rollout, n=network: rolled(r, n, c, 30), context_of(2))
        assert len(traces) == 1


def test_times_of_the_warm_up_and_of_a_shift():
    rollout = Rollout(Rolling(Cosine(), 2, 2), Sampler(nfe=4))
    assert (rollout.warmup_passes, rollout.warmup_frames) == (2, 1)
    np.testing.assert_array_equal(rollout.timesteps(), [[1, 0.75, 0.5], [0.5, 0.25, 0], [1, 0.5, 0]])
    blocks = Rollout(Standard(Cosine(), 2, 4), Sampler(nfe=50, timesteps="released"))
    assert (blocks.warmup_passes, blocks.warmup_frames) == (1, 0)
    np.testing.assert_array_equal(blocks.timesteps(), [Sampler(nfe=50, timesteps="released").taus()] * 2)


@pytest.mark.parametrize(
    "process",
    [Rolling(Cosine(), 2, 3), Standard(Cosine(), 2, 3), Dynamical(Cosine(), 4, 3)],
    ids=["rolling", "p<k", "p>k"],
)
def test_finished_frames_become_the_context_of_the_next_window(process):
    """``bind`` receives them with the number of the first frame of its window; the network has them in z."""
    rollout, p, passes = Rollout(process, Sampler(nfe=3)), process.num_context, 5
    given, seen = context_of(p), []

    def bind(context, first):
        def network(z, logsnr):
            jax.debug.callback(lambda *values: seen.append(values), context, first, z[:, :p], ordered=True)
            return jnp.tanh(z)

        return network

    run = jax.jit(lambda given: rollout.advance(KEYS, bind, rollout.begin(KEYS, given), passes))
    _, frames = run(given)
    jax.effects_barrier()
    known = np.concatenate([given, frames[:, rollout.warmup_frames :]], axis=1)
    steps = len(seen) // passes
    for i, (context, first, in_z) in enumerate(seen):
        assert first == max(i // steps - rollout.warmup_passes + 1, 0) * process.stride
        np.testing.assert_array_equal(context, known[:, first : first + p])
        np.testing.assert_array_equal(in_z, context)
    assert first > 0


# Special cases.

ROLLING = [
    Rolling(Cosine(), 2, 3),
    RollingDynamical(Cosine(), 2, 3, clock="init_rescaled"),
    Dynamical(Cosine(), 2, 3),
    Dynamical(Cosine(), 4, 3),
]


@pytest.mark.slow
@pytest.mark.parametrize("process", ROLLING, ids=["rolling", "rescaled", "p<k", "p>k"])
@pytest.mark.parametrize("method", METHODS)
def test_passes_in_several_calls_are_those_of_one_bit_for_bit(process, method):
    rollout, network = Rollout(process, Sampler(method, nfe=6)), random_network(process.num_frames)
    run = jax.jit(lambda carry, passes: advanced(rollout, network, carry, passes), static_argnums=1)
    carry, pieces = jax.jit(rollout.begin)(KEYS, context_of(process.num_context)), []
    _, whole = run(carry, 6)
    for _ in range(3):
        carry, frames = run(carry, 2)
        pieces.append(frames)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    assert whole.shape[1] == 6 * process.stride


@pytest.mark.slow
def test_eta_zero_is_rolling_diffusion_bit_for_bit():
    network = random_network(4)
    for method, clock in (("ancestral", "init"), ("dpmpp_2m", "init_rescaled")):
        mixed, plain = (
            rolled(Rollout(process, Sampler(method, nfe=6)), network, context_of(2), 4)
            for process in (
                RollingDynamical(Cosine(), 2, 2, clock=clock, eta=0.0),
                Rolling(Cosine(), 2, 2, clock=clock),
            )
        )
        np.testing.assert_array_equal(mixed, plain)


@pytest.mark.slow
@pytest.mark.parametrize(("p", "method"), [(0, "ancestral"), (2, "dpmpp_2m")])
def test_a_window_of_one_forecast_frame_is_standard_diffusion_frame_by_frame(p, method, interpreted):
    network = compiled(random_network(p + 1))
    blocks, *windows = (
        rolled(Rollout(process, Sampler(method, nfe=3)), network, context_of(p), 3)
        for process in (
            Standard(Cosine(), p, 1),
            Rolling(Cosine(), p, 1, clock="init"),
            Rolling(Cosine(), p, 1, clock="init_rescaled"),
        )
    )
    for rolling in windows:
        np.testing.assert_array_equal(rolling, blocks)


@pytest.mark.slow
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
def test_block_rollouts_are_forecasts_one_after_another(process, method, interpreted):
    """The first is ``sample``, bit for bit; a later one too, from the last p frames and with its own noise."""
    p, k, sampler = process.num_context, process.num_forecast, Sampler(method, nfe=3)
    network, given = compiled(random_network(p + k)), context_of(p)
    frames = rolled(Rollout(process, sampler), network, given, 3)

    alone = sample(KEYS, process, network, given, sampler)
    np.testing.assert_array_equal(frames[:, :k], alone[:, p:])

    def one(context, number):
        noise_keys, step_keys = samplers.split_keys(KEYS)
        taus = jnp.asarray(samplers.timesteps_for(process, sampler), context.dtype)
        noise_keys = jax.vmap(jax.random.fold_in, (0, None))(noise_keys, number)
        state = samplers.begin(noise_keys, process, context, taus[0])
        steps = samplers.time_steps(taus, number * sampler.nfe)
        return samplers.integrate(step_keys, process, network, state, steps, sampler).z

    for number in (1, 2):
        known = np.concatenate([given, frames[:, : number * k]], axis=1)
        by_hand = one(known[:, known.shape[1] - p :], number)
        np.testing.assert_array_equal(frames[:, number * k :][:, :k], by_hand[:, p:])


def test_no_two_draws_of_noise_are_the_same(x64):
    """Blocks of a denoiser that keeps the noise: what is drawn at any place differs from any other draw."""
    for process in (Standard(Cosine(), 2, 3), Rolling(Cosine(), 2, 3)):
        rollout = Rollout(process, Sampler("ancestral", nfe=6))
        frames = rolled(rollout, lambda z, logsnr: 0.1 * z, context_of(2, np.float64), 6)
        rows = np.asarray(frames[:, rollout.warmup_frames :]).reshape(
            B * (frames.shape[1] - rollout.warmup_frames), 9
        )
        similarity = np.corrcoef(rows) - np.eye(len(rows))
        assert np.abs(similarity).max() < 0.99


# Refusals.


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Rollout(Rolling(Cosine(), 2, 4), Sampler(nfe=50)),
            r"^nfe: .*multiple of the 4 .*found 50.*; take (48|52)",
        ),
        (lambda: Rollout(Rolling(Cosine(), 2, 4), Sampler(nfe=55)), r"^nfe: .*found 55.*; take 56"),
        (lambda: Rollout(Rolling(Cosine(), 2, 4), Sampler(nfe=1)), r"^nfe: .*found 1:.*; take 4"),
        (
            lambda: Rollout(Rolling(Cosine(), 2, 4), Sampler(nfe=40, timesteps="released")),
            r'^timesteps: .*"uniform", found "released"',
        ),
        (
            lambda: Rollout(Standard(Cosine(), 2, 4, "eps"), Sampler(nfe=500, timesteps="released")),
            r"^timesteps: .*0\.982",
        ),
        (
            lambda: rolled(Rollout(Rolling(Cosine(), 2, 3), Sampler(nfe=6)), jnp.tanh, context_of(3), 1),
            r"^context: expected 2 frames",
        ),
        (
            lambda: rolled(Rollout(Standard(Cosine(), 2, 3), Sampler(nfe=6)), jnp.tanh, context_of(1), 1),
            r"^context: expected 2 frames",
        ),
        (
            lambda: sample(KEYS, Rolling(Cosine(), 2, 3), jnp.tanh, context_of(2), Sampler(nfe=6)),
            r"^process: .*3 frames together, found a stride of 1.*rollout",
        ),
    ],
)
def test_bad_rollouts_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
