"""DYffusion's samplers and loss against the exact law of an AR(1) process, without Monte Carlo."""

import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bridges import Bridge, Plain, law
from scipy import optimize, special, stats

from dydiff_jax.diffusion.dyffusion import DYffusion, Leads, dyffusion_loss
from dydiff_jax.diffusion.walk import WalkSampler, sample

pytestmark = pytest.mark.usefixtures("x64")
A, H = 0.9, 8
SCHEDULES = (Leads(H), Leads(H, extra=7), Leads(H, "linear", factor=3))
#: Standard deviation over the true one at leads 1, 2, 4, 7, 8, for N = 8, 15 and 29, of the derivation; four digits.
RATIOS = {
    ("naive", "call", "forecast"): (
        (0.9730, 0.9417, 0.8652, 0.7023, 0.6150),
        (0.9742, 0.9417, 0.8652, 0.7023, 0.6150),
        (0.9740, 0.9443, 0.8737, 0.7361, 0.6445),
    ),
    ("cold", "call", "forecast"): (
        (0.9730, 1.4088, 2.0654, 2.9438, 2.5778),
        (2.8685, 2.5404, 2.7834, 3.6233, 3.1728),
        (2.0198, 2.9085, 4.2814, 6.2299, 5.4553),
    ),
    ("cold", "call", "cold"): (
        (0.9730, 1.4088, 2.0654, 2.9438, 3.2796),
        (2.8685, 2.5404, 2.7834, 3.6233, 4.0224),
        (2.0198, 2.9085, 4.2814, 6.2299, 6.8850),
    ),
    ("cold", "step", "forecast"): (
        (0.9730, 0.7920, 0.7050, 0.8151, 0.7138),
        (0.4590, 0.4191, 0.3809, 0.4620, 0.4045),
        (0.6030, 0.4871, 0.4363, 0.5122, 0.4485),
    ),
    ("cold", "block", "forecast"): (
        (0.9730, 0.9775, 0.9754, 0.8560, 0.7496),
        (1.0041, 1.0019, 0.9969, 0.8804, 0.7709),
        (0.9999, 1.0065, 1.0124, 0.9128, 0.7993),
    ),
    ("ancestral", "call", "forecast"): (
        (0.9730, 0.9683, 0.9531, 0.8787, 0.7694),
        (0.9966, 0.9790, 0.9575, 0.8805, 0.7710),
        (0.9931, 0.9920, 0.9880, 0.9663, 0.8461),
    ),
}


@pytest.mark.parametrize("name, draws, last", RATIOS, ids=str)
def test_every_sampler_has_the_derived_spread_and_the_exact_mean(name, draws, last):
    for leads, expected in zip(SCHEDULES, RATIOS[name, draws, last], strict=True):
        bridge, frames = Bridge(A, H, 64), np.arange(1, H + 1)
        mean, noise = law(bridge, leads, WalkSampler(name, draws=draws, last=last))
        np.testing.assert_allclose(mean, A**frames, rtol=0, atol=1e-10)
        ratios = np.linalg.norm(noise, axis=1) / np.sqrt(bridge.variance(frames))
        np.testing.assert_allclose(ratios[[0, 1, 3, 6, 7]], expected, rtol=0, atol=1e-4)


