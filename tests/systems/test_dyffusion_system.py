"""DYffusion and its rivals behind the seam: what is read and drawn, and what they learn."""

import json

import jax
import numpy as np
import pytest
from ar1 import A, H, built, config, trained_weights

from dydiff_jax import build
from dydiff_jax.data.batches import TrainBatches
from dydiff_jax.diffusion.interpolation import INTERPOLATORS
from dydiff_jax.distributed.mesh import make_mesh
from dydiff_jax.evaluation.forecast import Ensemble, gather
from dydiff_jax.runs import commands, scoring
from dydiff_jax.types import Batch

# What is read


@pytest.mark.parametrize(
    "method, stage, possible",
    [("dyffusion", 0, range(2, 1 + H)), ("dyffusion", 1, [1 + H]), ("dropout", 0, range(2, 2 + H))],
    ids=["interpolator", "forecaster", "direct"],
)
def test_a_stage_reads_its_frames_of_the_window_and_no_others(method, stage, possible, data):
    raw = config(data, method, window__num_context=2)
    windows, frames = commands.open_data(build.load(raw)).train, built(raw).stages[stage].frames
    whole, some = TrainBatches(windows, 32, seed=3), TrainBatches(windows, 32, seed=3, frames=frames)
    seen = set()
    for step in range(4):
        found, expected = some.rows(step, range(32)), whole.rows(step, range(32))
        assert found.frames.shape[1] == found.at.shape[1] == frames.count and expected.at is None
        np.testing.assert_array_equal(found.at[:, :2], [[0, 1]] * 32)
        rows = np.arange(32)[:, None]
        np.testing.assert_array_equal(found.frames, expected.frames[rows, found.at])
        seen |= set(found.at[:, 2].tolist())
        np.testing.assert_array_equal(some.rows(step, [5]).at, found.at[5:6])
    assert seen == set(possible), "each of the leads, and each by its own example"


# What is drawn


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dyffusion", "dropout", "perturbation"])
def test_a_member_is_the_same_whatever_is_drawn_beside_it(method, data):
    """The same bits in every chunk of a size, dropout included, and to rounding in chunks of another size.

    Those are another program: XLA:CPU sums the means of a group norm, and multiplies by the few columns of the head, in
    an order that depends on the batch size. Even in one program the end of a loop that is no whole vector rounds apart:
    4 rows of 36 points have no such end, 3 have.
    """
    run = built(config(data, method))
    weights, frames = trained_weights(run), np.load(data / "0.npy")[None, :3].swapaxes(0, 1)
    driver = Ensemble(run.system.forecaster(), 2 * H, 4)

    def drawn(driver, members, windows):
        given = Batch(frames[:windows])
        return gather(driver.pieces(weights, jax.random.key(0), given, members), members, windows, 2 * H)

    found = drawn(driver, 2, 3)
    np.testing.assert_array_equal(drawn(driver, 3, 2)[:2], found[:, :2])
    np.testing.assert_array_equal(drawn(driver, 1, 1), found[:1, :1])
    np.testing.assert_allclose(drawn(Ensemble(driver.forecaster, 2 * H, 1), 2, 3), found, rtol=0, atol=2e-5)
    assert np.isfinite(found).all() and np.abs(found[0] - found[1]).max() > 1e-3


def test_the_next_block_begins_with_the_last_frame_of_the_one_before(data):
    run = built(config(data, "dyffusion", **{"system__interpolator__name": "none"}))
    weights, first = trained_weights(run), np.load(data / "1.npy")[None, :1]

    def drawn(frames, horizon):
        driver = Ensemble(run.system.forecaster(), horizon, 1)
        return gather(driver.pieces(weights, jax.random.key(0), Batch(frames), 1), 1, 1, horizon)[0]

    rolled = drawn(first, 2 * H)
    again = drawn(rolled[:, H - 1 : H], H)
    np.testing.assert_allclose(again, rolled[:, H:], rtol=1e-5, atol=1e-6)


