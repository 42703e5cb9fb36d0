"""The rolling clocks, the levels and losses of rolling processes, and what they are in special cases."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_law

from dydiff_jax.diffusion import Cosine, Dynamical, LinearBeta, Sampler, Standard, diffusion_loss
from dydiff_jax.diffusion.process import example_keys, white_noise, window_times
from dydiff_jax.diffusion.rolling import Rolling, local_times
from dydiff_jax.diffusion.rolling_dynamical import RollingDynamical
from dydiff_jax.diffusion.sampler import SamplerState, update
from dydiff_jax.types import Levels

P, K, B = 2, 4, 3
CLOCKS = ("lin", "init", "init_rescaled")
METHODS = ("ddim", "ancestral", "dpmpp_2m")
WINDOWS = [(window, clean) for window in range(1, 25) for clean in range(window)]
TAUS = np.array([0.0, 0.05, 0.25, 0.3, 0.5, 0.75, 1.0])


def draw(seed, frames=P + K, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((B, frames, 2, 2, 1)).astype(dtype)


def make(eta=0.5, **options):
    return RollingDynamical(Cosine(), P, K, eta=eta, **options) if eta else Rolling(Cosine(), P, K, **options)


def levels_at(process, tau, sliding):
    tau = np.broadcast_to(np.asarray(tau, np.float64), (B,))
    return process.levels(tau, jnp.broadcast_to(sliding, (B,)))


# The clocks.


@partial(jax.jit, static_argnums=1)
def clocks(tau, windows):
    """The times of each clock for each (window, clean), in one program."""
    return [[local_times(tau, *window, kind) for kind in CLOCKS] for window in windows]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_sliding_window_repeats_itself_and_the_clocks_join_bit_for_bit(dtype, x64):
    ends = np.array([0, 1], dtype)
    for window, clean in WINDOWS:
        lin, init, rescaled = (np.asarray(local_times(ends, window, clean, kind)) for kind in CLOCKS)
        assert lin.dtype == dtype
        np.testing.assert_array_equal(lin[0, clean + 1 :], lin[1, clean:-1])
        np.testing.assert_array_equal(lin[0, : clean + 1], 0)
        assert lin[1, -1] == 1
        for begin in (init, rescaled):
            np.testing.assert_array_equal(begin[0], lin[0])
            np.testing.assert_array_equal(begin[1], np.arange(window) >= clean)


def test_compiled_clocks_join_bit_for_bit():
    """In float32; a compiler that replaces a quotient by a product would shift them by a rounding."""
    pairs = ((6, 0), (7, 2), (11, 1), (12, 2), (43, 2))
    times = clocks(np.array([0, 1], np.float32), pairs)
    for (_, clean), (lin, init, rescaled) in zip(pairs, times, strict=True):
        np.testing.assert_array_equal(lin[0, clean + 1 :], lin[1, clean:-1])
        assert lin[1, -1] == 1
        np.testing.assert_array_equal(init[0], lin[0])
        np.testing.assert_array_equal(rescaled[0], lin[0])


def test_clocks_are_their_formulas(x64):
    windows = tuple(WINDOWS[::7])
    lasts = jax.jit(lambda: [local_times(TAUS / (w - m), w, m, "init") for w, m in windows])()
    for (window, clean), times, sliding in zip(
        windows, jax.device_get(clocks(TAUS, windows)), lasts, strict=True
    ):
        place = np.arange(window) - clean
        u = place / (window - clean)
        expected = {
            "lin": np.clip((place + TAUS[:, None]) / (window - clean), 0, 1),
            "init": np.where(place < 0, 0, np.clip(u + TAUS[:, None], 0, 1)),
            "init_rescaled": np.where(place < 0, 0, u + TAUS[:, None] * (1 - u)),
        }
        for kind, t in zip(CLOCKS, times, strict=True):
            np.testing.assert_allclose(t, expected[kind], rtol=0, atol=4e-16)
            np.testing.assert_array_equal(t[:, :clean], 0)
            assert np.all(np.diff(t, axis=0) >= 0) and np.all(np.diff(t, axis=1) >= 0)
        np.testing.assert_allclose(sliding, expected["lin"], rtol=0, atol=4e-16)


def test_a_window_of_one_corrupted_frame_has_the_time_of_its_window(x64):
    for kind in CLOCKS:
        for clean in (0, 3):
            t = local_times(TAUS, clean + 1, clean, kind)
            np.testing.assert_allclose(t[:, -1], TAUS, rtol=1e-15, atol=0)
            np.testing.assert_array_equal(t[:, :-1], 0)


def test_clocks_take_any_batch_shape():
    t = local_times(np.full((2, 3), 0.5, np.float32), 6, 2, "lin")
    np.testing.assert_allclose(t, np.broadcast_to([0, 0, 0.125, 0.375, 0.625, 0.875], (2, 3, 6)), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 2, "lin"), r"^window: expected more frames than the 2 of its context.*found 2"),
        ((2, 3, "init"), r"^window: .*3.*found 2"),
        ((2, -1, "lin"), r"^window: "),
        ((2, 1, "linear"), r'^kind: expected "lin", "init" or "init_rescaled", found "linear"'),
    ],
)
def test_bad_clocks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        local_times.__wrapped__(np.zeros(1, np.float32), *arguments)


# Levels.


@pytest.mark.parametrize("eta", [0, 0.5])
@pytest.mark.parametrize("clock", ["init", "init_rescaled"])
def test_levels_of_windows_that_slide_and_that_begin(clock, eta, x64):
    """Times of the chosen clock in each example; loss where the time moves; gamma of the frame's own time."""
    process = make(eta, clock=clock)
    assert (process.stride, process.num_frames) == (1, P + K)
    u = (np.arange(P + K) - P) / K
    for tau in (0.05, 0.25, 0.3, 0.5, 0.75, 1.0):
        sliding = np.array([True, False, True])
        levels = levels_at(process, tau, sliding)
        forecast = u >= 0
        moving = {"init": forecast & (u + tau <= 1), "init_rescaled": forecast}[clock]
        for row, (kind, active) in enumerate([("lin", forecast), (clock, moving), ("lin", forecast)]):
            np.testing.assert_array_equal(levels.t[row], local_times(np.array(tau), P + K, P, kind))
            np.testing.assert_array_equal(levels.active[row], active)
        gamma = 1 - eta * np.sin(np.pi * np.asarray(levels.t) / 2) ** 2
        np.testing.assert_allclose(levels.gamma, gamma, rtol=1e-14)
        np.testing.assert_array_equal(levels.gamma[:, :P], 1)
        np.testing.assert_array_equal(process.logsnr(levels)[:, :P], np.inf)


