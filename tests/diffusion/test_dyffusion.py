"""DYffusion as released: schedules, the calls of a walk and the loss, with functions in place of networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bridges import Plain

from dydiff_jax.diffusion.dyffusion import DYffusion, Leads, Step, condition, dyffusion_loss
from dydiff_jax.diffusion.walk import WalkSampler, sample

H = 4
PLAIN = Leads(H)
SCHEDULES = {
    "release": (Leads(H), [0, 1, 2, 3]),
    "extra": (Leads(H, extra=3), [0, 0.25, 0.5, 0.75, 1, 2, 3]),
    "linear": (Leads(H, "linear", factor=1), [0, 0.5, 1, 1.5, 2, 2.5, 3]),
    "linear from 1": (Leads(H, "linear", factor=1, before_t1=False), [0.5, 1, 1.5, 2, 2.5, 3]),
    "both": (Leads(H, "before_t1_then_linear", extra=1, factor=1), [0, 0.5, 1, 1.5, 2, 2.5, 3]),
    "uniform": (Leads(H, "uniform", steps=8), np.arange(8) / 2),
    "uniform, coarse": (Leads(H, "uniform", steps=3), [0, 4 / 3, 8 / 3]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_their_tables(name):
    leads, expected = SCHEDULES[name]
    assert leads.num_steps == len(expected)
    numbers = np.arange(leads.num_steps)
    np.testing.assert_allclose(leads.lead(numbers), expected, rtol=1e-15)
    np.testing.assert_allclose(leads.number(leads.lead(numbers + 0.3)), numbers + 0.3, rtol=1e-12)


def test_the_papers_sea_surface_schedule():
    """h = 7, 25 extra steps: N = 32, of which 26 lie before the first day."""
    leads = Leads(7, extra=25)
    assert leads.num_steps == 32 and np.sum(leads.lead(np.arange(32)) < 1) == 26


GRIDS = {
    "all": (dict(), np.arange(7)),
    "integers": (dict(grid="integers"), [0, 4, 5, 6]),
    "front": (dict(grid="front", count=2), [0, 4 / 3, 8 / 3, 4, 5, 6]),
    "front rounded": (dict(grid="front", count=2, rounded=True), [0, 1, 2, 4, 5, 6]),
    "thin": (dict(grid="thin", count=2), [0, 1, 3, 4, 5, 6]),
    "first": (dict(grid="first", count=1), [0, 1, 4, 5, 6]),
    "share": (dict(grid="first", count=0.7), [0, 1, 2, 4, 5, 6]),
    "power": (dict(grid="power", count=2, power=2.0), [0, 7 / 4, 4, 5, 6]),
}


@pytest.mark.parametrize("name", GRIDS)
def test_accelerated_grids_keep_the_integer_leads(name):
    options, expected = GRIDS[name]
    np.testing.assert_allclose(WalkSampler(**options).numbers(Leads(H, extra=3)), expected, rtol=1e-15)


def test_a_grid_of_a_schedule_that_misses_the_frames_has_them_too():
    found = WalkSampler().numbers(Leads(H, "uniform", steps=3))
    np.testing.assert_allclose(found, [0, 3 / 4, 1, 3 / 2, 2, 9 / 4], rtol=1e-15)


class Recorder(Plain):
    """Functions that note their calls; jax must not trace them."""

    def __init__(self):
        self.calls = []

    def forecast(self, x, step):
        self.calls.append(("F", float(step.number), float(step.lead)))
        return x + 1

    def draw(self, draw, x0, xh, lead):
        self.calls.append(("I", int(draw), float(lead)))
        return x0 + lead


def walk(leads=PLAIN, first_draw=0, wanted=None, first_between=None, **options):
    recorder, sampler = Recorder(), WalkSampler(**options)
    with jax.disable_jit():
        draws = first_draw, first_between
        path = sample(recorder.forecast, recorder, jnp.zeros((1, 2)), leads, sampler, wanted, *draws)
    return recorder.calls, path


def test_the_calls_of_cold_sampling_come_in_the_released_order():
    """F at this lead, I at the next lead, then I at this one; none at lead 0. Draws are numbered as they come."""
    calls, path = walk()
    assert calls == [
        ("F", 0, 0), ("I", 0, 1), ("F", 1, 1), ("I", 1, 2), ("I", 2, 1), ("F", 2, 2), ("I", 3, 3), ("I", 4, 2),
        ("F", 3, 3),
    ]  # fmt: skip
    assert path.draws == 5 and path.frames.shape == (1, H, 2)


@pytest.mark.parametrize("leads", [Leads(H), Leads(7, extra=25)], ids=["h 4", "h 7, N 32"])
@pytest.mark.parametrize(
    "options, count",
    [
        (dict(), lambda n, h: (n, 2 * n - 3)),
        (dict(last="cold"), lambda n, h: (n, 2 * n - 2)),
        (dict(refine=True), lambda n, h: (n, 2 * n - 3 + h - 1)),
        (dict(name="naive"), lambda n, h: (n, n - 1)),
        (dict(name="heun", draws="block", last="cold"), lambda n, h: (2 * n - 1, 4 * (n - 1) - 2 + 1)),
    ],
    ids=["cold", "cold to the end", "refined", "naive", "heun"],
)
def test_the_number_of_calls_is_as_stated(leads, options, count):
    calls, path = walk(leads, **options)
    names = [name for name, *_ in calls]
    found = (names.count("F"), names.count("I"))
    assert found == count(leads.num_steps, leads.horizon) == WalkSampler(**options).calls(leads)
    draws = [draw for name, draw, _ in calls if name == "I"]
    if "draws" not in options:
        assert draws == list(range(len(draws))) and path.draws == len(draws)
    assert path.draws == WalkSampler(**options).draws_of_block(leads)


@pytest.mark.parametrize(
    "draws, expected, block", [("step", [0, 1, 1, 2, 2], 4), ("block", 5 * [0], 1), ("rollout", 5 * [0], 0)]
)
def test_draws_of_a_step_of_a_block_and_of_a_rollout(draws, expected, block):
    calls, path = walk(draws=draws)
    assert [draw for name, draw, _ in calls if name == "I"] == expected
    assert path.draws == block
    again, _ = walk(draws=draws, first_draw=block)
    assert [draw for name, draw, _ in again if name == "I"] == [draw + block for draw in expected]


def test_frames_made_anew_and_between_frames_come_last_in_the_order_of_their_leads():
    calls, path = walk(refine=True)
    assert calls[-3:] == [("I", 5, 1), ("I", 6, 2), ("I", 7, 3)]
    np.testing.assert_array_equal(path.frames[0, :, 0], [1, 2, 3, path.last[0, 0]])
    calls, path = walk(wanted=np.arange(1, 2 * H + 1) / 2)
    assert calls[-4:] == [("I", 5, 0.5), ("I", 6, 1.5), ("I", 7, 2.5), ("I", 8, 3.5)]
    np.testing.assert_array_equal(path.frames[0, :-1, 0], np.arange(1, 8) / 2)
    np.testing.assert_array_equal(path.frames[0, 1::2], walk()[1].frames[0])
    assert path.draws == 9


def test_frames_between_change_no_draw_of_the_walk_nor_of_the_whole_leads():
    thirds = np.arange(1, 3 * H + 1) / 3
    calls, path = walk(wanted=thirds, first_draw=10, first_between=100, refine=True)
    plain, whole = walk(first_draw=10, refine=True)
    drawn = {lead: draw for name, draw, lead in calls[-3 * H + 1 :]}
    assert calls[: -3 * H + 1] == plain[: -H + 1]
    assert [(drawn[lead], lead) for lead in (1, 2, 3)] == [(draw, lead) for _, draw, lead in plain[-H + 1 :]]
    assert sorted(set(drawn.values()) - {15, 16, 17}) == list(range(100, 108))
    assert path.draws == whole.draws == 8
    assert [name for name, *_ in calls].count("I") == WalkSampler(refine=True).calls(PLAIN, thirds)[1]
    calls, path = walk(wanted=thirds, first_draw=3, first_between=100, refine=True, draws="block")
    assert {draw for name, draw, _ in calls if name == "I"} == {3} and path.draws == 1


def test_a_wanted_lead_that_a_step_has_is_the_state_there():
    """Thirds of the first frame: rounding of a division does not hide them."""
    leads = Leads(H, extra=2)
    calls, path = walk(leads, wanted=np.arange(1, 3 * H + 1) / 3)
    plain, _ = walk(leads)
    assert calls[: len(plain)] == plain and len(calls) == len(plain) + 2 * (H - 1)
    np.testing.assert_allclose(path.frames[0, :3, 0], [1 / 3, 2 / 3, 1], rtol=1e-6)


# The loss


class Blend(Plain):
    """x_i = x_0 + sin(i) (x_h - x_0) + draw: a function that a gradient can pass through."""

    def draw(self, draw, x0, xh, lead):
        lead = jnp.broadcast_to(jnp.asarray(lead, x0.dtype), x0.shape[:1])[:, None]
        return x0 + jnp.sin(lead) * (xh - x0) + draw


def setting():
    rng = np.random.default_rng(0)
    x0, xh = (jnp.asarray(rng.normal(size=(H, 3))) for _ in range(2))
    return x0, xh, jax.random.split(jax.random.key(0), H), jnp.arange(H)


def forecaster(p):
    def forecast(x, step):
        return jnp.tanh(p[0] * x + p[1] * jnp.asarray(step.lead)[:, None] + p[2])

    return forecast


def by_hand(p, loss, weights, counted=None):
    """Example by example, in numpy."""
    x0, xh, _, _ = (np.asarray(each) if index != 2 else None for index, each in enumerate(setting()))

    def blend(x0, xh, lead, draw):
        return x0 + np.sin(lead) * (xh - x0) + draw

    def f(x, lead):
        return np.tanh(p[0] * x + p[1] * lead + p[2])

    def error(e):
        return np.mean(np.abs(e) if loss == "l1" else e**2)

    first, second = [], []
    for n in range(H) if counted is None else counted:
        x = x0[n] if n == 0 else blend(x0[n], xh[n], n, 0)
        estimate = f(x, n)
        first.append(error(estimate - xh[n]))
        if n <= H - 2:
            second.append(error(f(blend(x0[n], estimate, n + 1, 1), n + 1) - xh[n]))
    return np.mean(first), np.mean(second)


@pytest.mark.parametrize("loss", ["l1", "mse"])
def test_the_loss_looks_ahead_but_for_the_last_step(x64, loss):
    p, weights = np.array([0.7, 0.1, -0.2]), (0.5, 0.25)
    x0, xh, keys, numbers = setting()
    found, parts = dyffusion_loss(
        keys, DYffusion(Leads(H), loss, weights), forecaster(p), Blend(), x0, xh, number=numbers
    )
    first, second = by_hand(p, loss, weights)
    assert parts["loss_forecast"] == pytest.approx(first, rel=1e-12)
    assert parts["loss_look_ahead"] == pytest.approx(second, rel=1e-12)
    assert found == pytest.approx(0.5 * first + 0.25 * second, rel=1e-12)


def test_the_gradient_passes_through_the_interpolator(x64):
    """Equal to central differences to 1e-6; without the way through I it is another one."""
    p, options = jnp.array([0.7, 0.1, -0.2]), DYffusion(Leads(H), "mse")
    x0, xh, keys, numbers = setting()

    class Closed(Blend):
        def draw(self, draw, x0, xh, lead):
            return super().draw(draw, x0, jax.lax.stop_gradient(xh), lead)

    def value(p, interpolator=None):
        return dyffusion_loss(keys, options, forecaster(p), interpolator or Blend(), x0, xh, number=numbers)[
            0
        ]

    value_at, gradient = jax.jit(value), jax.jit(jax.grad(value))(p)
    steps = 1e-5 * np.eye(3)
    differences = [(value_at(p + step) - value_at(p - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(gradient, differences, rtol=1e-6)
    closed = jax.grad(value)(p, Closed())
    assert np.abs(closed - gradient).max() > 1e-3


def test_steps_are_drawn_uniformly_and_by_the_key_of_an_example_alone():
    keys = jax.random.split(jax.random.key(1), 4000)
    x0 = jnp.zeros((4000, 1))

    def counted(x, step):
        return jnp.asarray(step.number)[:, None] + 0 * x

    @jax.jit
    def numbers(keys, x0):
        options, seen = DYffusion(Leads(H), weights=(1.0, 0.0)), []
        dyffusion_loss(
            keys, options, lambda x, step: seen.append(step.number) or counted(x, step), Blend(), x0, x0
        )
        return seen[0]

    found = np.asarray(numbers(keys, x0))
    counts = np.bincount(found.astype(int), minlength=H)
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(1000 * 0.75) and len(counts) == H
    np.testing.assert_array_equal(numbers(keys[7:9], x0[:2]), found[7:9])


def test_missing_points_of_the_target_count_in_neither_error(x64):
    x0, xh, keys, numbers = setting()
    observed = jnp.asarray(np.random.default_rng(1).random((H, 3)) > 0.4)
    p, options = jnp.array([0.7, 0.1, -0.2]), DYffusion(Leads(H))

    class Ahead(Blend):
        def draw(self, draw, x0, xh, lead):  # the network sees a filled target
            return super().draw(draw, x0, jnp.where(observed, xh, 0.0) if draw == 0 else xh, lead)

    def value(target):
        loss, parts = dyffusion_loss(keys, options, forecaster(p), Ahead(), x0, target, observed, numbers)
        return loss, parts

    one, other = value(xh), value(jnp.where(observed, xh, 1e9))
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1]["loss_look_ahead"] == other[1]["loss_look_ahead"] > 0


@pytest.mark.parametrize("number, share", [(0, 0.0), (1.5, 0.5), (3, 1.0)])
def test_conditioning_on_noised_data_ends_with_the_data(number, share):
    x0, noise = jnp.full((2, 3), 2.0), jnp.full((2, 3), -1.0)
    found = condition("data_noise", x0, number, H, noise)
    np.testing.assert_allclose(found, share * 2.0 - (1 - share), rtol=1e-6)
    np.testing.assert_array_equal(condition("data", x0, number, H), x0)
    assert condition("none", x0, number, H) is None


@pytest.mark.parametrize(
    "time, expected, longest", [("lead", 0.5, H), ("step", 2.0, 7), ("normalized", 2 / 7, 1)]
)
def test_what_the_forecaster_sees_of_its_step(time, expected, longest):
    leads = Leads(H, extra=3)
    options = DYffusion(leads, time=time)
    assert options.time_of(Step(2.0, float(leads.lead(2)))) == pytest.approx(expected)
    assert options.longest == longest


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Leads(1), "horizon: expected 2 forecast frames"),
        (lambda: Leads(H, factor=2), "factor: expected 0 .*, found 2; .*kind=linear or before_t1_then"),
        (lambda: Leads(H, "linear", extra=2), "extra: expected 0 with the schedule 'linear', found 2"),
        (lambda: Leads(H, "uniform"), "steps: expected 2 or more"),
        (lambda: Leads(H, steps=9), "steps: expected None .* found 9; .*kind=uniform"),
        (lambda: Leads(H, before_t1=False), "before_t1: expected True .* found False"),
        (lambda: Leads(H, extra=-1), "extra: expected 0 or more"),
        (lambda: WalkSampler(grid="thin"), "count: expected a number with the grid 'thin'"),
        (lambda: WalkSampler(count=3), "count: expected None with the grid 'all'"),
        (lambda: WalkSampler(grid="front", count=0.5), "count: expected a whole number"),
        (lambda: WalkSampler(rounded=True), "rounded: expected False with the grid 'all'"),
        (lambda: WalkSampler(power=2.0), "power: expected a positive number, and 1 but"),
        (lambda: WalkSampler("naive", draws="step"), "draws: expected 'call', .*, found 'step'; use"),
        (lambda: WalkSampler("heun", last="cold"), "name: 'heun' expected draws='step'"),
        (lambda: WalkSampler("heun", draws="step"), "name: .*found draws='step' and last='forecast'"),
        (lambda: WalkSampler(grid="first", count=9).numbers(Leads(H, extra=3)), "count: expected at most the 3"),
        (
            lambda: WalkSampler(grid="front", count=5, rounded=True).numbers(Leads(H, extra=3)),
            "count: expected at most the 4 steps that the schedule has before lead 1, found 5",
        ),
        (lambda: WalkSampler("ancestral").check(Leads(H), False), "name: 'ancestral' expected an interpolator"),
        (lambda: DYffusion(Leads(H), weights=(0.0, 1.0)), "weights: expected one above 0"),
    ],
)  # fmt: skip
def test_options_that_do_not_belong_together_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