def test_the_table_of_the_readme_is_the_first_of_these():
    text = (pathlib.Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)=(\w+)`[^|]*((?:\| \d\.\d{3} )+)\|$", text, re.MULTILINE)
    found = {
        (key, value): [float(cell) for cell in cells.strip("| ").split("|")] for key, value, cells in rows
    }
    for (name, draws, last), ratios in RATIOS.items():
        row = ("draws", draws) if name == "cold" else ("name", name)
        if last == "forecast":
            np.testing.assert_allclose(found.pop(row), ratios[0], rtol=0, atol=6e-4)
    assert not found


def test_refinement_has_the_marginals_of_the_bridge_to_the_forecast_end():
    """x_i = I(x_0, x_h', i): its variance is that of the bridge plus the part of the forecast's."""
    bridge = Bridge(A, H, 64)
    _, plain = law(bridge, Leads(H), WalkSampler())
    mean, refined = law(bridge, Leads(H), WalkSampler(refine=True))
    lead = np.arange(1, H)
    slope, std = (
        A ** (H - lead) * bridge.variance(lead) / bridge.variance(H),
        bridge.moments(plain[:1], plain[:1], lead)[1],
    )
    expected = std[:, 0] ** 2 + slope**2 * np.sum(plain[-1] ** 2)
    np.testing.assert_allclose(np.sum(refined[:-1] ** 2, axis=1), expected, rtol=1e-10)
    np.testing.assert_allclose(mean, A ** np.arange(1, H + 1), atol=1e-10)
    np.testing.assert_array_equal(refined[-1], plain[-1])


def test_frames_between_have_the_marginals_of_the_bridge_and_change_no_whole_one():
    """As refined frames: the mean a^i x_0, the variance of the bridge plus the part of the forecast's."""
    bridge, lead = Bridge(A, H, 64), np.arange(1, 4 * H + 1) / 4
    for sampler in (WalkSampler(), WalkSampler(refine=True), WalkSampler(draws="block")):
        _, whole = law(bridge, Leads(H), sampler)
        mean, found = law(bridge, Leads(H), sampler, lead)
        np.testing.assert_array_equal(found[3::4], whole)
        np.testing.assert_allclose(mean, A**lead, atol=1e-10)
        i = lead[lead % 1 > 0]
        share = A ** (H - i) * bridge.variance(i) / bridge.variance(H)
        std = bridge.variance(i) * bridge.variance(H - i) / bridge.variance(H)
        expected = std + share**2 * np.sum(whole[-1] ** 2)
        if sampler.draws == "call":  # with one draw a block their own noise is correlated with that of x_h
            np.testing.assert_allclose(np.sum(found[lead % 1 > 0] ** 2, axis=1), expected, rtol=1e-10)


def brownian(name, steps, **options):
    """Variances at h / 2 and h over the true ones, of a Brownian motion, with N equal steps."""
    bridge = Bridge(1.0, H, 2 * steps)
    _, noise = law(bridge, Leads(H, "uniform", steps=steps), WalkSampler(name, **options), wanted=(H // 2, H))
    return np.sum(noise**2, axis=1) / np.array([H / 2, H])


def test_naive_sampling_tends_to_half_the_variance():
    """Var(x_i) -> i h / (h + i), with an error of order N^-1/2."""
    limits = np.array([H / (H + H / 2), 1 / 2])
    errors = [np.abs(brownian("naive", steps) - limits)[1] for steps in (64, 256, 1024)]
    orders = np.log(np.array(errors[:-1]) / errors[1:]) / np.log(4)
    np.testing.assert_allclose(orders, 0.5, atol=0.1)
    assert brownian("naive", 1024)[0] == pytest.approx(limits[0], abs=1e-3)


@pytest.mark.parametrize("steps, expected", [(64, 0.9453), (256, 0.9861), (1024, 0.9965)])
def test_the_released_sampler_spreads_as_the_root_of_the_steps(steps, expected):
    assert brownian("cold", steps)[1] / steps == pytest.approx(expected, abs=1e-4)


def test_with_one_draw_a_step_the_spread_vanishes():
    variances = [brownian("cold", steps, draws="step")[1] for steps in (16, 64, 256, 1024)]
    assert all(later < 0.5 * earlier for earlier, later in itertools.pairwise(variances))


def test_with_one_draw_a_block_the_spread_has_a_limit():
    """(pi / 2) sqrt(e) I_1(1 / 2) at h, approached from above as N^-1/2."""
    limit = np.pi / 2 * np.sqrt(np.e) * special.iv(1, 0.5)
    errors = [np.sqrt(brownian("cold", steps, draws="block")[1]) - limit for steps in (64, 256, 1024)]
    assert limit == pytest.approx(0.6679, abs=1e-4) and errors[-1] < 0.035
    np.testing.assert_allclose(np.array(errors[:-1]) / errors[1:], 2, atol=0.4)


@pytest.mark.parametrize("steps", [8, 64, 512])
def test_ancestral_sampling_lacks_the_harmonic_number(steps):
    """ratio^2 = 1 - H_N / N at h, H_N = 1 + 1/2 + ... + 1/N, exactly."""
    expected = 1 - np.sum(1 / np.arange(1, steps + 1)) / steps
    assert brownian("ancestral", steps)[1] == pytest.approx(expected, abs=1e-10)


def test_the_joint_law_of_ancestral_sampling_alone_converges():
    """The largest error of the covariances of x_1 ... x_h, an independent table; that of cold sampling stays."""

    def error(name, steps, **options):
        bridge, frames = Bridge(A, H, 2 * steps), np.arange(1, H + 1)
        _, noise = law(bridge, Leads(H, "uniform", steps=steps), WalkSampler(name, **options))
        early = np.minimum.outer(frames, frames)
        exact = A ** np.abs(np.subtract.outer(frames, frames)) * bridge.variance(early)
        return np.abs(noise @ noise.T - exact).max()

    found = [error("ancestral", steps) for steps in (32, 64, 128, 256)]
    np.testing.assert_allclose(found, (0.1412, 0.0869, 0.0520, 0.0304), atol=1e-4)
    assert error("cold", 256, draws="block") > 0.1


# What the loss is smallest at

SMALL = 4


def optimum(loss, weights, data):
    """f_n and g_n of F = f_n x + g_n x_0 that minimise the loss of an AR(1) process, h = N = 4, x_0 stationary."""
    bridge, leads = Bridge(A, SMALL, 3), Leads(SMALL)
    if loss == "mse":  # the mean square over coefficients, times their number, is the expectation
        basis, scale = np.eye(4), 4.0
    else:  # quasi-random values of the four coefficients
        basis, scale = stats.norm.ppf(stats.qmc.Sobol(4, seed=0).random(2**16)).T, 1.0
    numbers, keys = jnp.arange(SMALL), jax.random.split(jax.random.key(0), SMALL)
    x0 = jnp.tile(jnp.eye(4)[:1], (SMALL, 1))
    xh = A**SMALL * x0 + np.sqrt(bridge.variance(SMALL)) * jnp.eye(4)[1:2]
    options = DYffusion(leads, loss, weights)

    class Values(Bridge):
        """The bridge on values of the coefficients: [b, samples] for [b, 4]."""

        def noise(self, draw, like):
            return jnp.broadcast_to(jnp.asarray(basis)[draw + 2], like.shape)

    bridge = Values(*bridge)

    @jax.jit
    @jax.value_and_grad
    def value(p):
        f, g = p[:SMALL], p[SMALL:] if data else jnp.zeros(SMALL)

        def at(step):
            return step.number.astype(int)

        known = x0 @ basis

        def forecast(x, step):
            return f[at(step)][:, None] * x + g[at(step)][:, None] * known

        return scale * dyffusion_loss(keys, options, forecast, bridge, known, xh @ basis, number=numbers)[0]

    start = np.concatenate([A ** (SMALL - np.arange(SMALL)), np.zeros(SMALL if data else 0)])
    found = optimize.minimize(
        lambda p: tuple(np.asarray(each) for each in value(p)),
        start,
        jac=True,
        method="BFGS",
        options={"gtol": 1e-8},
    )
    return found.x


@pytest.mark.parametrize(
    "loss, data, f, g",
    [
        ("mse", False, (0.6640, 0.6882, 0.7878, 0.8512), ()),
        ("mse", True, (0.6561, 0.4689, 0.6801, 0.7674), (0.0, 0.2341, 0.1052, 0.0967)),
        ("l1", True, (0.6561, 0.4837, 0.7133, 0.8018), (0.0, 0.2208, 0.0783, 0.0716)),
    ],
)
def test_the_look_ahead_moves_the_optimum(loss, data, f, g):
    """Its input is a redrawn state, which knows less; of n = 0 only f + g counts, as x is x_0 there."""
    found = optimum(loss, (0.5, 0.5), data)
    one, other = found[:SMALL], found[SMALL:]
    if data:
        assert one[0] + other[0] == pytest.approx(f[0] + g[0], abs=1e-3)
        np.testing.assert_allclose(other[1:], g[1:], rtol=0, atol=1e-3)
    else:
        assert one[0] == pytest.approx(f[0], abs=1e-3)
    np.testing.assert_allclose(one[1:], f[1:], rtol=0, atol=1e-3)


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_without_look_ahead_the_optimum_is_the_conditional_mean(loss):
    np.testing.assert_allclose(
        optimum(loss, (1.0, 0.0), False), A ** (SMALL - np.arange(SMALL)), rtol=0, atol=1e-3
    )


# Deterministic truth


class Line(Plain):
    """An interpolator that is exact for dx/di = (x - 1) / 5: x_i - 1 is the geometric mean of its ends."""

    def draw(self, draw, x0, xh, lead):
        del draw
        share = lead / H
        return 1 + (x0 - 1) ** (1 - share) * (xh - 1) ** share


@pytest.mark.parametrize(
    "name, options",
    [("cold", {}), ("naive", {}), ("heun", dict(draws="step", last="cold")), ("cold", dict(last="cold"))],
)
@pytest.mark.parametrize("steps", [2, 8, 61])
def test_exact_functions_give_the_exact_solution_with_any_number_of_steps(name, options, steps):
    x0 = jnp.array([[1.7, 3.0]])

    def forecast(x, step):
        return 1 + (x - 1) * jnp.exp((H - step.lead) / 5)

    found = sample(
        forecast, Line(), x0, Leads(H, "uniform", steps=steps), WalkSampler(name, **options)
    ).frames
    expected = 1 + (x0 - 1) * np.exp(np.arange(1, H + 1)[:, None] / 5)
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)


class Curved(Plain):
    """x_i = (1 - t) x_0 + t x_h + .3 t (1 - t) tanh(x_0 - x_h / 2), t = i / 4."""

    def draw(self, draw, x0, xh, lead):
        del draw
        t = lead / SMALL
        return (1 - t) * x0 + t * xh + 0.3 * t * (1 - t) * jnp.tanh(x0 - xh / 2)


def curved(x, step):
    """A forecaster that does not agree with itself along a path."""
    return x + (1 - step.lead / SMALL) * (0.5 * jnp.sin(x) + 0.2)


def ends(name, steps, **options):
    leads, x0 = Leads(SMALL, "uniform", steps=steps), jnp.full((1, 1), 0.7)
    return np.asarray(
        sample(curved, Curved(), x0, leads, WalkSampler(name, **options), wanted=(2, 4)).frames
    )[0, :, 0]


def walked():
    """The limit of cold sampling: dx/di = d/di I(x_0, F(x, i), i) with F held fixed, by an independent integrator."""
    from scipy.integrate import solve_ivp

    def slope(i, x):
        xh, t = x + (1 - i / 4) * (0.5 * np.sin(x) + 0.2), i / 4
        return (-0.7 + xh + 0.3 * (1 - 2 * t) * np.tanh(0.7 - xh / 2)) / 4

    return solve_ivp(slope, (0, 4), [0.7], t_eval=(2, 4), rtol=1e-12, atol=1e-12).y[0]


@pytest.mark.parametrize(
    "name, options, order",
    [("cold", {}, 1), ("cold", dict(last="cold"), 1), ("heun", dict(draws="step", last="cold"), 2)],
)
def test_the_order_of_a_sampler_whose_forecaster_is_not_consistent(name, options, order):
    truth = walked()
    np.testing.assert_allclose(truth, (0.989112, 1.284500), atol=1e-6)
    errors = np.array([ends(name, steps, **options) - truth for steps in (64, 128, 256)])
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), order, atol=0.1)


def test_naive_sampling_tends_elsewhere():
    """To the root of x = I(x_0, F(x, i), i)."""

    def root(i):
        def at(x):
            return Curved().draw(0, 0.7, curved(x, type("S", (), {"lead": i})), i) - x

        return optimize.brentq(lambda x: float(at(x)), 0, 3, xtol=1e-12)

    errors = np.array([ends("naive", steps)[0] - root(2.0) for steps in (64, 128, 256)])
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), 1, atol=0.1)
    assert root(2.0) == pytest.approx(1.017953, abs=1e-6) and abs(root(2.0) - walked()[0]) > 0.02