@pytest.mark.parametrize("eta", [0, 0.5])
@pytest.mark.parametrize("clock", ["init", "init_rescaled"])
def test_active_frames_are_those_whose_time_falls_with_tau(clock, eta, x64):
    """The definition, from the times alone: a little earlier, these frames are less noisy, and no others."""
    process = make(eta, clock=clock)
    for sliding in (False, True):
        for tau in (0.03, 0.25, 0.5, 0.8, 1.0):
            here, sooner = (levels_at(process, time, sliding) for time in (tau, tau - 1e-6))
            np.testing.assert_array_equal(here.active, np.asarray(here.t - sooner.t) > 1e-8)


def test_every_window_has_loss_somewhere():
    smallest = np.float32(2**-24)  # of 1 - u with u uniform in [0, 1) in float32
    taus = np.append(np.random.default_rng(0).uniform(0, 1, 400), [smallest, 1]).astype(np.float32)
    processes = [
        Rolling(Cosine(), 1, k, clock=clock) for k in (1, 2, 5, 24) for clock in ("init", "init_rescaled")
    ]
    run = jax.jit(lambda sliding: [process.levels(taus, sliding).active for process in processes])
    for sliding in (False, True):
        for active in jax.device_get(run(np.full(len(taus), sliding))):
            assert np.all(np.any(active, axis=1))
            assert not np.any(active[:, :1])


# The loss.