# What is learnt


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian", "noise"])
def test_an_interpolator_learns_the_spread_of_the_bridge(name, data, tmp_path):
    """Within 5 % at every lead, of an AR(1) process at every point."""
    changes = {
        "system__interpolator__name": name,
        "train__steps": 600,
        "train__batch_size": 64,
        "train__log_every": 200,
    }
    raw = config(data, "dyffusion", **changes, stages={"forecaster": {"train": {"steps": 3}}})
    commands.train(raw, tmp_path / "run")
    run = built(raw)
    weights, _ = scoring.load_run(run, make_mesh(run.config.mesh), tmp_path / "run")
    functions = run.system.functions
    rng = np.random.default_rng(5)
    x0 = rng.normal(size=(64, 6, 6, 1)).astype(np.float32)
    xh = (A**H * x0 + np.sqrt(1 - A ** (2 * H)) * rng.normal(size=x0.shape)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 64)
    bound = functions.interpolate(weights["interpolator"], x0[:, None], None, keys)
    draws = jax.jit(lambda lead: jax.vmap(lambda draw: bound.draw(draw, x0, xh, lead))(np.arange(256)))
    for lead in range(1, H):
        own, left = 1 - A ** (2 * lead), 1 - A ** (2 * (H - lead))
        expected = np.sqrt(own * left / (1 - A ** (2 * H)))
        found = np.asarray(draws(float(lead)))
        assert np.sqrt(found.var(axis=0, ddof=1).mean()) == pytest.approx(expected, rel=0.05), lead
        mean = (A**lead * left * x0 + A ** (H - lead) * own * xh) / (1 - A ** (2 * H))
        assert np.sqrt(((found.mean(axis=0) - mean) ** 2).mean()) < 0.25 * expected


@pytest.mark.slow
def test_both_stages_through_the_commands_and_again(data, tmp_path, monkeypatch):
    """Lines and checkpoints of each; a second start trains nothing and forecasts the same, between the leads too."""
    raw = config(data, "dyffusion", train__steps=60, train__log_every=20)
    folder = commands.train(raw, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == 3 * ["interpolator"] + 3 * ["forecaster"]
    assert {"loss_forecast", "loss_look_ahead"} <= lines[-1].keys()
    scores = json.loads((folder / "metrics.json").read_text())
    cost = scores["cost"]
    assert cost["nfe_per_frame"] == cost["network_frames_per_frame"] == (H + 2 * H - 3) / H
    assert cost["networks"] == 2 and cost["training_steps"] == 120
    assert {name: stage["steps"] for name, stage in cost["stages"].items()} == dict(
        interpolator=60, forecaster=60
    )
    for name in ("steps", "seconds", "gflop"):
        parts = [stage[name] for stage in cost["stages"].values()]
        assert min(parts) > 0 and cost[f"training_{name}"] == pytest.approx(sum(parts))
    assert scores["scores"]["dyffusion"]["crps"]["mean"] < scores["scores"]["persistence"]["crps"]["mean"]
    assert commands.train(raw, tmp_path / "run") == folder
    assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") == len(lines)
    np.save(tmp_path / "now.npy", np.load(data / "0.npy")[:1])
    monkeypatch.setattr(commands.plots, "animate", lambda folder: None)
    raw.evaluation.horizon = H + 1
    for substeps in (1, 4):
        commands.forecast(raw, tmp_path / "run", tmp_path / "now.npy", 2, substeps)
    found = [np.load(tmp_path / f"run/forecast/now{end}/forecast.npz") for end in ("", "_substeps_4")]
    np.testing.assert_array_equal(found[0]["leads"], np.arange(1, H + 2))
    np.testing.assert_array_equal(found[1]["leads"], np.arange(1, 4 * H + 5) / 4)
    np.testing.assert_array_equal(found[1]["ensemble"][:, :, 3::4], found[0]["ensemble"])


def test_every_kind_of_interpolator_is_named():
    assert set(INTERPOLATORS) == {"dropout", "gaussian", "noise", "none"}