def test_loss_is_the_mean_over_the_active_frames_of_a_window_then_over_windows(x64):
    process, x0 = make(0, prediction="x0", p_lin=0.5), draw(0)
    keys = jax.random.split(jax.random.key(5), B)

    @jax.jit
    def run():
        seen = []

        def constant(z, logsnr):
            seen.append(logsnr)
            return jnp.full_like(z, 0.7)

        return *diffusion_loss(keys, process, constant, x0), seen[0], window_times(keys, jnp.float64)

    loss, aux, logsnr, tau = jax.device_get(run())
    t = 2 / np.pi * np.arctan(np.exp(-logsnr / 2))
    sliding = np.isclose(t[:, P], tau / K)
    assert len(set(sliding)) == 2
    expected = []
    for row in range(B):
        last = P + (K if sliding[row] else int(np.floor(K * (1 - tau[row]))) + 1)
        assert sliding[row] or last < P + K
        expected.append(np.mean((x0[row, P:last] - 0.7) ** 2))
    np.testing.assert_allclose(aux["loss_per_example"], expected, rtol=1e-12)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-12)


@pytest.mark.parametrize(
    "process", [Rolling(Cosine(), 1, K, p_lin=p) for p in (0.0, 0.3)] + [make(0.5, p_lin=0.3)]
)
def test_sliding_windows_are_drawn_for_each_example_at_their_rate(process):
    """The kind of window and its time are drawn apart: tau / K is uniform in (0, 1 / K] where it slides."""
    number, p = 4000, process.num_context
    keys = jax.random.split(jax.random.key(1), number)
    levels = jax.jit(process.draw)(keys)
    tau = np.asarray(jax.jit(window_times, static_argnums=1)(keys, jnp.float32))
    first = np.asarray(levels.t)[:, p]
    sliding = first < 0.6 * tau
    np.testing.assert_allclose(first, np.where(sliding, tau / K, tau), rtol=1e-5)
    rate = process.p_lin
    assert abs(sliding.mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / number)
    if rate:
        assert abs(tau[sliding].mean() - 0.5) < 4 * np.sqrt(1 / 12 / sliding.sum())
    part = jax.jit(process.draw)(keys[7:27])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[7:27]), part, levels)


def test_draws_are_those_of_three_keys_for_each_example_bit_for_bit():
    """tau, then the kind of window, then the noise, whatever the process reads of them."""
    keys = jax.random.split(jax.random.key(2), 50)

    @jax.jit
    def of_one(key):
        of_tau, of_kind, of_noise = jax.random.split(key, 3)
        sliding = jax.random.uniform(of_kind) < 0.4
        return 1 - jax.random.uniform(of_tau), sliding, jax.random.normal(of_noise, (6, 1))

    tau, sliding, noise = (np.stack(column) for column in zip(*map(of_one, keys), strict=True))
    assert 5 < sliding.sum() < 45
    for process, slides in ((make(0, p_lin=0.4), sliding), (Standard(Cosine(), P, K), np.zeros(50, bool))):
        drawn, expected = jax.jit(process.draw)(keys), jax.jit(process.levels)(tau, slides)
        jax.tree.map(np.testing.assert_array_equal, drawn, expected)
    found = jax.jit(lambda keys: white_noise(example_keys(keys)[2], jnp.zeros((50, 6, 1))))(keys)
    np.testing.assert_array_equal(found, noise)


# Special cases.


def test_eta_zero_is_rolling_diffusion_bit_for_bit():
    x0, eps, fresh = (draw(seed, dtype=np.float32) for seed in (0, 1, 2))
    tau, sliding = np.array([0.05, 0.6, 1.0], np.float32), np.array([False, True, False])

    @partial(jax.jit, static_argnums=0)
    def everything(process):
        levels, later = process.levels(tau, sliding), process.levels(tau / 2, sliding)
        return (
            levels,
            [
                getattr(process, name)(x0, eps, levels)
                for name in ("forward", "target", "recover", "residual")
            ],
            process.noise(eps, levels),
            process.refresh_fraction(levels, later),
            process.frozen(levels, later),
            process.extend(x0, eps, fresh, levels, 1, 0.3),
            process.extend(x0, None, fresh, levels, K),
        )

    for options in ({}, {"prediction": "x0", "clock": "init_rescaled"}):
        ours = everything(RollingDynamical(Cosine(), P, K, eta=0.0, **options))
        jax.tree.map(np.testing.assert_array_equal, ours, everything(make(0, **options)))


@pytest.mark.parametrize("eta", [0, 0.5])
def test_frames_that_share_one_time_are_those_of_a_synchronous_process(eta, x64):
    """Forward, target, recover and residual read nothing of the clock but the levels."""
    x0, eps = draw(0), draw(1)
    synchronous = Dynamical(Cosine(), P, K, eta=eta) if eta else Standard(Cosine(), P, K)
    levels = levels_at(synchronous, [0.2, 0.7, 1.0], False)

    @partial(jax.jit, static_argnums=0)
    def everything(process):
        z = process.forward(x0, eps, levels)
        return (
            z,
            process.target(x0, eps, levels),
            process.recover(z, eps, levels),
            process.residual(z, eps, levels),
        )

    jax.tree.map(np.testing.assert_array_equal, everything(make(eta)), everything(synchronous))


@pytest.mark.parametrize("eta", [0, 0.5, 0.9])
def test_forward_equals_the_matrices_and_recover_inverts_it(eta, x64):
    """A gamma for each frame; the data chain runs on from raw context, the noise chain starts behind it."""
    process, x0, eps = make(eta), draw(0), draw(1)

    @jax.jit
    def run(sliding):
        levels = levels_at(process, [0.05, 0.5, 1.0], sliding)
        z = process.forward(x0, eps, levels)
        back = process.recover(z, process.target(x0, eps, levels), levels)
        maps = jax.vmap(partial(rollout_law.window_maps, process, eta))(process.logsnr(levels))
        return z, back, maps

    for sliding in (False, True):
        z, back, maps = jax.device_get(run(np.full(B, sliding)))
        for row in range(B):
            alpha, sigma, data, noise = (of_rows[row] for of_rows in maps)
            expected = np.einsum("f,fj,jhwc->fhwc", alpha, data, x0[row])
            expected += np.einsum("f,fj,jhwc->fhwc", sigma, noise, eps[row])
            np.testing.assert_allclose(z[row], expected, rtol=1e-11, atol=1e-12)
        np.testing.assert_array_equal(z[:, :P], x0[:, :P])
        np.testing.assert_allclose(back[0], x0, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(back[1][:, P:], eps[:, P:], rtol=1e-9, atol=1e-10)


# Frames that enter.


def covariance_of(process, levels):
    """Of z when frames are those of the AR(1) process and noise is white."""
    alpha, sigma, data, noise = rollout_law.window_maps(
        process, process.eta, process.logsnr(levels)[0], levels.gamma[0]
    )
    data_z, noise_z = alpha[:, None] * data, sigma[:, None] * noise
    return data_z @ rollout_law.covariance(P + K) @ data_z.T + noise_z @ noise_z.T


def test_moving_the_window_leaves_the_law_of_its_frames_unchanged(x64):
    """With gamma = 1 on context: the end of one window is the start of the next, frame for frame."""
    process = make(0.5)
    end, start = levels_at(process, 0.0, True), levels_at(process, 1.0, True)
    np.testing.assert_array_equal(end.t[:, 1:], start.t[:, :-1])
    np.testing.assert_array_equal(end.gamma[:, 1:], start.gamma[:, :-1])
    moved = covariance_of(process, end)[1:, 1:]
    np.testing.assert_allclose(moved, covariance_of(process, start)[:-1, :-1], rtol=1e-13)
    of_window = start._replace(
        gamma=np.where(np.arange(P + K) < P, 0.5, start.gamma)
    )  # gamma(tau) on context
    assert np.abs(covariance_of(process, of_window)[:-1, :-1] - moved).max() > 0.1


def test_a_frame_that_enters_continues_the_chain_of_the_noise(x64):
    """z_new = sqrt(1 - gamma(1)) n_hat + sqrt(gamma(1) + (1 - gamma(1)) variance) xi, in each channel."""
    process, z, noise, fresh = make(0.5), draw(0), draw(1), draw(2)
    z, noise, fresh = (np.concatenate([frames, -frames], axis=-1) for frames in (z, noise, fresh))
    variance = np.array([0.3, 0.7])
    out = process.extend(z, noise, fresh, levels_at(process, 1.0, True), 1, variance)
    np.testing.assert_array_equal(out[:, :-1], z[:, 1:])
    expected = np.sqrt(0.5) * noise[:, -1] + np.sqrt(0.5 + 0.5 * variance) * fresh[:, -1]
    np.testing.assert_allclose(out[:, -1], expected, rtol=1e-13)


def test_rolling_windows_move_on_and_take_pure_noise_in(x64):
    z, noise, fresh = draw(0), draw(1), draw(2)
    for process in (make(0), make(0.5, mix_noise=False)):
        out = process.extend(z, noise, fresh, levels_at(process, 1.0, True), 1, 0.3)
        np.testing.assert_array_equal(out, np.concatenate([z[:, 1:], fresh[:, -1:]], axis=1))


def test_a_window_begins_with_the_context_and_the_prior_chain(x64):
    z, fresh = draw(0), draw(1)
    for eta in (0, 0.5):
        process = make(eta)
        out = process.extend(z, None, fresh, levels_at(process, 1.0, False), K)
        np.testing.assert_array_equal(out[:, :P], z[:, K:])
        chain = rollout_law.chain(np.full(K, 1 - eta)) if eta else np.eye(K)
        np.testing.assert_allclose(out[:, P:], np.einsum("ij,bjhwc->bihwc", chain, fresh[:, P:]), rtol=1e-13)


def test_residual_variance_is_the_conditional_variance_of_the_last_noise(x64):
    """E|n - E[n | z]|^2 in closed form against many draws, with the exact denoiser; in each channel."""
    process, eta, number = make(0.5), 0.5, 2000
    rng = np.random.default_rng(0)
    root = np.linalg.cholesky(rollout_law.covariance(P + K))
    rows = rng.standard_normal((number, P + K, 2))
    x0 = np.einsum("ij,njc->nic", root, rows)[:, :, None, None, :]
    eps = rng.standard_normal(x0.shape)
    denoise = rollout_law.exact_denoiser(process, eta)

    @jax.jit
    def measure(tau):
        found = process.residual_variance(denoise, x0, eps, jnp.full(number, tau))
        return found, rollout_law.exact_residual_variance(process, eta, tau)

    for tau in (0.25, 1 / 16):
        found, exact = measure(tau)
        assert found.shape == (2,)
        assert np.all(np.abs(found - exact) < 4 * exact * np.sqrt(2 / number))
        assert exact > 0.05


# Frames that stay.

ALL_PROCESSES = [
    Standard(LinearBeta(), P, K, "eps"),
    Standard(Cosine(), P, K, "x0"),
    Dynamical(Cosine(), P, K, "v"),
    Dynamical(LinearBeta(), P, K, "eps"),
    Rolling(LinearBeta(), P, K, "v"),
    Rolling(Cosine(), P, K, "x0"),
    RollingDynamical(Cosine(), P, K, "v"),
    RollingDynamical(LinearBeta(), P, K, "x0"),
    RollingDynamical(Cosine(), P, K, "v", mix_noise=False),
]


BEFORE, AFTER = np.float32([0, 0, 0, 0.5, 0.7, 1]), np.float32([0, 0, 0, 0.25, 0.7, 1])


@cache
def stepped(process):
    """z after a step from BEFORE to AFTER with each method, from draw(0), in one program."""
    z, prediction, x0, fresh = (draw(seed, dtype=np.float32) for seed in range(4))

    @jax.jit
    def run():
        history, start, end = (
            Levels(t, process.mixing(t), t > 0)
            for t in (jnp.tile(t, (B, 1)) for t in (np.minimum(BEFORE + 0.1, 1), BEFORE, AFTER))
        )
        state = SamplerState(z, 1e3 * x0, x0, history)
        return {
            method: update(process, Sampler(method), state, 1e6 * prediction, fresh, start, end).z
            for method in METHODS
        }

    return jax.device_get(run())


@pytest.mark.parametrize("process", ALL_PROCESSES, ids=lambda p: f"{type(p).__name__}-{p.prediction}")
@pytest.mark.parametrize("method", METHODS)
def test_frames_that_stand_still_are_left_bit_for_bit(process, method):
    """At t = s = 0 always; at t = s where nothing is mixed, pure noise included. Whatever is predicted."""
    z, out = draw(0, dtype=np.float32), stepped(process)[method]
    np.testing.assert_array_equal(out[:, :3], z[:, :3])
    assert np.all(np.any(out[:, 3] != z[:, 3], axis=(1, 2, 3)))
    if not (process.mixes_data or process.mixes_noise):
        np.testing.assert_array_equal(out[:, 4:], z[:, 4:])
    elif process.mixes_noise and method == "ancestral":  # churn of a frame reaches those behind it
        assert np.all(np.any(out[:, 4:] != z[:, 4:], axis=(2, 3, 4)))


def test_steps_that_only_rounding_makes_do_not_extrapolate(x64):
    """A frame that waits at t = 1 to rounding has no history: its x0 must not be extrapolated."""
    process, sampler = make(0), Sampler("dpmpp_2m")
    z, prediction, x0 = draw(0), draw(1), draw(2)

    def step(previous):
        history, start, end = (levels_at(process, 1.0, True)._replace(t=np.tile(t, (B, 1))) for t in previous)
        return update(process, sampler, SamplerState(z, x0, x0, history), prediction, 0 * z, start, end).z

    waited, nearly = ([0, 0, 0.3, 0.5, 0.8, 1 - gap] for gap in (0, 1e-15))
    last = [0, 0, 0.4, 0.6, 0.9, 1.0]
    after = [0, 0, 0.2, 0.4, 0.7, 0.9]
    close, exact = (step([np.array(t) for t in (last, now, after)]) for now in (nearly, waited))
    np.testing.assert_allclose(close, exact, rtol=1e-11, atol=1e-12)


def test_refresh_fraction_is_capped_where_noise_is_mixed(x64):
    start, end = [levels_at(make(0), tau, True) for tau in (1.0, 0.9)]
    share = np.asarray(make(0).refresh_fraction(start, end))
    cap = 4 * np.pi * (np.asarray(start.t) - np.asarray(end.t))
    assert np.any(share > cap) and np.any((share < cap) & (share > 0))
    np.testing.assert_allclose(make(0.5).refresh_fraction(start, end), np.minimum(share, cap), rtol=1e-13)
    np.testing.assert_array_equal(make(0.5, mix_noise=False).refresh_fraction(start, end), share)
    np.testing.assert_array_equal(make(0.5).refresh_fraction(end, start), 0)


# Refusals.


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make(0, prediction="eps"), r'^prediction: .*expected "v" or "x0", found "eps"'),
        (lambda: make(0.5, prediction="eps"), r"^prediction: "),
        (lambda: make(0, context="noised"), r'^context: .*"clean".*found "noised"'),
        (lambda: make(0.5, context="noised"), r'^context: .*"clean".*found "noised"'),
        (lambda: RollingDynamical(Cosine(), 0, K), r"^num_context: .*at least 1 frame, found 0"),
        (lambda: make(0, clock="init_rescaled", p_lin=0.0), r"^p_lin: .*init_rescaled.*found 0"),
        (lambda: make(0.5, clock="init_rescaled", p_lin=0.0), r"^p_lin: .*init_rescaled.*found 0"),
        (lambda: make(0, p_lin=1.0), r"^p_lin: .*\[0, 1\), found 1\.0"),
        (lambda: make(0, p_lin=-0.1), r"^p_lin: .*\[0, 1\), found -0\.1"),
        (lambda: make(0.5, p_lin=float("nan")), r"^p_lin: .*found nan"),
        (
            lambda: make(0.99, allow_large_eta=True),
            r"^eta: expected at most 0\.98 with a rolling clock.*0\.99",
        ),
        (lambda: make(0.99), r"^eta: .*0\.99"),
        (lambda: Rolling(Cosine(), 2, 0), r"^num_forecast: "),
    ],
)
def test_bad_processes_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
